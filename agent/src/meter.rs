//! The meter: one thread that turns what the kernel shows into named records and hands them on.
//!
//! In: commands of [`crate::run`] (bounded channel), the capture's rings and maps, time. Out: values of records to the
//! spool (which never waits), records to the view (bounded, what does not fit is counted), status once a second. Owns
//! capture, table, naming and filter. A turn: socket events, name events, due counters, timeouts, records, names for them,
//! the filter, the spool. What the filter leaves out is counted and goes no further. The order matters: whoever holds a socket that was drained executed before, so its name events are drained after the sockets and
//! before any record is named.

mod left_out;
pub(crate) mod outside;
pub(crate) mod peers;
mod spooling;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use flowtilla_agent_core::encode::listening::{Listening, ListeningPorts};
use flowtilla_agent_core::enrich::{CommandLineMode, Naming, NamingState};
use flowtilla_agent_core::filter::Filter;
use flowtilla_agent_core::filter::cgroups::Rules;
use flowtilla_agent_core::fleet::{FarEnd, start_of};
use flowtilla_agent_core::flow::record::{EndReason, FlowRecord, Protocol};
use flowtilla_agent_core::flow::restore::Restore;
use flowtilla_agent_core::flow::{FlowTable, TableOptions};
use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::loss::{DropPoint, Drops, KernelLaw};
use flowtilla_agent_core::observe::Cookie;
use flowtilla_agent_core::owner::{Confidence, Owner, Unknown};
use flowtilla_agent_core::policy::{CapturePlan, Filtering};
use flowtilla_agent_core::time::KernelTime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::capture::{Capture, CaptureError, CgroupRoot};
use crate::clock;
use crate::containers;
use crate::enrich::Beside;
use crate::spool::Spool;
use crate::status::{AgentStatus, AttachReport, Coverage};
use crate::top::SharedTop;

use left_out::LeftOut;
use outside::Outside;
use peers::{FleetIn, Peers};
use spooling::Spooling;

/// Pause between turns.
///
/// The first line of a flow comes at most this much later than its first record is due; half of it costs twice the
/// wake-ups of an idle host, double it and the rings must hold twice as much.
const TURN: Duration = Duration::from_millis(200);
/// Pause after a turn that found more than [`BUSY_EVENTS`]: the rings hold less than it seems then.
const BUSY_TURN: Duration = Duration::from_millis(50);
/// A quarter of what the flow ring holds.
const BUSY_EVENTS: usize = 4_096;
/// Pause between walks of the UDP maps and between reports of status.
const SECOND: Duration = Duration::from_secs(1);
/// Least pause between walks of the open files; a walk that took long waits [`FILE_WALK_SHARE`] times as long.
const FILE_WALK_PAUSE: Duration = Duration::from_secs(5);
/// A walk of the open files may take this part of one processor at most: one in 200.
const FILE_WALK_SHARE: u32 = 200;
/// Sockets whose counters are read in one turn.
///
/// Their answers take half of the flow ring; double it, and an answer finds it full as soon as anything else is in it.
const DUE_MAX: usize = 8_192;
/// How long a turn waits for answers about processes. Half of it leaves a storm's names to the next turn; double it, and
/// a look-up that hangs takes half the turn from the rings.
const LOOK_UP_WAIT: Duration = Duration::from_millis(50);
/// The same when the agent stops: nobody comes back for a name then.
const LOOK_UP_WAIT_LAST: Duration = Duration::from_secs(1);
/// Longest time a record waits for names.
const NAME_WAIT: Duration = Duration::from_secs(1);
/// Records that wait for names; beyond it they go without.
const NAME_WAIT_RECORDS: usize = 8_192;

/// Rounds of timeouts in one turn: each makes as many records as the table lets wait, so 64 empty a full table.
const ROUNDS_MAX: usize = 64;

