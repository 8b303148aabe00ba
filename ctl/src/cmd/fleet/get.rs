//! `agentctl get`: lists of what the controller knows.
//!
//! `-o json`: an array of the shapes in [`crate::view`]; policies, collectors and groups of hosts are the documents that `deploy` takes. With a NAME
//! the list has that one, or the command ends with exit code 1.

use crate::clock;
use clap::{Args, Subcommand, ValueEnum};
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::{
    Agent, AgentsRequest, HistoryRequest, Object, ObjectsRequest, Operator, OperatorsRequest, Revision,
    Rollout, RolloutsRequest, Token, TokensRequest, object,
};

use super::drain::DrainArgs;
use super::{Output, json, print, table, values, yaml_shown};
use crate::client::{Client, Reach};
use crate::document::{Kind, name_of, render};
use crate::exit::Exit;
use crate::hosts::remove::RemoveArgs;
use crate::hosts::upgrade::UpgradeArgs;
use crate::output::{harmless, memory, word};
use crate::view;

/// Revisions and rollouts that are asked for.
const ENTRIES_MAX: u32 = 1_000;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    #[value(alias = "agent")]
    Agents,
    #[value(alias = "policy")]
    Policies,
    #[value(alias = "collector")]
    Collectors,
    #[value(name = "hostgroups", alias = "hostgroup")]
    HostGroups,
    #[value(alias = "operator")]
    Operators,
    #[value(alias = "token")]
    Tokens,
    #[value(alias = "revision")]
    Revisions,
    #[value(alias = "rollout")]
    Rollouts,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct GetArgs {
    /// What is listed.
    #[arg(value_name = "KIND", value_enum)]
    pub(crate) what: What,
    /// Only the one of this name, id or number.
    #[arg(value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AgentsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<AgentsCommand>,
    /// Only the one of this name.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    reach: Reach,
}

/// What is done with agents.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AgentsCommand {
    /// Takes the agent away from hosts, over ssh, and makes its identity void.
    Remove(RemoveArgs),
    /// Brings agents that there are another program, over ssh, in waves, and back again when one is not well.
    Upgrade(Box<UpgradeArgs>),
    /// Has agents capture nothing any more and send what waits.
    Drain(DrainArgs),
}

impl From<AgentsArgs> for GetArgs {
    fn from(args: AgentsArgs) -> Self {
        Self {
            what: What::Agents,
            name: args.name,
            output: args.output,
            reach: args.reach,
        }
    }
}

/// A list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum List {
    Agents(Vec<Agent>),
    Objects(Kind, Vec<Object>),
    Operators(Vec<Operator>),
    Tokens(Vec<Token>),
    Revisions(Vec<Revision>),
    Rollouts(Vec<Rollout>),
}

/// Runs the command.
///
/// # Errors
///
/// The controller refuses, or has nothing of that name.
pub(crate) async fn run(args: GetArgs) -> anyhow::Result<Exit> {
    let client = Client::reach(&args.reach).await?;
    let list = List::fetch(&client, args.what, args.name.as_deref()).await?;
    let now = clock::wall_now();
    if matches!(args.output, Output::Table | Output::Wide) {
        client.say_view(now);
    }
    print(&list.text(args.output, now))
}

