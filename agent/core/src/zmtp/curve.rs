//! The CURVE mechanism, client side: the collector is the server, and this agent knows its public key.
//!
//! Answers for the handshake's commands and for the box around each frame afterwards. Makes no random number: secrets
//! and the vouch's nonce are arguments. S, C are long-term keys, S', C' live as long as the connection.
//!
//! ```text
//! HELLO     1 0 │ 0×72 │ C' │ nonce u64 │ Box[0×64](C'→S)                                       200 octets
//! WELCOME   nonce[16] │ Box[S' │ cookie[96]](S→C')                                              168 octets
//! INITIATE  cookie[96] │ nonce u64 │ Box[C │ nonce[16] │ Box[C' │ S](C→S') │ metadata](C'→S')
//! READY     nonce u64 │ Box[metadata](S'→C')
//! MESSAGE   nonce u64 │ Box[flags │ frame](C'→S', or back)      flags: 1 more, 2 command
//! ```
//! Invariant: short nonces of one direction only grow; one that does not is refused, so nothing can be played back.
//! CURVE hides and checks the traffic and proves the server. It proves nothing about the agent to a server that asks
//! no questions, as ntopng does not.
//! Source: RFC 26 (CurveZMQ); MESSAGE travels in frames without flags, as libzmq's do.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crypto_box::aead::AeadInPlace;
use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, Tag};

use super::ZmtpError;
use super::codec::{Frame, command_body, decode_command, decode_error_reason, judge_metadata, metadata};

const TAG_OCTETS: usize = 16;
const COOKIE_OCTETS: usize = 96;
const WELCOME_OCTETS: usize = 160;
const FLAG_MORE: u8 = 1;
const FLAG_COMMAND: u8 = 2;

/// What a CURVE client needs. The last three are drawn from the system's entropy for each connection, except the
/// client's secret key, which may live as long as the agent.
#[derive(Clone)]
pub struct CurveKeys {
    /// Public key of the collector.
    pub server: [u8; 32],
    /// Long-term secret key of this agent.
    pub client_secret: [u8; 32],
    /// Secret key of this connection, never used twice.
    pub ephemeral_secret: [u8; 32],
    /// Nonce of the vouch, never used twice.
    pub vouch_nonce: [u8; 16],
}

enum Stage {
    Welcome,
    Ready(SalsaBox),
    Traffic(SalsaBox),
}

/// One connection's CURVE client.
pub(super) struct Curve {
    server: PublicKey,
    client: SecretKey,
    ephemeral: SecretKey,
    vouch_nonce: [u8; 16],
    stage: Stage,
    nonce: u64,
    peer_nonce: u64,
}

impl Curve {
    pub(super) fn new(keys: &CurveKeys) -> Self {
        Self {
            server: PublicKey::from(keys.server),
            client: SecretKey::from(keys.client_secret),
            ephemeral: SecretKey::from(keys.ephemeral_secret),
            vouch_nonce: keys.vouch_nonce,
            stage: Stage::Welcome,
            nonce: 0,
            peer_nonce: 0,
        }
    }

    /// HELLO, the first command.
    pub(super) fn hello(&mut self) -> Bytes {
        let nonce = self.next_nonce();
        let mut data = BytesMut::with_capacity(194);
        data.put_slice(&[1, 0]);
        data.put_bytes(0, 72);
        data.put_slice(self.ephemeral.public_key().as_bytes());
        data.put_u64(nonce);
        seal(
            &SalsaBox::new(&self.server, &self.ephemeral),
            &short_nonce(b"CurveZMQHELLO---", nonce),
            &[0; 64],
            &mut data,
        );
        command_body("HELLO", &data).freeze()
    }

    /// Whether the peer has shown that it holds the expected key.
    pub(super) fn has_welcome(&self) -> bool {
        !matches!(self.stage, Stage::Welcome)
    }

