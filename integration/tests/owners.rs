//! Promise: every flow has an owner, or a stated reason why not.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cgroup::{self, Cgroup};
use integration::need::{self, Need};
use integration::netns::NetNs;
use integration::process::run;
use integration::product::Agent;
use integration::product::record::{End, Flow};
use integration::scene::{self, TOLD_WITHIN, TRAFFIC_WITHIN, Told};
use integration::traffic::{self, Helper, Truth};
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, RIGHT_V4, UNREACHABLE_V4, World};
use integration::{soak, wire};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

/// Executions a second of the storm.
const STORM_RATE: usize = 500;
/// Seconds that a full storm lasts.
const STORM_SECONDS: usize = 20;
/// Least share of short-lived processes that must be named, in per mille. None may be named wrongly.
const STORM_NAMED_PER_MILLE: usize = 995;

#[test]
fn the_process_that_accepts_owns_the_connection() -> Result<()> {
    // fork: the parent accepts, a child talks. prefork, reuseport: workers accept. handover: another program talks.
    accepted_by(
        &["thread", "fork", "prefork", "reuseport", "handover"],
        |end, told| end.confidence == "exact" && end.pid() == told.pid,
    )
}

#[test]
fn a_server_that_asks_for_no_address_is_owned_by_its_listener_at_least() -> Result<()> {
    accepted_by(&["nameless"], |end, told| {
        let known = ["inherited", "backfilled", "exact"].contains(&end.confidence.as_str());
        known && end.pid() == told.pid
    })
}

#[test]
fn udp_sockets_are_owned_connected_or_not() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &["--scope", &scope(&world.right)])?;
    for (family, connected) in [
        (Family::V4, true),
        (Family::V4, false),
        (Family::V6, true),
        (Family::Mapped, false),
    ] {
        let plan = ["--sockets", "10", "--exchanges", "30", "--connected"];
        let plan = if connected { &plan[..] } else { &plan[..4] };
        let told = scene::udp(&world, Place::Wire, family, plan)?;
        check_ends(&agent, &told, |end, told| {
            end.confidence == "exact" && end.pid() == told.pid
        })
        .with_context(|| format!("{family:?}, connected: {connected}"))?;
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn one_udp_socket_with_many_peers_has_a_flow_for_each() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    // Only the server's host is watched: its one socket must tell all peers apart.
    let agent = Agent::watching(&world.right, &[])?;
    let peers = soak::count(10_000).to_string();
    let plan = ["--sockets", &peers, "--exchanges", &peers];
    let told = scene::udp(&world, Place::Wire, Family::V4, &plan)?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, told.clients.len(), |flow| told.owns(flow))?;
    ensure!(flows.len() == told.clients.len(), "{} flows", flows.len());
    for client in &told.clients {
        let record = told.find(&flows, client)?.last();
        let payload = (record.total.forward.payload, record.total.backward.payload);
        ensure!(
            payload == (client.sent, client.received),
            "{record:?}, truth {client:?}"
        );
        ensure!(record.responder.pid() == told.server_pid, "{record:?}");
        ensure!(
            record.initiator.unknown.as_deref() == Some("remote"),
            "{record:?}"
        );
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn processes_that_exit_at_once_are_named() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &["--command-line", "full"])?;
    let (server, ready, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let total = soak::count(STORM_RATE * STORM_SECONDS);
    let (rate, count) = (STORM_RATE.to_string(), total.to_string());
    let storm = ["storm", "--to", &to, "--rate", &rate, "--total", &count];
    let told = traffic::run(&world.left, TRAFFIC_WITHIN, &storm)?;
    server.finish(PATIENCE)?;
    if let Some(Truth::Storm(storm)) = told.last() {
        println!("{} executions in {} ms", storm.started, storm.took_ms);
    }
    let truths = traffic::flows(&told);
    let port = ready.address.port();
    let ours = |flow: &Flow| flow.first().responder.port == port;
    let flows = agent.wait_for_ended(TOLD_WITHIN, truths.len(), ours)?;
    let mut by_port: HashMap<u16, Vec<End>> = HashMap::new();
    for flow in &flows {
        let end = &flow.last().initiator;
        by_port.entry(end.port).or_default().push(end.clone());
    }
    let mut named = 0;
    for truth in &truths {
        // Ports come again within 20 s: of several ends at one port the one with this pid is meant.
        let ends = by_port.get(&truth.local.port()).map_or(&[][..], Vec::as_slice);
        let end = ends
            .iter()
            .find(|end| end.pid() == truth.pid)
            .or_else(|| ends.iter().find(|end| end.process.is_none()))
            .with_context(|| format!("no or a wrong owner: {truth:?}, {ends:?}"))?;
        if end.executable().is_empty() {
            continue;
        }
        ensure!(
            end.executable().ends_with("/traffic"),
            "wrong executable: {end:?}"
        );
        ensure!(
            end.command_line().split(' ').next_back() == Some(&truth.tag),
            "wrong command line: {end:?}, {truth:?}"
        );
        named += 1;
    }
    let ended = agent.interrupt()?;
    println!("named: {named} of {}; {}", truths.len(), ended.words.join(" | "));
    ensure!(
        named * 1000 >= truths.len() * STORM_NAMED_PER_MILLE,
        "named {named} of {}",
        truths.len()
    );
    ended.check_laws()
}

