use flowtilla_proto::wire::fleet::AgentState;
use flowtilla_proto::wire::session::Hello;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

const SOUND: &str =
    "arch=x86_64\nkernel=6.1.0-50-cloud-amd64\nlibc=glibc 2.36\nsystemd=252\nbtf=yes\ncgroup2=yes\n";

fn found(more: &str) -> Found {
    Found::read(&format!("Welcome to web-1!\n{BEGINS}\n{SOUND}{more}")).expect("an answer")
}

/// What `probe` says of a host that has everything.
fn complete(version: &str) -> String {
    let id = "spiffe://fleet.test/agent/web-1-a";
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    let key = KeyPair::generate().expect("a key");
    let chain = params.self_signed(&key).expect("signed").pem();
    format!(
        "program=p1\nversion=flowtilla-agent {version}\nunit=u1\nsettings=s1\nactive=active\nenabled=enabled\nreload=no\n{CHAIN}\n{chain}"
    )
}

fn program(digest: &str) -> Program {
    Program {
        octets: Vec::new().into(),
        digest: digest.to_owned(),
        machine: "x86_64",
        glibc: Glibc(34),
        version: "0.2.0".to_owned(),
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn agent(state: AgentState, of_group: &[(&str, &str)], own: &[(&str, &str)]) -> Agent {
    Agent {
        id: "web-1-a".to_owned(),
        labels: labels(&[of_group, own].concat()),
        state: state.into(),
        hello: Some(Hello {
            labels: labels(own),
            ..Hello::default()
        }),
        ..Agent::default()
    }
}

fn planned(found: &Found, program: &Program, agent: Option<&Agent>) -> Plan {
    let wanted = Wanted {
        program,
        unit: "u1",
        settings: "s1",
        access: "",
        labels: &labels(&[("role", "web")]),
    };
    plan(found, &wanted, agent)
}

#[test]
fn the_plan_of_a_host_that_has_everything_is_empty() {
    let agent = agent(AgentState::Offline, &[("role", "web")], &[("rack", "7")]);
    let plan = planned(&found(&complete("0.2.0")), &program("p1"), Some(&agent));
    assert!(plan.is_empty() && !plan.is_weighty(), "{plan:?}");
    assert_eq!(plan.steps("0.2.0"), Vec::<String>::new());
}

#[test]
fn a_bare_host_gets_everything() {
    let plan = planned(&found("program=\nunit=\nsettings=\n"), &program("p1"), None);
    assert_eq!(
        plan,
        Plan {
            program: Some(Replace::Install),
            unit: true,
            settings: true,
            access: None,
            trial: false,
            enrol: Some(Enrol::Anew),
            service: Some(Service::Restart),
            newer: None,
        }
    );
    assert_eq!(plan.steps("0.2.0"), ["install 0.2.0", "enrol it"]);
}

#[test]
fn an_older_agent_is_upgraded_and_a_newer_one_stays() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let of = |version: &str| planned(&found(&complete(version)), &program("p2"), Some(&agent));
    assert_eq!(of("0.1.9").steps("0.2.0"), ["upgrade 0.1.9 to 0.2.0"]);
    assert_eq!(
        of("0.2.0").steps("0.2.0"),
        ["upgrade 0.2.0 to another build of it"]
    );
    assert_eq!(of("").steps("0.2.0"), ["upgrade to 0.2.0"]);
    let newer = of("0.10.0");
    assert_eq!(newer.newer.as_deref(), Some("0.10.0"));
    assert!(newer.is_empty());
}

#[test]
fn a_program_on_trial_is_watched_and_one_that_does_not_run_yet_is_restarted() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let of = |more: &str| {
        planned(
            &found(&format!("{more}\n{}", complete("0.2.0"))),
            &program("p1"),
            Some(&agent),
        )
    };
    let plan = of("trial=yes");
    assert!(
        plan.is_upgrade() && !plan.is_empty() && plan.service.is_none(),
        "{plan:?}"
    );
    assert_eq!(plan.steps("0.2.0"), ["watch 0.2.0, which is on trial"]);
    let plan = of("stale=yes");
    assert_eq!((plan.service, plan.is_upgrade()), (Some(Service::Restart), false));
    // An identity that does not count: nobody could watch it.
    let plan = planned(
        &found(&format!("trial=yes\n{}", complete("0.2.0"))),
        &program("p2"),
        None,
    );
    assert!(!plan.is_upgrade(), "{plan:?}");
}