impl List {
    /// Asks for it.
    ///
    /// # Errors
    ///
    /// The controller refuses, or has nothing of that name.
    pub(crate) async fn fetch(client: &Client, what: What, name: Option<&str>) -> anyhow::Result<Self> {
        let mut fleet = client.fleet();
        let mut list = match what {
            What::Agents => {
                let request = AgentsRequest {
                    ids: name.map(str::to_owned).into_iter().collect(),
                    ..AgentsRequest::default()
                };
                Self::Agents(client.ask(fleet.agents(request)).await?.agents)
            }
            What::Policies | What::Collectors | What::HostGroups => {
                let kind = match what {
                    What::Policies => Kind::Policy,
                    What::Collectors => Kind::Collector,
                    _ => Kind::HostGroup,
                };
                let objects = client
                    .ask(fleet.objects(ObjectsRequest::default()))
                    .await?
                    .objects;
                let of_kind = objects
                    .into_iter()
                    .filter(|object| name_of(object).kind == kind.name());
                Self::Objects(kind, of_kind.collect())
            }
            What::Operators => {
                Self::Operators(client.ask(fleet.operators(OperatorsRequest {})).await?.operators)
            }
            What::Tokens => Self::Tokens(client.ask(fleet.tokens(TokensRequest {})).await?.tokens),
            What::Revisions => {
                let request = HistoryRequest { limit: ENTRIES_MAX };
                Self::Revisions(client.ask(fleet.history(request)).await?.revisions)
            }
            What::Rollouts => {
                let request = RolloutsRequest { limit: ENTRIES_MAX };
                Self::Rollouts(client.ask(fleet.rollouts(request)).await?.rollouts)
            }
        };
        if let Some(name) = name {
            list.keep(name);
            anyhow::ensure!(
                !list.names().is_empty(),
                "{:?} is not known to the controller; see the list without a name",
                harmless(name)
            );
        }
        Ok(list)
    }

    fn keep(&mut self, name: &str) {
        match self {
            Self::Agents(list) => list.retain(|agent| agent.id == name),
            Self::Objects(_, list) => list.retain(|object| name_of(object).name == name),
            Self::Operators(list) => list.retain(|operator| operator.name == name),
            Self::Tokens(list) => list.retain(|token| token.id == name),
            Self::Revisions(list) => list.retain(|revision| revision.revision.to_string() == name),
            Self::Rollouts(list) => list.retain(|rollout| rollout.id.to_string() == name),
        }
    }

    /// Their names, ids or numbers.
    fn names(&self) -> Vec<String> {
        match self {
            Self::Agents(list) => list.iter().map(|agent| agent.id.clone()).collect(),
            Self::Objects(_, list) => list.iter().map(|object| name_of(object).name).collect(),
            Self::Operators(list) => list.iter().map(|operator| operator.name.clone()).collect(),
            Self::Tokens(list) => list.iter().map(|token| token.id.clone()).collect(),
            Self::Revisions(list) => list
                .iter()
                .map(|revision| revision.revision.to_string())
                .collect(),
            Self::Rollouts(list) => list.iter().map(|rollout| rollout.id.to_string()).collect(),
        }
    }

    /// What to print.
    pub(crate) fn text(&self, output: Output, now: WallTime) -> String {
        if output == Output::Name {
            return self.names().iter().map(|name| word(name) + "\n").collect();
        }
        if let Self::Objects(_, list) = self {
            match output {
                Output::Yaml => return render::yaml(list),
                Output::Json => return json(&render::Plain::List(list.iter().map(render::plain).collect())),
                _ => {}
            }
        }
        if let Some(text) = values(self.plain(now), output) {
            return text;
        }
        match self {
            Self::Agents(list) => agents(list, output, now),
            Self::Objects(Kind::Policy, list) => policies(list, output),
            Self::Objects(Kind::Collector, list) => collectors(list, output),
            Self::Operators(list) => operators(list, output, now),
            Self::Objects(Kind::HostGroup, list) => host_groups(list, output),
            Self::Tokens(list) => tokens(list, output, now),
            Self::Revisions(list) => revisions(list, output, now),
            Self::Rollouts(list) => rollouts(list, output, now),
        }
    }

    /// Everything that is known of them, as YAML.
    pub(crate) fn described(&self, now: WallTime) -> String {
        match self {
            Self::Objects(_, list) => render::yaml(list),
            _ => self
                .plain(now)
                .iter()
                .map(yaml_shown)
                .collect::<Vec<_>>()
                .join("---\n"),
        }
    }

