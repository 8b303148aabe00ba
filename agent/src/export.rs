//! Feeds one collector: connects, keeps the connection, moves records from the spool to it, tells how it stands.
//!
//! One task a collector, [`Exporter::run`]. Channels: records are read from the spool through a [`Reader`] when they can
//! be sent (the disk is the buffer), how far it can be read, announcements and the stop come through a `watch` each,
//! status goes out through a `watch`, the cursor through the reader. What is read, sent, resent and counted is decided by
//! [`Collector`] of the core; this is its driver. Ends when it is told to: as soon as all is taken, at once when it has no
//! connection, at the latest after the grace period. What then waits is on disk and in the cursor; only a spool that ends
//! with the process gives the collector the whole grace period to come back, and counts the rest as
//! [`DropPoint::ShutdownGrace`].
//!
//! Order of a turn: time before input, the socket before records: a busy producer must not hold back acknowledgements.
//! The cursor is saved at once when the collector restarted, before anything is sent to its successor: an agent that died
//! meanwhile must not believe the old one.
//! Source: design section 5.

mod connect;
mod health;
mod link;
mod source;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::backoff::Backoff;
use flowtilla_agent_core::collector::window::OnRestart;
use flowtilla_agent_core::collector::{Collector, CollectorOptions, Progress};
use flowtilla_agent_core::encode::header::{HeaderLayout, Topic};
use flowtilla_agent_core::encode::tlv::{RECORDS_MAX, TlvOptions};
use flowtilla_agent_core::encode::{event, listening};
use flowtilla_agent_core::flow::record::CollectorSlot;
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_agent_core::spool::Cursor;
use flowtilla_agent_core::time::KernelTime;
use flowtilla_proto::collector::{self as policy, HeaderVersion, OnCollectorRestart};
use flowtilla_proto::ids::SourceId;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::clock;
use crate::spool::Reader;
use crate::status::{CollectorState, CollectorStatus};

use connect::ConnectError;
use link::{Heading, Link, LinkEnd};
use source::Source;

pub use connect::{ADDRESSES_MAX, CONNECT_TIMEOUT, SEND_BUFFER_OCTETS};
pub use health::{DEAD_AFTER, PROBES_UNANSWERED_MAX};
pub use link::HANDSHAKE_TIMEOUT;

/// Least time between two savings of a cursor.
///
/// An agent that is killed sends again what was taken since. Half of it writes a small file twice as often; double it, and
/// twice as much comes twice.
pub const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// What one exporter is told at its start.
#[derive(Clone, Debug)]
pub struct ExporterOptions {
    /// The collector, as the policy has it.
    pub collector: policy::Collector,
    /// Its position in the policy.
    pub slot: CollectorSlot,
    /// Which agent this is to it.
    pub source_id: SourceId,
    /// How records are written for it.
    pub tlv: TlvOptions,
    /// How long it may take to drain at the end.
    pub grace: Duration,
    /// Whether the spool ends with the process, so that what waits at the end is lost.
    pub ephemeral: bool,
    /// Seed of the delays between tries to connect; different on each agent.
    pub seed: u64,
}

/// What is announced to a collector beside records. Kept fresh by whoever knows; read when an announcement is due.
#[derive(Clone, Debug)]
pub struct Announcements {
    /// The probe. Its time, source id, exports and drops are filled in by the exporter.
    pub event: event::EventFields,
    /// What the host listens on; `None`: not known, nothing is announced.
    pub listening: Option<listening::ListeningPorts>,
}

/// Feeds one collector. See the module.
pub struct Exporter {
    options: ExporterOptions,
    core: Collector,
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
    backoff: Backoff,
    connects: u64,
    /// Why there is no connection, as last told.
    why: Option<String>,
    client_secret: Option<[u8; 32]>,
}

