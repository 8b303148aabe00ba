//! Puts names onto records: executable, command line, user and group, parent, container, systemd unit.
//!
//! In: [`NameObservation`]s (exec, fork, cgroup made) and [`Answer`]s to what it asks. Out: [`Ask`]s, and the `names` of
//! both owners of a record. Reads nothing itself. Whoever drives it learns all name events it has before it names.
//!
//! Invariants. A record gets the names of the process (pid, start) and of no other: what is shared with a parent or copied
//! from one is bound to what that parent ran at that moment. Each key is asked for once while it is cached, present or
//! absent, and absent stays absent and is counted. Every cache and the queue of asks have a limit.
//!
//! Which source counts: /proc for the executable while the process lives (exec may have been given a script, a symbolic
//! link or a relative path), exec's copy for the arguments (a process may overwrite its own), fork for children.
//! User names come from the list that the process sees ([`Scope`]). Of a process that was gone before anyone looked, that
//! is the list seen by others of its cgroup; a container's is never taken to be the host's.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use flowtilla_abi::CGROUP_PATH_MAX;
use lru::LruCache;

use crate::flow::record::FlowRecord;
use crate::observe::NameObservation;
use crate::owner::{Container, Names, Owner, Parent, Process, ProcessKey};
use crate::time::KernelTime;

mod account;
mod ask;
pub mod cgroup;
pub mod container;
mod place;
mod process;
pub mod redact;
pub mod unit;

pub use account::USER_FRESH;
use account::{Account, Accounts, Standing};
pub use ask::{Answer, Ask, ParentFacts, ProcessFacts, Scope};
use container::{ContainerAsk, ContainerCounts, ContainerId, ContainerNews, Containers};
pub use place::Whereabouts;
use place::{CgroupPath, Cgroups};
pub use process::{COMMAND_LINE_OCTETS_MAX, CommandLineMode};
use process::{Described, Entry, Lineage, Link, Program, Reading};

/// Processes remembered, those used last. About 1 KiB each.
///
/// At the bound the one unused for longest goes: a process that ended a moment ago cannot be read again, one that lives can.
/// Half of it forgets processes of a host with many services between two of their flows, so that they are read again;
/// double it, and the worst case is 16 MiB.
pub const PROCESSES_MAX_DEFAULT: usize = 8192;
/// Cgroups remembered. About 400 octets each.
///
/// A host has some hundreds; one with 500 pods a few thousand.
pub const CGROUPS_MAX_DEFAULT: usize = 8192;
/// Users and groups remembered, of the host and of all containers together. About 100 octets each.
pub const USERS_MAX_DEFAULT: usize = 4096;
/// Asks that wait to be polled. When it is full, naming goes on without and asks again with the next record.
pub const ASKS_MAX: usize = 4096;
/// What naming is allowed and how much it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamingOptions {
    /// How much of a command line is shown.
    pub command_line: CommandLineMode,
    /// Most processes, > 0.
    pub processes_max: usize,
    /// Most cgroups, > 0.
    pub cgroups_max: usize,
    /// Most users and groups, > 0.
    pub users_max: usize,
}

fn at_least_one(max: usize) -> NonZeroUsize {
    NonZeroUsize::new(max).unwrap_or(NonZeroUsize::MIN)
}

impl Default for NamingOptions {
    fn default() -> Self {
        Self {
            command_line: CommandLineMode::default(),
            processes_max: PROCESSES_MAX_DEFAULT,
            cgroups_max: CGROUPS_MAX_DEFAULT,
            users_max: USERS_MAX_DEFAULT,
        }
    }
}

/// Whether a record has all names it will get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum NamingState {
    /// Nothing more to come.
    Complete,
    /// Something was asked; the names so far are in the record. Name it again after the answers.
    Waiting,
}

