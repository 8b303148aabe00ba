//! All wiring: what a controller is made of, in which order it starts and stops.
//!
//! Start: state, TLS, listeners; only then it says that it is there. Run: accept loops ([`accept`]), one gRPC server over the
//! connections that they make, the renewal of the controller's own SVID, the cutting of the revoked and of those whose SVID has
//! run out, a watch of the store, and the host's commands.
//! Any of them that ends early stops all. Stop: no more connections, calls end, at most [`DRAIN`]; then the rest is dropped.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_grpc::channel;
use flowtilla_proto::spiffe::{Role, SpiffeId};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::clock::{self, Clock, WallMs};
use crate::enrolment::RENEW_GRACE_DEFAULT;
use crate::fleet::thread::{FleetHandle, Known, StartError};
use crate::fleet::{self, Now};
use crate::grpc;
use crate::grpc::session::{self, Admission, STREAMS_BURST, STREAMS_PER_SECOND, SessionService};
use crate::identities::Identities;
use crate::identity::tls::accept::{self, Door, Handshakes, Limits};
use crate::identity::tls::connection::{Connection, Connections};
use crate::identity::tls::{Renewal, Tls, TlsError};
use crate::local::{self, Local};
use crate::setup::{self, Opened, SetupError};
use crate::state::StateDir;
use crate::store::sled::SledStore;

/// How long calls may take to end when the controller stops.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How long a revoked identity's connections live on: its streams are told why first. Source: design section 7 (5 s).
pub const CUT_AFTER: Duration = Duration::from_secs(1);
/// Connections on the way from their handshakes to the server.
const CONNECTIONS_QUEUED: usize = 64;
/// How often to look whether the controller's own SVID is due: the clock may jump.
const RENEWAL_LOOK: Duration = Duration::from_secs(5);
/// How often to look whose SVID has run out on a live connection, and whether the store works.
const LOOK: Duration = Duration::from_secs(2);
/// How often to look which void identities can be forgotten, in looks: a minute.
const FORGET_EACH: u32 = 30;
/// How long a call of the store may take before it counts as failed: sled hangs for ever after some errors of a disk.
///
/// A disk that recovers takes some ten seconds. Half of it ends controllers on those; double it, and nobody gets an answer for
/// two minutes.
pub const STORE_WAIT_MAX: Duration = Duration::from_secs(60);
/// HTTP/2 towards peers. Source: deps.md 4.2.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const STREAMS_MAX: u32 = 16;
const HEADERS_OCTETS_MAX: u32 = 16 << 10;
/// What a controller is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The state directory.
    pub state: PathBuf,
    /// Where to listen; port 0: one that is free.
    pub listen: Vec<SocketAddr>,
    /// How long after its SVID ran out an agent gets it back by itself.
    pub renew_grace: Duration,
    /// Bounds of what strangers may hold.
    pub limits: Limits,
    /// The time.
    pub clock: Clock,
}

/// What the services work with.
pub struct Parts {
    /// The store.
    pub store: Arc<SledStore>,
    /// Identities, tokens, and the authority.
    pub identities: Arc<Identities>,
    /// TLS, and who the controller is.
    pub tls: Arc<Tls>,
    /// All connections.
    pub connections: Arc<Connections>,
    /// What became of handshakes.
    pub handshakes: Arc<Handshakes>,
    /// What became of requests for an identity.
    pub enrolments: Arc<grpc::enrol::Counts>,
    /// The time.
    pub clock: Clock,
    /// When the controller started.
    pub started: WallMs,
    /// What every agent is to have, and has.
    pub fleet: FleetHandle,
    /// The state directory is ours while this is here.
    directory: StateDir,
}

