//! Takes connections and lets them finish their handshakes, many at once, none for ever.
//!
//! A task for each handshake, at most [`Limits::half_open_max`] of them, each at most [`Limits::handshake`] long. At the bound
//! the oldest that waits for its *peer* goes, once its grace is over: short for one that has not even asked (the kernel
//! completes a TCP handshake without the peer's program), longer for one that has been answered. Those that wait for *us* are
//! never dropped: after a restart thousands come at once, and dropping them for the next would let nobody in. So accepting
//! pauses only while our own CPU is the bottleneck, never for a peer; what comes meanwhile is in the kernel's backlog.
//!
//! Out: connections, on a bounded channel. A refusal's reason is known here alone (TLS 1.3 tells a caller little): it is logged.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use flowtilla_grpc::svid;
use flowtilla_proto::spiffe::TrustDomain;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Tls;
use super::connection::{Connection, Connections, Peer, PeerSvid};
use super::refused::{ByReason, Reason};
use crate::clock;

/// Connections that the kernel may hold for us. A fleet that comes back at once; the runtime's own default is 1,024.
pub const BACKLOG: u32 = 4096;

/// How long to wait when the system has no descriptor left, and before a look at who is waiting once more.
const PAUSE: Duration = Duration::from_millis(50);
/// One line of log for so many refusals, after the first.
const LOG_EACH: u64 = 100;

/// Bounds of what strangers may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes under way.
    ///
    /// Each holds some 30 KiB. Half of it suits a fleet of some thousand; double it for lines of long delay.
    pub half_open_max: usize,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long one may be silent at its begin, when others wait.
    pub silent_grace: Duration,
    /// How long one may leave our answer without its own, when others wait.
    pub answered_grace: Duration,
    /// Connections without an SVID.
    pub visitors_max: usize,
    /// How long one without an SVID may last: it enrols and comes back as somebody.
    pub visitor_life: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            half_open_max: 1024,
            handshake: Duration::from_secs(10),
            silent_grace: Duration::from_secs(1),
            answered_grace: Duration::from_secs(3),
            visitors_max: 512,
            visitor_life: Duration::from_secs(30),
        }
    }
}

/// What became of handshakes.
#[derive(Debug, Default)]
pub struct Handshakes {
    /// Done.
    pub done: AtomicU64,
    /// Refused by one of the sides.
    pub refused: AtomicU64,
    /// Why.
    pub reasons: ByReason,
    /// Not done in time.
    pub late: AtomicU64,
    /// Dropped for others.
    pub dropped: AtomicU64,
}

/// What the handshakes of all listeners share.
#[derive(Clone)]
pub struct Door {
    /// How TLS is spoken.
    pub tls: Arc<Tls>,
    /// Whose SVIDs are believed.
    pub domain: TrustDomain,
    /// All connections.
    pub connections: Arc<Connections>,
    /// The bounds.
    pub limits: Limits,
    /// The counts.
    pub counts: Arc<Handshakes>,
    /// Where connections go.
    pub out: mpsc::Sender<io::Result<Connection>>,
}

/// A TCP stream that tells whether it waits for its peer.
#[derive(Debug)]
pub struct Watched {
    tcp: TcpStream,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    waits: AtomicBool,
    answered: AtomicBool,
}

struct HalfOpen {
    began: Instant,
    progress: Arc<Progress>,
    abort: AbortHandle,
}

#[derive(Default)]
struct Handshaking {
    tasks: JoinSet<()>,
    last: u64,
    by_age: BTreeMap<u64, HalfOpen>,
    ages: HashMap<Id, u64>,
}

