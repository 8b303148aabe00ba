//! Reads the segments of a survey, oldest first, and tells what is in them, what is missing and what is damaged.
//!
//! Out: [`Event`]s, one after another, to a visitor that may end it. Rules are those by which the agent reads: a segment
//! holds the records from its name up to the next one's name, what else is in it is void; behind the newest one, records
//! that were given a number and that not everyone has passed are missing, unless an agent runs and may still write them.
//! Invariant: between two values that are told, every record that is not in one was told as [`Damage`], once.

use std::fmt;
use std::ops::ControlFlow;

use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::spool::Value;
use flowtilla_agent_core::spool::value::{self, Header, ValueError};
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::causes::chain;

use super::copy::{CopyError, SegmentCopy};
use super::{LostRange, SegmentInfo, SegmentState, Survey, SurveyError};
use crate::spool::lost::{Losses, LostCause};
use crate::spool::segment::Stored;

/// Octets of values that are read from a segment at once.
const PORTION_OCTETS: usize = 1 << 20;

/// What of a spool is wanted. Bounds are inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// First sequence.
    pub from: u64,
    /// Last sequence.
    pub to: u64,
    /// Least end of a record. Values where all end earlier are left out.
    pub since: WallTime,
    /// Greatest end of a record. Values where all begin later are left out.
    pub until: WallTime,
    /// Whether records are read, or only what stands at the head of a value.
    pub records: bool,
}

impl Wanted {
    /// All of it.
    #[must_use]
    pub fn everything(records: bool) -> Self {
        Self {
            from: 0,
            to: u64::MAX,
            since: WallTime(0),
            until: WallTime(u64::MAX),
            records,
        }
    }

    /// Whether it has this record. By time it is its end that counts.
    #[must_use]
    pub fn has(&self, sequence: u64, record: &FlowRecord) -> bool {
        self.touches(sequence, sequence) && (self.since..=self.until).contains(&record.end)
    }

    fn touches(&self, first: u64, last: u64) -> bool {
        first <= self.to && self.from <= last
    }
}

/// What is found on the way.
#[derive(Debug)]
pub enum Event {
    /// A segment is next.
    Opening {
        /// Which.
        segment: SegmentInfo,
        /// Its number, from 1.
        number: usize,
        /// How many there are, those set aside left out.
        of: usize,
    },
    /// A value that is whole.
    Value {
        /// Its head.
        header: Header,
        /// Its records, the first of them under the head's first sequence; empty when they are not wanted.
        records: Vec<FlowRecord>,
    },
    /// Something is missing, or is not what was written.
    Damage(Damage),
    /// A segment was read.
    Closed(SegmentSummary),
}

/// What was in a segment. All values count, wanted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Which.
    pub segment: SegmentInfo,
    /// Whole values.
    pub values: u64,
    /// Records in them.
    pub records: u64,
    /// Last sequence in them; `None`: there is none.
    pub last: Option<u64>,
    /// Least start and greatest end of a record.
    pub span: Option<(WallTime, WallTime)>,
}

/// Records that are missing, or something that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Name of the segment; `None`: in none.
    pub segment: Option<String>,
    /// First and last sequence that cannot be read for it; `None`: no record.
    pub range: Option<(u64, u64)>,
    /// Why.
    pub cause: DamageCause,
}

/// Why records are missing, or what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageCause {
    /// The file `lost` says it: the agent found it, and tells the collectors.
    Known(LostCause),
    /// The segment went while this ran: everyone has it, or it was evicted.
    Gone,
    /// The segment does not open, not even from its log alone.
    Unopened(String),
    /// The rest of the segment cannot be read.
    Unreadable(String),
    /// A value is not what was written: length or checksum differ.
    Checksum,
    /// A key is no sequence.
    Key,
    /// A value is as it was written, and does not decode.
    Value(ValueError),
    /// A value holds another number of records than was kept with it.
    Records {
        /// As kept.
        expected: u32,
        /// As decoded.
        found: u32,
    },
    /// A value holds records that stand in another one too, or that belong to the next segment.
    Overlap,
    /// Missing, and nothing says why.
    Missing,
    /// Missing behind the newest value, after a stop that was not clean: never synced, or cut off.
    Unsynced,
    /// Values outside sled's log, where a power cut loses them.
    Blobs(usize),
    /// sled's `conf` or snapshot is damaged; the log alone was read.
    LogAlone(String),
    /// The agent could not read the segment and gave it another name.
    SetAside,
}

