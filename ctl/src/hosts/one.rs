//! What is done on one host: looked at, installed, enrolled, started, waited for.
//!
//! In: a [`Job`] and its [`Plan`]. Out: an [`Outcome`], or [`Trouble`]. A token is made for one host, right before it is brought
//! there, and is taken back when it was of no use. A program that takes another one's place is on trial on the host, which by itself
//! goes back to the one before when the service does not stay up; whoever is satisfied says [`Shared::keep`]. What may be done twice is
//! done again when ssh breaks off under it ([`insist`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::hosts::Runtime;
use flowtilla_proto::spiffe::SpiffeId;
use flowtilla_proto::wire::fleet::{
    Agent, AgentState, CreateTokenRequest, RevokeRequest, TokensRequest, revoke_request,
};

use super::patience::{insist, until};
use super::plan::{self, Access, Enrol, Found, Plan, Service, Wanted};
use super::program::digest;
use super::ssh::Payload;
use super::trouble::{Step, Trouble};
use super::who::{self, Who};
use super::{ACTION_WITHIN, INSTALL_WITHIN, Job, Outcome, Shared, progress};
use crate::output::{harmless, hex, memory, word};

/// What hosts' agents prove who they are for.
const PURPOSE: &str = "deploy";
/// What the script's `revert` says when there was something to go back from.
const REVERTED: &str = "reverted";
/// How long a token may be used, in milliseconds: it is used at once, or the host is looked after by hand.
const TOKEN_LIFE_MS: u64 = 15 * 60 * 1_000;

/// Octets of a build's digest that are told: enough to see which of two it is.
const BUILD_OCTETS_SHOWN: usize = 6;

/// The service's unit, as it is on hosts.
const UNIT: &str = include_str!("../../../agent/flowtilla-agent.service");

/// What of a unit lets the agent use the sockets of runtimes; empty: none.
pub(super) fn access(runtimes: &BTreeSet<Runtime>) -> String {
    if runtimes.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = runtimes.iter().map(|runtime| runtime.as_str()).collect();
    let groups: BTreeSet<&str> = runtimes.iter().map(|runtime| runtime.group()).collect();
    let groups: Vec<&str> = groups.into_iter().collect();
    format!(
        "# Written by agentctl deploy: the agent may use the sockets of {}, which is as good as root.\n\
         [Service]\nSupplementaryGroups={}\n",
        names.join(", "),
        groups.join(" ")
    )
}

/// Which process of an agent is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Awaited {
    /// Not the one of before; `None`: whichever.
    pub(super) not: Option<Vec<u8>>,
    /// Empty: whichever.
    pub(super) version: String,
    /// SHA-256 of its program, hex; empty: whichever.
    pub(super) build: String,
}

impl Awaited {
    pub(super) fn is(&self, agent: &Agent) -> bool {
        let hello = agent.hello.as_ref();
        let instance = hello.map(|hello| &hello.instance[..]);
        let version = hello.map_or("", |hello| &hello.version);
        let build = hello.map_or(&[][..], |hello| &hello.build);
        // Two builds may be of one version. An agent from before they told theirs is known by its version alone.
        let is_program = match self.build.is_empty() || build.is_empty() {
            true => self.version.is_empty() || self.version == version,
            false => self.build == hex(build),
        };
        agent.state() == AgentState::Connected
            && (self.not.is_none() || self.not.as_deref() != instance)
            && is_program
    }
}

