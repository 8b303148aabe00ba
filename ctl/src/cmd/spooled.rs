//! What `loss` and `buffer` know of the agent library: the one file of theirs that imports it.
//!
//! In: a directory as the operator gave it. Out: a [`Survey`], or one sentence with the remedy; what a walk finds, read in
//! a thread of its own ([`Walker`]); a [`Replay`].

use std::ops::ControlFlow;
use std::path::Path;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub(crate) use flowtilla_agent::clock::wall_now;
pub(crate) use flowtilla_agent::replay::Replay;
pub(crate) use flowtilla_agent::spool::survey::{
    Account, Damage, Event, SegmentInfo, SegmentState, SegmentSummary, SmallFile, Survey, SurveyError, Wanted,
};
pub(crate) use flowtilla_agent::spool::{LostCause, LostRange};
#[cfg(test)]
pub(crate) use flowtilla_agent::spool::{Spool, SpoolOptions};
pub(crate) use flowtilla_agent::status::{CollectorState, CollectorStatus};

use crate::exit::UsageError;
use crate::output::harmless;

/// What is found and not yet looked at. A value is 8 KiB, its records some hundred times a hundred octets.
const EVENTS_MAX: usize = 16;

/// Looks at the spool in `directory`, which `flag` named.
///
/// # Errors
/// One sentence: why not, and what to do.
pub(crate) fn take(flag: &str, directory: &Path) -> Result<Survey, UsageError> {
    Survey::take(directory).map_err(|error| UsageError(vec![format!("{flag}: {}", sentence(&error))]))
}

fn sentence(error: &SurveyError) -> String {
    const DIRECTORY: &str = "write the directory that agentctl up --state was given, or a copy of it";
    let shown = |path: &Path| format!("\"{}\"", harmless(&path.to_string_lossy()));
    match error {
        SurveyError::Absent(path) => format!("{} is not there; {DIRECTORY}", shown(path)),
        SurveyError::NoSpool(path) => format!(
            "{} holds no spool, which agentctl up makes for its first --ntopng; {DIRECTORY}",
            shown(path)
        ),
        SurveyError::Version { path, found, known } => format!(
            "{} has the format \"{}\", and this agentctl reads \"{known}\"; use that of the agent which wrote it",
            shown(path),
            harmless(found)
        ),
        SurveyError::Unreadable { path, source } => format!(
            "{} cannot be read ({source}); run it as the user of the agent, or as root",
            shown(path)
        ),
        SurveyError::Temporary { path, source } => {
            let path = shown(path);
            format!("{path} takes no copy of a segment ({source}); set TMPDIR to a directory with some room")
        }
    }
}

/// What a reading of segments finds, in order.
pub(crate) struct Walker {
    events: mpsc::Receiver<Event>,
    thread: JoinHandle<Result<(), SurveyError>>,
}

impl Walker {
    /// Reads what is wanted, in a thread, which ends when nobody asks for more.
    pub(crate) fn start(survey: Survey, wanted: Wanted) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let thread = tokio::task::spawn_blocking(move || {
            survey.walk(&wanted, &mut |event| match sender.blocking_send(event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            })
        });
        Self { events, thread }
    }

    /// The next thing found; `None`: that was all.
    ///
    /// # Errors
    /// There is no place for copies.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        if let Some(event) = self.events.recv().await {
            return Ok(Some(event));
        }
        match (&mut self.thread).await? {
            Ok(()) => Ok(None),
            Err(error) => Err(anyhow::anyhow!("{}", sentence(&error))),
        }
    }
}

/// What [`Survey::unsynced`] finds, read beside the runtime.
pub(crate) async fn unsynced(survey: Survey) -> anyhow::Result<(Survey, Option<LostRange>)> {
    tokio::task::spawn_blocking(move || match survey.unsynced() {
        Ok(range) => Ok((survey, range)),
        Err(error) => Err(anyhow::anyhow!("{}", sentence(&error))),
    })
    .await?
}

/// Why records are gone, in words.
pub(crate) fn why(cause: LostCause) -> &'static str {
    match cause {
        LostCause::Evicted => "evicted at the bound of the spool",
        LostCause::SpoolDamaged => "damaged on the disk, or never synced to it",
        LostCause::SpoolUnwritable => "the disk did not take them, nor could memory hold them",
    }
}

/// How the spool stands in one line.
pub(crate) fn heading(survey: &Survey) -> String {
    let directory = harmless(&survey.directory.to_string_lossy());
    match survey.writer {
        Some(process) => format!("{directory}, used by process {process}: numbers are about a second old"),
        None if survey.stopped_uncleanly() => {
            format!("{directory}, used by nobody; the last agent did not stop cleanly")
        }
        None => format!("{directory}, used by nobody; the last stop was clean"),
    }
}
