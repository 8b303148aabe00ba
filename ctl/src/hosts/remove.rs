//! `agentctl agents remove`: takes the agent away from hosts, and makes its identity void.
//!
//! In: names of hosts and groups, as the controller has them. What waits in an agent's spool goes with it. The host stays in its
//! group: that is the operator's to change. An agent that was drained and not removed stays drained, which is told. Only what a host
//! has proven to be ([`super::who`]) is drained or made void.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use flowtilla_proto::wire::fleet::{RevokeRequest, revoke_request};
use futures_util::StreamExt as _;
use futures_util::stream;

use super::ssh::{Payload, Ssh};
use super::trouble::{Step, Trouble};
use super::who::{self, Unproven, Who};
use super::{ACTION_WITHIN, HOSTS_AT_ONCE, Job, close, confirmed, jobs, progress, upgrade};
use crate::client::{Client, Reach};
use crate::cmd::fleet::{drain, print, token};
use crate::exit::{Exit, say};
use crate::output::{harmless, word};
use crate::signals::Signals;

/// What hosts' agents prove who they are for.
const PURPOSE: &str = "remove";

#[derive(Args, Clone, Debug)]
pub(crate) struct RemoveArgs {
    /// Hosts, or groups of them, as `get hostgroups` has them.
    #[arg(value_name = "HOST|GROUP", required = true)]
    pub(crate) hosts: Vec<String>,
    /// Drains them first: what waits in their spools is sent, for as long as this [default: 30m].
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = drain::WAIT_DEFAULT, value_parser = token::parse_ttl)]
    pub(crate) drain: Option<u64>,
    /// Removes without asking. Nobody is asked but on a terminal.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Agents that were told to drain, and are not removed yet.
#[derive(Debug, Default)]
struct Drained(Mutex<BTreeSet<String>>);

