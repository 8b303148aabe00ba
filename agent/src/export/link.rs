//! One connection to a collector, from TCP established to its end.
//!
//! Moves octets between the socket and the ZMTP peer, and events between the peer and the collector's machine. Never
//! waits for one direction: what cannot be written stays pending here, at most [`OUTPUT_OCTETS`] and one message, and
//! nothing more is asked of the machine until it is gone. That is the back-pressure: the machine then reads nothing more.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::{Buf, Bytes};
use flowtilla_agent_core::collector::{Collector, Transmit, Wanted};
use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding, Topic};
use flowtilla_agent_core::time::KernelTime;
use flowtilla_agent_core::zmtp::{Event, PING_MINOR_MIN, Peer, Security, ZmtpError};
use rustix::net::sockopt;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use super::health::{Health, tcp_facts};
use super::source::Source;

/// Limit of greeting and handshake together. Some round-trips of the farthest line; the operator reads why at double.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two looks at the socket's TCP figures.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Octets gathered for one write. Two full messages: fewer would cost a system call each, more only delays PINGs.
const OUTPUT_OCTETS: usize = 64 * 1024;

/// Octets read at once. A collector sends little: subscriptions and PONGs.
const READ_OCTETS: usize = 16 * 1024;

/// Rounds of reading before other sources get their turn.
const READ_ROUNDS_MAX: usize = 16;

/// Rounds of gathering and writing before other sources get their turn: some 1,000 records, a few milliseconds.
const WRITE_ROUNDS_MAX: usize = 4;

/// Values decoded for one write. They fill it several times over, unless nothing in them is for this collector.
const VALUES_MAX: usize = 16;

/// How message headers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    pub(super) layout: HeaderLayout,
    /// Of flow records.
    pub(super) encoding: PayloadEncoding,
    pub(super) source_id: u32,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LinkEnd {
    /// One sentence.
    pub(super) why: String,
    /// Whether the collector's process seems to have ended: it closed or reset an established connection.
    pub(super) restarted: bool,
}

impl LinkEnd {
    fn of(why: &ZmtpError) -> Self {
        Self {
            why: why.to_string(),
            restarted: false,
        }
    }
}

/// One connection.
pub(super) struct Link {
    stream: TcpStream,
    peer: Peer,
    pending: Bytes,
    /// When the handshake must be done; `None`: it is.
    handshake_by: Option<KernelTime>,
    health: Health,
    health_at: KernelTime,
    heading: Heading,
}

impl Link {
    pub(super) fn new(stream: TcpStream, security: &Security, heading: Heading, now: KernelTime) -> Self {
        Self {
            stream,
            peer: Peer::new(security),
            pending: Bytes::new(),
            handshake_by: Some(now.after(HANDSHAKE_TIMEOUT)),
            health: Health::default(),
            health_at: now.after(HEALTH_INTERVAL),
            heading,
        }
    }

    pub(super) fn heading(&self) -> Heading {
        self.heading
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> KernelTime {
        self.handshake_by
            .map_or(self.health_at, |by| by.min(self.health_at))
    }

    /// Looks at what time brings: a handshake that takes too long, a host that is gone.
    pub(super) fn handle_timeout(&mut self, now: KernelTime) -> Result<(), LinkEnd> {
        if self.handshake_by.is_some_and(|by| by <= now) {
            return Err(LinkEnd::of(&self.peer.silent()));
        }
        if self.health_at <= now {
            self.health_at = now.after(HEALTH_INTERVAL);
            // Without the figures nothing is known, and nothing is closed on a guess.
            if let Ok(facts) = tcp_facts(self.stream.as_fd())
                && let Some(why) = self.health.judge(facts, now)
            {
                // Otherwise the kernel goes on sending what is in its buffers once the line is back: all of it would
                // arrive twice, in between the messages of the next connection. Refused, it is as it was without.
                let _ = sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
                return Err(LinkEnd {
                    why,
                    restarted: false,
                });
            }
        }
        Ok(())
    }

    /// Lets go of it and of what waits in this host's kernel: somebody else gets it.
    pub(super) fn abandon(self) {
        // An error: it is gone already.
        let _ = self.stream.set_zero_linger();
    }

    /// Whether nothing is pending, so that the machine will be asked for more.
    pub(super) fn is_writable(&self) -> bool {
        self.pending.is_empty()
    }

    /// Waits until the socket can be read, or written when something is pending.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn ready(&self) -> io::Result<Ready> {
        let interest = if self.pending.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        self.stream.ready(interest).await
    }

