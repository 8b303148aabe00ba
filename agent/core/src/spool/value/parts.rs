//! The parts of a body in the form in which they are kept: postcard's varints and strings, in the order of the fields.
//!
//! These types are the format: a field that is added, moved or renumbered here is a new version. They borrow from what
//! they are made of, so that writing copies nothing but octets.

use std::sync::Arc;

use postcard::ser_flavors::Flavor;
use postcard::{Deserializer, Serializer, de_flavors::Slice};
use serde::{Deserialize, Serialize};

use super::ValueError;
use crate::flow::record::EndReason;
use crate::observe::TcpState;
use crate::owner::{
    COMM_OCTETS_MAX, Confidence, Container, Names, Owner, Parent, Pod, Process, ProcessKey, Runtime, Unknown,
};
use crate::time::KernelTime;

#[derive(Serialize, Deserialize)]
struct NamesPart<'a> {
    #[serde(borrow)]
    executable: Option<&'a str>,
    command_line: Option<&'a str>,
    user: Option<&'a str>,
    group: Option<&'a str>,
    parent: Option<ParentPart<'a>>,
    container: Option<ContainerPart<'a>>,
}

#[derive(Serialize, Deserialize)]
struct ParentPart<'a> {
    pid: u32,
    executable: &'a str,
    uid: Option<u32>,
    user: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct ContainerPart<'a> {
    id: &'a str,
    runtime: u8,
    name: Option<&'a str>,
}

/// What names have since version 3, behind the part above.
#[derive(Default, Serialize, Deserialize)]
struct AddedPart<'a> {
    #[serde(borrow)]
    pod: Option<PodPart<'a>>,
    unit: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct PodPart<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[derive(Serialize, Deserialize)]
struct OwnerPart<'a> {
    confidence: u8,
    #[serde(borrow)]
    process: Option<ProcessPart<'a>>,
    /// 0: none; n: the nth of the names.
    names: u32,
}

#[derive(Serialize, Deserialize)]
struct ProcessPart<'a> {
    pid: u32,
    start: u64,
    parent_pid: u32,
    uid: u32,
    gid: u32,
    cgroup_id: u64,
    comm: &'a str,
}

pub(super) fn put_names(out: &mut Vec<u8>, names: &Names) {
    let part = NamesPart {
        executable: names.executable.as_deref(),
        command_line: names.command_line.as_deref(),
        user: names.user.as_deref(),
        group: names.group.as_deref(),
        parent: names.parent.as_ref().map(|parent| ParentPart {
            pid: parent.pid,
            executable: &parent.executable,
            uid: parent.uid,
            user: parent.user.as_deref(),
        }),
        container: names.container.as_ref().map(|container| ContainerPart {
            id: &container.id,
            runtime: runtime_number(container.runtime),
            name: container.name.as_deref(),
        }),
    };
    put(out, &part);
    let pod = names
        .container
        .as_ref()
        .and_then(|container| container.pod.as_ref());
    let added = AddedPart {
        pod: pod.map(|pod| PodPart {
            namespace: &pod.namespace,
            name: &pod.name,
        }),
        unit: names.unit.as_deref(),
    };
    put(out, &added);
}

/// Reads names as a value of this version has them.
pub(super) fn take_names(from: &mut Source<'_>, version: u8) -> Result<Names, ValueError> {
    let part: NamesPart<'_> = take(from)?;
    let added: AddedPart<'_> = match version {
        1 | 2 => AddedPart::default(),
        _ => take(from)?,
    };
    // Only containers have pods.
    if part.container.is_none() && added.pod.is_some() {
        return Err(ValueError::Body);
    }
    let container = part.container.map(|container| {
        Ok::<_, ValueError>(Container {
            id: container.id.to_owned(),
            runtime: at(&RUNTIMES, container.runtime.into())?,
            name: container.name.map(str::to_owned),
            pod: added.pod.map(|pod| Pod {
                namespace: pod.namespace.to_owned(),
                name: pod.name.to_owned(),
            }),
        })
    });
    Ok(Names {
        executable: part.executable.map(str::to_owned),
        command_line: part.command_line.map(str::to_owned),
        user: part.user.map(str::to_owned),
        group: part.group.map(str::to_owned),
        parent: part.parent.map(|parent| Parent {
            pid: parent.pid,
            executable: parent.executable.to_owned(),
            uid: parent.uid,
            user: parent.user.map(str::to_owned),
        }),
        container: container.transpose()?,
        unit: added.unit.map(str::to_owned),
    })
}

/// `names`: 0 for none, n for the nth of the value's names.
pub(super) fn put_owner(out: &mut Vec<u8>, owner: &Owner, names: u32) {
    let part = OwnerPart {
        confidence: confidence_number(owner.confidence),
        process: owner.process.as_ref().map(|process| ProcessPart {
            pid: process.key.pid,
            start: process.key.start.0,
            parent_pid: process.parent_pid,
            uid: process.uid,
            gid: process.gid,
            cgroup_id: process.cgroup_id,
            comm: &process.comm,
        }),
        names,
    };
    put(out, &part);
}

