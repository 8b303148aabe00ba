//! What a policy left out, in words: law 3, the sums, and what the kernel left out by itself, for `up` and for `loss`.

use flowtilla_agent_core::loss::{Aside, LeftOutSum, RecordLaw};

use crate::output::grouped;

/// Law 3 and a line for each reason; none when nothing was left out and nothing is missing.
pub(crate) fn lines(law: &RecordLaw) -> Vec<String> {
    let missing = law.missing();
    if !law.leaves_out() && missing == 0 {
        return Vec::new();
    }
    let verdict = match missing {
        0 => "holds".into(),
        n if n > 0 => format!("BROKEN ({n} missing)"),
        n => format!("BROKEN ({} too many)", n.unsigned_abs()),
    };
    let mut lines = vec![format!(
        "law 3 {verdict}, records of the table: {} = made {} + waiting {} + filtered {} + sampled out {}",
        grouped(law.records),
        grouped(law.made),
        grouped(law.waiting),
        grouped(law.filtered.records),
        grouped(law.sampled_out.records),
    )];
    let reasons = [("filtered", &law.filtered), ("sampled out", &law.sampled_out)];
    lines.extend(
        reasons
            .into_iter()
            .filter(|(_, aside)| aside.records > 0)
            .map(|(reason, aside)| line(reason, aside)),
    );
    lines
}

/// What the kernel left out.
pub(crate) fn kernel(sum: &LeftOutSum) -> String {
    format!(
        "{} connections, {} packets with {} IP octets",
        grouped(sum.connections),
        grouped(sum.packets),
        grouped(sum.octets),
    )
}

fn line(reason: &str, aside: &Aside) -> String {
    format!(
        "left out, {reason}: {} records with {} IP octets in {} packets",
        grouped(aside.records),
        grouped(aside.octets),
        grouped(aside.packets),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_told_with_its_law() {
        let mut law = RecordLaw {
            records: 12_000,
            made: 9_000,
            waiting: 1,
            filtered: Aside {
                records: 2_000,
                octets: 3_000_000,
                packets: 4_000,
            },
            sampled_out: Aside {
                records: 999,
                octets: 1_234,
                packets: 5,
            },
        };
        assert_eq!(
            lines(&law),
            [
                "law 3 holds, records of the table: 12,000 = made 9,000 + waiting 1 + filtered 2,000 + sampled out 999",
                "left out, filtered: 2,000 records with 3,000,000 IP octets in 4,000 packets",
                "left out, sampled out: 999 records with 1,234 IP octets in 5 packets",
            ]
        );
        law.made -= 3;
        assert!(lines(&law)[0].starts_with("law 3 BROKEN (3 missing), "));
        let nothing = RecordLaw {
            records: 5,
            made: 5,
            ..RecordLaw::default()
        };
        assert!(lines(&nothing).is_empty());
    }
}
