//! Which agent has which number of 8 bits at which endpoint, and which numbers are out of use.
//!
//! In: what agents need, who may still feed what ([`Use`]), and time. Out: numbers, and rows for the store. Does no IO.
//!
//! Which number is given, the first of these that there is at every endpoint that is asked for ([`Standing`]): the agent's own; one that
//! nobody ever had there; one whose quarantine is over; one whose agent is known to feed another collector; one that may have been
//! given after the backup that was restored; the one that has been in quarantine longest. Among equals: one that the agent has at
//! another collector, then one that nobody has at any (two endpoints may be one ntopng: a name and its address), then in the
//! order of the store's life ([`place`]).
//!
//! A restore forgets what was given after the backup. Each restore therefore counts from another point, the first one backwards: the
//! life before it gave its next numbers from one end, the one after it gives from the other, and they meet when both together have
//! given all. Not kept apart are two restores of one and the same backup (255 numbers cannot be drawn at random, and nothing tells the
//! second one of the first: `flowtilla-controller restore` says so), and what a backup older than the quarantine does not know of
//! numbers that were given twice since.
//!
//! Row: key `endpoint, 0, number`; value the agent's id while it has use for the number, and behind it 0 and 8 octets, when it
//! was found to have none (milliseconds since the epoch, big-endian).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

use flowtilla_proto::spiffe::MemberName;

use crate::store::counter::Restored;
use crate::store::{Batch, Table};

/// How long a number is out of use, in milliseconds, after its agent was revoked or left the collector; and how long after a restore
/// each that the backup does not know counts as given.
///
/// A week: a revoked agent goes on with its last policy until somebody stops it. Half of it ends while people are away; double it,
/// and a collector with much coming and going sooner has nothing else to give.
pub(in crate::fleet) const QUARANTINE_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// Whether an agent has use for a number at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It feeds it, or may.
    MayFeed,
    /// It is connected, and has in force what it is to have, which is another collector.
    Elsewhere,
    /// Its identity is void: what it does is not known any more.
    Void,
}

/// There is none left. `Display`: for the log; the agent's own status has the same remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{agents} agents have all source ids of 8 bits that {endpoint} can tell apart: give some of them another collector, revoke those \
     of hosts that are gone, or, if it reads it, have header version 2 (encoding: tlv)"
)]
pub(super) struct NoneLeft {
    endpoint: String,
    agents: usize,
}

/// A number that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    agent: MemberName,
    /// When its agent was found to have no use for it; `None`: it has.
    left_ms: Option<i64>,
}

/// What it costs to give a number at one endpoint, the least first. Times: since when it is out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// The agent's own.
    Own,
    /// Nobody ever had it.
    Free,
    /// The quarantine is over.
    Rested(i64),
    /// Its agent feeds another collector.
    Moved(i64),
    /// Somebody may have got it after the backup that was restored.
    Doubtful,
    /// In quarantine.
    Resting(i64),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Numbers {
    by_endpoint: BTreeMap<String, BTreeMap<NonZeroU8, Given>>,
    /// Highest number.
    pub(super) most: NonZeroU8,
    restored: Option<Restored>,
    now_ms: i64,
    /// Endpoints that had none left when one was looked for, until the next look at all.
    full: BTreeSet<String>,
}

impl Numbers {
    /// None yet.
    pub(super) fn new(restored: Option<Restored>, now_ms: i64) -> Self {
        Self {
            by_endpoint: BTreeMap::new(),
            most: NonZeroU8::MAX,
            restored,
            now_ms,
            full: BTreeSet::new(),
        }
    }

