//! The planner against a model that executes its steps.

use std::collections::BTreeSet;

use flowtilla_proto::wire;
use proptest::prelude::*;

use super::*;

#[test]
fn the_plan_of_the_wanted_state_is_empty() {
    let wanted = wanted(&Choice::default());
    let in_force = reached(&wanted);
    assert_eq!(plan(&in_force, &wanted), []);
}

#[test]
fn from_nothing_sinks_come_before_their_source() {
    let wanted = wanted(&Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    });
    let kinds = kinds(&plan(&InForce::default(), &wanted));
    assert_eq!(
        kinds,
        [
            "metering",
            "naming",
            "containers",
            "buffer",
            "start c0",
            "start c1",
            "attach"
        ]
    );
}

#[test]
fn to_nothing_the_source_goes_before_its_sinks() {
    let all = wanted(&Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    });
    let mut in_force = reached(&all);
    let steps = plan(&in_force, &Wanted::nothing());
    assert_eq!(kinds(&steps), ["detach", "forget c0", "forget c1"]);
    execute(&mut in_force, &steps);
    assert_eq!(plan(&in_force, &Wanted::nothing()), []);
}

#[test]
fn a_drained_agent_lets_go_of_capture_alone_and_takes_it_up_again() {
    let all = wanted(&Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    });
    let mut in_force = reached(&all);
    let drained = all.clone().drained();
    let steps = plan(&in_force, &drained);
    assert_eq!(kinds(&steps), ["detach"]);
    execute(&mut in_force, &steps);
    assert_eq!(plan(&in_force, &drained), []);
    assert_eq!(kinds(&plan(&in_force, &all)), ["attach"]);
    // One that starts so feeds its collectors with what waits.
    let started = kinds(&plan(&InForce::default(), &drained));
    assert!(
        started.contains(&"start c0".to_owned()) && !started.contains(&"attach".to_owned()),
        "{started:?}"
    );
}

#[test]
fn a_change_touches_only_what_changed() {
    let before = Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    };
    for (after, steps) in [
        (
            Choice {
                idle_s: 20,
                ..before.clone()
            },
            vec!["metering"],
        ),
        (
            Choice {
                command_line: 3,
                ..before.clone()
            },
            vec!["naming"],
        ),
        (
            Choice {
                container_names: false,
                ..before.clone()
            },
            vec!["containers"],
        ),
        (
            Choice {
                udp: false,
                ..before.clone()
            },
            vec!["detach", "attach"],
        ),
        (
            Choice {
                collectors: vec![(1, 1)],
                ..before.clone()
            },
            vec!["forget c0"],
        ),
        (
            Choice {
                collectors: vec![(1, 1), (0, 1)],
                ..before.clone()
            },
            vec![],
        ),
        (
            Choice {
                collectors: vec![(0, 1), (1, 1), (2, 1)],
                ..before.clone()
            },
            vec!["start c2"],
        ),
        (
            Choice {
                collectors: vec![(0, 2), (1, 1)],
                ..before.clone()
            },
            vec!["stop c0", "start c0"],
        ),
        (
            Choice {
                as_is: true,
                ..before.clone()
            },
            vec!["stop c0", "stop c1", "start c0", "start c1"],
        ),
        (
            Choice {
                sync_ms: 100,
                ..before.clone()
            },
            vec!["buffer"],
        ),
        (
            Choice {
                rules: 3,
                ..before.clone()
            },
            vec!["filter"],
        ),
        (
            Choice {
                one_in: 4,
                ..before.clone()
            },
            vec!["filter"],
        ),
        (
            Choice {
                memory_mib: Some(64),
                ..before.clone()
            },
            vec!["limits"],
        ),
        (
            Choice {
                failover: true,
                ..before.clone()
            },
            vec!["forget c0", "forget c1", "start failover"],
        ),
    ] {
        let in_force = reached(&wanted(&before));
        assert_eq!(kinds(&plan(&in_force, &wanted(&after))), steps, "{after:?}");
    }
}

