//! What befalls a collector.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::cable::{self, Cable};
use integration::collector::apart::{Apart, Likeness};
use integration::collector::handled::Identity;
use integration::need;
use integration::product::Agent;
use integration::scene;
use integration::soak;
use integration::wait::{self, Stopwatch};
use integration::world::{Family, Place, World};

use super::{NFT, Traffic, agent_of, check_duplicates, end_whole, met, span, wait_handled};

/// What a message takes a slow collector. At the agent's pace of 20,000 records a second its queue of 1,000 is full
/// within seconds; the 1 ms that ntopng takes would never fill it.
const SLOW: Duration = Duration::from_millis(20);
/// Records a second for a collector that is held back: more than the traffic makes, so that a backlog drains.
const RATE: u64 = 800;
/// Messages that a slow collector handles before it is killed.
const HANDLED_BEFORE_KILL: u64 = 20;

#[test]
fn away_under_traffic_gets_all_of_it_later() -> Result<()> {
    under_traffic(1, |collector, traffic, agent| {
        collector.close()?;
        traffic.lasts(agent, span(Duration::from_secs(60)))?;
        collector.come_back()
    })
}

#[test]
fn backlog_drains_at_the_set_pace_and_what_is_fresh_stays_behind_it() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&collector], &["--rate", &RATE.to_string()])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    collector.close()?;
    traffic.lasts(&agent, span(Duration::from_secs(60)))?;
    let backlog = agent.records()?;
    let before = collector.account()?.order.len();
    collector.come_back()?;
    // Traffic goes on while the backlog drains.
    let began = wait::until(super::ARRIVED_WITHIN, "the first of the backlog", || {
        let arrived = collector.account()?.order.len();
        Ok((arrived > before).then(|| (arrived, Stopwatch::start())))
    })?;
    wait_handled(&mut collector, &backlog)?;
    let (drained, took) = (collector.account()?.order.len() - began.0, began.1.elapsed());
    let pace = drained as f64 / took.as_secs_f64();
    println!(
        "{} records waited; {drained} came in {took:?}: {pace:.0} a second of {RATE}",
        backlog.len() - before
    );
    // At first as many may come as a second lets wait.
    ensure!(
        drained as f64 <= RATE as f64 * (took.as_secs_f64() + 1.0) * 1.1,
        "{pace:.0} records a second, {RATE} are set"
    );
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let ended = end_whole(agent, &mut collector)?;
    let place: HashMap<_, _> = ended
        .records
        .iter()
        .enumerate()
        .map(|(n, record)| Ok((Identity::try_from(&record.id)?, n)))
        .collect::<Result<_>>()?;
    let arrived: Vec<_> = collector.account()?.order.iter().map(|id| place[id]).collect();
    ensure!(
        arrived.is_sorted(),
        "records came in another order than they were made"
    );
    Ok(())
}

#[test]
fn stopped_and_started_again_loses_nothing() -> Result<()> {
    let times = soak::count(50);
    under_traffic(times as u64, |collector, traffic, agent| {
        for _ in 0..times {
            collector.close()?;
            collector.come_back()?;
            traffic.goes_on(agent)?;
            wait_handled(collector, &agent.records()?)?;
        }
        Ok(())
    })
}

#[test]
fn frozen_under_traffic_loses_nothing_and_gets_nothing_twice() -> Result<()> {
    under_traffic(0, |collector, traffic, agent| {
        collector.freeze()?;
        traffic.lasts(agent, span(Duration::from_secs(30)))?;
        collector.thaw()
    })
}

#[test]
fn killed_while_slow_loses_nothing() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&collector], &[])?;
    let kills = if soak::is_on() { 10 } else { 2 };
    collector.set_delay(SLOW);
    for _ in 0..kills {
        collector.kill()?;
        // At full counts more than the 1,100 messages of a full queue.
        let flood = soak::count(100_000).to_string();
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
        scene::tcp(&world, Place::Wire, Family::V4, "thread", &plan)?;
        collector.come_back()?;
        let before = collector.account()?.messages;
        wait::until(
            super::ARRIVED_WITHIN,
            "a collector in the middle of its work",
            || {
                let messages = collector.account()?.messages;
                Ok((messages >= before + HANDLED_BEFORE_KILL).then_some(()))
            },
        )?;
    }
    collector.kill()?;
    collector.set_delay(Duration::ZERO);
    collector.come_back()?;
    end_whole(agent, &mut collector)?;
    check_duplicates(collector.account()?, kills + 1)
}

#[test]
fn cable_pulled_and_put_back_loses_nothing() -> Result<()> {
    if !met() || !need::met(&[NFT]) {
        return Ok(());
    }
    let world = World::build()?;
    let cable = Cable::lay()?;
    let likeness = Likeness {
        host: Some(&cable.collector),
        address: cable::COLLECTOR_V4,
        ..Likeness::default()
    };
    let mut collector = Apart::start(likeness)?;
    let flags = ["--record-ids", "--ntopng", collector.endpoint()];
    let agent = Agent::watching_from(&cable.desk, &world.left, &flags)?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    cable.pull()?;
    // Longer than it takes to call the peer dead, so that the agent connects anew, in vain at first.
    let pulled = span(Duration::from_secs(120));
    traffic.lasts(&agent, pulled)?;
    cable.put_back()?;
    traffic.goes_on(&agent)?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    end_whole(agent, &mut collector)?;
    // The collector's process lived on: what it had taken does not come again, what was under way may.
    check_duplicates(collector.account()?, 1)
}

/// Runs traffic under an agent, has `fault` befall the collector, and checks that it does no harm. `restarts`: ends of
/// the collector's process in it.
fn under_traffic(
    restarts: u64,
    fault: impl FnOnce(&mut Apart, &Traffic, &Agent) -> Result<()>,
) -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&collector], &[])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    ensure!(collector.account()?.messages > 0, "the fault comes under traffic");
    fault(&mut collector, &traffic, &agent)?;
    traffic.goes_on(&agent)?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    end_whole(agent, &mut collector)?;
    check_duplicates(collector.account()?, restarts)
}
