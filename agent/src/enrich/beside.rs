//! The thread that looks things up, so that a process, a file system or a user database that is slow to answer holds up
//! nothing but names.
//!
//! In: asks, at most [`ASKS_OUT_MAX`] at a time. Out: their answers, in the order of the asks. Never joined: a thread that
//! hangs in somebody's file system is left there, and what it was asked stays without an answer.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use flowtilla_agent_core::enrich::{Answer, Ask, Naming};

use super::Lookups;
use crate::clock;

/// Asks that wait for their answer at once.
///
/// A storm of short-lived processes asks some hundred a second. Half of it still is a second's worth; double it, and a
/// thread that hangs holds back twice as many names after it was freed.
pub const ASKS_OUT_MAX: usize = 1_024;

/// To any ask: an answer of another kind counts as nothing.
const NOTHING: Answer = Answer::Name(None);

/// Answers asks on a thread of its own. See the module.
pub struct Beside {
    asks: SyncSender<Ask>,
    answers: Receiver<(Ask, Answer)>,
    out: usize,
}

impl Beside {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(lookups: Lookups) -> io::Result<Self> {
        Self::serve(lookups, Lookups::answer)
    }

    fn serve<L: Send + 'static>(mut lookups: L, look: fn(&mut L, &Ask) -> Answer) -> io::Result<Self> {
        let (asks, asked) = sync_channel::<Ask>(ASKS_OUT_MAX);
        let (answer, answers) = sync_channel(ASKS_OUT_MAX);
        std::thread::Builder::new()
            .name("lookups".into())
            .spawn(move || {
                for ask in asked {
                    let found = look(&mut lookups, &ask);
                    if answer.send((ask, found)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            asks,
            answers,
            out: 0,
        })
    }

    /// Passes on what `naming` asks and what was found, and waits at most `patience` for the next answer; takes what it
    /// waited off `patience`. `false`: nothing came, asking again now would not help.
    pub fn exchange(&mut self, naming: &mut Naming, patience: &mut Duration) -> bool {
        while self.out < ASKS_OUT_MAX
            && let Some(ask) = naming.poll_ask()
        {
            match self.asks.send(ask) {
                Ok(()) => self.out += 1,
                // The thread has panicked: its last words are in the log. Names go missing, and that is counted.
                Err(unsent) => naming.answer(unsent.0, NOTHING),
            }
        }
        let taken = self.take(naming);
        if taken || self.out == 0 || patience.is_zero() {
            return taken;
        }
        let began = clock::instant();
        let came = self.answers.recv_timeout(*patience);
        *patience = patience.saturating_sub(began.elapsed());
        let Ok((ask, answer)) = came else { return false };
        self.out -= 1;
        naming.answer(ask, answer);
        self.take(naming);
        true
    }

    fn take(&mut self, naming: &mut Naming) -> bool {
        let before = self.out;
        while let Ok((ask, answer)) = self.answers.try_recv() {
            self.out -= 1;
            naming.answer(ask, answer);
        }
        self.out < before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use flowtilla_agent_core::enrich::{NamingOptions, NamingState};
    use flowtilla_agent_core::owner::{Process, ProcessKey};
    use flowtilla_agent_core::time::KernelTime;

    use super::*;
    use crate::enrich::tests::record;

    fn process(pid: u32) -> Process {
        Process {
            key: ProcessKey {
                pid,
                start: KernelTime(1),
            },
            parent_pid: 1,
            uid: 0,
            gid: 0,
            cgroup_id: 0,
            comm: "stuck".into(),
        }
    }

    #[test]
    fn a_look_up_that_hangs_costs_the_patience_and_no_more() {
        static GATE: Mutex<()> = Mutex::new(());
        let hangs = GATE.lock().expect("nobody else has it");
        let mut beside = Beside::serve((), |(), _| {
            drop(GATE.lock());
            NOTHING
        })
        .expect("a thread");
        let mut naming = Naming::new(NamingOptions::default());
        let mut record = record(process(4_000_001));
        assert_eq!(naming.name(&mut record, KernelTime(1)), NamingState::Waiting);
        let mut patience = Duration::from_millis(20);
        assert!(!beside.exchange(&mut naming, &mut patience));
        assert_eq!(patience, Duration::ZERO);
        assert_eq!(naming.name(&mut record, KernelTime(2)), NamingState::Waiting);
        drop(hangs);
        let mut patience = Duration::from_secs(60);
        while naming.name(&mut record, KernelTime(3)) == NamingState::Waiting {
            assert!(
                beside.exchange(&mut naming, &mut patience),
                "no answer within a minute"
            );
        }
    }

    #[test]
    fn a_thread_that_is_gone_answers_nothing() {
        let mut beside = Beside::serve((), |(), _| panic!("a test's panic")).expect("a thread");
        let mut naming = Naming::new(NamingOptions::default());
        for pid in 4_000_001..4_000_003 {
            let mut record = record(process(pid));
            let mut patience = Duration::from_secs(60);
            let mut rounds = 0;
            while naming.name(&mut record, KernelTime(1)) == NamingState::Waiting && rounds < 100 {
                beside.exchange(&mut naming, &mut patience);
                rounds += 1;
            }
            assert!(patience > Duration::ZERO, "it waited for a thread that is gone");
        }
    }
}
