//! A spool that is looked at: what is told is what is there, whatever befell it, and nothing of it changes.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use flowtilla_agent::spool::survey::{
    Damage, DamageCause, Event, SegmentState, SegmentSummary, Survey, SurveyError, Wanted,
};
use flowtilla_agent::spool::{LostCause, Spool, SpoolOptions};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs};
use flowtilla_agent_core::owner::{Owner, Unknown};
use flowtilla_agent_core::spool::value::{Builder, Pushed};
use flowtilla_agent_core::spool::{Cursor, Value};
use flowtilla_agent_core::time::WallTime;

use crate::damage::{files, harm};
use crate::support::{collector, copy, count, open, options, wait, wait_durable};

const SECOND: u64 = 1_000_000_000;

/// Record `number`, which ends in second `number`; what it says does not compress.
fn record(number: u64) -> FlowRecord {
    let mut random = fastrand::Rng::with_seed(number);
    let mut party = || Party {
        endpoint: Endpoint {
            address: IpAddr::from(random.u128(..).to_be_bytes()),
            port: random.u16(..),
        },
        owner: Owner::unknown(Unknown::Remote),
    };
    let (initiator, responder) = (party(), party());
    FlowRecord {
        id: RecordId {
            boot: BootId([1; 16]),
            cookie: Cookie(random.u64(..)),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator,
        responder,
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: Traffic::default(),
        total: Traffic::default(),
        start: WallTime(number * SECOND),
        delta_start: WallTime(number * SECOND),
        end: WallTime(number * SECOND),
        tcp: None,
        reason: EndReason::EndOfFlow,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

/// Values with the records from `first` on.
fn values(first: u64, records: u64) -> Vec<Value> {
    let (mut builder, mut values, mut next) = (Builder::default(), Vec::new(), first);
    let mut seal = |builder: &mut Builder| {
        while let Some(value) = builder.seal(next) {
            next = value.last() + 1;
            values.push(value);
        }
    };
    for number in first..first + records {
        if builder.push(&record(number)) == Pushed::Full {
            seal(&mut builder);
            assert_eq!(builder.push(&record(number)), Pushed::Added);
        }
    }
    seal(&mut builder);
    values
}

fn fill(spool: &Spool, records: u64) {
    for (n, value) in values(spool.newest() + 1, records).into_iter().enumerate() {
        spool.append(value);
        if n % 50 == 49 {
            wait_durable(spool);
        }
    }
    wait_durable(spool);
}

const RECORDS: u64 = 20_000;

/// A spool of several segments that a collector has taken nothing of.
fn filled(directory: &Path, clean: bool) -> SpoolOptions {
    let options = SpoolOptions {
        octets_max: 8 << 20,
        ..options(directory)
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    fill(&spool, RECORDS);
    wait(&spool, "cursor stored", |_| {
        options.directory.join("cursors/one.json").exists()
    });
    if clean {
        assert!(spool.close(Duration::from_secs(30)));
    }
    drop((spool, reader));
    released(&options.directory);
    options
}

/// Waits until nobody uses it: a spool that is dropped ends in the background.
fn released(directory: &Path) {
    let begun = flowtilla_agent::clock::instant();
    loop {
        let survey = Survey::take(directory).unwrap();
        let used = survey
            .segments
            .iter()
            .any(|segment| segment.state != SegmentState::Sealed);
        if survey.writer.is_none() && !used {
            return;
        }
        assert!(begun.elapsed() < crate::support::DEADLINE, "still in use");
        std::thread::yield_now();
    }
}

#[derive(Default)]
struct Told {
    records: Vec<u64>,
    damages: Vec<Damage>,
    closed: Vec<SegmentSummary>,
}

impl Told {
    fn of(survey: &Survey, wanted: &Wanted) -> Self {
        let mut told = Self::default();
        survey
            .walk(wanted, &mut |event| {
                match event {
                    Event::Opening { .. } => {}
                    Event::Value { header, records } => {
                        for (sequence, found) in (header.first..).zip(records) {
                            assert!(found == record(sequence), "record {sequence} is another one");
                            told.records.push(sequence);
                        }
                    }
                    Event::Damage(damage) => told.damages.push(damage),
                    Event::Closed(closed) => told.closed.push(closed),
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        told
    }

    fn all(directory: &Path) -> Self {
        Self::of(&Survey::take(directory).unwrap(), &Wanted::everything(true))
    }

    fn causes(&self) -> Vec<&DamageCause> {
        self.damages.iter().map(|damage| &damage.cause).collect()
    }

    /// Every record from 1 to `last` is told once: there, or missing.
    fn assert_complete(&self, last: u64, what: &str) {
        let mut told: BTreeMap<u64, u64> = self
            .records
            .iter()
            .map(|&sequence| (sequence, sequence))
            .collect();
        assert!(self.records.is_sorted(), "{what}: in order");
        for damage in &self.damages {
            if let Some((first, last)) = damage.range
                && damage.cause != DamageCause::SetAside
            {
                assert_eq!(told.insert(first, last), None, "{what}: {damage:?} is told twice");
            }
        }
        let mut next = 1;
        for (first, last) in told {
            assert_eq!(first, next, "{what}: {:?}", self.damages);
            next = last + 1;
        }
        assert_eq!(next, last + 1, "{what}: {:?}", self.damages);
    }
}

/// Every file with its octets and the time of its last change.
fn fingerprint(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let told = |path: PathBuf| {
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        (path.clone(), (fs::read(path).unwrap(), changed))
    };
    files(directory).into_iter().map(told).collect()
}

#[test]
fn a_whole_spool_is_told_whole_and_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let before = fingerprint(&options.directory);
    // The state's directory does as well as the spool's.
    let survey = Survey::take(directory.path()).unwrap();
    assert_eq!((survey.writer, survey.stopped_uncleanly()), (None, false));
    assert!(survey.segments.len() > 2, "{:?}", survey.segments);
    let told = Told::of(&survey, &Wanted::everything(true));
    assert_eq!(told.records, (1..=RECORDS).collect::<Vec<_>>());
    assert_eq!(told.damages, []);
    let records: u64 = told.closed.iter().map(|closed| closed.records).sum();
    assert_eq!((told.closed.len(), records), (survey.segments.len(), RECORDS));
    let span = told.closed[0].span.unwrap();
    assert_eq!(span.0, WallTime(SECOND));
    assert_eq!(span.1, WallTime(told.closed[0].last.unwrap() * SECOND));
    let accounts = survey.accounts(survey.unsynced().unwrap());
    assert_eq!(accounts.len(), 1);
    assert_eq!(
        (accounts[0].law.made, accounts[0].law.waiting),
        (RECORDS, RECORDS)
    );
    assert_eq!((accounts[0].law.missing(), accounts[0].lost()), (0, 0));
    assert_eq!(fingerprint(&options.directory), before);
}

#[test]
fn only_what_is_wanted_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let survey = Survey::take(&options.directory).unwrap();
    let second = survey.segments[1].first;
    let wanted = Wanted {
        from: second + 5,
        to: second + 10,
        ..Wanted::everything(true)
    };
    let told = Told::of(&survey, &wanted);
    assert_eq!(told.closed.len(), 1, "other segments are not opened");
    assert!(told.records.contains(&(second + 5)) && told.records.contains(&(second + 10)));
    assert!(told.records.len() < 1_000, "values beside it are left out");
    assert!(wanted.has(second + 10, &record(1)) && !wanted.has(second + 11, &record(1)));

    let wanted = Wanted {
        since: WallTime(100 * SECOND),
        until: WallTime(200 * SECOND),
        ..Wanted::everything(true)
    };
    let told = Told::of(&survey, &wanted);
    assert!(told.records.contains(&100) && told.records.contains(&200));
    assert!(told.records.len() < 1_000, "{}", told.records.len());
    assert!(!wanted.has(1, &record(99)) && wanted.has(1, &record(100)) && !wanted.has(1, &record(201)));

    let mut events = 0;
    let end = survey.walk(&Wanted::everything(false), &mut |_| {
        events += 1;
        ControlFlow::Break(())
    });
    assert_eq!(
        (end.is_ok(), events),
        (true, 1),
        "a visitor that ends it is asked no more"
    );
}

#[test]
fn damage_anywhere_is_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let whole = filled(directory.path(), true);
    for seed in 0..count(40, 1_000) {
        let mut random = fastrand::Rng::with_seed(seed);
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("spool");
        copy(&whole.directory, &spool);
        let targets = files(&spool.join("segments"));
        let target = random.usize(0..targets.len());
        let what = format!("seed {seed}: {}", harm(&mut random, &targets[target]));
        let told = Told::all(&spool);
        told.assert_complete(RECORDS, &what);
        let missing = told.records.len() as u64 != RECORDS;
        let told_damage = told.damages.iter().any(Damage::is_damage);
        assert!(told_damage || !missing, "{what}: {:?}", told.damages);
    }
}

#[test]
fn a_truncated_and_a_missing_segment_are_named_with_their_records() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let survey = Survey::take(&options.directory).unwrap();
    let segments = options.directory.join("segments");
    let [first, second, third] = [0, 1, 2].map(|n| survey.segments[n].first);
    let log = segments.join(&survey.segments[0].name).join("db");
    fs::OpenOptions::new()
        .write(true)
        .open(log)
        .unwrap()
        .set_len(100)
        .unwrap();
    fs::remove_file(segments.join(&survey.segments[1].name).join("db")).unwrap();
    let told = Told::all(&options.directory);
    told.assert_complete(RECORDS, "cut");
    let ranges: Vec<_> = told.damages.iter().map(|damage| damage.range).collect();
    assert_eq!(ranges, [Some((first, second - 1)), Some((second, third - 1))]);
    assert!(
        matches!(told.damages[1].cause, DamageCause::Unopened(_)),
        "{:?}",
        told.damages
    );
    assert_eq!(told.records[0], third);
}

#[test]
fn a_damaged_snapshot_costs_no_record_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let conf = options.directory.join("segments/0000000000000001/conf");
    fs::write(&conf, "segment_size: 1048576\nmore\n").unwrap();
    let told = Told::all(&options.directory);
    assert_eq!(told.records.len() as u64, RECORDS);
    assert!(
        matches!(told.causes()[..], [DamageCause::LogAlone(_)]),
        "{:?}",
        told.damages
    );
    assert!(conf.exists(), "it is the copy that goes without it");
}

#[test]
fn a_blob_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let blobs = options.directory.join("segments/0000000000000001/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("7"), "x").unwrap();
    let told = Told::all(&options.directory);
    assert_eq!(told.causes(), [&DamageCause::Blobs(1)]);
}

#[test]
fn what_was_evicted_is_no_damage_and_is_in_the_sum() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        octets_max: 8 << 20,
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    fill(&spool, 500);
    // It took 400 before what follows pushed the oldest out.
    reader.save(Cursor {
        taken: 400,
        law: flowtilla_agent_core::loss::CollectorLaw {
            made: 500,
            taken: 400,
            waiting: 100,
            ..Default::default()
        },
        ..reader.cursor()
    });
    while spool.status().borrow().evicted == 0 {
        fill(&spool, 10_000);
    }
    let newest = spool.newest();
    assert!(spool.close(Duration::from_secs(30)));
    released(&options.directory);
    let survey = Survey::take(&options.directory).unwrap();
    let oldest = survey.oldest().unwrap();
    let account = &survey.accounts(None)[0];
    assert_eq!((account.law.made, account.law.taken), (newest, 400));
    assert_eq!(account.law.evicted, oldest - 1 - 400);
    assert_eq!(account.law.waiting, newest - oldest + 1);
    assert_eq!((account.law.missing(), account.lost()), (0, oldest - 1 - 400));
    assert_eq!(account.gaps.len(), 1);
    assert_eq!(account.gaps[0].cause, LostCause::Evicted);
    let told = Told::of(&survey, &Wanted::everything(true));
    assert_eq!((told.records[0], told.damages), (oldest, vec![]));
}

#[test]
fn a_segment_that_the_agent_set_aside_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let survey = Survey::take(&options.directory).unwrap();
    let [second, third] = [1, 2].map(|n| survey.segments[n].first);
    let db = options
        .directory
        .join("segments")
        .join(&survey.segments[1].name)
        .join("db");
    fs::remove_file(&db).unwrap();
    fs::create_dir(&db).unwrap();
    // A reader meets it.
    let (spool, _) = open(&options);
    spool.replay(0, |_| {});
    assert!(spool.close(Duration::from_secs(30)));
    released_but_aside(&options.directory);
    let survey = Survey::take(&options.directory).unwrap();
    let aside = survey.segments.last().unwrap();
    assert_eq!((aside.state, aside.first), (SegmentState::SetAside, second));
    let told = Told::of(&survey, &Wanted::everything(true));
    told.assert_complete(RECORDS, "set aside");
    assert_eq!(
        told.causes(),
        [
            &DamageCause::Known(LostCause::SpoolDamaged),
            &DamageCause::SetAside
        ]
    );
    assert_eq!(told.damages[1].range, Some((second, third - 1)));
    let account = &survey.accounts(None)[0];
    assert_eq!((account.law.missing(), account.lost()), (0, third - second));
}

