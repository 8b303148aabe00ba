//! Several collectors of which one is fed: who gets what when they go, come, or only seem to be there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use flowtilla_agent::status::{CollectorState, CollectorStatus, MemberState};
use flowtilla_agent_core::encode::header;
use flowtilla_agent_core::loss::DropPoint;

use crate::count_up;
use crate::fixture::{Got, Running, Setup};
use crate::libzmq::{self, Sub, SubOptions};

/// A collector's process that reads all the time.
struct Reading {
    port: u16,
    numbers: Arc<Mutex<Vec<u32>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reading {
    fn start(port: u16) -> Self {
        Self::of(Sub::bind(SubOptions {
            port,
            ..SubOptions::default()
        }))
    }

    fn of(sub: Sub) -> Self {
        let (port, numbers, stop) = (sub.port, Arc::default(), Arc::new(AtomicBool::new(false)));
        let (read, stopped) = (Arc::clone(&numbers), Arc::clone(&stop));
        let thread = std::thread::spawn(move || read_all(&sub, &read, &stopped));
        Self {
            port,
            numbers,
            stop,
            thread,
        }
    }

    /// Numbers of the records, in order of arrival.
    fn numbers(&self) -> Vec<u32> {
        self.numbers.lock().unwrap().clone()
    }

    /// Reads what there is, ends as a kill does, and tells what it had read.
    fn end(self) -> Vec<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.numbers.lock().unwrap().clone()
    }
}

fn read_all(sub: &Sub, numbers: &Mutex<Vec<u32>>, stop: &AtomicBool) {
    let mut last_id = 0;
    loop {
        // Read first: what is there when it is told to end is read too.
        let ends = stop.load(Ordering::Relaxed);
        if let Some(frames) = sub.receive() {
            let id = header::decode(&frames[0]).unwrap().message_id;
            assert!(
                id == last_id + 1 || id == 1,
                "{id} after {last_id}: ids count from 1 on each connection"
            );
            last_id = id;
            numbers.lock().unwrap().extend(Got::numbers_of(&frames));
        } else if ends {
            return;
        }
    }
}

/// A port where nothing listens.
fn free_port() -> u16 {
    Sub::bind(SubOptions::default()).port
}

fn uses(status: &CollectorStatus, member: usize) -> bool {
    status.members[member].state == MemberState::InUse
}

fn streams_to(status: &CollectorStatus, member: usize) -> bool {
    uses(status, member) && status.state == CollectorState::Streaming { acknowledged: true }
}

fn is_out(status: &CollectorStatus, member: usize, part: &str) -> bool {
    matches!(&status.members[member].state, MemberState::OutOfReach { why } if why.contains(part))
}

fn sorted(numbers: &[Vec<u32>]) -> Vec<u32> {
    let mut all = numbers.concat();
    all.sort_unstable();
    all
}

#[test]
fn second_goes_on_when_the_first_is_killed_and_the_first_when_it_is_back() {
    if !libzmq::is_here() {
        return;
    }
    let (first, second) = (Reading::start(0), Reading::start(0));
    let port = first.port;
    let mut running = Running::start(&Setup::to_first_of([port, second.port]));
    running.wait_for("the first is fed, the second stands by", |status| {
        streams_to(status, 0) && status.members[1].state == MemberState::StandingBy
    });
    running.feed(0..10_000);
    running.wait_for("all taken", |status| status.law.taken == 10_000);
    assert_eq!(second.numbers(), [0; 0], "a probe sends nothing");
    first.end();
    running.feed(10_000..20_000);
    running.wait_for("the second has all of it", |status| {
        uses(status, 1) && status.law.waiting == 0
    });
    running.wait_for("the first is known to be away", |status| {
        is_out(status, 0, "refused")
    });

    let first = Reading::start(port);
    running.feed(20_000..30_000);
    running.wait_for("the first is fed again", |status| streams_to(status, 0));
    running.feed(30_000..40_000);
    let status = running.wait_for("all taken", |status| status.law.waiting == 0);
    assert_eq!(status.members[1].state, MemberState::StandingBy);
    assert_eq!(status.endpoint, status.members[0].endpoint);
    assert_eq!(
        status.messages,
        status.members[0].messages + status.members[1].messages
    );
    let law = running.stop().law;
    assert_eq!((law.made, law.taken), (40_000, 40_000));
    let (later, between) = (first.end(), second.end());
    // All of the first life was at risk when it was killed: within 1,100 messages.
    assert_eq!(between[..20_000], count_up(20_000), "from *read* on, in order");
    assert_eq!(
        sorted(&[between, later]),
        count_up(40_000),
        "left in good order: nothing twice, nothing lost"
    );
}

