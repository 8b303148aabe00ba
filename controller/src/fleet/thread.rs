//! The one thread that owns the fleet and writes its rows.
//!
//! In: commands, over a channel of [`COMMANDS_MAX`]. Out: speech into mailboxes, answers to commands. Each turn takes what waits
//! (at most [`TURN_MAX`]), computes, writes one batch, and only then answers and speaks. So many acks cost one sync of the disk,
//! and nobody is told what a crash can take back; but acks are shown up to a sweep ([`super::SWEEP_MS`]) before they are on the disk.
//!
//! When the store fails, what was computed is forgotten: whoever waits is told so, every stream is ended, and the fleet is read
//! from the store again before anything else is done. A full disk is looked for before, at each tick: the fleet then stands still
//! ([`super::still`]), and no stream ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use flowtilla_proto::labels::Labels;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{
    AgentsRequest, AgentsResponse, ApplyResponse, HistoryResponse, JudgeResponse, MeasureResponse,
    ObjectsResponse, Rollout, RolloutEvent, Steering, TopRequest, TopResponse,
};
use flowtilla_proto::wire::session::EndReason;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::Span;

use super::heard::{Heard, Hello};
use super::load::{self, LoadError};
use super::mailbox::Mailbox;
use super::offers::Offers;
use super::top::TopRefused;
use super::view::Standing;
use super::{Change, ChangeRefused, Fleet, Now, SWEEP_MS, SessionId, Speech, Trial, Unwelcome};
use crate::identities::IdentityRecord;
use crate::store::{Store, StoreError};

mod handle;

pub use handle::FleetHandle;

/// Most commands that wait; further senders wait too.
///
/// What 10,000 agents say in a few seconds. Half of it slows their streams sooner; double it, and a stalled disk is felt later.
pub const COMMANDS_MAX: usize = 8_192;
/// Most commands of one turn.
///
/// About as many acks as come during one sync of a disk. Half of it syncs twice as often; double it, and answers wait longer.
pub const TURN_MAX: usize = 2_048;
/// Pause after a turn, in which commands gather.
///
/// Ten thousand acks come within a second or two: taken one by one, each would wake this thread, and write. Half of it wakes it
/// twice as often; double it, and who asks about a flow waits longer for the answer.
pub const TURN_PAUSE: Duration = Duration::from_millis(2);
/// How often time is told to the fleet.
///
/// Half of what a person notices. Half of it looks through all agents more often; double it, and waves begin a second late.
pub const TICK: Duration = Duration::from_millis(500);
/// Shortest time between two events of a rollout for those who watch it, in milliseconds: the newest is told.
pub const WATCH_EVERY_MS: u64 = 200;
/// One line of log for so many failed commits in a row: a full disk fails each of them.
const LOG_EACH: u64 = 100;
/// Looks at the history at once; further ones wait. Each takes a processor for as long as it lasts.
const HISTORIES_AT_ONCE: usize = 1;
/// How long to wait before the store is read again after it has failed.
const RELOAD_AFTER: Duration = Duration::from_secs(1);

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// What was asked cannot be.
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    /// The stream is not accepted.
    #[error(transparent)]
    Unwelcome(#[from] Unwelcome),
    /// Agents are not asked.
    #[error(transparent)]
    Top(#[from] TopRefused),
    /// The store has failed; nothing of it is in force.
    #[error("the controller's store has failed; see its log")]
    Store,
    /// There is no room for the change; nothing of it is in force.
    #[error("the controller's disk is full: it takes no change until there is room; see its log")]
    Full,
    /// The controller stops, or waits for its store to work again.
    #[error("the controller does not answer: it is stopping, or its store has failed")]
    Stopping,
}

/// What watches a rollout: the newest event, complete.
pub type Watched = watch::Receiver<Arc<RolloutEvent>>;

type Reply<T> = oneshot::Sender<Result<T, FleetError>>;

/// What the thread is told.
enum Command {
    Open {
        id: MemberName,
        labels: Labels,
        hello: Box<Hello>,
        mailbox: Arc<Mailbox>,
        reply: Reply<SessionId>,
    },
    /// With its place among what waits of its stream, which is free when this is handled.
    Heard(SessionId, Heard, OwnedSemaphorePermit),
    Closed(SessionId),
    /// Whether these are all that there are.
    Known(Vec<Known>, bool),
    Expired(MemberName),
    Revoked(MemberName, Reply<bool>),
    Bundle(Vec<Vec<u8>>),
    Apply(Box<Change>, Span, Reply<ApplyResponse>),
    RollBack(u64, Box<Change>, Span, Reply<ApplyResponse>),
    Steer(u64, Steering, String, Reply<Rollout>),
    Objects(u64, Reply<ObjectsResponse>),
    History(usize, Reply<HistoryResponse>),
    Agents(AgentsRequest, Reply<AgentsResponse>),
    Rollouts(usize, Reply<Vec<Rollout>>),
    Watch(u64, Reply<Watched>),
    Standing(Reply<Standing>),
    Top(TopRequest, Reply<TopResponse>),
    Drain(Vec<MemberName>, bool, Reply<()>),
    Measure(Vec<MemberName>, u64, Reply<MeasureResponse>),
    Judge(Box<Trial>, Reply<JudgeResponse>),
    Stop,
}

/// An agent that has an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub id: MemberName,
    /// Labels of its enrolment.
    pub labels: Labels,
    /// Whether the identity is void.
    pub revoked: bool,
}

