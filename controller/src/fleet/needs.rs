//! What an agent must understand to do what an assignment says, and nothing else.
//!
//! In: an assignment, made of objects that were validated when they were deployed. Out: [`Need`]s, each [`Feature`] once, at the
//! first place that asks for it. Pure.
//!
//! Every message is taken apart whole here, and every enum by all its members: what is added to the API does not compile until
//! it is decided whether an agent that does not know it would do something else. What only makes an agent do as every agent
//! did before needs nothing.
//! Source: `session.proto`, Feature.

use flowtilla_proto::wire::session::{Assignment, Feature};
use flowtilla_proto::wire::{self, CommandLine, Encoding, HeaderVersion, Loopback, Mode, OnCollectorRestart};

/// A feature, and what asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// What the agent must understand.
    pub feature: Feature,
    /// Path of the field in the assignment, as a nack has it: `capture.exclude[0].podLabels`.
    pub path: String,
    /// The field, for people: `capture.exclude[0].podLabels of policy edge`.
    pub what: String,
    /// How to do without it, for people: `take it out of policy edge`.
    pub remedy: String,
}

/// Those of an assignment, in the order of its fields.
#[must_use]
pub fn needs(assignment: &Assignment) -> Vec<Need> {
    let Assignment {
        policy,
        collectors,
        // For people.
        revision: _,
        drain,
    } = assignment;
    let mut needs = Needs::default();
    policy.iter().for_each(|policy| needs.of_policy(policy));
    for (n, collector) in collectors.iter().enumerate() {
        needs.of_collector(n, collector);
    }
    if *drain {
        needs.add(Feature::Drain, "drain".to_owned(), || {
            let remedy = "let it go on (agentctl agents drain --undo)";
            ("drain".to_owned(), remedy.to_owned())
        });
    }
    needs.0
}

#[derive(Default)]
struct Needs(Vec<Need>);

impl Needs {
    /// `words`: what it is, and how to do without it.
    fn add(&mut self, feature: Feature, path: String, words: impl FnOnce() -> (String, String)) {
        if self.0.iter().all(|need| need.feature != feature) {
            let (what, remedy) = words();
            self.0.push(Need {
                feature,
                path,
                what,
                remedy,
            });
        }
    }

    fn of_policy(&mut self, policy: &wire::Policy) {
        let wire::Policy {
            name,
            // The controller's own.
            selector: _,
            priority: _,
            rollout: _,
            capture,
            enrich,
            export,
            limits,
            buffer,
        } = policy;
        if let Some(wire::Capture {
            tcp: _,
            udp: _,
            scopes,
            max_flows: _,
            active_timeout_ms: _,
            idle_timeout_ms: _,
            include,
            exclude,
            sampling,
        }) = capture
        {
            for wire::Scope { part } in scopes {
                match part {
                    None | Some(wire::scope::Part::Cgroup(_) | wire::scope::Part::Netns(_)) => {}
                }
            }
            for (list, rules) in [("include", include), ("exclude", exclude)] {
                for (n, rule) in rules.iter().enumerate() {
                    self.of_rule(&format!("capture.{list}[{n}]"), name, rule);
                }
            }
            match sampling {
                None | Some(wire::Sampling { one_in: _ }) => {}
            }
        }
        if let Some(enrich) = enrich {
            self.of_enrich(name, enrich);
        }
        if let Some(export) = export {
            let wire::Export {
                collectors: _,
                loopback: _,
                mode: _,
                fail_after_ms: _,
                fail_back_after_ms: _,
            } = export;
            match export.mode() {
                Mode::Unspecified | Mode::Mirror | Mode::Failover => {}
            }
            match export.loopback() {
                Loopback::Unspecified | Loopback::HostAddress | Loopback::Omit | Loopback::AsIs => {}
            }
        }
        match limits {
            None
            | Some(wire::Limits {
                cpu_permille: _,
                memory_octets: _,
            }) => {}
        }
        match buffer {
            None
            | Some(wire::Buffer {
                octets_max: _,
                age_max_ms: _,
                free_octets_min: _,
                sync_interval_ms: _,
            }) => {}
        }
    }

