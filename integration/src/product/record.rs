//! A record as `agentctl up -o json` prints it, and the flow that its parts make up.
//!
//! Source of the form: `ctl/src/cmd/up/json.rs`. A field that is missing or has another type fails the test that
//! reads it: the form is a promise.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One record.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Record {
    pub id: RecordId,
    pub first: bool,
    pub ended: bool,
    pub protocol: String,
    pub initiator: End,
    pub responder: End,
    pub initiator_seen: bool,
    pub backfilled: bool,
    pub netns: u64,
    pub counting: String,
    pub delta: Traffic,
    pub total: Traffic,
    pub start: String,
    pub delta_start: String,
    pub end: String,
    pub tcp: Option<Tcp>,
    pub reason: String,
}

/// Identity of a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct RecordId {
    pub boot: String,
    pub cookie: u64,
    pub stream: u64,
    pub part: u32,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct End {
    pub address: IpAddr,
    pub port: u16,
    pub confidence: String,
    pub unknown: Option<String>,
    pub process: Option<Process>,
    pub names: Option<Names>,
}

/// What the kernel said of a process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Process {
    pub pid: u32,
    pub start_ns: u64,
    pub parent_pid: u32,
    pub uid: u32,
    pub gid: u32,
    pub cgroup_id: u64,
    pub comm: String,
}

/// What belongs to a process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Names {
    pub executable: Option<String>,
    pub command_line: Option<String>,
    pub user: Option<String>,
    pub group: Option<String>,
    pub parent: Option<Parent>,
    pub container: Option<Container>,
    pub unit: Option<String>,
}

/// The parent of a process.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Parent {
    pub pid: u32,
    pub executable: String,
    pub uid: Option<u32>,
    pub user: Option<String>,
}

/// The container of a process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Container {
    pub id: String,
    pub runtime: String,
    pub name: Option<String>,
    pub pod: Option<Pod>,
}

/// The pod of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Pod {
    pub namespace: String,
    pub name: String,
}

/// Counters of both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Traffic {
    pub forward: Counts,
    pub backward: Counts,
}

/// Counters of one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Counts {
    pub octets: u64,
    pub packets: u64,
    pub payload: u64,
}

/// How TCP ran.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "named as in the form's own specification")]
pub struct Tcp {
    pub handshake_us: Option<u32>,
    pub rtt_us: Option<u32>,
    pub rtt_variance_us: Option<u32>,
    pub rtt_min_us: Option<u32>,
    pub retransmits_forward: u32,
    pub retransmits_backward: u32,
    pub flags_forward: u8,
    pub flags_backward: u8,
    pub state: Option<String>,
}

impl Record {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is not a record.
    pub fn read(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("read a record: {line}"))
    }
}

impl End {
    /// Address and port.
    #[must_use]
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Process id; 0: not known.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }

    /// Path of the executable; empty: not known.
    #[must_use]
    pub fn executable(&self) -> &str {
        self.names
            .as_ref()
            .and_then(|names| names.executable.as_deref())
            .unwrap_or("")
    }

    /// Command line; empty: not known.
    #[must_use]
    pub fn command_line(&self) -> &str {
        self.names
            .as_ref()
            .and_then(|names| names.command_line.as_deref())
            .unwrap_or("")
    }
}

/// A flow: all its records so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// In order of their parts, at least one.
    pub parts: Vec<Record>,
}

impl Flow {
    /// The newest record.
    ///
    /// # Panics
    /// Never: a flow has a part.
    #[must_use]
    pub fn last(&self) -> &Record {
        self.parts.last().expect("a flow has a part")
    }

    /// The first record.
    #[must_use]
    pub fn first(&self) -> &Record {
        &self.parts[0]
    }

    /// Whether it ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.last().ended
    }
}

