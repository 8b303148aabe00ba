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
use std::time::Duration;

use lru::LruCache;

use crate::encode::text;
use crate::owner::{Container, Runtime};
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

/// What a runtime says about a container. Its texts are harmless and short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    id: ContainerId,
    name: Box<str>,
    image: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
}

impl ContainerFacts {
    /// Makes texts harmless and cuts them: a slash before the name goes, blanks in name and image become `_`, markup what
    /// looks like it. Of labels at most [`LABELS_MAX`] are kept, and of these as many as fit into [`LABELS_OCTETS_MAX`].
    /// `None`: there is no name.
    #[must_use]
    pub fn new<'a>(
        id: ContainerId,
        name: &str,
        image: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Option<Self> {
        let name = text::name(name.strip_prefix('/').unwrap_or(name));
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
        (!name.is_empty()).then(|| Self {
            id,
            name: name.into_boxed_str(),
            image: text::name(image).into_boxed_str(),
            labels: kept.into_boxed_slice(),
        })
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

    /// The value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(name, _)| &**name == key)?;
        Some(&found.1)
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
            // Docker's containers of a kubelet, and whatever an agent in a cgroup namespace of its own sees.
            Runtime::Kubernetes | Runtime::Other => true,
            Runtime::Containerd | Runtime::CriO => false,
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
    pub(super) fn facts(&self, id: ContainerId) -> Option<&ContainerFacts> {
        match self.entries.peek(&id)? {
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

    /// The name, and whether it is worth to wait for one.
    pub(super) fn look(
        &mut self,
        id: ContainerId,
        runtime: Runtime,
        now: KernelTime,
    ) -> (Option<&str>, bool) {
        let may_tell = self.may_tell(runtime);
        if may_tell == 0 && !self.entries.contains(&id) {
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
            Some(Entry::Known(facts)) => (Some(&facts.name), false),
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
    pub(super) fn name(&mut self, container: &Container, now: KernelTime) -> (Option<&str>, bool) {
        match ContainerId::parse(&container.id) {
            Some(id) => self.look(id, container.runtime, now),
            None => (None, false),
        }
    }

    /// Whether a container is told as it is known, and nothing is to be waited for.
    pub(super) fn agree(&mut self, told: Option<&Container>, now: KernelTime) -> bool {
        told.is_none_or(|told| self.name(told, now) == (told.name.as_deref(), false))
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
            Teller::Trying => !matches!(runtime, Runtime::Containerd | Runtime::CriO),
            Teller::Tells(kind) => kind.may_know(runtime),
            Teller::Away => false,
        };
        self.tellers.iter().filter(could).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: KernelTime = KernelTime(1_000_000_000);

    fn id(n: usize) -> ContainerId {
        ContainerId::parse(&format!("{n:064x}")).expect("64 digits")
    }

    fn facts(n: usize, name: &str) -> ContainerFacts {
        ContainerFacts::new(id(n), name, "img", []).expect("a name")
    }

    fn with(tellers: &[Teller]) -> Containers {
        let mut containers = Containers::new();
        containers.set_sockets(tellers.len());
        for (place, teller) in tellers.iter().enumerate() {
            containers.learn(ContainerNews::Stands(place, *teller));
        }
        containers
    }

    #[test]
    fn only_64_hex_digits_are_an_id() {
        let text = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
        assert_eq!(ContainerId::parse(text).expect("an id").to_string(), text);
        assert_eq!(ContainerId::parse(&text.to_uppercase()), ContainerId::parse(text));
        for wrong in [
            "",
            &text[1..],
            &format!("{text}0"),
            &text.replace('4', "g"),
            "/../x",
        ] {
            assert_eq!(ContainerId::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn texts_of_a_runtime_become_harmless_and_short() {
        let long = "x".repeat(5_000);
        let hostile = "/<script>alert(\"1\")\u{1b}[2J\n</script>";
        let labels = [("a", hostile), (&*long, &*long), ("b", "v")];
        let facts = ContainerFacts::new(id(1), hostile, &long, labels).expect("a name");
        let harmful = |c: char| c.is_control() || "<>&\"'`\\".contains(c);
        assert!(!facts.name().contains(harmful), "{facts:?}");
        assert!(facts.name().starts_with("‹script›"), "{facts:?}");
        assert_eq!(facts.image().len(), text::NAME_OCTETS_MAX);
        assert!(!facts.label("a").expect("kept").contains(harmful), "{facts:?}");
        assert_eq!(facts.label("b"), Some("v"));
        assert_eq!(ContainerFacts::new(id(1), "/", "img", []), None);
    }

    #[test]
    fn labels_are_bounded_in_number_and_octets() {
        let many: Vec<String> = (0..1_000).map(|n| format!("k{n:03}")).collect();
        let short =
            ContainerFacts::new(id(1), "n", "", many.iter().map(|key| (&**key, "v"))).expect("a name");
        assert_eq!(short.labels.len(), LABELS_MAX);
        let value = "v".repeat(text::NAME_OCTETS_MAX);
        let long =
            ContainerFacts::new(id(1), "n", "", many.iter().map(|key| (&**key, &*value))).expect("a name");
        let octets: usize = long
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        assert!(octets <= LABELS_OCTETS_MAX, "{octets}");
        assert!(!long.labels.is_empty());
    }

    #[test]
    fn an_unknown_container_is_asked_for_once_and_waited_for_a_bounded_time() {
        let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
        assert_eq!(containers.look(id(1), Runtime::Docker, TOLD), (None, true));
        assert_eq!(containers.look(id(1), Runtime::Docker, TOLD), (None, true));
        let ask = containers.poll_ask().expect("it is asked for");
        assert_eq!((ask.id, containers.poll_ask()), (id(1), None));
        let late = TOLD.after(CONTAINER_WAIT);
        assert_eq!(containers.look(id(1), Runtime::Docker, late), (None, false));
        assert_eq!(containers.poll_ask(), None);
        containers.learn(ContainerNews::Known(facts(1, "/web")));
        assert_eq!(
            containers.look(id(1), Runtime::Docker, late),
            (Some("web"), false)
        );
        containers.learn(ContainerNews::Known(facts(1, "/renamed")));
        assert_eq!(
            containers.look(id(1), Runtime::Docker, late),
            (Some("renamed"), false)
        );
    }

    #[test]
    fn one_that_nobody_knew_is_asked_for_again_later_without_waiting() {
        let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
        let _ = containers.look(id(1), Runtime::Docker, TOLD);
        assert!(containers.poll_ask().is_some());
        let later = TOLD.after(ASK_AGAIN);
        assert_eq!(containers.look(id(1), Runtime::Docker, later), (None, false));
        assert!(containers.poll_ask().is_some());
    }

    #[test]
    fn nobody_waits_when_nobody_could_tell() {
        let docker = Teller::Tells(RuntimeKind::Docker);
        for (tellers, runtime, waits) in [
            (&[][..], Runtime::Docker, false),
            (&[Teller::Away], Runtime::Docker, false),
            (&[Teller::Trying], Runtime::Docker, true),
            (&[docker], Runtime::Docker, true),
            (&[docker], Runtime::Podman, false),
            (&[docker], Runtime::Containerd, false),
            (&[Teller::Trying], Runtime::CriO, false),
            (&[docker], Runtime::Kubernetes, true),
            (&[Teller::Tells(RuntimeKind::Podman)], Runtime::Podman, true),
        ] {
            let mut containers = with(tellers);
            let found = containers.look(id(1), runtime, TOLD);
            assert_eq!(found, (None, waits), "{tellers:?} {runtime:?}");
            assert_eq!(containers.poll_ask().is_some(), waits, "{tellers:?} {runtime:?}");
        }
    }

    #[test]
    fn waiting_ends_when_every_runtime_that_could_know_has_said_no() {
        let mut containers = with(&[
            Teller::Tells(RuntimeKind::Docker),
            Teller::Tells(RuntimeKind::Podman),
        ]);
        assert!(containers.look(id(1), Runtime::Other, TOLD).1);
        containers.learn(ContainerNews::NotMine(id(1)));
        assert!(containers.look(id(1), Runtime::Other, TOLD).1);
        containers.learn(ContainerNews::NotMine(id(1)));
        assert!(!containers.look(id(1), Runtime::Other, TOLD).1);
    }

    #[test]
    fn a_name_outlives_its_runtime_and_goes_when_names_are_not_wanted() {
        let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
        containers.learn(ContainerNews::Known(facts(1, "web")));
        containers.learn(ContainerNews::Stands(0, Teller::Away));
        assert_eq!(
            containers.look(id(1), Runtime::Docker, TOLD),
            (Some("web"), false)
        );
        containers.set_sockets(0);
        assert_eq!(containers.look(id(1), Runtime::Docker, TOLD), (None, false));
    }

    #[test]
    fn containers_and_asks_are_bounded() {
        let mut containers = with(&[Teller::Tells(RuntimeKind::Docker)]);
        for n in 0..2 * CONTAINERS_MAX {
            let _ = containers.look(id(n), Runtime::Docker, TOLD);
            containers.learn(ContainerNews::Known(facts(n + 2 * CONTAINERS_MAX, "c")));
        }
        assert_eq!(containers.entries.len(), CONTAINERS_MAX);
        assert_eq!(containers.asks.len(), CONTAINER_ASKS_MAX);
        let counts = containers.counts();
        assert_eq!(counts.evicted, 3 * CONTAINERS_MAX as u64);
        assert_eq!((counts.known, counts.telling), (CONTAINERS_MAX as u64 / 2, 1));
        containers.learn(ContainerNews::Stands(7, Teller::Trying));
        assert_eq!(containers.tellers.len(), 1);
    }
}
