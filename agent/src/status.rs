//! What the agent tells about itself: what attached, what was lost, how each collector does.
//!
//! Written by the parts, read by screens and tests; nothing here decides anything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use flowtilla_agent_core::enrich::container::ContainerCounts;
use flowtilla_agent_core::loss::{CollectorLaw, Drops, KernelLaw, LeftOutSum, RecordLaw};

use crate::spool::SpoolStatus;

/// One kernel program and whether this kernel runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Name in the kernel object, such as `tcp_state`.
    pub name: &'static str,
    /// Where it hooks in, such as `tp_btf/inet_sock_set_state`.
    pub hook: &'static str,
    /// `None`: attached. Otherwise why not, one sentence.
    pub refused: Option<String>,
    /// What is missing in the picture without it.
    pub without: &'static str,
    /// Whether the agent cannot do its main job without it.
    pub mandatory: bool,
}

/// What was attached, told at once after start.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AttachReport {
    /// Every program of the object.
    pub programs: Vec<ProgramStatus>,
    /// Kernel memory of all maps, in octets, as the kernel says (`memlock` of fdinfo).
    pub map_octets: u64,
    /// Sockets older than the agent that were found.
    pub backfilled: u64,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Time from start to this report, in milliseconds.
    pub took_ms: u64,
}

/// How a connection to a collector stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectorState {
    /// Not connected; tries again by itself. Why, one sentence.
    Connecting {
        /// Why the last try failed; `None` before the first result.
        why: Option<String>,
    },
    /// Connected, handshake complete, the collector has not subscribed yet.
    AwaitingSubscription,
    /// Records flow. `acknowledged`: the peer answers PING.
    Streaming {
        /// Whether the peer speaks ZMTP ≥ 3.1 and answers PING.
        acknowledged: bool,
    },
    /// TCP lives, but the collector does not read: records wait here.
    Stalled,
}

impl fmt::Display for CollectorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting { why: None } => f.write_str("not connected"),
            Self::Connecting { why: Some(why) } => write!(f, "not connected: {why}"),
            Self::AwaitingSubscription => f.write_str("connected, not subscribed"),
            Self::Streaming { acknowledged: true } => f.write_str("streaming"),
            Self::Streaming { acknowledged: false } => f.write_str("streaming, without acknowledgement"),
            Self::Stalled => f.write_str("stalled: it does not read"),
        }
    }
}

/// One collector, or several of which one is fed at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorStatus {
    /// Name in the policy.
    pub name: String,
    /// `tcp://HOST:PORT`.
    pub endpoint: String,
    /// How it stands.
    pub state: CollectorState,
    /// Law 2.
    pub law: CollectorLaw,
    /// Messages sent since start, over all connections.
    pub messages: u64,
    /// Connections made since start.
    pub connects: u64,
    /// Of several collectors that take turns each, the preferred one first; `endpoint` and `state` are then those of the
    /// one in use. Empty: there is one only.
    pub members: Vec<MemberStatus>,
}

/// How one of several collectors stands that take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Not in use, and not known to be in reach or not.
    Unknown,
    /// It is fed, or tried to be: its state is that of all together.
    InUse,
    /// It could be fed: the last probe found it.
    StandingBy,
    /// It could not.
    OutOfReach {
        /// One sentence.
        why: String,
    },
}

/// One of several collectors that take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Name in the policy.
    pub name: String,
    /// `tcp://HOST:PORT`.
    pub endpoint: String,
    /// How it stands.
    pub state: MemberState,
    /// Messages sent to it since start.
    pub messages: u64,
    /// Connections made since start to feed it.
    pub connects: u64,
}

/// How many flows know their owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Ends on this host that have ended flows.
    pub ends: u64,
    /// Of these, ends with a process.
    pub with_process: u64,
    /// Of these, ends whose executable is known.
    pub with_names: u64,
}

/// What an agent told of its flows with one other agent, and left to that one to tell, while the rule decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Name of the other agent.
    pub peer: String,
    /// Records told.
    pub spoken_records: u64,
    /// IP octets in them, both directions.
    pub spoken_octets: u64,
    /// Records left to the other.
    pub held_records: u64,
    /// IP octets in them.
    pub held_octets: u64,
}

/// What the kernel side leaves out by itself, because the policy leaves out all that a cgroup does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLeftOut {
    /// Cgroups that are left out at this moment.
    pub cgroups: u64,
    /// Cgroups that would be too, if the kernel's map had room: the agent leaves out what they do.
    pub beyond: u64,
    /// What was left out since the agent's start.
    pub sum: LeftOutSum,
}

/// The agent, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Flows in the table.
    pub flows: u64,
    /// Records made since start, and handed on.
    pub records: u64,
    /// Records that wait for names: made, and not handed on yet.
    pub unnamed: u64,
    /// The spool; `None`: no collector has needed one.
    pub spool: Option<SpoolStatus>,
    /// Losses before the table, and of the view.
    pub drops: Drops,
    /// Law 1.
    pub kernel_law: KernelLaw,
    /// Law 3: what the policy left out, and that nothing else is missing.
    pub record_law: RecordLaw,
    /// What the kernel side left out by itself: nothing of it is in the laws.
    pub left_out: KernelLeftOut,
    /// Flows that a rule was to decide about by a container that no runtime had named.
    pub unnamed_containers: u64,
    /// What is beyond the policy's limits, one sentence each.
    pub over_limits: Vec<String>,
    /// Flows with other agents, by agent.
    pub peers: Vec<PeerStatus>,
    /// Owners found.
    pub coverage: Coverage,
    /// Names of containers.
    pub containers: ContainerCounts,
    /// Each collector.
    pub collectors: Vec<CollectorStatus>,
    /// How long the oldest record that waits for each collector has waited in this run.
    pub lags: BTreeMap<String, Duration>,
    /// CPU time of the kernel programs since the agent's start; `None`: the kernel does not count it.
    pub programs_time: Option<Duration>,
}
