//! What a collector's application says it handled: one JSON line a message.
//!
//! ```text
//! {"ready":"tcp://ADDRESS:PORT"}
//! {"handled":{"topic":"flow","source":7,"id":1,"records":[["BOOT-COOKIE-STREAM-PART",forward,backward,first,last]]}}
//! {"unreadable":"why ntopng would have dropped a message"}
//! ```
//! Octets since the last record, times in seconds since the epoch. A line that is cut off is a message that was not
//! handled to its end. Source of the identity's form: `agent/core/src/encode/tlv/record.rs`.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::message::{Ids, Message, Payload};
use super::ndpi::{Elements, Key, Value};
use crate::product::record::{self, RecordId};

/// Name of the element with a record's identity.
const IDENTITY: &str = "FLOWTILLA_RECORD_ID";
/// Missing records that a failure names.
const NAMED_MAX: usize = 5;

/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const OCTETS_FORWARD: u32 = 1;
    pub(super) const LAST_SWITCHED: u32 = 21;
    pub(super) const FIRST_SWITCHED: u32 = 22;
    pub(super) const OCTETS_BACKWARD: u32 = 23;
}

/// Identity of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Identity {
    /// Boot id.
    pub boot: u128,
    /// Socket.
    pub cookie: u64,
    /// Flow of this socket.
    pub stream: u64,
    /// Record of this flow, from 1.
    pub part: u32,
}

/// One record, as the application saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Row", from = "Row")]
pub struct HandledRecord {
    /// Which.
    pub id: Identity,
    /// IP octets from the initiator.
    pub forward: u64,
    /// IP octets to the initiator.
    pub backward: u64,
    /// First switched, in seconds since the epoch.
    pub first: u64,
    /// Last switched, likewise.
    pub last: u64,
}

type Row = (Identity, u64, u64, u64, u64);

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handled {
    /// Such as `flow`.
    pub topic: String,
    /// Which exporter.
    pub source: u32,
    /// Number of the message.
    pub id: u32,
    /// Records, when it has some.
    pub records: Vec<HandledRecord>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// It is bound, and where.
    Ready(String),
    /// A message was handled.
    Handled(Handled),
    /// A message that ntopng would have dropped, and why.
    Unreadable(String),
}

/// What all incarnations of a collector handled.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Each record once.
    pub records: HashMap<Identity, HandledRecord>,
    /// Each record where it came first, in the order of arrival.
    pub order: Vec<Identity>,
    /// Messages with records.
    pub messages: u64,
    /// Most records in one message.
    pub per_message_max: usize,
    /// Records that came again, by incarnation.
    pub duplicates: Vec<u64>,
    /// Messages with a record that came again, by incarnation.
    pub duplicate_messages: Vec<u64>,
    /// Records that came again as others: must stay empty.
    pub differing: Vec<(HandledRecord, HandledRecord)>,
    /// Message ids missing within a connection: must stay 0.
    pub missing: u64,
    /// Exporters seen.
    pub sources: BTreeSet<u32>,
    ids: Ids,
}

impl Identity {
    /// Which flow it is of: boot id, socket, stream.
    #[must_use]
    pub fn flow(&self) -> (u128, u64, u64) {
        (self.boot, self.cookie, self.stream)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:032x}-{}-{}-{}",
            self.boot, self.cookie, self.stream, self.part
        )
    }
}

impl FromStr for Identity {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split('-').collect();
        // A record that was split would have `.n` behind its part: no traffic here has 4 GiB within one record.
        let [boot, cookie, stream, part] = words[..] else {
            bail!("{text:?} is no identity of a record");
        };
        ensure!(boot.len() == 32, "{text:?} has a boot id of another length");
        Ok(Self {
            boot: u128::from_str_radix(boot, 16).with_context(|| text.to_owned())?,
            cookie: cookie.parse().with_context(|| text.to_owned())?,
            stream: stream.parse().with_context(|| text.to_owned())?,
            part: part.parse().with_context(|| text.to_owned())?,
        })
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

impl TryFrom<String> for Identity {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<&RecordId> for Identity {
    type Error = anyhow::Error;

    fn try_from(id: &RecordId) -> Result<Self> {
        Ok(Self {
            boot: u128::from_str_radix(&id.boot, 16)?,
            cookie: id.cookie,
            stream: id.stream,
            part: id.part,
        })
    }
}

impl From<Row> for HandledRecord {
    fn from((id, forward, backward, first, last): Row) -> Self {
        Self {
            id,
            forward,
            backward,
            first,
            last,
        }
    }
}

impl From<HandledRecord> for Row {
    fn from(record: HandledRecord) -> Self {
        (
            record.id,
            record.forward,
            record.backward,
            record.first,
            record.last,
        )
    }
}

impl TryFrom<&record::Record> for HandledRecord {
    type Error = anyhow::Error;

    /// What the application must see of a record that the agent printed.
    fn try_from(record: &record::Record) -> Result<Self> {
        let last = record::seconds(&record.end)?;
        Ok(Self {
            id: Identity::try_from(&record.id)?,
            forward: record.delta.forward.octets,
            backward: record.delta.backward.octets,
            first: record::seconds(&record.delta_start)?.min(last),
            last,
        })
    }
}

impl TryFrom<&Elements> for HandledRecord {
    type Error = anyhow::Error;

