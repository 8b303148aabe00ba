//! Promise: what a policy leaves out as a whole is left out by the kernel; it is counted there, and a change takes it back.
//! A socket that was made in there and that a process outside has is told.
//!
//! A cgroup of ours on the left host, and the product's agent in this process, whose status tells what the kernel did.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use flowtilla_agent::run::{Agent as InProcess, Options};
use flowtilla_agent::status::AgentStatus;
use flowtilla_agent_core::flow::record::{EndReason, FlowRecord, Party, Protocol, Traffic};
use flowtilla_agent_core::loss::LeftOutSum;
use flowtilla_agent_core::owner::Confidence;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_agent_core::session::ShortIds;
use flowtilla_proto::wire;
use integration::cgroup::{self, Cgroup};
use integration::need::{self, Need};
use integration::process::Process;
use integration::scene::{self, TOLD_WITHIN};
use integration::traffic::{self, Flow, Helper};
use integration::wait::{self, PATIENCE};
use integration::world::{Family, LEFT_V4, Place, RIGHT_V4, World};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

/// Connections, and datagrams, that are compared to the octet.
const EACH: usize = 5;
/// IPv4 and TCP headers, timestamps included.
const TCP_HEADERS: u64 = 52;
/// What a SYN has more.
const SYN_OPTIONS: u64 = 8;
/// IPv4 and UDP headers.
const DATAGRAM_HEADERS: u64 = 28;

/// Sends each line of its input as a datagram, all from one socket.
const SENDER: &str = r#"exec 3<>"/dev/udp/$0/$1"; while read -r line; do printf %s "$line" >&3; done"#;

