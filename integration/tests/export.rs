//! Promise: taken means that the collector has it, and nothing is lost silently on the way.
//!
//! The collector is libzmq's own SUB, bound as ntopng binds, and nDPI reads every payload.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::collector::message::Ids;
use integration::collector::ndpi::Elements;
use integration::collector::zmq::{self, KeyPair};
use integration::collector::{self, Collector, Setup};
use integration::need;
use integration::product::{Agent, Ended};
use integration::scene::{self, TOLD_WITHIN, Told};
use integration::soak;
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, World};

/// A handshake that fails is named within this.
const NAMED_WITHIN: Duration = Duration::from_secs(5);
/// Two events are this far apart, and some.
const EVENT_WITHIN: Duration = Duration::from_secs(15);
/// What listens is told this often, and some.
const LISTENING_WITHIN: Duration = Duration::from_secs(75);
/// Growth of memory that a stalled collector may cost beside its queue: buffers of sockets and allocator.
const STALLED_GROWTH_OCTETS_MAX: u64 = 24 << 20;
/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const OCTETS_FORWARD: u32 = 1;
    pub(super) const PORT_INITIATOR: u32 = 7;
    pub(super) const PORT_RESPONDER: u32 = 11;
    pub(super) const OCTETS_BACKWARD: u32 = 23;
    pub(super) const PID_INITIATOR: u32 = 57640;
    pub(super) const PID_RESPONDER: u32 = 57847;
}

#[test]
fn every_record_reaches_a_real_subscriber_without_a_gap() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let agent = exporting(&world, &collector, &[])?;
    let count = soak::count(10_000).to_string();
    let plan = ["--count", &count, "--concurrent", "4"];
    let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    let udp = ["--sockets", "20", "--exchanges", "100"];
    let udp = scene::udp(&world, Place::Wire, Family::V6, &udp)?;
    all_arrived(&collector, &told)?;
    all_arrived(&collector, &udp)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let (messages, ids) = collector.messages()?;
    println!("{} messages, {ids:?}", messages.len());
    ensure!((ids.missing, ids.restarts) == (0, 0), "{ids:?}");
    ensure!(ids.sources().len() == 1 && ids.sources()[0] != 0, "{ids:?}");
    ensure!(
        messages[0].header.id == 1,
        "ids count from 1: {:?}",
        messages[0].header
    );
    ensure!(ended.law_2("made")? == ended.law_2("taken")?, "{:?}", ended.words);
    both_ends_agree(&ended, &collector, &told)
}

#[test]
fn owners_of_both_ends_travel_with_the_first_record() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let right = format!("netns={}", world.right.path().display());
    let agent = exporting(&world, &collector, &["--scope", &right])?;
    let told = scene::tcp(&world, Place::Wire, Family::V4, "prefork", &["--count", "40"])?;
    all_arrived(&collector, &told)?;
    let records = collector.flows()?;
    for client in &told.clients {
        let first = records
            .iter()
            .find(|record| {
                is_of(record, &told, client.local.port()) && record.number(element::PID_INITIATOR).is_some()
            })
            .with_context(|| format!("no record with a process of {client:?}"))?;
        let pids = [element::PID_INITIATOR, element::PID_RESPONDER].map(|pid| first.number(pid));
        let server = told.mirror(client)?;
        ensure!(
            pids == [Some(client.pid.into()), Some(server.pid.into())],
            "{pids:?}, truth {client:?}, {server:?}"
        );
    }
    agent.interrupt()?.check_laws()
}

#[test]
fn events_and_listening_ports_are_whole() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let (_server, ready, _) = scene::serve(
        &world,
        Place::Loopback,
        Family::V4,
        &["serve", "--style", "thread"],
    )?;
    let collector = Collector::bind(Setup::default())?;
    let agent = exporting(&world, &collector, &[])?;
    wait::until_true(EVENT_WITHIN, "second event", || {
        collector.json("event").is_ok_and(|events| events.len() >= 2)
    })?;
    // ntopng shows what its memory held before for each of these that is missing.
    for event in collector.json("event")? {
        for text in [
            "/mode",
            "/iface/name",
            "/iface/ip",
            "/probe/ip",
            "/probe/public_ip",
            "/probe/uuid",
            "/probe/version",
            "/probe/osname",
            "/probe/license",
            "/probe/edition",
            "/probe/maintenance",
        ] {
            ensure!(
                event.pointer(text).is_some_and(serde_json::Value::is_string),
                "{text} in {event}"
            );
        }
        for number in [
            "/time",
            "/bytes",
            "/packets",
            "/packet_drops",
            "/iface/speed",
            "/probe/unique_source_id",
            "/avg/bps",
            "/avg/pps",
            "/timeout/lifetime",
            "/timeout/idle",
            "/timeout/collected_lifetime",
            "/drops/export_queue_full",
            "/zmq/num_flow_exports",
            "/zmq/num_exporters",
        ] {
            ensure!(
                event.pointer(number).is_some_and(serde_json::Value::is_u64),
                "{number} in {event}"
            );
        }
    }
    let listening = wait::until(LISTENING_WITHIN, "listening ports", || {
        Ok(collector.json("listening-ports")?.into_iter().next())
    })?;
    let ports = listening
        .pointer("/listening-ports/tcp4")
        .context("no tcp4 in what listens")?;
    let ports = ports.as_array().context("tcp4 is a list")?;
    ensure!(
        ports
            .iter()
            .any(|entry| entry["port"] == ready.address.port() && entry["proc"].is_string()),
        "{listening}"
    );
    agent.interrupt()?.check_laws()
}

