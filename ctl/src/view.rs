//! What the controller tells, as values for `-o json` and `-o yaml`, and as words for tables.
//!
//! Shapes (absent fields are left out; times are RFC 3339; spans are milliseconds; octets are octets):
//!
//! ```text
//! agent       id, state "new" | "connected" | "offline" | "awaitingApproval" | "revoked", labels {}, lastSeen, enrolled,
//!             svidNotAfter, host, version, build: SHA-256 of its program, kernel, operatingSystem, scope, addresses [], sourceId, policy,
//!             revisionHeld, revisionWanted, converged: it has what it is to have
//!             tied []: policies of one priority that all choose it; it keeps the one of them that it has
//!             untoldOctets: of flows that others left to it and that it did not tell
//!             untoldBy: agents by whose word that is so
//!             refusal {section, path, reason}: of what it is to have; section "notOffered": the controller's, since it does not
//!               know the field at path
//!             effective {programs [], refused [{program, reason, without}], collectors []}
//!             health {uptimeMs, capturing, observedOctets, observedPackets, records, flows, drops {place: number},
//!               filtered, sampledOut {records, octets, packets}, coverage {ends, withProcess, withNames},
//!               kernelLeftOut {connections, packets, octets, cgroups, beyond}: in no law; unnamedContainerDecisions,
//!               cost {cpuNs, residentOctets, programsNs, mapOctets}, spoolOctets, spoolFault: why records wait in memory only; overLimits [],
//!               collectors [{name, state, reason, made, taken, waiting, evicted, dropped {place: number}, lagMs}],
//!               peers [{peer, spokenRecords, spokenOctets, heldRecords, heldOctets}]}
//! operator    name, state "in" | "expired" | "revoked", enrolled, svidNotAfter, revoked, admittedBy
//! token       id, operator, labels {}, made, expires, madeBy, usedBy, state "unused" | "used" | "expired" | "revoked"
//! revision    revision, made, by, message, rollbackTo, state, changes [{kind, name, change}]
//! rollout     id, revision, policy, state, wave, waves, began, ended, soakUntil, waitsFor, acked, nacked, pending, offline,
//!             failures [{gate, agents [], value, baseline, bound, message}]
//! status      well: the exit code is 0; version, trustDomain, started, revision, epoch, agents, connected, converged, nacked, behind,
//!             tied, notOffered: of those nacked, agents that do not know what they are to have
//!             diskFull: no change is taken until the controller's disk has room
//!             concerns [{kind "refuses" | "behind" | "awayBehind" | "away" | "conflict" | "export", agents: how many,
//!               first [{agent, lastSeen, why}]: ten at most}]
//!             leftOut {agents: that have told, filtered, sampledOut {records, octets, packets}, kernel: as kernelLeftOut}: on
//!               purpose, since each agent's start
//!             roots [{id, notAfter, signs}], rollout, caller, callerNotAfter
//! ```
//!
//! Policies and collectors are the documents that `deploy` takes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::{
    Agent, AgentState, Change, DrainState, GateFailure, Operator, Revision, Rollout, RolloutState, Root,
    Token,
};
use flowtilla_proto::wire::session::{
    Aside, CollectorHealth, CollectorState, Drop, Feature, Health, Nack, Section,
};

use crate::document::render::Plain;
use crate::output::{hex, rfc3339, span, word};

pub(crate) use self::status::status;

mod status;

const NANOSECONDS_A_MS: u64 = 1_000_000;

/// A moment that the controller tells; `None`: never.
pub(crate) fn moment(ms: i64) -> Option<WallTime> {
    let ms = u64::try_from(ms).ok().filter(|&ms| ms > 0)?;
    Some(WallTime(ms.saturating_mul(NANOSECONDS_A_MS)))
}

/// How long ago a moment is: `45s`; `-`: never.
pub(crate) fn ago(ms: i64, now: WallTime) -> String {
    moment(ms).map_or_else(
        || "-".to_owned(),
        |then| span(Duration::from_nanos(now.0.saturating_sub(then.0))),
    )
}

