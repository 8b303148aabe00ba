//! What runtimes tell about containers, and how long a flow waits for it. Bounded.
//!
//! In: [`ContainerNews`], and the ids that records show. Out: names, and [`ContainerAsk`]s for ids that no runtime told
//! by itself. Reads nothing, knows no runtime's API.
//!
//! A container is its id: names come again, ids do not. An id that nobody knows makes flows wait once, at most
//! [`CONTAINER_WAIT`] from the first of them, and only while somebody is there who could tell; after that they go by the
//! id, and the name is used from the moment it comes. All text is a stranger's: it is cut and made harmless here, before
//! anything keeps it ([`ContainerFacts::new`]).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use crate::encode::text;
use crate::owner::{Container, Pod, Runtime};
use crate::time::KernelTime;

/// Containers remembered, those seen last. At most some 3 KiB each, a tenth of that as a rule.
///
/// A large host has some hundreds; those that ended are kept until others take their place. One that is forgotten and
/// seen again is asked for again.
pub const CONTAINERS_MAX: usize = 4_096;
/// How long a new container's flows wait for its name.
///
/// Runtimes tell of a container before they start it, and answer within some 10 ms. Half of it would leave names to the
/// second record on a loaded host; double it, and a runtime that hangs holds back records that ntopng shows as late.
pub const CONTAINER_WAIT: Duration = Duration::from_secs(1);
/// How long it takes until a container that nobody knew is asked for again, without waiting.
pub const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Asks that wait to be polled; beyond it the next record tries again.
pub const CONTAINER_ASKS_MAX: usize = 256;
/// Labels kept of a container; further ones are left out.
pub const LABELS_MAX: usize = 64;
/// Octets of all labels kept of a container, keys and values. Those of Compose take some 600.
pub const LABELS_OCTETS_MAX: usize = 2_048;

/// Whose API answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeKind {
    /// Docker.
    Docker,
    /// podman.
    Podman,
    /// A runtime of Kubernetes by CRI: containerd, CRI-O.
    Cri,
}

/// How one socket of a runtime stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// It was not tried yet, or was lost a moment ago: it may tell soon.
    Trying,
    /// It tells of its containers.
    Tells(RuntimeKind),
    /// Nobody is there.
    Away,
}

/// The runtime's id of a container: 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContainerId([u8; 32]);

impl ContainerId {
    /// Reads 64 hex digits; `None`: it is something else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
        let mut id = [0; 32];
        for (octet, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            *octet = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(id))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Labels under which a runtime keeps what the kubelet told it about a container.
mod kubernetes {
    pub(super) const CONTAINER: &str = "io.kubernetes.container.name";
    pub(super) const POD: &str = "io.kubernetes.pod.name";
    pub(super) const NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(super) const UID: &str = "io.kubernetes.pod.uid";
}

/// Labels, bounded in number and octets, in the order of their keys. Their texts are harmless.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    fn new<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut left = LABELS_OCTETS_MAX;
        let mut kept = Vec::new();
        for (key, value) in labels.into_iter().take(LABELS_MAX) {
            let (key, value) = (
                text::label(key, text::NAME_OCTETS_MAX),
                text::label(value, text::NAME_OCTETS_MAX),
            );
            let Some(rest) = left.checked_sub(key.len() + value.len()) else {
                continue;
            };
            left = rest;
            kept.push((key.into_boxed_str(), value.into_boxed_str()));
        }
        kept.sort_unstable();
        Self(kept.into_boxed_slice())
    }

    fn value(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| &**name == key)?;
        Some(&found.1)
    }

    /// The pod that they name, whoever wrote them.
    fn pod(&self) -> Option<PodFacts> {
        let (namespace, name) = (self.value(kubernetes::NAMESPACE)?, self.value(kubernetes::POD)?);
        PodFacts::new(namespace, name, self.value(kubernetes::UID), [])
    }

    /// Whether a container of this name has them from the kubelet: it names Docker's containers
    /// `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, and no image can name a container.
    fn are_of_kubelet(&self, name: &str) -> bool {
        let part = |key| self.value(key).unwrap_or_default();
        let begin = format!(
            "k8s_{}_{}_{}_",
            part(kubernetes::CONTAINER),
            part(kubernetes::POD),
            part(kubernetes::NAMESPACE)
        );
        name.starts_with(&begin)
    }
}

