//! The receiving side: a real libzmq SUB, bound as ntopng binds, whose payloads nDPI itself reads.
//!
//! One thread owns the socket. It can be told to stop reading, as a collector that hangs does, and to end at once.
//! [`apart`] runs the same socket as a process of its own, which can be frozen and killed.
//! Source of the socket's options and topics: ntopng 6.x `ZMQCollectorInterface`, `Utils::getMessagingTopics`.

pub mod apart;
pub mod application;
pub mod handled;
pub mod library;
pub mod message;
pub mod ndpi;
pub mod zmq;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use self::message::{Ids, Message, Payload};
use self::ndpi::{Elements, Ndpi};
use self::zmq::{KeyPair, ZmqContext, kind, option};
use crate::need::Need;
use crate::netns::NetNs;
use crate::wait;

/// Topics that ntopng 6.x subscribes to.
pub const TOPICS: [&str; 9] = [
    "flow",
    "event",
    "counter",
    "template",
    "option",
    "hello",
    "listening-ports",
    "snmp-ifaces",
    "message",
];
/// Needs of a test with a collector, beside those of its world.
pub const NEEDS: [Need; 2] = [
    Need::Library(zmq::LIBRARY, "libzmq5"),
    Need::Library("libndpi.so.4.2", "libndpi-dev"),
];
/// Kernel receive buffer, in octets, as ntopng sets it.
const RECEIVE_BUFFER_OCTETS: i32 = 8 << 20;
/// Kernel receive buffer of a collector with a short queue, in octets: two messages of an exporter.
const SMALL_BUFFER_OCTETS: i32 = 64 << 10;
/// Longest sleep of the thread before it looks at its orders, in ms.
const LOOK_AT_ORDERS_MS: i32 = 50;
/// Most messages kept. A full run receives a few thousand.
const MESSAGES_MAX: usize = 1_000_000;

/// How a collector is set up.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    /// Where; default `tcp://127.0.0.1:*`.
    pub endpoint: Option<String>,
    /// CURVE server with this key pair; `None`: plain.
    pub curve: Option<KeyPair>,
    /// Host it lives on; `None`: this one.
    pub host: Option<&'a NetNs>,
    /// Messages that wait inside libzmq, with a small kernel buffer beside; `None`: 1,000 and 8 MiB, as ntopng has
    /// it. A collector that stops reading pushes back sooner with fewer.
    pub queue_messages: Option<i32>,
}

/// A collector.
pub struct Collector {
    endpoint: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    messages: Mutex<Vec<Message>>,
    ids: Mutex<Ids>,
    unreadable: Mutex<Vec<String>>,
    paused: AtomicBool,
    stopped: AtomicBool,
}

