//! Promise: a flow between two hosts of the fleet is counted once whatever happens to it and to its agents: it is older than
//! them, has equal ports, is left out by the policy of one end, or its speaker is stopped, started or killed in the middle.
//!
//! Six namespaces as hosts with an agent each, a seventh without; a controller; one collector, libzmq's own SUB. What the
//! collector adds up of each flow, as ntopng does, is compared with what the wire carried of it, counted by nftables. One
//! fleet for all of it: lists of members take most of the time, and these stories do not touch each other's hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use integration::fleet::shown::{Key, Shown, key, key_of, shown};
use integration::fleet::{ARRIVED_WITHIN, Fleet, Hub, ONCE_WITHIN, Traffic};
use integration::scene::Background;
use integration::wait::{self, PATIENCE, Stopwatch};
use integration::wire;

/// Hosts whose agents nothing happens to.
const CALM: [u8; 2] = [0, 1];
/// The host whose agent is stopped and started.
const RESTARTED: u8 = 2;
/// The host whose agent is killed.
const KILLED: u8 = 3;
/// The host whose policy leaves out some ports.
const PICKY: u8 = 4;
/// The host whose policy samples.
const SAMPLED: u8 = 5;
/// The host without an agent.
const OUTSIDE: u8 = 6;

/// Ports that the policy of [`PICKY`] leaves out.
const LEFT_OUT: u16 = 9400;
/// Ports that it does not.
const KEPT: u16 = 9500;

const POLICIES: &str = "priority: 1
---
apiVersion: flowtilla/v1
kind: Policy
name: picky
priority: 2
selector: {labels: {kind: picky}}
capture: {exclude: [{ports: [9400-9499]}]}
export: {collectors: [main]}
---
apiVersion: flowtilla/v1
kind: Policy
name: sampled
priority: 3
selector: {labels: {kind: sampled}}
capture: {sampling: {oneIn: 4}}
export: {collectors: [main]}";

/// Most that a flow may be off, in parts per thousand of the wire's, and in octets: see the promise on truth.
const OFF_MAX_PER_MILLE: u64 = 5;
const OFF_MAX_OCTETS: u64 = 200;

/// What the collector is to have of a flow, when the wire carried so much.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// All of it.
    Whole,
    /// What the wire carried after a moment between these two: so much was over by then.
    Since { before: u64, after: u64 },
    /// Nothing.
    Nothing,
    /// All of it, or nothing.
    WholeOrNothing,
}

/// What was made, and what is to be shown of it.
#[derive(Default)]
struct Made {
    expected: BTreeMap<Key, Expected>,
    /// Traffic of which the collector gets all.
    told: Vec<Traffic>,
}

/// Traffic that goes on.
struct Long {
    way: (u8, u8),
    protocol: u64,
    background: Background,
}

#[test]
fn flows_are_counted_once_when_they_are_old_or_left_out_or_lose_their_agent() -> Result<()> {
    let labels: [&[&str]; 6] = [&[], &[], &[], &[], &["kind=picky"], &["kind=sampled"]];
    let Some(mut fleet) = Fleet::join(&labels)? else {
        return Ok(());
    };
    fleet.hub.hosts.iter().try_for_each(wire::count_flows)?;
    let mut made = Made::default();
    let watch = Stopwatch::start();
    let stage = |what: &str| println!("{:5.1} s: {what}", watch.elapsed().as_secs_f32());

    let older = Older::begin(&fleet.hub)?;
    let before = carried(&fleet.hub)?;
    fleet.controller.deploy_all(&fleet.documents(POLICIES))?;
    let after = carried(&fleet.hub)?;
    stage("all capture");
    // There are no lists yet: they come half a minute after the controller's start.
    let held = stop(older.held)?;
    made.left_out_at_one_end(&fleet.hub, 0)?;

    stage("traffic of hosts that leave out flows");
    let ring = [
        (CALM[0], CALM[1]),
        (CALM[1], RESTARTED),
        (RESTARTED, KILLED),
        (KILLED, CALM[0]),
    ];
    fleet.wait_until_counted_once(&ring)?;
    stage("flows are told by one agent, by deltas");
    let lower = fleet.source_of(CALM[0])?;
    let equal = made.equal_ports(&fleet.hub)?;
    made.left_out_at_one_end(&fleet.hub, 1)?;
    made.lose_agents(&mut fleet)?;
    stage("peers have told in place of an agent");

    for one in stop(older.running)?.into_iter().chain(held) {
        for client in &one.2.clients {
            let key = key_of(&one.2, client, one.1)?;
            let at = |carried: &BTreeMap<Key, u64>| carried.get(&key).copied().unwrap_or(0);
            let since = Expected::Since {
                before: at(&before),
                after: at(&after),
            };
            made.expected.insert(key, since);
        }
    }
    fleet.wait_for(&made.told, &BTreeSet::new())?;
    // Not later: who stops takes with it what a peer was silent for.
    let told = fleet.shown()?;
    for key in &equal {
        let flow = &told[key];
        let only = BTreeSet::from([lower]);
        ensure!(
            flow.told_by == only && flow.counted_by == only,
            "{key:?} has equal ports, and the lower address is {lower}'s: {flow:?}"
        );
    }
    let wires = carried(&fleet.hub)?;
    stage("all traffic has arrived");
    let flows = shown(&fleet.end()?)?;
    made.check(&wires, &flows)
}

