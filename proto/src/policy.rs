//! What one agent is to do: what it captures, what it learns about processes, where records go, what may wait.
//!
//! In: [`wire::Policy`]. Out: [`Policy`], checked whole, relations between fields included. Whether the collectors it
//! names exist is checked by whoever has them.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::ids::{CollectorName, PolicyName};
use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::wire;

pub use self::containers::{Containers, SOCKET_OCTETS_MAX, SOCKETS_MAX, SocketPath};
pub use self::limits::{CPU_PERMILLE, Limits, MEMORY_OCTETS};
pub use self::rollout::{Gates, Rollout, Wave};
pub use self::rule::{
    FlowRule, NAME_PATTERN_OCTETS_MAX, NamePattern, POD_LABEL_KEY_OCTETS_MAX, POD_LABEL_VALUE_OCTETS_MAX,
    PROCESS_OCTETS_MAX, PodLabel, PortRange, ProcessPattern, RULE_MEMBERS_MAX, RULES_MAX, USER_OCTETS_MAX,
    User,
};
pub use self::sampling::{ONE_IN, Sampling};
pub use self::scope::{SCOPE_OCTETS_MAX, Scope, ScopePath};
pub use self::selector::Selector;

mod containers;
mod limits;
pub mod rollout;
mod rule;
mod sampling;
mod scope;
pub mod selector;

/// Most scopes of one kind. The kernel programs compare with each in turn; their list has this many places.
pub const SCOPES_MAX: usize = 8;

/// Flows in the table at once, unless the policy says otherwise.
///
/// Half of it cuts a busy proxy's flows short; double it, and the table may take more memory than all the rest.
pub const MAX_FLOWS_DEFAULT: u64 = 65_536;
/// Least and most of `maxFlows`.
pub const MAX_FLOWS: RangeInclusive<u64> = 16..=4_194_304;

/// Longest span of one record of a live flow, in milliseconds, unless the policy says otherwise.
///
/// Smooth graphs in ntopng. Half of it doubles the records of long flows; double it, and graphs show steps.
pub const ACTIVE_TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Least and most of `activeTimeoutMs`. Source of the upper bound: IPFIX element 36, as routers offer it.
pub const ACTIVE_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=3_600_000;
/// Most of `activeTimeoutMs` when records are exported: ntopng ends flows that are silent for 60 s.
pub const ACTIVE_TIMEOUT_EXPORTING_MS_MAX: u64 = 30_000;

/// Longest silence before a flow ends, in milliseconds, unless the policy says otherwise.
///
/// What routers ship with. Half of it cuts slow keep-alives into many flows; double it, and the table holds twice the
/// silent flows. Source: IPFIX element 37.
pub const IDLE_TIMEOUT_MS_DEFAULT: u64 = 15_000;
/// Least and most of `idleTimeoutMs`.
pub const IDLE_TIMEOUT_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// Most collectors of a policy.
///
/// Each has a connection and a cursor of its own. Records say in 64 bits from which collectors they are held.
pub const COLLECTORS_MAX: usize = 16;

/// How long the collector in use may be out of reach before the next is taken, in milliseconds, unless the policy says
/// otherwise.
///
/// A restart of ntopng takes some seconds. Half of it changes over at each restart; double it, and what is shown is a
/// minute old before another collector shows it.
pub const FAIL_AFTER_MS_DEFAULT: u64 = 30_000;
/// Least and most of `failAfterMs`.
pub const FAIL_AFTER_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// How long an earlier collector must be in reach before it is taken again, in milliseconds, unless the policy says
/// otherwise.
///
/// Twice the way there, so that a collector that comes and goes is left alone. Half of it changes to and fro; double
/// it, and the spare carries the load for longer than it need.
pub const FAIL_BACK_AFTER_MS_DEFAULT: u64 = 60_000;
/// Least and most of `failBackAfterMs`.
pub const FAIL_BACK_AFTER_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// Octets that wait on disk at most, unless the policy says otherwise.
///
/// Some hours at a hundred records a second. Half of it loses a night's outage on a busy host; double it, and a small
/// root file system feels it.
pub const BUFFER_OCTETS_DEFAULT: u64 = 1 << 30;
/// Least and most of `octetsMax`. Below 16 MiB there is no room for a segment to be filled and one to be sent.
pub const BUFFER_OCTETS: RangeInclusive<u64> = 16 << 20..=1 << 44;

