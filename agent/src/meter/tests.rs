use std::path::PathBuf;

use flowtilla_abi as abi;
use flowtilla_agent_core::enrich::NamingOptions;
use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::loss::Aside;
use flowtilla_agent_core::observe::{self, TcpSight};
use zerocopy::FromZeros as _;

use super::*;
use crate::enrich::Lookups;
use crate::spool::SpoolOptions;

/// More processes than one turn may ask /proc about.
const FLOWS: u64 = 3_000;

#[test]
fn a_stop_hands_on_every_record_with_or_without_names() {
    let (mut meter, mut records, _kept) = meter();
    (1..=FLOWS).for_each(|cookie| meter.table.observe(&open(cookie)));

    meter.detach();

    assert_eq!(count_of(&mut records), FLOWS);
    assert!(meter.table.law().holds());
}

#[test]
fn a_turn_leaves_no_record_that_is_due() {
    let (mut meter, mut records, _kept) = meter();
    let flows = 3 * flowtilla_agent_core::flow::RECORDS_WAITING_MAX as u64;
    (1..=flows).for_each(|cookie| meter.table.observe(&open(cookie)));
    let now = clock::kernel_now().after(Duration::from_secs(5));

    meter.turn(now);
    // Names may be waited for, records in the table may not.
    assert!(meter.table.poll_timeout().is_none_or(|at| at > now));
    meter.turn(now.after(NAME_WAIT));

    assert_eq!(count_of(&mut records), flows);
}

#[test]
fn what_the_rules_leave_out_is_counted_exactly_and_goes_nowhere() {
    let (mut meter, mut records, _kept) = meter();
    meter.obey(Command::Filter(filtering(&["1025-2024"], 1)));
    (1..=FLOWS).for_each(|cookie| meter.table.observe(&grown(cookie, clock::kernel_now(), 100)));

    meter.detach();

    let kept = taken(&mut records);
    let status = meter.status.borrow().clone();
    let law = status.record_law;
    assert_eq!(law.filtered.records, 1_000);
    assert_eq!(
        (law.missing(), law.made, status.records),
        (0, FLOWS - 1_000, FLOWS - 1_000)
    );
    assert_eq!(law.sampled_out, Aside::default());
    assert_eq!(kept.len() as u64, FLOWS - 1_000);
    assert!(kept.iter().all(|record| record.initiator.endpoint.port > 2024));
    let (octets, packets) = sums(&kept);
    assert_eq!(octets + law.filtered.octets, status.kernel_law.reported_octets);
    assert_eq!(packets + law.filtered.packets, status.kernel_law.reported_packets);
    // What was made is what the spool was given.
    let newest = meter.spooling.as_ref().map(Spooling::given);
    assert_eq!(newest, Some(FLOWS - 1_000));
}

#[test]
fn what_is_sampled_out_is_counted_exactly() {
    let (mut meter, mut records, _kept) = meter();
    meter.obey(Command::Filter(filtering(&[], 4)));
    (1..=FLOWS).for_each(|cookie| meter.table.observe(&grown(cookie, clock::kernel_now(), 100)));

    meter.detach();

    let kept = taken(&mut records);
    let status = meter.status.borrow().clone();
    let law = status.record_law;
    assert!((FLOWS / 5..FLOWS / 3).contains(&law.made), "{law:?}");
    assert_eq!((law.missing(), law.filtered), (0, Aside::default()));
    let (octets, packets) = sums(&kept);
    assert_eq!(octets + law.sampled_out.octets, status.kernel_law.reported_octets);
    assert_eq!(
        packets + law.sampled_out.packets,
        status.kernel_law.reported_packets
    );
}

