//! Brings agents to the hosts of groups, over ssh: what `agentctl deploy` does before objects are applied.
//!
//! In: groups, as files have them, and a controller. Out: agents that run and are connected; of each host one sentence on stdout,
//! in the order of the files; what goes on meanwhile on stderr. All hosts are looked at first ([`plan`]); then what is lacking is
//! done, and nothing else: so the same call again does the rest, and the one after that nothing.
//!
//! At most [`HOSTS_AT_ONCE`] hosts at a time. What fails on one ([`trouble`]) leaves the others alone. A token is made for one
//! host, right before it is brought there, and is taken back when it was of no use.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flowtilla_proto::hosts::HostGroup;
use flowtilla_proto::spiffe::SpiffeId;
use flowtilla_proto::wire::fleet::{
    Agent, AgentState, AgentsRequest, CreateTokenRequest, RevokeRequest, StatusRequest, TokensRequest,
    revoke_request,
};
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::{Instant, sleep};

use self::plan::{Enrol, Found, Known, Plan, Replace, Service, Wanted};
use self::program::{Program, digest};
use self::ssh::{Payload, Ssh, Way};
use self::trouble::{Step, Trouble};
use crate::client::Client;
use crate::cmd::fleet::print;
use crate::exit::{Exit, UsageError, say};
use crate::output::{harmless, memory, word};
use crate::signals::Signals;

mod plan;
mod program;
pub(crate) mod remove;
mod ssh;
mod trouble;

/// Hosts that are worked on at a time.
///
/// What the sshd of a jump host lets in at once without a word (MaxStartups 10). Half of it doubles the time of a large fleet;
/// double it, and hosts behind one jump host fail at random.
const HOSTS_AT_ONCE: usize = 8;
/// How long a look at a host may take, sudo's own delays included.
const PROBE_WITHIN: Duration = Duration::from_secs(45);
/// How long the files may take: 50 MiB over 1 MBit/s.
const INSTALL_WITHIN: Duration = Duration::from_secs(600);
/// How long a short action may take.
const ACTION_WITHIN: Duration = Duration::from_secs(60);
/// How long an agent that was started may take until the controller has it.
///
/// Its first tries are within seconds. Half of it fails on a host that is just booting; double it, and a wrong address holds the
/// whole deploy for a minute.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// How often the controller is asked for it.
const JOIN_EVERY: Duration = Duration::from_millis(500);
/// How long a token may be used, in milliseconds: it is used at once, or the host is looked after by hand.
const TOKEN_LIFE_MS: u64 = 15 * 60 * 1_000;

/// The service's unit, as it is on hosts.
const UNIT: &str = include_str!("../../agent/flowtilla-agent.service");

/// What `deploy` is told of hosts.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct HostArgs {
    /// Of the groups of hosts, only this group or host. May be repeated.
    #[arg(long, value_name = "HOST|GROUP")]
    pub(crate) limit: Vec<String>,
    /// Installs and upgrades without asking. Nobody is asked but on a terminal.
    #[arg(long)]
    pub(crate) yes: bool,
    /// The agent's program that hosts get [default: flowtilla-agent beside this agentctl, or of its package].
    #[arg(long, value_name = "PATH")]
    pub(crate) agent_binary: Option<PathBuf>,
}

/// A host, and what is to be there.
#[derive(Debug)]
struct Job {
    /// As it is told: `[USER@]HOST[:PORT]`.
    name: String,
    way: Way,
    labels: BTreeMap<String, String>,
    settings: String,
}

/// What came of a host.
#[derive(Debug)]
enum Outcome {
    Nothing { agent: String, newer: Option<String> },
    Done { agent: String, steps: Vec<String> },
    Planned(Vec<String>),
    Left,
    Failed(Trouble),
}

/// What all hosts share.
struct Shared<'a> {
    client: &'a Client,
    ssh: Ssh,
    program: Program,
    domain: String,
    agents: BTreeMap<String, Agent>,
}

