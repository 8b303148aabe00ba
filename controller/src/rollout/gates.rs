//! What stops a rollout, and the sentence that says so.
//!
//! A gate compares an agent after its change with what was to be expected: its own last soak before the change, and how
//! the agents that have not changed fared meanwhile, when there are [`PEERS_MIN`] of them. What worsened for them too is
//! not the change's doing: their median excuses, it never accuses. An agent without a past that can be compared (it
//! captured nothing, or is too young) is compared with their present; where they cannot tell either, nothing lost was to be
//! expected, a record was to wait as long as in its first heartbeat, and of the rest nothing is known. Pure.

use std::collections::BTreeMap;

use flowtilla_proto::policy;
use serde::{Deserialize, Serialize};

use super::health::Figures;

/// Least number of agents that have not changed with which others are compared. Source: design section 6.
pub const PEERS_MIN: usize = 5;

/// Most agents that one failure names; of the others it says how many.
pub const AGENTS_NAMED_MAX: usize = 100;

/// How often an agent may start in a soak more than it did before.
///
/// An update of the agent is one start, and a person who looks at it another. Half of it stops at an update with a
/// mistake; double it, and an agent that dies each minute passes.
pub const STARTS_MAX: u64 = 2;

/// How long shares are watched at least before they are judged, in milliseconds, when a soak is longer.
///
/// Attaching costs CPU once. Half of it takes that for the rule; double it, and a broken wave runs on for a minute.
pub const JUDGED_AFTER_MS: u64 = 30_000;

/// Longest reason of an agent that is kept, in octets.
const REASON_OCTETS_MAX: usize = 512;

/// How a rollout goes on, as the policy says it; times in milliseconds, shares in millionths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How long a wave is watched; 0: not at all.
    pub soak_ms: u64,
    /// How long an agent may take to answer.
    pub ack_timeout_ms: u64,
    /// Longest time without a heartbeat.
    pub silence_ms: u64,
    /// How much more may be lost.
    pub drops_ppm: u64,
    /// How far the share of flows with an owner may fall.
    pub coverage_ppm: u64,
    /// How much longer a record may wait.
    pub lag_ms: u64,
    /// How much more CPU.
    pub cpu_ppm: u64,
    /// How much more memory, in octets.
    pub memory_octets: u64,
}

/// What can stop a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Gate {
    /// An agent refused the change.
    Nack,
    /// An agent did not answer.
    Ack,
    /// Nothing is heard of an agent.
    Silence,
    /// An agent is beyond the policy's limits.
    Limits,
    /// An agent starts again and again.
    Starts,
    /// More is lost.
    Drops,
    /// Fewer flows have an owner.
    Coverage,
    /// Records wait longer.
    Lag,
    /// More CPU is taken.
    Cpu,
    /// More memory is taken.
    Memory,
    /// An agent captures nothing that did before.
    Capture,
    /// An operator stopped it.
    Abort,
}

/// One gate that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub gate: Gate,
    /// Agents at fault, the worst first, at most [`AGENTS_NAMED_MAX`].
    pub agents: Vec<String>,
    /// Agents at fault that are not named.
    pub more: u64,
    /// What was measured at the worst agent, in the unit of [`Terms`]; 0 where nothing is measured.
    pub value: u64,
    /// What was to be expected.
    pub baseline: u64,
    /// How far from it an agent may be.
    pub bound: u64,
    /// About the worst agent: one sentence with units.
    pub message: String,
}

/// An agent beyond a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Breach {
    pub(super) gate: Gate,
    pub(super) value: u64,
    pub(super) baseline: u64,
    pub(super) bound: u64,
    /// In the agent's words, or empty.
    pub(super) reason: String,
}

/// How the agents that have not changed fared meanwhile: medians.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peers {
    /// What they worsened by.
    worse: Worse,
    /// How they are; `None`: too few of them capture.
    level: Option<Figures>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Worse {
    drops_ppm: u64,
    coverage_ppm: u64,
    lag_ms: u64,
    cpu_ppm: u64,
    memory_octets: u64,
}

impl From<&policy::Rollout> for Terms {
    fn from(rollout: &policy::Rollout) -> Self {
        let ms = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let gates = rollout.gates;
        Self {
            soak_ms: ms(rollout.soak),
            ack_timeout_ms: ms(rollout.ack_timeout),
            silence_ms: ms(gates.silence),
            drops_ppm: gates.drops_permille * 1_000,
            coverage_ppm: gates.coverage_permille * 1_000,
            lag_ms: ms(gates.lag),
            cpu_ppm: gates.cpu_permille * 1_000,
            memory_octets: gates.memory_octets,
        }
    }
}

impl Gate {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nack => "nack",
            Self::Ack => "ack",
            Self::Silence => "silence",
            Self::Limits => "limits",
            Self::Starts => "starts",
            Self::Drops => "drops",
            Self::Coverage => "coverage",
            Self::Lag => "lag",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Capture => "capture",
            Self::Abort => "abort",
        }
    }
}

