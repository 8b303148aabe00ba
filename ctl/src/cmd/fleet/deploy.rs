//! `agentctl deploy` and `agentctl rollback`: a new revision, what it changes for whom, and how it gets on.
//!
//! Order: files are read whole and every mistake is told; the controller tells what it has, and dangling names are told; where
//! there are groups of hosts, it says whether it would take everything, and agents are brought to the hosts ([`hosts`]); it gets
//! everything in one call, bound to the revision that was seen; what changes is shown; with `--wait` each agent's answer follows.
//! Nothing is sent, and no host is touched, while anything is wrong. A host that fails stops nothing else; the exit code tells.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flowtilla_grpc::telemetry::{self, OTLP_VARIABLE, Otlp};
use flowtilla_proto::wire::fleet::{
    AgentChange, ApplyRequest, ApplyResponse, Change, ObjectChange, ObjectName, ObjectsResponse,
    RollbackRequest, RolloutsRequest, object,
};
use tonic::Code;
use tracing::{Span, instrument};

use super::{diff, print, watch};
use crate::client::explain::Failed;
use crate::client::{Client, Reach};
use crate::document::{Documents, Text, files, name_of};
use crate::exit::{Exit, FilesError, UsageError, say};
use crate::hosts::{self, HostArgs};
use crate::output::{harmless, word};
use crate::view;

/// How long `--wait` waits when it says nothing.
///
/// A few waves with short soaks. Half of it gives up on them; double it, and a pipeline stands for longer than people wait.
const WAIT_DEFAULT: &str = "30m";
/// Rollouts, the newest first, among which those of a revision are looked for: as many as a controller tells.
///
/// One for each policy that a revision changes. Half of it misses some of the largest fleets'; double it for nothing.
const ROLLOUTS_LOOKED_AT: u32 = 1_000;
/// Agents that are named when something changes for them; of more the number is told.
const AGENTS_SHOWN: usize = 20;

#[derive(Args, Clone, Debug)]
pub(crate) struct DeployArgs {
    /// File, directory (its *.yaml and *.yml), or - for stdin. May be repeated.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) file: Vec<PathBuf>,
    /// Shows what would change for whom, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Takes away what the controller has and the files have not.
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) hosts: HostArgs,
    #[command(flatten)]
    pub(crate) follow: Follow,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RollbackArgs {
    /// Revision whose objects come back [default: the one before the newest; after a roll-back, the one that it went back to].
    #[arg(value_name = "REVISION", default_value_t = 0, hide_default_value = true)]
    pub(crate) revision: u64,
    /// Shows what would change for whom, and changes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) follow: Follow,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// What follows a change.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Follow {
    /// Shows each agent's answer until all have it, or something fails, or this time is over [default: 30m].
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = WAIT_DEFAULT, value_parser = super::token::parse_ttl)]
    pub(crate) wait: Option<u64>,
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Where traces go (OTLP over gRPC, not encrypted), or off.
    #[arg(long, value_name = "http://HOST[:PORT]|off", env = OTLP_VARIABLE, default_value = "off", value_parser = Otlp::parse)]
    pub(crate) otlp: Otlp,
}

impl Follow {
    /// Why, or nothing.
    pub(crate) fn message(&self) -> String {
        self.message.clone().unwrap_or_default()
    }
}

/// Runs `deploy`.
///
/// # Errors
///
/// Files that are refused, a controller that is not reached or refuses.
#[instrument(level = "debug", name = "deploy", skip_all)]
pub(crate) async fn run(args: DeployArgs) -> anyhow::Result<Exit> {
    let (client, documents, held) = prepare(&args.file, args.prune, &args.reach).await?;
    let removed = match args.prune {
        true => pruned(&documents, &held),
        false => Vec::new(),
    };
    let mut request = ApplyRequest {
        objects: documents.objects(),
        removed,
        dry_run: true,
        message: args.follow.message(),
        expected_revision: held.revision,
        traceparent: telemetry::traceparent_of(&Span::current()).unwrap_or_default(),
    };
    let groups = documents.host_groups();
    let mut brought = None;
    if groups.is_empty() && !args.hosts.limit.is_empty() {
        let why = "--limit: there is no group of hosts in these files; leave it out, or add a document of kind HostGroup";
        return Err(UsageError(vec![why.to_owned()]).into());
    }
    if !groups.is_empty() {
        apply(&client, &documents, request.clone()).await?;
        brought = hosts::bring(&client, &groups, &args.hosts, args.dry_run).await?;
        if brought == Some(Exit::Interrupted) {
            return Ok(Exit::Interrupted);
        }
    }
    request.dry_run = args.dry_run;
    let answer = apply(&client, &documents, request).await?;
    let finished = finish(&client, &answer, args.dry_run, &args.follow).await?;
    Ok(match finished {
        Exit::Done => brought.unwrap_or(Exit::Done),
        other => other,
    })
}