/// A controller that runs.
pub struct Controller {
    parts: Arc<Parts>,
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

/// Why a controller does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// See there.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// See there.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// See there.
    #[error(transparent)]
    Fleet(#[from] StartError),
    /// It may not listen there.
    #[error("listening at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store is of no use any more.
    #[error(
        "{0}; what was answered is on the disk: see what stands in the way, then start the controller again"
    )]
    Store(String),
    /// A part of it ended.
    #[error("{0} ended")]
    Ended(&'static str),
    /// The server failed.
    #[error("serving")]
    Serve(#[from] tonic::transport::Error),
    /// A part of it failed.
    #[error("a task failed")]
    Task(#[from] JoinError),
}

impl Options {
    /// The defaults, for a state directory.
    #[must_use]
    pub fn new(state: PathBuf, listen: Vec<SocketAddr>) -> Self {
        Self {
            state,
            listen,
            renew_grace: RENEW_GRACE_DEFAULT,
            limits: Limits::default(),
            clock: Clock::system(),
        }
    }
}

impl Controller {
    /// Starts a controller on a state that was made before ([`setup::create`]).
    ///
    /// # Errors
    ///
    /// [`RunError`]; nothing runs then.
    pub async fn start(options: Options) -> Result<Self, RunError> {
        let (state, grace) = (options.state.clone(), options.renew_grace);
        let opened = tokio::task::spawn_blocking(move || setup::open(&state, grace)).await??;
        Self::start_on(opened, options).await
    }

    /// Starts a controller on a state that is open.
    ///
    /// # Errors
    ///
    /// [`RunError`].
    pub async fn start_on(opened: Opened, options: Options) -> Result<Self, RunError> {
        let Opened {
            directory,
            store,
            identities,
            id,
        } = opened;
        let clock = options.clock.clone();
        let authority = Arc::clone(identities.authority());
        let time = clock.clone();
        let (fleet, thread) =
            fleet::thread::start(Arc::<SledStore>::clone(&store), move || fleet_now(&time))?;
        fleet.all_known(known(&identities)).await;
        let (tls, due) = Tls::new(authority, id, clock.clone())?;
        let parts = Arc::new(Parts {
            store,
            tls: Arc::new(tls),
            identities,
            connections: Connections::new(options.limits.visitors_max),
            handshakes: Arc::default(),
            enrolments: Arc::default(),
            started: clock.now(),
            clock,
            fleet,
            directory,
        });
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in options.listen {
            let refused = |source| RunError::Listen { address, source };
            let listener = accept::listen(address).map_err(refused)?;
            addresses.push(listener.local_addr().map_err(refused)?);
            listeners.push(listener);
        }
        let socket = match local::bind(parts.directory.path()) {
            Ok(socket) => Some(socket),
            Err(error) => {
                let without = "no backup and no operator's token while it runs";
                tracing::warn!(%error, without, "commands on this host cannot ask this controller");
                None
            }
        };
        tracing::info!(id = %parts.tls.id(), ?addresses, "the controller listens");
        let stop = CancellationToken::new();
        let begun = Begun {
            listeners,
            socket,
            due,
            thread,
        };
        let running = run(Arc::clone(&parts), begun, options.limits, stop.clone());
        Ok(Self {
            parts,
            addresses,
            stop,
            task: tokio::spawn(running),
        })
    }

    /// Where it listens first.
    ///
    /// # Panics
    ///
    /// When it was started without an address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.addresses.first().expect("started with an address")
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What its services work with.
    #[must_use]
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Waits until it ends by itself, which is a failure.
    ///
    /// # Errors
    ///
    /// [`RunError`].
    ///
    /// # Cancel safety
    ///
    /// It runs on.
    pub async fn ended(&mut self) -> Result<(), RunError> {
        (&mut self.task).await?
    }

    /// Stops it: calls end, at most [`DRAIN`].
    ///
    /// # Errors
    ///
    /// What went wrong while it ran or stopped.
    pub async fn stop(self) -> Result<(), RunError> {
        self.stop.cancel();
        self.task.await?
    }
}

/// All services, over connections whose peers are known.
fn services(parts: &Arc<Parts>) -> Router {
    let time = parts.clock.clone();
    let sessions = SessionService::new(
        parts.fleet.clone(),
        session::door(Arc::clone(&parts.identities), parts.clock.clone()),
        Admission::new(STREAMS_PER_SECOND, STREAMS_BURST),
        Arc::new(move || fleet_now(&time)),
        TaskTracker::new(),
    );
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_OCTETS_MAX)
        .http2_keepalive_interval(Some(channel::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(channel::KEEP_ALIVE_TIMEOUT))
        .add_service(grpc::enrol::Service::server(
            Arc::clone(&parts.identities),
            parts.fleet.clone(),
            parts.clock.clone(),
            Arc::clone(&parts.enrolments),
        ))
        .add_service(sessions.into_server())
        .add_service(grpc::fleet::Service::server(
            parts.fleet.clone(),
            Arc::clone(&parts.identities),
            parts.clock.clone(),
            parts.started,
        ))
}

/// What a start leaves to the run.
struct Begun {
    listeners: Vec<TcpListener>,
    /// `None`: it could not be bound.
    socket: Option<UnixListener>,
    /// When the controller's own SVID is to be renewed.
    due: Renewal,
    /// The fleet's.
    thread: std::thread::JoinHandle<()>,
}

async fn run(
    parts: Arc<Parts>,
    begun: Begun,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let (out, incoming) = mpsc::channel(CONNECTIONS_QUEUED);
    let mut tasks: JoinSet<Result<&'static str, RunError>> = JoinSet::new();
    for listener in begun.listeners {
        let door = Door {
            tls: Arc::clone(&parts.tls),
            domain: parts.tls.id().domain.clone(),
            connections: Arc::clone(&parts.connections),
            limits,
            counts: Arc::clone(&parts.handshakes),
            out: out.clone(),
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            accept::run(listener, door, stop).await;
            Ok("accepting")
        });
    }
    drop(out); // The server ends when the last accept loop has.
    tasks.spawn(serve(services(&parts), incoming, stop.clone()));
    tasks.spawn(renew_own(begun.due, Arc::clone(&parts), stop.clone()));
    tasks.spawn(cut_revoked(Arc::clone(&parts), stop.clone()));
    tasks.spawn(end_expired(Arc::clone(&parts), stop.clone()));
    tasks.spawn(watch_store(Arc::clone(&parts.store), stop.clone()));
    if let Some(socket) = begun.socket {
        tasks.spawn(hear_host(socket, Arc::clone(&parts), stop.clone()));
    }
    tasks.spawn(async move {
        match tokio::task::spawn_blocking(move || begun.thread.join()).await {
            Ok(Ok(())) => Ok("the fleet's thread"),
            _ => Err(RunError::Ended("the fleet's thread, in a panic,")),
        }
    });

    let mut outcome = Ok(());
    // A stop comes first: tasks end because of it.
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        Some(ended) = tasks.join_next() => {
            outcome = match ended {
                Ok(Ok(name)) => Err(RunError::Ended(name)),
                Ok(Err(error)) => Err(error),
                Err(error) => Err(error.into()),
            };
        }
    }
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async {
        // Streams end when they are told why: without that the server would wait for them.
        parts.fleet.stop().await;
        while let Some(ended) = tasks.join_next().await {
            if let (Ok(Err(error)), Ok(())) = (ended, &outcome) {
                outcome = Err(error);
            }
        }
    });
    if drained.await.is_err() {
        tracing::info!(
            connections = parts.connections.count(),
            "calls that do not end are dropped"
        );
        tasks.shutdown().await;
    }
    outcome
}

