//! How things are written for a terminal: harmless, short, and as wide as they look.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use flowtilla_agent_core::time::WallTime;
use unicode_width::UnicodeWidthStr;

/// `text` without anything that a terminal would obey: control characters, marks of direction and invisible characters
/// are written as escapes (`\n`, `\u{1b}`); a backslash is doubled, so that an escape cannot be forged.
pub(crate) fn harmless(text: &str) -> String {
    if text
        .bytes()
        .all(|octet| matches!(octet, b' '..=b'~') && octet != b'\\')
    {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            ' ' | '\'' | '"' => safe.push(character),
            _ => safe.extend(character.escape_debug()),
        }
    }
    safe
}

/// [`harmless`], and one word: blanks are escaped too, and nothing at all is `-`.
pub(crate) fn word(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        harmless(text).replace(' ', "\\x20")
    }
}

/// The same JSON text with escapes for what a terminal would obey. `json` is JSON without line ends.
pub(crate) fn harmless_json(json: String) -> String {
    if json.bytes().all(|octet| matches!(octet, b' '..=b'~')) {
        return json;
    }
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        let harmless = match character {
            '\'' | '"' | '\\' => true,
            _ => character.escape_debug().len() == 1,
        };
        if harmless {
            safe.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}"); // Writing to a String cannot fail.
        }
    }
    safe
}