#[test]
fn both_away_and_then_only_the_second_comes() {
    if !libzmq::is_here() {
        return;
    }
    let ports = [free_port(), free_port()];
    let mut running = Running::start(&Setup::to_first_of(ports));
    running.feed(0..5_000);
    running.wait_for("both are known to be away", |status| {
        let refused = |why: &String| why.contains("refused");
        let first = matches!(&status.state, CollectorState::Connecting { why: Some(why) } if refused(why));
        uses(status, 0) && first && is_out(status, 1, "refused")
    });
    let second = Reading::start(ports[1]);
    running.wait_for("all taken", |status| status.law.taken == 5_000);
    assert_eq!(running.stop().law.made, 5_000);
    assert_eq!(second.end(), count_up(5_000));
}

#[test]
fn first_that_never_subscribes_is_left_and_says_why_until_it_does() {
    if !libzmq::is_here() {
        return;
    }
    // libzmq accepts and greets by itself, and subscribes only when its owner comes by.
    let first = Sub::bind(SubOptions::default());
    let second = Reading::start(0);
    let mut running = Running::start(&Setup::to_first_of([first.port, second.port]));
    running.feed(0..5_000);
    running.wait_for("the second has all of it", |status| {
        streams_to(status, 1) && status.law.waiting == 0
    });
    running.wait_for("why", |status| is_out(status, 0, "does not subscribe"));
    let first = Reading::of(first);
    running.wait_for("the first is fed", |status| streams_to(status, 0));
    running.feed(5_000..6_000);
    running.wait_for("all taken", |status| status.law.waiting == 0);
    running.stop();
    assert_eq!(second.end(), count_up(5_000));
    assert_eq!(first.end(), (5_000..6_000).collect::<Vec<u32>>());
}

#[test]
fn stalled_first_is_left_and_only_what_is_on_the_way_comes_twice() {
    if !libzmq::is_here() {
        return;
    }
    const MADE: u32 = 100_000;
    let first = Sub::bind(SubOptions {
        queue_messages: 5,
        buffer_octets: 32 * 1024,
        ..SubOptions::default()
    });
    let second = Reading::start(0);
    let setup = Setup {
        window_octets: 512 * 1024,
        ..Setup::to_first_of([first.port, second.port])
    };
    let mut running = Running::start(&setup);
    running.wait_for_stream(&first);
    running.feed(0..MADE);
    let status = running.wait_for("the second has the rest", |status| {
        streams_to(status, 1) && status.law.waiting == 0
    });
    assert!(
        is_out(&status, 0, "takes nothing") || is_out(&status, 0, "does not subscribe"),
        "{status:?}"
    );
    assert_eq!(status.law.dropped.at(DropPoint::CollectorRestarted), 0);
    running.stop();
    // It lives on, and reads what it has.
    let mut left = Vec::new();
    while let Some(frames) = first.receive() {
        left.extend(Got::numbers_of(&frames));
    }
    let second = second.end();
    let both: BTreeSet<u32> = left.iter().chain(&second).copied().collect();
    assert_eq!(both.len(), MADE as usize, "nothing is lost");
    let twice = left.len() + second.len() - both.len();
    // A record has 40 octets and more.
    assert!(twice * 40 <= 512 * 1024, "{twice} twice, more than the window");
}

#[test]
fn next_run_goes_on_with_the_one_that_has_the_marks() {
    if !libzmq::is_here() {
        return;
    }
    let second = Reading::start(0);
    let setup = Setup::to_first_of([free_port(), second.port]);
    let directory = tempfile::tempdir().unwrap();
    let mut running = Running::start_in(directory.path(), &setup);
    running.feed(0..5_000);
    running.wait_for("the second has all of it", |status| {
        uses(status, 1) && status.law.waiting == 0
    });
    running.stop();

    let mut running = Running::start_in(directory.path(), &setup);
    assert!(uses(&running.status.borrow(), 1));
    running.feed(5_000..6_000);
    running.wait_for("all taken", |status| status.law.taken == 6_000);
    running.wait_for("the first is still away", |status| is_out(status, 0, "refused"));
    running.stop();
    assert_eq!(
        second.end(),
        count_up(6_000),
        "what it took is not sent again because the first refused"
    );
}
