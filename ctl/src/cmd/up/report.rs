//! What `up` tells in words: what attached, how the agent does, what was lost.
//!
//! Lines without an end. What comes from outside (reasons of the kernel, of collectors) is made harmless.

use flowtilla_agent::spool::{SpoolState, SpoolStatus};
use flowtilla_agent::status::{
    AgentStatus, AttachReport, CollectorState, CollectorStatus, MemberState, MemberStatus,
};
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint, Drops};

use crate::cmd::left_out;
use crate::cmd::up::outside;
use crate::output::{grouped, harmless, memory};

/// What attached, what did not and why, and what is missing because of it.
pub(crate) fn attached(report: &AttachReport) -> Vec<String> {
    let refused: Vec<_> = report
        .programs
        .iter()
        .filter_map(|program| Some((program, program.refused.as_deref()?)))
        .collect();
    let mut lines = vec![format!(
        "Linux {}: {} of {} programs attached in {} ms, maps take {}, {} older sockets found",
        harmless(&report.kernel),
        report.programs.len() - refused.len(),
        report.programs.len(),
        report.took_ms,
        memory(report.map_octets),
        grouped(report.backfilled),
    )];
    lines.extend(refused.into_iter().map(|(program, why)| {
        let need = if program.mandatory { "needed" } else { "optional" };
        let (why, without) = (harmless(why), program.without);
        format!(
            "not attached: {} ({}, {need}): {why}; missing without it: {without}",
            program.name, program.hook
        )
    }));
    lines
}

/// Flows, records, losses and owners, in a few words each.
pub(crate) fn totals(status: &AgentStatus) -> Vec<String> {
    let mut words = vec![
        format!("{} flows", grouped(status.flows)),
        format!("{} records", grouped(status.records)),
    ];
    match lost(status).as_slice() {
        [] => words.push("nothing lost".into()),
        places => words.extend(places.iter().map(|place| format!("lost: {place}"))),
    }
    words.push(coverage(status));
    words.extend(
        status
            .over_limits
            .iter()
            .map(|over| format!("beyond {}", harmless(over))),
    );
    if let Some(SpoolStatus {
        state: SpoolState::MemoryOnly { why },
        ..
    }) = &status.spool
    {
        words.push(format!("spool in memory only ({})", harmless(why)));
    }
    words
}

/// Each collector with its state, those that take turns each for itself.
pub(crate) fn collectors(status: &AgentStatus) -> Vec<String> {
    let mut words = Vec::new();
    for collector in &status.collectors {
        if collector.members.is_empty() {
            words.push(format!("{} {}", collector.name, state(collector)));
        }
        let members = collector.members.iter();
        words.extend(members.map(|member| format!("{} {}", member.name, member_state(collector, member))));
    }
    words
}

/// The laws, a line each; the second for each collector, the third when a policy leaves flows out.
pub(crate) fn laws(status: &AgentStatus) -> Vec<String> {
    let law = &status.kernel_law;
    let first = |unit: &str, observed: u64, reported: u64, held: u64, joined: u64| {
        let missing = i128::from(observed) - i128::from(reported) - i128::from(held) - i128::from(joined);
        format!(
            "law 1 {}, kernel to table, {unit}: observed {} = reported {} + held {} + joined {}",
            verdict(missing),
            grouped(observed),
            grouped(reported),
            grouped(held),
            grouped(joined),
        )
    };
    let mut lines = vec![
        first(
            "IP octets",
            law.observed_octets,
            law.reported_octets,
            law.held_octets,
            law.joined_octets,
        ),
        first(
            "packets",
            law.observed_packets,
            law.reported_packets,
            law.held_packets,
            law.joined_packets,
        ),
    ];
    lines.extend(left_out::lines(&status.record_law));
    lines.extend(outside::told(status));
    if status.unnamed > 0 {
        lines.push(format!("{} records wait for names", grouped(status.unnamed)));
    }
    lines.extend(
        status
            .collectors
            .iter()
            .map(|collector| second_law(&collector.name, &collector.law)),
    );
    lines
}

