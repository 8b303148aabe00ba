//! Frame 1 of a message: which topic, how the payload is written, who sent it, which message it is.
//!
//! ntopng knows the layout by the frame's length and the payload's encoding by `version` (V3: by `flags`).
//!
//! ```text
//! V1, 24 octets: topic[16] version:1 source_id:1 size:2be                  message_id:4be
//! V2, 28 octets: topic[16] version:1 0:1         size:2be                  message_id:4be source_id:4le
//! V3, 36 octets: topic[16] 4:1       flags:1     0:2 size:4le size:4le     message_id:4be source_id:4le
//! ```
//!
//! Topic zero filled, at least one zero octet. `version` 2 is JSON, 3 is TLV; `flags` 0x02 is TLV, 0x04 compressed.
//! V3 names its sizes "uncompressed" and "compressed", but ntopng sizes its buffer by the second: both hold the
//! uncompressed length. The source id is written little-endian, ntopng takes it as its own machine's order.
//! Source: ntopng `zmq_msg_hdr_v1` to `zmq_msg_hdr_v3`, `ZMQCollectorInterface::collect_flows`.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

/// Octets of the topic field in every layout.
const TOPIC_OCTETS: usize = 16;
/// `version` of a JSON payload in V1 and V2.
const VERSION_JSON: u8 = 2;
/// `version` of a TLV payload in V1 and V2.
const VERSION_TLV: u8 = 3;
/// `version` of every V3 header.
const VERSION_FLAGS: u8 = 4;
/// V3: the payload is TLV.
const FLAG_TLV: u8 = 0x02;
/// V3: the payload is one zlib stream.
const FLAG_COMPRESSED: u8 = 0x04;

/// Which of ntopng's header structures is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeaderLayout {
    /// 24 octets, 8-bit source id: every ntopng from 5.2 on.
    V1,
    /// 28 octets, 32-bit source id: 5.4 and later.
    #[default]
    V2,
    /// 36 octets, 32-bit source id and size: 6.2 and later.
    V3,
}

impl HeaderLayout {
    /// Length of the frame, in octets.
    #[must_use]
    pub fn octets(self) -> usize {
        match self {
            Self::V1 => 24,
            Self::V2 => 28,
            Self::V3 => 36,
        }
    }
}

/// What a message is about. The agent sends the first three; the others are sent by other exporters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Flow records.
    Flow,
    /// State of the probe.
    Event,
    /// Ports on which the host listens.
    ListeningPorts,
    /// Names of fields.
    Template,
    /// Names of field values.
    Option,
    /// Interface counters.
    Counter,
    /// Greeting.
    Hello,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Flow,
        Self::Event,
        Self::ListeningPorts,
        Self::Template,
        Self::Option,
        Self::Counter,
        Self::Hello,
    ];

    /// The name as it stands in the header and in subscriptions; at most 15 octets.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Event => "event",
            Self::ListeningPorts => "listening-ports",
            Self::Template => "template",
            Self::Option => "option",
            Self::Counter => "counter",
            Self::Hello => "hello",
        }
    }
}

/// How the payload is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadEncoding {
    /// JSON text: every topic but `flow`.
    Json,
    /// nDPI's binary serialisation: `flow`.
    Tlv,
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which structure it was.
    pub layout: HeaderLayout,
    /// What it is about.
    pub topic: Topic,
    /// How the payload is written.
    pub encoding: PayloadEncoding,
    /// Whether the header says that the payload is compressed (V3; V1 and V2 say so in the payload).
    pub compressed: bool,
    /// Length of the payload as told, in octets; V1 and V2 tell at most 65,535.
    pub payload_octets: u32,
    /// Counts a source's messages over all topics.
    pub message_id: u32,
    /// Who sent it; 8 bits in V1.
    pub source_id: u32,
}

/// Why a frame is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// No layout has this length.
    #[error("a header of {0} octets is of no known layout (24, 28 and 36 are)")]
    Length(usize),
    /// The topic is not one that ntopng has, or its field is not zero filled.
    #[error("the topic field holds no topic of ntopng")]
    Topic,
    /// The version does not go with the layout.
    #[error("version {version} does not belong to a header of {octets} octets")]
    Version {
        /// The version octet.
        version: u8,
        /// The frame's length, in octets.
        octets: usize,
    },
}