#[test]
fn access_to_runtimes_is_given_and_taken_and_asked_about() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let program = program("p1");
    for (there, access, step) in [
        ("", "a1", Some("let it use runtimes' sockets")),
        ("access=a1", "a1", None),
        ("access=a1", "a2", Some("let it use runtimes' sockets")),
        ("access=a1", "", Some("let it use no runtimes' sockets any more")),
    ] {
        let found = found(&format!("{there}\n{}", complete("0.2.0")));
        let wanted = Wanted {
            program: &program,
            unit: "u1",
            settings: "s1",
            access,
            labels: &labels(&[("role", "web")]),
        };
        let plan = plan(&found, &wanted, Some(&agent));
        assert_eq!(
            plan.steps("0.2.0"),
            step.into_iter().collect::<Vec<_>>(),
            "{there} {access}"
        );
        assert_eq!(plan.is_weighty(), step.is_some());
        assert_eq!(plan.service.is_some(), step.is_some());
    }
}

#[test]
fn an_agent_with_the_groups_labels_is_kept_and_one_that_does_not_count_is_replaced() {
    let there = found(&complete("0.2.0"));
    let web = &[("role", "web")][..];
    for (agent, wanted) in [
        (Some(agent(AgentState::Connected, web, &[])), None),
        (Some(agent(AgentState::AwaitingApproval, web, &[])), None),
        (None, Some(Enrol::Anew)),
        (
            Some(agent(AgentState::Connected, &[("role", "db")], &[])),
            Some(Enrol::Labels),
        ),
        (
            Some(agent(
                AgentState::Connected,
                &[("role", "web"), ("site", "a")],
                &[],
            )),
            Some(Enrol::Labels),
        ),
        (Some(agent(AgentState::Connected, &[], &[])), Some(Enrol::Labels)),
    ] {
        assert_eq!(
            planned(&there, &program("p1"), agent.as_ref()).enrol,
            wanted,
            "{agent:?}"
        );
    }
}

#[test]
fn who_does_not_prove_who_it_is_is_left_alone_unless_another_program_may_prove_it() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let claims = |why| Who::Claims("web-1-a".to_owned(), why);
    let silent = || Unproven::Silent("its program ended with exit code 1: x".to_owned());
    let refuted = || Unproven::Refuted("the signature is not by the SVID's key".to_owned());
    for (who, more, digest, believed) in [
        (Who::Proven("web-1-a".to_owned()), "", "p1", true),
        (claims(Unproven::Older), "", "p1", false),
        (claims(Unproven::Older), "", "p2", true),
        (claims(silent()), "", "p1", false),
        (claims(silent()), "", "p2", true),
        (claims(silent()), "trial=yes\n", "p1", true),
        (claims(refuted()), "", "p2", false),
        (claims(refuted()), "trial=yes\n", "p1", false),
        (claims(Unproven::Controller), "", "p2", false),
        // There is no program, only what it left.
        (claims(silent()), "program=\n", "p1", true),
        (claims(refuted()), "program=\n", "p1", false),
    ] {
        let rest = match more {
            "program=\n" => complete("0.2.0").replace("program=p1\n", ""),
            _ => complete("0.2.0"),
        };
        let mut there = found(&format!("{more}{rest}"));
        there.who = who;
        let plan = planned(&there, &program(digest), Some(&agent));
        let told = believe(&there, &plan);
        assert_eq!(told.is_ok(), believed, "{:?} {more}{digest}: {told:?}", there.who);
        if let Err(trouble) = told {
            let begins = "prove: it says that it is web-1-a, and does not prove it: ";
            assert!(trouble.to_string().starts_with(begins), "{trouble}");
        }
    }
}

#[test]
fn an_older_agent_of_a_package_is_told_to_be_upgraded_by_apt_and_no_other_is() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let refuted = Unproven::Refuted("the signature is not by the SVID's key".to_owned());
    for (more, why, by_apt) in [
        ("package=0.1.0-1\n", Unproven::Older, true),
        ("package=0.1.0-1\n", refuted, false),
        ("", Unproven::Older, false),
    ] {
        let mut there = found(&format!("{more}{}", complete("0.1.0")));
        there.who = Who::Claims("web-1-a".to_owned(), why);
        let plan = planned(&there, &program("p1"), Some(&agent));
        let told = believe(&there, &plan).expect_err("unproven").to_string();
        let apt = told.ends_with("; apt-get upgrade there brings one that can; then deploy again");
        assert_eq!(apt, by_apt, "{told}");
        assert_eq!(told.contains("agentctl revoke agent"), !by_apt, "{told}");
    }
}

