use super::*;

const TOLD: KernelTime = KernelTime(1_000_000_000);

fn id(n: usize) -> ContainerId {
    ContainerId::parse(&format!("{n:064x}")).expect("64 digits")
}

fn facts(n: usize, name: &str) -> ContainerFacts {
    ContainerFacts::new(id(n), name, "img", []).expect("a name")
}

fn with(tellers: &[Teller]) -> Containers {
    let mut containers = Containers::new();
    containers.set_sockets(tellers.len());
    for (place, teller) in tellers.iter().enumerate() {
        containers.learn(ContainerNews::Stands(place, *teller));
    }
    containers
}

/// What is told of container 1.
fn named(containers: &mut Containers, runtime: Runtime, now: KernelTime) -> (Option<&str>, bool) {
    let (facts, waits) = containers.look(id(1), runtime, now);
    (facts.map(ContainerFacts::name), waits)
}

#[test]
fn a_pod_is_read_from_the_labels_of_its_containers() {
    let labels = [
        (kubernetes::CONTAINER, "web"),
        (kubernetes::POD, "web-0"),
        (kubernetes::NAMESPACE, "shop"),
        (kubernetes::UID, "u-1"),
        ("app", "x"),
    ];
    let of_docker = ContainerFacts::new(id(1), "/k8s_web_web-0_shop_u-1_0", "img", labels).expect("a name");
    assert_eq!(of_docker.name(), "web");
    assert_eq!(
        (of_docker.pod_namespace(), of_docker.pod_name()),
        (Some("shop"), Some("web-0"))
    );
    assert_eq!(of_docker.pod().and_then(PodFacts::uid), Some("u-1"));
    assert_eq!(
        (of_docker.label("app"), of_docker.pod_label("app")),
        (Some("x"), None)
    );
    let pod = PodFacts::new("shop", "web-0", None, [("app", "y")]).expect("a pod");
    let of_pod = of_docker.of_pod(Arc::new(pod));
    assert_eq!(
        (of_pod.label("app"), of_pod.pod_label("app")),
        (Some("x"), Some("y"))
    );

    for half in [&labels[..2], &labels[2..], &[]] {
        let facts = ContainerFacts::new(id(1), "/own", "img", half.iter().copied()).expect("a name");
        assert_eq!((facts.name(), facts.pod()), ("own", None), "{half:?}");
    }
    let hostile = PodFacts::new("<shop>", "web-0", None, []).expect("a pod");
    assert_eq!(hostile.namespace(), "‹shop›");
    assert_eq!(PodFacts::new("", "web-0", None, []), None);
    assert_eq!(PodFacts::new("shop", "", None, []), None);
}

#[test]
fn an_image_cannot_claim_a_pod() {
    let labels = [
        (kubernetes::CONTAINER, "web"),
        (kubernetes::POD, "web-0"),
        (kubernetes::NAMESPACE, "kube-system"),
    ];
    for name in [
        "/own",
        "/web",
        "/k8s_web_web-0_shop_u-1_0",
        "/k8s_web_web-0_kube-system",
        "/k8s____",
    ] {
        let facts = ContainerFacts::new(id(1), name, "img", labels).expect("a name");
        assert_eq!((facts.name(), facts.pod()), (&name[1..], None));
        assert_eq!(facts.label(kubernetes::POD), Some("web-0"));
    }
    // A runtime that serves kubelets is believed.
    let facts = ContainerFacts::new(id(1), "web", "img", labels).expect("a name");
    assert_eq!(facts.of_labels().pod_namespace(), Some("kube-system"));
}

#[test]
fn what_records_tell_is_what_is_known_of_name_and_pod() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Cri)]);
    let mut told = Container {
        id: id(1).to_string(),
        runtime: Runtime::Containerd,
        name: None,
        pod: None,
    };
    let known = facts(1, "web");
    containers.learn(ContainerNews::Known(known.clone()));
    assert!(!containers.agree(Some(&told), TOLD));
    known.put_onto(&mut told);
    assert!(containers.agree(Some(&told), TOLD));
    let pod = PodFacts::new("shop", "web-0", None, []).expect("a pod");
    let known = known.of_pod(Arc::new(pod));
    containers.learn(ContainerNews::Known(known.clone()));
    assert!(!containers.agree(Some(&told), TOLD));
    known.put_onto(&mut told);
    assert!(containers.agree(Some(&told), TOLD));
    assert_eq!(told.shown(), "shop/web-0/web");
}

