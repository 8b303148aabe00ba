//! What agents' heartbeats said of late: the "before" and the "after" of every comparison.
//!
//! In: [`wire::Health`] with the time at which it came. Out: [`Figures`] of a span of time. Counters are totals since an
//! agent's start; an uptime that falls is a restart, and totals go on from there. Kept for every agent, whether a rollout
//! runs or not. In memory only: after a restart of the controller the windows fill anew.
//! Invariant: an agent has at most [`SLOTS_MAX`] slots, in the order of time, whatever it sends.

use std::collections::{HashMap, VecDeque};

use flowtilla_proto::loss::Dropped;
use flowtilla_proto::wire::session as wire;
use serde::{Deserialize, Serialize};

/// A point in time: milliseconds since the epoch. Whoever makes them sees to it that they do not fall while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

/// Slots of one agent's window.
///
/// About 170 octets each. Half of it makes a slot a third of a soak, so that much of the time after a change is not seen;
/// double it, and ten thousand agents take 14 MiB more.
pub const SLOTS_MAX: usize = 8;

/// Slots of one soak; the others are older, so that a whole soak is there at any time.
const SLOTS_PER_SOAK: u64 = SLOTS_MAX as u64 - 2;

/// Least number of losses that count.
///
/// One packet of ten would be a tenth. Half of it makes gates of hosts that do nothing; double it, and a small loss on a
/// small host passes.
pub const LOSSES_MIN: u64 = 16;

/// Least number of flow ends of which a share with an owner is taken.
///
/// Below it one flow is more than two thousandths of a usual bound. Half of it is noise; double it, and quiet hosts are
/// never judged.
pub const ENDS_MIN: u64 = 50;

/// Most sentences about limits that are kept of one heartbeat, and most octets of each.
const OVER_LIMITS_MAX: usize = 8;
const SENTENCE_OCTETS_MAX: usize = 256;

/// Most collectors and places of loss that are read of one heartbeat: twice what an agent can have.
const ENTRIES_MAX: usize = 64;

/// What one span of time was like for an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// How long the agent ran in the span, in milliseconds; never 0.
    pub up_ms: u64,
    /// Between the first and the last heartbeat, in milliseconds.
    pub span_ms: u64,
    /// Lost, in millionths of what was observed or made: the worse of the kernel side and the collectors together.
    pub drops_ppm: u64,
    /// Flow ends with an owner, in millionths; `None`: too few to say.
    pub coverage_ppm: Option<u64>,
    /// Longest wait of a record, in milliseconds.
    pub lag_ms: u64,
    /// Longest wait that the first heartbeat of the span told, in milliseconds.
    pub lag_first_ms: u64,
    /// CPU of the agent and its kernel programs, in millionths of a core.
    pub cpu_ppm: u64,
    /// Most resident memory with kernel maps, in octets.
    pub memory_octets: u64,
    /// Starts of the agent.
    pub starts: u64,
    /// Whether capture was on at the end.
    pub capturing: bool,
}

/// The windows of all agents.
#[derive(Debug, Default)]
pub struct HealthWindows {
    soak_ms: u64,
    windows: HashMap<String, Window>,
}

/// Counters that only rise, restarts of the agent or not.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    up_ms: u64,
    observed: u64,
    lost: u64,
    made: u64,
    lost_records: u64,
    ends: u64,
    owned: u64,
    cpu_ns: u64,
    starts: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    first_at: Moment,
    first: Totals,
    last_at: Moment,
    last: Totals,
    lag_first_ms: u64,
    lag_ms: u64,
    memory_octets: u64,
    capturing: bool,
}

#[derive(Debug, Default)]
struct Window {
    slots: VecDeque<Slot>,
    totals: Totals,
    /// Counters as they were last told, to take differences from.
    told: Totals,
    over_limits: Vec<String>,
    /// The next heartbeat begins a slot.
    cut: bool,
}

impl HealthWindows {
    /// No agents. Windows are as long as `soak_ms`.
    #[must_use]
    pub fn new(soak_ms: u64) -> Self {
        Self {
            soak_ms,
            windows: HashMap::new(),
        }
    }

