//! Feeds one collector: connects, keeps the connection, moves records in and octets out, tells how it stands.
//!
//! One task a collector, [`Exporter::run`]. Channels: records come through [`Intake`] (bounded, never waits: what finds
//! it full is counted), announcements are read from a `watch`, status goes out through a `watch`. What is sent, resent
//! and counted is decided by [`Collector`] of the core; this is its driver. Ends when every [`Intake`] is dropped and
//! all is taken, or the grace period is over: what then waits is counted as [`DropPoint::ShutdownGrace`].
//!
//! Order of a turn: time before input, the socket before records: a busy producer must not hold back acknowledgements.
//! Source: design section 5.

mod connect;
mod health;
mod link;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::backoff::Backoff;
use flowtilla_agent_core::collector::window::{OnRestart, WindowLimits};
use flowtilla_agent_core::collector::{Collector, CollectorOptions, Progress};
use flowtilla_agent_core::encode::header::{HeaderLayout, Topic};
use flowtilla_agent_core::encode::tlv::TlvOptions;
use flowtilla_agent_core::encode::{event, listening};
use flowtilla_agent_core::flow::record::{CollectorSlot, FlowRecord};
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint};
use flowtilla_agent_core::time::KernelTime;
use flowtilla_proto::collector::{self as policy, HeaderVersion, OnCollectorRestart};
use flowtilla_proto::ids::SourceId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock;
use crate::status::{CollectorState, CollectorStatus};

use connect::ConnectError;
use link::{Heading, Link, LinkEnd};

pub use connect::{ADDRESSES_MAX, CONNECT_TIMEOUT, SEND_BUFFER_OCTETS};
pub use health::{DEAD_AFTER, PROBES_UNANSWERED_MAX};
pub use link::HANDSHAKE_TIMEOUT;

/// Records on their way into an exporter's own queue.
///
/// The exporter empties it at each turn, so it holds what is made within a turn. Half of it overflows when the table
/// ends all flows at once; the queue behind it is what waits for a collector.
pub const INTAKE_RECORDS_MAX: usize = 8_192;

/// Records moved from the intake in one go.
const ABSORB_RECORDS: usize = 512;

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
    /// Most records that may wait for it.
    pub queue_records_max: u64,
    /// Most octets held for it, copies for its restart included: at most half of them.
    pub queue_octets_max: u64,
    /// How long it may take to drain at the end.
    pub grace: Duration,
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

/// The way into an exporter. When the last one is dropped, the exporter drains and ends.
#[derive(Clone, Debug)]
pub struct Intake {
    records: mpsc::Sender<Arc<FlowRecord>>,
    overflow: Arc<AtomicU64>,
}

