use std::num::NonZeroU16;

use flowtilla_proto::hosts::Target;

use super::*;

fn job(name: &str) -> Job {
    job_of(Target {
        user: None,
        host: name.to_owned(),
        port: NonZeroU16::new(22),
    })
}

pub(super) fn job_of(target: Target) -> Job {
    Job {
        name: target.host.clone(),
        way: Way {
            target,
            jump: Vec::new(),
            sudo: true,
        },
        labels: BTreeMap::new(),
        settings: String::new(),
        runtimes: BTreeSet::new(),
        access: String::new(),
    }
}

#[test]
fn each_host_has_its_sentence_and_all_have_a_sum() {
    let jobs = ["a", "b", "c", "d"].map(job);
    let outcomes = [
        Outcome::Done {
            agent: "a-1".to_owned(),
            steps: vec!["install 0.1.0".to_owned(), "enrol it".to_owned()],
        },
        Outcome::Nothing {
            agent: "b-1".to_owned(),
            newer: None,
        },
        Outcome::Nothing {
            agent: "c-1".to_owned(),
            newer: Some("9.0.0".to_owned()),
        },
        Outcome::Failed(Trouble::new(
            Step::Connect,
            "it does not answer",
            "see that it is up",
        )),
    ];
    assert_eq!(
        told(&jobs, &outcomes, false),
        "a: done: install 0.1.0, enrol it (a-1)\n\
         b: nothing to do (b-1)\n\
         c: nothing to do (c-1); it has the newer version 9.0.0, which stays\n\
         d: FAILED at connect: it does not answer; see that it is up\n\
         hosts: 1 changed, 2 as they are to be, 1 failed\n"
    );
    let back = [
        Outcome::Back("wave 1 of 2: lag: a record of a-1 waited 9.0 s".to_owned()),
        Outcome::Waits,
        Outcome::Packaged("0.1.0-1".to_owned()),
    ];
    assert_eq!(
        told(&jobs[..3], &back, false),
        "a: WENT BACK: wave 1 of 2: lag: a record of a-1 waited 9.0 s\n\
         b: stays as it is: a wave before it went back\n\
         c: stays as it is: its agent is of the Debian package 0.1.0-1, which apt-get upgrades there\n\
         hosts: 0 changed, 1 as they are to be, 1 failed, 1 not yet\n"
    );
    let lost = Trouble::new(Step::Install, "it is not back", "deploy again");
    let left = [
        Outcome::Failed(lost.clone()),
        Outcome::Failed(lost.clone().left_on_trial()),
        Outcome::Back("lag".to_owned()),
        Outcome::Failed(lost.and("more").left_on_trial()),
    ];
    let said = told(&jobs, &left, false);
    let (_, last) = said.rsplit_once("4 failed\n").expect("the sum");
    assert!(
        last.starts_with("ON TRIAL STILL: b, d: a program that nobody has kept may run there; once"),
        "{said}"
    );
    let planned = [
        Outcome::Planned(Vec::new()),
        Outcome::Planned(vec!["install 0.1.0".to_owned()]),
    ];
    assert_eq!(
        told(&jobs[..2], &planned, true),
        "a: nothing to do\nb: would install 0.1.0\nhosts: 1 would be changed, 1 as they are to be, 0 failed\n"
    );
}

#[test]
fn an_upgrade_fails_where_no_agent_counts_and_leaves_packages_to_apt() {
    let mut found = Found::default();
    let known = Plan::default();
    assert!(out_of_upgrade(&found, &known).is_none());
    found.package = "0.1.0-1".to_owned();
    let packaged = out_of_upgrade(&found, &known);
    assert!(
        matches!(&packaged, Some(Outcome::Packaged(package)) if package == "0.1.0-1"),
        "{packaged:?}"
    );
    let unknown = Plan {
        enrol: Some(Enrol::Anew),
        ..Plan::default()
    };
    let Some(Outcome::Failed(trouble)) = out_of_upgrade(&found, &unknown) else {
        panic!("nothing is there to be upgraded");
    };
    assert_eq!(
        trouble.to_string(),
        "check: it has no agent that counts in this fleet, so nothing is there to be upgraded; agentctl deploy puts one there"
    );
}
