//! Which ports this host answers on: TCP listeners, and UDP ports whose peers spoke first.
//!
//! Serves two questions: who is the responder of a connection older than the agent, and what the collector is told as
//! listening ports.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::entry::rank;
use super::record::Protocol;
use crate::observe::{Cookie, Endpoint, NetNs};
use crate::owner::Owner;

/// Most TCP listeners that are kept.
///
/// A busy container host has some hundreds. Double it, and a process that listens on every port costs 16 MB.
const LISTENERS_MAX: usize = 65_536;

/// One port that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening<'a> {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port; the unspecified address means any.
    pub endpoint: Endpoint,
    /// Where.
    pub netns: NetNs,
    /// Who.
    pub owner: &'a Owner,
}

#[derive(Debug)]
struct Listener {
    endpoint: Endpoint,
    netns: NetNs,
    owner: Arc<Owner>,
}

#[derive(Debug)]
pub(super) struct Listeners {
    by_cookie: BTreeMap<Cookie, Listener>,
    ports: HashMap<(NetNs, u16), u32, FixedState>,
}

impl Listeners {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            by_cookie: BTreeMap::new(),
            ports: HashMap::with_hasher(hasher.clone()),
        }
    }

    /// A listener was seen. At the bound, the oldest goes.
    pub(super) fn add(&mut self, cookie: Cookie, endpoint: Endpoint, netns: NetNs, owner: Arc<Owner>) {
        if let Some(held) = self.by_cookie.get_mut(&cookie) {
            if rank(owner.confidence) >= rank(held.owner.confidence) {
                held.owner = owner;
            }
            return;
        }
        if self.by_cookie.len() >= LISTENERS_MAX
            && let Some(&oldest) = self.by_cookie.keys().next()
        {
            self.remove(oldest);
        }
        *self.ports.entry((netns, endpoint.port)).or_default() += 1;
        let listener = Listener {
            endpoint,
            netns,
            owner,
        };
        self.by_cookie.insert(cookie, listener);
    }

    /// A listener ended; tells whether it was one.
    pub(super) fn remove(&mut self, cookie: Cookie) -> bool {
        let Some(gone) = self.by_cookie.remove(&cookie) else {
            return false;
        };
        let port = (gone.netns, gone.endpoint.port);
        if let Some(count) = self.ports.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.ports.remove(&port);
            }
        }
        true
    }

    pub(super) fn contains(&self, cookie: Cookie) -> bool {
        self.by_cookie.contains_key(&cookie)
    }

    pub(super) fn listens(&self, netns: NetNs, port: u16) -> bool {
        self.ports.contains_key(&(netns, port))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Listening<'_>> {
        self.by_cookie.values().map(|listener| Listening {
            protocol: Protocol::Tcp,
            endpoint: listener.endpoint,
            netns: listener.netns,
            owner: &listener.owner,
        })
    }
}
