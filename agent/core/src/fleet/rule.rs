//! Which of two ends speaks, and how: pure functions of the flow, of two places in a list, and of time.
//!
//! Two agents decide by themselves, each by its own list, and lists arrive at different moments, at most [`LISTS_APART`]
//! from each other. With `c` the moment at which anything about one of the two ends last changed in an agent's own list,
//! and `s` the start of the flow, both on the agent's own clock:
//!
//! ```text
//! s < c + A              nobody until c + A, then both, as totals
//! c + A ≤ s < c + 2A     the speaker alone, as totals
//! c + 2A ≤ s             the speaker alone, as deltas
//! ```
//! Of two agents whose `c` lie less than A apart, the one is in the same line as the other or in the next, and whatever
//! two neighbouring lines send together adds up: a collector takes the greatest of all totals; deltas are sent only while
//! the other end is silent for certain; nobody is silent while the other may be, but for A, for which its records are kept.
//! A flow's line only ever moves up (a newer change), so a flow that was told as totals stays so.

use std::time::Duration;

use crate::flow::record::Traffic;
use crate::observe::Endpoint;
use crate::time::KernelTime;

/// Most time between the moments at which the agents of one list learn of the same change.
///
/// The controller sends all of them the same change within 5 s, and keeps no list that it could not; a stream that has died is
/// noticed by both its ends within this time. Half of it is not enough for a keep-alive that goes unanswered; double it, and what is held back after a
/// change comes so late that ntopng may have forgotten the flow.
pub const LISTS_APART: Duration = Duration::from_secs(10);

/// Octets of one direction from which on ntopng's totals do not grow. Source: ntopng keeps them in 32 bits.
pub const TOTALS_END: u64 = u32::MAX as u64;

/// Whether `near` speaks for its flow with `far`: the end with the higher port, of equal ports the lower address.
///
/// Of any two different ends exactly one speaks, whoever asks.
#[must_use]
pub fn speaks(near: Endpoint, far: Endpoint) -> bool {
    if near.port == far.port {
        near.address.to_canonical() < far.address.to_canonical()
    } else {
        near.port > far.port
    }
}

/// What two places in one list have to say about the flows between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Between {
    /// When anything about one of them last changed.
    pub(super) changed: KernelTime,
    /// Whether one end may be silent though it should speak, for as long as nothing changes.
    pub(super) partial: Partial,
}

/// Who may leave flows out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partial {
    /// Neither end.
    Neither,
    /// The far end only, or it is gone.
    Far,
    /// The near end only.
    Near,
    /// Both ends.
    Both,
}

/// What becomes of a record, for one collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes out as it is.
    Delta,
    /// It goes out with the totals.
    Total,
    /// The other end tells it.
    Held,
    /// To be decided then.
    Until(KernelTime),
}

/// What becomes of a record made of a flow that began at `start`. `told`: the flow's totals before this record.
pub(super) fn verdict(
    between: Between,
    speaks: bool,
    start: KernelTime,
    told: &Traffic,
    now: KernelTime,
) -> Verdict {
    let settled = between.changed.after(LISTS_APART);
    let steady = settled.after(LISTS_APART);
    let both = between.partial != Partial::Neither;
    let verdict = match () {
        () if start < settled && now < settled => Verdict::Until(settled),
        () if start < settled || both => Verdict::Total,
        () if !speaks => Verdict::Held,
        () if start < steady => Verdict::Total,
        () => Verdict::Delta,
    };
    if verdict == Verdict::Total && are_beyond(told) {
        // Totals say nothing more; one end alone goes on with what is added.
        return if alone(between.partial, speaks) {
            Verdict::Delta
        } else {
            Verdict::Held
        };
    }
    verdict
}

/// Whether totals do not grow any more at the collector, when a flow's were these.
pub(super) fn are_beyond(totals: &Traffic) -> bool {
    totals.forward.octets >= TOTALS_END || totals.backward.octets >= TOTALS_END
}

fn alone(partial: Partial, speaks: bool) -> bool {
    match partial {
        Partial::Far => true,
        Partial::Near => false,
        Partial::Neither | Partial::Both => speaks,
    }
}
