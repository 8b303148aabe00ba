//! Promise: what is wanted may change at any time, and takes effect for real: capture, metering, collectors, while flows live.
//!
//! The agent is the library's, in this process; the traffic and the collectors are those of the other suites.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flowtilla_agent::run::{Agent, Options, StartError};
use flowtilla_agent_core::flow::record::{EndReason, FlowRecord};
use flowtilla_agent_core::policy::Wanted;
use flowtilla_agent_core::session::ShortIds;
use flowtilla_proto::policy::{Policy, Scope};
use flowtilla_proto::{collector, ids::SourceId, wire};
use integration::collector::{self as bound, Collector, Setup};
use integration::need;
use integration::scene::{self, TOLD_WITHIN, Told};
use integration::wait;
use integration::world::{Family, Place, World};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Records that wait for the test: all of any scene here.
const VIEW_RECORDS_MAX: usize = 65_536;

/// An agent that watches the left host, and the runtime that it lives in.
struct Live {
    runtime: Runtime,
    agent: Agent,
    records: mpsc::Receiver<Arc<FlowRecord>>,
}

impl Live {
    fn start(world: &World, wanted: Wanted) -> Result<Self> {
        let runtime = Runtime::new()?;
        let options = Options {
            wanted,
            scopes: vec![scope(&world.left.path().display().to_string())?],
            source_id: None,
            short_ids: ShortIds::Own,
            view_records_max: VIEW_RECORDS_MAX,
            state: None,
        };
        let (agent, records) = runtime.block_on(Agent::start(options))?;
        Ok(Self {
            runtime,
            agent,
            records,
        })
    }

    fn apply(&mut self, wanted: &Wanted) -> Result<(), StartError> {
        self.runtime.block_on(self.agent.apply(wanted))
    }

    fn attached(&self) -> bool {
        self.agent.attached().borrow().is_some()
    }

    /// Takes records until those of all the scene's clients have come.
    fn expect_flows(&mut self, told: &Told) -> Result<Vec<Arc<FlowRecord>>> {
        let mut seen = Vec::new();
        wait::until(TOLD_WITHIN, "records of every flow", || {
            while let Ok(record) = self.records.try_recv() {
                seen.push(record);
            }
            let missing = told
                .clients
                .iter()
                .filter(|client| !seen.iter().any(|record| is_of(record, client.local.port())));
            Ok((missing.count() == 0).then_some(()))
        })?;
        Ok(seen)
    }

    fn drain(&mut self) -> usize {
        std::iter::from_fn(|| self.records.try_recv().ok()).count()
    }

    fn stop(self) -> Result<()> {
        let status = self.runtime.block_on(self.agent.stop());
        ensure!(status.kernel_law.holds(), "{:?}", status.kernel_law);
        for collector in &status.collectors {
            ensure!(collector.law.missing() == 0, "{collector:?}");
        }
        Ok(())
    }
}

fn is_of(record: &FlowRecord, port: u16) -> bool {
    [record.initiator.endpoint.port, record.responder.endpoint.port].contains(&port)
}

fn scope(path: &str) -> Result<Scope> {
    let policy = wanted_policy(wire::Capture {
        scopes: vec![netns(path)],
        ..wire::Capture::default()
    })?;
    policy.capture.scopes.into_iter().next().context("a scope")
}

fn netns(path: &str) -> wire::Scope {
    wire::Scope {
        part: Some(wire::scope::Part::Netns(path.to_owned())),
    }
}

fn wanted_policy(capture: wire::Capture) -> Result<Policy> {
    Ok(Policy::try_from(wire::Policy {
        capture: Some(capture),
        ..wire::Policy::default()
    })?)
}

/// What is wanted: this capture, and these collectors by name and endpoint.
fn wanted(capture: wire::Capture, collectors: &[(&str, &Collector)]) -> Result<Wanted> {
    let policy = wire::Policy {
        capture: Some(capture),
        export: Some(wire::Export {
            collectors: collectors.iter().map(|&(name, _)| name.to_owned()).collect(),
            ..wire::Export::default()
        }),
        ..wire::Policy::default()
    };
    let made = collectors.iter().map(|&(name, collector)| {
        collector::Collector::try_from(wire::Collector {
            name: name.to_owned(),
            endpoint: collector.endpoint().to_owned(),
            ..wire::Collector::default()
        })
    });
    Ok(Wanted::new(
        Policy::try_from(policy)?,
        made.collect::<Result<_, _>>()?,
    )?)
}

fn everything() -> wire::Capture {
    wire::Capture::default()
}

fn connect(world: &World, count: &str) -> Result<Told> {
    scene::tcp(world, Place::Wire, Family::V4, "thread", &["--count", count])
}

#[test]
fn capture_goes_on_off_and_on_again_as_it_is_wanted() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let mut live = Live::start(&world, Wanted::nothing())?;
    ensure!(!live.attached(), "nothing is wanted, and something is attached");
    connect(&world, "5")?;
    live.apply(&wanted(everything(), &[])?)?;
    ensure!(live.attached());
    let told = connect(&world, "20")?;
    live.expect_flows(&told)?;
    live.apply(&Wanted::nothing())?;
    ensure!(!live.attached(), "nothing is wanted, and something is attached");
    live.drain();
    connect(&world, "20")?;
    wait::throughout(Duration::from_secs(2), "no record is made", || live.drain() == 0)?;
    live.apply(&wanted(everything(), &[])?)?;
    let told = connect(&world, "20")?;
    live.expect_flows(&told)?;
    live.stop()
}

