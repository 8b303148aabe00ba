//! nDPI's own deserializer, as ntopng uses it on flow payloads.
//!
//! Source: nDPI 4.2 `ndpi_api.h`, `ndpi_typedefs.h`; the calls and the types accepted are those of ntopng's
//! `ZMQParserInterface::parseSingleTLVFlow`.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_void};
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;

use super::library;

/// Loader names of nDPI, Debian 12's first.
pub const LIBRARIES: [&str; 2] = ["libndpi.so.4.2", "libndpi.so"];

/// Room for `ndpi_deserializer`: 64 octets in 4.2; four times that, because later versions grew it.
const DESERIALIZER_WORDS: usize = 32;
/// `ndpi_serialization_format_tlv`.
const FORMAT_TLV: c_int = 1;

/// Values of `ndpi_serialization_type`.
mod kind {
    pub(super) const UNKNOWN: i32 = 0;
    pub(super) const END_OF_RECORD: i32 = 1;
    pub(super) const UINT32: i32 = 4;
    pub(super) const UINT64: i32 = 5;
    pub(super) const INT32: i32 = 8;
    pub(super) const INT64: i32 = 9;
    pub(super) const FLOAT: i32 = 10;
    pub(super) const STRING: i32 = 11;
}

/// Key of an element: a number, or its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// IPFIX number; ntop's own begin at 57472.
    Number(u32),
    /// Name.
    Name(String),
}

/// Value of an element.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Not negative.
    Unsigned(u64),
    /// Written as a signed number.
    Signed(i64),
    /// Single precision.
    Float(f32),
    /// Text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(n) => n.fmt(f),
            Self::Signed(n) => n.fmt(f),
            Self::Float(n) => n.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// One flow record, as nDPI reads it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Elements(pub BTreeMap<Key, Value>);

impl Elements {
    /// Number of an element; `None`: absent or text.
    #[must_use]
    pub fn number(&self, element: u32) -> Option<u64> {
        match self.0.get(&Key::Number(element))? {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            Value::Float(_) | Value::Text(_) => None,
        }
    }