#[test]
fn another_number_of_flows_sizes_the_maps_of_the_kernel_anew() {
    let before = wanted(&Choice::default());
    let mut in_force = InForce::default();
    let steps = plan(&in_force, &before);
    execute(&mut in_force, &steps);
    let mut after = before;
    after.policy.as_mut().expect("a policy").capture.max_flows *= 4;
    let steps = plan(&in_force, &after);
    assert_eq!(kinds(&steps), ["detach", "metering", "attach"]);
    execute(&mut in_force, &steps);
    assert_reached(&in_force, &after);
}

#[test]
fn rules_that_go_leave_every_flow_kept_and_nothing_is_detached_for_them() {
    let with = |rules, one_in, memory_mib| {
        wanted(&Choice {
            rules,
            one_in,
            memory_mib,
            ..Choice::default()
        })
    };
    let full = with(3, 4, Some(64));
    let mut in_force = InForce::default();
    let steps = plan(&in_force, &full);
    assert_eq!(
        kinds(&steps),
        [
            "metering",
            "naming",
            "containers",
            "filter",
            "limits",
            "buffer",
            "start c0",
            "attach"
        ]
    );
    execute(&mut in_force, &steps);
    assert!(!in_force.filtering().keeps_everything());
    let steps = plan(&in_force, &with(0, 1, None));
    assert_eq!(kinds(&steps), ["filter", "limits"]);
    execute(&mut in_force, &steps);
    assert!(in_force.filtering().keeps_everything());
    assert_eq!(in_force.limits(), Limits::default());
}

#[test]
fn a_collector_that_changes_keeps_its_slot_and_one_that_goes_leaves_its_slot_unused() {
    let first = wanted(&Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    });
    let in_force = reached(&first);
    let second = wanted(&Choice {
        collectors: vec![(2, 1), (1, 2)],
        ..Choice::default()
    });
    let slots: Vec<(String, u8)> = plan(&in_force, &second)
        .iter()
        .filter_map(|step| match step {
            Step::StartCollector(exporting) => Some((exporting.name.to_string(), exporting.slot.0)),
            _ => None,
        })
        .collect();
    assert_eq!(slots, [("c1".to_owned(), 1), ("c2".to_owned(), 2)]);
}

#[test]
fn collectors_that_the_policy_names_must_exist_and_names_are_used_once() {
    let policy = policy(&Choice {
        collectors: vec![(0, 1), (1, 1)],
        ..Choice::default()
    });
    let refused =
        Wanted::new(policy.clone(), vec![collector(0, 1), collector(0, 2)]).expect_err("two mistakes");
    assert_eq!(
        refused.to_string(),
        "collectors[1].name: \"c0\" is another collector's name too; give each collector a name of its own\n\
         export.collectors[1]: \"c1\" is no collector that exists; name one that does, or make a Collector of this name"
    );
    let unused =
        Wanted::new(policy, vec![collector(2, 1), collector(1, 1), collector(0, 1)]).expect("all exist");
    let names: Vec<&str> = unused
        .collectors()
        .iter()
        .map(|collector| collector.name.as_str())
        .collect();
    assert_eq!(names, ["c0", "c1"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any state that was reached, each plan leads to what is wanted, in one go or broken off anywhere.
    #[test]
    fn executing_plans_leads_to_what_is_wanted(
        history in prop::collection::vec((prop::option::of(choices()), 0_usize..12), 1..6)
    ) {
        let mut in_force = InForce::default();
        for (choice, broken_off_after) in &history {
            let wanted = choice.as_ref().map_or_else(Wanted::nothing, wanted);
            let steps = plan(&in_force, &wanted);
            prop_assert_eq!(&steps, &plan(&in_force, &wanted), "the same question, another answer");
            let broken_off_after = (*broken_off_after).min(steps.len());
            execute(&mut in_force, &steps[..broken_off_after]);
            let rest = plan(&in_force, &wanted);
            execute(&mut in_force, &rest);
            prop_assert_eq!(plan(&in_force, &wanted), vec![]);
            assert_reached(&in_force, &wanted);
        }
    }
}

/// What the tests vary.
#[derive(Clone, Debug)]
struct Choice {
    udp: bool,
    scope: Option<u8>,
    idle_s: u64,
    command_line: i32,
    container_names: bool,
    as_is: bool,
    sync_ms: u64,
    /// Bit 0: an include rule, bit 1: an exclude rule.
    rules: u8,
    one_in: u64,
    memory_mib: Option<u64>,
    /// Only with two collectors or more.
    failover: bool,
    /// Number and version of each collector.
    collectors: Vec<(u8, u16)>,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            udp: true,
            scope: None,
            idle_s: 15,
            command_line: 2,
            container_names: true,
            as_is: false,
            sync_ms: 500,
            rules: 0,
            one_in: 1,
            memory_mib: None,
            failover: false,
            collectors: vec![(0, 1)],
        }
    }
}

