//! Flow records and probe events to ntopng's wire form, and back.
//!
//! A message is two frames: a header ([`header`]) and a payload ([`tlv`] or [`nested`] for flows, JSON for [`event`]
//! and [`listening`]). In: values of the core. Out: octets, ready for a ZeroMQ frame. Keeps no message counter, reads no
//! clock. Invariant: every text that reaches a payload went through [`text`].
//! Source: ntopng `include/ntop_typedefs.h` (headers), `src/ZMQParserInterface.cpp` (fields), nDPI `ndpi_serializer.c`.

pub mod event;
pub mod header;
pub mod listening;
pub mod nested;
pub mod text;
pub mod tlv;

/// Longest payload frame, in octets, that ntopng takes; a longer one is dropped with a warning and counted as lost.
///
/// Fixed by the receiver: no encoder here comes near it. Source: ntopng `CONST_ZMQ_PAYLOAD_LEN`.
pub const COLLECTOR_PAYLOAD_OCTETS_MAX: usize = 131_072;