#[test]
fn the_kernel_leaves_a_cgroup_out_counts_it_and_takes_it_back() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("bash", "bash")]) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("no cgroup2 file system is mounted");
        return Ok(());
    };
    let world = World::build()?;
    let group = Cgroup::make(&root, &format!("outside-{}", std::process::id()), "inner")?;
    let scene = Scene::start(&world, &group)?;
    let rule = wire::FlowRule {
        cgroups: vec![format!("/{}", below(&root, group.outer())?)],
        ..wire::FlowRule::default()
    };
    let (all, without) = (wanted(&world, &[])?, wanted(&world, &[rule])?);
    let (runtime, mut agent, mut records) = start(all.clone())?;
    let status = agent.status();
    let sum = || status.borrow().left_out.sum;
    let until = |what: &str, holds: &dyn Fn(&AgentStatus) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || holds(&status.borrow()))
    };
    let mut seen = Vec::new();
    let mut until_seen = |what: &str, holds: &dyn Fn(&FlowRecord) -> bool| {
        wait::until_true(TOLD_WITHIN, what, || {
            while let Ok(record) = records.try_recv() {
                seen.push(record);
            }
            seen.iter().any(|record| holds(record))
        })
        .map(|()| std::mem::take(&mut seen))
    };

    // Sockets that are older than the rule.
    let mut sender = scene.sender()?;
    sender.write_line("before")?;
    let (old, old_port) = scene.steady()?;
    until_seen("a flow of datagrams", &|record| scene.is_datagrams(record))?;
    until_seen("an older connection", &|record| port_of(record) == old_port)?;
    ensure!(sum() == LeftOutSum::default(), "{:?}", sum());

    runtime.block_on(agent.apply(&without))?;
    until("the cgroup, left out", &|status| status.left_out.cgroups == 1)?;
    // The older socket of datagrams is found by the next walk of the open files.
    wait::until_true(TOLD_WITHIN, "datagrams that are left out", || {
        sender.write_line("x").is_ok() && sum().packets > 0
    })?;
    (0..EACH).try_for_each(|_| sender.write_line("octets"))?;
    // One octet each, but for those of six: they are the last, so when each of them is counted, all are.
    let are_all = |sum: LeftOutSum| {
        let longer = 5 * EACH as u64;
        sum.connections == 0 && sum.octets == sum.packets * (DATAGRAM_HEADERS + 1) + longer
    };
    until("each datagram", &|status| are_all(status.left_out.sum)).with_context(|| format!("{:?}", sum()))?;
    let datagrams = sum();

    let clients = scene.connect()?;
    let payload: u64 = clients.iter().map(|flow| flow.sent + flow.received).sum();
    let told = |sum: LeftOutSum| {
        let headers = TCP_HEADERS * (sum.packets - datagrams.packets) + 2 * SYN_OPTIONS * EACH as u64;
        sum.connections == EACH as u64 && sum.octets - datagrams.octets == payload + headers
    };
    until("each connection, to the octet", &|status| {
        told(status.left_out.sum)
    })
    .with_context(|| format!("{:?} after {datagrams:?}; the clients' payload: {payload}", sum()))?;
    // One that begins while it is left out, and is there when it is not any more.
    let (hidden, hidden_port) = scene.steady()?;
    until("one more", &|status| {
        status.left_out.sum.connections == EACH as u64 + 1
    })?;
    let last_sum = sum();

    runtime.block_on(agent.apply(&all))?;
    until("nothing, left out", &|status| status.left_out.cgroups == 0)?;
    // What went on all the time goes on, what was opened meanwhile is found.
    let mut told = until_seen("the older connection again", &|record| {
        port_of(record) == old_port
    })?;
    // Who began a connection that is older than its sight is inferred from the ports: here they say nothing.
    let hidden_end = |party: &Party| {
        party.endpoint.port == hidden_port && party.owner.confidence == Confidence::Backfilled
    };
    told.extend(until_seen("the one that was hidden", &|record| {
        hidden_end(&record.initiator) || hidden_end(&record.responder)
    })?);
    sender.write_line("after")?;
    told.extend(until_seen("datagrams again", &|record| {
        scene.is_datagrams(record) && record.delta.forward.packets > 0
    })?);
    drop(sender);
    for helper in [old, hidden] {
        helper.finish(PATIENCE)?;
    }
    let last = runtime.block_on(agent.stop());
    while let Ok(record) = records.try_recv() {
        told.push(record);
    }
    let ports: BTreeSet<u16> = clients.iter().map(|flow| flow.local.port()).collect();
    let strange = told.iter().find(|record| ports.contains(&port_of(record)));
    ensure!(strange.is_none(), "left out, and there: {strange:?}");
    ensure!(
        last.record_law.missing() == 0 && last.kernel_law.holds() && last.left_out.sum == last_sum,
        "{last:?}"
    );
    scene.end()
}

#[test]
fn what_a_process_outside_has_is_told_wherever_it_was_made() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("bash", "bash")]) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("no cgroup2 file system is mounted");
        return Ok(());
    };
    let (world, outside) = (World::build()?, cgroup::own(&root)?);
    let make = |name: &str| Cgroup::make(&root, &format!("{name}-{}", std::process::id()), "inner");
    let (group, other) = (make("inside")?, make("other")?);
    let scene = Scene::start(&world, &group)?;
    let rule = |group: &Cgroup| -> Result<wire::FlowRule> {
        Ok(wire::FlowRule {
            cgroups: vec![format!("/{}", below(&root, group.outer())?)],
            ..wire::FlowRule::default()
        })
    };
    let one = wanted(&world, &[rule(&group)?])?;
    let both = wanted(&world, &[rule(&group)?, rule(&other)?])?;
    let mut watch = Watch::start(&one)?;
    watch.until("the cgroup, left out", |status| status.left_out.cgroups == 1)?;

    let server = a_listener_is_handed_on(&scene, &outside, &mut watch)?;
    a_socket_is_made_inside_and_connects_outside(&scene, &outside, &mut watch)?;
    a_connection_is_handed_on_and_its_peer_asked_for(&scene, &outside, &mut watch)?;
    a_listener_without_a_queue_is_handed_on(&scene, &outside, &mut watch)?;
    // What nobody tells of is found by a walk of the open files, which a change of rules brings about at once.
    a_connection_is_handed_on(&scene, &outside, &mut watch, &both)?;
    let nameless = sockets_are_handed_on_without_a_word(&scene, &outside, &mut watch, &one)?;

    for server in [server, nameless] {
        server.finish(PATIENCE)?;
    }
    let last = watch.runtime.block_on(watch.agent.stop());
    ensure!(
        last.record_law.missing() == 0 && last.kernel_law.holds(),
        "{last:?}"
    );
    scene.end()
}

