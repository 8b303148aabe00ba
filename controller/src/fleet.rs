//! What every agent is to have, and has.
//!
//! In: what agents say ([`Hello`], [`Heard`]), what operators want ([`Change`]), and time. Out: speech for streams
//! ([`Fleet::poll_speech`]) and rows for the store ([`Fleet::take_batch`]). Whoever drives it writes the rows first and
//! speaks then ([`thread`]). What agents say of what they hold may wait for the next [`Fleet::handle_timeout`]: after a crash
//! they say it again when they come back. Does no IO, reads no clock.
//!
//! Invariants:
//! - What an agent is to have is always the whole assignment of one policy of one revision, named by (epoch, version).
//! - An agent is never offered a place in that order at or below one that it said to hold, unless it is that very content.
//! - An agent is offered nothing that it would misread ([`gate`]), but what it has already, to be drained or to go on.
//! - At most one offer is open on a stream, the newest; an answer with another nonce changes nothing.
//! - A revision is never changed; going back makes another one.
//! - A source id belongs to one agent for ever; one of 8 bits to one agent of an endpoint at a time.
//! - When no rollout goes on, what an agent is to have is what the objects of record say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flowtilla_proto::labels::Labels;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session::{self as wire, EndReason};

use self::agent::{Agent, Line};
use self::content::{Content, Contents};
use self::heard::{Heard, Hello, Mark};
use self::members::Members;
use self::questions::Questions;
use self::rollouts::Rollouts;
use self::row::{MetaRow, bucket};
use self::short::ShortIds;
use self::source::SourceIds;
use self::top::Tops;
use self::turns::place;
use crate::policy::Objects;
use crate::store::{Batch, Table};

pub use self::change::{Change, ChangeRefused};
pub use self::load::LoadError;
pub use self::trials::Trial;

mod agent;
mod assign;
mod change;
mod concerns;
pub mod content;
mod drain;
mod gate;
pub mod heard;
mod load;
pub mod mailbox;
mod members;
pub mod needs;
pub mod offers;
mod questions;
mod rollouts;
pub mod row;
mod short;
mod silent;
mod source;
mod still;
pub mod thread;
pub mod top;
mod trials;
mod turns;
pub mod view;
mod write;

/// Most agents of a fleet.
///
/// Six times what one controller is measured for. Half of it would still do; double it, and the rows of all agents, which are
/// in memory, pass a gibibyte.
pub const AGENTS_MAX: usize = 65_536;

/// How often an agent sends a heartbeat, in milliseconds.
///
/// 10,000 agents then send 1,000 a second. Half of it doubles that; double it, and a wave notices twice as late that it hurts.
pub const HEARTBEAT_MS: u64 = 10_000;

/// Longest silence of a stream before it is ended, in milliseconds.
///
/// Six heartbeats: a host that swaps misses some. Half of it ends streams in a storm of reconnects; double it, and a dead agent
/// counts as connected for two minutes.
pub const SILENCE_MS: u64 = 6 * HEARTBEAT_MS;

/// How often agents are looked through for those that have gone silent, and rows are written that may wait, in milliseconds.
///
/// A look and the rows of 10,000 agents take some ten milliseconds each. Half of it takes them twice as often; double it, and
/// after a crash agents say again what they said in the last ten seconds.
pub const SWEEP_MS: u64 = 5_000;

/// How often contents that nobody has are forgotten, in milliseconds.
///
/// A content is some kibibytes. Half of it looks through all agents more often; double it, and a script that deploys each
/// second keeps 120 of them.
const FORGET_EVERY_MS: u64 = 60_000;

/// One line of log for so many turns that two copies of an agent take, after the first.
const TURNS_LOG_EACH: u64 = 100;

/// A moment, on two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the epoch. May be set, forth and back.
    pub wall_ms: i64,
    /// Milliseconds since some moment, never set.
    pub run_ms: u64,
}

/// Names a stream, once in the life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What is said on a stream. [`mailbox`] makes messages of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Speech {
    /// The answer to a hello.
    Welcome {
        /// The source id that the agent is to use.
        source_id: u32,
    },
    /// By which numbers collectors of header version 1 know the agent; 0: none is left.
    ShortIds(BTreeMap<String, u32>),
    /// A policy.
    Offer(OfferOut),
    /// Who exports to a collector.
    Members(Arc<wire::Members>),
    /// A question of another agent.
    Question(wire::Question),
    /// An answer to this agent's question.
    Answer(Box<wire::Answer>),
    /// An operator's question.
    Top(wire::TopQuestion),
    /// The last word.
    Ended(EndReason, String),
}

