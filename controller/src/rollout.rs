//! Brings one change to its agents: wave after wave, each only when the one before is well; else back again.
//!
//! In: agents that come, answer, leave, and their health, with the time. Out: who is to have the change
//! ([`Rollout::admitted`]), what has changed and must be written down before it is told ([`Rollout::take_changed`]), and
//! how it stands. Reads no clock, does no IO, knows no versions: whoever drives it makes offers of its word.
//!
//! Life: running (offers of a wave are out) → soaking (all of them answered, their health is watched) → the next wave, or
//! done. What fails goes back: rolling back → rolled back. The first wave needs one ack; agents that are not connected when
//! their wave begins are away, no failures, and get the change when they come. A later wave of which nobody comes for a soak is
//! passed over, and when nobody is there of all that are left, it is done: it ends although hosts are switched off for good.
//! Agents that join belong to the last wave.
//!
//! Invariants: an agent is admitted only when its wave has begun, and none is while it goes back or has gone back; a wave
//! begins only when the one before was watched for a whole soak by a controller that did not restart meanwhile, or had nobody
//! to be watched for as long; the [`Head`] and the [`Member`]s are the whole state, the rest is found again after a restart.
//! Source: design section 6.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use flowtilla_proto::policy;
use serde::{Deserialize, Serialize};

pub use self::gates::{AGENTS_NAMED_MAX, Failure, Gate, JUDGED_AFTER_MS, PEERS_MIN, STARTS_MAX, Terms};
pub use self::health::{ENDS_MIN, Figures, HealthWindows, LOSSES_MIN, Moment, SLOTS_MAX};
pub use self::trial::{Subject, SubjectPart, Verdict, judge};

mod gates;
mod health;
#[cfg(test)]
pub(crate) mod host;
mod trial;
mod view;
mod watch;
mod waves;

/// How long agents have to come back after a restart of the controller before their silence counts, in milliseconds.
///
/// All of ten thousand are back within a minute. Half of it takes a storm for a death; double it, and a wave that died
/// while the controller was away is noticed late.
pub const RESTART_GRACE_MS: u64 = 90_000;

/// Longest time between two looks at the health of those that have changed, in milliseconds; a soak has 20 of them at
/// least.
///
/// A heartbeat. Half of it looks at the same figures twice; double it, and a broken wave runs on for longer.
pub const LOOK_MS_MAX: u64 = 5_000;

/// Longest time between two looks at those that are told to go back, in milliseconds.
///
/// What a person takes for at once. Half of it looks twice as often at ten thousand agents; double it, and `--wait` lags.
pub const LOOK_BACK_MS: u64 = 250;

/// What of a rollout is not about one agent. Written down as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the rollout.
    pub id: u64,
    /// Revision of the objects that it brings.
    pub revision: u64,
    /// Name of the policy whose terms it follows: the one that its agents get, or lose.
    pub policy: String,
    /// Its agents lose the policy, and get none.
    #[serde(default)]
    pub loss: bool,
    /// Its terms.
    pub terms: Terms,
    /// Waves that have begun.
    pub wave: u32,
    /// Waves that there are.
    pub waves: u32,
    /// How it stands.
    pub state: State,
    /// When it began.
    pub began: Moment,
    /// When the wave under way began.
    pub wave_began: Moment,
    /// When it ended.
    pub ended: Option<Moment>,
    /// Why it went back.
    pub failures: Vec<Failure>,
}

/// How a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Offers of the wave are out.
    Running,
    /// All of the wave answered; its health is watched.
    Soaking {
        /// Since when; a restart of the controller begins anew.
        since: Moment,
    },
    /// An operator holds it: no agent more gets the change, and nothing is judged but refusals.
    Paused,
    /// Every agent that is there has the change, and was well for a soak.
    Done,
    /// Agents are told to go back.
    RollingBack {
        /// Since when.
        since: Moment,
    },
    /// No agent is to have the change.
    RolledBack,
    /// A newer one took its place.
    Superseded,
}

