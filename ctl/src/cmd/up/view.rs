//! The task that shows records as they come: on the screen, or into a pipe.
//!
//! In: records and the agent's status. Out: stdout; in a pipe, what is told beside the records goes to stderr. It alone
//! writes to stdout while it runs, and may hang there when a pipe's reader pauses: then records are counted as
//! `ViewOverflow` by the agent, and the rest of the program goes on.
//! Ends when the channel of records closes, or with the error of stdout.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent::status::AgentStatus;
use flowtilla_agent::top::SharedTop;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::top::wire::Question;
use flowtilla_proto::wire::session as wire;
use tokio::sync::{mpsc, watch};
use tokio::task::{block_in_place, yield_now};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::args::Format;
use super::log::Tail;
use super::screen::Screen;
use super::table::{Frame, Table};
use super::{json, lines, report};
use crate::cmd::fleet::top::keys::Keys;
use crate::cmd::fleet::top::{self, Looking};
use crate::exit::say;

/// Time between two pictures. Half of it flickers over a slow line; double it, and a flow that just began seems late.
const REDRAW: Duration = Duration::from_millis(500);
/// Time between two prints of the laws.
const STATS: Duration = Duration::from_secs(10);
/// Records that are written at a time.
const BATCH_MAX: usize = 1_024;

/// Where records are shown.
pub(crate) enum View {
    /// The live table.
    Table(Box<Screened>),
    /// A line each.
    Stream {
        out: Box<dyn Write + Send>,
        /// Reused from batch to batch.
        text: String,
        render: fn(&FlowRecord, &mut String),
    },
}

/// The table with its screen.
pub(crate) struct Screened {
    screen: Screen,
    table: Table,
    log: Tail,
    keys: Keys,
    top: SharedTop,
    /// Who does how much, in place of flows.
    looking: Option<Looking>,
}

impl View {
    /// The view of this format on stdout. The table shows the last lines of `log`, and, when `first` or a key says so, a view
    /// of `top` in place of flows.
    pub(crate) fn open(
        format: Format,
        log: Tail,
        top: SharedTop,
        first: Option<top::View>,
    ) -> io::Result<Self> {
        match format {
            Format::Table => Ok(Self::Table(Box::new(Screened {
                screen: Screen::open(),
                table: Table::default(),
                log,
                keys: Keys::open(),
                top,
                looking: first.map(looking),
            }))),
            Format::Lines => Self::stream(Box::new(io::stdout()), Some(lines::heading()), lines::render),
            Format::Json => Self::stream(Box::new(io::stdout()), None, json::render),
        }
    }

    fn stream(
        mut out: Box<dyn Write + Send>,
        heading: Option<String>,
        render: fn(&FlowRecord, &mut String),
    ) -> io::Result<Self> {
        out.write_all(heading.unwrap_or_default().as_bytes())?;
        out.flush()?;
        Ok(Self::Stream {
            out,
            text: String::new(),
            render,
        })
    }

    /// Shows records until their channel closes.
    ///
    /// # Errors
    ///
    /// Those of stdout; `BrokenPipe` when its reader has gone.
    pub(crate) async fn run(
        mut self,
        mut records: mpsc::Receiver<Arc<FlowRecord>>,
        status: watch::Receiver<AgentStatus>,
        stats: bool,
    ) -> io::Result<()> {
        let (mut redraw, mut laws) = (ticks(REDRAW), ticks(STATS));
        laws.reset(); // The first law is printed after one interval, the first picture at once.
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            // A writer that hung until the program ended is not to look at a clock of a runtime that is no more.
            yield_now().await;
            tokio::select! { biased; // Time before records: a busy host must not keep the picture from being drawn.
                _ = redraw.tick(), if matches!(self, Self::Table(_)) => self.draw(&status, stats)?,
                key = self.key(), if matches!(self, Self::Table(_)) => {
                    self.press(key);
                    self.draw(&status, stats)?;
                }
                _ = laws.tick(), if stats && matches!(self, Self::Stream { .. }) => {
                    let status = status.borrow().clone();
                    block_in_place(|| report::laws(&status).into_iter().chain([report::totals(&status).join("   ")]).for_each(say));
                }
                taken = records.recv_many(&mut batch, BATCH_MAX) => {
                    if taken == 0 {
                        return self.draw(&status, stats);
                    }
                    self.show(&mut batch)?;
                }
            }
        }
    }

    fn show(&mut self, batch: &mut Vec<Arc<FlowRecord>>) -> io::Result<()> {
        match self {
            Self::Table(screened) => {
                batch.drain(..).for_each(|record| screened.table.record(record));
                Ok(())
            }
            Self::Stream { out, text, render } => {
                text.clear();
                batch.drain(..).for_each(|record| render(&record, text));
                block_in_place(|| {
                    out.write_all(text.as_bytes())?;
                    out.flush()
                })
            }
        }
    }

    /// The next key; none comes where there is no table.
    async fn key(&mut self) -> char {
        match self {
            Self::Table(screened) => screened.keys.next().await,
            Self::Stream { .. } => std::future::pending().await,
        }
    }

    fn press(&mut self, key: char) {
        let Self::Table(screened) = self else { return };
        // Ctrl-C ends this command, no key.
        screened.looking = match (key, screened.looking) {
            ('0', _) => None,
            ('1'..='5', None) => {
                let mut looking = looking(top::View::Containers);
                let _ = looking.press(key);
                Some(looking)
            }
            (_, Some(mut looking)) => {
                let _ = looking.press(key);
                Some(looking)
            }
            (_, None) => None,
        };
    }

    fn draw(&mut self, status: &watch::Receiver<AgentStatus>, stats: bool) -> io::Result<()> {
        let Self::Table(screened) = self else {
            return Ok(());
        };
        let status = status.borrow().clone();
        block_in_place(|| {
            screened.screen.measure()?;
            let size = screened.screen.size();
            let frame = match screened.looking {
                Some(looking) => top_frame(&screened.top, looking, size),
                None => screened.table.render(&status, &screened.log.lines(), stats, size),
            };
            screened.screen.draw(&frame)
        })
    }
}

fn looking(view: top::View) -> Looking {
    Looking {
        view,
        sort: top::Sort::default(),
    }
}

/// Who does how much on this host.
fn top_frame(top: &SharedTop, looking: Looking, size: (usize, usize)) -> Frame {
    let asked = wire::TopQuestion {
        view: looking.view.to_wire().into(),
        order: looking.sort.to_wire().into(),
        rows: u32::try_from(size.1).unwrap_or(u32::MAX),
        ..wire::TopQuestion::default()
    };
    let answer = Question::parse(&asked).map(|question| top.answer(question));
    let response = top::of_one(answer.unwrap_or_default());
    top::picture::frame(&response, looking, "0 flows", None, size)
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
