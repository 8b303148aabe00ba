//! The harness itself: what the other tests stand on must be right without the product.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::collector::ndpi::Value;
use integration::collector::zmq::{self, KeyPair, Socket, ZmqContext, kind, option};
use integration::collector::{self, Collector, Setup};
use integration::need::{self, Need};
use integration::ntopng::{self, Ntopng};
use integration::process::Process;
use integration::scene::{self, Told};
use integration::skew::{self, Skewed};
use integration::traffic::{self, Helper, Truth};
use integration::wait::{self, PATIENCE};
use integration::wire::{self, Counted, WireCounter};
use integration::world::{self, Family, Place, World};

const NFT: Need = Need::Program("nft", "nftables");

/// A payload with both ends' processes. Source: read back with nDPI when ntopng's parser was studied.
const TLV_FLOW: &str = "
    0101 2b08000831302e312e322e33 2b0c000831302e312e322e34 2307a8ca 230b1f90 223c04 220406 230104d2 22020a
    2317162e 22180c 2416671a5920 2415671a5925 32e0ce1b 32e0cf1b 3ae0fb0000003f 33e1281092 3be12900046375726c
    33e22903e8 3be1f40005616c696365 3be2ae000c73686f702f7765622f617070 33e1f703d1 3be1f800056e67696e78 32e22a21
    3be1f900087777772d64617461 3be2af000c336632613963316437653535 bb00075352435f504f4400087765622d37633964 01";

#[test]
fn streams_tell_the_same_truth_at_both_ends() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    for style in ["thread", "fork", "prefork", "reuseport", "nameless", "handover"] {
        for family in Family::ALL {
            let told = exchange(&world, style, Place::Wire, family)
                .with_context(|| format!("style {style}, {family:?}"))?;
            ensure!(told.clients.len() == 20, "{} connections", told.clients.len());
        }
    }
    Ok(())
}

#[test]
fn handed_over_connection_is_accepted_by_one_process_and_used_by_another() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    for style in ["handover", "fork"] {
        let told = exchange(&world, style, Place::Loopback, Family::V4)?;
        ensure!(
            told.servers.iter().all(|flow| flow.pid != flow.user_pid),
            "{style}"
        );
    }
    Ok(())
}

#[test]
fn wire_counter_and_veth_agree_on_packets() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[NFT]) {
        return Ok(());
    }
    let world = World::build()?;
    let counter = WireCounter::start(&world.right)?;
    let serve = ["serve", "--style", "thread", "--listen", "10.77.0.2:0"];
    let (server, ready) = Helper::serve(&world.right, &serve)?;
    let before = wire::interface_sent(&world.left, world::INTERFACE)?;
    let to = ready.address.to_string();
    let plan = ["connect", "--to", &to, "--request", "3000000", "--reply", "10"];
    let flows = traffic::flows(&traffic::run(&world.left, PATIENCE, &plan)?);
    server.finish(PATIENCE)?;
    let counted = counter.read()?.tcp;
    let sent = wire::interface_sent(&world.left, world::INTERFACE)?;
    let again = wire::sent_again(&world.left)?;
    let other = (sent.packets - before.packets).saturating_sub(counted.packets);
    ensure!(other < 20 + again, "{other} packets that are not TCP");
    ensure!(
        counted.packets >= flows[0].sent / SEGMENT_MAX,
        "a packet may not be larger than the wire takes: {counted:?}"
    );
    is_payload(counted, flows[0].sent, 1, again * SEGMENT_MAX)
}

#[test]
fn loopback_is_counted_segment_by_segment() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[NFT]) {
        return Ok(());
    }
    let world = World::build()?;
    let counter = WireCounter::start(&world.left)?;
    let connected = exchange(&world, "thread", Place::Loopback, Family::V4)?.clients;
    let counted = counter.read()?.tcp;
    let payload: u64 = connected.iter().map(|flow| flow.sent + flow.received).sum();
    let again = wire::sent_again(&world.left)? * LOOPBACK_SEGMENT_MAX;
    is_payload(counted, payload, 2 * connected.len() as u64, again)
}

/// Largest payload of a segment on the wire.
const SEGMENT_MAX: u64 = 1500 - 52;
/// The same on loopback.
const LOOPBACK_SEGMENT_MAX: u64 = 65_536 - 52;

/// Holds `counted` against what was written: with IPv4 and timestamps 52 octets a packet, 8 more in each SYN, and not an octet
/// besides, but for at most `again` that TCP sent once more.
fn is_payload(counted: Counted, payload: u64, syns: u64, again: u64) -> Result<()> {
    let least = payload + counted.packets * 52 + syns * 8;
    ensure!(
        (least..=least + again).contains(&counted.octets),
        "{counted:?} with {payload} octets of payload, and at most {again} more that TCP sent again"
    );
    Ok(())
}

