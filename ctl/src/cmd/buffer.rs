//! `agentctl buffer`: looks into what waits on disk, checks it, and prints or sends it once more.
//!
//! All of it works on a copied directory and on one that an agent uses, and changes neither: a segment is copied to a
//! temporary directory, one at a time, and the copy is opened. Exit code 1: something is damaged or could not be read.
//! Told to end, a command ends at once; what was on its way to a collector is then counted.

mod inspect;
mod progress;
mod replay;
#[cfg(test)]
pub(crate) mod samples;
mod verify;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::replay::ReplayArgs;
use super::loss::Output;
use super::spooled::Damage;
use crate::exit::Exit;
use crate::output::{harmless, range};
use crate::signals::Signals;

/// Time that a command gets to end after it was told to.
const END_WITHIN: Duration = Duration::from_secs(8);

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BufferCommand {
    /// Shows segments, cursors with their lag, checkpoint, and what is missing.
    Inspect(InspectArgs),
    /// Reads every value of every segment, and names each damage.
    Verify(VerifyArgs),
    /// Prints the records that are on disk, or sends them once more to an ntopng.
    Replay(Box<ReplayArgs>),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) spool: Directory,
    /// How to print: lines for people, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) spool: Directory,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Directory {
    /// Directory that agentctl up --state was given, the spool in it, or a copy. An agent may be using it.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

/// Runs one of them.
///
/// # Errors
/// There is no spool to read, flags are wrong, or stdout cannot be written.
pub(crate) async fn run(command: BufferCommand) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let mut work = tokio::spawn(execute(command, stop.clone()));
    let exit = tokio::select! { biased;
        () = signals.next() => None,
        exit = &mut work => Some(exit?),
    };
    if let Some(exit) = exit {
        return unless_gone(exit);
    }
    stop.cancel();
    let exit = tokio::select! { biased;
        () = signals.next() => return Ok(Exit::Interrupted),
        // None in time: the reader of a pipe does not read.
        exit = tokio::time::timeout(END_WITHIN, work) => exit.unwrap_or(Ok(Ok(Exit::Interrupted))),
    };
    unless_gone(exit?.map(|_| Exit::Interrupted))
}

async fn execute(command: BufferCommand, stop: CancellationToken) -> anyhow::Result<Exit> {
    let mut out = io::stdout();
    match command {
        BufferCommand::Inspect(args) => inspect::run(&args, &mut out, &stop).await,
        BufferCommand::Verify(args) => verify::run(&args, &mut out, &stop).await,
        BufferCommand::Replay(args) => replay::run(&args, &mut out, &stop).await,
    }
}

/// Whoever read stdout has gone: there is nobody to tell, and nothing has failed.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout is read no more")
    }
}

impl std::error::Error for ReaderGone {}

/// Makes an error of stdout one of the command.
pub(crate) fn told(written: io::Result<()>) -> anyhow::Result<()> {
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => anyhow::Error::new(ReaderGone),
        _ => anyhow::Error::new(error).context("stdout cannot be written"),
    })
}

/// A reader that has gone ends a command quietly.
pub(crate) fn unless_gone(exit: anyhow::Result<Exit>) -> anyhow::Result<Exit> {
    match exit {
        Err(error) if error.is::<ReaderGone>() => Ok(Exit::Done),
        exit => exit,
    }
}

/// Damage in one line: segment, records, cause.
fn damage_line(damage: &Damage) -> String {
    let segment = damage.segment.as_deref().unwrap_or("no segment");
    let records = damage.range.map_or_else(String::new, |(first, last)| {
        format!(" records {}:", range(first, last))
    });
    format!(
        "{}:{records} {}",
        harmless(segment),
        harmless(&damage.cause.to_string())
    )
}

#[cfg(test)]
mod tests;
