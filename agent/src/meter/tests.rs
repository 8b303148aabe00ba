use flowtilla_abi as abi;
use flowtilla_agent_core::enrich::NamingOptions;
use flowtilla_agent_core::flow::record::BootId;
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
        lookups: Beside::start(Lookups::open().expect("/proc")).expect("a thread"),
        cgroup_root: PathBuf::new(),
        view: Some(view),
        status: watch::Sender::new(AgentStatus::default()),
        listening: watch::Sender::new(None),
        capture: None,
        spooling: Some(Spooling::new(Arc::new(spool), Ledger::default())),
        state: Turns::default(),
    };
    (meter, records, (commands, directory))
}

/// An open connection of a process of its own, which /proc does not know.
fn open(cookie: u64) -> observe::Observation {
    let mut entry = abi::TcpEntry::new_zeroed();
    let at = clock::kernel_now().0;
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
    observe::tcp(cookie, at, TcpSight::Snap, &entry)
}
