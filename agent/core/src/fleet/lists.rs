//! The lists of agents that export to the same collectors, as the controller tells them.
//!
//! In: wire `Members`, parsed here. Out: what is [`Between`] two addresses. Bounded: [`LISTS_MAX`] lists of
//! [`ADDRESSES_MAX`] addresses, and as many again that have left.
//! Invariant: an address that two members claim is in no list.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session;
use foldhash::fast::FixedState;

use super::rule::{Between, Partial};
use crate::time::KernelTime;

/// Most addresses in one list. Source: design section 6: above it the controller keeps no list.
pub const ADDRESSES_MAX: usize = 4096;

/// Most lists: one a collector.
pub const LISTS_MAX: usize = 64;

/// Most agents with which one member is apart. The controller tells 16; beyond that it tells that the member is partial.
const APART_MAX: usize = 64;

/// How long an address that left its list is remembered.
///
/// Its agent may live on, cut off from the controller, and speak for all its flows. Half of it doubles the flows of an
/// agent that is cut off for longer; double it, and flows to a host that has left the fleet are told as totals for longer.
pub const LEFT_REMEMBERED: Duration = Duration::from_secs(600);

/// Why a message about members is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// The list has no name of a collector.
    #[error("collector {0:?} is no name of a collector")]
    Collector(String),
    /// A member has no name of an agent.
    #[error("members[{0}].agent is no name of an agent")]
    Agent(usize),
    /// An address has another length.
    #[error("members[{member}].addresses[{address}] has {octets} octets, not 4 or 16")]
    Address {
        /// Position of the member.
        member: usize,
        /// Position of its address.
        address: usize,
        /// How many.
        octets: usize,
    },
    /// Agents with which a member is apart: too many, or one has no name of an agent.
    #[error("members[{0}].apart has more than {APART_MAX} names, or one that is no name of an agent")]
    Apart(usize),
    /// More than [`ADDRESSES_MAX`].
    #[error("members have more than {ADDRESSES_MAX} addresses")]
    TooMany,
    /// Off, and not empty.
    #[error("members are told of a list that is off")]
    Off,
}

/// A list as it was told: parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Of which collector, or of which several together.
    pub(super) collector: CollectorName,
    pub(super) generation: u64,
    pub(super) off: bool,
    /// All members, those without an address too.
    names: Vec<Arc<MemberName>>,
    pub(super) places: Vec<(IpAddr, Told)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) agent: Arc<MemberName>,
    pub(super) stream: u64,
    pub(super) since: u64,
    pub(super) partial: bool,
    /// Agents with which both ends speak.
    apart: Arc<[MemberName]>,
}

impl Told {
    fn is_apart_from(&self, other: &Self) -> bool {
        self.apart.contains(&*other.agent)
    }
}

impl Members {
    /// Reads what the controller sent. Addresses that mean another host everywhere (loopback, link-local and the like) and
    /// those that two members claim are left out.
    ///
    /// # Errors
    /// Each [`MembersError`]; nothing of it is used then.
    pub fn parse(wire: &session::Members) -> Result<Self, MembersError> {
        let collector = CollectorName::told(&wire.collector)
            .ok_or_else(|| MembersError::Collector(start_of(&wire.collector)))?;
        if wire.off && !wire.members.is_empty() {
            return Err(MembersError::Off);
        }
        let addresses = wire.members.iter().map(|member| member.addresses.len());
        if addresses.fold(0_usize, usize::saturating_add) > ADDRESSES_MAX
            || wire.members.len() > ADDRESSES_MAX
        {
            return Err(MembersError::TooMany);
        }
        let mut names = Vec::with_capacity(wire.members.len());
        let mut places: Vec<(IpAddr, Told)> = Vec::new();
        let mut claimed: HashMap<IpAddr, usize, FixedState> = HashMap::default();
        let mut twice: HashSet<IpAddr, FixedState> = HashSet::default();
        for (n, member) in wire.members.iter().enumerate() {
            let agent = MemberName::parse(&member.agent).map_err(|_| MembersError::Agent(n))?;
            if member.apart.len() > APART_MAX {
                return Err(MembersError::Apart(n));
            }
            let apart = member.apart.iter().map(|name| MemberName::parse(name));
            let apart = apart.collect::<Result<Arc<[_]>, _>>();
            let told = Told {
                agent: Arc::new(agent),
                stream: member.stream,
                since: member.since,
                partial: member.partial,
                apart: apart.map_err(|_| MembersError::Apart(n))?,
            };
            names.push(Arc::clone(&told.agent));
            for (m, octets) in member.addresses.iter().enumerate() {
                let address = address(octets).ok_or(MembersError::Address {
                    member: n,
                    address: m,
                    octets: octets.len(),
                })?;
                if !is_shared(address) {
                    continue;
                }
                match claimed.insert(address, n) {
                    None => places.push((address, told.clone())),
                    Some(other) if other == n => {}
                    Some(_) => drop(twice.insert(address)),
                }
            }
        }
        places.retain(|(address, _)| !twice.contains(address));
        Ok(Self {
            collector,
            generation: wire.generation,
            off: wire.off,
            names,
            places,
        })
    }

    /// Whether an agent is to decide by this list. One in which it does not stand was made before the others know of it.
    pub(super) fn is_for(&self, own: &MemberName) -> bool {
        self.off || self.names.iter().any(|name| **name == *own)
    }

