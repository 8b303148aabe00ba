//! One history: a spool, a collector's machine, a process, and what must hold after each step.

mod check;

use std::time::Duration;

use flowtilla_agent_core::collector::window::{MESSAGE_OVERHEAD_OCTETS, OnRestart};
use flowtilla_agent_core::collector::{Collector, CollectorOptions, Transmit, Wanted};
use flowtilla_agent_core::encode::header::PayloadEncoding;
use flowtilla_agent_core::encode::tlv::{Loopback, TlvOptions};
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::spool::{Cursor, LostCause};
use flowtilla_agent_core::time::KernelTime;

use crate::peer::{Item, Peer};
use crate::record::{SLOT, numbers, record};
use crate::store::{Kind, Read, Store};

/// What may happen in a history.
#[derive(Clone, Copy)]
pub(crate) struct Climate {
    pub(crate) window_octets: u64,
    pub(crate) on_restart: OnRestart,
    /// Whether the spool evicts, is damaged, and is refused by its disk.
    pub(crate) storms: bool,
    /// Whether links break and agents restart; collectors are killed always.
    pub(crate) breaks: bool,
    /// Whether two collectors take turns.
    pub(crate) turns: bool,
}

pub(crate) const CALM: Climate = Climate {
    window_octets: 256 << 10,
    on_restart: OnRestart::Replay,
    storms: false,
    breaks: true,
    turns: false,
};

/// What became of a sequence, as the collector was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Sent,
    ByPeer,
    TooLarge,
    Lost(LostCause),
    Skipped,
}

pub(crate) struct World {
    seed: u64,
    random: fastrand::Rng,
    climate: Climate,
    now: KernelTime,
    store: Store,
    pub(crate) peer: Peer,
    /// The collector that is not fed.
    spare: Peer,
    pub(crate) collector: Collector,
    saved: Cursor,
    /// `fates` at that moment.
    saved_fates: Vec<Fate>,
    /// Where the read that is under way began.
    reading: Option<u64>,
    /// The last sequence that the collector was told about.
    passed: u64,
    connected: bool,
    /// The process died and the agent has not been refused yet.
    unseen_death: bool,
    messages: u32,
    /// Of this connection: last sequence and octets of each message that carried records.
    sent: Vec<(u64, u64)>,
    newest_number: u32,
    /// By sequence.
    fates: Vec<Fate>,
    pub(crate) kills: u64,
    pub(crate) turns: u64,
    /// Whether the application is slower than its line, so that its queue fills.
    slow: bool,
    /// How often something breaks, per mille of what is left to it.
    trouble: u32,
}

impl World {
    pub(crate) fn new(seed: u64, climate: Climate) -> Self {
        let saved = Cursor::beginning_at(0);
        let mut random = fastrand::Rng::with_seed(seed);
        // From connections that hardly begin to ones that carry thousands of messages.
        let trouble = 1_000 >> random.u32(0..6);
        Self {
            seed,
            random,
            climate,
            now: KernelTime(1_000_000_000_000),
            store: Store::default(),
            peer: Peer::default(),
            spare: Peer::default(),
            collector: Collector::new(&options(climate), &saved),
            saved,
            saved_fates: Vec::new(),
            reading: None,
            passed: 0,
            connected: false,
            unseen_death: false,
            messages: 0,
            sent: Vec::new(),
            newest_number: 0,
            fates: Vec::new(),
            kills: 0,
            turns: 0,
            slow: false,
            trouble,
        }
    }

    pub(crate) fn run(&mut self, steps: usize) {
        for step in 0..steps {
            self.step();
            self.check();
            if step % 100 == 0 {
                self.check_all();
            }
        }
        // Peace: everything is written, read, sent, answered and handled.
        self.store.memory_only = false;
        self.store.sync();
        self.collector.handle_readable(self.store.readable());
        while !self.collector.is_idle() {
            self.connect();
            self.now = self.now.after(Duration::from_millis(150));
            self.send(500);
            self.peer.receive(usize::MAX);
            self.peer.handle(usize::MAX);
            self.answer(usize::MAX);
            self.check();
        }
        self.peer.receive(usize::MAX);
        self.peer.handle(usize::MAX);
        self.check_all();
    }

    fn step(&mut self) {
        let bulk = self.random.usize(1..60);
        match self.random.u32(0..1_000) {
            0..250 => self.append(bulk),
            250..330 => self.sync(),
            330..600 => self.send(2 * bulk),
            600..720 if self.connected => self.peer.receive(4 * bulk),
            720..850 if !self.slow => self.peer.handle(2 * bulk),
            720..850 => self.peer.handle(bulk / 4),
            850..900 => self.answer(bulk),
            900..910 => self.foreign_pong(),
            910..940 => self.connect(),
            940..970 => self.now = self.now.after(Duration::from_millis(self.random.u64(0..1_500))),
            970..980 => self.save(),
            980..990 => self.slow = self.random.bool(),
            990..997 if self.climate.storms => self.storm(),
            _ if self.random.u32(0..1_000) < self.trouble => self.trouble(),
            _ => self.send(bulk),
        }
    }