async fn serve(
    services: Router,
    incoming: mpsc::Receiver<io::Result<Connection>>,
    stop: CancellationToken,
) -> Result<&'static str, RunError> {
    services
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned())
        .await?;
    Ok("serving")
}

/// Renews the controller's own SVID when it is due, when the clock was set back behind it, and when the roots change.
async fn renew_own(
    mut due: Renewal,
    parts: Arc<Parts>,
    stop: CancellationToken,
) -> Result<&'static str, RunError> {
    let mut changes = parts.identities.authority().changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok("renewing the controller's SVID"),
            changed = changes.changed() => if changed.is_err() {
                return Ok("renewing the controller's SVID");
            },
            () = tokio::time::sleep(RENEWAL_LOOK) => {
                let now = parts.clock.now();
                if !due.is_due(now) {
                    continue;
                }
                if due.is_ahead(now) {
                    tracing::warn!(
                        "the clock was set back: what was signed since the start may not count yet; the controller's SVID is \
                         made anew"
                    );
                }
            }
        }
        let roots = parts.identities.authority().bundle();
        // The fleet's thread ends with the controller: then nobody is left to be told.
        let _ = parts
            .fleet
            .bundle(roots.iter().map(|root| root.to_vec()).collect())
            .await;
        match parts.tls.renew() {
            Ok(next) => {
                due = next;
                tracing::info!("the controller has renewed its SVID");
            }
            // The next look tries again; what is in use lasts for half a day.
            Err(error) => tracing::error!(%error, "the controller's SVID could not be renewed"),
        }
    }
}

