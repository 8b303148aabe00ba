//! Who is next, who has the program, and what came of whom, over all waves of a call: decides, and does nothing.
//!
//! In: upgrades in the order of the files, and how each went. Out: who is to be brought the program next, whom the controller is asked
//! about, and at the end who has it and who never got it. Invariants: a host is in one place only: waiting, brought, or told of; a wave
//! is full when as many hosts count as it is to have.

use std::collections::{BTreeMap, VecDeque};

use flowtilla_proto::wire::fleet::{Figures, Judged, Standing};

use super::host::{Blame, Failed};
use super::{Upgrade, Upgraded};
use crate::hosts::trouble::Trouble;

/// Upgrades on their way.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Upgrade>,
    upgraded: Vec<Upgraded>,
    failed: Vec<(usize, Trouble)>,
}

impl Queue {
    pub(super) fn new(upgrades: Vec<Upgrade>) -> Self {
        Self {
            waiting: upgrades.into(),
            ..Self::default()
        }
    }

    /// Those that wait for their program.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Upgrade> {
        self.waiting.iter()
    }

    /// What an earlier call left on trial; it does not wait any more.
    pub(super) fn take_trial(&mut self) -> Vec<Upgrade> {
        let (trial, waiting): (VecDeque<_>, VecDeque<_>) =
            (self.waiting.drain(..)).partition(Upgrade::is_on_trial);
        self.waiting = waiting;
        trial.into()
    }

    /// Those that are brought it next, so that `size` have it; nobody: so many have, or nobody is left.
    pub(super) fn next(&mut self, size: usize) -> Vec<Upgrade> {
        let more = size.saturating_sub(self.counted()).min(self.waiting.len());
        self.waiting.drain(..more).collect()
    }

    /// How it went with one. An error: what speaks against the program.
    pub(super) fn took(
        &mut self,
        wave: usize,
        upgrade: Upgrade,
        done: Result<(), Failed>,
    ) -> Result<(), Trouble> {
        let (unsure, counts) = match done {
            Ok(()) => (None, true),
            Err(Failed {
                trouble,
                blame: Blame::Unsure { counts },
            }) => (Some(trouble), counts),
            Err(Failed { trouble, blame }) => {
                self.failed.push((upgrade.at, trouble.clone()));
                return match blame {
                    Blame::Program => Err(trouble),
                    Blame::Host | Blame::Unsure { .. } => Ok(()),
                };
            }
        };
        self.upgraded.push(Upgraded {
            upgrade,
            wave,
            unsure,
            counts,
        });
        Ok(())
    }

    /// How many have the program, for all that is known.
    pub(super) fn counted(&self) -> usize {
        self.upgraded.iter().filter(|one| one.counts).count()
    }

    /// The same, of one wave.
    pub(super) fn counted_in(&self, wave: usize) -> usize {
        let counted = self.upgraded.iter().filter(|one| one.counts);
        counted.filter(|one| one.wave == wave).count()
    }

    /// Whom the controller is asked about. `before`: by agent, its last soak before its upgrade.
    pub(super) fn judged(&self, wave: usize, before: &BTreeMap<String, Figures>) -> Vec<Judged> {
        let judged = |upgrade: &Upgrade, standing: Standing| Judged {
            agent: upgrade.agent().to_owned(),
            standing: standing.into(),
            before: before.get(upgrade.agent()).copied(),
        };
        let counted = self.upgraded.iter().filter(|one| one.counts);
        let changed = counted.map(|one| {
            let standing = match one.wave == wave {
                true => Standing::Changed,
                false => Standing::ChangedBefore,
            };
            judged(&one.upgrade, standing)
        });
        let waiting = self
            .waiting
            .iter()
            // Who has not proven who it is says nothing of others.
            .filter(|upgrade| upgrade.is_proven())
            .map(|upgrade| judged(upgrade, Standing::Unspecified));
        changed.chain(waiting).collect()
    }

    /// Those that have it, or may; those that never got it, by their places; and what went wrong with the rest.
    pub(super) fn end(self) -> (Vec<Upgraded>, Vec<usize>, Vec<(usize, Trouble)>) {
        let never = self.waiting.iter().map(|upgrade| upgrade.at).collect();
        (self.upgraded, never, self.failed)
    }
}

#[cfg(test)]
mod tests;