/// Brings agents to the hosts of `groups`. `None`: every host has what it is to have, or would have.
///
/// # Errors
///
/// Flags are wrong, or the controller is not reached. What goes wrong with hosts is told, and is [`Exit::Failed`].
pub(crate) async fn bring(
    client: &Client,
    groups: &[HostGroup],
    args: &HostArgs,
    dry_run: bool,
) -> anyhow::Result<Option<Exit>> {
    let jobs = jobs(groups, ("--limit", &args.limit), client)?;
    let path = match &args.agent_binary {
        Some(path) => path.clone(),
        None => program::beside(&std::env::current_exe()?),
    };
    let program = Program::load(&path).map_err(|why| {
        UsageError(vec![format!(
            "--agent-binary: {:?} {why}",
            harmless(&path.to_string_lossy())
        )])
    })?;
    let status = client.ask(client.fleet().status(StatusRequest {})).await?;
    let agents = client
        .ask(client.fleet().agents(AgentsRequest::default()))
        .await?
        .agents;
    let shared = Shared {
        client,
        ssh: Ssh::new()?,
        program,
        domain: status.trust_domain,
        agents: agents
            .into_iter()
            .map(|agent| (agent.id.clone(), agent))
            .collect(),
    };
    let mut signals = Signals::new()?;
    let worked = tokio::select! { biased;
        () = signals.next() => None,
        worked = work(&shared, &jobs, args.yes, dry_run) => Some(worked),
    };
    close(&shared.ssh, &jobs).await;
    let Some(outcomes) = worked else {
        say("ended before all hosts were done; nothing was applied; deploy again to go on");
        return Ok(Some(Exit::Interrupted));
    };
    print(&told(&jobs, &outcomes, dry_run))?;
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Left)) {
        say("nothing was changed");
        return Ok(Some(Exit::Interrupted));
    }
    let failed = outcomes
        .iter()
        .any(|outcome| matches!(outcome, Outcome::Failed(_)));
    Ok(failed.then_some(Exit::Failed))
}

/// Closes all shared connections.
async fn close(ssh: &Ssh, jobs: &[Job]) {
    let all = stream::iter(jobs);
    all.for_each_concurrent(HOSTS_AT_ONCE, |job| ssh.close(&job.way))
        .await;
}

/// The hosts that are meant: by a flag with the names of some, or all.
fn jobs(
    groups: &[HostGroup],
    (flag, limit): (&str, &[String]),
    client: &Client,
) -> Result<Vec<Job>, UsageError> {
    let mut jobs = Vec::new();
    let mut used = vec![false; limit.len()];
    for group in groups {
        let controller = match &group.controller {
            Some(controller) => controller.to_string(),
            None => client.address().to_string(),
        };
        for target in &group.hosts {
            let name = target.to_string();
            let mut meant = limit.is_empty();
            for (text, used) in limit.iter().zip(&mut used) {
                if [group.name.as_str(), &name, &target.host].contains(&text.as_str()) {
                    (*used, meant) = (true, true);
                }
            }
            if meant {
                jobs.push(Job {
                    name,
                    way: Way {
                        target: target.clone(),
                        jump: group.jump.clone(),
                        sudo: group.sudo,
                    },
                    labels: group.labels.as_map().clone(),
                    settings: format!("# Written by agentctl deploy.\nFLOWTILLA_CONTROLLER={controller}\n"),
                });
            }
        }
    }
    let unused = limit.iter().zip(used).filter(|(_, used)| !used);
    let lines: Vec<String> = unused
        .map(|(text, _)| {
            let text = harmless(text);
            format!("{flag}: {text:?} is no group of hosts, and no host of one; write one that is there")
        })
        .collect();
    match lines.is_empty() {
        true => Ok(jobs),
        false => Err(UsageError(lines)),
    }
}