    fn storm(&mut self) {
        let at = self.random.u64(0..=self.store.durable);
        match self.random.u32(0..3) {
            0 => self.store.evict(at),
            1 => self.store.damage(at),
            _ => self.store.memory_only = !self.store.memory_only,
        }
    }

    fn trouble(&mut self) {
        match self.random.u32(0..5) {
            0..2 if self.climate.breaks => self.disconnect(),
            2 if self.climate.breaks => self.restart_agent(),
            3 if self.climate.turns => self.change(),
            _ => self.kill(),
        }
    }

    fn save(&mut self) {
        self.saved = self.collector.cursor();
        self.saved_fates.clone_from(&self.fates);
    }

    fn append(&mut self, values: usize) {
        for _ in 0..values {
            let random = &mut self.random;
            let count = random.usize(1..=6);
            let kinds = std::iter::repeat_with(|| match random.u32(0..20) {
                0 => Kind::TooLarge,
                1..4 => Kind::ByPeer,
                _ => Kind::Wanted,
            });
            self.store.append(kinds.take(count));
        }
        self.fates
            .resize(usize::try_from(self.store.newest()).unwrap(), Fate::Unknown);
        self.collector.handle_readable(self.store.readable());
    }

    fn sync(&mut self) {
        self.store.sync();
        self.collector.handle_readable(self.store.readable());
    }

