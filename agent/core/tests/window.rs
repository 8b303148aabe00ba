//! Generated histories of one collector's window against a collector that is really there: it queues, handles, answers,
//! breaks off and dies. The seed stands in every failure.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use flowtilla_agent_core::collector::window::{
    BATCH_OVERHEAD_OCTETS, OnRestart, READ_SLACK_MESSAGES, Window, WindowLimits,
};
use flowtilla_agent_core::loss::DropPoint;

/// Messages that one connection's queue in the collector's process holds.
const QUEUE_MESSAGES: usize = 1_000;

const WIDE: WindowLimits = WindowLimits {
    window_octets: 1 << 20,
    queue_records_max: u64::MAX,
    queue_octets_max: u64::MAX,
    replay_octets_max: u64::MAX,
};

/// A collector's process and the connection to it.
#[derive(Default)]
struct Peer {
    /// Sent, not in the process: sequence, or `None` for an announcement.
    line: VecDeque<Option<u64>>,
    /// The process's queues: of earlier connections, the last is of this one.
    queues: Vec<VecDeque<Option<u64>>>,
    turn: usize,
    pongs: VecDeque<u64>,
    /// Ever handled, by any process.
    handled: BTreeSet<u64>,
}

impl Peer {
    fn connect(&mut self) {
        self.queues.retain(|queue| !queue.is_empty());
        self.queues.push(VecDeque::new());
    }

    fn receive(&mut self, count: usize) {
        let queue = self.queues.last_mut().unwrap();
        for _ in 0..count {
            if queue.len() >= QUEUE_MESSAGES {
                break;
            }
            let Some(message) = self.line.pop_front() else {
                break;
            };
            self.pongs.extend(message);
            queue.push_back(message);
        }
    }

    /// By turns, as libzmq does.
    fn handle(&mut self, count: usize) {
        for _ in 0..count {
            let live = self.queues.len();
            let Some(index) = (1..=live)
                .map(|step| (self.turn + step) % live)
                .find(|&index| !self.queues[index].is_empty())
            else {
                break;
            };
            self.turn = index;
            self.handled.extend(self.queues[index].pop_front().unwrap());
        }
    }

    fn break_off(&mut self) {
        self.line.clear();
        self.pongs.clear();
    }

    fn die(&mut self) {
        self.break_off();
        self.queues.clear();
        self.turn = 0;
    }
}

/// What a window is expected to know of a batch, by the plain words of its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unsent,
    OnTheWay(u64),
    AtRisk(Option<u64>),
    Gone,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    window: Window,
    limits: WindowLimits,
    peer: Peer,
    connected: bool,
    messages: u64,
    /// Records of each batch; its sequence is the index and one.
    records: Vec<u64>,
    made: u64,
    /// Kept while no bound interferes.
    model: Option<Vec<State>>,
    on_restart: OnRestart,
    skipped: u64,
}

