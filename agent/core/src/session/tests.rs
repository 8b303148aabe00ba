use flowtilla_proto::wire as objects;
use prost::Message as _;

use super::*;

const S: u64 = 1_000_000_000;

fn content(n: u64) -> Vec<u8> {
    wire::Assignment {
        policy: Some(objects::Policy::default()),
        collectors: Vec::new(),
        revision: n,
        drain: false,
    }
    .encode_to_vec()
}

fn held(epoch: u64, number: u64) -> Held {
    Held {
        version: Version { epoch, number },
        digest: Digest::of(&content(number)),
    }
}

fn offer(nonce: u64, epoch: u64, number: u64) -> Incoming {
    Incoming::Offer(Offer {
        nonce,
        held: held(epoch, number),
        content: content(number),
        traceparent: String::new(),
    })
}

fn welcome() -> Incoming {
    Incoming::Welcome(Welcome {
        id: "spiffe://x/agent/a".into(),
        source_id: None,
        heartbeat: Duration::from_secs(10),
        keeps_effective: true,
    })
}

/// Welcomed, and the hello taken.
fn open(held: Option<Held>) -> Session {
    let effective = held.map(|_| wire::Effective::default());
    let mut session = Session::new(held, effective, 7, KernelTime(0));
    assert_eq!(session.poll_connect(), Some(KernelTime(0)));
    session.handle_connected(KernelTime(0));
    assert_eq!(session.poll_message(), Some(Outgoing::Hello(held)));
    session
        .handle_message(welcome(), KernelTime(0))
        .expect("a welcome");
    session
}

fn done(held: Held) -> Done {
    Done {
        held: Some(held),
        in_force: true,
        outcome: Ok(wire::Effective::default()),
    }
}

fn fault() -> Fault {
    Fault {
        section: Section::Capture,
        path: "capture.scopes[0].netns".into(),
        reason: "it is not there".into(),
    }
}

fn order(session: &mut Session) -> Adoption {
    match session.poll_order(KernelTime(0)) {
        Some(Order::Adopt(adoption)) => *adoption,
        other => panic!("{other:?} where an offer should be adopted"),
    }
}

