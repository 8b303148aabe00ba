//! `agentctl schema`: the JSON schema of documents, made of the API's descriptors and the comments of its `.proto` files.
//!
//! JSON Schema 2020-12. It says what [`crate::document`] reads, ranges excepted: those are the validated types' own. Without KIND
//! it takes a document of any kind.

use clap::{Args, ValueEnum};
use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::cmd::fleet::print;
use crate::document::fields::{self, Shape};
use crate::document::{API_VERSION, Kind};
use crate::exit::Exit;

#[derive(Args, Clone, Debug)]
pub(crate) struct SchemaArgs {
    /// Only this kind of document.
    #[arg(value_name = "KIND", value_enum)]
    pub(crate) kind: Option<Which>,
}

/// Kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    #[value(alias = "Collector")]
    Collector,
    #[value(name = "hostgroup", alias = "HostGroup")]
    HostGroup,
    #[value(alias = "Policy")]
    Policy,
}

/// Runs the command.
///
/// # Errors
///
/// stdout cannot be written.
pub(crate) fn run(args: &SchemaArgs) -> anyhow::Result<Exit> {
    let kinds = match args.kind {
        None => Kind::ALL.to_vec(),
        Some(Which::Collector) => vec![Kind::Collector],
        Some(Which::HostGroup) => vec![Kind::HostGroup],
        Some(Which::Policy) => vec![Kind::Policy],
    };
    print(&(serde_json::to_string_pretty(&schema(&kinds))? + "\n"))
}

