//! What an agent keeps so that the next one, in the same run of the kernel, goes on: what was reported of each TCP socket.
//!
//! Form, version 1: the version (one octet), [`Kept`] in postcard's form, CRC-32C of both (4 octets, little-endian).
//! UDP is not in it: the kernel side counts datagrams anew with each agent.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::FlowTable;
use super::entry::{Flow, Kind, TcpFacts};
use super::past::PastTcp;
use super::record::{BootId, Traffic};
use crate::observe::{Cookie, TcpRole, Tuple};

/// Version of the form.
const VERSION: u8 = 1;
/// Most sockets in a checkpoint; the rest begins anew after a restart. Four times the default of a full table and what
/// left it; double it, and a checkpoint may take 40 MB.
pub(super) const SOCKETS_MAX: usize = 262_144;
/// Octets that one socket takes at most: a checkpoint that is longer than all may be is not read.
const SOCKET_OCTETS_MAX: usize = 256;
const CHECKSUM_OCTETS: usize = 4;

/// What was reported of each TCP socket that may live on, in all records made so far.
///
/// Records are made in one order and handed out in it: a checkpoint is true once the last of its [`Checkpoint::records`]
/// is kept as well, and not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub(super) boot: BootId,
    pub(super) records: u64,
    pub(super) sockets: Vec<Socket>,
}

/// Why octets are no checkpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CheckpointError {
    /// It ends early, or is longer than a checkpoint can be.
    #[error("{octets} octets are no checkpoint")]
    Length {
        /// How many there are.
        octets: usize,
    },
    /// Another agent wrote it.
    #[error("version {found}, this agent reads up to {VERSION}")]
    Version {
        /// Its version.
        found: u8,
    },
    /// An octet changed.
    #[error("checksum {found:#010x}, its end says {expected:#010x}")]
    Checksum {
        /// As computed.
        found: u32,
        /// As written.
        expected: u32,
    },
    /// It is not what this version writes.
    #[error("content")]
    Content(#[source] postcard::Error),
}

#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    boot: [u8; 16],
    records: u64,
    #[serde(borrow)]
    sockets: std::borrow::Cow<'a, [Socket]>,
}

/// One TCP socket. Counters are those of its ends `a` and `b`: `forward` from `a`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Socket {
    pub(super) cookie: u64,
    pub(super) stream: u64,
    /// Records made; 0: none. When the flow ended, no number is higher.
    pub(super) part: u32,
    pub(super) state: State,
    /// Address and port of `a` and `b`.
    pub(super) ends: Option<[End; 2]>,
    pub(super) netns: u32,
    /// Whether `a` is the socket's own end.
    pub(super) local: Option<bool>,
    /// Whether `a` sent the SYN.
    pub(super) syn: Option<bool>,
    /// Whether a record named `a` the initiator.
    pub(super) told: bool,
    pub(super) backfilled: bool,
    /// The kernel's counters, as of the newest record.
    pub(super) reported: Traffic,
    /// The kernel's counters when the flow began.
    pub(super) base: Traffic,
    /// Retransmissions, ever, by `a` and `b`, or [`RETRANSMITS_UNKNOWN`]; the far end's is known when `peer`.
    pub(super) retransmits: [u32; 2],
    pub(super) peer: bool,
    pub(super) syns_again: u32,
    /// Kernel time of the first packet, of the end of what was reported, and of ESTABLISHED (0: not known).
    pub(super) start: u64,
    pub(super) until: u64,
    pub(super) established: u64,
}

/// What no socket ever reaches.
pub(super) const RETRANSMITS_UNKNOWN: u32 = u32::MAX;

pub(super) type End = (IpAddr, u16);

/// What becomes of a socket's flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// It goes on.
    Open,
    /// Another socket's flow has the same octets.
    Silent,
    /// It ended before its socket did: the socket's next flow begins where it ended.
    Left,
    /// Likewise, and another socket's flow had the same octets.
    LeftSilent,
}

impl Checkpoint {
    /// Records that the table had made since it was: the checkpoint has everything in them, and nothing else.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// How many sockets are in it.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// What is kept.
    #[must_use]
    pub fn to_octets(&self) -> Vec<u8> {
        let kept = Kept {
            boot: self.boot.0,
            records: self.records,
            sockets: self.sockets.as_slice().into(),
        };
        let mut octets =
            postcard::to_extend(&kept, vec![VERSION]).expect("memory has room, and nothing else can fail");
        let checksum = crc32c::crc32c(&octets);
        octets.extend(checksum.to_le_bytes());
        octets
    }