    /// A list that an agent does not know does not narrow the rule there.
    fn of_rule(&mut self, at: &str, policy: &str, rule: &wire::FlowRule) {
        let wire::FlowRule {
            cidrs: _,
            ports: _,
            processes: _,
            users: _,
            cgroups: _,
            containers,
            images,
            namespaces,
            pod_labels,
        } = rule;
        for (list, field, feature) in [
            (containers, "containers", Feature::RuleContainers),
            (images, "images", Feature::RuleImages),
            (namespaces, "namespaces", Feature::RuleNamespaces),
            (pod_labels, "podLabels", Feature::RulePodLabels),
        ] {
            if !list.is_empty() {
                self.of_policys_field(feature, format!("{at}.{field}"), policy);
            }
        }
    }

    fn of_enrich(&mut self, policy: &str, enrich: &wire::Enrich) {
        let wire::Enrich {
            command_line: _,
            containers,
        } = enrich;
        match enrich.command_line() {
            CommandLine::Unspecified | CommandLine::None | CommandLine::Redacted | CommandLine::Full => {}
        }
        let Some(wire::Containers {
            // An agent that does not know it asks no runtime anyway.
            names: _,
            sockets,
        }) = containers
        else {
            return;
        };
        if !sockets.is_empty() {
            let path = "enrich.containers.sockets".to_owned();
            self.of_policys_field(Feature::ContainerSockets, path, policy);
        }
    }

    fn of_policys_field(&mut self, feature: Feature, path: String, policy: &str) {
        let what = format!("{path} of policy {policy}");
        let remedy = format!("take it out of policy {policy}");
        self.add(feature, path, || (what, remedy));
    }