#[test]
fn curve_delivers_under_the_right_key() -> Result<()> {
    let Some((world, keys, collector)) = curve_collector()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("key");
    std::fs::write(&file, &keys.public)?;
    for key in [
        keys.public.clone(),
        format!("@{}", file.display()),
        hex(&keys.public),
    ] {
        let agent = exporting(&world, &collector, &["--curve-key", &key])?;
        let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "10"])?;
        all_arrived(&collector, &told)?;
        agent.interrupt()?.check_laws()?;
    }
    Ok(())
}

#[test]
fn a_wrong_curve_key_is_named() -> Result<()> {
    let Some((world, _keys, collector)) = curve_collector()? else {
        return Ok(());
    };
    let wrong = zmq::key_pair()?.public;
    named(&world, &collector, &["--curve-key", &wrong], &["key"])
}

#[test]
fn plain_text_against_curve_is_named() -> Result<()> {
    let Some((world, _keys, collector)) = curve_collector()? else {
        return Ok(());
    };
    named(&world, &collector, &[], &["CURVE"])
}

#[test]
fn curve_against_plain_text_is_named() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let key = zmq::key_pair()?.public;
    named(&world, &collector, &["--curve-key", &key], &["CURVE"])
}

#[test]
fn a_collector_that_stops_reading_costs_nothing_but_time() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    // With the soak switch ntopng's own 1,000 messages and 8 MiB are filled first; otherwise a hundredth of them.
    let setup = Setup {
        queue_messages: (!soak::is_on()).then_some(10),
        ..Setup::default()
    };
    let collector = Collector::bind(setup)?;
    let agent = exporting(&world, &collector, &[])?;
    let first = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "20"])?;
    all_arrived(&collector, &first)?;
    collector.pause(true);
    let flood = soak::count(200_000).to_string();
    let plan = [
        "--count",
        &flood,
        "--concurrent",
        "8",
        "--request",
        "34",
        "--reply",
        "1",
    ];
    let second = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    let before = agent.resident_octets()?;
    let third = scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
    let after = agent.resident_octets()?;
    println!("resident memory: {before} octets, then {after}");
    ensure!(
        after < before + STALLED_GROWTH_OCTETS_MAX,
        "memory grows: {before} to {after}"
    );
    collector.pause(false);
    let last = scene::tcp(&world, Place::Wire, Family::V6, "thread", &["--count", "20"])?;
    all_arrived(&collector, &last)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let (_, ids) = collector.messages()?;
    ensure!(
        (ids.missing, ids.restarts) == (0, 0),
        "what was sent arrived: {ids:?}"
    );
    let flows = [&first, &second, &third, &last]
        .map(|told| told.clients.len())
        .iter()
        .sum::<usize>() as u64;
    let (made, taken) = (ended.law_2("made")?, ended.law_2("taken")?);
    println!("{flows} flows; made {made}, taken {taken}");
    ensure!(made >= flows && made == taken, "{:?}", ended.words);
    ensure!(collector.flows()?.len() as u64 == taken, "taken is what arrived");
    Ok(())
}

#[test]
fn a_collector_that_is_killed_and_comes_back_is_found_again() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let endpoint = collector.endpoint().to_owned();
    let agent = exporting(&world, &collector, &[])?;
    let first = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "50"])?;
    all_arrived(&collector, &first)?;
    let read_before = collector.flows()?.len() as u64;
    collector.stop()?;
    let away = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "50"])?;
    let again = || {
        let setup = Setup {
            endpoint: Some(endpoint.clone()),
            ..Setup::default()
        };
        // The port is free once the kernel has seen the last connection out.
        Ok(Collector::bind(setup).ok())
    };
    let collector = wait::until(PATIENCE, "the collector's port", again)?;
    // What was made while nobody listened waited, and comes now.
    all_arrived(&collector, &away)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let (messages, ids) = collector.messages()?;
    ensure!((ids.missing, ids.restarts) == (0, 0), "{ids:?}");
    ensure!(
        messages[0].header.id == 1,
        "a connection counts from 1: {:?}",
        messages[0].header
    );
    let (made, taken) = (ended.law_2("made")?, ended.law_2("taken")?);
    let at_risk = ended.lost("CollectorRestarted");
    println!("made {made}, taken {taken}, at risk {at_risk}");
    let arrived = read_before + collector.flows()?.len() as u64;
    ensure!(
        arrived + at_risk >= made,
        "{arrived} arrived of {made}, {at_risk} told as at risk"
    );
    Ok(())
}