    /// Reads what has come and tells the machine.
    pub(super) fn read(&mut self, collector: &mut Collector, now: KernelTime) -> Result<(), LinkEnd> {
        let mut octets = [0; READ_OCTETS];
        for _ in 0..READ_ROUNDS_MAX {
            match self.stream.try_read(&mut octets) {
                Ok(0) => return Err(self.closed(None)),
                Ok(count) => {
                    let result = self.peer.handle_input(&octets[..count]);
                    self.handle_events(collector, now);
                    result.map_err(|error| LinkEnd::of(&error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.closed(Some(&error))),
            }
        }
        Ok(())
    }

    /// Writes what is pending and what the machine has for now, reading from `source` as it wants; `true`: there may be
    /// more at once. `announcement` makes the payload of an announcement, or none.
    pub(super) fn write(
        &mut self,
        collector: &mut Collector,
        source: &mut Source,
        now: KernelTime,
        mut announcement: impl FnMut(&Collector, Topic) -> Option<Bytes>,
    ) -> Result<bool, LinkEnd> {
        for _ in 0..WRITE_ROUNDS_MAX {
            if self.pending.is_empty() {
                self.gather(collector, source, now, &mut announcement);
            }
            if self.pending.is_empty() {
                collector.handle_written(now);
                return Ok(false);
            }
            match self.stream.try_write(&self.pending) {
                Ok(count) => self.pending.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What the collector said before it closed tells more than the failed write.
                    self.read(collector, now)?;
                    return Err(self.closed(Some(&error)));
                }
            }
        }
        Ok(true)
    }

    fn gather(
        &mut self,
        collector: &mut Collector,
        source: &mut Source,
        now: KernelTime,
        announcement: &mut impl FnMut(&Collector, Topic) -> Option<Bytes>,
    ) {
        let mut values = 0;
        while self.peer.output_octets() < OUTPUT_OCTETS {
            match collector.poll_transmit(now) {
                Some(Transmit::Flows { id, payload }) => {
                    self.put_message(Topic::Flow, self.heading.encoding, id, &payload);
                }
                Some(Transmit::Announce(topic)) => {
                    if let Some(payload) = announcement(collector, topic) {
                        let id = collector.announce();
                        self.put_message(topic, PayloadEncoding::Json, id, &payload);
                    } else if topic == Topic::ListeningPorts {
                        collector.postpone_listening(now);
                    }
                }
                Some(Transmit::Ping(context)) => self.peer.ping(0, &context),
                None if values < VALUES_MAX && source.feed(collector, now) => values += 1,
                None => break,
            }
        }
        self.pending = self.peer.poll_output().unwrap_or_default();
    }

    fn put_message(&mut self, topic: Topic, encoding: PayloadEncoding, id: u32, payload: &Bytes) {
        let Heading {
            layout, source_id, ..
        } = self.heading;
        let header = header::encode(layout, topic, encoding, payload.len(), id, source_id);
        let wanted = self.peer.send_message(&[&header, payload]);
        debug_assert!(wanted, "the machine sends what is subscribed to");
    }

    fn handle_events(&mut self, collector: &mut Collector, now: KernelTime) {
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::HandshakeDone { peer_minor } => {
                    self.handshake_by = None;
                    collector.handle_connected(peer_minor >= PING_MINOR_MIN, now);
                }
                Event::Subscribed(_) | Event::Unsubscribed(_) => {
                    let wants = |topic: Topic| self.peer.is_subscribed(topic.name().as_bytes());
                    collector.handle_subscriptions(Wanted {
                        flows: wants(Topic::Flow),
                        events: wants(Topic::Event),
                        listening: wants(Topic::ListeningPorts),
                    });
                }
                Event::Pong(context) => collector.handle_pong(&context, now),
            }
        }
    }

    /// What it means that the socket ended: by the peer's FIN, or with an error.
    fn closed(&self, error: Option<&io::Error>) -> LinkEnd {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let by_peer = error.is_none_or(|error| matches!(error.kind(), BrokenPipe | ConnectionReset));
        match error {
            Some(error) if !by_peer => LinkEnd {
                why: format!("the connection broke: {error}"),
                restarted: false,
            },
            _ => LinkEnd {
                why: self.peer.closed().to_string(),
                restarted: true,
            },
        }
    }
}
