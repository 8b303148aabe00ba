//! Agents that there are get another program, wave by wave, each only when the one before is well; else back again.
//!
//! In: hosts whose plan is an upgrade, in the order of the files. Out: an outcome for each. A wave is brought its program, its agents
//! must come back as other processes, and the controller judges them for the soak, by the gates of their policies. What fails takes
//! all hosts of the call back to the program that each had before; the rest keep theirs.
//!
//! A host that cannot be reached, or whose agent was not there before, is told and holds nothing up: the next one takes its place in
//! the wave. One whose ssh broke off while it was brought its program may have it or not: it is tried to be reached again, and when that
//! fails it goes back with the others, or is kept once it is reached and has it. It counts as one of its wave, and is judged by what the
//! controller hears of its agent, unless that is there as it was before: then nobody runs the program, and the next host takes its
//! place; it is not kept unwatched. Whoever has not proven who it is goes back at once instead, and is not judged.
//!
//! A controller that is away for a moment is waited for. Whatever happens to this process, a host has one program or the other, and
//! says so: what an earlier call left on trial is watched first, as a wave of its own. Only at the end is anything kept.

use std::collections::BTreeMap;
use std::time::Duration;

use flowtilla_proto::policy::Wave;
use flowtilla_proto::wire::fleet::{Figures, GateFailure, JudgeRequest, JudgeResponse, MeasureRequest};
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::{Instant, sleep};
use tonic::Code;

use self::host::{Blame, Failed, finish, upgrade_one};
use self::queue::Queue;
use super::patience::while_away;
use super::plan::{Found, Plan};
use super::trouble::Trouble;
use super::who::Who;
use super::{HOSTS_AT_ONCE, How, Job, Outcome, Shared, progress};
use crate::exit::say;
use crate::output::{harmless, word};

mod host;
mod queue;

/// How often the controller is asked how a wave does.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much longer than its soak a wave is watched until every agent was heard of for long enough.
///
/// Heartbeats come each ten seconds, silence counts after a minute unless the policy says otherwise, and a controller that starts
/// anew gives it another 90 s. Half of it takes a restart of the controller for an upgrade that failed; double it, and a wave of which
/// nothing is heard is waited for as long as people wait for a whole fleet.
const SOAK_SLACK: Duration = Duration::from_secs(180);
/// Agents that are named of those at fault.
const AGENTS_SHOWN: usize = 8;

/// A host whose agent gets another program, or has one on trial.
pub(super) struct Upgrade {
    /// Its place among the jobs.
    pub(super) at: usize,
    pub(super) found: Found,
    pub(super) plan: Plan,
}

impl Upgrade {
    fn agent(&self) -> &str {
        self.found.who.said().unwrap_or_default()
    }

    /// Whether its agent is who it says to be: the health of any other is no matter of this host.
    fn is_proven(&self) -> bool {
        matches!(self.found.who, Who::Proven(_))
    }

    /// Whether what it is to have runs there already, and has not proven itself.
    fn is_on_trial(&self) -> bool {
        self.plan.trial && self.plan.program.is_none()
    }
}

/// One that has its program, or may have it.
struct Upgraded {
    upgrade: Upgrade,
    wave: usize,
    /// How ssh broke off: whether it has its program is not known.
    unsure: Option<Trouble>,
    /// Whether it is one of its wave, by what the controller hears of its agent.
    counts: bool,
}

/// Upgrades on their way.
pub(super) struct Run<'a> {
    shared: &'a Shared<'a>,
    jobs: &'a [Job],
    how: &'a How,
    queue: Queue,
    /// By agent: its last soak before its upgrade.
    before: BTreeMap<String, Figures>,
}

/// What would be done, with the wave of each.
pub(super) fn planned(upgrades: Vec<Upgrade>, waves: &[Wave], version: &str) -> Vec<(usize, Outcome)> {
    let sizes = sizes(waves, upgrades.len());
    let told = |(n, upgrade): (usize, Upgrade)| {
        let wave = sizes.iter().position(|size| n < *size).unwrap_or(0) + 1;
        let mut steps = upgrade.plan.steps(version);
        if let Some(first) = steps.first_mut() {
            first.push_str(&format!(" (wave {wave} of {})", sizes.len()));
        }
        (upgrade.at, Outcome::Planned(steps))
    };
    upgrades.into_iter().enumerate().map(told).collect()
}

/// How many hosts have it after each wave, without waves to which nobody is added.
fn sizes(waves: &[Wave], all: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = Vec::new();
    for size in waves.iter().map(|wave| wave.of(all)).chain([all]) {
        if size > sizes.last().copied().unwrap_or(0) {
            sizes.push(size);
        }
    }
    sizes
}

