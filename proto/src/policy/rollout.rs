//! How a change of a policy reaches its agents: in waves, each watched before the next.
//!
//! In: [`wire::Rollout`]. Out: [`Rollout`], checked whole.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::wire;

/// Most waves.
///
/// Doubling from one agent reaches 32,768. Half of it is too few for ten thousand agents; double it, and nobody waits for
/// the end.
pub const WAVES_MAX: usize = 16;

/// Most agents that a wave names by number.
pub const WAVE_AGENTS_MAX: u32 = 1_000_000;

/// How long a wave is watched, in milliseconds, when there are waves and they do not say it.
///
/// Thirty heartbeats: enough to tell a trend from noise. Half of it misses a slow leak; double it, and people write
/// shorter ones by hand.
pub const SOAK_MS_DEFAULT: u64 = 300_000;
/// Least and most of `soakMs`. 0: a wave is not watched.
pub const SOAK_MS: RangeInclusive<u64> = 0..=7 * 86_400_000;

/// How long an agent may take to answer, in milliseconds, unless the policy says otherwise.
///
/// Attaching takes a second on a slow host. Half of it is too near to a host that swaps; double it, and a host that hangs
/// is noticed late.
pub const ACK_TIMEOUT_MS_DEFAULT: u64 = 60_000;
/// Least and most of `ackTimeoutMs`.
pub const ACK_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// Longest time without a heartbeat, in milliseconds, unless the policy says otherwise.
///
/// Several heartbeats and a reconnect. Half of it takes a blip of the network for a death; double it, and a wave of dead
/// agents is noticed late.
pub const SILENCE_MS_DEFAULT: u64 = 60_000;
/// Least and most of `silenceMs`.
pub const SILENCE_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// How much more may be lost, in thousandths of what was observed, unless the policy says otherwise.
///
/// One in a hundred: seen in a graph. Half of it is within what a burst costs; double it, and sums are plainly wrong.
pub const DROPS_PERMILLE_DEFAULT: u64 = 10;
/// Least and most of `dropsPermille`.
pub const DROPS_PERMILLE: RangeInclusive<u64> = 0..=1_000;

/// How far the share of flows with an owner may fall, in thousandths, unless the policy says otherwise.
///
/// Half of it is what a few short processes make; double it, and one flow in ten has lost its owner.
pub const COVERAGE_PERMILLE_DEFAULT: u64 = 50;
/// Least and most of `coveragePermille`.
pub const COVERAGE_PERMILLE: RangeInclusive<u64> = 0..=1_000;

/// How much longer a record may wait, in milliseconds, unless the policy says otherwise.
///
/// A restart of ntopng is shorter. Half of it is a restart; double it, and graphs lag by two minutes.
pub const LAG_MS_DEFAULT: u64 = 60_000;
/// Least and most of `lagMs`.
pub const LAG_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// How much more CPU an agent may take, in thousandths of a core, unless the policy says otherwise.
///
/// A tenth of a core. Half of it is a busy minute's noise; double it, and people ask what the agent does.
pub const CPU_PERMILLE_DEFAULT: u64 = 100;
/// Least and most of `cpuPermille` here and in the limits.
pub const CPU_PERMILLE: RangeInclusive<u64> = 1..=1_000_000;

/// How much more memory an agent may take, in octets, unless the policy says otherwise.
///
/// Twice what an idle agent has. Half of it is what a full table takes; double it, and a small host feels it.
pub const MEMORY_OCTETS_DEFAULT: u64 = 128 << 20;
/// Least and most of `memoryOctets`.
pub const MEMORY_OCTETS: RangeInclusive<u64> = 1 << 20..=1 << 40;

/// How a change reaches its agents. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Rollout {
    /// How many agents have the change after each wave: rising, at most [`WAVES_MAX`], the last one is all of them. Empty:
    /// all at once.
    pub waves: Vec<Wave>,
    /// How long a wave is watched after its agents acked, within [`SOAK_MS`].
    pub soak: Duration,
    /// How long a connected agent may take to answer, within [`ACK_TIMEOUT_MS`].
    pub ack_timeout: Duration,
    /// What lets it go on.
    pub gates: Gates,
}

/// How many agents have a change after a wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wave {
    /// So many: 1 to [`WAVE_AGENTS_MAX`].
    Agents(u32),
    /// So many of a hundred, rounded up: 1 to 100.
    Percent(u8),
}

/// What lets a rollout go on: how far an agent may be from what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Gates {
    /// Longest time without a heartbeat, within [`SILENCE_MS`].
    pub silence: Duration,
    /// How much more may be lost, in thousandths of what was observed, within [`DROPS_PERMILLE`].
    pub drops_permille: u64,
    /// How far the share of flows with an owner may fall, in thousandths, within [`COVERAGE_PERMILLE`].
    pub coverage_permille: u64,
    /// How much longer a record may wait, within [`LAG_MS`].
    pub lag: Duration,
    /// How much more CPU, in thousandths of a core, within [`CPU_PERMILLE`].
    pub cpu_permille: u64,
    /// How much more resident memory, in octets, within [`MEMORY_OCTETS`].
    pub memory_octets: u64,
}

impl Wave {
    /// How many of `all` agents have the change after this wave. A share is rounded up.
    #[must_use]
    pub fn of(self, all: usize) -> usize {
        match self {
            Self::Agents(n) => all.min(n as usize),
            Self::Percent(percent) => (all * usize::from(percent)).div_ceil(100),
        }
    }