impl Known {
    /// As identities have it.
    #[must_use]
    pub fn of(id: MemberName, record: &IdentityRecord) -> Self {
        Self {
            id,
            // What is refused here was let in by another version: an agent without labels is better than none.
            labels: Labels::parse(&record.labels).unwrap_or_default(),
            revoked: record.revoked.is_some(),
        }
    }
}

/// Begins the thread.
///
/// # Errors
///
/// The store cannot be read, or the system gives no thread.
pub fn start(
    store: Arc<dyn Store>,
    clock: impl Fn() -> Now + Send + 'static,
) -> Result<(FleetHandle, JoinHandle<()>), StartError> {
    let fleet = Fleet::load(&*store, clock())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(HISTORIES_AT_ONCE)
        .build()
        .map_err(StartError::Thread)?;
    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let offers = Offers::default();
    let counts = Arc::clone(&offers.counts);
    let driver = Driver {
        store,
        clock: Box::new(clock),
        fleet,
        last_session: 0,
        mailboxes: BTreeMap::new(),
        watchers: BTreeMap::new(),
        tops: BTreeMap::new(),
        offers,
        cause: Span::none(),
        replies: Vec::new(),
        failures: 0,
        stopping: false,
        sweep_at_ms: 0,
    };
    let thread = std::thread::Builder::new()
        .name("fleet".to_owned())
        .spawn(move || {
            runtime.block_on(driver.run(queue));
            // A look at the history is not waited for.
            runtime.shutdown_background();
        })
        .map_err(StartError::Thread)?;
    Ok((FleetHandle { commands, counts }, thread))
}

/// Why the thread cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The fleet cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The system gives no thread.
    #[error("the fleet's thread cannot begin")]
    Thread(#[source] std::io::Error),
}

/// Answers that wait for the batch to be on the disk.
type Held = Box<dyn FnOnce(Option<FleetError>) + Send>;

struct Watcher {
    sender: watch::Sender<Arc<RolloutEvent>>,
    told_ms: u64,
    changed: bool,
}

struct Driver {
    store: Arc<dyn Store>,
    clock: Box<dyn Fn() -> Now + Send>,
    fleet: Fleet,
    last_session: u64,
    mailboxes: BTreeMap<SessionId, Arc<Mailbox>>,
    watchers: BTreeMap<u64, Watcher>,
    /// Who waits for what agents answer, by the number of the request.
    tops: BTreeMap<u64, Reply<TopResponse>>,
    offers: Offers,
    /// The newest change of this turn, when it is traced: the commit is its doing.
    cause: Span,
    replies: Vec<Held>,
    /// Commits that failed in a row.
    failures: u64,
    stopping: bool,
    sweep_at_ms: u64,
}

