//! One agent, as the fleet sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use flowtilla_proto::labels::Labels;
use flowtilla_proto::mistake::Mistakes;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::DrainState;
use flowtilla_proto::wire::session as wire;
use prost::Message;

use super::SessionId;
use super::content::{Content, Contents};
use super::heard::{Hello, Mark};
use super::row::{AgentRow, Holding};
use super::silent::Left;
use super::turns::Turns;

/// Heartbeats that have to say that nothing waits until it is believed: what a heartbeat says of collectors may be a second
/// older than what it says of capture.
const IDLE_BEATS: u8 = 2;

/// Superseded offers that are kept of an agent. One that has had so many is told no number until it has acked the last.
///
/// One is usual: two deploys within the second that an agent takes. Half of it still does; double it, and each takes a look more when
/// a collector's agents are numbered.
const SUPERSEDED_MAX: usize = 8;

/// One agent.
pub(super) struct Agent {
    /// Labels of its enrolment.
    pub(super) enrolled: Labels,
    /// Labels of its last hello.
    pub(super) host: Labels,
    /// Both; what selectors see.
    pub(super) labels: Labels,
    pub(super) enrolled_ms: i64,
    /// When it was heard last, milliseconds since the epoch; 0: never.
    pub(super) seen_ms: i64,
    pub(super) revoked: bool,
    pub(super) hello: Option<Box<wire::Hello>>,
    /// What it holds is from a controller of before there were features, and no program that tells its own has come since.
    pub(super) ungated: bool,
    pub(super) addresses: Vec<IpAddr>,
    /// What it is to have.
    pub(super) wanted: Option<Wanted>,
    /// What it would have in place of `wanted`, if it did not misread it: `wanted` is what it has, but for whether it is drained
    /// ([`Fleet::stand_in`](super::Fleet::stand_in)). Not kept: it follows from what is.
    pub(super) meant: Option<Arc<Content>>,
    /// What it said last that it holds.
    pub(super) held: Option<Mark>,
    /// The content of `held`, when it is known here.
    pub(super) in_force: Option<Arc<Content>>,
    /// What it was offered, has not answered, and may still put in force, though something else has taken its place; only what has
    /// collectors of header version 1, at most [`SUPERSEDED_MAX`].
    pub(super) superseded: Vec<Arc<Content>>,
    /// The highest place that it ever said to hold.
    pub(super) floor: (u64, u64),
    pub(super) effective: Option<Box<wire::Effective>>,
    /// Its refusal of the content at this place.
    pub(super) nack: Option<((u64, u64), Box<wire::Nack>)>,
    pub(super) health: Option<Box<wire::Health>>,
    /// What it leaves to others.
    pub(super) left: Left,
    /// Agents that do not tell what it leaves to them, as long as both have the same addresses, and when that was found. At most
    /// [`APART_MAX`](super::silent::APART_MAX).
    pub(super) apart: BTreeMap<MemberName, u64>,
    /// It leaves flows to those all the same, or there are more of them.
    pub(super) unaware: bool,
    /// Octets that others left to it, and that it did not tell, since this process began.
    pub(super) untold_octets: u64,
    /// By whose word, at most [`UNTOLD_BY_MAX`](super::silent::UNTOLD_BY_MAX).
    pub(super) untold_by: BTreeSet<MemberName>,
    /// It is to capture nothing, and to send what waits.
    pub(super) drain: bool,
    /// Heartbeats in a row that told of nothing captured and nothing that waits.
    pub(super) idle_beats: u8,
    /// Its stream.
    pub(super) line: Option<Line>,
    /// Who has spoken as this agent.
    pub(super) turns: Turns,
}

/// What an agent is to have.
pub(super) struct Wanted {
    pub(super) mark: Mark,
    pub(super) content: Arc<Content>,
    pub(super) traceparent: Arc<str>,
    /// Whether it was offered and may be in force, as far as is known: not when the only offer of it was refused.
    pub(super) offered: bool,
}

/// An agent's stream.
pub(super) struct Line {
    pub(super) session: SessionId,
    /// Of the newest offer.
    pub(super) nonce: u64,
    /// The newest offer, until it is answered.
    pub(super) open: Option<Mark>,
    /// Whether that was offered before: an answer to this offer is none to the former.
    pub(super) again: bool,
    /// The content that it refused on this stream.
    pub(super) refused: Option<Mark>,
    pub(super) heard_ms: u64,
    /// Source ids of 8 bits, as told last; `None`: nothing was.
    pub(super) short_told: Option<BTreeMap<String, u32>>,
}

impl Line {
    pub(super) fn new(session: SessionId, now_ms: u64) -> Self {
        Self {
            session,
            nonce: 0,
            open: None,
            again: false,
            refused: None,
            heard_ms: now_ms,
            short_told: None,
        }
    }
}

