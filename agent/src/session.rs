//! Drives the agent's side of its session over the network: connects, carries messages, renews the SVID, comes back.
//!
//! The decisions are in [`flowtilla_agent_core::session`]. Tasks: this loop; an `adopter` that carries out orders
//! ([`adopt`]); one for a renewal under way. Channels: jobs and what became of them, one deep, as there is one order at a
//! time; messages to the stream, [`OUT_MAX`].
//! Order of the loop: the stop, because it must not wait for a busy line; what became of orders, because an ack follows;
//! time, so that a controller that talks much does not hold up heartbeats; the renewal; what is to be said; what is heard.
//! Ends when it is told to. Nothing that a controller does or fails to do ends what is in force.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent_core::session::{
    Assignment, EndReason, Fault, Held, Incoming, Outgoing, Renewal, Session, ShortIds,
};
use flowtilla_agent_core::time::{KernelTime, WallTime};
use flowtilla_grpc::causes;
use flowtilla_grpc::channel::{self, Address};
use flowtilla_grpc::session::session_client::SessionClient;
use flowtilla_grpc::telemetry;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::spiffe::SpiffeId;
use flowtilla_proto::wire::session as wire;
use flowtilla_proto::wire::session::from_agent::Body;
use flowtilla_proto::wire::session::to_agent::Body as ToAgentBody;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;
use tracing::Span;

use crate::clock;
use crate::held::{HeldError, HeldStore};
use crate::identity::{self, AskError, Asked, Credentials, EnrolError, FileError, NewToken, TOKEN_LOOK};
use crate::peers::{FleetIn, FleetOut, Joined};

pub use self::adopt::Governed;
pub use self::say::{ADDRESSES_MAX, Facts, Vitals};

use self::adopt::{Adopter, Job, Report};
use self::say::Speaker;

mod adopt;
mod say;

/// Messages on their way to the stream.
///
/// An answer, a heartbeat, some questions. Half of it makes questions wait for each other; double it, and what waits for a
/// line that is stuck is old when it leaves.
const OUT_MAX: usize = 16;
/// Longest message that is read, in octets: the longest offer, and as much for what is around it.
const MESSAGE_OCTETS_MAX: usize = 2 << 20;
/// How long a connection or the stream's beginning may take. The channel's own bound is shorter.
const CONNECT_WAIT: Duration = Duration::from_secs(20);
/// How long a message may wait for the line. HTTP/2 has found a dead peer before; a live one that does not read is left.
const SEND_WAIT: Duration = Duration::from_secs(60);
/// How long the last message may take.
const GOODBYE_WAIT: Duration = Duration::from_secs(1);
/// Longest sleep on a wall clock, which may be set.
const WALL_SLEEP: Duration = Duration::from_secs(30);

/// How the session stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// Whether a controller has welcomed this agent.
    pub connected: bool,
    /// Why not, one sentence.
    pub why: Option<String>,
    /// What is held, and whether it is in force.
    pub held: Option<Held>,
    /// See [`Self::held`].
    pub in_force: bool,
    /// Name of the policy in what is held; empty: none.
    pub policy: String,
    /// The last assignment that was tried, and why it is not in force.
    pub last: Option<(Held, Option<Fault>)>,
    /// The source id that the controller gave.
    pub source_id: Option<SourceId>,
    /// Connections to a controller that were welcomed.
    pub sessions: u64,
    /// SVIDs that were renewed.
    pub renewals: u64,
}

/// What a session is made of.
pub struct Parts<G> {
    /// What assignments are applied to.
    pub governed: G,
    /// How it does.
    pub vitals: Vitals,
    /// What it is.
    pub facts: Facts,
    /// Where assignments are kept.
    pub store: HeldStore,
    /// Whoever counts flows of the fleet once; `None`: nobody.
    pub peers: Option<Joined>,
    /// Seed of all delays.
    pub seed: u64,
}

/// An agent that has in force what it held, and talks to nobody yet.
pub struct Ready<G> {
    adopter: Adopter<G>,
    speaker: Speaker,
    peers: Option<Joined>,
    effective: Option<wire::Effective>,
    news: watch::Sender<News>,
    new_token: Option<NewToken>,
    seed: u64,
}

