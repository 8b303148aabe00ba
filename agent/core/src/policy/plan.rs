//! The steps from what is in force to what is wanted. Pure: the same question has the same answer.
//!
//! Order of the steps: what goes away first, and of that the source before its sinks, so that a collector that stops has
//! the last records of the flows that the detaching ended; then what comes, the sinks before their source, so that no
//! record finds nobody to take it. What both states share has no step.
//! Invariants: the plan of a state that is in force is empty; a step may be executed twice; a plan that broke off
//! anywhere is made again and leads to the same state. Source: house style 2.4.

use std::collections::BTreeMap;

use flowtilla_proto::collector::Collector;
use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::policy::{Buffer, COLLECTORS_MAX, CommandLine, Containers, Limits, Mode, Policy};

use super::{CapturePlan, ExportTerms, Exporting, Filtering, InForce, Metering, Wanted};
use crate::flow::record::CollectorSlot;

/// One thing that the agent is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Takes every program out of the kernel; the table ends its flows.
    DetachCapture,
    /// Stops feeding a collector, which goes on from its cursor in a later step.
    StopCollector(CollectorName),
    /// Stops feeding a collector for good: its cursor goes, and what waits for it with it.
    ForgetCollector(CollectorName),
    /// Sets how flows are cut.
    UpdateMetering(Metering),
    /// Sets how much of command lines leaves the host.
    UpdateNaming(CommandLine),
    /// Sets who is asked for the names of containers.
    UpdateContainers(Containers),
    /// Sets which flows are kept.
    UpdateFilter(Box<Filtering>),
    /// Sets what the agent may cost.
    UpdateLimits(Limits),
    /// Sets what may wait on disk.
    UpdateBuffer(Buffer),
    /// Begins to feed a collector.
    StartCollector(Box<Exporting>),
    /// Puts the programs into the kernel. Nothing is attached before this step.
    AttachCapture(CapturePlan),
}

/// The steps that lead from `in_force` to `wanted`; none when that is so already.
///
/// Metering, naming, containers, filter and limits have no step when nothing is wanted: without a source they do nothing. Filter and
/// limits have none either before a policy says something about them: an agent begins with every flow kept.
#[must_use]
pub fn plan(in_force: &InForce, wanted: &Wanted) -> Vec<Step> {
    let (removed, started) = plan_collectors(in_force, wanted);
    let captured = wanted.policy.as_ref().filter(|_| !wanted.drained);
    let capture = captured.map(capture_of);
    let changed = in_force.capture != capture;

    let mut steps = Vec::new();
    if changed && in_force.capture.is_some() {
        steps.push(Step::DetachCapture);
    }
    steps.extend(removed);
    if let Some(policy) = &wanted.policy {
        let metering = metering_of(policy);
        if in_force.metering != Some(metering) {
            steps.push(Step::UpdateMetering(metering));
        }
        let naming = policy.enrich.command_line;
        if in_force.naming != Some(naming) {
            steps.push(Step::UpdateNaming(naming));
        }
        let containers = &policy.enrich.containers;
        if in_force.containers() != Some(containers) {
            steps.push(Step::UpdateContainers(containers.clone()));
        }
        let filtering = filtering_of(policy);
        if in_force.filtering != filtering {
            steps.push(Step::UpdateFilter(Box::new(filtering)));
        }
        if in_force.limits != policy.limits {
            steps.push(Step::UpdateLimits(policy.limits));
        }
        if in_force.buffer != Some(policy.buffer) {
            steps.push(Step::UpdateBuffer(policy.buffer));
        }
    }
    steps.extend(started);
    if let Some(capture) = capture.filter(|_| changed) {
        steps.push(Step::AttachCapture(capture));
    }
    steps
}

/// Streams that stop, and those that start. One that changes does both, and keeps its slot and its cursor.
fn plan_collectors(in_force: &InForce, wanted: &Wanted) -> (Vec<Step>, Vec<Step>) {
    let asked = streams_of(wanted);
    let kept = |held: &Exporting| {
        asked
            .get(&held.name)
            .is_some_and(|(collectors, terms)| (collectors, terms) == (&held.collectors, &held.terms))
    };
    let removed = in_force
        .collectors()
        .filter(|held| !kept(held))
        .map(|held| match asked.contains_key(&held.name) {
            true => Step::StopCollector(held.name.clone()),
            false => Step::ForgetCollector(held.name.clone()),
        })
        .collect();

    let mut free = free_slots(in_force);
    let mut started = Vec::new();
    for (name, (collectors, terms)) in &asked {
        let held = in_force.collectors.get(name);
        if held.is_some_and(kept) {
            continue;
        }
        let slot = held.map(|held| held.slot).or_else(|| free.next());
        started.push(Step::StartCollector(Box::new(Exporting {
            name: name.clone(),
            slot: slot.expect("twice as many slots as collectors: those in force and those wanted"),
            collectors: collectors.clone(),
            terms: *terms,
        })));
    }
    (removed, started)
}

/// Who is to be fed by which name: each collector, or all of them as one.
fn streams_of(wanted: &Wanted) -> BTreeMap<CollectorName, (Vec<Collector>, ExportTerms)> {
    let Some(policy) = &wanted.policy else {
        return BTreeMap::new();
    };
    let loopback = policy.export.loopback;
    match policy.export.mode {
        Mode::Mirror => {
            let terms = ExportTerms {
                loopback,
                failover: None,
            };
            let each = |collector: &Collector| (collector.name.clone(), (vec![collector.clone()], terms));
            wanted.collectors.iter().map(each).collect()
        }
        Mode::Failover(failover) => {
            let terms = ExportTerms {
                loopback,
                failover: Some(failover),
            };
            BTreeMap::from([(CollectorName::failover(), (wanted.collectors.clone(), terms))])
        }
    }
}

/// Slots for collectors that come, the lowest first. Those of collectors that go are not among them: records that wait
/// elsewhere may still say that they are held from these.
fn free_slots(in_force: &InForce) -> impl Iterator<Item = CollectorSlot> + use<> {
    let taken = in_force.slots();
    (0..SLOTS)
        .map(CollectorSlot)
        .filter(move |slot| !taken.contains(slot))
}

/// Slots in use at most: collectors in force, and as many others that come in the same plan.
const SLOTS: u8 = 2 * COLLECTORS_MAX as u8;
const _: () = assert!(2 * COLLECTORS_MAX <= 64, "a CollectorSet has 64 places");

fn capture_of(policy: &Policy) -> CapturePlan {
    CapturePlan {
        tcp: policy.capture.tcp,
        udp: policy.capture.udp,
        scopes: policy.capture.scopes.clone(),
        max_flows: u32::try_from(policy.capture.max_flows).unwrap_or(u32::MAX),
    }
}

fn filtering_of(policy: &Policy) -> Filtering {
    Filtering {
        include: policy.capture.include.clone(),
        exclude: policy.capture.exclude.clone(),
        sampling: policy.capture.sampling,
    }
}

fn metering_of(policy: &Policy) -> Metering {
    Metering {
        active_timeout: policy.capture.active_timeout,
        idle_timeout: policy.capture.idle_timeout,
        max_flows: policy.capture.max_flows,
    }
}

#[cfg(test)]
mod tests;
