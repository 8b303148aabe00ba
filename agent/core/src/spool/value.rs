//! The format of a value: records in at most 8 KiB, checked, compressed, neutral of any wire form.
//!
//! In: [`FlowRecord`]s. Out: octets, and from octets the same records. Does no IO and reads no clock. Whatever the octets
//! are, reading them ends, and takes no more memory than [`BODY_OCTETS_MAX`] octets, [`RECORDS_MAX`] records and twice as
//! many owners take.
//!
//! A value is a header of [`HEADER_OCTETS`] octets and a body. Numbers of the header are big-endian:
//!
//! ```text
//!  0  magic "fv"
//!  2  version, 3; 2 is the same without the part that is added to names, 1 is 2 without owners that another agent told
//!  3  codec: 0 the body as it is, 1 LZ4 block
//!  4  CRC32C of all octets but these four
//!  8  u64 sequence of the first record
//! 16  u16 records, 1 to RECORDS_MAX
//! 18  u16 names
//! 20  u16 owners
//! 22  u16 octets of the body before compression
//! 24  boot id of every record
//! 40  u64 least start of a record, ns since 1970-01-01 UTC
//! 48  u64 greatest end of a record, likewise
//! 56  body: the names, the owners, the records (rows)
//! ```
//!
//! Magic, version and checksum keep their places in every version. Names and owners are a dictionary: an owner is
//! (confidence, process, position of its names), a row has the positions of two owners. Numbers are varints and strings have
//! their length before them, as postcard has it; the fields and their order stand in `parts.rs` and `row.rs`. A row tells
//! cookie, times and namespace against the row before it, and leaves out what its flags say is as usual.
//!
//! Source: postcard's wire format 1.0; LZ4 block format; RFC 3720 B.4 (CRC32C).

mod builder;
mod dictionary;
mod parts;
mod row;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use crate::flow::record::{BootId, FlowRecord};
use crate::time::WallTime;

pub use builder::{Builder, Pushed};

/// Most octets of a value. Fixed: sled's memory is a multiple of its largest value.
pub const VALUE_OCTETS_MAX: usize = 8192;

/// Octets of a header.
pub const HEADER_OCTETS: usize = 56;

/// Most octets of a body before compression: what the header's field can say, and the longest for which LZ4's small table
/// does. LZ4 makes 8 KiB of it only when the records hardly differ.
pub const BODY_OCTETS_MAX: usize = u16::MAX as usize - 1;

/// Most records in a value. Of 20 processes a full value holds some 110, 70 octets each; the bound is there for what is
/// read, where records of the least size would take ten times as much memory. Half of it is never reached either;
/// double it, and a value may take 2 MiB when it is read.
pub const RECORDS_MAX: usize = 1024;

/// The version that is written.
pub const VERSION: u8 = 3;

/// The oldest version that is read. What one writes that has no newer parts, the next reads as it stands.
pub const VERSION_OLDEST: u8 = 1;

const MAGIC: [u8; 2] = *b"fv";

/// Where the checksum stands.
const CHECKSUM: Range<usize> = 4..8;

/// What is known of a value without reading its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the body is kept.
    pub codec: Codec,
    /// Sequence of the first record.
    pub first: u64,
    /// Records, 1 to [`RECORDS_MAX`].
    pub records: u32,
    /// The run of the kernel that all records are of.
    pub boot: BootId,
    /// Least start of a record.
    pub start: WallTime,
    /// Greatest end of a record.
    pub end: WallTime,
    version: u8,
    names: u16,
    owners: u16,
    body_octets: u16,
}

impl Header {
    /// As it is kept, without the checksum.
    fn octets(&self) -> [u8; HEADER_OCTETS] {
        let mut octets = [0; HEADER_OCTETS];
        let mut put = |at: usize, part: &[u8]| octets[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(2, &[self.version, self.codec as u8]);
        put(8, &self.first.to_be_bytes());
        put(16, &u16::try_from(self.records).unwrap_or(u16::MAX).to_be_bytes());
        put(18, &self.names.to_be_bytes());
        put(20, &self.owners.to_be_bytes());
        put(22, &self.body_octets.to_be_bytes());
        put(24, &self.boot.0);
        put(40, &self.start.0.to_be_bytes());
        put(48, &self.end.0.to_be_bytes());
        octets
    }
}

/// How a body is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Stored = 0,
    /// As one LZ4 block.
    Lz4 = 1,
}

/// Why octets are no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Shorter than a header or longer than any value.
    #[error("value has {octets} octets, not {HEADER_OCTETS} to {VALUE_OCTETS_MAX}")]
    Length {
        /// How many there are.
        octets: usize,
    },
    /// It does not begin as values do.
    #[error("no value begins with {found:?}")]
    Magic {
        /// The first two octets.
        found: [u8; 2],
    },
    /// It was changed, or is torn.
    #[error("checksum of value is {found:#010x}, header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// That of the octets.
        found: u32,
    },
    /// Whole, but of a version that is not known here: older, or newer after a downgrade.
    #[error("value has format version {found}, known are {VERSION_OLDEST} to {VERSION}")]
    Version {
        /// Its version.
        found: u8,
    },
    /// Whole, but not at its place.
    #[error("value begins with record {found}, not {expected}")]
    First {
        /// The sequence under which it was kept.
        expected: u64,
        /// The sequence it was made for.
        found: u64,
    },
    /// Whole, but no header that is ever written.
    #[error("header of value makes no sense")]
    Header,
    /// Whole, but no body that is ever written.
    #[error("body of value makes no sense")]
    Body,
}

