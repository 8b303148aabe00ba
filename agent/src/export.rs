//! Feeds one collector, or of several the one that [`Group`] chooses: connects, keeps the connection, moves records from
//! the spool to it, tells how it stands.
//!
//! One task a stream, [`Exporter::run`]; a short one for each probe of a collector that stands by. Channels: records are read from the spool through a [`Reader`] when they can
//! be sent (the disk is the buffer), how far it can be read, announcements and the stop come through a `watch` each,
//! status goes out through a `watch`, the cursor through the reader. What is read, sent, resent and counted is decided by
//! [`Collector`] of the core; this is its driver. Ends when it is told to: as soon as all is taken, at once when it has no
//! connection, at the latest after the grace period. What then waits is on disk and in the cursor; only a spool that ends
//! with the process gives the collector the whole grace period to come back, and counts the rest as
//! [`DropPoint::ShutdownGrace`].
//!
//! Order of a turn: time before input, the socket before records: a busy producer must not hold back acknowledgements.
//! When the collector restarted or another is fed, the cursor is on the disk before a connection to the successor is
//! tried, if the disk lets it within 2 s: an agent that died meanwhile must not believe the old one.
//!
//! A change from one collector to another, which is the end of the connection:
//! - The one left is in reach: no record is sent any more, and what is on the way may come to its end, for
//!   [`LEAVE_WITHIN`]. The other then goes on where it ended.
//! - It is not: what it is not known to have taken goes to the other. When it is known to have ended (it refused, closed
//!   or reset), so does what it took and may not have handled, by its own `onCollectorRestart`.
//! - What a collector took that was merely cut off or stalled is its own: it counts as taken, is not sent to another, and
//!   is lost without a count if its process ends before it is heard of again.
//! - A stalled one loses what waits in this host's kernel; what its own kernel holds arrives when it goes on, and is
//!   there as well as at the other: at most the window.
//!
//! Which of them has the marks stands in the cursor, and it is the first in use after a start.
//! Source: design section 5.

mod announce;
mod connect;
mod group;
mod health;
mod link;
mod member;
mod probe;
mod source;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent_core::collector::failover::{Group, Times};
use flowtilla_agent_core::collector::{Collector, Progress};
use flowtilla_agent_core::encode::tlv::TlvOptions;
use flowtilla_agent_core::flow::record::CollectorSlot;
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_agent_core::session::{NoShortId, ShortIds};
use flowtilla_agent_core::spool::Cursor;
use flowtilla_agent_core::time::KernelTime;
use flowtilla_proto::collector as policy;
use flowtilla_proto::ids::{CollectorName, SourceId};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::clock;
use crate::spool::Reader;
use crate::status::{CollectorState, CollectorStatus};

use announce::announce;
use connect::ConnectError;
use link::{Heading, Link, LinkEnd};
use member::Member;
use probe::Probed;
use source::Source;

/// Whether a collector takes a connection, which is closed again.
///
/// # Errors
/// Why not, one sentence.
pub(crate) async fn reach(endpoint: &policy::CollectorEndpoint) -> Result<(), String> {
    let connected = connect::connect(endpoint).await;
    connected.map(drop).map_err(|error| error.to_string())
}

pub use announce::Announcements;
pub use connect::{ADDRESSES_MAX, CONNECT_TIMEOUT, SEND_BUFFER_OCTETS};
pub use health::{DEAD_AFTER, PROBES_UNANSWERED_MAX};
pub use link::HANDSHAKE_TIMEOUT;

/// Least time between two savings of a cursor.
///
/// An agent that is killed sends again what was taken since. Half of it writes a small file twice as often; double it, and
/// twice as much comes twice.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a collector in reach that is left for a better one may take to acknowledge what is on the way.
///
/// Longer than it takes to be called stalled. Half of it leaves a busy one too early, and what is on the way comes to
/// both; double it, and the better one waits that much longer for nothing.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(5);

/// What one exporter is told at its start.
#[derive(Clone, Debug)]
pub struct ExporterOptions {
    /// The stream's name, and its cursor's: the collector's, or that of all together.
    pub name: CollectorName,
    /// The collectors, as the policy has them, the preferred one first; at least one.
    pub collectors: Vec<policy::Collector>,
    /// When to change from one to another; `None`: only the first is fed.
    pub failover: Option<Times>,
    /// The stream's place in [`CollectorSet`](flowtilla_agent_core::flow::record::CollectorSet)s.
    pub slot: CollectorSlot,
    /// Which agent this is to them.
    pub source_id: SourceId,
    /// The same for those of header version 1.
    pub short_ids: watch::Receiver<ShortIds>,
    /// How records are written; whether with their identities is each collector's own.
    pub tlv: TlvOptions,
    /// How long it may take to drain at the end.
    pub grace: Duration,
    /// Whether the spool ends with the process, so that what waits at the end is lost.
    pub ephemeral: bool,
    /// Seed of the delays between tries to connect; different on each agent.
    pub seed: u64,
}