    fn of_collector(&mut self, n: usize, collector: &wire::Collector) {
        let wire::Collector {
            name,
            endpoint: _,
            curve_server_key: _,
            header_version: _,
            window_octets: _,
            records_per_second: _,
            on_collector_restart: _,
            record_ids: _,
            encoding: _,
        } = collector;
        match collector.on_collector_restart() {
            OnCollectorRestart::Unspecified | OnCollectorRestart::Replay | OnCollectorRestart::Skip => {}
        }
        let (feature, field, words) = match (collector.encoding(), collector.header_version()) {
            // Its header is that of version 1, and who knows it knows whose numbers that takes.
            (Encoding::NestedJson, _) => (Feature::NestedJson, "encoding", "encoding nestedJson"),
            (Encoding::Unspecified | Encoding::Tlv, HeaderVersion::V1) => {
                (Feature::ShortSourceIds, "headerVersion", "headerVersion v1")
            }
            (
                Encoding::Unspecified | Encoding::Tlv,
                HeaderVersion::Unspecified | HeaderVersion::V2 | HeaderVersion::V3,
            ) => return,
        };
        self.add(feature, format!("collectors[{n}].{field}"), || {
            (
                format!("{words} of collector {name}"),
                format!("take it out of collector {name}"),
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NAMES: [&str; 4] = ["containers", "images", "namespaces", "podLabels"];

    fn of_rule(rule: wire::FlowRule) -> Assignment {
        let plain = wire::FlowRule {
            ports: vec!["443".into()],
            ..wire::FlowRule::default()
        };
        let capture = wire::Capture {
            exclude: vec![plain, rule],
            ..wire::Capture::default()
        };
        of_policy(wire::Policy {
            capture: Some(capture),
            ..wire::Policy::default()
        })
    }

    fn of_policy(policy: wire::Policy) -> Assignment {
        Assignment {
            policy: Some(wire::Policy {
                name: "edge".into(),
                ..policy
            }),
            ..Assignment::default()
        }
    }

    fn of_collector(encoding: Encoding, header: HeaderVersion) -> Assignment {
        let named = |name: &str| wire::Collector {
            name: name.into(),
            endpoint: "tcp://192.0.2.1:5556".into(),
            ..wire::Collector::default()
        };
        let asking = wire::Collector {
            encoding: encoding.into(),
            header_version: header.into(),
            ..named("old")
        };
        Assignment {
            collectors: vec![named("main"), asking],
            ..Assignment::default()
        }
    }

    /// Every assignment that needs something, with what, and where.
    fn asking() -> Vec<(Assignment, Feature, &'static str)> {
        let one = vec!["x".to_owned()];
        let rule = wire::FlowRule::default;
        let sockets = wire::Containers {
            names: None,
            sockets: vec!["/run/docker.sock".into()],
        };
        vec![
            (
                of_rule(wire::FlowRule {
                    containers: one.clone(),
                    ..rule()
                }),
                Feature::RuleContainers,
                "capture.exclude[1].containers",
            ),
            (
                of_rule(wire::FlowRule {
                    images: one.clone(),
                    ..rule()
                }),
                Feature::RuleImages,
                "capture.exclude[1].images",
            ),
            (
                of_rule(wire::FlowRule {
                    namespaces: one.clone(),
                    ..rule()
                }),
                Feature::RuleNamespaces,
                "capture.exclude[1].namespaces",
            ),
            (
                of_rule(wire::FlowRule {
                    pod_labels: one,
                    ..rule()
                }),
                Feature::RulePodLabels,
                "capture.exclude[1].podLabels",
            ),
            (
                of_policy(wire::Policy {
                    enrich: Some(wire::Enrich {
                        containers: Some(sockets),
                        ..wire::Enrich::default()
                    }),
                    ..wire::Policy::default()
                }),
                Feature::ContainerSockets,
                "enrich.containers.sockets",
            ),
            (
                of_collector(Encoding::NestedJson, HeaderVersion::Unspecified),
                Feature::NestedJson,
                "collectors[1].encoding",
            ),
            (
                of_collector(Encoding::Unspecified, HeaderVersion::V1),
                Feature::ShortSourceIds,
                "collectors[1].headerVersion",
            ),
            (
                Assignment {
                    drain: true,
                    ..Assignment::default()
                },
                Feature::Drain,
                "drain",
            ),
        ]
    }

    #[test]
    fn each_field_that_came_later_needs_its_feature_and_names_its_place() {
        for (assignment, feature, path) in asking() {
            let found: Vec<(Feature, String)> = needs(&assignment)
                .into_iter()
                .map(|need| (need.feature, need.path))
                .collect();
            assert_eq!(found, [(feature, path.to_owned())], "{assignment:?}");
        }
    }

    #[test]
    fn there_is_no_feature_that_nothing_needs() {
        let needed: BTreeSet<Feature> = asking().into_iter().map(|(_, feature, _)| feature).collect();
        let all = (1..=i32::from(u8::MAX)).filter_map(|number| Feature::try_from(number).ok());
        assert_eq!(all.collect::<BTreeSet<Feature>>(), needed);
    }

    #[test]
    fn what_every_agent_understands_needs_nothing() {
        let one = || vec!["x".to_owned()];
        let full = wire::Policy {
            capture: Some(wire::Capture {
                tcp: Some(true),
                udp: Some(false),
                scopes: vec![wire::Scope {
                    part: Some(wire::scope::Part::Cgroup("/a".into())),
                }],
                max_flows: Some(99),
                active_timeout_ms: Some(5_000),
                idle_timeout_ms: Some(5_000),
                include: vec![wire::FlowRule {
                    cidrs: one(),
                    ports: one(),
                    processes: one(),
                    users: one(),
                    cgroups: one(),
                    ..wire::FlowRule::default()
                }],
                exclude: Vec::new(),
                sampling: Some(wire::Sampling { one_in: Some(10) }),
            }),
            enrich: Some(wire::Enrich {
                command_line: CommandLine::Full.into(),
                containers: Some(wire::Containers {
                    names: Some(false),
                    sockets: Vec::new(),
                }),
            }),
            export: Some(wire::Export {
                mode: Mode::Failover.into(),
                loopback: Loopback::Omit.into(),
                ..wire::Export::default()
            }),
            limits: Some(wire::Limits::default()),
            buffer: Some(wire::Buffer::default()),
            ..wire::Policy::default()
        };
        assert_eq!(needs(&of_policy(full)), []);
        for header in [HeaderVersion::Unspecified, HeaderVersion::V2, HeaderVersion::V3] {
            assert_eq!(needs(&of_collector(Encoding::Tlv, header)), []);
        }
        assert_eq!(needs(&Assignment::default()), []);
    }

    #[test]
    fn a_feature_that_many_rules_need_is_told_once_at_the_first() {
        let every = |text: &str| vec![text.to_owned(); 3];
        let rule = wire::FlowRule {
            containers: every("c"),
            images: every("i"),
            namespaces: every("n"),
            pod_labels: every("p"),
            ..wire::FlowRule::default()
        };
        let capture = wire::Capture {
            include: vec![rule.clone(); 3],
            exclude: vec![rule; 3],
            ..wire::Capture::default()
        };
        let found = needs(&of_policy(wire::Policy {
            capture: Some(capture),
            ..wire::Policy::default()
        }));
        let places: Vec<String> = found.iter().map(|need| need.path.clone()).collect();
        assert_eq!(places, NAMES.map(|name| format!("capture.include[0].{name}")));
        assert_eq!(found[3].what, "capture.include[0].podLabels of policy edge");
        assert_eq!(found[3].remedy, "take it out of policy edge");
    }
}
