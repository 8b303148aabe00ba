//! What an agent may cost. It is watched and told, not enforced: an agent that stopped observing to save memory would be
//! blind when it matters.

use std::ops::RangeInclusive;

use crate::mistake::Mistakes;
use crate::reading::Reading;
use crate::wire;

/// Least and most of `cpuPermille`, in thousandths of a core. The upper bound is more cores than a host has.
pub const CPU_PERMILLE: RangeInclusive<u64> = 1..=1_000_000;
/// Least and most of `memoryOctets`. No agent is smaller than the least.
pub const MEMORY_OCTETS: RangeInclusive<u64> = 8 << 20..=1 << 44;

/// What an agent may cost; `None`: whatever it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Limits {
    /// Most CPU over a minute, in thousandths of a core, within [`CPU_PERMILLE`].
    pub cpu_permille: Option<u64>,
    /// Most resident memory, in octets, within [`MEMORY_OCTETS`].
    pub memory_octets: Option<u64>,
}

pub(super) fn parse(sent: wire::Limits) -> Result<Limits, Mistakes> {
    let mut reading = Reading::default();
    let mut limit = |path, value: Option<u64>, range, unit| match value {
        None => Some(None),
        value => reading.number(path, value, 0, range, unit).map(Some),
    };
    let cpu = limit(
        "cpuPermille",
        sent.cpu_permille,
        &CPU_PERMILLE,
        " thousandths of a core",
    );
    let memory = limit("memoryOctets", sent.memory_octets, &MEMORY_OCTETS, " octets");
    let made = (|| {
        Some(Limits {
            cpu_permille: cpu?,
            memory_octets: memory?,
        })
    })();
    reading.finish(made)
}
