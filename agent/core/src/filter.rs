//! Which flows are kept: the policy's include and exclude rules, and sampling.
//!
//! In: named records, and the paths of their owners' cgroups. Out: a [`Verdict`] for each. Reads nothing, counts nothing:
//! whoever drives it counts what is left out.
//!
//! Rules. A rule matches when each of its lists has a member that matches, at either end. A flow is left out when there
//! are include rules and none matches, or when an exclude rule matches. An attribute that is not known (a process that
//! nobody saw, the far end of a connection to another host) matches nothing.
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

use crate::flow::record::{EndReason, FlowRecord, Protocol, RecordId};
use crate::observe::Cookie;
use crate::policy::Filtering;

use rule::Rule;

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
        let mut filter = Self {
            include: wanted.include.iter().map(Rule::new).collect(),
            exclude: wanted.exclude.iter().map(Rule::new).collect(),
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

    /// Whether a record is kept. `cgroup` gives the path of a cgroup by its number.
    pub fn judge<'a>(&mut self, record: &FlowRecord, cgroup: impl Fn(u64) -> Option<&'a str>) -> Verdict {
        if !self.keeps(record, cgroup) {
            return Verdict::Filtered;
        }
        if !self.sampling.keeps(&record.id, record.protocol) {
            return Verdict::SampledOut;
        }
        Verdict::Kept
    }

    fn keeps<'a>(&mut self, record: &FlowRecord, cgroup: impl Fn(u64) -> Option<&'a str>) -> bool {
        if self.include.is_empty() && self.exclude.is_empty() {
            return true;
        }
        let flow = (record.id.cookie, record.id.stream);
        let last = record.reason != EndReason::ActiveTimeout;
        let known = match last {
            true => self.decided.pop(&flow),
            false => self.decided.get(&flow).copied(),
        };
        known.unwrap_or_else(|| {
            let matched = |rules: &[Rule]| rules.iter().any(|rule| rule.matches(record, &cgroup));
            let kept = (self.include.is_empty() || matched(&self.include)) && !matched(&self.exclude);
            if !last {
                self.decided.put(flow, kept);
            }
            kept
        })
    }
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