    /// Reads a command of the handshake. `Some`: the answer. `None`: the handshake is complete.
    pub(super) fn handle_command(&mut self, body: Bytes) -> Result<Option<Bytes>, ZmtpError> {
        let (name, data) = decode_command(body)?;
        if &name[..] == b"ERROR" {
            let reason = decode_error_reason(&data);
            return Err(if self.has_welcome() {
                ZmtpError::Refused { reason }
            } else {
                ZmtpError::ServerKey { reason: Some(reason) }
            });
        }
        match &self.stage {
            Stage::Welcome if &name[..] == b"WELCOME" => self.handle_welcome(data).map(Some),
            Stage::Ready(_) if &name[..] == b"READY" => self.handle_ready(data).map(|()| None),
            Stage::Welcome => Err(unexpected("WELCOME", &name)),
            Stage::Ready(_) => Err(unexpected("READY", &name)),
            Stage::Traffic(_) => Err(unexpected("MESSAGE", &name)),
        }
    }

    fn handle_welcome(&mut self, mut data: Bytes) -> Result<Bytes, ZmtpError> {
        if data.len() != WELCOME_OCTETS {
            return Err(ZmtpError::CurveSize {
                command: "WELCOME",
                octets: data.len(),
            });
        }
        let nonce = long_nonce(b"WELCOME-", &data.split_to(16));
        let plain = open(&SalsaBox::new(&self.server, &self.ephemeral), &nonce, &data)
            .ok_or(ZmtpError::ServerKey { reason: None })?;
        let (server_ephemeral, cookie) = plain.split_at(32);
        debug_assert_eq!(cookie.len(), COOKIE_OCTETS, "WELCOME's size was checked");
        let server_ephemeral = PublicKey::from_slice(server_ephemeral).expect("32 octets were split off");

        let mut vouched = BytesMut::with_capacity(64);
        vouched.put_slice(self.ephemeral.public_key().as_bytes());
        vouched.put_slice(self.server.as_bytes());
        let mut plain = BytesMut::with_capacity(160);
        plain.put_slice(self.client.public_key().as_bytes());
        plain.put_slice(&self.vouch_nonce);
        seal(
            &SalsaBox::new(&server_ephemeral, &self.client),
            &long_nonce(b"VOUCH---", &self.vouch_nonce),
            &vouched,
            &mut plain,
        );
        plain.put_slice(&metadata());

        let session = SalsaBox::new(&server_ephemeral, &self.ephemeral);
        let nonce = self.next_nonce();
        let mut data = BytesMut::with_capacity(288);
        data.put_slice(cookie);
        data.put_u64(nonce);
        seal(
            &session,
            &short_nonce(b"CurveZMQINITIATE", nonce),
            &plain,
            &mut data,
        );
        self.stage = Stage::Ready(session);
        Ok(command_body("INITIATE", &data).freeze())
    }

    fn handle_ready(&mut self, data: Bytes) -> Result<(), ZmtpError> {
        let session = match std::mem::replace(&mut self.stage, Stage::Welcome) {
            Stage::Ready(session) => session,
            Stage::Welcome | Stage::Traffic(_) => unreachable!("called in this stage only"),
        };
        let metadata = open_short(&session, &mut self.peer_nonce, "READY", b"CurveZMQREADY---", data)?;
        judge_metadata(&metadata)?;
        self.stage = Stage::Traffic(session);
        Ok(())
    }

    /// Boxes one frame; the result is the body of a frame without flags. Only after the handshake.
    pub(super) fn encode(&mut self, more: bool, command: bool, parts: &[&[u8]], out: &mut BytesMut) {
        let nonce = self.next_nonce();
        let Stage::Traffic(session) = &self.stage else {
            unreachable!("the peer sends traffic after the handshake only");
        };
        out.put_slice(b"\x07MESSAGE");
        out.put_u64(nonce);
        let tag_at = out.len();
        out.put_bytes(0, TAG_OCTETS);
        out.put_u8(u8::from(more) * FLAG_MORE + u8::from(command) * FLAG_COMMAND);
        parts.iter().for_each(|part| out.put_slice(part));
        let (head, plain) = out.split_at_mut(tag_at + TAG_OCTETS);
        let tag = session
            .encrypt_in_place_detached(&short_nonce(b"CurveZMQMESSAGEC", nonce), b"", plain)
            .expect("a frame is far shorter than the cipher's limit");
        head[tag_at..].copy_from_slice(&tag);
    }