impl<G: Governed> Ready<G> {
    /// Reads what is held and puts it in force. When that fails it is tried again, and said so.
    pub async fn restore(parts: Parts<G>) -> Self {
        let store = parts.store.clone();
        let loaded = tokio::task::spawn_blocking(move || store.load()).await;
        let kept = match loaded {
            Ok(Ok(kept)) => kept,
            Ok(Err(error @ HeldError::Damaged { .. })) => {
                tracing::error!(%error);
                None
            }
            Ok(Err(error)) => {
                tracing::error!(error = %causes::chain(&error), "what is held cannot be read: nothing is in force");
                None
            }
            Err(error) => {
                tracing::error!(%error, "what is held cannot be read: nothing is in force");
                None
            }
        };
        let news = watch::Sender::new(News::default());
        let mut adopter = Adopter {
            governed: parts.governed,
            store: parts.store,
            held: kept.map(|kept| (kept.held, Assignment::parse(&kept.content))),
            in_force: false,
            news: news.clone(),
        };
        let effective = match adopter.held {
            Some(_) => adopter.restore().await.ok(),
            None => None,
        };
        Self {
            adopter,
            speaker: Speaker::new(parts.facts, parts.vitals),
            peers: parts.peers,
            effective,
            news,
            new_token: None,
            seed: parts.seed,
        }
    }

    /// Looks for a new token when the controller will have none of this agent.
    #[must_use]
    pub(crate) fn with_new_token(mut self, new_token: Option<NewToken>) -> Self {
        self.new_token = new_token;
        self
    }

    /// How it stands.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.subscribe()
    }

    /// Whether something is held and in force.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        self.adopter.in_force
    }

    /// Stops before it has talked to anybody.
    pub fn into_governed(self) -> G {
        self.adopter.governed
    }

    /// Says why there is no controller, before there was a session.
    pub fn teller(&self) -> impl Fn(&str) + Send + Sync + use<G> {
        let news = self.news.clone();
        move |why| news.send_modify(|news| news.why = Some(why.to_owned()))
    }

    /// Talks to the controller until it is told to stop, and gives back what assignments were applied to.
    pub async fn run(self, controller: Address, credentials: Arc<Credentials>, stop: CancellationToken) -> G {
        let (jobs, to_do) = mpsc::channel(1);
        let (report, reports) = mpsc::channel(1);
        let held = self.adopter.held.as_ref().map(|(held, _)| *held);
        let renewal = Renewal::new(credentials.identity().validity(), self.seed ^ 0x5eed);
        let adopter = tokio::spawn(self.adopter.run(to_do, report));
        let mut driver = Driver {
            controller,
            credentials,
            core: Session::new(held, self.effective, self.seed, clock::kernel_now()),
            renewal,
            renewing: None,
            jobs,
            reports,
            speaker: self.speaker,
            peers: self.peers,
            news: self.news,
            judging: Span::none(),
            source_id: None,
            short_ids: None,
            expired: false,
            new_token: self.new_token,
            refused: false,
            crowded: false,
            stop,
        };
        while driver.connect_when_due().await.is_ok() {}
        drop(driver);
        adopter
            .await
            .expect("the adopter does not panic, and nobody aborts it")
    }
}

/// It was told to stop.
struct Stopped;

/// Why a stream ended.
struct StreamEnd {
    why: String,
    reason: Option<EndReason>,
    /// The controller says that the SVID has run out.
    expired: bool,
    /// The same connection has the same end for ever.
    refused: bool,
}

struct Driver {
    controller: Address,
    credentials: Arc<Credentials>,
    core: Session,
    renewal: Renewal,
    renewing: Option<JoinHandle<Result<(), RenewError>>>,
    jobs: mpsc::Sender<Job>,
    reports: mpsc::Receiver<Report>,
    speaker: Speaker,
    peers: Option<Joined>,
    news: watch::Sender<News>,
    /// From an offer's arrival to the order or the answer that follows from it.
    judging: Span,
    /// Given by the controller, not handed on yet.
    source_id: Option<SourceId>,
    /// The same.
    short_ids: Option<ShortIds>,
    /// The controller has said that the SVID has run out.
    expired: bool,
    /// Where a new token may come from.
    new_token: Option<NewToken>,
    /// The controller will have none of this agent: only a new token helps.
    refused: bool,
    /// What is to be done waits until the adopter takes the job before it.
    crowded: bool,
    stop: CancellationToken,
}