/// Writes the header of one message.
///
/// `payload_octets` is the length of frame 2; V1 and V2 hold at most 65,535 of it, which ntopng does not read.
/// `source_id` loses all but its low 8 bits in V1. `message_id` begins at 1: 0 means "none" to ntopng 5.2.
#[must_use]
pub fn encode(
    layout: HeaderLayout,
    topic: Topic,
    encoding: PayloadEncoding,
    payload_octets: usize,
    message_id: u32,
    source_id: u32,
) -> Bytes {
    let mut frame = BytesMut::with_capacity(layout.octets());
    frame.put_slice(topic.name().as_bytes());
    frame.put_bytes(0, TOPIC_OCTETS - topic.name().len());
    let version = match encoding {
        PayloadEncoding::Json => VERSION_JSON,
        PayloadEncoding::Tlv => VERSION_TLV,
    };
    let size = u32::try_from(payload_octets).unwrap_or(u32::MAX);
    let short_size = u16::try_from(payload_octets).unwrap_or(u16::MAX);
    match layout {
        HeaderLayout::V1 => {
            frame.put_u8(version);
            frame.put_u8(source_id.to_le_bytes()[0]);
            frame.put_u16(short_size);
            frame.put_u32(message_id);
        }
        HeaderLayout::V2 => {
            frame.put_u8(version);
            frame.put_u8(0);
            frame.put_u16(short_size);
            frame.put_u32(message_id);
            frame.put_u32_le(source_id);
        }
        HeaderLayout::V3 => {
            frame.put_u8(VERSION_FLAGS);
            frame.put_u8(match encoding {
                PayloadEncoding::Json => 0,
                PayloadEncoding::Tlv => FLAG_TLV,
            });
            frame.put_u16(0);
            frame.put_u32_le(size);
            frame.put_u32_le(size);
            frame.put_u32(message_id);
            frame.put_u32_le(source_id);
        }
    }
    frame.freeze()
}

/// Reads a header, as ntopng would.
///
/// # Errors
/// - [`HeaderError::Length`]: the frame has the length of no layout.
/// - [`HeaderError::Topic`]: the first 16 octets are no topic.
/// - [`HeaderError::Version`]: layout and version contradict each other.
pub fn decode(frame: &[u8]) -> Result<Header, HeaderError> {
    let layout = match frame.len() {
        24 => HeaderLayout::V1,
        28 => HeaderLayout::V2,
        36 => HeaderLayout::V3,
        other => return Err(HeaderError::Length(other)),
    };
    let topic = topic(&frame[..TOPIC_OCTETS]).ok_or(HeaderError::Topic)?;
    let version = frame[16];
    let contradiction = HeaderError::Version {
        version,
        octets: frame.len(),
    };
    let encoding = match (layout, version) {
        (HeaderLayout::V3, VERSION_FLAGS) if frame[17] & FLAG_TLV != 0 => PayloadEncoding::Tlv,
        (HeaderLayout::V3, VERSION_FLAGS) => PayloadEncoding::Json,
        (HeaderLayout::V1 | HeaderLayout::V2, VERSION_JSON) => PayloadEncoding::Json,
        (HeaderLayout::V1 | HeaderLayout::V2, VERSION_TLV) => PayloadEncoding::Tlv,
        _ => return Err(contradiction),
    };
    let four = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    let short_size = u32::from(u16::from_be_bytes([frame[18], frame[19]]));
    let (payload_octets, message_id, source_id) = match layout {
        HeaderLayout::V1 => (short_size, four(20), u32::from(frame[17])),
        HeaderLayout::V2 => (short_size, four(20), u32::from_le_bytes(four(24))),
        HeaderLayout::V3 => (
            u32::from_le_bytes(four(20)),
            four(28),
            u32::from_le_bytes(four(32)),
        ),
    };
    Ok(Header {
        layout,
        topic,
        encoding,
        compressed: layout == HeaderLayout::V3 && frame[17] & FLAG_COMPRESSED != 0,
        payload_octets,
        message_id: u32::from_be_bytes(message_id),
        source_id,
    })
}

fn topic(field: &[u8]) -> Option<Topic> {
    let end = field.iter().position(|&octet| octet == 0)?;
    let (name, fill) = field.split_at(end);
    if fill.iter().any(|&octet| octet != 0) {
        return None;
    }
    Topic::ALL
        .into_iter()
        .find(|topic| topic.name().as_bytes() == name)
}
