//! Octets of ZMTP 3.1: greeting, frames, commands, metadata.
//!
//! Answers for the shape of what goes over the wire, in both directions; knows no state of a connection. All numbers
//! are big-endian.
//!
//! ```text
//! greeting   FF 0×8 7F │ major minor │ mechanism[20], zero-padded │ as-server │ 0×31            64 octets
//! frame      flags │ size u8 or u64 │ body          flags: 1 more, 2 size is u64, 4 command, others 0
//! command    name-size u8 │ name │ data             the body of a frame with flag 4
//! metadata   { name-size u8 │ name │ value-size u32 │ value }*
//! PING       ttl u16, tenths of a second │ context[0..=16]        PONG  context
//! SUBSCRIBE  topic     CANCEL  topic     ERROR  reason-size u8 │ reason
//! ```
//! Source: RFC 37 (ZMTP 3.1); greetings of libzmq 4.3 (as-server is always 0 there, so it is not looked at).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::ZmtpError;

/// Octets of a greeting.
pub(super) const GREETING_OCTETS: usize = 64;

/// Octets of the greeting that go first: signature and major version.
///
/// libzmq answers these with its whole greeting; had it all 64 at once, it would close on a mechanism that is not its
/// own before it has told which one it wants.
pub(super) const GREETING_FIRST_OCTETS: usize = 11;

/// Largest body of an inbound frame, in octets.
///
/// A SUB sends topics, PONG and its metadata: all far below. What is larger is no SUB; double it, and a hostile peer
/// costs double the memory, half of it, and a long user-defined metadata value would be refused.
pub const FRAME_OCTETS_MAX: u64 = 8_192;

/// Largest metadata of a peer, in octets. Half of the frame bound; libzmq's own is 25 to 300 octets.
pub const METADATA_OCTETS_MAX: usize = 4_096;

/// Largest context of a PING, in octets. Source: RFC 37.
pub const PING_CONTEXT_OCTETS_MAX: usize = 16;

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// One frame as read from the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) more: bool,
    pub(super) command: bool,
    pub(super) body: Bytes,
}

/// Takes one whole frame from the front of `inbox`; `None` while it is not complete.
pub(super) fn decode_frame(inbox: &mut BytesMut) -> Result<Option<Frame>, ZmtpError> {
    let Some(&flags) = inbox.first() else {
        return Ok(None);
    };
    if flags & !(FLAG_MORE | FLAG_LONG | FLAG_COMMAND) != 0 {
        return Err(ZmtpError::FrameFlags { flags });
    }
    let (header, size) = if flags & FLAG_LONG != 0 {
        match inbox.get(1..9) {
            Some(mut size) => (9, size.get_u64()),
            None => return Ok(None),
        }
    } else {
        match inbox.get(1) {
            Some(&size) => (2, u64::from(size)),
            None => return Ok(None),
        }
    };
    if size > FRAME_OCTETS_MAX {
        return Err(ZmtpError::FrameTooLarge {
            octets: size,
            octets_max: FRAME_OCTETS_MAX,
        });
    }
    let size = usize::try_from(size).expect("bounded above");
    if inbox.len() < header + size {
        return Ok(None);
    }
    inbox.advance(header);
    Ok(Some(Frame {
        more: flags & FLAG_MORE != 0,
        command: flags & FLAG_COMMAND != 0,
        body: inbox.split_to(size).freeze(),
    }))
}

/// Writes the head of a frame whose body of `octets` octets follows.
pub(super) fn encode_frame_head(out: &mut BytesMut, more: bool, command: bool, octets: usize) {
    let flags = u8::from(more) * FLAG_MORE + u8::from(command) * FLAG_COMMAND;
    if let Ok(octets) = u8::try_from(octets) {
        out.put_u8(flags);
        out.put_u8(octets);
    } else {
        out.put_u8(flags | FLAG_LONG);
        out.put_u64(octets as u64);
    }
}

/// The body of a command frame. `name` is at most 255 octets.
pub(super) fn command_body(name: &str, data: &[u8]) -> BytesMut {
    let mut body = BytesMut::with_capacity(1 + name.len() + data.len());
    body.put_u8(u8::try_from(name.len()).expect("our own names are short"));
    body.put_slice(name.as_bytes());
    body.put_slice(data);
    body
}

