//! A collector that is really there: its process queues, handles and answers, and loses what it has not handled when it
//! is killed.

use std::collections::{HashSet, VecDeque};

/// Messages that one connection's queue in the collector's process holds.
const QUEUE_MESSAGES: usize = 1_000;

/// What is on the line.
pub(crate) enum Item {
    /// A message with records of these numbers; an announcement has none.
    Message(Vec<u32>),
    Ping([u8; 8]),
}

/// A collector's process and the connection to it.
#[derive(Default)]
pub(crate) struct Peer {
    /// Sent, not in the process.
    pub(crate) line: VecDeque<Item>,
    /// The process's queues: of earlier connections, the last is of this one.
    queues: Vec<VecDeque<Vec<u32>>>,
    turn: usize,
    pub(crate) pongs: VecDeque<[u8; 8]>,
    /// Numbers ever handled, by any process.
    pub(crate) handled: HashSet<u32>,
    /// Records handled more than once.
    pub(crate) duplicates: u64,
    /// Connections that this process has had.
    pub(crate) connections: u32,
}

impl Peer {
    pub(crate) fn connect(&mut self) {
        self.queues.retain(|queue| !queue.is_empty());
        self.queues.push(VecDeque::new());
        self.connections += 1;
    }

    /// In the order of the line; a full queue stops the reading, of PINGs too.
    pub(crate) fn receive(&mut self, count: usize) {
        let Some(queue) = self.queues.last_mut() else {
            return;
        };
        for _ in 0..count {
            if queue.len() >= QUEUE_MESSAGES {
                break;
            }
            match self.line.pop_front() {
                None => break,
                Some(Item::Message(numbers)) => queue.push_back(numbers),
                Some(Item::Ping(context)) => self.pongs.push_back(context),
            }
        }
    }

    /// By turns, as libzmq does.
    pub(crate) fn handle(&mut self, count: usize) {
        for _ in 0..count {
            let live = self.queues.len();
            let Some(index) = (1..=live)
                .map(|step| (self.turn + step) % live)
                .find(|&index| !self.queues[index].is_empty())
            else {
                break;
            };
            self.turn = index;
            for number in self.queues[index].pop_front().into_iter().flatten() {
                self.duplicates += u64::from(!self.handled.insert(number));
            }
        }
    }

    /// PONGs that are on their way, and those that may still be made of what is on the line.
    pub(crate) fn former_pongs(&self) -> Vec<[u8; 8]> {
        let pings = self.line.iter().filter_map(|item| match item {
            Item::Ping(context) => Some(*context),
            Item::Message(_) => None,
        });
        self.pongs.iter().copied().chain(pings).collect()
    }

    pub(crate) fn break_off(&mut self) {
        self.line.clear();
        self.pongs.clear();
    }

    pub(crate) fn die(&mut self) {
        self.break_off();
        self.queues.clear();
        (self.turn, self.connections) = (0, 0);
    }
}
