//! Promise: whatever befalls collector, agent, cable, disk or clock, no record is lost that was synced, and none is lost
//! without a word.
//!
//! The collector is a process of its own that says what it handled, record by record; the agent says what it made. Full
//! counts and times are those of the soak switch, a tenth otherwise.

#[path = "faults/agent.rs"]
mod agent;
#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/collector.rs"]
mod collector;
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/memory.rs"]
mod memory;
#[path = "faults/real.rs"]
mod real;
#[path = "faults/several.rs"]
mod several;

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flowtilla_proto::collector::WINDOW_OCTETS_DEFAULT;
use integration::collector::apart::Apart;
use integration::collector::handled::{Account, Identity};
use integration::need::{self, Need};
use integration::product::record::Record;
use integration::product::{Agent, Ended};
use integration::scene::{Background, Told};
use integration::soak;
use integration::wait::{self, Stopwatch};
use integration::world::World;

/// Longest time for a backlog to reach the application, on a busy machine.
const ARRIVED_WITHIN: Duration = Duration::from_secs(300);
/// Messages that may wait, read by nobody, in a collector that is killed: its queue of 1,000 and 100 to spare.
const UNREAD_MESSAGES_MAX: u64 = 1_100;
/// Least octets of a record on the wire.
const RECORD_OCTETS_MIN: u64 = 100;
/// Long connections.
const LONG: usize = 4;
/// Connections, and lines of the agent, that show that traffic goes on.
const MORE: usize = 20;
const NFT: Need = Need::Program("nft", "nftables");

/// Short connections, some hundred a second, and a few long ones.
struct Traffic {
    short: Background,
    long: Background,
}

impl Traffic {
    fn start(world: &World) -> Result<Self> {
        let short = [
            "--concurrent",
            "4",
            "--pause-us",
            "10000",
            "--request",
            "100",
            "--reply",
            "300",
        ];
        Ok(Self {
            short: Background::short(world, &short)?,
            long: Background::long(world, &["--connections", &LONG.to_string()])?,
        })
    }

    /// Waits until more connections have come and gone, and the agent has told of them.
    fn goes_on(&self, agent: &Agent) -> Result<()> {
        let before = (self.short.connections(), agent.lines());
        wait::until_true(wait::PATIENCE, "more traffic", || {
            self.short.connections() >= before.0 + MORE && agent.lines() >= before.1 + MORE
        })
    }

    /// Waits until the application has handled a record of each long connection.
    fn long_ones_are_handled(&self, agent: &Agent, collector: &mut Apart) -> Result<()> {
        wait::until(wait::PATIENCE, "records of the long connections", || {
            let records = agent.records()?;
            let of_long = records
                .iter()
                .filter(|record| record.responder.port == self.long.port());
            let ids: HashSet<Identity> = of_long
                .map(|record| Identity::try_from(&record.id))
                .collect::<Result<_>>()?;
            let handled = &collector.account()?.records;
            let flows: HashSet<_> = ids
                .iter()
                .filter(|id| handled.contains_key(id))
                .map(Identity::flow)
                .collect();
            Ok((flows.len() == LONG).then_some(()))
        })
    }

    /// Sees that it goes on for `span`.
    fn lasts(&self, agent: &Agent, span: Duration) -> Result<()> {
        let watch = Stopwatch::start();
        while watch.elapsed() < span {
            self.goes_on(agent)?;
        }
        Ok(())
    }

    fn stop(self) -> Result<Ends> {
        Ok(Ends {
            short: self.short.stop()?,
            long: self.long.stop()?,
        })
    }
}

/// Both kinds of connections, as their ends told them.
struct Ends {
    short: Told,
    long: Told,
}

impl Ends {
    /// Waits until the agent has told the end of all of them.
    fn are_told(&self, agent: &Agent) -> Result<()> {
        for told in [&self.short, &self.long] {
            agent.wait_for_ended(integration::scene::TOLD_WITHIN, told.clients.len(), |flow| {
                told.owns(flow)
            })?;
        }
        Ok(())
    }
}

fn met() -> bool {
    need::met(&need::WORLD) && need::met(&integration::collector::NEEDS)
}

/// `full` with the soak switch, a tenth of it otherwise.
fn span(full: Duration) -> Duration {
    if soak::is_on() { full } else { full / 10 }
}

/// Starts an agent that sees the left host and tells record identities.
fn agent_of(world: &World, collectors: &[&Apart], flags: &[&str]) -> Result<Agent> {
    let mut all = vec!["--record-ids"];
    for collector in collectors {
        all.extend(["--ntopng", collector.endpoint()]);
    }
    all.extend(flags);
    Agent::watching(&world.left, &all)
}

/// Waits until the application has handled these records.
fn wait_handled(collector: &mut Apart, made: &[Record]) -> Result<()> {
    let ids = made.iter().map(|record| Identity::try_from(&record.id));
    let mut missing = ids.collect::<Result<Vec<_>>>()?;
    let waited = wait::until(ARRIVED_WITHIN, "records at the application", || {
        let handled = &collector.account()?.records;
        missing.retain(|id| !handled.contains_key(id));
        Ok(missing.is_empty().then_some(()))
    });
    waited.with_context(|| {
        format!(
            "{} of {} records are missing, such as {:?}",
            missing.len(),
            made.len(),
            missing.first()
        )
    })
}

/// Ends an agent once the application has handled all that it told, and checks every promise at the end.
fn end_whole(agent: Agent, collector: &mut Apart) -> Result<Ended> {
    wait_handled(collector, &agent.records()?)?;
    let ended = agent.interrupt()?;
    check_whole(&ended, collector)?;
    Ok(ended)
}

/// Every record made was handled, once or more often, as it was made; both laws hold and agree with that.
fn check_whole(ended: &Ended, collector: &mut Apart) -> Result<()> {
    ended.check_laws()?;
    wait_handled(collector, &ended.records)?;
    let account = collector.account()?;
    account.check(&ended.records)?;
    let (made, taken, handled) = (
        ended.law_2("made")?,
        ended.law_2("taken")?,
        account.records.len() as u64,
    );
    ensure!(
        made == taken && made == handled,
        "{handled} handled, {:?}",
        ended.words
    );
    let shown = ended.records.len() as u64 + ended.lost("ViewOverflow");
    ensure!(made == shown, "{shown} shown, {:?}", ended.words);
    ensure!(account.sources.len() == 1, "{:?}", account.sources);
    println!("{}", figures(account));
    Ok(())
}

/// Prints what came again, and checks it against the bound of `restarts` ends of the collector.
fn check_duplicates(account: &Account, restarts: u64) -> Result<()> {
    let window_records = WINDOW_OCTETS_DEFAULT / RECORD_OCTETS_MIN;
    for (records, messages) in account.duplicates.iter().zip(&account.duplicate_messages) {
        let bound = UNREAD_MESSAGES_MAX * account.per_message_max as u64 + window_records;
        ensure!(
            *records <= bound,
            "{records} records came again in {messages} messages, {bound} are the bound"
        );
    }
    let with: u64 = account.duplicates.iter().filter(|&&records| records > 0).count() as u64;
    ensure!(
        with <= restarts,
        "{with} incarnations saw records again after {restarts} restarts"
    );
    Ok(())
}

fn figures(account: &Account) -> String {
    format!(
        "{} records in {} messages of at most {}; came again by incarnation: {:?} records in {:?} messages",
        account.records.len(),
        account.messages,
        account.per_message_max,
        account.duplicates,
        account.duplicate_messages
    )
}
