//! TCP sockets by cookie: which flow is theirs, or that they ended.
//!
//! A socket that ended is dead for [`LINGER`]: cookies never come again, so whatever still arrives of it is a copy. The
//! kernel gives cookies out in their order, so the dead are bits in lines of 512: 100,000 of them stay in the cache.
//!
//! Invariant: a socket has at most one flow, and is not dead while it has one.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use super::flows::Handle;
use super::past::{LINGER, LINGERING_MAX};
use crate::observe::Cookie;
use crate::time::KernelTime;

#[derive(Debug)]
pub(super) struct TcpSockets {
    live: HashMap<Cookie, Handle, FixedState>,
    dead: HashMap<u64, [u64; 8], FixedState>,
    linger: VecDeque<(KernelTime, Cookie)>,
}

impl TcpSockets {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            live: HashMap::with_hasher(hasher.clone()),
            dead: HashMap::with_hasher(hasher.clone()),
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

    /// It ended. Its flow is to be removed first.
    pub(super) fn bury(&mut self, cookie: Cookie, now: KernelTime) {
        let (line, word, bit) = place(cookie);
        let word = &mut self.dead.entry(line).or_default()[word];
        if *word & bit == 0 {
            *word |= bit;
            self.linger.push_back((now.after(LINGER), cookie));
        }
    }

    pub(super) fn is_dead(&self, cookie: Cookie) -> bool {
        let (line, word, bit) = place(cookie);
        self.dead.get(&line).is_some_and(|words| words[word] & bit != 0)
    }

    /// Forgets who is dead for long enough, or is one too many.
    pub(super) fn expire(&mut self, now: KernelTime) {
        while self.linger.len() > LINGERING_MAX || self.linger.front().is_some_and(|&(at, _)| at <= now) {
            let Some((_, cookie)) = self.linger.pop_front() else {
                return;
            };
            let (line, word, bit) = place(cookie);
            if let Some(words) = self.dead.get_mut(&line) {
                words[word] &= !bit;
                if *words == [0; 8] {
                    self.dead.remove(&line);
                }
            }
        }
    }
}

/// Line, word and bit of a cookie.
fn place(cookie: Cookie) -> (u64, usize, u64) {
    let Cookie(number) = cookie;
    (number >> 9, (number >> 6 & 7) as usize, 1 << (number & 63))
}

#[cfg(test)]
impl TcpSockets {
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty() && self.dead.is_empty() && self.linger.is_empty()
    }
}
