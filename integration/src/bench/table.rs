//! Medians, spreads and the markdown they stand in.

use integration::traffic::load::Kind;

use super::setting::Setting;

/// One run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// CPU time of the load's both ends, ns an operation.
    pub(super) load_ns: f64,
    /// CPU time of the probe beside it, ns an operation, what it uses without traffic taken off.
    pub(super) own_ns: f64,
}

/// Name of a load in tables.
pub(super) fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Bulk => "bulk TCP, 64 KiB blocks",
        Kind::ConnectRequestClose => "connect-request-close",
        Kind::RequestResponse => "request-response, 64 B",
        Kind::Udp => "UDP 64 B, one peer",
        Kind::UdpPeers => "UDP 64 B, 10,000 peers",
        Kind::Syscalls => "system calls, no network",
    }
}

/// Prints the section of a load. The first setting is what the others are compared with.
pub(super) fn print_load<'a>(kind: Kind, settings: &[Setting], samples: impl Fn(usize) -> &'a Vec<Sample>) {
    println!("## {}\n", title(kind));
    println!(
        "| under | CPU ns an operation | ratio | spread | own CPU µs an operation | ratio, own CPU included |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let base: Vec<f64> = samples(0).iter().map(|sample| sample.load_ns).collect();
    for (column, setting) in settings.iter().enumerate() {
        let runs = samples(column);
        let load: Vec<f64> = runs.iter().map(|sample| sample.load_ns).collect();
        let own: Vec<f64> = runs.iter().map(|sample| sample.own_ns).collect();
        let whole: Vec<f64> = runs.iter().map(|sample| sample.load_ns + sample.own_ns).collect();
        let ratios: Vec<f64> = load
            .iter()
            .zip(&base)
            .map(|(with, without)| with / without)
            .collect();
        println!(
            "| {} | {:.0} | {:.3} | {:.3}–{:.3} | {:.2} | {:.3} |",
            setting.name(),
            median(&load),
            median(&load) / median(&base),
            ratios.iter().copied().fold(f64::INFINITY, f64::min),
            ratios.iter().copied().fold(0.0, f64::max),
            median(&own) / 1_000.0,
            median(&whole) / median(&base),
        );
    }
    println!();
}

/// The middle one; of an even number the mean of both; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => 0.0,
        all if all.len() % 2 == 1 => all[all.len() / 2],
        all => f64::midpoint(all[all.len() / 2 - 1], all[all.len() / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
