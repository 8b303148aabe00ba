//! Two collectors, of which one is away.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::collector::handled::Identity;
use integration::soak;
use integration::wait;
use integration::world::World;

use super::{Traffic, agent_of, met, span, wait_handled};

/// The second takes over after 30 s, the first gets it back after 60 s, by default; and some.
const CHANGE_OVER_WITHIN: Duration = Duration::from_secs(120);

#[test]
fn mirrored_collector_is_not_held_back_by_one_that_is_away() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut first = Apart::start(Likeness::default())?;
    let mut second = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&first, &second], &[])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut first, &agent.records()?)?;
    first.close()?;
    let before = first.account()?.records.len();
    traffic.lasts(&agent, span(Duration::from_secs(60)))?;
    // All that was made until now is at the second, while the first is away.
    wait_handled(&mut second, &agent.records()?)?;
    ensure!(first.account()?.records.len() == before, "it is away");
    first.come_back()?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let made = agent.records()?;
    wait_handled(&mut first, &made)?;
    wait_handled(&mut second, &made)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    for collector in [&mut first, &mut second] {
        let address = collector
            .endpoint()
            .trim_start_matches("tcp://")
            .replace(':', "-");
        let name = &format!("ntopng-{address}");
        wait_handled(collector, &ended.records)?;
        let account = collector.account()?;
        account.check(&ended.records)?;
        println!("{name}: {}", super::figures(account));
        let (made, taken) = (ended.law_2_of(name, "made")?, ended.law_2_of(name, "taken")?);
        ensure!(
            made == taken && made == account.records.len() as u64,
            "{:?}",
            ended.words
        );
    }
    ensure!(second.account()?.duplicates == [0], "nothing befell the second");
    super::check_duplicates(first.account()?, 1)
}

#[test]
fn failover_goes_to_the_second_and_back_with_nothing_lost() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let mut first = Apart::start(Likeness::default())?;
    let mut second = Apart::start(Likeness::default())?;
    let agent = agent_of(&world, &[&first, &second], &["--failover"])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut first, &agent.records()?)?;
    ensure!(second.account()?.records.is_empty(), "the second stands by");
    first.kill()?;
    await_fresh(&mut second, "the second takes over")?;
    first.come_back()?;
    // The way back takes a minute: only at full counts.
    if soak::is_on() {
        let before = first.account()?.records.len();
        wait::until(CHANGE_OVER_WITHIN, "the first gets it back", || {
            Ok((first.account()?.records.len() > before).then_some(()))
        })?;
        traffic.goes_on(&agent)?;
    }
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let made = agent.records()?;
    let ids = made.iter().map(|record| Identity::try_from(&record.id));
    let mut missing = ids.collect::<Result<Vec<_>>>()?;
    let mut both = |missing: &mut Vec<Identity>| -> Result<bool> {
        for collector in [&mut first, &mut second] {
            let handled = &collector.account()?.records;
            missing.retain(|id| !handled.contains_key(id));
        }
        Ok(missing.is_empty())
    };
    let all = || Ok(both(&mut missing)?.then_some(()));
    wait::until(super::ARRIVED_WITHIN, "records at either collector", all)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    let last = ended.records.iter().map(|record| Identity::try_from(&record.id));
    let mut missing = last.collect::<Result<Vec<_>>>()?;
    wait::until(super::ARRIVED_WITHIN, "the last records", || {
        Ok(both(&mut missing)?.then_some(()))
    })?;
    let (first, second) = (first.account()?, second.account()?);
    first.check_itself()?;
    second.check_itself()?;
    let union: HashSet<_> = first.records.keys().chain(second.records.keys()).collect();
    let twice = first.records.len() + second.records.len() - union.len();
    println!(
        "{} records, {twice} of them at both; {:?}",
        union.len(),
        ended.words
    );
    ensure!(
        union.len() as u64 == ended.law_2("made")?,
        "{} in all, {:?}",
        union.len(),
        ended.words
    );
    Ok(())
}

fn await_fresh(collector: &mut Apart, what: &str) -> Result<()> {
    wait::until(CHANGE_OVER_WITHIN, what, || {
        Ok((!collector.account()?.records.is_empty()).then_some(()))
    })
}
