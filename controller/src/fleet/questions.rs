//! Questions between agents: who is at the other end of a flow?
//!
//! A question goes to the agent whose address it asks about, once for everybody who asks the same within [`CACHE_MS`]. Every
//! question is answered, with nothing when nobody knows in time. Invariants: an agent is asked only about its own addresses,
//! and asks only for its own; it is answered only about agents that feed a collector that it feeds, kept answers too; only the
//! agent that was asked answers.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session as wire;

use super::heard::About;
use super::{Fleet, Now, SessionId, Speech};

/// How long an answer is kept, in milliseconds.
///
/// Source: design section 6. A port's owner seldom changes within it. Half of it asks twice as often; double it, and a restarted
/// service has its predecessor's process number for a minute.
pub(super) const CACHE_MS: u64 = 30_000;
/// How long it is kept that nobody knows, in milliseconds: a listener that has just come is known a little later.
pub(super) const CACHE_NOTHING_MS: u64 = 2_000;
/// How long an agent has to answer, in milliseconds. The asking agent goes without after some seconds.
pub(super) const ANSWER_MS: u64 = 5_000;
/// Most answers that are kept. An answer is some hundred octets; the oldest goes first.
pub(super) const CACHED_MAX: usize = 65_536;
/// Most questions that wait for an answer; further ones are answered with nothing.
pub(super) const WAITING_MAX: usize = 16_384;
/// Most questions of one stream that wait for an answer; further ones are answered with nothing.
pub(super) const WAITING_OF_ONE_MAX: usize = 256;

/// The lowest port that a system gives to an end that begins a flow, unless it is told otherwise: its owner is another in a moment.
///
/// Source: Linux, `ip_local_port_range`. An agent that knows says so in its question.
const PASSING_PORT_MIN: u16 = 32_768;

/// What a question asks about: address, port, protocol, and the other end when the port is one flow's.
type Key = (IpAddr, u16, u8, Option<(IpAddr, u16)>);

fn key(about: &About) -> Key {
    let of_flow = about.of_flow || about.port >= PASSING_PORT_MIN;
    let peer = of_flow.then_some((about.peer_address, about.peer_port));
    (about.address, about.port, about.protocol, peer)
}

/// Questions that wait, and answers that are kept.
#[derive(Default)]
pub(super) struct Questions {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
    by_key: BTreeMap<Key, u64>,
    by_asker: BTreeMap<SessionId, usize>,
    askers: usize,
    cache: BTreeMap<Key, (u64, Option<wire::End>)>,
    /// Keys by the time when they are forgotten. Two lists, so that each is in order.
    known: VecDeque<(u64, Key)>,
    unknown: VecDeque<(u64, Key)>,
}

/// A question that was passed on.
struct Waiting {
    key: Key,
    owner: SessionId,
    until_ms: u64,
    askers: Vec<(SessionId, u64)>,
}