/// Reads the header, and checks that the octets are whole.
///
/// # Errors
/// Every [`ValueError`] but `First` and `Body`. The checksum comes before the version: a torn value is never taken for
/// one of another version.
pub fn header(octets: &[u8]) -> Result<Header, ValueError> {
    if !(HEADER_OCTETS..=VALUE_OCTETS_MAX).contains(&octets.len()) {
        return Err(ValueError::Length { octets: octets.len() });
    }
    let (head, _) = octets
        .split_first_chunk::<HEADER_OCTETS>()
        .ok_or(ValueError::Header)?;
    if !head.starts_with(&MAGIC) {
        return Err(ValueError::Magic {
            found: [head[0], head[1]],
        });
    }
    let (expected, found) = (u32::from_be_bytes(part(head, 4)), checksum(octets));
    if expected != found {
        return Err(ValueError::Checksum { expected, found });
    }
    if !(VERSION_OLDEST..=VERSION).contains(&head[2]) {
        return Err(ValueError::Version { found: head[2] });
    }
    let codec = match head[3] {
        0 => Codec::Stored,
        1 => Codec::Lz4,
        _ => return Err(ValueError::Header),
    };
    let records = u16::from_be_bytes(part(head, 16));
    let first = u64::from_be_bytes(part(head, 8));
    if !(1..=RECORDS_MAX).contains(&usize::from(records))
        || first == 0
        || first.checked_add(records.into()).is_none()
    {
        return Err(ValueError::Header);
    }
    let names = u16::from_be_bytes(part(head, 18));
    let owners = u16::from_be_bytes(part(head, 20));
    if names > owners || u32::from(owners) > 2 * u32::from(records) {
        return Err(ValueError::Header);
    }
    Ok(Header {
        codec,
        first,
        records: records.into(),
        boot: BootId(part(head, 24)),
        start: WallTime(u64::from_be_bytes(part(head, 40))),
        end: WallTime(u64::from_be_bytes(part(head, 48))),
        version: head[2],
        names,
        owners,
        body_octets: u16::from_be_bytes(part(head, 22)),
    })
}

/// Reads a value that was kept under `expected_first`, or, with `None`, anywhere.
///
/// Owners with the same names share one `Arc` of them.
///
/// # Errors
/// Every [`ValueError`]; nothing of a value that has one is given.
pub fn decode(octets: &[u8], expected_first: Option<u64>) -> Result<(Header, Vec<FlowRecord>), ValueError> {
    let header = header(octets)?;
    if let Some(expected) = expected_first.filter(|&expected| expected != header.first) {
        return Err(ValueError::First {
            expected,
            found: header.first,
        });
    }
    let kept = &octets[HEADER_OCTETS..];
    let unpacked;
    let body = match header.codec {
        Codec::Stored => kept,
        Codec::Lz4 => {
            unpacked = unpack(kept, header.body_octets.into())?;
            &unpacked
        }
    };
    if body.len() != usize::from(header.body_octets) {
        return Err(ValueError::Body);
    }
    Ok((header, read_body(&header, body)?))
}

fn unpack(packed: &[u8], octets: usize) -> Result<Vec<u8>, ValueError> {
    let mut body = vec![0; octets];
    match lz4_flex::block::decompress_into(packed, &mut body) {
        Ok(found) if found == octets => Ok(body),
        _ => Err(ValueError::Body),
    }
}

/// Reads as many names, owners and rows as the header says; memory grows only with what is really there.
fn read_body(header: &Header, body: &[u8]) -> Result<Vec<FlowRecord>, ValueError> {
    let mut from = parts::Source::from_bytes(body);
    let names = (0..header.names)
        .map(|_| parts::take_names(&mut from, header.version).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()?;
    let owners = (0..header.owners)
        .map(|_| parts::take_owner(&mut from, &names))
        .collect::<Result<Vec<_>, _>>()?;
    let mut before = row::Before::default();
    let mut records = Vec::with_capacity((header.records as usize).min(body.len() / row::ROW_OCTETS_MIN));
    for _ in 0..header.records {
        records.push(row::take_row(&mut from, header.boot, &owners, &mut before)?);
    }
    let rest = from.finalize().map_err(|_| ValueError::Body)?;
    if rest.is_empty() {
        Ok(records)
    } else {
        Err(ValueError::Body)
    }
}

/// Of everything but the checksum's own place; the octets are at least a header.
fn checksum(octets: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&octets[..CHECKSUM.start]), &octets[CHECKSUM.end..])
}

fn part<const N: usize>(head: &[u8; HEADER_OCTETS], at: usize) -> [u8; N] {
    std::array::from_fn(|n| head[at + n])
}
