//! Promise: what a record says of flows, payload and packets is what happened.
//!
//! Traffic tells its own truth; nftables counts the wire. Full counts: 1,000 short TCP connections, 100 bulk ones at
//! once, 10,000 UDP exchanges over 100 sockets, each over loopback and over a wire, IPv4, IPv6 and mapped.

use anyhow::{Context, Result, ensure};
use integration::need::{self, Need};
use integration::product::Agent;
use integration::product::record::Flow;
use integration::scene::{self, TOLD_WITHIN, Told};
use integration::soak;
use integration::wire::{Counted, WireCounter};
use integration::world::{Family, Place, World};

/// Most that the sum of all IP octets may be off, in parts per thousand of the wire's.
///
/// What the agent cannot see: SACK options, duplicates that arrive, one reset after the end.
const OCTETS_OFF_MAX_PER_MILLE: u64 = 5;

const SCENES: [(Place, Family); 6] = [
    (Place::Loopback, Family::V4),
    (Place::Loopback, Family::V6),
    (Place::Loopback, Family::Mapped),
    (Place::Wire, Family::V4),
    (Place::Wire, Family::V6),
    (Place::Wire, Family::Mapped),
];

#[test]
fn short_tcp_connections_are_counted_to_the_octet() -> Result<()> {
    let count = soak::count(1_000).to_string();
    each_scene(|world, place, family| {
        let plan = ["--count", &count, "--concurrent", "4", "--reply", "3000"];
        scene::tcp(world, place, family, "thread", &plan)
    })
}

#[test]
fn concurrent_bulk_connections_are_counted_to_the_octet() -> Result<()> {
    let count = soak::count(100).to_string();
    each_scene(|world, place, family| {
        let plan = [
            "--count",
            &count,
            "--concurrent",
            &count,
            "--request",
            "2000000",
            "--reply",
            "1000000",
        ];
        scene::tcp(world, place, family, "thread", &plan)
    })
}

#[test]
fn udp_exchanges_are_counted_to_the_octet() -> Result<()> {
    let exchanges = soak::count(10_000).to_string();
    each_scene(|world, place, family| {
        let plan = ["--sockets", "100", "--exchanges", &exchanges];
        scene::udp(world, place, family, &plan)
    })
}

#[test]
fn ip_octets_are_what_the_wire_carried() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("nft", "nftables")]) {
        return Ok(());
    }
    let world = World::build()?;
    let (left, right) = (
        WireCounter::start(&world.left)?,
        WireCounter::start(&world.right)?,
    );
    for family in [Family::V4, Family::V6] {
        let (left_before, right_before) = (left.read()?, right.read()?);
        let agent = Agent::watching(&world.left, &[])?;
        let count = soak::count(1_000).to_string();
        let short = ["--count", &count, "--concurrent", "4"];
        let short = scene::tcp(&world, Place::Wire, family, "thread", &short)?;
        let bulk = [
            "--count",
            "4",
            "--concurrent",
            "4",
            "--request",
            "5000000",
            "--reply",
            "300000",
        ];
        let bulk = scene::tcp(&world, Place::Wire, family, "thread", &bulk)?;
        let udp = ["--sockets", "20", "--exchanges", &count];
        let udp = scene::udp(&world, Place::Wire, family, &udp)?;
        let wanted = |flow: &Flow| [&short, &bulk, &udp].iter().any(|told| told.owns(flow));
        let total = short.clients.len() + bulk.clients.len() + udp.clients.len();
        let flows = agent.wait_for_ended(TOLD_WITHIN, total, wanted)?;
        agent.interrupt()?.check_laws()?;
        let (left_after, right_after) = (left.read()?, right.read()?);
        let of = |protocol: &'static str| {
            flows
                .iter()
                .map(Flow::last)
                .filter(move |record| record.protocol == protocol)
        };
        for (protocol, after, before, backward_after, backward_before) in [
            (
                "tcp",
                right_after.tcp,
                right_before.tcp,
                left_after.tcp,
                left_before.tcp,
            ),
            (
                "udp",
                right_after.udp,
                right_before.udp,
                left_after.udp,
                left_before.udp,
            ),
        ] {
            let forward = of(protocol).map(|record| record.total.forward);
            close(protocol, "forward", forward, after, before)?;
            let backward = of(protocol).map(|record| record.total.backward);
            close(protocol, "backward", backward, backward_after, backward_before)?;
        }
    }
    Ok(())
}

/// Compares the product's sum with what the wire carried between two readings, and prints both.
fn close(
    protocol: &str,
    way: &str,
    counts: impl Iterator<Item = integration::product::record::Counts>,
    after: Counted,
    before: Counted,
) -> Result<()> {
    let (mut octets, mut packets) = (0, 0);
    for count in counts {
        octets += count.octets;
        packets += count.packets;
    }
    let wire = after.octets - before.octets;
    let wire_packets = after.packets - before.packets;
    println!(
        "{protocol} {way}: {octets} octets, {packets} packets; the wire {wire} octets, {wire_packets} packets"
    );
    let off = octets.abs_diff(wire) * 1000;
    ensure!(
        off <= wire * OCTETS_OFF_MAX_PER_MILLE,
        "{protocol} {way}: {octets} octets in records, {wire} on the wire"
    );
    Ok(())
}

/// Runs traffic in every scene under an agent of the left host, and compares the flows with the truths.
fn each_scene(traffic: impl Fn(&World, Place, Family) -> Result<Told>) -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    // Both hosts are this machine: the agent sees both ends of every connection, and tells one record.
    let right = format!("netns={}", world.right.path().display());
    let agent = Agent::watching(&world.left, &["--scope", &right])?;
    for (place, family) in SCENES {
        let told = traffic(&world, place, family)?;
        let count = told.clients.len();
        let flows = agent
            .wait_for_ended(TOLD_WITHIN, count, |flow| told.owns(flow))
            .with_context(|| format!("{place:?}, {family:?}"))?;
        ensure!(flows.len() == count, "{} flows instead of {count}", flows.len());
        for client in &told.clients {
            compare(&told, &flows, client).with_context(|| format!("{place:?}, {family:?}"))?;
        }
    }
    agent.interrupt()?.check_laws()
}

fn compare(told: &Told, flows: &[Flow], client: &integration::traffic::Flow) -> Result<()> {
    let record = told.find(flows, client)?.last();
    let payload = (record.total.forward.payload, record.total.backward.payload);
    ensure!(
        payload == (client.sent, client.received),
        "payload {payload:?} in {record:?}, the truth is {client:?}"
    );
    if client.datagrams_sent > 0 {
        let packets = (record.total.forward.packets, record.total.backward.packets);
        ensure!(
            packets == (client.datagrams_sent, client.datagrams_received),
            "datagrams {packets:?} in {record:?}, the truth is {client:?}"
        );
    }
    ensure!(
        record.initiator_seen,
        "the beginning was there to see: {record:?}"
    );
    ensure!(
        record.initiator.pid() == client.pid,
        "initiator {} in {record:?}, the truth is {client:?}",
        record.initiator.pid()
    );
    let server = told.mirror(client)?;
    ensure!(
        record.responder.pid() == server.pid,
        "responder {} in {record:?}, the truth is {server:?}",
        record.responder.pid()
    );
    Ok(())
}
