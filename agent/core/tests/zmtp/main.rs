//! The publishing peer against a collector written here from the RFCs: handshakes, refusals, hostile octets.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use bytes::Bytes;
use flowtilla_agent_core::zmtp::{Event, FRAME_OCTETS_MAX, Peer, SUBSCRIPTIONS_MAX, Security, ZmtpError};
use proptest::prelude::*;

mod subscriber;

use subscriber::{CurveServer, command, frame, greeting, keys_for, ready, server_keys};

fn events(peer: &mut Peer) -> Vec<Event> {
    std::iter::from_fn(|| peer.poll_event()).collect()
}

fn output(peer: &mut Peer) -> Vec<u8> {
    std::iter::from_fn(|| peer.poll_output()).flatten().collect()
}

/// A NULL peer after its handshake, its own octets thrown away.
fn connected() -> Peer {
    let mut peer = Peer::new(&Security::Null);
    peer.handle_input(&greeting("NULL", 1)).unwrap();
    peer.handle_input(&ready("SUB")).unwrap();
    assert_eq!(events(&mut peer), [Event::HandshakeDone { peer_minor: 1 }]);
    output(&mut peer);
    peer
}

fn refusal(security: &Security, inputs: &[&[u8]]) -> ZmtpError {
    let mut peer = Peer::new(security);
    for input in inputs {
        if let Err(error) = peer.handle_input(input) {
            assert_eq!(
                peer.handle_input(b"anything"),
                Err(error.clone()),
                "an error is for ever"
            );
            return error;
        }
    }
    peer.closed()
}

fn curve() -> Security {
    Security::Curve(keys_for(server_keys().public_key().to_bytes()))
}

#[test]
fn null_handshake_sends_greeting_in_two_parts_then_ready() {
    let mut peer = Peer::new(&Security::Null);
    assert_eq!(output(&mut peer), greeting("NULL", 1)[..11]);
    peer.handle_input(&greeting("NULL", 1)).unwrap();
    let mut expected = greeting("NULL", 1)[11..].to_vec();
    expected.extend(ready("PUB"));
    assert_eq!(output(&mut peer), expected);
    peer.handle_input(&ready("XSUB")).unwrap();
    assert_eq!(events(&mut peer), [Event::HandshakeDone { peer_minor: 1 }]);
}

#[test]
fn minor_version_of_the_peer_is_told() {
    let mut peer = Peer::new(&Security::Null);
    peer.handle_input(&greeting("NULL", 0)).unwrap();
    peer.handle_input(&ready("SUB")).unwrap();
    assert_eq!(events(&mut peer), [Event::HandshakeDone { peer_minor: 0 }]);
}

#[test]
fn mechanism_mismatch_is_named_either_way() {
    assert_eq!(
        refusal(&Security::Null, &[&greeting("CURVE", 1)]),
        ZmtpError::PeerWantsCurve
    );
    assert_eq!(refusal(&curve(), &[&greeting("NULL", 1)]), ZmtpError::PeerIsPlain);
    assert_eq!(
        refusal(&curve(), &[&greeting("PLAIN", 1)]),
        ZmtpError::Mechanism {
            found: "PLAIN".into()
        }
    );
}

#[test]
fn strangers_are_named() {
    let ssh = refusal(&Security::Null, &[b"SSH-2.0-OpenSSH_9.2\r\n"]);
    assert_eq!(
        ssh.to_string(),
        "it answers \"SSH-2.0-OpenSSH_\": not a ZMTP peer"
    );
    assert_eq!(refusal(&Security::Null, &[]), ZmtpError::ClosedBeforeGreeting);
    assert_eq!(
        refusal(&Security::Null, &[&greeting("NULL", 1), &ready("PUB")]),
        ZmtpError::SocketType { found: "PUB".into() }
    );
    assert_eq!(
        Peer::new(&Security::Null).silent(),
        ZmtpError::SilentBeforeGreeting
    );
}

#[test]
fn wrong_server_key_is_named_however_the_peer_says_it() {
    // libzmq closes.
    assert_eq!(
        refusal(&curve(), &[&greeting("CURVE", 1)]),
        ZmtpError::ClosedOnHello
    );
    let error = command("ERROR", b"\x03400");
    assert_eq!(
        refusal(&curve(), &[&greeting("CURVE", 1), &error]),
        ZmtpError::ServerKey {
            reason: Some("400".into())
        }
    );
    let forged = command("WELCOME", &[7; 160]);
    assert_eq!(
        refusal(&curve(), &[&greeting("CURVE", 1), &forged]),
        ZmtpError::ServerKey { reason: None }
    );
    let short = command("WELCOME", &[7; 159]);
    assert_eq!(
        refusal(&curve(), &[&greeting("CURVE", 1), &short]),
        ZmtpError::CurveSize {
            command: "WELCOME",
            octets: 159
        }
    );
}

