//! TCP sockets by cookie: which flow is theirs, or when their connection ended.
//!
//! An end is remembered for [`LINGER`]: whatever still arrives of that connection is a copy. The socket may live on and
//! connect once more, with the same cookie: what began after the end is another connection. The kernel gives cookies out
//! in their order, so ends are kept in lines of 8: 100,000 of them stay in the cache.
//!
//! Invariant: a socket has at most one flow, and that of its newest connection.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::flows::Handle;
use super::past::{LINGER, LINGERING_MAX};
use crate::observe::Cookie;
use crate::time::KernelTime;

/// Ends in a line: with its number it is about one line of a processor's cache.
const LINE: usize = 8;
const NOT_ENDED: KernelTime = KernelTime(0);

#[derive(Debug)]
pub(super) struct TcpSockets {
    live: HashMap<Cookie, Handle, FixedState>,
    /// When the newest connection ended; 0: not, or too long ago.
    ends: HashMap<u64, [KernelTime; LINE], FixedState>,
    /// Until when an end is remembered, and which.
    linger: VecDeque<(KernelTime, Cookie, KernelTime)>,
}

impl TcpSockets {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            live: HashMap::with_hasher(hasher.clone()),
            ends: HashMap::with_hasher(hasher.clone()),
            linger: VecDeque::new(),
        }
    }

    /// The socket's flow.
    pub(super) fn flow(&self, cookie: Cookie) -> Option<Handle> {
        self.live.get(&cookie).copied()
    }

    pub(super) fn insert(&mut self, cookie: Cookie, flow: Handle) {
        self.live.insert(cookie, flow);
    }

    /// Its flow left the table.
    pub(super) fn remove(&mut self, cookie: Cookie) {
        self.live.remove(&cookie);
    }

    /// Its connection ended at `ended`. Its flow is to be removed first.
    pub(super) fn bury(&mut self, cookie: Cookie, ended: KernelTime, now: KernelTime) {
        let (line, at) = place(cookie);
        let held = &mut self.ends.entry(line).or_insert([NOT_ENDED; LINE])[at];
        if *held < ended {
            *held = ended;
            self.linger.push_back((now.after(LINGER), cookie, ended));
        }
    }

    /// Whether the socket's connection that began at `start` has ended.
    pub(super) fn was_over(&self, cookie: Cookie, start: KernelTime) -> bool {
        self.end(cookie).is_some_and(|end| start <= end)
    }

    /// When the socket's newest connection that ended did so, as far as that is remembered.
    pub(super) fn end(&self, cookie: Cookie) -> Option<KernelTime> {
        let (line, at) = place(cookie);
        self.ends
            .get(&line)
            .map(|ends| ends[at])
            .filter(|&end| end != NOT_ENDED)
    }

    /// Forgets ends of long ago, or one too many.
    pub(super) fn expire(&mut self, now: KernelTime) {
        while self.linger.len() > LINGERING_MAX
            || self.linger.front().is_some_and(|&(until, ..)| until <= now)
        {
            let Some((_, cookie, ended)) = self.linger.pop_front() else {
                return;
            };
            let (line, at) = place(cookie);
            if let Some(ends) = self.ends.get_mut(&line)
                && ends[at] == ended
            {
                ends[at] = NOT_ENDED;
                if *ends == [NOT_ENDED; LINE] {
                    self.ends.remove(&line);
                }
            }
        }
    }
}

/// Line of a cookie, and its place there.
fn place(cookie: Cookie) -> (u64, usize) {
    let Cookie(number) = cookie;
    let line = LINE as u64;
    (number / line, (number % line) as usize)
}

#[cfg(test)]
impl TcpSockets {
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.ends.is_empty() && self.linger.is_empty()
    }
}