/// What an operator asks waits behind what is said already, a few at a time, and does not outlive its stream.
#[test]
fn questions_of_operators_wait_a_few_at_a_time_and_end_with_the_stream() {
    let ask = |session: &mut Session, id| {
        let question = crate::top::wire::Question {
            id,
            view: crate::top::View::Users,
            order: crate::top::Order::Octets,
            rows: 1,
        };
        let heard = session.handle_message(Incoming::Top(question), KernelTime(0));
        assert_eq!(heard, Ok(None));
    };
    let mut session = open(None);
    (0..10).for_each(|id| ask(&mut session, id));
    let mut answered = Vec::new();
    while let Some(said) = session.poll_message() {
        match said {
            Outgoing::Top(question) => answered.push(question.id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, [0, 1, 2, 3]);
    ask(&mut session, 11);
    session.handle_disconnected(None, KernelTime(0));
    session.handle_connected(KernelTime(0));
    assert_eq!(session.poll_message(), Some(Outgoing::Hello(None)));
    assert_eq!(session.poll_message(), None);
}

#[test]
fn an_ack_is_said_only_after_what_it_says_is_in_force() {
    let mut session = open(None);
    session
        .handle_message(offer(1, 1, 4), KernelTime(0))
        .expect("an offer");
    let adoption = order(&mut session);
    assert_eq!((adoption.held, adoption.assignment.revision), (held(1, 4), 4));
    assert_eq!(
        session.poll_message(),
        None,
        "nothing is said while it is under way"
    );
    assert_eq!(session.poll_order(KernelTime(0)), None, "one at a time");
    session.handle_done(done(held(1, 4)), KernelTime(1));
    assert!(
        matches!(session.poll_message(), Some(Outgoing::Ack { nonce: 1, held: h, .. }) if h == held(1, 4))
    );
}

/// How an offer turns out, as the ack of it says.
fn turns_out(session: &mut Session, nonce: u64, number: u64, program: &str) -> Option<wire::Effective> {
    queue(session, nonce, number, program);
    match session.poll_message() {
        Some(Outgoing::Ack { effective, .. }) => effective,
        other => panic!("{other:?}"),
    }
}

fn queue(session: &mut Session, nonce: u64, number: u64, program: &str) {
    session
        .handle_message(offer(nonce, 1, number), KernelTime(0))
        .expect("an offer");
    let adoption = order(session);
    let done = Done {
        outcome: Ok(with(program)),
        ..done(adoption.held)
    };
    session.handle_done(done, KernelTime(0));
}

fn with(program: &str) -> wire::Effective {
    wire::Effective {
        programs: vec![program.into()],
        ..wire::Effective::default()
    }
}

#[test]
fn how_it_turned_out_is_told_once_a_stream_and_when_it_changes() {
    let mut session = open(None);
    assert_eq!(turns_out(&mut session, 1, 1, "a"), Some(with("a")));
    assert_eq!(turns_out(&mut session, 2, 2, "a"), None);
    assert_eq!(turns_out(&mut session, 3, 3, "b"), Some(with("b")));
    assert_eq!(turns_out(&mut session, 4, 4, "b"), None);
    // This ack is never said: a newer offer comes first.
    queue(&mut session, 5, 5, "c");
    assert_eq!(turns_out(&mut session, 6, 6, "c"), Some(with("c")));
    // Between this ack and its way out it turned out otherwise.
    queue(&mut session, 7, 7, "d");
    session.handle_not_in_force(KernelTime(0));
    let retried = session.poll_order(KernelTime(120 * S));
    assert_eq!(retried, Some(Order::Retry));
    let again = Done {
        outcome: Ok(with("e")),
        ..done(held(1, 7))
    };
    session.handle_done(again, KernelTime(120 * S));
    assert!(
        matches!(session.poll_message(), Some(Outgoing::Ack { effective: Some(told), .. }) if told == with("d"))
    );
    assert_eq!(turns_out(&mut session, 8, 8, "e"), Some(with("e")));
    session.handle_disconnected(None, KernelTime(0));
    session.handle_connected(KernelTime(0));
    session
        .handle_message(welcome(), KernelTime(0))
        .expect("a welcome");
    assert!(matches!(session.poll_message(), Some(Outgoing::Hello(Some(_)))));
    assert_eq!(turns_out(&mut session, 1, 9, "e"), Some(with("e")));
}

#[test]
fn a_controller_that_does_not_keep_how_it_turned_out_is_told_with_every_ack() {
    let mut session = Session::new(None, None, 7, KernelTime(0));
    session.handle_connected(KernelTime(0));
    assert_eq!(session.poll_message(), Some(Outgoing::Hello(None)));
    let sent = wire::ToAgent {
        body: Some(wire::to_agent::Body::Welcome(wire::Welcome::default())),
    };
    let before = Incoming::parse(sent).expect("it may").expect("a welcome");
    session.handle_message(before, KernelTime(0)).expect("a welcome");
    for nonce in 1..4 {
        assert_eq!(turns_out(&mut session, nonce, nonce, "a"), Some(with("a")));
    }
}

#[test]
fn what_is_held_is_acked_again_and_not_done_again() {
    let mut session = open(Some(held(1, 4)));
    session
        .handle_message(offer(9, 1, 4), KernelTime(0))
        .expect("an offer");
    assert_eq!(session.poll_order(KernelTime(0)), None);
    assert!(matches!(
        session.poll_message(),
        Some(Outgoing::Ack { nonce: 9, .. })
    ));
}

#[test]
fn stale_conflicting_and_damaged_offers_are_nacked_with_what_is_in_force() {
    let other = |nonce, number, octets: &[u8], named: &[u8]| {
        Incoming::Offer(Offer {
            nonce,
            held: Held {
                version: Version { epoch: 1, number },
                digest: Digest::of(named),
            },
            content: octets.to_vec(),
            traceparent: String::new(),
        })
    };
    let mut session = open(Some(held(1, 4)));
    for (message, why) in [
        (offer(1, 1, 3), "version 1.3 is older than 1.4"),
        (other(2, 4, &content(9), &content(9)), "held with other content"),
        (other(3, 5, &content(9), &content(8)), "SHA-256"),
        (other(4, 5, &[0xff], &[0xff]), "no assignment"),
    ] {
        session.handle_message(message, KernelTime(0)).expect("an offer");
        assert_eq!(session.poll_order(KernelTime(0)), None, "{why}");
        let Some(Outgoing::Nack { held: h, fault, .. }) = session.poll_message() else {
            panic!("no nack: {why}");
        };
        assert_eq!((h, fault.section), (Some(held(1, 4)), Section::Offer));
        assert!(fault.reason.contains(why), "{}", fault.reason);
    }
    assert_eq!(session.in_force(), Some(held(1, 4)));
}

#[test]
fn the_newest_offer_wins_and_nobody_else_is_answered() {
    let mut session = open(None);
    session
        .handle_message(offer(1, 1, 1), KernelTime(0))
        .expect("an offer");
    let first = order(&mut session);
    for nonce in 2..=4 {
        session
            .handle_message(offer(nonce, 1, nonce), KernelTime(0))
            .expect("an offer");
    }
    session.handle_done(done(first.held), KernelTime(0));
    assert_eq!(session.poll_message(), None, "nonce 1 is not the newest");
    assert_eq!(order(&mut session).held, held(1, 4));
    session.handle_done(done(held(1, 4)), KernelTime(0));
    assert!(matches!(
        session.poll_message(),
        Some(Outgoing::Ack { nonce: 4, .. })
    ));
    assert_eq!(session.poll_message(), None);
}

#[test]
fn a_nack_says_what_is_in_force_and_where_the_fault_is() {
    let mut session = open(Some(held(1, 4)));
    session
        .handle_message(offer(2, 1, 5), KernelTime(0))
        .expect("an offer");
    order(&mut session);
    let back = Done {
        outcome: Err(fault()),
        ..done(held(1, 4))
    };
    session.handle_done(back, KernelTime(0));
    assert_eq!(
        session.poll_message(),
        Some(Outgoing::Nack {
            nonce: 2,
            held: Some(held(1, 4)),
            fault: fault()
        })
    );
    assert!(session.poll_timeout().is_some());
    assert_eq!(
        session.poll_order(KernelTime(3600 * S)),
        None,
        "what is in force is not tried again"
    );
}

#[test]
fn what_is_held_and_not_in_force_is_tried_again_and_adopted_when_it_is_offered() {
    let mut session = Session::new(Some(held(1, 4)), None, 7, KernelTime(0));
    assert_eq!(session.in_force(), None);
    let at = session.poll_timeout().expect("a retry");
    assert_eq!(session.poll_order(at), Some(Order::Retry));
    assert_eq!(session.poll_order(KernelTime(3600 * S)), None, "one at a time");
    let failed = Done {
        held: Some(held(1, 4)),
        in_force: false,
        outcome: Err(fault()),
    };
    session.handle_done(failed, at);
    session.handle_connected(at);
    assert_eq!(session.poll_message(), Some(Outgoing::Hello(None)));
    session.handle_message(welcome(), at).expect("a welcome");
    session.handle_message(offer(1, 1, 4), at).expect("an offer");
    assert_eq!(order(&mut session).held, held(1, 4));
    session.handle_done(done(held(1, 4)), at);
    assert!(matches!(
        session.poll_message(),
        Some(Outgoing::Ack { nonce: 1, .. })
    ));
}

#[test]
fn what_was_under_way_when_the_stream_ended_is_not_answered_on_the_next_one() {
    let mut session = open(None);
    session
        .handle_message(offer(1, 1, 1), KernelTime(0))
        .expect("an offer");
    order(&mut session);
    session.handle_disconnected(None, KernelTime(S));
    session.handle_connected(KernelTime(2 * S));
    assert_eq!(session.poll_message(), Some(Outgoing::Hello(None)));
    session
        .handle_message(welcome(), KernelTime(2 * S))
        .expect("a welcome");
    session
        .handle_message(offer(1, 1, 1), KernelTime(2 * S))
        .expect("an offer");
    session.handle_done(done(held(1, 1)), KernelTime(2 * S));
    assert_eq!(
        session.poll_message(),
        None,
        "nonce 1 of this stream is another offer"
    );
    assert_eq!(session.poll_order(KernelTime(2 * S)), None);
    assert!(matches!(
        session.poll_message(),
        Some(Outgoing::Ack { nonce: 1, .. })
    ));
}

#[test]
fn heartbeats_come_at_the_pace_of_the_welcome_and_do_not_pile_up() {
    let mut session = open(None);
    let first = session.poll_timeout().expect("a heartbeat");
    assert!(first <= KernelTime(10 * S));
    for n in 0..5 {
        let due = session.poll_timeout().expect("a heartbeat");
        assert_eq!(due, KernelTime(first.0 + n * 10 * S));
        assert!(session.handle_timeout(due));
    }
    assert_eq!(session.poll_message(), Some(Outgoing::Heartbeat(None)));
    assert_eq!(session.poll_message(), None);
    let firsts: Vec<u64> = (0..64)
        .map(|seed| {
            let mut session = Session::new(None, None, seed, KernelTime(0));
            session.handle_connected(KernelTime(0));
            session
                .handle_message(welcome(), KernelTime(0))
                .expect("a welcome");
            session.poll_timeout().expect("a heartbeat").0
        })
        .collect();
    assert!(firsts.iter().any(|&at| at < 2 * S) && firsts.iter().any(|&at| at > 8 * S));
}

#[test]
fn a_controller_that_does_not_welcome_in_time_is_left() {
    let mut session = Session::new(None, None, 7, KernelTime(0));
    session.handle_connected(KernelTime(0));
    let until = session.poll_timeout().expect("a bound");
    assert_eq!(until, KernelTime(0).after(WELCOME_WAIT));
    assert!(session.handle_timeout(KernelTime(until.0 - 1)));
    assert!(!session.handle_timeout(until));
}

#[test]
fn a_controller_may_not_speak_before_its_welcome_nor_welcome_twice() {
    let mut session = Session::new(None, None, 7, KernelTime(0));
    session.handle_connected(KernelTime(0));
    assert_eq!(
        session.handle_message(offer(1, 1, 1), KernelTime(0)),
        Err(Violation::BeforeWelcome)
    );
    let mut session = open(None);
    assert_eq!(
        session.handle_message(welcome(), KernelTime(0)),
        Err(Violation::WelcomeTwice)
    );
}

/// Two copies of one agent: each that comes replaces the other, and neither is let alone for long at first.
#[test]
fn copies_that_replace_each_other_come_less_and_less() {
    for seed in 0..16 {
        let mut sessions = [1, 2].map(|n| Session::new(None, None, seed * 2 + n, KernelTime(0)));
        let (mut now, mut turns) = (KernelTime(0), Vec::new());
        let mut at = sessions
            .each_ref()
            .map(|session| session.poll_connect().expect("a time"));
        let mut live: Option<usize> = None;
        while now < KernelTime(6 * 3_600 * S) {
            let next = match live {
                None => usize::from(at[1] < at[0]),
                Some(live) => 1 - live,
            };
            now = now.max(at[next]);
            sessions[next].handle_connected(now);
            sessions[next].handle_message(welcome(), now).expect("a welcome");
            if let Some(replaced) = live {
                sessions[replaced].handle_disconnected(Some(EndReason::Replaced), now);
                at[replaced] = sessions[replaced].poll_connect().expect("a time");
                turns.push(now);
            }
            live = Some(next);
        }
        let hour = |n: u64| {
            let within = |at: &&KernelTime| (n * 3_600 * S..(n + 1) * 3_600 * S).contains(&at.0);
            turns.iter().filter(within).count()
        };
        for later in 1..6 {
            assert!(
                hour(later) <= 60,
                "seed {seed}: {} turns in hour {later}",
                hour(later)
            );
        }
    }
}

#[test]
fn streams_that_end_at_once_are_failures_and_those_that_lived_start_over() {
    let wait = |session: &mut Session, ended, now: KernelTime| {
        session.handle_disconnected(ended, now);
        session.poll_connect().expect("a time").since(now)
    };
    for seed in 0..32 {
        let mut session = Session::new(None, None, seed, KernelTime(0));
        let first = wait(&mut session, None, KernelTime(0));
        assert!(
            first <= Duration::from_millis(CONNECT_BACKOFF_BASE_MS),
            "seed {seed}"
        );
        let mut longest = first;
        for _ in 0..50 {
            session.handle_connected(KernelTime(0));
            session
                .handle_message(welcome(), KernelTime(0))
                .expect("a welcome");
            longest = longest.max(wait(&mut session, Some(EndReason::Stopping), KernelTime(S)));
        }
        assert!(
            longest > Duration::from_secs(15) && longest <= Duration::from_secs(30),
            "seed {seed}"
        );
        session.handle_connected(KernelTime(0));
        session
            .handle_message(welcome(), KernelTime(0))
            .expect("a welcome");
        let after = wait(&mut session, None, KernelTime(60 * S));
        assert!(
            after <= Duration::from_millis(CONNECT_BACKOFF_BASE_MS),
            "seed {seed}"
        );
        let waits: Vec<_> = (0..20)
            .map(|_| wait(&mut session, Some(EndReason::Revoked), KernelTime(0)))
            .collect();
        assert!(
            waits.iter().any(|&wait| wait > Duration::from_secs(60)),
            "seed {seed}"
        );
    }
}

#[test]
fn messages_are_read_or_refused_and_unknown_ones_are_nothing() {
    use wire::to_agent::Body;
    let read = |body| Incoming::parse(wire::ToAgent { body });
    assert_eq!(read(None), Ok(None));
    let short = wire::Offer {
        digest: vec![1; 31],
        ..wire::Offer::default()
    };
    assert!(matches!(read(Some(Body::Offer(short))), Err(Violation::Offer(_))));
    let long = wire::Offer {
        digest: vec![1; 32],
        content: vec![0; CONTENT_OCTETS_MAX + 1],
        ..wire::Offer::default()
    };
    assert!(matches!(read(Some(Body::Offer(long))), Err(Violation::Offer(_))));
    let none = wire::Bundle { roots: Vec::new() };
    assert_eq!(read(Some(Body::Bundle(none))), Err(Violation::Roots(0)));
    let odd = wire::Ended {
        reason: 77,
        message: "x".into(),
    };
    assert!(matches!(
        read(Some(Body::Ended(odd))),
        Ok(Some(Incoming::Ended {
            reason: EndReason::Other,
            ..
        }))
    ));
    let Ok(Some(Incoming::Welcome(welcome))) = read(Some(Body::Welcome(wire::Welcome::default()))) else {
        panic!("a welcome");
    };
    assert!(
        welcome.heartbeat >= Duration::from_millis(100),
        "never a busy loop"
    );
}

/// A shell and a controller that do anything the API allows, by seed, against a model of what must be so.
#[test]
fn any_history_ends_with_what_was_said_in_force() {
    for seed in 0..2_000 {
        history(seed);
    }
}

fn history(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut now = KernelTime(S);
    let mut session = Session::new(None, None, seed, now);
    // The model: what the shell has on its disk and in force; what it is at; the newest offer of the stream.
    let (mut disk, mut in_force): (Option<Held>, bool) = (None, false);
    let mut order: Option<(Option<u64>, Held)> = None;
    let (mut connected, mut welcomed, mut nonce, mut newest) = (false, false, 0, None);
    for step in 0..200 {
        now = KernelTime(now.0 + random.u64(0..5 * S));
        match random.u8(0..10) {
            0 if connected => {
                session.handle_disconnected(None, now);
                (connected, welcomed, newest) = (false, false, None);
                order = order.map(|(_, held)| (None, held));
            }
            1 | 2 if !connected => {
                session.handle_connected(now);
                connected = true;
                nonce = 0;
            }
            3 if connected && !welcomed => {
                session.handle_message(welcome(), now).expect("a welcome");
                welcomed = true;
            }
            4 | 5 if welcomed => {
                nonce += 1;
                let message = offer(nonce, random.u64(0..3), random.u64(0..6));
                session.handle_message(message, now).expect("an offer");
                newest = Some(nonce);
            }
            6 | 7 if order.is_none() => match session.poll_order(now) {
                Some(Order::Adopt(adoption)) => {
                    let newer = disk.is_none_or(|disk| adoption.held.version > disk.version);
                    let again = disk == Some(adoption.held) && !in_force;
                    assert!(
                        newer || again,
                        "seed {seed} step {step}: neither newer nor to be repaired"
                    );
                    order = Some((newest, adoption.held));
                }
                Some(Order::Retry) => {
                    assert!(!in_force, "seed {seed} step {step}");
                    order = Some((None, disk.expect("something to retry")));
                }
                None => {}
            },
            8 => {
                if let Some((_, wanted)) = order.take() {
                    let outcome = match random.u8(0..4) {
                        0 => Err(fault()),
                        // Going back failed too.
                        1 => {
                            in_force = false;
                            Err(fault())
                        }
                        _ => {
                            (disk, in_force) = (Some(wanted), true);
                            Ok(wire::Effective::default())
                        }
                    };
                    let done = Done {
                        held: disk,
                        in_force: in_force && disk.is_some(),
                        outcome,
                    };
                    session.handle_done(done, now);
                }
            }
            _ => {
                let _ = session.handle_timeout(now);
            }
        }
        let truth = disk.filter(|_| in_force);
        assert_eq!(session.in_force(), truth, "seed {seed} step {step}");
        while let Some(said) = session.poll_message() {
            assert!(connected, "seed {seed} step {step}");
            match said {
                Outgoing::Hello(held) => assert_eq!(held, truth, "seed {seed} step {step}"),
                Outgoing::Ack { nonce, held, .. } => {
                    assert!(welcomed, "seed {seed} step {step}");
                    assert_eq!(
                        (Some(nonce), Some(held)),
                        (newest, truth),
                        "seed {seed} step {step}"
                    );
                }
                Outgoing::Nack { nonce, held, .. } => {
                    assert_eq!((Some(nonce), held), (newest, truth), "seed {seed} step {step}");
                }
                Outgoing::Heartbeat(_) | Outgoing::Top(_) | Outgoing::Goodbye => {
                    assert!(welcomed, "seed {seed} step {step}");
                }
            }
        }
    }
}
