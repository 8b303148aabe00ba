//! Sends records once more to one collector, through the product's own spool and exporter.
//!
//! In: records, [`Replay::push`]. Out: what a collector gets, how it stands. The records get a spool of their own in a
//! temporary directory, which goes with it; what is not taken stays below [`WAITING_OCTETS_MAX`], so neither memory nor
//! disk grow with what is sent. The source id is the host's for replays ([`Host::replay_source_id`]): a collector counts
//! losses by it, and would take the ids of an agent's for a restart.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::encode::tlv::{HostAddress, Loopback, TlvOptions};
use flowtilla_agent_core::flow::record::{CollectorSlot, FlowRecord};
use flowtilla_agent_core::session::ShortIds;
use flowtilla_agent_core::spool::value::{Builder, Pushed, VALUE_OCTETS_MAX};
use flowtilla_proto::collector::Collector;
use flowtilla_proto::policy::{ACTIVE_TIMEOUT_MS_DEFAULT, IDLE_TIMEOUT_MS_DEFAULT};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock;
use crate::export::{Announcements, Exporter, ExporterOptions};
use crate::host::Host;
use crate::run::event_of;
use crate::spool::{Spool, SpoolError, SpoolOptions};
use crate::status::CollectorStatus;

/// Octets of values that wait or are on the way. Half of the spool's memory: should the disk refuse, nothing is lost.
pub const WAITING_OCTETS_MAX: usize = 4 << 20;
/// The records are not kept for long: they are sent as soon as they are on the disk.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);
/// What a replay that is ended early waits for acknowledgements.
const GRACE: Duration = Duration::from_secs(1);
/// How long the temporary spool may take to close.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// No policy has as many collectors: nothing is held from this one.
const SLOT: CollectorSlot = CollectorSlot(63);