/// An offer; its content is shared by all agents that get it.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferOut {
    /// Names the offer on its stream.
    pub nonce: u64,
    /// Names it at the agent.
    pub mark: Mark,
    /// What is offered.
    pub content: Arc<Content>,
    /// W3C trace context of the deploy; empty: none.
    pub traceparent: Arc<str>,
}

/// Why a stream is not accepted, or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    /// Its identity is void.
    #[error("the agent's identity was revoked")]
    Revoked,
    /// There are [`AGENTS_MAX`] agents.
    #[error(
        "the fleet has {AGENTS_MAX} agents, which is the most that a controller keeps: revoke those of hosts that are gone"
    )]
    Full,
    /// It was never here, and there is no room on the disk to note it.
    #[error("the controller's disk is full: it takes no new agent until there is room")]
    NoRoom,
}

/// What every agent is to have, and has.
pub struct Fleet {
    meta: MetaRow,
    numbers: Numbers,
    /// As they are on the disk.
    numbers_kept: Numbers,
    objects: Objects,
    targets: Targets,
    /// Those of the revision that a rollout goes back to.
    settled_objects: Objects,
    settled: Targets,
    traceparent: Arc<str>,
    agents: BTreeMap<MemberName, Agent>,
    sessions: BTreeMap<SessionId, MemberName>,
    sources: SourceIds,
    short: ShortIds,
    contents: Contents,
    rollouts: Rollouts,
    members: Members,
    questions: Questions,
    tops: Tops,
    sweep_at_ms: u64,
    forget_at_ms: u64,
    /// Agents whose rows are to be written with the next batch.
    dirty: BTreeSet<MemberName>,
    /// Agents whose rows may wait for the next sweep: what they said they say again.
    late: BTreeSet<MemberName>,
    /// The same for what agents hold, by bucket.
    holdings: BTreeSet<u8>,
    holdings_late: BTreeSet<u8>,
    meta_dirty: bool,
    batch: Batch,
    /// There is no room on the disk.
    still: bool,
    speech: VecDeque<(SessionId, Speech)>,
}

/// Numbers that are given once: the last of each, and the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    epoch: u64,
    version: u64,
    revision: u64,
    rollout: u64,
    source: u64,
}

/// What the agents of each policy are to do; `None`: those without one.
type Targets = BTreeMap<Option<String>, Arc<Content>>;

impl Fleet {
    /// An identity was made, or its labels have changed.
    pub fn handle_enrolled(&mut self, id: &MemberName, labels: &Labels, now: Now) {
        if !self.agents.contains_key(id) && self.agents.len() >= AGENTS_MAX {
            return;
        }
        let agent = self
            .agents
            .entry(id.clone())
            .or_insert_with(|| Agent::new(now.wall_ms));
        if agent.enrolled != *labels || agent.revoked || agent.wanted.is_none() {
            agent.enrolled = labels.clone();
            agent.labels = agent.enrolled.over(&agent.host);
            agent.revoked = false;
            self.dirty.insert(id.clone());
            self.settle(id, now);
        }
    }

    /// An identity is void: its stream ends. Whether there was one.
    pub fn handle_revoked(&mut self, id: &MemberName) -> bool {
        let Some(agent) = self.agents.get_mut(id).filter(|agent| !agent.revoked) else {
            return false;
        };
        agent.revoked = true;
        let connected = agent.line.is_some();
        self.dirty.insert(id.clone());
        self.handle_moved(id);
        self.rollouts.handle_revoked(id);
        self.short.handle_revoked(id);
        let text = Unwelcome::Revoked.to_string();
        self.end(id, EndReason::Revoked, text);
        connected
    }

    /// Forgets agents whose identity is void and not kept any more. Their source ids stay given.
    pub fn forget_void(&mut self, is_gone: impl Fn(&MemberName) -> bool) {
        let gone = |(id, agent): (&MemberName, &Agent)| {
            (agent.revoked && agent.line.is_none() && is_gone(id)).then(|| id.clone())
        };
        let gone: Vec<MemberName> = self.agents.iter().filter_map(gone).collect();
        for id in gone {
            self.agents.remove(&id);
            self.dirty.remove(&id);
            self.late.remove(&id);
            self.batch.remove(Table::Agents, id.as_str());
            self.holdings.insert(bucket(id.as_str()));
        }
    }

    /// An agent's SVID has run out: its stream ends, and it recovers the SVID before it comes back.
    pub fn handle_expired(&mut self, id: &MemberName) {
        let text = "the agent's SVID has run out and was not renewed: recover it".to_owned();
        self.end(id, EndReason::Expired, text);
    }