/// Flows of these records, in the order of their identities.
///
/// # Errors
/// When a part is missing or told twice, the first is not marked so, or the deltas of the parts do not sum up to
/// their totals.
pub fn flows(records: &[Record]) -> Result<Vec<Flow>> {
    let mut by_flow: BTreeMap<(String, u64, u64), Vec<Record>> = BTreeMap::new();
    for record in records {
        let key = (record.id.boot.clone(), record.id.cookie, record.id.stream);
        by_flow.entry(key).or_default().push(record.clone());
    }
    let mut flows = Vec::with_capacity(by_flow.len());
    for (key, mut parts) in by_flow {
        parts.sort_by_key(|record| record.id.part);
        check(&parts).with_context(|| format!("flow {key:?}"))?;
        flows.push(Flow { parts });
    }
    Ok(flows)
}

/// Seconds since the epoch of a time as records have it: `2026-02-03T04:05:06.123456789Z`.
///
/// # Errors
/// When it has another form.
pub fn seconds(time: &str) -> Result<u64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> { time.get(range)?.parse().ok() };
    let read = || {
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        // Years begin in March here, so that the day of a leap year is their last.
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
        let since_epoch = days - 719_468;
        u64::try_from(((since_epoch * 24 + hour) * 60 + minute) * 60 + second).ok()
    };
    read()
        .filter(|_| time.ends_with('Z'))
        .with_context(|| format!("read the time {time:?}"))
}

fn check(parts: &[Record]) -> Result<()> {
    let mut sum = Traffic::default();
    for (record, part) in parts.iter().zip(1..) {
        ensure!(
            record.id.part == part,
            "part {} where {part} belongs",
            record.id.part
        );
        ensure!(
            record.first == (part == 1),
            "part {part} is marked first: {}",
            record.first
        );
        ensure!(
            !record.ended || parts.len() == part as usize,
            "part {part} ended the flow, and another came"
        );
        sum.forward.add(&record.delta.forward);
        sum.backward.add(&record.delta.backward);
        ensure!(
            sum == record.total,
            "part {part}: deltas sum up to {sum:?}, the total is {:?}",
            record.total
        );
    }
    Ok(())
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.octets += more.octets;
        self.packets += more.packets;
        self.payload += more.payload;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"id":{"boot":"00112233445566778899aabbccddeeff","cookie":7,"stream":0,"part":1},"first":true,
        "ended":true,"protocol":"tcp","initiator":{"address":"10.0.0.1","port":40000,"confidence":"exact","process":
        {"pid":4,"startNs":5,"parentPid":1,"uid":0,"gid":0,"cgroupId":9,"comm":"curl"},"names":{"executable":
        "/usr/bin/curl","commandLine":null,"user":"root","group":null,"parent":null,"container":null}},"responder":
        {"address":"10.0.0.2","port":80,"confidence":"unknown","unknown":"remote","process":null,"names":null},
        "initiatorSeen":true,"backfilled":false,"netns":1,"counting":"delta","delta":{"forward":{"octets":100,
        "packets":2,"payload":10},"backward":{"octets":0,"packets":0,"payload":0}},"total":{"forward":{"octets":100,
        "packets":2,"payload":10},"backward":{"octets":0,"packets":0,"payload":0}},"start":"","deltaStart":"",
        "end":"","tcp":null,"reason":"end-of-flow"}"#;

    #[test]
    fn seconds_are_those_of_the_epoch() {
        for (text, wanted) in [
            ("1970-01-01T00:00:00.000000000Z", 0),
            ("2000-02-29T23:59:59.999999999Z", 951_868_799),
            ("2026-11-25T07:53:56.000000001Z", 1_795_593_236),
        ] {
            assert_eq!(seconds(text).expect("a time"), wanted, "{text}");
        }
        assert!(seconds("2026-11-25T07:53:56+01:00").is_err() && seconds("soon").is_err());
    }

    #[test]
    fn record_is_read_and_its_sums_are_checked() {
        let record = Record::read(&LINE.replace('\n', "")).expect("the form's own fields");
        assert_eq!(record.initiator.pid(), 4);
        assert_eq!(record.responder.pid(), 0);
        let mut second = record.clone();
        second.id.part = 2;
        second.first = false;
        let error = flows(&[record.clone(), second]).expect_err("it ended before");
        assert!(format!("{error:#}").contains("ended the flow"));
        assert_eq!(flows(&[record]).expect("one whole flow").len(), 1);
    }
}