fn answer(session: SessionId, id: u64, end: Option<wire::End>) -> (SessionId, Speech) {
    (session, Speech::Answer(Box::new(wire::Answer { id, end })))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Fleet {
    pub(super) fn handle_question(
        &mut self,
        asker: &MemberName,
        session: SessionId,
        id: u64,
        about: About,
        now: Now,
    ) {
        let own = |name: &MemberName, address: IpAddr| {
            let agent = self.agents.get(name)?;
            agent.addresses.contains(&address).then_some(agent)
        };
        let owner = own(asker, about.peer_address)
            .and_then(|asking| Some((asking, self.members.owner(about.address)?)))
            .filter(|(_, owner)| *owner != asker)
            .and_then(|(asking, owner)| Some((asking, own(owner, about.address)?)))
            .filter(|(asking, owner)| asking.shares_a_collector(owner))
            .and_then(|(_, owner)| owner.line.as_ref())
            .map(|line| line.session);
        let speech = match owner {
            None => answer(session, id, None),
            Some(owner) => match self.questions.handle_question(session, id, about, owner, now) {
                Some(speech) => speech,
                None => return,
            },
        };
        self.speech.push_back(speech);
    }
}

impl Questions {
    /// The answer, or the question to pass on; `None`: it waits with others that ask the same.
    fn handle_question(
        &mut self,
        asker: SessionId,
        id: u64,
        about: About,
        owner: SessionId,
        now: Now,
    ) -> Option<(SessionId, Speech)> {
        let key = key(&about);
        if let Some((until_ms, end)) = self.cache.get(&key)
            && now.run_ms < *until_ms
        {
            return Some(answer(asker, id, end.clone()));
        }
        let of_one = self.by_asker.entry(asker).or_default();
        if *of_one >= WAITING_OF_ONE_MAX || self.askers >= WAITING_MAX {
            if *of_one == 0 {
                self.by_asker.remove(&asker);
            }
            return Some(answer(asker, id, None));
        }
        *of_one += 1;
        self.askers += 1;
        if let Some(waiting) = self
            .by_key
            .get(&key)
            .and_then(|number| self.waiting.get_mut(number))
        {
            waiting.askers.push((asker, id));
            return None;
        }
        self.last += 1;
        let waiting = Waiting {
            key,
            owner,
            until_ms: now.run_ms.saturating_add(ANSWER_MS),
            askers: vec![(asker, id)],
        };
        self.waiting.insert(self.last, waiting);
        self.by_key.insert(key, self.last);
        let question = wire::Question {
            id: self.last,
            address: octets(about.address),
            port: about.port.into(),
            protocol: about.protocol.into(),
            peer_address: octets(about.peer_address),
            peer_port: about.peer_port.into(),
            of_flow: about.of_flow,
        };
        Some((owner, Speech::Question(question)))
    }

    /// What is to be said when an agent has answered.
    pub(super) fn handle_answer(
        &mut self,
        session: SessionId,
        number: u64,
        end: Option<Box<wire::End>>,
        now: Now,
    ) -> Vec<(SessionId, Speech)> {
        if self
            .waiting
            .get(&number)
            .is_none_or(|waiting| waiting.owner != session)
        {
            return Vec::new();
        }
        self.close(number, end.map(|end| *end), Some(now))
    }

    /// What is to be said when a stream has ended.
    pub(super) fn handle_closed(&mut self, session: SessionId) -> Vec<(SessionId, Speech)> {
        if let Some(count) = self.by_asker.remove(&session) {
            self.askers -= count;
            for waiting in self.waiting.values_mut() {
                waiting.askers.retain(|(asker, _)| *asker != session);
            }
        }
        let asked: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.owner == session)
            .map(|(number, _)| *number)
            .collect();
        let closed = asked
            .into_iter()
            .flat_map(|number| self.close(number, None, None));
        closed.collect()
    }

    /// What is to be said when time has passed.
    pub(super) fn handle_timeout(&mut self, now: Now) -> Vec<(SessionId, Speech)> {
        for list in [&mut self.known, &mut self.unknown] {
            while let Some((until_ms, key)) = list.front().copied()
                && until_ms <= now.run_ms
            {
                list.pop_front();
                // It may have been answered again since.
                if self
                    .cache
                    .get(&key)
                    .is_some_and(|(until, _)| *until <= now.run_ms)
                {
                    self.cache.remove(&key);
                }
            }
        }
        // Numbers are given in the order of time.
        let late: Vec<u64> = self
            .waiting
            .iter()
            .take_while(|(_, waiting)| waiting.until_ms <= now.run_ms)
            .map(|(number, _)| *number)
            .collect();
        late.into_iter()
            .flat_map(|number| self.close(number, None, Some(now)))
            .collect()
    }

    /// Answers everybody who waits. `now`: the answer is kept from then on.
    fn close(&mut self, number: u64, end: Option<wire::End>, now: Option<Now>) -> Vec<(SessionId, Speech)> {
        let Some(waiting) = self.waiting.remove(&number) else {
            return Vec::new();
        };
        self.by_key.remove(&waiting.key);
        if let Some(now) = now {
            self.keep(waiting.key, end.clone(), now);
        }
        for (asker, _) in &waiting.askers {
            self.askers -= 1;
            if let Some(count) = self.by_asker.get_mut(asker) {
                *count -= 1;
                if *count == 0 {
                    self.by_asker.remove(asker);
                }
            }
        }
        let all = waiting.askers.into_iter();
        all.map(|(asker, id)| answer(asker, id, end.clone())).collect()
    }

    fn keep(&mut self, key: Key, end: Option<wire::End>, now: Now) {
        let (list, kept_ms) = match end {
            Some(_) => (&mut self.known, CACHE_MS),
            None => (&mut self.unknown, CACHE_NOTHING_MS),
        };
        let until_ms = now.run_ms.saturating_add(kept_ms);
        list.push_back((until_ms, key));
        self.cache.insert(key, (until_ms, end));
        while self.known.len() + self.unknown.len() > CACHED_MAX {
            let oldest = match (self.known.front(), self.unknown.front()) {
                (Some(known), Some(unknown)) if known.0 <= unknown.0 => self.known.pop_front(),
                (Some(_), None) => self.known.pop_front(),
                _ => self.unknown.pop_front(),
            };
            if let Some((_, key)) = oldest {
                self.cache.remove(&key);
            }
        }
    }
}