/// Splits a command's body into name and data.
pub(super) fn decode_command(mut body: Bytes) -> Result<(Bytes, Bytes), ZmtpError> {
    if !body.has_remaining() {
        return Err(ZmtpError::CommandWithoutName);
    }
    let size = usize::from(body.get_u8());
    if size == 0 || body.len() < size {
        return Err(ZmtpError::CommandWithoutName);
    }
    let name = body.split_to(size);
    Ok((name, body))
}

/// A command that may come at any time after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Subscribe(Bytes),
    Cancel(Bytes),
    Ping(Bytes),
    Pong(Bytes),
    Error(String),
    /// Not known here: ignored, for what later minor versions may add.
    Other,
}

/// Reads the body of a command frame.
pub(super) fn decode_traffic_command(body: Bytes) -> Result<Command, ZmtpError> {
    let (name, mut data) = decode_command(body)?;
    Ok(match &name[..] {
        b"SUBSCRIBE" => Command::Subscribe(data),
        b"CANCEL" => Command::Cancel(data),
        b"PING" => {
            if data.len() < 2 || data.len() > 2 + PING_CONTEXT_OCTETS_MAX {
                return Err(ZmtpError::PingSize { octets: data.len() });
            }
            data.advance(2);
            Command::Ping(data)
        }
        b"PONG" => {
            if data.len() > PING_CONTEXT_OCTETS_MAX {
                return Err(ZmtpError::PingSize { octets: data.len() });
            }
            Command::Pong(data)
        }
        b"ERROR" => Command::Error(decode_error_reason(&data)),
        _ => Command::Other,
    })
}

/// The reason of an ERROR command, made printable.
pub(super) fn decode_error_reason(data: &[u8]) -> String {
    let reason = data.split_first().map_or(&data[..0], |(&size, rest)| {
        &rest[..rest.len().min(usize::from(size))]
    });
    reason.escape_ascii().to_string()
}

/// Our metadata: a PUB.
pub(super) fn metadata() -> BytesMut {
    let mut out = BytesMut::with_capacity(32);
    put_property(&mut out, "Socket-Type", b"PUB");
    out
}

pub(super) fn put_property(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_u8(u8::try_from(name.len()).expect("our own names are short"));
    out.put_slice(name.as_bytes());
    out.put_u32(u32::try_from(value.len()).expect("our own values are short"));
    out.put_slice(value);
}

/// Reads a peer's metadata and checks that it is one that a PUB may serve: SUB or XSUB.
pub(super) fn judge_metadata(mut metadata: &[u8]) -> Result<(), ZmtpError> {
    if metadata.len() > METADATA_OCTETS_MAX {
        return Err(ZmtpError::MetadataTooLarge {
            octets: metadata.len(),
            octets_max: METADATA_OCTETS_MAX,
        });
    }
    let mut socket_type = None;
    while metadata.has_remaining() {
        let name = take(&mut metadata, 1)?;
        let name = take(&mut metadata, usize::from(name[0]))?;
        let mut size = take(&mut metadata, 4)?;
        // A size that does not fit a usize is past the end as well.
        let value = take(
            &mut metadata,
            usize::try_from(size.get_u32()).unwrap_or(usize::MAX),
        )?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            socket_type = Some(value);
        }
    }
    match socket_type {
        Some(b"SUB" | b"XSUB") => Ok(()),
        other => Err(ZmtpError::SocketType {
            found: other.unwrap_or(b"").escape_ascii().to_string(),
        }),
    }
}

fn take<'a>(from: &mut &'a [u8], octets: usize) -> Result<&'a [u8], ZmtpError> {
    let (taken, rest) = from
        .split_at_checked(octets)
        .ok_or(ZmtpError::MetadataTruncated)?;
    *from = rest;
    Ok(taken)
}

/// Our greeting: version 3.1, not a server.
pub(super) fn greeting(mechanism: &str) -> [u8; GREETING_OCTETS] {
    let mut out = [0; GREETING_OCTETS];
    out[0] = 0xff;
    out[9] = 0x7f;
    out[10] = 3;
    out[11] = 1;
    out[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    out
}

/// What a peer's greeting says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerGreeting {
    pub(super) minor: u8,
    pub(super) mechanism: String,
}