fn choices() -> impl Strategy<Value = Choice> {
    let collectors = prop::collection::btree_map(0..COLLECTORS_MAX as u8, 1_u16..3, 0..=COLLECTORS_MAX)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle();
    (
        any::<bool>(),
        prop::option::of(0_u8..2),
        10_u64..12,
        (1..=3, any::<bool>()),
        any::<bool>(),
        500_u64..502,
        (0_u8..4, 1_u64..3, prop::option::of(64_u64..66)),
        any::<bool>(),
        collectors,
    )
        .prop_map(
            |(
                udp,
                scope,
                idle_s,
                (command_line, container_names),
                as_is,
                sync_ms,
                content,
                failover,
                collectors,
            )| Choice {
                udp,
                scope,
                idle_s,
                command_line,
                container_names,
                as_is,
                sync_ms,
                rules: content.0,
                one_in: content.1,
                memory_mib: content.2,
                failover: failover && collectors.len() > 1,
                collectors,
            },
        )
}

fn policy(choice: &Choice) -> Policy {
    let scopes = choice.scope.map(|n| wire::Scope {
        part: Some(wire::scope::Part::Cgroup(format!("/{n}"))),
    });
    let rule = |bit: u8, port: &str| {
        let rule = wire::FlowRule {
            ports: vec![port.to_owned()],
            ..wire::FlowRule::default()
        };
        (choice.rules & bit != 0).then_some(rule).into_iter().collect()
    };
    Policy::try_from(wire::Policy {
        limits: Some(wire::Limits {
            cpu_permille: None,
            memory_octets: choice.memory_mib.map(|mib| mib << 20),
        }),
        capture: Some(wire::Capture {
            include: rule(1, "443"),
            exclude: rule(2, "5556"),
            sampling: Some(wire::Sampling {
                one_in: Some(choice.one_in),
            }),
            udp: Some(choice.udp),
            scopes: scopes.into_iter().collect(),
            idle_timeout_ms: Some(choice.idle_s * 1_000),
            ..wire::Capture::default()
        }),
        enrich: Some(wire::Enrich {
            command_line: choice.command_line,
            containers: Some(wire::Containers {
                names: Some(choice.container_names),
                sockets: Vec::new(),
            }),
        }),
        export: Some(wire::Export {
            collectors: choice.collectors.iter().map(|(n, _)| format!("c{n}")).collect(),
            loopback: if choice.as_is {
                wire::Loopback::AsIs
            } else {
                wire::Loopback::HostAddress
            }
            .into(),
            mode: if choice.failover {
                wire::Mode::Failover
            } else {
                wire::Mode::Mirror
            }
            .into(),
            ..wire::Export::default()
        }),
        buffer: Some(wire::Buffer {
            sync_interval_ms: Some(choice.sync_ms),
            ..wire::Buffer::default()
        }),
        ..wire::Policy::default()
    })
    .expect("the choice is sound")
}