/// The acceptor asks for the peer's address: the first connection is told from its beginning, and is in the sum as begun where
/// no walk has found the listener before; from then on nothing is.
fn a_listener_is_handed_on(scene: &Scene<'_>, outside: &Path, watch: &mut Watch) -> Result<Helper> {
    let (server, to) = scene.serve("thread")?;
    cgroup::put(outside, server.pid())?;
    let mut before = LeftOutSum::default();
    for count in [1, EACH] {
        for flow in scene.visit(&to, count)? {
            let told = watch.told("a connection to a listener that was handed on", |record| {
                is_between(record, flow.local.port(), to.port()) && record.reason == EndReason::EndOfFlow
            })?;
            ensure!(
                pid_of(&told.responder) == Some(server.pid())
                    && told.responder.owner.confidence == Confidence::Exact
                    && told.total.forward.payload == flow.sent
                    && told.total.backward.payload == flow.received,
                "{told:?}; the client: {flow:?}"
            );
        }
        if count == 1 {
            before = watch.sum_now()?;
        }
    }
    let after = watch.sum_now()?;
    ensure!(
        before.connections <= 1 && before.packets == before.connections && after == before,
        "{after:?} after {before:?}"
    );
    Ok(server)
}

fn a_socket_is_made_inside_and_connects_outside(
    scene: &Scene<'_>,
    outside: &Path,
    watch: &mut Watch,
) -> Result<()> {
    let before = watch.last_sum;
    let port = scene.connect_outside(outside)?;
    let told = watch.told("a connection of a socket that was made inside", |record| {
        is_between(record, port, scene.echo_port()) && record.reason == EndReason::EndOfFlow
    })?;
    let after = watch.sum_now()?;
    ensure!(
        pid_of(&told.initiator) == Some(std::process::id()) && after == before,
        "{told:?}, {after:?} after {before:?}"
    );
    Ok(())
}

/// It was begun inside, and who has it outside asks for its peer: it is told whole, by the end that connected. The ports do not
/// say which that is.
fn a_connection_is_handed_on_and_its_peer_asked_for(
    scene: &Scene<'_>,
    outside: &Path,
    watch: &mut Watch,
) -> Result<()> {
    let before = watch.last_sum;
    let to = scene.echo_to.parse::<SocketAddr>()?;
    let mut stream = TcpStream::from(scene.inside(outside, || {
        let socket = stream_socket()?;
        rustix::net::connect(&socket, &to)?;
        Ok(socket)
    })?);
    // At once: a walk of the open files that finds it first does not know who began it.
    ensure!(stream.peer_addr()? == to);
    let port = stream.local_addr()?.port();
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut back = [0; 6];
    stream.write_all(b"octets")?;
    stream.read_exact(&mut back)?;
    drop(stream);
    let told = watch.told("a connection that was handed on", |record| {
        is_between(record, port, scene.echo_port()) && record.reason == EndReason::EndOfFlow
    })?;
    let after = watch.sum_now()?;
    ensure!(
        pid_of(&told.initiator) == Some(std::process::id())
            && told.initiator.owner.confidence == Confidence::Exact
            && (told.total.forward.payload, told.total.backward.payload) == (6, 6)
            && (after.connections, after.packets) == (before.connections + 1, before.packets),
        "{told:?}, {after:?} after {before:?}"
    );
    Ok(())
}