/// Why an SVID was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Files(#[from] FileError),
    #[error("the task that renews ended")]
    Task,
}

impl Driver {
    /// Waits until a connection is due, and lives through it.
    async fn connect_when_due(&mut self) -> Result<(), Stopped> {
        let at = self.core.poll_connect().unwrap_or_default();
        let wait = at.since(clock::kernel_now());
        if let Some(new_token) = self.new_token.clone().filter(|_| self.refused) {
            if self.enrol_anew(&new_token).await? {
                return Ok(());
            }
            // A look at the file comes before the next try.
            if wait > TOKEN_LOOK {
                return self.attend(sleep(TOKEN_LOOK)).await;
            }
        }
        self.attend(sleep(wait)).await?;
        let credentials = Arc::clone(&self.credentials);
        let controller = self.controller.clone();
        let expired = std::mem::take(&mut self.expired);
        let connecting = async move {
            let lived = credentials.identity();
            if expired || lived.validity().is_over(credentials.clock().now()) {
                let next = match credentials.unkept() {
                    Some(next) => next,
                    None => {
                        let next = identity::recover(&controller, &lived, credentials.clock()).await;
                        next.map_err(|error| StreamEnd {
                            refused: error.asked() == Asked::Never,
                            ..lost(&format!("the SVID has run out: {error}"))
                        })?
                    }
                };
                let kept = tokio::task::spawn_blocking(move || credentials.renewed(next)).await;
                return match kept {
                    Ok(Ok(())) => Ok(None),
                    Ok(Err(error)) => Err(lost(&causes::chain(&error))),
                    Err(error) => Err(lost(&error.to_string())),
                };
            }
            let tls = credentials.tls().map_err(|error| lost(&error.to_string()))?;
            let channel = channel::connect(&controller, tls).await;
            let channel = channel.map_err(|error| StreamEnd {
                refused: identity::is_stranger(&error),
                ..lost(&identity::explain_connect(&error))
            })?;
            let (say, said) = mpsc::channel(OUT_MAX);
            let mut client =
                SessionClient::new(channel.clone()).max_decoding_message_size(MESSAGE_OCTETS_MAX);
            let opened = client.open(ReceiverStream::new(said)).await;
            let heard = opened.map_err(|status| refused(&status))?;
            Ok(Some((channel, say, heard.into_inner())))
        };
        let outcome = self.attend(timeout(CONNECT_WAIT, connecting)).await?;
        let end = match outcome {
            Err(_) => lost(&format!("no answer within {} s", CONNECT_WAIT.as_secs())),
            Ok(Err(end)) => end,
            Ok(Ok(None)) => {
                // Recovered: connect with it.
                self.renewal
                    .handle_renewed(self.credentials.identity().validity());
                self.news.send_modify(|news| news.renewals += 1);
                return Ok(());
            }
            Ok(Ok(Some((channel, say, heard)))) => {
                self.core.handle_connected(clock::kernel_now());
                self.talk(channel, say, heard).await?
            }
        };
        self.handle_end(&end);
        Ok(())
    }

    /// Enrols with a token that has come since; whether there is another identity.
    async fn enrol_anew(&mut self, new_token: &NewToken) -> Result<bool, Stopped> {
        let credentials = Arc::clone(&self.credentials);
        let new_token = new_token.clone();
        let enrolling = async move {
            let Some(secret) = new_token.fresh() else {
                return Ok(false);
            };
            let next = new_token.enrol(&secret).await?;
            let id = next.id().clone();
            let kept = tokio::task::spawn_blocking(move || credentials.enrolled_anew(next)).await;
            kept.map_err(|error| AskError::Unreached(error.to_string()))??;
            new_token.used(&secret);
            tracing::info!(%id, "enrolled with the new token");
            Ok::<_, EnrolError>(true)
        };
        let enrolled = match self.attend(enrolling).await? {
            Ok(enrolled) => enrolled,
            Err(error) => {
                tracing::warn!(error = %causes::chain(&error), "the new token gave no identity");
                false
            }
        };
        if enrolled {
            self.refused = false;
            self.renewal
                .handle_renewed(self.credentials.identity().validity());
            self.core.handle_enrolled(clock::kernel_now());
        }
        Ok(enrolled)
    }