    /// How long windows are: the longest soak of the policies there are. What is in them stays.
    pub fn set_soak(&mut self, soak_ms: u64) {
        self.soak_ms = soak_ms;
    }

    /// How long windows are.
    #[must_use]
    pub fn soak_ms(&self) -> u64 {
        self.soak_ms
    }

    /// A heartbeat.
    pub fn note(&mut self, agent: &str, health: &wire::Health, now: Moment) {
        let width_ms = self.soak_ms / SLOTS_PER_SOAK;
        if !self.windows.contains_key(agent) {
            self.windows.insert(agent.to_owned(), Window::default());
        }
        if let Some(window) = self.windows.get_mut(agent) {
            window.note(health, now, width_ms);
        }
    }

    /// The agent's next heartbeat begins a span that can be looked at by itself, however long windows are.
    pub fn cut(&mut self, agent: &str) {
        if let Some(window) = self.windows.get_mut(agent) {
            window.cut = true;
        }
    }

    /// Forgets an agent that there is no longer.
    pub fn remove(&mut self, agent: &str) {
        self.windows.remove(agent);
    }

    /// When the last heartbeat came.
    #[must_use]
    pub fn last_at(&self, agent: &str) -> Option<Moment> {
        Some(self.windows.get(agent)?.slots.back()?.last_at)
    }

    /// The last soak before the last heartbeat; `None`: no two heartbeats.
    #[must_use]
    pub fn before(&self, agent: &str, soak_ms: u64) -> Option<Figures> {
        let window = self.windows.get(agent)?;
        let last = window.slots.back()?.last_at;
        window.figures(Moment(last.0.saturating_sub(soak_ms)))
    }

    /// What it was like from `from` to the last heartbeat; `None`: no two heartbeats.
    #[must_use]
    pub fn since(&self, agent: &str, from: Moment) -> Option<Figures> {
        self.windows.get(agent)?.figures(from)
    }

    /// What the last heartbeat, when it came after `from`, said is beyond the policy's limits.
    #[must_use]
    pub fn over_limits(&self, agent: &str, from: Moment) -> &[String] {
        match self.windows.get(agent) {
            Some(window) if window.slots.back().is_some_and(|slot| slot.last_at > from) => {
                &window.over_limits
            }
            _ => &[],
        }
    }
}

impl Window {
    fn note(&mut self, health: &wire::Health, now: Moment, width_ms: u64) {
        let now = self.slots.back().map_or(now, |slot| slot.last_at.max(now));
        let told = Totals::told(health);
        // An agent that has restarted counts from nothing.
        let from = if told.up_ms < self.told.up_ms || self.slots.is_empty() {
            self.totals.starts += 1;
            Totals::default()
        } else {
            self.told
        };
        self.totals.add(&told, &from);
        self.told = told;
        self.over_limits = (health.over_limits.iter().take(OVER_LIMITS_MAX))
            .map(|text| shorten(text))
            .collect();

        let lag_ms = (health.collectors.iter().take(ENTRIES_MAX))
            .map(|collector| collector.lag_ms)
            .max()
            .unwrap_or(0);
        let cost = health.cost.unwrap_or_default();
        let memory_octets = cost.resident_octets.saturating_add(cost.map_octets);
        let cut = std::mem::take(&mut self.cut);
        if let Some(slot) = self.slots.back_mut().filter(|_| !cut)
            && now.0.saturating_sub(slot.first_at.0) < width_ms
        {
            slot.last_at = now;
            slot.last = self.totals;
            slot.lag_ms = slot.lag_ms.max(lag_ms);
            slot.memory_octets = slot.memory_octets.max(memory_octets);
            slot.capturing = health.capturing;
            return;
        }
        if self.slots.len() == SLOTS_MAX {
            self.slots.pop_front();
        }
        self.slots.push_back(Slot {
            first_at: now,
            first: self.totals,
            last_at: now,
            last: self.totals,
            lag_first_ms: lag_ms,
            lag_ms,
            memory_octets,
            capturing: health.capturing,
        });
    }