/// Reads a greeting as far as it has come; `None` while it is neither complete nor wrong.
pub(super) fn decode_greeting(inbox: &[u8]) -> Result<Option<PeerGreeting>, ZmtpError> {
    let signature =
        inbox.first().is_none_or(|&octet| octet == 0xff) && inbox.get(9).is_none_or(|octet| octet & 1 == 1);
    if !signature {
        return Err(ZmtpError::NotZmtp {
            start: inbox[..inbox.len().min(16)].escape_ascii().to_string(),
        });
    }
    if let Some(&major) = inbox.get(10)
        && major < 3
    {
        return Err(ZmtpError::TooOld { revision: major });
    }
    let Some(greeting) = inbox.get(..GREETING_OCTETS) else {
        return Ok(None);
    };
    let mechanism = &greeting[12..32];
    let end = mechanism.iter().position(|&octet| octet == 0).unwrap_or(20);
    Ok(Some(PeerGreeting {
        minor: greeting[11],
        mechanism: mechanism[..end].escape_ascii().to_string(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(octets: &[u8]) -> Result<Option<Frame>, ZmtpError> {
        decode_frame(&mut BytesMut::from(octets))
    }

    #[test]
    fn frame_head_is_short_up_to_255_octets_and_long_above() {
        for octets in [0, 1, 255, 256, 8_192] {
            let mut out = BytesMut::new();
            encode_frame_head(&mut out, true, false, octets);
            assert_eq!(out.len(), if octets < 256 { 2 } else { 9 });
            out.resize(out.len() + octets, 7);
            let read = frame(&out).unwrap().unwrap();
            assert_eq!((read.more, read.command, read.body.len()), (true, false, octets));
        }
    }

    #[test]
    fn truncated_frame_waits_and_a_bad_one_is_refused() {
        assert_eq!(frame(&[]), Ok(None));
        assert_eq!(frame(&[4]), Ok(None));
        assert_eq!(frame(&[2, 0, 0, 0]), Ok(None));
        assert_eq!(frame(&[0, 2, 9]), Ok(None));
        assert_eq!(frame(&[8, 0]), Err(ZmtpError::FrameFlags { flags: 8 }));
        assert!(matches!(
            frame(&[2, 0xff, 0, 0, 0, 0, 0, 0, 0]),
            Err(ZmtpError::FrameTooLarge { .. })
        ));
    }

    #[test]
    fn metadata_of_a_sub_is_accepted_and_of_others_refused() {
        for (kind, good) in [("SUB", true), ("XSUB", true), ("PUB", false), ("", false)] {
            let mut metadata = BytesMut::new();
            put_property(&mut metadata, "Identity", b"");
            put_property(&mut metadata, "socket-type", kind.as_bytes());
            assert_eq!(judge_metadata(&metadata).is_ok(), good, "{kind}");
        }
        assert!(matches!(judge_metadata(b""), Err(ZmtpError::SocketType { .. })));
        for cut in [
            &b"\x03abc\xff\xff\xff\xff"[..],
            b"\x03ab",
            b"\x03abc\0\0",
            b"\x03abc\0\0\0\x02x",
        ] {
            assert_eq!(judge_metadata(cut), Err(ZmtpError::MetadataTruncated));
        }
        assert!(matches!(
            judge_metadata(&[0; METADATA_OCTETS_MAX + 1]),
            Err(ZmtpError::MetadataTooLarge { .. })
        ));
    }

    #[test]
    fn greeting_is_judged_as_early_as_possible() {
        let ours = greeting("NULL");
        for end in 0..GREETING_OCTETS {
            assert_eq!(decode_greeting(&ours[..end]), Ok(None));
        }
        assert_eq!(
            decode_greeting(&ours).unwrap().unwrap(),
            PeerGreeting {
                minor: 1,
                mechanism: "NULL".into()
            }
        );
        assert!(matches!(decode_greeting(b"H"), Err(ZmtpError::NotZmtp { .. })));
        let mut second = ours;
        second[10] = 1;
        assert_eq!(
            decode_greeting(&second[..11]),
            Err(ZmtpError::TooOld { revision: 1 })
        );
    }
}