impl Damage {
    /// Whether something on the disk is not as it should be; `false`: the agent knows, and counts it.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        !matches!(self.cause, DamageCause::Known(_) | DamageCause::Gone)
    }

    /// Records that are missing for it.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.range.map_or(0, |(first, last)| last - first + 1)
    }
}

impl fmt::Display for DamageCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(LostCause::Evicted) => f.write_str("evicted at the bound of the spool"),
            Self::Known(LostCause::SpoolDamaged) => f.write_str("found damaged or never synced, and counted"),
            Self::Known(LostCause::SpoolUnwritable) => f.write_str("the disk did not take them, and counted"),
            Self::Gone => f.write_str("its segment went while this ran"),
            Self::Unopened(why) => write!(f, "the segment does not open: {why}"),
            Self::Unreadable(why) => write!(f, "the rest of the segment cannot be read: {why}"),
            Self::Checksum => f.write_str("a value is not what was written (length or checksum)"),
            Self::Key => f.write_str("a key is no sequence"),
            Self::Value(error) => write!(f, "{error}"),
            Self::Records { expected, found } => {
                write!(f, "a value was kept with {expected} records and holds {found}")
            }
            Self::Overlap => f.write_str("a value overlaps another one"),
            Self::Missing => f.write_str("missing, and nothing says why"),
            Self::Unsynced => f.write_str("never synced, or cut off: the agent did not stop cleanly"),
            Self::Blobs(files) => write!(f, "{files} values outside the log, where a power cut loses them"),
            Self::LogAlone(why) => write!(f, "conf or snapshot is damaged, the log alone was read: {why}"),
            Self::SetAside => f.write_str("set aside by the agent, which could not read it"),
        }
    }
}

impl Survey {
    /// Reads what is wanted, and tells the visitor. Blocks on the disk; segments outside the wanted sequences are not
    /// copied.
    ///
    /// # Errors
    /// [`SurveyError::Temporary`]: there is no place for a copy.
    pub fn walk(
        &self,
        wanted: &Wanted,
        each: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), SurveyError> {
        let mut losses = Losses::default();
        for range in self.lost_ranges() {
            losses.add(range.first, range.last, range.cause);
        }
        let mut walk = Walk {
            survey: self,
            wanted,
            losses,
            each,
            place: Place::default(),
            error: None,
        };
        let _ = walk.run(); // Ended by the visitor, or by the error.
        walk.error.map_or(Ok(()), Err)
    }

    /// Records that were given a number and are on no disk, after a stop that was not clean; reads the newest segment.
    ///
    /// # Errors
    /// [`SurveyError::Temporary`].
    pub fn unsynced(&self) -> Result<Option<LostRange>, SurveyError> {
        if !self.stopped_uncleanly() {
            return Ok(None);
        }
        let newest = self.chain().next_back();
        let on_disk = match newest.map(|info| (info, SegmentCopy::open(&info.path))) {
            None => 0,
            Some((info, Ok(mut copy))) => match copy.segment.last() {
                Ok(last) => last.unwrap_or(info.first - 1),
                Err(_) => info.first - 1,
            },
            Some((_, Err(CopyError::Survey(error)))) => return Err(error),
            Some((info, Err(_))) => info.first - 1,
        };
        let (first, last) = (on_disk.max(self.passed()) + 1, self.known());
        let cause = LostCause::SpoolDamaged;
        Ok((first <= last).then_some(LostRange { first, last, cause }))
    }
}

/// Where reading stands in a segment.
#[derive(Default)]
struct Place {
    segment: Option<String>,
    /// The next sequence that has not been told of.
    next: u64,
    /// A value at `next` that is damaged: how far it reaches, the next one tells.
    pending: Option<DamageCause>,
}

struct Walk<'a> {
    survey: &'a Survey,
    wanted: &'a Wanted,
    losses: Losses,
    each: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    place: Place,
    error: Option<SurveyError>,
}