/// Cuts the connections of identities that are revoked, each a moment after its streams were told.
async fn cut_revoked(parts: Arc<Parts>, stop: CancellationToken) -> Result<&'static str, RunError> {
    let mut revocations = parts.identities.subscribe_revocations();
    // In order. As many as were revoked within CUT_AFTER; `None`: who that was is not known.
    let mut due = VecDeque::<(Instant, Option<SpiffeId>)>::new();
    loop {
        let next = due.front().map(|(at, _)| *at);
        let revoked = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok("cutting the revoked"),
            () = until(next) => {
                if let Some((_, id)) = due.pop_front() {
                    cut(&parts, id);
                }
                continue;
            }
            revoked = revocations.recv() => revoked,
        };
        let id = match revoked {
            Ok(id) => Some(id),
            Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return Ok("cutting the revoked"),
        };
        due.push_back((clock::instant() + CUT_AFTER, id.clone()));
        match id {
            Some(id) if id.role == Role::Agent => {
                let _ = parts.fleet.revoked(id.name).await; // It ends with the controller.
            }
            Some(_) => {}
            None => parts.fleet.all_known(known(&parts.identities)).await,
        }
    }
}

/// Ends the streams of those whose newest SVID has run out, which renews at half its life, and cuts their connections a look
/// later; and forgets identities that are void for good.
async fn end_expired(parts: Arc<Parts>, stop: CancellationToken) -> Result<&'static str, RunError> {
    let mut told = BTreeSet::<SpiffeId>::new();
    for look in 1_u32.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = parts.clock.now();
        let has_run_out = |id: &SpiffeId, shown| parts.identities.has_run_out(id, shown, now);
        let over = parts.connections.identities_where(has_run_out);
        for id in over.intersection(&told) {
            let cut = parts.connections.cut(id);
            tracing::info!(%id, cut, "connections whose SVID has run out were cut");
        }
        for id in over.difference(&told).filter(|id| id.role == Role::Agent) {
            tracing::warn!(%id, "its SVID has run out on a live stream, which ends: it was not renewed");
            parts.fleet.expired(id.name.clone()).await;
        }
        told = over;
        if look.is_multiple_of(FORGET_EACH) {
            let identities = Arc::clone(&parts.identities);
            match tokio::task::spawn_blocking(move || identities.forget(now)).await? {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!(count, "identities that are void for good were forgotten");
                    parts.fleet.all_known(known(&parts.identities)).await;
                }
                Err(error) => tracing::error!(%error, "identities that are void for good stay"),
            }
        }
    }
    Ok("ending what has run out")
}

/// Ends the controller when its store is of no use any more: whoever watches the process starts it again.
async fn watch_store(store: Arc<SledStore>, stop: CancellationToken) -> Result<&'static str, RunError> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok("watching the store"),
            () = tokio::time::sleep(LOOK) => {}
        }
        if let Some(why) = store.failed() {
            return Err(RunError::Store(why));
        }
        if let Some(waited) = store.at_work().filter(|waited| *waited >= STORE_WAIT_MAX) {
            let waited = waited.as_secs();
            return Err(RunError::Store(format!(
                "the store has not answered for {waited} s"
            )));
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn cut(parts: &Parts, id: Option<SpiffeId>) {
    let cut = match id {
        Some(id) => parts.connections.cut(&id),
        None => parts.connections.cut_where(|id| {
            let known = parts.identities.identity(id);
            known.is_none_or(|it| it.revoked.is_some())
        }),
    };
    tracing::info!(cut, "connections of a revoked identity were cut");
}

/// Agents that have an identity, as the fleet wants to know them.
fn known(identities: &Identities) -> Vec<Known> {
    let agents = identities.agents().into_iter();
    agents.map(|(id, record)| Known::of(id, &record)).collect()
}

/// This moment, for the fleet.
fn fleet_now(clock: &Clock) -> Now {
    Now {
        wall_ms: clock.now().0,
        run_ms: clock.run_ms(),
    }
}

async fn hear_host(
    socket: UnixListener,
    parts: Arc<Parts>,
    stop: CancellationToken,
) -> Result<&'static str, RunError> {
    let local = Local {
        identities: Arc::clone(&parts.identities),
        store: Arc::clone(&parts.store),
        state: parts.directory.path().to_owned(),
        clock: parts.clock.clone(),
    };
    local::run(socket, local, stop).await;
    Ok("hearing this host's commands")
}
