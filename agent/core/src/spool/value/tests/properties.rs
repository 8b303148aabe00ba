//! What holds for any records and any octets.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::sample::{BOOT, read, values};
use crate::flow::record::{
    Baseline, CollectorSet, Counting, Counts, FlowRecord, Party, Protocol, RecordId, TcpFigures, Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs};
use crate::owner::{Container, Names, Owner, Parent, Pod, Process, ProcessKey};
use crate::spool::value::parts::{CONFIDENCES, REASONS, RUNTIMES, STATES};
use crate::spool::value::{
    Builder, CHECKSUM, HEADER_OCTETS, Pushed, VALUE_OCTETS_MAX, checksum, decode, header,
};
use crate::time::{KernelTime, WallTime};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn records_come_back_in_values_of_eight_kib(records in records()) {
        let values = values(&mut Builder::default(), &records);
        for value in &values {
            prop_assert!(value.octets.len() <= VALUE_OCTETS_MAX);
        }
        for pair in values.windows(2) {
            prop_assert_eq!(pair[0].last() + 1, pair[1].first);
        }
        prop_assert_eq!(read(&values), records);
    }

    /// Lines that do not compress, of any length: a value stays a value, and a record is added or refused for good.
    #[test]
    fn no_command_line_makes_a_value_too_long(
        mut records in records(),
        lines in vec((0..12_000_usize, any::<u64>()), 1..20),
    ) {
        for (record, &(length, seed)) in records.iter_mut().zip(lines.iter().cycle()) {
            let mut random = fastrand::Rng::with_seed(seed);
            record.initiator.owner.names = Some(Arc::new(Names {
                command_line: Some((0..length).map(|_| random.alphanumeric()).collect()),
                ..Names::default()
            }));
        }
        let (mut builder, mut next, mut added, mut back) = (Builder::default(), 1, Vec::new(), Vec::new());
        let mut seal = |builder: &mut Builder| {
            let value = builder.seal(next).expect("not empty");
            assert!(value.octets.len() <= VALUE_OCTETS_MAX);
            next = value.last() + 1;
            back.extend(decode(&value.octets, Some(value.first)).expect("a value").1);
        };
        for record in records {
            let mut pushed = builder.push(&record);
            while pushed == Pushed::Full {
                seal(&mut builder);
                pushed = builder.push(&record);
            }
            if pushed == Pushed::Added {
                added.push(record);
            }
        }
        while !builder.is_empty() {
            seal(&mut builder);
        }
        prop_assert!(back == added);
    }

    #[test]
    fn any_octets_are_read_without_panic(octets in vec(any::<u8>(), 0..300)) {
        prop_assert!(header(&octets).is_err());
        prop_assert!(decode(&octets, None).is_err());
    }

    /// Octets that the checksum does not protect: the body is any, and the header tells any counts.
    #[test]
    fn any_body_under_a_good_checksum_is_read_without_panic(
        records in records(),
        counts in vec(any::<u8>(), 8),
        keep_counts in any::<bool>(),
        codec in 0..3_u8,
        body in option::of(vec(any::<u8>(), 0..2000)),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let values = values(&mut Builder::default(), &records);
        let mut octets = values[0].octets.to_vec();
        if !keep_counts {
            octets[16..24].copy_from_slice(&counts);
            octets[3] = codec;
        }
        if let Some(body) = body {
            octets.truncate(HEADER_OCTETS);
            octets.extend(body);
        }
        for (at, octet) in changes {
            if octets.len() > HEADER_OCTETS {
                let at = HEADER_OCTETS + at.index(octets.len() - HEADER_OCTETS);
                octets[at] = octet;
            }
        }
        mend(&mut octets);
        if let Ok((header, records)) = decode(&octets, None) {
            prop_assert_eq!(header.records as usize, records.len());
        }
    }

    #[test]
    fn each_flipped_octet_is_detected(records in records(), flip in 1..=u8::MAX) {
        let values = values(&mut Builder::default(), &records);
        let mut octets = values[0].octets.to_vec();
        for at in 0..octets.len() {
            octets[at] ^= flip;
            prop_assert!(decode(&octets, None).is_err(), "octet {}", at);
            octets[at] ^= flip;
        }
    }
}

