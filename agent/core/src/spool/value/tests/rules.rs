//! Rules one by one.

use std::sync::Arc;

use super::properties::mend;
use super::sample::{busy, process, read, values};
use crate::flow::record::{BootId, FlowRecord};
use crate::owner::{Names, Owner};
use crate::spool::value::{
    Builder, Codec, HEADER_OCTETS, Pushed, RECORDS_MAX, VALUE_OCTETS_MAX, VERSION, ValueError, decode, header,
};

fn one() -> Vec<u8> {
    let values = values(&mut Builder::default(), &busy(30, false, 7));
    values[0].octets.to_vec()
}

#[test]
fn nothing_seals_to_nothing() {
    let mut builder = Builder::default();
    assert!(builder.is_empty());
    assert_eq!(builder.seal(1), None);
}

#[test]
fn header_tells_records_boot_and_span() {
    let records = busy(30, false, 7);
    let mut builder = Builder::default();
    for record in &records {
        assert_eq!(builder.push(record), Pushed::Added);
    }
    assert_eq!(builder.records(), 30);
    let value = builder.seal(1000).expect("a value");
    assert!(builder.is_empty());
    let header = header(&value.octets).expect("a header");
    assert_eq!(
        (header.first, header.records, header.codec),
        (1000, 30, Codec::Lz4)
    );
    assert_eq!((value.first, value.records, value.last()), (1000, 30, 1029));
    assert_eq!(header.boot, records[0].id.boot);
    assert_eq!(
        Some(header.start),
        records.iter().map(|record| record.start).min()
    );
    assert_eq!(Some(header.end), records.iter().map(|record| record.end).max());
}

#[test]
fn values_of_a_busy_host_are_nearly_full() {
    let records = busy(20_000, false, 3);
    let values = values(&mut Builder::default(), &records);
    let octets: usize = values.iter().map(|value| value.octets.len()).sum();
    assert!(
        octets / values.len() > VALUE_OCTETS_MAX * 9 / 10,
        "{}",
        octets / values.len()
    );
    assert!(octets / records.len() < 80, "{}", octets / records.len());
}

#[test]
fn owners_that_are_the_same_share_their_names() {
    let mut records = busy(30, false, 7);
    for record in &mut records {
        // Another allocation of the same names each time.
        record.initiator.owner = process(1);
    }
    let values = values(&mut Builder::default(), &records);
    let back = read(&values);
    let names = |record: &FlowRecord| record.initiator.owner.names.clone().expect("named");
    assert!(
        back.iter()
            .all(|record| Arc::ptr_eq(&names(record), &names(&back[0])))
    );
}

#[test]
fn process_that_changed_its_name_or_user_is_another_owner() {
    let mut records = busy(3, false, 7);
    let change = |owner: &mut Owner, n: usize| {
        *owner = process(1);
        let process = owner.process.as_mut().expect("a process");
        match n {
            1 => process.comm = "other".into(),
            2 => process.cgroup_id += 1,
            _ => (),
        }
    };
    for (n, record) in records.iter_mut().enumerate() {
        change(&mut record.initiator.owner, n);
    }
    assert_eq!(read(&values(&mut Builder::default(), &records)), records);
}

#[test]
fn record_of_another_boot_goes_into_another_value() {
    let mut records = busy(2, false, 7);
    records[1].id.boot = BootId([9; 16]);
    let mut builder = Builder::default();
    assert_eq!(builder.push(&records[0]), Pushed::Added);
    assert_eq!(builder.push(&records[1]), Pushed::Full);
    assert_eq!(
        builder.push(&records[0]),
        Pushed::Full,
        "order is kept: nothing passes a record that waits"
    );
    assert_eq!(builder.records(), 1);
    assert_eq!(read(&values(&mut Builder::default(), &records)), records);
}

#[test]
fn what_compresses_worse_than_foreseen_goes_into_the_next_value() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut records = vec![busy(1, false, 7).remove(0); 5000];
    for (n, record) in (0..).zip(&mut records) {
        record.id.cookie.0 = n;
    }
    let mut builder = Builder::default();
    let mut next = 1 + values(&mut builder, &records)
        .iter()
        .map(|value| u64::from(value.records))
        .sum::<u64>();
    for record in &mut records[..300] {
        let line = (0..200).map(|_| random.alphanumeric()).collect();
        record.initiator.owner.names = Some(Arc::new(Names {
            command_line: Some(line),
            ..Names::default()
        }));
    }
    let mut taken = 0;
    while taken < 300 && builder.push(&records[taken]) == Pushed::Added {
        taken += 1;
    }
    let mut back = Vec::new();
    let mut sealed = 0;
    while let Some(value) = builder.seal(next) {
        assert!(value.octets.len() <= VALUE_OCTETS_MAX);
        next = value.last() + 1;
        sealed += 1;
        back.extend(decode(&value.octets, Some(value.first)).expect("a value").1);
        assert_eq!(builder.records() + back.len(), taken);
    }
    assert!(sealed > 1, "it fitted: the test shows nothing");
    assert_eq!(back, records[..taken]);
}