#[test]
fn a_socket_older_than_the_agent_has_its_holder() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    // A port that nobody takes for a client's: who began is inferred from ports.
    let to = "10.77.0.2:443".to_owned();
    let (server, _) = Helper::serve(&world.right, &["serve", "--style", "thread", "--listen", &to])?;
    let hold = [
        "connect",
        "--to",
        &to,
        "--count",
        "20",
        "--hold",
        "--request",
        "5000",
    ];
    let (client, _) = Helper::serve(&world.left, &hold)?;
    let agent = Agent::watching(&world.left, &["--scope", &scope(&world.right)])?;
    wait::until_true(TOLD_WITHIN, "records of the open connections", || {
        agent.flows().is_ok_and(|flows| {
            flows
                .iter()
                .filter(|flow| flow.first().responder.port == 443)
                .count()
                == 20
        })
    })?;
    let clients = traffic::flows(&client.finish(PATIENCE)?);
    let servers = traffic::flows(&server.finish(PATIENCE)?);
    let told = Told::new(to.parse()?, 0, clients, servers)?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, told.clients.len(), |flow| told.owns(flow))?;
    for client in &told.clients {
        let record = told.find(&flows, client)?.last();
        ensure!(record.backfilled, "{record:?}");
        ensure!(record.initiator.executable().ends_with("/traffic"), "{record:?}");
        ensure!(record.initiator.confidence == "backfilled", "{record:?}");
        ensure!(
            record.initiator.pid() == client.pid,
            "{record:?}, truth {client:?}"
        );
        ensure!(record.responder.pid() == told.mirror(client)?.pid, "{record:?}");
        let payload = (record.total.forward.payload, record.total.backward.payload);
        ensure!(
            payload == (client.sent, client.received),
            "all of it came later: {record:?}"
        );
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn a_pid_that_comes_again_is_another_process() -> Result<()> {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    if !std::path::Path::new(LAST_PID).exists() {
        need::skip("this kernel cannot choose pids (CONFIG_CHECKPOINT_RESTORE)");
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &["--command-line", "full"])?;
    let (_server, ready, to) =
        scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let first = traffic::run(&world.left, PATIENCE, &["once", &to, "first-life"])?;
    let first = &traffic::flows(&first)[0];
    // Other processes of the machine may take the pid in between: tried until it is had.
    let second = wait::until(PATIENCE, "the same pid again", || {
        std::fs::write(LAST_PID, (first.pid - 1).to_string())?;
        let told = traffic::run(&world.left, PATIENCE, &["once", &to, "second-life"])?;
        let flow = traffic::flows(&told).remove(0);
        Ok((flow.pid == first.pid).then_some(flow))
    })?;
    let port = ready.address.port();
    let wanted = |flow: &Flow| {
        let record = flow.first();
        record.responder.port == port
            && [first.local.port(), second.local.port()].contains(&record.initiator.port)
    };
    let flows = agent.wait_for_ended(TOLD_WITHIN, 2, wanted)?;
    for truth in [first, &second] {
        let end = &flows
            .iter()
            .map(Flow::last)
            .find(|record| record.initiator.port == truth.local.port())
            .context("a flow of each life")?
            .initiator;
        ensure!(
            end.pid() == first.pid && end.command_line().ends_with(&truth.tag),
            "{end:?}, {truth:?}"
        );
    }
    Ok(())
}

#[test]
fn attempts_that_fail_are_records_with_their_cause() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("nft", "nftables")]) {
        return Ok(());
    }
    let world = World::build()?;
    world.left.sysctl("ipv4/tcp_syn_retries", "1")?;
    wire::swallow(&world.right, 7)?;
    let agent = Agent::watching(&world.left, &[])?;
    let wire_v4 = World::server_address(Place::Wire, Family::V4);
    let wire_v6 = World::server_address(Place::Wire, Family::V6);
    for (to, port, error, reason) in [
        (wire_v4, 9, "ECONNREFUSED", "refused"),
        (wire_v6, 9, "ECONNREFUSED", "refused"),
        (wire_v4, 7, "ETIMEDOUT", "timed-out"),
        (UNREACHABLE_V4.parse()?, 80, "EHOSTUNREACH", "unreachable"),
    ] {
        let attempts = scene::attempts(&world, to, port, 3)?;
        ensure!(
            attempts.iter().all(|attempt| attempt.error == error),
            "{attempts:?}"
        );
        let flows = agent
            .wait_for_ended(TOLD_WITHIN, attempts.len(), |flow| {
                flow.first().responder.address == to && flow.first().responder.port == port
            })
            .with_context(|| format!("{to} port {port}"))?;
        ensure!(
            flows.len() == attempts.len(),
            "{} records of {} attempts",
            flows.len(),
            attempts.len()
        );
        ensure!(
            flows.iter().any(|flow| flow.last().reason == reason),
            "none of {} attempts was {reason}: {attempts:?}",
            attempts.len()
        );
        for attempt in &attempts {
            let record = flows
                .iter()
                .map(Flow::last)
                .find(|record| record.initiator.port == attempt.local_port)
                .with_context(|| format!("no record of {attempt:?}"))?;
            // A router limits its answers: the application's own error is the truth of each attempt.
            let told = match attempt.error.as_str() {
                "ECONNREFUSED" => "refused",
                "ETIMEDOUT" => "timed-out",
                "EHOSTUNREACH" | "ENETUNREACH" => "unreachable",
                other => other,
            };
            ensure!(
                record.reason == told,
                "{} instead of {told}: {attempt:?}, {record:?}",
                record.reason
            );
            ensure!(record.initiator.pid() == attempt.pid, "{record:?}");
            ensure!(
                record.total.forward.payload == 0 && record.total.forward.packets > 0,
                "{record:?}"
            );
        }
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn a_connection_that_is_reset_says_so() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let plan = ["--count", "5", "--expect-reset"];
    let told = scene::tcp(&world, Place::Wire, Family::V4, "reset", &plan)?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, 5, |flow| told.owns(flow))?;
    for client in &told.clients {
        let record = told.find(&flows, client)?.last();
        ensure!(record.reason == "reset", "{record:?}");
        ensure!(record.total.forward.payload == client.sent, "{record:?}");
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn a_host_out_of_scope_is_not_seen() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.right, &[])?;
    let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "3"])?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, 3, |flow| told.owns(flow))?;
    for flow in &flows {
        let end = &flow.last().initiator;
        ensure!(
            end.process.is_none() && end.unknown.as_deref() == Some("remote"),
            "{end:?}"
        );
    }
    let loopback = scene::tcp(&world, Place::Loopback, Family::V4, "thread", &["--count", "3"])?;
    wait::throughout(
        Duration::from_secs(3),
        "flows of the other host stay unseen",
        || {
            agent
                .flows()
                .is_ok_and(|flows| !flows.iter().any(|flow| loopback.owns(flow)))
        },
    )
}