/// Its children have no length of a queue by which they are told from sockets that connected.
fn a_listener_without_a_queue_is_handed_on(
    scene: &Scene<'_>,
    outside: &Path,
    watch: &mut Watch,
) -> Result<()> {
    let listener = TcpListener::from(scene.inside(outside, || {
        let socket = stream_socket()?;
        let any = SocketAddr::from((LEFT_V4.parse::<Ipv4Addr>()?, 0));
        rustix::net::bind(&socket, &any)?;
        rustix::net::listen(&socket, 0)?;
        Ok(socket)
    })?);
    let to = listener.local_addr()?;
    let mut client = scene.world.right.enter(|| Ok(TcpStream::connect(to)?))?;
    let (mut server, peer) = listener.accept()?;
    server.set_read_timeout(Some(PATIENCE))?;
    let mut came = [0; 6];
    client.write_all(b"octets")?;
    server.read_exact(&mut came)?;
    drop((client, server));
    let told = watch.told("a connection to a listener without a queue", |record| {
        is_between(record, peer.port(), to.port()) && record.reason == EndReason::EndOfFlow
    })?;
    watch.sum_now()?;
    ensure!(
        pid_of(&told.responder) == Some(std::process::id())
            && told.responder.owner.confidence == Confidence::Exact
            && (told.total.forward.payload, told.total.backward.payload) == (6, 0),
        "{told:?}"
    );
    Ok(())
}

/// It was begun inside. What it did until a process outside was found to have it is in the sum, all the rest is told.
fn a_connection_is_handed_on(
    scene: &Scene<'_>,
    outside: &Path,
    watch: &mut Watch,
    rules: &Wanted,
) -> Result<()> {
    let before = watch.last_sum;
    let (steady, port) = scene.steady()?;
    watch.until("the connection, left out", |status| {
        status.left_out.sum.connections == before.connections + 1
    })?;
    let pid = steady.pid();
    cgroup::put(outside, pid)?;
    watch.apply(rules)?;
    // Who began a connection that is older than its sight is inferred from the ports: here they say nothing.
    let is_it = |record: &FlowRecord| {
        is_between(record, port, scene.echo_port()) || is_between(record, scene.echo_port(), port)
    };
    watch.told("a connection that was handed on", is_it)?;
    let truth = traffic::flows(&steady.finish(PATIENCE)?);
    let told = watch.told("its end", |record| {
        is_it(record) && record.reason == EndReason::EndOfFlow
    })?;
    let after = watch.sum_now()?;
    let Traffic { forward, backward } = told.total;
    let packets = after.packets - before.packets + forward.packets + backward.packets;
    let octets = after.octets - before.octets + forward.octets + backward.octets;
    let payload: u64 = truth.iter().map(|flow| flow.sent + flow.received).sum();
    ensure!(
        after.packets > before.packets && octets == payload + TCP_HEADERS * packets + 2 * SYN_OPTIONS,
        "{octets} octets in {packets} packets, {payload} of payload: {after:?} after {before:?}, {told:?}"
    );
    let pids = [&told.initiator, &told.responder].map(pid_of);
    ensure!(pids.contains(&Some(pid)), "{told:?}");
    Ok(())
}

/// A listener whose acceptor does not ask who comes, and a socket of datagrams.
fn sockets_are_handed_on_without_a_word(
    scene: &Scene<'_>,
    outside: &Path,
    watch: &mut Watch,
    rules: &Wanted,
) -> Result<Helper> {
    let before = watch.last_sum;
    let (server, to) = scene.serve("nameless")?;
    let mut sender = scene.sender()?;
    wait::until_true(TOLD_WITHIN, "datagrams that are left out", || {
        sender.write_line("x").is_ok() && watch.sum().packets > before.packets
    })?;
    for pid in [server.pid(), sender.pid()] {
        cgroup::put(outside, pid)?;
    }
    watch.apply(rules)?;
    let told = watch.told_again(
        "a connection to a listener that was handed on",
        || scene.visit(&to, 1).map(drop),
        |record| record.responder.endpoint.port == to.port(),
    )?;
    ensure!(pid_of(&told.responder) == Some(server.pid()), "{told:?}");
    let told = watch.told_again(
        "datagrams of a socket that was handed on",
        || sender.write_line("x"),
        |record| scene.is_datagrams(record),
    )?;
    ensure!(pid_of(&told.initiator) == Some(sender.pid()), "{told:?}");
    Ok(server)
}

