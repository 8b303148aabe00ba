//! Who does how much, and how well: bounded sums of named records by container, pod, process, user, and flow.
//!
//! In: each named record that goes on to collectors, and the time. Out: [`Report`]s, and the few series of `/metrics`. Does no
//! IO, reads no clock.
//!
//! A record counts for each of its ends that is on this host; one flow between two containers here counts for both, once as
//! client and once as server. Its figures count in the moment that it is handed on: a flow that lives has a record each active
//! timeout (10 s unless the policy says otherwise), so the window of a minute tells of at least five of them.
//!
//! Invariants. Every table has a bound; what is evicted goes into sums of its own and is counted, so that the rows and `other`
//! of a report are all there was. A flow counts once in a window, however many records it has there, as long as no more than
//! [`FLOWS_SEEN_MAX`] flows had a record in it; of further ones those that begin count. Series only rise.

mod sums;
mod table;
#[cfg(test)]
mod tests;
pub mod wire;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

pub use sums::{Amount, Sums};
use sums::{Side, is_within};
use table::{Part, Table};

use crate::flow::record::{EndReason, FlowRecord, Party, Protocol};
use crate::observe::{Cookie, Endpoint, TcpState};
use crate::owner::{Confidence, Names, Owner, Pod, Unknown};
use crate::time::KernelTime;

/// One step of the window.
///
/// Half of it doubles the memory of a row; double it, and a window of a minute is up to a sixth too short.
pub const SLOT: Duration = Duration::from_secs(5);
/// Steps of the window: a minute. Half of it holds two records of a flow that lives; double it, and what has ended stays long.
pub const SLOTS: u64 = 12;
/// Containers that are kept when there are twice as many; the others go into sums. A large host has some hundreds. A row takes
/// 200 octets, and 100 for each step in which it did something: 1.4 KiB at most.
pub const CONTAINERS_KEPT: usize = 512;
/// Pods, likewise.
pub const PODS_KEPT: usize = 256;
/// Programs, by the unit or container they run in, likewise.
pub const PROCESSES_KEPT: usize = 512;
/// Users, likewise.
pub const USERS_KEPT: usize = 128;
/// Flows, likewise: the busiest are asked for.
pub const FLOWS_KEPT: usize = 512;
/// Flows of which it is known that they had a record in the window. 40 octets each.
pub const FLOWS_SEEN_MAX: usize = 32_768;
/// Containers, and pods, that have series of their own in `/metrics`; the others share one. Ten series each: half of it hides
/// what an ordinary host runs, double it, and a thousand hosts are 800,000 series.
pub const SERIES_MAX: usize = 20;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Containers.
    Containers,
    /// Pods.
    Pods,
    /// Programs, by the unit or container they run in.
    Processes,
    /// Users.
    Users,
    /// Flows.
    Flows,
}

/// In which order: the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Octets sent and received.
    Octets,
    /// Mean round-trip time.
    Rtt,
    /// Segments sent again.
    Retransmits,
    /// Flows as client and server.
    Flows,
    /// Attempts that failed.
    Failed,
}

impl Order {
    /// What is compared; nothing known is least.
    #[must_use]
    pub fn rank(self, sums: &Sums) -> u64 {
        match self {
            Self::Octets => sums.octets(),
            Self::Rtt => sums.rtt_mean_us().map_or(0, |us| us + 1),
            Self::Retransmits => sums.retransmits,
            Self::Flows => sums.flows(),
            Self::Failed => sums.failed,
        }
    }
}

/// Whose flows are summed. Texts are as processes and runtimes chose them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A container.
    Container {
        /// The runtime's id.
        id: String,
        /// Its name, when a runtime told it.
        name: Option<String>,
        /// Its pod, when a runtime told it.
        pod: Option<Pod>,
    },
    /// A pod.
    Pod(Pod),
    /// A program.
    Process {
        /// Path of the executable, or the command name; `[kernel]`, `[unknown]`.
        program: String,
        /// Where it runs.
        place: Place,
    },
    /// A user, by name, or by number where no name is known.
    User(String),
    /// A flow.
    Flow(Box<Flow>),
}

/// Where a program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a container: `namespace/pod/container`, its name, or the beginning of its id.
    Container(String),
    /// In a systemd unit.
    Unit(String),
    /// Not known.
    Unknown,
}