    /// An agent has opened a stream and said hello. `labels`: those of its enrolment.
    ///
    /// # Errors
    ///
    /// [`Unwelcome`]: nothing has changed.
    pub fn handle_open(
        &mut self,
        id: &MemberName,
        labels: &Labels,
        hello: Hello,
        session: SessionId,
        now: Now,
    ) -> Result<(), Unwelcome> {
        match self.agents.get(id) {
            Some(agent) if agent.revoked => return Err(Unwelcome::Revoked),
            None if self.agents.len() >= AGENTS_MAX => return Err(Unwelcome::Full),
            _ if self.still && self.sources.of(id).is_none() => return Err(Unwelcome::NoRoom),
            _ => {}
        }
        self.replace(id, &hello, now);
        let (source_id, given) = self.sources.allot(id, hello.source_id, &mut self.numbers.source);
        if given {
            let key = source_id.number().to_be_bytes();
            self.batch.put(Table::SourceIds, key, id.as_str());
        }
        let agent = self
            .agents
            .entry(id.clone())
            .or_insert_with(|| Agent::new(now.wall_ms));
        let moved = agent.addresses != hello.addresses;
        agent.handle_hello(labels, hello, &self.contents);
        agent.seen_ms = now.wall_ms;
        agent.line = Some(Line::new(session, now.run_ms));
        self.sessions.insert(session, id.clone());
        self.dirty.insert(id.clone());
        self.holdings_late.insert(bucket(id.as_str()));
        let welcome = Speech::Welcome {
            source_id: source_id.number(),
        };
        self.speech.push_back((session, welcome));
        self.rollouts.handle_open(id, now);
        self.settle(id, now);
        // Before an offer is said again.
        self.name_shortly(id);
        self.reconcile(id, now);
        self.tell_rollouts(id, now);
        self.members.handle_open(session);
        self.members.touch();
        if moved {
            self.handle_moved(id);
        }
        Ok(())
    }

    /// An agent has said something. What comes on a stream that was replaced changes nothing.
    pub fn handle_heard(&mut self, session: SessionId, heard: Heard, now: Now) {
        let Some(id) = self.sessions.get(&session).cloned() else {
            return;
        };
        let Some(agent) = self.agents.get_mut(&id) else {
            return;
        };
        let Some(line) = agent.line.as_mut() else {
            return;
        };
        line.heard_ms = now.run_ms;
        agent.seen_ms = now.wall_ms;
        match heard {
            Heard::Heartbeat {
                held,
                health,
                addresses,
            } => {
                if let Some(health) = health {
                    self.rollouts.handle_health(&id, &health, now);
                    agent.note_health(health);
                    self.compare_told(&id, now);
                }
                let Some(agent) = self.agents.get_mut(&id) else {
                    return;
                };
                if let Some(addresses) = addresses.filter(|addresses| *addresses != agent.addresses) {
                    agent.addresses = addresses;
                    self.handle_moved(&id);
                }
                if let Some(held) = held {
                    self.handle_held(&id, held, now);
                }
            }
            Heard::Ack {
                nonce,
                held,
                effective,
            } => self.handle_ack(&id, nonce, held, effective, now),
            Heard::Nack(nack) => self.handle_nack(&id, nack, now),
            Heard::Question { id: number, about } => {
                self.handle_question(&id, session, number, about, now);
            }
            Heard::Answer { id: number, end } => {
                let answers = self.questions.handle_answer(session, number, end, now);
                self.speech.extend(answers);
            }
            Heard::Top(answer) => self.handle_top(session, *answer, now),
            Heard::Goodbye => {
                self.rollouts.handle_closed(&id, true);
                self.handle_closed(session, now);
            }
            Heard::Unknown => {}
        }
    }

    /// A stream has ended.
    pub fn handle_closed(&mut self, session: SessionId, now: Now) {
        let Some(id) = self.sessions.remove(&session) else {
            return;
        };
        let answers = self.questions.handle_closed(session);
        self.speech.extend(answers);
        self.close_tops(session);
        self.members.handle_closed(session);
        self.members.touch();
        self.rollouts.handle_closed(&id, false);
        if let Some(agent) = self.agents.get_mut(&id) {
            agent.line = None;
            agent.seen_ms = now.wall_ms;
            self.late.insert(id);
        }
    }

    /// Time has passed. To be called at least once a second.
    pub fn handle_timeout(&mut self, now: Now) {
        self.short.handle_timeout(now);
        if now.run_ms >= self.sweep_at_ms {
            self.sweep_at_ms = now.run_ms.saturating_add(SWEEP_MS);
            self.write_what_waits();
            self.end_silent(now);
        }
        let answers = self.questions.handle_timeout(now);
        self.speech.extend(answers);
        self.time_tops(now);
        self.update_members(now);
        if now.run_ms >= self.forget_at_ms {
            for agent in self.agents.values_mut() {
                agent.turns.handle_timeout(now.wall_ms);
            }
            self.forget_at_ms = now.run_ms.saturating_add(FORGET_EVERY_MS);
            if self.still {
                return;
            }
            self.name_who_waits();
            for digest in self.contents.forget_unused() {
                self.batch.remove(Table::Contents, digest);
            }
        }
    }