    /// What was kept.
    ///
    /// # Errors
    /// Every variant of [`CheckpointError`].
    pub fn from_octets(octets: &[u8]) -> Result<Self, CheckpointError> {
        let length = CheckpointError::Length { octets: octets.len() };
        if octets.len() > SOCKETS_MAX * SOCKET_OCTETS_MAX {
            return Err(length);
        }
        let Some((content, checksum)) = octets.split_last_chunk::<CHECKSUM_OCTETS>() else {
            return Err(length);
        };
        let Some((&version, kept)) = content.split_first() else {
            return Err(length);
        };
        if version != VERSION {
            return Err(CheckpointError::Version { found: version });
        }
        let (found, expected) = (crc32c::crc32c(content), u32::from_le_bytes(*checksum));
        if found != expected {
            return Err(CheckpointError::Checksum { found, expected });
        }
        let kept: Kept<'_> = postcard::from_bytes(kept).map_err(CheckpointError::Content)?;
        let mut sockets = kept.sockets.into_owned();
        sockets.truncate(SOCKETS_MAX);
        Ok(Self {
            boot: BootId(kept.boot),
            records: kept.records,
            sockets,
        })
    }
}

impl FlowTable {
    /// What the next agent needs to go on. Takes 0.2 µs a flow; see [`Checkpoint`] for when it may be kept.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let open = self.flows.iter().filter_map(|(_, flow)| match flow.kind {
            Kind::Tcp(facts) => Some(Socket::of_flow(flow, &facts)),
            Kind::Udp(_) => None,
        });
        let left = self
            .past
            .left()
            .map(|(cookie, past)| Socket::of_past(cookie, past));
        Checkpoint {
            boot: self.options.boot,
            records: self.made,
            sockets: open
                .chain(left)
                .chain(self.restore.unseen())
                .take(SOCKETS_MAX)
                .collect(),
        }
    }
}

impl Socket {
    fn of_flow(flow: &Flow, facts: &TcpFacts) -> Self {
        let local = flow.local_initiates.or(flow.initiates()).unwrap_or(true);
        let far = flow.peer.as_ref().map(|peer| peer.retransmits_reported);
        let either = |own, far| if local { [own, far] } else { [far, own] };
        Self {
            cookie: flow.key.cookie.0,
            stream: flow.key.stream,
            part: flow.part,
            state: if flow.is_silent() {
                State::Silent
            } else {
                State::Open
            },
            ends: Some(ends(&flow.tuple, local)),
            netns: flow.tuple.netns.0,
            local: Some(local),
            syn: syn(facts.role, local),
            told: flow.local_initiates.is_some(),
            backfilled: flow.backfilled,
            reported: flow.reported.oriented(local),
            base: flow.base().oriented(local),
            retransmits: either(facts.retransmits_reported, far.unwrap_or(0)),
            peer: far.is_some(),
            syns_again: facts.syns_again,
            start: flow.start.0,
            until: flow.reported_until.0,
            established: facts.established.0,
        }
    }

    fn of_past(cookie: Cookie, past: &PastTcp) -> Self {
        Self {
            cookie: cookie.0,
            stream: past.stream,
            part: u32::MAX,
            state: if past.silent {
                State::LeftSilent
            } else {
                State::Left
            },
            ends: None,
            netns: 0,
            local: Some(true),
            syn: syn(past.role, true),
            told: false,
            backfilled: false,
            reported: past.seen.oriented(true),
            base: Traffic::default(),
            retransmits: [past.retransmits, 0],
            peer: false,
            syns_again: past.syns_again,
            start: past.opened.0,
            until: past.opened.0,
            established: 0,
        }
    }
}

fn syn(role: TcpRole, local: bool) -> Option<bool> {
    match role {
        TcpRole::Active => Some(local),
        TcpRole::Passive => Some(!local),
        TcpRole::Unknown | TcpRole::Listener => None,
    }
}

/// Both ends, `a` being the local one or the other.
pub(super) fn ends(tuple: &Tuple, local: bool) -> [End; 2] {
    let own = (tuple.local.address, tuple.local.port);
    let far = (tuple.remote.address, tuple.remote.port);
    if local { [own, far] } else { [far, own] }
}