fn released_but_aside(directory: &Path) {
    let begun = flowtilla_agent::clock::instant();
    while Survey::take(directory).unwrap().writer.is_some() {
        assert!(begun.elapsed() < crate::support::DEADLINE, "still in use");
        std::thread::yield_now();
    }
}

#[test]
fn after_a_crash_what_never_reached_the_disk_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), false);
    let survey = Survey::take(&options.directory).unwrap();
    assert!(survey.stopped_uncleanly());
    assert_eq!(survey.unsynced().unwrap(), None, "all of it had reached it");
    assert_eq!(Told::of(&survey, &Wanted::everything(true)).damages, []);
    // The newest segment is as if its writes had been lost.
    let newest = survey.segments.last().unwrap();
    fs::remove_dir_all(options.directory.join("segments").join(&newest.name)).unwrap();
    let survey = Survey::take(&options.directory).unwrap();
    let unsynced = survey.unsynced().unwrap().unwrap();
    assert_eq!((unsynced.first, unsynced.last), (newest.first, RECORDS));
    let told = Told::of(&survey, &Wanted::everything(true));
    told.assert_complete(RECORDS, "unsynced");
    assert_eq!(told.causes(), [&DamageCause::Unsynced]);
    let account = &survey.accounts(Some(unsynced))[0];
    assert_eq!(account.lost(), RECORDS + 1 - newest.first);
    assert_eq!(account.law.missing(), 0);
}