/// A flow, by what its newest record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol.
    pub protocol: Protocol,
    /// Who began it.
    pub client: FlowEnd,
    /// The other.
    pub server: FlowEnd,
    /// How TCP stands.
    pub state: Option<TcpState>,
    /// Why the newest record was made.
    pub reason: EndReason,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    /// Address and port.
    pub endpoint: Endpoint,
    /// Path of the executable, or the command name.
    pub program: Option<String>,
    /// Where it runs.
    pub place: Place,
}

/// A view at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How long the window is: shorter at first.
    pub window: Duration,
    /// How long it is since the sums began.
    pub since: Duration,
    /// The first rows in the order that was asked for, of those that had a record in the window.
    pub rows: Vec<ReportRow>,
    /// How many more had one.
    pub more: u64,
    /// Rows that a bound pushed out, ever.
    pub evicted: u64,
    /// The sums of those and of all that were pushed out: the window.
    pub other: Sums,
    /// Likewise, since the sums began.
    pub other_total: Sums,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportRow {
    /// Who.
    pub subject: Subject,
    /// In the window.
    pub window: Sums,
    /// Since the sums began.
    pub total: Sums,
}

/// The sums.
#[derive(Debug)]
pub struct Top {
    began: Option<KernelTime>,
    slot: u64,
    containers: Table,
    pods: Table,
    processes: Table,
    users: Table,
    flows: Table,
    /// The slot of the newest record of each flow.
    seen: HashMap<(Cookie, u64), u64>,
    /// Keys are written here, so that a row that is there costs no memory.
    key: String,
}

impl Default for Top {
    fn default() -> Self {
        Self {
            began: None,
            slot: 0,
            containers: Table::new(CONTAINERS_KEPT, SERIES_MAX),
            pods: Table::new(PODS_KEPT, SERIES_MAX),
            processes: Table::new(PROCESSES_KEPT, 0),
            users: Table::new(USERS_KEPT, 0),
            flows: Table::new(FLOWS_KEPT, 0),
            seen: HashMap::new(),
            key: String::new(),
        }
    }
}

impl Top {
    /// Takes a record in.
    pub fn take(&mut self, record: &FlowRecord, now: KernelTime) {
        self.handle_timeout(now);
        let flow = (record.id.cookie, record.id.stream);
        let before = self.seen.get(&flow).copied();
        let known = before.is_some() || self.seen.len() < FLOWS_SEEN_MAX;
        if known {
            self.seen.insert(flow, self.slot);
        }
        let part = |side, slot| Part {
            side,
            sums: Sums::of(record, side),
            slot,
            before,
            first: record.first,
            counts: known || record.first,
        };
        self.take_flow(record, &part(Side::Flow, self.slot));
        for (side, party) in [
            (Side::Client, &record.initiator),
            (Side::Server, &record.responder),
        ] {
            // Nobody is at the far end of an attempt that failed.
            let nobody = side == Side::Server && record.reason.is_failed_attempt();
            if !party.owner.is_remote() && !nobody {
                self.take_end(&party.owner, &part(side, self.slot));
            }
        }
    }

    /// Time has passed. Need not be called as long as records come.
    pub fn handle_timeout(&mut self, now: KernelTime) {
        let began = *self.began.get_or_insert(now);
        let slot = now.since(began).as_nanos() / SLOT.as_nanos();
        let slot = u64::try_from(slot).unwrap_or(u64::MAX);
        if slot > self.slot {
            self.slot = slot;
            self.seen.retain(|_, at| is_within(*at, slot));
            self.containers.choose_series(slot);
            self.pods.choose_series(slot);
        }
    }

    /// A view, at most `rows_max` rows of it.
    #[must_use]
    pub fn report(&mut self, view: View, order: Order, rows_max: usize, now: KernelTime) -> Report {
        self.handle_timeout(now);
        let table = match view {
            View::Containers => &self.containers,
            View::Pods => &self.pods,
            View::Processes => &self.processes,
            View::Users => &self.users,
            View::Flows => &self.flows,
        };
        let since = self.began.map_or(Duration::ZERO, |began| now.since(began));
        let oldest = (self.slot + 1).saturating_sub(SLOTS);
        let before = SLOT.saturating_mul(u32::try_from(oldest).unwrap_or(u32::MAX));
        Report {
            window: since.saturating_sub(before),
            since,
            ..table.report(order, rows_max, self.slot)
        }
    }

