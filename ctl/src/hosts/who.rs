//! Who the agent on a host is, as far as that is certain.
//!
//! In: what a host shows for a challenge that was made for this one look; what the controller knows of the agent that it says to be;
//! the operator's trusted signers. Out: a [`Who`]. Nothing is done to an agent, and no agent's health speaks for a host, by the word of
//! a host alone: what is there must sign with the key of an SVID of one of our signers, whose serial the controller has among the
//! agent's newest. That an SVID has run out is no matter here: an agent that was off for long is upgraded and removed, too.
//!
//! What this cannot keep anybody from: whoever is root on a host has its agent's key, and with it is that agent, elsewhere too (the
//! controller tells of an identity that two use in turns). It may lie about programs, versions and services of its host. It is no
//! other agent: an answer is for one purpose, one host as the operator calls it, and one nonce, so what another host answered
//! before is of no use, and only who is root or the agent's user there gets it to answer.

use std::fmt;

use flowtilla_grpc::{proof, svid};
use flowtilla_proto::spiffe::{Role, SpiffeId, TrustDomain};
use flowtilla_proto::wire::fleet::{Agent, AgentState, AgentsRequest};
use rustls::pki_types::CertificateDer;

use super::patience::while_away;
use super::plan::Found;
use super::ssh::Ssh;
use super::trouble::{Step, Trouble};
use super::{Job, PROBE_WITHIN};
use crate::client::explain::Failed;
use crate::client::{Client, Trusted};
use crate::clock::wall_now;
use crate::output::{harmless, word};

/// Exit code of a program that does not know the command. Source: clap.
const USAGE: i32 = 2;
/// Exit code of timeout(1).
const TIMED_OUT: i32 = 124;
/// Most characters of a program's words that are told.
const WORDS_MAX: usize = 200;

/// What a host shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// DER; the SVID first.
    chain: Vec<CertificateDer<'static>>,
    /// Of the challenge; `None`: there is none.
    signature: Option<Vec<u8>>,
    /// Why: the program's exit code and its last words.
    unproven: Option<(i32, String)>,
}

/// Who an agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Who {
    /// No agent that counts in this fleet.
    #[default]
    Nobody,
    /// This one.
    Proven(String),
    /// It says that it is this one.
    Claims(String, Unproven),
}

/// Why somebody is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unproven {
    /// Its program does not know how.
    Older,
    /// Its program did not.
    Silent(String),
    /// What it showed is no proof.
    Refuted(String),
    /// The controller does not tell serials.
    Controller,
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Older => f.write_str("its agent is older, and cannot"),
            Self::Silent(why) | Self::Refuted(why) => f.write_str(why),
            Self::Controller => {
                f.write_str("the controller is older, and does not tell which SVIDs count; upgrade it first")
            }
        }
    }
}

impl Who {
    /// The agent's id, proven or not; `None`: there is no agent that counts.
    pub(crate) fn said(&self) -> Option<&str> {
        match self {
            Self::Nobody => None,
            Self::Proven(agent) | Self::Claims(agent, _) => Some(agent),
        }
    }

    /// Who says to be an agent and does not prove it.
    pub(crate) fn trouble(&self) -> Option<Trouble> {
        let Self::Claims(agent, why) = self else {
            return None;
        };
        let remedy = format!(
            "see on the host whose agent it is; agentctl agents remove takes it away there, and the next deploy enrols another; if {0} was \
             this host's: agentctl revoke agent {0}",
            word(agent)
        );
        let why = format!("it says that it is {}, and does not prove it: {why}", word(agent));
        Some(Trouble::new(Step::Prove, why, remedy))
    }
}

impl Shown {
    /// Reads what the script said. `unproven`: its line of that name; `pem`: everything behind `svid`.
    pub(super) fn read(unproven: Option<&str>, pem: &str) -> Self {
        let blocks = pem::parse_many(pem).unwrap_or_default();
        let of = |tag: &'static str| blocks.iter().filter(move |block| block.tag() == tag);
        Self {
            chain: of("CERTIFICATE")
                .map(|block| CertificateDer::from(block.contents().to_vec()))
                .collect(),
            signature: of(proof::SIGNATURE_TAG)
                .next()
                .map(|block| block.contents().to_vec()),
            unproven: unproven.map(|line| {
                let (code, words) = line.split_once(' ').unwrap_or((line, ""));
                let words: String = harmless(words).chars().take(WORDS_MAX).collect();
                (code.parse().unwrap_or(-1), words)
            }),
        }
    }