    fn plain(&self, now: WallTime) -> Vec<render::Plain> {
        match self {
            Self::Agents(list) => list.iter().map(view::agent).collect(),
            Self::Objects(_, list) => list.iter().map(render::plain).collect(),
            Self::Operators(list) => list
                .iter()
                .map(|operator| view::operator(operator, now))
                .collect(),
            Self::Tokens(list) => list.iter().map(|token| view::token(token, now)).collect(),
            Self::Revisions(list) => list.iter().map(view::revision).collect(),
            Self::Rollouts(list) => list.iter().map(view::rollout).collect(),
        }
    }
}

fn agents(list: &[Agent], output: Output, now: WallTime) -> String {
    let mut head = vec!["NAME", "STATE", "POLICY", "REV", "SEEN", "CONDITION"];
    if output == Output::Wide {
        head.extend(["HOST", "VERSION", "SOURCE", "CPU-S", "MEMORY", "SVID", "LABELS"]);
    }
    let row = |agent: &Agent| {
        let revision = match agent.revision_held == agent.revision_wanted {
            true => agent.revision_held.to_string(),
            false => format!("{}→{}", agent.revision_held, agent.revision_wanted),
        };
        let mut row = vec![
            word(&agent.id),
            view::agent_state(agent.state()).to_owned(),
            word(&agent.policy),
            revision,
            view::ago(agent.last_seen_ms, now),
            harmless(&view::condition(agent)),
        ];
        if output == Output::Wide {
            let hello = agent.hello.as_ref();
            let cost = agent.health.as_ref().and_then(|health| health.cost);
            row.extend([
                word(hello.map_or("", |hello| &hello.host_name)),
                word(hello.map_or("", |hello| &hello.version)),
                agent.source_id.to_string(),
                cost.map_or("-".to_owned(), |cost| (cost.cpu_ns / 1_000_000_000).to_string()),
                cost.map_or("-".to_owned(), |cost| {
                    memory(cost.resident_octets).replace(' ', "")
                }),
                view::until(agent.svid_not_after_ms, now),
                labels(agent.labels.iter()),
            ]);
        }
        row
    };
    table(&head, list.iter().map(row).collect(), &[], output)
}

fn policies(list: &[Object], output: Output) -> String {
    let row = |object: &Object| {
        let Some(object::Kind::Policy(policy)) = &object.kind else {
            return Vec::new();
        };
        let selector = policy.selector.clone().unwrap_or_default();
        let agents = match (selector.labels.is_empty(), selector.agents.is_empty()) {
            (true, true) => "all".to_owned(),
            (_, true) => labels(selector.labels.iter()),
            (true, false) => words(&selector.agents),
            (false, false) => format!("{} {}", labels(selector.labels.iter()), words(&selector.agents)),
        };
        let collectors = policy
            .export
            .as_ref()
            .map_or(&[][..], |export| &export.collectors);
        vec![
            word(&policy.name),
            policy.priority.to_string(),
            words(collectors),
            agents,
        ]
    };
    table(
        &["NAME", "PRIORITY", "COLLECTORS", "AGENTS"],
        list.iter().map(row).collect(),
        &[1],
        output,
    )
}

fn collectors(list: &[Object], output: Output) -> String {
    let row = |object: &Object| {
        let Some(object::Kind::Collector(collector)) = &object.kind else {
            return Vec::new();
        };
        let curve = if collector.curve_server_key.is_some() {
            "curve"
        } else {
            "plain"
        };
        vec![word(&collector.name), word(&collector.endpoint), curve.to_owned()]
    };
    table(
        &["NAME", "ENDPOINT", "TRAFFIC"],
        list.iter().map(row).collect(),
        &[],
        output,
    )
}

fn operators(list: &[Operator], output: Output, now: WallTime) -> String {
    let row = |operator: &Operator| {
        vec![
            word(&operator.name),
            view::operator_state(operator, now).to_owned(),
            view::ago(operator.enrolled_ms, now),
            view::until(operator.svid_not_after_ms, now),
            by(&operator.admitted_by),
        ]
    };
    let head = ["NAME", "STATE", "ENROLLED", "SVID", "LET-IN-BY"];
    table(&head, list.iter().map(row).collect(), &[], output)
}

