//! All wiring: builds the parts, executes the plan's steps, and ends everything in order.
//!
//! An agent may have nothing to do at first, and be told what at any time ([`Agent::apply`]). A step that failed leaves what
//! the steps before it have made, and the next plan begins there.
//!
//! Threads and tasks: the meter (a thread), an exporter a collector and one a socket of container runtimes (a task each),
//! one task that keeps the announcements and the collectors' part of the status fresh. Stop: the kernel side is detached,
//! all flows end, the meter seals its last value, exporters drain up to it for the grace period and end, the spool closes,
//! the view's channel closes.

pub(crate) mod broken;
mod refresh;
mod state;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle as Thread;
use std::time::Duration;

use flowtilla_agent_core::cost::CostWatch;
use flowtilla_agent_core::encode::event::EventFields;
use flowtilla_agent_core::encode::tlv::{HostAddress, Loopback as TlvLoopback, TlvOptions};
use flowtilla_agent_core::enrich::{CommandLineMode, Naming, NamingOptions};
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::flow::{FlowTable, TableOptions};
use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::observe::NameObservation;
use flowtilla_agent_core::policy::{Exporting, InForce, Metering, Step, Wanted, plan};
use flowtilla_agent_core::session::ShortIds;
use flowtilla_grpc::telemetry;
use flowtilla_proto::ids::{CollectorName, SourceId};
use flowtilla_proto::mistake::Mistakes;
use flowtilla_proto::policy::{CommandLine, Limits, Loopback, Scope};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::capture::{CaptureError, CgroupRoot, ScopeSet};
use crate::clock;
use crate::containers::Containers;
use crate::enrich::{Beside, LookupError, Lookups};
use crate::export::{self, Announcements, ExporterOptions};
use crate::host::Host;
use crate::meter::outside::Outside;
use crate::meter::peers::Peers;
use crate::meter::{Command, Commands, Meter, Turns};
use crate::peers::{FLEET_OUT_MAX, FleetIn, PeerLink};
use crate::spool::{Spool, SpoolError, SpoolOptions, SpoolStatus};
use crate::status::{AgentStatus, AttachReport, CollectorStatus};
use crate::top::SharedTop;

use broken::Watched;
use refresh::Refresh;
use state::{bounds, ledger, report_opened, restore, temporary};

/// Where the cgroup2 hierarchy is looked for when none is mounted; its absence is then the error.
const CGROUP_ROOT_USUAL: &str = "/sys/fs/cgroup";