pub(super) fn take_owner(from: &mut Source<'_>, names: &[Arc<Names>]) -> Result<Owner, ValueError> {
    let part: OwnerPart<'_> = take(from)?;
    let process = part.process.map(|process| {
        if process.comm.len() > COMM_OCTETS_MAX {
            return Err(ValueError::Body);
        }
        Ok(Process {
            key: ProcessKey {
                pid: process.pid,
                start: KernelTime(process.start),
            },
            parent_pid: process.parent_pid,
            uid: process.uid,
            gid: process.gid,
            cgroup_id: process.cgroup_id,
            comm: process.comm.into(),
        })
    });
    let names = match part.names {
        0 => None,
        n => Some(Arc::clone(names.get(n as usize - 1).ok_or(ValueError::Body)?)),
    };
    Ok(Owner {
        confidence: at(&CONFIDENCES, part.confidence.into())?,
        process: process.transpose()?,
        names,
    })
}

/// What a body is read from.
pub(super) type Source<'de> = Deserializer<'de, Slice<'de>>;

/// Reads one part; takes no memory of its own for parts that borrow.
pub(super) fn take<'de, T: Deserialize<'de>>(from: &mut Source<'de>) -> Result<T, ValueError> {
    T::deserialize(from).map_err(|_| ValueError::Body)
}

/// Appends one part.
pub(super) fn put<T: Serialize>(out: &mut Vec<u8>, part: &T) {
    part.serialize(&mut Serializer {
        output: Appended(out),
    })
    .expect("memory takes every part, and lengths are known");
}

struct Appended<'a>(&'a mut Vec<u8>);

impl Flavor for Appended<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// The variant with this number; numbers nobody gave are refused.
pub(super) fn at<T: Copy>(variants: &[T], number: u32) -> Result<T, ValueError> {
    variants.get(number as usize).copied().ok_or(ValueError::Body)
}

/// The last one is of version 2.
pub(super) const CONFIDENCES: [Confidence; 7] = [
    Confidence::Exact,
    Confidence::Inherited,
    Confidence::Backfilled,
    Confidence::Unknown(Unknown::Remote),
    Confidence::Unknown(Unknown::Kernel),
    Confidence::Unknown(Unknown::NotSeen),
    Confidence::Told,
];

/// Position in [`CONFIDENCES`].
pub(super) fn confidence_number(confidence: Confidence) -> u8 {
    match confidence {
        Confidence::Exact => 0,
        Confidence::Inherited => 1,
        Confidence::Backfilled => 2,
        Confidence::Unknown(Unknown::Remote) => 3,
        Confidence::Unknown(Unknown::Kernel) => 4,
        Confidence::Unknown(Unknown::NotSeen) => 5,
        Confidence::Told => 6,
    }
}

pub(super) const RUNTIMES: [Runtime; 6] = [
    Runtime::Docker,
    Runtime::Containerd,
    Runtime::CriO,
    Runtime::Podman,
    Runtime::Kubernetes,
    Runtime::Other,
];

/// Position in [`RUNTIMES`].
fn runtime_number(runtime: Runtime) -> u8 {
    match runtime {
        Runtime::Docker => 0,
        Runtime::Containerd => 1,
        Runtime::CriO => 2,
        Runtime::Podman => 3,
        Runtime::Kubernetes => 4,
        // Earlier versions read no other number, and nothing hangs on it in what is kept.
        Runtime::Other | Runtime::User => 5,
    }
}

pub(super) const REASONS: [EndReason; 9] = [
    EndReason::IdleTimeout,
    EndReason::ActiveTimeout,
    EndReason::EndOfFlow,
    EndReason::ForcedEnd,
    EndReason::LackOfResources,
    EndReason::Refused,
    EndReason::Reset,
    EndReason::TimedOut,
    EndReason::Unreachable,
];

/// Position in [`REASONS`], < 16.
pub(super) fn reason_number(reason: EndReason) -> u32 {
    match reason {
        EndReason::IdleTimeout => 0,
        EndReason::ActiveTimeout => 1,
        EndReason::EndOfFlow => 2,
        EndReason::ForcedEnd => 3,
        EndReason::LackOfResources => 4,
        EndReason::Refused => 5,
        EndReason::Reset => 6,
        EndReason::TimedOut => 7,
        EndReason::Unreachable => 8,
    }
}

pub(super) const STATES: [Option<TcpState>; 12] = [
    None,
    Some(TcpState::Established),
    Some(TcpState::SynSent),
    Some(TcpState::SynRecv),
    Some(TcpState::FinWait1),
    Some(TcpState::FinWait2),
    Some(TcpState::TimeWait),
    Some(TcpState::Close),
    Some(TcpState::CloseWait),
    Some(TcpState::LastAck),
    Some(TcpState::Listen),
    Some(TcpState::Closing),
];

/// Position in [`STATES`], < 16: the kernel's numbers, 0 for none.
pub(super) fn state_number(state: Option<TcpState>) -> u32 {
    match state {
        None => 0,
        Some(TcpState::Established) => 1,
        Some(TcpState::SynSent) => 2,
        Some(TcpState::SynRecv) => 3,
        Some(TcpState::FinWait1) => 4,
        Some(TcpState::FinWait2) => 5,
        Some(TcpState::TimeWait) => 6,
        Some(TcpState::Close) => 7,
        Some(TcpState::CloseWait) => 8,
        Some(TcpState::LastAck) => 9,
        Some(TcpState::Listen) => 10,
        Some(TcpState::Closing) => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (n, &reason) in (0..).zip(&REASONS) {
            assert_eq!(reason_number(reason), n);
        }
        for (n, &state) in (0..).zip(&STATES) {
            assert_eq!(state_number(state), n);
        }
        for (n, &runtime) in (0..).zip(&RUNTIMES) {
            assert_eq!(runtime_number(runtime), n);
        }
        for (n, &confidence) in (0..).zip(&CONFIDENCES) {
            assert_eq!(confidence_number(confidence), n);
        }
    }
}