fn collector(n: u8, version: u16) -> flowtilla_proto::collector::Collector {
    wire::Collector {
        name: format!("c{n}"),
        endpoint: format!("tcp://192.0.2.{n}:{version}"),
        ..wire::Collector::default()
    }
    .try_into()
    .expect("the collector is sound")
}

fn wanted(choice: &Choice) -> Wanted {
    let collectors = choice
        .collectors
        .iter()
        .map(|&(n, version)| collector(n, version))
        .collect();
    Wanted::new(policy(choice), collectors).expect("all collectors exist")
}

/// The model of an agent that began with nothing and executed the plan.
fn reached(wanted: &Wanted) -> InForce {
    let mut in_force = InForce::default();
    let steps = plan(&in_force, wanted);
    execute(&mut in_force, &steps);
    in_force
}

/// The model of an agent: it refuses steps that a real one could not do.
fn execute(in_force: &mut InForce, steps: &[Step]) {
    for step in steps {
        match step {
            Step::DetachCapture => assert!(in_force.capture().is_some(), "nothing is attached"),
            Step::AttachCapture(_) => assert!(in_force.capture().is_none(), "attached twice"),
            Step::StopCollector(name) | Step::ForgetCollector(name) => {
                assert!(
                    in_force.collectors().any(|held| held.name == *name),
                    "it is not fed"
                );
            }
            Step::StartCollector(new) => {
                assert!(
                    in_force.collectors().all(|held| held.name != new.name),
                    "fed twice"
                );
                assert!(
                    in_force.collectors().all(|held| held.slot != new.slot),
                    "one slot, two collectors"
                );
            }
            Step::UpdateMetering(_)
            | Step::UpdateNaming(_)
            | Step::UpdateContainers(_)
            | Step::UpdateFilter(_)
            | Step::UpdateLimits(_)
            | Step::UpdateBuffer(_) => {}
        }
        in_force.apply(step);
        let once = in_force.clone();
        in_force.apply(step);
        assert_eq!(*in_force, once, "{step:?} is not idempotent");
    }
}

fn assert_reached(in_force: &InForce, wanted: &Wanted) {
    assert_eq!(in_force.capture().cloned(), wanted.policy().map(capture_of));
    if let Some(policy) = wanted.policy() {
        assert_eq!(in_force.metering(), Some(metering_of(policy)));
        assert_eq!(in_force.naming(), Some(policy.enrich.command_line));
        assert_eq!(in_force.containers(), Some(&policy.enrich.containers));
        assert_eq!(*in_force.filtering(), filtering_of(policy));
        assert_eq!(in_force.limits(), policy.limits);
        assert_eq!(in_force.buffer(), Some(policy.buffer));
        assert!(
            in_force
                .collectors()
                .all(|held| held.terms.loopback == policy.export.loopback)
        );
    }
    let fed: BTreeSet<String> = in_force
        .collectors()
        .flat_map(|held| held.collectors.iter().map(|collector| format!("{collector:?}")))
        .collect();
    let asked: BTreeSet<String> = wanted
        .collectors()
        .iter()
        .map(|collector| format!("{collector:?}"))
        .collect();
    assert_eq!(fed, asked);
    assert!(in_force.collectors().all(|held| held.slot.0 < SLOTS));
}

fn kinds(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .map(|step| match step {
            Step::DetachCapture => "detach".to_owned(),
            Step::StopCollector(name) => format!("stop {name}"),
            Step::ForgetCollector(name) => format!("forget {name}"),
            Step::UpdateMetering(_) => "metering".to_owned(),
            Step::UpdateNaming(_) => "naming".to_owned(),
            Step::UpdateContainers(_) => "containers".to_owned(),
            Step::UpdateFilter(_) => "filter".to_owned(),
            Step::UpdateLimits(_) => "limits".to_owned(),
            Step::UpdateBuffer(_) => "buffer".to_owned(),
            Step::StartCollector(exporting) => format!("start {}", exporting.name),
            Step::AttachCapture(_) => "attach".to_owned(),
        })
        .collect()
}