#[test]
fn a_service_that_is_down_is_started_and_one_that_changed_is_restarted() {
    let agent = agent(AgentState::Offline, &[("role", "web")], &[]);
    for (is, becomes, service) in [
        ("active=active", "active=failed", Some(Service::Start)),
        ("enabled=enabled", "enabled=disabled", Some(Service::Start)),
        ("reload=no", "reload=yes", Some(Service::Restart)),
        ("settings=s1", "settings=s0", Some(Service::Restart)),
        ("unit=u1", "unit=u0", Some(Service::Restart)),
    ] {
        let there = found(&complete("0.2.0").replace(is, becomes));
        let plan = planned(&there, &program("p1"), Some(&agent));
        assert_eq!(plan.service, service, "{becomes}");
        assert!(!plan.is_empty() && !plan.is_weighty() && !plan.steps("0.2.0").is_empty());
    }
}

#[test]
fn a_host_that_lacks_something_is_told_what_and_what_to_do() {
    for (has, has_instead, told) in [
        (
            "libc=glibc 2.36",
            "libc=glibc 2.28",
            "check: the host has glibc 2.28, the agent's program needs 2.34; name the program that runs on glibc 2.28 and later",
        ),
        (
            "libc=glibc 2.36",
            "libc=glibc 2.27",
            "check: the host has glibc 2.27, the agent's program needs 2.34; take the host out of the group",
        ),
        ("libc=glibc 2.36", "libc=", "check: the host has no glibc;"),
        (
            "arch=x86_64",
            "arch=riscv64",
            "check: the host is riscv64, the agent's program is for x86_64;",
        ),
        (
            "kernel=6.1.0",
            "kernel=5.10.0",
            "check: the host's kernel is 5.10.0-50-cloud-amd64;",
        ),
        (
            "btf=yes",
            "",
            "check: the host's kernel has no /sys/kernel/btf/vmlinux;",
        ),
        ("cgroup2=yes", "", "check: the host has no cgroup2 mount;"),
        ("systemd=252", "systemd=", "check: the host does not run systemd;"),
        ("systemd=252", "systemd=241", "check: the host has systemd 241;"),
    ] {
        let text = format!("{BEGINS}\n{}", SOUND.replace(has, has_instead));
        let there = Found::read(&text).expect("an answer");
        let trouble = fits(&there, &program("p1"), &BTreeSet::new())
            .expect_err(has_instead)
            .to_string();
        assert!(trouble.starts_with(told), "{trouble}");
    }
    assert_eq!(fits(&found(""), &program("p1"), &BTreeSet::new()), Ok(()));
    let docker = BTreeSet::from([Runtime::Docker]);
    let trouble = fits(&found("group-root=yes"), &program("p1"), &docker).expect_err("no such group");
    assert!(
        trouble
            .to_string()
            .starts_with("check: the host has no group docker; install docker there"),
        "{trouble}"
    );
    assert_eq!(fits(&found("group-docker=yes"), &program("p1"), &docker), Ok(()));
    let noise = Found::read("This account is not available.\n").expect_err("no answer");
    assert!(noise.to_string().starts_with("probe: what came back"), "{noise}");
}

#[test]
fn an_agent_of_a_package_keeps_its_program_and_its_unit() {
    let agent = agent(AgentState::Connected, &[("role", "web")], &[]);
    let packaged = format!("package=0.1.0-1\n{}", complete("0.1.0"));
    let there = found(&packaged.replace("unit=u1", "unit=u0"));
    let plan = planned(&there, &program("p2"), Some(&agent));
    assert!(plan.is_empty(), "{plan:?}");
    let bare = found("package=0.1.0-1\nprogram=p1\nunit=u0\nsettings=s0\nactive=inactive\nenabled=enabled\n");
    let plan = planned(&bare, &program("p2"), None);
    assert!(plan.program.is_none() && !plan.unit && plan.settings);
    assert_eq!(
        (plan.enrol, plan.service),
        (Some(Enrol::Anew), Some(Service::Restart))
    );
    let mut other = program("p2");
    other.glibc = Glibc(99);
    fits(&there, &other, &BTreeSet::new()).expect("its own program is there");
}
