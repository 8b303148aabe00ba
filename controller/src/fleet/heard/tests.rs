use super::*;

fn parse(hello: wire::Hello) -> Result<Hello, Refused> {
    Hello::parse(wire::FromAgent {
        body: Some(Body::Hello(hello)),
    })
}

fn good() -> wire::Hello {
    wire::Hello {
        source_id: 1,
        ..wire::Hello::default()
    }
}

#[test]
fn addresses_that_every_host_has_are_left_out() {
    let mut mapped = vec![0; 10];
    mapped.extend([0xff, 0xff, 192, 0, 2, 1]);
    let mut link_local = vec![0xfe, 0x80];
    link_local.extend([0; 14]);
    let mut loopback = vec![0; 16];
    loopback[15] = 1;
    let hello = parse(wire::Hello {
        addresses: vec![
            vec![127, 0, 0, 1],
            vec![169, 254, 1, 1],
            vec![224, 0, 0, 1],
            vec![0, 0, 0, 0],
            link_local,
            loopback,
            vec![192, 0, 2, 1],
            mapped,
        ],
        ..good()
    })
    .expect("a hello");
    assert_eq!(hello.addresses, [IpAddr::from([192, 0, 2, 1])]);
}

#[test]
fn what_is_beyond_a_bound_is_refused_or_cut() {
    let many = parse(wire::Hello {
        addresses: vec![vec![10, 0, 0, 1]; ADDRESSES_MAX + 1],
        ..good()
    });
    assert!(many.is_err_and(|refused| refused.to_string().starts_with("hello.addresses")));
    let labels = parse(wire::Hello {
        labels: [("a".into(), "\u{1b}".into())].into(),
        ..good()
    });
    assert!(labels.is_err_and(|refused| refused.to_string().starts_with("hello.labels")));
    for (build, is_refused) in [(vec![7; 32], false), (vec![7; 33], true)] {
        let told = parse(wire::Hello { build, ..good() });
        assert_eq!(
            told.is_err_and(|refused| refused.to_string().starts_with("hello.build")),
            is_refused
        );
    }
    let long = parse(wire::Hello {
        version: "ü".repeat(TEXT_OCTETS_MAX),
        ..good()
    })
    .expect("a hello");
    assert!(long.said.version.len() <= TEXT_OCTETS_MAX && !long.said.version.is_empty());
}

#[test]
fn features_of_a_later_version_are_ignored_and_each_is_kept_once() {
    let (drain, labels) = (
        i32::from(wire::Feature::Drain),
        i32::from(wire::Feature::RulePodLabels),
    );
    let mut features = vec![i32::MAX, drain, -1, labels, drain];
    features.extend(1_000..20_000);
    let hello = parse(wire::Hello { features, ..good() }).expect("a hello");
    assert_eq!(hello.said.features, [labels, drain]);
}

#[test]
fn an_agent_does_not_speak_for_the_controller() {
    let nack = |section: wire::Section| {
        let nack = wire::Nack {
            section: section.into(),
            ..wire::Nack::default()
        };
        let said = wire::FromAgent {
            body: Some(Body::Nack(nack)),
        };
        match Heard::parse(said) {
            Ok(Heard::Nack(nack)) => nack.section(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(nack(wire::Section::Capture), wire::Section::Capture);
    assert_eq!(nack(wire::Section::NotOffered), wire::Section::Unspecified);
}

#[test]
fn a_heartbeat_of_empty_elements_takes_the_memory_of_what_is_kept() {
    use prost::Message;

    let beat = |health| wire::FromAgent {
        body: Some(Body::Heartbeat(wire::Heartbeat {
            health: Some(health),
            ..wire::Heartbeat::default()
        })),
    };
    let many = FROM_AGENT_OCTETS_MAX / 2 - 16;
    let flat = beat(wire::Health {
        collectors: vec![wire::CollectorHealth::default(); many],
        ..wire::Health::default()
    });
    let nested = beat(wire::Health {
        collectors: vec![
            wire::CollectorHealth {
                dropped: vec![wire::Drop::default(); LIST_KEPT_MAX],
                ..wire::CollectorHealth::default()
            };
            FROM_AGENT_OCTETS_MAX / (2 * LIST_KEPT_MAX + 8)
        ],
        ..wire::Health::default()
    });
    for (sent, kept) in [(flat, LIST_KEPT_MAX), (nested, LIST_KEPT_MAX)] {
        let octets = sent.encode_to_vec();
        assert!(octets.len() <= FROM_AGENT_OCTETS_MAX, "{}", octets.len());
        let read = wire::FromAgent::decode(&octets[..]).expect("a message");
        let Ok(Heard::Heartbeat {
            health: Some(health), ..
        }) = Heard::parse(read)
        else {
            panic!("it is a heartbeat");
        };
        assert!(
            health.collectors.capacity() <= kept,
            "{}",
            health.collectors.capacity()
        );
        let drops: usize = health.collectors.iter().map(|one| one.dropped.capacity()).sum();
        assert!(drops <= DROPS_KEPT_MAX, "{drops}");
    }
}

#[test]
fn peers_that_are_not_kept_are_counted() {
    let heartbeat = wire::Heartbeat {
        health: Some(wire::Health {
            peers: vec![wire::PeerSums::default(); PEERS_KEPT_MAX + 5],
            peers_left_out: 7,
            ..wire::Health::default()
        }),
        ..wire::Heartbeat::default()
    };
    let said = wire::FromAgent {
        body: Some(Body::Heartbeat(heartbeat)),
    };
    let Ok(Heard::Heartbeat {
        health: Some(health), ..
    }) = Heard::parse(said)
    else {
        panic!("it is a heartbeat");
    };
    assert_eq!((health.peers.len(), health.peers_left_out), (PEERS_KEPT_MAX, 12));
}

#[test]
fn any_octets_are_a_message_or_a_refusal() {
    use prost::Message;

    let mut random = fastrand::Rng::with_seed(3);
    let full = wire::FromAgent {
        body: Some(Body::Hello(wire::Hello {
            addresses: vec![vec![10, 0, 0, 1]; 3],
            held: Some(wire::Held {
                epoch: 1,
                version: 2,
                digest: vec![0; 32],
            }),
            boot_id: vec![1; 16],
            host_name: "host".into(),
            ..good()
        })),
    }
    .encode_to_vec();
    for _ in 0..20_000 {
        let mut octets = full.clone();
        octets.truncate(random.usize(0..=full.len()));
        for _ in 0..random.usize(0..4) {
            if !octets.is_empty() {
                let at = random.usize(0..octets.len());
                octets[at] ^= 1 << random.u8(0..8);
            }
        }
        if let Ok(message) = wire::FromAgent::decode(&octets[..]) {
            let _ = Hello::parse(message.clone());
            let _ = Heard::parse(message);
        }
    }
}