/// The product's agent, in this process.
fn start(wanted: Wanted) -> Result<(Runtime, InProcess, Receiver<Arc<FlowRecord>>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (agent, records) = runtime.block_on(InProcess::start(Options {
        wanted,
        scopes: Vec::new(),
        source_id: None,
        short_ids: ShortIds::Own,
        view_records_max: 65_536,
        state: None,
    }))?;
    Ok((runtime, agent, records))
}

/// An agent, and what it has told.
struct Watch {
    runtime: Runtime,
    agent: InProcess,
    status: watch::Receiver<AgentStatus>,
    records: Receiver<Arc<FlowRecord>>,
    seen: Vec<Arc<FlowRecord>>,
    /// As [`Self::sum_now`] found it last; nothing has happened since.
    last_sum: LeftOutSum,
}

impl Watch {
    fn start(wanted: &Wanted) -> Result<Self> {
        let (runtime, agent, records) = start(wanted.clone())?;
        Ok(Self {
            runtime,
            status: agent.status(),
            agent,
            records,
            seen: Vec::new(),
            last_sum: LeftOutSum::default(),
        })
    }

    fn apply(&mut self, wanted: &Wanted) -> Result<()> {
        Ok(self.runtime.block_on(self.agent.apply(wanted))?)
    }

    fn until(&self, what: &str, holds: impl Fn(&AgentStatus) -> bool) -> Result<()> {
        wait::until_true(TOLD_WITHIN, what, || holds(&self.status.borrow()))
    }

    fn sum(&self) -> LeftOutSum {
        self.status.borrow().left_out.sum
    }

    /// The sum of this moment, or of a later one: the status is told each second, and the first one may have been read before.
    fn sum_now(&mut self) -> Result<LeftOutSum> {
        for _ in 0..2 {
            self.status.borrow_and_update();
            let told = self
                .runtime
                .block_on(async { tokio::time::timeout(TOLD_WITHIN, self.status.changed()).await });
            told.context("the next status")??;
        }
        self.last_sum = self.sum();
        Ok(self.last_sum)
    }

    fn told(&mut self, what: &str, holds: impl Fn(&FlowRecord) -> bool) -> Result<Arc<FlowRecord>> {
        self.told_again(what, || Ok(()), holds)
    }

    /// Waits for a record, and does something `again` before each look.
    fn told_again(
        &mut self,
        what: &str,
        mut again: impl FnMut() -> Result<()>,
        holds: impl Fn(&FlowRecord) -> bool,
    ) -> Result<Arc<FlowRecord>> {
        wait::until(TOLD_WITHIN, what, || {
            again()?;
            while let Ok(record) = self.records.try_recv() {
                self.seen.push(record);
            }
            Ok(self.seen.iter().find(|record| holds(record)).cloned())
        })
    }
}

fn is_between(record: &FlowRecord, initiator: u16, responder: u16) -> bool {
    (port_of(record), record.responder.endpoint.port) == (initiator, responder)
}

fn pid_of(party: &Party) -> Option<u32> {
    party.owner.process.as_ref().map(|process| process.key.pid)
}

/// The initiator's port.
fn port_of(record: &FlowRecord) -> u16 {
    record.initiator.endpoint.port
}

/// Servers on the right host; what is in the cgroup is on the left one.
struct Scene<'a> {
    world: &'a World,
    group: &'a Cgroup,
    server: Helper,
    to: String,
    echo: Helper,
    echo_to: String,
    sink: UdpSocket,
}

