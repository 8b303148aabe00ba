//! Reads fields one by one and collects what is wrong with them, so that every mistake is told at once.
//!
//! Each method gives `None` exactly when it has noted a mistake.

use std::ops::RangeInclusive;

use crate::mistake::{Mistake, Mistakes, join};

/// A value that a field refuses: why, and what to write instead.
pub(crate) struct Refused {
    pub(crate) why: String,
    pub(crate) remedy: String,
}

impl Refused {
    pub(crate) fn new(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            remedy: remedy.into(),
        }
    }
}

/// The mistakes of one object, as they are found.
#[derive(Default)]
pub(crate) struct Reading {
    mistakes: Vec<Mistake>,
}

impl Reading {
    /// Notes a mistake.
    pub(crate) fn refuse(&mut self, path: &str, value: Option<&str>, refused: Refused) {
        self.mistakes.push(Mistake {
            path: path.to_owned(),
            value: value.map(str::to_owned),
            why: refused.why,
            remedy: refused.remedy,
        });
    }

    /// A text, by its own parser.
    pub(crate) fn text<T>(
        &mut self,
        path: &str,
        value: &str,
        parse: impl FnOnce(&str) -> Result<T, Refused>,
    ) -> Option<T> {
        parse(value)
            .map_err(|refused| self.refuse(path, Some(value), refused))
            .ok()
    }

    /// A number within `range`, or `default` when it is absent. `unit` follows each number that is told.
    pub(crate) fn number(
        &mut self,
        path: &str,
        value: Option<u64>,
        default: u64,
        range: &RangeInclusive<u64>,
        unit: &str,
    ) -> Option<u64> {
        let value = value.unwrap_or(default);
        if range.contains(&value) {
            return Some(value);
        }
        let why = if value < *range.start() {
            "is too small"
        } else {
            "is too large"
        };
        let remedy = format!("write {} to {}{unit}", range.start(), range.end());
        self.refuse(path, Some(&format!("{value}{unit}")), Refused::new(why, remedy));
        None
    }

    /// A member of an enum of the wire, or `default` when it is unspecified. `names` are those of the remedy.
    pub(crate) fn member<W: TryFrom<i32>, T>(
        &mut self,
        path: &str,
        value: i32,
        convert: impl FnOnce(W) -> T,
        names: &str,
    ) -> Option<T> {
        let Ok(member) = W::try_from(value) else {
            let refused = Refused::new("is not known to this version", format!("write {names}"));
            self.refuse(path, Some(&value.to_string()), refused);
            return None;
        };
        Some(convert(member))
    }

    /// An object within this one.
    pub(crate) fn inner<T>(&mut self, path: &str, parsed: Result<T, Mistakes>) -> Option<T> {
        parsed
            .map_err(|mistakes| {
                self.mistakes.extend(mistakes.into_iter().map(|mistake| Mistake {
                    path: join(path, &mistake.path),
                    ..mistake
                }));
            })
            .ok()
    }

    /// The object, when nothing was wrong. `made` is `None` only after a mistake.
    pub(crate) fn finish<T>(self, made: Option<T>) -> Result<T, Mistakes> {
        match Mistakes::from_list(self.mistakes) {
            Some(mistakes) => Err(mistakes),
            None => Ok(made.expect("a field is absent only after its mistake was noted")),
        }
    }
}
