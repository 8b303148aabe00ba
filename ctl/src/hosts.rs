//! Brings agents to the hosts of groups, over ssh: what `agentctl deploy` does before objects are applied.
//!
//! In: groups, as files have them, and a controller. Out: agents that run and are connected; of each host one sentence on stdout,
//! in the order of the files; what goes on meanwhile on stderr. All hosts are looked at first ([`plan`]); then what is lacking is
//! done, and nothing else: so the same call again does the rest, and the one after that nothing.
//!
//! At most [`HOSTS_AT_ONCE`] hosts at a time. What fails on one ([`trouble`]) leaves the others alone. What is done on one host is
//! in [`one`]; agents that there are get another program in waves ([`waves`]). An agent that is there must prove who it is ([`who`]): no
//! other agent is touched, or vouches, by a host's word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flowtilla_proto::hosts::{HostGroup, Runtime};
use flowtilla_proto::policy::{Rollout, Wave};
use flowtilla_proto::wire;
use futures_util::StreamExt as _;
use futures_util::stream;

use self::plan::{Enrol, Found, Plan};
use self::program::Program;
use self::ssh::{Ssh, Way};
use self::trouble::{Step, Trouble};
use self::waves::Upgrade;
use crate::client::Client;
use crate::cmd::fleet::print;
use crate::document::units;
use crate::exit::{Exit, UsageError, say};
use crate::output::{harmless, word};
use crate::signals::Signals;

pub(crate) mod doctor;
mod one;
mod patience;
mod plan;
mod program;
#[cfg(test)]
mod remote;
pub(crate) mod remove;
mod ssh;
mod trouble;
pub(crate) mod upgrade;
mod waves;
mod who;

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
    /// Of agents that there are: how many have the new program after each wave, as numbers or shares.
    #[arg(
        long,
        value_name = "N|N%,…",
        value_delimiter = ',',
        default_value = "1,10%,100%"
    )]
    pub(crate) waves: Vec<String>,
    /// How long the agents of a wave are watched before the next; 0s: not at all.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) soak: u64,
    /// How long a host is tried to be reached again whose ssh broke off while something was done there.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = parse_time)]
    pub(crate) patience: u64,
}

fn parse_time(text: &str) -> Result<u64, String> {
    units::read_time(text).map_err(|(why, remedy)| format!("{why}; {remedy}"))
}

/// What is done to hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Everything that they lack.
    Deploy,
    /// Agents that there are get another program, and nothing else is done.
    Upgrade,
}

/// How it is done.
#[derive(Debug)]
struct How {
    aim: Aim,
    yes: bool,
    dry_run: bool,
    waves: Vec<Wave>,
    soak: Duration,
}

impl How {
    fn read(args: &HostArgs, aim: Aim, dry_run: bool) -> Result<Self, UsageError> {
        let sent = wire::Rollout {
            waves: args.waves.clone(),
            soak_ms: Some(args.soak),
            ..wire::Rollout::default()
        };
        let read = Rollout::try_from(sent).map_err(|mistakes| {
            let line = |mistake: flowtilla_proto::mistake::Mistake| {
                let flag = if mistake.path.starts_with("waves") {
                    "--waves"
                } else {
                    "--soak"
                };
                let value = mistake
                    .value
                    .map_or(String::new(), |value| format!("{:?} ", harmless(&value)));
                format!("{flag}: {value}{}; {}", mistake.why, mistake.remedy)
            };
            UsageError(mistakes.into_iter().map(line).collect())
        })?;
        Ok(Self {
            aim,
            yes: args.yes,
            dry_run,
            waves: read.waves,
            soak: read.soak,
        })
    }
}

/// A host, and what is to be there.
#[derive(Debug)]
struct Job {
    /// As it is told: `[USER@]HOST[:PORT]`.
    name: String,
    way: Way,
    labels: BTreeMap<String, String>,
    settings: String,
    runtimes: BTreeSet<Runtime>,
    /// What of the unit gives access to their sockets; empty: nothing.
    access: String,
}