#[test]
fn an_empty_spool_has_nothing_and_nothing_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    assert!(spool.close(Duration::from_secs(30)));
    drop(spool);
    released(&options.directory);
    let survey = Survey::take(&options.directory).unwrap();
    assert_eq!((survey.known(), survey.segments.len()), (0, 0));
    assert!(!survey.stopped_uncleanly());
    let told = Told::of(&survey, &Wanted::everything(true));
    assert_eq!((told.records, told.damages), (vec![], vec![]));
    assert_eq!(survey.accounts(None), []);
}

#[test]
fn what_is_no_spool_or_of_another_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert!(matches!(
        Survey::take(&path.join("none")),
        Err(SurveyError::Absent(_))
    ));
    assert!(matches!(Survey::take(path), Err(SurveyError::NoSpool(_))));
    fs::write(path.join("file"), "x").unwrap();
    assert!(matches!(
        Survey::take(&path.join("file")),
        Err(SurveyError::NoSpool(_))
    ));
    let options = filled(path, true);
    fs::write(options.directory.join("format"), "flowtilla-spool 2\n").unwrap();
    match Survey::take(path) {
        Err(SurveyError::Version { found, known, .. }) => {
            assert_eq!(
                (found.as_str(), known),
                ("flowtilla-spool 2", "flowtilla-spool 1")
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(options.directory.exists(), "it is not set aside by looking at it");
}

#[test]
fn damaged_small_files_are_told_and_hold_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    for name in ["mark", "lost", "checkpoint", "cursors/one.json"] {
        fs::write(options.directory.join(name), "{").unwrap();
    }
    let survey = Survey::take(&options.directory).unwrap();
    assert!(survey.mark.whole().is_none() && survey.lost.whole().is_none());
    assert_eq!(survey.cursors_damaged, ["one"]);
    assert_eq!(
        Told::of(&survey, &Wanted::everything(true)).records.len() as u64,
        RECORDS
    );
}

#[test]
fn links_in_a_segment_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let db = options.directory.join("segments/0000000000000001/db");
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&db, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &db).unwrap();
    let told = Told::all(&options.directory);
    assert!(
        matches!(told.causes()[..], [DamageCause::Unopened(_)]),
        "{:?}",
        told.damages
    );
}

