//! One decoded flow record, by name instead of by number.

use std::collections::BTreeMap;
use std::fmt;

use flowtilla_agent_core::encode::tlv::element::{self, CLIENT, OwnerElements, SERVER};
use flowtilla_agent_core::encode::tlv::{Key, Value};
use serde::Serialize;

use super::text::{escape, utc};

/// A flow record as it came. Times in seconds since the epoch; what did not come is `None`.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Flow {
    first: Option<u64>,
    last: Option<u64>,
    protocol: Option<u64>,
    client: End,
    server: End,
    /// Whether counters count from the flow's begin.
    totals: bool,
    end_reason: Option<String>,
    exporter: Option<String>,
    record_id: Option<String>,
    /// What has no name here: number or name of the element, and its value.
    other: BTreeMap<String, serde_json::Value>,
}

/// One end; counters tell what it sent.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct End {
    address: Option<String>,
    port: Option<u64>,
    octets: Option<u64>,
    packets: Option<u64>,
    tcp_flags: Option<u64>,
    retransmits: Option<u64>,
    latency_ms: Option<f64>,
    pid: Option<u64>,
    program: Option<String>,
    uid: Option<u64>,
    user: Option<String>,
    command_line: Option<String>,
    container: Option<String>,
    parent_pid: Option<u64>,
    parent_program: Option<String>,
    parent_uid: Option<u64>,
    parent_user: Option<String>,
}

impl From<Vec<(Key, Value)>> for Flow {
    fn from(items: Vec<(Key, Value)>) -> Self {
        let mut items = Items(items.into_iter().collect());
        let totals = items
            .0
            .contains_key(&Key::Element(element::TOTAL_OCTETS_FORWARD.into()));
        Self {
            first: items.number(element::FIRST_SWITCHED),
            last: items.number(element::LAST_SWITCHED),
            protocol: items.number(element::PROTOCOL),
            client: End {
                address: items.either(element::SOURCE_IPV4, element::SOURCE_IPV6),
                port: items.number(element::SOURCE_PORT),
                octets: items.counter(
                    totals,
                    element::DELTA_OCTETS_FORWARD,
                    element::TOTAL_OCTETS_FORWARD,
                ),
                packets: items.counter(
                    totals,
                    element::DELTA_PACKETS_FORWARD,
                    element::TOTAL_PACKETS_FORWARD,
                ),
                tcp_flags: items.number(element::CLIENT_TCP_FLAGS),
                retransmits: items.number(element::CLIENT_RETRANSMITS),
                latency_ms: items.fraction(element::CLIENT_LATENCY_MS),
                ..items.owner(&CLIENT)
            },
            server: End {
                address: items.either(element::DESTINATION_IPV4, element::DESTINATION_IPV6),
                port: items.number(element::DESTINATION_PORT),
                octets: items.counter(
                    totals,
                    element::DELTA_OCTETS_BACKWARD,
                    element::TOTAL_OCTETS_BACKWARD,
                ),
                packets: items.counter(
                    totals,
                    element::DELTA_PACKETS_BACKWARD,
                    element::TOTAL_PACKETS_BACKWARD,
                ),
                tcp_flags: items.number(element::SERVER_TCP_FLAGS),
                retransmits: items.number(element::SERVER_RETRANSMITS),
                latency_ms: items.fraction(element::SERVER_LATENCY_MS),
                ..items.owner(&SERVER)
            },
            totals,
            end_reason: items.text(element::END_REASON),
            exporter: items.text(element::PROBE_IPV4),
            record_id: items.take_text(&Key::Name(element::RECORD_ID.into())),
            other: items.rest(),
        }
    }
}

/// What of a record is not yet named. An element of an unexpected type stays and is shown as it came.
struct Items(BTreeMap<Key, Value>);

impl Items {
    fn number(&mut self, element: u16) -> Option<u64> {
        let key = Key::Element(element.into());
        let number = match self.0.get(&key)? {
            Value::Unsigned(number) => *number,
            Value::Signed(number) => u64::try_from(*number).ok()?,
            Value::Text(digits) => digits.parse().ok()?,
            Value::Float(_) => return None,
        };
        self.0.remove(&key);
        Some(number)
    }