/// Makes the checksum good again.
pub(super) fn mend(octets: &mut [u8]) {
    let checksum = checksum(octets);
    octets[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
}

/// Some records of few owners, the same names at more than one address.
fn records() -> impl Strategy<Value = Vec<FlowRecord>> {
    vec(owner(), 1..6).prop_flat_map(|owners| vec(record(owners), 1..60))
}

fn record(owners: Vec<Owner>) -> impl Strategy<Value = FlowRecord> {
    let party = move || {
        (address(), any::<u16>(), select(owners.clone()), any::<bool>()).prop_map(
            |(address, port, mut owner, own_names)| {
                if own_names {
                    owner.names = owner.names.map(|names| Arc::new((*names).clone()));
                }
                Party {
                    endpoint: Endpoint { address, port },
                    owner,
                }
            },
        )
    };
    let id = (number(), number(), number()).prop_map(|(cookie, stream, part)| RecordId {
        boot: BOOT,
        cookie: Cookie(cookie),
        stream,
        part: u32::try_from(part).unwrap_or(1),
    });
    (
        (id, any::<[bool; 7]>(), party(), party(), any::<u32>()),
        (traffic(), traffic(), number(), number(), number()),
        (
            option::of(tcp()),
            select(&REASONS[..]),
            number(),
            option::of(baseline()),
        ),
    )
        .prop_map(
            |((id, bits, initiator, responder, netns), (delta, total, start, delta_start, end), last)| {
                let (tcp, reason, held, baseline) = last;
                FlowRecord {
                    id,
                    first: bits[0],
                    protocol: if bits[1] { Protocol::Udp } else { Protocol::Tcp },
                    initiator,
                    responder,
                    initiator_seen: bits[2],
                    backfilled: bits[3],
                    netns: NetNs(netns),
                    counting: if bits[4] { Counting::Total } else { Counting::Delta },
                    delta,
                    total: if bits[5] { delta } else { total },
                    start: WallTime(start),
                    delta_start: WallTime(if bits[6] { start } else { delta_start }),
                    end: WallTime(end),
                    tcp,
                    reason,
                    held_from: CollectorSet::from_bits(held),
                    baseline: baseline.map(Box::new),
                }
            },
        )
}

fn baseline() -> impl Strategy<Value = Baseline> {
    (traffic(), any::<u32>(), any::<u32>(), option::of(any::<bool>())).prop_map(
        |(base, retransmits, syns_again, syn_forward)| Baseline {
            base,
            retransmits,
            syns_again,
            syn_forward,
        },
    )
}

/// Small ones, large ones, and the ends of what there is.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300_u64, any::<u64>(), Just(u64::MAX), Just(1 << 63)]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let counts = || {
        (number(), number(), number()).prop_map(|(octets, packets, payload)| Counts {
            octets,
            packets,
            payload,
        })
    };
    (counts(), counts()).prop_map(|(forward, backward)| Traffic { forward, backward })
}

fn tcp() -> impl Strategy<Value = TcpFigures> {
    let figures = any::<[Option<u32>; 4]>();
    (figures, any::<[u32; 2]>(), any::<[u8; 2]>(), select(&STATES[..])).prop_map(
        |(figures, retransmits, flags, state)| TcpFigures {
            handshake_us: figures[0],
            rtt_us: figures[1],
            rtt_variance_us: figures[2],
            rtt_min_us: figures[3],
            retransmits_forward: retransmits[0],
            retransmits_backward: retransmits[1],
            flags_forward: flags[0],
            flags_backward: flags[1],
            state,
        },
    )
}

fn owner() -> impl Strategy<Value = Owner> {
    let process = (any::<[u32; 5]>(), number(), number(), ".{0,15}").prop_map(
        |([pid, parent_pid, uid, gid, _], start, cgroup_id, comm)| Process {
            key: ProcessKey {
                pid,
                start: KernelTime(start),
            },
            parent_pid,
            uid,
            gid,
            cgroup_id,
            comm: comm.into(),
        },
    );
    let names = option::of(names().prop_map(Arc::new));
    (select(&CONFIDENCES[..]), option::of(process), names).prop_map(|(confidence, process, names)| Owner {
        confidence,
        process,
        names,
    })
}

fn names() -> impl Strategy<Value = Names> {
    let text = || option::of(".{0,40}");
    let parent =
        (any::<u32>(), ".{0,40}", any::<Option<u32>>(), text()).prop_map(|(pid, executable, uid, user)| {
            Parent {
                pid,
                executable,
                uid,
                user,
            }
        });
    let pod = (".{0,40}", ".{0,40}").prop_map(|(namespace, name)| Pod { namespace, name });
    let container = ("[0-9a-f]{64}", select(&RUNTIMES[..]), text(), option::of(pod)).prop_map(
        |(id, runtime, name, pod)| Container {
            id,
            runtime,
            name,
            pod,
        },
    );
    let ends = (option::of(parent), option::of(container), text());
    (text(), text(), text(), text(), ends).prop_map(
        |(executable, command_line, user, group, (parent, container, unit))| Names {
            executable,
            command_line,
            user,
            group,
            parent,
            container,
            unit,
        },
    )
}
