//! Who is at the other end: what was asked and answered, for a while.
//!
//! Asked once for each far end (address, port, protocol) that is spoken to from one address; a far end that spoke first has
//! a port of the moment, so there it is asked for each flow. Bounded: [`ANSWERS_MAX`] answers, [`IN_FLIGHT_MAX`]
//! questions.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::wire::session;
use foldhash::fast::FixedState;
use lru::LruCache;

use crate::flow::record::{FlowRecord, Protocol};
use crate::observe::{Cookie, Endpoint};
use crate::owner::Owner;
use crate::time::KernelTime;

/// Answers remembered, those used last.
///
/// About 100 octets each, 1 KiB with names of its own. Half of it asks again for the services of a large fleet; double it,
/// and the worst case is 32 MiB.
pub(super) const ANSWERS_MAX: usize = 16_384;

/// Questions on the way. Beyond it records go without.
pub(super) const IN_FLIGHT_MAX: usize = 1024;

/// How long an answer counts: a service that was started again has another process.
pub(super) const KNOWN_FRESH: Duration = Duration::from_secs(60);

/// How long it is not asked again when nobody was known.
pub(super) const ABSENT_FRESH: Duration = Duration::from_secs(10);

/// How long an answer may take. Records wait no longer for names either.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Which end is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    protocol: Protocol,
    far: Endpoint,
    near: IpAddr,
    /// When the far end spoke first.
    flow: Option<(Cookie, u64)>,
}

impl Key {
    pub(super) fn of(record: &FlowRecord) -> Option<(Self, Endpoint)> {
        let (near, far) = super::ends(record)?;
        let far_began = record.initiator.owner.is_remote();
        let key = Self {
            protocol: record.protocol,
            far: far.endpoint,
            near: near.endpoint.address,
            flow: far_began.then_some((record.id.cookie, record.id.stream)),
        };
        Some((key, near.endpoint))
    }
}

#[derive(Debug)]
enum Kept {
    Asked { since: KernelTime },
    Known { owner: Arc<Owner>, until: KernelTime },
    Absent { until: KernelTime },
}

/// What is known of a far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Known(Arc<Owner>),
    Absent,
    Waiting,
}

#[derive(Debug)]
pub(super) struct Asks {
    kept: LruCache<Key, Kept>,
    in_flight: HashMap<u64, Key, FixedState>,
    /// In the order in which they were asked.
    order: VecDeque<(KernelTime, u64)>,
    questions: VecDeque<session::Question>,
    next_id: u64,
}

impl Default for Asks {
    fn default() -> Self {
        Self {
            kept: LruCache::new(NonZeroUsize::new(ANSWERS_MAX).unwrap_or(NonZeroUsize::MIN)),
            in_flight: HashMap::default(),
            order: VecDeque::new(),
            questions: VecDeque::new(),
            next_id: 1,
        }
    }
}

impl Asks {
    /// What is known; asks when `may_ask` and nothing is.
    pub(super) fn find(&mut self, (key, near): (Key, Endpoint), may_ask: bool, now: KernelTime) -> Found {
        match self.kept.get(&key) {
            Some(Kept::Known { owner, until }) if now < *until => return Found::Known(Arc::clone(owner)),
            Some(Kept::Absent { until }) if now < *until => return Found::Absent,
            Some(Kept::Asked { since }) if now < since.after(ANSWER_WAIT) => return Found::Waiting,
            Some(Kept::Asked { since }) if now < since.after(ABSENT_FRESH) => return Found::Absent,
            Some(_) | None => {}
        }
        if !may_ask || self.in_flight.len() >= IN_FLIGHT_MAX {
            return Found::Absent;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.insert(id, key);
        self.order.push_back((now, id));
        self.questions.push_back(session::Question {
            id,
            address: octets(key.far.address),
            port: key.far.port.into(),
            protocol: key.protocol.number().into(),
            peer_address: octets(near.address),
            peer_port: near.port.into(),
            of_flow: key.flow.is_some(),
        });
        self.kept.put(key, Kept::Asked { since: now });
        Found::Waiting
    }

    pub(super) fn poll(&mut self) -> Option<session::Question> {
        self.questions.pop_front()
    }

    pub(super) fn handle_answer(&mut self, id: u64, owner: Option<Arc<Owner>>, now: KernelTime) {
        let Some(key) = self.in_flight.remove(&id) else {
            return;
        };
        let kept = match owner {
            Some(owner) => Kept::Known {
                owner,
                until: now.after(KNOWN_FRESH),
            },
            None => Kept::Absent {
                until: now.after(ABSENT_FRESH),
            },
        };
        self.kept.put(key, kept);
    }

    /// Nothing that was asked will be answered.
    pub(super) fn handle_lost(&mut self) {
        for (_, key) in self.in_flight.drain() {
            self.kept.pop(&key);
        }
        self.order.clear();
        self.questions.clear();
    }

    /// Gives up what was asked too long ago; an answer that comes later still counts until then.
    pub(super) fn handle_timeout(&mut self, now: KernelTime) {
        while let Some(&(asked, id)) = self.order.front()
            && now >= asked.after(ABSENT_FRESH)
        {
            self.order.pop_front();
            self.in_flight.remove(&id);
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