/// Name of the operator who did something.
fn by(id: &str) -> String {
    match id.rsplit('/').next() {
        None | Some("") => "(host)".to_owned(),
        Some(name) => word(name),
    }
}

fn host_groups(list: &[Object], output: Output) -> String {
    let row = |object: &Object| {
        let Some(object::Kind::HostGroup(group)) = &object.kind else {
            return Vec::new();
        };
        vec![
            word(&group.name),
            group.hosts.len().to_string(),
            words(&group.hosts),
            labels(group.labels.iter()),
        ]
    };
    table(
        &["NAME", "COUNT", "HOSTS", "LABELS"],
        list.iter().map(row).collect(),
        &[1],
        output,
    )
}

fn tokens(list: &[Token], output: Output, now: WallTime) -> String {
    let row = |token: &Token| {
        let who = match token.operator.is_empty() {
            true => "agent".to_owned(),
            false => format!("operator {}", word(&token.operator)),
        };
        vec![
            word(&token.id),
            who,
            view::token_state(token, now).to_owned(),
            view::ago(token.made_ms, now),
            view::until(token.expires_ms, now),
            by(&token.made_by),
            view::short(&token.used_by),
            labels(token.labels.iter()),
        ]
    };
    let head = [
        "NAME", "FOR", "STATE", "MADE", "EXPIRES", "BY", "USED-BY", "LABELS",
    ];
    table(&head, list.iter().map(row).collect(), &[], output)
}

/// The table of `history`, too.
pub(crate) fn revisions(list: &[Revision], output: Output, now: WallTime) -> String {
    let row = |revision: &Revision| {
        let changes = revision.changes.iter().map(|told| {
            let object = told.object.clone().unwrap_or_default();
            let sign = match told.change() {
                flowtilla_proto::wire::fleet::Change::Added => "+",
                flowtilla_proto::wire::fleet::Change::Removed => "-",
                _ => "",
            };
            format!("{sign}{}/{}", word(&object.kind), word(&object.name))
        });
        let who = revision.by.rsplit('/').next().unwrap_or_default();
        let mut message = harmless(&revision.message);
        if revision.rollback_to > 0 {
            message = format!("(as {}) {message}", revision.rollback_to);
        }
        vec![
            revision.revision.to_string(),
            view::ago(revision.made_ms, now),
            word(who),
            view::rollout_state(revision.state()).to_owned(),
            word(&changes.collect::<Vec<_>>().join(",")),
            message.trim_end().to_owned(),
        ]
    };
    let head = ["NAME", "MADE", "BY", "ROLLOUT", "CHANGES", "MESSAGE"];
    table(&head, list.iter().map(row).collect(), &[], output)
}

fn rollouts(list: &[Rollout], output: Output, now: WallTime) -> String {
    let row = |rollout: &Rollout| {
        let failed = rollout.failures.first().map(|failure| failure.message.as_str());
        let why = failed.unwrap_or(&rollout.waits_for);
        vec![
            rollout.id.to_string(),
            rollout.revision.to_string(),
            word(&rollout.policy),
            view::rollout_state(rollout.state()).to_owned(),
            format!("{}/{}", rollout.wave, rollout.waves),
            rollout.acked.to_string(),
            rollout.nacked.to_string(),
            rollout.pending.to_string(),
            rollout.offline.to_string(),
            view::ago(rollout.began_ms, now),
            harmless(why),
        ]
    };
    let head = [
        "NAME", "REV", "POLICY", "STATE", "WAVE", "ACKED", "NACKED", "OPEN", "OFF", "BEGAN", "WHY",
    ];
    table(&head, list.iter().map(row).collect(), &[], output)
}

fn labels<'a>(labels: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let each: Vec<_> = labels
        .map(|(key, value)| format!("{}={}", word(key), word(value)))
        .collect();
    word(&each.join(","))
}

fn words(texts: &[String]) -> String {
    let each: Vec<_> = texts.iter().map(|text| word(text)).collect();
    word(&each.join(","))
}
