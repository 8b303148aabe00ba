//! Hides secrets in command lines, so that they never leave the host.
//!
//! In: arguments as a process got them, possibly cut. Out: as many arguments, each secret replaced by [`HIDDEN`]. Three
//! looks, each of which only marks octets to hide, so no look can undo another:
//! 1. options and the arguments after them (`--password x`, `-px`, `-u user:x`), here;
//! 2. what one argument holds (`name=x`, `https://user:x@host`, `Bearer x`, `eyJ…`), in `inside`;
//! 3. arguments with blanks are command lines again (`sh -c "mysql -px"`): cut into words by `words`, then 1.
//!
//! Rules stand in `redact_rules.txt` alone. **Hides too much rather than too little**: `http://a:80/x@y` loses its port.
//! What it cannot know: a secret that is a plain word without any name or option (`htpasswd -b file user x`).
//! Invariants: the result, redacted again, is the same; no input panics; work is bounded by the input's length.

use std::ops::Range;

mod inside;
mod rules;
mod words;

use rules::{Mode, Rules, rules};

/// What stands for a secret.
pub const HIDDEN: &str = "***";

/// Rounds after which everything is hidden.
///
/// Hiding a word may join two others, so a round can find what the round before could not; two rounds are usual.
const ROUNDS_MAX: usize = 6;

/// Shortest value that looks like a key after a name that is no option (`aws_secret_access_key AbC…`).
const KEY_OCTETS_MIN: usize = 12;

/// A piece of one argument that is looked at as a whole: an argument, or a word of one.
#[derive(Clone, Copy, Debug)]
struct Unit<'a> {
    argument: usize,
    start: usize,
    text: &'a str,
}

/// Octets to hide, by argument.
type Hidden = Vec<Vec<Range<usize>>>;

/// Replaces secrets by [`HIDDEN`].
///
/// `program`: path or name of what runs, when it is known better than by the first argument. `cut`: whether the last
/// argument may lack its end; what could be the beginning of a secret there is hidden as well.
#[must_use]
pub fn redact(program: Option<&str>, arguments: &[String], cut: bool) -> Vec<String> {
    redact_within(ROUNDS_MAX, program, arguments, cut)
}

fn redact_within(rounds_max: usize, program: Option<&str>, arguments: &[String], cut: bool) -> Vec<String> {
    let mut shown = arguments.to_vec();
    for _ in 0..rounds_max {
        let next = round(rules(), program, &shown, cut);
        if next == shown {
            return shown;
        }
        shown = next;
    }
    arguments.iter().map(|_| HIDDEN.to_owned()).collect()
}

fn round(rules: &Rules, program: Option<&str>, arguments: &[String], cut: bool) -> Vec<String> {
    let mut hidden: Hidden = vec![Vec::new(); arguments.len()];
    let units: Vec<Unit<'_>> = arguments
        .iter()
        .enumerate()
        .map(|(argument, text)| Unit {
            argument,
            start: 0,
            text,
        })
        .collect();
    let cut_argument = cut.then(|| arguments.len().saturating_sub(1));
    options(rules, program, &units, cut_argument, &mut hidden);
    for (at, text) in arguments.iter().enumerate() {
        inside::mark(rules, text, cut_argument == Some(at), &mut hidden[at]);
        for list in words::lists(text) {
            let units: Vec<Unit<'_>> = list
                .into_iter()
                .map(|range| Unit {
                    argument: at,
                    start: range.start,
                    text: &text[range],
                })
                .collect();
            options(rules, None, &units, cut_argument, &mut hidden);
        }
    }
    arguments
        .iter()
        .zip(hidden)
        .map(|(text, spans)| render(text, spans))
        .collect()
}