impl Agent {
    /// One that was enrolled at this moment, milliseconds since the epoch.
    pub(super) fn new(enrolled_ms: i64) -> Self {
        Self {
            enrolled: Labels::default(),
            host: Labels::default(),
            labels: Labels::default(),
            enrolled_ms,
            seen_ms: 0,
            revoked: false,
            hello: None,
            ungated: false,
            addresses: Vec::new(),
            wanted: None,
            meant: None,
            held: None,
            in_force: None,
            superseded: Vec::new(),
            floor: (0, 0),
            effective: None,
            nack: None,
            health: None,
            left: Left::default(),
            apart: BTreeMap::new(),
            unaware: false,
            untold_octets: 0,
            untold_by: BTreeSet::new(),
            drain: false,
            idle_beats: 0,
            line: None,
            turns: Turns::default(),
        }
    }

    /// Takes what a hello says. A refusal of an earlier stream is forgotten: what was refused is offered again.
    pub(super) fn handle_hello(&mut self, labels: &Labels, hello: Hello, contents: &Contents) {
        self.enrolled = labels.clone();
        self.host = hello.labels;
        self.labels = self.enrolled.over(&self.host);
        self.ungated &= hello.said.features.is_empty();
        self.hello = Some(Box::new(hello.said));
        self.addresses = hello.addresses;
        self.left = Left::default();
        self.held = None;
        let former = self.in_force.take();
        self.health = None;
        self.idle_beats = 0;
        if let Some(held) = hello.held {
            self.hold(held);
            self.in_force = contents.of_digest(&held.digest).cloned();
        } else if let Some(former) = former {
            // It has nothing in force, and tries what it holds again and again.
            self.keep_superseded(former);
        }
        if self.held != self.wanted.as_ref().map(|wanted| wanted.mark) {
            self.effective = None;
        } else {
            self.nack = None;
        }
    }

    /// It says that it holds this.
    pub(super) fn hold(&mut self, held: Mark) {
        self.floor = self.floor.max(held.place());
        self.held = Some(held);
        // Nothing older comes in force after it, however it is read.
        if self.wanted.as_ref().is_some_and(|wanted| wanted.mark == held) {
            self.superseded.clear();
        }
    }

    /// Something else is about to take the place of what it is to have.
    pub(super) fn supersede(&mut self) {
        let has_it = self.has_wanted();
        let offered = self.wanted.as_ref().filter(|wanted| wanted.offered && !has_it);
        if let Some(content) = offered.map(|wanted| Arc::clone(&wanted.content)) {
            self.keep_superseded(content);
        }
    }

    fn keep_superseded(&mut self, content: Arc<Content>) {
        let known = self.superseded.contains(&content) || content.short.is_empty();
        if !known && self.superseded.len() < SUPERSEDED_MAX {
            self.superseded.push(content);
        }
    }

    /// Whether it has, or may have, something in force that this controller does not know.
    pub(super) fn holds_unknown(&self) -> bool {
        (self.held.is_some() && self.in_force.is_none()) || self.superseded.len() >= SUPERSEDED_MAX
    }

    /// What it has in force, or may put in force without a further word: not what it has refused on this stream, nor what it is not
    /// offered because it would misread it.
    pub(super) fn may_have(&self) -> impl Iterator<Item = &Content> {
        let refused = self.line.as_ref().and_then(|line| line.refused);
        let wanted = self.wanted.as_ref();
        let wanted = wanted.filter(|wanted| refused != Some(wanted.mark));
        let is_offered = |content: &Content| self.meant.is_some() || self.misreads(content).next().is_none();
        let wanted = wanted.filter(|wanted| is_offered(&wanted.content));
        let superseded = self.superseded.iter().map(|content| &**content);
        let wanted = wanted.map(|wanted| &*wanted.content);
        self.in_force
            .as_deref()
            .into_iter()
            .chain(superseded)
            .chain(wanted)
    }

    /// Whether it feeds a collector that the other feeds, too.
    pub(super) fn shares_a_collector(&self, other: &Self) -> bool {
        let (Some(one), Some(other)) = (&self.in_force, &other.in_force) else {
            return false;
        };
        one.groups.iter().any(|group| other.groups.contains(group))
    }

    /// The offer that an answer closes: the newest, and none when the nonce is another's.
    pub(super) fn answered(&mut self, nonce: u64) -> Option<Mark> {
        let line = self.line.as_mut().filter(|line| line.nonce == nonce)?;
        line.open.take()
    }

    /// What it is to have, or would, if it did not misread it.
    pub(super) fn intended(&self) -> Option<&Arc<Content>> {
        let wanted = self.wanted.as_ref().map(|wanted| &wanted.content);
        self.meant.as_ref().or(wanted)
    }

    /// Name of the policy that it is to have.
    pub(super) fn policy(&self) -> Option<&str> {
        self.intended()?.policy.as_deref()
    }

    /// The highest place that it holds, held or is to have.
    pub(super) fn highest(&self) -> (u64, u64) {
        let wanted = self.wanted.as_ref().map(|wanted| wanted.mark.place());
        self.floor.max(wanted.unwrap_or_default())
    }

