//! Writes items of nDPI's serialisation; the format is in [`super`]'s head.

use bytes::{BufMut, BytesMut};

/// Writes a number in as few octets as hold it.
pub(super) fn number(out: &mut BytesMut, element: u16, value: u64) {
    if let Ok(value) = u8::try_from(value) {
        key(out, element, super::U8);
        out.put_u8(value);
    } else if let Ok(value) = u16::try_from(value) {
        key(out, element, super::U16);
        out.put_u16(value);
    } else if let Ok(value) = u32::try_from(value) {
        key(out, element, super::U32);
        out.put_u32(value);
    } else {
        key(out, element, super::U64);
        out.put_u64(value);
    }
}

/// Writes a number with a fraction. In the sender's own order, which ntopng takes for little-endian.
pub(super) fn float(out: &mut BytesMut, element: u16, value: f32) {
    key(out, element, super::FLOAT);
    out.put_f32_le(value);
}

/// Writes a harmless text.
pub(super) fn text(out: &mut BytesMut, element: u16, value: &str) {
    key(out, element, super::TEXT);
    octets(out, value);
}

/// Writes a harmless text under a name of ours: an additional element.
pub(super) fn named_text(out: &mut BytesMut, name: &'static str, value: &str) {
    out.put_u8(super::TEXT << 4 | super::TEXT);
    octets(out, name);
    octets(out, value);
}

/// Ends a record.
pub(super) fn end_of_record(out: &mut BytesMut) {
    out.put_u8(super::END_OF_RECORD);
}

fn key(out: &mut BytesMut, element: u16, value_type: u8) {
    if let Ok(element) = u8::try_from(element) {
        out.put_u8(super::U8 << 4 | value_type);
        out.put_u8(element);
    } else {
        out.put_u8(super::U16 << 4 | value_type);
        out.put_u16(element);
    }
}

fn octets(out: &mut BytesMut, text: &str) {
    let length = u16::try_from(text.len()).expect("encode::text cuts every text far below 64 KiB");
    out.put_u16(length);
    out.put_slice(text.as_bytes());
}