    /// One stream, until it ends.
    async fn talk(
        &mut self,
        channel: Channel,
        say: mpsc::Sender<wire::FromAgent>,
        mut heard: Streaming<wire::ToAgent>,
    ) -> Result<StreamEnd, Stopped> {
        let mut waiting: Option<(Outgoing, KernelTime)> = None;
        loop {
            self.give_order();
            if waiting.is_none() {
                waiting = self.core.poll_message().map(|next| (next, clock::kernel_now()));
                if let Some((Outgoing::Ack { .. } | Outgoing::Nack { .. }, _)) = waiting {
                    self.judging = Span::none();
                }
            }
            let now = clock::kernel_now();
            if waiting
                .as_ref()
                .is_some_and(|&(_, since)| now.since(since) > SEND_WAIT)
            {
                return Ok(lost("the controller does not read"));
            }
            let timer = self.timer(now);
            tokio::select! { biased;
                () = self.stop.cancelled() => {
                    self.say_goodbye(&say, &mut heard).await;
                    return Err(Stopped);
                }
                Some(report) = self.reports.recv() => self.handle_report(report),
                () = room(&self.jobs), if self.crowded => {}
                () = sleep(timer) => {
                    if !self.core.handle_timeout(clock::kernel_now()) {
                        return Ok(lost("the controller does not welcome this agent"));
                    }
                    self.renew_when_due(&channel);
                }
                renewed = outcome_of(&mut self.renewing) => {
                    if let Some(end) = self.handle_renewed(renewed) {
                        return Ok(end);
                    }
                }
                permit = say.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                    (Ok(permit), Some((what, _))) => permit.send(self.speaker.say(what)),
                    // The stream's end says why.
                    _ => return Ok(end_of(heard.message().await)),
                },
                message = heard.message() => match message {
                    Ok(Some(message)) => if let Some(end) = self.handle_message(message).await {
                        return Ok(end);
                    },
                    ended => return Ok(end_of(ended)),
                },
                Some(said) = next_of_peers(&mut self.peers), if self.core.is_open() => {
                    let body = match said {
                        FleetOut::Question(question) => Body::Question(question),
                        FleetOut::Answer(answer) => Body::Answer(*answer),
                    };
                    // What does not fit is a question that times out.
                    let _ = say.try_send(wire::FromAgent { body: Some(body) });
                }
            }
        }
    }

    /// Waits for `work` while orders are carried out.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut work = pin!(work);
        loop {
            self.give_order();
            let timer = self.timer(clock::kernel_now());
            tokio::select! { biased;
                () = self.stop.cancelled() => return Err(Stopped),
                Some(report) = self.reports.recv() => self.handle_report(report),
                () = room(&self.jobs), if self.crowded => {}
                finished = &mut work => return Ok(finished),
                () = sleep(timer) => {}
            }
        }
    }

    fn handle_report(&mut self, report: Report) {
        match report {
            Report::Done(done) => self.core.handle_done(done, clock::kernel_now()),
            Report::NotInForce => self.core.handle_not_in_force(clock::kernel_now()),
        }
    }

    /// Until when nothing is due.
    fn timer(&self, now: KernelTime) -> Duration {
        let core = self.core.poll_timeout().map_or(WALL_SLEEP, |at| at.since(now));
        let renewal = match self.renewing {
            Some(_) => WALL_SLEEP,
            None => between(self.credentials.clock().now(), self.renewal.poll_due()),
        };
        core.min(renewal.max(RENEW_SLEEP_MIN)).min(WALL_SLEEP)
    }

    /// Hands an order on, if there is one and the adopter is free.
    fn give_order(&mut self) {
        self.crowded = false;
        if let Some(id) = self.source_id.take()
            && let Err(mpsc::error::TrySendError::Full(Job::SourceId(id))) =
                self.jobs.try_send(Job::SourceId(id))
        {
            (self.source_id, self.crowded) = (Some(id), true);
            return;
        }
        // Before an order: collectors that it brings are to know this agent.
        if let Some(ids) = self.short_ids.take()
            && let Err(mpsc::error::TrySendError::Full(Job::ShortIds(ids))) =
                self.jobs.try_send(Job::ShortIds(ids))
        {
            (self.short_ids, self.crowded) = (Some(ids), true);
            return;
        }
        if self.jobs.capacity() == 0 {
            self.crowded = true;
            return;
        }
        let core = &mut self.core;
        let order = self.judging.in_scope(|| core.poll_order(clock::kernel_now()));
        if let Some(order) = order {
            self.judging = Span::none();
            // Only this task sends.
            let _ = self.jobs.try_send(Job::Order(order));
        }
    }

    /// Takes a message. The end of the stream, if it ends with it.
    async fn handle_message(&mut self, message: wire::ToAgent) -> Option<StreamEnd> {
        let now = clock::kernel_now();
        let heard = match Incoming::parse(message) {
            Ok(Some(heard)) => {
                if let Incoming::Offer(offer) = &heard {
                    self.judging = telemetry::part_of(
                        &offer.traceparent,
                        || tracing::debug_span!(parent: None, "judge", version = %offer.held.version),
                    );
                }
                self.core.handle_message(heard, now)
            }
            Ok(None) => return None,
            Err(violation) => Err(violation),
        };
        match heard {
            Err(violation) => return Some(lost(&violation.to_string())),
            Ok(Some(Incoming::Welcome(welcome))) => {
                tracing::info!(controller = %self.controller, id = welcome.id, "welcomed");
                self.source_id = welcome.source_id;
                self.news.send_modify(|news| {
                    (news.connected, news.why) = (true, None);
                    news.source_id = welcome.source_id;
                    news.sessions += 1;
                });
                match SpiffeId::parse(&welcome.id) {
                    Ok(id) => return self.tell_peers(FleetIn::Connected(id.name)),
                    Err(error) => {
                        tracing::warn!(id = identity::shown(&welcome.id), %error, "no flow is told once: who this agent is");
                    }
                }
            }
            Ok(Some(Incoming::ShortIds(ids))) => self.short_ids = Some(ids),
            Ok(Some(Incoming::Roots(roots))) => self.handle_roots(roots).await,
            Ok(Some(Incoming::Peers(body))) => {
                let told = match body {
                    ToAgentBody::Members(members) => FleetIn::Members(members),
                    ToAgentBody::Question(question) => FleetIn::Question(question),
                    ToAgentBody::Answer(answer) => FleetIn::Answer(Box::new(answer)),
                    _ => return None,
                };
                return self.tell_peers(told);
            }
            Ok(Some(Incoming::Ended { reason, message })) => {
                return Some(StreamEnd {
                    why: format!("the controller ended the session: {}", identity::shown(&message)),
                    reason: Some(reason),
                    expired: reason == EndReason::Expired,
                    refused: reason == EndReason::Revoked,
                });
            }
            Ok(Some(Incoming::Offer(_) | Incoming::Top(_)) | None) => {}
        }
        None
    }

    async fn handle_roots(&mut self, roots: Vec<Vec<u8>>) {
        let credentials = Arc::clone(&self.credentials);
        let kept = tokio::task::spawn_blocking(move || credentials.roots_changed(roots)).await;
        match kept {
            Ok(Ok(())) => {
                tracing::info!("the roots of the trust domain have changed: renews");
                self.renewal.handle_roots_changed(self.credentials.clock().now());
            }
            Ok(Err(error)) => {
                tracing::error!(error = %causes::chain(&error), "the roots of trust stay as they are");
            }
            Err(error) => tracing::error!(%error, "the roots of trust stay as they are"),
        }
    }

    fn renew_when_due(&mut self, channel: &Channel) {
        if self.renewing.is_some()
            || self.renewal.poll_due() > self.credentials.clock().now()
            || !self.core.is_open()
        {
            return;
        }
        let (channel, credentials) = (channel.clone(), Arc::clone(&self.credentials));
        self.renewing = Some(tokio::spawn(async move {
            let next = match credentials.unkept() {
                Some(next) => next,
                None => identity::renew(channel).await?,
            };
            let kept = tokio::task::spawn_blocking(move || credentials.renewed(next)).await;
            kept.map_err(|_| RenewError::Task)?.map_err(RenewError::from)
        }));
    }

    /// The end of the stream, when this SVID is of no use any more.
    fn handle_renewed(&mut self, outcome: Result<(), RenewError>) -> Option<StreamEnd> {
        self.renewing = None;
        let validity = self.credentials.identity().validity();
        let Err(error) = outcome else {
            tracing::info!(not_after = validity.not_after, "renewed the SVID");
            self.renewal.handle_renewed(validity);
            self.news.send_modify(|news| news.renewals += 1);
            return None;
        };
        let never = matches!(&error, RenewError::Ask(error) if error.asked() == Asked::Never);
        tracing::warn!(error = %causes::chain(&error), "the SVID was not renewed");
        self.renewal.handle_failed(self.credentials.clock().now());
        (never && validity.is_over(self.credentials.clock().now())).then(|| lost("the SVID has run out"))
    }

    /// The end of the stream when something does not fit that must not get lost: the next stream begins with all of it.
    fn tell_peers(&self, told: FleetIn) -> Option<StreamEnd> {
        let fits = self.peers.as_ref().is_none_or(|peers| peers.tell(told));
        (!fits).then(|| lost("the agent does not keep up with what it is told of others"))
    }

    async fn say_goodbye(
        &mut self,
        say: &mpsc::Sender<wire::FromAgent>,
        heard: &mut Streaming<wire::ToAgent>,
    ) {
        self.core.handle_stop();
        let farewell = async {
            while let Some(what) = self.core.poll_message() {
                let message = self.speaker.say(what);
                if say.send(message).await.is_err() {
                    return;
                }
            }
            // The controller ends the stream when it has read it.
            while let Ok(Some(_)) = heard.message().await {}
        };
        let _ = timeout(GOODBYE_WAIT, farewell).await;
    }

    fn handle_end(&mut self, end: &StreamEnd) {
        self.core.handle_disconnected(end.reason, clock::kernel_now());
        self.expired = end.expired;
        if let Some(new_token) = self.new_token.as_ref().filter(|_| end.refused && !self.refused) {
            new_token.tell();
        }
        self.refused = end.refused;
        if let Some(renewing) = self.renewing.take() {
            renewing.abort();
        }
        // When even that does not fit, the next stream says it.
        let _ = self.tell_peers(FleetIn::Lost);
        let news = self.news.borrow().why.as_ref() != Some(&end.why);
        if news {
            tracing::warn!(controller = %self.controller, why = end.why, "no controller: what is held stays in force");
        }
        self.news
            .send_modify(|news| (news.connected, news.why) = (false, Some(end.why.clone())));
    }
}

