//! Promise: a connection between two hosts of the fleet is one flow, counted once, with both owners; and a policy is in force
//! when it is acked, or the old one is.
//!
//! Three namespaces as hosts with an agent each, a fourth without; a controller; one collector, libzmq's own SUB. What the
//! collector adds up, as ntopng does, is compared with what the wire carried and with what the traffic says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::collector::message::Payload;
use integration::collector::ndpi::Elements;
use integration::collector::{self, Collector, Setup};
use integration::fleet::{Controller, Hub, Member};
use integration::need::{self, Need};
use integration::ntopng::{self, Ntopng};
use integration::scene::Told;
use integration::soak;
use integration::traffic::Flow;
use integration::wait::{self, PATIENCE};
use integration::wire::WireCounter;
use serde_json::Value;

/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const DELTA: [u32; 2] = [1, 23];
    pub(super) const TOTAL: [u32; 2] = [231, 232];
    pub(super) const PROTOCOL: u32 = 4;
    pub(super) const PORTS: [u32; 2] = [7, 11];
    pub(super) const ADDRESSES: [u32; 2] = [8, 12];
    pub(super) const PIDS: [u32; 2] = [57640, 57847];
}

/// Hosts with an agent.
const MEMBERS: u8 = 3;
/// The host without one.
const OUTSIDE: u8 = 3;
/// Lists are told half a minute after the controller's start, and settle; and some, on a busy machine.
const ONCE_WITHIN: Duration = Duration::from_secs(180);
/// Records of flows that have ended are at the collector within the idle timeout of UDP, and some.
const ARRIVED_WITHIN: Duration = Duration::from_secs(120);
/// Most that the sum of octets may be off, in parts per thousand of the wire's: see the promise on truth.
const OCTETS_OFF_MAX_PER_MILLE: u64 = 5;
const NFT: Need = Need::Program("nft", "nftables");

/// A flow as ntopng keys it: both ends in one order, and the protocol.
type Key = (SocketAddr, SocketAddr, u64);

/// One flow, as ntopng adds it up.
#[derive(Clone, Debug, Default)]
struct Shown {
    /// Octets from the lower end, and to it.
    octets: [u64; 2],
    /// Processes at the lower end and at the other: those of the first record that named one.
    pids: Option<[u64; 2]>,
    /// Exporters that told it by deltas.
    counted_by: BTreeSet<u32>,
    told_by: BTreeSet<u32>,
}

#[test]
fn connections_of_the_fleet_are_counted_once_with_both_owners() -> Result<()> {
    let Some(fleet) = Fleet::build("")? else {
        return Ok(());
    };
    fleet.wait_until_counted_once()?;
    let wires = fleet.wires()?;
    let before = carried(&wires)?;
    let already: BTreeSet<Key> = shown(&fleet.collector)?.into_keys().collect();

    let count = soak::count(200).to_string();
    let plan = ["--count", &count, "--concurrent", "4", "--reply", "3000"];
    let mut told = Vec::new();
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, OUTSIDE), (OUTSIDE, 1)] {
        told.push(((from, to), 6, fleet.hub.tcp(from, to, &plan)?));
    }
    let plan = ["--sockets", "10", "--exchanges", &count];
    for (from, to) in [(0, 1), (2, 1), (OUTSIDE, 2), (0, OUTSIDE)] {
        told.push(((from, to), 17, fleet.hub.udp(from, to, &plan)?));
    }
    let after = carried(&wires)?;

    let flows = fleet.wait_for(&told, &already)?;
    let (mut named, mut unnamed) = (0, Vec::new());
    for ((from, to), protocol, told) in &told {
        let inside = *from < MEMBERS && *to < MEMBERS;
        for client in &told.clients {
            let key = key_of(told, client, *protocol)?;
            let flow = &flows[&key];
            ensure!(
                flow.counted_by.len() == 1 && flow.told_by.len() == 1,
                "{key:?} was told by {:?}: {flow:?}",
                flow.told_by
            );
            let mut pids = [u64::from(client.pid), u64::from(told.mirror(client)?.pid)];
            if *from == OUTSIDE {
                pids[0] = 0;
            }
            if *to == OUTSIDE {
                pids[1] = 0;
            }
            if key.0 == told.server {
                pids.reverse();
            }
            match flow.pids {
                Some(shown) if shown == pids => named += 1,
                // The answer came too late for this record: then the end is without, never with another's process.
                Some(shown) if (0..2).all(|n| shown[n] == pids[n] || shown[n] == 0) => {
                    unnamed.push((key, pids))
                }
                shown => {
                    bail!("{key:?} has the processes {shown:?} where there were {pids:?}, inside {inside}")
                }
            }
        }
    }
    println!(
        "{named} flows have all their processes, {} lack one: {:?}",
        unnamed.len(),
        unnamed.first()
    );
    // A busy machine answers late now and then; not as a rule.
    ensure!(
        unnamed.len() * 3 <= named,
        "{} of {} flows lack a process",
        unnamed.len(),
        named + unnamed.len()
    );
    let sum: u64 = flows.values().map(|flow| flow.octets[0] + flow.octets[1]).sum();
    let wire = after - before;
    println!(
        "{} flows of the fleet: {sum} octets at the collector, {wire} on the wire",
        flows.len()
    );
    ensure!(
        sum.abs_diff(wire) * 1000 <= wire * OCTETS_OFF_MAX_PER_MILLE,
        "{sum} octets at the collector, {wire} on the wire"
    );
    fleet.end()
}