/// Why nothing is sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The host does not tell who it is.
    #[error("the host's boot id (/proc/sys/kernel/random/boot_id)")]
    Host(#[source] io::Error),
    /// No place for what is on its way.
    #[error("no temporary spool in {}", std::env::temp_dir().display())]
    Temporary(#[source] io::Error),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The exporter ended by itself.
    #[error("the exporter ended; its last log line says why")]
    ExporterGone,
}

/// A replay at work.
pub struct Replay {
    spool: Spool,
    builder: Builder,
    next: u64,
    /// Last sequence and octets of each value that is not known to be taken.
    waiting: VecDeque<(u64, usize)>,
    waiting_octets: usize,
    status: watch::Receiver<CollectorStatus>,
    stop: watch::Sender<Option<u64>>,
    task: JoinHandle<CollectorStatus>,
    _announcements: watch::Sender<Announcements>,
    _directory: tempfile::TempDir,
}

impl Replay {
    /// Connects to the collector, again and again, in a task of its own.
    ///
    /// # Errors
    /// [`ReplayError`]. That the collector is not there is none: see [`Replay::status`].
    pub fn start(collector: Collector, loopback: Loopback) -> Result<Self, ReplayError> {
        let host = Host::read(&[]).map_err(ReplayError::Host)?;
        let directory = tempfile::Builder::new()
            .prefix("flowtilla-")
            .tempdir()
            .map_err(ReplayError::Temporary)?;
        let (spool, opened) = Spool::open(SpoolOptions {
            free_octets_min: 0,
            sync_interval: SYNC_INTERVAL,
            ..SpoolOptions::in_directory(directory.path().join("spool"))
        })?;
        let source_id = host.replay_source_id();
        let mut event = event_of(&host);
        event.source_id = source_id.number();
        event.probe_uuid.push_str("-replay");
        event.lifetime_s = u32::try_from(ACTIVE_TIMEOUT_MS_DEFAULT / 1_000).unwrap_or(0);
        event.idle_s = u32::try_from(IDLE_TIMEOUT_MS_DEFAULT / 1_000).unwrap_or(0);
        let (announcements, announced) = watch::channel(Announcements {
            event,
            listening: None,
        });
        let options = ExporterOptions {
            slot: SLOT,
            source_id,
            // Nobody allots one for a replay.
            short_ids: watch::Sender::new(ShortIds::Own).subscribe(),
            tlv: TlvOptions {
                loopback,
                host_address: HostAddress {
                    v4: host.v4(),
                    v6: host.v6(),
                },
                exporter_address: host.v4(),
                record_ids: collector.record_ids,
            },
            grace: GRACE,
            ephemeral: true,
            seed: u64::from(source_id.number()) ^ clock::kernel_now().0,
            name: collector.name.clone(),
            collectors: vec![collector],
            failover: None,
        };
        let (stop, stopped) = watch::channel(None);
        let reader = spool.reader(&options.name);
        let exporter = Exporter::new(options, reader, announced, stopped);
        Ok(Self {
            status: exporter.status(),
            task: tokio::spawn(exporter.run()),
            spool,
            builder: Builder::default(),
            next: opened.next,
            waiting: VecDeque::new(),
            waiting_octets: 0,
            stop,
            _announcements: announcements,
            _directory: directory,
        })
    }

    /// How the collector stands. Its law counts the records of this replay.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<CollectorStatus> {
        self.status.clone()
    }

    /// Adds a record. Waits while too much waits for the collector.
    ///
    /// # Errors
    /// [`ReplayError::ExporterGone`].
    ///
    /// # Cancel safety
    /// A record whose push was dropped may be sent or not.
    pub async fn push(&mut self, record: &FlowRecord) -> Result<(), ReplayError> {
        let mut pushed = self.builder.push(record);
        if pushed == Pushed::Full {
            self.seal().await?;
            pushed = self.builder.push(record);
        }
        // It came out of a value, so one can hold it.
        debug_assert_eq!(pushed, Pushed::Added);
        Ok(())
    }

    /// Waits until the collector has everything that was pushed, for as long as it takes.
    ///
    /// # Errors
    /// [`ReplayError::ExporterGone`].
    ///
    /// # Cancel safety
    /// It may be called again.
    pub async fn settle(&mut self) -> Result<(), ReplayError> {
        self.seal().await?;
        self.wait(0).await
    }

    /// Ends it, and tells how it stood. What is not taken within a second counts as `ShutdownGrace`.
    ///
    /// # Errors
    /// [`ReplayError::ExporterGone`].
    pub async fn finish(self) -> Result<CollectorStatus, ReplayError> {
        self.stop.send_replace(Some(self.next - 1));
        let ended = self.task.await.map_err(|_| ReplayError::ExporterGone);
        let spool = self.spool;
        let closed = tokio::task::spawn_blocking(move || spool.close(CLOSE_WAIT));
        let _ = closed.await; // Its directory goes anyway.
        ended
    }

    async fn seal(&mut self) -> Result<(), ReplayError> {
        while !self.builder.is_empty() {
            self.wait(WAITING_OCTETS_MAX - VALUE_OCTETS_MAX).await?;
            let Some(value) = self.builder.seal(self.next) else {
                break;
            };
            self.next = value.last() + 1;
            self.waiting.push_back((value.last(), value.octets.len()));
            self.waiting_octets += value.octets.len();
            self.spool.append(value);
            if self.spool.checkpoint_wanted() {
                // There is nothing to go on from; but segments are kept for it.
                self.spool.checkpoint(self.next - 1, Bytes::new());
            }
        }
        Ok(())
    }

    /// Waits until no more than so many octets wait.
    async fn wait(&mut self, octets_max: usize) -> Result<(), ReplayError> {
        loop {
            let taken = {
                let law = self.status.borrow_and_update().law;
                law.made - law.waiting
            };
            while let Some((_, octets)) = self.waiting.pop_front_if(|(last, _)| *last <= taken) {
                self.waiting_octets -= octets;
            }
            if self.waiting_octets <= octets_max {
                return Ok(());
            }
            self.status
                .changed()
                .await
                .map_err(|_| ReplayError::ExporterGone)?;
        }
    }
}
