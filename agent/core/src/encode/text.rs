//! Makes texts harmless that a process, a user or a container chose.
//!
//! ntopng puts process, user and container names into HTML and JavaScript without escaping them, and its URL filters
//! take single words only. So what could break out is replaced by something that looks alike, and what cannot be seen
//! by U+FFFD. Blanks become `_` in names; a command line keeps them. Every text has a longest length, in octets of
//! UTF-8, and is cut between characters; a cut shows as `…`.
//! Invariant: making a harmless text harmless changes nothing.

/// Longest user, group, container or package name, in octets.
///
/// A pod's name has at most 253, a login name seldom 64. Half of it would cut pods' names; double it and a hostile
/// name fills messages.
pub const NAME_OCTETS_MAX: usize = 256;
/// Longest path of an executable, in octets; a longer one loses its beginning, for people look at the file's name.
///
/// Half of it would cut paths below container image stores; at double, 16 records could fill a message.
pub const PATH_OCTETS_MAX: usize = 512;
/// Longest command line, in octets.
///
/// Twice what the kernel side copies at exec. ntopng keeps it, but shows it on no page.
pub const COMMAND_LINE_OCTETS_MAX: usize = 1_024;

const CUT: char = '…';
const UNSEEN: char = '\u{fffd}';

#[derive(Clone, Copy, PartialEq, Eq)]
enum Blanks {
    Kept,
    Replaced,
}

/// Makes a name harmless: no blanks, at most [`NAME_OCTETS_MAX`] octets, its beginning kept.
#[must_use]
pub fn name(raw: &str) -> String {
    head(raw, Blanks::Replaced, NAME_OCTETS_MAX)
}

/// Makes the path or name of an executable harmless: no blanks, at most [`PATH_OCTETS_MAX`] octets, its end kept.
#[must_use]
pub fn path(raw: &str) -> String {
    tail(raw, Blanks::Replaced, PATH_OCTETS_MAX)
}

/// Makes a command line harmless: blanks stay, at most [`COMMAND_LINE_OCTETS_MAX`] octets, its beginning kept.
#[must_use]
pub fn command_line(raw: &str) -> String {
    head(raw, Blanks::Kept, COMMAND_LINE_OCTETS_MAX)
}

/// Makes a text of our own choice harmless, such as a version: blanks stay, at most `octets_max` octets (at least 3).
#[must_use]
pub fn label(raw: &str, octets_max: usize) -> String {
    head(raw, Blanks::Kept, octets_max.max(CUT.len_utf8()))
}

/// What stands for `c`.
fn substitute(c: char, blanks: Blanks) -> char {
    match c {
        '<' => '‹',
        '>' => '›',
        '&' => '＆',
        '"' => '”',
        '\'' => '’',
        '`' => 'ˋ',
        '\\' => '＼',
        ' ' if blanks == Blanks::Kept => ' ',
        // Also ends a line of JavaScript (U+2028, U+2029), so no line break is kept anywhere.
        c if c.is_whitespace() && blanks == Blanks::Replaced => '_',
        c if is_unseen(c) => UNSEEN,
        c => c,
    }
}

/// Whether a character moves a terminal's cursor, shows nothing, or turns the direction of what follows.
#[must_use]
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The beginning, with [`CUT`] behind it when something is missing.
fn head(raw: &str, blanks: Blanks, octets_max: usize) -> String {
    let mut kept = String::with_capacity(raw.len().min(octets_max));
    let mut before_cut = 0;
    for c in raw.chars().map(|c| substitute(c, blanks)) {
        if kept.len() + c.len_utf8() > octets_max {
            kept.truncate(before_cut);
            kept.push(CUT);
            return kept;
        }
        kept.push(c);
        if kept.len() + CUT.len_utf8() <= octets_max {
            before_cut = kept.len();
        }
    }
    kept
}

/// The end, with [`CUT`] before it when something is missing.
fn tail(raw: &str, blanks: Blanks, octets_max: usize) -> String {
    let mut octets = 0;
    let mut with_cut = 0;
    let mut whole = true;
    let mut kept = 0;
    for c in raw.chars().rev().map(|c| substitute(c, blanks)) {
        octets += c.len_utf8();
        if octets > octets_max {
            whole = false;
            break;
        }
        kept += 1;
        if octets + CUT.len_utf8() <= octets_max {
            with_cut = kept;
        }
    }
    let last = |n: usize| {
        let mut end: Vec<char> = raw.chars().rev().take(n).collect();
        end.reverse();
        end.into_iter().map(|c| substitute(c, blanks))
    };
    if whole {
        last(kept).collect()
    } else {
        std::iter::once(CUT).chain(last(with_cut)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn markup_becomes_something_that_looks_alike() {
        assert_eq!(
            name("<img src=x onerror=alert('1')>"),
            "‹img_src=x_onerror=alert(’1’)›"
        );
        assert_eq!(path("/opt/a&b/`x`\\\"y\""), "/opt/a＆b/ˋxˋ＼”y”");
    }

    #[test]
    fn blanks_stay_in_command_lines_only() {
        assert_eq!(command_line("psql -h db"), "psql -h db");
        assert_eq!(name("psql -h\u{a0}db"), "psql_-h_db");
        assert_eq!(path("/my programs/a"), "/my_programs/a");
    }

    #[test]
    fn what_cannot_be_seen_is_shown() {
        assert_eq!(
            command_line("a\nb\u{202e}c\u{1b}[0m\u{2028}"),
            "a\u{fffd}b\u{fffd}c\u{fffd}[0m\u{fffd}"
        );
        assert_eq!(name("a\nb"), "a_b");
    }

    #[test]
    fn a_long_name_keeps_its_beginning_a_long_path_its_end() {
        let long = name(&"n".repeat(NAME_OCTETS_MAX + 1));
        assert_eq!(long.len(), NAME_OCTETS_MAX);
        assert!(long.starts_with("nn") && long.ends_with("n…"));
        let deep = path(&format!("{}/curl", "/d".repeat(PATH_OCTETS_MAX)));
        assert_eq!(deep.len(), PATH_OCTETS_MAX);
        assert!(deep.starts_with('…') && deep.ends_with("/curl"));
        let exact = "n".repeat(NAME_OCTETS_MAX);
        assert_eq!(name(&exact), exact);
        assert_eq!(label("eth0", 0), "…");
    }

    proptest! {
        #[test]
        fn any_text_becomes_harmless_and_short(raw in any::<String>(), n in 1_usize..200) {
            let raw = raw.repeat(n);
            for (made, max, blank) in [
                (name(&raw), NAME_OCTETS_MAX, false),
                (path(&raw), PATH_OCTETS_MAX, false),
                (command_line(&raw), COMMAND_LINE_OCTETS_MAX, true),
                (label(&raw, 31), 31, true),
            ] {
                prop_assert!(made.len() <= max);
                let harmful = |c: char| {
                    c.is_control() || "<>&\"'`\\".contains(c) || (!blank && c.is_whitespace())
                };
                prop_assert!(!made.contains(harmful), "{made:?}");
            }
            prop_assert_eq!(name(&name(&raw)), name(&raw));
            prop_assert_eq!(path(&path(&raw)), path(&raw));
        }
    }
}
