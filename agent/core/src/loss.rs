//! Every place where something may be lost has a name here, and the laws that keep count.
//!
//! Law 1, kernel to table: `observed = reported + held + Σ dropped`, in IP octets and packets.
//! Law 2, table to collector: `made = taken + waiting + evicted + Σ dropped(DropPoint)`, in records, per collector.
//! Law 3, in between, when a policy leaves flows out: `records of the table = made + waiting + filtered + sampled out`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::IntoDeserializer as _;
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};

use crate::flow::record::{FlowRecord, Traffic};

/// A place where something may be lost. Printed with its name and its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum DropPoint {
    /// Sockets that found the kernel's socket map full.
    SocketMapFull,
    /// Kernel events that found the flow ring full. Ended sockets wait in the map; only hints are lost.
    FlowRingFull,
    /// Exec, fork and cgroup events that found the name ring full: names come from /proc, or not at all.
    NameRingFull,
    /// Datagrams whose peer found the kernel's peer map full.
    PeerMapFull,
    /// Datagrams of sockets the kernel side does not know.
    UnknownSocket,
    /// UDP packets whose header could not be read in the kernel.
    PacketUnreadable,
    /// Datagrams whose sender has port 0: nobody can answer them, and no flow has them.
    NoSourcePort,
    /// Runs of a kernel program that the kernel skipped (recursion).
    ProgramSkipped,
    /// Events that could not be decoded.
    DecodeFailed,
    /// Records that the disk did not take, and that memory could not hold until it did.
    SpoolUnwritable,
    /// Records of a part of the spool that cannot be read back: torn, damaged, of another version, or never synced.
    SpoolDamaged,
    /// Records that were at risk when a collector's process ended: sent, not known to be read.
    CollectorRestarted,
    /// Records no longer than one message can carry.
    RecordTooLarge,
    /// Records left in a spool that ended with the agent, when the grace period was over.
    ShutdownGrace,
    /// Records for a screen or pipe that did not keep up.
    ViewOverflow,
    /// Records that a policy keeps from this collector (loopback): wanted, but counted.
    Withheld,
    /// Records of flows that the agent at the other end tells this collector: it is counted once. No loss.
    ReportedByPeer,
}

impl DropPoint {
    /// All of them, in the order in which data pass them.
    pub const ALL: [Self; 17] = [
        Self::SocketMapFull,
        Self::FlowRingFull,
        Self::NameRingFull,
        Self::PeerMapFull,
        Self::UnknownSocket,
        Self::PacketUnreadable,
        Self::NoSourcePort,
        Self::ProgramSkipped,
        Self::DecodeFailed,
        Self::SpoolUnwritable,
        Self::SpoolDamaged,
        Self::CollectorRestarted,
        Self::RecordTooLarge,
        Self::ShutdownGrace,
        Self::ViewOverflow,
        Self::Withheld,
        Self::ReportedByPeer,
    ];

    /// Whether what is counted here was not lost, but left out because it is wanted so.
    #[must_use]
    pub fn is_wanted(self) -> bool {
        matches!(self, Self::Withheld | Self::ReportedByPeer)
    }

    /// What one unit of the counter is.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::SocketMapFull => "sockets",
            Self::FlowRingFull | Self::NameRingFull | Self::DecodeFailed => "events",
            Self::PeerMapFull | Self::UnknownSocket | Self::PacketUnreadable | Self::NoSourcePort => {
                "datagrams"
            }
            Self::ProgramSkipped => "runs",
            Self::SpoolUnwritable
            | Self::SpoolDamaged
            | Self::CollectorRestarted
            | Self::RecordTooLarge
            | Self::ShutdownGrace
            | Self::ViewOverflow
            | Self::Withheld
            | Self::ReportedByPeer => "records",
        }
    }
}

impl fmt::Display for DropPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Losses by place. In text: a map from place to count, without the zeros; places that only a later version knows are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u64>", into = "BTreeMap<DropPoint, u64>")]
pub struct Drops([u64; DropPoint::ALL.len()]);

impl Drops {
    /// Counts `n` more at `point`.
    pub fn add(&mut self, point: DropPoint, n: u64) {
        self.0[point as usize] = self.0[point as usize].saturating_add(n);
    }

    /// Sets a counter that someone else keeps, such as the kernel.
    pub fn set(&mut self, point: DropPoint, total: u64) {
        self.0[point as usize] = total;
    }

    /// The counter of `point`.
    #[must_use]
    pub fn at(&self, point: DropPoint) -> u64 {
        self.0[point as usize]
    }

    /// Places where something was lost.
    pub fn lossy(&self) -> impl Iterator<Item = (DropPoint, u64)> + '_ {
        DropPoint::ALL
            .into_iter()
            .map(|point| (point, self.at(point)))
            .filter(|&(_, n)| n > 0)
    }
}

impl From<BTreeMap<String, u64>> for Drops {
    fn from(map: BTreeMap<String, u64>) -> Self {
        let mut drops = Self::default();
        for (name, n) in map {
            let name: StrDeserializer<'_, serde::de::value::Error> = name.as_str().into_deserializer();
            if let Ok(point) = DropPoint::deserialize(name) {
                drops.set(point, n);
            }
        }
        drops
    }
}