#[test]
fn only_64_hex_digits_are_an_id() {
    let text = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
    assert_eq!(ContainerId::parse(text).expect("an id").to_string(), text);
    assert_eq!(ContainerId::parse(&text.to_uppercase()), ContainerId::parse(text));
    for wrong in [
        "",
        &text[1..],
        &format!("{text}0"),
        &text.replace('4', "g"),
        "/../x",
    ] {
        assert_eq!(ContainerId::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn texts_of_a_runtime_become_harmless_and_short() {
    let long = "x".repeat(5_000);
    let hostile = "/<script>alert(\"1\")\u{1b}[2J\n</script>";
    let labels = [("a", hostile), (&*long, &*long), ("b", "v")];
    let facts = ContainerFacts::new(id(1), hostile, &long, labels).expect("a name");
    let harmful = |c: char| c.is_control() || "<>&\"'`\\".contains(c);
    assert!(!facts.name().contains(harmful), "{facts:?}");
    assert!(facts.name().starts_with("‹script›"), "{facts:?}");
    assert_eq!(facts.image().len(), text::NAME_OCTETS_MAX);
    assert!(!facts.label("a").expect("kept").contains(harmful), "{facts:?}");
    assert_eq!(facts.label("b"), Some("v"));
    assert_eq!(ContainerFacts::new(id(1), "/", "img", []), None);
}

#[test]
fn labels_are_bounded_in_number_and_octets() {
    let many: Vec<String> = (0..1_000).map(|n| format!("k{n:03}")).collect();
    let short = ContainerFacts::new(id(1), "n", "", many.iter().map(|key| (&**key, "v"))).expect("a name");
    assert_eq!(short.labels.0.len(), LABELS_MAX);
    let value = "v".repeat(text::NAME_OCTETS_MAX);
    let long = ContainerFacts::new(id(1), "n", "", many.iter().map(|key| (&**key, &*value))).expect("a name");
    let octets: usize = long
        .labels
        .0
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    assert!(octets <= LABELS_OCTETS_MAX, "{octets}");
    assert!(!long.labels.0.is_empty());
}

#[test]
fn an_unknown_container_is_asked_for_once_and_waited_for_a_bounded_time() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    assert_eq!(named(&mut containers, Runtime::Docker, TOLD), (None, true));
    assert_eq!(named(&mut containers, Runtime::Docker, TOLD), (None, true));
    let ask = containers.poll_ask().expect("it is asked for");
    assert_eq!((ask.id, containers.poll_ask()), (id(1), None));
    let late = TOLD.after(CONTAINER_WAIT);
    assert_eq!(named(&mut containers, Runtime::Docker, late), (None, false));
    assert_eq!(containers.poll_ask(), None);
    containers.learn(ContainerNews::Known(facts(1, "/web")));
    assert_eq!(
        named(&mut containers, Runtime::Docker, late),
        (Some("web"), false)
    );
    containers.learn(ContainerNews::Known(facts(1, "/renamed")));
    assert_eq!(
        named(&mut containers, Runtime::Docker, late),
        (Some("renamed"), false)
    );
}

#[test]
fn one_that_nobody_knew_is_asked_for_again_later_without_waiting() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    let _ = containers.look(id(1), Runtime::Docker, TOLD);
    assert!(containers.poll_ask().is_some());
    let later = TOLD.after(ASK_AGAIN);
    assert_eq!(named(&mut containers, Runtime::Docker, later), (None, false));
    assert!(containers.poll_ask().is_some());
}

#[test]
fn a_container_of_kubernetes_is_asked_for_before_a_flow_shows_it_and_still_waited_for() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    containers.foresee(id(1), Runtime::Kubernetes);
    assert_eq!(containers.poll_ask(), None, "Docker tells by itself");
    let mut containers = with(&[Teller::Tells(RuntimeKind::Cri)]);
    containers.foresee(id(1), Runtime::Docker);
    assert_eq!(containers.poll_ask(), None, "it is none of its own");
    containers.foresee(id(1), Runtime::Containerd);
    assert!(containers.poll_ask().is_some());
    let late = TOLD.after(2 * CONTAINER_WAIT);
    assert_eq!(named(&mut containers, Runtime::Containerd, late), (None, true));
    assert!(containers.poll_ask().is_some());
    containers.learn(ContainerNews::Known(facts(1, "web")));
    containers.foresee(id(1), Runtime::Containerd);
    assert_eq!(containers.poll_ask(), None);
    for n in 2..2 * CONTAINER_ASKS_MAX {
        containers.foresee(id(n), Runtime::Containerd);
    }
    assert_eq!(containers.asks.len(), CONTAINER_ASKS_MAX);
}