/// How long it is until a moment: `45s`; `over` when it has passed.
pub(crate) fn until(ms: i64, now: WallTime) -> String {
    match moment(ms) {
        None => "-".to_owned(),
        Some(then) if then.0 <= now.0 => "over".to_owned(),
        Some(then) => span(Duration::from_nanos(then.0 - now.0)),
    }
}

/// Word of a state.
pub(crate) fn agent_state(state: AgentState) -> &'static str {
    match state {
        AgentState::Unspecified => "unknown",
        AgentState::New => "new",
        AgentState::Connected => "connected",
        AgentState::Offline => "offline",
        AgentState::AwaitingApproval => "awaitingApproval",
        AgentState::Revoked => "revoked",
    }
}

/// Word of a state.
pub(crate) fn rollout_state(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Unspecified => "none",
        RolloutState::Running => "running",
        RolloutState::Soaking => "soaking",
        RolloutState::Paused => "paused",
        RolloutState::Done => "done",
        RolloutState::RollingBack => "rollingBack",
        RolloutState::RolledBack => "rolledBack",
        RolloutState::Superseded => "superseded",
    }
}

/// Word of a change.
pub(crate) fn change(change: Change) -> &'static str {
    match change {
        Change::Unspecified => "unknown",
        Change::None => "unchanged",
        Change::Added => "added",
        Change::Changed => "changed",
        Change::Removed => "removed",
    }
}

/// Word of a token's state.
pub(crate) fn token_state(token: &Token, now: WallTime) -> &'static str {
    match token {
        Token { revoked: true, .. } => "revoked",
        Token { used_by, .. } if !used_by.is_empty() => "used",
        Token { expires_ms, .. } if moment(*expires_ms).is_none_or(|then| then.0 <= now.0) => "expired",
        _ => "unused",
    }
}

/// Word of an operator's state.
pub(crate) fn operator_state(operator: &Operator, now: WallTime) -> &'static str {
    let over = moment(operator.svid_not_after_ms).is_none_or(|then| then.0 <= now.0);
    match (operator.revoked_ms != 0, over) {
        (true, _) => "revoked",
        (false, true) => "expired",
        (false, false) => "in",
    }
}

/// A SPIFFE ID without what all of a fleet have in common: `operator/ann`.
pub(crate) fn short(id: &str) -> String {
    let of_fleet = id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    word(of_fleet.map_or(id, |(_, rest)| rest))
}

/// Whether the controller says that an agent cannot be drained. That it cannot have its policy does not keep one from that which
/// knows how to be.
pub(crate) fn keeps_from_draining(agent: &Agent, nack: &Nack) -> bool {
    let drain = i32::from(Feature::Drain);
    let knows = agent
        .hello
        .as_ref()
        .is_some_and(|hello| hello.features.contains(&drain));
    nack.section() == Section::NotOffered && (nack.path == "drain" || !knows)
}

/// In one word and, when there is something to say, why.
pub(crate) fn condition(agent: &Agent) -> String {
    if !agent.conflict.is_empty() {
        return agent.conflict.clone();
    }
    if let Some(nack) = &agent.nack {
        let refusal = refusal(nack, "refused");
        return match agent.drain() {
            DrainState::Unspecified => refusal,
            _ if nack.path == "drain" => refusal,
            DrainState::Draining if keeps_from_draining(agent, nack) => refusal,
            state => format!("{}; {refusal}", drain_state(state)),
        };
    }
    if !agent.tied.is_empty() {
        return format!("tied: {} have one priority", agent.tied.join(", "));
    }
    let Some(health) = &agent.health else {
        return "-".to_owned();
    };
    if let Some(over) = health.over_limits.first() {
        return format!("over limits: {over}");
    }
    if !health.spool_fault.is_empty() {
        return format!("records wait in memory only: {}", health.spool_fault);
    }
    let troubled = health
        .collectors
        .iter()
        .find(|collector| collector.state() != CollectorState::Streaming);
    if let Some(collector) = troubled {
        let word = collector_state(collector.state());
        let reason = match collector.reason.is_empty() {
            true => String::new(),
            false => format!(": {}", collector.reason),
        };
        return format!("{} {word}{reason}", collector.name);
    }
    match agent.drain() {
        DrainState::Unspecified => {}
        state => return drain_state(state).to_owned(),
    }
    match (health.capturing, converged(agent)) {
        (false, _) => "captures nothing".to_owned(),
        (true, false) => "on the way".to_owned(),
        (true, true) => "well".to_owned(),
    }
}