/// What a runtime says about a pod. Its texts are harmless and short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    namespace: Box<str>,
    name: Box<str>,
    uid: Option<Box<str>>,
    labels: Labels,
}

impl PodFacts {
    /// Makes texts harmless and cuts them as those of a container. `None`: namespace or name is missing.
    #[must_use]
    pub fn new<'a>(
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Option<Self> {
        let (namespace, name) = (text::name(namespace), text::name(name));
        let uid = uid.filter(|uid| !uid.is_empty()).map(text::name);
        (!namespace.is_empty() && !name.is_empty()).then(|| Self {
            namespace: namespace.into_boxed_str(),
            name: name.into_boxed_str(),
            uid: uid.map(String::into_boxed_str),
            labels: Labels::new(labels),
        })
    }

    /// The namespace that it is in, never empty, at most [`text::NAME_OCTETS_MAX`] octets.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name, never empty, at most [`text::NAME_OCTETS_MAX`] octets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its uid as the kubelet told it; of a static pod that is not the uid which the API server shows.
    #[must_use]
    pub fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    /// The value of one of its own labels.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.value(key)
    }
}

/// What a runtime says about a container. Its texts are harmless and short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    id: ContainerId,
    name: Box<str>,
    image: Box<str>,
    labels: Labels,
    pod: Option<Arc<PodFacts>>,
}

impl ContainerFacts {
    /// Makes texts harmless and cuts them: a slash before the name goes, blanks in name and image become `_`, markup what
    /// looks like it. Of labels at most [`LABELS_MAX`] are kept, and of these as many as fit into [`LABELS_OCTETS_MAX`].
    /// `None`: there is no name.
    ///
    /// Where the kubelet's labels name a pod and the kubelet named the container, it is of that pod, and has the name that it
    /// has there. Labels alone are not believed: Docker and podman mix those of the image in, and anybody makes images. The
    /// pod's own labels are not among a container's: [`ContainerFacts::of_pod`] brings them.
    #[must_use]
    pub fn new<'a>(
        id: ContainerId,
        name: &str,
        image: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Option<Self> {
        let labels = Labels::new(labels);
        let name = name.strip_prefix('/').unwrap_or(name);
        let pod = labels.pod().filter(|_| labels.are_of_kubelet(name));
        let in_pod = labels
            .value(kubernetes::CONTAINER)
            .filter(|name| pod.is_some() && !name.is_empty());
        let name = text::name(in_pod.unwrap_or(name));
        (!name.is_empty()).then(|| Self {
            id,
            name: name.into_boxed_str(),
            image: text::name(image).into_boxed_str(),
            labels,
            pod: pod.map(Arc::new),
        })
    }

    /// The same container, of the pod that its labels name. Only of a runtime that serves kubelets: their labels win there
    /// over the image's.
    #[must_use]
    pub fn of_labels(self) -> Self {
        let pod = self.labels.pod().map(Arc::new);
        Self { pod, ..self }
    }

    /// The same container, of this pod.
    #[must_use]
    pub fn of_pod(self, pod: Arc<PodFacts>) -> Self {
        Self {
            pod: Some(pod),
            ..self
        }
    }

    /// Which container.
    #[must_use]
    pub fn id(&self) -> ContainerId {
        self.id
    }

