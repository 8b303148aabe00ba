//! The segments on the disk: which there are, the head that is written, the one that is read, what goes.
//!
//! Only the disk thread is here. Every step says that it is alive ([`Shared::step`]) before it may hang.
//! Invariants: `segments` ascends, none twice; the head, if there is one, is its last. A segment holds the records from its name up
//! to the next one's name; anything else in it is void. Nothing durable is ever written again.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent_core::spool::Value;

mod reading;
#[cfg(test)]
mod tests;

pub(crate) use reading::Reply;

use super::files::{self, Layout, Mark};
use super::lost::LostCause;
use super::segment::{self, Segment, SegmentError, Verdict};
use super::shared::{Shared, held};
use crate::clock;

/// Octets of values in a segment. Measured; see [`super`].
const SEGMENT_OCTETS_MAX: u64 = 4 << 20;
/// Values in a segment: what an idle host writes is small, and sled's memory counts pages and entries too.
const SEGMENT_VALUES_MAX: u32 = 2_048;
/// Sequences in a segment: how far to skip when not even the mark tells what the newest segment held.
pub(crate) const SEGMENT_RECORDS_MAX: u64 = 1 << 20;
/// The last sequence: at 10 million records a second it is reached after 29,000 years, so what says more is damaged.
pub(crate) const SEQUENCE_MAX: u64 = u64::MAX >> 1;
/// A head older than this part of the greatest age is sealed, so that it can go.
const AGE_SHARE: u32 = 8;
/// What must be free beyond the bound: a batch, its rewriting by sled, and the segment that may have to be made for it.
const MARGIN_OCTETS: u64 = 6 << 20;
/// A segment that is not read closes after this long.
const READ_IDLE: Duration = Duration::from_secs(5);

/// Why the disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{free} octets are free on the disk, fewer than the {wanted} that must stay free")]
    Full { free: u64, wanted: u64 },
    #[error("the disk refused to {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("a segment failed")]
    Segment(#[from] SegmentError),
    #[error("the disk thread was given up meanwhile")]
    Stale,
}

pub(crate) fn refused(what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io { what, source }
}

#[derive(Debug)]
struct Entry {
    first: u64,
    octets: u64,
    /// Nanoseconds on the kernel's clock; below 0 when made before boot.
    made: i64,
}

#[derive(Debug)]
struct Head {
    segment: Segment,
    octets: u64,
    values: u32,
}

#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    shared: Arc<Shared>,
    generation: u64,
    mark: Option<Mark>,
    segments: VecDeque<Entry>,
    head: Option<Head>,
    reading: Option<(u64, Segment, u64)>,
    corrupt: Vec<PathBuf>,
    /// Segment that failed last, and how often in a row.
    doubts: (u64, u32),
}