impl Shared<'_> {
    pub(super) async fn look(&self, job: &Job) -> Result<(Found, Plan), Trouble> {
        progress(job, "looks at it");
        let (found, agent) = self.look_again(job).await?;
        if let Some(other) = found.shown.other_fleet(&self.client.trusted().domain) {
            let why = format!("its agent is of another fleet, {other}");
            let remedy = format!(
                "if this is the right fleet (--context), take it out of that one first: agentctl agents remove {}, there or here; records that wait on it go with it",
                job.name
            );
            return Err(Trouble::new(Step::Prove, why, remedy));
        }
        plan::fits(&found, &self.program, &job.runtimes)?;
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
            access: &match job.access.as_str() {
                "" => String::new(),
                access => digest(access.as_bytes()),
            },
            labels: &job.labels,
        };
        let plan = plan::plan(&found, &wanted, agent.as_ref());
        plan::believe(&found, &plan)?;
        Ok((found, plan))
    }

    /// What is there, who the agent is, and what the controller knows of that one.
    pub(super) async fn look_again(&self, job: &Job) -> Result<(Found, Option<Agent>), Trouble> {
        who::look(self.client, &self.ssh, job, PURPOSE).await
    }

    pub(super) async fn carry_out(&self, job: &Job, found: &Found, plan: Plan) -> Result<Outcome, Trouble> {
        let former = found.who.said().map(str::to_owned);
        // Whoever enrols starts with its token.
        let service = plan.service.filter(|_| plan.enrol.is_none());
        if plan.has_files() || service.is_some() {
            self.install(job, &plan, service).await?;
        }
        let agent = match plan.enrol {
            None => former.expect("who is not enrolled has it in the plan"),
            Some(why) => {
                let token = self.token(job).await?;
                match self.enrol(job, found, &plan, &token).await {
                    Ok(agent) => {
                        if let (Enrol::Labels, Who::Proven(former)) = (why, &found.who) {
                            self.revoke(revoke_request::What::Agent(former.clone())).await;
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
        self.join(job, &agent, &Awaited::default()).await?;
        if plan.enrol.is_none() && !matches!(found.who, Who::Proven(_)) {
            // Nothing was there that could have proven it.
            self.prove(job, &agent).await?;
        }
        if plan.program.is_some() {
            self.keep(job).await?;
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

    /// Has a host prove that its agent is this one.
    async fn prove(&self, job: &Job, agent: &str) -> Result<(), Trouble> {
        let (found, _) = self.look_again(job).await?;
        match found.who {
            Who::Proven(proven) if proven == agent => Ok(()),
            who => Err(who.trouble().unwrap_or_else(|| {
                let why = format!("it said that it was {}, and is not any more", word(agent));
                Trouble::new(Step::Prove, why, "deploy again")
            })),
        }
    }

    /// Puts in place what the plan has, and sets the service going.
    pub(super) async fn install(
        &self,
        job: &Job,
        plan: &Plan,
        service: Option<Service>,
    ) -> Result<(), Trouble> {
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
        let access = match plan.access {
            Some(Access::Take) => "none".to_owned(),
            Some(Access::Give) => part(true, &job.access),
            None => part(false, ""),
        };
        let mut program = "-";
        if plan.program.is_some() {
            progress(
                job,
                format_args!("brings the agent ({})", memory(self.program.octets.len() as u64)),
            );
            payload.push(Arc::clone(&self.program.octets));
            program = &self.program.digest;
        }
        let how = match service {
            None => "no",
            Some(service) => {
                progress(job, format_args!("{}s the agent", service.word()));
                service.word()
            }
        };
        let words = ["install", &unit, &settings, &access, program, how];
        insist(job, self.patience, false, async || {
            let payload = payload.clone();
            let running = self
                .ssh
                .run(&job.way, Step::Install, &words, payload, INSTALL_WITHIN);
            running.await.map(drop)
        })
        .await
    }

    /// The program on trial has proven itself.
    pub(super) async fn keep(&self, job: &Job) -> Result<(), Trouble> {
        self.act(job, &["keep"], true).await.map(drop)
    }

    /// A short action that may be done twice. `begun`: as [`insist`] has it.
    async fn act(&self, job: &Job, words: &[&str], begun: bool) -> Result<String, Trouble> {
        // When it is the service that does not do, the script says so by itself.
        let step = Step::Install;
        insist(job, self.patience, begun, async || {
            let running = self.ssh.run(&job.way, step, words, Payload::new(), ACTION_WITHIN);
            running.await
        })
        .await
    }

    /// What the controller knows of an agent; `None`: nothing, or it does not answer for long.
    pub(super) async fn known(&self, agent: &str) -> Option<Agent> {
        who::known(self.client, agent).await.ok()?
    }

    /// What an agent runs, as the controller has it: all that is known of a host that is not reached.
    pub(super) async fn runs(&self, agent: &str) -> String {
        let Some(known) = self.known(agent).await else {
            return "what it runs is not known".to_owned();
        };
        let connected = match known.state() {
            AgentState::Connected => "is connected",
            _ => "is not connected",
        };
        let hello = known.hello.unwrap_or_default();
        let version = match (hello.version.as_str(), hello.build.get(..BUILD_OCTETS_SHOWN)) {
            ("", _) => "of a version that is not known".to_owned(),
            (version, None) => version.to_owned(),
            (version, Some(build)) => format!("{version} (build {})", hex(build)),
        };
        format!(
            "by what the controller knows {} {connected} and runs {}; the program there is on trial, and the next call goes on from that",
            word(agent),
            harmless(&version)
        )
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
    async fn enrol(&self, job: &Job, found: &Found, plan: &Plan, token: &Token) -> Result<String, Trouble> {
        progress(job, "enrols");
        let octets: Arc<[u8]> = Arc::from(token.secret.as_bytes());
        let words = ["enrol", &octets.len().to_string(), found.chain()];
        self.ssh
            .run(&job.way, Step::Enrol, &words, vec![octets], ACTION_WITHIN)
            .await?;
        self.start(job, plan).await?;
        let used = async || {
            let tokens = self
                .client
                .ask(self.client.fleet().tokens(TokensRequest {}))
                .await?;
            let ours = tokens.tokens.into_iter().find(|made| made.id == token.id);
            let agent = ours.and_then(|ours| SpiffeId::parse(&ours.used_by).ok());
            Ok(agent.map(|agent| agent.name.as_str().to_owned()))
        };
        match until(used).await {
            Ok(agent) => Ok(agent),
            Err(waited) => Err(self
                .with_last_words(job, "the agent has not enrolled", waited)
                .await),
        }
    }

    /// Sets the service going as the plan has it.
    pub(super) async fn start(&self, job: &Job, plan: &Plan) -> Result<(), Trouble> {
        let Some(service) = plan.service else {
            return Ok(());
        };
        progress(job, format_args!("{}s the agent", service.word()));
        self.act(job, &["start", service.word()], false).await.map(drop)
    }

    /// Waits until the controller has the agent.
    pub(super) async fn join(&self, job: &Job, agent: &str, awaited: &Awaited) -> Result<(), Trouble> {
        match self.comes(agent, awaited).await {
            Ok(()) => {
                progress(job, format_args!("connected as {}", word(agent)));
                Ok(())
            }
            Err(waited) => Err(self
                .with_last_words(job, "the agent is not connected", waited)
                .await),
        }
    }

    /// Waits for that, and says nothing.
    ///
    /// # Errors
    ///
    /// It does not come: how long it was waited for.
    pub(super) async fn comes(&self, agent: &str, awaited: &Awaited) -> Result<(), Duration> {
        let connected = async || {
            let told = who::asked(self.client, agent).await?;
            Ok(told.filter(|told| awaited.is(told)).map(drop))
        };
        until(connected).await
    }

    /// After an upgrade that does not do: what was there before, with its agent connected again.
    ///
    /// # Errors
    ///
    /// It is not back, or its agent does not come.
    pub(super) async fn back(&self, job: &Job, agent: &str) -> Result<(), Trouble> {
        progress(job, "goes back to the program from before");
        let former = self.known(agent).await;
        let instance = former.and_then(|agent| Some(agent.hello?.instance));
        let said = match self.act(job, &["revert"], true).await {
            Err(trouble) if trouble.broke_off => {
                return Err(trouble.and(&self.runs(agent).await).left_on_trial());
            }
            said => said?,
        };
        // Where nothing was on trial, the process from before is there still.
        let awaited = Awaited {
            not: instance.filter(|_| said.lines().any(|line| line == REVERTED)),
            ..Awaited::default()
        };
        self.join(job, agent, &awaited).await
    }

    /// Why an agent does not come, in its own words.
    async fn with_last_words(&self, job: &Job, why: &str, waited: Duration) -> Trouble {
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
            waited.as_secs(),
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