    /// Octets that [`Self::encode`] adds to a frame's own.
    pub(super) const OVERHEAD_OCTETS: usize = 8 + 8 + TAG_OCTETS + 1;

    /// Opens the body of a frame after the handshake.
    pub(super) fn decode(&mut self, body: Bytes) -> Result<Frame, ZmtpError> {
        let Stage::Traffic(session) = &self.stage else {
            unreachable!("the peer reads traffic after the handshake only");
        };
        let (name, data) = decode_command(body)?;
        if &name[..] != b"MESSAGE" {
            return Err(unexpected("MESSAGE", &name));
        }
        let plain = open_short(
            session,
            &mut self.peer_nonce,
            "MESSAGE",
            b"CurveZMQMESSAGES",
            data,
        )?;
        let mut plain = Bytes::from(plain);
        if plain.is_empty() {
            return Err(ZmtpError::CurveSize {
                command: "MESSAGE",
                octets: 0,
            });
        }
        let flags = plain.get_u8();
        Ok(Frame {
            more: flags & FLAG_MORE != 0,
            command: flags & FLAG_COMMAND != 0,
            body: plain,
        })
    }

    fn next_nonce(&mut self) -> u64 {
        self.nonce += 1;
        self.nonce
    }
}

fn unexpected(expected: &'static str, found: &[u8]) -> ZmtpError {
    ZmtpError::UnexpectedCommand {
        expected,
        found: found.escape_ascii().to_string(),
    }
}

/// Opens what carries a short nonce, and remembers the nonce.
fn open_short(
    session: &SalsaBox,
    peer_nonce: &mut u64,
    command: &'static str,
    prefix: &[u8; 16],
    mut data: Bytes,
) -> Result<Vec<u8>, ZmtpError> {
    if data.len() < 8 + TAG_OCTETS {
        return Err(ZmtpError::CurveSize {
            command,
            octets: data.len(),
        });
    }
    let nonce = data.get_u64();
    if nonce <= *peer_nonce {
        return Err(ZmtpError::CurveNonce { command });
    }
    let plain = open(session, &short_nonce(prefix, nonce), &data).ok_or(ZmtpError::CurveBox { command })?;
    *peer_nonce = nonce;
    Ok(plain)
}

fn short_nonce(prefix: &[u8; 16], nonce: u64) -> Nonce {
    let mut out = Nonce::default();
    out[..16].copy_from_slice(prefix);
    out[16..].copy_from_slice(&nonce.to_be_bytes());
    out
}

fn long_nonce(prefix: &[u8; 8], nonce: &[u8]) -> Nonce {
    let mut out = Nonce::default();
    out[..8].copy_from_slice(prefix);
    out[8..].copy_from_slice(nonce);
    out
}

/// Appends tag and ciphertext, in NaCl's order.
fn seal(boxed: &SalsaBox, nonce: &Nonce, plain: &[u8], out: &mut BytesMut) {
    let mut text = plain.to_vec();
    let tag = boxed
        .encrypt_in_place_detached(nonce, b"", &mut text)
        .expect("a handshake is far shorter than the cipher's limit");
    out.put_slice(&tag);
    out.put_slice(&text);
}

/// `None`: not made by who holds the other key, or changed on the way.
fn open(boxed: &SalsaBox, nonce: &Nonce, data: &[u8]) -> Option<Vec<u8>> {
    let (tag, text) = data.split_at_checked(TAG_OCTETS)?;
    let mut text = text.to_vec();
    boxed
        .decrypt_in_place_detached(nonce, b"", &mut text, Tag::from_slice(tag))
        .ok()?;
    Some(text)
}