    fn try_from(elements: &Elements) -> Result<Self> {
        let Some(Value::Text(id)) = elements.0.get(&Key::Name(IDENTITY.to_owned())) else {
            bail!("a record without {IDENTITY}: {elements:?}");
        };
        let number = |element| {
            elements
                .number(element)
                .with_context(|| format!("a record without element {element}: {elements:?}"))
        };
        Ok(Self {
            id: id.parse()?,
            forward: number(element::OCTETS_FORWARD)?,
            backward: number(element::OCTETS_BACKWARD)?,
            first: number(element::FIRST_SWITCHED)?,
            last: number(element::LAST_SWITCHED)?,
        })
    }
}

impl TryFrom<&Message> for Handled {
    type Error = anyhow::Error;

    fn try_from(message: &Message) -> Result<Self> {
        let records = match &message.payload {
            Payload::Flows(records) => records
                .iter()
                .map(HandledRecord::try_from)
                .collect::<Result<_>>()?,
            Payload::Json(_) => Vec::new(),
        };
        Ok(Self {
            topic: message.header.topic.clone(),
            source: message.header.source,
            id: message.header.id,
            records,
        })
    }
}

impl Account {
    /// A new incarnation begins.
    pub fn begin(&mut self) {
        self.duplicates.push(0);
        self.duplicate_messages.push(0);
        self.ids = Ids::default();
    }

    /// Takes a message that the newest incarnation handled.
    pub fn take(&mut self, message: Handled) {
        let missing = self.ids.missing;
        self.ids.take(message.source, message.id);
        self.missing += self.ids.missing - missing;
        self.sources.insert(message.source);
        self.per_message_max = self.per_message_max.max(message.records.len());
        self.messages += u64::from(!message.records.is_empty());
        let mut again = 0;
        for record in message.records {
            match self.records.insert(record.id, record) {
                None => self.order.push(record.id),
                Some(before) => {
                    again += 1;
                    if before != record {
                        self.differing.push((before, record));
                    }
                }
            }
        }
        if let (Some(records), Some(messages)) =
            (self.duplicates.last_mut(), self.duplicate_messages.last_mut())
        {
            *records += again;
            *messages += u64::from(again > 0);
        }
    }

    /// Checks that the application handled every record that the agent printed, with its octets and its times, that none
    /// came as two, and that no message is missing within a connection.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(&self, made: &[record::Record]) -> Result<()> {
        self.check_itself()?;
        let mut missing = Vec::new();
        for printed in made {
            let wanted = HandledRecord::try_from(printed)?;
            match self.records.get(&wanted.id) {
                Some(handled) => ensure!(*handled == wanted, "{handled:?} handled, {wanted:?} made"),
                None => missing.push(wanted.id.to_string()),
            }
        }
        ensure!(
            missing.is_empty(),
            "{} of {} records are missing, such as {:?}",
            missing.len(),
            made.len(),
            &missing[..missing.len().min(NAMED_MAX)]
        );
        Ok(())
    }

    /// Checks that no record came as two, that no message is missing within a connection, and that time runs forward.
    ///
    /// # Errors
    /// What is not so.
    pub fn check_itself(&self) -> Result<()> {
        ensure!(
            self.differing.is_empty(),
            "{} identities came with different contents: {:?}",
            self.differing.len(),
            self.differing[0]
        );
        ensure!(self.missing == 0, "{} messages are missing", self.missing);
        let backward = self.records.values().find(|record| record.first > record.last);
        ensure!(backward.is_none(), "a record ends before it begins: {backward:?}");
        Ok(())
    }

    /// How many of these records the application has not handled.
    ///
    /// # Errors
    /// When a record has no proper identity.
    pub fn lacks(&self, made: &[record::Record]) -> Result<usize> {
        let mut lacks = 0;
        for printed in made {
            lacks += usize::from(!self.records.contains_key(&Identity::try_from(&printed.id)?));
        }
        Ok(lacks)
    }

    /// Octets both ways of one flow, over all its records.
    #[must_use]
    pub fn octets(&self, flow: (u128, u64, u64)) -> (u64, u64) {
        let of = self.records.values().filter(|record| record.id.flow() == flow);
        of.fold((0, 0), |sum, record| {
            (sum.0 + record.forward, sum.1 + record.backward)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00112233445566778899aabbccddeeff-7-0-2";

    fn message(id: u32, forward: u64) -> Handled {
        let record = (ID.parse().expect("an identity"), forward, 2, 10, 11);
        Handled {
            topic: "flow".to_owned(),
            source: 1,
            id,
            records: vec![record.into()],
        }
    }

    #[test]
    fn a_line_survives_the_way() {
        let line = Line::Handled(message(3, 1));
        let text = serde_json::to_string(&line).expect("plain data");
        assert!(text.contains(&format!("[\"{ID}\",1,2,10,11]")), "{text}");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("its own form"), line);
        assert!(serde_json::from_str::<Line>(&text[..text.len() - 1]).is_err());
        assert!(format!("{ID}.1").parse::<Identity>().is_err());
    }

    #[test]
    fn duplicates_differences_and_gaps_are_told_apart() {
        let mut account = Account::default();
        account.begin();
        account.take(message(1, 1));
        account.begin();
        account.take(message(1, 1));
        account.check_itself().expect("the same record again");
        assert_eq!(account.duplicates, [0, 1]);
        account.take(message(3, 1));
        assert!(
            account
                .check_itself()
                .expect_err("2 is missing")
                .to_string()
                .contains("1 messages")
        );
        account.missing = 0;
        account.take(message(4, 9));
        assert!(
            account
                .check_itself()
                .expect_err("other octets")
                .to_string()
                .contains("different")
        );
    }
}