/// Looks at all hosts, asks when somebody is to be asked, and does what is lacking. An outcome a job, in their order.
async fn work(shared: &Shared<'_>, jobs: &[Job], yes: bool, dry_run: bool) -> Vec<Outcome> {
    let looks = stream::iter(jobs.iter().map(|job| shared.look(job)));
    let looks: Vec<_> = looks.buffered(HOSTS_AT_ONCE).collect().await;
    let version = &shared.program.version;
    if dry_run {
        let planned = |look| match look {
            Ok((_, plan)) => {
                let plan: Plan = plan;
                Outcome::Planned(plan.steps(version))
            }
            Err(trouble) => Outcome::Failed(trouble),
        };
        return looks.into_iter().map(planned).collect();
    }
    let weighty: Vec<String> = jobs
        .iter()
        .zip(&looks)
        .filter_map(|(job, look)| Some((job, &look.as_ref().ok()?.1)))
        .filter(|(_, plan)| plan.is_weighty())
        .map(|(job, plan)| format!("{}: {}", harmless(&job.name), plan.steps(version).join(", ")))
        .collect();
    if !weighty.is_empty() && !yes && !confirmed(weighty).await {
        return jobs.iter().map(|_| Outcome::Left).collect();
    }
    let done = jobs.iter().zip(looks).map(async |(job, look)| match look {
        Ok((found, plan)) => shared
            .carry_out(job, &found, plan)
            .await
            .unwrap_or_else(Outcome::Failed),
        Err(trouble) => Outcome::Failed(trouble),
    });
    stream::iter(done).buffered(HOSTS_AT_ONCE).collect().await
}

/// Asks a person, when there is one.
async fn confirmed(lines: Vec<String>) -> bool {
    if !io::stdin().is_terminal() {
        return true;
    }
    let asked = tokio::task::spawn_blocking(move || {
        for line in lines {
            say(line);
        }
        let _ = write!(io::stderr(), "agentctl: go on? [y/N] ");
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
    });
    asked.await.unwrap_or(false)
}

/// How it goes with one host, for whoever watches.
fn progress(job: &Job, what: impl Display) {
    say(format_args!("{}: {what}", harmless(&job.name)));
}

