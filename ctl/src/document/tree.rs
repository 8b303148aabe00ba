//! A YAML text as a tree of which each part knows its place.
//!
//! Bounded: texts by [`super::TEXT_OCTETS_MAX`], and what they unfold to by [`budget`]. Duplicate keys are kept: whoever reads the
//! tree tells them. An alias is what it stands for, at the alias's place; `<<` is refused.

use std::fmt;

use flowtilla_proto::mistake::Mistake;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Options, Spanned};

use super::{Place, TEXT_OCTETS_MAX};

/// Documents of a text at most.
const DOCUMENTS_MAX: usize = 4_096;
/// Deepest nesting. The objects have five levels.
const DEPTH_MAX: usize = 16;
/// Parts of a text at most, those that aliases stand for included.
///
/// An object of hundreds of rules has thousands. Half of it refuses a fleet in one file; double it, and a bomb takes twice the
/// memory (some 40 MiB).
const NODES_MAX: usize = 200_000;

/// A part of the text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) node: Node,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

/// What a part is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// Nothing, `~` or `null`.
    Null,
    /// A value that is not written in quotes and that YAML takes for something else than a text: as it was written.
    Bool(bool, String),
    /// See [`Node::Bool`]. `None`: no whole number, or none of 64 bits.
    Number(Option<u64>, String),
    Text(String),
    List(Vec<Item>),
    Map(Vec<(Key, Item)>),
}

impl Node {
    /// What it is, with its article.
    pub(super) fn called(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(..) => "true or false",
            Self::Number(..) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "fields",
        }
    }
}

impl Item {
    /// A scalar as it was written; of everything else, what it is.
    pub(super) fn raw(&self) -> String {
        match &self.node {
            Node::Bool(_, raw) | Node::Number(_, raw) => raw.clone(),
            Node::Text(text) => text.clone(),
            Node::Null => String::new(),
            other => other.called().to_owned(),
        }
    }

    /// A scalar as it was written.
    pub(super) fn scalar(&self) -> Option<String> {
        let scalar = matches!(self.node, Node::Bool(..) | Node::Number(..) | Node::Text(_));
        scalar.then(|| self.raw())
    }
}

/// The documents of a text; empty ones are left out.
///
/// # Errors
///
/// The text is no YAML, too long, or unfolds to too much: where, and what to do.
pub(super) fn parse(text: &str) -> Result<Vec<Item>, (Place, Mistake)> {
    let refused = |place, why: String, remedy: &str| {
        let mistake = Mistake {
            path: String::new(),
            value: None,
            why,
            remedy: remedy.to_owned(),
        };
        (place, mistake)
    };
    let start = Place { line: 1, column: 1 };
    if text.len() > TEXT_OCTETS_MAX {
        let why = format!("the text is longer than {} KiB", TEXT_OCTETS_MAX >> 10);
        return Err(refused(start, why, "write several files"));
    }
    let lines = Lines::of(text);
    let parsed = serde_saphyr::from_multiple_with_options::<Spanned<Raw>>(text, options());
    let roots = parsed.map_err(|error| {
        let place = error.location().map_or(start, |location| lines.within(location));
        let told = error.without_snippet().to_string();
        // The place is told in front.
        let why = told.split(" at line ").next().unwrap_or_default();
        refused(place, crate::output::harmless(why), "see YAML 1.2")
    })?;
    let items = roots.into_iter().map(|root| settle(root, &lines));
    Ok(items.filter(|item| item.node != Node::Null).collect())
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 2 * NODES_MAX,
            max_total_scalar_bytes: 4 * TEXT_OCTETS_MAX,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: NODES_MAX,
            max_replay_stack_depth: DEPTH_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
    }
}

/// As the parser gives it.
enum Raw {
    Null,
    Bool(bool),
    Number(Option<u64>),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

/// Gives each part its place, and scalars the text they were written as.
fn settle(raw: Spanned<Raw>, lines: &Lines<'_>) -> Item {
    let place = lines.within(raw.referenced);
    let written = || {
        let span = raw.defined.span();
        let from = span.byte_offset().and_then(|at| usize::try_from(at).ok());
        let octets = span.byte_len().and_then(|len| usize::try_from(len).ok());
        let range = from
            .zip(octets)
            .map(|(from, octets)| from..from.saturating_add(octets));
        range
            .and_then(|range| lines.text.get(range))
            .unwrap_or_default()
            .to_owned()
    };
    let node = match raw.value {
        Raw::Null => Node::Null,
        Raw::Bool(value) => Node::Bool(value, written()),
        Raw::Number(value) => Node::Number(value, written()),
        Raw::Text(value) => Node::Text(value),
        Raw::List(list) => Node::List(list.into_iter().map(|item| settle(item, lines)).collect()),
        Raw::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| {
                let place = lines.within(key.referenced);
                let key = Key {
                    place,
                    text: key.value,
                };
                (key, settle(value, lines))
            };
            Node::Map(entries.into_iter().map(entry).collect())
        }
    };
    Item { place, node }
}

/// A text, and how long its lines are, in characters.
struct Lines<'a> {
    text: &'a str,
    lengths: Vec<u64>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let length = |line: &str| u64::try_from(line.chars().count()).unwrap_or(u64::MAX);
        let mut lengths: Vec<u64> = text.lines().map(length).collect();
        if lengths.is_empty() {
            lengths.push(0);
        }
        Self { text, lengths }
    }

    /// The place, or the nearest one that the text has: the parser tells of an end that is missing behind the last line.
    fn within(&self, location: Location) -> Place {
        let n = usize::try_from(location.line().saturating_sub(1)).unwrap_or(usize::MAX);
        let last = self.lengths.len() - 1;
        let column = if n > last { u64::MAX } else { location.column() };
        let line = n.min(last);
        Place {
            line: line as u64 + 1,
            column: column.clamp(1, self.lengths[line] + 1),
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(Some(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(u64::try_from(value).ok()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Number(u64::try_from(value).ok()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Number(u64::try_from(value).ok()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Number(None))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}