impl Peers {
    /// Of pairs of before and meanwhile; `None`: too few.
    pub(super) fn of(pairs: &[(Figures, Figures)]) -> Option<Self> {
        if pairs.len() < PEERS_MIN {
            return None;
        }
        let rise = |figure: fn(&Figures) -> u64| {
            median(
                pairs
                    .iter()
                    .map(|(before, since)| figure(since).saturating_sub(figure(before))),
            )
        };
        let covered = pairs
            .iter()
            .filter_map(|(before, since)| Some(before.coverage_ppm?.saturating_sub(since.coverage_ppm?)));
        let worse = Worse {
            drops_ppm: rise(|figures| figures.drops_ppm),
            coverage_ppm: median_of_enough(covered).unwrap_or(0),
            lag_ms: rise(|figures| figures.lag_ms),
            cpu_ppm: rise(|figures| figures.cpu_ppm),
            memory_octets: rise(|figures| figures.memory_octets),
        };
        let capturing: Vec<&Figures> = (pairs.iter())
            .map(|(_, since)| since)
            .filter(|since| since.capturing)
            .collect();
        let level = |figure: fn(&Figures) -> u64| median(capturing.iter().map(|&figures| figure(figures)));
        let level = (capturing.len() >= PEERS_MIN).then(|| Figures {
            drops_ppm: level(|figures| figures.drops_ppm),
            coverage_ppm: median_of_enough(capturing.iter().filter_map(|figures| figures.coverage_ppm)),
            lag_ms: level(|figures| figures.lag_ms),
            cpu_ppm: level(|figures| figures.cpu_ppm),
            memory_octets: level(|figures| figures.memory_octets),
            starts: level(|figures| figures.starts),
            ..Figures::default()
        });
        Some(Self { worse, level })
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn median_of_enough(values: impl Iterator<Item = u64>) -> Option<u64> {
    let values: Vec<u64> = values.collect();
    (values.len() >= PEERS_MIN).then(|| median(values.into_iter()))
}

/// Gates that an agent is beyond. `since`: what it was like after the change; `before`: its own last soak before it.
pub(super) fn judge(
    terms: &Terms,
    since: &Figures,
    before: Option<&Figures>,
    peers: Option<&Peers>,
) -> Vec<Breach> {
    let worse = peers.map(|peers| peers.worse).unwrap_or_default();
    let own = before.filter(|before| before.capturing);
    let level = peers.and_then(|peers| peers.level);
    // Of a figure: what was to be expected, or nothing when it cannot be known.
    let expected = |figure: fn(&Figures) -> u64, worse: u64| match own {
        Some(own) => Some(figure(own).saturating_add(worse)),
        None => level.as_ref().map(figure),
    };
    let mut breaches = Vec::new();
    let mut above = |gate, value: u64, baseline: Option<u64>, bound: u64| {
        if let Some(baseline) = baseline
            && value > baseline.saturating_add(bound)
        {
            breaches.push(Breach {
                gate,
                value,
                baseline,
                bound,
                reason: String::new(),
            });
        }
    };
    above(
        Gate::Starts,
        since.starts,
        Some(own.map_or(0, |own| own.starts)),
        STARTS_MAX,
    );
    // A record that waited before the change goes on waiting, whatever the change.
    let waiting_on = match own {
        Some(own) if own.lag_ms > terms.lag_ms => since.span_ms.saturating_add(terms.soak_ms),
        _ => 0,
    };
    let lag = expected(|figures| figures.lag_ms, worse.lag_ms).unwrap_or(since.lag_first_ms);
    above(
        Gate::Lag,
        since.lag_ms,
        Some(lag.saturating_add(waiting_on)),
        terms.lag_ms,
    );
    let memory = expected(|figures| figures.memory_octets, worse.memory_octets);
    above(Gate::Memory, since.memory_octets, memory, terms.memory_octets);
    if since.span_ms < JUDGED_AFTER_MS.min(terms.soak_ms / 2) {
        return breaches;
    }
    let drops = expected(|figures| figures.drops_ppm, worse.drops_ppm).unwrap_or(0);
    above(Gate::Drops, since.drops_ppm, Some(drops), terms.drops_ppm);
    let cpu = expected(|figures| figures.cpu_ppm, worse.cpu_ppm);
    above(Gate::Cpu, since.cpu_ppm, cpu, terms.cpu_ppm);
    let covered = match own {
        Some(own) => (own.coverage_ppm).map(|covered| covered.saturating_sub(worse.coverage_ppm)),
        None => level.and_then(|level| level.coverage_ppm),
    };
    if let (Some(value), Some(baseline)) = (since.coverage_ppm, covered)
        && value < baseline.saturating_sub(terms.coverage_ppm)
    {
        breaches.push(Breach {
            gate: Gate::Coverage,
            value,
            baseline,
            bound: terms.coverage_ppm,
            reason: String::new(),
        });
    }
    breaches
}

impl Breach {
    /// Without anything measured: what an agent or an operator said.
    pub(super) fn said(gate: Gate, reason: &str) -> Self {
        let end = (0..=reason.len().min(REASON_OCTETS_MAX))
            .rev()
            .find(|&end| reason.is_char_boundary(end));
        Self {
            gate,
            value: 0,
            baseline: 0,
            bound: 0,
            reason: reason[..end.unwrap_or(0)].to_owned(),
        }
    }

    /// Of a time that was too long, in milliseconds.
    pub(super) fn waited(gate: Gate, value: u64, bound: u64) -> Self {
        Self {
            gate,
            value,
            baseline: 0,
            bound,
            reason: String::new(),
        }
    }

    /// How far beyond it is.
    fn excess(&self) -> u64 {
        self.value.abs_diff(self.baseline)
    }

    fn sentence(&self, agent: &str) -> String {
        let Self {
            value,
            baseline,
            bound,
            reason,
            ..
        } = self;
        let (value, baseline, bound) = (*value, *baseline, *bound);
        let compared = |show: fn(u64) -> String, more: &str| {
            format!(
                "{} was to be expected, and {} {more} is allowed",
                show(baseline),
                show(bound)
            )
        };
        match self.gate {
            Gate::Nack => format!("{agent} refused it: {reason}"),
            Gate::Ack => format!(
                "{agent} did not answer for {}; {} is allowed",
                seconds(value),
                seconds(bound)
            ),
            Gate::Silence => {
                format!(
                    "nothing was heard of {agent} for {}; {} is allowed",
                    seconds(value),
                    seconds(bound)
                )
            }
            Gate::Limits => format!("{agent} is beyond the policy's limits: {reason}"),
            Gate::Starts => format!(
                "{agent} has started {value} times; {baseline} was to be expected, and {bound} more is allowed"
            ),
            Gate::Drops => format!(
                "{agent} lost {} of what it observed; {}",
                percent(value),
                compared(percent, "more")
            ),
            Gate::Coverage => format!(
                "{agent} knows the owners of {} of its flow ends; {}",
                percent(value),
                compared(percent, "less")
            ),
            Gate::Lag => format!(
                "a record of {agent} waited {}; {}",
                seconds(value),
                compared(seconds, "more")
            ),
            Gate::Cpu => format!(
                "{agent} took {} of a core; {}",
                percent(value),
                compared(percent, "more")
            ),
            Gate::Memory => format!(
                "{agent} had {} of memory; {}",
                mebi(value),
                compared(mebi, "more")
            ),
            Gate::Capture => format!("{agent} captures nothing; it did before"),
            Gate::Abort => format!("{reason} stopped it"),
        }
    }
}

fn percent(ppm: u64) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

fn mebi(octets: u64) -> String {
    let tenths = (u128::from(octets) * 10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// One failure a gate, with the agents at fault.
pub(super) fn failures(breaches: Vec<(String, Breach)>) -> Vec<Failure> {
    let mut by_gate: BTreeMap<Gate, Vec<(String, Breach)>> = BTreeMap::new();
    for (agent, breach) in breaches {
        by_gate.entry(breach.gate).or_default().push((agent, breach));
    }
    by_gate
        .into_values()
        .filter_map(|mut of_gate| {
            of_gate.sort_by(|a, b| b.1.excess().cmp(&a.1.excess()).then_with(|| a.0.cmp(&b.0)));
            let (agent, worst) = of_gate.first()?;
            let mut message = worst.sentence(agent);
            if of_gate.len() > 1 {
                message.push_str(&format!(" (and {} more agents)", of_gate.len() - 1));
            }
            let named = of_gate.len().min(AGENTS_NAMED_MAX);
            Some(Failure {
                gate: worst.gate,
                value: worst.value,
                baseline: worst.baseline,
                bound: worst.bound,
                message,
                more: (of_gate.len() - named) as u64,
                agents: of_gate
                    .into_iter()
                    .take(named)
                    .map(|(agent, _)| agent)
                    .filter(|agent| !agent.is_empty())
                    .collect(),
            })
        })
        .collect()
}

/// One more agent at fault at a gate that failed.
pub(super) fn add_agent(failures: &mut [Failure], gate: Gate, agent: &str) {
    let Some(failure) = failures.iter_mut().find(|failure| failure.gate == gate) else {
        return;
    };
    if failure.agents.iter().any(|named| named == agent) {
        return;
    }
    if failure.agents.len() < AGENTS_NAMED_MAX {
        failure.agents.push(agent.to_owned());
    } else {
        failure.more += 1;
    }
}

#[cfg(test)]
#[path = "gates/tests.rs"]
mod tests;