impl Shared<'_> {
    async fn look(&self, job: &Job) -> Result<(Found, Plan), Trouble> {
        progress(job, "looks at it");
        let said = self
            .ssh
            .run(&job.way, Step::Probe, &["probe"], Payload::new(), PROBE_WITHIN)
            .await?;
        let found = Found::read(&said)?;
        plan::fits(&found, &self.program)?;
        if !found.package.is_empty() {
            let package = harmless(&found.package);
            progress(
                job,
                format_args!(
                    "its agent is of the Debian package {package}, which apt-get upgrades: program and unit stay"
                ),
            );
        }
        let wanted = Wanted {
            program: &self.program,
            unit: &digest(UNIT.as_bytes()),
            settings: &digest(job.settings.as_bytes()),
            labels: &job.labels,
        };
        let known = Known {
            domain: &self.domain,
            agents: &self.agents,
        };
        let plan = plan::plan(&found, &wanted, &known);
        Ok((found, plan))
    }

    async fn carry_out(&self, job: &Job, found: &Found, plan: Plan) -> Result<Outcome, Trouble> {
        let former = found.identity.as_ref().map(|id| id.name.as_str().to_owned());
        if !plan.is_empty() {
            self.install(job, &plan).await?;
        }
        let agent = match plan.enrol {
            None => {
                self.start(job, &plan).await?;
                former.expect("who is not enrolled has it in the plan")
            }
            Some(why) => {
                let token = self.token(job).await?;
                match self.enrol(job, &plan, &token).await {
                    Ok(agent) => {
                        if let (Enrol::Labels, Some(former)) = (why, former) {
                            self.revoke(revoke_request::What::Agent(former)).await;
                        }
                        agent
                    }
                    Err(trouble) => {
                        self.revoke(revoke_request::What::Token(token.id)).await;
                        return Err(trouble);
                    }
                }
            }
        };
        if let Err(trouble) = self.join(job, &agent).await {
            return Err(self.back(job, &plan, trouble).await);
        }
        Ok(match plan.is_empty() {
            true => Outcome::Nothing {
                agent,
                newer: plan.newer,
            },
            false => Outcome::Done {
                agent,
                steps: plan.steps(&self.program.version),
            },
        })
    }

    async fn install(&self, job: &Job, plan: &Plan) -> Result<(), Trouble> {
        let mut payload = Payload::new();
        let mut part = |wanted: bool, text: &str| match wanted {
            true => {
                payload.push(Arc::from(text.as_bytes()));
                text.len().to_string()
            }
            false => "0".to_owned(),
        };
        let unit = part(plan.unit, UNIT);
        let settings = part(plan.settings, &job.settings);
        let mut program = "-";
        if plan.program.is_some() {
            progress(
                job,
                format_args!("brings the agent ({})", memory(self.program.octets.len() as u64)),
            );
            payload.push(Arc::clone(&self.program.octets));
            program = &self.program.digest;
        }
        let words = ["install", &unit, &settings, program];
        self.ssh
            .run(&job.way, Step::Install, &words, payload, INSTALL_WITHIN)
            .await
            .map(drop)
    }

    async fn token(&self, job: &Job) -> Result<Token, Trouble> {
        let request = CreateTokenRequest {
            labels: job.labels.clone(),
            ttl_ms: TOKEN_LIFE_MS,
            operator: String::new(),
        };
        let made = self.client.ask(self.client.fleet().create_token(request)).await;
        let made = made.map_err(|failed| Trouble::new(Step::Enrol, failed.to_string(), "deploy again"))?;
        Ok(Token {
            id: made.id,
            secret: made.token,
        })
    }

    /// Brings the token, starts the agent, and waits until it has used it; the agent's id.
    async fn enrol(&self, job: &Job, plan: &Plan, token: &Token) -> Result<String, Trouble> {
        progress(job, "enrols");
        let octets: Arc<[u8]> = Arc::from(token.secret.as_bytes());
        let words = ["enrol", &octets.len().to_string()];
        self.ssh
            .run(&job.way, Step::Enrol, &words, vec![octets], ACTION_WITHIN)
            .await?;
        self.start(job, plan).await?;
        let used = async || {
            let tokens = self
                .client
                .ask(self.client.fleet().tokens(TokensRequest {}))
                .await
                .ok()?;
            let ours = tokens.tokens.into_iter().find(|made| made.id == token.id)?;
            let agent = SpiffeId::parse(&ours.used_by).ok()?;
            Some(agent.name.as_str().to_owned())
        };
        match until(used).await {
            Some(agent) => Ok(agent),
            None => Err(self.with_last_words(job, "the agent has not enrolled").await),
        }
    }

    async fn start(&self, job: &Job, plan: &Plan) -> Result<(), Trouble> {
        let how = match plan.service {
            None => return Ok(()),
            Some(Service::Start) => "start",
            Some(Service::Restart) => "restart",
        };
        progress(job, format_args!("{how}s the agent"));
        let words = ["start", how];
        let started = self
            .ssh
            .run(&job.way, Step::Start, &words, Payload::new(), ACTION_WITHIN)
            .await;
        match started {
            Ok(_) => Ok(()),
            Err(trouble) => Err(self.back(job, plan, trouble).await),
        }
    }

    /// Waits until the controller has the agent.
    async fn join(&self, job: &Job, agent: &str) -> Result<(), Trouble> {
        let connected = async || {
            let request = AgentsRequest {
                ids: vec![agent.to_owned()],
                ..AgentsRequest::default()
            };
            let told = self.client.ask(self.client.fleet().agents(request)).await.ok()?;
            told.agents
                .iter()
                .any(|agent| agent.state() == AgentState::Connected)
                .then_some(())
        };
        match until(connected).await {
            Some(()) => {
                progress(job, format_args!("connected as {}", word(agent)));
                Ok(())
            }
            None => Err(self.with_last_words(job, "the agent is not connected").await),
        }
    }

    /// After an upgrade that does not do: the program from before.
    async fn back(&self, job: &Job, plan: &Plan, trouble: Trouble) -> Trouble {
        if !matches!(plan.program, Some(Replace::Upgrade(_))) || plan.enrol.is_some() {
            return trouble;
        }
        progress(job, "goes back to the program from before");
        let back = self
            .ssh
            .run(&job.way, Step::Start, &["revert"], Payload::new(), ACTION_WITHIN)
            .await;
        match back {
            Ok(_) => trouble.and("the program from before is back"),
            Err(more) => trouble.and(&format!("the program from before is not back: {more}")),
        }
    }

    /// Why an agent does not come, in its own words.
    async fn with_last_words(&self, job: &Job, why: &str) -> Trouble {
        let said = self
            .ssh
            .run(&job.way, Step::Join, &["state"], Payload::new(), ACTION_WITHIN)
            .await
            .unwrap_or_default();
        let words: Vec<&str> = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let why = format!(
            "{why} after {} s; its service says: {}",
            JOIN_WITHIN.as_secs(),
            harmless(&words.join(" / "))
        );
        let controller = job
            .settings
            .rsplit_once('=')
            .map_or("", |(_, address)| address.trim());
        let remedy =
            format!("see that the host reaches {controller}, and write controller: in its group if not");
        Trouble::new(Step::Join, why, remedy)
    }

    /// Takes back what is of no use any more. That it stays is no failure: a token runs out, an agent is listed.
    async fn revoke(&self, what: revoke_request::What) {
        let request = RevokeRequest { what: Some(what) };
        let _ = self.client.ask(self.client.fleet().revoke(request)).await;
    }
}

