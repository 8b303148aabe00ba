//! Brings a mistake of an object back to where it was written.
//!
//! Paths of the validated types are made of JSON names (`capture.activeTimeoutMs`); those of files leave the unit out. A path goes
//! as far into the document as it has parts: what is absent is told at what should hold it.

use flowtilla_proto::mistake::Mistake;
use prost_reflect::MessageDescriptor;

use super::Place;
use super::fields::{self, Shape};
use super::tree::{Item, Node};

/// The path as files write it.
pub(super) fn written(message: &MessageDescriptor, path: &str) -> String {
    follow(None, message, path).0
}

/// Where the value at a path stands, or what should hold it.
pub(super) fn of(root: &Item, message: &MessageDescriptor, path: &str) -> Place {
    follow(Some(root), message, path)
        .1
        .map_or(root.place, |found| found.place)
}

/// A mistake with its place; its path is as files write it, its value as it was written.
pub(super) fn put(root: &Item, message: &MessageDescriptor, mistake: Mistake) -> (Place, Mistake) {
    let (path, found) = follow(Some(root), message, &mistake.path);
    let place = found.as_ref().map_or(root.place, |found| found.place);
    let raw = found.filter(|found| found.whole).and_then(|found| found.scalar);
    let value = raw.filter(|_| mistake.value.is_some()).or(mistake.value);
    (
        place,
        Mistake {
            path,
            value,
            ..mistake
        },
    )
}

/// Whether one path is the other, or within it.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(one, other) || within(other, one)
}

/// What a path led to.
struct Found {
    place: Place,
    /// Whether the whole path is there.
    whole: bool,
    scalar: Option<String>,
}

/// Goes along a path, in the descriptors and, as far as it is there, in the document.
fn follow(root: Option<&Item>, message: &MessageDescriptor, path: &str) -> (String, Option<Found>) {
    let mut written = String::new();
    let mut message = Some(message.clone());
    let mut item = root;
    let mut place = root.map(|root| root.place);
    let mut rest = path;
    let mut whole = true;
    while !rest.is_empty() {
        let stripped = rest.strip_prefix('.').unwrap_or(rest);
        if let Some((index, after)) = index(rest) {
            written += &rest[..rest.len() - after.len()];
            rest = after;
            item = match item.map(|item| &item.node) {
                Some(Node::List(list)) => list.get(index),
                _ => None,
            };
            (place, whole) = stepped(item, place, whole);
            continue;
        }
        let end = stripped.find(['.', '[']).unwrap_or(stripped.len());
        let field = message
            .as_ref()
            .and_then(|message| message.get_field_by_json_name(&stripped[..end]));
        let Some(field) = field else {
            // A key of a map, which may have dots in it, or something that this version does not know.
            written += rest;
            let entries = match item.map(|item| &item.node) {
                Some(Node::Map(entries)) => entries.as_slice(),
                _ => &[],
            };
            let bare = stripped
                .trim_start_matches('[')
                .trim_end_matches(']')
                .trim_matches('"');
            let entry = entries
                .iter()
                .find(|(key, _)| key.text == stripped || key.text == bare);
            item = entry.map(|(_, value)| value);
            (place, whole) = stepped(item, place, whole);
            break;
        };
        let name = fields::name(&field);
        if !written.is_empty() {
            written.push('.');
        }
        written += name;
        rest = &stripped[end..];
        let entry = match item.map(|item| &item.node) {
            Some(Node::Map(entries)) => entries.iter().find(|(key, _)| key.text == name),
            _ => None,
        };
        // A block begins below its key: the key is where a person looks for it.
        if let Some((key, value)) = entry {
            let block = matches!(value.node, Node::Map(_) | Node::List(_) | Node::Null);
            place = Some(if block { key.place } else { value.place });
        }
        item = entry.map(|(_, value)| value);
        whole &= item.is_some();
        message = match fields::shape(&field) {
            Some(Shape::Part(part)) => Some(part),
            _ => None,
        };
    }
    let found = place.map(|place| Found {
        place,
        whole,
        scalar: item.and_then(Item::scalar),
    });
    (written, found)
}

fn stepped(item: Option<&Item>, place: Option<Place>, whole: bool) -> (Option<Place>, bool) {
    match item {
        Some(item) => (Some(item.place), whole),
        None => (place, false),
    }
}

/// `[12]rest` → 12 and the rest.
fn index(path: &str) -> Option<(usize, &str)> {
    let (digits, after) = path.strip_prefix('[')?.split_once(']')?;
    Some((digits.parse().ok()?, after))
}