#[test]
fn nobody_waits_when_nobody_could_tell() {
    let docker = Teller::Tells(RuntimeKind::Docker);
    for (tellers, runtime, waits) in [
        (&[][..], Runtime::Docker, false),
        (&[Teller::Away], Runtime::Docker, false),
        (&[Teller::Trying], Runtime::Docker, true),
        (&[docker], Runtime::Docker, true),
        (&[docker], Runtime::Podman, false),
        (&[docker], Runtime::Containerd, false),
        (&[Teller::Trying], Runtime::CriO, true),
        (&[Teller::Tells(RuntimeKind::Cri)], Runtime::CriO, true),
        (&[Teller::Tells(RuntimeKind::Cri)], Runtime::Containerd, true),
        (&[Teller::Tells(RuntimeKind::Cri)], Runtime::Docker, false),
        (&[docker], Runtime::Kubernetes, true),
        (&[Teller::Tells(RuntimeKind::Podman)], Runtime::Podman, true),
    ] {
        let mut containers = with(tellers);
        let found = named(&mut containers, runtime, TOLD);
        assert_eq!(found, (None, waits), "{tellers:?} {runtime:?}");
        assert_eq!(containers.poll_ask().is_some(), waits, "{tellers:?} {runtime:?}");
    }
}

#[test]
fn who_names_his_own_cgroup_after_a_container_gets_nothing_of_it() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    containers.learn(ContainerNews::Known(facts(1, "backup-1")));
    let shown = |runtime| Container {
        id: id(1).to_string(),
        runtime,
        name: None,
        pod: None,
    };
    assert!(containers.told(&shown(Runtime::Docker)).is_some());
    assert!(containers.told(&shown(Runtime::User)).is_none());
    assert_eq!(named(&mut containers, Runtime::User, TOLD), (None, false));
    assert!(containers.agree(Some(&shown(Runtime::User)), TOLD));
    assert!(containers.poll_ask().is_none());
}

#[test]
fn waiting_ends_when_every_runtime_that_could_know_has_said_no() {
    let mut containers = with(&[
        Teller::Tells(RuntimeKind::Docker),
        Teller::Tells(RuntimeKind::Podman),
    ]);
    assert!(containers.look(id(1), Runtime::Other, TOLD).1);
    containers.learn(ContainerNews::NotMine(id(1)));
    assert!(containers.look(id(1), Runtime::Other, TOLD).1);
    containers.learn(ContainerNews::NotMine(id(1)));
    assert!(!containers.look(id(1), Runtime::Other, TOLD).1);
}

#[test]
fn a_name_outlives_its_runtime_and_goes_when_names_are_not_wanted() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    containers.learn(ContainerNews::Known(facts(1, "web")));
    containers.learn(ContainerNews::Stands(0, Teller::Away));
    assert_eq!(
        named(&mut containers, Runtime::Docker, TOLD),
        (Some("web"), false)
    );
    containers.set_sockets(0);
    assert_eq!(named(&mut containers, Runtime::Docker, TOLD), (None, false));
}

#[test]
fn containers_and_asks_are_bounded() {
    let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
    for n in 0..2 * CONTAINERS_MAX {
        let _ = containers.look(id(n), Runtime::Docker, TOLD);
        containers.learn(ContainerNews::Known(facts(n + 2 * CONTAINERS_MAX, "c")));
    }
    assert_eq!(containers.entries.len(), CONTAINERS_MAX);
    assert_eq!(containers.asks.len(), CONTAINER_ASKS_MAX);
    let counts = containers.counts();
    assert_eq!(counts.evicted, 3 * CONTAINERS_MAX as u64);
    assert_eq!((counts.known, counts.telling), (CONTAINERS_MAX as u64 / 2, 1));
    containers.learn(ContainerNews::Stands(7, Teller::Trying));
    assert_eq!(containers.tellers.len(), 1);
}