    /// Whether there is an SVID of an agent, whoever's.
    pub(super) fn is_agents(&self) -> bool {
        self.claim().is_some()
    }

    /// The fleet that its agent is of, when that is another one.
    pub(super) fn other_fleet(&self, ours: &TrustDomain) -> Option<TrustDomain> {
        let claim = self.claim()?;
        (claim.domain != *ours).then_some(claim.domain)
    }

    /// Who it says to be.
    fn claim(&self) -> Option<SpiffeId> {
        let facts = svid::read(self.chain.first()?).ok()?;
        (facts.id.role == Role::Agent).then_some(facts.id)
    }

    /// Whether it is who it says to be. `agent`: what the controller knows of that one.
    fn judge(&self, asked: &proof::Challenge, trusted: &Trusted, agent: Option<&Agent>, now_s: i64) -> Who {
        let known = agent.filter(|agent| agent.state() != AgentState::Revoked);
        let (Some(id), Some(known)) = (self.claim(), known) else {
            return Who::Nobody;
        };
        if id.domain != trusted.domain {
            return Who::Nobody;
        }
        let name = id.name.as_str().to_owned();
        match self.check(asked, trusted, known, now_s) {
            Ok(()) => Who::Proven(name),
            Err(why) => Who::Claims(name, why),
        }
    }

    fn check(
        &self,
        asked: &proof::Challenge,
        trusted: &Trusted,
        agent: &Agent,
        now_s: i64,
    ) -> Result<(), Unproven> {
        let Some(signature) = &self.signature else {
            return Err(match &self.unproven {
                Some((USAGE, _)) => Unproven::Older,
                Some((TIMED_OUT, _)) => Unproven::Silent("its program took too long".to_owned()),
                Some((code, words)) => {
                    Unproven::Silent(format!("its program ended with exit code {code}: {words}"))
                }
                None => Unproven::Silent("its program showed no proof".to_owned()),
            });
        };
        let facts = proof::verify(asked, &self.chain, signature, &trusted.signers, now_s)
            .map_err(|error| Unproven::Refuted(error.to_string()))?;
        if agent.svid_serials.is_empty() {
            return Err(Unproven::Controller);
        }
        match agent.svid_serials.contains(&facts.serial) {
            true => Ok(()),
            false => {
                // A backup does not know what was issued after it; a renewal is.
                let why = "its SVID is none of the agent's newest, which the controller tells; if that was restored from a backup, wait \
                           until the agent has renewed its SVID";
                Err(Unproven::Refuted(why.to_owned()))
            }
        }
    }
}

/// What is on a host, who its agent is, and what the controller knows of that one. `purpose`: what is asked for.
///
/// # Errors
///
/// The host is not reached or does not answer, or the controller.
pub(super) async fn look(
    client: &Client,
    ssh: &Ssh,
    job: &Job,
    purpose: &str,
) -> Result<(Found, Option<Agent>), Trouble> {
    let challenge = proof::Challenge::new(purpose, &job.name, proof::nonce());
    let octets = challenge.text().as_bytes();
    let words = ["probe", &octets.len().to_string()];
    let said = ssh
        .run(&job.way, Step::Probe, &words, vec![octets.into()], PROBE_WITHIN)
        .await?;
    let mut found = Found::read(&said)?;
    // After the host has answered: what it shows the controller knows by then.
    let claim = found
        .shown
        .claim()
        .filter(|id| id.domain == client.trusted().domain);
    let agent = match claim {
        None => None,
        Some(id) => known(client, id.name.as_str())
            .await
            .map_err(|failed| Trouble::new(Step::Prove, failed.to_string(), "deploy again"))?,
    };
    let now_s = i64::try_from(wall_now().seconds()).unwrap_or(i64::MAX);
    found.who = found
        .shown
        .judge(&challenge, client.trusted(), agent.as_ref(), now_s);
    let counts = found.who != Who::Nobody;
    Ok((found, agent.filter(|_| counts)))
}

/// What the controller knows of an agent; one that is away for a moment is waited for.
pub(super) async fn known(client: &Client, agent: &str) -> Result<Option<Agent>, Failed> {
    while_away(async || asked(client, agent).await).await
}

/// What the controller knows of an agent at this moment.
pub(super) async fn asked(client: &Client, agent: &str) -> Result<Option<Agent>, Failed> {
    let request = AgentsRequest {
        ids: vec![agent.to_owned()],
        ..AgentsRequest::default()
    };
    let told = client.ask(client.fleet().agents(request)).await?;
    Ok(told.agents.into_iter().find(|one| one.id == agent))
}

#[cfg(test)]
mod tests;
