//! The meter's dealings with other agents: lists and answers in, questions and answers out.
//!
//! In: [`FleetIn`] over the meter's commands. Out: [`FleetOut`] over a bounded channel, which never makes the meter wait: what
//! does not fit is not asked, or not answered. What is decided is in `flowtilla_agent_core::fleet`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::status::PeerStatus;
use flowtilla_agent_core::enrich::{Naming, NamingState};
use flowtilla_agent_core::fleet::end::Asked;
use flowtilla_agent_core::fleet::{Fleet, Members};
use flowtilla_agent_core::flow::FlowTable;
use flowtilla_agent_core::flow::record::CollectorSlot;
use flowtilla_agent_core::owner::Owner;
use flowtilla_agent_core::time::KernelTime;
use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session;
use tokio::sync::mpsc;

/// Questions of other agents that wait for an owner or its names. Beyond it they get no answer, and go without.
const ASKED_MAX: usize = 1024;

/// How long a question waits for them: the one that asks waits for a second.
const ASKED_WAIT: Duration = Duration::from_millis(600);

/// Questions looked at in one turn: each may walk the listeners.
const ASKED_A_TURN: usize = 128;

/// What the session tells the meter about other agents.
#[derive(Debug)]
pub enum FleetIn {
    /// There is a controller: records wait for its first list. Before capture is attached.
    Expect,
    /// A stream is open, and this is the agent's name. Before the first list of that stream.
    Connected(MemberName),
    /// The stream is over.
    Lost,
    /// A list.
    Members(session::Members),
    /// Another agent's question.
    Question(session::Question),
    /// The answer to a question of this agent.
    Answer(Box<session::Answer>),
    /// A collector, or several together, is fed.
    Feed(CollectorName, CollectorSlot),
    /// It is fed no more.
    Starve(CollectorName),
}

/// What the meter tells the controller about its flows with other agents.
#[derive(Debug)]
pub enum FleetOut {
    /// Who is at the other end?
    Question(session::Question),
    /// What is known of this end.
    Answer(Box<session::Answer>),
}

/// Most [`FleetOut`]s on their way to the session.
pub const FLEET_OUT_MAX: usize = 2048;

/// The other agents, as the meter knows them.
#[derive(Default)]
pub(crate) struct Peers {
    pub(super) fleet: Fleet,
    asked: VecDeque<(Asked, KernelTime)>,
    out: Option<mpsc::Sender<FleetOut>>,
    host: String,
}

impl Peers {
    /// `host`: the name of this host, told with each answer.
    pub(crate) fn new(out: mpsc::Sender<FleetOut>, host: String) -> Self {
        Self {
            out: Some(out),
            host,
            ..Self::default()
        }
    }

    /// Takes in what the session tells.
    pub(super) fn take(&mut self, told: FleetIn, now: KernelTime) {
        match told {
            FleetIn::Expect => self.fleet.expect(),
            FleetIn::Connected(own) => self.fleet.handle_connected(own),
            FleetIn::Lost => {
                self.asked.clear();
                self.fleet.handle_lost(now);
            }
            FleetIn::Members(wire) => match Members::parse(&wire) {
                Ok(members) => self.fleet.handle_members(members, now),
                Err(error) => tracing::warn!(%error, "a list of agents is not used"),
            },
            FleetIn::Question(wire) => match Asked::parse(&wire)
                .inspect(|asked| tracing::debug!(?asked, may = self.fleet.may_answer(asked), "is asked"))
            {
                Ok(asked) if self.asked.len() < ASKED_MAX && self.fleet.may_answer(&asked) => {
                    self.asked.push_back((asked, now.after(ASKED_WAIT)));
                }
                Ok(asked) => self.say(FleetOut::Answer(Box::new(asked.answer(None, &self.host)))),
                Err(error) => tracing::debug!(%error, "a question is not answered"),
            },
            FleetIn::Answer(wire) => {
                tracing::debug!(id = wire.id, known = wire.end.is_some(), "was answered");
                self.fleet.handle_answer(&wire, now);
            }
            FleetIn::Feed(name, slot) => self.fleet.feed(name, slot, now),
            FleetIn::Starve(name) => self.fleet.starve(&name),
        }
    }

    /// Answers what can be answered, and hands on what is asked.
    pub(super) fn speak(&mut self, table: &FlowTable, naming: &mut Naming, now: KernelTime) {
        for _ in 0..self.asked.len().min(ASKED_A_TURN) {
            let Some((asked, until)) = self.asked.pop_front() else {
                break;
            };
            let alive = table.owner_at(asked.protocol, asked.near, asked.peer);
            let mut owner = alive.or_else(|| self.fleet.owner_of_ended(&asked, now));
            let named = owner
                .as_mut()
                .map(|owner: &mut Owner| naming.name_end(owner, now));
            if named != Some(NamingState::Complete) && now < until {
                self.asked.push_back((asked, until));
                continue;
            }
            tracing::debug!(id = asked.id, known = owner.is_some(), ?named, "answers");
            self.say(FleetOut::Answer(Box::new(
                asked.answer(owner.as_ref(), &self.host),
            )));
        }
        while let Some(question) = self.fleet.poll_question() {
            tracing::debug!(?question, "asks");
            self.say(FleetOut::Question(question));
        }
    }

    /// Whether questions wait for names.
    pub(super) fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// What was told and left, by peer.
    pub(super) fn sums(&self) -> Vec<PeerStatus> {
        let sums = self.fleet.sums();
        sums.map(|(peer, sums)| PeerStatus {
            peer: peer.as_str().to_owned(),
            spoken_records: sums.spoken_records,
            spoken_octets: sums.spoken_octets,
            held_records: sums.held_records,
            held_octets: sums.held_octets,
        })
        .collect()
    }

    /// What is not heard is asked again, or goes without an answer.
    fn say(&self, what: FleetOut) {
        if let Some(out) = &self.out {
            let _ = out.try_send(what);
        }
    }
}