impl Collector {
    /// Binds.
    ///
    /// # Errors
    /// When a library is missing or the endpoint is taken.
    pub fn bind(setup: Setup<'_>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let ndpi = Ndpi::load()?;
        let host = setup.host.map(NetNs::handle);
        let endpoint = setup.endpoint.unwrap_or_else(|| "tcp://127.0.0.1:*".to_owned());
        let curve = setup.curve;
        let queue = setup.queue_messages;
        let (tell, told) = sync_channel(1);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            if let Some(host) = host {
                host.enter()?;
            }
            // Declared in this order: the socket closes before its context ends.
            let context = ZmqContext::new()?;
            let socket = context.socket(kind::SUB)?;
            let bound = configure(&socket, curve.as_ref(), queue).and_then(|()| socket.bind(&endpoint));
            tell.send(bound).context("the starter is gone")?;
            receive(&socket, &ndpi, &theirs)
        });
        let bound = told
            .recv()
            .map_err(|_| anyhow!("the collector's thread ended at its start"))?;
        Ok(Self {
            endpoint: bound?,
            shared,
            thread: Some(thread),
        })
    }

    /// Where it is bound, `tcp://ADDRESS:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Stops reading, or goes on.
    pub fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::Relaxed);
    }

    /// Messages so far, with gaps and restarts counted.
    ///
    /// # Errors
    /// When ntopng would have dropped one: which, and why.
    pub fn messages(&self) -> Result<(Vec<Message>, Ids)> {
        self.messages_after(0)
    }

    /// The same, but for so many of the first messages.
    ///
    /// # Errors
    /// When ntopng would have dropped a message.
    pub fn messages_after(&self, first: usize) -> Result<(Vec<Message>, Ids)> {
        let unreadable = lock(&self.shared.unreadable);
        if let Some(first) = unreadable.first() {
            return Err(anyhow!(
                "{} unreadable messages, the first: {first}",
                unreadable.len()
            ));
        }
        Ok((
            lock(&self.shared.messages)
                .get(first..)
                .unwrap_or_default()
                .to_vec(),
            lock(&self.shared.ids).clone(),
        ))
    }

    /// Flow records so far.
    ///
    /// # Errors
    /// When ntopng would have dropped a message.
    pub fn flows(&self) -> Result<Vec<Elements>> {
        let (messages, _) = self.messages()?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message.payload {
                Payload::Flows(records) => Some(records),
                Payload::Json(_) => None,
            })
            .flatten()
            .collect())
    }

    /// Payloads of a JSON topic so far.
    ///
    /// # Errors
    /// When ntopng would have dropped a message.
    pub fn json(&self, topic: &str) -> Result<Vec<serde_json::Value>> {
        let (messages, _) = self.messages()?;
        Ok(messages
            .into_iter()
            .filter(|message| message.header.topic == topic)
            .filter_map(|message| match message.payload {
                Payload::Json(value) => Some(value),
                Payload::Flows(_) => None,
            })
            .collect())
    }

    /// Waits until a flow record is what `wanted` looks for.
    ///
    /// # Errors
    /// When none comes within `deadline`, or ntopng would have dropped a message.
    pub fn wait_for_flow(
        &self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&Elements) -> bool,
    ) -> Result<Elements> {
        wait::until(deadline, what, || {
            Ok(self.flows()?.into_iter().find(|record| wanted(record)))
        })
    }

    /// Ends it as a killed process would: what it has not read is gone.
    ///
    /// # Errors
    /// When its thread failed before.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread
            .join()
            .map_err(|_| anyhow!("the collector's thread panicked"))?
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("collector at {}: {error:#}", self.endpoint);
        }
    }
}

fn configure(socket: &zmq::Socket, curve: Option<&KeyPair>, queue: Option<i32>) -> Result<()> {
    socket.set(option::LINGER, 0)?;
    socket.set(option::RCVTIMEO, LOOK_AT_ORDERS_MS)?;
    match queue {
        None => socket.set(option::RCVBUF, RECEIVE_BUFFER_OCTETS)?,
        Some(messages) => {
            socket.set(option::RCVHWM, messages)?;
            socket.set(option::RCVBUF, SMALL_BUFFER_OCTETS)?;
        }
    }
    socket.set(option::TCP_KEEPALIVE, 1)?;
    socket.set(option::TCP_KEEPALIVE_IDLE, 30)?;
    socket.set(option::TCP_KEEPALIVE_CNT, 3)?;
    socket.set(option::TCP_KEEPALIVE_INTVL, 3)?;
    if let Some(keys) = curve {
        socket.set(option::CURVE_SERVER, 1)?;
        socket.set_octets(option::CURVE_SECRETKEY, keys.secret.as_bytes())?;
    }
    for topic in TOPICS {
        socket.set_octets(option::SUBSCRIBE, topic.as_bytes())?;
    }
    Ok(())
}

fn receive(socket: &zmq::Socket, ndpi: &Ndpi, shared: &Shared) -> Result<()> {
    while !shared.stopped.load(Ordering::Relaxed) {
        if shared.paused.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(LOOK_AT_ORDERS_MS.unsigned_abs().into()));
            continue;
        }
        let Some(frames) = socket.receive()? else {
            continue;
        };
        match Message::read(ndpi, &frames) {
            Ok(message) => {
                lock(&shared.ids).take(message.header.source, message.header.id);
                let mut messages = lock(&shared.messages);
                if messages.len() < MESSAGES_MAX {
                    messages.push(message);
                }
            }
            Err(error) => lock(&shared.unreadable).push(format!("{error:#}")),
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