async fn apply(
    client: &Client,
    documents: &Documents,
    request: ApplyRequest,
) -> anyhow::Result<ApplyResponse> {
    let applied = client.ask(client.fleet().apply(request)).await;
    applied.map_err(|failed| refused(documents, failed))
}

/// Runs `rollback`.
///
/// # Errors
///
/// The controller is not reached or refuses.
#[instrument(level = "debug", name = "rollback", skip_all)]
pub(crate) async fn rollback(args: RollbackArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let request = RollbackRequest {
        revision: args.revision,
        dry_run: args.dry_run,
        message: args.follow.message(),
        traceparent: telemetry::traceparent_of(&Span::current()).unwrap_or_default(),
    };
    let answer = client.ask(client.fleet().rollback(request)).await?;
    finish(&client, &answer, args.dry_run, &args.follow).await
}

/// Reads files, and what the controller has, and tells everything that is wrong.
///
/// # Errors
///
/// [`FilesError`] with a line for each mistake; a controller that is not reached.
pub(crate) async fn prepare(
    paths: &[PathBuf],
    prune: bool,
    reach: &Reach,
) -> anyhow::Result<(Client, Documents, ObjectsResponse)> {
    let texts = files::read(paths, std::io::stdin())?;
    let (documents, complaints) = Documents::read(&texts);
    let mut lines: Vec<String> = complaints.iter().map(ToString::to_string).collect();
    if lines.is_empty() && documents.list.is_empty() {
        let empty = |text: &Text| {
            let name = harmless(&text.name);
            format!("-f: {name:?}: there is no document in it; write one, such as agentctl schema describes")
        };
        lines.extend(texts.iter().map(empty));
    }
    let asked = async {
        let client = Client::reach(reach).await?;
        let held = client.ask(client.fleet().objects(diff::NEWEST)).await?;
        anyhow::Ok((client, held))
    };
    let (client, held) = match asked.await {
        Ok(asked) => asked,
        Err(error) if lines.is_empty() => return Err(error),
        Err(_) => {
            lines.push("names of collectors were not looked up: the controller was not reached".to_owned());
            return Err(FilesError(lines).into());
        }
    };
    let known = match prune {
        true => BTreeSet::new(),
        false => collectors(&held),
    };
    lines.extend(documents.dangling(&known).iter().map(ToString::to_string));
    let astray = documents.astray(client.address().host());
    lines.extend(astray.iter().map(ToString::to_string));
    match lines.is_empty() {
        true => Ok((client, documents, held)),
        false => Err(FilesError(lines).into()),
    }
}

fn collectors(held: &ObjectsResponse) -> BTreeSet<String> {
    let name = |kind: &object::Kind| match kind {
        object::Kind::Collector(collector) => Some(collector.name.clone()),
        object::Kind::Policy(_) | object::Kind::HostGroup(_) => None,
    };
    held.objects
        .iter()
        .filter_map(|object| object.kind.as_ref().and_then(name))
        .collect()
}

fn pruned(documents: &Documents, held: &ObjectsResponse) -> Vec<ObjectName> {
    let kept: Vec<ObjectName> = documents.list.iter().map(|document| document.name()).collect();
    let names = held.objects.iter().map(name_of);
    names.filter(|name| !kept.contains(name)).collect()
}

/// What the controller refuses, at its place in the files.
fn refused(documents: &Documents, failed: Failed) -> anyhow::Error {
    match failed.code {
        Some(Code::InvalidArgument) if !failed.mistakes.is_empty() => {
            FilesError(documents.refused(&failed.mistakes)).into()
        }
        Some(Code::Aborted) => {
            anyhow::anyhow!("{failed}; somebody else deployed meanwhile: look at diff, and deploy again")
        }
        _ => failed.into(),
    }
}

/// Shows what changes, and follows it when asked.
///
/// # Errors
///
/// stdout cannot be written, or the controller is lost for good.
pub(crate) async fn finish(
    client: &Client,
    answer: &ApplyResponse,
    dry_run: bool,
    follow: &Follow,
) -> anyhow::Result<Exit> {
    for warning in &answer.warnings {
        say(format_args!("note: {}", harmless(warning)));
    }
    print(&told(answer, dry_run))?;
    let Some(ms) = follow.wait.filter(|_| !dry_run) else {
        return Ok(Exit::Done);
    };
    let mut rollouts = rollouts(answer);
    if rollouts.is_empty() {
        // Asked for once more, it is what the call before has begun.
        rollouts = going_on(client, answer.revision).await?;
        for rollout in &rollouts {
            print(&format!("rollout {rollout} of this revision goes on\n"))?;
        }
    }
    match rollouts.is_empty() {
        true => Ok(Exit::Done),
        false => watch::watch(client, &rollouts, Some(Duration::from_millis(ms))).await,
    }
}

