//! `agentctl status`: how the controller and its fleet do. Exit code 0 when every agent has what it is to have, one of them at least
//! is there to say so, no two use one identity, and the controller's disk has room: the first line says so, and what else is the matter with whom follows
//! ([`matters`]).
//!
//! `-o json`: the shape `status` in [`crate::view`].

use crate::clock;
use clap::Args;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::{StatusRequest, StatusResponse};

use super::{Brief, json, print};
use crate::client::{Client, Reach};
use crate::exit::Exit;
use crate::output::{grid, harmless, word};
use crate::view::{self, ago, until};

mod matters;

#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Brief,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let status = client.ask(client.fleet().status(StatusRequest {})).await?;
    let now = clock::wall_now();
    let text = match args.output {
        Brief::Text => {
            client.say_view(now);
            text(&status, now)
        }
        Brief::Json => json(&view::status(&status, well(&status))),
    };
    print(&text)?;
    Ok(if well(&status) { Exit::Done } else { Exit::Failed })
}

/// Whether every agent has what it is to have, under an identity of its own. Of a fleet of which nobody is connected it is not
/// known.
pub(crate) fn well(status: &StatusResponse) -> bool {
    let heard = status.agents == 0 || status.connected > 0;
    // An older controller counts those that are connected alone.
    let all = status.behind == 0 && status.nacked == 0 && status.converged == status.connected;
    heard && all && status.conflicts == 0 && !status.disk_full
}

/// Lines for people: the verdict, then figures.
pub(crate) fn text(status: &StatusResponse, now: WallTime) -> String {
    let offline = status.agents.saturating_sub(status.connected);
    let mut rows = vec![
        [
            "controller".to_owned(),
            format!(
                "version {}, up {}",
                word(&status.version),
                ago(status.started_ms, now)
            ),
        ],
        ["trust domain".to_owned(), word(&status.trust_domain)],
        [
            "objects".to_owned(),
            format!("revision {}, epoch {}", status.revision, status.epoch),
        ],
        [
            "agents".to_owned(),
            format!(
                "{}: {} connected, {offline} offline",
                status.agents, status.connected
            ),
        ],
    ];
    rows.extend(matters::rows(status, now));
    if status.tied > 0 {
        rows.push([
            "tied".to_owned(),
            format!(
                "{}: several policies of one priority choose them; see agents",
                status.tied
            ),
        ]);
    }
    if status.draining > 0 {
        rows.push([
            "drained".to_owned(),
            format!("{} agents are, or are to be: see agents", status.draining),
        ]);
    }
    rows.extend(matters::left_out(status));
    if let Some(rollout) = &status.rollout {
        let policy = match rollout.policy.is_empty() {
            true => String::new(),
            false => format!(" of {}", word(&rollout.policy)),
        };
        rows.push([
            "rollout".to_owned(),
            format!(
                "{}{policy} to revision {}: {}, wave {} of {}",
                rollout.id,
                rollout.revision,
                view::rollout_state(rollout.state()),
                rollout.wave,
                rollout.waves
            ),
        ]);
        rows.extend(
            rollout
                .failures
                .iter()
                .map(|failure| ["".to_owned(), harmless(&failure.message)]),
        );
        if !rollout.waits_for.is_empty() {
            rows.push(["".to_owned(), format!("waits: {}", harmless(&rollout.waits_for))]);
        }
    }
    for root in &status.roots {
        let signs = if root.signs {
            "signs"
        } else {
            "trusted, does not sign"
        };
        let id: String = root.id.chars().take(16).collect();
        rows.push([
            "root".to_owned(),
            format!("{}…, {signs}, {} left", word(&id), until(root.not_after_ms, now)),
        ]);
    }
    rows.push([
        "you".to_owned(),
        format!(
            "{}, SVID {} left",
            word(&status.caller),
            until(status.caller_not_after_ms, now)
        ),
    ]);
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let figures = grid(&rows, &[]).into_iter().map(|line| line + "\n");
    matters::verdict(status) + "\n" + &figures.collect::<String>()
}