/// Commands that wait for the meter.
const COMMANDS_MAX: usize = 16;
/// How long exporters may drain at the end.
const GRACE: Duration = Duration::from_secs(5);
/// How long the spool may take to sync at the end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What an agent is started with.
pub struct Options {
    /// What it is to do.
    pub wanted: Wanted,
    /// Parts of the host that are its own, whatever is wanted; empty: all of it. Who it is follows from them.
    pub scopes: Vec<Scope>,
    /// How collectors are to know it; `None`: by what follows from machine and scopes.
    pub source_id: Option<SourceId>,
    /// How collectors of header version 1 are to know it.
    pub short_ids: ShortIds,
    /// Records that wait for whoever watches them; more are counted as `ViewOverflow`. 0: nobody watches.
    pub view_records_max: usize,
    /// Where the spool is kept between runs; `None`: in a temporary directory, which goes with the agent.
    pub state: Option<PathBuf>,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is wanted goes beyond the agent's own part of the host.
    #[error(transparent)]
    Beyond(#[from] Mistakes),
    /// The host does not tell who it is.
    #[error("the host's boot id (/proc/sys/kernel/random/boot_id)")]
    Host(#[source] io::Error),
    /// Another agent watches the same part of this host.
    #[error(
        "another agent (lock {path}) watches the same part of this host; stop it, or give both different --scope"
    )]
    Locked {
        /// The lock it holds.
        path: String,
    },
    /// /proc.
    #[error(transparent)]
    Lookups(#[from] LookupError),
    /// The kernel side.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A thread.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// No place for a spool that ends with the agent.
    #[error("a temporary directory for the spool")]
    Temporary(#[source] io::Error),
    /// The meter ended by itself.
    #[error("the meter thread ended; its last log line says why")]
    MeterGone,
}

/// An agent at work.
pub struct Agent {
    meter: Option<Thread<()>>,
    commands: Commands,
    in_force: InForce,
    exporters: BTreeMap<CollectorName, Exporter>,
    announcements: watch::Sender<Announcements>,
    collectors: watch::Sender<Vec<watch::Receiver<CollectorStatus>>>,
    spools: watch::Sender<Option<watch::Receiver<SpoolStatus>>>,
    status: watch::Sender<AgentStatus>,
    refresh: JoinHandle<()>,
    limits: watch::Sender<Limits>,
    /// Who tells of containers; `None`: nobody is asked.
    containers: Option<Containers>,
    stop: CancellationToken,
    /// Cancelled when a part has panicked.
    broken: CancellationToken,
    host: Host,
    scopes: Vec<Scope>,
    source_id: SourceId,
    short_ids: watch::Sender<ShortIds>,
    cgroup_root: CgroupRoot,
    /// What attached; `None`: capture is off.
    attached: watch::Sender<Option<AttachReport>>,
    addresses: watch::Receiver<Vec<IpAddr>>,
    top: SharedTop,
    /// Whether capture was ever on: the table knows better than any file then.
    captured: bool,
    /// Until the session takes it.
    peer_link: Option<PeerLink>,
    /// Where the spool is kept between runs.
    state: Option<PathBuf>,
    /// Opened for the first collector.
    store: Option<Store>,
    _lock: Option<File>,
}

/// The spool, and where it is when it ends with the agent.
struct Store {
    spool: Arc<Spool>,
    temporary: Option<tempfile::TempDir>,
    /// Law 1 as this run began.
    ledger: Ledger,
}

struct Exporter {
    task: JoinHandle<CollectorStatus>,
    stop: watch::Sender<Option<u64>>,
}

impl Agent {
    /// Builds the parts and does what is wanted. The receiver gets each record as it is made.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on then.
    pub async fn start(options: Options) -> Result<(Self, mpsc::Receiver<Arc<FlowRecord>>), StartError> {
        let host = Host::read(&options.scopes).map_err(StartError::Host)?;
        let lock = lock(&host)?;
        let lookups = Lookups::open()?;
        let mut naming = Naming::new(NamingOptions::default());
        for (id, path) in lookups.existing_cgroups() {
            naming.learn(&NameObservation::Cgroup { id, path });
        }
        let (asks, asked) = mpsc::channel(FLEET_OUT_MAX);
        let (commands, orders) = std::sync::mpsc::sync_channel(COMMANDS_MAX);
        let (view, records) = mpsc::channel(options.view_records_max.max(1));
        let view = (options.view_records_max > 0).then_some(view);
        let cgroup_root = CgroupRoot {
            path: lookups
                .cgroup2_root()
                .unwrap_or(Path::new(CGROUP_ROOT_USUAL))
                .to_owned(),
            depth: lookups.cgroup2_depth(),
        };
        let status = watch::Sender::new(AgentStatus::default());
        let top = SharedTop::default();
        let meter = Meter {
            commands: orders,
            table: FlowTable::new(TableOptions {
                started: clock::kernel_now(),
                ..TableOptions::new(host.boot)
            }),
            naming,
            filter: None,
            outside: Outside::new(cgroup_root.path.clone(), lookups.sees_whole_hierarchy()),
            cgroup_root: cgroup_root.clone(),
            lookups: Beside::start(lookups).map_err(StartError::Thread)?,
            containers: None,
            view,
            top: top.clone(),
            status: status.clone(),
            listening: watch::Sender::new(None),
            capture: None,
            spooling: None,
            peers: Peers::new(asks, host_name()),
            state: Turns::default(),
        };
        let listening = meter.listening.subscribe();
        let peer_link = PeerLink::new(commands.clone(), asked);
        let broken = CancellationToken::new();
        let meter = std::thread::Builder::new()
            .name("meter".into())
            .spawn({
                let watched = Watched(broken.clone());
                move || {
                    let _watched = watched;
                    meter.run();
                }
            })
            .map_err(StartError::Thread)?;
        let announcements = watch::Sender::new(Announcements {
            event: event_of(&host),
            listening: None,
        });
        let collectors = watch::Sender::new(Vec::new());
        let spools = watch::Sender::new(None);
        let limits = watch::Sender::new(Limits::default());
        let stop = CancellationToken::new();
        let refresh = Refresh {
            announcements: announcements.clone(),
            collectors: collectors.subscribe(),
            spools: spools.subscribe(),
            listening,
            status: status.clone(),
            addresses: watch::Sender::new(host.addresses.clone()),
            scopes: options.scopes.clone(),
            lags: BTreeMap::new(),
            limits: limits.subscribe(),
            cost: CostWatch::default(),
        };
        let addresses = refresh.addresses.subscribe();
        let refresh = tokio::spawn({
            let (watched, stop) = (Watched(broken.clone()), stop.clone());
            async move {
                let _watched = watched;
                refresh.run(stop).await;
            }
        });
        let mut agent = Self {
            meter: Some(meter),
            commands,
            in_force: InForce::default(),
            exporters: BTreeMap::new(),
            announcements,
            collectors,
            spools,
            status,
            refresh,
            limits,
            containers: None,
            stop,
            broken,
            source_id: options.source_id.unwrap_or(host.source_id),
            short_ids: watch::Sender::new(options.short_ids),
            host,
            scopes: options.scopes,
            cgroup_root,
            attached: watch::Sender::new(None),
            addresses,
            top,
            captured: false,
            peer_link: Some(peer_link),
            state: options.state,
            store: None,
            _lock: lock,
        };
        match agent.apply(&options.wanted).await {
            Ok(()) => Ok((agent, records)),
            Err(error) => {
                drop(records);
                agent.stop().await;
                Err(error)
            }
        }
    }

    /// What attached; `None`: capture is off.
    #[must_use]
    pub fn attached(&self) -> watch::Receiver<Option<AttachReport>> {
        self.attached.subscribe()
    }

    /// The host's addresses, read once a minute.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.addresses.clone()
    }

    /// Is cancelled when a part of the agent has panicked: it observes or sends nothing any more, and is to be ended.
    #[must_use]
    pub fn broken(&self) -> CancellationToken {
        self.broken.clone()
    }

    /// Who does how much.
    #[must_use]
    pub fn top(&self) -> SharedTop {
        self.top.clone()
    }

    /// What it knows of its host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What is in force.
    #[must_use]
    pub fn in_force(&self) -> &InForce {
        &self.in_force
    }

    /// How it does, once a second.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// Plans from what is in force to what is wanted, and executes each step. May be called again at any time.
    ///
    /// What waits for collectors that are not wanted any more goes when everything else is in force: whoever goes back
    /// after an error finds it.
    ///
    /// # Errors
    /// [`StartError::Beyond`], and a part of the host that is not there: nothing was touched. Any other: the steps before
    /// it are in force.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<(), StartError> {
        let wanted = wanted.within(&self.scopes)?;
        let planned = telemetry::child(|| tracing::debug_span!("plan"));
        let steps = planned.in_scope(|| plan(&self.in_force, &wanted));
        drop(planned);
        self.check(&steps)?;
        for step in steps {
            tracing::debug!(?step, "executes a step of the plan");
            let span = telemetry::child(|| tracing::debug_span!("step", otel.name = word(&step)));
            self.execute(&step).instrument(span).await?;
            self.in_force.apply(&step);
        }
        self.forget_strangers();
        Ok(())
    }