/// The schema of documents of these kinds.
pub(crate) fn schema(kinds: &[Kind]) -> Value {
    let mut parts = Map::new();
    for &kind in kinds {
        document(kind, &mut parts);
    }
    let names = kinds.iter().map(|kind| reference(kind.name()));
    let mut schema = Map::new();
    schema.insert(
        "$schema".into(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    match kinds {
        [kind] => schema.insert("$ref".into(), reference(kind.name())["$ref"].clone()),
        _ => schema.insert("oneOf".into(), Value::Array(names.collect())),
    };
    schema.insert("$defs".into(), Value::Object(parts));
    Value::Object(schema)
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

fn document(kind: Kind, parts: &mut Map<String, Value>) {
    let message = fields::message(kind);
    let mut schema = object(&message, parts);
    let properties = schema["properties"]
        .as_object_mut()
        .expect("an object has properties");
    properties.insert("apiVersion".into(), json!({ "const": API_VERSION }));
    properties.insert("kind".into(), json!({ "const": kind.name() }));
    schema["required"] = json!(["apiVersion", "kind", "name"]);
    parts.insert(kind.name().into(), schema);
}

fn object(message: &MessageDescriptor, parts: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    for field in message.fields() {
        if let Some(shape) = fields::shape(&field) {
            properties.insert(fields::name(&field).into(), property(&field, &shape, parts));
        }
    }
    let mut schema = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    describe(&mut schema, &comment(&message.parent_file(), message.path()));
    for one in message.oneofs().filter(|one| !one.is_synthetic()) {
        let alone = one
            .fields()
            .map(|field| json!({ "required": [fields::name(&field)] }));
        schema["oneOf"] = Value::Array(alone.collect());
    }
    schema
}

fn property(field: &FieldDescriptor, shape: &Shape, parts: &mut Map<String, Value>) -> Value {
    let value = match shape {
        Shape::Switch => json!({ "type": "boolean" }),
        Shape::Number(most) => json!({ "type": "integer", "minimum": 0, "maximum": most }),
        Shape::Duration => json!({ "type": "string", "pattern": "^[0-9]+ *(ms|s|m|h|d)$" }),
        Shape::Size => json!({ "anyOf": [
            { "type": "integer", "minimum": 0 },
            { "type": "string", "pattern": "^[0-9]+ *(KiB|MiB|GiB|TiB)?$" },
        ] }),
        Shape::Text => json!({ "type": ["string", "integer"] }),
        Shape::Choice(of) => choice(of),
        Shape::Part(message) => {
            if !parts.contains_key(message.name()) {
                parts.insert(message.name().into(), Value::Null); // It may hold itself.
                let schema = object(message, parts);
                parts.insert(message.name().into(), schema);
            }
            reference(message.name())
        }
    };
    let mut schema = match field.cardinality() {
        _ if field.is_map() => json!({ "type": "object", "additionalProperties": value }),
        Cardinality::Repeated => json!({ "type": "array", "items": value }),
        _ => value,
    };
    let comment = comment(&field.parent_file(), field.path());
    // The unit is written with the number.
    describe(&mut schema, &comment.replace(", in milliseconds", ""));
    schema
}

fn choice(of: &EnumDescriptor) -> Value {
    let comment_of = |number| {
        let member = of.get_value(number).expect("it is a member");
        comment(&of.parent_file(), member.path())
    };
    let members = fields::members(of).into_iter().map(|(name, number)| {
        let mut member = json!({ "const": name });
        describe(&mut member, &comment_of(number));
        member
    });
    json!({ "oneOf": members.collect::<Vec<_>>() })
}

fn describe(schema: &mut Value, comment: &str) {
    if !comment.is_empty() {
        schema["description"] = json!(comment);
    }
}

/// What stands before something in its `.proto` file, as one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let proto = file.file_descriptor_proto();
    let places = proto.source_code_info.iter().flat_map(|info| &info.location);
    let found = places.filter(|place| place.path == path);
    let text: Vec<&str> = found
        .filter_map(|place| place.leading_comments.as_deref())
        .collect();
    text.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use boon::{Compiler, Schemas};

    use super::*;
    use crate::document::{Documents, Text, render};

    /// Whether the schema takes a value.
    fn takes(kinds: &[Kind], value: &Value) -> Result<(), String> {
        let mut compiler = Compiler::new();
        compiler
            .add_resource("mem:///schema.json", schema(kinds))
            .expect("it is JSON");
        let mut schemas = Schemas::new();
        let index = compiler
            .compile("mem:///schema.json", &mut schemas)
            .map_err(|error| format!("{error:#}"))
            .expect("it is a schema");
        schemas.validate(value, index).map_err(|error| error.to_string())
    }

    fn documents() -> Vec<Value> {
        let texts = [
            include_str!("../tests/fleet/hosts.yaml"),
            include_str!("../tests/fleet/fleet.yaml"),
        ];
        let texts = texts.map(|content| Text {
            name: "fleet.yaml".to_owned(),
            content: content.to_owned(),
        });
        let (documents, complaints) = Documents::read(&texts);
        assert!(complaints.is_empty(), "{complaints:?}");
        let objects = documents.objects();
        let plain = objects.iter().map(render::plain);
        plain
            .map(|plain| serde_json::to_value(plain).expect("it is JSON"))
            .collect()
    }

    #[test]
    fn documents_that_are_read_are_taken_by_the_schema() {
        for document in documents() {
            assert_eq!(takes(&Kind::ALL, &document), Ok(()), "{document}");
            let kind = Kind::of(document["kind"].as_str().expect("a kind")).expect("a kind");
            assert_eq!(takes(&[kind], &document), Ok(()), "{document}");
            let other = Kind::ALL
                .into_iter()
                .find(|other| *other != kind)
                .expect("there are others");
            assert!(takes(&[other], &document).is_err(), "{document}");
        }
    }

    #[test]
    fn what_is_refused_by_its_form_is_refused_by_the_schema() {
        let policy = documents().pop().expect("a policy");
        for (path, value) in [
            ("/capture/tcp", json!("yes")),
            ("/capture/activeTimeout", json!(10)),
            ("/capture/activeTimeout", json!("10w")),
            ("/buffer/octetsMax", json!("8MB")),
            ("/export/mode", json!("mirrored")),
            ("/export/collectors", json!("main")),
            ("/priority", json!(4_294_967_296_u64)),
            ("/capture/include/0", json!({ "port": [1] })),
            ("/apiVersion", json!("flowtilla/v2")),
        ] {
            let mut wrong = policy.clone();
            *wrong
                .pointer_mut(path)
                .unwrap_or_else(|| panic!("{path} is there")) = value;
            assert!(takes(&[Kind::Policy], &wrong).is_err(), "{path}");
        }
        let mut both = policy.clone();
        both["capture"]["scopes"] = json!([{ "cgroup": "/a", "netns": "/b" }]);
        assert!(takes(&[Kind::Policy], &both).is_err());
        both["capture"]["scopes"] = json!([{ "cgroup": "/a" }, { "netns": "/b" }]);
        assert_eq!(takes(&[Kind::Policy], &both), Ok(()));
    }

    #[test]
    fn comments_of_the_proto_files_are_its_descriptions() {
        let schema = schema(&Kind::ALL);
        let timeout = &schema["$defs"]["Capture"]["properties"]["activeTimeout"];
        assert_eq!(
            timeout["description"],
            "Longest span that one record of a live flow covers."
        );
        let mode = &schema["$defs"]["Export"]["properties"]["mode"]["oneOf"][0];
        assert_eq!(
            (&mode["const"], &mode["description"]),
            (&json!("mirror"), &json!("Each of them. The default."))
        );
    }
}