/// What naming did, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamingCounts {
    /// Programs executed, as told.
    pub execs: u64,
    /// Forks, as told.
    pub forks: u64,
    /// Asks queued.
    pub asks: u64,
    /// Asks that found the queue full: tried again with the next record.
    pub asks_refused: u64,
    /// Processes gone before anyone looked.
    pub processes_gone: u64,
    /// Processes whose names were dropped, because events were lost and they may have executed something else.
    pub doubtful: u64,
    /// Descriptions made: one a process, and one for each change of its user, group or cgroup.
    pub described: u64,
    /// Of these, without an executable.
    pub executable_absent: u64,
    /// Of these, without a command line that the mode would allow.
    pub command_line_absent: u64,
    /// Of these, without a user name.
    pub user_absent: u64,
    /// Of these, without a group name.
    pub group_absent: u64,
    /// Of these, without a parent, though the process has one.
    pub parent_absent: u64,
    /// Of these, whose cgroup's path is not known: whether it is a container is open.
    pub cgroup_absent: u64,
    /// Of these, in a container whose name no runtime told.
    pub container_unnamed: u64,
}

/// Names of processes, and what is still to be found out.
pub struct Naming {
    options: NamingOptions,
    processes: LruCache<ProcessKey, Entry>,
    cgroups: Cgroups,
    containers: Containers,
    accounts: Accounts,
    asks: VecDeque<Ask>,
    generation: u64,
    epoch: u64,
    counts: NamingCounts,
    /// Whether a cgroup or a container became known since it was last asked.
    places_changed: bool,
}

impl Naming {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(options: NamingOptions) -> Self {
        Self {
            options,
            processes: LruCache::new(at_least_one(options.processes_max)),
            cgroups: Cgroups::new(options.cgroups_max),
            containers: Containers::new(),
            accounts: Accounts::new(options.users_max),
            asks: VecDeque::new(),
            generation: 0,
            epoch: 0,
            counts: NamingCounts::default(),
            places_changed: false,
        }
    }

    /// Takes in what the kernel told. Cheap: command lines are made when a flow needs them.
    pub fn learn(&mut self, seen: &NameObservation) {
        match seen {
            NameObservation::Exec {
                process,
                parent_start,
                path,
                arguments,
                cut,
            } => {
                self.counts.execs += 1;
                let before = self.processes.peek(&process.key).cloned();
                let program = Program::executed(
                    path.as_deref(),
                    arguments,
                    *cut,
                    process.comm,
                    before
                        .as_ref()
                        .filter(|before| before.epoch == self.epoch)
                        .and_then(|before| before.program.as_deref()),
                    self.options.command_line,
                );
                let parent = ProcessKey {
                    pid: process.parent_pid,
                    start: *parent_start,
                };
                let mut entry = self.fresh();
                // An ask that waits is answered with what the process is by then.
                if before.is_some_and(|before| before.reading == Reading::Asked) {
                    entry.reading = Reading::Asked;
                }
                entry.program = Some(Arc::new(program));
                entry.lineage = (parent.pid > 0 && parent != process.key).then(|| self.lineage(parent, None));
                entry.uid = Some(process.uid);
                entry.cgroup_id = process.cgroup_id;
                self.processes.put(process.key, entry);
            }
            NameObservation::Fork { parent, child } => self.forked(parent, *child),
            NameObservation::Cgroup { id, path } => {
                // A path of full length may have lost its end, and with it the container: it is asked for instead.
                if path.len() < CGROUP_PATH_MAX - 1 {
                    self.learn_cgroup(*id, path);
                    self.places_changed = true;
                }
            }
            NameObservation::CgroupGone { id } => self.cgroups.gone(*id),
        }
    }

    /// Its container may end before a flow of it is told: what it is called is asked for at once.
    fn learn_cgroup(&mut self, id: u64, path: &str) {
        let known = CgroupPath::known(path);
        if let CgroupPath::Known {
            container: Some(container),
            ..
        } = &known
            && let Some(id) = ContainerId::parse(&container.id)
        {
            self.containers.foresee(id, container.runtime);
        }
        self.cgroups.know(id, known);
    }

    /// Shows this much of command lines from now on; what was described before is described anew.
    pub fn set_command_line(&mut self, mode: CommandLineMode) {
        if self.options.command_line != mode {
            self.options.command_line = mode;
            self.processes.clear();
        }
    }

    /// Takes in that name events were lost: what was learnt until now is checked before it is used again.
    pub fn lost_events(&mut self) {
        self.epoch += 1;
    }