impl Drained {
    fn agents(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to know of them when they are not removed; `None`: there are none.
    fn told(&self) -> Option<String> {
        let agents: Vec<String> = self.agents().iter().cloned().collect();
        (!agents.is_empty()).then(|| stays_drained(&agents.join(" ")))
    }
}

/// What to know of agents that were drained and not removed.
fn stays_drained(agents: &str) -> String {
    format!("what was drained stays drained until: agentctl agents drain {agents} --undo")
}

/// Runs the command.
///
/// # Errors
///
/// No such host, or the controller is not reached. What goes wrong with hosts is told, and is [`Exit::Failed`].
pub(crate) async fn run(args: RemoveArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let groups = upgrade::held(&client).await?;
    let jobs = jobs(&groups, ("HOST", &args.hosts), &client.address().to_string())?;
    let asked = jobs.iter().map(|job| {
        let how = match args.drain {
            Some(_) => "drain and remove the agent",
            None => "remove the agent, with what waits in its spool (--drain has it sent first)",
        };
        format!("{}: {how}", harmless(&job.name))
    });
    if !args.yes && !confirmed(asked.collect()).await {
        say("nothing was changed");
        return Ok(Exit::Interrupted);
    }
    let ssh = Ssh::new()?;
    let mut signals = Signals::new()?;
    let drained = Drained::default();
    let all = stream::iter(
        jobs.iter()
            .map(|job| take_away(&client, &ssh, job, args.drain, &drained)),
    );
    let ended = tokio::select! { biased;
        () = signals.next() => None,
        ended = all.buffered(HOSTS_AT_ONCE).collect::<Vec<_>>() => Some(ended),
    };
    close(&ssh, &jobs).await;
    let Some(ended) = ended else {
        say("ended before all hosts were done; call it again to go on");
        if let Some(told) = drained.told() {
            say(told);
        }
        return Ok(Exit::Interrupted);
    };
    let mut text = String::new();
    let mut exit = Exit::Done;
    for (job, ended) in jobs.iter().zip(ended) {
        let sentence = match ended {
            Ok(sentence) => sentence,
            Err(trouble) => {
                exit = Exit::Failed;
                format!("FAILED at {trouble}")
            }
        };
        text += &format!("{}: {sentence}\n", harmless(&job.name));
    }
    print(&text)?;
    say("the next deploy brings agents back to hosts that are in a group of its files");
    Ok(exit)
}

/// Stops the agent, deletes it, and makes its identity void; the sentence of it.
async fn take_away(
    client: &Client,
    ssh: &Ssh,
    job: &Job,
    drain: Option<u64>,
    drained: &Drained,
) -> Result<String, Trouble> {
    progress(job, "looks at it");
    let (found, _) = who::look(client, ssh, job, PURPOSE).await?;
    if found.is_bare() {
        return Ok("has no agent".to_owned());
    }
    if let Some(ms) = drain {
        let agent = drainable(&found.who)?;
        wait_drained(client, job, agent, Duration::from_millis(ms), drained).await?;
    }
    progress(job, "removes the agent");
    let removed = ssh
        .run(&job.way, Step::Remove, &["remove"], Payload::new(), ACTION_WITHIN)
        .await;
    let agent = match found.who {
        Who::Nobody => return removed.map(|_| "done: removed, it had no identity that counts".to_owned()),
        Who::Claims(agent, why) => {
            removed?;
            return Err(not_revoked(&agent, &why));
        }
        Who::Proven(agent) => agent,
    };
    removed.map_err(|trouble| {
        let trouble = match trouble.broke_off {
            true => trouble.and(&format!(
                "whether the agent is gone is not known; if it is: agentctl revoke agent {}",
                word(&agent)
            )),
            false => trouble,
        };
        match drain {
            Some(_) => trouble.and(&stays_drained(&agent)),
            None => trouble,
        }
    })?;
    drained.agents().remove(&agent);
    let sentence = format!("done: removed ({})", word(&agent));
    let what = Some(revoke_request::What::Agent(agent.clone()));
    match client.ask(client.fleet().revoke(RevokeRequest { what })).await {
        Ok(_) => Ok(sentence),
        Err(failed) => Err(Trouble::new(
            Step::Remove,
            format!("the agent is gone, but its identity counts: {failed}"),
            format!("agentctl revoke agent {agent}"),
        )),
    }
}

/// Whom to drain.
///
/// # Errors
///
/// It is not certain.
fn drainable(who: &Who) -> Result<&str, Trouble> {
    match who {
        Who::Proven(agent) => Ok(agent),
        Who::Nobody => Err(Trouble::new(
            Step::Drain,
            "the agent's identity cannot be read there, or does not count, so nobody can drain it",
            "deploy again to mend it, or call it again without --drain",
        )),
        Who::Claims(agent, why) => {
            let agent = word(agent);
            Err(Trouble::new(
                Step::Drain,
                format!(
                    "it says that it is {agent}, and does not prove it ({why}), so {agent} is not drained"
                ),
                format!(
                    "call it again without --drain; if {agent} is this host's: first agentctl agents drain {agent} --wait"
                ),
            ))
        }
    }
}

/// What to know of an agent whose host has said, and not proven, that it is there.
fn not_revoked(agent: &str, why: &Unproven) -> Trouble {
    let agent = word(agent);
    Trouble::new(
        Step::Prove,
        format!(
            "the agent is gone; it said that it was {agent}, and did not prove it ({why}), so {agent} counts still"
        ),
        format!("if {agent} was this host's: agentctl revoke agent {agent}"),
    )
}

/// Has the agent drained, and waits for that.
async fn wait_drained(
    client: &Client,
    job: &Job,
    agent: &str,
    within: Duration,
    drained: &Drained,
) -> Result<(), Trouble> {
    const REMEDY: &str = "call it again, or without --drain";
    let lost = |error: anyhow::Error| Trouble::new(Step::Drain, format!("{error:#}"), REMEDY);
    let agents = [agent.to_owned()];
    // Before it is asked for: whoever ends this meanwhile is told.
    drained.agents().insert(agent.to_owned());
    if let Err(error) = drain::drain(client, &agents, false).await {
        drained.agents().remove(agent);
        return Err(lost(error));
    }
    let tell = |line: &str| {
        progress(job, line);
        Ok(())
    };
    let waited = drain::wait(client, &agents, within, tell).await;
    match waited.map_err(|error| lost(error).and(&stays_drained(agent)))? {
        None => Ok(()),
        Some(left) => {
            let why = format!("it is not drained after {} s: {left}", within.as_secs());
            let remedy = "see its collectors, and call it again, or without --drain";
            Err(Trouble::new(Step::Drain, why, remedy).and(&stays_drained(agent)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_proven_is_drained_and_who_is_not_is_told_with_the_way_by_hand() {
        assert_eq!(drainable(&Who::Proven("a-1".to_owned())), Ok("a-1"));
        let nobody = drainable(&Who::Nobody).expect_err("nobody").to_string();
        assert!(
            nobody.starts_with("drain: the agent's identity cannot be read there"),
            "{nobody}"
        );
        let claims = drainable(&Who::Claims("a-1".to_owned(), Unproven::Older)).map(str::to_owned);
        assert_eq!(
            claims.expect_err("it is not proven").to_string(),
            "drain: it says that it is a-1, and does not prove it (its agent is older, and cannot), so a-1 is not drained; call it again \
             without --drain; if a-1 is this host's: first agentctl agents drain a-1 --wait"
        );
        assert_eq!(
            not_revoked("a-1", &Unproven::Older).to_string(),
            "prove: the agent is gone; it said that it was a-1, and did not prove it (its agent is older, and cannot), so a-1 counts still; \
             if a-1 was this host's: agentctl revoke agent a-1"
        );
    }

    #[test]
    fn whoever_is_drained_and_not_removed_is_told_with_the_way_back() {
        let drained = Drained::default();
        assert_eq!(drained.told(), None);
        drained.agents().extend(["b-2", "a-1"].map(str::to_owned));
        assert_eq!(
            drained.told().as_deref(),
            Some("what was drained stays drained until: agentctl agents drain a-1 b-2 --undo")
        );
        drained.agents().remove("a-1");
        drained.agents().remove("b-2");
        assert_eq!(drained.told(), None);
    }
}