    /// A heartbeat tells how it does.
    pub(super) fn note_health(&mut self, health: Box<wire::Health>) {
        let waits = health.collectors.iter().any(|collector| collector.waiting > 0);
        self.idle_beats = match health.capturing || health.flows > 0 || waits {
            true => 0,
            false => self.idle_beats.saturating_add(1),
        };
        self.health = Some(health);
    }

    /// How far its draining is.
    pub(super) fn drain_state(&self) -> DrainState {
        match self.drain {
            false => DrainState::Unspecified,
            true if self.is_told_to_rest() && self.idle_beats >= IDLE_BEATS => DrainState::Drained,
            true => DrainState::Draining,
        }
    }

    /// Whether it has in force that it captures nothing.
    fn is_told_to_rest(&self) -> bool {
        let rests = |content: &Content| content.drain || content.policy.is_none();
        self.has_wanted() && self.wanted.as_ref().is_some_and(|wanted| rests(&wanted.content))
    }

    /// Whether what it is to have asks the same as this.
    pub(super) fn is_to_have(&self, content: &Content) -> bool {
        let intended = self.intended();
        intended.is_some_and(|intended| intended.sameness == content.sameness)
    }

    /// Whether it has in force what it is to have, and reads it as it is meant.
    pub(super) fn converged(&self) -> bool {
        self.has_wanted() && self.meant.is_none()
    }

    /// Whether it has in force what it is to have, or what stands in for that.
    pub(super) fn has_wanted(&self) -> bool {
        let wanted = self.wanted.as_ref();
        wanted.is_some_and(|wanted| self.held == Some(wanted.mark)) && !self.is_withheld()
    }

    /// Its refusal of what it is to have.
    pub(super) fn refusal(&self) -> Option<&wire::Nack> {
        let wanted = self.wanted.as_ref()?;
        let (place, nack) = self.nack.as_ref()?;
        (*place == wanted.mark.place()).then_some(nack)
    }

    pub(super) fn to_row(&self) -> Vec<u8> {
        let nacked = self.nack.as_ref().map(|(place, _)| *place).unwrap_or_default();
        AgentRow {
            labels: self.enrolled.as_map().clone(),
            hello: self.hello.as_deref().cloned(),
            host_labels: self.host.as_map().clone(),
            enrolled_ms: self.enrolled_ms,
            seen_ms: self.seen_ms,
            revoked: self.revoked,
            effective: self.effective.as_deref().cloned(),
            nack: self.nack.as_ref().map(|(_, nack)| (**nack).clone()),
            nacked_epoch: nacked.0,
            nacked_version: nacked.1,
            drain: self.drain,
            gated: !self.ungated,
            ..AgentRow::default()
        }
        .encode_to_vec()
    }

    /// What it is to have and has.
    pub(super) fn holding(&self, id: &str) -> Holding {
        Holding {
            agent: id.to_owned(),
            wanted: self.wanted.as_ref().map(|wanted| wanted.mark.to_wire()),
            held: self.held.map(Mark::to_wire),
            floor_epoch: self.floor.0,
            floor_version: self.floor.1,
        }
    }

    /// One that was kept. What it is to have is `None` when the content is not there. `holding`: `None` in what an earlier
    /// version kept.
    pub(super) fn from_row(
        row: AgentRow,
        holding: Option<Holding>,
        contents: &Contents,
    ) -> Result<Self, Mistakes> {
        let mark = |held: wire::Held| {
            Some(Mark {
                epoch: held.epoch,
                version: held.version,
                digest: held.digest[..].try_into().ok()?,
            })
        };
        let enrolled = Labels::parse(&row.labels)?;
        let host = Labels::parse(&row.host_labels)?;
        let (wanted, held, floor) = match holding {
            Some(kept) => (kept.wanted, kept.held, (kept.floor_epoch, kept.floor_version)),
            None => (row.wanted, row.held, (row.floor_epoch, row.floor_version)),
        };
        let wanted = wanted.and_then(mark).and_then(|mark| {
            Some(Wanted {
                mark,
                content: Arc::clone(contents.of_digest(&mark.digest)?),
                traceparent: Arc::from(""),
                offered: true,
            })
        });
        let held = held.and_then(mark);
        let in_force = held.and_then(|held| contents.of_digest(&held.digest).cloned());
        let nacked = (row.nacked_epoch, row.nacked_version);
        Ok(Self {
            labels: enrolled.over(&host),
            enrolled,
            host,
            enrolled_ms: row.enrolled_ms,
            seen_ms: row.seen_ms,
            revoked: row.revoked,
            hello: row.hello.map(Box::new),
            ungated: !row.gated,
            wanted,
            held,
            in_force,
            floor,
            effective: row.effective.map(Box::new),
            nack: row.nack.map(|nack| (nacked, Box::new(nack))),
            drain: row.drain,
            ..Self::new(0)
        })
    }
}