impl Intake {
    /// Hands a record over, or counts it as [`DropPoint::QueueOverflow`]. Never waits.
    pub fn offer(&self, record: Arc<FlowRecord>) {
        if self.records.try_send(record).is_err() {
            self.overflow.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Feeds one collector. See the module.
pub struct Exporter {
    options: ExporterOptions,
    core: Collector,
    records: mpsc::Receiver<Arc<FlowRecord>>,
    overflow: Arc<AtomicU64>,
    absorbed: Vec<Arc<FlowRecord>>,
    /// Set when the input has ended: when to give up what waits.
    give_up_at: Option<Instant>,
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

/// Makes an exporter and the way into it. Nothing happens before [`Exporter::run`].
#[must_use]
pub fn exporter(
    options: ExporterOptions,
    announcements: watch::Receiver<Announcements>,
) -> (Intake, Exporter) {
    let (sender, records) = mpsc::channel(INTAKE_RECORDS_MAX);
    let overflow = Arc::new(AtomicU64::new(0));
    let core = Collector::new(&CollectorOptions {
        slot: options.slot,
        tlv: options.tlv,
        limits: WindowLimits {
            window_octets: options.collector.window_octets,
            queue_records_max: options.queue_records_max,
            queue_octets_max: options.queue_octets_max,
            replay_octets_max: options.queue_octets_max / 2,
        },
        on_restart: match options.collector.on_restart {
            OnCollectorRestart::Replay => OnRestart::Replay,
            OnCollectorRestart::Skip => OnRestart::Skip,
        },
        records_per_second: options.collector.records_per_second,
    });
    let status = CollectorStatus {
        name: options.collector.name.to_string(),
        endpoint: options.collector.endpoint.to_string(),
        state: CollectorState::Connecting { why: None },
        law: CollectorLaw::default(),
        messages: 0,
        connects: 0,
    };
    let exporter = Exporter {
        backoff: Backoff::new(options.seed),
        options,
        core,
        records,
        overflow: Arc::clone(&overflow),
        absorbed: Vec::with_capacity(ABSORB_RECORDS),
        give_up_at: None,
        announcements,
        status: watch::Sender::new(status),
        connects: 0,
        why: None,
        client_secret: None,
    };
    (
        Intake {
            records: sender,
            overflow,
        },
        exporter,
    )
}

impl Exporter {
    /// How it stands, from now on and after its end.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<CollectorStatus> {
        self.status.subscribe()
    }

    /// Feeds the collector until the input ends and all is taken, or the grace period after it is over. Returns how it
    /// stood in the end.
    pub async fn run(mut self) -> CollectorStatus {
        while let Ok(end) = self.run_connection().await {
            self.handle_end(&end);
            let delay = self.backoff.handle_failure();
            tracing::debug!(collector = %self.options.collector.name, delay_ms = delay.as_millis(), "waits before the next try");
            if self.attend(sleep(delay)).await.is_err() {
                break;
            }
        }
        self.core.give_up(DropPoint::ShutdownGrace);
        self.count_overflow();
        self.publish();
        let status = self.status.borrow().clone();
        tracing::info!(
            collector = %status.name,
            taken = status.law.taken,
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
        let more = link.write(&mut self.core, now, |core, topic| {
            announce(&announcements.borrow(), source_id, core, topic)
        })?;
        self.publish();
        Ok(more)
    }

    /// Waits for the next reason to take a turn.
    async fn wait(&mut self, link: &mut Link, more: bool) -> Result<(), Finished> {
        self.check_finished()?;
        let now = clock::kernel_now();
        let at = self
            .core
            .poll_timeout()
            .filter(|_| link.is_writable())
            .map_or(link.poll_timeout(), |at| at.min(link.poll_timeout()));
        let give_up_at = self.give_up_at;
        tokio::select! { biased;
            () = until(give_up_at) => return Err(Finished),
            () = sleep(at.since(now)) => {}
            _ = link.ready() => {}
            count = self.records.recv_many(&mut self.absorbed, ABSORB_RECORDS), if give_up_at.is_none() => {
                self.absorb(count);
            }
            () = tokio::task::yield_now(), if more => {}
        }
        Ok(())
    }

    /// Waits for `work` while records keep coming in.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Finished> {
        let mut work = pin!(work);
        loop {
            self.check_finished()?;
            self.publish();
            let give_up_at = self.give_up_at;
            tokio::select! { biased;
                () = until(give_up_at) => return Err(Finished),
                done = &mut work => return Ok(done),
                count = self.records.recv_many(&mut self.absorbed, ABSORB_RECORDS), if give_up_at.is_none() => {
                    self.absorb(count);
                }
            }
        }
    }

    /// Takes what the intake gave; 0 records mean that it is closed.
    fn absorb(&mut self, count: usize) {
        let now = clock::kernel_now();
        for record in self.absorbed.drain(..) {
            self.core.offer(&record, now);
        }
        self.count_overflow();
        if count == 0 {
            self.core.seal();
            self.give_up_at = Some(Instant::from_std(clock::instant()) + self.options.grace);
        }
    }

    fn count_overflow(&mut self) {
        let overflow = self.overflow.swap(0, Ordering::Relaxed);
        if overflow > 0 {
            self.core.count_dropped(DropPoint::QueueOverflow, overflow);
        }
    }

    fn check_finished(&self) -> Result<(), Finished> {
        if self.give_up_at.is_some() && self.core.is_idle() {
            return Err(Finished);
        }
        Ok(())
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
        if end.restarted {
            self.core.handle_restarted();
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

    /// Tells how it stands, when that changed.
    fn publish(&mut self) {
        self.count_overflow();
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

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