/// One agent's part. Written down as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its wave, from 1.
    pub wave: u32,
    /// How it stands.
    pub part: Part,
    /// Its last soak before the change.
    pub before: Option<Figures>,
    /// It has said goodbye since it acked, and has not come back: its silence means nothing.
    pub left: bool,
    /// Why it refused.
    pub reason: String,
}

/// How an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// Its wave has not begun.
    Waiting,
    /// It is not there, and gets the change when it comes.
    Away,
    /// Offered, no answer yet.
    Offered {
        /// Since when.
        since: Moment,
    },
    /// The change is in force.
    Acked {
        /// Since when.
        at: Moment,
    },
    /// It refused the change, or to go back.
    Nacked,
    /// It is to go back, no answer yet.
    TakingBack,
    /// It has what it had before.
    TakenBack,
}

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The change.
    Change,
    /// What the agent had before it, offered again.
    Before,
}

/// What must be written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Whether the head has changed.
    pub head: bool,
    /// Agents whose part has changed, or that are no longer in it.
    pub members: BTreeSet<String>,
}

/// Why a rollout cannot be steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SteerError {
    /// It goes on no longer.
    #[error("the rollout is over, or goes back")]
    Over,
    /// It is held already.
    #[error("the rollout is paused already")]
    Paused,
    /// Nobody holds it.
    #[error("the rollout is not paused")]
    NotPaused,
}

/// One change on its way.
#[derive(Debug)]
pub struct Rollout {
    head: Head,
    members: BTreeMap<String, Member>,
    connected: HashSet<String>,
    /// Offers that are out.
    offered: usize,
    /// Agents that are told to go back.
    taking_back: usize,
    /// Acks of each wave, from 1.
    acked: Vec<usize>,
    /// Before this time no silence counts, and no soak has begun.
    patience: Moment,
    /// What is watched is watched by this controller since then.
    watched_from: Moment,
    /// The last soak, before the wave under way, of those that had not changed.
    peers_before: HashMap<String, Figures>,
    waits_for: String,
    next_look: Moment,
    dirty: bool,
    changed: Changed,
}

impl Rollout {
    /// A rollout to `agents`, each with whether it is connected. Nobody is admitted before [`Self::handle_timeout`].
    #[must_use]
    pub fn new(
        id: u64,
        revision: u64,
        of: &policy::Policy,
        agents: impl IntoIterator<Item = (String, bool)>,
        now: Moment,
    ) -> Self {
        let agents: Vec<(String, bool)> = agents.into_iter().collect();
        let connected = (agents.iter())
            .filter(|(_, connected)| *connected)
            .map(|(agent, _)| agent.clone())
            .collect();
        let (assigned, waves) = waves::assign(id, &of.rollout.waves, agents);
        let head = Head {
            id,
            revision,
            policy: of.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            loss: false,
            terms: Terms::from(&of.rollout),
            wave: 0,
            waves,
            state: State::Running,
            began: now,
            wave_began: now,
            ended: None,
            failures: Vec::new(),
        };
        let members = assigned
            .into_iter()
            .map(|(agent, wave)| (agent, Member::waiting(wave)))
            .collect();
        let mut rollout = Self::made(head, members, now);
        rollout.connected = connected;
        rollout.changed = Changed {
            head: true,
            members: rollout.members.keys().cloned().collect(),
        };
        rollout
    }

    /// The same, for agents that lose the policy, and get none.
    #[must_use]
    pub fn of_loss(mut self) -> Self {
        self.head.loss = true;
        self
    }

    /// The rollout that was written down. Nobody is connected; a soak begins anew.
    #[must_use]
    pub fn restore(head: Head, members: BTreeMap<String, Member>, now: Moment) -> Self {
        let mut rollout = Self::made(head, members, now);
        rollout.patience = Moment(now.0.saturating_add(RESTART_GRACE_MS));
        rollout
    }