    /// So many sockets of runtimes are tried from here on, and may tell of containers; 0: containers go by their ids.
    pub fn set_container_sockets(&mut self, count: usize) {
        self.containers.set_sockets(count);
    }

    /// Takes in what a runtime told.
    pub fn learn_container(&mut self, news: ContainerNews) {
        self.places_changed |= matches!(news, ContainerNews::Known(_));
        self.containers.learn(news);
    }

    /// How it stands with names of containers.
    #[must_use]
    pub fn container_counts(&self) -> ContainerCounts {
        self.containers.counts()
    }

    /// The next container that nobody has told of. To be passed to the runtimes; no answer is due.
    pub fn poll_container_ask(&mut self) -> Option<ContainerAsk> {
        self.containers.poll_ask()
    }

    /// Has the containers of a record that is named later asked for, so that all that wait do so together.
    pub fn foresee_containers(&mut self, record: &FlowRecord, now: KernelTime) {
        if !self.containers.may_be_told() {
            return;
        }
        for owner in [&record.initiator.owner, &record.responder.owner] {
            if let Some(process) = owner.process.as_ref().filter(|_| !owner.is_remote())
                && let Some(CgroupPath::Known {
                    container: Some(container),
                    ..
                }) = self.cgroups.path(process.cgroup_id)
                && let Some(id) = ContainerId::parse(&container.id)
            {
                let _ = self.containers.look(id, container.runtime, now);
            }
        }
    }

    /// Puts names onto both owners of `record`.
    pub fn name(&mut self, record: &mut FlowRecord, now: KernelTime) -> NamingState {
        let initiator = self.name_owner(&mut record.initiator.owner, now);
        let responder = self.name_owner(&mut record.responder.owner, now);
        if initiator && responder {
            NamingState::Complete
        } else {
            NamingState::Waiting
        }
    }

    /// The next thing to find out. Each must be answered.
    pub fn poll_ask(&mut self) -> Option<Ask> {
        self.asks.pop_front()
    }

    /// Takes in what was found. An answer of another kind than its ask counts as "nothing".
    pub fn answer(&mut self, ask: Ask, answer: Answer) {
        match ask {
            Ask::Process(key) => self.process_answered(
                key,
                match answer {
                    Answer::Process(facts) => facts,
                    _ => None,
                },
            ),
            Ask::User { scope, uid } => self.accounts.answered(Account::User(scope, uid), named(answer)),
            Ask::Group { scope, gid } => self.accounts.answered(Account::Group(scope, gid), named(answer)),
            Ask::Cgroup { id, .. } => {
                let path = match answer {
                    Answer::Path(Some(path)) => CgroupPath::known(&path),
                    _ => CgroupPath::Absent,
                };
                self.cgroups.know(id, path);
                self.places_changed = true;
            }
        }
    }