/// A flow that is included later: its octets until then are told as left out, once, and its records begin after them.
#[test]
fn a_filter_that_changes_takes_effect_from_the_next_record_on_and_no_octet_is_told_twice() {
    let (mut meter, mut records, _kept) = meter();
    let began = clock::kernel_now();
    let at = |s| began.after(Duration::from_secs(s));
    let excluded = filtering(&["443"], 1);
    let mut told = Vec::new();
    // Left out, included, left out, included.
    for (span, wanted) in [excluded.clone(), Box::default(), excluded, Box::default()]
        .into_iter()
        .enumerate()
    {
        let span = span as u64;
        meter.obey(Command::Filter(wanted));
        let entry = entry_of(1, at(1), 1_000 * (span + 1));
        meter
            .table
            .observe(&observe::tcp(1, at(15 * span + 1).0, TcpSight::Snap, &entry));
        meter.turn(at(15 * span + 12));
        meter.turn(at(15 * span + 14)); // Names are not waited for any more.
        let kept = taken(&mut records);
        assert_eq!(kept.is_empty(), span.is_multiple_of(2), "{span}: {kept:?}");
        told.extend(kept);
    }
    meter.tell();

    let status = meter.status.borrow().clone();
    let filtered = status.record_law.filtered;
    let (octets, packets) = sums(&told);
    assert!(octets > 2_000 && filtered.octets > 2_000, "{octets} {filtered:?}");
    assert_eq!(octets + filtered.octets, status.kernel_law.reported_octets);
    assert_eq!(packets + filtered.packets, status.kernel_law.reported_packets);
    let last = told.last().expect("it was included");
    let total = last.total.forward.octets + last.total.backward.octets;
    assert_eq!(
        total, status.kernel_law.reported_octets,
        "the total is the whole flow's"
    );
    let spans: Vec<_> = told
        .windows(2)
        .map(|pair| pair[0].end <= pair[1].delta_start)
        .collect();
    assert!(spans.iter().all(|&apart| apart), "{told:?}");
}

#[test]
fn another_agent_is_answered_and_asked_and_its_records_wait_for_the_list_to_settle() {
    use flowtilla_agent_core::flow::record::CollectorSlot;
    use flowtilla_proto::ids::CollectorName;
    use flowtilla_proto::spiffe::MemberName;
    use flowtilla_proto::wire::session;

    use super::peers::{FleetIn, FleetOut};

    let (mut meter, _records, _kept) = meter();
    let (sender, mut out) = mpsc::channel(16);
    meter.peers = Peers::new(sender, "tower".to_owned());
    let address = |last: u8| {
        let mut octets = vec![0; 16];
        (octets[0], octets[1], octets[15]) = (0x20, 0x01, last);
        octets
    };
    let member = |agent: &str, last| session::Member {
        agent: agent.to_owned(),
        addresses: vec![address(last)],
        partial: false,
        stream: 1,
        since: 1,
        apart: Vec::new(),
    };
    let members = session::Members {
        collector: "main".to_owned(),
        generation: 1,
        members: vec![member("here", 1), member("there", 2)],
        off: false,
    };
    let name = CollectorName::told("main").expect("a name");
    for told in [
        FleetIn::Expect,
        FleetIn::Feed(name, CollectorSlot(0)),
        FleetIn::Connected(MemberName::parse("here").expect("a name")),
        FleetIn::Members(members),
    ] {
        meter.obey(Command::Fleet(Box::new(told)));
    }
    let mut entry = entry_of(7, clock::kernel_now(), 100);
    entry.tuple.local[..2].copy_from_slice(&[0x20, 0x01]);
    entry.tuple.remote[..2].copy_from_slice(&[0x20, 0x01]);
    let now = clock::kernel_now();
    meter
        .table
        .observe(&observe::tcp(7, now.0, TcpSight::Snap, &entry));

    let question = session::Question {
        id: 5,
        address: address(1),
        port: 1031,
        protocol: 6,
        peer_address: address(2),
        peer_port: 443,
        of_flow: false,
    };
    meter.obey(Command::Fleet(Box::new(FleetIn::Question(question))));
    meter.turn(now.after(Duration::from_secs(1)));
    meter.turn(now.after(Duration::from_secs(3)));
    let mut said = Vec::new();
    while let Ok(what) = out.try_recv() {
        said.push(what);
    }
    let pid = said.iter().find_map(|what| match what {
        FleetOut::Answer(answer) if answer.id == 5 => {
            answer.end.as_ref().map(|end| (end.pid, end.host.clone()))
        }
        FleetOut::Answer(_) | FleetOut::Question(_) => None,
    });
    assert_eq!(pid, Some((10_000_007, "tower".to_owned())), "{said:?}");
    let asked = said
        .iter()
        .any(|what| matches!(what, FleetOut::Question(asked) if asked.port == 443));
    assert!(asked, "{said:?}");
    // Its first record is in the spool, and is there once more when the list has settled.
    let given = |meter: &Meter| meter.spooling.as_ref().map(Spooling::given);
    assert_eq!((given(&meter), meter.peers.fleet.held()), (Some(1), 1));
    meter.turn(clock::kernel_now().after(Duration::from_secs(11)));
    assert_eq!((given(&meter) >= Some(2), meter.peers.fleet.held()), (true, 0));
}