#[test]
fn two_agents_on_one_endpoint_are_two_sources() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let left = exporting(&world, &collector, &[])?;
    let right = Agent::watching(&world.right, &["--ntopng", collector.endpoint()])?;
    let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "50"])?;
    all_arrived(&collector, &told)?;
    wait::until_true(EVENT_WITHIN, "second source", || sources(&collector) == 2)?;
    left.interrupt()?.check_laws()?;
    right.interrupt()?.check_laws()?;
    let (_, ids) = collector.messages()?;
    ensure!((ids.missing, ids.restarts) == (0, 0), "{ids:?}");
    Ok(())
}

/// An agent of the left host that exports to `collector`.
fn exporting(world: &World, collector: &Collector, flags: &[&str]) -> Result<Agent> {
    Agent::watching(
        &world.left,
        &[&["--ntopng", collector.endpoint()], flags].concat(),
    )
}

/// Waits until each flow of a scene has arrived, by its ports.
fn all_arrived(collector: &Collector, told: &Told) -> Result<()> {
    let mut missing = told.clients.len();
    let mut messages = usize::MAX;
    wait::until(TOLD_WITHIN, "records at the collector", || {
        let count = collector.messages()?.0.len();
        if count != messages {
            messages = count;
            let records = collector.flows()?;
            let ports: std::collections::HashSet<u64> = records
                .iter()
                .filter(|record| record.number(element::PORT_RESPONDER) == Some(told.server.port().into()))
                .filter_map(|record| record.number(element::PORT_INITIATOR))
                .collect();
            missing = told
                .clients
                .iter()
                .filter(|client| !ports.contains(&u64::from(client.local.port())))
                .count();
        }
        Ok((missing == 0).then_some(()))
    })
    .with_context(|| format!("{missing} of {} flows are missing", told.clients.len()))
}

fn is_of(record: &Elements, told: &Told, port: u16) -> bool {
    record.number(element::PORT_RESPONDER) == Some(told.server.port().into())
        && record.number(element::PORT_INITIATOR) == Some(port.into())
}

/// The same octets on the screen and at the collector.
fn both_ends_agree(ended: &Ended, collector: &Collector, told: &Told) -> Result<()> {
    let records = collector.flows()?;
    let flows = ended.flows()?;
    // A port may have been used by several of the scene's flows: compared together.
    let sums = |port: u16| -> (u64, u64) {
        let of = flows
            .iter()
            .filter(|flow| told.owns(flow) && flow.first().initiator.port == port);
        of.map(|flow| flow.last().total).fold((0, 0), |sum, total| {
            (sum.0 + total.forward.octets, sum.1 + total.backward.octets)
        })
    };
    for client in &told.clients {
        let port = client.local.port();
        let sum = |element: u32| -> u64 {
            let of = records.iter().filter(|record| is_of(record, told, port));
            of.filter_map(|record| record.number(element)).sum()
        };
        let arrived = (sum(element::OCTETS_FORWARD), sum(element::OCTETS_BACKWARD));
        let shown = sums(port);
        ensure!(
            arrived == shown,
            "port {port}: {arrived:?} arrived, {shown:?} shown"
        );
    }
    Ok(())
}

fn sources(collector: &Collector) -> usize {
    collector
        .messages()
        .map_or(0, |(_, ids): (_, Ids)| ids.sources().len())
}

fn curve_collector() -> Result<Option<(World, KeyPair, Collector)>> {
    if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) {
        return Ok(None);
    }
    let world = World::build()?;
    let keys = zmq::key_pair()?;
    let setup = Setup {
        curve: Some(keys.clone()),
        ..Setup::default()
    };
    let collector = Collector::bind(setup)?;
    Ok(Some((world, keys, collector)))
}

/// Whether an agent says in time what is wrong with its collector, in a line that has all of `words`.
fn named(world: &World, collector: &Collector, flags: &[&str], words: &[&str]) -> Result<()> {
    let mut agent = exporting(world, collector, flags)?;
    let said = agent.wait_for_words(NAMED_WITHIN, "name of what is wrong", |line| {
        line.contains("ntopng-127.0.0.1") && words.iter().all(|word| line.contains(word))
    })?;
    println!("{said}");
    ensure!(collector.messages()?.0.is_empty(), "nothing may arrive");
    agent.interrupt()?.check_laws()
}

/// ntopng ≥ 5.6 shows its key as hexadecimal of the 40 characters.
fn hex(text: &str) -> String {
    text.bytes().map(|octet| format!("{octet:02X}")).collect()
}