/// Longest time that something waits on disk, in milliseconds, unless the policy says otherwise.
///
/// A week: longer than any outage that nobody mends. Half of it loses what happened before a long weekend; double it, and
/// a collector that nobody will start again keeps the disk full for longer.
pub const BUFFER_AGE_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// Least and most of `ageMaxMs`.
pub const BUFFER_AGE_MS: RangeInclusive<u64> = 60_000..=366 * 24 * 3_600_000;

/// Octets of the file system that stay free, unless the policy says otherwise.
///
/// Room for logs and for a package's upgrade. Half of it is one large package; double it, and a small disk gets no buffer.
pub const BUFFER_FREE_OCTETS_DEFAULT: u64 = 256 << 20;
/// Least and most of `freeOctetsMin`. The spool must never see a full disk.
pub const BUFFER_FREE_OCTETS: RangeInclusive<u64> = 8 << 20..=1 << 44;

/// Longest time between two syncs, in milliseconds, unless the policy says otherwise.
///
/// What a power cut can cost. Half of it doubles the writes of an idle host; double it, and twice as much is lost.
pub const SYNC_INTERVAL_MS_DEFAULT: u64 = 500;
/// Least and most of `syncIntervalMs`.
pub const SYNC_INTERVAL_MS: RangeInclusive<u64> = 10..=60_000;

/// What one agent is to do. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Policy {
    /// Its name; `None`: no controller keeps it.
    pub name: Option<PolicyName>,
    /// Agents that it is for.
    pub selector: Selector,
    /// Of several policies that are for an agent, the one of the highest priority applies.
    pub priority: u32,
    /// How it reaches its agents.
    pub rollout: Rollout,
    /// What is observed, and how it is cut into records.
    pub capture: Capture,
    /// What is learnt about processes.
    pub enrich: Enrich,
    /// Where records go.
    pub export: Export,
    /// What the agent may cost.
    pub limits: Limits,
    /// What may wait on disk.
    pub buffer: Buffer,
}

/// What is observed, and how it is cut into records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Capture {
    /// Whether TCP sockets are observed. At least one of `tcp` and `udp` is true.
    pub tcp: bool,
    /// Whether UDP sockets are observed.
    pub udp: bool,
    /// Parts of the host that are observed, at most [`SCOPES_MAX`] of each kind, none twice. Empty: the whole host.
    /// Several of one kind: any of them. Both kinds: one of each.
    pub scopes: Vec<Scope>,
    /// Most flows in the table at once, within [`MAX_FLOWS`].
    pub max_flows: u64,
    /// Longest span that one record of a live flow covers, within [`ACTIVE_TIMEOUT_MS`], and at most
    /// [`ACTIVE_TIMEOUT_EXPORTING_MS_MAX`] when there is a collector.
    pub active_timeout: Duration,
    /// Longest silence before a flow ends, within [`IDLE_TIMEOUT_MS`].
    pub idle_timeout: Duration,
    /// Flows that are kept: those that one of these matches, at most [`RULES_MAX`]. Empty: all.
    pub include: Vec<FlowRule>,
    /// Flows that are left out, included or not: those that one of these matches, at most [`RULES_MAX`].
    pub exclude: Vec<FlowRule>,
    /// Which share of the flows that are left is kept.
    pub sampling: Sampling,
}

/// What is learnt about processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Enrich {
    /// How much of a command line leaves the host.
    pub command_line: CommandLine,
    /// Where the names of containers come from.
    pub containers: Containers,
}