impl Driver {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut turn = Vec::with_capacity(TURN_MAX);
        loop {
            let (mut pause, mut ticked) = (Duration::ZERO, false);
            // Time before input: a busy fleet must not hold back a deadline.
            tokio::select! { biased;
                _ = ticks.tick() => {
                    ticked = true;
                    self.handle_tick();
                }
                count = queue.recv_many(&mut turn, TURN_MAX) => {
                    if count == 0 {
                        break;
                    }
                    pause = TURN_PAUSE;
                    let now = (self.clock)();
                    for command in turn.drain(..) {
                        self.handle(command, now);
                    }
                }
            }
            if !self.commit_and_speak() {
                self.reload(&mut queue).await;
            } else if ticked {
                self.look_for_room();
            }
            if self.stopping {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        self.end_all(EndReason::Stopping, "the controller stops");
    }

    fn handle_tick(&mut self) {
        let now = (self.clock)();
        if now.run_ms >= self.sweep_at_ms {
            self.sweep_at_ms = now.run_ms.saturating_add(SWEEP_MS);
            let mailboxes = self.mailboxes.iter();
            let slow = mailboxes.filter(|(_, mailbox)| mailbox.is_slow(now.run_ms));
            let slow: Vec<SessionId> = slow.map(|(session, _)| *session).collect();
            for session in slow {
                self.fleet.handle_slow(session);
            }
        }
        self.fleet.handle_timeout(now);
    }

    /// Looks for room on the disk, between two batches: everything that was made is written.
    fn look_for_room(&mut self) {
        match self.store.room() {
            Err(error @ StoreError::Full { .. }) => {
                if self.fleet.stand_still() {
                    tracing::error!(%error, "the fleet stands still: streams stay, nothing is changed until there is room");
                }
            }
            // Another failure is told by the next batch.
            _ => self.go_on((self.clock)()),
        }
    }

    fn go_on(&mut self, now: Now) {
        if self.fleet.go_on(now) {
            tracing::info!("there is room on the disk again: the fleet goes on");
        }
    }

    /// Whether nothing may be changed. Room that somebody has just made is used at once.
    fn is_full(&mut self, now: Now) -> bool {
        if self.fleet.stands_still() && !matches!(self.store.room(), Err(StoreError::Full { .. })) {
            self.go_on(now);
        }
        self.fleet.stands_still()
    }

    /// Writes, then answers and speaks. `false`: the store has failed.
    fn commit_and_speak(&mut self) -> bool {
        let now = (self.clock)();
        self.fleet.finish_turn(now);
        let batch = self.fleet.take_batch();
        let cause = std::mem::replace(&mut self.cause, Span::none());
        let span = match cause.is_disabled() {
            true => Span::none(),
            false => tracing::debug_span!(parent: &cause, "commit"),
        };
        if !batch.is_empty()
            && let Err(error) = span.in_scope(|| self.store.commit(batch))
        {
            if self.failures.is_multiple_of(LOG_EACH) {
                let failures = self.failures;
                tracing::error!(%error, failures, "the store has failed: the fleet is read again");
            }
            self.failures += 1;
            let full = matches!(error, StoreError::Full { .. });
            for reply in self.replies.drain(..) {
                reply(Some(if full { FleetError::Full } else { FleetError::Store }));
            }
            return false;
        }
        self.failures = 0;
        for reply in self.replies.drain(..) {
            reply(None);
        }
        while let Some((session, mut speech)) = self.fleet.poll_speech() {
            let last = matches!(speech, Speech::Ended(..));
            if let Some(mailbox) = self.mailboxes.get(&session) {
                if let Speech::Offer(offer) = &mut speech {
                    self.offers.handle_offer(session, mailbox.id(), offer, now.run_ms);
                }
                mailbox.put(speech);
            }
            if last {
                self.mailboxes.remove(&session);
                self.offers.handle_closed(session);
            }
        }
        while let Some((number, response)) = self.fleet.poll_top() {
            if let Some(reply) = self.tops.remove(&number) {
                let _ = reply.send(Ok(response)); // Whoever asked may have gone.
            }
        }
        self.tell_watchers(now);
        true
    }

    /// Reads the fleet again. Who asks meanwhile gets no answer; a stop is heard.
    async fn reload(&mut self, queue: &mut mpsc::Receiver<Command>) {
        self.end_all(EndReason::Stopping, "the controller's store has failed");
        self.watchers.clear();
        self.tops.clear();
        loop {
            match Fleet::load(&*self.store, (self.clock)()) {
                Ok(fleet) => {
                    self.fleet = fleet;
                    return;
                }
                Err(error) => tracing::error!(%error, "the fleet cannot be read"),
            }
            let again = tokio::time::sleep(RELOAD_AFTER);
            tokio::pin!(again);
            loop {
                tokio::select! { biased;
                    () = &mut again => break,
                    command = queue.recv() => if matches!(command, None | Some(Command::Stop)) {
                        self.stopping = true;
                        return;
                    },
                }
            }
        }
    }

    fn end_all(&mut self, reason: EndReason, why: &str) {
        self.offers.clear();
        for (_, mailbox) in std::mem::take(&mut self.mailboxes) {
            mailbox.put(Speech::Ended(reason, format!("{why}; come back")));
        }
    }

    /// Answers when the batch is on the disk; a refusal at once with it.
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, FleetError>) {
        self.replies.push(Box::new(move |failed| {
            // Whoever asked may have gone.
            let _ = reply.send(failed.map_or(result, Err));
        }));
    }