    /// Its name, never empty, at most [`text::NAME_OCTETS_MAX`] octets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was made from, as its maker wrote it; empty: not told.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// The value of a label of its own.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.value(key)
    }

    /// The pod it belongs to.
    #[must_use]
    pub fn pod(&self) -> Option<&PodFacts> {
        self.pod.as_deref()
    }

    /// The name of its pod.
    #[must_use]
    pub fn pod_name(&self) -> Option<&str> {
        self.pod().map(PodFacts::name)
    }

    /// The namespace of its pod.
    #[must_use]
    pub fn pod_namespace(&self) -> Option<&str> {
        self.pod().map(PodFacts::namespace)
    }

    /// The value of one of its pod's own labels.
    #[must_use]
    pub fn pod_label(&self, key: &str) -> Option<&str> {
        self.pod()?.label(key)
    }

    /// Puts what records keep of it onto a container.
    pub(super) fn put_onto(&self, container: &mut Container) {
        container.name = Some(self.name.to_string());
        container.pod = self.pod().map(|pod| Pod {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
        });
    }

    /// Whether a container is told as it is known here.
    fn agrees(&self, told: &Container) -> bool {
        let pod = told.pod.as_ref();
        let told_pod = pod.map(|pod| (pod.namespace.as_str(), pod.name.as_str()));
        told.name.as_deref() == Some(&self.name) && told_pod == self.pod_namespace().zip(self.pod_name())
    }
}

/// A container that a record shows and nobody has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerAsk {
    /// Which.
    pub id: ContainerId,
    /// Whose layout of cgroups it was found in: only such a runtime can know it.
    pub runtime: Runtime,
}

impl RuntimeKind {
    /// Whether a container in a cgroup of this layout may be one of its own.
    #[must_use]
    pub fn may_know(self, runtime: Runtime) -> bool {
        match runtime {
            Runtime::Docker => self == Self::Docker,
            Runtime::Podman => self == Self::Podman,
            Runtime::Containerd | Runtime::CriO => self == Self::Cri,
            // Containers of a kubelet by any runtime, and whatever an agent in a cgroup namespace of its own sees.
            Runtime::Kubernetes | Runtime::Other => true,
            Runtime::User => false,
        }
    }
}

/// What the sockets of runtimes have to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerNews {
    /// A container, new or changed.
    Known(ContainerFacts),
    /// An ask found nothing: this runtime has no such container.
    NotMine(ContainerId),
    /// How a socket stands, by its place among the sockets.
    Stands(usize, Teller),
}

/// How it stands with names of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerCounts {
    /// Containers whose names are known at this moment, at most [`CONTAINERS_MAX`].
    pub known: u64,
    /// Sockets that tell at this moment.
    pub telling: u64,
    /// Asks since start.
    pub asks: u64,
    /// Containers that others have pushed out since start: asked for again when they are seen.
    pub evicted: u64,
}

#[derive(Debug)]
enum Entry {
    Sought {
        since: KernelTime,
        asked_at: Option<KernelTime>,
        /// Runtimes that do not know it.
        refusals: usize,
    },
    Known(ContainerFacts),
}

/// The id by which runtimes may be asked for a container; `None`: whoever named its cgroup may have taken another one's.
fn container_id(container: &Container) -> Option<ContainerId> {
    ContainerId::parse(&container.id).filter(|_| container.runtime != Runtime::User)
}

/// Containers, and who tells of them.
pub(super) struct Containers {
    entries: LruCache<ContainerId, Entry>,
    tellers: Vec<Teller>,
    asks: VecDeque<ContainerAsk>,
    counts: ContainerCounts,
}

impl Containers {
    pub(super) fn new() -> Self {
        Self {
            entries: LruCache::new(super::at_least_one(CONTAINERS_MAX)),
            tellers: Vec::new(),
            asks: VecDeque::new(),
            counts: ContainerCounts::default(),
        }
    }

    /// So many sockets are tried from here on; 0: names are not wanted, and those that are known go.
    pub(super) fn set_sockets(&mut self, count: usize) {
        self.tellers = vec![Teller::Trying; count];
        self.asks.clear();
        if count == 0 {
            self.entries.clear();
        }
    }

    /// What was told about a container, without a change of what was used last.
    pub(super) fn told(&self, container: &Container) -> Option<&ContainerFacts> {
        match self.entries.peek(&container_id(container)?)? {
            Entry::Known(facts) => Some(facts),
            Entry::Sought { .. } => None,
        }
    }

    /// Whether anybody is there who could tell anything.
    pub(super) fn may_be_told(&self) -> bool {
        self.tellers.iter().any(|teller| *teller != Teller::Away)
    }

