//! What of an upgrade is done on one host: it gets its program, or what it had before is back.
//!
//! In: an [`Upgrade`]. Out: nothing, when its agent is there as another process and has proven who it is; else whose doing it is that it
//! is not. What a wave makes of that is not decided here.

use flowtilla_proto::wire::fleet::AgentState;

use super::{Upgrade, Upgraded};
use crate::hosts::one::Awaited;
use crate::hosts::patience::insist;
use crate::hosts::plan::{Plan, Service};
use crate::hosts::trouble::{Step, Trouble};
use crate::hosts::who::Who;
use crate::hosts::{Job, Outcome, Shared};
use crate::output::harmless;

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
    Unsure,
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
        };
        let started = match upgrade.is_on_trial() {
            true => shared.start(job, &upgrade.plan).await,
            false => shared.install(job, &upgrade.plan, Some(Service::Restart)).await,
        };
        started.map_err(|trouble| Failed {
            blame: match trouble.step {
                _ if trouble.broke_off => Blame::Unsure,
                Step::Start => blame,
                _ => Blame::Host,
            },
            trouble,
        })?;
    }
    let proven = prove(shared, job, upgrade).await;
    let (trouble, blame) = match proven {
        Err(trouble) if trouble.broke_off => {
            let blame = Blame::Unsure;
            return Err(Failed { trouble, blame });
        }
        Err(trouble) => (trouble, Blame::Host),
        Ok(()) => match shared.join(job, upgrade.agent(), &awaited).await {
            Err(trouble) => (trouble, blame),
            Ok(()) => return Ok(()),
        },
    };
    let trouble = match shared.back(job, upgrade.agent()).await {
        Ok(()) => trouble.and("the program from before is back"),
        Err(more) => trouble.and(&format!("the program from before is not back: {more}")),
    };
    Err(Failed { trouble, blame })
}

/// By the program that is there now, an agent proves who it is whose former program could not.
async fn prove(shared: &Shared<'_>, job: &Job, upgrade: &mut Upgrade) -> Result<(), Trouble> {
    if let Who::Proven(_) = upgrade.found.who {
        return Ok(());
    }
    let (found, _) = insist(job, shared.patience, async || shared.look_again(job).await).await?;
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
    }
    if let Err(trouble) = shared.keep(job).await {
        return Err(match trouble.broke_off {
            true => trouble.and(&shared.runs(upgrade.agent()).await),
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
    const REMEDY: &str = "deploy again";
    let Ok((found, _)) = shared.look_again(job).await else {
        return Err(broke_off.and(&shared.runs(upgrade.agent()).await));
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
        return Err(Trouble::new(Step::Start, why, REMEDY));
    }
    let said = upgrade.found.who.said().map(str::to_owned);
    match &found.who {
        Who::Proven(agent) if Some(agent) == said.as_ref() => upgrade.found.who = found.who,
        who => {
            let other = || Trouble::new(Step::Prove, "its agent is another one than before", REMEDY);
            return Err(who.trouble().unwrap_or_else(other));
        }
    }
    Ok(())
}
