use std::pin::Pin;
use std::task::{Context, Poll};

use flowtilla_proto::wire::session::to_agent::Body;
use futures_util::Stream;
use futures_util::task::noop_waker_ref;

use super::*;
use crate::fleet::mailbox::{Mailbox, QUEUE_MAX, Reading, SLOW_MS};

/// The next message; `Ok(None)`: nothing waits; `Err`: the end.
fn next(reading: &mut Reading) -> Result<Option<Body>, ()> {
    match Pin::new(reading).poll_next(&mut Context::from_waker(noop_waker_ref())) {
        Poll::Pending => Ok(None),
        Poll::Ready(None) => Err(()),
        Poll::Ready(Some(message)) => Ok(message.expect("a message").body),
    }
}

fn offer(nonce: u64) -> Speech {
    let content = Arc::new(Content::new(&say::Assignment::default()));
    Speech::Offer(OfferOut {
        nonce,
        mark: Mark {
            epoch: 1,
            version: nonce,
            digest: content.digest,
        },
        content,
        traceparent: Arc::from(""),
    })
}

fn members(generation: u64) -> Speech {
    Speech::Members(Arc::new(say::Members {
        collector: "c".into(),
        generation,
        ..say::Members::default()
    }))
}

fn question(id: u64) -> Speech {
    Speech::Question(say::Question {
        id,
        ..say::Question::default()
    })
}

#[test]
fn what_is_out_of_date_is_never_said_and_what_waits_is_bounded() {
    let mailbox = Mailbox::new("spiffe://fleet.test/agent/a".into());
    let mut reading = Reading::new(Arc::clone(&mailbox));
    mailbox.put(Speech::Welcome { source_id: 7 });
    for n in 1..=1_000 {
        mailbox.put(offer(n));
        mailbox.put(members(n));
        mailbox.put(question(n));
    }
    assert!(matches!(next(&mut reading), Ok(Some(Body::Welcome(_)))));
    assert!(matches!(next(&mut reading), Ok(Some(Body::Offer(offer))) if offer.nonce == 1_000));
    assert!(matches!(next(&mut reading), Ok(Some(Body::Members(list))) if list.generation == 1_000));
    let mut questions = 0;
    while let Ok(Some(Body::Question(_))) = next(&mut reading) {
        questions += 1;
    }
    assert_eq!(questions, QUEUE_MAX);
    assert_eq!(next(&mut reading), Ok(None));
}

#[test]
fn the_first_last_word_takes_the_place_of_all_others() {
    let mailbox = Mailbox::new(String::new());
    let mut reading = Reading::new(Arc::clone(&mailbox));
    mailbox.put(offer(1));
    mailbox.put(Speech::Ended(EndReason::Revoked, "revoked".into()));
    mailbox.put(Speech::Ended(EndReason::Stopping, "stopping".into()));
    mailbox.put(offer(2));
    assert!(
        matches!(next(&mut reading), Ok(Some(Body::Ended(ended))) if ended.reason() == EndReason::Revoked)
    );
    assert_eq!(next(&mut reading), Err(()));
    mailbox.put(offer(3));
    assert_eq!(next(&mut reading), Err(()));
}

#[test]
fn a_stream_is_slow_when_nothing_is_taken_although_something_waits() {
    let mailbox = Mailbox::new(String::new());
    let mut reading = Reading::new(Arc::clone(&mailbox));
    assert!(!mailbox.is_slow(0));
    assert!(!mailbox.is_slow(SLOW_MS), "nothing waits");
    mailbox.put(offer(1));
    mailbox.put(question(1));
    assert!(!mailbox.is_slow(SLOW_MS + 1));
    assert!(!mailbox.is_slow(2 * SLOW_MS));
    next(&mut reading).expect("the offer").expect("the offer");
    assert!(!mailbox.is_slow(2 * SLOW_MS + 1), "it takes one after the other");
    assert!(!mailbox.is_slow(2 * SLOW_MS + 2));
    assert!(mailbox.is_slow(3 * SLOW_MS + 2));
}