#[test]
fn subscriptions_come_as_messages_and_as_commands_and_match_by_prefix() {
    let mut peer = connected();
    assert!(!peer.send_message(&[b"flow", b"early"]), "nobody has subscribed");
    peer.handle_input(&frame(0, b"\x01flow")).unwrap();
    peer.handle_input(&command("SUBSCRIBE", b"ev")).unwrap();
    peer.handle_input(&command("SUBSCRIBE", b"ev")).unwrap();
    assert_eq!(
        events(&mut peer),
        [
            Event::Subscribed(Bytes::from("flow")),
            Event::Subscribed(Bytes::from("ev"))
        ]
    );
    assert!(peer.send_message(&[b"flow\0\0header", b"payload"]));
    assert!(peer.send_message(&[b"event", b"payload"]));
    assert!(!peer.send_message(&[b"counter", b"payload"]));
    let mut expected = frame(1, b"flow\0\0header");
    for part in [frame(0, b"payload"), frame(1, b"event"), frame(0, b"payload")] {
        expected.extend(part);
    }
    assert_eq!(output(&mut peer), expected);

    peer.handle_input(&frame(0, b"\0flow")).unwrap();
    peer.handle_input(&command("CANCEL", b"ev")).unwrap();
    peer.handle_input(&command("CANCEL", b"never subscribed"))
        .unwrap();
    assert_eq!(
        events(&mut peer),
        [
            Event::Unsubscribed(Bytes::from("flow")),
            Event::Unsubscribed(Bytes::from("ev"))
        ]
    );
    assert!(!peer.send_message(&[b"flow", b"late"]));
    peer.handle_input(&command("SUBSCRIBE", b"")).unwrap();
    assert!(peer.send_message(&[b"anything"]), "the empty topic is all topics");
}

#[test]
fn messages_that_are_no_subscription_are_ignored() {
    let mut peer = connected();
    for octets in [
        frame(0, b""),
        frame(0, b"\x02x"),
        frame(1, b"\x01flow"),
        frame(0, b"\x01flow"),
    ] {
        peer.handle_input(&octets).unwrap();
    }
    assert_eq!(events(&mut peer), [], "a multipart message is no subscription");
    peer.handle_input(&frame(0, b"\x01flow")).unwrap();
    assert_eq!(events(&mut peer).len(), 1);
}

#[test]
fn ping_is_answered_and_pong_is_told() {
    let mut peer = connected();
    peer.handle_input(&command("PING", b"\0\x0acontext")).unwrap();
    assert_eq!(output(&mut peer), command("PONG", b"context"));
    peer.ping(0, &7_u64.to_be_bytes());
    assert_eq!(output(&mut peer), command("PING", b"\0\0\0\0\0\0\0\0\0\x07"));
    peer.handle_input(&command("PONG", &7_u64.to_be_bytes())).unwrap();
    assert_eq!(
        events(&mut peer),
        [Event::Pong(Bytes::copy_from_slice(&7_u64.to_be_bytes()))]
    );
    assert_eq!(
        peer.handle_input(&command("PING", b"\0")),
        Err(ZmtpError::PingSize { octets: 1 })
    );
}

#[test]
fn flood_of_pings_costs_one_pong() {
    let mut peer = connected();
    for n in 0..10_000_u16 {
        let mut data = vec![0, 0];
        data.extend(n.to_be_bytes());
        peer.handle_input(&command("PING", &data)).unwrap();
    }
    assert_eq!(output(&mut peer), command("PONG", &9_999_u16.to_be_bytes()));
}

#[test]
fn every_inbound_limit_refuses() {
    let mut peer = connected();
    for n in 0..SUBSCRIPTIONS_MAX {
        peer.handle_input(&command("SUBSCRIBE", n.to_string().as_bytes()))
            .unwrap();
    }
    peer.handle_input(&command("SUBSCRIBE", b"0"))
        .expect("known already");
    assert!(matches!(
        peer.handle_input(&command("SUBSCRIBE", b"one more")),
        Err(ZmtpError::SubscriptionsTooMany { .. })
    ));

    let mut head = vec![2];
    head.extend((FRAME_OCTETS_MAX + 1).to_be_bytes());
    assert!(matches!(
        connected().handle_input(&head),
        Err(ZmtpError::FrameTooLarge { .. })
    ));

    let mut peer = Peer::new(&Security::Null);
    peer.handle_input(&greeting("NULL", 1)).unwrap();
    assert!(matches!(
        peer.handle_input(&command("READY", &[1; 4_100])),
        Err(ZmtpError::MetadataTooLarge { .. })
    ));
}

#[test]
fn error_command_and_unknown_command_after_the_handshake() {
    connected().handle_input(&command("NOVELTY", b"x")).unwrap();
    assert_eq!(
        connected().handle_input(&command("ERROR", b"\x04quit")),
        Err(ZmtpError::PeerError {
            reason: "quit".into()
        })
    );
}

