//! Times and sizes as files have them: `500ms`, `10s`, `7d`; `512MiB`.
//!
//! What is written here is read here, and means the same.

const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
const SIZES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Why a text is no time or size: why, and what to write.
pub(crate) type Refused = (&'static str, &'static str);

const TIME_REMEDY: &str = "write a number with its unit: 500ms, 10s, 5m, 2h or 7d";
const SIZE_REMEDY: &str = "write octets, or a number with KiB, MiB, GiB or TiB";

/// Milliseconds of a time.
///
/// # Errors
///
/// It has no unit, another one, or is beyond 64 bits.
pub(crate) fn read_time(text: &str) -> Result<u64, Refused> {
    let (number, unit) = split(text);
    if !number.is_empty() && unit.is_empty() {
        return Err(("has no unit", TIME_REMEDY));
    }
    let factor = TIMES.iter().find(|(name, _)| *name == unit);
    match factor {
        Some((_, factor)) if !number.is_empty() => {
            scaled(number, *factor).ok_or(("is too long", "write a shorter time"))
        }
        _ => Err(("is not a time", TIME_REMEDY)),
    }
}

/// Octets of a size.
///
/// # Errors
///
/// It is no number, has another unit, or is beyond 64 bits.
pub(crate) fn read_size(text: &str) -> Result<u64, Refused> {
    let (number, unit) = split(text);
    let factor = match unit {
        "" => Some(1),
        unit => SIZES
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor),
    };
    match factor {
        Some(factor) if !number.is_empty() => {
            scaled(number, factor).ok_or(("is too large", "write a smaller size"))
        }
        _ => Err(("is not a size", SIZE_REMEDY)),
    }
}

/// A time in the largest unit that divides it.
pub(crate) fn time(ms: u64) -> String {
    match TIMES
        .iter()
        .find(|(_, factor)| ms > 0 && ms.is_multiple_of(*factor))
    {
        Some((unit, factor)) => format!("{}{unit}", ms / factor),
        None => "0s".to_owned(),
    }
}

/// A size in the largest unit that divides it; `None`: octets alone.
pub(crate) fn size(octets: u64) -> Option<String> {
    let fits = SIZES
        .iter()
        .find(|(_, factor)| octets > 0 && octets.is_multiple_of(*factor));
    fits.map(|(unit, factor)| format!("{}{unit}", octets / factor))
}

/// Digits, and what comes after them, one run of blanks between left out.
fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim_start_matches(' '))
}

fn scaled(number: &str, factor: u64) -> Option<u64> {
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_they_were_written() {
        for n in [
            0,
            1,
            999,
            1_000,
            60_000,
            90_000,
            86_400_000,
            u64::MAX,
            1 << 20,
            1025,
        ] {
            assert_eq!(read_time(&time(n)), Ok(n), "{}", time(n));
            let text = size(n).unwrap_or_else(|| n.to_string());
            assert_eq!(read_size(&text), Ok(n), "{text}");
        }
        assert_eq!(time(604_800_000), "7d");
        assert_eq!(time(1_500), "1500ms");
        assert_eq!(size(512 << 20).as_deref(), Some("512MiB"));
        assert_eq!(read_time("1000 ms"), Ok(1_000));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "10",
            "s",
            "1w",
            "-1s",
            "1.5s",
            "1 s s",
            "1h30m",
            "99999999999999999999s",
            "300000000000d",
        ] {
            assert!(read_time(text).is_err(), "{text}");
        }
        for text in [
            "",
            "MiB",
            "1MB",
            "-1",
            "1.5GiB",
            "99999999999999999999",
            "20000000TiB",
        ] {
            assert!(read_size(text).is_err(), "{text}");
        }
    }
}