/// Why a connection to a collector of header version 1 ends.
const OTHER_SHORT_ID: &str = "the controller has given this agent another source id of 8 bits";

/// Told to stop at this sequence, before the first there is, an exporter ends at once, and what waits is its successor's.
pub const LEAVE: u64 = 0;

/// Feeds one stream. See the module.
pub struct Exporter {
    options: ExporterOptions,
    core: Collector,
    group: Group,
    members: Vec<Member>,
    probes: JoinSet<Probed>,
    /// Until when the one in use is waited for, which is about to be left.
    leave_by: Option<KernelTime>,
    reader: Arc<Reader>,
    source: Source,
    readable: watch::Receiver<u64>,
    stop: watch::Receiver<Option<u64>>,
    /// Set when it is told to stop: the last sequence to wait for, and until when.
    stopping: Option<(u64, KernelTime)>,
    /// As saved last, and when.
    saved: (Cursor, KernelTime),
    announcements: watch::Receiver<Announcements>,
    status: watch::Sender<CollectorStatus>,
}

/// Why work that takes time ends before it is done.
enum Interrupt {
    /// The exporter is to end: drained, or out of time.
    Finished,
    /// This member is to be fed.
    Change(usize),
}

impl Exporter {
    /// Makes an exporter that goes on from the reader's cursor. Nothing happens before [`Exporter::run`].
    ///
    /// `stop` tells it to end, with the last sequence that there is; say it when the spool has that sequence on disk, or
    /// is about to. A sender that is gone means the same, with what can be read then.
    #[must_use]
    pub fn new(
        options: ExporterOptions,
        reader: Reader,
        announcements: watch::Receiver<Announcements>,
        stop: watch::Receiver<Option<u64>>,
    ) -> Self {
        let cursor = reader.cursor();
        let (members, group) = group::of(&options, &cursor);
        let used = &members[group.in_use()];
        let mut core = Collector::new(&used.core_options(&options), &cursor);
        if cursor
            .member
            .as_ref()
            .is_some_and(|name| name != used.collector.name.as_str())
        {
            // The policy has it no more.
            core.handle_changed(&used.core_options(&options));
        }
        let mut readable = reader.readable();
        core.handle_readable(*readable.borrow_and_update());
        let status = CollectorStatus {
            name: options.name.to_string(),
            endpoint: used.collector.endpoint.to_string(),
            state: CollectorState::Connecting { why: None },
            law: core.law(),
            messages: 0,
            connects: 0,
            members: group::statuses(&members),
        };
        let reader = Arc::new(reader);
        Self {
            options,
            core,
            group,
            members,
            probes: JoinSet::new(),
            leave_by: None,
            source: Source::new(Arc::clone(&reader)),
            reader,
            readable,
            stop,
            stopping: None,
            saved: (cursor, KernelTime(0)),
            announcements,
            status: watch::Sender::new(status),
        }
    }

