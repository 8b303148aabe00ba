//! What is the matter, with whom, and what was left out on purpose: parts of `agentctl status` for people.
//!
//! In: what the controller told. An older one names nobody: then its figures alone are told.

use flowtilla_agent_core::loss::LeftOutSum;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::{Concern, ConcernKind, StatusResponse};
use flowtilla_proto::wire::session::Aside;

use super::well;
use crate::cmd::left_out::kernel;
use crate::output::{grouped, harmless, width, word};
use crate::view::ago;

/// Columns of a row's second part, when the terminal has 80.
const COLUMNS: usize = 58;

/// How many agents of what kind.
#[derive(Default)]
struct Counts {
    refuse: u32,
    behind: u32,
    away_behind: u32,
    away: u32,
    conflicts: u32,
    untaken: u32,
}

impl Counts {
    fn of(status: &StatusResponse) -> Self {
        let connected_behind = status.connected.saturating_sub(status.converged);
        if status.concerns.is_empty() {
            let offline = status.agents.saturating_sub(status.connected);
            let away_behind = status.behind.saturating_sub(connected_behind);
            return Self {
                refuse: status.nacked,
                behind: connected_behind.saturating_sub(status.nacked),
                away_behind,
                away: offline.saturating_sub(away_behind),
                conflicts: status.conflicts,
                untaken: 0,
            };
        }
        let count = |kind| {
            let of_kind = status.concerns.iter().filter(|one| one.kind() == kind);
            of_kind.map(|one| one.agents).sum()
        };
        Self {
            refuse: count(ConcernKind::Refuses),
            behind: count(ConcernKind::Behind),
            away_behind: count(ConcernKind::AwayBehind),
            away: count(ConcernKind::Away),
            conflicts: count(ConcernKind::Conflict),
            untaken: count(ConcernKind::Export),
        }
    }
}

/// One line: whether all is as it is to be, and what is not.
pub(super) fn verdict(status: &StatusResponse) -> String {
    const FULL: &str = "the controller's disk is full: no change, rollout or new agent until there is room";
    if status.disk_full {
        let with_room = StatusResponse {
            disk_full: false,
            ..status.clone()
        };
        return format!("NOT WELL: {FULL}; {}", verdict(&with_room));
    }
    if status.agents == 0 {
        return "no agent has an identity here yet: agentctl token create, or a HostGroup".to_owned();
    }
    let counts = Counts::of(status);
    let said = |n: u32, one: &str, many: &str| match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    };
    let wrong = [
        said(counts.refuse, "refuses a change", "refuse a change"),
        said(counts.behind, "is on the way", "are on the way"),
        said(counts.away_behind, "is away without it", "are away without it"),
        said(counts.conflicts, "is used by two hosts", "are used by two hosts"),
    ];
    let odd = [
        said(counts.away, "is away", "are away"),
        said(counts.untaken, "cannot export", "cannot export"),
    ];
    let mut wrong = Vec::from_iter(wrong.into_iter().flatten()).join(", ");
    let odd = Vec::from_iter(odd.into_iter().flatten()).join(", ");
    let mut parts = vec![match (well(status), status.connected) {
        (true, _) => "well: all agents have what they are to have".to_owned(),
        (false, 0) => "NOT KNOWN: no agent is connected".to_owned(),
        (false, _) if wrong.is_empty() => "NOT WELL: not all agents have what they are to have".to_owned(),
        (false, _) => format!("NOT WELL: {}", std::mem::take(&mut wrong)),
    }];
    parts.extend([wrong, odd].into_iter().filter(|part| !part.is_empty()));
    parts.join("; ")
}

/// Who is meant, and why.
pub(super) fn rows(status: &StatusResponse, now: WallTime) -> Vec<[String; 2]> {
    if status.concerns.is_empty() {
        return figures(status);
    }
    status
        .concerns
        .iter()
        .flat_map(|concern| rows_of(concern, now))
        .collect()
}