    fn made(head: Head, members: BTreeMap<String, Member>, now: Moment) -> Self {
        let mut rollout = Self {
            acked: vec![0; head.waves as usize + 1],
            head,
            members: BTreeMap::new(),
            connected: HashSet::new(),
            offered: 0,
            taking_back: 0,
            patience: Moment(0),
            watched_from: now,
            peers_before: HashMap::new(),
            waits_for: String::new(),
            next_look: now,
            dirty: true,
            changed: Changed::default(),
        };
        for member in members.values() {
            rollout.count(member, 1);
        }
        rollout.members = members;
        rollout
    }

    /// What is not about one agent.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Each agent's part.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    /// Whether it goes on: running, soaking or paused.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        matches!(
            self.head.state,
            State::Running | State::Soaking { .. } | State::Paused
        )
    }

    /// Whether this agent is to have the change.
    #[must_use]
    pub fn admitted(&self, agent: &str) -> bool {
        let back = matches!(self.head.state, State::RollingBack { .. } | State::RolledBack);
        let admitted = |part| !matches!(part, Part::Waiting | Part::TakingBack | Part::TakenBack);
        !back
            && self
                .members
                .get(agent)
                .is_some_and(|member| admitted(member.part))
    }

    /// What it waits for, when that is out of the ordinary: one sentence, or empty.
    #[must_use]
    pub fn waits_for(&self) -> &str {
        &self.waits_for
    }

    /// What has changed since the last call. To be written down before anybody is told of it.
    pub fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// An agent is connected. When it is admitted it is offered the change.
    pub fn connected(&mut self, agent: &str, windows: &HealthWindows, now: Moment) {
        self.connected.insert(agent.to_owned());
        let Some(member) = self.members.get(agent) else {
            return;
        };
        match member.part {
            Part::Away if self.goes_on() || self.head.state == State::Done => self.offer(agent, windows, now),
            // It begins again, and is watched again.
            Part::Acked { .. } if member.left => self.set(agent, |member| {
                member.left = false;
                member.part = Part::Acked { at: now };
            }),
            _ => {}
        }
    }

    /// An agent is not connected any more. `on_purpose`: it said goodbye.
    pub fn disconnected(&mut self, agent: &str, on_purpose: bool) {
        self.connected.remove(agent);
        self.dirty |= matches!(self.head.state, State::RollingBack { .. });
        let Some(member) = self.members.get(agent).filter(|_| on_purpose) else {
            return;
        };
        match member.part {
            Part::Acked { .. } if !member.left => self.set(agent, |member| member.left = true),
            // One that dies of the change does not say goodbye: it stays offered, and must answer in time.
            Part::Offered { .. } => self.set(agent, |member| member.part = Part::Away),
            _ => {}
        }
    }

    /// An agent that was not there when the rollout began: it belongs to the last wave, so that what nobody has proven does not
    /// come to it first; or, when it is done, has the change at once.
    pub fn joined(&mut self, agent: &str, windows: &HealthWindows, now: Moment) {
        let open = self.goes_on() || self.head.state == State::Done;
        if !open || self.members.contains_key(agent) {
            return;
        }
        self.head.waves = self.head.waves.max(1);
        let wave = self.head.waves;
        self.acked.resize(self.head.waves as usize + 1, 0);
        self.members.insert(agent.to_owned(), Member::waiting(wave));
        self.changed.head = true;
        self.changed.members.insert(agent.to_owned());
        let due = self.head.wave == wave && self.head.state != State::Paused;
        if due || self.head.state == State::Done {
            self.admit(agent, windows, now);
        }
        self.dirty = true;
    }

    /// An agent that there is no longer.
    pub fn removed(&mut self, agent: &str) {
        self.connected.remove(agent);
        self.peers_before.remove(agent);
        if let Some(member) = self.members.remove(agent) {
            self.count(&member, -1);
            self.changed.members.insert(agent.to_owned());
            self.dirty = true;
        }
    }

    /// An agent has in force what it was offered.
    pub fn acked(&mut self, agent: &str, content: Content, now: Moment) {
        let Some(member) = self.members.get(agent) else {
            return;
        };
        match (content, member.part) {
            (Content::Change, Part::Away | Part::Offered { .. } | Part::Nacked) if self.admitted(agent) => {
                self.set(agent, |member| {
                    member.part = Part::Acked { at: now };
                    member.reason.clear();
                });
            }
            (Content::Before, Part::TakingBack | Part::Nacked) if !self.admitted(agent) => {
                self.set(agent, |member| member.part = Part::TakenBack);
            }
            _ => {}
        }
    }

    /// An agent refused what it was offered. While the rollout goes on, it goes back at once.
    pub fn nacked(&mut self, agent: &str, content: Content, reason: &str, now: Moment) {
        let Some(member) = self.members.get(agent) else {
            return;
        };
        let breach = gates::Breach::said(Gate::Nack, reason);
        let noted = breach.reason.clone();
        match (content, member.part) {
            (Content::Change, Part::Away | Part::Offered { .. } | Part::Acked { .. } | Part::Nacked)
                if self.admitted(agent) =>
            {
                self.set(agent, |member| {
                    member.part = Part::Nacked;
                    member.reason = noted;
                });
                if self.goes_on() {
                    self.go_back(vec![(agent.to_owned(), breach)], now);
                }
            }
            // It refused while others had stopped the rollout: it is at fault too.
            (Content::Change, Part::TakingBack) if member.reason != noted => {
                self.set(agent, |member| member.reason = noted);
                gates::add_agent(&mut self.head.failures, Gate::Nack, agent);
                self.changed.head = true;
            }
            (Content::Before, Part::TakingBack) => self.set(agent, |member| {
                member.part = Part::Nacked;
                member.reason = noted;
            }),
            _ => {}
        }
    }

    /// Holds it. Agents keep what they have; those that were admitted and come now get the change.
    ///
    /// # Errors
    ///
    /// [`SteerError`].
    pub fn pause(&mut self) -> Result<(), SteerError> {
        match self.head.state {
            State::Running | State::Soaking { .. } => {
                self.enter(State::Paused);
                Ok(())
            }
            State::Paused => Err(SteerError::Paused),
            _ => Err(SteerError::Over),
        }
    }

    /// Lets it go on. The soak of the wave begins anew.
    ///
    /// # Errors
    ///
    /// [`SteerError`].
    pub fn resume(&mut self, now: Moment) -> Result<(), SteerError> {
        match self.head.state {
            State::Paused => {
                self.enter(State::Running);
                self.patience = self.patience.max(now);
                self.watched_from = now;
                Ok(())
            }
            State::Running | State::Soaking { .. } => Err(SteerError::NotPaused),
            _ => Err(SteerError::Over),
        }
    }

    /// Stops it, and takes it back. `by`: who wants it.
    ///
    /// # Errors
    ///
    /// [`SteerError`].
    pub fn abort(&mut self, by: &str, now: Moment) -> Result<(), SteerError> {
        if !self.goes_on() {
            return Err(SteerError::Over);
        }
        self.go_back(vec![(String::new(), gates::Breach::said(Gate::Abort, by))], now);
        Ok(())
    }

    /// A newer change takes its place. Agents keep what they have until that one says otherwise.
    pub fn supersede(&mut self, now: Moment) {
        if self.head.ended.is_none() {
            self.enter(State::Superseded);
            self.head.ended = Some(now);
        }
    }

    /// When to call [`Self::handle_timeout`]; `None`: not before something comes in.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        match self.head.state {
            _ if self.dirty && self.head.ended.is_none() => Some(Moment(0)),
            State::Running | State::Soaking { .. } | State::RollingBack { .. } => Some(self.next_look),
            State::Paused | State::Done | State::RolledBack | State::Superseded => None,
        }
    }

    /// Looks at those that have changed, and goes on, or back.
    pub fn handle_timeout(&mut self, windows: &HealthWindows, now: Moment) {
        self.dirty = false;
        // Without a soak, acks that are there already let wave follow upon wave.
        for _ in 0..=self.head.waves {
            if !self.advance(windows, now) {
                break;
            }
        }
        let look = match (self.head.state, self.head.terms.soak_ms) {
            (State::RollingBack { .. }, _) => LOOK_BACK_MS,
            (_, 0) => LOOK_MS_MAX,
            (_, soak_ms) => (soak_ms / 20).clamp(1, LOOK_MS_MAX),
        };
        self.next_look = Moment(now.0.saturating_add(look));
        let end = self.soak_until();
        if matches!(self.head.state, State::Soaking { .. }) && end > now {
            self.next_look = self.next_look.min(end);
        }
    }

    /// One step. Whether there may be another at once.
    fn advance(&mut self, windows: &HealthWindows, now: Moment) -> bool {
        match self.head.state {
            State::Running if self.head.wave == 0 => {
                self.begin_wave(windows, now);
                self.head.ended.is_none()
            }
            State::Running | State::Soaking { .. } => {
                let breaches = self.look(windows, now);
                if !breaches.is_empty() {
                    self.go_back(breaches, now);
                    return false;
                }
                self.go_on(windows, now)
            }
            State::RollingBack { since } => {
                self.finish_going_back(since, now);
                false
            }
            State::Paused | State::Done | State::RolledBack | State::Superseded => false,
        }
    }

    fn go_on(&mut self, windows: &HealthWindows, now: Moment) -> bool {
        let wave = self.head.wave;
        self.admit_waiting(windows, now);
        if self.offered > 0 {
            self.say(String::new());
            return false;
        }
        let empty =
            self.acked[wave as usize] == 0 && !self.members.values().any(|member| member.wave == wave);
        if self.acked[wave as usize] == 0 && !empty {
            return self.pass_over(windows, now);
        }
        let soaked = match self.head.state {
            _ if empty || self.head.terms.soak_ms == 0 => true,
            State::Soaking { .. } => now >= self.soak_until() && self.seen_enough(windows, now),
            _ => {
                self.say(String::new());
                self.enter(State::Soaking { since: now });
                false
            }
        };
        if !soaked {
            return false;
        }
        self.say(String::new());
        if wave < self.head.waves {
            self.begin_wave(windows, now);
            return true;
        }
        self.enter(State::Done);
        self.head.ended = Some(now);
        false
    }

    /// Nobody of the wave under way is there. Whether another wave has begun.
    fn pass_over(&mut self, windows: &HealthWindows, now: Moment) -> bool {
        let wave = self.head.wave;
        if self.acked.iter().all(|&acks| acks == 0) {
            self.say(format!(
                "no agent of wave {wave} is there; the wave goes on when one has come"
            ));
            return false;
        }
        let later =
            |agent: &String, member: &Member| member.part == Part::Waiting && self.connected.contains(agent);
        let others = self.members.iter().any(|(agent, member)| later(agent, member));
        let from = self.soak_from().max(self.patience);
        let until = match others {
            true => Moment(from.0.saturating_add(self.head.terms.soak_ms)),
            false => self.patience,
        };
        if now < until {
            self.say(format!(
                "no agent of wave {wave} is there; the next wave begins when one has come, or when none has for a soak"
            ));
            return false;
        }
        self.say(String::new());
        if others {
            self.begin_wave(windows, now);
            return true;
        }
        let rest = (self.members.iter()).filter(|(_, member)| member.part == Part::Waiting);
        let rest: Vec<String> = rest.map(|(agent, _)| agent.clone()).collect();
        for agent in rest {
            self.set(&agent, |member| member.part = Part::Away);
        }
        self.enter(State::Done);
        self.head.ended = Some(now);
        false
    }

    fn begin_wave(&mut self, windows: &HealthWindows, now: Moment) {
        if self.head.wave == self.head.waves {
            self.enter(State::Done);
            self.head.ended = Some(now);
            return;
        }
        self.enter(State::Running);
        self.changed.head = true; // Also when the wave before had no soak: the state is the same then.
        self.head.wave += 1;
        self.head.wave_began = now;
        self.note_peers(windows);
        self.admit_waiting(windows, now);
    }

    /// Admits those whose wave has begun.
    fn admit_waiting(&mut self, windows: &HealthWindows, now: Moment) {
        let wave = self.head.wave;
        let due: Vec<String> = (self.members.iter())
            .filter(|(_, member)| member.wave <= wave && member.part == Part::Waiting)
            .map(|(agent, _)| agent.clone())
            .collect();
        for agent in due {
            self.admit(&agent, windows, now);
        }
    }

    fn admit(&mut self, agent: &str, windows: &HealthWindows, now: Moment) {
        if self.connected.contains(agent) {
            self.offer(agent, windows, now);
        } else {
            self.set(agent, |member| member.part = Part::Away);
        }
    }

    fn offer(&mut self, agent: &str, windows: &HealthWindows, now: Moment) {
        let before = windows.before(agent, self.head.terms.soak_ms);
        self.set(agent, |member| {
            member.part = Part::Offered { since: now };
            member.before = before;
        });
    }

    fn go_back(&mut self, breaches: Vec<(String, gates::Breach)>, now: Moment) {
        self.head.failures = gates::failures(breaches);
        self.say(String::new());
        self.enter(State::RollingBack { since: now });
        let agents: Vec<String> = self.members.keys().cloned().collect();
        for agent in agents {
            self.set(&agent, |member| match member.part {
                Part::Offered { .. } | Part::Acked { .. } | Part::Nacked => member.part = Part::TakingBack,
                Part::Away => member.part = Part::TakenBack,
                Part::Waiting | Part::TakingBack | Part::TakenBack => {}
            });
        }
    }

    /// Ends when all that are there have gone back, or had the time to. Those that are not get it when they come.
    fn finish_going_back(&mut self, since: Moment, now: Moment) {
        let began = since.max(self.watched_from).max(self.patience);
        let late = now.0 >= began.0.saturating_add(self.head.terms.ack_timeout_ms);
        let there = || {
            (self.members.iter())
                .any(|(agent, member)| member.part == Part::TakingBack && self.connected.contains(agent))
        };
        if self.taking_back == 0 || late || now >= self.patience && !there() {
            self.enter(State::RolledBack);
            self.head.ended = Some(now);
        }
    }

    /// When the soak ends that is under way.
    fn soak_until(&self) -> Moment {
        Moment(self.soak_from().0.saturating_add(self.head.terms.soak_ms))
    }

    /// Since when this controller watches the soak that is under way.
    fn soak_from(&self) -> Moment {
        match self.head.state {
            State::Soaking { since } => since.max(self.watched_from),
            _ => self.head.wave_began.max(self.watched_from),
        }
    }

    fn enter(&mut self, state: State) {
        if self.head.state != state {
            self.head.state = state;
            self.changed.head = true;
            self.dirty = true;
        }
    }

    fn say(&mut self, waits_for: String) {
        if self.waits_for != waits_for {
            self.waits_for = waits_for;
            self.changed.head = true;
        }
    }

    /// Changes one agent's part, and all that is counted of it.
    fn set(&mut self, agent: &str, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.members.get_mut(agent) else {
            return;
        };
        let before = member.clone();
        change(member);
        if *member == before {
            return;
        }
        let after = member.clone();
        self.count(&before, -1);
        self.count(&after, 1);
        self.changed.members.insert(agent.to_owned());
        // Answers only matter when the last one is there: ten thousand of them are not looked at one by one.
        self.dirty |= match self.head.state {
            State::RollingBack { .. } => self.taking_back == 0,
            _ => self.offered == 0,
        };
    }

    fn count(&mut self, member: &Member, by: isize) {
        let wave = member.wave as usize;
        let counter = match member.part {
            Part::Offered { .. } => &mut self.offered,
            Part::TakingBack => &mut self.taking_back,
            Part::Acked { .. } => &mut self.acked[wave],
            Part::Waiting | Part::Away | Part::Nacked | Part::TakenBack => return,
        };
        *counter = counter.saturating_add_signed(by);
    }
}

impl Member {
    fn waiting(wave: u32) -> Self {
        Self {
            wave,
            part: Part::Waiting,
            before: None,
            left: false,
            reason: String::new(),
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
