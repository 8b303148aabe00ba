//! Promise: what a record says of flows, payload and packets is what happened.
//!
//! Traffic tells its own truth; nftables counts the wire. Full counts: 1,000 short TCP connections, 100 bulk ones at
//! once, 10,000 UDP exchanges over 100 sockets, each over loopback and over a wire, IPv4, IPv6 and mapped.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, bail, ensure};
use integration::need::{self, Need};
use integration::product::Agent;
use integration::product::record::Flow;
use integration::scene::{self, TOLD_WITHIN, Told};
use integration::wait::{self, PATIENCE};
use integration::wire::{Counted, WireCounter};
use integration::world::{Family, LEFT_V4, Place, RIGHT_V4, World};
use integration::{bpf, soak};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, ipproto, sockopt,
};

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

/// Nobody can answer a datagram of port 0, but anybody can send it, from as many addresses as there are.
#[test]
fn datagrams_of_port_0_are_counted_and_take_nothing_from_real_peers() -> Result<()> {
    const STRANGE: usize = 20;
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.right, &[])?;
    let server = world.right.enter(|| Ok(UdpSocket::bind((RIGHT_V4, 0))?))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let to = server.local_addr()?;
    let next = || -> Result<(usize, SocketAddr)> { Ok(server.recv_from(&mut [0; 100])?) };
    let raw = world.left.enter(|| {
        Ok(rustix::net::socket(
            AddressFamily::INET,
            SocketType::RAW,
            Some(ipproto::RAW),
        )?)
    })?;
    // The first of them is the server's first datagram at all.
    for _ in 0..STRANGE {
        let packet = of_port_0(to)?;
        rustix::net::sendto(&raw, &packet, SendFlags::empty(), &to)?;
        let (_, from) = next()?;
        ensure!(from.port() == 0, "{from}");
    }
    let mut peers = BTreeMap::new();
    for octets in [10, 20, 30] {
        let peer = world.left.enter(|| Ok(UdpSocket::bind((LEFT_V4, 0))?))?;
        peer.send_to(&[7; 30][..octets], to)?;
        let (came, from) = next()?;
        ensure!(
            came == octets && from == peer.local_addr()?,
            "{came} octets of {from}"
        );
        peers.insert(from.port(), octets as u64);
    }
    drop(server);
    let flows = agent.wait_for_ended(TOLD_WITHIN, peers.len(), |flow| {
        flow.last().responder.port == to.port()
    })?;
    let told: BTreeMap<u16, u64> = flows
        .iter()
        .map(Flow::last)
        .map(|record| (record.initiator.port, record.total.forward.payload))
        .collect();
    ensure!(told == peers, "{told:?}, truth {peers:?}");
    let ended = agent.interrupt()?;
    let lost = ended.lost("NoSourcePort");
    ensure!(lost == STRANGE as u64, "{lost} counted: {:?}", ended.words);
    ended.check_laws()
}

/// A UDP packet of two octets to `to`, with its IP header; the kernel puts in what is 0 there.
fn of_port_0(to: SocketAddr) -> Result<Vec<u8>> {
    let (from, IpAddr::V4(address)) = (LEFT_V4.parse::<Ipv4Addr>()?, to.ip()) else {
        bail!("{to} is not of IPv4");
    };
    let ip = [0x45_u8, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0];
    let udp = [0_u16, to.port(), 10, 0].map(u16::to_be_bytes);
    Ok([
        &ip[..],
        &from.octets(),
        &address.octets(),
        udp.as_flattened(),
        b"zz",
    ]
    .concat())
}

/// Such a socket is the kernel's own, or was closed while datagrams came.
#[test]
fn an_entry_of_a_socket_that_nobody_has_goes_when_it_is_silent_and_comes_again() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[bpf::NEEDS]) {
        return Ok(());
    }
    let world = World::build()?;
    let server = world.left.enter(|| Ok(UdpSocket::bind((LEFT_V4, 0))?))?;
    let (to, cookie) = (server.local_addr()?, sockopt::socket_cookie(&server)?);
    // Older than the agent, and on its way from one process to another: no walk of open files finds it.
    let (on_its_way, _holds) = UnixDatagram::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [server.as_fd()];
    ensure!(control.push(SendAncillaryMessage::ScmRights(&files)));
    let word = [IoSlice::new(b"x")];
    rustix::net::sendmsg(&on_its_way, &word, &mut control, SendFlags::empty())?;
    drop(server);

    let agent = Agent::start(&["--idle-timeout", "2s"])?;
    let has_entry = || -> Result<bool> { Ok(bpf::keys(agent.pid(), "udp_sockets")?.contains(&cookie)) };
    let mut sent = 0;
    for _ in 0..2 {
        let sender = world.right.enter(|| Ok(UdpSocket::bind((RIGHT_V4, 0))?))?;
        wait::until(PATIENCE, "an entry", || {
            sent += sender.send_to(b"octets", to)? as u64;
            Ok(has_entry()?.then_some(()))
        })?;
        drop(sender);
        wait::until(TOLD_WITHIN, "the entry's end", || {
            Ok((!has_entry()?).then_some(()))
        })?;
    }
    let told = |flow: &Flow| flow.last().responder.endpoint() == to;
    agent.wait_for_ended(TOLD_WITHIN, 2, told)?;
    let ended = agent.interrupt()?;
    let flows = ended.flows()?;
    let payload = flows
        .iter()
        .filter(|flow| told(flow))
        .map(|flow| flow.last().total.forward.payload);
    let payload: u64 = payload.sum();
    ensure!(payload == sent, "{payload} octets of {sent}: {flows:?}");
    ended.check_laws()
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
