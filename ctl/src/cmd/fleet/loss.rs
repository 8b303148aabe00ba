//! `agentctl loss` without `--state`: law 2 of each agent and collector as the agents told it last, each gap by its name.
//!
//! Exit code 0 when nothing is lost, 1 when something is, a sum does not hold, or it is not known of an agent: because it has told
//! nothing since the controller began, or is away and was heard longer ago than [`KNOWN_FOR_MS`].
//!
//! ```text
//! agents       id, state, lastSeen, known: false: what it has lost is not known
//!              collectors  the shape in [`crate::view`], with missing: made less the rest, lost: records it never gets
//!              drops {place: number}: before the records
//!              kernelLeftOut  the shape in [`crate::view`]: left out on purpose, in no sum
//!              untoldOctets  of flows that others left to it and that it did not tell
//!              untoldBy  agents by whose word that is so
//! notKnown     ids of agents of which it is not known
//! nothingLost  the exit code is 0
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::clock;
use flowtilla_agent_core::loss::LeftOutSum;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::loss::Dropped;
use flowtilla_proto::wire::fleet::{Agent, AgentState, AgentsRequest};
use flowtilla_proto::wire::session::{CollectorHealth, Drop, KernelLeftOut};

use super::{Output, json, print, table};
use crate::client::{Client, Reach};
use crate::cmd::left_out;
use crate::document::render::Plain;
use crate::exit::Exit;
use crate::output::{grouped, harmless, rfc3339, word};
use crate::view;