/// Whether a record may wait for its names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// At most [`NAME_WAIT`].
    ForNames,
    /// It goes with the names there are: nobody comes back for it.
    None,
}

/// What [`crate::run`] tells the meter.
pub(crate) enum Command {
    /// Attach the kernel side.
    Attach(
        Box<CapturePlan>,
        oneshot::Sender<Result<AttachReport, CaptureError>>,
    ),
    /// Detach it; all flows end.
    Detach(oneshot::Sender<()>),
    /// Change timeouts and bounds.
    Metering(TableOptions),
    /// Change how command lines are told.
    Naming(CommandLineMode),
    /// Learn the names of containers by this link, or by none.
    Containers(Option<containers::Link>),
    /// Change which flows are kept, from each flow's next record on.
    Filter(Box<Filtering>),
    /// Write records to a spool, or to none.
    Spool(Option<(Arc<Spool>, Box<Ledger>)>),
    /// Begin with what the agent before had reported. Before anything is attached only.
    Restore(TableOptions, Box<Restore>),
    /// What the session tells about other agents, and whom it feeds.
    Fleet(Box<FleetIn>),
    /// End all flows, hand on their records, and end.
    Stop(oneshot::Sender<()>),
}

/// The meter's own state.
pub(crate) struct Meter {
    pub(crate) commands: Receiver<Command>,
    pub(crate) table: FlowTable,
    pub(crate) naming: Naming,
    /// `None`: every flow is kept.
    pub(crate) filter: Option<Filter>,
    /// What the kernel leaves out of what the filter would.
    pub(crate) outside: Outside,
    pub(crate) lookups: Beside,
    /// What tells of containers; `None`: they go by their ids.
    pub(crate) containers: Option<containers::Link>,
    /// Where the cgroup2 hierarchy is.
    pub(crate) cgroup_root: CgroupRoot,
    pub(crate) view: Option<mpsc::Sender<Arc<FlowRecord>>>,
    /// Who does how much, by every record that goes on.
    pub(crate) top: SharedTop,
    pub(crate) status: watch::Sender<AgentStatus>,
    pub(crate) listening: watch::Sender<Option<ListeningPorts>>,
    pub(crate) capture: Option<Capture>,
    pub(crate) spooling: Option<Spooling>,
    pub(crate) peers: Peers,
    pub(crate) state: Turns,
}

/// What the meter remembers from turn to turn.
#[derive(Default)]
pub(crate) struct Turns {
    waiting: VecDeque<(FlowRecord, KernelTime)>,
    due: Vec<Cookie>,
    next_second: KernelTime,
    next_file_walk: KernelTime,
    names_lost: u64,
    /// Socket events of the last drain.
    events: usize,
    /// Whether a walk of the open files has something to find.
    walk_wanted: bool,
    /// Flows that were decided about without the name of a container.
    unnamed_containers: u64,
    records: u64,
    left_out: LeftOut,
    /// Records for the view.
    shown: Vec<Arc<FlowRecord>>,
    coverage: Coverage,
    /// Losses of captures that are detached, and of the view.
    past: Drops,
    /// CPU time of the programs of captures that are detached, as far as it was counted.
    past_time: Option<Duration>,
}

