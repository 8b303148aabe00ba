//! Who is behind one end of a flow, and how sure that is.

use std::sync::Arc;

use serde::Serialize;

use crate::time::KernelTime;

/// How sure an attribution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Confidence {
    /// Taken in the process's own context when it opened, accepted or used the socket.
    Exact,
    /// The listener's process; the one that accepted may be another (a worker of it, as a rule).
    Inherited,
    /// Found by walking the open files: the socket is older than the agent, or nobody asked for the peer's address.
    Backfilled,
    /// Not known, and why.
    Unknown(Unknown),
}

/// Why nobody is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unknown {
    /// The other end is not on this host.
    Remote,
    /// The kernel itself holds the socket.
    Kernel,
    /// No hook saw the process: nobody accepted the connection, or the socket was passed on while nobody held it.
    NotSeen,
}

/// A process, for ever: pids come again, (pid, start) does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Process id in the first pid namespace, > 0.
    pub pid: u32,
    /// Start of the process (group leader).
    pub start: KernelTime,
}

/// What the kernel copied about a process while it held the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Which process.
    pub key: ProcessKey,
    /// Parent's process id; 0: none.
    pub parent_pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Inode of its cgroup2 folder; 0: none.
    pub cgroup_id: u64,
    /// Command name, at most 15 octets, as the process set it: arbitrary octets, lossily decoded.
    pub comm: String,
}

/// The names that belong to a [`Process`]; what could not be learnt is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// Path of the executable, such as `/usr/bin/curl`.
    pub executable: Option<String>,
    /// Command line as the policy allows it (absent, redacted, full), arguments joined by blanks.
    pub command_line: Option<String>,
    /// User name (of the container's own passwd when it has one).
    pub user: Option<String>,
    /// Group name.
    pub group: Option<String>,
    /// The parent process.
    pub parent: Option<Parent>,
    /// The container it runs in.
    pub container: Option<Container>,
}

/// A parent process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    /// Process id, > 0.
    pub pid: u32,
    /// Path of the executable, or the command name when the path is not known.
    pub executable: String,
    /// User id.
    pub uid: Option<u32>,
    /// User name.
    pub user: Option<String>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// The runtime's id, 64 hex digits.
    pub id: String,
    /// Which runtime's cgroup layout it was found in.
    pub runtime: Runtime,
    /// Name, when a runtime told it.
    pub name: Option<String>,
}

/// Container runtimes that a cgroup path betrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// Docker.
    Docker,
    /// containerd's CRI.
    Containerd,
    /// CRI-O.
    CriO,
    /// podman.
    Podman,
    /// A Kubernetes pod whose path does not tell the runtime.
    Kubernetes,
    /// 64 hex digits in a path of no known form.
    Other,
}

/// Who is behind one end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// How sure.
    pub confidence: Confidence,
    /// What the kernel copied; `None` exactly when the confidence is `Unknown`, or `Unknown(Kernel)` without a thread.
    pub process: Option<Process>,
    /// Names, once enrichment has looked.
    pub names: Option<Arc<Names>>,
}

impl Owner {
    /// Nobody, for this reason.
    #[must_use]
    pub fn unknown(why: Unknown) -> Self {
        Self {
            confidence: Confidence::Unknown(why),
            process: None,
            names: None,
        }
    }

    /// The executable's path, or the command name while that is not known.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        self.names
            .as_ref()
            .and_then(|names| names.executable.as_deref())
            .or_else(|| self.process.as_ref().map(|process| process.comm.as_str()))
    }
}