/// How much of a command line leaves the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CommandLine {
    /// Nothing.
    None,
    /// What the list of rules lets through.
    #[default]
    Redacted,
    /// Everything, secrets included.
    Full,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Export {
    /// Names of collectors, at most [`COLLECTORS_MAX`], none twice.
    pub collectors: Vec<CollectorName>,
    /// What they see of a loopback address.
    pub loopback: Loopback,
    /// Which of them gets a record.
    pub mode: Mode,
}

/// Which of several collectors gets a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each of them.
    #[default]
    Mirror,
    /// The first that is in reach, in their order.
    Failover(Failover),
}

/// When to change from one collector to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Failover {
    /// How long the one in use may be out of reach, within [`FAIL_AFTER_MS`].
    pub fail_after: Duration,
    /// How long an earlier one must be in reach, within [`FAIL_BACK_AFTER_MS`].
    pub fail_back_after: Duration,
}

/// What a collector sees of a loopback address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Loopback {
    /// The host's own address.
    #[default]
    HostAddress,
    /// Nothing: records of loopback flows are not exported.
    Omit,
    /// The loopback address.
    AsIs,
}

/// Bounds of what waits on disk until every collector has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Buffer {
    /// Most octets, within [`BUFFER_OCTETS`].
    pub octets_max: u64,
    /// Longest time that something waits, within [`BUFFER_AGE_MS`].
    pub age_max: Duration,
    /// Octets of the file system that stay free, within [`BUFFER_FREE_OCTETS`].
    pub free_octets_min: u64,
    /// Longest time between two syncs, within [`SYNC_INTERVAL_MS`].
    pub sync_interval: Duration,
}

impl TryFrom<wire::Policy> for Policy {
    type Error = Mistakes;

    /// Checks every field and the relations between them.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the policy.
    fn try_from(sent: wire::Policy) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let name = match sent.name.as_str() {
            "" => Some(None),
            text => reading.text("name", text, PolicyName::parse).map(Some),
        };
        let selector = reading.inner("selector", Selector::try_from(sent.selector.unwrap_or_default()));
        let rollout = reading.inner("rollout", Rollout::try_from(sent.rollout.unwrap_or_default()));
        let exporting = sent
            .export
            .as_ref()
            .is_some_and(|export| !export.collectors.is_empty());
        let capture = reading.inner(
            "capture",
            parse_capture(sent.capture.unwrap_or_default(), exporting),
        );
        let enrich = reading.inner("enrich", parse_enrich(sent.enrich.unwrap_or_default()));
        let export = reading.inner("export", parse_export(&sent.export.unwrap_or_default()));
        let limits = reading.inner("limits", limits::parse(sent.limits.unwrap_or_default()));
        let buffer = reading.inner("buffer", parse_buffer(sent.buffer.unwrap_or_default()));
        let made = (|| {
            Some(Self {
                name: name?,
                selector: selector?,
                priority: sent.priority,
                rollout: rollout?,
                capture: capture?,
                enrich: enrich?,
                export: export?,
                limits: limits?,
                buffer: buffer?,
            })
        })();
        reading.finish(made)
    }
}

