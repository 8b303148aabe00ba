//! How the fields of the API's messages are written in files, by their descriptors.
//!
//! A field has its JSON name, but `fooMs` is written `foo` with a time; a field with `octets` in its name takes a size; a member of
//! an enum is the camelCase of its constant without the enum's prefix. Nothing here knows a field by its name.
//! Invariant: every field of the objects has a [`Shape`] (a test goes through them).

use std::sync::LazyLock;

use flowtilla_proto::wire::OBJECT_DESCRIPTORS;
use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind as Wire, MessageDescriptor};

use super::Kind;

/// Package of the objects.
const PACKAGE: &str = "flowtilla.policy.v1";

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(OBJECT_DESCRIPTORS).expect("the build made it"));

/// What a value of a field is, in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Switch,
    /// A number up to this one.
    Number(u64),
    /// Milliseconds, written as a time.
    Duration,
    /// Octets, written as a number or a size.
    Size,
    /// Any text.
    Text,
    /// A member of an enum.
    Choice(EnumDescriptor),
    /// Fields of its own.
    Part(MessageDescriptor),
}

/// The message of a kind of object.
pub(crate) fn message(kind: Kind) -> MessageDescriptor {
    let name = format!("{PACKAGE}.{}", kind.name());
    POOL.get_message_by_name(&name)
        .expect("a kind of object is a message of the package")
}

/// The name of a field in files.
pub(crate) fn name(field: &FieldDescriptor) -> &str {
    let name = field.json_name();
    match is_duration(field) {
        true => name.strip_suffix("Ms").unwrap_or(name),
        false => name,
    }
}

/// The field of this name in files.
pub(crate) fn field(message: &MessageDescriptor, named: &str) -> Option<FieldDescriptor> {
    message.fields().find(|field| name(field) == named)
}

/// What each value of a field is: of a list its members, of a map its values. `None`: a file cannot have it.
pub(crate) fn shape(field: &FieldDescriptor) -> Option<Shape> {
    let kind = match field.kind() {
        Wire::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    };
    Some(match kind {
        Wire::Bool => Shape::Switch,
        Wire::String => Shape::Text,
        Wire::Uint64 if is_duration(field) => Shape::Duration,
        Wire::Uint64 if field.name().contains("octets") => Shape::Size,
        Wire::Uint64 => Shape::Number(u64::MAX),
        Wire::Uint32 => Shape::Number(u64::from(u32::MAX)),
        Wire::Enum(members) => Shape::Choice(members),
        Wire::Message(message) => Shape::Part(message),
        _ => return None,
    })
}

/// The members of an enum by their names in files, the unspecified one left out.
pub(crate) fn members(of: &EnumDescriptor) -> Vec<(String, i32)> {
    let prefix = format!("{}_", constant(of.name()));
    of.values()
        .filter(|member| member.number() != 0)
        .map(|member| {
            let name = member.name();
            (camel(name.strip_prefix(&prefix).unwrap_or(name)), member.number())
        })
        .collect()
}

/// The one of `all` that `text` was probably meant to be; `None`: none, or one of several.
pub(crate) fn nearest<'a>(text: &str, all: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// A text that is longer is no slip of a name. Bounds the work, too.
    const OCTETS_MAX: usize = 64;
    if text.is_empty() || text.len() > OCTETS_MAX {
        return None;
    }
    let lower = text.to_lowercase();
    let slips_max = (text.chars().count() / 3).max(1);
    let distance = |name: &str| strsim::osa_distance(&lower, &name.to_lowercase());
    let near = |name: &&str| {
        // `activeTimeoutMs`, `nameSpace`: the name with something after it.
        distance(name) <= slips_max || (name.len() > 3 && lower.starts_with(&name.to_lowercase()))
    };
    let mut all: Vec<_> = all
        .into_iter()
        .filter(near)
        .map(|name| (distance(name), name))
        .collect();
    all.sort_unstable();
    match all[..] {
        // Two that are as near: nobody knows which was meant.
        [(one, _), (other, _), ..] if one == other => None,
        [(_, nearest), ..] => Some(nearest),
        [] => None,
    }
}

fn is_duration(field: &FieldDescriptor) -> bool {
    field.name().ends_with("_ms") && field.kind() == Wire::Uint64
}

/// `CommandLine` → `COMMAND_LINE`.
fn constant(name: &str) -> String {
    let mut constant = String::new();
    for (n, letter) in name.chars().enumerate() {
        if n > 0 && letter.is_ascii_uppercase() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}

/// `HOST_ADDRESS` → `hostAddress`.
fn camel(constant: &str) -> String {
    let mut camel = String::new();
    for (n, word) in constant.split('_').enumerate() {
        let mut letters = word.chars();
        match letters.next() {
            Some(first) if n > 0 => camel.push(first.to_ascii_uppercase()),
            Some(first) => camel.push(first.to_ascii_lowercase()),
            None => {}
        }
        camel.extend(letters.map(|letter| letter.to_ascii_lowercase()));
    }
    camel
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_field_of_the_objects_can_be_written_and_no_two_have_one_name() {
        let mut seen = BTreeSet::new();
        let mut todo: Vec<_> = Kind::ALL.map(message).into();
        while let Some(message) = todo.pop() {
            if !seen.insert(message.full_name().to_owned()) {
                continue;
            }
            let mut names = BTreeSet::new();
            for field in message.fields() {
                assert!(names.insert(name(&field).to_owned()), "{}", field.full_name());
                let shape = shape(&field).unwrap_or_else(|| panic!("{} has no shape", field.full_name()));
                match shape {
                    Shape::Part(part) => todo.push(part),
                    Shape::Choice(of) => assert_eq!(members(&of).len() + 1, of.values().len()),
                    _ => {}
                }
            }
        }
        assert!(seen.len() > 8, "{seen:?}");
    }

    #[test]
    fn names_follow_the_rules() {
        let capture = field(&message(Kind::Policy), "capture").expect("there is one");
        let Some(Shape::Part(capture)) = shape(&capture) else {
            panic!("capture has fields");
        };
        let timeout = field(&capture, "activeTimeout").expect("without its unit");
        assert_eq!(shape(&timeout), Some(Shape::Duration));
        assert_eq!(field(&capture, "activeTimeoutMs"), None);
        let header = field(&message(Kind::Collector), "headerVersion").expect("there is one");
        let Some(Shape::Choice(of)) = shape(&header) else {
            panic!("headerVersion is a choice");
        };
        assert_eq!(members(&of)[0], ("v1".to_owned(), 1));
        assert_eq!(camel("HOST_ADDRESS"), "hostAddress");
    }

    #[test]
    fn slips_are_found() {
        let all = ["capture", "activeTimeout", "export", "tcp"];
        for (text, meant) in [
            ("captrue", Some("capture")),
            ("Capture", Some("capture")),
            ("activeTimeoutMs", Some("activeTimeout")),
            ("active_timeout", Some("activeTimeout")),
            ("tpc", Some("tcp")),
            ("limits", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, all), meant, "{text}");
        }
    }
}