/// Ends the writer, also when an assertion fails.
struct EndAtDrop<'a>(&'a AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_spool_at_work_is_looked_at_and_does_not_notice() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        octets_max: 24 << 20,
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    fill(&spool, 1_000);
    wait(&spool, "cursor stored", |_| {
        options.directory.join("cursors/one.json").exists()
    });
    let done = AtomicBool::new(false);
    // The writer stays some thousand records ahead of each look: nothing is evicted.
    let wanted = AtomicU64::new(2_000);
    let (mut looks, mut last) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if spool.newest() < wanted.load(Ordering::Acquire) {
                    fill(&spool, 300);
                }
                std::thread::yield_now();
            }
        });
        let _end = EndAtDrop(&done);
        let begun = flowtilla_agent::clock::instant();
        // Long enough for several syncs and at least one new segment in the middle of a copy.
        while looks < count(15, 30) || last < count(20_000, 40_000) {
            assert!(
                begun.elapsed() < crate::support::DEADLINE * 10,
                "looks take too long"
            );
            let survey = Survey::take(&options.directory).unwrap();
            assert_eq!(survey.writer, Some(std::process::id()));
            assert!(!survey.stopped_uncleanly());
            let told = Told::of(&survey, &Wanted::everything(true));
            assert_eq!(told.damages, [], "look {looks}");
            let newest = *told.records.last().unwrap();
            assert_eq!(told.records, (1..=newest).collect::<Vec<_>>());
            assert!(newest >= last, "{newest} after {last}");
            assert!(newest >= 1_000);
            let head = told.closed.last().unwrap();
            assert!(
                matches!(head.segment.state, SegmentState::Head | SegmentState::Sealed),
                "{head:?}"
            );
            let account = &survey.accounts(survey.unsynced().unwrap())[0];
            assert_eq!((account.law.missing(), account.lost()), (0, 0));
            (looks, last) = (looks + 1, newest);
            wanted.store(newest + 2_000, Ordering::Release);
        }
    });
    let status = spool.status().borrow().clone();
    assert_eq!((status.damaged, status.unwritable, status.evicted), (0, 0, 0));
    let newest = spool.newest();
    assert!(spool.close(Duration::from_secs(30)));
    drop((spool, reader));
    released(&options.directory);
    let told = Told::all(&options.directory);
    assert_eq!((told.records.len() as u64, told.damages), (newest, vec![]));
}