    /// How it stands, from now on and after its end.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<CollectorStatus> {
        self.status.subscribe()
    }

    /// Feeds the collector until it is told to stop. Returns how it stood in the end.
    pub async fn run(mut self) -> CollectorStatus {
        while let Interrupt::Change(to) = self.feed().await {
            self.change(to);
        }
        self.probes.abort_all();
        let leaves = self.stopping.is_some_and(|(upto, _)| upto == LEAVE);
        if self.options.ephemeral && !leaves {
            self.core.give_up(DropPoint::ShutdownGrace);
        } else {
            self.core.handle_disconnected();
        }
        self.save();
        self.publish();
        let status = self.status.borrow().clone();
        tracing::info!(
            collector = %status.name,
            taken = status.law.taken,
            waiting = status.law.waiting,
            given_up = status.law.dropped.at(DropPoint::ShutdownGrace),
            "export ended"
        );
        status
    }

    /// Feeds the member in use over one connection after the other.
    async fn feed(&mut self) -> Interrupt {
        let mut is_successor = true;
        loop {
            if is_successor {
                let stored = self.reader.save_now(self.cursor());
                if let Err(interrupt) = self.attend(stored).await {
                    return interrupt;
                }
            }
            // Before they are looked at: what changes from here on is not waited out.
            let mut short_ids = self.options.short_ids.clone();
            short_ids.mark_unchanged();
            let end = match self.run_connection().await {
                Ok(end) => end,
                Err(interrupt) => return interrupt,
            };
            self.handle_end(&end);
            is_successor = end.restarted;
            let used = self.used();
            let delay = used.backoff.handle_failure();
            tracing::debug!(collector = %used.collector.name, delay_ms = delay.as_millis(), "waits before the next try");
            let waiting = pause(delay, short_ids);
            if let Err(interrupt) = self.attend(waiting).await {
                return interrupt;
            }
        }
    }

    /// Connects and keeps the connection until it ends.
    async fn run_connection(&mut self) -> Result<LinkEnd, Interrupt> {
        let endpoint = self.used().collector.endpoint.clone();
        let heading = match self.heading() {
            Ok(heading) => heading,
            Err(why) => return Ok(unnamed(&why)),
        };
        let stream = match self.attend(connect::connect(&endpoint)).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(not_connected(&error)),
        };
        self.used().connects += 1;
        let security = match self.used().security() {
            Ok(security) => security,
            Err(error) => return Ok(not_connected(&error)),
        };
        let link = Link::new(stream, &security, heading, clock::kernel_now());
        self.drive(link).await
    }

    async fn drive(&mut self, mut link: Link) -> Result<LinkEnd, Interrupt> {
        loop {
            let more = match self.turn(&mut link) {
                Ok(more) => more,
                Err(end) => return Ok(end),
            };
            if let Err(interrupt) = self.wait(&mut link, more).await {
                if let Interrupt::Change(_) = interrupt
                    && self.core.has_on_the_way()
                {
                    link.abandon();
                }
                return Err(interrupt);
            }
        }
    }

    /// One turn of work that waits for nothing; `true`: there may be more to write at once.
    fn turn(&mut self, link: &mut Link) -> Result<bool, LinkEnd> {
        let now = clock::kernel_now();
        link.handle_timeout(now)?;
        link.read(&mut self.core, now)?;
        match self.heading() {
            Ok(heading) if heading == link.heading() => {}
            Ok(_) => return Err(unnamed(&OTHER_SHORT_ID)),
            Err(why) => return Err(unnamed(&why)),
        }
        let (announcements, source_id) = (&self.announcements, link.heading().source_id);
        let more = link.write(&mut self.core, &mut self.source, now, |core, topic| {
            announce(&announcements.borrow(), source_id, core, topic)
        })?;
        self.publish();
        Ok(more)
    }

    /// Waits for the next reason to take a turn.
    async fn wait(&mut self, link: &mut Link, more: bool) -> Result<(), Interrupt> {
        self.check()?;
        let now = clock::kernel_now();
        let core = self.core.poll_timeout().filter(|_| link.is_writable());
        let at = core
            .into_iter()
            .chain(self.own_timeout())
            .fold(link.poll_timeout(), KernelTime::min);
        let due = more || at <= now;
        tokio::select! { biased;
            upto = told(&mut self.stop), if self.stopping.is_none() => self.handle_stop(upto),
            () = sleep(at.since(now)), if !due => {}
            _ = link.ready() => {}
            read = self.source.ready() => {
                self.source.handle(read, self.core.reading_after(), &mut self.core, clock::kernel_now());
            }
            Ok(()) = self.readable.changed() => self.handle_readable(),
            Some(probed) = self.probes.join_next_with_id() => self.handle_probed(probed),
            () = tokio::task::yield_now(), if due => {}
        }
        Ok(())
    }

    /// Waits for `work` while the world goes on.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupt> {
        let mut work = pin!(work);
        loop {
            self.publish();
            self.check()?;
            let now = clock::kernel_now();
            let at = self.own_timeout();
            tokio::select! { biased;
                upto = told(&mut self.stop), if self.stopping.is_none() => self.handle_stop(upto),
                () = sleep(at.unwrap_or_default().since(now)), if at.is_some() => {}
                done = &mut work => return Ok(done),
                Ok(()) = self.readable.changed() => self.handle_readable(),
                Some(probed) = self.probes.join_next_with_id() => self.handle_probed(probed),
            }
        }
    }

    fn handle_readable(&mut self) {
        let newest = *self.readable.borrow_and_update();
        self.core.handle_readable(newest);
    }

    fn handle_stop(&mut self, upto: Option<u64>) {
        self.handle_readable();
        let upto = upto.unwrap_or(*self.readable.borrow());
        self.stopping = Some((upto, clock::kernel_now().after(self.options.grace)));
    }

    /// When the driver itself has something to do: the end of the grace period, a cursor to save, a probe, a change.
    fn own_timeout(&self) -> Option<KernelTime> {
        let give_up_at = self.stopping.map(|(_, at)| at);
        let save_at = self.has_news().then(|| self.saved.1.after(SAVE_INTERVAL));
        give_up_at
            .into_iter()
            .chain(save_at)
            .chain(self.group_timeout())
            .min()
    }

    /// Whether to go on as it is. Begins the probes that are due.
    fn check(&mut self) -> Result<(), Interrupt> {
        self.check_finished()?;
        self.check_group()
    }

    fn check_finished(&self) -> Result<(), Interrupt> {
        let Some((upto, give_up_at)) = self.stopping else {
            return Ok(());
        };
        let now = clock::kernel_now();
        let unreachable = !self.options.ephemeral && self.core.progress(now) == Progress::Disconnected;
        if self.core.cursor().taken >= upto || unreachable || give_up_at <= now {
            return Err(Interrupt::Finished);
        }
        Ok(())
    }

    /// Whether a mark moved since the cursor was saved. What is made moves all the time, and is known without it.
    fn has_news(&self) -> bool {
        let (saved, cursor) = (&self.saved.0, self.core.cursor());
        (saved.read, saved.taken) != (cursor.read, cursor.taken)
    }

    /// How messages to the one in use begin.
    fn heading(&self) -> Result<Heading, NoShortId> {
        self.members[self.group.in_use()].heading(&self.options)
    }

    fn used(&mut self) -> &mut Member {
        &mut self.members[self.group.in_use()]
    }

    /// Keeps the cursor, if there is news.
    fn save(&mut self) {
        if self.has_news() {
            self.keep(self.cursor());
        }
    }

    fn keep(&mut self, cursor: Cursor) {
        self.reader.save(cursor.clone());
        self.saved = (cursor, clock::kernel_now());
    }

    fn handle_end(&mut self, end: &LinkEnd) {
        if self.core.progress(KernelTime(0)) != Progress::Disconnected {
            self.used().backoff.handle_success();
        }
        self.source.forget();
        if end.restarted {
            self.core.handle_restarted();
            self.save();
        } else {
            self.core.handle_disconnected();
        }
        let used = self.used();
        if used.why.as_ref() != Some(&end.why) {
            let policy::Collector { name, endpoint, .. } = &used.collector;
            tracing::warn!(collector = %name, %endpoint, why = %end.why, "collector not reached");
            used.why = Some(end.why.clone());
        }
        self.publish();
    }

    /// Tells how it stands, when that changed, and saves the cursor when it is time.
    fn publish(&mut self) {
        let now = clock::kernel_now();
        if self.saved.1.after(SAVE_INTERVAL) <= now {
            self.save();
        }
        let progress = self.core.progress(now);
        self.group
            .handle_reach(matches!(progress, Progress::Streaming { .. }), now);
        let state = match progress {
            Progress::Disconnected => CollectorState::Connecting {
                why: self.used().why.clone(),
            },
            Progress::AwaitingSubscription => CollectorState::AwaitingSubscription,
            Progress::Streaming { acknowledged } => CollectorState::Streaming { acknowledged },
            Progress::Stalled => CollectorState::Stalled,
        };
        if matches!(state, CollectorState::Streaming { .. }) {
            // The next failure is news, whatever it is.
            self.used().why = None;
        }
        let (law, messages) = (self.core.law(), self.core.messages());
        self.count_messages(messages);
        let connects = self.members.iter().map(|member| member.connects).sum();
        let (name, members) = (&self.options.name, &self.members);
        self.status.send_if_modified(|status| {
            let changed = status.state != state;
            if changed {
                tracing::info!(collector = %name, was = %status.state, is = %state, "collector's state");
            }
            let told = group::tell(members, &mut status.members);
            let modified = changed
                || told
                || status.law != law
                || status.messages != messages
                || status.connects != connects;
            if modified {
                status.state = state;
                (status.law, status.messages, status.connects) = (law, messages, connects);
            }
            modified
        });
    }
}

/// Waits before the next try, or until collectors know this agent by another number than those that were seen.
async fn pause(delay: Duration, mut short_ids: watch::Receiver<ShortIds>) {
    tokio::select! { biased;
        Ok(()) = short_ids.changed() => {}
        () = sleep(delay) => {}
    }
}

fn unnamed(why: &impl ToString) -> LinkEnd {
    LinkEnd {
        why: why.to_string(),
        restarted: false,
    }
}

fn not_connected(error: &ConnectError) -> LinkEnd {
    LinkEnd {
        why: error.to_string(),
        // Nothing listens: whatever process had taken records is gone.
        restarted: matches!(error, ConnectError::Refused(_)),
    }
}

/// Waits for the stop, and gives the last sequence if it was said.
async fn told(stop: &mut watch::Receiver<Option<u64>>) -> Option<u64> {
    stop.wait_for(Option::is_some).await.ok().and_then(|upto| *upto)
}