    /// Containers with series of their own, each with what it did since it has them, and the sums of all others.
    pub fn container_series(&self) -> (impl Iterator<Item = (&Subject, &Sums)>, &Sums) {
        self.containers.series()
    }

    /// The same of pods.
    pub fn pod_series(&self) -> (impl Iterator<Item = (&Subject, &Sums)>, &Sums) {
        self.pods.series()
    }

    fn take_end(&mut self, owner: &Owner, part: &Part) {
        let names = owner.names.as_deref();
        let key = &mut self.key;
        if let Some(container) = names.and_then(|names| names.container.as_ref()) {
            let renamed = |subject: &mut Subject| {
                if let Subject::Container { name, pod, .. } = subject
                    && (*name != container.name || *pod != container.pod)
                {
                    name.clone_from(&container.name);
                    pod.clone_from(&container.pod);
                }
            };
            let subject = || Subject::Container {
                id: container.id.clone(),
                name: container.name.clone(),
                pod: container.pod.clone(),
            };
            self.containers.add(&container.id, part, subject, renamed);
            if let Some(pod) = &container.pod {
                write_key(key, &[&pod.namespace, &pod.name]);
                self.pods.add(key, part, || Subject::Pod(pod.clone()), |_| {});
            }
        }
        let program = program(owner);
        write_key(key, &[program, &place_text(names)]);
        let subject = || Subject::Process {
            program: program.to_owned(),
            place: place(names),
        };
        self.processes.add(key, part, subject, |_| {});
        let Some(process) = &owner.process else { return };
        match names.and_then(|names| names.user.as_deref()) {
            Some(user) => write_key(key, &[user]),
            None => {
                key.clear();
                let _ = write!(key, "{}", process.uid); // Writing to a String cannot fail.
            }
        }
        let user: &str = key;
        self.users
            .add(user, part, || Subject::User(user.to_owned()), |_| {});
    }

    fn take_flow(&mut self, record: &FlowRecord, part: &Part) {
        let key = &mut self.key;
        key.clear();
        let _ = write!(key, "{} {}", record.id.cookie.0, record.id.stream); // Writing to a String cannot fail.
        let subject = || {
            Subject::Flow(Box::new(Flow {
                protocol: record.protocol,
                client: FlowEnd::of(&record.initiator),
                server: FlowEnd::of(&record.responder),
                state: None,
                reason: record.reason,
            }))
        };
        let update = |subject: &mut Subject| {
            if let Subject::Flow(flow) = subject {
                flow.state = record.tcp.and_then(|tcp| tcp.state);
                flow.reason = record.reason;
                // Names may have become known since.
                for (end, party) in [
                    (&mut flow.client, &record.initiator),
                    (&mut flow.server, &record.responder),
                ] {
                    let same_place = end.place.text() == place_text(party.owner.names.as_deref());
                    if end.program.as_deref() != party.owner.program() || !same_place {
                        *end = FlowEnd::of(party);
                    }
                }
            }
        };
        self.flows.add(key, part, subject, update);
    }
}

impl FlowEnd {
    fn of(party: &Party) -> Self {
        Self {
            endpoint: party.endpoint,
            program: party.owner.program().map(str::to_owned),
            place: place(party.owner.names.as_deref()),
        }
    }
}

impl Place {
    /// The name alone; empty: not known.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Container(name) | Self::Unit(name) => name,
            Self::Unknown => "",
        }
    }
}

fn write_key(key: &mut String, parts: &[&str]) {
    key.clear();
    for (n, part) in parts.iter().enumerate() {
        if n > 0 {
            // In no name: the kernel ends them by it.
            key.push('\0');
        }
        key.push_str(part);
    }
}

fn program(owner: &Owner) -> &str {
    owner.program().unwrap_or(match owner.confidence {
        Confidence::Unknown(Unknown::Kernel) => "[kernel]",
        _ => "[unknown]",
    })
}

/// The container, else the unit; empty: neither is known.
fn place_text(names: Option<&Names>) -> Cow<'_, str> {
    let Some(names) = names else { return "".into() };
    match &names.container {
        Some(container) => container.shown(),
        None => names.unit.as_deref().unwrap_or_default().into(),
    }
}

fn place(names: Option<&Names>) -> Place {
    let text = || place_text(names).into_owned();
    match names {
        Some(Names {
            container: Some(_), ..
        }) => Place::Container(text()),
        Some(Names { unit: Some(_), .. }) => Place::Unit(text()),
        _ => Place::Unknown,
    }
}
