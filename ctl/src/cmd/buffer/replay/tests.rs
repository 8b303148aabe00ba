//! What flags mean, and how wrong ones are refused.

use clap::Parser;
use flowtilla_proto::collector::{self, HeaderVersion};

use super::*;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    args: ReplayArgs,
}

fn args(words: &[&str]) -> ReplayArgs {
    let words = ["replay", "DIR"].iter().chain(words);
    Only::try_parse_from(words).expect("clap takes it").args
}

const NOW: WallTime = WallTime(10_000_000_000_000);
const KEY: &str = "B4zvOat%qc?<kC{VAzsp9ocG/u(LB9bAcR+^SHB*";

#[test]
fn flags_make_what_is_wanted() {
    let (wanted, collector) = args(&[]).wanted(NOW).expect("it is sound");
    assert_eq!((wanted, collector), (Wanted::everything(true), None));
    let (wanted, _) = args(&["--from=1,234", "--to=5678"])
        .wanted(NOW)
        .expect("it is sound");
    assert_eq!((wanted.from, wanted.to), (1_234, 5_678));
    let words = ["--from=3", "--to=9", "--since=2h", "--until=1h"];
    let (wanted, _) = args(&words).wanted(NOW).expect("it is sound");
    assert_eq!((wanted.from, wanted.to), (3, 9));
    assert_eq!((wanted.since.seconds(), wanted.until.seconds()), (2_800, 6_400));
    let words = [
        "--ntopng=tcp://h:1",
        "--rate=7",
        "--record-ids",
        "--curve-key",
        KEY,
    ];
    let (_, collector) = args(&words).wanted(NOW).expect("it is sound");
    let collector = collector.expect("there is one");
    assert_eq!((collector.records_per_second, collector.record_ids), (7, true));
    assert!(collector.curve_server_key.is_some());
    let (_, collector) = args(&["--ntopng=tcp://h:1"]).wanted(NOW).expect("it is sound");
    assert_eq!(collector.expect("there is one").records_per_second, 20_000);
}

#[test]
fn an_encoding_brings_its_header_and_its_pace() {
    let one = |words: &[&str]| {
        let words = [&["--ntopng=tcp://h:1"], words].concat();
        let (_, collector) = args(&words).wanted(NOW).expect("it is sound");
        let collector = collector.expect("there is one");
        (collector.encoding, collector.header, collector.records_per_second)
    };
    assert_eq!(one(&[]), (collector::Encoding::Tlv, HeaderVersion::V2, 20_000));
    assert_eq!(one(&["--encoding=tlv"]), one(&[]));
    let nested = |rate| (collector::Encoding::NestedJson, HeaderVersion::V1, rate);
    assert_eq!(one(&["--encoding=nestedJson"]), nested(8_000));
    assert_eq!(one(&["--encoding=nestedJson", "--rate=9"]), nested(9));
}

#[test]
fn each_wrong_flag_is_one_sentence_with_its_remedy() {
    for (words, sentence) in [
        (
            &["--from=9", "--to=3"][..],
            "--to: lies before --from; write a sequence that is not smaller",
        ),
        (
            &["--since=1h", "--until=2h"],
            "--until: lies before --since; write a later time",
        ),
        (&["--rate=0"], "--rate: \"0\" is out of range; write 1 to 1000000"),
        (
            &["--rate=1000001", "--ntopng=tcp://h:1"],
            "--rate: \"1000001\" is out of range; write 1 to 1000000",
        ),
        (
            &["--curve-key", KEY],
            "--curve-key: there is no collector it is for; write --ntopng too",
        ),
        (
            &["--encoding=nestedJson"],
            "--encoding: there is no collector it is for; write --ntopng too",
        ),
        (
            &["--loopback=omit"],
            "--loopback: there is no collector it is for; write --ntopng too",
        ),
        (
            &["--record-ids"],
            "--record-ids: there is no collector it is for; write --ntopng too",
        ),
        (
            &["--ntopng=tcp://h:1", "-ojson"],
            "--output: nothing is printed with --ntopng; leave one of them out",
        ),
        (
            &["--ntopng=udp://h:1"],
            "--ntopng: \"udp://h:1\" does not begin with tcp://; write tcp://HOST:PORT, such as \
             tcp://192.0.2.1:5556 or tcp://[2001:db8::1]:5556",
        ),
        (
            &["--ntopng=tcp://h:1", "--curve-key=kk"],
            "--curve-key: \"kk\" has 2 characters; write the 40 characters or 80 hex digits that ntopng shows on its \
             interface page",
        ),
    ] {
        let refused = args(words).wanted(NOW).expect_err("it is wrong");
        assert_eq!(refused.0, [sentence], "{words:?}");
    }
    let all = args(&["--from=9", "--to=3", "--rate=0", "--record-ids"]).wanted(NOW);
    assert_eq!(all.expect_err("it is wrong").0.len(), 3, "every mistake at once");
}

#[test]
fn a_pace_is_kept_in_steps_of_some_milliseconds() {
    let begun = Instant::now();
    assert_eq!(pause(begun, 1, 1_000_000), None);
    let until = pause(begun, 1_000, 1_000).expect("a second is due");
    assert_eq!(until, begun + Duration::from_secs(1));
}
