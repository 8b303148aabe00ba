//! A tree into a message, by the message's descriptor.
//!
//! Everything that is wrong is told, each with its place; a field that is refused is left out of the message,
//! a member of a list stays as an empty one.

use std::collections::HashMap;

use flowtilla_proto::mistake::Mistake;
use flowtilla_proto::wire::fleet::{Object, object};
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, Value};

use super::fields::{self, Shape};
use super::tree::{Item, Key, Node};
use super::{Kind, Place, units, written_as};

/// Fields of a document that are not the object's.
const HEAD: [&str; 2] = ["apiVersion", "kind"];

/// Complaints about one document, without its file.
type Refused = Vec<(Place, Mistake)>;

/// Reads a document's fields into an object of this kind.
pub(super) fn object(root: &Item, kind: Kind) -> (Object, Refused) {
    let mut reader = Reader { refused: Vec::new() };
    let message = fields::message(kind);
    let read = match &root.node {
        Node::Map(entries) => reader.message(&message, entries, "", &HEAD),
        _ => DynamicMessage::new(message),
    };
    const WHY: &str = "the message is made by the descriptor of the type that it is read as";
    let made = match kind {
        Kind::Policy => object::Kind::Policy(read.transcode_to().expect(WHY)),
        Kind::Collector => object::Kind::Collector(read.transcode_to().expect(WHY)),
        Kind::HostGroup => object::Kind::HostGroup(read.transcode_to().expect(WHY)),
    };
    (Object { kind: Some(made) }, reader.refused)
}

struct Reader {
    refused: Refused,
}

impl Reader {
    fn refuse(
        &mut self,
        place: Place,
        path: &str,
        value: Option<String>,
        why: &str,
        remedy: impl Into<String>,
    ) {
        self.refused.push((
            place,
            Mistake {
                path: path.to_owned(),
                value,
                why: why.to_owned(),
                remedy: remedy.into(),
            },
        ));
    }

    /// `beside`: names that may stand here and are somebody else's.
    fn message(
        &mut self,
        of: &MessageDescriptor,
        entries: &[(Key, Item)],
        path: &str,
        beside: &[&str],
    ) -> DynamicMessage {
        let mut made = DynamicMessage::new(of.clone());
        let mut chosen: HashMap<String, String> = HashMap::new();
        for (n, (key, item)) in entries.iter().enumerate() {
            let at = join(path, &key.text);
            if self.repeated(&entries[..n], key, &at) || beside.contains(&key.text.as_str()) {
                continue;
            }
            let Some(field) = fields::field(of, &key.text) else {
                self.unknown(of, key, &at, beside);
                continue;
            };
            if let Some(one) = field.containing_oneof().filter(|one| !one.is_synthetic()) {
                let first = chosen
                    .entry(one.name().to_owned())
                    .or_insert_with(|| key.text.clone());
                if *first != key.text {
                    let why = format!("stands beside {first}, and only one of them may");
                    self.refuse(key.place, &at, None, &why, "write two entries");
                    continue;
                }
            }
            if let Some(value) = self.field(&field, key, item, &at) {
                made.set_field(&field, value);
            }
        }
        made
    }

    fn repeated(&mut self, before: &[(Key, Item)], key: &Key, at: &str) -> bool {
        let Some((first, _)) = before.iter().find(|(known, _)| known.text == key.text) else {
            return false;
        };
        let why = format!("is there twice, first in line {}", first.place.line);
        self.refuse(key.place, at, None, &why, "write it once");
        true
    }

    fn unknown(&mut self, of: &MessageDescriptor, key: &Key, at: &str, beside: &[&str]) {
        let known: Vec<_> = of.fields().collect();
        let names = || known.iter().map(fields::name).chain(beside.iter().copied());
        let remedy = match fields::nearest(&key.text, names()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("write one of {}", names().collect::<Vec<_>>().join(", ")),
        };
        self.refuse(key.place, at, None, "is no field here", remedy);
    }

    fn field(&mut self, field: &FieldDescriptor, key: &Key, item: &Item, at: &str) -> Option<Value> {
        if item.node == Node::Null {
            return None; // As if it were not there.
        }
        let Some(shape) = fields::shape(field) else {
            self.refuse(key.place, at, None, "cannot be written in a file", "leave it out");
            return None;
        };
        if field.is_map() {
            return self.map(&shape, item, at);
        }
        if !field.is_list() {
            return self.value(&shape, item, at);
        }
        let Node::List(list) = &item.node else {
            let one = item.scalar().unwrap_or_else(|| "…".to_owned());
            let remedy = match one.len() {
                0..=40 => format!("write [{one}], or each member in a line of its own after a dash"),
                _ => "write each member in a line of its own after a dash".to_owned(),
            };
            self.refuse(item.place, at, item.scalar(), "is no list", remedy);
            return None;
        };
        let mut values = Vec::new();
        for (n, item) in list.iter().enumerate() {
            // What is refused leaves something in its place: whoever judges the others counts as the file does.
            let value = self.value(&shape, item, &format!("{at}[{n}]"));
            values.push(value.unwrap_or_else(|| Value::default_value(&field.kind())));
        }
        Some(Value::List(values))
    }