    /// The collector, or several of which one is fed, that the list is of.
    #[must_use]
    pub fn collector(&self) -> &CollectorName {
        &self.collector
    }
}

/// Reads 4 or 16 octets; what IPv6 writes of an IPv4 address is that.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(octets).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

/// Whether an address means the same host everywhere in the fleet.
pub(super) fn is_shared(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

fn start_of(text: &str) -> String {
    text.chars().take(64).collect()
}

/// One address in a list.
#[derive(Clone, Debug)]
struct Place {
    told: Told,
    changed: KernelTime,
    /// It is in the list no more.
    left: bool,
}

/// One list.
#[derive(Debug, Default)]
struct List {
    generation: u64,
    /// Told on the stream that is open.
    current: bool,
    places: HashMap<IpAddr, Place, FixedState>,
}

/// All lists.
#[derive(Debug, Default)]
pub(super) struct Lists {
    by_collector: BTreeMap<CollectorName, List>,
}

/// The ends of a flow, as one list has them.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) between: Between,
    /// The agent at the far end.
    pub(super) peer: Arc<MemberName>,
}

impl Lists {
    /// A stream is open: lists are told anew.
    pub(super) fn handle_connected(&mut self) {
        for list in self.by_collector.values_mut() {
            list.current = false;
            list.generation = 0;
        }
    }

    /// The stream is over. Until lists are told anew, everybody in them may speak.
    pub(super) fn handle_lost(&mut self, now: KernelTime) {
        for list in self.by_collector.values_mut().filter(|list| list.current) {
            list.current = false;
            for place in list.places.values_mut() {
                place.changed = now;
            }
        }
    }

    /// Whether this was news.
    pub(super) fn handle_members(&mut self, members: Members, now: KernelTime) -> bool {
        if self.is_full() && !self.by_collector.contains_key(&members.collector) {
            return false;
        }
        let list = self.by_collector.entry(members.collector).or_default();
        if list.current && members.generation <= list.generation {
            return false;
        }
        // What happened while no stream was open is not known: the one that was away may have missed it.
        let anew = !list.current;
        (list.current, list.generation) = (true, members.generation);
        let mut before = std::mem::take(&mut list.places);
        for (address, told) in members.places {
            let same = before
                .remove(&address)
                .filter(|held| !anew && !held.left && held.told == told);
            let changed = same.map_or(now, |held| held.changed);
            let place = Place {
                told,
                changed,
                left: false,
            };
            list.places.insert(address, place);
        }
        let mut left: Vec<_> = before
            .into_iter()
            .map(|(address, mut place)| {
                if !place.left {
                    (place.left, place.changed) = (true, now);
                }
                (address, place)
            })
            .filter(|(_, place)| now.since(place.changed) < LEFT_REMEMBERED)
            .collect();
        left.sort_by_key(|(_, place)| std::cmp::Reverse(place.changed));
        left.truncate(ADDRESSES_MAX);
        list.places.extend(left);
        true
    }

    pub(super) fn is_full(&self) -> bool {
        self.by_collector.len() >= LISTS_MAX
    }

    /// Forgets the lists of other collectors than these.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&CollectorName) -> bool) {
        self.by_collector.retain(|name, _| keep(name));
    }

    /// Whether the list of this collector was ever told.
    pub(super) fn is_told(&self, collector: &CollectorName) -> bool {
        self.by_collector.contains_key(collector)
    }

    /// What the list of `collector` says of the flows between two addresses; `None`: not both are in it, or they are of one
    /// agent.
    pub(super) fn between(
        &self,
        collector: &CollectorName,
        own: &MemberName,
        near: IpAddr,
        far: IpAddr,
        now: KernelTime,
    ) -> Option<Known> {
        let list = self.by_collector.get(collector)?;
        let remembered =
            |place: &&Place| !place.left || !list.current || now.since(place.changed) < LEFT_REMEMBERED;
        let near = list.places.get(&near.to_canonical()).filter(remembered)?;
        let far = list.places.get(&far.to_canonical()).filter(remembered)?;
        if *near.told.agent != *own || *far.told.agent == *own {
            return None;
        }
        let apart = near.told.is_apart_from(&far.told) || far.told.is_apart_from(&near.told);
        let unsure = !list.current || apart;
        let (near_out, far_out) = (
            near.told.partial || near.left || unsure,
            far.told.partial || far.left || unsure,
        );
        let partial = match (near_out, far_out) {
            (false, false) => Partial::Neither,
            (false, true) => Partial::Far,
            (true, false) => Partial::Near,
            (true, true) => Partial::Both,
        };
        Some(Known {
            between: Between {
                changed: near.changed.max(far.changed),
                partial,
            },
            peer: Arc::clone(&far.told.agent),
        })
    }

    /// Names of all that any list has, and of those that have left it and are remembered.
    pub(super) fn names(&self) -> HashSet<&MemberName, FixedState> {
        let places = self.by_collector.values().flat_map(|list| list.places.values());
        places.map(|place| &*place.told.agent).collect()
    }

    /// Whether this is the address of a listed agent.
    pub(super) fn is_listed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.by_collector
            .values()
            .any(|list| list.places.get(&address).is_some_and(|place| !place.left))
    }
}
