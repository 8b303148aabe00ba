//! `agentctl agents upgrade`: agents that there are get another program, in waves.
//!
//! In: groups of hosts, from files or as the controller has them. What else a host lacks is `deploy`'s to do.

use std::path::PathBuf;

use clap::Args;
use flowtilla_proto::hosts::HostGroup;
use flowtilla_proto::wire::fleet::object;

use super::{Aim, HostArgs, bring_all};
use crate::client::{Client, Reach};
use crate::cmd::fleet::{deploy, diff};
use crate::exit::{Exit, UsageError};
use crate::output::harmless;

/// What is wrong with files that have no hosts.
pub(super) const NO_GROUP: &str =
    "--file: there is no group of hosts in these files; add a document of kind HostGroup";

#[derive(Args, Clone, Debug)]
pub(crate) struct UpgradeArgs {
    /// File, directory (its *.yaml and *.yml), or - for stdin, with groups of hosts. May be repeated.
    #[arg(short, long = "file", value_name = "PATH", required_unless_present = "group")]
    pub(crate) file: Vec<PathBuf>,
    /// A group of hosts, as the controller has it. May be repeated.
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub(crate) group: Vec<String>,
    /// Looks at every host, says what would be done in which wave, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) hosts: HostArgs,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// Runs the command.
///
/// # Errors
///
/// Files or flags are wrong, no such group, or the controller is not reached. What goes wrong with hosts is told, and is
/// [`Exit::Failed`].
pub(crate) async fn run(args: UpgradeArgs) -> anyhow::Result<Exit> {
    let (client, groups) = match args.group.is_empty() {
        true => {
            let (client, documents, _) = deploy::prepare(&args.file, false, &args.reach).await?;
            (client, documents.host_groups())
        }
        false => {
            let client = Client::reach(&args.reach).await?;
            let groups = named(held(&client).await?, &args.group)?;
            (client, groups)
        }
    };
    if groups.is_empty() {
        return Err(UsageError(vec![NO_GROUP.to_owned()]).into());
    }
    let brought = bring_all(&client, &groups, &args.hosts, Aim::Upgrade, args.dry_run).await?;
    Ok(brought.unwrap_or(Exit::Done))
}

/// Groups that the controller has.
///
/// # Errors
///
/// It is not reached.
pub(super) async fn held(client: &Client) -> anyhow::Result<Vec<HostGroup>> {
    let held = client.ask(client.fleet().objects(diff::NEWEST)).await?;
    let group = |kind| match kind {
        Some(object::Kind::HostGroup(group)) => HostGroup::try_from(group).ok(),
        _ => None,
    };
    Ok(held
        .objects
        .into_iter()
        .filter_map(|object| group(object.kind))
        .collect())
}

fn named(mut groups: Vec<HostGroup>, names: &[String]) -> Result<Vec<HostGroup>, UsageError> {
    let strange = names
        .iter()
        .filter(|name| !groups.iter().any(|group| group.name.as_str() == name.as_str()));
    let lines: Vec<String> = strange
        .map(|name| {
            let name = harmless(name);
            format!("--group: {name:?} is no group of hosts that the controller has; see get hostgroups")
        })
        .collect();
    groups.retain(|group| names.iter().any(|name| name == group.name.as_str()));
    match lines.is_empty() {
        true => Ok(groups),
        false => Err(UsageError(lines)),
    }
}
