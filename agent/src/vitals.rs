//! How the agent does, in the words of the API: what its heartbeat tells.
//!
//! In: the agent's status, what attached, and what the kernel says of this process. Decides nothing.

use flowtilla_agent_core::loss::{Aside, Drops};
use flowtilla_agent_core::time::KernelTime;
use flowtilla_proto::wire::session as wire;
use prost::Message as _;

use crate::clock;
use crate::cost;
use crate::spool::SpoolState;
use crate::status::{AgentStatus, AttachReport, CollectorState, CollectorStatus, PeerStatus};

/// Most peers whose sums a heartbeat tells: as many as the controller keeps.
///
/// Half of it leaves out peers of a busy host; double it, and they find no room in the message.
const PEERS_TOLD_MAX: usize = 1_024;
/// Most octets of them in a heartbeat.
///
/// Half of what the controller takes in one message: the rest of a heartbeat is some kibibytes. Half of it leaves out peers of a busy
/// host; double it, and the heartbeat ends the stream.
const PEERS_OCTETS_MAX: usize = 64 << 10;
/// Octets before a peer's sums: the number of the field and their length.
const PEER_HEAD_OCTETS: usize = 4;

/// Health at this moment. `started`: when the agent did.
#[must_use]
pub(crate) fn health(
    status: &AgentStatus,
    attached: Option<&AttachReport>,
    started: KernelTime,
    now: KernelTime,
) -> wire::Health {
    let refused = |report: &AttachReport| {
        let refused = report
            .programs
            .iter()
            .filter(|program| program.refused.is_some())
            .count();
        (report.programs.len() - refused, refused)
    };
    let (programs, programs_refused) = attached.map_or((0, 0), refused);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (peers, peers_left_out) = peers(&status.peers);
    wire::Health {
        uptime_ms: milliseconds(now.since(started)),
        observed_octets: status.kernel_law.observed_octets,
        observed_packets: status.kernel_law.observed_packets,
        drops: drops(&status.drops),
        records: status.records,
        flows: status.flows,
        filtered: Some(aside(&status.record_law.filtered)),
        sampled_out: Some(aside(&status.record_law.sampled_out)),
        over_limits: status.over_limits.clone(),
        peers,
        peers_left_out: count(peers_left_out),
        coverage: Some(wire::Coverage {
            ends: status.coverage.ends,
            with_process: status.coverage.with_process,
            with_names: status.coverage.with_names,
        }),
        cost: Some(wire::Cost {
            cpu_ns: u64::try_from(clock::cpu_time().as_nanos()).unwrap_or(u64::MAX),
            resident_octets: cost::resident_octets().unwrap_or(0),
            programs_ns: status
                .programs_time
                .map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            map_octets: attached.map_or(0, |report| report.map_octets),
        }),
        collectors: status
            .collectors
            .iter()
            .map(|collector| collector_health(collector, status))
            .collect(),
        spool_octets: status.spool.as_ref().map(|spool| spool.octets),
        spool_fault: match status.spool.as_ref().map(|spool| &spool.state) {
            Some(SpoolState::MemoryOnly { why }) => why.clone(),
            Some(SpoolState::Working) | None => String::new(),
        },
        programs: count(programs),
        programs_refused: count(programs_refused),
        capturing: attached.is_some(),
        kernel_left_out: Some(wire::KernelLeftOut {
            connections: status.left_out.sum.connections,
            packets: status.left_out.sum.packets,
            octets: status.left_out.sum.octets,
            cgroups: status.left_out.cgroups,
            beyond: status.left_out.beyond,
        }),
        unnamed_container_decisions: status.unnamed_containers,
    }
}

fn collector_health(collector: &CollectorStatus, status: &AgentStatus) -> wire::CollectorHealth {
    let (state, reason) = match &collector.state {
        CollectorState::Connecting { why } => {
            (wire::CollectorState::Connecting, why.clone().unwrap_or_default())
        }
        CollectorState::AwaitingSubscription => (wire::CollectorState::AwaitingSubscription, String::new()),
        CollectorState::Streaming { acknowledged: true } => (wire::CollectorState::Streaming, String::new()),
        CollectorState::Streaming { acknowledged: false } => (
            wire::CollectorState::Unacknowledged,
            "the collector does not answer PING: what it has is not known".into(),
        ),
        CollectorState::Stalled => (
            wire::CollectorState::Stalled,
            "the collector does not read: records wait".into(),
        ),
    };
    let law = &collector.law;
    wire::CollectorHealth {
        name: collector.name.clone(),
        state: state.into(),
        reason,
        made: law.made,
        taken: law.taken,
        waiting: law.waiting,
        evicted: law.evicted,
        dropped: drops(&law.dropped),
        lag_ms: status.lags.get(&collector.name).copied().map_or(0, milliseconds),
    }
}

/// What turned out, for an ack.
#[must_use]
pub(crate) fn effective(attached: Option<&AttachReport>, collectors: Vec<String>) -> wire::Effective {
    let programs = || attached.iter().flat_map(|report| &report.programs);
    wire::Effective {
        programs: programs()
            .filter(|program| program.refused.is_none())
            .map(|program| program.name.to_owned())
            .collect(),
        refused: programs()
            .filter_map(|program| {
                Some(wire::Refused {
                    program: program.name.to_owned(),
                    reason: program.refused.clone()?,
                    without: program.without.to_owned(),
                })
            })
            .collect(),
        collectors,
    }
}

fn aside(left_out: &Aside) -> wire::Aside {
    wire::Aside {
        records: left_out.records,
        octets: left_out.octets,
        packets: left_out.packets,
    }
}

