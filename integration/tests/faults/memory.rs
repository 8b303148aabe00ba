//! Memory over a long outage.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::product::Agent;
use integration::soak;
use integration::traffic::Helper;
use integration::wait::{self, Stopwatch};
use integration::world::World;

use super::{check_duplicates, figures, met};

/// Records a second that are wanted: so many connections send an octet a second. The rate reached is printed.
const RATE: usize = 5_000;
/// Part of the outage after which memory must be what it stays.
const SETTLED: u32 = 3;
/// Most that it may change from then on, in percent of what it was.
const CHANGE_MAX_PERCENT: u64 = 10;
/// Time between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Silence after which nothing more is expected.
const QUIET: Duration = Duration::from_secs(2);
/// Longest time for the backlog to drain: at full counts 3 million records, at 20,000 a second less what is fresh.
const DRAINED_WITHIN: Duration = Duration::from_secs(1_200);

#[test]
fn memory_is_flat_over_an_outage_at_5000_records_a_second() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let outage = Duration::from_secs(if soak::is_on() { 600 } else { 15 });
    let world = World::build()?;
    let mut collector = Apart::start(Likeness::default())?;
    let scope = format!("netns={}", world.left.path().display());
    let flags = ["--record-ids", "--active-timeout", "1", "--scope", &scope];
    let (watch, mut agent) = (
        Stopwatch::start(),
        Agent::start_unread(&[&flags[..], &["--ntopng", collector.endpoint()]].concat())?,
    );
    let connections = RATE.to_string();
    let chat = ["--connections", &connections, "--chat-every-ms", "1000"];
    let (chat, _) = Helper::serve(
        &world.left,
        &[&["idle", "--listen", "127.0.0.1:0"], &chat[..]].concat(),
    )?;
    wait::until(super::ARRIVED_WITHIN, "a collector at work", || {
        Ok((collector.account()?.records.len() > 2 * RATE).then_some(()))
    })?;
    collector.close()?;
    let away = Stopwatch::start();
    let (mut at_first, mut least, mut most) = (0, u64::MAX, 0);
    while away.elapsed() < outage {
        wait::throughout(LOOK_EVERY, "agent without its collector", || {
            agent.is_running().unwrap_or(false)
        })?;
        let octets = agent.resident_octets()?;
        if away.elapsed() < outage / SETTLED {
            at_first = octets;
        } else {
            (least, most) = (least.min(octets), most.max(octets));
        }
    }
    let elapsed = watch.elapsed();
    chat.finish(wait::PATIENCE)?;
    let mut handled = collector.account()?.records.len();
    collector.come_back()?;
    wait::until(super::ARRIVED_WITHIN, "the agent's return", || {
        Ok((collector.account()?.records.len() > handled).then_some(()))
    })?;
    // Nothing is made any more but what the ends of the connections bring.
    wait::until(DRAINED_WITHIN, "the backlog's end", || {
        handled = collector.account()?.records.len();
        let quiet = wait::throughout(QUIET, "no more records", || {
            collector
                .account()
                .is_ok_and(|account| account.records.len() == handled)
        });
        Ok(quiet.ok())
    })?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let (made, taken) = (ended.law_2("made")?, ended.law_2("taken")?);
    let wanted = usize::try_from(made)?;
    wait::until(super::ARRIVED_WITHIN, "the last records", || {
        Ok((collector.account()?.records.len() >= wanted).then_some(()))
    })?;
    let account = collector.account()?;
    println!(
        "{:.0} records/s; away for {} s: resident {at_first} octets at first, then {least} to {most}; {}",
        made as f64 / elapsed.as_secs_f64(),
        outage.as_secs(),
        figures(account)
    );
    account.check_itself()?;
    ensure!(
        made == taken && wanted == account.records.len(),
        "{:?}",
        ended.words
    );
    check_duplicates(account, 1)?;
    let bound = at_first * CHANGE_MAX_PERCENT / 100;
    ensure!(
        least + bound >= at_first && most <= at_first + bound,
        "memory is not flat"
    );
    Ok(())
}