/// Traffic that began before any agent captured.
struct Older {
    running: Vec<Long>,
    /// Connections that have said nothing yet.
    held: Vec<Long>,
}

impl Older {
    fn begin(hub: &Hub) -> Result<Self> {
        let [one, other] = CALM;
        let tcp = ["--connections", "2"];
        let udp = ["--sockets", "2", "--pause-us", "20000"];
        let held = ["--count", "4", "--request", "20000", "--reply", "50000"];
        let older = Self {
            running: vec![
                Long::tcp(hub, one, (other, 7001), &tcp)?,
                Long::tcp(hub, other, (one, 7002), &tcp)?,
                Long::tcp(hub, one, (OUTSIDE, 7003), &tcp)?,
                Long::tcp(hub, OUTSIDE, (other, 7004), &tcp)?,
                Long::udp(hub, one, (other, 7005), &udp)?,
                Long::udp(hub, other, (one, 7006), &udp)?,
            ],
            held: vec![
                Long::held(hub, one, (other, 7007), &held)?,
                Long::held(hub, other, (one, 7008), &held)?,
            ],
        };
        wait::until(PATIENCE, "flows before there is an agent", || {
            let carried = carried(hub)?;
            let ran = carried.values().filter(|&&octets| octets > 5_000).count();
            Ok((ran >= 2 * older.running.len()).then_some(()))
        })?;
        Ok(older)
    }
}

impl Made {
    fn add(&mut self, traffic: Traffic, expected: Expected) -> Result<Vec<Key>> {
        let (_, protocol, told) = &traffic;
        let keys = told.clients.iter().map(|client| key_of(told, client, *protocol));
        let keys: Vec<Key> = keys.collect::<Result<_>>()?;
        self.expected.extend(keys.iter().map(|&key| (key, expected)));
        if matches!(expected, Expected::Whole) {
            self.told.push(traffic);
        }
        Ok(keys)
    }

    /// Flows of hosts that leave some out, with others and with each other; each `round` has ports of its own.
    fn left_out_at_one_end(&mut self, hub: &Hub, round: u16) -> Result<()> {
        let calm = CALM[0];
        let plan = ["--count", "5", "--reply", "3000"];
        let many = ["--count", "20", "--reply", "3000"];
        let exchanges = ["--sockets", "5", "--exchanges", "20"];
        let out = LEFT_OUT + 10 * round;
        let kept = KEPT + 10 * round;
        for (from, to, expected) in [
            (calm, (PICKY, out), Expected::Whole),
            (PICKY, (calm, out + 1), Expected::Whole),
            (calm, (PICKY, kept), Expected::Whole),
            (OUTSIDE, (PICKY, out + 2), Expected::Nothing),
            (OUTSIDE, (PICKY, kept + 1), Expected::Whole),
            (PICKY, (SAMPLED, kept + 2), Expected::Whole),
            (PICKY, (SAMPLED, out + 3), Expected::WholeOrNothing),
        ] {
            let told = hub.tcp_to(from, to.0, at(to), &plan)?;
            self.add(((from, to.0), 6, told), expected)?;
        }
        for (from, to, expected) in [
            (calm, (PICKY, out + 4), Expected::Whole),
            (SAMPLED, (calm, kept + 3), Expected::Whole),
            (OUTSIDE, (PICKY, out + 5), Expected::Nothing),
        ] {
            let told = hub.udp_to(from, to.0, at(to), &exchanges)?;
            self.add(((from, to.0), 17, told), expected)?;
        }
        for (from, to, expected) in [
            (calm, (SAMPLED, kept + 4), Expected::Whole),
            (SAMPLED, (calm, kept + 5), Expected::Whole),
            (OUTSIDE, (SAMPLED, kept + 6), Expected::WholeOrNothing),
        ] {
            let told = hub.tcp_to(from, to.0, at(to), &many)?;
            self.add(((from, to.0), 6, told), expected)?;
        }
        Ok(())
    }

