//! Texts of strangers, made fit for a terminal: nothing is hidden, nothing moves the cursor.

use std::fmt::Write;

use flowtilla_agent_core::encode::text::is_unseen;

/// Longest text of a peer in a line for people, in characters.
///
/// Paths and pods' names fit as a rule; double it and one hostile name fills a screen. JSON output cuts nothing.
const SHOWN_CHARS_MAX: usize = 100;

/// Writes out what cannot be seen, as `\u{1b}`, and cuts at [`SHOWN_CHARS_MAX`].
pub(super) fn escape(raw: &str) -> String {
    let mut shown = String::with_capacity(raw.len().min(SHOWN_CHARS_MAX));
    for (n, c) in raw.chars().enumerate() {
        if n == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if is_unseen(c) {
            shown.extend(c.escape_unicode());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Writes out what cannot be seen in a JSON text, where it can stand in strings only.
pub(super) fn escape_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unseen(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").expect("a String takes everything");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Seconds since the epoch as `2026-11-25T04:21:33Z`. Source: the days-to-civil algorithm, shifted to begin in March.
pub(super) fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01; an era is 400 years, 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_written_out() {
        assert_eq!(
            escape("a\u{1b}[2Jb\n\u{9b}\u{202e}é<"),
            "a\\u{1b}[2Jb\\u{a}\\u{9b}\\u{202e}é<"
        );
        assert_eq!(escape(&"n".repeat(500)).chars().count(), SHOWN_CHARS_MAX + 1);
        let raw = "\u{9b}\u{e0001}\u{7f}é";
        let json = escape_json(&serde_json::to_string(raw).unwrap());
        assert_eq!(json, r#""\u009b\udb40\udc01\u007fé""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), raw);
    }

    #[test]
    fn seconds_become_dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_416_490), "2026-11-23T06:48:10Z");
        assert_eq!(utc(4_102_444_799), "2099-12-31T23:59:59Z");
        assert_eq!(utc(u64::from(u32::MAX)), "2106-02-07T06:28:15Z");
    }
}