    /// What can be seen to fail before anything is touched.
    fn check(&self, steps: &[Step]) -> Result<(), StartError> {
        for step in steps {
            if let Step::AttachCapture(capture) = step {
                ScopeSet::resolve(&capture.scopes, &self.cgroup_root).map_err(CaptureError::from)?;
            }
        }
        Ok(())
    }

    /// From here on collectors know it by this id. Exporters are made anew, and go on from their cursors.
    ///
    /// # Errors
    /// [`StartError::Spool`], [`StartError::MeterGone`]: the id is used, and some exporters have stopped; the next plan starts
    /// them.
    pub async fn use_source_id(&mut self, id: SourceId) -> Result<(), StartError> {
        if id == self.source_id {
            return Ok(());
        }
        self.source_id = id;
        self.announcements
            .send_modify(|all| all.event.source_id = id.number());
        let running: Vec<Exporting> = self.in_force.collectors().cloned().collect();
        let mut outcome = Ok(());
        for exporting in running {
            self.stop_collector(&exporting.name).await;
            if let Err(error) = self.start_collector(&exporting).await {
                self.in_force.apply(&Step::StopCollector(exporting.name));
                outcome = Err(error);
            }
        }
        outcome
    }

    /// From here on collectors of header version 1 know it by these. Exporters whose number is another connect again.
    pub fn use_short_ids(&mut self, ids: ShortIds) {
        self.short_ids.send_if_modified(|known| {
            let news = *known != ids;
            *known = ids;
            news
        });
    }

