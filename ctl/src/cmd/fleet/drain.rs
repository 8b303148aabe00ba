//! `agentctl agents drain`: agents capture nothing any more, and send what waits; then a host can go without a loss.
//!
//! The controller keeps it until `--undo`, over restarts of both sides. With `--wait` each agent's state is told as it changes.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use flowtilla_proto::wire::fleet::{Agent, AgentState, AgentsRequest, DrainRequest, DrainState};
use flowtilla_proto::wire::session::{Nack, Section};
use tokio::time::{Instant, sleep};

use super::print;
use crate::client::{Client, Reach};
use crate::exit::{Exit, say};
use crate::output::{harmless, word};
use crate::signals::Signals;
use crate::view;

/// How long `--wait` waits when it says nothing.
///
/// A spool of some minutes at a collector's pace. Half of it gives up on a slow collector; double it, and one that is down is
/// waited for for an hour.
pub(crate) const WAIT_DEFAULT: &str = "30m";
/// How often the controller is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug)]
pub(crate) struct DrainArgs {
    /// Names of agents, as `agents` has them.
    #[arg(value_name = "AGENT", required = true)]
    pub(crate) agents: Vec<String>,
    /// They capture again.
    #[arg(long)]
    pub(crate) undo: bool,
    /// Shows how they get on until nothing waits, or this time is over [default: 30m].
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, conflicts_with = "undo",
          default_missing_value = WAIT_DEFAULT, value_parser = super::token::parse_ttl)]
    pub(crate) wait: Option<u64>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// No such agent, or the controller refuses or is lost.
