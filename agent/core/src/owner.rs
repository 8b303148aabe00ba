//! Who is behind one end of a flow, and how sure that is.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
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
    /// The agent at the other end said so: it is a process of another host, as that host knows it.
    Told,
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
    /// Start of the process (group leader); 0 of a process on another host ([`Confidence::Told`]).
    pub start: KernelTime,
}

/// Octets of a command name at most. Source: Linux `TASK_COMM_LEN`, its NUL taken off.
pub const COMM_OCTETS_MAX: usize = 15;

/// Command name, as the process set it. What is not UTF-8 reads as `?`; what is beyond [`COMM_OCTETS_MAX`] is cut, as the
/// kernel cuts it. Held in place: a flow has many copies of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Comm {
    octets: [u8; COMM_OCTETS_MAX],
    length: u8,
}

impl Deref for Comm {
    type Target = str;

    fn deref(&self) -> &str {
        str::from_utf8(&self.octets[..usize::from(self.length)]).unwrap_or_default() // It always is UTF-8.
    }
}

impl From<&[u8]> for Comm {
    fn from(octets: &[u8]) -> Self {
        let mut comm = Self::default();
        for chunk in octets.utf8_chunks() {
            let invalid = if chunk.invalid().is_empty() {
                None
            } else {
                Some('?')
            };
            for character in chunk.valid().chars().chain(invalid) {
                let (from, upto) = (
                    usize::from(comm.length),
                    usize::from(comm.length) + character.len_utf8(),
                );
                let Some(place) = comm.octets.get_mut(from..upto) else {
                    return comm;
                };
                character.encode_utf8(place);
                comm.length = upto as u8; // At most COMM_OCTETS_MAX.
            }
        }
        comm
    }
}

impl From<&str> for Comm {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl From<String> for Comm {
    fn from(text: String) -> Self {
        Self::from(text.as_bytes())
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What the kernel copied about a process while it held the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Command name.
    pub comm: Comm,
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
    /// The systemd unit it runs in, such as `ssh.service`; `None` in a container, and where none is told.
    pub unit: Option<String>,
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
    /// Name, when a runtime told it; that of a pod's container is unique within its pod.
    pub name: Option<String>,
    /// The pod it belongs to, when a runtime told it.
    pub pod: Option<Pod>,
}

/// Digits of a container's id that are shown where there is no name, as runtimes show it.
pub const CONTAINER_ID_SHOWN: usize = 12;

impl Container {
    /// What people call it: `namespace/pod/container`, the container's name, or the beginning of its id. Never empty
    /// but for an empty id; as long as its parts, which whoever shows it cuts.
    #[must_use]
    pub fn shown(&self) -> Cow<'_, str> {
        let short_id = || self.id.get(..CONTAINER_ID_SHOWN).unwrap_or(&self.id);
        let name = self.name.as_deref().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(short_id);
        match &self.pod {
            Some(pod) => format!("{}/{}/{name}", pod.namespace, pod.name).into(),
            None => name.into(),
        }
    }
}

/// A Kubernetes pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique within the namespace at one time.
    pub name: String,
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
    /// 64 hex digits below a cgroup that was handed to somebody, who calls cgroups there as he likes: a user's own engine, or a user who
    /// takes another container's id. No runtime of the host is believed to speak of it.
    User,
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
    /// Whether it stands for an end that is not on this host.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(
            self.confidence,
            Confidence::Told | Confidence::Unknown(Unknown::Remote)
        )
    }

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
            .or_else(|| self.process.as_ref().map(|process| &*process.comm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_shown_by_its_pod_and_name_or_its_id() {
        let mut container = Container {
            id: "0123456789abcdef".repeat(4),
            runtime: Runtime::Kubernetes,
            name: None,
            pod: None,
        };
        assert_eq!(container.shown(), "0123456789ab");
        container.name = Some("web".to_owned());
        assert_eq!(container.shown(), "web");
        container.pod = Some(Pod {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
        });
        assert_eq!(container.shown(), "shop/web-0/web");
        container.name = None;
        assert_eq!(container.shown(), "shop/web-0/0123456789ab");
    }

    #[test]
    fn a_command_name_is_text_whatever_its_octets() {
        for (octets, text) in [
            (&b"curl"[..], "curl"),
            (b"", ""),
            (b"0123456789abcdef", "0123456789abcde"),
            (b"a\xffb\xfe", "a?b?"),
            ("gr\u{f6}\u{df}e".as_bytes(), "gr\u{f6}\u{df}e"),
            ("0123456789abcd\u{f6}".as_bytes(), "0123456789abcd"),
            (b"0123456789abcd\xc3", "0123456789abcd?"),
        ] {
            assert_eq!(&*Comm::from(octets), text);
        }
    }
}