    pub(super) fn learn(&mut self, news: ContainerNews) {
        match news {
            ContainerNews::Known(facts) => {
                self.put(facts.id, Entry::Known(facts));
            }
            ContainerNews::NotMine(id) => {
                if let Some(Entry::Sought { refusals, .. }) = self.entries.peek_mut(&id) {
                    *refusals += 1;
                }
            }
            ContainerNews::Stands(place, stands) => {
                if let Some(teller) = self.tellers.get_mut(place) {
                    *teller = stands;
                }
            }
        }
    }

    /// Has a container asked for that nobody has told of and no flow has shown: by runtimes that may not tell by themselves.
    pub(super) fn foresee(&mut self, id: ContainerId, runtime: Runtime) {
        let waits = |teller: &Teller| *teller == Teller::Tells(RuntimeKind::Cri);
        if self.tellers.iter().any(waits)
            && RuntimeKind::Cri.may_know(runtime)
            && !self.entries.contains(&id)
            && self.asks.len() < CONTAINER_ASKS_MAX
        {
            self.counts.asks += 1;
            self.asks.push_back(ContainerAsk { id, runtime });
        }
    }

    /// What is known, and whether it is worth to wait for more.
    pub(super) fn look(
        &mut self,
        id: ContainerId,
        runtime: Runtime,
        now: KernelTime,
    ) -> (Option<&ContainerFacts>, bool) {
        let may_tell = self.may_tell(runtime);
        if runtime == Runtime::User || may_tell == 0 && !self.entries.contains(&id) {
            return (None, false);
        }
        if !self.entries.contains(&id) {
            let sought = Entry::Sought {
                since: now,
                asked_at: None,
                refusals: 0,
            };
            self.put(id, sought);
        }
        match self.entries.get_mut(&id) {
            None => (None, false),
            Some(Entry::Known(facts)) => (Some(facts), false),
            Some(Entry::Sought {
                since,
                asked_at,
                refusals,
            }) => {
                let is_due = asked_at.is_none_or(|asked_at| now.since(asked_at) >= ASK_AGAIN);
                if is_due && may_tell > 0 && self.asks.len() < CONTAINER_ASKS_MAX {
                    *asked_at = Some(now);
                    *refusals = 0;
                    self.counts.asks += 1;
                    self.asks.push_back(ContainerAsk { id, runtime });
                }
                (None, *refusals < may_tell && now.since(*since) < CONTAINER_WAIT)
            }
        }
    }

    /// The same of a container as a cgroup's path shows it.
    pub(super) fn facts(
        &mut self,
        container: &Container,
        now: KernelTime,
    ) -> (Option<&ContainerFacts>, bool) {
        match container_id(container) {
            Some(id) => self.look(id, container.runtime, now),
            None => (None, false),
        }
    }

    /// Whether a container is told as it is known, and nothing is to be waited for.
    pub(super) fn agree(&mut self, told: Option<&Container>, now: KernelTime) -> bool {
        told.is_none_or(|told| match self.facts(told, now) {
            (Some(facts), _) => facts.agrees(told),
            (None, waits) => !waits && told.name.is_none() && told.pod.is_none(),
        })
    }

    pub(super) fn poll_ask(&mut self) -> Option<ContainerAsk> {
        self.asks.pop_front()
    }

    pub(super) fn counts(&self) -> ContainerCounts {
        let tells = |teller: &&Teller| matches!(teller, Teller::Tells(_));
        let known = |(_, entry): &(&ContainerId, &Entry)| matches!(entry, Entry::Known(_));
        ContainerCounts {
            known: self.entries.iter().filter(known).count() as u64,
            telling: self.tellers.iter().filter(tells).count() as u64,
            ..self.counts
        }
    }

    fn put(&mut self, id: ContainerId, entry: Entry) {
        if let Some((other, _)) = self.entries.push(id, entry)
            && other != id
        {
            self.counts.evicted += 1;
        }
    }

    /// Sockets that could know a container of this layout.
    fn may_tell(&self, runtime: Runtime) -> usize {
        let could = |teller: &&Teller| match teller {
            Teller::Trying => true,
            Teller::Tells(kind) => kind.may_know(runtime),
            Teller::Away => false,
        };
        self.tellers.iter().filter(could).count()
    }
}

#[cfg(test)]
mod tests;
