//! Labels: what is said of an agent, so that a selector can choose it.
//!
//! In: maps of texts, from tokens, hosts and policies. Out: [`Labels`], checked whole.

use std::collections::BTreeMap;

use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};

/// Most labels of one agent, token or selector.
///
/// What people set by hand and by their cloud. Half of it is too few for a host of Kubernetes; double it, and a list of
/// agents is mostly labels.
pub const LABELS_MAX: usize = 32;

/// Longest key and longest value, in octets. Source: what Kubernetes takes, whose labels are copied here.
pub const LABEL_OCTETS_MAX: usize = 63;

/// Keys with their values, at most [`LABELS_MAX`]. Made by parsing only.
///
/// A key is 1 to [`LABEL_OCTETS_MAX`] of `a-z A-Z 0-9 - . _ /`, a value 0 to as many of `a-z A-Z 0-9 - . _`; each has a
/// letter or digit at both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Reads labels.
    ///
    /// # Errors
    ///
    /// Every key and value that is refused; the path is the key in brackets.
    pub fn parse(sent: &BTreeMap<String, String>) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        if sent.len() > LABELS_MAX {
            let why = format!("has {} labels", sent.len());
            reading.refuse("", None, Refused::new(why, format!("write at most {LABELS_MAX}")));
        }
        for (key, value) in sent {
            let at = format!("[{}]", key.escape_debug());
            reading.text(&at, key, parse_key);
            reading.text(&at, value, parse_value);
        }
        reading.finish(Some(Self(sent.clone())))
    }

    /// Whether these are among `all`, each with the same value.
    #[must_use]
    pub fn within(&self, all: &Self) -> bool {
        self.0
            .iter()
            .all(|(key, value)| all.0.get(key).is_some_and(|other| other == value))
    }

    /// These, and those of `other` whose keys are not here.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        let mut both = other.0.clone();
        both.extend(self.0.clone());
        Self(both)
    }

    /// The map.
    #[must_use]
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

fn parse_key(text: &str) -> Result<(), Refused> {
    let remedy = || {
        format!(
            "write 1 to {LABEL_OCTETS_MAX} of letters, digits, '-', '.', '_' and '/', with a letter or digit at both ends"
        )
    };
    let inner = |octet: u8| octet.is_ascii_alphanumeric() || b"-._/".contains(&octet);
    if text.is_empty() {
        return Err(Refused::new("is no key", remedy()));
    }
    check(text, inner, "is not a label's key", remedy)
}

fn parse_value(text: &str) -> Result<(), Refused> {
    let remedy = || {
        format!(
            "write at most {LABEL_OCTETS_MAX} of letters, digits, '-', '.' and '_', with a letter or digit at both ends"
        )
    };
    let inner = |octet: u8| octet.is_ascii_alphanumeric() || b"-._".contains(&octet);
    check(text, inner, "is not a label's value", remedy)
}

fn check(
    text: &str,
    inner: impl Fn(u8) -> bool,
    why: &str,
    remedy: impl Fn() -> String,
) -> Result<(), Refused> {
    if text.len() > LABEL_OCTETS_MAX {
        return Err(Refused::new("is too long for a label", remedy()));
    }
    let outer = |octet: Option<u8>| octet.is_none_or(|octet| octet.is_ascii_alphanumeric());
    if !text.bytes().all(inner) || !outer(text.bytes().next()) || !outer(text.bytes().last()) {
        return Err(Refused::new(why, remedy()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, String> {
        let map = pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Labels::parse(&map).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn keys_and_values_are_those_of_kubernetes() {
        let long = "x".repeat(LABEL_OCTETS_MAX);
        for (key, value) in [
            ("role", "web"),
            ("topology.kubernetes.io/zone", "eu-west-1a"),
            ("Role_2", ""),
            (&long, &long),
        ] {
            assert!(labels(&[(key, value)]).is_ok(), "{key}={value}");
        }
        let longer = "x".repeat(LABEL_OCTETS_MAX + 1);
        for (key, value) in [
            ("", "a"),
            ("-a", "a"),
            ("a/", "a"),
            ("a b", "a"),
            ("ä", "a"),
            ("a\n", "a"),
            ("a", "b/c"),
            ("a", "b "),
            ("a", ".b"),
            (&longer, "a"),
            ("a", &longer),
        ] {
            assert!(labels(&[(key, value)]).is_err(), "{key}={value}");
        }
    }

    #[test]
    fn each_bad_label_is_told_with_its_key() {
        assert_eq!(
            labels(&[("a", "b c"), ("-", "")]).expect_err("two"),
            "[-]: \"-\" is not a label's key; write 1 to 63 of letters, digits, '-', '.', '_' and '/', with a letter or \
             digit at both ends\n[a]: \"b c\" is not a label's value; write at most 63 of letters, digits, '-', '.' and \
             '_', with a letter or digit at both ends"
        );
    }

    #[test]
    fn there_are_not_too_many() {
        let map = |n: usize| (0..n).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(Labels::parse(&map(LABELS_MAX)).is_ok());
        assert!(Labels::parse(&map(LABELS_MAX + 1)).is_err());
    }

    #[test]
    fn labels_over_others_win() {
        let token = labels(&[("role", "web")]).expect("sound");
        let host = labels(&[("role", "db"), ("zone", "a")]).expect("sound");
        assert_eq!(
            token.over(&host),
            labels(&[("role", "web"), ("zone", "a")]).expect("sound")
        );
        assert!(token.within(&token.over(&host)));
        assert!(!token.within(&host));
    }
}