/// What came of a host.
#[derive(Debug)]
enum Outcome {
    Nothing {
        agent: String,
        newer: Option<String>,
    },
    Done {
        agent: String,
        steps: Vec<String>,
    },
    Planned(Vec<String>),
    /// Not ours to upgrade: its agent is of a Debian package, of this version.
    Packaged(String),
    /// It was to be upgraded after a wave that went back.
    Waits,
    /// Its upgrade was taken back.
    Back(String),
    Left,
    Failed(Trouble),
}

/// What all hosts share.
struct Shared<'a> {
    client: &'a Client,
    ssh: Ssh,
    program: Program,
    /// How long a host whose ssh broke off is tried to be reached again.
    patience: Duration,
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
    bring_all(client, groups, args, Aim::Deploy, dry_run).await
}

async fn bring_all(
    client: &Client,
    groups: &[HostGroup],
    args: &HostArgs,
    aim: Aim,
    dry_run: bool,
) -> anyhow::Result<Option<Exit>> {
    let how = How::read(args, aim, dry_run)?;
    let jobs = jobs(groups, ("--limit", &args.limit), &client.address().to_string())?;
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
    let shared = Shared {
        client,
        ssh: Ssh::new()?,
        program,
        patience: Duration::from_millis(args.patience),
    };
    let mut signals = Signals::new()?;
    let worked = tokio::select! { biased;
        () = signals.next() => None,
        worked = work(&shared, &jobs, &how) => Some(worked),
    };
    close(&shared.ssh, &jobs).await;
    let Some(outcomes) = worked else {
        say(match aim {
            Aim::Deploy => "ended before all hosts were done; nothing was applied; deploy again to go on",
            Aim::Upgrade => "ended before all hosts were done; call it again to go on",
        });
        return Ok(Some(Exit::Interrupted));
    };
    let outcomes = outcomes?;
    print(&told(&jobs, &outcomes, dry_run))?;
    if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Left)) {
        say("nothing was changed");
        return Ok(Some(Exit::Interrupted));
    }
    let failed = outcomes
        .iter()
        .any(|outcome| matches!(outcome, Outcome::Failed(_) | Outcome::Back(_) | Outcome::Waits));
    Ok(failed.then_some(Exit::Failed))
}

/// Closes all shared connections.
async fn close(ssh: &Ssh, jobs: &[Job]) {
    let all = stream::iter(jobs);
    all.for_each_concurrent(HOSTS_AT_ONCE, |job| ssh.close(&job.way))
        .await;
}

