//! Several collectors of one exporter: probes of those that stand by, the change from one to another, who stands how.
//!
//! An exporter of one collector comes through here too, and finds nothing to do.

use flowtilla_agent_core::collector::failover::Group;
use flowtilla_agent_core::spool::Cursor;
use flowtilla_agent_core::time::KernelTime;
use tokio::task::{Id, JoinError};

use super::member::Member;
use super::probe::Probed;
use super::{Exporter, ExporterOptions, Interrupt, LEAVE_WITHIN};
use crate::clock;
use crate::status::{MemberState, MemberStatus};

/// The members of an exporter, and their group. The one whose marks the cursor has is in use first: what it took is at
/// risk with it only.
pub(super) fn of(options: &ExporterOptions, cursor: &Cursor) -> (Vec<Member>, Group) {
    let count = match options.failover {
        Some(_) => options.collectors.len(),
        None => 1,
    };
    let mut members: Vec<_> = options.collectors[..count]
        .iter()
        .zip(0..)
        .map(|(collector, n)| Member::new(collector.clone(), options.seed.wrapping_add(n)))
        .collect();
    let has_marks = |member: &Member| cursor.member.as_deref() == Some(member.collector.name.as_str());
    let first = members.iter().position(has_marks).unwrap_or(0);
    members[first].state = MemberState::InUse;
    let group = match options.failover {
        Some(times) => Group::new(count, first, times, options.seed, clock::kernel_now()),
        None => Group::alone(),
    };
    (members, group)
}

/// How each stands; nothing when there is one only.
pub(super) fn statuses(members: &[Member]) -> Vec<MemberStatus> {
    match members {
        [_] => Vec::new(),
        members => members.iter().map(Member::status).collect(),
    }
}

/// Makes `told` say how each stands; whether there was news.
pub(super) fn tell(members: &[Member], told: &mut [MemberStatus]) -> bool {
    let pairs = members.iter().zip(told);
    pairs.fold(false, |news, (member, told)| member.tell(told) || news)
}

impl Exporter {
    /// When the group has something to do.
    pub(super) fn group_timeout(&self) -> Option<KernelTime> {
        match self.stopping {
            Some(_) => None,
            // The change that is due waits for it.
            None => self.leave_by.or_else(|| self.group.poll_timeout()),
        }
    }

    /// Begins the probes that are due, and says which change is. An exporter that is to end begins neither.
    pub(super) fn check_group(&mut self) -> Result<(), Interrupt> {
        let now = clock::kernel_now();
        let change = match self.stopping {
            Some(_) => None,
            None => {
                while let Some(member) = self.group.poll_probe(now) {
                    self.members[member].start_probe(&mut self.probes);
                }
                self.group.poll_change(now)
            }
        };
        let Some(change) = change else {
            if self.leave_by.take().is_some() {
                self.core.handle_hold(false);
            }
            return Ok(());
        };
        if change.orderly && self.core.has_on_the_way() {
            self.core.handle_hold(true);
            if *self.leave_by.get_or_insert(now.after(LEAVE_WITHIN)) > now {
                return Ok(());
            }
        }
        Err(Interrupt::Change(change.to))
    }

    /// A probe has ended.
    pub(super) fn handle_probed(&mut self, ended: Result<(Id, Probed), JoinError>) {
        let (id, probed) = ended.unwrap_or_else(|error| (error.id(), Err("its probe failed".into())));
        let is_its = |member: &Member| member.probe.as_ref().is_some_and(|probe| probe.id() == id);
        // None: it was called off.
        if let Some(index) = self.members.iter().position(is_its) {
            self.group
                .handle_probed(index, probed.is_ok(), clock::kernel_now());
            self.members[index].handle_probed(probed);
        }
    }

    /// Feeds another member from now on. There is no connection any more.
    pub(super) fn change(&mut self, to: usize) {
        let now = clock::kernel_now();
        let from = self.group.in_use();
        tracing::warn!(
            from = %self.members[from].collector.name,
            to = %self.members[to].collector.name,
            progress = ?self.core.progress(now),
            "changes to another collector"
        );
        self.members[from].handle_left(self.core.progress(now));
        self.members[to].handle_chosen();
        self.group.handle_changed(to, now);
        self.leave_by = None;
        self.source.forget();
        self.core
            .handle_changed(&self.members[to].core_options(&self.options));
        // Before anything is sent to it.
        self.keep(self.cursor());
        let endpoint = self.members[to].collector.endpoint.to_string();
        self.status.send_modify(|status| status.endpoint = endpoint);
        self.publish();
    }

    /// The cursor, with the name of the member whose marks it has.
    pub(super) fn cursor(&self) -> Cursor {
        let used = &self.members[self.group.in_use()].collector.name;
        Cursor {
            member: (self.members.len() > 1).then(|| used.to_string()),
            ..self.core.cursor()
        }
    }

    /// Gives the member in use its part of all messages that were sent.
    pub(super) fn count_messages(&mut self, all: u64) {
        let in_use = self.group.in_use();
        let others = self.members.iter().enumerate().filter(|&(n, _)| n != in_use);
        let elsewhere: u64 = others.map(|(_, member)| member.messages).sum();
        self.members[in_use].messages = all - elsewhere;
    }
}