/// Marks what options say about themselves and about the units after them.
fn options(
    rules: &Rules,
    program: Option<&str>,
    units: &[Unit<'_>],
    cut_argument: Option<usize>,
    hidden: &mut Hidden,
) {
    let mut active = Vec::new();
    if let Some(program) = program {
        rules.activate(base_name(program), &mut active);
    }
    for (at, unit) in units.iter().enumerate() {
        rules.activate(base_name(unit.text), &mut active);
        let next = units.get(at + 1);
        let next_is_key =
            next.is_some_and(|next| looks_like_key(next.text) || cut_argument == Some(next.argument));
        if takes_secret(rules, unit.text, next_is_key, at == 0)
            && let Some(next) = next
        {
            hide(next, 0, hidden);
        }
        for (rest, mode) in rules.after_flag(unit.text, &active) {
            match (rest.is_empty(), mode) {
                (false, Mode::Joined | Mode::Both) => hide(unit, unit.text.len() - rest.len(), hidden),
                (true, Mode::Next | Mode::Both | Mode::Cluster) => {
                    next.into_iter().for_each(|next| hide(next, 0, hidden))
                }
                _ => {}
            }
        }
        match unit.text.strip_prefix("-p") {
            Some("") => next
                .into_iter()
                .filter(|next| !is_harmless(next.text) && !next.text.contains('/'))
                .for_each(|next| hide(next, 0, hidden)),
            Some(rest) if !rules.is_long(unit.text) && !is_harmless(rest) => hide(unit, 2, hidden),
            _ => {}
        }
        match rules.after_userpass(unit.text) {
            Some("") => next
                .into_iter()
                .for_each(|next| hide_after_user(next, next.text, hidden)),
            Some(rest) => hide_after_user(unit, rest, hidden),
            None => {}
        }
    }
}

/// Whether the unit after this one is a secret by this one's name. `first`: the unit is the program itself.
fn takes_secret(rules: &Rules, text: &str, next_is_key: bool, first: bool) -> bool {
    let name = text.trim_start_matches('-');
    let (name, open) = match name.strip_suffix([':', '=']) {
        Some(name) => (name, true),
        None => (name, false),
    };
    if name.contains(|c: char| c.is_whitespace() || matches!(c, '=' | ':' | '/')) {
        return false;
    }
    if open || text.starts_with('-') {
        return rules.is_secret_name(name) || rules.is_scheme(name);
    }
    !first && rules.is_bare(name) || rules.is_scheme(name) || next_is_key && rules.is_secret_name(name)
}

/// Long, and no word of a language: digits and letters mixed, or very long.
fn looks_like_key(text: &str) -> bool {
    text.len() >= KEY_OCTETS_MIN
        && !text.contains(char::is_whitespace)
        && (text.len() >= 2 * KEY_OCTETS_MIN
            || text.contains(|c: char| c.is_ascii_digit())
                && text.contains(|c: char| c.is_ascii_alphabetic()))
}

/// Ports, numbers, addresses with ports, an absolute path, another option: what `-p` takes when it is no password.
fn is_harmless(value: &str) -> bool {
    let number = value
        .trim_end_matches("/tcp")
        .trim_end_matches("/udp")
        .trim_start_matches('=');
    number
        .chars()
        .all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '.'))
        || value.starts_with('-')
        || value.starts_with('/')
}

/// Hides what follows the user in `user:secret`, `user%secret` or `user,secret`.
fn hide_after_user(unit: &Unit<'_>, rest: &str, hidden: &mut Hidden) {
    let Some(at) = rest.find([':', '%', ',']) else {
        return;
    };
    let number = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let ids = rest.len() <= 21 && number(&rest[..at]) && number(&rest[at + 1..]);
    if !ids && !rest[at..].starts_with("://") {
        hide(unit, unit.text.len() - rest.len() + at + 1, hidden);
    }
}

fn hide(unit: &Unit<'_>, from: usize, hidden: &mut Hidden) {
    hidden[unit.argument].push(unit.start + from..unit.start + unit.text.len());
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// The text with each hidden stretch replaced once.
fn render(text: &str, mut spans: Vec<Range<usize>>) -> String {
    spans.retain(|span| !span.is_empty());
    spans.sort_by_key(|span| (span.start, span.end));
    let mut shown = String::with_capacity(text.len());
    let mut done = 0;
    let mut spans = spans.into_iter().peekable();
    while let Some(mut span) = spans.next() {
        while let Some(more) = spans.next_if(|more| more.start <= span.end) {
            span.end = span.end.max(more.end);
        }
        shown.push_str(&text[done..span.start]);
        shown.push_str(HIDDEN);
        done = span.end;
    }
    shown.push_str(&text[done..]);
    shown
}

#[cfg(test)]
mod tests;
