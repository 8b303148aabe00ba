//! One end of a flow as two agents tell it each other: questions, and ends from and to owners.
//!
//! What another host says is data: bounded here, made harmless where it is written.

use std::sync::Arc;

use flowtilla_proto::wire::session;

use super::lists::address;
use crate::flow::record::Protocol;
use crate::observe::Endpoint;
use crate::owner::{Confidence, Container, Names, Owner, Parent, Pod, Process, ProcessKey, Runtime};
use crate::time::KernelTime;

/// Most octets of a path or a command line that are taken; the rest is cut. Two owners must fit one value of the spool.
pub const LONG_TEXT_OCTETS_MAX: usize = 1024;

/// Most octets of any other name that are taken.
pub const TEXT_OCTETS_MAX: usize = 128;

/// Most octets of a pod's name that are taken: one of Kubernetes has at most 253.
pub const POD_OCTETS_MAX: usize = 256;

/// A question about an end of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its number, which the answer repeats.
    pub id: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The end that is asked about.
    pub near: Endpoint,
    /// The end that asks.
    pub peer: Endpoint,
}

/// Why a question is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// An address has another length than 4 or 16.
    #[error("{field} has {octets} octets, not 4 or 16")]
    Address {
        /// `address` or `peer_address`.
        field: &'static str,
        /// How many.
        octets: usize,
    },
    /// A port is 0 or beyond 65,535.
    #[error("{field} is {port}, not 1 to 65535")]
    Port {
        /// `port` or `peer_port`.
        field: &'static str,
        /// What it is.
        port: u32,
    },
    /// Neither TCP nor UDP.
    #[error("protocol is {0}, not 6 or 17")]
    Protocol(u32),
}

impl Asked {
    /// Reads a question.
    ///
    /// # Errors
    /// Each [`QuestionError`].
    pub fn parse(wire: &session::Question) -> Result<Self, QuestionError> {
        let end = |octets: &[u8], port: u32, fields: (&'static str, &'static str)| {
            let address = address(octets).ok_or(QuestionError::Address {
                field: fields.0,
                octets: octets.len(),
            })?;
            let port = u16::try_from(port).ok().filter(|&port| port > 0);
            let port = port.ok_or(QuestionError::Port {
                field: fields.1,
                port: match fields.1 {
                    "port" => wire.port,
                    _ => wire.peer_port,
                },
            })?;
            Ok(Endpoint { address, port })
        };
        Ok(Self {
            id: wire.id,
            protocol: match wire.protocol {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                other => return Err(QuestionError::Protocol(other)),
            },
            near: end(&wire.address, wire.port, ("address", "port"))?,
            peer: end(&wire.peer_address, wire.peer_port, ("peer_address", "peer_port"))?,
        })
    }

    /// The answer. `owner` was named under this agent's own policy; `None`: not known.
    #[must_use]
    pub fn answer(&self, owner: Option<&Owner>, host: &str) -> session::Answer {
        session::Answer {
            id: self.id,
            end: owner.and_then(|owner| end_of(owner, host)),
        }
    }
}

/// What an agent tells of its own end; `None`: there is no process to tell of.
fn end_of(owner: &Owner, host: &str) -> Option<session::End> {
    let process = owner.process.as_ref().filter(|process| process.key.pid > 0)?;
    let nothing = Names::default();
    let names = owner.names.as_deref().unwrap_or(&nothing);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let parent = names.parent.as_ref();
    let container = names.container.as_ref();
    let pod = container.and_then(|container| container.pod.as_ref());
    Some(session::End {
        pid: process.key.pid,
        program: process.comm.to_string(),
        executable: text(&names.executable),
        command_line: text(&names.command_line),
        uid: Some(process.uid),
        user: text(&names.user),
        gid: Some(process.gid),
        group: text(&names.group),
        parent_pid: parent.map_or(process.parent_pid, |parent| parent.pid),
        parent_program: parent.map_or_else(String::new, |parent| parent.executable.clone()),
        container: container.map_or_else(String::new, |container| container.id.clone()),
        container_name: container.map_or_else(String::new, |container| text(&container.name)),
        pod: pod.map_or_else(String::new, |pod| pod.name.clone()),
        pod_namespace: pod.map_or_else(String::new, |pod| pod.namespace.clone()),
        host: host.to_owned(),
    })
}

/// The owner that another agent tells of; `None`: it tells of no process.
#[must_use]
pub fn owner_of(end: &session::End) -> Option<Owner> {
    if end.pid == 0 {
        return None;
    }
    let parent_program = told(&end.parent_program, LONG_TEXT_OCTETS_MAX);
    let is_id = end.container.len() == 64 && end.container.bytes().all(|octet| octet.is_ascii_hexdigit());
    Some(Owner {
        confidence: Confidence::Told,
        process: Some(Process {
            key: ProcessKey {
                pid: end.pid,
                start: KernelTime(0),
            },
            parent_pid: end.parent_pid,
            uid: end.uid.unwrap_or_default(),
            gid: end.gid.unwrap_or_default(),
            cgroup_id: 0,
            comm: end.program.as_str().into(),
        }),
        names: Some(Arc::new(Names {
            executable: told(&end.executable, LONG_TEXT_OCTETS_MAX),
            command_line: told(&end.command_line, LONG_TEXT_OCTETS_MAX),
            user: told(&end.user, TEXT_OCTETS_MAX),
            group: told(&end.group, TEXT_OCTETS_MAX),
            parent: parent_program
                .filter(|_| end.parent_pid > 0)
                .map(|executable| Parent {
                    pid: end.parent_pid,
                    executable,
                    uid: None,
                    user: None,
                }),
            container: is_id.then(|| Container {
                id: end.container.to_ascii_lowercase(),
                runtime: Runtime::Other,
                name: told(&end.container_name, TEXT_OCTETS_MAX),
                pod: pod_of(end),
            }),
            unit: None,
        })),
    })
}

/// A pod has both; half of one is none.
fn pod_of(end: &session::End) -> Option<Pod> {
    Some(Pod {
        namespace: told(&end.pod_namespace, TEXT_OCTETS_MAX)?,
        name: told(&end.pod, POD_OCTETS_MAX)?,
    })
}

/// Absent when empty, cut at a character where it is too long.
fn told(text: &str, octets_max: usize) -> Option<String> {
    let cut = text.floor_char_boundary(octets_max);
    (!text.is_empty()).then(|| text[..cut].to_owned())
}