#[test]
fn a_cgroup_is_in_scope_by_its_path_in_the_agents_own_namespace_of_cgroups() -> Result<()> {
    let bash = Need::Program("bash", "bash");
    if !need::met(&[&need::WORLD[..], &[bash]].concat()) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("needs cgroup2");
        return Ok(());
    };
    let world = World::build()?;
    let own = Cgroup::make(&root, &format!("scope-{}", std::process::id()), "agent")?;
    let inside = Cgroup::make(own.inner(), "inside", "deep")?;
    let agent = Agent::in_cgroup_namespace(&own, "cgroup=/flowtilla-test-inside", &[])?;
    let at = SocketAddr::new(RIGHT_V4.parse()?, 0);
    let listener = world.right.enter(|| Ok(TcpListener::bind(at)?))?;
    let to = listener.local_addr()?;
    drop(world.left.enter(|| Ok(TcpStream::connect(to)?))?);
    drop(listener.accept()?);
    let mut command = world.left.command("bash");
    inside.take_in(&mut command)?;
    let connect = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    run(command.args(["-c", &connect]))?;
    let (stream, from) = listener.accept()?;
    drop(stream);
    let ours = |flow: &Flow| flow.first().responder.port == to.port();
    let flows = agent.wait_for_ended(TOLD_WITHIN, 1, ours)?;
    let seen: Vec<_> = flows.iter().map(|flow| flow.first().initiator.port).collect();
    ensure!(seen == [from.port()], "{seen:?}, and {from} is in scope");
    agent.interrupt()?.check_laws()
}