    /// Flows with one port number at both ends; their keys.
    fn equal_ports(&mut self, hub: &Hub) -> Result<Vec<Key>> {
        let mut keys = Vec::new();
        for (from, to, port) in [(CALM[0], CALM[1], 5060), (CALM[1], CALM[0], 5061)] {
            let own = at((from, port)).to_string();
            let told = hub.tcp_to(from, to, at((to, port)), &["--from", &own, "--reply", "3000"])?;
            keys.extend(self.add(((from, to), 6, told), Expected::Whole)?);
            let told = hub.udp_to(from, to, at((to, port)), &["--from", &own, "--exchanges", "20"])?;
            keys.extend(self.add(((from, to), 17, told), Expected::Whole)?);
            let end = |host| at((host, port));
            ensure!(
                keys.contains(&key(end(from), end(to), 17)),
                "{keys:?} have no equal ports"
            );
        }
        Ok(keys)
    }

    /// Long flows; in the middle of them one agent is stopped and started, and one is killed.
    fn lose_agents(&mut self, fleet: &mut Fleet) -> Result<()> {
        let hub = &fleet.hub;
        let [one, other] = CALM;
        let udp = ["--pause-us", "20000"];
        let (mut flows, mut speakers) = (Vec::new(), BTreeMap::new());
        // Servers have low ports: the client's agent speaks.
        for (host, port) in [(RESTARTED, 7100), (KILLED, 7200)] {
            flows.push(Long::tcp(hub, host, (one, port), &[])?);
            flows.push(Long::tcp(hub, other, (host, port + 1), &[])?);
            flows.push(Long::udp(hub, host, (one, port + 2), &udp)?);
            flows.push(Long::udp(hub, other, (host, port + 3), &udp)?);
            for (port, speaker) in [
                (port, host),
                (port + 1, other),
                (port + 2, host),
                (port + 3, other),
            ] {
                speakers.insert(port, fleet.source_of(speaker)?);
            }
        }
        let mut lacking = String::new();
        let told = wait::until(ARRIVED_WITHIN, "long flows that their speakers tell", || {
            let shown = of_ports(fleet.shown()?, &speakers);
            let right = shown.values().all(|(speaker, flow)| {
                flow.sum() > 0 && flow.told_by == flow.counted_by && flow.told_by.iter().eq([speaker])
            });
            lacking = format!("{shown:?}");
            Ok((right && shown.len() == speakers.len()).then_some(()))
        });
        told.context(lacking)?;

        fleet.members[usize::from(KILLED)].kill()?;
        fleet.members[usize::from(RESTARTED)].stop()?;
        fleet.members[usize::from(RESTARTED)].come_back()?;
        let at_kill = carried(&fleet.hub)?;
        let lost = [fleet.source_of(RESTARTED)?, fleet.source_of(KILLED)?];
        let mut lacking = String::new();
        let told = wait::until(ONCE_WITHIN, "peers that tell in place of an agent", || {
            let shown = of_ports(fleet.shown()?, &speakers);
            let later = |(key, (speaker, flow)): (&Key, &(u32, Shown))| {
                let another = flow.told_by.iter().any(|source| source != speaker);
                (another || !lost.contains(speaker)) && flow.sum() > at_kill.get(key).copied().unwrap_or(0)
            };
            lacking = format!("{shown:?}");
            Ok(shown.iter().all(later).then_some(()))
        });
        told.context(lacking)?;
        drop(fleet.members.remove(usize::from(KILLED)));
        for one in stop(flows)? {
            self.add(one, Expected::Whole)?;
        }
        Ok(())
    }

