//! What is wrong with an object, all of it at once, each in one sentence that names the field and the remedy.

use std::fmt;

/// Most characters of a refused value that are shown again.
///
/// A terminal line. Half of it cuts keys, which are compared by eye; double it, and the remedy is off the screen.
const VALUE_SHOWN_MAX: usize = 96;

/// Most mistakes that are kept for one object.
///
/// An object from the network may be made of mistakes; what a person repairs in one go is far less.
pub const MISTAKES_MAX: usize = 64;

/// One field whose value is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where: names of fields joined by dots, positions in brackets, such as `capture.scopes[1].netns`. Empty: the
    /// object itself.
    pub path: String,
    /// What was found, as it was written; `None`: the field is absent.
    pub value: Option<String>,
    /// Why it is refused: goes on after "is" being silent, such as `has no port`.
    pub why: String,
    /// What to write instead, such as `write tcp://HOST:PORT`.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    /// One line, whatever the value contains.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        if let Some(value) = &self.value {
            let shown: String = value.chars().take(VALUE_SHOWN_MAX).collect();
            let more = if shown.len() < value.len() { "…" } else { "" };
            write!(f, "{shown:?}{more} ")?;
        }
        write!(f, "{}; {}", self.why, self.remedy)
    }
}

/// Everything that is wrong with an object; at least one mistake, at most [`MISTAKES_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// What was collected, or nothing when nothing was.
    #[must_use]
    pub fn from_list(mut list: Vec<Mistake>) -> Option<Self> {
        list.truncate(MISTAKES_MAX);
        (!list.is_empty()).then_some(Self(list))
    }

    /// Each of them, in the order of the object's fields.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// The same mistakes, seen from an object that holds this one at `outer`.
    #[must_use]
    pub fn under(mut self, outer: &str) -> Self {
        for mistake in &mut self.0 {
            mistake.path = join(outer, &mistake.path);
        }
        self
    }
}

impl IntoIterator for Mistakes {
    type Item = Mistake;
    type IntoIter = std::vec::IntoIter<Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Mistakes {
    /// One line a mistake, no line end after the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// `outer.inner`, without the dot when one of them is empty or `inner` is a position.
pub(crate) fn join(outer: &str, inner: &str) -> String {
    match (outer.is_empty(), inner.is_empty()) {
        (true, _) => inner.to_owned(),
        (_, true) => outer.to_owned(),
        _ if inner.starts_with('[') => format!("{outer}{inner}"),
        _ => format!("{outer}.{inner}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line_whatever_the_value_contains() {
        let mistake = Mistake {
            path: "endpoint".into(),
            value: Some("tcp://a\nb\u{1b}[2J".into()),
            why: "has no port".into(),
            remedy: "write tcp://HOST:PORT".into(),
        };
        assert_eq!(
            mistake.to_string(),
            r#"endpoint: "tcp://a\nb\u{1b}[2J" has no port; write tcp://HOST:PORT"#
        );
    }

    #[test]
    fn a_long_value_is_cut() {
        let mistake = Mistake {
            path: "name".into(),
            value: Some("x".repeat(VALUE_SHOWN_MAX + 1)),
            why: "is too long".into(),
            remedy: "shorten it".into(),
        };
        let line = mistake.to_string();
        assert!(line.ends_with("x\"… is too long; shorten it"), "{line}");
    }

    #[test]
    fn mistakes_are_seen_from_the_outer_object() {
        let inner = Mistake {
            path: "name".into(),
            value: None,
            why: "is absent".into(),
            remedy: "name it".into(),
        };
        let mistakes = Mistakes::from_list(vec![inner])
            .expect("one mistake")
            .under("collectors[2]");
        assert_eq!(mistakes.to_string(), "collectors[2].name: is absent; name it");
    }

    #[test]
    fn no_mistakes_are_no_value() {
        assert_eq!(Mistakes::from_list(Vec::new()), None);
    }
}