/// Those with the largest sums, as many as there is room for, and how many others there are.
fn peers(all: &[PeerStatus]) -> (Vec<wire::PeerSums>, usize) {
    let octets = |sums: &PeerStatus| sums.spoken_octets.saturating_add(sums.held_octets);
    let mut largest: Vec<&PeerStatus> = all.iter().collect();
    largest.sort_by_key(|sums| std::cmp::Reverse(octets(sums)));
    let mut room = PEERS_OCTETS_MAX;
    let fit = largest
        .into_iter()
        .take(PEERS_TOLD_MAX)
        .map(peer)
        .take_while(|sums| {
            let left = room.checked_sub(sums.encoded_len() + PEER_HEAD_OCTETS);
            room = left.unwrap_or_default();
            left.is_some()
        });
    let told: Vec<wire::PeerSums> = fit.collect();
    let left_out = all.len() - told.len();
    (told, left_out)
}

fn peer(sums: &PeerStatus) -> wire::PeerSums {
    wire::PeerSums {
        peer: sums.peer.clone(),
        spoken_records: sums.spoken_records,
        spoken_octets: sums.spoken_octets,
        held_records: sums.held_records,
        held_octets: sums.held_octets,
    }
}

fn drops(drops: &Drops) -> Vec<wire::Drop> {
    drops
        .lossy()
        .map(|(point, count)| wire::Drop {
            point: point.to_string(),
            count,
        })
        .collect()
}

fn milliseconds(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use flowtilla_agent_core::loss::{CollectorLaw, DropPoint};

    use super::*;
    use crate::spool::SpoolStatus;
    use crate::status::ProgramStatus;

    #[test]
    fn the_heartbeat_tells_what_the_status_says_and_what_this_process_costs() {
        let mut status = AgentStatus {
            records: 7,
            lags: BTreeMap::from([("one".to_owned(), Duration::from_secs(3))]),
            collectors: vec![CollectorStatus {
                name: "one".into(),
                endpoint: "tcp://a:1".into(),
                state: CollectorState::Connecting {
                    why: Some("refused".into()),
                },
                law: CollectorLaw {
                    made: 5,
                    waiting: 5,
                    ..CollectorLaw::default()
                },
                messages: 0,
                connects: 0,
                members: Vec::new(),
            }],
            ..AgentStatus::default()
        };
        status.drops.add(DropPoint::PeerMapFull, 2);
        status.left_out.cgroups = 4;
        status.left_out.sum.octets = 60;
        status.unnamed_containers = 8;
        status.spool = Some(SpoolStatus {
            state: SpoolState::MemoryOnly {
                why: "the disk is full".into(),
            },
            ..SpoolStatus::default()
        });
        let program = |refused: Option<&str>| ProgramStatus {
            name: "tcp_state",
            hook: "tp_btf/inet_sock_set_state",
            refused: refused.map(str::to_owned),
            without: "TCP",
            mandatory: true,
        };
        let report = AttachReport {
            programs: vec![program(None), program(Some("no BTF"))],
            map_octets: 9,
            ..AttachReport::default()
        };
        let told = health(&status, Some(&report), KernelTime(0), KernelTime(2_000_000));
        assert_eq!((told.uptime_ms, told.records, told.capturing), (2, 7, true));
        assert_eq!((told.programs, told.programs_refused), (1, 1));
        assert_eq!(
            (told.drops[0].point.as_str(), told.drops[0].count),
            ("PeerMapFull", 2)
        );
        let left_out = told.kernel_left_out.expect("what the kernel left out");
        assert_eq!(
            (
                left_out.cgroups,
                left_out.octets,
                told.unnamed_container_decisions
            ),
            (4, 60, 8)
        );
        assert_eq!(told.spool_fault, "the disk is full");
        let collector = &told.collectors[0];
        assert_eq!(
            (collector.reason.as_str(), collector.waiting, collector.lag_ms),
            ("refused", 5, 3000)
        );
        let cost = told.cost.expect("a cost");
        assert!(cost.cpu_ns > 0 && cost.resident_octets > 1 << 20, "{cost:?}");
        assert_eq!((cost.programs_ns, cost.map_octets), (None, 9));
        assert_eq!(told.peers_left_out, 0);
        let without = health(&status, None, KernelTime(0), KernelTime(0));
        assert!(!without.capturing);
        let turned_out = effective(Some(&report), vec!["one".into()]);
        assert_eq!(
            (turned_out.programs.len(), turned_out.refused[0].reason.as_str()),
            (1, "no BTF")
        );
    }

    #[test]
    fn however_many_peers_there_are_a_heartbeat_has_room_for_those_with_most() {
        for name_octets in [8, 40, 63] {
            let peers = (0..4_096_u64).map(|n| PeerStatus {
                peer: format!("{n:0>name_octets$}"),
                spoken_records: u64::MAX,
                spoken_octets: u64::MAX / 2 - n % 100,
                held_records: u64::MAX,
                held_octets: u64::MAX / 2,
            });
            let status = AgentStatus {
                peers: peers.collect(),
                ..AgentStatus::default()
            };
            let told = health(&status, None, KernelTime(0), KernelTime(0));
            let octets = told.encoded_len();
            assert!(octets <= PEERS_OCTETS_MAX + 1_024, "{octets} octets");
            assert!(octets > PEERS_OCTETS_MAX / 2, "{octets} octets");
            assert_eq!(told.peers.len() + told.peers_left_out as usize, 4_096);
            let least = told.peers.iter().map(|sums| sums.spoken_octets).min();
            let left_out = status
                .peers
                .iter()
                .filter(|sums| told.peers.iter().all(|told| told.peer != sums.peer));
            let most = left_out.map(|sums| sums.spoken_octets).max();
            assert!(least >= most, "{least:?} told, {most:?} not");
        }
    }
}