/// Every place where something was lost, as `NAME N units`, those of a collector with its name.
pub(crate) fn lost(status: &AgentStatus) -> Vec<String> {
    let places = |drops: &Drops, of: Option<&str>| -> Vec<String> {
        drops
            .lossy()
            .filter(|&(point, _)| !point.is_wanted())
            .map(|(point, n)| {
                let of = of.map_or_else(String::new, |name| format!(" ({name})"));
                format!("{point} {} {}{of}", grouped(n), point.unit())
            })
            .collect()
    };
    let mut lines = places(&status.drops, None);
    for collector in &status.collectors {
        lines.extend(places(&collector.law.dropped, Some(&collector.name)));
        if collector.law.evicted > 0 {
            let (n, name) = (grouped(collector.law.evicted), &collector.name);
            lines.push(format!("evicted from the spool {n} records ({name})"));
        }
    }
    lines
}

/// What is told at the end.
pub(crate) fn farewell(status: &AgentStatus) -> Vec<String> {
    let mut lines = vec![format!(
        "{} records of flows; {}",
        grouped(status.records),
        coverage(status)
    )];
    lines.extend(laws(status));
    match lost(status).as_slice() {
        [] => lines.push("nothing lost".into()),
        places => lines.extend(places.iter().map(|place| format!("lost: {place}"))),
    }
    lines.extend(status.collectors.iter().flat_map(each));
    lines.extend(status.spool.as_ref().map(spool));
    lines
}

fn spool(status: &SpoolStatus) -> String {
    let (octets, segments) = (memory(status.octets), grouped(status.segments));
    let state = match &status.state {
        SpoolState::Working => String::new(),
        SpoolState::MemoryOnly { why } => format!(", memory only ({})", harmless(why)),
    };
    format!("spool: {octets} on disk in {segments} segments{state}")
}

fn second_law(name: &str, law: &CollectorLaw) -> String {
    let dropped: u64 = DropPoint::ALL.iter().map(|&point| law.dropped.at(point)).sum();
    let wanted = [
        (DropPoint::Withheld, "withheld on purpose"),
        (DropPoint::ReportedByPeer, "told by the agent at the other end"),
    ];
    let wanted: Vec<_> = wanted
        .into_iter()
        .filter(|&(point, _)| law.dropped.at(point) > 0)
        .map(|(point, why)| format!("{} {why}", grouped(law.dropped.at(point))))
        .collect();
    let withheld = match wanted.as_slice() {
        [] => String::new(),
        parts => format!(" (of them {})", parts.join(", ")),
    };
    format!(
        "law 2 {}, table to {name}, records: made {} = taken {} + waiting {} + evicted {} + dropped {}{withheld}",
        verdict(law.missing()),
        grouped(law.made),
        grouped(law.taken),
        grouped(law.waiting),
        grouped(law.evicted),
        grouped(dropped),
    )
}

/// A line for a collector, or for each of several that take turns.
fn each(collector: &CollectorStatus) -> Vec<String> {
    let line = |name: &str, endpoint: &str, state: String, messages: u64, connects: u64| {
        let (messages, connects) = (grouped(messages), grouped(connects));
        format!("{name} {endpoint}: {state}, messages {messages}, connections {connects}")
    };
    if let CollectorStatus {
        name,
        endpoint,
        messages,
        connects,
        members,
        ..
    } = collector
        && members.is_empty()
    {
        return vec![line(name, endpoint, state(collector), *messages, *connects)];
    }
    let members = collector.members.iter();
    members
        .map(|member| {
            let state = member_state(collector, member);
            line(
                &member.name,
                &member.endpoint,
                state,
                member.messages,
                member.connects,
            )
        })
        .collect()
}

fn verdict(missing: i128) -> String {
    match missing {
        0 => "holds".into(),
        n if n > 0 => format!("BROKEN ({n} missing)"),
        n => format!("BROKEN ({} too many)", n.unsigned_abs()),
    }
}

