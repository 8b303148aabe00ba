//! What stands behind an error, and how it is told on one line.

use std::error::Error;
use std::io;

/// Most causes that are looked through. Twice what any call here has had.
const CAUSES_MAX: usize = 16;

/// An error and what led to it, the nearest first; what a [`io::Error`] wraps is among them.
pub fn all<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&at| {
        match at.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => at.source(),
        }
    })
    .take(CAUSES_MAX)
}

/// An error with what led to it on one line; left out is what only says again what stands before it.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in all(error) {
        let said = cause.to_string();
        if text.is_empty() {
            text = said;
        } else if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Told {
        #[error("no connection")]
        Connect(#[source] io::Error),
        #[error("the key is gone")]
        Key,
    }

    #[test]
    fn what_an_io_error_wraps_is_found_and_told_once() {
        let error = Told::Connect(io::Error::other(Told::Key));
        let found = all(&error).filter_map(|cause| cause.downcast_ref::<Told>());
        assert!(matches!(found.last(), Some(Told::Key)));
        assert_eq!(chain(&error), "no connection: the key is gone");
    }

    #[test]
    fn an_error_that_is_its_own_cause_ends() {
        #[derive(Debug)]
        struct Round;
        impl std::fmt::Display for Round {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("round")
            }
        }
        impl Error for Round {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&Round)
            }
        }
        assert_eq!(all(&Round).count(), CAUSES_MAX);
        assert_eq!(chain(&Round), "round");
    }
}