    /// Compares what is shown of each flow with what the wire carried of it.
    fn check(&self, wires: &BTreeMap<Key, u64>, flows: &BTreeMap<Key, Shown>) -> Result<()> {
        let (mut wrong, mut kept, mut left) = (Vec::new(), 0, 0);
        let (mut sum, mut wire_sum) = (0, 0);
        let (mut older, mut older_wire) = (0, [0; 2]);
        for (key, expected) in &self.expected {
            let wire = wires
                .get(key)
                .copied()
                .context("a flow leaves a trace on the wire")?;
            let flow = flows.get(key);
            let shown = flow.map_or(0, Shown::sum);
            let off = wire * OFF_MAX_PER_MILLE / 1000 + OFF_MAX_OCTETS;
            let right = match expected {
                Expected::Whole => shown.abs_diff(wire) <= off,
                Expected::Since { before, after } => {
                    wire <= shown + after + off && shown <= wire - before + off
                }
                Expected::Nothing => flow.is_none(),
                Expected::WholeOrNothing => flow.is_none() || shown.abs_diff(wire) <= off,
            };
            if !right {
                wrong.push(format!("{key:?} {expected:?}: {wire} on the wire, {flow:?}"));
            }
            match expected {
                Expected::Whole => (sum, wire_sum) = (sum + shown, wire_sum + wire),
                Expected::WholeOrNothing if flow.is_some() => kept += 1,
                Expected::WholeOrNothing => left += 1,
                Expected::Since { before, after } => {
                    older += shown;
                    older_wire[0] += wire - after;
                    older_wire[1] += wire - before;
                }
                Expected::Nothing => {}
            }
        }
        println!(
            "{} flows: of those told whole {sum} octets at the collector, {wire_sum} on the wire; \
             of those older than their agents {older}, {older_wire:?} after and before these began; \
             of those that only a sampling agent sees {kept} told, {left} not",
            self.expected.len()
        );
        ensure!(
            wrong.is_empty(),
            "{} flows are wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        ensure!(
            kept > 0 && left > 0,
            "one in four is kept: {kept} told, {left} not"
        );
        Ok(())
    }
}

impl Long {
    fn tcp(hub: &Hub, from: u8, to: (u8, u16), plan: &[&str]) -> Result<Self> {
        Ok(Self {
            way: (from, to.0),
            protocol: 6,
            background: hub.long_tcp(from, to, plan)?,
        })
    }

    fn udp(hub: &Hub, from: u8, to: (u8, u16), plan: &[&str]) -> Result<Self> {
        Ok(Self {
            way: (from, to.0),
            protocol: 17,
            background: hub.long_udp(from, to, plan)?,
        })
    }

    fn held(hub: &Hub, from: u8, to: (u8, u16), plan: &[&str]) -> Result<Self> {
        Ok(Self {
            way: (from, to.0),
            protocol: 6,
            background: hub.held_tcp(from, to, plan)?,
        })
    }
}

fn at((host, port): (u8, u16)) -> SocketAddr {
    SocketAddr::new(Hub::address(host), port)
}

fn stop(flows: Vec<Long>) -> Result<Vec<Traffic>> {
    let stopped = flows
        .into_iter()
        .map(|one| Ok((one.way, one.protocol, one.background.stop()?)));
    stopped.collect()
}

/// IP octets of each flow on the wire so far, both ways.
fn carried(hub: &Hub) -> Result<BTreeMap<Key, u64>> {
    let mut octets = BTreeMap::new();
    for host in &hub.hosts {
        for ((from, to, protocol), counted) in wire::flows(host)? {
            *octets.entry(key(from, to, protocol)).or_default() += counted.octets;
        }
    }
    Ok(octets)
}

/// The flows with servers on these ports, each with its speaker.
fn of_ports(flows: BTreeMap<Key, Shown>, speakers: &BTreeMap<u16, u32>) -> BTreeMap<Key, (u32, Shown)> {
    let of = |(key, flow): (Key, Shown)| {
        let ports = [key.0.port(), key.1.port()];
        let speaker = ports.iter().find_map(|port| speakers.get(port))?;
        Some((key, (*speaker, flow)))
    };
    flows.into_iter().filter_map(of).collect()
}