impl<'a> Scene<'a> {
    fn start(world: &'a World, group: &'a Cgroup) -> Result<Self> {
        let (server, _, to) = scene::serve(world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
        let (echo, _, echo_to) = scene::serve(world, Place::Wire, Family::V4, &["echo"])?;
        let sink = world.right.enter(|| Ok(UdpSocket::bind((RIGHT_V4, 0))?))?;
        Ok(Self {
            world,
            group,
            server,
            to,
            echo,
            echo_to,
            sink,
        })
    }

    fn taken_in(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = self.world.left.command(program);
        self.group.take_in(&mut command)?;
        Ok(command)
    }

    fn sender(&self) -> Result<Process> {
        let port = self.sink.local_addr()?.port().to_string();
        let mut command = self.taken_in("bash")?;
        command.args(["-c", SENDER, RIGHT_V4, &port]);
        Process::start(command)
    }

    /// A connection that stays, once it is open; its port.
    fn steady(&self) -> Result<(Helper, u16)> {
        let mut command = self.taken_in(traffic::binary())?;
        command.args(["steady", "--to", &self.echo_to, "--connections", "1"]);
        let mut helper = Helper::start_command(command)?;
        let port = helper.ready()?.address.port();
        Ok((helper, port))
    }

    fn echo_port(&self) -> u16 {
        self.echo_to.parse::<SocketAddr>().map_or(0, |to| to.port())
    }

    /// A server in the cgroup, on the left host, and where it listens.
    fn serve(&self, style: &str) -> Result<(Helper, SocketAddr)> {
        let mut command = self.taken_in(traffic::binary())?;
        let listen = format!("{LEFT_V4}:0");
        command.args(["serve", "--style", style, "--listen", &listen]);
        let mut helper = Helper::start_command(command)?;
        let to = helper.ready()?.address;
        Ok((helper, to))
    }

    /// Connections of the right host to the left one that are over.
    fn visit(&self, to: &SocketAddr, count: usize) -> Result<Vec<Flow>> {
        let (right, to, count) = (&self.world.right, to.to_string(), count.to_string());
        let told = traffic::run(right, PATIENCE, &["connect", "--to", &to, "--count", &count])?;
        Ok(traffic::flows(&told))
    }

    /// What this process does on the left host, in the cgroup, which it leaves then.
    fn inside<T: Send>(&self, outside: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let pid = std::process::id();
        self.world.left.enter(|| {
            cgroup::put(self.group.inner(), pid)?;
            let done = work();
            cgroup::put(outside, pid)?;
            done
        })
    }

    /// This process makes a socket in the cgroup, leaves it, connects and ends the connection; its port.
    fn connect_outside(&self, outside: &Path) -> Result<u16> {
        let to = self.echo_to.parse::<SocketAddr>()?;
        let socket = self.inside(outside, stream_socket)?;
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket).local_addr()?.port())
    }

    /// Connections that are over.
    fn connect(&self) -> Result<Vec<Flow>> {
        let mut command = self.taken_in(traffic::binary())?;
        command.args(["connect", "--to", &self.to, "--count", &EACH.to_string()]);
        Ok(traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?))
    }

    fn is_datagrams(&self, record: &FlowRecord) -> bool {
        let port = self.sink.local_addr().map_or(0, |address| address.port());
        record.protocol == Protocol::Udp && record.responder.endpoint.port == port
    }

    fn end(self) -> Result<()> {
        for server in [self.server, self.echo] {
            server.finish(PATIENCE)?;
        }
        Ok(())
    }
}

fn stream_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// The path of a cgroup below the root of the file system.
fn below<'a>(root: &Path, group: &'a Path) -> Result<&'a str> {
    let path = group.strip_prefix(root)?;
    path.to_str().context("a path of ours")
}

fn wanted(world: &World, exclude: &[wire::FlowRule]) -> Result<Wanted> {
    let scope = wire::scope::Part::Netns(world.left.path().to_string_lossy().into_owned());
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            scopes: vec![wire::Scope { part: Some(scope) }],
            active_timeout_ms: Some(1_000),
            exclude: exclude.to_vec(),
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    Ok(Wanted::new(policy.try_into()?, Vec::new())?)
}
