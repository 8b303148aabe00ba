//! Who does how much: the sums, between the meter that makes them and those who ask.
//!
//! The meter takes the lock for a record, those who ask for one report: a millisecond at most.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowtilla_agent_core::top::Top;
use flowtilla_agent_core::top::wire::Question;
use flowtilla_proto::wire::session::TopAnswer;

use crate::clock;

/// The sums of an agent. Copies are of the same.
#[derive(Clone, Debug, Default)]
pub struct SharedTop(Arc<Mutex<Top>>);

impl SharedTop {
    /// The sums, for as long as the guard lives.
    pub fn lock(&self) -> MutexGuard<'_, Top> {
        // They are whole after each record: a thread that panicked left at most one of them half counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked, at this moment.
    #[must_use]
    pub fn answer(&self, question: Question) -> TopAnswer {
        let now = clock::kernel_now();
        let report = self
            .lock()
            .report(question.view, question.order, question.rows, now);
        report.answer(question.id)
    }
}