fn rows_of(concern: &Concern, now: WallTime) -> Vec<[String; 2]> {
    let title = match concern.kind() {
        ConcernKind::Refuses => "refuse it",
        ConcernKind::Behind => "on the way",
        ConcernKind::AwayBehind => "away without it",
        ConcernKind::Away => "away",
        ConcernKind::Conflict => "used twice",
        ConcernKind::Export => "cannot export",
        ConcernKind::Unspecified => "not well",
    };
    let mut lines: Vec<String> = Vec::new();
    for agent in &concern.first {
        let seen = match agent.last_seen_ms {
            0 => String::new(),
            ms => format!(" ({})", ago(ms, now)),
        };
        let named = word(&agent.agent) + &seen;
        // Names alone share lines.
        match (agent.why.as_str(), lines.last_mut()) {
            ("", Some(last)) if last.ends_with(',') && width(last) + width(&named) + 2 <= COLUMNS => {
                *last += &format!(" {named},");
            }
            ("", _) => lines.push(named + ","),
            (why, _) => lines.push(format!("{named}: {}", harmless(why))),
        }
    }
    let more = usize::try_from(concern.agents)
        .unwrap_or(usize::MAX)
        .saturating_sub(concern.first.len());
    if more > 0 {
        lines.push(format!("and {more} more: see agentctl agents"));
    } else if let Some(last) = lines.last_mut() {
        *last = last.trim_end_matches(',').to_owned();
    }
    let mut titles =
        std::iter::once(format!("{title}: {}", concern.agents)).chain(std::iter::repeat(String::new()));
    lines
        .into_iter()
        .map(|line| [titles.next().unwrap_or_default(), line])
        .collect()
}

/// What an older controller tells, which names nobody.
fn figures(status: &StatusResponse) -> Vec<[String; 2]> {
    let counts = Counts::of(status);
    let mut rows = Vec::new();
    let mut row = |count: u32, title: &str, text: String| {
        if count > 0 {
            rows.push([title.to_owned(), text]);
        }
    };
    let all = format!(
        "{} have what they are to have, {} refuse it, {} are on the way",
        status.converged, counts.refuse, counts.behind
    );
    row(status.agents, "of those connected", all);
    let away = counts.away_behind;
    row(
        away,
        "of those offline",
        format!("{away} have not what they are to have; they get it when back"),
    );
    let old = status.not_offered;
    row(
        old,
        "too old",
        format!("{old} do not know what they are to have: see agents"),
    );
    let copies = status.conflicts;
    row(
        copies,
        "copies",
        format!("{copies} identities are used by two agents in turns: see agents"),
    );
    rows
}

/// What was left out on purpose, when anything was.
pub(super) fn left_out(status: &StatusResponse) -> Vec<[String; 2]> {
    let Some(told) = &status.left_out else {
        return Vec::new();
    };
    let aside = |name: &str, sum: &Option<Aside>| {
        let sum = sum.filter(|sum| sum.records > 0)?;
        let (records, octets) = (grouped(sum.records), grouped(sum.octets));
        Some(format!("{name}: {records} records with {octets} IP octets"))
    };
    let in_kernel = told.kernel.and_then(|told| {
        let sum = LeftOutSum {
            connections: told.connections,
            packets: told.packets,
            octets: told.octets,
        };
        (told.cgroups > 0 || !sum.is_nothing()).then(|| {
            format!(
                "in the kernel, {} cgroups now: {}",
                grouped(told.cgroups),
                kernel(&sum)
            )
        })
    });
    let lines = [
        aside("by filters", &told.filtered),
        aside("by sampling", &told.sampled_out),
        in_kernel,
    ];
    let lines: Vec<String> = lines.into_iter().flatten().collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let whose = format!("on purpose, as {} agents tell, each since its start", told.agents);
    let mut titles = std::iter::once("left out").chain(std::iter::repeat(""));
    std::iter::once(whose)
        .chain(lines)
        .map(|line| [titles.next().unwrap_or_default().to_owned(), line])
        .collect()
}