    fn parse(text: &str) -> Result<Self, Refused> {
        let remedy =
            || format!("write a number of agents from 1 to {WAVE_AGENTS_MAX}, or a share from 1% to 100%");
        // Digits only: `parse` alone takes a sign.
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
            plain.then(|| text.parse::<u32>().ok()).flatten()
        };
        let wave = match text.strip_suffix('%') {
            Some(share) => number(share)
                .and_then(|share| u8::try_from(share).ok())
                .filter(|share| (1..=100).contains(share))
                .map(Self::Percent),
            None => number(text)
                .filter(|count| (1..=WAVE_AGENTS_MAX).contains(count))
                .map(Self::Agents),
        };
        wave.ok_or_else(|| Refused::new("is no wave", remedy()))
    }

    /// Whether this is surely not more than `before`. A number and a share cannot be compared without the fleet.
    fn is_within(self, before: Self) -> bool {
        match (self, before) {
            (Self::Agents(now), Self::Agents(before)) => now <= before,
            (Self::Percent(now), Self::Percent(before)) => now <= before,
            (Self::Agents(_), Self::Percent(before)) => before == 100,
            (Self::Percent(_), Self::Agents(_)) => false,
        }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agents(n) => write!(f, "{n}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Default for Rollout {
    /// All at once, not watched.
    fn default() -> Self {
        Self::try_from(wire::Rollout::default()).expect("the defaults are within their ranges")
    }
}

impl TryFrom<wire::Rollout> for Rollout {
    type Error = Mistakes;

    /// Checks every field and the order of the waves.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the rollout.
    fn try_from(sent: wire::Rollout) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let waves = parse_waves(&mut reading, &sent.waves);
        let soak_default = if sent.waves.is_empty() { 0 } else { SOAK_MS_DEFAULT };
        let soak = reading.number("soakMs", sent.soak_ms, soak_default, &SOAK_MS, " ms");
        let ack_timeout = reading.number(
            "ackTimeoutMs",
            sent.ack_timeout_ms,
            ACK_TIMEOUT_MS_DEFAULT,
            &ACK_TIMEOUT_MS,
            " ms",
        );
        let gates = reading.inner("gates", Gates::try_from(sent.gates.unwrap_or_default()));
        let made = (|| {
            Some(Self {
                waves: waves?,
                soak: Duration::from_millis(soak?),
                ack_timeout: Duration::from_millis(ack_timeout?),
                gates: gates?,
            })
        })();
        reading.finish(made)
    }
}

fn parse_waves(reading: &mut Reading, sent: &[String]) -> Option<Vec<Wave>> {
    if sent.len() > WAVES_MAX {
        let why = format!("has {} waves", sent.len());
        reading.refuse(
            "waves",
            None,
            Refused::new(why, format!("write at most {WAVES_MAX}")),
        );
        return None;
    }
    let mut waves: Vec<Wave> = Vec::new();
    let mut complete = true;
    for (n, text) in sent.iter().enumerate() {
        let at = format!("waves[{n}]");
        let Some(wave) = reading.text(&at, text, Wave::parse) else {
            complete = false;
            continue;
        };
        if let Some(before) = waves.iter().rev().find(|&&before| wave.is_within(before)) {
            let why = format!("is not more than {before} of a wave before it");
            let refused = Refused::new(why, "write waves that rise, such as 1, 10%, 100%");
            reading.refuse(&at, Some(text), refused);
            complete = false;
        }
        waves.push(wave);
    }
    if complete && let Some(last) = waves.last().filter(|&&last| last != Wave::Percent(100)) {
        let at = format!("waves[{}]", waves.len() - 1);
        let refused = Refused::new(
            "is the last wave and leaves agents out",
            "write 100% as the last wave",
        );
        reading.refuse(&at, Some(&last.to_string()), refused);
        complete = false;
    }
    complete.then_some(waves)
}

impl TryFrom<wire::Gates> for Gates {
    type Error = Mistakes;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the gates.
    fn try_from(sent: wire::Gates) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let mut number =
            |path, value, default, range, unit| reading.number(path, value, default, range, unit);
        let silence = number(
            "silenceMs",
            sent.silence_ms,
            SILENCE_MS_DEFAULT,
            &SILENCE_MS,
            " ms",
        );
        let drops = number(
            "dropsPermille",
            sent.drops_permille,
            DROPS_PERMILLE_DEFAULT,
            &DROPS_PERMILLE,
            "",
        );
        let coverage = number(
            "coveragePermille",
            sent.coverage_permille,
            COVERAGE_PERMILLE_DEFAULT,
            &COVERAGE_PERMILLE,
            "",
        );
        let lag = number("lagMs", sent.lag_ms, LAG_MS_DEFAULT, &LAG_MS, " ms");
        let cpu = number(
            "cpuPermille",
            sent.cpu_permille,
            CPU_PERMILLE_DEFAULT,
            &CPU_PERMILLE,
            "",
        );
        let memory = number(
            "memoryOctets",
            sent.memory_octets,
            MEMORY_OCTETS_DEFAULT,
            &MEMORY_OCTETS,
            " octets",
        );
        let made = (|| {
            Some(Self {
                silence: Duration::from_millis(silence?),
                drops_permille: drops?,
                coverage_permille: coverage?,
                lag: Duration::from_millis(lag?),
                cpu_permille: cpu?,
                memory_octets: memory?,
            })
        })();
        reading.finish(made)
    }
}

#[cfg(test)]
#[path = "rollout/tests.rs"]
mod tests;