impl Store {
    /// Lists what there is. Opens nothing.
    pub(crate) fn load(shared: &Arc<Shared>, generation: u64) -> io::Result<Self> {
        let layout = shared.layout.clone();
        let mut store = Self {
            shared: Arc::clone(shared),
            generation,
            mark: None,
            segments: VecDeque::new(),
            head: None,
            reading: None,
            corrupt: Vec::new(),
            doubts: (0, 0),
            layout,
        };
        for path in files::entries(&store.layout.segments())? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if let Some(first) = parse(name) {
                store.segments.push_back(Entry {
                    first,
                    octets: files::allocated(&path),
                    made: made(&path),
                });
            } else if name.ends_with(".gone") {
                if let Err(error) = segment::remove(&path) {
                    tracing::debug!(path = %path.display(), %error, "what is left of a segment stays");
                }
            } else if name.contains(".corrupt-") {
                store.corrupt.push(path);
            } else {
                tracing::warn!(path = %path.display(), "not a segment");
            }
        }
        store
            .segments
            .make_contiguous()
            .sort_unstable_by_key(|entry| entry.first);
        store.corrupt.sort_unstable();
        Ok(store)
    }

    /// Last sequence in the newest segment; `None`: there is no segment. Sets aside one that does not open.
    ///
    /// `known`: the last sequence that something else speaks of.
    pub(crate) fn recover(&mut self, known: u64) -> Result<Option<u64>, StoreError> {
        let Some(entry) = self.segments.back() else {
            return Ok(None);
        };
        let first = entry.first;
        let path = self.path(first);
        match Segment::open(&path).and_then(|mut segment| segment.last()) {
            Ok(Some(last)) => Ok(Some(last)),
            Ok(None) => {
                // Made, and never filled; or all in it is damaged. The mark tells them apart.
                self.segments.pop_back();
                segment::remove(&path).map_err(refused("remove an empty segment"))?;
                Ok(Some(first - 1))
            }
            Err(error) if error.verdict() != Verdict::Damaged => {
                tracing::warn!(%error, path = %path.display(), "the newest segment cannot be opened");
                Ok(Some(newest_when_unknown(first, known)))
            }
            Err(error) => {
                let last = newest_when_unknown(first, known);
                self.set_aside(self.segments.len() - 1, last, &error)?;
                Ok(Some(last))
            }
        }
    }

    /// Writes values that come after all that is durable, and makes them durable.
    pub(crate) fn write(&mut self, values: &[Value]) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (values.first(), values.last().map(Value::last)) else {
            return Ok(());
        };
        let first = first.first;
        self.make_room()?;
        self.store_mark(self.shared.newest().max(last), false)?;
        let mut written = None;
        for value in values {
            self.shared.step(self.generation)?;
            if self.is_full(value) {
                self.seal()?;
                if let Some(last) = written {
                    self.shared.advance(self.generation, first, last);
                }
            }
            self.make_head(value.first)?;
            self.shared.step(self.generation)?;
            let head = self.head.as_mut().ok_or(StoreError::Stale)?;
            head.segment.append(value)?;
            head.octets += value.octets.len() as u64;
            head.values += 1;
            written = Some(value.last());
        }
        self.shared.step(self.generation)?;
        if let Some(head) = &mut self.head {
            head.segment.sync()?;
            self.shared.advance(self.generation, first, last);
        }
        if let Some(entry) = self.segments.back_mut() {
            entry.octets = files::allocated(&path_of(&self.layout, entry.first));
        }
        Ok(())
    }

    /// Writes the mark.
    pub(crate) fn store_mark(&mut self, last: u64, clean: bool) -> Result<(), StoreError> {
        self.shared.step(self.generation)?;
        if self.mark.is_none() {
            self.layout
                .make()
                .map_err(refused("make the spool's directory"))?;
            self.mark = Some(Mark::open(&self.layout).map_err(refused("open the mark"))?);
        }
        match &self.mark {
            Some(mark) => mark.store(last, clean).map_err(refused("write the mark")),
            None => Ok(()),
        }
    }

    /// Never writes to the head again. What is durable in it stays.
    pub(crate) fn abandon_head(&mut self) {
        self.mark = None;
        let Some(mut head) = self.head.take() else { return };
        head.segment.abandon();
        let durable = held(&self.shared.tail).durable();
        if let Err(error) = self.remove_from(durable + 1) {
            tracing::debug!(%error, "a failed segment stays");
        }
    }

    /// Removes the segments that begin at `first` or later: none of their values is durable.
    fn remove_from(&mut self, first: u64) -> Result<(), StoreError> {
        while let Some(entry) = self.segments.pop_back_if(|entry| entry.first >= first) {
            let path = self.path(entry.first);
            if self
                .reading
                .as_ref()
                .is_some_and(|(held, ..)| *held == entry.first)
            {
                self.reading = None;
            }
            segment::remove(&path).map_err(refused("remove a segment that is not whole"))?;
        }
        Ok(())
    }

    /// Syncs the head and closes it for good.
    pub(crate) fn seal(&mut self) -> Result<(), StoreError> {
        let Some(head) = self.head.take() else {
            return Ok(());
        };
        self.shared.step(self.generation)?;
        let sealed = head.segment.seal();
        self.shared.step(self.generation)?;
        let blobs = match sealed {
            Ok(blobs) => blobs,
            Err(error) => {
                let durable = held(&self.shared.tail).durable();
                self.remove_from(durable + 1)?;
                return Err(error.into());
            }
        };
        if blobs > 0 {
            tracing::error!(
                blobs,
                "sled keeps values outside its log, where a power cut loses them"
            );
            self.shared.count(|status| status.blobs += blobs as u64);
        }
        if let Some(entry) = self.segments.back_mut() {
            entry.octets = files::allocated(&path_of(&self.layout, entry.first));
        }
        Ok(())
    }

    /// Lets the oldest go until the bounds are kept.
    pub(crate) fn make_room(&mut self) -> Result<(), StoreError> {
        loop {
            self.shared.step(self.generation)?;
            let (free, all) =
                files::free(&self.layout.directory).map_err(refused("tell what is free on it"))?;
            let options = *held(&self.shared.bounds);
            let wanted = options.free_octets_min.max(all / 20) + MARGIN_OCTETS;
            if free >= wanted && self.octets() <= options.octets_max {
                return Ok(());
            }
            if !self.evict_oldest()? {
                return if free < wanted {
                    Err(StoreError::Full { free, wanted })
                } else {
                    Ok(())
                };
            }
        }
    }

    /// Lets go what everyone has passed, and what is too old.
    pub(crate) fn expire(&mut self, passed: u64) -> Result<(), StoreError> {
        let now = boottime();
        let age_max = i64::try_from(held(&self.shared.bounds).age_max.as_nanos()).unwrap_or(i64::MAX);
        if self.head.is_some()
            && let Some(entry) = self.segments.back()
            && now.saturating_sub(entry.made) > age_max / i64::from(AGE_SHARE)
        {
            self.seal()?;
        }
        while self.closed() > 0 {
            self.shared.step(self.generation)?;
            if self.last_of(0) <= passed {
                self.remove_oldest()?;
            // Its newest record is as old as the next segment.
            } else if self
                .segments
                .get(1)
                .is_some_and(|next| now.saturating_sub(next.made) > age_max)
            {
                self.evict_oldest()?;
            } else {
                break;
            }
        }
        let idle = i64::try_from(READ_IDLE.as_nanos())
            .unwrap_or(i64::MAX)
            .cast_unsigned();
        if let Some((_, _, used)) = &self.reading
            && now.cast_unsigned().saturating_sub(*used) > idle
        {
            self.reading = None;
        }
        Ok(())
    }

    /// Octets on the disk, damaged segments included.
    pub(crate) fn octets(&self) -> u64 {
        let corrupt: u64 = self.corrupt.iter().map(|path| files::allocated(path)).sum();
        corrupt + self.segments.iter().map(|entry| entry.octets).sum::<u64>()
    }

    /// First sequence of the oldest segment.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.segments.front().map(|entry| entry.first)
    }

    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }

    fn is_full(&self, value: &Value) -> bool {
        let Some(head) = &self.head else { return false };
        let first = self.segments.back().map_or(0, |entry| entry.first);
        let octets_max = (held(&self.shared.bounds).octets_max / 16).clamp(256 << 10, SEGMENT_OCTETS_MAX);
        head.octets + value.octets.len() as u64 > octets_max
            || head.values >= SEGMENT_VALUES_MAX
            || value.last() - first >= SEGMENT_RECORDS_MAX
    }

    fn make_head(&mut self, first: u64) -> Result<(), StoreError> {
        if self.head.is_some() {
            return Ok(());
        }
        self.shared.step(self.generation)?;
        // A thread that was given up may have begun it, and further ones.
        self.remove_from(first)?;
        let path = self.path(first);
        segment::remove(&path).map_err(refused("remove what stands in a segment's place"))?;
        let created = Segment::create(&path);
        if let Err(stale) = self.shared.step(self.generation) {
            // What is there now is another thread's.
            if let Ok(mut segment) = created {
                segment.abandon();
            }
            return Err(stale);
        }
        let segment = created.inspect_err(|_| {
            let _ = segment::remove(&path);
        })?;
        self.segments.push_back(Entry {
            first,
            octets: files::allocated(&path),
            made: boottime(),
        });
        self.head = Some(Head {
            segment,
            octets: 0,
            values: 0,
        });
        Ok(())
    }

    fn is_head(&self, index: usize) -> bool {
        self.head.is_some() && index + 1 == self.segments.len()
    }

    /// How many are not the head.
    fn closed(&self) -> usize {
        self.segments.len() - usize::from(self.head.is_some())
    }

    fn last_of(&self, index: usize) -> u64 {
        self.segments
            .get(index + 1)
            .map_or_else(|| held(&self.shared.tail).durable(), |next| next.first - 1)
    }

    /// Lets the oldest go, damaged ones first. False: only the head is left.
    fn evict_oldest(&mut self) -> Result<bool, StoreError> {
        if let Some(path) = self.corrupt.first() {
            segment::remove(path).map_err(refused("remove a damaged segment"))?;
            self.corrupt.remove(0);
            return Ok(true);
        }
        if self.closed() == 0 {
            return Ok(false);
        }
        let (first, last) = (self.segments[0].first, self.last_of(0));
        self.remove_oldest()?;
        if last >= first {
            let passed = self.shared.passed_by_all();
            let mut losses = held(&self.shared.losses);
            // Nobody misses what all have read.
            losses.add(first, last.min(passed), LostCause::Evicted);
            let records = losses.add(first, last, LostCause::Evicted);
            drop(losses);
            self.shared.count_lost(records, LostCause::Evicted);
            tracing::info!(first, last, records, "the oldest segment was evicted");
        }
        Ok(true)
    }

    fn remove_oldest(&mut self) -> Result<(), StoreError> {
        let first = self.segments[0].first;
        if self.reading.as_ref().is_some_and(|(held, ..)| *held == first) {
            self.reading = None;
        }
        segment::remove(&self.path(first)).map_err(refused("remove a segment"))?;
        self.segments.pop_front();
        Ok(())
    }

    fn path(&self, first: u64) -> PathBuf {
        path_of(&self.layout, first)
    }
}

fn path_of(layout: &Layout, first: u64) -> PathBuf {
    layout.segments().join(format!("{first:016x}"))
}

/// The first sequence of the segment of this name; `None`: it is no segment's.
pub(crate) fn parse(name: &str) -> Option<u64> {
    let plain = name.len() == 16
        && name
            .bytes()
            .all(|octet| matches!(octet, b'0'..=b'9' | b'a'..=b'f'));
    let first = u64::from_str_radix(name, 16).ok();
    let first = first.filter(|first| (1..=SEQUENCE_MAX).contains(first));
    first.filter(|_| plain)
}

fn newest_when_unknown(first: u64, known: u64) -> u64 {
    if known >= first {
        known
    } else {
        first.saturating_add(SEGMENT_RECORDS_MAX)
    }
}

fn boottime() -> i64 {
    clock::kernel_now().0.cast_signed()
}

/// When a segment was made: its `conf` is written once. The wall clock is asked at a start only.
fn made(path: &Path) -> i64 {
    let written = fs::metadata(path.join("conf"))
        .or_else(|_| fs::metadata(path))
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(u64::MAX, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    let age = clock::wall_now().0.saturating_sub(written);
    boottime().saturating_sub_unsigned(age)
}