impl World {
    fn new(seed: u64, limits: WindowLimits, on_restart: OnRestart) -> Self {
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            window: Window::new(limits, on_restart),
            limits,
            peer: Peer::default(),
            connected: false,
            messages: 0,
            records: Vec::new(),
            made: 0,
            model: (limits == WIDE).then(Vec::new),
            on_restart,
            skipped: 0,
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
            self.check();
        }
        // Peace: everything arrives and is handled.
        while self.window.law().waiting > 0 || !self.peer.line.is_empty() {
            self.connect();
            self.send(500);
            self.peer.receive(usize::MAX);
            self.peer.handle(usize::MAX);
            self.answer();
            self.check();
        }
        self.peer.handle(usize::MAX);
    }

    fn step(&mut self) {
        let bulk = self.random.usize(1..60);
        match self.random.u32(0..1_000) {
            0..250 => self.queue(bulk),
            250..500 => self.send(bulk),
            500..560 => self.announce(),
            560..720 => self.peer_turn(|peer| peer.receive(bulk)),
            720..860 => self.peer.handle(bulk),
            860..940 => self.answer(),
            940..975 => self.connect(),
            975..980 => {
                let unknown = self.random.u64(..);
                if unknown > self.records.len() as u64 {
                    assert!(!self.window.handle_taken(unknown), "seed {}", self.seed);
                }
            }
            980..993 => self.disconnect(),
            _ => self.restart(),
        }
    }

    fn peer_turn(&mut self, turn: impl FnOnce(&mut Peer)) {
        if self.connected {
            turn(&mut self.peer);
        }
    }

    fn queue(&mut self, count: usize) {
        for _ in 0..count {
            let records = self.random.u32(1..=100);
            let octets = self.random.usize(1..2_000);
            self.window.queue(Bytes::from(vec![0; octets]), records);
            self.records.push(u64::from(records));
            self.made += u64::from(records);
            if let Some(model) = &mut self.model {
                model.push(State::Unsent);
            }
        }
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            if !self.connected {
                return;
            }
            let Some((message, batch)) = self.window.poll_batch() else {
                return;
            };
            self.messages += 1;
            assert_eq!(message, self.messages, "seed {}: ids count by one", self.seed);
            assert_eq!(u64::from(batch.records), self.records[place(batch.sequence)]);
            self.peer.line.push_back(Some(batch.sequence));
            if let Some(model) = &mut self.model {
                let (before, rest) = model.split_at_mut(place(batch.sequence));
                let state = std::mem::replace(&mut rest[0], State::OnTheWay(message));
                assert_eq!(state, State::Unsent, "seed {}", self.seed);
                let oldest = before.last() != Some(&State::Unsent);
                assert!(oldest, "seed {}: the oldest goes first", self.seed);
            }
        }
    }

    fn announce(&mut self) {
        if self.connected {
            self.messages += 1;
            assert_eq!(self.window.count_message(), self.messages, "seed {}", self.seed);
            self.peer.line.push_back(None);
        }
    }

    fn answer(&mut self) {
        let Some(&newest) = self.peer.pongs.back() else {
            return;
        };
        self.peer.pongs.clear();
        assert!(self.window.handle_taken(newest), "seed {}", self.seed);
        assert!(
            !self.window.handle_taken(newest),
            "seed {}: twice is no news",
            self.seed
        );
        if let Some(model) = &mut self.model {
            let State::OnTheWay(at) = model[place(newest)] else {
                panic!("seed {}", self.seed);
            };
            // In order: what an earlier connection left at risk holds back what came after it.
            let mut held_back = false;
            for state in &mut model[..=place(newest)] {
                if let State::OnTheWay(message) = *state {
                    *state = State::AtRisk(Some(message));
                }
                if let State::AtRisk(message) = *state {
                    held_back |= message.unwrap_or(READ_SLACK_MESSAGES) + READ_SLACK_MESSAGES > at;
                    if !held_back {
                        *state = State::Gone;
                    }
                }
            }
        }
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.messages = 0;
            self.peer.connect();
        }
    }

    fn disconnect(&mut self) {
        self.connected = false;
        self.peer.break_off();
        self.window.handle_disconnected();
        self.model_break();
    }

    fn model_break(&mut self) {
        for state in self.model.iter_mut().flatten() {
            match state {
                State::OnTheWay(_) => *state = State::Unsent,
                State::AtRisk(message) => *message = None,
                State::Unsent | State::Gone => {}
            }
        }
    }

    fn restart(&mut self) {
        self.connected = false;
        self.peer.die();
        self.window.handle_restarted();
        assert_eq!(self.window.at_risk_records(), 0, "seed {}", self.seed);
        self.model_break();
        for (state, records) in self.model.iter_mut().flatten().zip(&self.records) {
            if let State::AtRisk(_) = state {
                *state = match self.on_restart {
                    OnRestart::Replay => State::Unsent,
                    OnRestart::Skip => State::Gone,
                };
                if self.on_restart == OnRestart::Skip {
                    self.skipped += records;
                }
            }
        }
    }

    fn check(&self) {
        let (seed, law) = (self.seed, self.window.law());
        assert_eq!(law.missing(), 0, "seed {seed}: {law:?}");
        assert_eq!(law.made, self.made, "seed {seed}");
        assert!(
            law.waiting <= self.limits.queue_records_max,
            "seed {seed}: {law:?}"
        );
        assert!(
            self.window.held_octets() <= self.limits.queue_octets_max,
            "seed {seed}"
        );
        let Some(model) = &self.model else {
            return;
        };
        // A walk over all batches: the plain laws above are asked after each step, the model now and then.
        if self.random.clone().u32(0..20) > 0 {
            return;
        }
        let sum = |wanted: fn(&State) -> bool| -> u64 {
            let states = model.iter().zip(&self.records);
            states
                .filter(|(state, _)| wanted(state))
                .map(|(_, records)| records)
                .sum()
        };
        let waiting = sum(|state| matches!(state, State::Unsent | State::OnTheWay(_)));
        assert_eq!(law.waiting, waiting, "seed {seed}");
        let at_risk = sum(|state| matches!(state, State::AtRisk(_)));
        assert_eq!(self.window.at_risk_records(), at_risk, "seed {seed}");
        assert_eq!(
            law.dropped.at(DropPoint::CollectorRestarted),
            self.skipped,
            "seed {seed}"
        );
        assert_eq!(law.dropped.at(DropPoint::QueueOverflow), 0, "seed {seed}");
    }

    /// Records that no process of the collector ever handled.
    fn unhandled(&self) -> u64 {
        let handled: u64 = self
            .peer
            .handled
            .iter()
            .map(|&sequence| self.records[place(sequence)])
            .sum();
        self.made - handled
    }
}