/// Word of a state; empty: it is not drained.
fn drain_state(state: DrainState) -> &'static str {
    match state {
        DrainState::Unspecified => "",
        DrainState::Draining => "draining",
        DrainState::Drained => "drained",
    }
}

/// Whether it has what it is to have.
pub(crate) fn converged(agent: &Agent) -> bool {
    let withheld = |nack: &Nack| nack.section() == Section::NotOffered && nack.path != "drain";
    agent.held.is_some() && agent.held == agent.wanted && !agent.nack.as_ref().is_some_and(withheld)
}

/// Why an agent has not what it is to have: its own words behind `word`, or the controller's.
pub(crate) fn refusal(nack: &Nack, word: &str) -> String {
    match nack.section() {
        Section::NotOffered => nack.reason.clone(),
        _ => format!("{word}: {}", nack.reason),
    }
}

/// Word of a state.
pub(crate) fn collector_state(state: CollectorState) -> &'static str {
    match state {
        CollectorState::Unspecified => "unknown",
        CollectorState::Connecting => "connecting",
        CollectorState::AwaitingSubscription => "awaitingSubscription",
        CollectorState::Streaming => "streaming",
        CollectorState::Unacknowledged => "unacknowledged",
        CollectorState::Stalled => "stalled",
    }
}

/// Fields in their order; what is empty is left out.
#[derive(Default)]
struct Fields(Vec<(String, Plain)>);

impl Fields {
    fn text(mut self, name: &str, text: &str) -> Self {
        if !text.is_empty() {
            self.0.push((name.to_owned(), Plain::Text(text.to_owned())));
        }
        self
    }

    fn number(mut self, name: &str, number: impl Into<u64>) -> Self {
        self.0.push((name.to_owned(), Plain::Number(number.into())));
        self
    }

    fn given(self, name: &str, number: impl Into<u64>) -> Self {
        match number.into() {
            0 => self,
            number => self.number(name, number),
        }
    }

    fn flag(mut self, name: &str, value: bool) -> Self {
        self.0.push((name.to_owned(), Plain::Bool(value)));
        self
    }

    fn time(self, name: &str, ms: i64) -> Self {
        match moment(ms) {
            Some(time) => self.text(name, &rfc3339(time).to_string()),
            None => self,
        }
    }

    fn part(mut self, name: &str, part: Option<Plain>) -> Self {
        let full = |part: &Plain| !matches!(part, Plain::List(list) if list.is_empty());
        self.0
            .extend(part.filter(full).map(|part| (name.to_owned(), part)));
        self
    }

    fn texts<'a>(self, name: &str, texts: impl IntoIterator<Item = &'a String>) -> Self {
        let texts = texts.into_iter().map(|text| Plain::Text(text.clone())).collect();
        self.part(name, Some(Plain::List(texts)))
    }

    fn labels<'a>(self, labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let labels = labels
            .into_iter()
            .map(|(key, value)| (key.clone(), Plain::Text(value.clone())));
        self.part("labels", Some(Plain::Map(labels.collect())))
    }

    fn done(self) -> Plain {
        Plain::Map(self.0)
    }
}