#[test]
fn peers_of_an_agent_that_is_killed_tell_its_flows() -> Result<()> {
    let Some(mut fleet) = Fleet::build("")? else {
        return Ok(());
    };
    fleet.wait_until_counted_once()?;
    let already: BTreeSet<Key> = shown(&fleet.collector)?.into_keys().collect();
    let count = soak::count(200).to_string();
    let plan = ["--count", &count, "--concurrent", "4"];
    let mut told = vec![((0, 1), 6, fleet.hub.tcp(0, 1, &plan)?)];
    // What it has told is at the collector before it dies, so that only what it would have told is missing.
    fleet.wait_for(&told, &already)?;
    let mut killed = fleet.members.swap_remove(1);
    killed.kill()?;
    told.push(((0, 1), 6, fleet.hub.tcp(0, 1, &plan)?));
    told.push(((1, 2), 6, fleet.hub.tcp(1, 2, &plan)?));
    let wires_told = &told[1..];
    let flows = fleet.wait_for(&told, &already)?;
    for ((from, to), protocol, told) in wires_told {
        for client in &told.clients {
            let flow = &flows[&key_of(told, client, *protocol)?];
            let payload = client.sent + client.received;
            ensure!(
                flow.octets[0] + flow.octets[1] >= payload,
                "{from} to {to}: {flow:?} has less than its payload of {payload}"
            );
        }
    }
    fleet.end()
}

#[test]
fn policy_takes_effect_when_it_is_acked_and_the_old_one_stays_when_it_is_refused() -> Result<()> {
    let Some(fleet) = Fleet::build("")? else {
        return Ok(());
    };
    let already: BTreeSet<Key> = BTreeSet::new();
    let plan = ["--count", "20", "--concurrent", "4"];
    let tcp = ((0, OUTSIDE), 6, fleet.hub.tcp(0, OUTSIDE, &plan)?);
    fleet.wait_for(std::slice::from_ref(&tcp), &already)?;

    // No TCP from here on.
    fleet
        .controller
        .deploy_all(&fleet.documents("capture: {tcp: false}"))?;
    let unseen = fleet.hub.tcp(0, OUTSIDE, &plan)?;
    let udp = ["--sockets", "4", "--exchanges", "20"];
    let seen = ((0, OUTSIDE), 17, fleet.hub.udp(0, OUTSIDE, &udp)?);
    fleet.wait_for(&[seen], &already)?;
    let flows = shown(&fleet.collector)?;
    for client in &unseen.clients {
        ensure!(
            !flows.contains_key(&key_of(&unseen, client, 6)?),
            "TCP was told after the policy that leaves it out was acked"
        );
    }

    // No agent has this namespace: each refuses, and goes on with what it had.
    let wrong = fleet.documents("capture: {scopes: [{cgroup: /flowtilla-test-nowhere}]}");
    let output = fleet.controller.deploy(&wrong, &["--wait=300s"])?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}\n{said}", output.status);
    ensure!(said.contains("flowtilla-test-nowhere"), "{said}");
    println!("{said}");
    let seen = ((0, OUTSIDE), 17, fleet.hub.udp(0, OUTSIDE, &udp)?);
    fleet.wait_for(&[seen], &already)?;
    // A heartbeat may be of the moment between two attachments: the next one says.
    wait::until(PATIENCE, "agents that capture", || {
        let agents = fleet.controller.agents()?;
        let all = agents.iter().all(|agent| agent["health"]["capturing"] == true);
        Ok(all.then_some(()))
    })?;
    fleet.end()
}