/// The exporter is to end: drained, or out of time.
struct Finished;

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
        let mut core = Collector::new(
            &CollectorOptions {
                slot: options.slot,
                tlv: options.tlv,
                window_octets: options.collector.window_octets,
                message_records_max: RECORDS_MAX,
                on_restart: match options.collector.on_restart {
                    OnCollectorRestart::Replay => OnRestart::Replay,
                    OnCollectorRestart::Skip => OnRestart::Skip,
                },
                records_per_second: options.collector.records_per_second,
            },
            &cursor,
        );
        let mut readable = reader.readable();
        core.handle_readable(*readable.borrow_and_update());
        let status = CollectorStatus {
            name: options.collector.name.to_string(),
            endpoint: options.collector.endpoint.to_string(),
            state: CollectorState::Connecting { why: None },
            law: core.law(),
            messages: 0,
            connects: 0,
        };
        let reader = Arc::new(reader);
        Self {
            backoff: Backoff::new(options.seed),
            options,
            core,
            source: Source::new(Arc::clone(&reader)),
            reader,
            readable,
            stop,
            stopping: None,
            saved: (cursor, KernelTime(0)),
            announcements,
            status: watch::Sender::new(status),
            connects: 0,
            why: None,
            client_secret: None,
        }
    }

    /// How it stands, from now on and after its end.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<CollectorStatus> {
        self.status.subscribe()
    }

    /// Feeds the collector until it is told to stop. Returns how it stood in the end.
    pub async fn run(mut self) -> CollectorStatus {
        while let Ok(end) = self.run_connection().await {
            self.handle_end(&end);
            let delay = self.backoff.handle_failure();
            tracing::debug!(collector = %self.options.collector.name, delay_ms = delay.as_millis(), "waits before the next try");
            if self.attend(sleep(delay)).await.is_err() {
                break;
            }
        }
        if self.options.ephemeral {
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

    /// Connects and keeps the connection until it ends.
    async fn run_connection(&mut self) -> Result<LinkEnd, Finished> {
        let endpoint = self.options.collector.endpoint.clone();
        let stream = match self.attend(connect::connect(&endpoint)).await? {
            Ok(stream) => stream,
            Err(error) => return Ok(not_connected(&error)),
        };
        self.connects += 1;
        let security = match self.security() {
            Ok(security) => security,
            Err(error) => return Ok(not_connected(&error)),
        };
        let heading = Heading {
            layout: match self.options.collector.header {
                HeaderVersion::V1 => HeaderLayout::V1,
                HeaderVersion::V2 => HeaderLayout::V2,
                HeaderVersion::V3 => HeaderLayout::V3,
            },
            source_id: self.options.source_id.number(),
        };
        let link = Link::new(stream, &security, heading, clock::kernel_now());
        self.drive(link).await
    }

    async fn drive(&mut self, mut link: Link) -> Result<LinkEnd, Finished> {
        loop {
            match self.turn(&mut link) {
                Ok(more) => self.wait(&mut link, more).await?,
                Err(end) => return Ok(end),
            }
        }
    }

    /// One turn of work that waits for nothing; `true`: there may be more to write at once.
    fn turn(&mut self, link: &mut Link) -> Result<bool, LinkEnd> {
        let now = clock::kernel_now();
        link.handle_timeout(now)?;
        link.read(&mut self.core, now)?;
        let (announcements, source_id) = (&self.announcements, self.options.source_id);
        let more = link.write(&mut self.core, &mut self.source, now, |core, topic| {
            announce(&announcements.borrow(), source_id, core, topic)
        })?;
        self.publish();
        Ok(more)
    }

    /// Waits for the next reason to take a turn.
    async fn wait(&mut self, link: &mut Link, more: bool) -> Result<(), Finished> {
        self.check_finished()?;
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
            () = tokio::task::yield_now(), if due => {}
        }
        Ok(())
    }

    /// Waits for `work` while the world goes on.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Finished> {
        let mut work = pin!(work);
        loop {
            self.check_finished()?;
            self.publish();
            let now = clock::kernel_now();
            let at = self.own_timeout();
            tokio::select! { biased;
                upto = told(&mut self.stop), if self.stopping.is_none() => self.handle_stop(upto),
                () = sleep(at.unwrap_or_default().since(now)), if at.is_some() => {}
                done = &mut work => return Ok(done),
                Ok(()) = self.readable.changed() => self.handle_readable(),
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

    /// When the driver itself has something to do: the end of the grace period, a cursor to save.
    fn own_timeout(&self) -> Option<KernelTime> {
        let give_up_at = self.stopping.map(|(_, at)| at);
        let save_at = self.has_news().then(|| self.saved.1.after(SAVE_INTERVAL));
        give_up_at.into_iter().chain(save_at).min()
    }

    fn check_finished(&self) -> Result<(), Finished> {
        let Some((upto, give_up_at)) = self.stopping else {
            return Ok(());
        };
        let now = clock::kernel_now();
        let unreachable = !self.options.ephemeral && self.core.progress(now) == Progress::Disconnected;
        if self.core.cursor().taken >= upto || unreachable || give_up_at <= now {
            return Err(Finished);
        }
        Ok(())
    }

    /// Whether a mark moved since the cursor was saved. What is made moves all the time, and is known without it.
    fn has_news(&self) -> bool {
        let (saved, cursor) = (&self.saved.0, self.core.cursor());
        (saved.read, saved.taken) != (cursor.read, cursor.taken)
    }

    /// Keeps the cursor, if there is news.
    fn save(&mut self) {
        if self.has_news() {
            let cursor = self.core.cursor();
            self.reader.save(cursor.clone());
            self.saved = (cursor, clock::kernel_now());
        }
    }

    fn security(&mut self) -> Result<flowtilla_agent_core::zmtp::Security, ConnectError> {
        let secret = match self.client_secret {
            Some(secret) => secret,
            None => *self.client_secret.insert(connect::random()?),
        };
        connect::security(self.options.collector.curve_server_key.as_ref(), &secret)
    }

    fn handle_end(&mut self, end: &LinkEnd) {
        if self.core.progress(KernelTime(0)) != Progress::Disconnected {
            self.backoff.handle_success();
        }
        self.source.forget();
        if end.restarted {
            self.core.handle_restarted();
            self.save();
        } else {
            self.core.handle_disconnected();
        }
        if self.why.as_ref() != Some(&end.why) {
            let name = &self.options.collector.name;
            let endpoint = &self.options.collector.endpoint;
            tracing::warn!(collector = %name, %endpoint, why = %end.why, "collector not reached");
            self.why = Some(end.why.clone());
        }
        self.publish();
    }

    /// Tells how it stands, when that changed, and saves the cursor when it is time.
    fn publish(&mut self) {
        if self.saved.1.after(SAVE_INTERVAL) <= clock::kernel_now() {
            self.save();
        }
        let state = match self.core.progress(clock::kernel_now()) {
            Progress::Disconnected => CollectorState::Connecting {
                why: self.why.clone(),
            },
            Progress::AwaitingSubscription => CollectorState::AwaitingSubscription,
            Progress::Streaming { acknowledged } => CollectorState::Streaming { acknowledged },
            Progress::Stalled => CollectorState::Stalled,
        };
        if matches!(state, CollectorState::Streaming { .. }) {
            // The next failure is news, whatever it is.
            self.why = None;
        }
        let (law, messages, connects) = (self.core.law(), self.core.messages(), self.connects);
        let collector = &self.options.collector.name;
        self.status.send_if_modified(|status| {
            let changed = status.state != state;
            if changed {
                tracing::info!(%collector, was = ?status.state, is = ?state, "collector's state");
            }
            let modified =
                changed || status.law != law || status.messages != messages || status.connects != connects;
            if modified {
                status.state = state;
                (status.law, status.messages, status.connects) = (law, messages, connects);
            }
            modified
        });
    }
}

fn not_connected(error: &ConnectError) -> LinkEnd {
    LinkEnd {
        why: error.to_string(),
        // Nothing listens: whatever process had taken records is gone.
        restarted: matches!(error, ConnectError::Refused(_)),
    }
}

fn announce(known: &Announcements, source_id: SourceId, core: &Collector, topic: Topic) -> Option<Bytes> {
    match topic {
        Topic::Event => {
            let law = core.law();
            let lost: u64 = law
                .dropped
                .lossy()
                .filter(|&(point, _)| point != DropPoint::Withheld)
                .map(|(_, records)| records)
                .sum();
            let mut fields = known.event.clone();
            fields.time = clock::wall_now();
            fields.source_id = source_id.number();
            fields.flow_exports = law.taken;
            fields.export_drops = lost;
            Some(event::payload(&fields))
        }
        Topic::ListeningPorts => {
            let made = listening::payload(known.listening.as_ref()?);
            if made.left_out > 0 {
                tracing::debug!(left_out = made.left_out, "listening ports beyond one message");
            }
            Some(made.payload)
        }
        Topic::Flow | Topic::Template | Topic::Option | Topic::Counter | Topic::Hello => None,
    }
}

/// Waits for the stop, and gives the last sequence if it was said.
async fn told(stop: &mut watch::Receiver<Option<u64>>) -> Option<u64> {
    stop.wait_for(Option::is_some).await.ok().and_then(|upto| *upto)
}