    /// A row of the store; `None`: it is none.
    pub(super) fn restore(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (endpoint, [0, number]) = key.split_last_chunk::<2>()? else {
            return None;
        };
        let endpoint = std::str::from_utf8(endpoint).ok()?.to_owned();
        let number = NonZeroU8::new(*number)?;
        let (agent, left_ms) = match value.iter().position(|octet| *octet == 0) {
            None => (value, None),
            Some(at) => (
                &value[..at],
                Some(i64::from_be_bytes(value[at + 1..].try_into().ok()?)),
            ),
        };
        let agent = MemberName::parse(std::str::from_utf8(agent).ok()?).ok()?;
        let numbers = self.by_endpoint.entry(endpoint).or_default();
        numbers.insert(number, Given { agent, left_ms });
        Some(())
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// Numbers of an endpoint for which nobody has use.
    #[cfg(test)]
    pub(super) fn unused(&self, endpoint: &str, use_of: impl Fn(&MemberName, &str) -> Use) -> Vec<u8> {
        let all = (1..=self.most.get()).filter_map(NonZeroU8::new);
        let in_use = |number: &NonZeroU8| {
            let given = self.by_endpoint.get(endpoint).and_then(|all| all.get(number));
            given.is_some_and(|given| use_of(&given.agent, endpoint) == Use::MayFeed)
        };
        all.filter(|number| !in_use(number)).map(NonZeroU8::get).collect()
    }

    /// One number for an agent at all of these endpoints.
    ///
    /// # Errors
    ///
    /// [`NoneLeft`]: nothing has changed.
    pub(super) fn allot(
        &mut self,
        agent: &MemberName,
        endpoints: &BTreeSet<&str>,
        use_of: impl Fn(&MemberName, &str) -> Use,
        batch: &mut Batch,
    ) -> Result<NonZeroU8, NoneLeft> {
        let number = match self.own(agent, endpoints) {
            Some(own) => own,
            None if endpoints.iter().any(|endpoint| self.is_full_for(agent, endpoint)) => {
                return Err(self.none_left(endpoints));
            }
            None => match self.least(agent, endpoints, &use_of) {
                Some(number) => number,
                None => {
                    if let [one] = Vec::from_iter(endpoints)[..] {
                        self.full.insert((*one).to_owned());
                    }
                    return Err(self.none_left(endpoints));
                }
            },
        };
        for endpoint in endpoints {
            match self.standing(agent, endpoint, number, &use_of) {
                Some(Standing::Resting(since_ms)) => {
                    let rested_s = self.now_ms.saturating_sub(since_ms) / 1_000;
                    tracing::warn!(%agent, endpoint, number, rested_s, "a source id of 8 bits is given again before its quarantine is over, for no other is left: see that the agent that had it does not run any more");
                }
                Some(Standing::Doubtful) => {
                    tracing::info!(%agent, endpoint, number, "the backup that was restored does not know whether another agent got this source id of 8 bits after it");
                }
                _ => {}
            }
            self.give(agent, endpoint, number, batch);
        }
        Ok(number)
    }

    fn is_full_for(&self, agent: &MemberName, endpoint: &str) -> bool {
        self.full.contains(endpoint) && self.own(agent, &BTreeSet::from([endpoint])).is_none()
    }

    /// The lowest number that an agent has at all of these endpoints.
    fn own(&self, agent: &MemberName, endpoints: &BTreeSet<&str>) -> Option<NonZeroU8> {
        let at = |endpoint: &str, number: NonZeroU8| {
            let given = self.by_endpoint.get(endpoint).and_then(|all| all.get(&number));
            given.is_some_and(|given| given.agent == *agent)
        };
        let first = self.by_endpoint.get(*endpoints.first()?)?;
        let mut numbers = first.keys().copied();
        numbers.find(|number| endpoints.iter().all(|endpoint| at(endpoint, *number)))
    }

    /// The number that costs least at all of these endpoints; `None`: each is in use at one of them.
    fn least(
        &self,
        agent: &MemberName,
        endpoints: &BTreeSet<&str>,
        use_of: impl Fn(&MemberName, &str) -> Use,
    ) -> Option<NonZeroU8> {
        let (mut own_aside, mut used_aside) = (BTreeSet::new(), BTreeSet::new());
        let aside = |(endpoint, _): &(&String, _)| !endpoints.contains(endpoint.as_str());
        for (number, given) in self.by_endpoint.iter().filter(aside).flat_map(|(_, all)| all) {
            match given.agent == *agent {
                true => own_aside.insert(*number),
                false => used_aside.insert(*number),
            };
        }
        let candidates = (1..=self.most.get()).filter_map(NonZeroU8::new);
        let judged = candidates.filter_map(|number| {
            let standings = endpoints
                .iter()
                .map(|endpoint| self.standing(agent, endpoint, number, &use_of));
            let standings: Vec<Standing> = standings.collect::<Option<_>>()?;
            let strange = standings.iter().filter(|one| **one != Standing::Own).count();
            let aside = (!own_aside.contains(&number), used_aside.contains(&number));
            let worst = standings.into_iter().max()?;
            Some(((worst, strange, aside, self.place(number)), number))
        });
        judged.min().map(|(_, number)| number)
    }

    /// What it costs to give this number to this agent; `None`: another one may use it.
    fn standing(
        &self,
        agent: &MemberName,
        endpoint: &str,
        number: NonZeroU8,
        use_of: impl Fn(&MemberName, &str) -> Use,
    ) -> Option<Standing> {
        let restored_ms = self.restored.map(|restored| restored.at_ms);
        let rested = |since_ms: i64| self.now_ms.saturating_sub(since_ms) >= QUARANTINE_MS;
        let given = self.by_endpoint.get(endpoint).and_then(|all| all.get(&number));
        let Some(given) = given else {
            return match restored_ms {
                Some(at_ms) if !rested(at_ms) => Some(Standing::Doubtful),
                _ => Some(Standing::Free),
            };
        };
        if given.agent == *agent {
            return Some(Standing::Own);
        }
        let left_ms = given.left_ms.unwrap_or(self.now_ms);
        let since_ms = left_ms.max(restored_ms.unwrap_or(left_ms));
        match use_of(&given.agent, endpoint) {
            Use::MayFeed => None,
            Use::Elsewhere | Use::Void if rested(since_ms) => Some(Standing::Rested(since_ms)),
            Use::Elsewhere => Some(Standing::Moved(since_ms)),
            Use::Void => Some(Standing::Resting(since_ms)),
        }
    }

    /// A number's place in the order in which they are given: each restore begins elsewhere, every other one goes backwards.
    fn place(&self, number: NonZeroU8) -> i32 {
        let restores = self.restored.map_or(0, |restored| restored.times);
        // Halves, then quarters: far from where every one before began.
        let [.., pair] = (restores / 2).to_be_bytes();
        let (begin, number) = (i32::from(pair.reverse_bits()), i32::from(number.get()));
        let steps = match restores % 2 {
            0 => number - 1 - begin,
            _ => begin - number,
        };
        steps.rem_euclid(i32::from(u8::MAX))
    }

    fn give(&mut self, agent: &MemberName, endpoint: &str, number: NonZeroU8, batch: &mut Batch) {
        let given = Given {
            agent: agent.clone(),
            left_ms: None,
        };
        let numbers = self.by_endpoint.entry(endpoint.to_owned()).or_default();
        if numbers.get(&number) != Some(&given) {
            batch.put(Table::ShortSourceIds, key(endpoint, number), given.to_row());
            numbers.insert(number, given);
        }
    }

    fn none_left(&self, endpoints: &BTreeSet<&str>) -> NoneLeft {
        let count = |endpoint: &&&str| self.by_endpoint.get(**endpoint).map_or(0, BTreeMap::len);
        let fullest = endpoints.iter().max_by_key(count);
        NoneLeft {
            endpoint: fullest.map(|endpoint| (*endpoint).to_owned()).unwrap_or_default(),
            agents: fullest.map_or(0, |endpoint| count(&endpoint)),
        }
    }

    /// Begins the quarantine of what nobody has use for, and forgets endpoints that are out of use for so long.
    pub(super) fn look(&mut self, use_of: impl Fn(&MemberName, &str) -> Use, batch: &mut Batch) {
        let now_ms = self.now_ms;
        self.full.clear();
        let endpoints: Vec<String> = self.by_endpoint.keys().cloned().collect();
        for endpoint in endpoints {
            let Entry::Occupied(mut entry) = self.by_endpoint.entry(endpoint) else {
                continue;
            };
            let endpoint = entry.key().clone();
            let mut in_use = false;
            for (number, given) in entry.get_mut() {
                let idle = use_of(&given.agent, &endpoint) != Use::MayFeed;
                if idle && given.left_ms.is_none() {
                    given.left_ms = Some(now_ms);
                    batch.put(Table::ShortSourceIds, key(&endpoint, *number), given.to_row());
                }
                let rested = |since_ms: i64| now_ms.saturating_sub(since_ms) >= QUARANTINE_MS;
                in_use |= !idle || !given.left_ms.is_some_and(rested);
            }
            if !in_use {
                for number in entry.remove().into_keys() {
                    batch.remove(Table::ShortSourceIds, key(&endpoint, number));
                }
            }
        }
    }
}

impl Given {
    fn to_row(&self) -> Vec<u8> {
        let mut row = self.agent.as_str().as_bytes().to_vec();
        if let Some(left_ms) = self.left_ms {
            row.push(0);
            row.extend_from_slice(&left_ms.to_be_bytes());
        }
        row
    }
}

fn key(endpoint: &str, number: NonZeroU8) -> Vec<u8> {
    [endpoint.as_bytes(), &[0, number.get()]].concat()
}
