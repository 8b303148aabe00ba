//! Source ids of 8 bits: by which numbers collectors of header version 1 know this agent.
//!
//! The controller allots them, for one octet is too few to draw from. What it says replaces what it said before. An agent that
//! has a controller uses no number that it was not given: what it has for such a collector waits until then ([`NoShortId`]). Kept as
//! text, a line `NAME NUMBER` a collector, so that an agent that starts without its controller goes on as it was known.

use std::collections::BTreeMap;
use std::num::NonZeroU8;

use flowtilla_proto::ids::{CollectorName, SourceId};
use flowtilla_proto::wire::session as wire;

/// Most collectors of which a number is kept.
///
/// A policy names 16 at most, and one may be taking the place of another. Half of it cuts that off; more is not said.
pub const SHORT_IDS_MAX: usize = 32;

/// Who says by which number a collector knows this agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShortIds {
    /// Nobody, for there is no controller: it follows from the source id, and another agent may have the same.
    Own,
    /// The controller; a collector's is `None`: it has none left; is absent: it has not said.
    Given(BTreeMap<CollectorName, Option<NonZeroU8>>),
}

/// Why a collector of header version 1 gets nothing from this agent. `Display`: a sentence for its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoShortId {
    /// The controller was not heard yet, or has yet to hear what this agent has in force.
    #[error(
        "the controller has not said yet by which source id of 8 bits it is to know this agent: records wait on this host; see that \
         the agent reaches its controller"
    )]
    NotTold,
    /// All are other agents'.
    #[error(
        "the controller has no source id of 8 bits for this agent: header version 1 tells 255 agents a collector apart; give some of \
         them another collector, or, if it reads it, header version 2"
    )]
    NoneLeft,
}

impl ShortIds {
    /// Of an agent whose controller has said nothing yet.
    #[must_use]
    pub fn untold() -> Self {
        Self::Given(BTreeMap::new())
    }

    /// What a controller said. Of collectors beyond [`SHORT_IDS_MAX`], and of those whose names are none, nothing is kept.
    #[must_use]
    pub fn parse(sent: &wire::ShortSourceIds) -> Self {
        let known = sent.by_collector.iter().filter_map(|(name, &number)| {
            let name = CollectorName::told(name)?;
            Some((name, u8::try_from(number).ok().and_then(NonZeroU8::new)))
        });
        Self::Given(known.take(SHORT_IDS_MAX).collect())
    }

    /// The number for a collector.
    ///
    /// # Errors
    /// [`NoShortId`].
    pub fn of(&self, collector: &CollectorName, source_id: SourceId) -> Result<NonZeroU8, NoShortId> {
        match self {
            Self::Own => {
                let folded = u8::try_from(source_id.number() % 255).expect("below 255");
                Ok(NonZeroU8::MIN.saturating_add(folded))
            }
            Self::Given(ids) => match ids.get(collector) {
                None => Err(NoShortId::NotTold),
                Some(id) => id.ok_or(NoShortId::NoneLeft),
            },
        }
    }

    /// As it is kept; nothing when nobody says it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self::Given(ids) = self else {
            return String::new();
        };
        let line = |(name, id): (&CollectorName, &Option<NonZeroU8>)| {
            format!("{name} {}\n", id.map_or(0, NonZeroU8::get))
        };
        ids.iter().map(line).collect()
    }

    /// What was kept; `None`: it is something else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            let number: u8 = number.parse().ok()?;
            Some((CollectorName::told(name)?, NonZeroU8::new(number)))
        };
        let ids: BTreeMap<_, _> = text.lines().map(line).collect::<Option<_>>()?;
        (ids.len() <= SHORT_IDS_MAX).then_some(Self::Given(ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CollectorName {
        CollectorName::told(text).expect("a name")
    }

    fn sent(ids: &[(&str, u32)]) -> wire::ShortSourceIds {
        wire::ShortSourceIds {
            by_collector: ids.iter().map(|&(name, id)| (name.to_owned(), id)).collect(),
        }
    }

    #[test]
    fn a_number_is_the_controllers_or_none_once_it_has_spoken() {
        let source = SourceId::new(0x1234_5600).expect("not 0");
        let own = ShortIds::Own.of(&name("a"), source).expect("always one");
        assert_eq!(u32::from(own.get()), 0x1234_5600 % 255 + 1);
        let given = ShortIds::parse(&sent(&[("a", 7), ("b", 0), ("c", 256), ("No name", 3)]));
        assert_eq!(given.of(&name("a"), source).map(NonZeroU8::get), Ok(7));
        for none in ["b", "c"] {
            assert_eq!(given.of(&name(none), source), Err(NoShortId::NoneLeft), "{none}");
        }
        for ids in [given, ShortIds::untold()] {
            assert_eq!(ids.of(&name("d"), source), Err(NoShortId::NotTold));
        }
    }

    #[test]
    fn what_is_kept_is_read_as_the_same_and_nothing_else_is() {
        for given in [sent(&[]), sent(&[("a", 255), ("b", 0)])] {
            let ids = ShortIds::parse(&given);
            assert_eq!(ShortIds::from_text(&ids.to_text()), Some(ids));
        }
        for damaged in ["a", "a b\n", "a 256\n", "A 1\n", "a 1\n\n"] {
            assert_eq!(ShortIds::from_text(damaged), None, "{damaged:?}");
        }
        let many: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
        let many: Vec<(&str, u32)> = many.iter().map(|name| (name.as_str(), 1)).collect();
        let ShortIds::Given(kept) = ShortIds::parse(&sent(&many)) else {
            panic!("given");
        };
        assert_eq!(kept.len(), SHORT_IDS_MAX);
    }
}
