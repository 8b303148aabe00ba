//! Each kind of member: what it refuses stands beside what it takes.

use super::*;
use crate::policy::Policy;

fn parsed(sent: wire::FlowRule) -> Result<FlowRule, String> {
    super::parse(&sent).map_err(|mistakes| mistakes.to_string())
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn cidr(text: &str) -> Result<String, String> {
    parsed(wire::FlowRule {
        cidrs: strings(&[text]),
        ..wire::FlowRule::default()
    })
    .map(|rule| rule.to_string())
}

#[test]
fn a_cidr_has_no_bits_beyond_its_length() {
    for (text, taken) in [
        ("10.0.0.0/8", "cidr=10.0.0.0/8"),
        ("192.0.2.7", "cidr=192.0.2.7/32"),
        ("0.0.0.0/0", "cidr=0.0.0.0/0"),
        ("::/0", "cidr=::/0"),
        ("2001:DB8::/32", "cidr=2001:db8::/32"),
        ("fd00::1", "cidr=fd00::1/128"),
    ] {
        assert_eq!(cidr(text).as_deref(), Ok(taken));
    }
    let sample = "write ADDRESS or ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/8";
    let no_address = "has no IP address before its length";
    for (text, why) in [
        (
            "10.1.2.3/8",
            "has bits beyond its length of 8; write 10.0.0.0/8 for the network, 10.1.2.3 for the host"
                .to_owned(),
        ),
        (
            "fd00::1/8",
            "has bits beyond its length of 8; write fd00::/8 for the network, fd00::1 for the host"
                .to_owned(),
        ),
        (
            "10.0.0.0/33",
            "has no length of such an address; write a length of 0 to 32".to_owned(),
        ),
        (
            "fd00::/129",
            "has no length of such an address; write a length of 0 to 128".to_owned(),
        ),
        (
            "10.0.0.0/",
            "has no length of such an address; write a length of 0 to 32".to_owned(),
        ),
        (
            "10.0.0.0/+8",
            "has no length of such an address; write a length of 0 to 32".to_owned(),
        ),
        (
            "10.0.0.0/08",
            "has no length of such an address; write a length of 0 to 32".to_owned(),
        ),
        (
            "::ffff:10.0.0.0/104",
            "is an IPv4 address in IPv6, which no record has; write 10.0.0.0/8".to_owned(),
        ),
        ("", format!("{no_address}; {sample}")),
        ("10.0.0/8", format!("{no_address}; {sample}")),
        ("example.org", format!("{no_address}; {sample}")),
        ("fe80::1%eth0", format!("{no_address}; {sample}")),
    ] {
        assert_eq!(cidr(text), Err(format!("cidrs[0]: {text:?} {why}")));
    }
}

#[test]
fn ports_are_one_or_a_range_that_begins_before_it_ends() {
    let ports = |text: &str| {
        parsed(wire::FlowRule {
            ports: strings(&[text]),
            ..wire::FlowRule::default()
        })
        .map(|rule| rule.ports[0])
    };
    let range = ports("8000-8100").expect("a range");
    assert!([8000, 8050, 8100].into_iter().all(|port| range.contains(port)));
    assert!(
        [1, 7999, 8101, 65535]
            .into_iter()
            .all(|port| !range.contains(port))
    );
    assert_eq!(
        ports("443-443").map(|range| range.to_string()).as_deref(),
        Ok("443")
    );
    assert!(
        ports("1").is_ok_and(|range| range.contains(1))
            && ports("65535").is_ok_and(|range| range.contains(65535))
    );
    assert_eq!(
        ports("8100-8000").expect_err("backwards"),
        "ports[0]: \"8100-8000\" ends before it begins; write 8000-8100"
    );
    for text in [
        "",
        "0",
        "65536",
        "-1",
        "1-",
        "-",
        "80-90-100",
        "http",
        " 80",
        "+80",
        "080",
        "0-10",
    ] {
        assert_eq!(
            ports(text),
            Err(format!(
                "ports[0]: {text:?} is no port; write a number of 1 to 65535, or two of them, such as 8000-8100"
            ))
        );
    }
}

#[test]
fn a_process_is_a_name_or_a_path_from_the_root() {
    let process = |text: &str| {
        parsed(wire::FlowRule {
            processes: strings(&[text]),
            ..wire::FlowRule::default()
        })
        .map(|rule| (rule.processes[0].as_str().to_owned(), rule.processes[0].is_path()))
    };
    assert_eq!(process("nginx"), Ok(("nginx".into(), false)));
    assert_eq!(process("*"), Ok(("*".into(), false)));
    assert_eq!(process("/usr/lib/jvm/*"), Ok(("/usr/lib/jvm/*".into(), true)));
    assert!(process(&"x".repeat(PROCESS_OCTETS_MAX)).is_ok());
    for (text, why) in [
        (String::new(), "is no name"),
        ("bin/x".into(), "is neither a name nor a path from the root"),
        ("a\nb".into(), "has control characters"),
        ("x".repeat(PROCESS_OCTETS_MAX + 1), "is too long"),
    ] {
        let refused = process(&text).expect_err(why);
        assert!(
            refused.starts_with("processes[0]: ") && refused.contains(&format!(" {why}; write ")),
            "{refused}"
        );
    }
}

#[test]
fn a_user_is_a_number_or_a_name() {
    let user = |text: &str| {
        parsed(wire::FlowRule {
            users: strings(&[text]),
            ..wire::FlowRule::default()
        })
        .map(|rule| rule.users[0].clone())
    };
    assert_eq!(user("0"), Ok(User::Id(0)));
    assert_eq!(user("4294967294"), Ok(User::Id(u32::MAX - 1)));
    for name in ["www-data", "DOMAIN\\anna", "a@b", "0x"] {
        assert_eq!(user(name), Ok(User::Name(name.into())));
    }
    for text in ["4294967295", "99999999999"] {
        assert_eq!(
            user(text),
            Err(format!(
                "users[0]: {text:?} is no number of a user; write 0 to 4294967294"
            ))
        );
    }
    for text in ["", "a b", "a:b", "a\tb"] {
        assert_eq!(
            user(text),
            Err(format!(
                "users[0]: {text:?} is no name of a user; write the name of a user, or its number"
            ))
        );
    }
}

#[test]
fn a_cgroup_is_a_path_below_the_root() {
    let cgroup = |text: &str| {
        parsed(wire::FlowRule {
            cgroups: strings(&[text]),
            ..wire::FlowRule::default()
        })
        .map(|rule| rule.cgroups[0].as_str().to_owned())
    };
    assert_eq!(
        cgroup("/system.slice/x.service/").as_deref(),
        Ok("/system.slice/x.service")
    );
    assert_eq!(
        cgroup("/sys/fs/cgroup/system.slice").as_deref(),
        Ok("/system.slice")
    );
    assert_eq!(
        cgroup("/sys/fs/cgroup"),
        Err("cgroups[0]: \"/sys/fs/cgroup\" is the root, which holds the whole host; leave it out".into())
    );
    assert_eq!(
        cgroup("/a/../b"),
        Err(
            "cgroups[0]: \"/a/../b\" has an empty name, '.' or '..' in it; write the path of a cgroup, such as \
             /system.slice/nginx.service"
                .into()
        )
    );
}

#[test]
fn containers_images_and_namespaces_are_names_with_wildcards() {
    type Set = fn(&mut wire::FlowRule) -> &mut Vec<String>;
    type Made = fn(&FlowRule) -> &[NamePattern];
    let kinds: [(&str, Set, Made, bool); 3] = [
        (
            "containers",
            |rule| &mut rule.containers,
            |rule| &rule.containers,
            false,
        ),
        ("images", |rule| &mut rule.images, |rule| &rule.images, true),
        (
            "namespaces",
            |rule| &mut rule.namespaces,
            |rule| &rule.namespaces,
            false,
        ),
    ];
    for (list, set, made, may_have_slash) in kinds {
        let name = |text: &str| {
            let mut sent = wire::FlowRule::default();
            set(&mut sent).push(text.into());
            parsed(sent).map(|rule| made(&rule)[0].as_str().to_owned())
        };
        for text in ["web", "web-*", "*", &"x".repeat(NAME_PATTERN_OCTETS_MAX)] {
            assert_eq!(name(text).as_deref(), Ok(text));
        }
        assert_eq!(name("registry.example/web:1").is_ok(), may_have_slash);
        let mut refused = vec![
            (String::new(), "is no name"),
            ("a b".into(), "has blanks or control characters"),
            ("a\u{1b}b".into(), "has blanks or control characters"),
            ("x".repeat(NAME_PATTERN_OCTETS_MAX + 1), "is too long"),
        ];
        if !may_have_slash {
            refused.push(("shop/web".into(), "has a slash, which no such name has"));
        }
        for (text, why) in refused {
            let said = name(&text).expect_err(why);
            assert!(
                said.starts_with(&format!("{list}[0]: ")) && said.contains(&format!(" {why}; write ")),
                "{said}"
            );
        }
    }
}

#[test]
fn a_pod_label_is_a_key_with_or_without_a_value() {
    let label = |text: &str| {
        parsed(wire::FlowRule {
            pod_labels: strings(&[text]),
            ..wire::FlowRule::default()
        })
        .map(|rule| (rule.pod_labels[0].key.clone(), rule.pod_labels[0].value.clone()))
    };
    assert_eq!(
        label("app.kubernetes.io/name=web"),
        Ok(("app.kubernetes.io/name".into(), Some("web".into())))
    );
    assert_eq!(label("app"), Ok(("app".into(), None)));
    assert_eq!(label("app="), Ok(("app".into(), Some(String::new()))));
    assert!(label(&"k".repeat(POD_LABEL_KEY_OCTETS_MAX)).is_ok());
    assert!(label(&format!("k={}", "v".repeat(POD_LABEL_VALUE_OCTETS_MAX))).is_ok());
    for (text, why) in [
        (String::new(), "has no key of a label"),
        ("=web".into(), "has no key of a label"),
        ("a b=web".into(), "has no key of a label"),
        ("k".repeat(POD_LABEL_KEY_OCTETS_MAX + 1), "has no key of a label"),
        ("app=a b".into(), "has no value of a label"),
        ("app=a=b".into(), "has no value of a label"),
        (
            format!("k={}", "v".repeat(POD_LABEL_VALUE_OCTETS_MAX + 1)),
            "has no value of a label",
        ),
    ] {
        let said = label(&text).expect_err(why);
        assert!(said.starts_with("podLabels[0]: ") && said.contains(why), "{said}");
    }
}

#[test]
fn a_rule_is_printed_as_it_is_given_to_up() {
    let rule = parsed(wire::FlowRule {
        ports: strings(&["443"]),
        containers: strings(&["web-*"]),
        images: strings(&["*/web:*"]),
        namespaces: strings(&["shop"]),
        pod_labels: strings(&["app=web", "tier"]),
        ..wire::FlowRule::default()
    });
    assert_eq!(
        rule.map(|rule| rule.to_string()).as_deref(),
        Ok("port=443,container=web-*,image=*/web:*,namespace=shop,pod-label=app=web,pod-label=tier")
    );
}

#[test]
fn an_empty_rule_and_one_with_too_many_members_are_refused() {
    assert_eq!(
        parsed(wire::FlowRule::default()),
        Err(
            "has no member, and would match every flow; write cidrs, ports, processes, users, cgroups, containers, images, \
             namespaces or podLabels into it, or leave the rule out"
                .into()
        )
    );
    let with = |ports: usize| {
        parsed(wire::FlowRule {
            ports: (1..=ports).map(|port| port.to_string()).collect(),
            users: vec!["root".into()],
            ..wire::FlowRule::default()
        })
    };
    assert!(with(RULE_MEMBERS_MAX - 1).is_ok());
    assert_eq!(
        with(RULE_MEMBERS_MAX),
        Err("has 65 members; write at most 64 in all its lists, or a second rule".into())
    );
    let doubled = parsed(wire::FlowRule {
        cidrs: strings(&["10.0.0.1", "10.0.0.1/32"]),
        ..wire::FlowRule::default()
    });
    assert_eq!(
        doubled,
        Err("cidrs[1]: \"10.0.0.1/32\" is there twice; write it once".into())
    );
}

#[test]
fn every_mistake_of_a_capture_is_told_at_once_with_its_place() {
    let rule = |cidr: &str, port: &str| wire::FlowRule {
        cidrs: strings(&[cidr]),
        ports: strings(&[port]),
        ..wire::FlowRule::default()
    };
    let sent = wire::Policy {
        capture: Some(wire::Capture {
            include: vec![rule("10.0.0.0/8", "1"), rule("10.0.0.1/8", "0")],
            exclude: vec![wire::FlowRule::default()],
            sampling: Some(wire::Sampling { one_in: Some(0) }),
            ..wire::Capture::default()
        }),
        limits: Some(wire::Limits {
            cpu_permille: Some(0),
            memory_octets: Some(1),
        }),
        ..wire::Policy::default()
    };
    let refused = Policy::try_from(sent).expect_err("six mistakes");
    let told: Vec<String> = refused.iter().map(|mistake| mistake.path.clone()).collect();
    assert_eq!(
        told,
        [
            "capture.include[1].cidrs[0]",
            "capture.include[1].ports[0]",
            "capture.exclude[0]",
            "capture.sampling.oneIn",
            "limits.cpuPermille",
            "limits.memoryOctets"
        ]
    );
    assert!(refused.iter().all(|mistake| !mistake.remedy.is_empty()));
}

#[test]
fn a_list_has_its_most_rules_and_no_more() {
    let with = |rules: usize| {
        let rule = |port: usize| wire::FlowRule {
            ports: vec![port.to_string()],
            ..wire::FlowRule::default()
        };
        Policy::try_from(wire::Policy {
            capture: Some(wire::Capture {
                include: (1..=rules).map(rule).collect(),
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        })
        .map(|policy| policy.capture.include.len())
        .map_err(|mistakes| mistakes.to_string())
    };
    assert_eq!(with(RULES_MAX), Ok(RULES_MAX));
    assert_eq!(
        with(RULES_MAX + 1),
        Err("capture.include: has 65 rules; write at most 64, some of them wider".into())
    );
}