    /// Text of an element; `None`: absent or a number.
    #[must_use]
    pub fn text(&self, element: u32) -> Option<&str> {
        match self.0.get(&Key::Number(element))? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Decimal of an element, such as a latency in ms.
    #[must_use]
    pub fn decimal(&self, element: u32) -> Option<f64> {
        match self.0.get(&Key::Number(element))? {
            Value::Float(n) => Some(f64::from(*n)),
            Value::Unsigned(n) => Some(*n as f64),
            Value::Signed(n) => Some(*n as f64),
            Value::Text(_) => None,
        }
    }
}

#[repr(C)]
struct Text {
    octets: *const c_char,
    length: u16,
}

type Deserializer = *mut c_void;

/// nDPI.
pub struct Ndpi {
    init: unsafe extern "C" fn(Deserializer, *mut u8, u32) -> c_int,
    format: unsafe extern "C" fn(Deserializer) -> c_int,
    item_type: unsafe extern "C" fn(Deserializer, *mut c_int) -> c_int,
    next: unsafe extern "C" fn(Deserializer) -> c_int,
    key_number: unsafe extern "C" fn(Deserializer, *mut u32) -> c_int,
    key_text: unsafe extern "C" fn(Deserializer, *mut Text) -> c_int,
    value_u32: unsafe extern "C" fn(Deserializer, *mut u32) -> c_int,
    value_u64: unsafe extern "C" fn(Deserializer, *mut u64) -> c_int,
    value_i32: unsafe extern "C" fn(Deserializer, *mut i32) -> c_int,
    value_i64: unsafe extern "C" fn(Deserializer, *mut i64) -> c_int,
    value_float: unsafe extern "C" fn(Deserializer, *mut f32) -> c_int,
    value_text: unsafe extern "C" fn(Deserializer, *mut Text) -> c_int,
    _library: Library,
}

impl Ndpi {
    /// Loads nDPI.
    ///
    /// # Errors
    /// When it is missing, or lacks a function.
    pub fn load() -> Result<Self> {
        let library = LIBRARIES
            .iter()
            .find_map(|name| library::open(name).ok())
            .with_context(|| format!("open {}", LIBRARIES.join(" or ")))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the signature is the one of nDPI 4.2's ndpi_api.h, and the library outlives the pointer.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }
                    .with_context(|| format!("find {} in nDPI", $name))?
            };
        }
        Ok(Self {
            init: function!("ndpi_init_deserializer_buf"),
            format: function!("ndpi_deserialize_get_format"),
            item_type: function!("ndpi_deserialize_get_item_type"),
            next: function!("ndpi_deserialize_next"),
            key_number: function!("ndpi_deserialize_key_uint32"),
            key_text: function!("ndpi_deserialize_key_string"),
            value_u32: function!("ndpi_deserialize_value_uint32"),
            value_u64: function!("ndpi_deserialize_value_uint64"),
            value_i32: function!("ndpi_deserialize_value_int32"),
            value_i64: function!("ndpi_deserialize_value_int64"),
            value_float: function!("ndpi_deserialize_value_float"),
            value_text: function!("ndpi_deserialize_value_string"),
            _library: library,
        })
    }

    /// All records of a TLV payload.
    ///
    /// # Errors
    /// When nDPI or ntopng would drop a part of it: another format, an element type ntopng does not take, a record
    /// without end, an element twice.
    pub fn read(&self, payload: &[u8]) -> Result<Vec<Elements>> {
        let mut octets = payload.to_vec();
        let mut state = [0_u64; DESERIALIZER_WORDS];
        let at: Deserializer = state.as_mut_ptr().cast();
        // SAFETY: `at` has room for the structure; the buffer outlives every use of it.
        let rc = unsafe { (self.init)(at, octets.as_mut_ptr(), u32::try_from(octets.len())?) };
        ensure!(rc == 0, "nDPI refuses the payload: {rc}");
        // SAFETY: initialised above.
        let format = unsafe { (self.format)(at) };
        ensure!(format == FORMAT_TLV, "nDPI sees format {format} instead of TLV");
        let mut records = Vec::new();
        let mut record = Elements::default();
        loop {
            let mut key_kind = 0;
            // SAFETY: initialised above; key_kind is an int.
            let value_kind = unsafe { (self.item_type)(at, &raw mut key_kind) };
            match value_kind {
                kind::UNKNOWN => break,
                kind::END_OF_RECORD => records.push(std::mem::take(&mut record)),
                _ => self.read_item(at, key_kind, value_kind, &mut record)?,
            }
            // SAFETY: initialised above.
            let rc = unsafe { (self.next)(at) };
            ensure!(rc >= 0, "nDPI stops after {} records: {rc}", records.len());
        }
        ensure!(record.0.is_empty(), "the last record has no end");
        Ok(records)
    }

    fn read_item(
        &self,
        at: Deserializer,
        key_kind: i32,
        value_kind: i32,
        record: &mut Elements,
    ) -> Result<()> {
        let mut text = Text {
            octets: std::ptr::null(),
            length: 0,
        };
        let (mut u32_, mut u64_, mut i32_, mut i64_, mut f32_) = (0, 0, 0, 0, 0.0);
        // SAFETY: `at` is initialised; each pointer is to the type that the function writes; texts point into the
        // payload, which outlives them.
        let (key, value) = unsafe {
            let key = match key_kind {
                kind::UINT32 => {
                    ok((self.key_number)(at, &raw mut u32_))?;
                    Key::Number(u32_)
                }
                kind::STRING => {
                    ok((self.key_text)(at, &raw mut text))?;
                    Key::Name(text.read())
                }
                other => bail!("a key of type {other}, at which ntopng stops reading"),
            };
            let value = match value_kind {
                kind::UINT32 => {
                    ok((self.value_u32)(at, &raw mut u32_))?;
                    Value::Unsigned(u32_.into())
                }
                kind::UINT64 => {
                    ok((self.value_u64)(at, &raw mut u64_))?;
                    Value::Unsigned(u64_)
                }
                kind::INT32 => {
                    ok((self.value_i32)(at, &raw mut i32_))?;
                    Value::Signed(i32_.into())
                }
                kind::INT64 => {
                    ok((self.value_i64)(at, &raw mut i64_))?;
                    Value::Signed(i64_)
                }
                kind::FLOAT => {
                    ok((self.value_float)(at, &raw mut f32_))?;
                    Value::Float(f32_)
                }
                kind::STRING => {
                    ok((self.value_text)(at, &raw mut text))?;
                    Value::Text(text.read())
                }
                other => bail!("{key:?} has type {other}, at which ntopng stops reading"),
            };
            (key, value)
        };
        if let Some(before) = record.0.insert(key.clone(), value) {
            bail!("{key:?} stands twice in one record, first as {before}");
        }
        Ok(())
    }
}

impl Text {
    /// SAFETY: `octets` must point at `length` readable octets.
    unsafe fn read(&self) -> String {
        // SAFETY: the caller's promise.
        let octets =
            unsafe { std::slice::from_raw_parts(self.octets.cast::<u8>(), usize::from(self.length)) };
        String::from_utf8_lossy(octets).into_owned()
    }
}

fn ok(rc: c_int) -> Result<()> {
    ensure!(rc == 0, "nDPI cannot read an element: {rc}");
    Ok(())
}