/// Least sleep before a renewal that is due is looked at again: the answer to the last one is on its way.
const RENEW_SLEEP_MIN: Duration = Duration::from_millis(50);

fn between(now: WallTime, then: WallTime) -> Duration {
    Duration::from_nanos(then.0.saturating_sub(now.0))
}

fn lost(why: &str) -> StreamEnd {
    StreamEnd {
        why: why.to_owned(),
        reason: None,
        expired: false,
        refused: false,
    }
}

fn refused(status: &tonic::Status) -> StreamEnd {
    StreamEnd {
        expired: identity::is_expired(status),
        refused: identity::is_refused(status),
        ..lost(&identity::explain_status(status))
    }
}

fn end_of(ended: Result<Option<wire::ToAgent>, tonic::Status>) -> StreamEnd {
    match ended {
        Ok(_) => lost("the controller ended the stream"),
        Err(status) => refused(&status),
    }
}

/// Until the adopter has taken what was handed on; for ever when it has ended.
async fn room(jobs: &mpsc::Sender<Job>) {
    if jobs.reserve().await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn outcome_of(renewing: &mut Option<JoinHandle<Result<(), RenewError>>>) -> Result<(), RenewError> {
    match renewing {
        Some(task) => task.await.unwrap_or(Err(RenewError::Task)),
        None => std::future::pending().await,
    }
}

async fn next_of_peers(peers: &mut Option<Joined>) -> Option<FleetOut> {
    match peers {
        Some(peers) => peers.out.recv().await,
        None => std::future::pending().await,
    }
}