/// A socket that could not connect is often used once more, by loops that try again.
#[test]
fn a_connection_after_refused_attempts_on_the_same_socket_is_told_whole() -> Result<()> {
    const ATTEMPTS: usize = 3;
    const OCTETS: usize = 10_000;
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let to: SocketAddr = "127.0.0.1:7777".parse()?;
    world.left.enter(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        for attempt in 0..ATTEMPTS {
            let refused = rustix::net::connect(&socket, &to);
            ensure!(
                refused == Err(Errno::CONNREFUSED),
                "attempt {attempt}: {refused:?}"
            );
        }
        let listener = TcpListener::bind(to)?;
        rustix::net::connect(&socket, &to)?;
        let mut client = TcpStream::from(socket);
        let (mut server, _) = listener.accept()?;
        client.write_all(&[7; OCTETS])?;
        drop(client);
        server.set_read_timeout(Some(PATIENCE))?;
        let octets = server.read_to_end(&mut Vec::new())?;
        ensure!(octets == OCTETS, "{octets} octets came");
        Ok(())
    })?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, ATTEMPTS + 1, |flow| {
        flow.first().responder.port == 7777
    })?;
    let mut told: Vec<_> = flows.iter().map(Flow::last).collect();
    told.sort_by(|one, other| one.start.cmp(&other.start));
    let connection = told.pop().context("a connection")?;
    ensure!(told.iter().all(|record| record.reason == "refused"), "{told:?}");
    ensure!(
        connection.reason == "end-of-flow" && connection.total.forward.payload == OCTETS as u64,
        "{connection:?}"
    );
    for record in told.iter().chain([&connection]) {
        let end = &record.initiator;
        ensure!(
            end.confidence == "exact" && end.pid() == std::process::id() && record.initiator_seen,
            "{record:?}"
        );
    }
    agent.interrupt()?.check_laws()
}

/// A socket that connects to itself does what a peer can do that answers a SYN with a SYN.
#[test]
fn a_peer_that_opens_at_the_same_time_takes_no_owner_away() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let own: SocketAddr = "127.0.0.1:7900".parse()?;
    world.left.enter(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &own)?;
        rustix::net::connect(&socket, &own)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"octets")?;
        stream.read_exact(&mut [0; 6])?;
        Ok(())
    })?;
    let flows = agent.wait_for_ended(TOLD_WITHIN, 1, |flow| flow.first().responder.port == 7900)?;
    let record = flows[0].last();
    let end = &record.initiator;
    ensure!(
        flows.len() == 1 && end.confidence == "exact" && end.pid() == std::process::id(),
        "{record:?}"
    );
    ensure!(
        record.initiator_seen && record.total.forward.payload == 6,
        "{record:?}"
    );
    agent.interrupt()?.check_laws()
}

/// Serves in each style, over loopback and a wire, and asks `right` of every responder.
fn accepted_by(styles: &[&str], right: impl Fn(&End, &traffic::Flow) -> bool + Copy) -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &["--scope", &scope(&world.right)])?;
    for style in styles {
        for (place, family) in [
            (Place::Loopback, Family::V4),
            (Place::Wire, Family::V6),
            (Place::Wire, Family::Mapped),
        ] {
            let plan = ["--count", "20", "--concurrent", "4"];
            let told = scene::tcp(&world, place, family, style, &plan)?;
            check_ends(&agent, &told, right).with_context(|| format!("{style}, {place:?}, {family:?}"))?;
        }
    }
    agent.interrupt()?.check_laws()
}

/// Waits for the flows of a scene, and compares both owners of each.
fn check_ends(agent: &Agent, told: &Told, right: impl Fn(&End, &traffic::Flow) -> bool) -> Result<()> {
    let flows = agent.wait_for_ended(TOLD_WITHIN, told.clients.len(), |flow| told.owns(flow))?;
    ensure!(flows.len() == told.clients.len(), "{} flows", flows.len());
    for client in &told.clients {
        let record = told.find(&flows, client)?.last();
        let server = told.mirror(client)?;
        ensure!(
            record.initiator.pid() == client.pid,
            "{:?}, truth {client:?}",
            record.initiator
        );
        ensure!(record.initiator.confidence == "exact", "{:?}", record.initiator);
        ensure!(
            right(&record.responder, server),
            "{:?}, truth {server:?}",
            record.responder
        );
    }
    Ok(())
}

fn scope(host: &NetNs) -> String {
    format!("netns={}", host.path().display())
}
