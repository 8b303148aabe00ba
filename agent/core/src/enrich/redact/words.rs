//! Cuts an argument with blanks into the words a shell would see, since it often is a command line itself.
//!
//! In: one argument. Out: lists of octet ranges, each list one way to read it; quotes around a word are left out.

use std::ops::Range;

/// Most quoted words inside quoted words that are looked into (`ssh host "sh -c 'mysql -px'"`: 2).
const DEPTH_MAX: usize = 4;

/// Every way to read `text` as a list of words; none when it has no blanks.
///
/// Once cut at every blank, whatever the quotes: finds each word that has none inside. Then as a shell cuts, so that
/// `'my secret phrase'` is one word; and so on for the words that have blanks.
pub(super) fn lists(text: &str) -> Vec<Vec<Range<usize>>> {
    let mut lists = Vec::new();
    if !text.contains(char::is_whitespace) {
        return lists;
    }
    lists.push(at_blanks(text));
    let mut todo = vec![(0..text.len(), 0)];
    while let Some((range, depth)) = todo.pop() {
        let list = as_shell(text, range.clone());
        for word in &list {
            let inner = word.len() < range.len() && text[word.clone()].contains(char::is_whitespace);
            if inner && depth < DEPTH_MAX {
                todo.push((word.clone(), depth + 1));
            }
        }
        lists.push(list);
    }
    lists
}

fn at_blanks(text: &str) -> Vec<Range<usize>> {
    let mut list = Vec::new();
    let mut start = 0;
    for piece in text.split(|c: char| c.is_whitespace() || matches!(c, ';' | '|' | '(' | ')' | '`')) {
        let end = start + piece.len();
        let from = end - piece.trim_start_matches(is_quote).len();
        let to = from + text[from..end].trim_end_matches(is_quote).len();
        if from < to {
            list.push(from..to);
        }
        // A separator is one character, of one octet or more.
        start = end + text[end..].chars().next().map_or(0, char::len_utf8);
    }
    list
}

fn as_shell(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut list = Vec::new();
    let mut word: Option<usize> = None;
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text[range.clone()].char_indices() {
        let at = range.start + at;
        let separates =
            quote.is_none() && !escaped && (c.is_whitespace() || matches!(c, ';' | '|' | '&' | '(' | ')'));
        if separates {
            list.extend(word.take().map(|start| unquoted(text, start..at)));
            continue;
        }
        word.get_or_insert(at);
        match quote {
            _ if escaped => escaped = false,
            _ if c == '\\' => escaped = true,
            Some(open) if open == c => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    list.extend(word.map(|start| unquoted(text, start..range.end)));
    list
}

/// Without the quotes around it; the closing one may be missing.
fn unquoted(text: &str, range: Range<usize>) -> Range<usize> {
    let word = &text[range.clone()];
    let Some(quote) = word.chars().next().filter(|&c| matches!(c, '\'' | '"')) else {
        return range;
    };
    let inner = &word[1..];
    let inner = inner.strip_suffix(quote).unwrap_or(inner);
    range.start + 1..range.start + 1 + inner.len()
}

fn is_quote(c: char) -> bool {
    matches!(c, '\'' | '"' | '\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Vec<&str>> {
        lists(text)
            .into_iter()
            .map(|list| list.into_iter().map(|range| &text[range]).collect())
            .collect()
    }

    #[test]
    fn a_word_is_no_list() {
        assert!(lists("").is_empty());
        assert!(lists("--password=x").is_empty());
    }

    #[test]
    fn quotes_hold_a_word_together_and_are_left_out() {
        let lists = read("mysql --password 'my secret' db");
        assert_eq!(lists[0], ["mysql", "--password", "my", "secret", "db"]);
        assert_eq!(lists[1], ["mysql", "--password", "my secret", "db"]);
        assert_eq!(lists[2], ["my", "secret"]);
    }

    #[test]
    fn command_lines_within_command_lines_are_read() {
        let lists = read(r#"ssh host "sh -c 'mysql -p x y'""#);
        assert!(lists.contains(&vec!["sh", "-c", "mysql -p x y"]));
        assert!(lists.contains(&vec!["mysql", "-p", "x", "y"]));
    }

    #[test]
    fn a_quote_without_its_end_reaches_to_the_end() {
        assert_eq!(read("a 'b c")[1], ["a", "b c"]);
    }
}