    fn handle(&mut self, command: Command, now: Now) {
        match command {
            Command::Apply(change, _, reply) if self.is_full(now) && !change.dry_run => {
                self.answer(reply, Err(FleetError::Full));
            }
            Command::RollBack(_, change, _, reply) if self.is_full(now) && !change.dry_run => {
                self.answer(reply, Err(FleetError::Full));
            }
            Command::Steer(.., reply) if self.is_full(now) => self.answer(reply, Err(FleetError::Full)),
            Command::Drain(.., reply) if self.is_full(now) => self.answer(reply, Err(FleetError::Full)),
            Command::Heard(session, heard, _place) => {
                self.offers.handle_heard(session, &heard, now.run_ms);
                self.fleet.handle_heard(session, heard, now);
            }
            Command::Open {
                id,
                labels,
                hello,
                mailbox,
                reply,
            } => {
                self.last_session += 1;
                let session = SessionId(self.last_session);
                let opened = self.fleet.handle_open(&id, &labels, *hello, session, now);
                if opened.is_ok() {
                    self.offers.counts.sessions.inc();
                    self.mailboxes.insert(session, mailbox);
                }
                self.answer(reply, opened.map(|()| session).map_err(FleetError::from));
            }
            Command::Closed(session) => {
                self.fleet.handle_closed(session, now);
                self.offers.handle_closed(session);
                if let Some(mailbox) = self.mailboxes.remove(&session) {
                    mailbox.close();
                }
            }
            Command::Known(agents, all) => {
                if all {
                    let ids: BTreeSet<&MemberName> = agents.iter().map(|known| &known.id).collect();
                    self.fleet.forget_void(|id| !ids.contains(id));
                }
                for known in agents {
                    match known.revoked {
                        true => {
                            self.fleet.handle_revoked(&known.id);
                        }
                        false => self.fleet.handle_enrolled(&known.id, &known.labels, now),
                    }
                }
            }
            Command::Expired(id) => self.fleet.handle_expired(&id),
            Command::Stop => {
                self.fleet.handle_stop();
                self.stopping = true;
            }
            Command::Revoked(id, reply) => {
                let cut = self.fleet.handle_revoked(&id);
                self.answer(reply, Ok(cut));
            }
            Command::Bundle(roots) => {
                for mailbox in self.mailboxes.values() {
                    mailbox.put_bundle(roots.clone());
                }
            }
            Command::Apply(change, cause, reply) => {
                let applied = cause.in_scope(|| self.fleet.apply(*change, now));
                self.answer(reply, applied.map_err(FleetError::from));
                self.cause = cause;
            }
            Command::RollBack(to, change, cause, reply) => {
                let rolled = cause.in_scope(|| self.roll_back(to, *change, now));
                self.answer(reply, rolled);
                self.cause = cause;
            }
            Command::Steer(id, steering, by, reply) => {
                let steered = self.fleet.steer(id, steering, &by, now).map_err(FleetError::from);
                self.answer(reply, steered);
            }
            Command::Top(request, reply) => {
                for (number, _) in self.tops.extract_if(.., |_, reply| reply.is_closed()) {
                    self.fleet.forget_top(number);
                }
                match self.fleet.ask_top(&request, now) {
                    Ok(number) => {
                        self.tops.insert(number, reply);
                    }
                    Err(refused) => self.answer(reply, Err(refused.into())),
                }
            }
            Command::Drain(ids, drain, reply) => {
                let drained = self.fleet.drain(&ids, drain, now).map_err(FleetError::from);
                self.answer(reply, drained);
            }
            Command::Judge(trial, reply) => {
                let judged = self.fleet.try_changed(&trial, now);
                self.answer(reply, Ok(judged));
            }
            query => self.handle_query(query),
        }
    }

