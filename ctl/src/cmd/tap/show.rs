//! What a message says, and how it is printed: lines for people, or one JSON object a line.

use std::io::{self, Write};

use bytes::Bytes;
use flowtilla_agent_core::encode::COLLECTOR_PAYLOAD_OCTETS_MAX;
use flowtilla_agent_core::encode::header::{self, Header, PayloadEncoding, Topic};
use flowtilla_agent_core::encode::tlv::{self, Key, Value};
use serde_json::json;

use super::Output;
use super::flow::Flow;
use super::ledger::{Ledger, Source};
use super::text::{escape, escape_json, utc};

/// A message, decoded as far as it could be.
#[derive(Debug)]
pub(super) struct Arrival {
    /// `None`: not even this could be read; `content` says why.
    pub(super) header: Option<Header>,
    pub(super) content: Content,
}

/// What a message says.
#[derive(Debug)]
pub(super) enum Content {
    /// Flow records.
    Flows(Vec<Flow>),
    /// Everything else is one JSON value.
    Document(serde_json::Value),
    /// ntopng drops it before it notes the message's id: why.
    Refused(String),
    /// It is none of these: why.
    Unreadable(String),
}

impl Arrival {
    pub(super) fn decode(frames: &[Bytes]) -> Self {
        let unreadable = |why: String| Self {
            header: None,
            content: Content::Unreadable(why),
        };
        let [header, payload] = frames else {
            return unreadable(format!("a message has 2 frames, this one {}", frames.len()));
        };
        match header::decode(header) {
            Ok(header) => Self {
                content: Content::decode(&header, payload),
                header: Some(header),
            },
            Err(error) => unreadable(error.to_string()),
        }
    }
}

impl Content {
    fn decode(header: &Header, payload: &[u8]) -> Self {
        if payload.is_empty() {
            return Self::Refused("the payload is empty".into());
        }
        if payload.len() > COLLECTOR_PAYLOAD_OCTETS_MAX {
            let octets = payload.len();
            return Self::Refused(format!("{octets} octets are more than ntopng takes"));
        }
        if header.compressed || (header.encoding == PayloadEncoding::Json && payload[0] == 0) {
            return Self::Unreadable("compressed, which is not decoded here".into());
        }
        match (header.topic, header.encoding) {
            (Topic::Flow, PayloadEncoding::Tlv) => match tlv::decode(payload) {
                Ok(records) => Self::Flows(records.into_iter().map(Flow::from).collect()),
                Err(error) => Self::Unreadable(error.to_string()),
            },
            (topic, PayloadEncoding::Tlv) => {
                Self::Unreadable(format!("TLV does not go with {}", topic.name()))
            }
            (topic, PayloadEncoding::Json) => match serde_json::from_slice(payload) {
                Ok(value) if topic == Topic::Flow => Self::Flows(flows(value)),
                Ok(value) => Self::Document(value),
                Err(error) => Self::Unreadable(error.to_string()),
            },
        }
    }
}

/// Flow records as JSON: an object, or an array of them.
fn flows(value: serde_json::Value) -> Vec<Flow> {
    let records = match value {
        serde_json::Value::Array(records) => records,
        record => vec![record],
    };
    let item = |(key, value): (String, serde_json::Value)| {
        let key = key.parse().map_or_else(|_| Key::Name(key), Key::Element);
        let value = match &value {
            serde_json::Value::String(text) => Value::Text(text.clone()),
            number if number.is_u64() => Value::Unsigned(number.as_u64().unwrap_or_default()),
            number if number.is_i64() => Value::Signed(number.as_i64().unwrap_or_default()),
            other => Value::Text(other.to_string()),
        };
        (key, value)
    };
    let items = |record| match record {
        serde_json::Value::Object(members) => members.into_iter().map(item).collect(),
        _ => Vec::new(),
    };
    records
        .into_iter()
        .map(|record| Flow::from(items(record)))
        .collect()
}

/// Prints, and flushes after each message.
pub(super) struct Printer<'a, W> {
    output: Output,
    out: &'a mut W,
}

impl<'a, W: Write> Printer<'a, W> {
    pub(super) fn new(output: Output, out: &'a mut W) -> Self {
        Self { output, out }
    }

    pub(super) fn listening(&mut self, endpoint: &str) -> io::Result<()> {
        match self.output {
            Output::Lines => writeln!(
                self.out,
                "listening on {endpoint} as ntopng does; end with Ctrl-C"
            )?,
            Output::Json => self.json(&json!({ "listening": endpoint }))?,
        }
        self.out.flush()
    }

    pub(super) fn cut_off(&mut self, why: &str) -> io::Result<()> {
        match self.output {
            Output::Lines => writeln!(self.out, "a peer was cut off: {}", escape(why))?,
            Output::Json => self.json(&json!({ "cutOff": why }))?,
        }
        self.out.flush()
    }

    pub(super) fn arrival(&mut self, arrival: &Arrival) -> io::Result<()> {
        match self.output {
            Output::Lines => self.lines(arrival)?,
            Output::Json => self.objects(arrival)?,
        }
        self.out.flush()
    }