fn filtering(exclude_ports: &[&str], one_in: u64) -> Box<Filtering> {
    use flowtilla_proto::{policy::Policy, wire};
    let rule = |port: &&str| wire::FlowRule {
        ports: vec![(*port).to_owned()],
        ..wire::FlowRule::default()
    };
    let policy = Policy::try_from(wire::Policy {
        capture: Some(wire::Capture {
            exclude: exclude_ports.iter().map(rule).collect(),
            sampling: Some(wire::Sampling { one_in: Some(one_in) }),
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    })
    .expect("a sound policy");
    Box::new(Filtering {
        include: policy.capture.include,
        exclude: policy.capture.exclude,
        sampling: policy.capture.sampling,
    })
}

fn taken(records: &mut mpsc::Receiver<Arc<FlowRecord>>) -> Vec<Arc<FlowRecord>> {
    std::iter::from_fn(|| records.try_recv().ok()).collect()
}

/// IP octets and packets of both ways.
fn sums(records: &[Arc<FlowRecord>]) -> (u64, u64) {
    let both = |record: &Arc<FlowRecord>| [record.delta.forward, record.delta.backward];
    let counts: Vec<_> = records.iter().flat_map(both).collect();
    (
        counts.iter().map(|counts| counts.octets).sum(),
        counts.iter().map(|counts| counts.packets).sum(),
    )
}

fn count_of(records: &mut mpsc::Receiver<Arc<FlowRecord>>) -> u64 {
    let mut count = 0;
    while records.try_recv().is_ok() {
        count += 1;
    }
    count
}

/// The last are what must live as long.
type Made = (
    Meter,
    mpsc::Receiver<Arc<FlowRecord>>,
    (Commands, tempfile::TempDir),
);

fn meter() -> Made {
    let directory = tempfile::tempdir().expect("a directory");
    let options = SpoolOptions::in_directory(directory.path().join("spool"));
    let (spool, _) = Spool::open(options).expect("a spool");
    let (commands, orders) = std::sync::mpsc::sync_channel(1);
    let (view, records) = mpsc::channel(65_536);
    let meter = Meter {
        commands: orders,
        table: FlowTable::new(TableOptions::new(BootId([7; 16]))),
        naming: Naming::new(NamingOptions::default()),
        filter: None,
        lookups: Beside::start(Lookups::open().expect("/proc")).expect("a thread"),
        containers: None,
        outside: Outside::new(PathBuf::new(), true),
        cgroup_root: CgroupRoot::default(),
        view: Some(view),
        top: SharedTop::default(),
        status: watch::Sender::new(AgentStatus::default()),
        listening: watch::Sender::new(None),
        capture: None,
        spooling: Some(Spooling::new(Arc::new(spool), Ledger::default())),
        peers: Peers::default(),
        state: Turns::default(),
    };
    (meter, records, (commands, directory))
}

/// An open connection of a process of its own, which /proc does not know.
fn open(cookie: u64) -> observe::Observation {
    grown(cookie, clock::kernel_now(), 0)
}

/// The same, that has sent so many octets by then.
fn grown(cookie: u64, at: KernelTime, octets: u64) -> observe::Observation {
    observe::tcp(cookie, at.0, TcpSight::Snap, &entry_of(cookie, at, octets))
}

fn entry_of(cookie: u64, at: KernelTime, octets: u64) -> abi::TcpEntry {
    let mut entry = abi::TcpEntry::new_zeroed();
    let at = at.0;
    entry.start_ns = at;
    entry.established_ns = at;
    entry.role = abi::tcp_role::ACTIVE;
    entry.owner.kind = abi::owner_kind::EXACT;
    entry.owner.tgid = 10_000_000 + u32::try_from(cookie).expect("a small cookie");
    entry.owner.start_ns = 1;
    entry.tuple.family = 10;
    entry.tuple.local[15] = 1;
    entry.tuple.remote[15] = 2;
    entry.tuple.local_port = 1024 + u16::try_from(cookie).expect("a small cookie");
    entry.tuple.remote_port = 443;
    entry.counters.state = 1;
    entry.counters.bytes_sent = octets;
    entry.counters.segs_out = u32::try_from(octets / 100).expect("some packets");
    entry
}