#[test]
fn the_only_collector_is_changed_for_another_while_flows_are_captured() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&bound::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let (one, other) = (
        Collector::bind(Setup::default())?,
        Collector::bind(Setup::default())?,
    );
    let mut live = Live::start(&world, wanted(everything(), &[("one", &one)])?)?;
    let first = connect(&world, "20")?;
    arrived(&one, &first)?;
    live.apply(&wanted(everything(), &[("other", &other)])?)?;
    ensure!(live.attached(), "a change of collector is none of capture");
    let (before, _) = one.messages()?;
    let second = connect(&world, "20")?;
    arrived(&other, &second)?;
    let (after, _) = one.messages()?;
    ensure!(after.len() == before.len(), "the former collector is fed on");
    // And back, and both: each goes on with what comes from there on.
    live.apply(&wanted(everything(), &[("one", &one), ("other", &other)])?)?;
    let third = connect(&world, "20")?;
    arrived(&one, &third)?;
    arrived(&other, &third)?;
    live.stop()
}

#[test]
fn another_source_id_makes_exporters_anew_and_loses_nothing() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&bound::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let collector = Collector::bind(Setup::default())?;
    let mut live = Live::start(&world, wanted(everything(), &[("one", &collector)])?)?;
    let first = connect(&world, "20")?;
    arrived(&collector, &first)?;
    let id = SourceId::new(4242).context("a number")?;
    live.runtime.block_on(live.agent.use_source_id(id))?;
    let second = connect(&world, "20")?;
    arrived(&collector, &second)?;
    let (_, ids) = collector.messages()?;
    ensure!(
        ids.sources().contains(&4242) && ids.sources().len() == 2,
        "{:?}",
        ids.sources()
    );
    live.stop()
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let mut live = Live::start(&world, wanted(everything(), &[])?)?;
    let cgroup = wire::Scope {
        part: Some(wire::scope::Part::Cgroup("/no/such/cgroup".to_owned())),
    };
    let nowhere = wire::Capture {
        scopes: vec![cgroup],
        ..everything()
    };
    let wider = wire::Capture {
        scopes: vec![netns(&world.right.path().display().to_string())],
        ..everything()
    };
    let Err(StartError::Capture(error)) = live.apply(&wanted(nowhere, &[])?) else {
        bail!("a cgroup that is not there was taken");
    };
    ensure!(error.to_string().contains("part of the host"), "{error}");
    let Err(StartError::Beyond(mistakes)) = live.apply(&wanted(wider, &[])?) else {
        bail!("a policy went beyond the agent's own part of the host");
    };
    ensure!(
        mistakes.to_string().starts_with("capture.scopes[0].netns: "),
        "{mistakes}"
    );
    ensure!(live.attached(), "what was in force is not any more");
    let told = connect(&world, "20")?;
    live.expect_flows(&told)?;
    live.stop()
}

#[test]
fn bounds_and_timeouts_take_effect_on_flows_that_live() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let slow = wire::Capture {
        active_timeout_ms: Some(3_600_000),
        ..everything()
    };
    let mut live = Live::start(&world, wanted(slow, &[])?)?;
    let background = scene::Background::long(&world, &["--connections", "40"])?;
    wait::until_true(TOLD_WITHIN, "40 flows in the table", || {
        live.agent.status().borrow().flows >= 40
    })?;
    wait::until_true(TOLD_WITHIN, "their first records", || live.drain() == 0)?;
    let quick = wire::Capture {
        active_timeout_ms: Some(1_000),
        ..everything()
    };
    live.apply(&wanted(quick, &[])?)?;
    ensure!(live.attached(), "a change of a timeout is none of capture");
    let mut made = 0;
    wait::until_true(TOLD_WITHIN, "records of live flows each second", || {
        made += live.drain();
        made >= 80
    })?;
    let narrow = wire::Capture {
        active_timeout_ms: Some(1_000),
        max_flows: Some(16),
        ..everything()
    };
    live.apply(&wanted(narrow, &[])?)?;
    let mut ended = 0;
    wait::until_true(TOLD_WITHIN, "flows beyond the bound end", || {
        while let Ok(record) = live.records.try_recv() {
            ended += usize::from(record.reason == EndReason::LackOfResources);
        }
        ended >= 24 && live.agent.status().borrow().flows <= 16
    })?;
    background.stop()?;
    live.stop()
}

fn arrived(collector: &Collector, told: &Told) -> Result<()> {
    wait::until(TOLD_WITHIN, "every flow at the collector", || {
        let records = collector.flows()?;
        let all = told
            .clients
            .iter()
            .all(|client| has(&records, client.local.port()));
        Ok(all.then_some(()))
    })
}

/// Whether one of the records has this initiator's port.
fn has(records: &[bound::ndpi::Elements], port: u16) -> bool {
    const PORT_INITIATOR: u32 = 7;
    records
        .iter()
        .any(|record| record.number(PORT_INITIATOR) == Some(u64::from(port)))
}
