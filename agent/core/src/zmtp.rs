//! The publishing peer of one ZMTP 3.1 connection, without the connection.
//!
//! In: octets from the collector, messages and PINGs to send. Out: octets for the collector, [`Event`]s. Does no IO,
//! reads no clock, draws no random number: a CURVE connection's secrets are arguments. One [`Peer`] a connection; an
//! error ends it.
//!
//! Order of a connection: our signature and major version → the collector's whole greeting → the rest of ours → the
//! mechanism's handshake → traffic. Ours comes in two parts because a libzmq that got it whole would close on a foreign
//! mechanism before telling its own, and the operator would learn nothing.
//!
//! Invariants: frames of a message follow each other, no command between; what a peer can make this side hold is
//! bounded ([`FRAME_OCTETS_MAX`], [`SUBSCRIPTIONS_MAX`], [`METADATA_OCTETS_MAX`], one PONG); octets cut at any place
//! give the same events.
//! Source: RFC 37 (ZMTP 3.1), RFC 26 (CurveZMQ), RFC 29 (publish-subscribe).

mod codec;
mod curve;
mod null;

use std::collections::{BTreeSet, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use codec::{Command, Frame};

pub use codec::{FRAME_OCTETS_MAX, METADATA_OCTETS_MAX, PING_CONTEXT_OCTETS_MAX};
pub use curve::CurveKeys;

/// Largest number of topics a collector may subscribe to. ntopng has nine; each may cost a frame of memory.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// Least minor version of ZMTP 3 that knows PING.
pub const PING_MINOR_MIN: u8 = 1;

/// How the connection is secured.
#[derive(Clone)]
pub enum Security {
    /// Plain text.
    Null,
    /// CURVE, this side being the client.
    Curve(CurveKeys),
}

/// What happened on the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Messages may be sent. The peer greeted with ZMTP 3.`peer_minor`; PING only from [`PING_MINOR_MIN`] on.
    HandshakeDone {
        /// Minor version of the peer.
        peer_minor: u8,
    },
    /// The peer wants messages whose first frame begins with this.
    Subscribed(Bytes),
    /// The peer takes that back.
    Unsubscribed(Bytes),
    /// The peer has handled everything sent before the PING of this context.
    Pong(Bytes),
}

