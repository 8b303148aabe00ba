//! What of an upgrade is done on one host: it gets its program, or what it had before is back.
//!
//! In: an [`Upgrade`]. Out: nothing, when its agent is there as another process and has proven who it is; else whose doing it is that it
//! is not. What a wave makes of that is not decided here.

use flowtilla_proto::wire::fleet::{Agent, AgentState};

use super::{Upgrade, Upgraded};
use crate::hosts::one::Awaited;
use crate::hosts::patience::insist;
use crate::hosts::plan::{Plan, Service};
use crate::hosts::trouble::{Step, Trouble};
use crate::hosts::who::Who;
use crate::hosts::{Job, Outcome, Shared};
use crate::output::harmless;

/// What to do on a host under which ssh broke off: the next call watches what is on trial.
const REMEDY: &str = "deploy again";

/// How an upgrade of one host failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) trouble: Trouble,
    pub(super) blame: Blame,
}

/// Whose doing it is that an upgrade of one host failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The program's, as far as can be seen.
    Program,
    /// The host's, or nobody's: it has what it had.
    Host,
    /// ssh broke off: it may have its program.
    Unsure {
        /// Whether what is heard of its agent speaks for that program, or against it.
        counts: bool,
    },
}

/// Brings a host its program, has it prove who its agent is unless it has, and waits for the agent as another process.
pub(super) async fn upgrade_one(shared: &Shared<'_>, job: &Job, upgrade: &mut Upgrade) -> Result<(), Failed> {
    let before = shared.known(upgrade.agent()).await;
    // Of one that was not there it cannot be said that the program is to blame.
    let was_there = upgrade.is_on_trial()
        || before
            .as_ref()
            .is_some_and(|agent| agent.state() == AgentState::Connected);
    let blame = match was_there {
        true => Blame::Program,
        false => Blame::Host,
    };
    let mut awaited = Awaited::default();
    // What is on trial and runs is as it was left.
    if !upgrade.is_on_trial() || !upgrade.found.is_at_work() {
        let newer = upgrade.plan.newer.as_ref();
        awaited = Awaited {
            not: before.and_then(|agent| Some(agent.hello?.instance)),
            version: newer.unwrap_or(&shared.program.version).clone(),
            build: match upgrade.plan.program {
                Some(_) => shared.program.digest.clone(),
                None => upgrade.found.program().to_owned(),
            },
        };
        let started = match upgrade.is_on_trial() {
            true => shared.start(job, &upgrade.plan).await,
            false => shared.install(job, &upgrade.plan, Some(Service::Restart)).await,
        };
        if let Err(trouble) = started {
            let is_left = match trouble.broke_off {
                // No agent vouches for it by its word.
                true => !upgrade.is_proven(),
                // It has refused, and may have what the first try brought; after a start the script has put that back.
                false => trouble.late && trouble.step != Step::Start,
            };
            if is_left {
                return Err(go_back(shared, job, upgrade, trouble, Blame::Host).await);
            }
            let blame = match trouble.step {
                _ if trouble.broke_off => {
                    let _ = shared.comes(upgrade.agent(), &awaited).await; // What is known then decides.
                    let known = shared.known(upgrade.agent()).await;
                    Blame::Unsure {
                        counts: counts(&awaited, known.as_ref()),
                    }
                }
                Step::Start => blame,
                _ => Blame::Host,
            };
            return Err(Failed { trouble, blame });
        }
    }
    let (trouble, blame) = match prove(shared, job, upgrade).await {
        // When ssh broke off, too: it has not proven anything.
        Err(trouble) => (trouble, Blame::Host),
        Ok(()) => match shared.join(job, upgrade.agent(), &awaited).await {
            Err(trouble) => (trouble, blame),
            Ok(()) => return Ok(()),
        },
    };
    Err(go_back(shared, job, upgrade, trouble, blame).await)
}

/// Whether what is heard of an agent speaks for its new program, or against it. One that is gone may be so by its program; one that is
/// there as before says nothing of it.
fn counts(awaited: &Awaited, known: Option<&Agent>) -> bool {
    known.is_none_or(|agent| agent.state() != AgentState::Connected || awaited.is(agent))
}

/// Has a host that failed go back, and says what came of that.
async fn go_back(
    shared: &Shared<'_>,
    job: &Job,
    upgrade: &Upgrade,
    trouble: Trouble,
    blame: Blame,
) -> Failed {
    let trouble = match shared.back(job, upgrade.agent()).await {
        Ok(()) => trouble.and("the program from before is back"),
        Err(more) => {
            let trouble = trouble.and(&format!("the program from before is not back: {more}"));
            match more.on_trial {
                true => trouble.left_on_trial(),
                false => trouble,
            }
        }
    };
    Failed { trouble, blame }
}