fn coverage(status: &AgentStatus) -> String {
    let coverage = &status.coverage;
    match coverage.ends {
        0 => "no flow has ended".into(),
        ends => format!(
            "owner known for {} of {} ended, name for {}",
            percent(coverage.with_process, ends),
            grouped(ends),
            percent(coverage.with_names, ends),
        ),
    }
}

/// Rounded down: 100 % is all of them.
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{} %", tenths / 10, tenths % 10)
}

/// How one of several collectors stands that take turns.
fn member_state(all: &CollectorStatus, member: &MemberStatus) -> String {
    match &member.state {
        MemberState::InUse => format!("in use, {}", state(all)),
        MemberState::StandingBy => "stands by".into(),
        MemberState::OutOfReach { why } => format!("out of reach ({})", harmless(why)),
        MemberState::Unknown => "not tried yet".into(),
    }
}

fn state(collector: &CollectorStatus) -> String {
    match &collector.state {
        CollectorState::Connecting { why: None } if collector.connects > 0 => "closed".into(),
        CollectorState::Connecting { why: None } => "connecting".into(),
        CollectorState::Connecting { why: Some(why) } => match collector.law.waiting {
            0 => format!("not connected ({})", harmless(why)),
            n => format!("not connected ({}), {} records wait", harmless(why), grouped(n)),
        },
        CollectorState::AwaitingSubscription => "connected, not subscribed".into(),
        CollectorState::Streaming { acknowledged: true } => "streaming".into(),
        CollectorState::Streaming { acknowledged: false } => "streaming, without acknowledgement".into(),
        CollectorState::Stalled => format!("stalled, {} records wait", grouped(collector.law.waiting)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::up::samples;

    #[test]
    fn reports_are_pinned() {
        let mut lines = attached(&samples::report());
        lines.push(String::new());
        lines.extend(farewell(&samples::status()));
        lines.push(String::new());
        lines.extend(farewell(&AgentStatus::default()));
        samples::assert_pinned("reports.txt", &(lines.join("\n") + "\n"));
    }

    #[test]
    fn a_broken_law_says_so() {
        let mut status = samples::status();
        status.kernel_law.held_octets -= 1;
        status.collectors[0].law.taken += 2;
        let lines = laws(&status);
        assert!(
            lines[0].starts_with("law 1 BROKEN (1 missing),") && lines[1].starts_with("law 1 holds,"),
            "{lines:?}"
        );
        assert!(
            lines[3].starts_with("law 2 BROKEN (2 too many),") && lines[4].starts_with("law 2 holds,"),
            "{lines:?}"
        );
    }

    #[test]
    fn withheld_records_are_in_the_law_and_no_loss() {
        let mut status = samples::status();
        status.collectors[1].law.made += 5;
        status.collectors[1].law.dropped.add(DropPoint::Withheld, 5);
        assert_eq!(lost(&status).len(), 2);
        let line = &laws(&status)[4];
        assert!(
            line.starts_with("law 2 holds,") && line.ends_with("dropped 5 (of them 5 withheld on purpose)"),
            "{line}"
        );
    }

    #[test]
    fn what_a_collector_says_is_harmless() {
        let mut status = samples::status();
        status.collectors[1].state = CollectorState::Connecting {
            why: Some("\u{1b}[2J".into()),
        };
        assert_eq!(
            collectors(&status)[1],
            "ntopng-2 not connected (\\u{1b}[2J), 1,000 records wait"
        );
    }

    #[test]
    fn collectors_that_take_turns_stand_each_for_itself() {
        let mut status = samples::status();
        status.collectors = vec![samples::failover()];
        let mut lines = collectors(&status);
        lines.push(String::new());
        lines.extend(farewell(&status));
        samples::assert_pinned("failover.txt", &(lines.join("\n") + "\n"));
    }

    #[test]
    fn percentages_are_rounded_down() {
        assert_eq!(percent(9_999, 10_000), "99.9 %");
        assert_eq!(percent(7, 7), "100.0 %");
        assert_eq!(percent(0, 0), "0.0 %");
    }
}