/// The hosts that are meant: by a flag with the names of some, or all. `operators`: the operator's own way to the controller, for groups
/// that do not say theirs.
fn jobs(
    groups: &[HostGroup],
    (flag, limit): (&str, &[String]),
    operators: &str,
) -> Result<Vec<Job>, UsageError> {
    let mut jobs = Vec::new();
    let mut used = vec![false; limit.len()];
    for group in groups {
        let controller = match &group.controller {
            Some(controller) => controller.to_string(),
            None => operators.to_owned(),
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
                    access: one::access(&group.runtimes),
                    runtimes: group.runtimes.clone(),
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
///
/// # Errors
///
/// The controller is lost before anything was changed.
async fn work(shared: &Shared<'_>, jobs: &[Job], how: &How) -> anyhow::Result<Vec<Outcome>> {
    let looks = stream::iter(jobs.iter().map(|job| shared.look(job)));
    let looks: Vec<_> = looks.buffered(HOSTS_AT_ONCE).collect().await;
    let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
    let (mut at_once, mut upgrades) = (Vec::new(), Vec::new());
    for (at, look) in looks.into_iter().enumerate() {
        match look {
            Err(trouble) => {
                outcomes.insert(at, Outcome::Failed(trouble));
            }
            Ok((found, plan)) => {
                if let (Aim::Upgrade, Some(outcome)) = (how.aim, out_of_upgrade(&found, &plan)) {
                    outcomes.insert(at, outcome);
                    continue;
                }
                let plan = match how.aim {
                    Aim::Deploy => plan,
                    Aim::Upgrade => plan.of_upgrade(),
                };
                match plan.is_upgrade() {
                    true => upgrades.push(Upgrade { at, found, plan }),
                    false => at_once.push((at, found, plan)),
                }
            }
        }
    }
    let version = &shared.program.version;
    if how.dry_run {
        for (at, _, plan) in at_once {
            outcomes.insert(at, Outcome::Planned(plan.steps(version)));
        }
        outcomes.extend(waves::planned(upgrades, &how.waves, version));
        return Ok(outcomes.into_values().collect());
    }
    let plans = (at_once.iter().map(|(at, _, plan)| (*at, plan)))
        .chain(upgrades.iter().map(|one| (one.at, &one.plan)));
    let mut weighty: Vec<(usize, &Plan)> = plans.filter(|(_, plan)| plan.is_weighty()).collect();
    weighty.sort_by_key(|(at, _)| *at);
    let weighty: Vec<String> = (weighty.into_iter())
        .map(|(at, plan)| format!("{}: {}", harmless(&jobs[at].name), plan.steps(version).join(", ")))
        .collect();
    if !weighty.is_empty() && !how.yes && !confirmed(weighty).await {
        return Ok(jobs.iter().map(|_| Outcome::Left).collect());
    }
    let mut run = waves::Run::new(shared, jobs, how, upgrades);
    run.measure().await?; // A controller that cannot judge says so before anything is changed.
    let done = at_once.into_iter().map(async |(at, found, plan)| {
        let done = shared.carry_out(&jobs[at], &found, plan).await;
        (at, done.unwrap_or_else(Outcome::Failed))
    });
    let done: Vec<_> = stream::iter(done).buffered(HOSTS_AT_ONCE).collect().await;
    outcomes.extend(done);
    outcomes.extend(run.run().await);
    Ok(outcomes.into_values().collect())
}

/// What comes of a host that an upgrade has nothing to do with; `None`: it has.
fn out_of_upgrade(found: &Found, plan: &Plan) -> Option<Outcome> {
    if plan.enrol == Some(Enrol::Anew) {
        return Some(Outcome::Failed(Trouble::new(
            Step::Fit,
            "it has no agent that counts in this fleet, so nothing is there to be upgraded",
            "agentctl deploy puts one there",
        )));
    }
    (!found.package.is_empty()).then(|| Outcome::Packaged(found.package.clone()))
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

/// Each host's sentence, and the sum.
fn told(jobs: &[Job], outcomes: &[Outcome], dry_run: bool) -> String {
    let mut text = String::new();
    let mut counts = [0_usize; 4];
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
            Outcome::Packaged(package) => {
                counts[1] += 1;
                format!(
                    "stays as it is: its agent is of the Debian package {}, which apt-get upgrades there",
                    harmless(package)
                )
            }
            Outcome::Waits => {
                counts[3] += 1;
                "stays as it is: a wave before it went back".to_owned()
            }
            Outcome::Back(why) => {
                counts[2] += 1;
                format!("WENT BACK: {}", harmless(why))
            }
            Outcome::Left => continue,
            Outcome::Failed(trouble) => {
                counts[2] += 1;
                format!("FAILED at {trouble}")
            }
        };
        text += &format!("{}: {sentence}\n", harmless(&job.name));
    }
    let [done, nothing, failed, waiting] = counts;
    if done + nothing + failed + waiting > 0 {
        let would = if dry_run { "would be changed" } else { "changed" };
        let wait = match waiting {
            0 => String::new(),
            _ => format!(", {waiting} not yet"),
        };
        text += &format!("hosts: {done} {would}, {nothing} as they are to be, {failed} failed{wait}\n");
    }
    text + &on_trial(jobs, outcomes)
}

/// Who is left with a program that nobody has kept: a host that could not be reached for that does not go back by itself while its
/// service stays up. Last of all that is told, so that nobody overlooks it.
fn on_trial(jobs: &[Job], outcomes: &[Outcome]) -> String {
    let is_left = |outcome: &Outcome| matches!(outcome, Outcome::Failed(trouble) if trouble.on_trial);
    let left: Vec<String> = (jobs.iter().zip(outcomes))
        .filter(|(_, outcome)| is_left(outcome))
        .map(|(job, _)| harmless(&job.name))
        .collect();
    match left.is_empty() {
        true => String::new(),
        false => format!(
            "ON TRIAL STILL: {}: a program that nobody has kept may run there; once they are in reach, the same call again (with --limit \
             HOST for one alone) watches it, and keeps it or has it go back\n",
            left.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests;
