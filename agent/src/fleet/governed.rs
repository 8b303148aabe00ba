//! Applies assignments to the agent of this process, and says what stands in the way.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::session::{Assignment, Fault, Section, ShortIds};
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::policy::{Policy, Scope};
use flowtilla_proto::wire::session as wire;

use crate::capture::{CaptureError, ScopeError};
use crate::files::{read_at_most, replace};
use crate::identity;
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
        used.map_err(|error| identity::chain(&error))
    }

    async fn use_short_ids(&mut self, ids: ShortIds) -> Result<(), String> {
        let text = ids.to_text();
        let news = self.agent.use_short_ids(ids);
        match &self.short_ids {
            Some(path) if news => replace(path, text.as_bytes()).map_err(|error| error.to_string()),
            _ => Ok(()),
        }
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

/// The source ids of 8 bits that a controller gave. Damaged or none: the controller says them again.
pub(super) fn load_short_ids(path: &Path) -> ShortIds {
    let octets = read_at_most(path, SHORT_IDS_OCTETS_MAX).unwrap_or_else(|error: io::Error| {
        tracing::warn!(path = %path.display(), %error, "the source ids of 8 bits are not known");
        None
    });
    let text = octets.and_then(|octets| String::from_utf8(octets).ok());
    text.and_then(|text| ShortIds::from_text(&text))
        .unwrap_or_default()
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
        reason: identity::chain(error as &dyn Error),
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