impl Walk<'_> {
    fn run(&mut self) -> ControlFlow<()> {
        let of = self.survey.chain().count();
        for (index, info) in self.survey.segments.iter().enumerate() {
            if info.state == SegmentState::SetAside {
                self.set_aside(info)?;
                continue;
            }
            if !self.wanted.touches(info.first, info.last.unwrap_or(u64::MAX)) {
                continue;
            }
            (self.each)(Event::Opening {
                segment: info.clone(),
                number: index + 1,
                of,
            })?;
            self.segment(info)?;
        }
        if of == 0 {
            self.end(0)?;
        }
        ControlFlow::Continue(())
    }

    fn set_aside(&mut self, info: &SegmentInfo) -> ControlFlow<()> {
        let last = info.last.unwrap_or(info.first);
        self.place = Place {
            segment: Some(info.name.clone()),
            ..Place::default()
        };
        self.tell((info.first, last), DamageCause::SetAside)
    }

    fn segment(&mut self, info: &SegmentInfo) -> ControlFlow<()> {
        self.place = Place {
            segment: Some(info.name.clone()),
            next: info.first,
            pending: None,
        };
        let mut summary = SegmentSummary {
            segment: info.clone(),
            values: 0,
            records: 0,
            last: None,
            span: None,
        };
        match self.open(info) {
            Ok(mut copy) => {
                if info.blobs > 0 {
                    self.tell_whole(DamageCause::Blobs(info.blobs))?;
                }
                if let Some(why) = copy.log_alone.take() {
                    self.tell_whole(DamageCause::LogAlone(why))?;
                }
                self.values(&mut copy, info, &mut summary)?;
            }
            Err(CopyError::Survey(error)) => {
                self.error = Some(error);
                return ControlFlow::Break(());
            }
            Err(CopyError::Gone) => self.place.pending = Some(DamageCause::Gone),
            Err(error) => self.place.pending = Some(DamageCause::Unopened(told(&error))),
        }
        match info.last {
            Some(last) => self.flush(last)?,
            None => self.end(summary.last.unwrap_or(0))?,
        }
        (self.each)(Event::Closed(summary))
    }

    /// An agent may have written in the middle of the copy: once more.
    fn open(&self, info: &SegmentInfo) -> Result<SegmentCopy, CopyError> {
        match SegmentCopy::open(&info.path) {
            Err(CopyError::Segment(_) | CopyError::Read(_)) if self.survey.writer.is_some() => {
                SegmentCopy::open(&info.path)
            }
            opened => opened,
        }
    }

    fn values(
        &mut self,
        copy: &mut SegmentCopy,
        info: &SegmentInfo,
        summary: &mut SegmentSummary,
    ) -> ControlFlow<()> {
        let end = info.last.unwrap_or(u64::MAX);
        let mut after = Vec::new();
        loop {
            let (portion, error) = copy.segment.scan(&mut after, PORTION_OCTETS);
            let done = portion.is_empty();
            for stored in portion {
                match stored {
                    Stored::Whole(value) if value.first > end => return ControlFlow::Continue(()),
                    Stored::Whole(value) => self.value(&value, end, summary)?,
                    Stored::Damaged(None) => self.tell_whole(DamageCause::Key)?,
                    Stored::Damaged(Some(first)) if first > end => {}
                    Stored::Damaged(Some(first)) => {
                        if first < self.place.next {
                            self.tell_whole(DamageCause::Checksum)?;
                        } else {
                            self.flush(first - 1)?;
                            self.place.pending = Some(DamageCause::Checksum);
                        }
                    }
                }
            }
            if let Some(error) = error {
                let why = DamageCause::Unreadable(chain(&error));
                self.place.pending.get_or_insert(why);
                return ControlFlow::Continue(());
            }
            if done {
                return ControlFlow::Continue(());
            }
        }
    }

    fn value(&mut self, value: &Value, end: u64, summary: &mut SegmentSummary) -> ControlFlow<()> {
        let (first, last) = (value.first, value.last());
        if first < self.place.next || last > end {
            return self.tell_whole(DamageCause::Overlap);
        }
        if first > self.place.next {
            self.flush(first - 1)?;
        }
        let (header, records) = match read(value, self.wanted) {
            Ok(read) => read,
            Err(cause) => {
                self.place.pending = Some(cause);
                return self.flush(last);
            }
        };
        summary.values += 1;
        summary.records += u64::from(value.records);
        summary.last = Some(last);
        let (start, end) = summary.span.unwrap_or((header.start, header.end));
        summary.span = Some((start.min(header.start), end.max(header.end)));
        self.place.next = last + 1;
        if is_wanted(&header, self.wanted) {
            (self.each)(Event::Value { header, records })?;
        }
        ControlFlow::Continue(())
    }

    /// Tells of everything from the place on up to `last` that was not told of.
    fn flush(&mut self, last: u64) -> ControlFlow<()> {
        let first = std::mem::replace(&mut self.place.next, last + 1);
        match self.place.pending.take() {
            _ if first > last => ControlFlow::Continue(()),
            Some(cause) => self.tell((first, last), cause),
            None => self.missing(first, last, &DamageCause::Missing),
        }
    }

    /// Behind the newest value, which ends with `on_disk`.
    fn end(&mut self, on_disk: u64) -> ControlFlow<()> {
        let known = self.survey.known();
        if self.place.pending.is_some() {
            return self.flush(known.max(self.place.next));
        }
        let first = self.place.next.max(on_disk + 1).max(self.survey.passed() + 1);
        if self.survey.writer.is_some() || first > known {
            return ControlFlow::Continue(());
        }
        let cause = if self.survey.stopped_uncleanly() {
            DamageCause::Unsynced
        } else {
            DamageCause::Missing
        };
        self.missing(first, known, &cause)
    }

    /// What `lost` does not know has this cause.
    fn missing(&mut self, first: u64, last: u64, cause: &DamageCause) -> ControlFlow<()> {
        let mut next = first;
        while next <= last {
            let (upto, cause) = match self.losses.at(next) {
                Some(range) => (range.last, DamageCause::Known(range.cause)),
                None => (
                    self.losses.next_after(next).map_or(last, |first| first - 1),
                    cause.clone(),
                ),
            };
            let upto = upto.min(last);
            self.tell((next, upto), cause)?;
            next = upto + 1;
        }
        ControlFlow::Continue(())
    }

    fn tell(&mut self, (first, last): (u64, u64), cause: DamageCause) -> ControlFlow<()> {
        if !self.wanted.touches(first, last) {
            return ControlFlow::Continue(());
        }
        (self.each)(Event::Damage(Damage {
            segment: self.place.segment.clone(),
            range: Some((first, last)),
            cause,
        }))
    }

    fn tell_whole(&mut self, cause: DamageCause) -> ControlFlow<()> {
        (self.each)(Event::Damage(Damage {
            segment: self.place.segment.clone(),
            range: None,
            cause,
        }))
    }
}

fn is_wanted(header: &Header, wanted: &Wanted) -> bool {
    let last = header.first + u64::from(header.records) - 1;
    wanted.touches(header.first, last) && header.start <= wanted.until && wanted.since <= header.end
}

fn read(value: &Value, wanted: &Wanted) -> Result<(Header, Vec<FlowRecord>), DamageCause> {
    let header = value::header(&value.octets).map_err(DamageCause::Value)?;
    if header.records != value.records {
        return Err(DamageCause::Records {
            expected: value.records,
            found: header.records,
        });
    }
    if header.first != value.first {
        return Err(DamageCause::Value(ValueError::First {
            expected: value.first,
            found: header.first,
        }));
    }
    if wanted.records && is_wanted(&header, wanted) {
        return value::decode(&value.octets, Some(value.first)).map_err(DamageCause::Value);
    }
    Ok((header, Vec::new()))
}

fn told(error: &CopyError) -> String {
    match error {
        CopyError::Gone => "it is gone".into(),
        CopyError::TooLarge => "it is larger than any that is written".into(),
        CopyError::Read(error) => error.to_string(),
        CopyError::Survey(error) => chain(error),
        CopyError::Segment(error) => chain(error),
    }
}
