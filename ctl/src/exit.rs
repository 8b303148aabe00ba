//! How a command ends, and what its exit code says.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | it did what was asked; `up`, `tap` and `top` also when they were told to end (Ctrl-C, SIGTERM, `--duration`); `deploy`, `delete` and `rollback` with `--wait`, `rollout watch`: every agent in reach acked, and stayed well |
//! | 1 | it failed: the message says at what and what to do; `deploy`, `agents remove|upgrade`: something failed with a host, or an upgrade went back (the others are done all the same, and what files say is applied); `agents drain --wait`: the time is over; `loss`: something is lost, or of an agent it is not known (it is away for long, or has told nothing); `buffer`: something is damaged; `diff`: there is a difference; `status`: an agent, connected or not, has not what it is to have, or none of them is connected; `doctor`: something prevents capture, here or on a host of `--host`, or one of these has not said; `top`: no agent has answered, or one that `--agent` names has not; `--wait` and `rollout watch`: an agent refused, a gate failed, it was taken back or superseded, or the time is over |
//! | 2 | flags, values or files are wrong, no such context, or DIR holds no spool that can be read; nothing was touched |
//! | 130 | told to end before it was done, or not to go on: `deploy`, `top` before its first picture, `agents remove|upgrade|drain`, `loss`, `buffer`, `--wait`, `rollout watch`; a second time before everything was in order: `up` |

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use tonic::Code;

use crate::client::explain::Failed;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked.
    Done,
    /// It failed.
    Failed,
    /// Flags or values are wrong.
    Usage,
    /// Told to end twice.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Interrupted => 130,
        })
    }
}

/// Flags or values that are wrong: one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UsageError(pub(crate) Vec<String>);

impl Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for UsageError {}

/// Files that are wrong: one line each, which begins with the file's place, as editors expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilesError(pub(crate) Vec<String>);

impl Display for FilesError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for FilesError {}

/// Prints what went wrong, with its causes, once.
pub(crate) fn report(error: &anyhow::Error) -> Exit {
    if let Some(usage) = error.downcast_ref::<UsageError>() {
        usage.0.iter().for_each(say);
        return Exit::Usage;
    }
    if let Some(files) = error.downcast_ref::<FilesError>() {
        let _ = writeln!(std::io::stderr(), "{files}"); // That nobody may read it is no failure.
        return Exit::Usage;
    }
    // A line for each thing that is wrong: what came from elsewhere has no line ends left.
    format!("{error:#}").lines().for_each(say);
    match error.downcast_ref::<Failed>().and_then(|failed| failed.code) {
        Some(Code::InvalidArgument) => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// One line for a person, on stderr. That nobody may read it is no failure.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "agentctl: {line}");
}
