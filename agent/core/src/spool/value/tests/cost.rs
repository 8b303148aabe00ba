//! What values cost: printed, for whoever changes the format.

use std::hint::black_box;
use std::time::Duration;

use super::sample::{busy, of_processes, read, values};
use crate::spool::value::Builder;

const RECORDS: u64 = 20_000;
const ROUNDS: u32 = 20;

#[test]
#[ignore = "prints times: run alone, in release"]
fn cost_of_a_record() {
    let kinds = [
        ("20 processes, both ends named", 20, false),
        ("20 processes, one end named", 20, true),
        ("200 processes, both ends named", 200, false),
        ("2,000 processes, one end named", 2000, true),
    ];
    for (what, processes, remote) in kinds {
        let records = of_processes(processes, RECORDS, remote, 1);
        let mut builder = Builder::default();
        let made = values(&mut builder, &records);
        assert!(read(&made) == records);
        let encode = watch(|| drop(black_box(values(&mut builder, black_box(&records)))));
        let decode = watch(|| drop(black_box(read(black_box(&made)))));
        let octets: usize = made.iter().map(|value| value.octets.len()).sum();
        println!(
            "{what}: encode {encode} ns, decode {decode} ns, {} octets a record; {} records and {} octets a value",
            octets / records.len(),
            records.len() / made.len(),
            octets / made.len(),
        );
    }
}

#[test]
#[ignore = "prints octets"]
fn cost_of_small_values() {
    for count in [1, 2, 5, 10, 20, 50] {
        let records = busy(count, false, 1);
        let values = values(&mut Builder::default(), &records);
        println!("{count} records in a value: {} octets", values[0].octets.len());
    }
}

/// Nanoseconds a record, the least of all rounds: the machine has other things to do.
#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn watch(mut what: impl FnMut()) -> u128 {
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let begin = std::time::Instant::now();
        what();
        least = least.min(begin.elapsed());
    }
    least.as_nanos() / u128::from(RECORDS)
}