impl Meter {
    /// Runs until it is told to stop, or nobody can tell it any more.
    pub(crate) fn run(mut self) {
        let mut next = clock::kernel_now().after(TURN);
        loop {
            let now = clock::kernel_now();
            // Before commands: many of them must not keep it from its turns.
            if now >= next {
                self.turn(now);
                let busy = self.state.events > BUSY_EVENTS;
                next = clock::kernel_now().after(if busy { BUSY_TURN } else { TURN });
                continue;
            }
            match self.commands.recv_timeout(next.since(now)) {
                Ok(Command::Stop(done)) => {
                    self.detach();
                    self.let_go();
                    let _ = done.send(());
                    return;
                }
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.detach();
                    self.let_go();
                    return;
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(plan, reply) => {
                let attached = Capture::attach(&plan, &self.cgroup_root).map(|capture| {
                    let report = capture.report().clone();
                    self.capture = Some(capture);
                    self.outside.handle_attached();
                    self.meet_older_sockets();
                    report
                });
                let _ = reply.send(attached);
            }
            Command::Detach(done) => {
                self.detach();
                let _ = done.send(());
            }
            Command::Metering(options) => {
                self.table.set_options(options);
                if let Some(filter) = &mut self.filter {
                    filter.set_flows_max(self.table.flows_max());
                }
            }
            Command::Filter(wanted) => {
                self.count_unnamed();
                self.filter = Filter::new(&wanted, self.table.flows_max());
                self.outside.handle_rules();
            }
            Command::Containers(link) => {
                let sockets = link.as_ref().map_or(0, containers::Link::sockets);
                self.naming.set_container_sockets(sockets);
                self.containers = link;
            }
            Command::Naming(mode) => self.naming.set_command_line(mode),
            // Every record so far is in a value by now, so the next one has the next sequence.
            Command::Spool(spool) => {
                self.spooling = spool.map(|(spool, ledger)| Spooling::new(spool, *ledger));
            }
            Command::Restore(options, restore) => {
                self.state.left_out.table_goes(&self.table);
                self.table = FlowTable::with_restore(options, *restore);
            }
            Command::Fleet(told) => {
                let now = clock::kernel_now();
                self.peers.take(*told, now);
                self.peers.speak(&self.table, &mut self.naming, now);
            }
            Command::Stop(_) => {}
        }
    }

    /// Takes what the kernel still has, ends every flow, and lets the kernel side go.
    fn detach(&mut self) {
        let now = clock::kernel_now();
        self.read_all(now);
        if let Some(mut capture) = self.capture.take() {
            self.outside.handle_detaching(&mut capture);
            let drops = capture.drops();
            drops.lossy().for_each(|(point, n)| self.state.past.add(point, n));
            self.state.past_time = sum(self.state.past_time, capture.programs_time());
        }
        self.table.end_all(now);
        self.deliver(now, Patience::None, &mut { LOOK_UP_WAIT_LAST });
        if let Some(spooling) = &mut self.spooling {
            spooling.checkpoint(&self.table.checkpoint());
        }
        self.tell();
    }

    /// Takes in what the walk of the open files showed. Of more sockets than the ring holds the rest is asked for.
    fn meet_older_sockets(&mut self) {
        self.drain();
        if let Some(capture) = &mut self.capture
            && capture.drops().at(DropPoint::FlowRingFull) > 0
        {
            let table = &mut self.table;
            warn(capture.list_tcp(|seen| table.observe(&seen)));
            self.snap_due();
        }
        self.table.end_restore();
        let unseen = self.table.ended_unseen();
        if unseen > 0 {
            tracing::warn!(
                sockets = unseen,
                "TCP sockets ended while no agent ran: what they did after their last record is not known"
            );
        }
    }

    /// Reads every socket once more, so that the last records are whole.
    fn read_all(&mut self, now: KernelTime) {
        self.drain();
        self.table.want_all();
        self.snap_due();
        if let Some(capture) = &mut self.capture {
            let table = &mut self.table;
            warn(capture.walk_udp(|seen| table.observe(&seen)));
        }
        self.table.handle_timeout(now);
    }

    /// Reads sockets until none is due.
    fn snap_due(&mut self) {
        let Some(capture) = &mut self.capture else { return };
        let table = &mut self.table;
        loop {
            self.state.due.clear();
            table.poll_due(&mut self.state.due, DUE_MAX);
            if self.state.due.is_empty() {
                return;
            }
            warn(capture.snap(&self.state.due));
            warn(capture.drain_flows(|seen| table.observe(&seen)).map(drop));
        }
    }

    fn turn(&mut self, now: KernelTime) {
        self.drain();
        self.learn_containers();
        self.leave_out(now);
        let second = now >= self.state.next_second;
        if second {
            self.state.next_second = now.after(SECOND);
            self.each_second(now);
        }
        self.state.due.clear();
        self.table.poll_due(&mut self.state.due, DUE_MAX);
        if let Some(capture) = self.capture.as_mut().filter(|_| !self.state.due.is_empty()) {
            let table = &mut self.table;
            warn(capture.snap(&self.state.due));
            warn(capture.drain_flows(|seen| table.observe(&seen)).map(drop));
        }
        let mut wait = LOOK_UP_WAIT;
        for _ in 0..ROUNDS_MAX {
            self.table.handle_timeout(now);
            self.peers.fleet.handle_timeout(now);
            self.deliver(now, Patience::ForNames, &mut wait);
            if self.table.poll_timeout().is_none_or(|at| at > now) {
                break;
            }
        }
        if let Some(capture) = &mut self.capture {
            while let Some(forget) = self.table.poll_forget() {
                let table = &mut self.table;
                warn(capture.forget_peer(&forget, |seen| table.observe(&seen)));
            }
        }
        if self.peers.is_asked() {
            let _ = self.lookups.exchange(&mut self.naming, &mut wait);
        }
        self.peers.speak(&self.table, &mut self.naming, now);
        if second {
            self.tell();
            if self.spooling.is_some() {
                self.tell_listening();
            }
        }
    }

    fn drain(&mut self) {
        self.state.events = 0;
        let Some(capture) = &mut self.capture else { return };
        let (naming, table, wanted) = (&mut self.naming, &mut self.table, &mut self.state.walk_wanted);
        loop {
            let taken = capture.drain_flows(|seen| {
                *wanted |= is_inherited(&seen);
                table.observe(&seen);
            });
            self.state.events += taken.as_ref().copied().unwrap_or_default();
            match taken {
                Ok(crate::capture::DRAIN_MAX) => {}
                Ok(_) => break,
                Err(error) => {
                    warn(Err(error));
                    break;
                }
            }
        }
        let outside = &mut self.outside;
        capture.drain_names(|seen| {
            outside.learn(&seen);
            naming.learn(&seen);
        });
        let lost = capture.names_lost();
        if lost > self.state.names_lost {
            self.state.names_lost = lost;
            naming.lost_events();
            outside.handle_lost();
        }
    }

    fn each_second(&mut self, now: KernelTime) {
        let Some(capture) = &mut self.capture else { return };
        let table = &mut self.table;
        warn(capture.walk_udp(|seen| table.observe(&seen)));
        let drops = capture.drops();
        warn(capture.collect_unsent(drops.at(DropPoint::FlowRingFull), |seen| table.observe(&seen)));
        if self.state.walk_wanted && now >= self.state.next_file_walk {
            let began = clock::instant();
            warn(capture.walk_files());
            self.state.walk_wanted = false;
            self.state.next_file_walk = now.after((began.elapsed() * FILE_WALK_SHARE).max(FILE_WALK_PAUSE));
        }
    }

    /// Takes records from the table, names them, waiting at most `wait` for answers, and hands them on in their order.
    fn deliver(&mut self, now: KernelTime, patience: Patience, wait: &mut Duration) {
        let offset = clock::wall_offset();
        self.keep_released();
        self.learn_containers();
        while let Some(mut record) = self.table.poll_record(offset) {
            // Asked at once, so that all that wait do so together.
            let start = start_of(&record, offset);
            let _ = self.peers.fleet.name_far_end(&mut record, start, now);
            self.naming.foresee_containers(&record, now);
            self.state.waiting.push_back((record, now.after(NAME_WAIT)));
        }
        while let Some((mut record, deadline)) = self.state.waiting.pop_front() {
            let mut named = self.naming.name(&mut record, now);
            while named == NamingState::Waiting && self.lookups.exchange(&mut self.naming, wait) {
                named = self.naming.name(&mut record, now);
            }
            let start = start_of(&record, offset);
            let far = self.peers.fleet.name_far_end(&mut record, start, now);
            let crowded = self.state.waiting.len() > NAME_WAIT_RECORDS;
            let waits = patience == Patience::ForNames && now < deadline && !crowded;
            if (named == NamingState::Waiting || far == FarEnd::Waiting) && waits {
                self.state.waiting.push_front((record, deadline));
                break;
            }
            if !self.keeps(&record) {
                continue;
            }
            self.count(&record);
            self.top.lock().take(&record, now);
            self.peers.fleet.judge(&mut record, start, now);
            self.keep_released();
            self.keep(&record);
            if self.view.is_some() {
                self.state.shown.push(Arc::new(record));
            }
        }
        if let Some(link) = &self.containers {
            link.ask(&mut self.naming);
        }
        if let Some(spooling) = &mut self.spooling {
            spooling.seal();
            if self.state.left_out.is_new() {
                spooling.left_out();
            }
            if self.state.waiting.is_empty() && spooling.checkpoint_wanted() {
                // Every record made so far is in the spool, or left out and counted: the checkpoint says no more.
                spooling.checkpoint(&self.table.checkpoint());
            }
        }
        self.show();
    }

    /// Has a record kept for collectors.
    fn keep(&mut self, record: &FlowRecord) {
        if let Some(spooling) = &mut self.spooling
            && !spooling.add(record)
        {
            self.state.past.add(DropPoint::RecordTooLarge, 1);
        }
    }

    /// Has records kept once more that were held back from some collectors.
    fn keep_released(&mut self) {
        while let Some(record) = self.peers.fleet.poll_record() {
            self.keep(&record);
        }
    }

    /// Decides about everything that is held for other agents: it stops.
    fn let_go(&mut self) {
        self.peers.fleet.handle_stop(clock::kernel_now());
        self.keep_released();
        if let Some(spooling) = &mut self.spooling {
            spooling.seal();
        }
    }

    /// Whether a named record goes on; one that does not is counted.
    fn keeps(&mut self, record: &FlowRecord) -> bool {
        let Some(filter) = &mut self.filter else {
            return true;
        };
        let naming = &self.naming;
        let verdict = filter.judge(record, |owner| naming.whereabouts(owner));
        self.state.left_out.count(verdict, record)
    }

    /// Takes in what runtimes told.
    fn learn_containers(&mut self) {
        if let Some(link) = &mut self.containers {
            link.tell(&mut self.naming);
        }
    }

    /// Has the kernel leave out what it can.
    fn leave_out(&mut self, now: KernelTime) {
        let Some(capture) = &mut self.capture else { return };
        let changed = self
            .outside
            .turn(self.filter.as_ref(), &mut self.naming, capture, now);
        // Sockets that were left out until now are to be found, and the UDP sockets of what is left out from here on.
        self.state.walk_wanted |= changed.is_some() || self.outside.wants_search(now);
        // Policies change seldom; containers come and go all the time.
        if changed == Some(Rules::Changed) {
            self.state.next_file_walk = now;
        }
    }

    fn count_unnamed(&mut self) {
        let unnamed = self.filter.as_mut().map_or(0, Filter::take_unnamed);
        self.state.unnamed_containers += unnamed;
    }

    /// Hands what was made to the view, all at once: its reader is woken once.
    fn show(&mut self) {
        let Some(view) = &self.view else { return };
        let wanted = self.state.shown.len();
        let mut shown = self.state.shown.drain(..);
        if let Ok(permits) = view.try_reserve_many(wanted.min(view.capacity())) {
            permits
                .zip(&mut shown)
                .for_each(|(permit, record)| permit.send(record));
        }
        let overflow = shown.count() as u64;
        if overflow > 0 && !view.is_closed() {
            self.state.past.add(DropPoint::ViewOverflow, overflow);
        }
    }

    fn count(&mut self, record: &FlowRecord) {
        self.state.records += 1;
        if record.reason != EndReason::ActiveTimeout {
            let outside = self.outside.is_any();
            count(&mut self.state.coverage, &record.initiator.owner, outside);
            if !record.reason.is_failed_attempt() {
                count(&mut self.state.coverage, &record.responder.owner, outside);
            }
        }
    }

    /// What the host listens on, for collectors.
    fn tell_listening(&mut self) {
        let mut ports = ListeningPorts::default();
        for listener in self.table.listeners() {
            let entry = Listening {
                port: listener.endpoint.port,
                process: listener.owner.program().unwrap_or_default().to_owned(),
                package: String::new(),
            };
            match (listener.protocol, listener.endpoint.address.is_ipv4()) {
                (Protocol::Tcp, true) => ports.tcp4.push(entry),
                (Protocol::Tcp, false) => ports.tcp6.push(entry),
                (Protocol::Udp, true) => ports.udp4.push(entry),
                (Protocol::Udp, false) => ports.udp6.push(entry),
            }
        }
        self.listening.send_replace(Some(ports));
    }

    fn tell(&mut self) {
        let mut drops = self.capture.as_ref().map(Capture::drops).unwrap_or_default();
        self.state.past.lossy().for_each(|(point, n)| drops.add(point, n));
        let law: KernelLaw = self.table.law();
        let programs_time = sum(
            self.state.past_time,
            self.capture.as_ref().and_then(Capture::programs_time),
        );
        let waiting = self.state.waiting.len();
        let record_law = self.state.left_out.law(&self.table, self.state.records, waiting);
        let left_out = self.outside.status(self.capture.as_ref());
        if let Some(spooling) = &self.spooling {
            spooling.keep_ledger(&law, &drops, &record_law, &left_out.sum);
        }
        let (flows, records, coverage) = (self.table.flows() as u64, self.state.records, self.state.coverage);
        let unnamed = waiting as u64;
        let peers = self.peers.sums();
        self.count_unnamed();
        let unnamed_containers = self.state.unnamed_containers;
        let containers = self.naming.container_counts();
        self.status.send_modify(|status| {
            status.peers = peers;
            status.containers = containers;
            status.flows = flows;
            status.records = records;
            status.unnamed = unnamed;
            status.drops = drops;
            status.kernel_law = law;
            status.record_law = record_law;
            status.left_out = left_out;
            status.unnamed_containers = unnamed_containers;
            status.coverage = coverage;
            status.programs_time = programs_time;
        });
    }
}

fn is_inherited(seen: &flowtilla_agent_core::observe::Observation) -> bool {
    use flowtilla_agent_core::observe::{Observation, TcpSight};
    matches!(seen, Observation::Tcp(tcp) if tcp.sight == TcpSight::Snap
        && matches!(tcp.owner.confidence, Confidence::Inherited | Confidence::Unknown(Unknown::NotSeen)))
}

/// `outside`: the kernel leaves out something, which may be what nobody saw at the other end of this host.
fn count(coverage: &mut Coverage, owner: &Owner, outside: bool) {
    let unseen = owner.confidence == Confidence::Unknown(Unknown::NotSeen);
    if owner.is_remote() || (unseen && outside) {
        return;
    }
    coverage.ends += 1;
    coverage.with_process += u64::from(owner.process.is_some());
    coverage.with_names += u64::from(
        owner
            .names
            .as_ref()
            .is_some_and(|names| names.executable.is_some()),
    );
}

fn sum(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).reduce(|sum, more| sum + more)
}

/// A failed read costs this turn's part of the picture; the next one tries again.
fn warn(outcome: Result<(), CaptureError>) {
    if let Err(error) = outcome {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "reading the kernel side failed");
    }
}

/// The sending side of the meter's commands.
pub(crate) type Commands = SyncSender<Command>;

#[cfg(test)]
mod tests;