#[test]
fn agents_go_on_without_a_controller_and_come_back_to_it() -> Result<()> {
    let Some(mut fleet) = Fleet::build("")? else {
        return Ok(());
    };
    let already = BTreeSet::new();
    let plan = ["--count", "20", "--concurrent", "4"];
    fleet.controller.kill()?;
    let told = ((0, OUTSIDE), 6, fleet.hub.tcp(0, OUTSIDE, &plan)?);
    fleet.wait_for(&[told], &already)?;
    // One that starts anew while there is no controller has its policy all the same.
    fleet.members[0].kill()?;
    fleet.members[0].come_back()?;
    let mut made = Vec::new();
    let told = wait::until(ONCE_WITHIN, "an agent that captures again", || {
        // What began before it captured is not told by the open socket alone: any round that is told whole will do.
        made.push(fleet.hub.tcp(0, OUTSIDE, &plan)?);
        let flows = shown(&fleet.collector)?;
        for told in &made {
            let keys = told.clients.iter().map(|client| key_of(told, client, 6));
            let keys: Vec<Key> = keys.collect::<Result<_>>()?;
            if keys.iter().all(|key| flows.contains_key(key)) {
                return Ok(Some(()));
            }
        }
        Ok(None)
    });
    told.with_context(|| fleet.members[0].last_words())?;
    fleet.controller.come_back()?;
    for member in &fleet.members {
        member.wait_connected(&fleet.controller)?;
    }
    fleet.end()
}

#[test]
fn a_real_ntopng_does_not_count_what_two_agents_see_twice() -> Result<()> {
    let binary = match ntopng::find() {
        Ok(binary) => binary,
        Err(reason) => {
            need::skip(&reason);
            return Ok(());
        }
    };
    let Some(fleet) = Fleet::build("")? else {
        return Ok(());
    };
    let ntopng = Ntopng::start(&binary, &[])?;
    let real = format!(
        "apiVersion: flowtilla/v1\nkind: Collector\nname: real\nendpoint: {}\n---\n",
        ntopng.endpoint()
    );
    let both = fleet.documents("").replace("[main]", "[main, real]");
    fleet.controller.deploy_all(&(real + &both))?;
    // Both collectors have the same agents, so that what is settled for one is for the other.
    fleet.wait_until_counted_once()?;
    let wires = fleet.wires()?;

    // Only these flows have these addresses.
    let count = soak::count(200).to_string();
    let plan = ["--count", &count, "--concurrent", "4", "--reply", "3000"];
    let mut told = Vec::new();
    for (from, to) in [(0, 1), (1, 2), (2, 0), (0, OUTSIDE), (OUTSIDE, 1)] {
        let at = Hub::second_address(to);
        told.push(((from, to), 6, fleet.hub.tcp_to(from, to, at, &plan)?));
    }
    let plan = ["--sockets", "10", "--exchanges", &count];
    for (from, to) in [(0, 1), (2, 1), (OUTSIDE, 2), (0, OUTSIDE)] {
        let at = Hub::second_address(to);
        told.push(((from, to), 17, fleet.hub.udp_to(from, to, at, &plan)?));
    }
    let received = carried_each(&wires)?;
    fleet.wait_for(&told, &BTreeSet::new())?;

    // To the octet; a wire that lost or repeated a packet may be off by the promise's bound, and costs the whole wait.
    let mut shown = Vec::new();
    let waited = wait::until(ARRIVED_WITHIN, "totals of all hosts in ntopng", || {
        let hosts = 0..=MEMBERS;
        let totals = hosts.map(|n| ntopng.host_octets(&Hub::second_address(n).to_string()));
        shown = totals.collect::<Result<_>>()?;
        let equal = shown.iter().map(|of| of.1).eq(received.iter().copied());
        Ok(equal.then_some(()))
    });
    println!("ntopng says (sent, received) {shown:?} of the hosts, the wire received {received:?}");
    for (&(_, shown), wire) in shown.iter().zip(&received) {
        ensure!(
            shown.abs_diff(*wire) * 1000 <= wire * OCTETS_OFF_MAX_PER_MILLE,
            "{shown} octets of {wire}: {waited:?}"
        );
    }
    let sent: u64 = shown.iter().map(|of| of.0).sum();
    let taken: u64 = shown.iter().map(|of| of.1).sum();
    ensure!(sent == taken, "{sent} octets sent, {taken} received");

    let mut flows = Vec::new();
    for n in 0..MEMBERS {
        flows.extend(ntopng.flows(&format!("&host={}", Hub::second_address(n)))?);
    }
    let (mut named, mut unnamed) = (0, 0);
    for ((from, to), protocol, told) in &told {
        if *from == OUTSIDE || *to == OUTSIDE {
            continue;
        }
        for client in &told.clients {
            let ends = [told.mirror(client)?.peer, told.server];
            let is_end = |flow: &Value, role: &str, end: SocketAddr| {
                flow[role]["ip"] == end.ip().to_string() && flow[role]["port"] == end.port()
            };
            // ntopng guesses who began a UDP flow.
            let shown = flows.iter().find_map(|flow| {
                let roles = [["client", "server"], ["server", "client"]];
                let fits = |roles: &[&str; 2]| (0..2).all(|n| is_end(flow, roles[n], ends[n]));
                roles.into_iter().find(fits).map(|roles| (flow, roles))
            });
            let (flow, roles) = shown.with_context(|| format!("{protocol} {ends:?} is not shown"))?;
            for (role, pid) in roles.into_iter().zip([client.pid, told.mirror(client)?.pid]) {
                match &flow[role]["process"]["pid"] {
                    Value::Null => unnamed += 1,
                    shown => {
                        ensure!(*shown == pid, "{role} is {pid}: {flow}");
                        named += 1;
                    }
                }
            }
        }
    }
    println!("{named} ends of flows inside the fleet have their process in ntopng, {unnamed} lack it");
    ensure!(unnamed * 3 <= named);
    let probes = ntopng.ask("/lua/rest/v2/get/interface/nprobes/data.lua?ifid=0")?;
    println!("{probes}");
    let sources: BTreeSet<u64> = (probes["rsp"].as_array().into_iter().flatten())
        .filter_map(|probe| probe["probe_uuid_num"].as_u64())
        .collect();
    ensure!(sources.len() == usize::from(MEMBERS), "{probes}");
    let counters = ntopng.zmq_counters()?;
    println!("{counters}");
    ensure!(
        counters["zmq_msg_drops"] == 0 && counters["dropped_flows"] == 0,
        "{counters}"
    );
    fleet.end()
}

