//! The wall clock is set while the agent runs: that of its process alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::need;
use integration::product::record::{Record, seconds};
use integration::skew::{self, Skewed};
use integration::world::World;

use super::{Traffic, agent_of, end_whole, met, wait_handled};

const HOUR_S: i64 = 3_600;
/// Most that a record's time may be off, in seconds: how long a record waits for its names and its turn, and some.
const OFF_MAX_S: i64 = 15;

#[test]
fn set_forward_and_back_by_an_hour_leaves_order_and_times_right() -> Result<()> {
    if let Some(reason) = skew::lacks() {
        need::skip(&reason);
        return Ok(());
    }
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&collector], &["--active-timeout", "1"])?;
    let clock = Skewed::new(agent.pid())?;
    let traffic = Traffic::start(&world)?;
    let mut eras = Vec::new();
    for ahead in [0, HOUR_S, 0, -HOUR_S, 0] {
        clock.set(ahead)?;
        traffic.goes_on(&agent)?;
        // What was made before the clock was set may still be told; what begins from here on is of this era.
        wait_handled(&mut collector, &agent.records()?)?;
        let from = agent.lines();
        let begun = now_s();
        traffic.goes_on(&agent)?;
        wait_handled(&mut collector, &agent.records()?)?;
        eras.push((ahead, begun, from, agent.lines()));
    }
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    // Octets, times and order at the collector are those of the lines.
    let ended = end_whole(agent, &mut collector)?;
    for (ahead, begun, from, to) in eras {
        let lines = ended.records.get(from..to).context("lines do not go away")?;
        ensure!(!lines.is_empty(), "no record while the clock was {ahead} s ahead");
        for record in lines {
            let off = i64::try_from(seconds(&record.end)?)? - begun - ahead;
            ensure!(
                off.abs() <= OFF_MAX_S,
                "{off} s off while {ahead} s ahead: {record:?}"
            );
        }
    }
    time_runs_forward(&ended.records)
}

/// Within a record always; from part to part of a flow in the order of the parts.
fn time_runs_forward(records: &[Record]) -> Result<()> {
    let mut parts: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    for record in records {
        ensure!(
            record.start <= record.delta_start && record.delta_start <= record.end,
            "{record:?}"
        );
        let last = parts.entry((record.id.cookie, record.id.stream)).or_default();
        ensure!(
            record.id.part == *last + 1,
            "part {} after {last}",
            record.id.part
        );
        *last = record.id.part;
    }
    Ok(())
}

/// Seconds of the machine's own clock.
fn now_s() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}