    async fn execute(&mut self, step: &Step) -> Result<(), StartError> {
        match step {
            Step::DetachCapture => {
                let (done, detached) = oneshot::channel();
                self.tell(Command::Detach(done))?;
                self.attached.send_replace(None);
                detached.await.map_err(|_| StartError::MeterGone)
            }
            Step::StopCollector(name) => {
                self.stop_collector(name).await;
                Ok(())
            }
            // Its cursor goes with `forget_strangers`.
            Step::ForgetCollector(name) => {
                self.stop_collector(name).await;
                if self.exporters.is_empty() {
                    self.tell(Command::Spool(None))?;
                }
                Ok(())
            }
            Step::UpdateMetering(metering) => {
                self.tell(Command::Metering(table_options(&self.host, metering)))
            }
            Step::UpdateNaming(command_line) => self.tell(Command::Naming(match command_line {
                CommandLine::None => CommandLineMode::None,
                CommandLine::Redacted => CommandLineMode::Redacted,
                CommandLine::Full => CommandLineMode::Full,
            })),
            Step::UpdateContainers(wanted) => {
                // The former tasks end with their handle.
                self.containers = None;
                let (containers, link) = Containers::start(wanted.sockets(), self.seed());
                self.tell(Command::Containers(link))?;
                self.containers = containers;
                Ok(())
            }
            Step::UpdateFilter(filtering) => self.tell(Command::Filter(filtering.clone())),
            Step::UpdateLimits(limits) => {
                self.limits.send_replace(*limits);
                Ok(())
            }
            Step::UpdateBuffer(buffer) => {
                if let Some(store) = &self.store {
                    store.spool.set_bounds(bounds(buffer));
                }
                Ok(())
            }
            Step::StartCollector(exporting) => self.start_collector(exporting).await,
            Step::AttachCapture(capture) => {
                let (reply, attached) = oneshot::channel();
                self.tell(Command::Attach(Box::new(capture.clone()), reply))?;
                let report = attached.await.map_err(|_| StartError::MeterGone)??;
                self.attached.send_replace(Some(report));
                self.captured = true;
                Ok(())
            }
        }
    }

    /// Drops the places of collectors that were fed and that nobody wants any more: they would keep the disk full.
    fn forget_strangers(&self) {
        if let Some(store) = &self.store {
            let wanted: Vec<_> = self.exporters.keys().cloned().collect();
            store.spool.retain(&wanted);
        }
    }

    /// Where the session talks to the meter about other agents; once.
    pub fn take_peer_link(&mut self) -> Option<PeerLink> {
        self.peer_link.take()
    }

    /// Its successor of the same name goes on from the cursor that it leaves.
    async fn stop_collector(&mut self, name: &CollectorName) {
        if let Some(exporter) = self.exporters.remove(name) {
            let _ = self.tell(Command::Fleet(Box::new(FleetIn::Starve(name.clone()))));
            exporter.stop.send_replace(Some(export::LEAVE));
            let _ = exporter.task.await; // An error: it has panicked, and left what it had saved.
        }
        self.collectors
            .send_modify(|all| all.retain(|one| one.borrow().name != name.as_str()));
    }