#[test]
fn curve_handshake_and_traffic_both_ways() {
    let mut server = CurveServer::new();
    let mut peer = Peer::new(&curve());
    server.shake(&mut peer);
    assert_eq!(events(&mut peer), [Event::HandshakeDone { peer_minor: 1 }]);
    assert_eq!(server.client_metadata, b"\x0bSocket-Type\0\0\0\x03PUB");

    peer.handle_input(&server.seal(2, b"\x09SUBSCRIBEflow")).unwrap();
    peer.handle_input(&server.seal(0, b"\x01event")).unwrap();
    peer.handle_input(&server.seal(2, b"\x04PING\0\0abc")).unwrap();
    assert_eq!(
        events(&mut peer),
        [
            Event::Subscribed(Bytes::from("flow")),
            Event::Subscribed(Bytes::from("event"))
        ]
    );
    let large = vec![9; 40_000];
    assert!(peer.send_message(&[b"flow", &large]));
    peer.ping(0, b"12345678");
    let sent = output(&mut peer);
    assert_eq!(
        server.open_all(&sent),
        [
            (1, b"flow".to_vec()),
            (0, large),
            (2, b"\x04PING\0\0\x312345678".to_vec()),
            (2, b"\x04PONGabc".to_vec()),
        ]
    );
}

#[test]
fn curve_frame_changed_or_played_back_is_refused() {
    let connected = || {
        let mut server = CurveServer::new();
        let mut peer = Peer::new(&curve());
        server.shake(&mut peer);
        (server, peer)
    };
    let (mut server, mut peer) = connected();
    let mut boxed = server.seal(0, b"\x01flow");
    *boxed.last_mut().unwrap() ^= 1;
    assert_eq!(
        peer.handle_input(&boxed),
        Err(ZmtpError::CurveBox { command: "MESSAGE" })
    );
    let (mut server, mut peer) = connected();
    let boxed = server.seal(0, b"\x01flow");
    peer.handle_input(&boxed).unwrap();
    assert_eq!(
        peer.handle_input(&boxed),
        Err(ZmtpError::CurveNonce { command: "MESSAGE" })
    );
    let (_, mut peer) = connected();
    assert!(
        peer.handle_input(&frame(0, b"\x01flow")).is_err(),
        "plain text within CURVE"
    );
    let (_, mut peer) = connected();
    assert!(peer.handle_input(&command("READY", b"")).is_err());
}

/// A hostile or broken conversation: mostly well-formed parts, some noise.
fn conversation() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = prop_oneof![
        Just(greeting("NULL", 1).to_vec()),
        Just(greeting("CURVE", 0).to_vec()),
        Just(ready("SUB")),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|body| frame(0, &body)),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|body| frame(4, &body)),
        "[a-z]{0,6}".prop_map(|topic| command("SUBSCRIBE", topic.as_bytes())),
        "[a-z]{0,6}".prop_map(|topic| command("CANCEL", topic.as_bytes())),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|data| command("PING", &data)),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(|data| command("PONG", &data)),
        proptest::collection::vec(any::<u8>(), 0..64),
    ];
    (any::<bool>(), proptest::collection::vec(part, 0..12)).prop_map(|(shaken, mut parts)| {
        if shaken {
            parts.splice(0..0, [greeting("NULL", 1).to_vec(), ready("SUB")]);
        }
        parts
    })
}

type Told = (Vec<Event>, Vec<u8>, Option<ZmtpError>);

fn tell(security: &Security, pieces: &[&[u8]]) -> Told {
    let mut peer = Peer::new(security);
    let error = pieces.iter().find_map(|piece| peer.handle_input(piece).err());
    (events(&mut peer), output(&mut peer), error)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let mut peer = connected();
        let _ = peer.handle_input(&octets);
        let _ = tell(&Security::Null, &[&octets]);
        let _ = tell(&curve(), &[&greeting("CURVE", 1), &octets]);
    }

    #[test]
    fn octets_cut_anywhere_mean_the_same(
        parts in conversation(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        secured in any::<bool>(),
    ) {
        let security = if secured { curve() } else { Security::Null };
        let octets: Vec<u8> = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(octets.len() + 1)).collect();
        cuts.extend([0, octets.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &octets[pair[0]..pair[1]]).collect();
        let single: Vec<&[u8]> = octets.chunks(1).collect();
        let (whole_events, whole_output, whole_error) = tell(&security, &[&octets]);
        for (part, pieces) in [("some", pieces), ("single", single)] {
            let (cut_events, cut_output, cut_error) = tell(&security, &pieces);
            prop_assert_eq!(&cut_events, &whole_events, "{}", part);
            prop_assert_eq!(&cut_output, &whole_output);
            // What a stranger's first octets are shown as depends on how many had come.
            prop_assert_eq!(
                cut_error.as_ref().map(std::mem::discriminant),
                whole_error.as_ref().map(std::mem::discriminant)
            );
        }
    }

    #[test]
    fn what_curve_seals_is_what_the_collector_opens(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 1..8)
    ) {
        let mut server = CurveServer::new();
        let mut peer = Peer::new(&curve());
        server.shake(&mut peer);
        peer.handle_input(&server.seal(0, b"\x01")).unwrap();
        let frames: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        prop_assert!(peer.send_message(&frames));
        let opened = server.open_all(&output(&mut peer));
        prop_assert_eq!(opened.iter().map(|(_, body)| body.clone()).collect::<Vec<_>>(), bodies);
    }
}