impl<'a> Run<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, jobs: &'a [Job], how: &'a How, upgrades: Vec<Upgrade>) -> Self {
        Self {
            shared,
            jobs,
            how,
            queue: Queue::new(upgrades),
            before: BTreeMap::new(),
        }
    }

    /// Asks what those that wait for their upgrade are like.
    ///
    /// # Errors
    ///
    /// The controller cannot say, or is not reached.
    pub(super) async fn measure(&mut self) -> anyhow::Result<()> {
        let waiting = self.queue.waiting().filter(|upgrade| !upgrade.is_on_trial());
        let agents: Vec<String> = waiting.map(|upgrade| upgrade.agent().to_owned()).collect();
        if agents.is_empty() || self.how.soak.is_zero() {
            return Ok(());
        }
        let request = MeasureRequest {
            agents,
            soak_ms: self.soak_ms(),
        };
        let client = self.shared.client;
        let measured = while_away(async || client.ask(client.fleet().measure(request.clone())).await).await;
        let measured = measured.map_err(|failed| match failed.code {
            Some(Code::Unimplemented) => anyhow::anyhow!(
                "{failed}, and cannot judge an upgrade: upgrade the controller first, or write --soak 0s"
            ),
            _ => failed.into(),
        })?;
        for one in measured.agents {
            match one.figures {
                Some(figures) => self.before.insert(one.agent, figures),
                None => self.before.remove(&one.agent),
            };
        }
        Ok(())
    }

    /// Brings it to all, or back.
    pub(super) async fn run(mut self) -> BTreeMap<usize, Outcome> {
        let sizes = sizes(&self.how.waves, self.queue.waiting().count());
        match self.waves(&sizes).await {
            Ok(()) => self.keep().await,
            Err(why) => self.take_back(&why).await,
        }
    }

    async fn waves(&mut self, sizes: &[usize]) -> Result<(), String> {
        let trial = self.queue.take_trial();
        if !trial.is_empty() {
            say(format_args!(
                "upgrade: {} on trial since an earlier call",
                hosts(trial.len())
            ));
            self.bring(trial, 0).await?;
            self.watch(0, "what was on trial").await?;
        }
        for (n, &size) in sizes.iter().enumerate() {
            let name = format!("wave {} of {}", n + 1, sizes.len());
            let wave = n + 1;
            if let Err(error) = self.measure().await {
                return Err(format!("{name}: the controller was lost: {error:#}"));
            }
            let began = self.queue.counted();
            loop {
                let batch = self.queue.next(size);
                if batch.is_empty() {
                    break;
                }
                self.bring(batch, wave).await?;
            }
            if self.queue.counted() > began {
                self.watch(wave, &name).await?;
            }
        }
        Ok(())
    }

    /// Brings the program to some hosts. An error: it does not do, and why.
    async fn bring(&mut self, batch: Vec<Upgrade>, wave: usize) -> Result<(), String> {
        let (shared, jobs) = (self.shared, self.jobs);
        let all = stream::iter(batch.into_iter().map(async |mut upgrade| {
            let done = upgrade_one(shared, &jobs[upgrade.at], &mut upgrade).await;
            (upgrade, done)
        }));
        let done: Vec<_> = all.buffered(HOSTS_AT_ONCE).collect().await;
        let mut why = None;
        for (upgrade, done) in done {
            let job = &jobs[upgrade.at];
            if let Err(Failed {
                trouble,
                blame: Blame::Unsure { counts },
            }) = &done
            {
                progress(
                    job,
                    format_args!("not known whether it has its program: {trouble}"),
                );
                if !counts {
                    progress(job, "its agent is there as before, and is not watched");
                }
            }
            if let Err(trouble) = self.queue.took(wave, upgrade, done) {
                why.get_or_insert_with(|| format!("{}: {trouble}", job.name));
            }
        }
        why.map_or(Ok(()), Err)
    }

    /// Watches those that have it for a soak. An error: what speaks against it.
    async fn watch(&mut self, wave: usize, name: &str) -> Result<(), String> {
        if self.how.soak.is_zero() {
            return Ok(());
        }
        say(format_args!(
            "upgrade: {name}, {}: watched for {} s",
            hosts(self.queue.counted_in(wave)),
            self.how.soak.as_secs()
        ));
        let mut since_ms = 0;
        let mut last = JudgeResponse::default();
        let end = Instant::now() + self.how.soak + SOAK_SLACK;
        while Instant::now() < end {
            let client = self.shared.client;
            let request = self.question(wave, since_ms);
            // A controller that starts anew is asked again.
            if let Ok(answer) = client.ask(client.fleet().judge(request)).await {
                if since_ms == 0 {
                    since_ms = answer.since_ms;
                } else if !answer.failures.is_empty() {
                    return Err(format!("{name}: {}", sentences(&answer.failures)));
                } else if answer.soaked {
                    return Ok(());
                }
                if last.waits_for != answer.waits_for && !answer.waits_for.is_empty() {
                    say(format_args!(
                        "upgrade: {name}: waits: {}",
                        harmless(&answer.waits_for)
                    ));
                }
                last = answer;
            }
            sleep(LOOK_EVERY).await;
        }
        let why = match last.waits_for.as_str() {
            "" => "the controller did not say how its agents do",
            waits => waits,
        };
        Err(format!("{name}: {why}"))
    }

    fn question(&self, wave: usize, since_ms: u64) -> JudgeRequest {
        JudgeRequest {
            agents: self.queue.judged(wave, &self.before),
            soak_ms: self.soak_ms(),
            since_ms,
        }
    }

    fn soak_ms(&self) -> u64 {
        u64::try_from(self.how.soak.as_millis()).unwrap_or(u64::MAX)
    }

    /// All is well: every host is told so, and what else its plan has is done.
    async fn keep(self) -> BTreeMap<usize, Outcome> {
        let (shared, jobs) = (self.shared, self.jobs);
        let (upgraded, never, failed) = self.queue.end();
        let all = upgraded.into_iter().map(async |one| {
            let at = one.upgrade.at;
            let outcome = finish(shared, &jobs[at], one).await;
            (at, outcome.unwrap_or_else(Outcome::Failed))
        });
        let done: Vec<_> = stream::iter(all).buffered(HOSTS_AT_ONCE).collect().await;
        outcomes(done, never, failed)
    }

    /// All that have it go back; those that have it not keep what they have.
    async fn take_back(self, why: &str) -> BTreeMap<usize, Outcome> {
        say(format_args!("upgrade: goes back: {}", harmless(why)));
        let (shared, jobs) = (self.shared, self.jobs);
        let (upgraded, never, failed) = self.queue.end();
        let all = upgraded.into_iter().map(async |one| {
            let at = one.upgrade.at;
            let outcome = match shared.back(&jobs[at], one.upgrade.agent()).await {
                Ok(()) => Outcome::Back(why.to_owned()),
                Err(trouble) => Outcome::Failed(trouble.and(&format!("it was to go back: {why}"))),
            };
            (at, outcome)
        });
        let done: Vec<_> = stream::iter(all).buffered(HOSTS_AT_ONCE).collect().await;
        outcomes(done, never, failed)
    }
}

