//! What befalls the agent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::collector::handled::Identity;
use integration::product::record::Record;
use integration::product::{self, Agent, Ended};
use integration::scene::TOLD_WITHIN;
use integration::soak;
use integration::traffic::Flow;
use integration::wait::{self, Stopwatch};
use integration::world::World;

use super::{Traffic, agent_of, check_whole, met, wait_handled};

/// Shortest and longest life of an agent, in ms, from the moment it says that it is ready.
const LIFE_MS: std::ops::Range<u64> = 200..3_000;
/// What is shown is on disk after this: a turn of 200 ms, a sync interval of 500 ms, and a busy machine.
const SYNCED_WITHIN: Duration = Duration::from_millis(1_500);
/// Environment variable with a seed to repeat.
const SEED_VARIABLE: &str = "FLOWTILLA_SEED";

#[test]
fn killed_at_random_moments_loses_only_what_was_not_synced_and_counts_nothing_twice() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let mut random = Random::seeded()?;
    let world = World::build()?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let mut collector = Apart::start(Likeness::default())?;
    let mut agent = start(&world, &collector, &state)?;
    let traffic = Traffic::start(&world)?;
    // Of a connection that no agent has told of in a synced record, the next one knows nothing: to it the connection is
    // older than any agent, and counts from there. That is a loss that the docs name, and not the subject here.
    traffic.long_ones_are_handled(&agent, &mut collector)?;
    let (mut shown, mut synced): (Vec<Record>, Vec<Record>) = (Vec::new(), Vec::new());
    let cycles = soak::count(100);
    for _ in 0..cycles {
        let life = Duration::from_millis(random.within(&LIFE_MS));
        let (ended, on_disk) = kill_after(agent, life)?;
        let records = &ended.records;
        synced.extend_from_slice(&records[..on_disk.min(records.len())]);
        shown.extend_from_slice(records);
        agent = start(&world, &collector, &state)?;
    }
    traffic.goes_on(&agent)?;
    let ends = traffic.stop()?;
    wait::until(TOLD_WITHIN, "end of the long connections", || {
        let records = agent.records()?;
        let all = ends
            .long
            .clients
            .iter()
            .all(|flow| of(&records, flow).any(|record| record.ended));
        Ok(all.then_some(()))
    })?;
    wait_handled(&mut collector, &agent.records()?)?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    wait_handled(&mut collector, &ended.records)?;
    let account = collector.account()?;
    account.check_itself()?;
    account.check(&ended.records)?;
    let missing = account.lacks(&synced)?;
    ensure!(
        missing == 0,
        "{missing} of {} records were synced and are missing",
        synced.len()
    );
    println!(
        "{cycles} kills: {} records shown by killed agents, {} of them never handled; {}",
        shown.len(),
        account.lacks(&shown)?,
        super::figures(account)
    );
    // The ledger over all agents: what was made on disk was handled, each once or more often, and nothing else.
    let (made, taken) = (ended.law_2("made")?, ended.law_2("taken")?);
    ensure!(
        made == taken && made == account.records.len() as u64,
        "{:?}",
        ended.words
    );
    shown.extend(ended.records);
    for flow in &ends.long.clients {
        let last = of(&shown, flow)
            .last()
            .with_context(|| format!("no record of {flow:?}"))?;
        let payload = (last.total.forward.payload, last.total.backward.payload);
        ensure!(
            payload == (flow.sent, flow.received),
            "{payload:?} in {last:?}, the truth is {flow:?}"
        );
        let total = (last.total.forward.octets, last.total.backward.octets);
        let cookie = Identity::try_from(&last.id)?.cookie;
        let of_socket = account
            .records
            .values()
            .filter(|record| record.id.cookie == cookie);
        let sum = of_socket.fold((0, 0), |sum, record| {
            (sum.0 + record.forward, sum.1 + record.backward)
        });
        ensure!(
            sum == total,
            "{sum:?} octets at the collector, {total:?} are whole: {flow:?}"
        );
    }
    println!("{}", product::loss(&state)?);
    Ok(())
}

#[test]
fn stopped_while_the_collector_is_away_delivers_after_its_next_start() -> Result<()> {
    if !met() {
        return Ok(());
    }
    let world = World::build()?;
    let folder = tempfile::tempdir()?;
    let mut collector = Apart::start(Likeness::default())?;
    let agent = start(&world, &collector, folder.path())?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    collector.close()?;
    traffic.goes_on(&agent)?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let first = agent.interrupt()?;
    first.check_laws()?;
    let waiting = first.law_2("waiting")?;
    ensure!(
        waiting > 0 && first.lost("ShutdownGrace") == 0,
        "{:?}",
        first.words
    );
    collector.come_back()?;
    let agent = start(&world, &collector, folder.path())?;
    wait_handled(&mut collector, &first.records)?;
    let mut second = agent.interrupt()?;
    // Its farewell counts from the first start on.
    second.records.splice(0..0, first.records);
    check_whole(&second, &mut collector)?;
    ensure!(second.law_2("waiting")? == 0, "{:?}", second.words);
    println!("{waiting} records waited on disk");
    super::check_duplicates(collector.account()?, 1)?;
    println!("{}", product::loss(folder.path())?);
    Ok(())
}

fn start(world: &World, collector: &Apart, state: &Path) -> Result<Agent> {
    let state = state.to_str().context("a folder with a plain name")?;
    agent_of(world, &[collector], &["--state", state])
}

/// Kills it after `life`; with what it told, how many lines of it must have been synced by then.
fn kill_after(mut agent: Agent, life: Duration) -> Result<(Ended, usize)> {
    let watch = Stopwatch::start();
    let mut lines = Vec::new();
    while watch.elapsed() < life {
        lines.push((watch.elapsed(), agent.lines()));
        let on = |agent: &mut Agent| agent.is_running().unwrap_or(false);
        wait::throughout(Duration::from_millis(20), "agent", || on(&mut agent))?;
    }
    let at = watch.elapsed();
    let ended = agent.kill()?;
    let synced = lines.iter().rev().find(|(when, _)| *when + SYNCED_WITHIN < at);
    Ok((ended, synced.map_or(0, |&(_, count)| count)))
}

/// Records of a connection, by its ports.
fn of<'a>(records: &'a [Record], flow: &Flow) -> impl Iterator<Item = &'a Record> {
    let (from, to) = (flow.local.port(), flow.peer);
    records
        .iter()
        .filter(move |record| record.initiator.port == from && record.responder.endpoint() == to)
}

/// Numbers that a printed seed repeats. Source: Marsaglia, "Xorshift RNGs".
struct Random(u64);

impl Random {
    fn seeded() -> Result<Self> {
        let seed = match std::env::var(SEED_VARIABLE) {
            Ok(text) => text.parse().with_context(|| format!("{SEED_VARIABLE}={text}"))?,
            Err(_) => u64::from(std::process::id()) << 20 | 1,
        };
        println!("{SEED_VARIABLE}={seed}");
        Ok(Self(seed))
    }

    fn within(&mut self, range: &std::ops::Range<u64>) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0 % (range.end - range.start)
    }
}
