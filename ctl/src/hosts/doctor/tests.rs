use clap::Parser as _;

use super::*;

fn answer(report: &str, ended: &str) -> String {
    format!("Welcome to h0!\n{BEGINS}\n{report}\n{ENDED}{ended}\n")
}

const SOUND: &str = r#"{"version":"0.1.0","captures":true,"findings":[
    {"check":"kernel","verdict":"ok","what":"Linux 6.1","remedy":null},
    {"check":"clock","verdict":"warn","what":"it is not synchronised","remedy":"run chrony"}]}"#;

fn sound() -> Examined {
    read(&answer(&SOUND.replace('\n', ""), "0 "))
}

fn unsound() -> Examined {
    let report = r#"{"version":"0.1.0","captures":false,"findings":[{"check":"btf","verdict":"fail","what":"there is none\n\u001b[31m",
        "remedy":"boot another kernel"},{"check":"later","verdict":"grave","what":"?","remedy":null,"more":1}],"more":[]}"#;
    read(&answer(&report.replace("\n  ", ""), "1 "))
}

#[test]
fn each_host_has_its_findings_and_who_cannot_capture_is_named_last() {
    let none = read(&answer("", ""));
    assert_eq!(
        as_text(&["op@a", "b", "c"], &[sound(), unsound(), none.clone()]),
        "op@a: flows can be captured: 1 ok, 1 to look at, 0 to mend (flowtilla-agent 0.1.0)\n  \
           WARN clock        it is not synchronised\n                    → run chrony\n\
         b: NO FLOW CAN BE CAPTURED: 0 ok, 1 to look at, 1 to mend (flowtilla-agent 0.1.0)\n  \
           FAIL btf          there is none  [31m\n                    → boot another kernel\n  \
           WARN later        ?\n\
         c: FAILED at doctor: it has no agent; agentctl deploy puts one there\n\
         hosts: 1 can capture, 1 (b) cannot, 1 (c) have not said\n"
    );
    // Of one host all.
    assert!(as_text(&["a"], &[sound()]).contains("  ok   kernel       Linux 6.1\n"));
    let many: Vec<Examined> = (0..10).map(|_| none.clone()).collect();
    assert!(
        as_text(&["h"; 10], &many).ends_with(
            "hosts: 0 can capture, 0 cannot, 10 (h, h, h, h, h, h, h, h and 2 more) have not said\n"
        )
    );
    assert!(captures(&sound()) && !captures(&unsound()) && !captures(&none));
}

#[test]
fn as_json_each_host_has_its_report_or_its_trouble() {
    let told = as_json(&["a", "b"], &[sound(), read(&answer("", ""))]);
    let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["captures"], false);
    assert_eq!(told["hosts"][0]["host"], "a");
    assert_eq!(told["hosts"][0]["captures"], true);
    assert_eq!(told["hosts"][0]["findings"][1]["verdict"], "warn");
    assert_eq!(told["hosts"][0].get("trouble"), None);
    assert_eq!(told["hosts"][1]["trouble"]["step"], "doctor");
    assert_eq!(told["hosts"][1].get("captures"), None);
}

#[test]
fn whoever_does_not_say_is_told_with_what_to_do() {
    for (said, wanted) in [
        (String::new(), "what came back is no answer of the script"),
        (
            format!("{BEGINS}\n{{\"version\":"),
            "what came back is no answer of the script",
        ),
        (
            answer("", "2 error: no such command"),
            "its agent is older, and has no doctor; agentctl agents upgrade",
        ),
        (answer("", "124 "), "its agent's program took too long"),
        (
            answer("[1, 2]", "127 sh: not \u{1b}found"),
            "its agent's program ended with exit code 127: sh: not  found; see there",
        ),
    ] {
        let trouble = read(&said).expect_err("it says nothing").to_string();
        let told = trouble.strip_prefix("doctor: ").expect("its step");
        assert!(told.starts_with(wanted), "{told}");
    }
}

#[test]
fn a_host_that_is_not_reached_is_not_told_to_be_deployed() {
    let down = Trouble::new(
        Step::Connect,
        "it does not answer",
        "see that it is up and that ssh a reaches it, then deploy again",
    );
    assert_eq!(
        down.not_of_deploy().to_string(),
        "connect: it does not answer; see that it is up and that ssh a reaches it, then call it again"
    );
}

#[test]
fn what_is_bounded_is_cut() {
    let long = format!(
        "{{\"version\":\"1\",\"captures\":true,\"findings\":[{}]}}",
        vec!["{\"check\":\"a\",\"verdict\":\"ok\",\"what\":\"b\",\"remedy\":null}"; FINDINGS_MAX + 1]
            .join(",")
    );
    assert_eq!(report(&long).expect("a report").findings.len(), FINDINGS_MAX);
    assert_eq!(shown(&"ü".repeat(TEXT_MAX + 1)).chars().count(), TEXT_MAX);
}

#[test]
fn hosts_do_not_go_with_what_is_asked_of_this_host() {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: crate::cmd::doctor::ExamineArgs,
    }
    let parse = |words: &[&str]| Cli::try_parse_from([&["doctor"], words].concat());
    for words in [
        &["--host", "h0", "--state", "/s"][..],
        &["--host", "h0", "--controller", "c"],
        &["-f", "x", "--context", "c"],
    ] {
        assert!(parse(words).is_err(), "{words:?}");
    }
    let there = |words: &[&str]| parse(words).expect("good flags").args.there.is_there();
    assert_eq!(there(&["--host", "h0", "--context", "c"]), Ok(true));
    assert_eq!(there(&["-f", "x", "-o", "json"]), Ok(true));
    assert_eq!(there(&["--state", "/s"]), Ok(false));
    assert!(there(&["--context", "c"]).is_err());
}