    fn handle_query(&mut self, query: Command) {
        match query {
            Command::Objects(revision, reply) => {
                let objects = self.objects(revision);
                self.answer(reply, objects);
            }
            Command::History(limit, reply) => {
                self.answer_history(limit, reply);
            }
            Command::Agents(request, reply) => {
                let agents = self.fleet.agents(&request);
                self.answer(reply, Ok(AgentsResponse { agents }));
            }
            Command::Rollouts(limit, reply) => {
                let rollouts = self.fleet.rollouts(limit);
                self.answer(reply, Ok(rollouts));
            }
            Command::Watch(id, reply) => {
                let watched = self.watch(id);
                self.answer(reply, watched);
            }
            Command::Measure(ids, soak_ms, reply) => {
                let measured = self.fleet.measure(&ids, soak_ms);
                self.answer(reply, Ok(measured));
            }
            Command::Standing(reply) => {
                let standing = self.fleet.standing();
                self.answer(reply, Ok(standing));
            }
            _ => {}
        }
    }

    /// Once what this turn computes is on the disk, on a thread beside: it takes long, and what is there is not changed any more.
    fn answer_history(&mut self, limit: usize, reply: Reply<HistoryResponse>) {
        let (newest, store) = (self.fleet.newest(), Arc::clone(&self.store));
        self.replies.push(Box::new(move |not_kept| {
            if let Some(error) = not_kept {
                let _ = reply.send(Err(error)); // Whoever asked may have gone.
                return;
            }
            tokio::task::spawn_blocking(move || {
                let history = newest.history(&*store, limit, || reply.is_closed());
                let _ = reply.send(history.map_err(failed));
            });
        }));
    }

    fn roll_back(&mut self, to: u64, change: Change, now: Now) -> Result<ApplyResponse, FleetError> {
        let to = match to {
            0 => match self.fleet.revision_before(&*self.store).map_err(failed)? {
                0 if self.fleet.revision() == 0 => return Err(ChangeRefused::NoRevisionYet.into()),
                0 => return Err(ChangeRefused::NothingBefore(self.fleet.revision()).into()),
                before => before,
            },
            to => to,
        };
        let row = load::revision(&*self.store, to).map_err(failed)?;
        let row = row.ok_or(ChangeRefused::NoRevision(to))?;
        Ok(self.fleet.roll_back(&row, change, now)?)
    }

    fn objects(&self, revision: u64) -> Result<ObjectsResponse, FleetError> {
        if revision == 0 || revision == self.fleet.revision() {
            return Ok(self.fleet.objects_of_record());
        }
        let row = load::revision(&*self.store, revision).map_err(failed)?;
        let row = row.ok_or(ChangeRefused::NoRevision(revision))?;
        Ok(ObjectsResponse {
            revision,
            objects: row.objects,
        })
    }

    fn watch(&mut self, id: u64) -> Result<Watched, FleetError> {
        let id = match id {
            0 => self.fleet.newest_rollout().ok_or(ChangeRefused::NoRolloutYet)?,
            id => id,
        };
        if let Some(watcher) = self.watchers.get(&id) {
            return Ok(watcher.sender.subscribe());
        }
        let (event, goes_on) = match self.fleet.rollout_event(id) {
            Some(event) => (event, true),
            None => {
                let row = load::rollout(&*self.store, id).map_err(failed)?;
                let event = row.and_then(|row| row.ended);
                (event.ok_or(ChangeRefused::NoRollout(id))?, false)
            }
        };
        let (sender, watched) = watch::channel(Arc::new(event));
        if goes_on {
            let watcher = Watcher {
                sender,
                told_ms: 0,
                changed: true,
            };
            self.watchers.insert(id, watcher);
        }
        Ok(watched)
    }

    fn tell_watchers(&mut self, now: Now) {
        for id in self.fleet.take_told_rollouts() {
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.changed = true;
            }
        }
        let mut ended = Vec::new();
        for (id, watcher) in &mut self.watchers {
            if !watcher.changed || now.run_ms.saturating_sub(watcher.told_ms) < WATCH_EVERY_MS {
                continue;
            }
            watcher.changed = false;
            watcher.told_ms = now.run_ms;
            let event = match self.fleet.rollout_event(*id) {
                Some(event) => event,
                None => {
                    ended.push(*id);
                    // On the disk by now: speech comes after the batch.
                    match load::rollout(&*self.store, *id) {
                        Ok(row) => row.and_then(|row| row.ended).unwrap_or_default(),
                        Err(error) => {
                            tracing::error!(%error, rollout = id, "its end cannot be read");
                            continue;
                        }
                    }
                }
            };
            watcher.sender.send_replace(Arc::new(event));
        }
        for id in ended {
            self.watchers.remove(&id);
        }
        self.watchers
            .retain(|_, watcher| watcher.sender.receiver_count() > 0);
    }
}

fn failed(error: LoadError) -> FleetError {
    tracing::error!(%error, "the store has failed");
    FleetError::Store
}