    fn end_silent(&mut self, now: Now) {
        let silent: Vec<MemberName> = self
            .agents
            .iter()
            .filter(|(_, agent)| {
                let line = agent.line.as_ref();
                line.is_some_and(|line| now.run_ms.saturating_sub(line.heard_ms) > SILENCE_MS)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in silent {
            let text = format!("nothing was heard for {} s", SILENCE_MS / 1_000);
            self.end(&id, EndReason::Slow, text);
        }
    }

    /// Something may have changed what the rollouts wait for. To be called once a turn, before [`Self::take_batch`].
    pub fn finish_turn(&mut self, now: Now) {
        if !self.still && self.rollouts_wait(now) {
            self.advance_rollouts(now);
        }
    }

    /// The next thing to say.
    pub fn poll_speech(&mut self) -> Option<(SessionId, Speech)> {
        self.speech.pop_front()
    }

    /// Another stream of an agent begins: the former one ends. Two processes that take turns are told from one that comes back.
    fn replace(&mut self, id: &MemberName, hello: &Hello, now: Now) {
        let mut text = format!("the same agent has connected once more, from {}", place(hello));
        if let Some(agent) = self.agents.get_mut(id)
            && agent.turns.handle_hello(hello, now.wall_ms)
        {
            let (turns, conflict) = (agent.turns.taken, agent.turns.conflict.clone());
            if turns % TURNS_LOG_EACH == 1 {
                tracing::warn!(agent = %id, turns, conflict, "one identity, two agents");
            }
            text = conflict;
        }
        self.end(id, EndReason::Replaced, text);
    }

    /// Ends an agent's stream, if it has one. The stream's own end changes nothing more.
    fn end(&mut self, id: &MemberName, reason: EndReason, text: String) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let Some(line) = agent.line.take() else {
            return;
        };
        let session = line.session;
        self.sessions.remove(&session);
        let answers = self.questions.handle_closed(session);
        self.speech.extend(answers);
        self.close_tops(session);
        self.members.handle_closed(session);
        self.members.touch();
        self.rollouts.handle_closed(id, false);
        self.dirty.insert(id.clone());
        self.speech.push_back((session, Speech::Ended(reason, text)));
    }

    fn handle_ack(
        &mut self,
        id: &MemberName,
        nonce: u64,
        held: Mark,
        effective: Option<Box<wire::Effective>>,
        now: Now,
    ) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        // Also of an ack that comes too late: the next one does not repeat it.
        if effective.is_some() && agent.effective != effective {
            agent.effective = effective;
            self.late.insert(id.clone());
        }
        let Some(open) = agent.answered(nonce) else {
            return;
        };
        if held != open {
            let text = "an ack names another content than the offer".to_owned();
            self.end(id, EndReason::Protocol, text);
            return;
        }
        agent.hold(open);
        agent.in_force = agent.wanted.as_ref().map(|wanted| Arc::clone(&wanted.content));
        // What it is to have is on the disk since before it was offered, and after a restart of this controller the agent says
        // that it holds it: an ack by itself need not be there at once.
        self.holdings_late.insert(bucket(id.as_str()));
        if agent.nack.take().is_some() {
            self.late.insert(id.clone());
        }
        self.members.touch();
        self.follow(id, now);
        self.name_shortly(id);
        self.tell_rollouts(id, now);
    }

    fn handle_nack(&mut self, id: &MemberName, nack: Box<wire::Nack>, now: Now) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let Some(open) = agent.answered(nack.nonce) else {
            return;
        };
        if let Some(line) = &mut agent.line {
            line.refused = Some(open);
            if let (false, Some(wanted)) = (line.again, &mut agent.wanted) {
                wanted.offered = false;
            }
        }
        agent.nack = Some((open.place(), nack));
        self.dirty.insert(id.clone());
        self.name_shortly(id);
        self.tell_rollouts(id, now);
    }

    /// A heartbeat says what is in force: when it is not what was acked, the agent has lost it.
    fn handle_held(&mut self, id: &MemberName, held: Mark, now: Now) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let answering = agent.line.as_ref().is_some_and(|line| line.open.is_some());
        if answering || agent.held == Some(held) {
            return;
        }
        agent.hold(held);
        agent.in_force = self.contents.of_digest(&held.digest).cloned();
        self.holdings_late.insert(bucket(id.as_str()));
        self.members.touch();
        self.follow(id, now);
        self.name_shortly(id);
        self.reconcile(id, now);
        self.tell_rollouts(id, now);
    }
}

#[cfg(test)]
pub(crate) mod tests;