    /// Opens the spool unless it is open, and has the meter write to it unless it does.
    async fn open_spool(&mut self) -> Result<(Arc<Spool>, bool), StartError> {
        if self.store.is_none() {
            let temporary = match self.state {
                Some(_) => None,
                None => Some(temporary().map_err(StartError::Temporary)?),
            };
            let kept = self
                .state
                .as_deref()
                .or(temporary.as_ref().map(tempfile::TempDir::path));
            let mut options = SpoolOptions::in_directory(kept.unwrap_or(Path::new("")).join(SPOOL));
            if let Some(buffer) = self.in_force.buffer() {
                options.set_bounds(bounds(&buffer));
            }
            let boot = self.host.boot;
            let opened = tokio::task::spawn_blocking(move || {
                let (spool, opened) = Spool::open(options)?;
                report_opened(&opened);
                let restore = restore(&spool, opened.checkpoint.as_ref(), boot);
                Ok::<_, SpoolError>((spool, restore, ledger(&opened)))
            });
            let (spool, restore, ledger) = opened.await.map_err(|_| StartError::MeterGone)??;
            // A table that has flows knows better than any file.
            if let (false, Some(metering)) = (self.captured, self.in_force.metering()) {
                let options = table_options(&self.host, &metering);
                self.tell(Command::Restore(options, Box::new(restore)))?;
            }
            let spool = Arc::new(spool);
            self.spools.send_replace(Some(spool.status()));
            self.store = Some(Store {
                spool,
                temporary,
                ledger,
            });
        }
        let store = self.store.as_ref().expect("opened above");
        let (spool, ephemeral) = (Arc::clone(&store.spool), store.temporary.is_some());
        if self.exporters.is_empty() {
            let ledger = store.ledger;
            self.tell(Command::Spool(Some((Arc::clone(&spool), Box::new(ledger)))))?;
        }
        Ok((spool, ephemeral))
    }

    async fn start_collector(&mut self, exporting: &Exporting) -> Result<(), StartError> {
        // A step may be executed twice.
        self.stop_collector(&exporting.name).await;
        let (spool, ephemeral) = self.open_spool().await?;
        let metering = self.in_force.metering();
        self.announcements.send_modify(|all| {
            let seconds =
                |span: Option<Duration>| span.map_or(0, |span| u32::try_from(span.as_secs()).unwrap_or(0));
            all.event.lifetime_s = seconds(metering.map(|metering| metering.active_timeout));
            all.event.idle_s = seconds(metering.map(|metering| metering.idle_timeout));
        });
        let options = ExporterOptions {
            name: exporting.name.clone(),
            collectors: exporting.collectors.clone(),
            failover: exporting.terms.failover.map(Into::into),
            slot: exporting.slot,
            source_id: self.source_id,
            short_ids: self.short_ids.subscribe(),
            tlv: TlvOptions {
                loopback: match exporting.terms.loopback {
                    Loopback::HostAddress => TlvLoopback::HostAddress,
                    Loopback::Omit => TlvLoopback::Omit,
                    Loopback::AsIs => TlvLoopback::AsIs,
                },
                host_address: HostAddress {
                    v4: self.host.v4(),
                    v6: self.host.v6(),
                },
                exporter_address: self.host.v4(),
                record_ids: false, // Each collector's own.
            },
            grace: GRACE,
            ephemeral,
            seed: self.seed(),
        };
        let (stop, stopped) = watch::channel(None);
        self.tell(Command::Fleet(Box::new(FleetIn::Feed(
            exporting.name.clone(),
            exporting.slot,
        ))))?;
        let reader = spool.reader(&exporting.name);
        let exporter = export::Exporter::new(options, reader, self.announcements.subscribe(), stopped);
        let status = exporter.status();
        self.collectors.send_modify(|all| all.push(status));
        self.exporters.insert(
            exporting.name.clone(),
            Exporter {
                task: tokio::spawn({
                    let watched = Watched(self.broken.clone());
                    async move {
                        let _watched = watched;
                        exporter.run().await
                    }
                }),
                stop,
            },
        );
        Ok(())
    }