/// Controller, agents, collector and hosts.
struct Fleet {
    collector: Collector,
    members: Vec<Member>,
    controller: Controller,
    /// Declared last: its namespaces go last.
    hub: Hub,
}

impl Fleet {
    /// Builds it, with a policy for all agents that has `more`; `None`: the machine cannot.
    fn build(more: &str) -> Result<Option<Self>> {
        if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) || !need::met(&[NFT]) {
            return Ok(None);
        }
        let hub = Hub::build(MEMBERS + 1)?;
        let collector = Collector::bind(Setup::default())?;
        let controller = Controller::start()?;
        let mut members = Vec::new();
        for n in 0..MEMBERS {
            members.push(Member::join(&controller, &hub, n, &[])?);
        }
        let fleet = Self {
            collector,
            members,
            controller,
            hub,
        };
        fleet.controller.deploy_all(&fleet.documents(more))?;
        Ok(Some(fleet))
    }

    fn documents(&self, more: &str) -> String {
        format!(
            "apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: {}\n---\n\
             apiVersion: flowtilla/v1\nkind: Policy\nname: all\nexport: {{collectors: [main]}}\n{more}\n",
            self.collector.endpoint()
        )
    }

    /// Makes traffic within the fleet until an agent leaves a flow to another.
    fn wait_until_counted_once(&self) -> Result<()> {
        wait::until(ONCE_WITHIN, "flows that are left to a peer", || {
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                self.hub.tcp(from, to, &["--count", "4"])?;
            }
            let agents = self.controller.agents()?;
            let all = agents.iter().all(|agent| {
                let peers = agent["health"]["peers"].as_array().cloned().unwrap_or_default();
                let some = |what: &str| peers.iter().any(|peer| peer[what].as_u64() > Some(0));
                some("heldRecords") && some("spokenRecords")
            });
            Ok(all.then_some(()))
        })?;
        // Both are counted from the first list on; flows are told once when it has settled.
        let told = wait::until(ONCE_WITHIN, "a flow that one agent alone tells by deltas", || {
            let mut told = Vec::new();
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                told.push(((from, to), 6, self.hub.tcp(from, to, &["--count", "4"])?));
            }
            let flows = self.wait_for(&told, &BTreeSet::new())?;
            for (_, protocol, told) in &told {
                for client in &told.clients {
                    let flow = &flows[&key_of(told, client, *protocol)?];
                    if (flow.told_by.len(), flow.counted_by.len()) != (1, 1) {
                        return Ok(None);
                    }
                }
            }
            Ok(Some(()))
        });
        told.with_context(|| format!("{:#?}", self.controller.agents()))
    }

    /// Waits until the collector has all payload of these flows; the flows that are not among `already`.
    fn wait_for(
        &self,
        told: &[((u8, u8), u64, Told)],
        already: &BTreeSet<Key>,
    ) -> Result<BTreeMap<Key, Shown>> {
        let mut missing = String::new();
        let waited = wait::until(ARRIVED_WITHIN, "flows at the collector", || {
            let mut flows = shown(&self.collector)?;
            flows.retain(|key, _| !already.contains(key));
            for (way, protocol, told) in told {
                for client in &told.clients {
                    let key = key_of(told, client, *protocol)?;
                    let octets = flows.get(&key).map_or(0, |flow| flow.octets[0] + flow.octets[1]);
                    if octets < client.sent + client.received {
                        missing = format!("{way:?} {key:?}: {octets} octets of {client:?}");
                        return Ok(None);
                    }
                }
            }
            Ok(Some(flows))
        });
        waited.context(missing)
    }

    fn wires(&self) -> Result<Vec<WireCounter<'_>>> {
        self.hub.hosts.iter().map(WireCounter::start).collect()
    }

    /// Stops every agent as a service is stopped, and sees that the controller lost none before.
    fn end(mut self) -> Result<()> {
        let mut said = String::new();
        // One that has just come back to the controller tells its sums with its next heartbeat.
        let waited = wait::until(PATIENCE, "a fleet that lost nothing", || {
            let loss = self.controller.ctl(&["loss"])?;
            said =
                String::from_utf8_lossy(&loss.stdout).into_owned() + &String::from_utf8_lossy(&loss.stderr);
            Ok(loss.status.success().then_some(()))
        });
        println!("{said}");
        waited.context(said)?;
        for member in &mut self.members {
            member.stop()?;
        }
        Ok(())
    }
}

