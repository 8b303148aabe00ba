//! Memory over a long outage.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::scene::Background;
use integration::soak;
use integration::traffic::Helper;
use integration::wait::{self, Stopwatch};
use integration::world::World;

use super::{agent_of, check_whole, met};

/// Records a second that are wanted; the rate reached is printed.
const RATE: usize = 5_000;
/// Part of the outage after which memory must have become what it stays.
const SETTLED: u32 = 3;
/// Most that it may change from then on, in percent of what it was.
const CHANGE_MAX_PERCENT: u64 = 10;

#[test]
fn memory_is_flat_over_an_outage_at_5000_records_a_second() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let outage = Duration::from_secs(if soak::is_on() { 600 } else { 15 });
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    // Silent connections give a record each a second and cost their makers nothing.
    let connections = RATE.to_string();
    let idle = ["idle", "--listen", "127.0.0.1:0", "--connections", &connections];
    let (_idle, _) = Helper::serve(&world.left, &idle)?;
    let agent = agent_of(&world, &[&collector], &["--active-timeout", "1"])?;
    let traffic = Background::short(&world, &["--concurrent", "4", "--pause-us", "10000"])?;
    wait::until(super::ARRIVED_WITHIN, "a collector at work", || {
        Ok((collector.account()?.records.len() > RATE).then_some(()))
    })?;
    collector.close()?;
    let (watch, before) = (Stopwatch::start(), agent.lines());
    let (mut least, mut most, mut at_first) = (u64::MAX, 0, 0);
    while watch.elapsed() < outage {
        wait::throughout(Duration::from_millis(250), "outage", || true)?;
        let octets = agent.resident_octets()?;
        if watch.elapsed() < outage / SETTLED {
            at_first = octets;
        } else {
            (least, most) = (least.min(octets), most.max(octets));
        }
    }
    let rate = (agent.lines() - before) as f64 / watch.elapsed().as_secs_f64();
    println!(
        "{rate:.0} records/s for {} s: resident {at_first} octets at first, then {least} to {most}",
        outage.as_secs()
    );
    ensure!(
        (most - least) * 100 <= at_first * CHANGE_MAX_PERCENT
            && most * 100 <= at_first * (100 + CHANGE_MAX_PERCENT),
        "memory is not flat"
    );
    collector.come_back()?;
    traffic.stop()?;
    let made = agent.records()?;
    super::wait_handled(&mut collector, &made)?;
    check_whole(&agent.interrupt()?, &mut collector)
}
