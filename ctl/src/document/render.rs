//! Objects as documents: what [`super::Documents::read`] reads as the same object.
//!
//! Fields stand in the order of the `.proto` files, name first; what is absent is left out.

use flowtilla_proto::wire::fleet::{Object, object};
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, ReflectMessage, Value};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::fields::{self, Shape};
use super::{API_VERSION, Kind, units};

/// A document in any notation; the fields keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    Bool(bool),
    Number(u64),
    Fraction(f64),
    Text(String),
    List(Vec<Plain>),
    Map(Vec<(String, Plain)>),
}

impl Serialize for Plain {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Number(value) => to.serialize_u64(*value),
            Self::Fraction(value) => to.serialize_f64(*value),
            Self::Text(text) => to.serialize_str(text),
            Self::List(items) => {
                let mut list = to.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Map(entries) => {
                let mut map = to.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// An object as a document. One of a kind that this version does not know has its version only.
pub(crate) fn plain(object: &Object) -> Plain {
    let mut entries = vec![("apiVersion".to_owned(), Plain::Text(API_VERSION.to_owned()))];
    let (kind, read) = match &object.kind {
        Some(object::Kind::Policy(policy)) => (Kind::Policy, reflect(Kind::Policy, policy)),
        Some(object::Kind::Collector(collector)) => (Kind::Collector, reflect(Kind::Collector, collector)),
        Some(object::Kind::HostGroup(group)) => (Kind::HostGroup, reflect(Kind::HostGroup, group)),
        None => return Plain::Map(entries),
    };
    entries.push(("kind".to_owned(), Plain::Text(kind.name().to_owned())));
    entries.extend(message(&read));
    Plain::Map(entries)
}

/// Objects as YAML documents, one after the other.
pub(crate) fn yaml<'a>(objects: impl IntoIterator<Item = &'a Object>) -> String {
    let mut text = String::new();
    for object in objects {
        if !text.is_empty() {
            text.push_str("---\n");
        }
        text.push_str(&to_yaml(&plain(object)));
    }
    text
}

/// Anything as YAML. Control characters are escaped by YAML's own rules.
pub(crate) fn to_yaml(value: &impl Serialize) -> String {
    serde_saphyr::to_string(value).expect("texts, numbers and lists of them are YAML")
}

fn reflect(kind: Kind, sent: &impl prost::Message) -> DynamicMessage {
    let mut made = DynamicMessage::new(fields::message(kind));
    made.transcode_from(sent)
        .expect("the descriptor is that of the message");
    made
}

fn message(of: &DynamicMessage) -> Vec<(String, Plain)> {
    let descriptor = of.descriptor();
    let mut present: Vec<FieldDescriptor> = descriptor.fields().filter(|field| of.has_field(field)).collect();
    present.sort_by_key(FieldDescriptor::number);
    let entry = |field: FieldDescriptor| {
        let value = of.get_field(&field);
        let shape = fields::shape(&field)?;
        Some((fields::name(&field).to_owned(), field_value(&shape, &value)?))
    };
    present.into_iter().filter_map(entry).collect()
}

fn field_value(shape: &Shape, value: &Value) -> Option<Plain> {
    match value {
        Value::List(items) => Some(Plain::List(
            items.iter().filter_map(|item| field_value(shape, item)).collect(),
        )),
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries
                .iter()
                .filter_map(|(key, value)| match key {
                    MapKey::String(key) => Some((key.clone(), field_value(shape, value)?)),
                    _ => None,
                })
                .collect();
            entries.sort_by(|one, other| one.0.cmp(&other.0));
            Some(Plain::Map(entries))
        }
        Value::Bool(value) => Some(Plain::Bool(*value)),
        Value::U32(number) => Some(Plain::Number(u64::from(*number))),
        Value::U64(number) => Some(match shape {
            Shape::Duration => Plain::Text(units::time(*number)),
            Shape::Size => units::size(*number).map_or(Plain::Number(*number), Plain::Text),
            _ => Plain::Number(*number),
        }),
        Value::String(text) => Some(Plain::Text(text.clone())),
        Value::EnumNumber(number) => {
            let Shape::Choice(of) = shape else { return None };
            let members = fields::members(of);
            let name = members.into_iter().find(|(_, member)| member == number);
            name.map(|(name, _)| Plain::Text(name))
        }
        Value::Message(part) => Some(Plain::Map(message(part))),
        _ => None,
    }
}
