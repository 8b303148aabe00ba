//! Reads a TLV payload; the format is in [`super`]'s head. Takes what ntopng takes, refuses what makes it give up.

use thiserror::Error;

/// Which element an item is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A number: NetFlow, IPFIX or ntop's own.
    Element(u32),
    /// A name: an additional element.
    Name(String),
}

/// What an item says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number of 8 to 64 bits.
    Unsigned(u64),
    /// A number of 8 to 64 bits that may be below zero.
    Signed(i64),
    /// A number with a fraction.
    Float(f32),
    /// A text; octets that are not UTF-8 read as U+FFFD.
    Text(String),
}

/// Why a payload cannot be read. Places count octets from the payload's begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TlvError {
    /// It does not begin with version 1, format TLV.
    #[error("the payload does not begin with 01 01")]
    Start,
    /// An item goes beyond the end.
    #[error("the item at octet {at} is cut off")]
    Truncated {
        /// Where the item begins.
        at: usize,
    },
    /// A type of key that ntopng does not take.
    #[error("the item at octet {at} has a key of type {kind}")]
    KeyType {
        /// Where the item begins.
        at: usize,
        /// The type's number.
        kind: u8,
    },
    /// A type of value that ntopng does not take.
    #[error("the item at octet {at} has a value of type {kind}")]
    ValueType {
        /// Where the item begins.
        at: usize,
        /// The type's number.
        kind: u8,
    },
}

/// Reads every record of a payload, items in their order. A missing last end of record is tolerated, as by ntopng.
///
/// # Errors
/// - [`TlvError::Start`]: not a TLV payload.
/// - [`TlvError::Truncated`]: the last item is not whole.
/// - [`TlvError::KeyType`], [`TlvError::ValueType`]: an item that ntopng gives up at.
pub fn decode(payload: &[u8]) -> Result<Vec<Vec<(Key, Value)>>, TlvError> {
    let mut rest = payload.strip_prefix(&super::START).ok_or(TlvError::Start)?;
    let mut records = Vec::new();
    let mut record = Vec::new();
    while let Some((&types, mut item)) = rest.split_first() {
        if types == super::END_OF_RECORD {
            records.push(std::mem::take(&mut record));
        } else {
            let at = payload.len() - rest.len();
            let cut = TlvError::Truncated { at };
            let key = match types >> 4 {
                super::U8 => Key::Element(take(&mut item).map(u8::from_be_bytes).ok_or(cut)?.into()),
                super::U16 => Key::Element(take(&mut item).map(u16::from_be_bytes).ok_or(cut)?.into()),
                super::U32 => Key::Element(take(&mut item).map(u32::from_be_bytes).ok_or(cut)?),
                super::TEXT => Key::Name(text(&mut item).ok_or(cut)?),
                kind => return Err(TlvError::KeyType { at, kind }),
            };
            let value = match types & 0x0f {
                super::U8 => Value::Unsigned(take(&mut item).map(u8::from_be_bytes).ok_or(cut)?.into()),
                super::U16 => Value::Unsigned(take(&mut item).map(u16::from_be_bytes).ok_or(cut)?.into()),
                super::U32 => Value::Unsigned(take(&mut item).map(u32::from_be_bytes).ok_or(cut)?.into()),
                super::U64 => Value::Unsigned(take(&mut item).map(u64::from_be_bytes).ok_or(cut)?),
                super::I8 => Value::Signed(take(&mut item).map(i8::from_be_bytes).ok_or(cut)?.into()),
                super::I16 => Value::Signed(take(&mut item).map(i16::from_be_bytes).ok_or(cut)?.into()),
                super::I32 => Value::Signed(take(&mut item).map(i32::from_be_bytes).ok_or(cut)?.into()),
                super::I64 => Value::Signed(take(&mut item).map(i64::from_be_bytes).ok_or(cut)?),
                super::FLOAT => Value::Float(take(&mut item).map(f32::from_le_bytes).ok_or(cut)?),
                super::TEXT => Value::Text(text(&mut item).ok_or(cut)?),
                kind => return Err(TlvError::ValueType { at, kind }),
            };
            record.push((key, value));
        }
        rest = item;
    }
    if !record.is_empty() {
        records.push(record);
    }
    Ok(records)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (octets, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*octets)
}

fn text(rest: &mut &[u8]) -> Option<String> {
    let length = usize::from(take(rest).map(u16::from_be_bytes)?);
    let (octets, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(String::from_utf8_lossy(octets).into_owned())
}