    /// Where an owner is; nothing of one that is not on this host.
    #[must_use]
    pub fn whereabouts(&self, owner: &Owner) -> Whereabouts<'_> {
        let Some(process) = owner.process.as_ref().filter(|_| !owner.is_remote()) else {
            return Whereabouts::default();
        };
        match self.cgroups.peek(process.cgroup_id) {
            Some((path, container)) => self.place(Some(path), container),
            // Of what was described a while ago the container is in the names.
            None => {
                let names = owner.names.as_ref();
                self.place(None, names.and_then(|names| names.container.as_ref()))
            }
        }
    }

    /// Every cgroup that is there, as far as was told, and whose path is known; by its id.
    pub fn places(&self) -> impl Iterator<Item = (u64, Whereabouts<'_>)> {
        let place = |(id, path, container)| (id, self.place(Some(path), container));
        self.cgroups.known().map(place)
    }

    /// Where the processes of a cgroup are.
    #[must_use]
    pub fn place_of(&self, cgroup_id: u64) -> Option<Whereabouts<'_>> {
        let (path, container) = self.cgroups.peek(cgroup_id)?;
        Some(self.place(Some(path), container))
    }

    /// Whether a cgroup or a container became known, or is known otherwise, since this was last asked.
    pub fn take_places_changed(&mut self) -> bool {
        std::mem::take(&mut self.places_changed)
    }

    fn place<'a>(&'a self, cgroup: Option<&'a str>, container: Option<&Container>) -> Whereabouts<'a> {
        let facts = container.and_then(|container| self.containers.told(container));
        Whereabouts {
            cgroup,
            container: facts,
            unnamed: container.is_some() && facts.is_none(),
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn counts(&self) -> NamingCounts {
        self.counts
    }

    fn fresh(&mut self) -> Entry {
        self.generation += 1;
        Entry::fresh(self.generation, self.epoch)
    }

    fn forked(&mut self, parent: &Process, child: ProcessKey) {
        self.counts.forks += 1;
        let executed = |entry: &Entry| entry.program.is_some() && entry.origin.is_none();
        if parent.key == child || self.processes.peek(&child).is_some_and(executed) {
            return;
        }
        let lineage = self.lineage(parent.key, Some(parent));
        let mut entry = self.fresh();
        if let Some(known) = self.processes.peek(&parent.key) {
            // What a parent was read to be, its child is too.
            if known.reading == Reading::Read {
                entry.reading = Reading::Read;
            }
            entry.epoch = known.epoch;
            entry.program = known.program.clone();
            entry.scope = known.scope;
        }
        entry.origin = lineage.link;
        entry.uid = Some(parent.uid);
        entry.cgroup_id = parent.cgroup_id;
        entry.lineage = Some(lineage);
        self.processes.put(child, entry);
    }

    /// What is known about a parent at this moment. One that is older than the agent is asked for at once: it may
    /// execute something else before a child needs it.
    fn lineage(&mut self, key: ProcessKey, process: Option<&Process>) -> Lineage {
        if self.processes.peek(&key).is_none() {
            let mut entry = self.fresh();
            self.read(key, &mut entry.reading);
            self.processes.put(key, entry);
        }
        let known = self
            .processes
            .get_mut(&key)
            .expect("it is there, or was put there just now: the bound is not 0");
        if let Some(process) = process {
            known.uid = Some(process.uid);
            known.cgroup_id = process.cgroup_id;
        }
        Lineage {
            pid: key.pid,
            link: Some(Link {
                key,
                generation: known.generation,
                epoch: self.epoch,
            }),
            // After a loss it is open whether it still runs this.
            program: known
                .program
                .clone()
                .filter(|_| known.epoch == self.epoch && !known.doubtful),
            uid: known.uid,
            scope: known.scope,
            cgroup_id: known.cgroup_id,
        }
    }

    /// Puts names onto one owner, for whoever asks about it.
    pub fn name_end(&mut self, owner: &mut Owner, now: KernelTime) -> NamingState {
        if self.name_owner(owner, now) {
            NamingState::Complete
        } else {
            NamingState::Waiting
        }
    }

    /// Whether `owner` has all names it will get. Those of another host's process were told with it.
    fn name_owner(&mut self, owner: &mut Owner, now: KernelTime) -> bool {
        let Some(process) = owner.process.as_ref().filter(|_| !owner.is_remote()) else {
            return true;
        };
        if let Some(entry) = self.processes.get(&process.key)
            && let Some(described) = &entry.described
            && entry.epoch == self.epoch
            && (described.uid, described.gid, described.cgroup_id)
                == (process.uid, process.gid, process.cgroup_id)
            && self.containers.agree(described.names.container.as_ref(), now)
        {
            owner.names = Some(Arc::clone(&described.names));
            return true;
        }
        let (names, complete) = self.describe(process, now);
        owner.names = Some(names);
        complete
    }

    fn describe(&mut self, process: &Process, now: KernelTime) -> (Arc<Names>, bool) {
        let key = process.key;
        let mut entry = match self.processes.get(&key) {
            Some(entry) => entry.clone(),
            None => self.fresh(),
        };
        entry.cgroup_id = process.cgroup_id;
        if entry.epoch != self.epoch && entry.reading != Reading::Asked {
            entry.reading = Reading::NotAsked;
        }
        let mut waiting = self.read(key, &mut entry.reading);
        if entry.doubtful {
            let known = entry.program.as_ref().map(|program| program.comm);
            if known.is_some_and(|comm| comm != process.comm) {
                entry.program = None;
                entry.origin = None;
                self.counts.doubtful += 1;
            }
            entry.doubtful = false;
        }
        if entry.reading == Reading::Gone
            && entry.program.is_none()
            && let Some(origin) = entry.origin.filter(|origin| origin.epoch == self.epoch)
        {
            entry.program = self
                .linked(origin, &mut waiting)
                .and_then(|from| from.program.filter(|_| !from.doubtful));
        }
        let lineage = entry.lineage.clone().map(|lineage| {
            let from = lineage.link.and_then(|link| self.linked(link, &mut waiting));
            match from {
                Some(from) => Lineage {
                    program: from.program.filter(|_| !from.doubtful).or(lineage.program),
                    uid: from.uid.or(lineage.uid),
                    scope: from.scope.or(lineage.scope),
                    cgroup_id: from.cgroup_id,
                    ..lineage
                },
                None => lineage,
            }
        });
        let container = self.container(process, now, &mut waiting);
        if let Some(scope) = entry.scope {
            self.cgroups.saw(process.cgroup_id, scope);
        }
        let scope = entry
            .scope
            .or_else(|| {
                let of_parent = lineage
                    .as_ref()
                    .filter(|parent| parent.cgroup_id == process.cgroup_id)
                    .and_then(|parent| parent.scope);
                self.cgroups.scope(process.cgroup_id, of_parent)
            })
            .filter(|_| !matches!(entry.reading, Reading::NotAsked | Reading::Asked));
        let mode = self.options.command_line;
        let names = Names {
            executable: entry
                .program
                .as_ref()
                .and_then(|program| program.executable.clone()),
            command_line: entry
                .program
                .as_ref()
                .and_then(|program| program.command_line(mode))
                .map(str::to_owned),
            user: scope.and_then(|scope| self.account(Account::User(scope, process.uid), now, &mut waiting)),
            group: scope
                .and_then(|scope| self.account(Account::Group(scope, process.gid), now, &mut waiting)),
            parent: lineage.and_then(|lineage| self.parent(lineage, now, &mut waiting)),
            container: container.clone().flatten(),
            unit: self.unit(process.cgroup_id),
        };
        let names = Arc::new(names);
        entry.described = None;
        if !waiting {
            self.count(&names, process, container.is_none());
            entry.described = Some(Described {
                uid: process.uid,
                gid: process.gid,
                cgroup_id: process.cgroup_id,
                names: Arc::clone(&names),
            });
        }
        self.processes.put(key, entry);
        (names, !waiting)
    }

    /// The process a link means, read first if nobody has; `None` when it has executed something else since.
    fn linked(&mut self, link: Link, waiting: &mut bool) -> Option<Entry> {
        let entry = self.processes.get(&link.key)?;
        if entry.generation != link.generation {
            return None;
        }
        let mut entry = entry.clone();
        if entry.epoch != self.epoch && entry.reading != Reading::Asked {
            entry.reading = Reading::NotAsked;
        }
        *waiting |= self.read(link.key, &mut entry.reading);
        if let Some(cached) = self.processes.peek_mut(&link.key) {
            cached.reading = entry.reading;
        }
        Some(entry)
    }

    fn parent(&mut self, lineage: Lineage, now: KernelTime, waiting: &mut bool) -> Option<Parent> {
        let program = lineage.program.as_ref()?;
        let scope = lineage
            .scope
            .or_else(|| self.cgroups.scope(lineage.cgroup_id, None));
        let user = match (scope, lineage.uid) {
            (Some(scope), Some(uid)) => self.account(Account::User(scope, uid), now, waiting),
            _ => None,
        };
        Some(Parent {
            pid: lineage.pid,
            executable: program.label().to_owned(),
            uid: lineage.uid,
            user,
        })
    }

    /// Whether an answer about a process is still to come; asks when nobody did.
    fn read(&mut self, key: ProcessKey, reading: &mut Reading) -> bool {
        match reading {
            Reading::NotAsked => {
                if self.ask(Ask::Process(key)) {
                    *reading = Reading::Asked;
                }
                true
            }
            Reading::Asked => true,
            Reading::Read | Reading::Gone => false,
        }
    }

    fn ask(&mut self, ask: Ask) -> bool {
        if self.asks.len() >= ASKS_MAX {
            self.counts.asks_refused += 1;
            return false;
        }
        self.counts.asks += 1;
        self.asks.push_back(ask);
        true
    }

    fn process_answered(&mut self, key: ProcessKey, facts: Option<Box<ProcessFacts>>) {
        let mut entry = match self.processes.peek(&key) {
            Some(entry) => entry.clone(),
            None => self.fresh(),
        };
        match facts {
            Some(facts) => {
                let scope = facts.scope;
                entry.read(*facts, self.options.command_line);
                entry.reading = Reading::Read;
                entry.doubtful = false;
                self.cgroups.saw(entry.cgroup_id, scope);
            }
            None => {
                self.counts.processes_gone += 1;
                entry.reading = Reading::Gone;
                entry.doubtful |= entry.epoch != self.epoch;
                entry.described = None;
            }
        }
        entry.epoch = self.epoch;
        self.processes.put(key, entry);
    }

    /// The name of a user or group, as far as it is known.
    fn account(&mut self, account: Account, now: KernelTime, waiting: &mut bool) -> Option<String> {
        if account.scope() == Scope::Unreadable {
            return None;
        }
        let (name, standing) = self.accounts.look(account, now);
        let name = name.map(str::to_owned);
        *waiting |= standing != Standing::Settled;
        if standing == Standing::ToAsk && self.ask(Ask::from(account)) {
            self.accounts.asked(account, now);
        }
        name
    }

    /// The container of a process; the outer `None`: the path of its cgroup is not known.
    fn container(
        &mut self,
        process: &Process,
        now: KernelTime,
        waiting: &mut bool,
    ) -> Option<Option<Container>> {
        let id = process.cgroup_id;
        if id == 0 {
            return Some(None);
        }
        match self.cgroups.path(id) {
            Some(CgroupPath::Known { container, .. }) => {
                let mut container = container.clone();
                if let Some(container) = &mut container {
                    let (facts, waits) = self.containers.facts(container, now);
                    if let Some(facts) = facts {
                        facts.put_onto(container);
                    }
                    *waiting |= waits;
                }
                return Some(container);
            }
            Some(CgroupPath::Absent) => return None,
            Some(CgroupPath::Asked) => {}
            None => {
                let process = process.key;
                if self.ask(Ask::Cgroup { id, process }) {
                    self.cgroups.know(id, CgroupPath::Asked);
                }
            }
        }
        *waiting = true;
        None
    }

    /// The unit of a process that is in no container.
    fn unit(&mut self, cgroup: u64) -> Option<String> {
        match self.cgroups.path(cgroup)? {
            CgroupPath::Known {
                path,
                container: None,
            } => unit::unit(path).map(str::to_owned),
            CgroupPath::Known { .. } | CgroupPath::Absent | CgroupPath::Asked => None,
        }
    }

    fn count(&mut self, names: &Names, process: &Process, cgroup_absent: bool) {
        let counts = &mut self.counts;
        let line = self.options.command_line != CommandLineMode::None && names.command_line.is_none();
        counts.described += 1;
        counts.executable_absent += u64::from(names.executable.is_none());
        counts.command_line_absent += u64::from(line);
        counts.user_absent += u64::from(names.user.is_none());
        counts.group_absent += u64::from(names.group.is_none());
        counts.parent_absent += u64::from(names.parent.is_none() && process.parent_pid > 0);
        counts.cgroup_absent += u64::from(cgroup_absent);
        let unnamed = |container: &Container| container.name.is_none();
        counts.container_unnamed += u64::from(names.container.as_ref().is_some_and(unnamed));
    }
}

fn named(answer: Answer) -> Option<String> {
    match answer {
        Answer::Name(name) => name,
        Answer::Process(_) | Answer::Path(_) => None,
    }
}

#[cfg(test)]
mod tests;