fn parse_capture(sent: wire::Capture, exporting: bool) -> Result<Capture, Mistakes> {
    let mut reading = Reading::default();
    let (tcp, udp) = (sent.tcp.unwrap_or(true), sent.udp.unwrap_or(true));
    if !tcp && !udp {
        reading.refuse(
            "",
            None,
            Refused::new("neither tcp nor udp is captured", "leave one of them on"),
        );
    }
    let scopes = parse_scopes(&mut reading, &sent.scopes);
    let max_flows = reading.number(
        "maxFlows",
        sent.max_flows,
        MAX_FLOWS_DEFAULT,
        &MAX_FLOWS,
        " flows",
    );
    let active = reading.number(
        "activeTimeoutMs",
        sent.active_timeout_ms,
        ACTIVE_TIMEOUT_MS_DEFAULT,
        &ACTIVE_TIMEOUT_MS,
        " ms",
    );
    if let Some(active) = active
        && exporting
        && active > ACTIVE_TIMEOUT_EXPORTING_MS_MAX
    {
        let why = "is longer than ntopng keeps a silent flow for sure";
        let remedy = format!("write at most {ACTIVE_TIMEOUT_EXPORTING_MS_MAX} ms, or export to no collector");
        reading.refuse(
            "activeTimeoutMs",
            Some(&format!("{active} ms")),
            Refused::new(why, remedy),
        );
    }
    let idle = reading.number(
        "idleTimeoutMs",
        sent.idle_timeout_ms,
        IDLE_TIMEOUT_MS_DEFAULT,
        &IDLE_TIMEOUT_MS,
        " ms",
    );
    let include = rule::parse_all(&mut reading, "include", &sent.include);
    let exclude = rule::parse_all(&mut reading, "exclude", &sent.exclude);
    let sampling = reading.inner("sampling", sampling::parse(sent.sampling.unwrap_or_default()));
    let made = (|| {
        Some(Capture {
            tcp,
            udp,
            scopes: scopes?,
            max_flows: max_flows?,
            active_timeout: Duration::from_millis(active?),
            idle_timeout: Duration::from_millis(idle?),
            include: include?,
            exclude: exclude?,
            sampling: sampling?,
        })
    })();
    reading.finish(made)
}

fn parse_scopes(reading: &mut Reading, sent: &[wire::Scope]) -> Option<Vec<Scope>> {
    let mut scopes = Vec::new();
    let mut complete = true;
    for (n, scope) in sent.iter().enumerate() {
        let at = format!("scopes[{n}]");
        match scope::parse(reading, &at, scope) {
            Some(scope) if scopes.contains(&scope) => {
                let text = scope.to_string();
                reading.refuse(&at, Some(&text), Refused::new("is there twice", "write it once"));
                complete = false;
            }
            Some(scope) => scopes.push(scope),
            None => complete = false,
        }
    }
    let cgroups = scopes
        .iter()
        .filter(|scope| matches!(scope, Scope::Cgroup(_)))
        .count();
    for (kind, count) in [("cgroup", cgroups), ("netns", scopes.len() - cgroups)] {
        if count > SCOPES_MAX {
            let why = format!("has {count} scopes of the kind {kind}");
            let remedy = format!("write at most {SCOPES_MAX} of a kind, or one that holds several of them");
            reading.refuse("scopes", None, Refused::new(why, remedy));
            complete = false;
        }
    }
    complete.then_some(scopes)
}

fn parse_enrich(sent: wire::Enrich) -> Result<Enrich, Mistakes> {
    let mut reading = Reading::default();
    let command_line = reading.member(
        "commandLine",
        sent.command_line,
        |sent| match sent {
            wire::CommandLine::None => CommandLine::None,
            wire::CommandLine::Unspecified | wire::CommandLine::Redacted => CommandLine::Redacted,
            wire::CommandLine::Full => CommandLine::Full,
        },
        "none, redacted or full",
    );
    let containers = reading.inner(
        "containers",
        containers::parse(sent.containers.unwrap_or_default()),
    );
    let enrich = command_line.zip(containers);
    reading.finish(enrich.map(|(command_line, containers)| Enrich {
        command_line,
        containers,
    }))
}