#[test]
fn more_records_than_a_value_may_have_are_full() {
    let records = vec![busy(1, false, 7).remove(0); 20 * RECORDS_MAX];
    let values = values(&mut Builder::default(), &records);
    assert_eq!(
        values.iter().map(|value| value.records as usize).max(),
        Some(RECORDS_MAX)
    );
    assert!(read(&values) == records);
}

#[test]
fn long_line_that_compresses_is_taken_alone_and_one_that_does_not_is_refused() {
    let mut random = fastrand::Rng::with_seed(5);
    let with_line = |line: String| {
        let mut record = busy(1, false, 7).remove(0);
        record.initiator.owner.names = Some(Arc::new(Names {
            command_line: Some(line),
            ..Names::default()
        }));
        record
    };
    let dull = with_line("ab".repeat(10_000));
    let dense = with_line((0..20_000).map(|_| random.alphanumeric()).collect());
    let endless = with_line("ab".repeat(100_000));
    let mut builder = Builder::default();
    assert_eq!(builder.push(&dense), Pushed::TooLarge);
    assert_eq!(builder.push(&endless), Pushed::TooLarge);
    assert!(builder.is_empty());
    assert_eq!(builder.push(&dull), Pushed::Added);
    assert_eq!(builder.push(&busy(1, false, 7)[0]), Pushed::Full);
    let value = builder.seal(1).expect("a value");
    assert_eq!(decode(&value.octets, None).expect("a value").1, [dull]);
}

#[test]
fn refused_record_leaves_no_trace() {
    let records = busy(20, false, 7);
    let plain = values(&mut Builder::default(), &records[..10]);
    let mut builder = Builder::default();
    for record in &records[..10] {
        assert_eq!(builder.push(record), Pushed::Added);
    }
    let mut stranger = records[10].clone();
    stranger.initiator.owner = process(99);
    stranger.id.boot = BootId([9; 16]);
    assert_eq!(builder.push(&stranger), Pushed::Full);
    assert_eq!(builder.seal(1), Some(plain[0].clone()));
}

#[test]
fn other_version_is_told_from_damage() {
    let mut octets = one();
    octets[2] = VERSION + 1;
    assert!(matches!(decode(&octets, None), Err(ValueError::Checksum { .. })));
    mend(&mut octets);
    assert_eq!(
        decode(&octets, None),
        Err(ValueError::Version { found: VERSION + 1 })
    );
    octets[2] = 0;
    mend(&mut octets);
    assert_eq!(decode(&octets, None), Err(ValueError::Version { found: 0 }));
}

#[test]
fn value_at_another_place_is_refused() {
    let octets = one();
    assert!(decode(&octets, Some(1)).is_ok());
    assert_eq!(
        decode(&octets, Some(2)),
        Err(ValueError::First {
            expected: 2,
            found: 1
        })
    );
}

#[test]
fn every_torn_value_is_refused() {
    let octets = one();
    for length in 0..octets.len() {
        assert!(decode(&octets[..length], None).is_err(), "{length} octets");
    }
    let mut longer = octets;
    longer.push(0);
    assert!(matches!(decode(&longer, None), Err(ValueError::Checksum { .. })));
}

#[test]
fn counts_that_the_body_does_not_hold_are_refused() {
    for (at, count) in [
        (16, 29_u16),
        (16, 31),
        (18, 0),
        (20, 0),
        (22, 0),
        (22, u16::MAX),
        (16, 0),
        (16, 2000),
    ] {
        let mut octets = one();
        octets[at..at + 2].copy_from_slice(&count.to_be_bytes());
        mend(&mut octets);
        let found = decode(&octets, None).map(|_| ());
        assert!(
            matches!(found, Err(ValueError::Body | ValueError::Header)),
            "{at}, {count}: {found:?}"
        );
    }
}

#[test]
fn lengths_beyond_those_of_a_value_are_refused() {
    for octets in [0, HEADER_OCTETS - 1, VALUE_OCTETS_MAX + 1] {
        assert_eq!(header(&vec![0; octets]), Err(ValueError::Length { octets }));
    }
    assert_eq!(
        header(&[0; HEADER_OCTETS]),
        Err(ValueError::Magic { found: [0, 0] })
    );
}