/// Runs the command.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn run(reach: &Reach, as_json: bool) -> anyhow::Result<Exit> {
    let client = Client::reach(reach).await?;
    let agents = client
        .ask(client.fleet().agents(AgentsRequest::default()))
        .await?
        .agents;
    let now = clock::wall_now();
    let text = match as_json {
        true => json(&told(&agents, now)),
        false => {
            client.say_view(now);
            text(&agents, now)
        }
    };
    print(&text)?;
    Ok(if nothing_lost(&agents, now) {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// How long it is believed of an agent that is away that it has lost nothing since, in milliseconds.
///
/// A host has booted in that time. Half of it calls a fleet not whole whenever one does; double it, and a host that has burnt down
/// counts as whole for ten minutes.
const KNOWN_FOR_MS: u64 = 300_000;

/// Agents of which it is not known that are named in the verdict; of more the number is told.
const NAMED_MAX: usize = 10;

/// Records that a collector never gets, those left out on purpose excepted.
fn lost(collector: &CollectorHealth) -> u64 {
    let dropped = collector.dropped.iter().filter(|drop| is_loss(drop));
    dropped.fold(collector.evicted, |sum, drop| sum.saturating_add(drop.count))
}

fn is_loss(drop: &Drop) -> bool {
    drop.count > 0 && Dropped::at(&drop.point) == Dropped::Lost
}

/// Said of what was dropped and is not lost.
fn why_no_loss(drop: &Drop) -> &'static str {
    match Dropped::at(&drop.point) {
        Dropped::Lost => "",
        Dropped::OnPurpose => ", on purpose",
        Dropped::FoundAgain => ", hints only: what they tell is found without them",
        Dropped::NoFlow => ", datagrams that nobody can answer",
    }
}

fn missing(collector: &CollectorHealth) -> i128 {
    let dropped: i128 = collector.dropped.iter().map(|drop| i128::from(drop.count)).sum();
    i128::from(collector.made)
        - i128::from(collector.taken)
        - i128::from(collector.waiting)
        - i128::from(collector.evicted)
        - dropped
}

fn counted(agents: &[Agent]) -> impl Iterator<Item = &Agent> {
    agents
        .iter()
        .filter(|agent| !matches!(agent.state(), AgentState::Revoked | AgentState::New))
}

/// Whether what an agent has lost is known.
fn is_known(agent: &Agent, now: WallTime) -> bool {
    let heard = view::moment(agent.last_seen_ms);
    let lately = heard.is_some_and(|heard| now.0.saturating_sub(heard.0) <= KNOWN_FOR_MS * 1_000_000);
    agent.health.is_some() && (agent.state() == AgentState::Connected || lately)
}

fn not_known(agents: &[Agent], now: WallTime) -> Vec<&Agent> {
    counted(agents).filter(|agent| !is_known(agent, now)).collect()
}

/// Whether an agent has told of a loss.
fn has_lost(agent: &Agent) -> bool {
    let broken = |collector: &CollectorHealth| lost(collector) > 0 || missing(collector) != 0;
    let health = agent.health.iter();
    agent.untold_octets > 0
        || health
            .into_iter()
            .any(|health| health.drops.iter().any(is_loss) || health.collectors.iter().any(broken))
}

/// See the module.
pub(crate) fn nothing_lost(agents: &[Agent], now: WallTime) -> bool {
    counted(agents).all(|agent| is_known(agent, now) && !has_lost(agent))
}

/// What is to be made of it all, for people.
fn verdict(agents: &[Agent], now: WallTime) -> String {
    let lost = counted(agents).filter(|agent| has_lost(agent)).count();
    let unknown = not_known(agents, now);
    let all = counted(agents).count();
    let known = match (lost, unknown.is_empty()) {
        (0, true) => return "nothing lost\n".to_owned(),
        (0, false) => "nothing lost that is known".to_owned(),
        (lost, _) => format!("something is lost at {lost} of {all} agents"),
    };
    if unknown.is_empty() {
        return known + "\n";
    }
    let mut named: Vec<String> = unknown
        .iter()
        .take(NAMED_MAX)
        .map(|agent| format!("{} ({} old)", word(&agent.id), view::ago(agent.last_seen_ms, now)))
        .collect();
    if unknown.len() > NAMED_MAX {
        named.push(format!("and {} more", unknown.len() - NAMED_MAX));
    }
    format!(
        "{known}; NOT KNOWN of {} of {all} agents, which are away or have told nothing: {}\n",
        unknown.len(),
        named.join(", ")
    )
}

/// Lines for people.
pub(crate) fn text(agents: &[Agent], now: WallTime) -> String {
    let mut rows = Vec::new();
    let mut gaps = Vec::new();
    for agent in counted(agents) {
        let id = word(&agent.id);
        let seen = view::ago(agent.last_seen_ms, now);
        let Some(health) = &agent.health else {
            gaps.push(format!(
                "{id}: it has told nothing since the controller began; seen {seen} ago\n"
            ));
            continue;
        };
        if agent.state() != AgentState::Connected {
            gaps.push(format!("{id}: offline; its numbers are {seen} old\n"));
        }
        for drop in health.drops.iter().filter(|drop| drop.count > 0) {
            gaps.push(format!(
                "{id}: {} {}, before the records{}\n",
                harmless(&drop.point),
                grouped(drop.count),
                why_no_loss(drop)
            ));
        }
        if let Some(left_out) = &health.kernel_left_out {
            gaps.extend(in_the_kernel(left_out).map(|told| format!("{id}: {told}\n")));
        }
        for collector in &health.collectors {
            let name = word(&collector.name);
            rows.push(vec![
                id.clone(),
                name.clone(),
                grouped(collector.made),
                grouped(collector.taken),
                grouped(collector.waiting),
                grouped(lost(collector)),
                seen.clone(),
            ]);
            if collector.evicted > 0 {
                gaps.push(format!("{id} {name}: {} evicted\n", grouped(collector.evicted)));
            }
            for drop in &collector.dropped {
                if drop.count > 0 {
                    gaps.push(format!(
                        "{id} {name}: {} {}{}\n",
                        harmless(&drop.point),
                        grouped(drop.count),
                        why_no_loss(drop)
                    ));
                }
            }
            match missing(collector) {
                0 => {}
                n if n > 0 => gaps.push(format!("{id} {name}: law 2 is BROKEN, {n} records are missing\n")),
                n => gaps.push(format!(
                    "{id} {name}: law 2 is BROKEN, {} records are too many\n",
                    n.unsigned_abs()
                )),
            }
        }
    }
    for agent in counted(agents).filter(|agent| agent.untold_octets > 0) {
        let by: Vec<String> = agent.untold_by.iter().map(|id| word(id)).collect();
        let by = match by.is_empty() {
            true => String::new(),
            false => format!(" (says {})", by.join(", ")),
        };
        gaps.push(format!(
            "{}: {} octets of flows that others left to it were told by nobody{by}; has another host one of its \
             addresses? Such flows are told by both ends now, see `agentctl describe agent`\n",
            word(&agent.id),
            grouped(agent.untold_octets)
        ));
    }
    gaps.extend(peers(agents));
    let head = ["AGENT", "COLLECTOR", "MADE", "TAKEN", "WAITING", "LOST", "SEEN"];
    let mut text = table(&head, rows, &[2, 3, 4, 5], Output::Table);
    text.extend(gaps);
    text + &verdict(agents, now)
}

/// What was left out where no record tells of it.
fn in_the_kernel(told: &KernelLeftOut) -> Option<String> {
    let sum = LeftOutSum {
        connections: told.connections,
        packets: told.packets,
        octets: told.octets,
    };
    (told.cgroups > 0 || !sum.is_nothing()).then(|| {
        let (cgroups, sum) = (grouped(told.cgroups), left_out::kernel(&sum));
        format!("left out in the kernel, on purpose, {cgroups} cgroups at that moment: {sum}")
    })
}

/// What one agent spoke for a flow, and the other held back: the difference, when both tell.
fn peers(agents: &[Agent]) -> Vec<String> {
    let mut sums: BTreeMap<(&str, &str), [u64; 2]> = BTreeMap::new();
    for agent in counted(agents) {
        for peer in agent.health.iter().flat_map(|health| &health.peers) {
            // Keyed by who speaks, then who holds back.
            sums.entry((&agent.id, &peer.peer)).or_default()[0] += peer.spoken_octets;
            sums.entry((&peer.peer, &agent.id)).or_default()[1] += peer.held_octets;
        }
    }
    // One that has more peers than it tells of may have told of this one elsewhere.
    let cut: BTreeSet<&str> = counted(agents)
        .filter(|agent| {
            agent
                .health
                .as_ref()
                .is_some_and(|health| health.peers_left_out > 0)
        })
        .map(|agent| agent.id.as_str())
        .collect();
    let is_cut = |agent: &str, told: u64| told == 0 && cut.contains(agent);
    let differ = sums.into_iter().filter(|((speaker, other), [spoken, held])| {
        spoken != held && !is_cut(speaker, *spoken) && !is_cut(other, *held)
    });
    differ
        .map(|((speaker, other), [spoken, held])| {
            format!(
                "{} spoke {} octets of flows with {}, which held back {}\n",
                word(speaker),
                grouped(spoken),
                word(other),
                grouped(held)
            )
        })
        .collect()
}

/// The JSON shape.
pub(crate) fn told(agents: &[Agent], now: WallTime) -> Plain {
    let number = |name: &str, n: u64| (name.to_owned(), Plain::Number(n));
    let agent = |agent: &Agent| {
        let mut fields = vec![
            ("id".to_owned(), Plain::Text(agent.id.clone())),
            (
                "state".to_owned(),
                Plain::Text(view::agent_state(agent.state()).to_owned()),
            ),
        ];
        fields.extend(
            view::moment(agent.last_seen_ms)
                .map(|seen| ("lastSeen".to_owned(), Plain::Text(rfc3339(seen).to_string()))),
        );
        fields.push(("known".to_owned(), Plain::Bool(is_known(agent, now))));
        fields.push(number("untoldOctets", agent.untold_octets));
        if !agent.untold_by.is_empty() {
            let by = agent.untold_by.iter().cloned().map(Plain::Text);
            fields.push(("untoldBy".to_owned(), Plain::List(by.collect())));
        }
        let Some(health) = &agent.health else {
            return Plain::Map(fields);
        };
        let collectors = health.collectors.iter().map(|collector| {
            let Plain::Map(mut fields) = view::collector(collector) else {
                return Plain::List(Vec::new());
            };
            let missing = missing(collector);
            fields.push((
                "missing".to_owned(),
                u64::try_from(missing).map_or_else(|_| Plain::Text(missing.to_string()), Plain::Number),
            ));
            fields.push(number("lost", lost(collector)));
            Plain::Map(fields)
        });
        fields.push(("collectors".to_owned(), Plain::List(collectors.collect())));
        let drops = health.drops.iter().map(|drop| number(&drop.point, drop.count));
        fields.push(("drops".to_owned(), Plain::Map(drops.collect())));
        let left_out = health.kernel_left_out.map(view::kernel_left_out);
        fields.extend(left_out.map(|told| ("kernelLeftOut".to_owned(), told)));
        Plain::Map(fields)
    };
    let unknown = not_known(agents, now).into_iter();
    let unknown = unknown.map(|agent| Plain::Text(agent.id.clone()));
    Plain::Map(vec![
        (
            "agents".to_owned(),
            Plain::List(counted(agents).map(agent).collect()),
        ),
        ("notKnown".to_owned(), Plain::List(unknown.collect())),
        ("nothingLost".to_owned(), Plain::Bool(nothing_lost(agents, now))),
    ])
}
