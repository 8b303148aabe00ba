//! Whose ends of this host were, of flows with other agents that are over.
//!
//! A short flow is told when it is over at both ends, and only then does the agent that tells it ask who was at the other: its
//! process may be gone by then, and its listener with it.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::end::Asked;
use super::ends;
use crate::flow::record::{FlowRecord, Protocol};
use crate::observe::Endpoint;
use crate::owner::Owner;
use crate::time::KernelTime;

/// Most flows. An owner is shared, so that a flow takes some hundred octets. Half of it forgets a burst of 4,000 connections a
/// second before its questions have come; double it, and a busy host keeps a megabyte more.
const ENDED_MAX: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// How long: the other end asks within a second, and waits for one. Half of it is too short for a busy machine; double it, and
/// a port may have come again.
const ENDED_FRESH: std::time::Duration = std::time::Duration::from_secs(10);

/// Protocol, end on this host, other end.
type Key = (Protocol, Endpoint, Endpoint);

#[derive(Debug)]
pub(super) struct Ended(LruCache<Key, (Owner, KernelTime)>);

impl Default for Ended {
    fn default() -> Self {
        Self(LruCache::new(ENDED_MAX))
    }
}

impl Ended {
    pub(super) fn remember(&mut self, record: &FlowRecord, now: KernelTime) {
        if let Some((near, far)) = ends(record)
            && near.owner.process.is_some()
        {
            let key = key(record.protocol, near.endpoint, far.endpoint);
            self.0.put(key, (near.owner.clone(), now.after(ENDED_FRESH)));
        }
    }

    pub(super) fn owner(&self, asked: &Asked, now: KernelTime) -> Option<Owner> {
        let (owner, until) = self.0.peek(&key(asked.protocol, asked.near, asked.peer))?;
        (now < *until).then(|| owner.clone())
    }
}

fn key(protocol: Protocol, near: Endpoint, far: Endpoint) -> Key {
    let plain = |end: Endpoint| Endpoint {
        address: end.address.to_canonical(),
        port: end.port,
    };
    (protocol, plain(near), plain(far))
}