fn parse_export(sent: &wire::Export) -> Result<Export, Mistakes> {
    let mut reading = Reading::default();
    let mut names = BTreeSet::new();
    for (n, text) in sent.collectors.iter().enumerate() {
        let at = format!("collectors[{n}]");
        if let Some(name) = reading.text(&at, text, CollectorName::parse)
            && !names.insert(name)
        {
            reading.refuse(
                &at,
                Some(text),
                Refused::new("is there twice", "name each collector once"),
            );
        }
    }
    if sent.collectors.len() > COLLECTORS_MAX {
        let why = format!("has {} names", sent.collectors.len());
        reading.refuse(
            "collectors",
            None,
            Refused::new(why, format!("name at most {COLLECTORS_MAX}")),
        );
    }
    let loopback = reading.member(
        "loopback",
        sent.loopback,
        |sent| match sent {
            wire::Loopback::Unspecified | wire::Loopback::HostAddress => Loopback::HostAddress,
            wire::Loopback::Omit => Loopback::Omit,
            wire::Loopback::AsIs => Loopback::AsIs,
        },
        "hostAddress, omit or asIs",
    );
    let collectors = sent
        .collectors
        .iter()
        .filter_map(|text| CollectorName::parse(text).ok())
        .collect();
    let mode = parse_mode(&mut reading, sent);
    let made = (|| {
        Some(Export {
            collectors,
            loopback: loopback?,
            mode: mode?,
        })
    })();
    reading.finish(made)
}

fn parse_mode(reading: &mut Reading, sent: &wire::Export) -> Option<Mode> {
    let mut ms = |path, value, default, range| {
        let ms = reading.number(path, value, default, range, " ms")?;
        Some(Duration::from_millis(ms))
    };
    let fail_after = ms(
        "failAfterMs",
        sent.fail_after_ms,
        FAIL_AFTER_MS_DEFAULT,
        &FAIL_AFTER_MS,
    );
    let fail_back_after = ms(
        "failBackAfterMs",
        sent.fail_back_after_ms,
        FAIL_BACK_AFTER_MS_DEFAULT,
        &FAIL_BACK_AFTER_MS,
    );
    let failover = reading.member(
        "mode",
        sent.mode,
        |sent| match sent {
            wire::Mode::Unspecified | wire::Mode::Mirror => false,
            wire::Mode::Failover => true,
        },
        "mirror or failover",
    )?;
    if failover && sent.collectors.len() < 2 {
        let why = "has nothing to change over to";
        let remedy = "name at least two collectors, or write mirror";
        reading.refuse("mode", Some("failover"), Refused::new(why, remedy));
        return None;
    }
    for (path, given) in [
        ("failAfterMs", sent.fail_after_ms),
        ("failBackAfterMs", sent.fail_back_after_ms),
    ] {
        if let Some(ms) = given.filter(|_| !failover) {
            let why = "means nothing to a mirror";
            let remedy = "leave it out, or write mode: failover";
            reading.refuse(path, Some(&format!("{ms} ms")), Refused::new(why, remedy));
        }
    }
    let failover_terms = Failover {
        fail_after: fail_after?,
        fail_back_after: fail_back_after?,
    };
    Some(if failover {
        Mode::Failover(failover_terms)
    } else {
        Mode::Mirror
    })
}

fn parse_buffer(sent: wire::Buffer) -> Result<Buffer, Mistakes> {
    let mut reading = Reading::default();
    let mut number = |path, value, default, range, unit| reading.number(path, value, default, range, unit);
    let octets = number(
        "octetsMax",
        sent.octets_max,
        BUFFER_OCTETS_DEFAULT,
        &BUFFER_OCTETS,
        " octets",
    );
    let age = number(
        "ageMaxMs",
        sent.age_max_ms,
        BUFFER_AGE_MS_DEFAULT,
        &BUFFER_AGE_MS,
        " ms",
    );
    let free = number(
        "freeOctetsMin",
        sent.free_octets_min,
        BUFFER_FREE_OCTETS_DEFAULT,
        &BUFFER_FREE_OCTETS,
        " octets",
    );
    let sync = number(
        "syncIntervalMs",
        sent.sync_interval_ms,
        SYNC_INTERVAL_MS_DEFAULT,
        &SYNC_INTERVAL_MS,
        " ms",
    );
    let made = (|| {
        Some(Buffer {
            octets_max: octets?,
            age_max: Duration::from_millis(age?),
            free_octets_min: free?,
            sync_interval: Duration::from_millis(sync?),
        })
    })();
    reading.finish(made)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
