//! What an agent is offered: an assignment, encoded once for all agents that get it.

use std::collections::BTreeMap;
use std::sync::Arc;

use flowtilla_proto::collector::{Collector, HeaderVersion, Host};
use flowtilla_proto::wire;
use flowtilla_proto::wire::session::Assignment;
use prost::Message;
use sha2::{Digest, Sha256};

use super::needs::{Need, needs};

/// SHA-256.
pub type Hash = [u8; 32];

/// The content of an offer. Never changed.
#[derive(Debug, PartialEq)]
pub struct Content {
    /// Hash of the octets.
    pub digest: Hash,
    /// Hash of the octets but for the revision: equal ones ask the same of an agent.
    pub sameness: Hash,
    /// A `session.Assignment`, encoded.
    pub octets: Vec<u8>,
    /// Name of the policy; `None`: the agent captures nothing.
    pub policy: Option<String>,
    /// Revision of the objects that it was made from.
    pub revision: u64,
    /// Where its agents export to.
    pub groups: Vec<Group>,
    /// Collectors that know their agents by numbers of 8 bits.
    pub short: Vec<ShortNamed>,
    /// Whether the policy may leave out flows of the host.
    pub partial: bool,
    /// Its agents capture nothing, whatever the policy says, and send what waits.
    pub drain: bool,
    /// What an agent must understand to be offered it.
    pub needs: Vec<Need>,
}

/// A collector of header version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortNamed {
    /// Name of the collector.
    pub name: String,
    /// Where it listens: two of the same are one ntopng. Two that differ may be one as well (a name and its address).
    pub endpoint: String,
}

/// Collectors that an agent feeds as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Names of all of them: one, or those that take turns.
    pub collectors: Vec<String>,
}

impl Group {
    /// Its name as agents know it.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.collectors[..] {
            [one] => one,
            _ => "failover",
        }
    }
}

impl Content {
    /// The content of an assignment.
    #[must_use]
    pub fn new(assignment: &Assignment) -> Self {
        let octets = assignment.encode_to_vec();
        let timeless = Assignment {
            revision: 0,
            ..assignment.clone()
        };
        let policy = assignment.policy.as_ref();
        Self {
            digest: Sha256::digest(&octets).into(),
            sameness: Sha256::digest(timeless.encode_to_vec()).into(),
            octets,
            policy: policy.map(|policy| policy.name.clone()),
            revision: assignment.revision,
            groups: policy.map(groups).unwrap_or_default(),
            short: assignment.collectors.iter().filter_map(short).collect(),
            partial: policy.is_some_and(partial),
            drain: assignment.drain,
            needs: needs(assignment),
        }
    }

    /// The same for an agent that is drained, or is not; `None`: that is what it is for. Without a policy nothing is captured.
    #[must_use]
    pub fn drained(&self, drain: bool) -> Option<Self> {
        if self.policy.is_none() || self.drain == drain {
            return None;
        }
        let assignment = Assignment::decode(&self.octets[..]).ok()?;
        Some(Self::new(&Assignment { drain, ..assignment }))
    }

    /// What was kept.
    ///
    /// # Errors
    ///
    /// The octets are no assignment.
    pub fn from_octets(octets: &[u8]) -> Result<Self, prost::DecodeError> {
        let kept = Self::new(&Assignment::decode(octets)?);
        // A field that only another version knows is not encoded again: the octets that were offered count.
        Ok(Self {
            digest: Sha256::digest(octets).into(),
            octets: octets.to_vec(),
            ..kept
        })
    }
}

fn groups(policy: &wire::Policy) -> Vec<Group> {
    let Some(export) = policy
        .export
        .as_ref()
        .filter(|export| !export.collectors.is_empty())
    else {
        return Vec::new();
    };
    if export.mode() == wire::Mode::Failover {
        return vec![Group {
            collectors: export.collectors.clone(),
        }];
    }
    let each = |name: &String| Group {
        collectors: vec![name.clone()],
    };
    export.collectors.iter().map(each).collect()
}

fn short(collector: &wire::Collector) -> Option<ShortNamed> {
    // It was sound when it was deployed; one that is not any more is refused by its agents.
    let collector = Collector::try_from(collector.clone()).ok()?;
    let mut endpoint = collector.endpoint;
    if let Host::Address(address) = &mut endpoint.host {
        *address = address.to_canonical();
    }
    (collector.header == HeaderVersion::V1).then(|| ShortNamed {
        name: collector.name.to_string(),
        endpoint: endpoint.to_string(),
    })
}

/// Whether a policy may leave out flows of the addresses that its agent reports. A network namespace's agent reports the
/// namespace's own.
fn partial(policy: &wire::Policy) -> bool {
    let Some(capture) = &policy.capture else {
        return false;
    };
    let cgroup = |scope: &wire::Scope| matches!(scope.part, Some(wire::scope::Part::Cgroup(_)));
    capture.tcp == Some(false)
        || capture.udp == Some(false)
        || !capture.include.is_empty()
        || !capture.exclude.is_empty()
        || capture
            .sampling
            .as_ref()
            .is_some_and(|sampling| sampling.one_in.unwrap_or(1) > 1)
        || capture.scopes.iter().any(cgroup)
}

/// Every content that an agent has or is to have, by both hashes; at most one that asks the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    by_sameness: BTreeMap<Hash, Arc<Content>>,
    by_digest: BTreeMap<Hash, Arc<Content>>,
}

impl Contents {
    /// The one that asks the same, or this one.
    pub(super) fn keep(&mut self, content: Content) -> Arc<Content> {
        if let Some(same) = self.by_sameness.get(&content.sameness) {
            return Arc::clone(same);
        }
        let content = Arc::new(content);
        self.by_sameness.insert(content.sameness, Arc::clone(&content));
        self.by_digest.insert(content.digest, Arc::clone(&content));
        content
    }

    pub(super) fn of_digest(&self, digest: &Hash) -> Option<&Arc<Content>> {
        self.by_digest.get(digest)
    }

    /// Forgets those that nobody else holds; their digests.
    pub(super) fn forget_unused(&mut self) -> Vec<Hash> {
        // Each is held by the two indexes.
        let unused: Vec<Arc<Content>> = self
            .by_digest
            .values()
            .filter(|content| Arc::strong_count(content) == 2)
            .cloned()
            .collect();
        for content in &unused {
            self.by_digest.remove(&content.digest);
            self.by_sameness.remove(&content.sameness);
        }
        unused.iter().map(|content| content.digest).collect()
    }
}