/// See the module.
pub(crate) fn agent(agent: &Agent) -> Plain {
    let hello = agent.hello.clone().unwrap_or_default();
    let addresses: Vec<String> = hello.addresses.iter().map(|address| shown(address)).collect();
    let nack = agent.nack.as_ref().map(|nack| {
        Fields::default()
            .text("section", section(nack.section()))
            .text("path", &nack.path)
            .text("reason", &nack.reason)
            .done()
    });
    let effective = agent.effective.as_ref().map(|effective| {
        let refused = effective.refused.iter().map(|refused| {
            Fields::default()
                .text("program", &refused.program)
                .text("reason", &refused.reason)
                .text("without", &refused.without)
                .done()
        });
        Fields::default()
            .texts("programs", &effective.programs)
            .part("refused", Some(Plain::List(refused.collect())))
            .texts("collectors", &effective.collectors)
            .done()
    });
    Fields::default()
        .text("id", &agent.id)
        .text("state", agent_state(agent.state()))
        .labels(&agent.labels)
        .time("lastSeen", agent.last_seen_ms)
        .time("enrolled", agent.enrolled_ms)
        .time("svidNotAfter", agent.svid_not_after_ms)
        .text("host", &hello.host_name)
        .text("version", &hello.version)
        .text("build", &hex(&hello.build))
        .text("kernel", &hello.kernel)
        .text("operatingSystem", &hello.operating_system)
        .text("scope", &hello.scope)
        .texts("addresses", &addresses)
        .given("sourceId", agent.source_id)
        .text("policy", &agent.policy)
        .number("revisionHeld", agent.revision_held)
        .number("revisionWanted", agent.revision_wanted)
        .given("untoldOctets", agent.untold_octets)
        .texts("untoldBy", &agent.untold_by)
        .flag("converged", converged(agent))
        .text("drain", drain_state(agent.drain()))
        .texts("tied", &agent.tied)
        .text("conflict", &agent.conflict)
        .part("refusal", nack)
        .part("effective", effective)
        .part("health", agent.health.as_ref().map(health))
        .done()
}

fn health(health: &Health) -> Plain {
    let coverage = health.coverage.map(|coverage| {
        Fields::default()
            .number("ends", coverage.ends)
            .number("withProcess", coverage.with_process)
            .number("withNames", coverage.with_names)
            .done()
    });
    let cost = health.cost.map(|cost| {
        let programs = cost.programs_ns.map(Plain::Number);
        Fields::default()
            .number("cpuNs", cost.cpu_ns)
            .number("residentOctets", cost.resident_octets)
            .part("programsNs", programs)
            .number("mapOctets", cost.map_octets)
            .done()
    });
    let peers = health.peers.iter().map(|sums| {
        Fields::default()
            .text("peer", &sums.peer)
            .number("spokenRecords", sums.spoken_records)
            .number("spokenOctets", sums.spoken_octets)
            .number("heldRecords", sums.held_records)
            .number("heldOctets", sums.held_octets)
            .done()
    });
    Fields::default()
        .number("uptimeMs", health.uptime_ms)
        .flag("capturing", health.capturing)
        .number("observedOctets", health.observed_octets)
        .number("observedPackets", health.observed_packets)
        .number("records", health.records)
        .number("flows", health.flows)
        .part("drops", Some(drops(&health.drops)))
        .part("filtered", health.filtered.map(aside))
        .part("sampledOut", health.sampled_out.map(aside))
        .part("kernelLeftOut", health.kernel_left_out.map(kernel_left_out))
        .number("unnamedContainerDecisions", health.unnamed_container_decisions)
        .part("coverage", coverage)
        .part("cost", cost)
        .part("spoolOctets", health.spool_octets.map(Plain::Number))
        .text("spoolFault", &health.spool_fault)
        .texts("overLimits", &health.over_limits)
        .part(
            "collectors",
            Some(Plain::List(health.collectors.iter().map(collector).collect())),
        )
        .part("peers", Some(Plain::List(peers.collect())))
        .done()
}

fn aside(aside: Aside) -> Plain {
    Fields::default()
        .number("records", aside.records)
        .number("octets", aside.octets)
        .number("packets", aside.packets)
        .done()
}

/// What the kernel of an agent's host left out by itself.
pub(crate) fn kernel_left_out(left_out: flowtilla_proto::wire::session::KernelLeftOut) -> Plain {
    Fields::default()
        .number("connections", left_out.connections)
        .number("packets", left_out.packets)
        .number("octets", left_out.octets)
        .number("cgroups", left_out.cgroups)
        .number("beyond", left_out.beyond)
        .done()
}

/// One collector of an agent, with law 2.
pub(crate) fn collector(collector: &CollectorHealth) -> Plain {
    Fields::default()
        .text("name", &collector.name)
        .text("state", collector_state(collector.state()))
        .text("reason", &collector.reason)
        .number("made", collector.made)
        .number("taken", collector.taken)
        .number("waiting", collector.waiting)
        .number("evicted", collector.evicted)
        .part("dropped", Some(drops(&collector.dropped)))
        .number("lagMs", collector.lag_ms)
        .done()
}

