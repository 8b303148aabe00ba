//! Names of users and groups, bounded.
//!
//! In: answers. Out: a name and whether it has to be asked for. Asks nobody itself.

use std::time::Duration;

use lru::LruCache;

use super::ask::{Ask, Scope};
use crate::time::KernelTime;

/// How long a user's or group's name, or that it has none, is believed.
///
/// Users that are made while the agent runs get their names at most that much later.
pub const USER_FRESH: Duration = Duration::from_secs(600);

/// A user or a group, in one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Account {
    User(Scope, u32),
    Group(Scope, u32),
}

impl Account {
    pub(super) fn scope(self) -> Scope {
        match self {
            Self::User(scope, _) | Self::Group(scope, _) => scope,
        }
    }
}

impl From<Account> for Ask {
    fn from(account: Account) -> Self {
        match account {
            Account::User(scope, uid) => Self::User { scope, uid },
            Account::Group(scope, gid) => Self::Group { scope, gid },
        }
    }
}

/// What is to be done about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Settled,
    Asked,
    ToAsk,
}

#[derive(Debug)]
struct Entry {
    name: Option<String>,
    asked_at: KernelTime,
    answered: bool,
}

pub(super) struct Accounts(LruCache<Account, Entry>);

impl Accounts {
    pub(super) fn new(max: usize) -> Self {
        Self(LruCache::new(super::at_least_one(max)))
    }

    /// The name as far as it is known; one that is asked for again stays in use until the answer.
    pub(super) fn look(&mut self, account: Account, now: KernelTime) -> (Option<&str>, Standing) {
        match self.0.get(&account) {
            None => (None, Standing::ToAsk),
            Some(entry) => {
                let standing = if !entry.answered {
                    Standing::Asked
                } else if now.since(entry.asked_at) < USER_FRESH {
                    Standing::Settled
                } else {
                    Standing::ToAsk
                };
                (entry.name.as_deref(), standing)
            }
        }
    }

    pub(super) fn asked(&mut self, account: Account, now: KernelTime) {
        let name = self.0.peek_mut(&account).and_then(|entry| entry.name.take());
        let entry = Entry {
            name,
            asked_at: now,
            answered: false,
        };
        self.0.put(account, entry);
    }

    pub(super) fn answered(&mut self, account: Account, name: Option<String>) {
        if let Some(entry) = self.0.peek_mut(&account) {
            entry.answered = true;
            entry.name = name.filter(|name| !name.is_empty());
        }
    }
}