/// Listens.
///
/// # Errors
///
/// What the system says.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?; // A controller that starts again need not wait for the kernel to forget it.
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Takes connections until `stop`.
pub async fn run(listener: TcpListener, door: Door, stop: CancellationToken) {
    let mut under_way = Handshaking::default();
    loop {
        while let Some(ended) = under_way.tasks.try_join_next_with_id() {
            under_way.forget(ended);
        }
        let full = under_way.by_age.len() >= door.limits.half_open_max;
        if full && !under_way.drop_oldest(&door) {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = under_way.tasks.join_next_with_id() => under_way.forget(ended),
                () = tokio::time::sleep(PAUSE) => {}
            }
            continue;
        }
        // An ended handshake makes room, so it comes before another begins.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(ended) = under_way.tasks.join_next_with_id() => under_way.forget(ended),
            accepted = listener.accept() => match accepted {
                Ok((tcp, address)) => under_way.begin(tcp, address, &door),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

impl Handshaking {
    fn begin(&mut self, tcp: TcpStream, address: SocketAddr, door: &Door) {
        let progress = Arc::new(Progress::default());
        let watched = Watched {
            tcp,
            progress: Arc::clone(&progress),
        };
        let abort = self.tasks.spawn(handshake(watched, address, door.clone()));
        self.last += 1;
        self.ages.insert(abort.id(), self.last);
        let half_open = HalfOpen {
            began: clock::instant(),
            progress,
            abort,
        };
        self.by_age.insert(self.last, half_open);
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        if let Some(age) = self.ages.remove(&id) {
            self.by_age.remove(&age);
        }
    }

    /// Drops the oldest that waits for its peer and has had its grace. Tells whether there was one.
    fn drop_oldest(&mut self, door: &Door) -> bool {
        let now = clock::instant();
        let over = |one: &HalfOpen| {
            let grace = match one.progress.answered.load(Ordering::Relaxed) {
                true => door.limits.answered_grace,
                false => door.limits.silent_grace,
            };
            one.progress.waits.load(Ordering::Relaxed) && now.duration_since(one.began) >= grace
        };
        let Some(age) = self.by_age.iter().find(|(_, one)| over(one)).map(|(age, _)| *age) else {
            return false;
        };
        if let Some(one) = self.by_age.remove(&age) {
            one.abort.abort();
        }
        door.counts.dropped.fetch_add(1, Ordering::Relaxed);
        true
    }
}

async fn handshake(watched: Watched, address: SocketAddr, door: Door) {
    let progress = Arc::clone(&watched.progress);
    let _ = watched.tcp.set_nodelay(true); // A peer that is gone shows below.
    let accepting = TlsAcceptor::from(door.tls.current()).accept(watched);
    let stream = match tokio::time::timeout(door.limits.handshake, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            refused(&door, address, Reason::of(&error), &error);
            return;
        }
        Err(_) => {
            door.counts.late.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%address, "a handshake took too long");
            return;
        }
    };
    progress.waits.store(false, Ordering::Relaxed);
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let svid = match shown.map(|shown| svid::read(shown)).transpose() {
        Ok(svid) => svid,
        Err(error) => {
            refused(&door, address, Reason::Svid, &error);
            return;
        }
    };
    if shown.is_some_and(|shown| !door.tls.has_signed(shown)) {
        refused(
            &door,
            address,
            Reason::Issuer,
            &"an SVID that this controller's CA has not signed",
        );
        return;
    }
    if let Some(svid) = &svid
        && svid.id.domain != door.domain
    {
        refused(&door, address, Reason::Domain, &"an SVID of another trust domain");
        return;
    }
    let svid = svid.map(|facts| PeerSvid {
        id: facts.id,
        serial: facts.serial,
        not_after: facts.not_after,
    });
    door.counts.done.fetch_add(1, Ordering::Relaxed);
    let peer = Peer { address, svid };
    let connection = Connection::new(stream, peer, &door.connections, door.limits.visitor_life);
    let _ = door.out.send(Ok(connection)).await; // Nobody takes it: the controller stops.
}

fn refused(door: &Door, address: SocketAddr, reason: Reason, why: &dyn std::fmt::Display) {
    door.counts.reasons.count(reason);
    let before = door.counts.refused.fetch_add(1, Ordering::Relaxed);
    if before.is_multiple_of(LOG_EACH) {
        tracing::warn!(%address, %why, refused_before = before, "a handshake was refused");
    } else {
        tracing::debug!(%address, %why, "a handshake was refused");
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.tcp).poll_read(context, buffer);
        self.progress.waits.store(polled.is_pending(), Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.progress.answered.store(true, Ordering::Relaxed);
        Pin::new(&mut self.tcp).poll_write(context, octets)
    }

    // TLS gives several records at once.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.progress.answered.store(true, Ordering::Relaxed);
        Pin::new(&mut self.tcp).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}