    /// One turn of a driver; the spool answers at once, late, or after the connection has gone.
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(after) = self.reading.take() {
                self.give(after);
            }
            if let Some(transmit) = self.collector.poll_transmit(self.now) {
                self.transmit(transmit);
                continue;
            }
            let Some(wanted) = self.collector.poll_read(self.now) else {
                break;
            };
            assert!(self.reading.is_none() && self.connected, "seed {}", self.seed);
            self.reading = Some(wanted.after);
            if self.random.u32(0..8) == 0 {
                break;
            }
        }
    }

    fn give(&mut self, after: u64) {
        match self.store.read(after) {
            Read::Nothing => self.collector.handle_nothing(self.now),
            Read::Lost { upto, cause } => {
                let law = self.collector.law();
                self.collector.handle_lost(upto, cause);
                if self.connected {
                    self.note(upto, |_| Fate::Lost(cause));
                }
                assert_eq!(law.made, self.collector.law().made, "seed {}", self.seed);
            }
            Read::Value { first, records } => {
                let made: Vec<FlowRecord> = records
                    .iter()
                    .map(|&(number, kind)| record(number, kind))
                    .collect();
                if self.collector.handle_values(first, &made, self.now) {
                    let last = first + records.len() as u64 - 1;
                    self.note(last, |sequence| {
                        match records[usize::try_from(sequence - first).unwrap()].1 {
                            Kind::Wanted => Fate::Sent,
                            Kind::ByPeer => Fate::ByPeer,
                            Kind::TooLarge => Fate::TooLarge,
                        }
                    });
                }
            }
        }
    }

    fn note(&mut self, last: u64, fate: impl Fn(u64) -> Fate) {
        for sequence in self.passed + 1..=last {
            self.fates[usize::try_from(sequence - 1).unwrap()] = fate(sequence);
        }
        self.passed = self.passed.max(last);
    }

    /// Reading goes on behind what is taken.
    fn go_back(&mut self) {
        self.connected = false;
        self.sent.clear();
        self.passed = self.collector.cursor().taken;
    }

    fn transmit(&mut self, transmit: Transmit) {
        let seed = self.seed;
        let (id, item) = match transmit {
            Transmit::Flows { id, payload } => {
                let numbers = numbers(&payload);
                for &number in &numbers {
                    assert!(number > self.newest_number, "seed {seed}: order on a connection");
                    self.newest_number = number;
                }
                self.sent
                    .push((0, payload.len() as u64 + MESSAGE_OVERHEAD_OCTETS));
                (id, Item::Message(numbers))
            }
            Transmit::Announce(_) => (self.collector.announce(), Item::Message(Vec::new())),
            Transmit::Ping(context) => {
                if let Some(newest) = self.sent.last_mut() {
                    newest.0 = u64::from_be_bytes(context);
                }
                return self.peer.line.push_back(Item::Ping(context));
            }
        };
        self.messages += 1;
        assert_eq!(id, self.messages, "seed {seed}: ids count by one");
        self.peer.line.push_back(Item::Message(match item {
            Item::Message(numbers) => numbers,
            Item::Ping(_) => unreachable!("returned above"),
        }));
    }

    /// PONGs come late, some are left out, some come twice.
    fn answer(&mut self, count: usize) {
        for _ in 0..count {
            let Some(context) = self.peer.pongs.pop_front() else {
                break;
            };
            if count != usize::MAX && self.random.u32(0..4) == 0 {
                continue;
            }
            self.collector.handle_pong(&context, self.now);
            let cursor = self.collector.cursor();
            assert!(
                cursor.taken >= u64::from_be_bytes(context),
                "seed {}: {cursor:?}",
                self.seed
            );
            self.collector.handle_pong(&context, self.now);
            assert_eq!(
                self.collector.cursor(),
                cursor,
                "seed {}: twice is no news",
                self.seed
            );
        }
    }

    fn foreign_pong(&mut self) {
        let before = self.collector.cursor();
        let unknown = match self.random.u32(0..3) {
            0 => self.random.u64(..),
            1 => self.random.u64(0..=before.taken),
            _ => self.store.newest() + 1,
        };
        if unknown <= before.taken || unknown > self.store.newest() {
            self.collector.handle_pong(&unknown.to_be_bytes(), self.now);
            assert_eq!(self.collector.cursor(), before, "seed {}", self.seed);
        }
    }

    fn connect(&mut self) {
        if self.connected {
            return;
        }
        if std::mem::take(&mut self.unseen_death) {
            self.restarted(); // Refused.
        }
        self.connected = true;
        (self.messages, self.newest_number) = (0, 0);
        self.peer.connect();
        self.collector.handle_connected(true, self.now);
        self.collector.handle_subscriptions(Wanted {
            flows: true,
            events: true,
            listening: false,
        });
    }

    fn disconnect(&mut self) {
        self.peer.break_off();
        self.collector.handle_disconnected();
        self.go_back();
        if self.random.bool() {
            self.reading = None; // The other half comes too late.
        }
    }

    /// The collector's process is killed; the agent sees it at once, or only when it is refused.
    fn kill(&mut self) {
        self.kills += 1;
        self.check_risk();
        self.peer.die();
        if self.connected && self.random.bool() {
            self.restarted();
        } else {
            self.disconnect();
            self.unseen_death = true;
        }
    }

    /// The other collector is fed. This one is cut off: what its process has, it handles by itself.
    fn change(&mut self) {
        if std::mem::take(&mut self.unseen_death) {
            self.restarted(); // Refused, in the time that a change takes.
        }
        let former = self.peer.former_pongs();
        self.disconnect();
        self.peer.handle(usize::MAX);
        let before = self.collector.cursor();
        self.collector.handle_changed(&options(self.climate));
        let after = self.collector.cursor();
        assert_eq!(
            (after.read, after.taken, after.at_risk.records(), &after.law),
            (before.taken, before.taken, 0, &before.law),
            "seed {}",
            self.seed
        );
        self.save();
        std::mem::swap(&mut self.peer, &mut self.spare);
        self.turns += 1;
        self.connect();
        for context in former {
            self.collector.handle_pong(&context, self.now);
            assert_eq!(
                self.collector.cursor(),
                after,
                "seed {}: a PONG of a former connection",
                self.seed
            );
        }
    }

    fn restarted(&mut self) {
        let before = self.collector.cursor();
        self.collector.handle_restarted();
        self.go_back();
        let after = self.collector.cursor();
        assert_eq!(
            (after.read, after.at_risk.records()),
            (after.taken, 0),
            "seed {}",
            self.seed
        );
        match self.climate.on_restart {
            OnRestart::Replay => assert_eq!(after.taken, before.read, "seed {}", self.seed),
            OnRestart::Skip => {
                assert_eq!(after.taken, before.taken, "seed {}", self.seed);
                for fate in &mut self.fates[range(before.read, before.taken)] {
                    if *fate == Fate::Sent {
                        *fate = Fate::Skipped;
                    }
                }
            }
        }
        self.save();
    }

    /// The agent is killed; a new one goes on from what was saved last.
    fn restart_agent(&mut self) {
        if self.random.u32(0..4) == 0 {
            self.save();
        }
        self.reading = None;
        self.peer.break_off();
        self.store.crash(self.saved.taken);
        self.fates.clone_from(&self.saved_fates);
        self.fates
            .resize(usize::try_from(self.store.newest()).unwrap(), Fate::Unknown);
        self.collector = Collector::new(&options(self.climate), &self.saved);
        self.go_back();
        self.collector.handle_readable(self.store.readable());
        if self.random.u32(0..4) == 0 {
            self.kills += 1;
            self.peer.die();
            self.unseen_death = true;
        }
    }
}

fn range(after: u64, upto: u64) -> std::ops::Range<usize> {
    usize::try_from(after).unwrap()..usize::try_from(upto).unwrap()
}

fn options(climate: Climate) -> CollectorOptions {
    CollectorOptions {
        slot: SLOT,
        encoding: PayloadEncoding::Tlv,
        tlv: TlvOptions {
            loopback: Loopback::Omit,
            ..TlvOptions::default()
        },
        window_octets: climate.window_octets,
        // Small messages, so that a queue of 1,000 fills within a short history.
        message_records_max: 2,
        on_restart: climate.on_restart,
        records_per_second: 1_000_000,
    }
}
