//! Which of several collectors is fed: one at a time, the preferred one that is in reach.
//!
//! In: time, whether the one in use is in reach, what probes of the others found, and that a change was made. Out: the
//! probes and the change that are due. Does no IO and reads no clock; connections, probes and marks are the driver's.
//!
//! The one in use is *in reach* while it has a connection, subscribes to flows and takes what it is sent. An outage is
//! over when that has been so for [`STEADY_AFTER`]: one that connects again and again is out all the time.
//! - Out of reach for [`Times::fail_after`]: to another whose last probe found it. The first of those not left in vain
//!   since they last worked, or in reach for as long as a way back takes; otherwise the one that was left the longest
//!   ago, so that each has its turn. None: it stays, and changes as soon as a probe finds one.
//! - An earlier one in reach for [`Times::fail_back_after`], in every probe: back to it. Each time in a row that it was
//!   left without having worked that long, it must be in reach twice as long as before, up to [`BACK_AFTER_MAX`].
//!
//! Invariants: one is in use, always; between two changes lies the shorter of both times, before one away from what is
//! out of reach [`Times::fail_after`]; one that was left for being out of reach is not preferred again before it was in
//! reach for [`Times::fail_back_after`].

use std::time::Duration;

use flowtilla_proto::policy::Failover;

use crate::time::KernelTime;

/// How long the one in use must be in reach until an outage is over; shorter with a shorter [`Times::fail_after`].
///
/// As long as a silence that counts as stalled. Half of it takes a collector that resets each connection after a second
/// for a good one; double it, and two short breaks of a good one look like a long one.
pub const STEADY_AFTER: Duration = super::STALLED_AFTER;

/// Longest time between two probes of one collector; shorter times of the policy make it shorter.
///
/// 10,000 agents then open 700 connections a second at a spare. Half of it doubles that for nothing; double it, and with
/// the times that a policy has by itself a change would trust a probe older than the outage.
pub const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(15);

/// Shortest time between two probes of one collector.
pub const PROBE_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// Probes within the time that a way back takes, at least. With fewer a collector that was away for half of it looks as
/// if it had been there.
pub const PROBES_BACK_MIN: u32 = 4;

/// Longest time that a collector must be in reach before it is used again, unless the policy has a longer one.
///
/// One that seems to be there and never takes anything then costs one outage an hour.
pub const BACK_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// When to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long the one in use may be out of reach.
    pub fail_after: Duration,
    /// How long an earlier one must be in reach.
    pub fail_back_after: Duration,
}

impl From<Failover> for Times {
    fn from(policy: Failover) -> Self {
        Self {
            fail_after: policy.fail_after,
            fail_back_after: policy.fail_back_after,
        }
    }
}

/// A change that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which one is to be used.
    pub to: usize,
    /// Whether the one in use is in reach, so that it can be left in good order.
    pub orderly: bool,
}

struct Member {
    /// The first and the last probe that found it, none between them that did not. `None`: the last one did not.
    reached: Option<(KernelTime, KernelTime)>,
    probe_at: KernelTime,
    probing: bool,
    /// How often it was left while out of reach since it last worked for [`Times::fail_back_after`].
    vain: u32,
    left_at: KernelTime,
}

/// Several collectors of which one is fed. See the module.
pub struct Group {
    times: Times,
    members: Vec<Member>,
    in_use: usize,
    used_since: KernelTime,
    /// When the outage began that is not over.
    out_since: Option<KernelTime>,
    /// Since when the one in use is in reach; `None`: it is not.
    in_since: Option<KernelTime>,
    random: fastrand::Rng,
}

impl Group {
    /// A group of `members` collectors in the order of preference, at least one; `in_use` is used first. Probes are
    /// spread by `seed`.
    ///
    /// # Panics
    /// `in_use` is not below `members`.
    #[must_use]
    pub fn new(members: usize, in_use: usize, times: Times, seed: u64, now: KernelTime) -> Self {
        assert!(in_use < members, "one of {members} is in use, not {in_use}");
        let mut group = Self {
            times,
            members: Vec::new(),
            in_use,
            used_since: now,
            out_since: Some(now),
            in_since: None,
            random: fastrand::Rng::with_seed(seed),
        };
        for _ in 0..members {
            let first = group.probe_interval().mul_f64(group.random.f64() / 4.0);
            group.members.push(Member {
                reached: None,
                probe_at: now.after(first),
                probing: false,
                vain: 0,
                left_at: KernelTime(0),
            });
        }
        group
    }

    /// One collector, with nothing to change to.
    #[must_use]
    pub fn alone() -> Self {
        let times = Times {
            fail_after: Duration::MAX,
            fail_back_after: Duration::MAX,
        };
        Self::new(1, 0, times, 0, KernelTime(0))
    }

