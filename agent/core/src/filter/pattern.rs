//! Text with `*` for any characters.
//!
//! In: a pattern of the policy, and text that a stranger chose. Out: whether it matches, in time that grows with the
//! product of their lengths at most.

/// A pattern, made ready for use.
#[derive(Debug)]
pub(super) struct Pattern {
    /// What stands before, between and after the `*`s; without one it is the whole.
    parts: Vec<Box<str>>,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self {
            parts: text.split('*').map(Box::from).collect(),
        }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.parts.split_first() else {
            return false;
        };
        let Some((last, between)) = rest.split_last() else {
            return text == &**first;
        };
        let Some(inner) = text
            .strip_prefix(&**first)
            .and_then(|text| text.strip_suffix(&**last))
        else {
            return false;
        };
        // The earliest place of each part leaves most to the next.
        let left = between.iter().try_fold(inner, |text, part| {
            text.find(&**part).map(|at| &text[at + part.len()..])
        });
        left.is_some()
    }
}
