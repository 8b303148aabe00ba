//! The commands on real spools: what they print is pinned, what is damaged is named, what is wrong is refused.

use std::fs;
use std::path::Path;

use clap::Parser;

use super::*;
use crate::cmd::up::samples::assert_pinned;
use crate::exit::UsageError;

#[derive(Parser)]
struct Only {
    #[command(subcommand)]
    command: BufferCommand,
}

/// Runs `buffer` with these words and DIR.
async fn buffer(words: &[&str], state: &Path) -> (anyhow::Result<Exit>, Vec<u8>) {
    let path = state.to_string_lossy();
    let words = ["buffer"].iter().chain(words).copied().chain([&*path]);
    let command = Only::try_parse_from(words).expect("clap takes it").command;
    let (mut out, stop) = (Vec::new(), CancellationToken::new());
    let exit = match &command {
        BufferCommand::Inspect(args) => inspect::run(args, &mut out, &stop).await,
        BufferCommand::Verify(args) => verify::run(args, &mut out, &stop).await,
        BufferCommand::Replay(args) => replay::run(args, &mut out, &stop).await,
    };
    (exit, out)
}

async fn lines(words: &[&str], state: &Path) -> (Exit, Vec<String>) {
    let (exit, out) = buffer(words, state).await;
    let text = samples::settled(&out, state);
    (exit.expect("it ran"), text.lines().map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_as_json_has_everything() {
    let state = samples::spool();
    let (exit, out) = buffer(&["inspect", "-o", "json"], state.path()).await;
    assert_eq!(exit.expect("it ran"), Exit::Done);
    let told: serde_json::Value = serde_json::from_slice(&out).expect("it is JSON");
    assert_eq!(told["newest"], 60);
    assert_eq!(
        (&told["cleanStop"], &told["process"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert_eq!(told["segments"][1]["first"], 31);
    assert_eq!(told["segments"][1]["values"], 5);
    assert_eq!(told["segments"][1]["start"], "2026-03-01T12:05:01.250000000Z");
    assert_eq!(told["cursors"][0]["lagRecords"], 36);
    // From the value that ends at 12:04:08 to the newest, which ends at 12:09:08.
    assert_eq!(told["cursors"][0]["lagMs"], 300_000);
    assert_eq!(told["damage"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_of_a_whole_spool_is_pinned() {
    let state = samples::spool();
    let (exit, out) = buffer(&["verify"], state.path()).await;
    assert_eq!(exit.expect("it ran"), Exit::Done);
    assert_pinned("verify.txt", &samples::settled(&out, state.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_each_damage_and_fails() {
    let state = samples::spool();
    let [first, second] = &samples::segments(state.path())[..] else {
        panic!("two segments")
    };
    fs::remove_file(first.join("db")).expect("it is there");
    fs::write(second.join("conf"), "segment_size: 1048576\nmore\n").expect("it can be written");
    fs::create_dir_all(second.join("blobs")).expect("it can be made");
    fs::write(second.join("blobs/1"), "x").expect("it can be written");
    fs::write(state.path().join("spool/checkpoint"), "no").expect("it can be written");
    let (exit, told) = lines(&["verify"], state.path()).await;
    assert_eq!(exit, Exit::Failed);
    assert_eq!(
        told[1],
        "checkpoint: damaged; flows are told from their beginning after a start"
    );
    assert_eq!(
        told[2],
        "0000000000000001: records 1 to 30 (30): the segment does not open: damaged: its log (db) is not there"
    );
    assert_eq!(
        told[3],
        "000000000000001f: 1 values outside the log, where a power cut loses them"
    );
    assert!(told[4].starts_with("000000000000001f: conf or snapshot is damaged, the log alone was read:"));
    assert!(
        told[5].starts_with("read 30 records in 5 values of 2 segments"),
        "{told:?}"
    );
    assert_eq!(told[6..], ["damages: 4, of 30 records"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_prints_the_forms_of_up() {
    let state = samples::spool();
    let all: Vec<_> = (0..10).flat_map(samples::records).collect();
    let (mut as_lines, mut as_json) = (crate::cmd::up::lines::heading(), String::new());
    for record in &all {
        crate::cmd::up::lines::render(record, &mut as_lines);
        crate::cmd::up::json::render(record, &mut as_json);
    }
    for (words, expected) in [
        (&["replay"][..], &as_lines),
        (&["replay", "-o", "lines"], &as_lines),
        (&["replay", "-o", "json"], &as_json),
        (&["replay", "-o", "json", "--rate", "1000"], &as_json),
    ] {
        let (exit, out) = buffer(words, state.path()).await;
        assert_eq!(exit.expect("it ran"), Exit::Done);
        assert!(out == expected.as_bytes(), "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_prints_what_is_asked_for() {
    let state = samples::spool();
    let cookies = |out: &[u8]| -> Vec<u64> {
        let text = std::str::from_utf8(out).expect("it is text");
        let cookie = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).expect("it is JSON");
            record["id"]["cookie"].as_u64().expect("it has one")
        };
        text.lines().map(cookie).collect()
    };
    for (words, expected) in [
        (&["--from", "29", "--to", "32"][..], &[5, 6, 1, 2][..]),
        (&["--from", "60"], &[6]),
        (&["--from", "61"], &[]),
        // Value 9: its records end 3 to 8 s after 12:09:00.25.
        (&["--since", "2026-03-01T12:09:05Z"], &[3, 4, 5, 6]),
        (&["--until", "2026-03-01T12:00:04.25Z"], &[1, 2]),
        (
            &[
                "--since",
                "2026-03-01T12:04:07Z",
                "--until",
                "2026-03-01T12:05:03.25Z",
            ],
            &[5, 6, 1],
        ),
        (&["--since", "1h"], &[]),
    ] {
        let words = [&["replay", "-o", "json"], words].concat();
        let (exit, out) = buffer(&words, state.path()).await;
        assert_eq!(exit.expect("it ran"), Exit::Done);
        assert_eq!(cookies(&out), expected, "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_of_a_damaged_spool_prints_the_rest_and_fails() {
    let state = samples::spool();
    let first = &samples::segments(state.path())[0];
    fs::remove_file(first.join("db")).expect("it is there");
    let (exit, told) = lines(&["replay"], state.path()).await;
    assert_eq!((exit, told.len()), (Exit::Failed, 31));
    let (exit, told) = lines(&["replay", "--from", "31"], state.path()).await;
    assert_eq!((exit, told.len()), (Exit::Done, 31), "what is wanted is whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_that_is_told_to_end_ends() {
    let state = samples::spool();
    let path = state.path().to_string_lossy().into_owned();
    let BufferCommand::Replay(args) = Only::try_parse_from(["buffer", "replay", "--rate", "1", &path])
        .expect("clap takes it")
        .command
    else {
        panic!("it is a replay")
    };
    let stop = CancellationToken::new();
    let end = stop.clone();
    let running = tokio::spawn(async move { replay::run(&args, &mut Vec::new(), &stop).await });
    end.cancel();
    let exit = running.await.expect("it does not panic");
    assert_eq!(exit.expect("it ran"), Exit::Interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_a_spool_is_refused_with_a_remedy() {
    let other = samples::spool();
    fs::write(other.path().join("spool/format"), "flowtilla-spool 2\n").expect("it can be written");
    let empty = tempfile::tempdir().expect("a directory can be made");
    for (path, sentence) in [
        (
            Path::new("/none").to_owned(),
            "DIR: \"/none\" is not there; write the directory that agentctl up --state was given, or a copy of it",
        ),
        (
            empty.path().to_owned(),
            "DIR: \"DIR\" holds no spool, which agentctl up makes for its first --ntopng; \
             write the directory that agentctl up --state was given, or a copy of it",
        ),
        (
            other.path().to_owned(),
            "DIR: \"DIR/spool\" has the format \"flowtilla-spool 2\", and this agentctl reads \"flowtilla-spool 1\"; \
             use that of the agent which wrote it",
        ),
    ] {
        for command in ["inspect", "verify", "replay"] {
            let (exit, out) = buffer(&[command], &path).await;
            let error = exit.expect_err("there is nothing to read");
            let usage = error
                .downcast_ref::<UsageError>()
                .expect("exit code 2")
                .to_string();
            assert_eq!(
                usage
                    .replace(&*path.to_string_lossy(), "DIR")
                    .replace("\"DIR\" is not", "\"/none\" is not"),
                sentence
            );
            assert!(out.is_empty(), "nothing is printed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_spool_is_told_as_such() {
    let state = samples::spool();
    for segment in samples::segments(state.path()) {
        fs::remove_dir_all(segment).expect("it is there");
    }
    for name in ["mark", "cursors/ntopng-1.json", "cursors/ntopng-2.json"] {
        fs::remove_file(state.path().join("spool").join(name)).expect("it is there");
    }
    let (exit, told) = lines(&["inspect"], state.path()).await;
    assert_eq!(exit, Exit::Done);
    assert_eq!(
        told[1..],
        [
            "format 1, # KiB on disk, last record 0",
            "no segments",
            "no collector has a cursor",
            "no checkpoint"
        ]
    );
    assert_eq!(lines(&["verify"], state.path()).await.0, Exit::Done);
    assert_eq!(lines(&["replay"], state.path()).await.1.len(), 1, "the heading");
}