/// IP octets that all hosts received.
fn carried(wires: &[WireCounter<'_>]) -> Result<u64> {
    Ok(carried_each(wires)?.iter().sum())
}

/// IP octets that each host received.
fn carried_each(wires: &[WireCounter<'_>]) -> Result<Vec<u64>> {
    let read = |wire: &WireCounter<'_>| wire.read().map(|seen| seen.tcp.octets + seen.udp.octets);
    wires.iter().map(read).collect()
}

/// A UDP client knows no address of its own: the server saw it.
fn key_of(told: &Told, client: &Flow, protocol: u64) -> Result<Key> {
    Ok(key(told.mirror(client)?.peer, told.server, protocol))
}

fn key(one: SocketAddr, other: SocketAddr, protocol: u64) -> Key {
    (one.min(other), one.max(other), protocol)
}

/// All flows so far, added up as ntopng does: deltas add, totals only raise, and the first process data stay.
fn shown(collector: &Collector) -> Result<BTreeMap<Key, Shown>> {
    let (messages, ids) = collector.messages()?;
    ensure!(ids.missing == 0, "{ids:?}");
    let mut flows = BTreeMap::<Key, Shown>::new();
    for message in messages {
        let Payload::Flows(records) = message.payload else {
            continue;
        };
        for record in records {
            let ends = ends(&record)?;
            let protocol = record
                .number(element::PROTOCOL)
                .context("a record has a protocol")?;
            let key = key(ends[0], ends[1], protocol);
            let flow = flows.entry(key).or_default();
            flow.told_by.insert(message.header.source);
            let turned = usize::from(key.0 != ends[0]);
            let totals = element::TOTAL.map(|element| record.number(element));
            let deltas = element::DELTA.map(|element| record.number(element).unwrap_or(0));
            if totals.iter().all(Option::is_none) && deltas.iter().any(|&octets| octets > 0) {
                flow.counted_by.insert(message.header.source);
            }
            for way in 0..2 {
                let octets = &mut flow.octets[way ^ turned];
                match totals.iter().any(Option::is_some) {
                    true => *octets = (*octets).max(totals[way].unwrap_or(0)),
                    false => *octets += deltas[way],
                }
            }
            let pids = element::PIDS.map(|element| record.number(element).unwrap_or(0));
            if flow.pids.is_none() && pids != [0, 0] {
                flow.pids = Some([pids[turned], pids[1 - turned]]);
            }
        }
    }
    Ok(flows)
}

/// Both ends of a record. All traffic here is IPv4.
fn ends(record: &Elements) -> Result<[SocketAddr; 2]> {
    let end = |n: usize| {
        let port = record.number(element::PORTS[n]).context("a record has ports")?;
        let address = match record.text(element::ADDRESSES[n]) {
            Some(text) => text.parse()?,
            None => {
                let number = record
                    .number(element::ADDRESSES[n])
                    .context("a record has addresses")?;
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number)?))
            }
        };
        Ok::<_, anyhow::Error>(SocketAddr::new(address, u16::try_from(port)?))
    };
    Ok([end(0)?, end(1)?])
}