/// Why a connection cannot go on: a sentence for the operator each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the sentences say it")]
pub enum ZmtpError {
    #[error("it answers \"{start}\": not a ZMTP peer")]
    NotZmtp { start: String },
    #[error("it speaks ZMTP of revision {revision}, older than 3.0")]
    TooOld { revision: u8 },
    #[error("it wants CURVE, and no server key is given: plain text against CURVE")]
    PeerWantsCurve,
    #[error("it speaks plain text (NULL), and a server key is given: CURVE against plain text")]
    PeerIsPlain,
    #[error("it wants the mechanism \"{found}\", and only NULL and CURVE are known")]
    Mechanism { found: String },
    #[error("the server key is not its own{}", after_colon(.reason))]
    ServerKey { reason: Option<String> },
    #[error("it refuses the handshake: {reason}")]
    Refused { reason: String },
    #[error("it is a {found:?} socket, not SUB")]
    SocketType { found: String },
    #[error("its metadata is cut off")]
    MetadataTruncated,
    #[error("its metadata has {octets} octets, the limit is {octets_max}")]
    MetadataTooLarge { octets: usize, octets_max: usize },
    #[error("it sends {found:?} where {expected} belongs")]
    UnexpectedCommand { expected: &'static str, found: String },
    #[error("it sends a message within the handshake")]
    MessageInHandshake,
    #[error("it sends a command without a name")]
    CommandWithoutName,
    #[error("its PING or PONG has {octets} octets, more than a context may have or less than a time to live")]
    PingSize { octets: usize },
    #[error("it sends an error: {reason}")]
    PeerError { reason: String },
    #[error("it sends a frame with flags {flags:#04x}")]
    FrameFlags { flags: u8 },
    #[error("it sends a frame of {octets} octets, the limit is {octets_max}")]
    FrameTooLarge { octets: u64, octets_max: u64 },
    #[error("it subscribes to more than {subscriptions_max} topics")]
    SubscriptionsTooMany { subscriptions_max: usize },
    #[error("its CURVE {command} has {octets} octets")]
    CurveSize { command: &'static str, octets: usize },
    #[error("its CURVE {command} repeats a nonce")]
    CurveNonce { command: &'static str },
    #[error("its CURVE {command} does not open: changed on the way, or made with another key")]
    CurveBox { command: &'static str },
    #[error("it closed before it greeted: not a ZMTP peer")]
    ClosedBeforeGreeting,
    #[error("it closed on the CURVE hello: the server key is not its own")]
    ClosedOnHello,
    #[error("it closed within the handshake")]
    ClosedInHandshake,
    #[error("it closed the connection")]
    Closed,
    #[error("it accepted the connection and did not greet: not a ZMTP peer, or busy")]
    SilentBeforeGreeting,
    #[error("it did not complete the handshake")]
    SilentInHandshake,
}

fn after_colon(reason: &Option<String>) -> String {
    reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"))
}

enum Stage {
    Greeting,
    Handshake,
    Traffic,
}

enum Mechanism {
    Null,
    Curve(Box<curve::Curve>),
}

/// One publishing peer. See the module.
pub struct Peer {
    stage: Stage,
    mechanism: Mechanism,
    peer_minor: u8,
    inbox: BytesMut,
    out: BytesMut,
    /// Context of the newest PING not answered yet: older ones need no answer, and a flood of PINGs no memory.
    pong: Option<Bytes>,
    events: VecDeque<Event>,
    topics: BTreeSet<Bytes>,
    /// Whether the next inbound frame continues a message whose first frame was no subscription.
    in_message: bool,
    failed: Option<ZmtpError>,
}

impl Peer {
    /// A peer at the start of its connection, with the first octets to send.
    #[must_use]
    pub fn new(security: &Security) -> Self {
        let mechanism = match security {
            Security::Null => Mechanism::Null,
            Security::Curve(keys) => Mechanism::Curve(Box::new(curve::Curve::new(keys))),
        };
        let mut peer = Self {
            stage: Stage::Greeting,
            mechanism,
            peer_minor: 0,
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            pong: None,
            events: VecDeque::new(),
            topics: BTreeSet::new(),
            in_message: false,
            failed: None,
        };
        let greeting = codec::greeting(peer.mechanism.name());
        peer.out.put_slice(&greeting[..codec::GREETING_FIRST_OCTETS]);
        peer
    }

    /// Takes octets that came from the collector, cut anywhere.
    ///
    /// # Errors
    /// Any [`ZmtpError`] but those of [`Self::closed`] and [`Self::silent`]. The connection is over; the same error is
    /// returned ever after.
    pub fn handle_input(&mut self, octets: &[u8]) -> Result<(), ZmtpError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.inbox.extend_from_slice(octets);
        let result = self.read_inbox();
        self.failed = result.as_ref().err().cloned();
        result
    }

    /// What it means that the collector closes now.
    #[must_use]
    pub fn closed(&self) -> ZmtpError {
        match (&self.stage, &self.mechanism) {
            (Stage::Greeting, _) if self.inbox.is_empty() => ZmtpError::ClosedBeforeGreeting,
            (Stage::Handshake, Mechanism::Curve(curve)) if !curve.has_welcome() => ZmtpError::ClosedOnHello,
            (Stage::Greeting | Stage::Handshake, _) => ZmtpError::ClosedInHandshake,
            (Stage::Traffic, _) => ZmtpError::Closed,
        }
    }

    /// What it means that the collector is silent within the handshake for too long.
    #[must_use]
    pub fn silent(&self) -> ZmtpError {
        match self.stage {
            Stage::Greeting => ZmtpError::SilentBeforeGreeting,
            Stage::Handshake | Stage::Traffic => ZmtpError::SilentInHandshake,
        }
    }

    /// Queues one message; `false` and nothing queued when the peer has not subscribed to it, or before the handshake.
    pub fn send_message(&mut self, frames: &[&[u8]]) -> bool {
        let wanted = matches!(self.stage, Stage::Traffic)
            && frames.first().is_some_and(|first| self.is_subscribed(first));
        if wanted {
            for (index, frame) in frames.iter().enumerate() {
                self.put_frame(index + 1 < frames.len(), false, &[frame]);
            }
        }
        wanted
    }

    /// Queues a PING. `ttl` is in tenths of a second, 0: the peer need not watch. Only after the handshake, and only to
    /// peers of [`PING_MINOR_MIN`].
    ///
    /// # Panics
    /// When the context is longer than [`PING_CONTEXT_OCTETS_MAX`].
    pub fn ping(&mut self, ttl: u16, context: &[u8]) {
        assert!(
            context.len() <= PING_CONTEXT_OCTETS_MAX,
            "a PING's context has at most 16 octets"
        );
        if matches!(self.stage, Stage::Traffic) {
            self.put_frame(false, true, &[b"\x04PING", &ttl.to_be_bytes(), context]);
        }
    }

    /// Octets to be sent to the collector, all there are.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        if let Some(context) = self.pong.take() {
            self.put_frame(false, true, &[b"\x04PONG", &context]);
        }
        (!self.out.is_empty()).then(|| self.out.split().freeze())
    }

    /// Octets that [`Self::poll_output`] would give, an answer to a PING excluded.
    #[must_use]
    pub fn output_octets(&self) -> usize {
        self.out.len()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the collector wants messages whose first frame begins with `topic`.
    #[must_use]
    pub fn is_subscribed(&self, topic: &[u8]) -> bool {
        self.topics.iter().any(|prefix| topic.starts_with(prefix))
    }

    fn read_inbox(&mut self) -> Result<(), ZmtpError> {
        if matches!(self.stage, Stage::Greeting) && !self.read_greeting()? {
            return Ok(());
        }
        while let Some(frame) = codec::decode_frame(&mut self.inbox)? {
            match self.stage {
                Stage::Greeting => unreachable!("left above"),
                Stage::Handshake => self.handle_handshake(frame)?,
                Stage::Traffic => {
                    let frame = match &mut self.mechanism {
                        Mechanism::Null => frame,
                        Mechanism::Curve(curve) => curve.decode(frame.body)?,
                    };
                    self.handle_traffic(frame)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the greeting is complete.
    fn read_greeting(&mut self) -> Result<bool, ZmtpError> {
        let Some(greeting) = codec::decode_greeting(&self.inbox)? else {
            return Ok(false);
        };
        match (&self.mechanism, greeting.mechanism.as_str()) {
            (Mechanism::Null, "NULL") | (Mechanism::Curve(_), "CURVE") => {}
            (Mechanism::Null, "CURVE") => return Err(ZmtpError::PeerWantsCurve),
            (Mechanism::Curve(_), "NULL") => return Err(ZmtpError::PeerIsPlain),
            (_, found) => {
                return Err(ZmtpError::Mechanism {
                    found: found.to_owned(),
                });
            }
        }
        let _ = self.inbox.split_to(codec::GREETING_OCTETS);
        self.peer_minor = greeting.minor;
        let ours = codec::greeting(self.mechanism.name());
        self.out.put_slice(&ours[codec::GREETING_FIRST_OCTETS..]);
        let first = match &mut self.mechanism {
            Mechanism::Null => null::ready(),
            Mechanism::Curve(curve) => curve.hello(),
        };
        self.put_plain(true, &first);
        self.stage = Stage::Handshake;
        Ok(true)
    }

    fn handle_handshake(&mut self, frame: Frame) -> Result<(), ZmtpError> {
        if !frame.command {
            return Err(ZmtpError::MessageInHandshake);
        }
        let answer = match &mut self.mechanism {
            Mechanism::Null => null::handle_command(frame.body).map(|()| None)?,
            Mechanism::Curve(curve) => curve.handle_command(frame.body)?,
        };
        if let Some(answer) = answer {
            self.put_plain(true, &answer);
        } else {
            self.stage = Stage::Traffic;
            self.events.push_back(Event::HandshakeDone {
                peer_minor: self.peer_minor,
            });
        }
        Ok(())
    }

    fn handle_traffic(&mut self, frame: Frame) -> Result<(), ZmtpError> {
        if frame.command {
            return match codec::decode_traffic_command(frame.body)? {
                Command::Subscribe(topic) => self.subscribe(topic),
                Command::Cancel(topic) => {
                    self.unsubscribe(topic);
                    Ok(())
                }
                Command::Ping(context) => {
                    self.pong = Some(context);
                    Ok(())
                }
                Command::Pong(context) => {
                    self.events.push_back(Event::Pong(context));
                    Ok(())
                }
                Command::Error(reason) => Err(ZmtpError::PeerError { reason }),
                Command::Other => Ok(()),
            };
        }
        // Messages other than a single frame that begins with 0 or 1 come from XSUB users; a PUB has no use for them.
        let single = !frame.more && !self.in_message;
        self.in_message = frame.more;
        match frame.body.first() {
            Some(1) if single => self.subscribe(frame.body.slice(1..)),
            Some(0) if single => {
                self.unsubscribe(frame.body.slice(1..));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn subscribe(&mut self, topic: Bytes) -> Result<(), ZmtpError> {
        // A copy: the slice would keep the whole input buffer alive.
        let topic = Bytes::copy_from_slice(&topic);
        if self.topics.len() >= SUBSCRIPTIONS_MAX && !self.topics.contains(&topic) {
            return Err(ZmtpError::SubscriptionsTooMany {
                subscriptions_max: SUBSCRIPTIONS_MAX,
            });
        }
        if self.topics.insert(topic.clone()) {
            self.events.push_back(Event::Subscribed(topic));
        }
        Ok(())
    }

    fn unsubscribe(&mut self, topic: Bytes) {
        if self.topics.remove(&topic) {
            self.events.push_back(Event::Unsubscribed(topic));
        }
    }

    fn put_frame(&mut self, more: bool, command: bool, parts: &[&[u8]]) {
        let octets: usize = parts.iter().map(|part| part.len()).sum();
        match &mut self.mechanism {
            Mechanism::Null => {
                codec::encode_frame_head(&mut self.out, more, command, octets);
                parts.iter().for_each(|part| self.out.put_slice(part));
            }
            Mechanism::Curve(curve) => {
                codec::encode_frame_head(
                    &mut self.out,
                    false,
                    false,
                    octets + curve::Curve::OVERHEAD_OCTETS,
                );
                curve.encode(more, command, parts, &mut self.out);
            }
        }
    }

    fn put_plain(&mut self, command: bool, body: &[u8]) {
        codec::encode_frame_head(&mut self.out, false, command, body.len());
        self.out.put_slice(body);
    }
}

impl Mechanism {
    fn name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Curve(_) => "CURVE",
        }
    }
}