    fn map(&mut self, shape: &Shape, item: &Item, at: &str) -> Option<Value> {
        let Node::Map(entries) = &item.node else {
            let why = "is no list of names with values";
            self.refuse(item.place, at, item.scalar(), why, "write each as name: value");
            return None;
        };
        let mut values = HashMap::new();
        for (n, (key, item)) in entries.iter().enumerate() {
            let at = join(at, &key.text);
            if !self.repeated(&entries[..n], key, &at)
                && let Some(value) = self.value(shape, item, &at)
            {
                values.insert(MapKey::String(key.text.clone()), value);
            }
        }
        Some(Value::Map(values))
    }

    fn value(&mut self, shape: &Shape, item: &Item, at: &str) -> Option<Value> {
        let read = match (shape, &item.node) {
            (Shape::Part(message), Node::Map(entries)) => {
                return Some(Value::Message(self.message(message, entries, at, &[])));
            }
            (Shape::Switch, Node::Bool(value, _)) => Ok(Value::Bool(*value)),
            (Shape::Number(most), Node::Number(number, _)) => number_to(*number, *most),
            (Shape::Size, Node::Number(Some(octets), _)) => Ok(Value::U64(*octets)),
            (Shape::Size, Node::Text(text)) => owned(units::read_size(text)),
            (Shape::Duration, Node::Number(_, raw) | Node::Text(raw)) => owned(units::read_time(raw)),
            (Shape::Text, Node::Text(text)) => Ok(Value::String(text.clone())),
            // `443`, `1`: the digits are the text. Whatever YAML reads as another number than it looks like needs quotes.
            (Shape::Text, Node::Number(Some(number), raw)) if number.to_string() == *raw => {
                Ok(Value::String(raw.clone()))
            }
            (Shape::Text, Node::Bool(..) | Node::Number(..)) => Err((
                format!("is {} to YAML, where a text is due", item.node.called()),
                format!("put it in quotes: \"{}\"", item.raw()),
            )),
            (Shape::Choice(of), Node::Text(text)) => choice(of, text),
            (_, Node::Null) => Err(("is empty".to_owned(), format!("write {}", written_as(shape)))),
            (Shape::Choice(of), _) => Err(("is no word".to_owned(), one_of(of))),
            (_, node) => Err((
                format!("is {}", node.called()),
                format!("write {}", written_as(shape)),
            )),
        };
        match read {
            Ok(value) => Some(value),
            Err((why, remedy)) => {
                self.refuse(item.place, at, item.scalar(), &why, remedy);
                None
            }
        }
    }
}

fn number_to(number: Option<u64>, most: u64) -> Result<Value, (String, String)> {
    match number {
        Some(number) if most == u64::from(u32::MAX) => u32::try_from(number)
            .map(Value::U32)
            .map_err(|_| ("is too large".to_owned(), format!("write at most {most}"))),
        Some(number) => Ok(Value::U64(number)),
        None => Err((
            "is no whole number".to_owned(),
            format!("write a number from 0 to {most}"),
        )),
    }
}

fn owned(read: Result<u64, units::Refused>) -> Result<Value, (String, String)> {
    read.map(Value::U64)
        .map_err(|(why, remedy)| (why.to_owned(), remedy.to_owned()))
}

fn choice(of: &prost_reflect::EnumDescriptor, text: &str) -> Result<Value, (String, String)> {
    let members = fields::members(of);
    let found = members.iter().find(|(name, _)| name == text);
    found
        .map(|(_, number)| Value::EnumNumber(*number))
        .ok_or_else(|| {
            let remedy = match fields::nearest(text, members.iter().map(|(name, _)| name.as_str())) {
                Some(near) => format!("did you mean {near}?"),
                None => one_of(of),
            };
            ("is not known".to_owned(), remedy)
        })
}

fn one_of(of: &prost_reflect::EnumDescriptor) -> String {
    let names: Vec<_> = fields::members(of).into_iter().map(|(name, _)| name).collect();
    format!("write one of {}", names.join(", "))
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}