/// By the program that is there now, an agent proves who it is whose former program could not.
async fn prove(shared: &Shared<'_>, job: &Job, upgrade: &mut Upgrade) -> Result<(), Trouble> {
    if let Who::Proven(_) = upgrade.found.who {
        return Ok(());
    }
    let (found, _) = insist(job, shared.patience, false, async || shared.look_again(job).await).await?;
    let same = found.who.said() == upgrade.found.who.said();
    match found.who.trouble() {
        Some(trouble) => Err(trouble),
        None if !same => Err(Trouble::new(
            Step::Prove,
            "its agent is another one than it said before",
            "see on the host what its agent is, and deploy again",
        )),
        None => {
            upgrade.found.who = found.who;
            Ok(())
        }
    }
}

/// What is left to do on a host whose agent is well.
pub(super) async fn finish(shared: &Shared<'_>, job: &Job, one: Upgraded) -> Result<Outcome, Trouble> {
    let mut upgrade = one.upgrade;
    if let Some(broke_off) = one.unsure {
        reach_again(shared, job, &mut upgrade, broke_off).await?;
        if !one.counts {
            let why = "ssh broke off while it was brought its program, which runs now, is on trial, and was not watched";
            return Err(Trouble::new(Step::Join, why, REMEDY).left_on_trial());
        }
    }
    if let Err(trouble) = shared.keep(job).await {
        return Err(match trouble.broke_off {
            true => trouble.and(&shared.runs(upgrade.agent()).await).left_on_trial(),
            false => trouble,
        });
    }
    let agent = upgrade.agent().to_owned();
    let was_on_trial = upgrade.is_on_trial();
    let Upgrade { found, plan, .. } = upgrade;
    let steps = plan.steps(&shared.program.version);
    // What was on trial was brought by an earlier call, and nothing else has been done yet.
    let files = was_on_trial && plan.has_files();
    if plan.enrol.is_none() && !files {
        return Ok(Outcome::Done { agent, steps });
    }
    let rest = Plan {
        enrol: plan.enrol,
        service: Some(Service::Restart),
        unit: files && plan.unit,
        settings: files && plan.settings,
        access: plan.access.filter(|_| files),
        ..Plan::default()
    };
    Ok(match shared.carry_out(job, &found, rest).await? {
        Outcome::Done { agent, .. } => Outcome::Done { agent, steps },
        other => other,
    })
}

/// Sees whether a host under which ssh broke off has its program.
///
/// # Errors
///
/// It has not, does not prove who it is, or is not reached.
async fn reach_again(
    shared: &Shared<'_>,
    job: &Job,
    upgrade: &mut Upgrade,
    broke_off: Trouble,
) -> Result<(), Trouble> {
    let Ok((found, _)) = shared.look_again(job).await else {
        return Err(broke_off.and(&shared.runs(upgrade.agent()).await).left_on_trial());
    };
    if !found.has(&shared.program) {
        let version = match found.version() {
            "" => "what it had".to_owned(),
            version => harmless(version),
        };
        let why = format!("ssh broke off while it was brought its program, and it has {version} still");
        return Err(Trouble::new(Step::Install, why, REMEDY));
    }
    if found.is_stale() {
        let why = "ssh broke off while it was brought its program, which is there and does not run yet";
        return Err(Trouble::new(Step::Start, why, REMEDY).left_on_trial());
    }
    let said = upgrade.found.who.said().map(str::to_owned);
    match &found.who {
        Who::Proven(agent) if Some(agent) == said.as_ref() => upgrade.found.who = found.who,
        who => {
            let other = || Trouble::new(Step::Prove, "its agent is another one than before", REMEDY);
            return Err(who.trouble().unwrap_or_else(other).left_on_trial());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::wire::session::Hello;

    use super::*;

    #[test]
    fn an_agent_that_is_there_as_before_says_nothing_of_its_program_and_one_that_is_new_or_gone_does() {
        let awaited = Awaited {
            not: Some(vec![1]),
            version: "0.2.0".to_owned(),
            build: "00ff".to_owned(),
        };
        let agent = |state: AgentState, instance: u8, version: &str, build: &[u8]| Agent {
            id: "a".to_owned(),
            state: state.into(),
            hello: Some(Hello {
                instance: vec![instance],
                version: version.to_owned(),
                build: build.to_vec(),
                ..Hello::default()
            }),
            ..Agent::default()
        };
        const NONE: &[u8] = &[];
        for (state, instance, version, build, wanted) in [
            (AgentState::Connected, 1, "0.1.0", NONE, false),
            // Its host has restarted, with the program from before.
            (AgentState::Connected, 2, "0.1.0", NONE, false),
            (AgentState::Connected, 2, "0.2.0", NONE, true),
            (AgentState::Offline, 1, "0.1.0", NONE, true),
            // The same, when both are of one version.
            (AgentState::Connected, 2, "0.2.0", &[0, 0xfe], false),
            (AgentState::Connected, 2, "0.2.0", &[0, 0xff], true),
            // What agentctl could not run here to ask its version, such as a program for another machine.
            (AgentState::Connected, 2, "0.3.0", &[0, 0xff], true),
            (AgentState::Connected, 1, "0.2.0", &[0, 0xff], false),
        ] {
            let known = agent(state, instance, version, build);
            assert_eq!(
                counts(&awaited, Some(&known)),
                wanted,
                "{state:?} {instance} {version} {build:?}"
            );
        }
        assert!(counts(&awaited, None), "the controller is away");
    }
}
