//! `agentctl up`: an agent in this process, its flows on the screen or in a pipe, and to ntopng when asked.
//!
//! Order: flags are parsed whole, then capabilities are seen to, then the agent starts, what attached is printed, records
//! are shown until Ctrl-C, SIGTERM, SIGHUP, the duration or the reader's end; then the agent stops, its last records are
//! shown, and both laws are printed. On a terminal everything goes to stdout; elsewhere stdout has records only.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use self::args::{Format, UpArgs};
use self::engine::Running;
use self::view::View;
use crate::exit::{Exit, UsageError, say};
use crate::signals::Signals;

pub(crate) mod args;
mod columns;
mod engine;
pub(crate) mod json;
pub(crate) mod lines;
mod log;
mod outside;
mod privilege;
mod report;
mod row;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod screen;
pub(crate) mod table;
mod view;

/// Time that the reader of a pipe gets for the last records.
const VIEW_GRACE: Duration = Duration::from_secs(2);

/// Runs the command.
///
/// # Errors
///
/// Wrong flags ([`UsageError`]), missing capabilities, an agent that cannot start, a stdout that cannot be written.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<Exit> {
    let asked = args.asked()?;
    let format = format(args.output, io::stdout().is_terminal())?;
    if args.top.is_some() && format != Format::Table {
        let why = "--top: is for the table on a terminal; leave it out, or ask a fleet: agentctl top";
        return Err(UsageError(vec![why.to_owned()]).into());
    }
    privilege::ensure()?;
    let mut signals = Signals::new()?;
    let log = log::init(format == Format::Table);
    let running = engine::start(asked, args.state.clone()).await?;
    tell(format, &report::attached(&running.attached));
    match View::open(format, log, running.top.clone(), args.top) {
        Ok(view) => watch(running, view, &mut signals, &args, format).await,
        Err(error) => {
            (running.stop)().await;
            ended_by(error)
        }
    }
}

/// Shows records until something ends it, then what the agent tells at its end.
async fn watch(
    running: Running,
    view: View,
    signals: &mut Signals,
    args: &UpArgs,
    format: Format,
) -> anyhow::Result<Exit> {
    let Running {
        records,
        status,
        stop,
        ..
    } = running;
    let mut view = tokio::spawn(view.run(records, status, args.stats));
    let early = tokio::select! { biased; // A reader that has gone is no reason to print a farewell.
        shown = &mut view => Some(shown?),
        () = signals.next() => None,
        () = at_end(args.duration()) => None,
    };
    let by_itself = matches!(early, Some(Ok(())));
    let last = tokio::select! { biased;
        () = signals.next() => return Ok(Exit::Interrupted),
        last = stop() => last,
    };
    let shown = match early {
        Some(shown) => shown,
        None => match timeout(VIEW_GRACE, &mut view).await {
            Ok(shown) => shown?,
            Err(_) => {
                view.abort(); // The reader is stuck; what it did not take is in the law as `ViewOverflow`.
                Ok(())
            }
        },
    };
    if let Err(error) = shown {
        return ended_by(error);
    }
    tell(format, &report::farewell(&last));
    anyhow::ensure!(!by_itself, "the agent ended by itself; its log says why");
    Ok(Exit::Done)
}

/// A reader that has gone ends `up` quietly.
fn ended_by(error: io::Error) -> anyhow::Result<Exit> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(Exit::Done);
    }
    Err(anyhow::Error::new(error).context("stdout cannot be written"))
}

/// What is told beside the records.
fn tell(format: Format, lines: &[String]) {
    match format {
        Format::Table => {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes()); // A terminal that is gone reads nothing.
        }
        Format::Lines | Format::Json => lines.iter().for_each(say),
    }
}

fn format(asked: Option<Format>, terminal: bool) -> Result<Format, UsageError> {
    match (asked, terminal) {
        (None, true) => Ok(Format::Table),
        (None, false) => Ok(Format::Lines),
        (Some(Format::Table), false) => {
            let line = "--output: \"table\" needs a terminal, and stdout is none; write lines or json, or leave it out";
            Err(UsageError(vec![line.into()]))
        }
        (Some(format), _) => Ok(format),
    }
}

async fn at_end(duration: Option<Duration>) {
    match duration {
        Some(duration) => sleep(duration).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