/// Octets as digits, two each.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Columns of a terminal that `text` takes.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// `text`, at most `columns` wide; what is cut is shown by `…`.
pub(crate) fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for character in text.chars() {
        if width(&kept) + width(character.encode_utf8(&mut [0; 4])) + 1 > columns {
            break;
        }
        kept.push(character);
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

/// A count of octets or the like in at most five columns: `999`, `1.2k`, `34.5k`, `678k`, `9.0M`.
pub(crate) fn short(n: u64) -> String {
    if n < 1000 {
        return n.to_string();
    }
    let mut unit = 1000;
    for prefix in ["k", "M", "G", "T", "P", "E"] {
        let tenths = n / (unit / 10);
        if tenths < 1000 {
            return format!("{}.{}{prefix}", tenths / 10, tenths % 10);
        }
        if tenths < 10_000 || prefix == "E" {
            return format!("{}{prefix}", tenths / 10);
        }
        unit *= 1000;
    }
    unreachable!("the last prefix takes every number that is left")
}

/// A number with a comma between each three digits.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Octets in MiB, or KiB below one.
pub(crate) fn memory(octets: u64) -> String {
    const MIB: u64 = 1 << 20;
    if octets >= MIB {
        format!("{}.{} MiB", octets / MIB, octets % MIB * 10 / MIB)
    } else {
        format!("{} KiB", octets >> 10)
    }
}

/// A span of µs in at most five columns: `87µs`, `1.2ms`, `34ms`, `5.6s`.
pub(crate) fn short_us(us: u32) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..10_000 => format!("{}.{}ms", us / 1_000, us / 100 % 10),
        10_000..1_000_000 => format!("{}ms", us / 1_000),
        1_000_000..10_000_000 => format!("{}.{}s", us / 1_000_000, us / 100_000 % 10),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// A span in at most six columns: `<1s`, `45s`, `3m10s`, `2h05m`, `3d04h`.
pub(crate) fn span(span: Duration) -> String {
    let s = span.as_secs();
    match s {
        0 => "<1s".to_owned(),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// `YYYY-MM-DD HH:MM:SS`, UTC.
pub(crate) fn day_and_clock(time: WallTime) -> String {
    let (year, month, day) = date(time.seconds() / 86_400);
    format!("{year:04}-{month:02}-{day:02} {}", clock(time))
}

/// A first and a last number, and how many there are: `1 to 300 (300)`.
pub(crate) fn range(first: u64, last: u64) -> String {
    let count = last.saturating_sub(first).saturating_add(1);
    format!("{} to {} ({})", grouped(first), grouped(last), grouped(count))
}

/// Rows as lines: as wide as the widest cell of each column, the last one ragged. `right`: columns of numbers.
pub(crate) fn grid(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let blanks = " ".repeat(widths[column] - width(cell));
            let (before, after) = if right.contains(&column) {
                (blanks.as_str(), "")
            } else {
                ("", blanks.as_str())
            };
            let between = if column > 0 { " " } else { "" };
            let _ = write!(line, "{between}{before}{cell}{after}"); // Writing to a String cannot fail.
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// `HH:MM:SS`, UTC.
pub(crate) fn clock(time: WallTime) -> String {
    let s = time.seconds() % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// RFC 3339 in UTC with nine digits of the second: `2026-01-31T23:59:59.000000001Z`.
pub(crate) fn rfc3339(time: WallTime) -> impl Display {
    let (year, month, day) = date(time.seconds() / 86_400);
    let (s, ns) = (time.seconds() % 86_400, time.0 % 1_000_000_000);
    fmt::from_fn(move |f| {
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ns:09}Z",
            s / 3600,
            s / 60 % 60,
            s % 60
        )
    })
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01: the leap day is a year's last
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_terminal_would_obey_are_escaped() {
        for (name, shown) in [
            ("nginx: worker 'a' \"b\"", "nginx: worker 'a' \"b\""),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("a\r\nb\t", "a\\r\\nb\\t"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}txt.exe\u{200b}", "\\u{202e}txt.exe\\u{200b}"),
            ("\u{2028}", "\\u{2028}"),
            ("\\u{1b}", "\\\\u{1b}"),
            ("\0\u{7f}", "\\0\\u{7f}"),
            ("größe 尺寸 \u{fffd}", "größe 尺寸 \u{fffd}"),
        ] {
            assert_eq!(harmless(name), shown);
        }
        assert_eq!(word("a b"), "a\\x20b");
        assert_eq!(word(""), "-");
    }

    #[test]
    fn json_is_harmless_and_means_the_same() {
        let text = "\u{1b}\u{9b}\u{202e}\u{e0001}\\\"'ü\n\u{7f}";
        let safe = harmless_json(serde_json::to_string(text).expect("a string is JSON"));
        assert!(safe.chars().all(|c| c == 'ü' || c.is_ascii_graphic()), "{safe}");
        assert_eq!(serde_json::from_str::<String>(&safe).expect("it is JSON"), text);
    }

    #[test]
    fn text_is_cut_by_the_columns_it_takes() {
        assert_eq!(cut("nginx", 5), "nginx");
        assert_eq!(cut("nginx", 4), "ngi…");
        assert_eq!(cut("尺寸尺寸", 5), "尺寸…");
        assert_eq!(cut("尺寸", 2), "…");
        assert_eq!(cut("x", 0), "");
    }

    #[test]
    fn numbers_keep_to_five_columns() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0k"),
            (9_999, "9.9k"),
            (10_000, "10.0k"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_000_000, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(n), text);
        }
        for (us, text) in [
            (0, "0µs"),
            (999, "999µs"),
            (1_250, "1.2ms"),
            (45_000, "45ms"),
            (1_500_000, "1.5s"),
            (u32::MAX, "4294s"),
        ] {
            assert_eq!(short_us(us), text);
        }
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(memory(512 << 10), "512 KiB");
        assert_eq!(memory((12 << 20) + (1 << 19)), "12.5 MiB");
    }

    #[test]
    fn spans_keep_to_six_columns() {
        for (s, text) in [
            (0, "<1s"),
            (59, "59s"),
            (190, "3m10s"),
            (7_500, "2h05m"),
            (273_600, "3d04h"),
        ] {
            assert_eq!(span(Duration::from_secs(s)), text);
        }
        assert_eq!(range(1, 1_300), "1 to 1,300 (1,300)");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let lines = grid(&[row(["A", "N", "END"]), row(["尺寸", "1,234", ""])], &[1]);
        assert_eq!(lines, ["A        N END", "尺寸 1,234"]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (s, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(rfc3339(WallTime(s * 1_000_000_000 + 7)).to_string(), text);
        }
    }
}
