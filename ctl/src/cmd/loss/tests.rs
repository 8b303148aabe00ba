//! The sum on real spools: pinned words, and the exit code that goes with them.

use std::fs;
use std::path::Path;

use flowtilla_agent_core::loss::LeftOutSum;

use super::*;
use crate::cmd::buffer::samples;
use crate::cmd::up::samples::assert_pinned;

fn told(state: &Path) -> (bool, String, serde_json::Value) {
    let survey = Survey::take(state).expect("it is a spool");
    let unsynced = survey.unsynced().expect("there is room for a copy");
    let loss = Loss::of(&survey, unsynced);
    let json = serde_json::from_str(&loss.json().expect("it is JSON")).expect("it is JSON");
    let text = samples::settled(loss.text().as_bytes(), state);
    (loss.is_nothing(), text, json)
}

/// Changes a cursor's file as if it had been stored so.
fn change_cursor(state: &Path, change: impl Fn(&mut serde_json::Value)) {
    let path = state.join("spool/cursors/ntopng-1.json");
    let text = fs::read(&path).expect("it is there");
    let mut stored: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    change(&mut stored["value"]);
    fs::write(path, sealed(&stored["value"].to_string())).expect("it can be written");
}

/// As the spool keeps it.
fn sealed(json: &str) -> String {
    let sum = crc32(json.as_bytes());
    format!("{{\"sum\":\"{sum:08x}\",\"value\":{json}}}")
}

#[test]
fn nothing_lost_is_pinned() {
    let state = samples::spool();
    let (nothing, text, json) = told(state.path());
    assert!(nothing);
    assert_pinned("loss.txt", &text);
    assert_eq!(json["collectors"][0]["law"]["waiting"], 36);
    assert_eq!(json["collectors"][0]["law"]["dropped"]["withheld"], 2);
    assert_eq!(
        (&json["nothingLost"], &json["cleanStop"]),
        (&true.into(), &true.into())
    );
}

#[test]
fn losses_are_pinned_with_their_gaps() {
    let state = samples::spool();
    fs::write(
        state.path().join("spool/lost"),
        sealed(
            r#"[{"first":1,"last":30,"cause":"evicted"},{"first":41,"last":45,"cause":"spoolUnwritable"}]"#,
        ),
    )
    .expect("it can be written");
    fs::remove_dir_all(&samples::segments(state.path())[0]).expect("it is there");
    change_cursor(state.path(), |cursor| {
        cursor["law"]["taken"] = 20.into();
        cursor["law"]["dropped"]["collectorRestarted"] = 2.into();
    });
    let (nothing, text, json) = told(state.path());
    assert!(!nothing);
    assert!(
        text.lines().all(|line| crate::output::width(line) <= 80),
        "{text}"
    );
    assert_pinned("loss-gaps.txt", &text);
    assert_eq!(
        json["collectors"][0]["lost"], 13,
        "25 to 30, 41 to 45, and 2 at a restart"
    );
    assert_eq!(json["collectors"][1]["gaps"][0]["cause"], "evicted");
    assert_eq!(json["nothingLost"], false);
}

#[test]
fn a_broken_law_says_so_and_fails() {
    let state = samples::spool();
    change_cursor(state.path(), |cursor| cursor["law"]["taken"] = 21.into());
    let (nothing, text, _) = told(state.path());
    assert!(!nothing);
    assert!(
        text.contains("ntopng-1: law 2 is BROKEN, 1 records are missing\n"),
        "{text}"
    );
    assert!(
        text.ends_with("\nthe sum does not hold for 1 of 2 collectors\n"),
        "{text}"
    );
}

#[test]
fn what_a_crash_took_is_told() {
    let state = samples::spool();
    // The mark of a run that was about to write up to record 70.
    let mut mark = fs::read(state.path().join("spool/mark")).expect("it is there");
    mark[4..12].copy_from_slice(&70_u64.to_le_bytes());
    mark[12] = 0;
    let sum = crc32(&mark[..16]);
    mark[16..].copy_from_slice(&sum.to_le_bytes());
    fs::write(state.path().join("spool/mark"), mark).expect("it can be written");
    let (nothing, text, json) = told(state.path());
    assert!(!nothing);
    assert!(text.contains("the last agent did not stop cleanly\n"), "{text}");
    assert!(
        text.contains("\nrecords 61 to 70 (10) were given a number and are on no disk\n"),
        "{text}"
    );
    assert!(
        text.ends_with("\nrecords lost: 10 of ntopng-1, 10 of ntopng-2\n"),
        "{text}"
    );
    assert_eq!(
        json["unsynced"],
        serde_json::json!({"first": 61, "last": 70, "cause": "spoolDamaged"})
    );
}

#[test]
fn what_the_kernel_left_out_is_told_and_is_no_loss() {
    let state = samples::spool();
    let mut ledger = Ledger::default().begin(true);
    ledger.kernel_left_out = LeftOutSum {
        connections: 1_000,
        packets: 12_000,
        octets: 3_000_000,
    };
    let kept = serde_json::to_vec(&ledger).expect("it is written");
    let sum = crc32(&kept).to_le_bytes();
    let stored = [&b"FTLG"[..], &sum, &kept].concat();
    fs::write(state.path().join("spool/ledger"), stored).expect("it can be written");
    let (nothing, text, json) = told(state.path());
    assert!(nothing, "{text}");
    assert!(
        text.contains(
            "\nleft out in the kernel, by the policy:\n  1,000 connections, 12,000 packets with 3,000,000 IP octets\n"
        ),
        "{text}"
    );
    assert_eq!(
        json["kernel"]["kernelLeftOut"],
        serde_json::json!({"connections": 1_000, "packets": 12_000, "octets": 3_000_000})
    );
}

#[test]
fn what_cannot_be_read_is_no_reason_to_say_that_nothing_is_lost() {
    for name in ["mark", "lost", "cursors/ntopng-1.json"] {
        let state = samples::spool();
        fs::write(state.path().join("spool").join(name), "{").expect("it can be written");
        let (nothing, text, json) = told(state.path());
        assert!(!nothing, "{name}");
        assert!(text.contains(&format!("{name} is damaged")), "{text}");
        assert_eq!(json["damaged"], serde_json::json!([name]));
    }
}

/// CRC-32 (IEEE), bit by bit.
fn crc32(octets: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for octet in octets {
        sum ^= u32::from(*octet);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}
