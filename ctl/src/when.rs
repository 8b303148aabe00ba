//! Moments as an operator writes them: RFC 3339, or a span back from now.
//!
//! Source: RFC 3339 §5.6. A leap second counts as the first one after it.

use flowtilla_agent_core::time::WallTime;

use crate::cmd::up::args::parse_time;

const NANOSECONDS: u64 = 1_000_000_000;

/// A moment, or a span before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// This moment.
    At(WallTime),
    /// So many milliseconds ago.
    AgoMs(u64),
}

impl When {
    /// Reads `2026-03-01T12:00:00Z`, `2026-03-01T13:00:00.5+01:00`, `2h`, `3d`.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let days = text.strip_suffix('d').map(str::trim_end);
        if let Some(days) = days.and_then(|days| days.parse::<u32>().ok()) {
            return Ok(Self::AgoMs(u64::from(days) * 86_400_000));
        }
        if let Ok(ms) = parse_time(text) {
            return Ok(Self::AgoMs(ms));
        }
        rfc3339(text).map(Self::At).ok_or_else(|| {
            "is no time; write RFC 3339 such as 2026-03-01T12:00:00Z, or a span before now such as 2h"
                .to_owned()
        })
    }

    /// The moment, when it is `now`.
    pub(crate) fn at(self, now: WallTime) -> WallTime {
        match self {
            Self::At(time) => time,
            Self::AgoMs(ms) => WallTime(now.0.saturating_sub(ms.saturating_mul(1_000_000))),
        }
    }
}

fn rfc3339(text: &str) -> Option<WallTime> {
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = text.split_at_checked(10)?;
    let time = time.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = time.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let fits = (1970..=2500).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !fits {
        return None;
    }
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("0", rest),
    };
    if fraction.is_empty() {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let east = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), zone) => {
            let [hours, minutes] = numbers(zone, ':', [2, 2])?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let s = (hours * 3_600 + minutes * 60).cast_signed();
            if sign == "+" { s } else { -s }
        }
        _ => return None,
    };
    let s = (days_before(year, month) + day - 1) * 86_400 + hour * 3_600 + minute * 60 + second;
    let s = s.checked_add_signed(-east)?;
    Some(WallTime(s.checked_mul(NANOSECONDS)?.checked_add(nanoseconds)?))
}

/// Numbers of so many digits with `between` between them, and nothing else.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|octet| octet.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of this month.
fn days_before(year: u64, month: u64) -> u64 {
    let years = (1970..year).map(|year| 365 + u64::from(is_leap(year)));
    let months = (1..month).map(|month| days_in(year, month));
    years.chain(months).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (text, ns) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00.5Z", 951_782_400_500_000_000),
            ("2024-02-29T23:59:59z", 1_709_251_199_000_000_000),
            ("2026-03-01T13:00:00+01:00", 1_772_366_400_000_000_000),
            ("2026-03-01 10:30:00.000000001-01:30", 1_772_366_400_000_000_001),
            ("2026-03-01T12:00:00.1234567899Z", 1_772_366_400_123_456_789),
        ] {
            assert_eq!(When::parse(text), Ok(When::At(WallTime(ns))), "{text}");
        }
    }

    #[test]
    fn what_it_prints_it_reads() {
        let time = WallTime(1_772_366_400_000_000_001);
        let text = crate::output::rfc3339(time).to_string();
        assert_eq!(When::parse(&text), Ok(When::At(time)));
    }

    #[test]
    fn spans_lie_before_now() {
        let now = WallTime(10_000 * NANOSECONDS);
        for (text, s) in [
            ("2h", 2_800),
            ("1m", 9_940),
            ("30", 9_970),
            ("1500 ms", 9_998),
            ("1d", 0),
        ] {
            assert_eq!(When::parse(text).unwrap().at(now).seconds(), s, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_a_remedy() {
        for text in [
            "",
            "noon",
            "2026-03-01",
            "2026-03-01T12:00:00",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01T12:00:00.Z",
            "2026-03-01T12:00:00+1:00",
            "2026-03-01T12:00:00Zz",
            "26-03-01T12:00:00Z",
            "+2h",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2026-03-01T12:00:0é",
        ] {
            let refused = When::parse(text).unwrap_err();
            assert!(refused.ends_with("such as 2h"), "{text}: {refused}");
        }
    }
}