fn place(sequence: u64) -> usize {
    usize::try_from(sequence - 1).unwrap()
}

#[test]
fn nothing_is_lost_within_bounds_whatever_breaks() {
    for seed in 0..24 {
        let mut world = World::new(seed, WIDE, OnRestart::Replay);
        world.run(1_500);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
        let law = world.window.law();
        assert_eq!((law.taken, law.waiting), (law.made, 0), "seed {seed}");
    }
}

#[test]
fn skip_loses_no_more_than_it_counts() {
    for seed in 100..112 {
        let mut world = World::new(seed, WIDE, OnRestart::Skip);
        world.run(1_500);
        let counted = world.window.law().dropped.at(DropPoint::CollectorRestarted);
        assert!(world.unhandled() <= counted, "seed {seed}");
    }
}

#[test]
fn narrow_bounds_hold_and_every_loss_is_counted() {
    for seed in 200..248 {
        let mut random = fastrand::Rng::with_seed(seed);
        let queue_octets_max = random.u64(4_000..1_500_000);
        let limits = WindowLimits {
            window_octets: random.u64(2_000..300_000),
            queue_records_max: random.u64(100..60_000),
            queue_octets_max,
            replay_octets_max: random.u64(0..queue_octets_max),
        };
        let policy = if random.bool() {
            OnRestart::Replay
        } else {
            OnRestart::Skip
        };
        let mut world = World::new(seed, limits, policy);
        world.run(1_500);
        let law = world.window.law();
        let counted =
            law.dropped.at(DropPoint::QueueOverflow) + law.dropped.at(DropPoint::CollectorRestarted);
        assert!(world.unhandled() <= counted, "seed {seed}: {law:?}");
        assert!(counted > 0, "seed {seed}: the bounds were meant to bite");
    }
}

#[test]
fn oldest_unsent_goes_at_the_bound_and_what_is_on_the_way_stays() {
    let limits = WindowLimits {
        queue_records_max: 30,
        ..WIDE
    };
    let mut window = Window::new(limits, OnRestart::Replay);
    let queue = |window: &mut Window| window.queue(Bytes::from_static(b"x"), 10);
    queue(&mut window);
    let (message, first) = window.poll_batch().unwrap();
    assert_eq!((message, first.sequence), (1, 1));
    for _ in 0..5 {
        queue(&mut window);
    }
    let law = window.law();
    assert_eq!((law.waiting, law.dropped.at(DropPoint::QueueOverflow)), (30, 30));
    assert_eq!(window.poll_batch().unwrap().1.sequence, 5);
    assert!(window.handle_taken(1));
    assert_eq!(window.law().taken, 10);
}

#[test]
fn window_full_waits_and_one_large_batch_always_goes() {
    let limits = WindowLimits {
        window_octets: 100,
        ..WIDE
    };
    let mut window = Window::new(limits, OnRestart::Replay);
    for _ in 0..3 {
        window.queue(Bytes::from(vec![0; 200]), 1);
    }
    assert!(window.poll_batch().is_some());
    assert!(!window.is_ready() && window.poll_batch().is_none());
    assert!(window.handle_taken(1));
    assert!(window.is_ready());
    assert_eq!(
        window.held_octets(),
        3 * (200 + BATCH_OVERHEAD_OCTETS),
        "kept for a restart"
    );
}

#[test]
fn giving_up_counts_what_waits() {
    let mut window = Window::new(WIDE, OnRestart::Replay);
    for _ in 0..4 {
        window.queue(Bytes::from_static(b"x"), 5);
    }
    window.poll_batch().unwrap();
    window.poll_batch().unwrap();
    assert!(window.handle_taken(1));
    window.give_up(DropPoint::ShutdownGrace);
    let law = window.law();
    assert_eq!(
        (law.taken, law.waiting, law.dropped.at(DropPoint::ShutdownGrace)),
        (5, 0, 15)
    );
    assert_eq!(law.missing(), 0);
}
