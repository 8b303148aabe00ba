//! Flow records to nDPI's TLV serialisation, which ntopng takes for topic `flow`.
//!
//! ```text
//! payload := 01 01 record*                version 1, format TLV
//! record  := item* 01
//! item    := type:1 key value             type: high nibble the key's, low nibble the value's
//! u8 2, u16 3, u32 4, u64 5, i8 6, i16 7, i32 8, i64 9: big-endian; float 10: IEEE 754 single, little-endian;
//! text 11: length:2be, octets without a zero behind them
//! ```
//!
//! In: [`FlowRecord`]s. Out: payloads of at most [`RECORDS_MAX`] records and [`PAYLOAD_OCTETS_MAX`] octets.
//! Invariants: a record is in a batch whole or not at all; no direction of a written record reaches 4 GiB; counters of
//! the written records add up to those of the record. Source: nDPI `ndpi_serializer.c`, ntopng `parseTLVFlow`.

pub mod element;
mod read;
mod record;
mod write;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, Bytes, BytesMut};

pub use self::read::{Key, TlvError, Value, decode};
pub(in crate::encode) use self::record::{Part, identity, round_trip_us, seconds, shown, told};
use crate::flow::record::FlowRecord;

/// Most records in one message.
///
/// ntopng returns the number of records in 8 bits, so 255 is the wall. Below 16 its cost for a message shows in each
/// record; 250 save it another tenth, but a lost message then takes that many with it.
pub const RECORDS_MAX: usize = 100;
/// Most octets of one payload.
///
/// ntopng drops what exceeds 131,072. A quarter of it keeps the size within the 16 bits of header V2, and 1,000
/// messages of a full receive queue within 32 MiB of the collector's memory. Half of it would end batches of records
/// with long command lines at 20.
pub const PAYLOAD_OCTETS_MAX: usize = 32 * 1_024;
/// Most parts that one record is split into: deltas of nearly 256 GiB.
///
/// A socket needs 20 s for it at 100 Gbit/s. At double, the parts of one record would not fit into one message.
pub const PARTS_MAX: u64 = 64;

/// First octets of every payload.
const START: [u8; 2] = [1, 1];
const END_OF_RECORD: u8 = 1;
const U8: u8 = 2;
const U16: u8 = 3;
const U32: u8 = 4;
const U64: u8 = 5;
const I8: u8 = 6;
const I16: u8 = 7;
const I32: u8 = 8;
const I64: u8 = 9;
const FLOAT: u8 = 10;
const TEXT: u8 = 11;

/// What becomes of loopback addresses. ntopng keys hosts by address alone, so every agent's 127.0.0.1 is one host there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Loopback {
    /// They become the host's own address: of the same family, or else of the other one when both ends are loopback.
    /// A host without such an address withholds the record.
    #[default]
    HostAddress,
    /// Records with such an end are withheld.
    Omit,
    /// They stay.
    AsIs,
}

/// The host's own addresses, as the collector should know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostAddress {
    /// IPv4; `None`: it has none.
    pub v4: Option<Ipv4Addr>,
    /// IPv6; `None`: it has none.
    pub v6: Option<Ipv6Addr>,
}

impl HostAddress {
    fn of_family(self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    fn any(self) -> Option<IpAddr> {
        self.v4.map(IpAddr::V4).or(self.v6.map(IpAddr::V6))
    }
}

/// How records are written for one collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlvOptions {
    /// What becomes of loopback addresses.
    pub loopback: Loopback,
    /// The host's own addresses.
    pub host_address: HostAddress,
    /// The agent's address, named at each flow; `None`: left out (it counts against the limits of ntopng Pro).
    pub exporter_address: Option<Ipv4Addr>,
    /// Whether each record carries its identity as an additional element, `FLOWTILLA_RECORD_ID`.
    pub record_ids: bool,
}

impl TlvOptions {
    /// What the collector is to call both ends; `None`: the record stays here.
    pub(in crate::encode) fn ends(&self, record: &FlowRecord) -> Option<(IpAddr, IpAddr)> {
        let ends = (
            record.initiator.endpoint.address,
            record.responder.endpoint.address,
        );
        let both = ends.0.is_loopback() && ends.1.is_loopback();
        if !ends.0.is_loopback() && !ends.1.is_loopback() {
            return Some(ends);
        }
        match self.loopback {
            Loopback::AsIs => Some(ends),
            Loopback::Omit => None,
            Loopback::HostAddress => {
                let host = self.host_address;
                let own = |address: IpAddr| {
                    if !address.is_loopback() {
                        return Some(address);
                    }
                    host.of_family(address).or_else(|| host.any().filter(|_| both))
                };
                Some((own(ends.0)?, own(ends.1)?))
            }
        }
    }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// It is in the batch.
    Added,
    /// No room: finish the batch and push the record again. Never said by an empty batch.
    Full,
    /// No message can carry it: it would take more than [`PARTS_MAX`] parts.
    TooLarge,
    /// [`TlvOptions::loopback`] keeps it from this collector.
    Withheld,
}

/// A payload, ready for frame 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedBatch {
    /// The octets.
    pub payload: Bytes,
    /// Flow records in it, ≥ 1, as pushed.
    pub records: u32,
    /// Records in it as the collector counts them: more than `records` when some were split.
    pub parts: u32,
}

/// Records on their way into one message.
#[derive(Debug)]
pub struct Batch {
    options: TlvOptions,
    payload: BytesMut,
    records: u32,
    parts: u32,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(options: TlvOptions) -> Self {
        Self {
            options,
            payload: BytesMut::new(),
            records: 0,
            parts: 0,
        }
    }

    /// Puts a record into the batch, whole or not at all.
    pub fn push(&mut self, record: &FlowRecord) -> Push {
        let count = record::parts(record);
        if count > PARTS_MAX {
            return Push::TooLarge;
        }
        let Some(ends) = self.options.ends(record) else {
            return Push::Withheld;
        };
        let refusal = if self.records == 0 {
            Push::TooLarge
        } else {
            Push::Full
        };
        if u64::from(self.parts) + count > RECORDS_MAX as u64 {
            return refusal;
        }
        if self.payload.is_empty() {
            self.payload.reserve(PAYLOAD_OCTETS_MAX);
            self.payload.put_slice(&START);
        }
        let before = self.payload.len();
        for index in 0..count {
            let part = Part { index, count };
            record::write(&mut self.payload, record, &self.options, ends, part);
        }
        if self.payload.len() > PAYLOAD_OCTETS_MAX {
            self.payload.truncate(before);
            return refusal;
        }
        self.records += 1;
        self.parts += u32::try_from(count).expect("count is at most PARTS_MAX");
        Push::Added
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Takes the payload out and leaves the batch empty, ready for the next; `None` when nothing was in it.
    pub fn finish(&mut self) -> Option<EncodedBatch> {
        let payload = std::mem::take(&mut self.payload).freeze();
        let records = std::mem::take(&mut self.records);
        let parts = std::mem::take(&mut self.parts);
        (records > 0).then_some(EncodedBatch {
            payload,
            records,
            parts,
        })
    }
}
