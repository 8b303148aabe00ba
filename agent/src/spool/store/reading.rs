//! Reading the segments: the answers to readers, and what to do with a segment that cannot be read.
//!
//! At most one segment is open beside the head. What it does not hold is lost, and noted with its reason.

use std::fs;
use std::path::Path;

use flowtilla_agent_core::spool::Value;

use super::{Store, StoreError, boottime, path_of, refused};
use crate::spool::SetAside;
use crate::spool::lost::LostCause;
use crate::spool::segment::{self, Segment, SegmentError, Verdict};
use crate::spool::shared::held;
use crate::spool::survey::copy::SegmentCopy;

/// Damaged segments that are kept for whoever wants to look.
const CORRUPT_MAX: usize = 4;
/// Doubtful errors of one segment, one after another, before it counts as damaged.
const DOUBTS_MAX: u32 = 8;

/// What a reader is answered.
#[derive(Debug)]
pub(crate) enum Reply {
    Values(Vec<Value>),
    Lost {
        upto: u64,
        cause: LostCause,
    },
    /// It is in memory by now, or nowhere yet.
    InTail,
    /// Not at this moment; if it is told up to where, what comes after it may be had.
    Unavailable {
        upto: Option<u64>,
    },
}

impl Store {
    /// Answers a reader that has everything up to `after`.
    pub(crate) fn read(&mut self, after: u64, octets_max: usize) -> Result<Reply, StoreError> {
        let from = after.saturating_add(1);
        loop {
            self.shared.step(self.generation)?;
            let (durable, tail) = {
                let tail = held(&self.shared.tail);
                (tail.durable(), tail.first())
            };
            if from > durable || tail.is_some_and(|first| first <= from) {
                return Ok(Reply::InTail);
            }
            let end = tail.map_or(durable, |first| first - 1);
            if let Some(range) = held(&self.shared.losses).at(from) {
                return Ok(Reply::Lost {
                    upto: range.last,
                    cause: range.cause,
                });
            }
            let index = self.segments.partition_point(|entry| entry.first <= from);
            if index == 0 {
                let upto = self.segments.front().map_or(end, |entry| entry.first - 1);
                return Ok(self.lose(from, upto, LostCause::Evicted));
            }
            let first = self.segments[index - 1].first;
            let last = self.last_of(index - 1).min(end);
            let found = match self.open(first) {
                Ok(segment) => segment.read(from, last, octets_max),
                Err(error) => segment::Found {
                    values: Vec::new(),
                    error: Some(error),
                },
            };
            if found.error.is_some() {
                self.reading = None;
            }
            let passing = found
                .error
                .as_ref()
                .is_some_and(|error| self.is_passing(first, error));
            match (found.values.first().map(|value| value.first), found.error) {
                (Some(next), _) if next > from => {
                    return Ok(self.lose(from, next - 1, LostCause::SpoolDamaged));
                }
                (Some(_), _) => return Ok(Reply::Values(without_gap(found.values))),
                (None, Some(error)) if passing => {
                    tracing::debug!(%error, segment = first, "a segment cannot be read");
                    return Ok(Reply::Unavailable { upto: Some(last) });
                }
                (None, Some(error)) if from == first && !self.is_head(index - 1) => {
                    if let Err(refused) = self.set_aside(index - 1, last, &error) {
                        tracing::debug!(%error, %refused, segment = first, "a damaged segment stays");
                        return Ok(Reply::Unavailable { upto: Some(last) });
                    }
                }
                (None, error) => {
                    if let Some(error) = error {
                        tracing::error!(%error, segment = first, from, "the rest of a segment cannot be read");
                    }
                    return Ok(self.lose(from, last.max(from), LostCause::SpoolDamaged));
                }
            }
        }
    }

    fn open(&mut self, first: u64) -> Result<&mut Segment, SegmentError> {
        if self.segments.back().is_some_and(|entry| entry.first == first)
            && let Some(head) = &mut self.head
        {
            return Ok(&mut head.segment);
        }
        let used = boottime().cast_unsigned();
        let segment = match self.reading.take() {
            Some((held, segment, _)) if held == first => segment,
            other => {
                // One is closed before the next is opened: memory is that of one.
                drop(other);
                open_somehow(&path_of(&self.layout, first))?
            }
        };
        Ok(&mut self.reading.insert((first, segment, used)).1)
    }

    fn is_passing(&mut self, first: u64, error: &SegmentError) -> bool {
        match error.verdict() {
            Verdict::Passing => true,
            Verdict::Damaged => false,
            Verdict::Doubtful => {
                let before = if self.doubts.0 == first { self.doubts.1 } else { 0 };
                self.doubts = (first, before + 1);
                before + 1 < DOUBTS_MAX
            }
        }
    }

    fn lose(&self, first: u64, last: u64, cause: LostCause) -> Reply {
        // Up to where another reason is known, if one is.
        let mut losses = held(&self.shared.losses);
        let upto = losses.next_after(first).map_or(last, |next| last.min(next - 1));
        let records = losses.add(first, upto, cause);
        drop(losses);
        self.shared.count_lost(records, cause);
        Reply::Lost { upto, cause }
    }

    pub(super) fn set_aside(
        &mut self,
        index: usize,
        last: u64,
        error: &SegmentError,
    ) -> Result<(), StoreError> {
        let Some(entry) = self.segments.get(index) else {
            return Ok(());
        };
        let first = entry.first;
        let path = self.path(first);
        let aside = (0..)
            .map(|n: u32| path.with_extension(format!("corrupt-{n}")))
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| path.with_extension("corrupt"));
        fs::rename(&path, &aside).map_err(refused("rename a damaged segment"))?;
        self.segments.remove(index);
        let records = held(&self.shared.losses).add(first, last, LostCause::SpoolDamaged);
        self.shared.count_lost(records, LostCause::SpoolDamaged);
        tracing::error!(first, last, records, %error, path = %aside.display(), "a damaged segment was set aside");
        held(&self.shared.set_aside).push(SetAside {
            path: aside.clone(),
            first,
            last,
        });
        self.corrupt.push(aside);
        while self.corrupt.len() > CORRUPT_MAX {
            segment::remove(&self.corrupt.remove(0)).map_err(refused("remove a damaged segment"))?;
        }
        Ok(())
    }
}

/// Opens a segment. One that is held by a thread that hangs, or that must not be written, is read through a copy.
fn open_somehow(path: &Path) -> Result<Segment, SegmentError> {
    Segment::open(path).or_else(|error| {
        if error.verdict() != Verdict::Passing {
            return Err(error);
        }
        match SegmentCopy::open(path) {
            Ok(copy) => Ok(copy.segment),
            Err(copy) => {
                tracing::debug!(path = %path.display(), ?copy, "nor is there a copy of the segment");
                Err(error)
            }
        }
    })
}

fn without_gap(values: Vec<Value>) -> Vec<Value> {
    let mut expected = values.first().map_or(0, |value| value.first);
    values
        .into_iter()
        .take_while(|value| {
            let follows = value.first == expected;
            expected = value.last() + 1;
            follows
        })
        .collect()
}
