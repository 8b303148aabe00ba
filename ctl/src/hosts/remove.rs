//! `agentctl agents remove`: takes the agent away from hosts, and makes its identity void.
//!
//! In: names of hosts and groups, as the controller has them. What waits in an agent's spool goes with it. The host stays in its
//! group: that is the operator's to change.

use clap::Args;
use flowtilla_proto::hosts::HostGroup;
use flowtilla_proto::wire::fleet::{RevokeRequest, object, revoke_request};
use futures_util::StreamExt as _;
use futures_util::stream;

use super::plan::Found;
use super::ssh::{Payload, Ssh};
use super::trouble::{Step, Trouble};
use super::{ACTION_WITHIN, HOSTS_AT_ONCE, Job, PROBE_WITHIN, close, confirmed, jobs, progress};
use crate::client::{Client, Reach};
use crate::cmd::fleet::{diff, print};
use crate::exit::{Exit, say};
use crate::output::{harmless, word};
use crate::signals::Signals;

#[derive(Args, Clone, Debug)]
pub(crate) struct RemoveArgs {
    /// Hosts, or groups of them, as `get hostgroups` has them.
    #[arg(value_name = "HOST|GROUP", required = true)]
    pub(crate) hosts: Vec<String>,
    /// Removes without asking. Nobody is asked but on a terminal.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// No such host, or the controller is not reached. What goes wrong with hosts is told, and is [`Exit::Failed`].
pub(crate) async fn run(args: RemoveArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let held = client.ask(client.fleet().objects(diff::NEWEST)).await?;
    let groups: Vec<HostGroup> = held
        .objects
        .into_iter()
        .filter_map(|object| match object.kind {
            Some(object::Kind::HostGroup(group)) => HostGroup::try_from(group).ok(),
            _ => None,
        })
        .collect();
    let jobs = jobs(&groups, ("HOST", &args.hosts), &client)?;
    let asked = jobs.iter().map(|job| {
        format!(
            "{}: remove the agent, with what waits in its spool",
            harmless(&job.name)
        )
    });
    if !args.yes && !confirmed(asked.collect()).await {
        say("nothing was changed");
        return Ok(Exit::Interrupted);
    }
    let ssh = Ssh::new()?;
    let mut signals = Signals::new()?;
    let all = stream::iter(jobs.iter().map(|job| take_away(&client, &ssh, job)));
    let ended = tokio::select! { biased;
        () = signals.next() => None,
        ended = all.buffered(HOSTS_AT_ONCE).collect::<Vec<_>>() => Some(ended),
    };
    close(&ssh, &jobs).await;
    let Some(ended) = ended else {
        say("ended before all hosts were done; call it again to go on");
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
async fn take_away(client: &Client, ssh: &Ssh, job: &Job) -> Result<String, Trouble> {
    progress(job, "looks at it");
    let said = ssh
        .run(&job.way, Step::Probe, &["probe"], Payload::new(), PROBE_WITHIN)
        .await?;
    let found = Found::read(&said)?;
    if found.is_bare() {
        return Ok("has no agent".to_owned());
    }
    progress(job, "removes the agent");
    ssh.run(&job.way, Step::Remove, &["remove"], Payload::new(), ACTION_WITHIN)
        .await?;
    let Some(identity) = found.identity else {
        return Ok("done: removed, it had no identity".to_owned());
    };
    let agent = identity.name.as_str().to_owned();
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
