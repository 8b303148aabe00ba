//! What a collector shows of the fleet's flows: records added up as ntopng does.
//!
//! Deltas add, totals only raise, and the first process data of a flow stay. All traffic here is IPv4.
//! Source: ntopng `ZMQParserInterface.cpp`, `Flow.cpp`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::collector::Collector;
use crate::collector::message::Payload;
use crate::collector::ndpi::Elements;
use crate::scene::Told;
use crate::traffic::Flow;

/// Element numbers of ntopng's flow records.
mod element {
    pub(super) const DELTA: [u32; 2] = [1, 23];
    pub(super) const TOTAL: [u32; 2] = [231, 232];
    pub(super) const PROTOCOL: u32 = 4;
    pub(super) const PORTS: [u32; 2] = [7, 11];
    pub(super) const ADDRESSES: [u32; 2] = [8, 12];
    pub(super) const PIDS: [u32; 2] = [57640, 57847];
}

/// A flow as ntopng keys it: both ends in one order, and the protocol.
pub type Key = (SocketAddr, SocketAddr, u64);

/// One flow, as ntopng adds it up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// IP octets from the lower end, and to it.
    pub octets: [u64; 2],
    /// Processes at the lower end and at the other: those of the first record that named one.
    pub pids: Option<[u64; 2]>,
    /// Source ids of the exporters that told it by deltas.
    pub counted_by: BTreeSet<u32>,
    /// Source ids of all that told it.
    pub told_by: BTreeSet<u32>,
}

impl Shown {
    /// IP octets both ways.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.octets[0] + self.octets[1]
    }
}

/// The key of a flow between two ends.
#[must_use]
pub fn key(one: SocketAddr, other: SocketAddr, protocol: u64) -> Key {
    (one.min(other), one.max(other), protocol)
}

/// The key of a client's flow. A UDP client knows no address of its own: the server saw it.
///
/// # Errors
/// When the server told nothing of it.
pub fn key_of(told: &Told, client: &Flow, protocol: u64) -> Result<Key> {
    Ok(key(told.mirror(client)?.peer, told.server, protocol))
}

/// All flows so far.
///
/// # Errors
/// When a message is missing or cannot be read.
pub fn shown(collector: &Collector) -> Result<BTreeMap<Key, Shown>> {
    let mut sum = Sum::default();
    sum.take(collector)?;
    Ok(sum.flows)
}

/// The flows of the messages so far: who looks often adds only what has come since.
#[derive(Debug, Default)]
pub(super) struct Sum {
    messages: usize,
    pub(super) flows: BTreeMap<Key, Shown>,
}

impl Sum {
    pub(super) fn take(&mut self, collector: &Collector) -> Result<()> {
        let (messages, ids) = collector.messages_after(self.messages)?;
        ensure!(ids.missing == 0, "{ids:?}");
        self.messages += messages.len();
        for message in messages {
            let Payload::Flows(records) = message.payload else {
                continue;
            };
            for record in records {
                add(&mut self.flows, &record, message.header.source)?;
            }
        }
        Ok(())
    }
}

fn add(flows: &mut BTreeMap<Key, Shown>, record: &Elements, source: u32) -> Result<()> {
    let ends = ends(record)?;
    let protocol = record
        .number(element::PROTOCOL)
        .context("a record has a protocol")?;
    let key = key(ends[0], ends[1], protocol);
    let flow = flows.entry(key).or_default();
    flow.told_by.insert(source);
    let turned = usize::from(key.0 != ends[0]);
    let totals = element::TOTAL.map(|element| record.number(element));
    let deltas = element::DELTA.map(|element| record.number(element).unwrap_or(0));
    if totals.iter().all(Option::is_none) && deltas.iter().any(|&octets| octets > 0) {
        flow.counted_by.insert(source);
    }
    for way in 0..2 {
        let octets = &mut flow.octets[way ^ turned];
        match totals.iter().any(Option::is_some) {
            true => *octets = (*octets).max(totals[way].unwrap_or(0)),
            false => *octets += deltas[way],
        }
    }
    let pids = element::PIDS.map(|element| record.number(element).unwrap_or(0));
    if flow.pids.is_none() && pids != [0, 0] {
        flow.pids = Some([pids[turned], pids[1 - turned]]);
    }
    Ok(())
}

fn ends(record: &Elements) -> Result<[SocketAddr; 2]> {
    let end = |n: usize| {
        let port = record.number(element::PORTS[n]).context("a record has ports")?;
        let address = match record.text(element::ADDRESSES[n]) {
            Some(text) => text.parse()?,
            None => {
                let number = record
                    .number(element::ADDRESSES[n])
                    .context("a record has addresses")?;
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number)?))
            }
        };
        Ok::<_, anyhow::Error>(SocketAddr::new(address, u16::try_from(port)?))
    };
    Ok([end(0)?, end(1)?])
}