pub(crate) async fn run(args: DrainArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    drain(&client, &args.agents, args.undo).await?;
    let word_of = if args.undo {
        "captures again"
    } else {
        "is to be drained"
    };
    let told: String = args
        .agents
        .iter()
        .map(|agent| format!("{}: {word_of}\n", word(agent)))
        .collect();
    print(&told)?;
    let Some(ms) = args.wait else {
        return Ok(Exit::Done);
    };
    let mut signals = Signals::new()?;
    let within = Duration::from_millis(ms);
    let waited = tokio::select! { biased;
        () = signals.next() => {
            say("ended before all were drained; they go on");
            return Ok(Exit::Interrupted);
        }
        waited = wait(&client, &args.agents, within, |line| print(&format!("{line}\n")).map(drop)) => waited?,
    };
    if let Some(left) = waited {
        say(format_args!("not drained after {} s: {left}", within.as_secs()));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Has agents drained, or not any more.
///
/// # Errors
///
/// The controller refuses.
pub(crate) async fn drain(client: &Client, agents: &[String], undo: bool) -> anyhow::Result<()> {
    let request = DrainRequest {
        agents: agents.to_vec(),
        undo,
    };
    client.ask(client.fleet().drain(request)).await?;
    Ok(())
}

/// Waits until agents are drained; `Some`: who is not in time, and why. `tell` gets a line whenever something changes.
///
/// # Errors
///
/// The controller is lost, a line cannot be told, or nobody who is left knows how to be drained.
pub(crate) async fn wait(
    client: &Client,
    agents: &[String],
    within: Duration,
    mut tell: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Option<String>> {
    let end = Instant::now() + within;
    let mut told = BTreeMap::<String, String>::new();
    loop {
        let request = AgentsRequest {
            ids: agents.to_vec(),
            ..AgentsRequest::default()
        };
        let answer = client.ask(client.fleet().agents(request)).await?;
        let (mut left, mut hopeless) = (Vec::new(), 0);
        for agent in &answer.agents {
            let line = format!("{}: {}", word(&agent.id), stands(agent));
            if agent.drain() != DrainState::Drained {
                left.push(line.clone());
                hopeless += usize::from(knows_no_drain(agent));
            }
            if told.get(&agent.id) != Some(&line) {
                tell(&line)?;
                told.insert(agent.id.clone(), line);
            }
        }
        if left.is_empty() {
            return Ok(None);
        }
        if hopeless == left.len() {
            anyhow::bail!("{}", left.join("; "));
        }
        if Instant::now() >= end {
            return Ok(Some(left.join("; ")));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether it is there, of a version that cannot be drained: waiting does not help.
fn knows_no_drain(agent: &Agent) -> bool {
    let nack = agent.nack.as_ref();
    let withheld = nack.is_some_and(|nack| view::keeps_from_draining(agent, nack));
    withheld && agent.drain() == DrainState::Draining && agent.state() == AgentState::Connected
}

/// How far an agent is, in words.
pub(crate) fn stands(agent: &Agent) -> String {
    match (agent.drain(), agent.state()) {
        (DrainState::Drained, _) => return "drained".to_owned(),
        (DrainState::Unspecified, _) => return "captures".to_owned(),
        (DrainState::Draining, AgentState::Connected) => {}
        (DrainState::Draining, _) => return "is not connected; it is drained when it is back".to_owned(),
    }
    let own = |nack: &&Nack| nack.section() != Section::NotOffered || view::keeps_from_draining(agent, nack);
    if let Some(nack) = agent.nack.as_ref().filter(own) {
        return harmless(&view::refusal(nack, "refuses"));
    }
    let Some(health) = &agent.health else {
        return "has not said how it does".to_owned();
    };
    let waiting = health.collectors.iter().filter(|collector| collector.waiting > 0);
    let waiting: Vec<String> = waiting
        .map(|collector| {
            let why = match collector.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({})", harmless(reason)),
            };
            format!(
                "{} records wait for {}{why}",
                collector.waiting,
                word(&collector.name)
            )
        })
        .collect();
    match (health.capturing, waiting.is_empty()) {
        (true, _) => "still captures".to_owned(),
        (false, true) => "captures nothing, and looks whether anything waits".to_owned(),
        (false, false) => waiting.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::wire::session::{CollectorHealth, Feature, Health, Hello};

    use super::*;

    #[test]
    fn it_is_told_what_an_agent_waits_for() {
        let mut agent = Agent {
            id: "a".to_owned(),
            state: AgentState::Offline.into(),
            drain: DrainState::Draining.into(),
            ..Agent::default()
        };
        assert_eq!(stands(&agent), "is not connected; it is drained when it is back");
        agent.state = AgentState::Connected.into();
        agent.health = Some(Health {
            capturing: true,
            ..Health::default()
        });
        assert_eq!(stands(&agent), "still captures");
        agent.health = Some(Health {
            collectors: vec![CollectorHealth {
                name: "main".to_owned(),
                waiting: 7,
                reason: "refused".to_owned(),
                ..CollectorHealth::default()
            }],
            ..Health::default()
        });
        assert_eq!(stands(&agent), "7 records wait for main (refused)");
        assert!(!knows_no_drain(&agent));
        agent.nack = Some(Nack {
            section: Section::NotOffered.into(),
            path: "drain".to_owned(),
            reason: "not drained: version 0.1.0 does not know how".to_owned(),
            ..Nack::default()
        });
        assert_eq!(stands(&agent), "not drained: version 0.1.0 does not know how");
        assert!(knows_no_drain(&agent), "nobody waits for it");
        agent.nack = Some(Nack {
            section: Section::NotOffered.into(),
            path: "capture.exclude[0].podLabels".to_owned(),
            reason: "not offered: version 0.1.0 does not know it".to_owned(),
            ..Nack::default()
        });
        assert!(
            knows_no_drain(&agent),
            "it does not know how to be drained, either"
        );
        agent.hello = Some(Hello {
            features: vec![Feature::Drain.into()],
            ..Hello::default()
        });
        assert_eq!(stands(&agent), "7 records wait for main (refused)");
        assert!(
            !knows_no_drain(&agent),
            "it is drained, though it cannot have its policy"
        );
        agent.drain = DrainState::Drained.into();
        assert_eq!(stands(&agent), "drained");
    }
}