/// Rollouts of a revision that have not ended.
async fn going_on(client: &Client, revision: u64) -> anyhow::Result<Vec<u64>> {
    let request = RolloutsRequest {
        limit: ROLLOUTS_LOOKED_AT,
    };
    let listed = client.ask(client.fleet().rollouts(request)).await?.rollouts;
    let those = listed
        .iter()
        .filter(|rollout| rollout.revision == revision && rollout.ended_ms == 0);
    Ok(those.map(|rollout| rollout.id).collect())
}

fn rollouts(answer: &ApplyResponse) -> Vec<u64> {
    let mut rollouts: Vec<u64> = answer.rollouts.clone();
    if rollouts.is_empty() && answer.rollout > 0 {
        rollouts.push(answer.rollout);
    }
    rollouts
}

/// What changes, for whom.
pub(crate) fn told(answer: &ApplyResponse, dry_run: bool) -> String {
    let mut text = String::new();
    let mut counts = [0_usize; 3];
    for told in &answer.changes {
        match told.change() {
            Change::Added => counts[0] += 1,
            Change::Changed => counts[1] += 1,
            Change::Removed => counts[2] += 1,
            Change::None | Change::Unspecified => continue,
        }
        text += &changed(told);
    }
    // Those that will not get it are looked for first.
    let (refusing, others): (Vec<_>, Vec<_>) =
        (answer.agents.iter()).partition(|agent| agent.refusal.is_some());
    for agent in refusing.iter().chain(&others).take(AGENTS_SHOWN) {
        text += &for_whom(agent);
    }
    let more = answer.agents.len().saturating_sub(AGENTS_SHOWN);
    if more > 0 {
        text += &format!("agent …: and {more} more\n");
    }
    let [added, changed, removed] = counts;
    let objects = match added + changed + removed {
        0 => "nothing changes".to_owned(),
        _ => format!("{added} added, {changed} changed, {removed} removed"),
    };
    let offline = answer.agents.iter().filter(|agent| !agent.connected).count();
    let agents = match (answer.agents.len(), offline) {
        (0, _) => "no agent gets anything else".to_owned(),
        (n, 0) => format!("{n} agent(s) get something else"),
        (n, offline) => format!("{n} agent(s) get something else, {offline} of them when they are back"),
    };
    let agents = match refusing.len() {
        0 => agents,
        n => format!("{agents}; not offered to {n}"),
    };
    if answer.rollback_to > 0 {
        text += &format!("back to the objects of revision {}\n", answer.rollback_to);
    }
    let newest = match (dry_run, answer.changes.is_empty()) {
        // The controller tells the revision that there is.
        (true, false) => format!("a revision after {} would be made", answer.revision),
        (true, true) => format!("revision {} would stay the newest", answer.revision),
        (false, _) => format!("revision {} is the newest", answer.revision),
    };
    text += &format!("{newest}: {objects}; {agents}\n");
    if dry_run {
        text += "dry run: nothing was changed\n";
        return text;
    }
    for rollout in rollouts(answer) {
        text += &format!("rollout {rollout} has begun: agentctl rollout watch {rollout}\n");
    }
    text
}

fn changed(told: &ObjectChange) -> String {
    let name = told.object.clone().unwrap_or_default();
    let title = format!(
        "{} {} {}\n",
        view::change(told.change()),
        word(&name.kind),
        word(&name.name)
    );
    if told.change() != Change::Changed {
        return title;
    }
    let difference = diff::one(told.before.as_ref(), told.after.as_ref());
    // Without the names of the two sides, and set in.
    let lines = difference
        .lines()
        .skip(2)
        .map(|line| format!("  {}\n", harmless(line)));
    title + &lines.collect::<String>()
}

fn for_whom(agent: &AgentChange) -> String {
    let policy = |name: &str| match name {
        "" => "nothing".to_owned(),
        name => word(name),
    };
    let (before, after) = (policy(&agent.policy_before), policy(&agent.policy_after));
    let what = match before == after {
        true => format!("{after}, as it is from here on"),
        false => format!("{before} → {after}"),
    };
    let when = if agent.connected { "" } else { " (offline)" };
    let refusal = match &agent.refusal {
        Some(nack) => format!("; {}", harmless(&view::refusal(nack, "refused"))),
        None => String::new(),
    };
    format!("agent {}: {what}{when}{refusal}\n", word(&agent.agent))
}
