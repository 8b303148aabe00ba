//! The NULL mechanism: READY against READY, no secrets.
//!
//! Source: RFC 37, section "The NULL Security Mechanism".

use bytes::Bytes;

use super::ZmtpError;
use super::codec::{command_body, decode_command, decode_error_reason, judge_metadata, metadata};

/// The command that a peer sends first: READY with its metadata.
pub(super) fn ready() -> Bytes {
    command_body("READY", &metadata()).freeze()
}

/// Reads the peer's only handshake command; `Ok` completes the handshake.
pub(super) fn handle_command(body: Bytes) -> Result<(), ZmtpError> {
    let (name, data) = decode_command(body)?;
    match &name[..] {
        b"READY" => judge_metadata(&data),
        b"ERROR" => Err(ZmtpError::Refused {
            reason: decode_error_reason(&data),
        }),
        other => Err(ZmtpError::UnexpectedCommand {
            expected: "READY",
            found: other.escape_ascii().to_string(),
        }),
    }
}