impl From<Drops> for BTreeMap<DropPoint, u64> {
    fn from(drops: Drops) -> Self {
        drops.lossy().collect()
    }
}

/// Law 1: what the kernel side saw and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelLaw {
    /// IP octets, both directions, by which the kernel's counters grew as the table saw them.
    pub observed_octets: u64,
    /// Packets likewise.
    pub observed_packets: u64,
    /// IP octets in records.
    pub reported_octets: u64,
    /// Packets in records.
    pub reported_packets: u64,
    /// IP octets in the table, not yet in a record.
    pub held_octets: u64,
    /// Packets likewise.
    pub held_packets: u64,
    /// IP octets that a join of two sockets of one connection left out: the twin's copy of the same octets.
    pub joined_octets: u64,
    /// Packets likewise.
    pub joined_packets: u64,
}

impl KernelLaw {
    /// Whether nothing is missing.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.observed_octets == self.reported_octets + self.held_octets + self.joined_octets
            && self.observed_packets == self.reported_packets + self.held_packets + self.joined_packets
    }
}

/// Records that a policy leaves out, and what was in them since the flow's record before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Aside {
    /// Records.
    pub records: u64,
    /// IP octets, both directions.
    pub octets: u64,
    /// Packets, both directions.
    pub packets: u64,
}

impl Aside {
    /// Takes in a record that is left out.
    pub fn add(&mut self, record: &FlowRecord) {
        let Traffic { forward, backward } = record.delta;
        self.plus(&Self {
            records: 1,
            octets: forward.octets.saturating_add(backward.octets),
            packets: forward.packets.saturating_add(backward.packets),
        });
    }

    /// Takes in another sum.
    pub fn plus(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.octets = self.octets.saturating_add(other.octets);
        self.packets = self.packets.saturating_add(other.packets);
    }
}

/// What the kernel side left out by itself, as each socket saw it: what two sockets of this host sent each other is there
/// twice. In no law: the laws begin at what the kernel shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOutSum {
    /// TCP connections that began.
    pub connections: u64,
    /// Packets of TCP connections that ended, and datagrams.
    pub packets: u64,
    /// Their IP octets.
    pub octets: u64,
}

impl LeftOutSum {
    /// Takes in another sum.
    pub fn plus(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.packets = self.packets.saturating_add(other.packets);
        self.octets = self.octets.saturating_add(other.octets);
    }

    /// Whether nothing was left out.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Law 3: what became of the records that the table made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordLaw {
    /// Records that the table made.
    pub records: u64,
    /// Records that were handed on, to the spool and to the view.
    pub made: u64,
    /// Records that are on their way, such as those that wait for names.
    pub waiting: u64,
    /// What the policy's rules left out.
    pub filtered: Aside,
    /// What sampling left out.
    pub sampled_out: Aside,
}

impl RecordLaw {
    /// `records - (made + waiting + filtered + sampled out)`: 0 when the law holds.
    #[must_use]
    pub fn missing(&self) -> i128 {
        i128::from(self.records)
            - i128::from(self.made)
            - i128::from(self.waiting)
            - i128::from(self.filtered.records)
            - i128::from(self.sampled_out.records)
    }

    /// Whether a policy left anything out.
    #[must_use]
    pub fn leaves_out(&self) -> bool {
        self.filtered.records > 0 || self.sampled_out.records > 0
    }
}

/// Law 2 for one collector, in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectorLaw {
    /// Records offered to this collector.
    pub made: u64,
    /// Records the collector's process is known to have.
    pub taken: u64,
    /// Records queued, or sent and not yet acknowledged.
    pub waiting: u64,
    /// Records the bound of the spool pushed out.
    pub evicted: u64,
    /// Records lost, by place.
    pub dropped: Drops,
}

impl CollectorLaw {
    /// `made - (taken + waiting + evicted + Σ dropped)`: 0 when the law holds.
    #[must_use]
    pub fn missing(&self) -> i128 {
        let dropped: u64 = DropPoint::ALL.iter().map(|&point| self.dropped.at(point)).sum();
        i128::from(self.made)
            - i128::from(self.taken)
            - i128::from(self.waiting)
            - i128::from(self.evicted)
            - i128::from(dropped)
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::loss::Dropped;

    use super::*;

    #[test]
    fn what_is_left_out_on_purpose_and_what_are_only_hints_are_the_same_everywhere() {
        for point in DropPoint::ALL {
            let wanted = match point {
                _ if point.is_wanted() => Dropped::OnPurpose,
                DropPoint::FlowRingFull | DropPoint::NameRingFull => Dropped::FoundAgain,
                DropPoint::NoSourcePort => Dropped::NoFlow,
                _ => Dropped::Lost,
            };
            assert_eq!(Dropped::at(&point.to_string()), wanted, "{point}");
        }
        // As a document has it, and one of a later version.
        assert_eq!(Dropped::at("reportedByPeer"), Dropped::OnPurpose);
        assert_eq!(Dropped::at("SomewhereNew"), Dropped::Lost);
    }
}