fn drops(drops: &[Drop]) -> Plain {
    Plain::Map(
        drops
            .iter()
            .map(|drop| (drop.point.clone(), Plain::Number(drop.count)))
            .collect(),
    )
}

/// See the module.
pub(crate) fn token(token: &Token, now: WallTime) -> Plain {
    Fields::default()
        .text("id", &token.id)
        .text("operator", &token.operator)
        .labels(&token.labels)
        .time("made", token.made_ms)
        .time("expires", token.expires_ms)
        .text("madeBy", &token.made_by)
        .text("usedBy", &token.used_by)
        .text("state", token_state(token, now))
        .done()
}

/// See the module.
pub(crate) fn operator(operator: &Operator, now: WallTime) -> Plain {
    let mut fields = Fields::default()
        .text("name", &operator.name)
        .text("state", operator_state(operator, now))
        .time("enrolled", operator.enrolled_ms)
        .time("svidNotAfter", operator.svid_not_after_ms);
    if operator.revoked_ms != 0 {
        fields = fields.time("revoked", operator.revoked_ms);
    }
    fields.text("admittedBy", &operator.admitted_by).done()
}

/// See the module.
pub(crate) fn revision(revision: &Revision) -> Plain {
    let changes = revision.changes.iter().map(|told| {
        let object = told.object.clone().unwrap_or_default();
        Fields::default()
            .text("kind", &object.kind)
            .text("name", &object.name)
            .text("change", change(told.change()))
            .done()
    });
    Fields::default()
        .number("revision", revision.revision)
        .time("made", revision.made_ms)
        .text("by", &revision.by)
        .text("message", &revision.message)
        .given("rollbackTo", revision.rollback_to)
        .text("state", rollout_state(revision.state()))
        .part("changes", Some(Plain::List(changes.collect())))
        .done()
}

/// See the module.
pub(crate) fn rollout(rollout: &Rollout) -> Plain {
    Fields::default()
        .number("id", rollout.id)
        .number("revision", rollout.revision)
        .text("policy", &rollout.policy)
        .text("state", rollout_state(rollout.state()))
        .number("wave", rollout.wave)
        .number("waves", rollout.waves)
        .time("began", rollout.began_ms)
        .time("ended", rollout.ended_ms)
        .time("soakUntil", rollout.soak_until_ms)
        .text("waitsFor", &rollout.waits_for)
        .number("acked", rollout.acked)
        .number("nacked", rollout.nacked)
        .number("pending", rollout.pending)
        .number("offline", rollout.offline)
        .part(
            "failures",
            Some(Plain::List(rollout.failures.iter().map(failure).collect())),
        )
        .done()
}

fn failure(failure: &GateFailure) -> Plain {
    let fraction = |value| Some(Plain::Fraction(value));
    Fields::default()
        .text("gate", &failure.gate)
        .texts("agents", &failure.agents)
        .part("value", fraction(failure.value))
        .part("baseline", fraction(failure.baseline))
        .part("bound", fraction(failure.bound))
        .text("message", &failure.message)
        .done()
}

/// See the module.
pub(crate) fn roots(roots: &[Root]) -> Plain {
    let root = |root: &Root| {
        Fields::default()
            .text("id", &root.id)
            .time("notAfter", root.not_after_ms)
            .flag("signs", root.signs)
            .done()
    };
    Plain::List(roots.iter().map(root).collect())
}

fn section(section: Section) -> &'static str {
    match section {
        Section::Unspecified => "",
        Section::Offer => "offer",
        Section::Capture => "capture",
        Section::Enrich => "enrich",
        Section::Export => "export",
        Section::Buffer => "buffer",
        Section::Limits => "limits",
        Section::Persist => "persist",
        Section::NotOffered => "notOffered",
    }
}

/// An address of 4 or 16 octets; anything else as its length.
fn shown(address: &[u8]) -> String {
    if let Ok(four) = <[u8; 4]>::try_from(address) {
        return Ipv4Addr::from(four).to_string();
    }
    match <[u8; 16]>::try_from(address) {
        Ok(sixteen) => Ipv6Addr::from(sixteen).to_string(),
        Err(_) => format!("({} octets)", address.len()),
    }
}