    /// For what is to differ from agent to agent, such as the pace of tries.
    fn seed(&self) -> u64 {
        u64::from(self.host.source_id.number()) ^ clock::kernel_now().0
    }

    fn tell(&self, command: Command) -> Result<(), StartError> {
        self.commands.send(command).map_err(|_| StartError::MeterGone)
    }

    /// Ends everything in order and tells how it stood. Takes at most the grace period and a little.
    pub async fn stop(mut self) -> AgentStatus {
        let (done, stopped) = oneshot::channel();
        if self.tell(Command::Stop(done)).is_ok() {
            let _ = stopped.await; // An error: the meter is gone already.
        }
        if let Some(meter) = self.meter.take() {
            let _ = tokio::task::spawn_blocking(move || meter.join()).await;
        }
        let newest = self.store.as_ref().map_or(0, |store| store.spool.newest());
        for exporter in self.exporters.values() {
            exporter.stop.send_replace(Some(newest));
        }
        let mut ended = Vec::new();
        for (_, exporter) in std::mem::take(&mut self.exporters) {
            if let Ok(status) = exporter.task.await {
                ended.push(status);
            }
        }
        if let Some(store) = self.store.take() {
            let spool = Arc::clone(&store.spool);
            let closed = tokio::task::spawn_blocking(move || spool.close(CLOSE_WAIT)).await;
            if !matches!(closed, Ok(true)) && store.temporary.is_none() {
                tracing::warn!("the spool did not close cleanly: what is not on the disk is lost");
            }
        }
        self.stop.cancel();
        let _ = (&mut self.refresh).await;
        let spool = self.spools.borrow().as_ref().map(|spool| spool.borrow().clone());
        self.status
            .send_modify(|status| (status.collectors, status.spool) = (ended, spool));
        self.status.borrow().clone()
    }
}

/// What a step is called in a trace.
fn word(step: &Step) -> &'static str {
    match step {
        Step::DetachCapture => "detach",
        Step::StopCollector(_) => "stop_collector",
        Step::ForgetCollector(_) => "forget_collector",
        Step::UpdateMetering(_) => "update_metering",
        Step::UpdateNaming(_) => "update_naming",
        Step::UpdateContainers(_) => "update_containers",
        Step::UpdateFilter(_) => "update_filter",
        Step::UpdateLimits(_) => "update_limits",
        Step::UpdateBuffer(_) => "update_buffer",
        Step::StartCollector(_) => "start_collector",
        Step::AttachCapture(_) => "attach",
    }
}

/// Name of the spool's directory below the state's.
pub const SPOOL: &str = "spool";

/// As other agents are told it; empty when the kernel does not say.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn table_options(host: &Host, metering: &Metering) -> TableOptions {
    TableOptions {
        started: clock::kernel_now(),
        max_flows: usize::try_from(metering.max_flows).unwrap_or(usize::MAX),
        active_timeout: metering.active_timeout,
        idle_timeout: metering.idle_timeout,
        ..TableOptions::new(host.boot)
    }
}

/// What is announced of a host that exports nothing yet.
pub(crate) fn event_of(host: &Host) -> EventFields {
    let interface = host.interface.as_ref();
    EventFields {
        interface_name: interface.map_or_else(|| "lo".to_owned(), |interface| interface.name.clone()),
        interface_speed_mbit: interface.map_or(0, |interface| interface.speed_mbit),
        interface_address: interface.map(|interface| interface.address),
        probe_address: interface.map(|interface| interface.address),
        probe_uuid: host.machine.clone(),
        source_id: host.source_id.number(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        operating_system: host.operating_system.clone(),
        ..EventFields::default()
    }
}

/// Holds the place of this agent on this host: two with the same source id would look like losses to a collector.
fn lock(host: &Host) -> Result<Option<File>, StartError> {
    let folder = Path::new("/run/flowtilla");
    let path = folder.join(format!("{:08x}.lock", host.source_id.number()));
    let opened = std::fs::create_dir_all(folder).and_then(|()| File::create(&path));
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no lock: a second agent on this part of the host would not be noticed");
            return Ok(None);
        }
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(_) => Err(StartError::Locked {
            path: path.display().to_string(),
        }),
    }
}