/// A join token.
struct Token {
    id: String,
    secret: String,
}

/// Asks until there is an answer, for [`JOIN_WITHIN`].
async fn until<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + JOIN_WITHIN;
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(JOIN_EVERY).await;
    }
}

/// Each host's sentence, and the sum.
fn told(jobs: &[Job], outcomes: &[Outcome], dry_run: bool) -> String {
    let mut text = String::new();
    let mut counts = [0_usize; 3];
    for (job, outcome) in jobs.iter().zip(outcomes) {
        let sentence = match outcome {
            Outcome::Nothing { agent, newer } => {
                counts[1] += 1;
                match newer {
                    None => format!("nothing to do ({})", word(agent)),
                    Some(newer) => format!(
                        "nothing to do ({}); it has the newer version {}, which stays",
                        word(agent),
                        harmless(newer)
                    ),
                }
            }
            Outcome::Planned(steps) if steps.is_empty() => {
                counts[1] += 1;
                "nothing to do".to_owned()
            }
            Outcome::Planned(steps) => {
                counts[0] += 1;
                format!("would {}", harmless(&steps.join(", ")))
            }
            Outcome::Done { agent, steps } => {
                counts[0] += 1;
                format!("done: {} ({})", harmless(&steps.join(", ")), word(agent))
            }
            Outcome::Left => continue,
            Outcome::Failed(trouble) => {
                counts[2] += 1;
                format!("FAILED at {trouble}")
            }
        };
        text += &format!("{}: {sentence}\n", harmless(&job.name));
    }
    let [done, nothing, failed] = counts;
    if done + nothing + failed > 0 {
        let would = if dry_run { "would be changed" } else { "changed" };
        text += &format!("hosts: {done} {would}, {nothing} as they are to be, {failed} failed\n");
    }
    text
}

#[cfg(test)]
mod tests;