    /// A slot that began before `from` gives its end only: what is before does not count, nor do its highest values.
    fn figures(&self, from: Moment) -> Option<Figures> {
        let mut slots = self.slots.iter().skip_while(|slot| slot.last_at < from);
        let first = slots.next()?;
        let (base_at, base, whole) = if first.first_at >= from {
            (first.first_at, first.first, Some(first))
        } else {
            (first.last_at, first.last, None)
        };
        let last = self.slots.back()?;
        let up_ms = last.last.up_ms.saturating_sub(base.up_ms);
        if up_ms == 0 || last.last_at <= base_at {
            return None;
        }
        let seen = || whole.into_iter().chain(slots.clone());
        let ends = last.last.ends - base.ends;
        let owned = last.last.owned - base.owned;
        let cpu_ns = last.last.cpu_ns - base.cpu_ns;
        Some(Figures {
            up_ms,
            span_ms: last.last_at.0 - base_at.0,
            drops_ppm: drops_ppm(last.last.lost - base.lost, last.last.observed - base.observed).max(
                drops_ppm(
                    last.last.lost_records - base.lost_records,
                    last.last.made - base.made,
                ),
            ),
            coverage_ppm: (ends >= ENDS_MIN).then(|| ratio_ppm(owned, ends).min(PPM)),
            lag_first_ms: seen().next().map_or(0, |slot| slot.lag_first_ms),
            lag_ms: seen().map(|slot| slot.lag_ms).max().unwrap_or(0),
            cpu_ppm: ratio_ppm(cpu_ns / 1_000, up_ms.saturating_mul(1_000)),
            memory_octets: seen().map(|slot| slot.memory_octets).max().unwrap_or(0),
            starts: last.last.starts - base.starts,
            capturing: last.capturing,
        })
    }
}

const PPM: u64 = 1_000_000;

fn ratio_ppm(part: u64, whole: u64) -> u64 {
    let ppm = u128::from(part) * u128::from(PPM) / u128::from(whole.max(1));
    u64::try_from(ppm).unwrap_or(u64::MAX)
}

/// Lost of what went in: what was lost on the way in was not counted there.
fn drops_ppm(lost: u64, taken: u64) -> u64 {
    if lost < LOSSES_MIN {
        return 0;
    }
    ratio_ppm(lost, taken.max(lost))
}

fn shorten(text: &str) -> String {
    let end = (0..=text.len().min(SENTENCE_OCTETS_MAX))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    text[..end.unwrap_or(0)].to_owned()
}

impl Totals {
    fn told(health: &wire::Health) -> Self {
        let sum = |drops: &[wire::Drop]| {
            drops
                .iter()
                .take(ENTRIES_MAX)
                .filter(|drop| Dropped::at(&drop.point) == Dropped::Lost)
                .fold(0_u64, |sum, drop| sum.saturating_add(drop.count))
        };
        let coverage = health.coverage.unwrap_or_default();
        let cost = health.cost.unwrap_or_default();
        let (mut made, mut lost_records) = (0_u64, 0_u64);
        for collector in health.collectors.iter().take(ENTRIES_MAX) {
            made = made.saturating_add(collector.made);
            let lost = collector.evicted.saturating_add(sum(&collector.dropped));
            lost_records = lost_records.saturating_add(lost);
        }
        Self {
            up_ms: health.uptime_ms,
            observed: health.observed_packets,
            lost: sum(&health.drops),
            made,
            lost_records,
            ends: coverage.ends,
            owned: coverage.with_process,
            cpu_ns: cost.cpu_ns.saturating_add(cost.programs_ns.unwrap_or(0)),
            starts: 0,
        }
    }

    /// Adds what was told since `from`. A counter that fell by itself (a collector that is no longer fed) adds nothing.
    fn add(&mut self, told: &Self, from: &Self) {
        let more = |total: u64, told: u64, from: u64| total.saturating_add(told.saturating_sub(from));
        self.up_ms = more(self.up_ms, told.up_ms, from.up_ms);
        self.observed = more(self.observed, told.observed, from.observed);
        self.lost = more(self.lost, told.lost, from.lost);
        self.made = more(self.made, told.made, from.made);
        self.lost_records = more(self.lost_records, told.lost_records, from.lost_records);
        self.ends = more(self.ends, told.ends, from.ends);
        self.owned = more(self.owned, told.owned, from.owned);
        self.cpu_ns = more(self.cpu_ns, told.cpu_ns, from.cpu_ns);
    }
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
