//! Which flows are kept: the policy's include and exclude rules, and sampling.
//!
//! In: named records, and where their owners are. Out: a [`Verdict`] for each. Reads nothing, and does not count what is left
//! out: whoever drives it does. What the kernel is to leave out by itself is worked out in [`cgroups`].
//!
//! Rules. A rule matches when each of its lists has a member that matches, at either end. A flow is left out when there
//! are include rules and none matches, or when an exclude rule matches. An attribute that is not known (a process that
//! nobody saw, the far end of a connection to another host, a container that no runtime has named when the flow's first
//! record has waited for it) matches nothing.
//!
//! Exclude rules about nothing but cgroups, containers and pods mean cgroups as wholes, because the kernel leaves out sockets,
//! not flows: such a rule looks at one end at a time, and a flow is left out when every owner on this host is in what is
//! left out. A connection between such a cgroup and something else on this host is told, by the end of the latter; before
//! the kernel knows of the cgroup as after it.
//!
//! One flow, one decision. What is known of an owner may change while a flow lives: a name comes late, a process executes
//! something else, the other end's process is found. So the rules are asked at the first record that leaves, and the
//! answer is remembered until the flow's last record; a flow is not in part here and in part left out, but where the
//! policy changed in between. A record speaks for both ends when both are on this host: twins have one decision.
//! The memory is bounded by the most flows the table may hold; what is forgotten is decided anew.
//!
//! Sampling needs no memory: it looks at the flow's identity alone ([`Sampling`]), never at a clock. A flow that is kept
//! one in 8 is also kept one in 4.

use std::num::NonZeroUsize;

use flowtilla_proto::policy::Sampling as Share;
use lru::LruCache;

use crate::enrich::Whereabouts;
use crate::flow::record::{EndReason, FlowRecord, Protocol, RecordId};
use crate::observe::Cookie;
use crate::owner::Owner;
use crate::policy::Filtering;

use place::Place;
use rule::{Ends, Rule};

pub mod cgroups;
mod pattern;
mod place;
mod rule;

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It goes on.
    Kept,
    /// The rules leave its flow out.
    Filtered,
    /// Sampling leaves its flow out.
    SampledOut,
}

/// Decides which flows are kept.
#[derive(Debug)]
pub struct Filter {
    include: Vec<Rule>,
    exclude: Vec<Rule>,
    /// Exclude rules that mean cgroups as wholes.
    wholes: Vec<Place>,
    /// Whether a rule asks where an owner is.
    asks_places: bool,
    /// Whether one asks what runtimes tell.
    asks_runtimes: bool,
    /// Decisions made without what a runtime would have told, since it was last asked.
    unnamed: u64,
    sampling: Sampling,
    /// Whether the rules keep a flow that has told a record and not its last; unused without rules. Some 80 octets each.
    decided: LruCache<FlowKey, bool>,
}

/// One flow of this run of the kernel.
type FlowKey = (Cookie, u64);

impl Filter {
    /// What is wanted, made ready for use; `None`: every flow is kept. `flows_max` is the most that the table may hold.
    #[must_use]
    pub fn new(wanted: &Filtering, flows_max: usize) -> Option<Self> {
        if wanted.keeps_everything() {
            return None;
        }
        let (wholes, exclude): (Vec<_>, Vec<_>) =
            wanted.exclude.iter().partition(|rule| Place::is_all_of(rule));
        let include: Vec<Rule> = wanted.include.iter().map(Rule::new).collect();
        let exclude: Vec<Rule> = exclude.into_iter().map(Rule::new).collect();
        let wholes: Vec<Place> = wholes.into_iter().map(Place::new).collect();
        let mut rules = include.iter().chain(&exclude);
        let asks_runtimes = rules.clone().any(Rule::asks_runtimes) || wholes.iter().any(Place::asks_runtimes);
        let mut filter = Self {
            asks_places: rules.any(Rule::asks_places) || !wholes.is_empty(),
            asks_runtimes,
            unnamed: 0,
            include,
            exclude,
            wholes,
            sampling: Sampling::new(wanted.sampling),
            // It grows as it is filled; `new` would take the memory of all at once.
            decided: LruCache::unbounded(),
        };
        filter.set_flows_max(flows_max);
        Some(filter)
    }

