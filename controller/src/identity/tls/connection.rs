//! A connection whose handshake is done: who is at the other end, and how it is cut off.
//!
//! [`Connections`] knows all that live. Those of an identity are cut when it is revoked, whatever the calls on them do. A
//! visitor (who showed no SVID and may only enrol or recover) is cut after a while, and the oldest when there are too many.
//! An identity has at most [`CONNECTIONS_OF_ONE_MAX`]: a captured one cannot fill the memory with idle connections.

use std::collections::{BTreeSet, HashMap};
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use flowtilla_proto::spiffe::SpiffeId;
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::accept::Watched;

/// Most connections of one identity; then the oldest goes.
///
/// An agent has two, an operator's script one a command. Half of it suits those; double it, and 10,000 stolen SVIDs hold twice
/// the memory.
pub const CONNECTIONS_OF_ONE_MAX: usize = 64;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where from.
    pub address: SocketAddr,
    /// What it has shown; `None`: no SVID.
    pub svid: Option<PeerSvid>,
}

/// An SVID that was shown, and believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    /// Who it is of.
    pub id: SpiffeId,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// Seconds since the epoch after which it is void.
    pub not_after: i64,
}

/// A connection, ready for HTTP/2. Its [`Connected::ConnectInfo`] is an [`Arc`] of [`Peer`].
pub struct Connection {
    stream: TlsStream<Watched>,
    peer: Arc<Peer>,
    cut: Arc<Cut>,
    life: Option<Pin<Box<Sleep>>>,
    _entry: Entry,
}

/// All connections that live.
#[derive(Debug)]
pub struct Connections {
    visitors_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    cuts: HashMap<u64, Arc<Cut>>,
    /// By whose they are.
    theirs: HashMap<SpiffeId, Theirs>,
    visitors: BTreeSet<u64>,
}

/// Connections of an identity.
#[derive(Debug, Default)]
struct Theirs {
    /// The oldest first.
    numbers: BTreeSet<u64>,
    /// Seconds since the epoch after which the last of the SVIDs is void that were shown since there is one.
    not_after: i64,
}

/// Cuts a connection off. Asked at each of its reads and writes, so it takes no lock.
#[derive(Debug, Default)]
struct Cut {
    off: AtomicBool,
    waker: AtomicWaker,
}

/// Takes a connection out of [`Connections`] when it goes.
#[derive(Debug)]
struct Entry {
    connections: Arc<Connections>,
    number: u64,
    peer: Arc<Peer>,
}

impl Connections {
    /// None yet. `visitors_max`: how many may be there without an SVID.
    #[must_use]
    pub fn new(visitors_max: usize) -> Arc<Self> {
        Arc::new(Self {
            visitors_max,
            inner: Mutex::default(),
        })
    }

    /// Cuts all connections of an identity; tells how many.
    pub fn cut(&self, id: &SpiffeId) -> usize {
        let inner = self.lock();
        inner
            .theirs
            .get(id)
            .map_or(0, |theirs| inner.cut(&theirs.numbers))
    }

    /// Cuts all connections of identities that `void` says are void.
    pub fn cut_where(&self, void: impl Fn(&SpiffeId) -> bool) -> usize {
        let inner = self.lock();
        let theirs = inner.theirs.iter().filter(|(id, _)| void(id));
        theirs.map(|(_, theirs)| inner.cut(&theirs.numbers)).sum()
    }

    /// Whether an identity has one.
    #[must_use]
    pub fn lives(&self, id: &SpiffeId) -> bool {
        self.lock().theirs.contains_key(id)
    }

    /// Identities that have one, of which `is` says so. It hears, too, when the last of their SVIDs is void that were shown, in
    /// seconds since the epoch.
    pub fn identities_where(&self, is: impl Fn(&SpiffeId, i64) -> bool) -> BTreeSet<SpiffeId> {
        let inner = self.lock();
        let those = inner
            .theirs
            .iter()
            .filter(|(id, theirs)| is(id, theirs.not_after));
        those.map(|(id, _)| id.clone()).collect()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().cuts.len()
    }

    fn enter(self: &Arc<Self>, peer: &Arc<Peer>) -> (Entry, Arc<Cut>) {
        let cut = Arc::<Cut>::default();
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.last += 1;
        let number = inner.last;
        let (theirs, most) = match &peer.svid {
            Some(svid) => {
                let theirs = inner.theirs.entry(svid.id.clone()).or_default();
                theirs.not_after = theirs.not_after.max(svid.not_after);
                (&mut theirs.numbers, CONNECTIONS_OF_ONE_MAX)
            }
            None => (&mut inner.visitors, self.visitors_max),
        };
        if theirs.len() >= most
            && let Some(oldest) = theirs.pop_first()
            && let Some(cut) = inner.cuts.get(&oldest)
        {
            cut.cancel();
        }
        theirs.insert(number);
        inner.cuts.insert(number, Arc::clone(&cut));
        let (connections, peer) = (Arc::clone(self), Arc::clone(peer));
        let entry = Entry {
            connections,
            number,
            peer,
        };
        (entry, cut)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn cut(&self, numbers: &BTreeSet<u64>) -> usize {
        let cuts = numbers.iter().filter_map(|number| self.cuts.get(number));
        cuts.map(|cut| cut.cancel()).count()
    }
}

impl Cut {
    fn cancel(&self) {
        self.off.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether it is; the task is woken when it comes to be.
    fn is_off(&self, context: &Context<'_>) -> bool {
        // Before looking: what is cut in between wakes.
        self.waker.register(context.waker());
        self.off.load(Ordering::Acquire)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.connections.lock();
        inner.cuts.remove(&self.number);
        let Some(svid) = &self.peer.svid else {
            inner.visitors.remove(&self.number);
            return;
        };
        if let Some(theirs) = inner.theirs.get_mut(&svid.id) {
            theirs.numbers.remove(&self.number);
            if theirs.numbers.is_empty() {
                inner.theirs.remove(&svid.id);
            }
        }
    }
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<Watched>,
        peer: Peer,
        connections: &Arc<Connections>,
        visitor_life: Duration,
    ) -> Self {
        let peer = Arc::new(peer);
        let (entry, cut) = connections.enter(&peer);
        let visitor = peer.svid.is_none();
        Self {
            stream,
            peer,
            cut,
            life: visitor.then(|| Box::pin(tokio::time::sleep(visitor_life))),
            _entry: entry,
        }
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        if self.cut.is_off(context) {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "cut off"));
        }
        let life = self.life.as_mut()?;
        let over = life.as_mut().poll(context).is_ready();
        over.then(|| io::Error::new(io::ErrorKind::TimedOut, "a visitor's time is over"))
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.is_over(context) {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut self.stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    // HTTP/2 gives a frame's head and its payload: together they are one record and one call of the system.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