fn outcomes(
    done: Vec<(usize, Outcome)>,
    never: Vec<usize>,
    failed: Vec<(usize, Trouble)>,
) -> BTreeMap<usize, Outcome> {
    let failed = (failed.into_iter()).map(|(at, trouble)| (at, Outcome::Failed(trouble)));
    let never = never.into_iter().map(|at| (at, Outcome::Waits));
    done.into_iter().chain(failed).chain(never).collect()
}

fn hosts(count: usize) -> String {
    match count {
        1 => "1 host".to_owned(),
        _ => format!("{count} hosts"),
    }
}

/// Each gate that failed: its name, what was measured and allowed, and the agents at fault.
fn sentences(failures: &[GateFailure]) -> String {
    let one = |failure: &GateFailure| {
        let shown: Vec<String> = failure
            .agents
            .iter()
            .take(AGENTS_SHOWN)
            .map(|agent| word(agent))
            .collect();
        let more = match failure.agents.len().saturating_sub(AGENTS_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{}: {} (agents: {}{more})",
            word(&failure.gate),
            harmless(&failure.message),
            shown.join(", ")
        )
    };
    failures.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_hosts_are_rounded_up_and_empty_waves_are_left_out() {
        let waves = [Wave::Agents(1), Wave::Percent(10), Wave::Percent(100)];
        assert_eq!(sizes(&waves, 50), [1, 5, 50]);
        assert_eq!(sizes(&waves, 11), [1, 2, 11]);
        assert_eq!(sizes(&waves, 3), [1, 3]);
        assert_eq!(sizes(&waves, 1), [1]);
        assert_eq!(sizes(&waves, 0), [0; 0]);
        assert_eq!(sizes(&[], 3), [3]);
    }

    #[test]
    fn what_would_be_done_names_each_hosts_wave() {
        let upgrades = (0..3).map(|at| Upgrade {
            at,
            found: Found::default(),
            plan: Plan {
                trial: true,
                ..Plan::default()
            },
        });
        let told = planned(
            upgrades.collect(),
            &[Wave::Agents(1), Wave::Percent(100)],
            "0.2.0",
        );
        let steps: Vec<String> = (told.into_iter())
            .map(|(at, outcome)| match outcome {
                Outcome::Planned(steps) => format!("{at}: {}", steps.join(", ")),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            steps,
            [
                "0: watch 0.2.0, which is on trial (wave 1 of 2)",
                "1: watch 0.2.0, which is on trial (wave 2 of 2)",
                "2: watch 0.2.0, which is on trial (wave 2 of 2)"
            ]
        );
    }

    #[test]
    fn what_failed_is_told_with_its_gate_and_its_agents() {
        let agents: Vec<String> = (0..10).map(|n| format!("a{n}")).collect();
        let failure = GateFailure {
            gate: "lag".to_owned(),
            agents,
            message: "a record of a0 waited 9.0 s".to_owned(),
            ..GateFailure::default()
        };
        assert_eq!(
            sentences(&[failure]),
            "lag: a record of a0 waited 9.0 s (agents: a0, a1, a2, a3, a4, a5, a6, a7 and 2 more)"
        );
    }
}