    /// The table may hold this many flows from now on.
    pub fn set_flows_max(&mut self, flows_max: usize) {
        self.decided
            .resize(NonZeroUsize::new(flows_max).unwrap_or(NonZeroUsize::MIN));
    }

    /// Whether a record is kept. `whereabouts` tells where an owner is.
    pub fn judge<'a>(
        &mut self,
        record: &'a FlowRecord,
        whereabouts: impl Fn(&Owner) -> Whereabouts<'a>,
    ) -> Verdict {
        if !self.keeps(record, whereabouts) {
            return Verdict::Filtered;
        }
        if !self.sampling.keeps(&record.id, record.protocol) {
            return Verdict::SampledOut;
        }
        Verdict::Kept
    }

    /// Flows that were decided about without the name of a container that a rule asks for, since this was last asked.
    pub fn take_unnamed(&mut self) -> u64 {
        std::mem::take(&mut self.unnamed)
    }

    fn keeps<'a>(&mut self, record: &'a FlowRecord, whereabouts: impl Fn(&Owner) -> Whereabouts<'a>) -> bool {
        if self.include.is_empty() && self.exclude.is_empty() && self.wholes.is_empty() {
            return true;
        }
        let flow = (record.id.cookie, record.id.stream);
        let last = record.reason != EndReason::ActiveTimeout;
        let known = match last {
            true => self.decided.pop(&flow),
            false => self.decided.get(&flow).copied(),
        };
        known.unwrap_or_else(|| {
            let asks = self.asks_places;
            let ends = Ends::of(record, |owner| match asks {
                true => whereabouts(owner),
                false => Whereabouts::default(),
            });
            let matched = |rules: &[Rule]| rules.iter().any(|rule| rule.matches(&ends));
            let kept = (self.include.is_empty() || matched(&self.include))
                && !matched(&self.exclude)
                && !ends.all_own(|at| is_in(&self.wholes, at));
            self.unnamed += u64::from(self.asks_runtimes && ends.is_unnamed());
            if !last {
                self.decided.put(flow, kept);
            }
            kept
        })
    }
}

/// Whether a place is in one of these.
fn is_in(wholes: &[Place], at: &Whereabouts<'_>) -> bool {
    wholes.iter().any(|place| place.holds(at))
}

/// Keeps one flow in so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sampling {
    /// Flows whose number is at most this are kept.
    kept_upto: u64,
}

impl Sampling {
    fn new(share: Share) -> Self {
        Self {
            kept_upto: u64::MAX / u64::from(share.one_in.get()),
        }
    }

    fn keeps(self, id: &RecordId, protocol: Protocol) -> bool {
        self.kept_upto == u64::MAX || number(id, protocol) <= self.kept_upto
    }
}

/// A number of a flow, spread evenly, the same in each version and on each machine.
///
/// Of TCP the socket alone counts: its flow that goes on after a restart of the agent is the same connection. Of UDP the
/// stream counts too: it is the peer, and a server has one socket for all of them.
fn number(id: &RecordId, protocol: Protocol) -> u64 {
    let (low, high) = id.boot.0.split_at(8);
    let word = |octets: &[u8]| {
        octets
            .iter()
            .fold(0_u64, |word, &octet| word << 8 | u64::from(octet))
    };
    let stream = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => id.stream,
    };
    [word(low), word(high), id.cookie.0, stream]
        .into_iter()
        .fold(SEED, |sum, word| mixed(sum ^ word))
}

/// Any number will do; another one keeps other flows. The first digits of π.
const SEED: u64 = 0x243f_6a88_85a3_08d3;

/// Mixes the bits of a word so that each depends on all. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014: SplitMix64.
fn mixed(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests;
