//! Marks secrets that one argument holds by itself.
//!
//! In: the text of one argument, and whether its end may be missing. Out: octet ranges to hide, which may overlap.

use std::ops::Range;

use super::rules::Rules;

/// Longest user part of a URL without a password that is taken for a name (`ssh://deploy@host`), in octets.
const URL_USER_OCTETS_MAX: usize = 15;

pub(super) fn mark(rules: &Rules, text: &str, may_be_cut: bool, hidden: &mut Vec<Range<usize>>) {
    if let Some(start) = rules.block_in(text) {
        hidden.push(start..text.len());
    }
    named_values(rules, text, hidden);
    schemes(rules, text, hidden);
    prefixes(rules, text, hidden);
    urls(text, may_be_cut, hidden);
    user_at_host(text, may_be_cut, hidden);
}

/// `name=x`, `name: x`, `"name": "x"`, `name%3Dx`.
fn named_values(rules: &Rules, text: &str, hidden: &mut Vec<Range<usize>>) {
    let octets = text.as_bytes();
    let mut at = 0;
    while at < octets.len() {
        let width = match octets[at] {
            b'=' | b':' => 1,
            b'%' if is_coded_separator(&octets[at..]) => 3,
            _ => 0,
        };
        if width > 0
            && let name = name_before(text, at)
            && rules.is_secret_name(&text[name.clone()])
        {
            let value = value_after(rules, text, name.start, at + width);
            at = value.end.max(at + width);
            hidden.push(value);
        } else {
            at += width.max(1);
        }
    }
}

fn is_coded_separator(octets: &[u8]) -> bool {
    octets.len() >= 3 && octets[1] == b'3' && matches!(octets[2], b'd' | b'D' | b'a' | b'A')
}

/// The name that ends where a separator stands, without quotes, brackets and blanks between.
fn name_before(text: &str, separator: usize) -> Range<usize> {
    let before = text[..separator]
        .trim_end_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ']' | '`'));
    let start = before
        .rfind(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-' | '.'))
        .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
    start..before.len()
}

/// Where the value of a secret name lies. Ends too late rather than too early.
fn value_after(rules: &Rules, text: &str, name_start: usize, from: usize) -> Range<usize> {
    let rest = text[from..].trim_start_matches(|c: char| c.is_whitespace() || c == '>');
    let start = text.len() - rest.len();
    let before = &text[..name_start];
    if !before.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ';' | '&' | '?' | '{')) {
        return start..text.len();
    }
    let mut end = word_end(text, start);
    while end < text.len() && rules.is_scheme(text[start..end].trim_matches(is_quote)) {
        let next = text.len() - text[end..].trim_start().len();
        if next == text.len() {
            break;
        }
        end = word_end(text, next);
    }
    let quoted = rest.trim_start_matches('\\').chars().next();
    if let Some(quote) = quoted.filter(|&c| is_quote(c)) {
        let inner = text.len() - rest.trim_start_matches('\\').len() + 1;
        end = end.max(word_end(text, closing(text, inner, quote)));
    }
    for quote in ['"', '\''] {
        if before.matches(quote).count() % 2 == 1 && !text[name_start..from].contains(quote) {
            end = end.max(closing(text, from, quote));
        }
    }
    let semicolon = text[start..].find(';').map(|at| start + at);
    match semicolon {
        Some(at) => end = end.max(at),
        None if before.trim_end().ends_with(';') => end = text.len(),
        None => {}
    }
    start..end
}

/// The next quote of this kind that no backslash stands before; the end when there is none.
fn closing(text: &str, from: usize, quote: char) -> usize {
    let mut before = '\0';
    for (at, c) in text[from..].char_indices() {
        if c == quote && before != '\\' {
            return from + at;
        }
        before = c;
    }
    text.len()
}

/// The next blank that no backslash stands before.
fn word_end(text: &str, from: usize) -> usize {
    let mut before = '\0';
    for (at, c) in text[from..].char_indices() {
        if c.is_whitespace() && before != '\\' {
            return from + at;
        }
        before = c;
    }
    text.len()
}

/// `Bearer x` where no name stands before it, also `Bearer%20x` and `Bearer+x`.
fn schemes(rules: &Rules, text: &str, hidden: &mut Vec<Range<usize>>) {
    for (start, word) in alphabetic_runs(text) {
        if !rules.is_scheme(word) {
            continue;
        }
        let end = start + word.len();
        let rest = &text[end..];
        let coded = rest.strip_prefix("%20").or_else(|| rest.strip_prefix('+'));
        let value = coded.unwrap_or_else(|| rest.trim_start());
        let value_start = text.len() - value.len();
        if value_start > end {
            hidden.push(value_start..word_end(text, value_start));
        }
    }
}

fn alphabetic_runs(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let base = text.as_ptr() as usize;
    text.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|run| !run.is_empty())
        .map(move |run| (run.as_ptr() as usize - base, run))
}

/// `eyJ…`, `AKIA…`.
fn prefixes(rules: &Rules, text: &str, hidden: &mut Vec<Range<usize>>) {
    let mut before = ' ';
    for (start, c) in text.char_indices() {
        if !before.is_ascii_alphanumeric() && rules.prefix_of(&text[start..]).is_some() {
            let stop = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '<' | '>');
            let end = text[start..].find(stop).map_or(text.len(), |at| start + at);
            hidden.push(start..end);
        }
        before = c;
    }
}

/// `scheme://user:x@host`, `https://x@host`; of a cut one whatever may be a secret's beginning.
fn urls(text: &str, may_be_cut: bool, hidden: &mut Vec<Range<usize>>) {
    for (at, _) in text.match_indices("://") {
        let start = at + 3;
        let end = word_end(text, start);
        let region = &text[start..end];
        if let Some(host) = region.rfind('@') {
            let user = &region[..host];
            let web = ["http", "https", "ftp"]
                .iter()
                .any(|scheme| text[..at].to_ascii_lowercase().ends_with(scheme));
            match user.find(':') {
                Some(colon) => hidden.push(start + colon + 1..start + host),
                None if user.contains('/') => {}
                None if web || user.len() > URL_USER_OCTETS_MAX => hidden.push(start..start + host),
                None => {}
            }
        } else if may_be_cut && end == text.len() {
            match (region.find(':'), region.find('/')) {
                (_, None) => hidden.push(start..end),
                (Some(colon), Some(slash))
                    if colon < slash && !region[colon + 1..slash].chars().all(|c| c.is_ascii_digit()) =>
                {
                    hidden.push(start + colon + 1..end);
                }
                _ => {}
            }
        }
    }
}

/// `user:x@host` without a scheme.
fn user_at_host(text: &str, may_be_cut: bool, hidden: &mut Vec<Range<usize>>) {
    let mut start = 0;
    while start < text.len() {
        let end = word_end(text, start);
        let word = &text[start..end];
        if let Some(colon) = word.find(':').filter(|&at| !word[at..].starts_with("://")) {
            let host = word.rfind('@').filter(|&host| host > colon);
            match host {
                Some(host) if !word[..colon].contains('@') => {
                    hidden.push(start + colon + 1..start + host);
                }
                None if may_be_cut && end == text.len() => hidden.push(start + colon + 1..end),
                _ => {}
            }
        }
        start = end + text[end..].chars().next().map_or(1, char::len_utf8);
    }
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`')
}