    fn fraction(&mut self, element: u16) -> Option<f64> {
        let key = Key::Element(element.into());
        let Some(&Value::Float(fraction)) = self.0.get(&key) else {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a latency in whole ms is far below 2⁵²"
            )]
            return self.number(element).map(|number| number as f64);
        };
        self.0.remove(&key);
        // To the digits that a single has, so that 0.7 is shown as that.
        fraction.to_string().parse().ok()
    }

    fn text(&mut self, element: u16) -> Option<String> {
        self.take_text(&Key::Element(element.into()))
    }

    fn take_text(&mut self, key: &Key) -> Option<String> {
        match self.0.remove(key)? {
            Value::Text(text) => Some(text),
            other => {
                self.0.insert(key.clone(), other);
                None
            }
        }
    }

    fn either(&mut self, ipv4: u16, ipv6: u16) -> Option<String> {
        self.text(ipv4).or_else(|| self.text(ipv6))
    }

    fn counter(&mut self, totals: bool, delta: u16, total: u16) -> Option<u64> {
        self.number(if totals { total } else { delta })
    }

    fn owner(&mut self, elements: &OwnerElements) -> End {
        End {
            pid: self.number(elements.pid),
            program: self.text(elements.program),
            uid: self.number(elements.uid),
            user: self.text(elements.user),
            command_line: self.text(elements.command_line),
            container: self.text(elements.container),
            parent_pid: self.number(elements.parent_pid),
            parent_program: self.text(elements.parent_program),
            parent_uid: self.number(elements.parent_uid),
            parent_user: self.text(elements.parent_user),
            ..End::default()
        }
    }

    fn rest(&mut self) -> BTreeMap<String, serde_json::Value> {
        self.0.remove(&Key::Element(element::IP_VERSION.into()));
        let rest = std::mem::take(&mut self.0);
        rest.into_iter()
            .map(|(key, value)| (name(key), json(value)))
            .collect()
    }
}

fn name(key: Key) -> String {
    match key {
        Key::Element(number) => number.to_string(),
        Key::Name(name) => name,
    }
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::Unsigned(number) => number.into(),
        Value::Signed(number) => number.into(),
        Value::Float(fraction) => fraction.into(),
        Value::Text(text) => text.into(),
    }
}

/// `TIME PROTOCOL CLIENT (OWNER) → SERVER (OWNER) octets SENT → RECEIVED, rtt …, REASON`
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, server) = (&self.client, &self.server);
        write!(f, "{} ", self.last.map_or_else(|| "-".into(), utc))?;
        match self.protocol {
            Some(6) => f.write_str("tcp")?,
            Some(17) => f.write_str("udp")?,
            Some(number) => write!(f, "protocol {number}")?,
            None => f.write_str("-")?,
        }
        write!(f, " {client} → {server}, ")?;
        let octets = |end: &End| end.octets.map_or_else(|| "-".into(), |octets| octets.to_string());
        let kind = if self.totals { "total octets" } else { "octets" };
        write!(f, "{kind} {} → {}", octets(client), octets(server))?;
        if client.latency_ms.is_some() || server.latency_ms.is_some() {
            let sum = client.latency_ms.unwrap_or_default() + server.latency_ms.unwrap_or_default();
            write!(f, ", rtt {sum:.3} ms")?;
        }
        let retransmits = (client.retransmits.unwrap_or(0), server.retransmits.unwrap_or(0));
        if retransmits != (0, 0) {
            write!(f, ", retransmits {} → {}", retransmits.0, retransmits.1)?;
        }
        if let Some(reason) = &self.end_reason {
            write!(f, ", {}", escape(reason))?;
        }
        if let Some(id) = &self.record_id {
            write!(f, ", id {}", escape(id))?;
        }
        if !self.other.is_empty() {
            write!(f, ", {} more elements", self.other.len())?;
        }
        Ok(())
    }
}

/// `ADDRESS:PORT (PROGRAM[PID] USER CONTAINER)`, brackets only when somebody is known.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.as_deref().unwrap_or("-");
        if address.contains(':') {
            write!(f, "[{}]", escape(address))?;
        } else {
            write!(f, "{}", escape(address))?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        let mut words = Vec::new();
        if let Some(program) = &self.program {
            let pid = self.pid.map_or_else(String::new, |pid| format!("[{pid}]"));
            words.push(format!("{}{pid}", escape(program)));
        } else if let Some(pid) = self.pid {
            words.push(format!("[{pid}]"));
        }
        words.extend(
            [&self.user, &self.container]
                .into_iter()
                .flatten()
                .map(|word| escape(word)),
        );
        if words.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", words.join(" "))
    }
}