    pub(super) fn summary(&mut self, ledger: &Ledger) -> io::Result<()> {
        match self.output {
            Output::Lines => self.table(ledger)?,
            Output::Json => {
                for (id, source) in ledger.sources() {
                    self.json(&json!({ "sourceId": id, "summary": source }))?;
                }
                let all = json!({ "messages": ledger.messages(), "nameless": ledger.nameless(), "others": ledger.others() });
                self.json(&json!({ "summary": all }))?;
            }
        }
        self.out.flush()
    }

    fn lines(&mut self, arrival: &Arrival) -> io::Result<()> {
        let from = arrival.header.as_ref().map_or_else(
            || "unknown source".into(),
            |header| format!("{} {}", header.source_id, header.topic.name()),
        );
        match &arrival.content {
            Content::Flows(flows) => flows
                .iter()
                .try_for_each(|flow| writeln!(self.out, "{from} {flow}")),
            Content::Document(value) => {
                let topic = arrival.header.as_ref().map(|header| header.topic);
                writeln!(self.out, "{from} {}", document(topic, value))
            }
            Content::Refused(why) | Content::Unreadable(why) => {
                writeln!(self.out, "{from} cannot be read: {}", escape(why))
            }
        }
    }

    fn objects(&mut self, arrival: &Arrival) -> io::Result<()> {
        let head = |name: &str, value: serde_json::Value| {
            let mut object = serde_json::Map::new();
            if let Some(header) = &arrival.header {
                object.insert("sourceId".into(), header.source_id.into());
                object.insert("messageId".into(), header.message_id.into());
                object.insert("topic".into(), header.topic.name().into());
            }
            object.insert(name.into(), value);
            serde_json::Value::Object(object)
        };
        match &arrival.content {
            Content::Flows(flows) => flows.iter().try_for_each(|flow| {
                let flow = serde_json::to_value(flow)?;
                self.json(&head("flow", flow))
            }),
            Content::Document(value) => self.json(&head("document", value.clone())),
            Content::Refused(why) | Content::Unreadable(why) => {
                self.json(&head("unreadable", why.clone().into()))
            }
        }
    }

    fn json(&mut self, value: &serde_json::Value) -> io::Result<()> {
        writeln!(self.out, "{}", escape_json(&value.to_string()))
    }

    fn table(&mut self, ledger: &Ledger) -> io::Result<()> {
        writeln!(
            self.out,
            "\n{:>10} {:>10} {:>10} {:>8} {:>8} {:>14} {:>8} {:>10}",
            "SOURCE", "MESSAGES", "RECORDS", "EVENTS", "LOST", "AFTER SILENCE", "RESTARTS", "UNREADABLE"
        )?;
        for (id, source) in ledger.sources() {
            self.row(&id.to_string(), source)?;
        }
        if ledger.others().messages > 0 {
            self.row("others", ledger.others())?;
        }
        if ledger.nameless() > 0 {
            writeln!(
                self.out,
                "{} messages without a readable header",
                ledger.nameless()
            )?;
        }
        Ok(())
    }

    fn row(&mut self, name: &str, source: &Source) -> io::Result<()> {
        writeln!(
            self.out,
            "{name:>10} {:>10} {:>10} {:>8} {:>8} {:>14} {:>8} {:>10}",
            source.messages,
            source.records,
            source.events,
            source.lost,
            source.lost_after_silence,
            source.restarts,
            source.unreadable
        )
    }
}

/// A JSON payload in one line.
fn document(topic: Option<Topic>, value: &serde_json::Value) -> String {
    let at = |pointer: &str| match value.pointer(pointer) {
        Some(serde_json::Value::String(text)) => escape(text),
        Some(other) => escape(&other.to_string()),
        None => "-".into(),
    };
    match topic {
        Some(Topic::Event) => {
            let time = value.pointer("/time").and_then(serde_json::Value::as_u64);
            format!(
                "{} {} on {} ({}, {}), octets {}, packets {}, records {}, lost packets {}, lost records {}",
                time.map_or_else(|| "-".into(), utc),
                at("/probe/ip"),
                at("/iface/name"),
                at("/probe/version"),
                at("/probe/osname"),
                at("/bytes"),
                at("/packets"),
                at("/zmq/num_flow_exports"),
                at("/packet_drops"),
                at("/drops/export_queue_full"),
            )
        }
        Some(Topic::ListeningPorts) => {
            let length = |pointer: &str| {
                value
                    .pointer(pointer)
                    .and_then(|list| list.as_array())
                    .map_or(0, Vec::len)
            };
            format!(
                "{} addresses, ports tcp4 {}, udp4 {}, tcp6 {}, udp6 {}",
                length("/ip-addresses"),
                length("/listening-ports/tcp4"),
                length("/listening-ports/udp4"),
                length("/listening-ports/tcp6"),
                length("/listening-ports/udp6"),
            )
        }
        _ => escape(&value.to_string()),
    }
}