#[test]
fn datagrams_tell_the_same_truth_at_both_ends() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    for family in Family::ALL {
        for connected in [&["--connected"][..], &[]] {
            let plan = ["--sockets", "300", "--exchanges", "900"];
            let told = scene::udp(&world, Place::Wire, family, &[&plan, connected].concat())?;
            ensure!(told.servers.len() == 300, "{} peers", told.servers.len());
            ensure!(told.clients.iter().all(|flow| flow.datagrams_sent == 3));
        }
    }
    Ok(())
}

#[test]
fn attempts_fail_as_they_were_meant_to() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[NFT]) {
        return Ok(());
    }
    let world = World::build()?;
    world.left.sysctl("ipv4/tcp_syn_retries", "1")?;
    wire::swallow(&world.right, 7)?;
    for (to, error) in [
        ("10.77.0.2:9", "ECONNREFUSED"),
        ("10.77.0.2:7", "ETIMEDOUT"),
        ("198.51.100.66:80", "EHOSTUNREACH"),
    ] {
        let told = traffic::run(&world.left, PATIENCE, &["attempt", "--to", to])?;
        let [Truth::Attempt(attempt)] = told.as_slice() else {
            anyhow::bail!("{told:?}");
        };
        ensure!(attempt.error == error, "{to}: {}", attempt.error);
        ensure!(attempt.local_port != 0);
    }
    Ok(())
}

#[test]
fn server_that_resets_is_seen_by_its_client() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let serve = ["serve", "--style", "reset", "--listen", "10.77.0.2:0"];
    let (server, ready) = Helper::serve(&world.right, &serve)?;
    let to = ready.address.to_string();
    let told = traffic::run(&world.left, PATIENCE, &["connect", "--to", &to, "--expect-reset"])?;
    let served = server.finish(PATIENCE)?;
    ensure!(traffic::flows(&told)[0].sent == traffic::flows(&served)[0].received);
    Ok(())
}

#[test]
fn storm_starts_a_process_a_connection() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let serve = ["serve", "--style", "thread", "--listen", "10.77.0.2:0"];
    let (server, ready) = Helper::serve(&world.right, &serve)?;
    let to = ready.address.to_string();
    let storm = ["storm", "--to", &to, "--rate", "100", "--total", "50"];
    let told = traffic::run(&world.left, PATIENCE, &storm)?;
    let mut pids: Vec<u32> = traffic::flows(&told).iter().map(|flow| flow.pid).collect();
    pids.sort_unstable();
    pids.dedup();
    ensure!(pids.len() == 50, "{} processes", pids.len());
    ensure!(
        told.iter()
            .any(|truth| matches!(truth, Truth::Storm(storm) if storm.failed == 0))
    );
    server.finish(PATIENCE).map(drop)
}

#[test]
fn collector_reads_what_a_publisher_sends_and_counts_what_it_skips() -> Result<()> {
    if !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let collector = Collector::bind(Setup::default())?;
    publish(&collector, None, &[1, 2, 5])?;
    let record = collector.wait_for_flow(PATIENCE, "first flow", |_| true)?;
    ensure!(record.text(8) == Some("10.1.2.3") && record.number(1) == Some(1234));
    ensure!(record.text(57641) == Some("curl") && record.number(57640) == Some(4242));
    ensure!(record.decimal(57595) == Some(0.5));
    ensure!(
        record
            .0
            .values()
            .any(|value| *value == Value::Text("web-7c9d".to_owned()))
    );
    wait::until_true(PATIENCE, "third message", || {
        collector
            .messages()
            .is_ok_and(|(messages, _)| messages.len() == 3)
    })?;
    let (_, ids) = collector.messages()?;
    ensure!((ids.missing, ids.restarts) == (2, 0), "{ids:?}");
    ensure!(ids.sources() == [0x1234_5678]);
    Ok(())
}

#[test]
fn collector_with_curve_takes_the_right_key_only() -> Result<()> {
    if !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let keys = zmq::key_pair()?;
    let collector = Collector::bind(Setup {
        curve: Some(keys.clone()),
        ..Setup::default()
    })?;
    let (context, wrong) = publisher(collector.endpoint(), Some(&zmq::key_pair()?))?;
    publish(&collector, Some(&keys), &[1])?;
    collector.wait_for_flow(PATIENCE, "flow under the right key", |_| true)?;
    let subscribed = wrong.receive()?;
    ensure!(
        subscribed.is_none(),
        "a publisher with a wrong key was subscribed to"
    );
    drop(wrong);
    drop(context);
    Ok(())
}