    /// Which one is in use.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    /// Whether the last probe of this one found it. Means nothing for the one in use.
    #[must_use]
    pub fn is_reached(&self, member: usize) -> bool {
        self.members[member].reached.is_some()
    }

    /// Whether the one in use is in reach at this moment. To be told at each change, and may be told at any time.
    pub fn handle_reach(&mut self, reached: bool, now: KernelTime) {
        if reached {
            self.in_since.get_or_insert(now);
        }
        // It was in reach until now.
        if let Some(since) = self.in_since {
            let span = now.since(since);
            if span >= STEADY_AFTER.min(self.times.fail_after) {
                self.out_since = None;
            }
            if span >= self.times.fail_back_after {
                self.members[self.in_use].vain = 0;
            }
        }
        if !reached {
            self.in_since = None;
            self.out_since.get_or_insert(now);
        }
    }

    /// What a probe found. One of a collector that came into use meanwhile says nothing.
    pub fn handle_probed(&mut self, member: usize, reached: bool, now: KernelTime) {
        let back_after = self.back_after(member);
        let jittered = self.jittered();
        let probed = &mut self.members[member];
        if !std::mem::take(&mut probed.probing) {
            return;
        }
        probed.reached = reached.then(|| (probed.reached.map_or(now, |(first, _)| first), now));
        probed.probe_at = now.after(jittered);
        if let Some((first, last)) = probed.reached
            && last.since(first) < back_after
        {
            // The probe that completes its time comes in time.
            probed.probe_at = probed.probe_at.min(first.after(back_after));
        }
    }

    /// The driver feeds this one from now on.
    pub fn handle_changed(&mut self, to: usize, now: KernelTime) {
        let jittered = self.jittered();
        let orderly = self.in_since.is_some();
        let left = &mut self.members[self.in_use];
        left.left_at = now;
        left.reached = orderly.then_some((now, now));
        left.vain = if orderly { 0 } else { left.vain.saturating_add(1) };
        left.probe_at = now.after(jittered);
        self.members[to].probing = false;
        self.in_use = to;
        self.used_since = now;
        self.out_since = Some(now);
        self.in_since = None;
    }

    /// A collector whose probe is due; it is under way from here on. `None`: none is.
    pub fn poll_probe(&mut self, now: KernelTime) -> Option<usize> {
        let due = self.standing_by().find(|&member| {
            let member = &self.members[member];
            !member.probing && member.probe_at <= now
        })?;
        self.members[due].probing = true;
        Some(due)
    }

    /// The change that is due, if one is. Asking changes nothing.
    #[must_use]
    pub fn poll_change(&self, now: KernelTime) -> Option<Change> {
        let (at, change) = self.next_change()?;
        (at <= now).then_some(change)
    }

    /// When to ask for a probe or a change again, if nothing else happens; `None`: never.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        self.standing_by()
            .map(|member| &self.members[member])
            .filter(|member| !member.probing)
            .map(|member| member.probe_at)
            .chain(self.next_change().map(|(at, _)| at))
            .min()
    }

    fn standing_by(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&member| member != self.in_use)
    }

    /// The change that comes next as things stand, and when.
    fn next_change(&self) -> Option<(KernelTime, Change)> {
        let Times {
            fail_after,
            fail_back_after,
        } = self.times;
        let orderly = self.in_since.is_some();
        if let Some(to) = (0..self.in_use).find(|&member| self.is_trusted(member)) {
            let at = self.used_since.after(fail_after.min(fail_back_after));
            return Some((at, Change { to, orderly }));
        }
        let out_since = self.out_since.filter(|_| !orderly)?;
        let to = self
            .standing_by()
            .filter(|&member| self.is_reached(member))
            .min_by_key(|&member| {
                let fresh = self.members[member].vain == 0 || self.is_trusted(member);
                (
                    !fresh,
                    if fresh {
                        KernelTime(0)
                    } else {
                        self.members[member].left_at
                    },
                    member,
                )
            })?;
        Some((out_since.after(fail_after), Change { to, orderly }))
    }

    /// Whether it has been in reach long enough to go back to it.
    fn is_trusted(&self, member: usize) -> bool {
        self.members[member]
            .reached
            .is_some_and(|(first, last)| last.since(first) >= self.back_after(member))
    }

    fn back_after(&self, member: usize) -> Duration {
        let least = self.times.fail_back_after;
        let doublings = self.members[member].vain.saturating_sub(1).min(16);
        (least * (1 << doublings)).min(BACK_AFTER_MAX.max(least))
    }

    fn probe_interval(&self) -> Duration {
        (self.times.fail_after / 2)
            .min(self.times.fail_back_after / PROBES_BACK_MIN)
            .clamp(PROBE_INTERVAL_MIN, PROBE_INTERVAL_MAX)
    }

    /// Three to five quarters of the interval.
    fn jittered(&mut self) -> Duration {
        self.probe_interval().mul_f64(0.75 + self.random.f64() / 2.0)
    }
}
