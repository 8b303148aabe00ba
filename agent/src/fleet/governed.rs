//! Applies assignments to the agent of this process, and says what stands in the way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::session::{Assignment, Fault, Section, ShortIds};
use flowtilla_grpc::causes;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::policy::{Policy, Scope};
use flowtilla_proto::wire::session as wire;

use crate::capture::{CaptureError, ScopeError};
use crate::files::{read_at_most, replace};
use crate::run::{Agent, StartError};
use crate::session::Governed;
use crate::vitals;

/// Octets of the file that keeps the source id at most.
const SOURCE_ID_OCTETS_MAX: u64 = 16;

/// Octets of the file that keeps source ids of 8 bits at most: as many names as are kept, at their longest.
const SHORT_IDS_OCTETS_MAX: u64 = 16 * 1_024;

/// The agent of this process.
pub(super) struct Capturing {
    pub(super) agent: Agent,
    /// Keeps the source id that a controller gave; `None`: in memory only.
    pub(super) source_id: Option<PathBuf>,
    /// The same for source ids of 8 bits.
    pub(super) short_ids: Option<PathBuf>,
}

impl Governed for Capturing {
    async fn apply(&mut self, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        if let Err(error) = self.agent.apply(&assignment.wanted).await {
            return Err(fault(&error, assignment.wanted.policy()));
        }
        let collectors = self.agent.in_force().collectors();
        let fed = collectors
            .flat_map(|one| &one.collectors)
            .map(|one| one.name.to_string());
        let attached = self.agent.attached();
        let attached = attached.borrow();
        Ok(vitals::effective(attached.as_ref(), fed.collect()))
    }

    async fn use_source_id(&mut self, id: SourceId) -> Result<(), String> {
        if let Some(path) = &self.source_id
            && load_source_id(path) != Some(id)
        {
            replace(path, format!("{id}\n").as_bytes()).map_err(|error| error.to_string())?;
        }
        let used = self.agent.use_source_id(id).await;
        used.map_err(|error| causes::chain(&error))
    }

    async fn use_short_ids(&mut self, ids: ShortIds) -> Result<(), String> {
        let kept = match &self.short_ids {
            Some(path) => keep_short_ids(path, &ids).map_err(|error| error.to_string()),
            None => Ok(()),
        };
        self.agent.use_short_ids(ids);
        kept
    }
}

/// The source id that a controller gave. Anything but a number counts as none: the controller says it again.
pub(super) fn load_source_id(path: &Path) -> Option<SourceId> {
    let octets = read_at_most(path, SOURCE_ID_OCTETS_MAX);
    let octets = octets.unwrap_or_else(|error: io::Error| {
        tracing::warn!(path = %path.display(), %error, "the source id is not known");
        None
    })?;
    let number = std::str::from_utf8(&octets).ok()?.trim().parse().ok()?;
    SourceId::new(number)
}

/// The source ids of 8 bits that a controller gave; damaged or none: nothing was said. It says them again.
pub(super) fn load_short_ids(path: &Path) -> ShortIds {
    let octets = read_at_most(path, SHORT_IDS_OCTETS_MAX).unwrap_or_else(|error: io::Error| {
        tracing::warn!(path = %path.display(), %error, "the source ids of 8 bits are not known until the controller says them");
        None
    });
    let Some(octets) = octets else {
        return ShortIds::untold();
    };
    let text = String::from_utf8(octets).ok();
    text.and_then(|text| ShortIds::from_text(&text)).unwrap_or_else(|| {
        tracing::warn!(path = %path.display(), "is damaged: the source ids of 8 bits are not known until the controller says them");
        ShortIds::untold()
    })
}

/// Keeps source ids of 8 bits. Where they cannot be kept, those of before go: a number that may be another agent's by now is
/// worse than none.
fn keep_short_ids(path: &Path, ids: &ShortIds) -> io::Result<()> {
    if load_short_ids(path) == *ids {
        return Ok(());
    }
    replace(path, ids.to_text().as_bytes()).inspect_err(|_| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "stays, though it is out of date");
        }
        _ => {}
    })
}

fn fault(error: &StartError, policy: Option<&Policy>) -> Fault {
    let (section, path) = match error {
        StartError::Beyond(mistakes) => return mistakes.clone().into(),
        StartError::Capture(CaptureError::Scope(error)) => (Section::Capture, path_of(error, policy)),
        StartError::Host(_)
        | StartError::Locked { .. }
        | StartError::Lookups(_)
        | StartError::Capture(_)
        | StartError::Thread(_)
        | StartError::MeterGone => (Section::Capture, String::new()),
        StartError::Spool(_) | StartError::Temporary(_) => (Section::Buffer, String::new()),
    };
    Fault {
        section,
        path,
        reason: causes::chain(error),
    }
}

/// The scope's place in the policy; empty: it is the agent's own.
fn path_of(error: &ScopeError, policy: Option<&Policy>) -> String {
    let ScopeError::Unreadable { scope: refused, .. } = error else {
        return "capture.scopes".to_owned();
    };
    let scopes = policy
        .iter()
        .flat_map(|policy| &policy.capture.scopes)
        .enumerate();
    let place = |(n, scope): (usize, &Scope)| {
        let kind = match scope {
            Scope::Cgroup(_) => "cgroup",
            Scope::Netns(_) => "netns",
        };
        (scope.to_string() == *refused).then(|| format!("capture.scopes[{n}].{kind}"))
    };
    scopes.into_iter().find_map(place).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU8;

    use flowtilla_proto::ids::CollectorName;

    use super::*;

    fn given(number: u8) -> ShortIds {
        let name = CollectorName::told("main").expect("a name");
        ShortIds::Given(BTreeMap::from([(name, NonZeroU8::new(number))]))
    }

    #[test]
    fn what_a_controller_said_is_known_after_a_restart_and_nothing_is_made_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("short-source-ids");
        assert_eq!(load_short_ids(&path), ShortIds::untold(), "no file");
        for ids in [given(7), given(0), ShortIds::untold()] {
            keep_short_ids(&path, &ids).expect("kept");
            assert_eq!(load_short_ids(&path), ids);
        }
        for damaged in ["main 256\n", "main\n", "\u{0}"] {
            fs::write(&path, damaged).expect("ours");
            assert_eq!(load_short_ids(&path), ShortIds::untold(), "{damaged:?}");
        }
    }

    #[test]
    fn what_cannot_be_kept_does_not_leave_what_was_kept_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("short-source-ids");
        keep_short_ids(&path, &given(7)).expect("kept");
        // Something stands where the next one is written.
        fs::create_dir(directory.path().join("short-source-ids.tmp")).expect("ours");
        keep_short_ids(&path, &given(8)).expect_err("there is no place");
        assert_eq!(load_short_ids(&path), ShortIds::untold());
    }
}