#[test]
fn damaged_payload_is_named() -> Result<()> {
    if !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let collector = Collector::bind(Setup::default())?;
    let (context, socket) = publisher(collector.endpoint(), None)?;
    await_subscription(&socket)?;
    let payload = hex(TLV_FLOW);
    socket.send(&[&header(1), &payload[..payload.len() - 1]])?;
    wait::until_true(PATIENCE, "complaint", || collector.messages().is_err())?;
    drop(socket);
    drop(context);
    Ok(())
}

#[test]
fn a_real_ntopng_is_started_and_asked() -> Result<()> {
    if !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let binary = match ntopng::find() {
        Ok(binary) => binary,
        Err(reason) => {
            need::skip(&reason);
            return Ok(());
        }
    };
    let ntopng = Ntopng::start(&binary, &[])?;
    let (context, socket) = publisher(&ntopng.endpoint(), None)?;
    await_subscription(&socket)?;
    socket.send(&[&header(1), &hex(TLV_FLOW)])?;
    let flow = wait::until(PATIENCE, "flow in ntopng", || {
        Ok(ntopng.flows("&username=alice")?.into_iter().next())
    })?;
    ensure!(flow["client"]["process"]["pid"] == 4242, "{flow}");
    ensure!(ntopng.flows("&username=bob")?.is_empty());
    let counters = ntopng.zmq_counters()?;
    ensure!(
        counters["zmq_msg_drops"] == 0 && counters["zmq_msg_rcvd"] == 1,
        "{counters}"
    );
    drop(socket);
    drop(context);
    Ok(())
}

/// 20 connections, four at a time.
#[test]
fn clock_of_one_process_is_set_and_no_other() -> Result<()> {
    if let Some(reason) = skew::lacks() {
        need::skip(&reason);
        return Ok(());
    }
    let start = || -> Result<Process> {
        let mut command = Command::new(traffic::binary());
        command.arg("clock");
        Process::start(command)
    };
    let (mut clock, mut other) = (start()?, start()?);
    let skewed = Skewed::new(clock.pid())?;
    for seconds in [0, 3_600, -3_600, 0] {
        skewed.set(seconds)?;
        let ahead = now_of(&mut clock)? - now_of(&mut other)?;
        ensure!(
            (ahead - seconds).abs() <= 5,
            "{ahead} s ahead instead of {seconds}"
        );
    }
    Ok(())
}

fn now_of(clock: &mut Process) -> Result<i64> {
    let lines = clock.out().clone();
    let before = lines.count();
    clock.write_line("now")?;
    let said = wait::until(PATIENCE, "the time", || Ok(lines.since(before).first().cloned()))?;
    Ok(said.parse()?)
}

fn exchange(world: &World, style: &str, place: Place, family: Family) -> Result<Told> {
    let plan = ["--count", "20", "--concurrent", "4", "--request", "9000"];
    scene::tcp(world, place, family, style, &plan)
}

fn publisher(endpoint: &str, server_key: Option<&KeyPair>) -> Result<(ZmqContext, Socket)> {
    let context = ZmqContext::new()?;
    let socket = context.socket(kind::XPUB)?;
    socket.set(option::LINGER, 1_000)?;
    socket.set(option::RCVTIMEO, 2_000)?;
    if let Some(server) = server_key {
        let own = zmq::key_pair()?;
        socket.set_octets(option::CURVE_SERVERKEY, server.public.as_bytes())?;
        socket.set_octets(option::CURVE_PUBLICKEY, own.public.as_bytes())?;
        socket.set_octets(option::CURVE_SECRETKEY, own.secret.as_bytes())?;
    }
    socket.connect(endpoint)?;
    Ok((context, socket))
}

/// Waits for the collector's `flow` subscription.
fn await_subscription(socket: &Socket) -> Result<()> {
    wait::until(PATIENCE, "subscription to flow", || {
        let frames = socket.receive()?.unwrap_or_default();
        Ok((frames.first().map(Vec::as_slice) == Some(b"\x01flow")).then_some(()))
    })
}

fn publish(collector: &Collector, server_key: Option<&KeyPair>, ids: &[u8]) -> Result<()> {
    let (context, socket) = publisher(collector.endpoint(), server_key)?;
    await_subscription(&socket)?;
    for &id in ids {
        socket.send(&[&header(id), &hex(TLV_FLOW)])?;
    }
    drop(socket);
    drop(context);
    Ok(())
}

fn header(id: u8) -> Vec<u8> {
    let mut frame = b"flow\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    frame.extend([3, 0, 0, 0xc5, 0, 0, 0, id, 0x78, 0x56, 0x34, 0x12]);
    frame
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |octet: u8| char::from(octet).to_digit(16).unwrap_or(0) as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}
