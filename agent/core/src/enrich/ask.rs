//! What naming wants to know from the host, and what it is told.
//!
//! The core puts an [`Ask`] into its queue; whoever drives it looks, without ever waiting for a process, and hands an
//! [`Answer`] back. Absent is an answer too.

use crate::owner::{Comm, ProcessKey};

/// Whose list of users and groups a process sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The host's.
    Host,
    /// That of another root file system and user namespace, by a number that is never used twice.
    Other(u64),
    /// One that cannot be read: its ids have no names.
    Unreadable,
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// What is this process? To be answered by [`Answer::Process`]; only if the start matches.
    Process(ProcessKey),
    /// What is this user called? By [`Answer::Name`].
    User {
        /// In whose list.
        scope: Scope,
        /// Id as the kernel's first user namespace counts.
        uid: u32,
    },
    /// What is this group called? By [`Answer::Name`].
    Group {
        /// In whose list.
        scope: Scope,
        /// Id as the kernel's first user namespace counts.
        gid: u32,
    },
    /// Which path has this cgroup? By [`Answer::Path`].
    Cgroup {
        /// Inode of its folder.
        id: u64,
        /// A process that was in it.
        process: ProcessKey,
    },
}

/// What was found; `None`: nothing, or the process is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Process`].
    Process(Option<Box<ProcessFacts>>),
    /// To [`Ask::User`] and [`Ask::Group`].
    Name(Option<String>),
    /// To [`Ask::Cgroup`]: path below the cgroup2 root.
    Path(Option<String>),
}

/// What a live process says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Path of the file it runs; `None`: a kernel thread, or not ours to read.
    pub executable: Option<String>,
    /// Arguments, the first at index 0.
    pub arguments: Vec<String>,
    /// Whether arguments were cut.
    pub cut: bool,
    /// Command name.
    pub comm: Comm,
    /// Real user id, as the kernel side tells it too.
    pub uid: u32,
    /// Whose users and groups it sees.
    pub scope: Scope,
    /// Its parent, if that lives.
    pub parent: Option<ParentFacts>,
}

/// What a live parent says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentFacts {
    /// Process id, > 0.
    pub pid: u32,
    /// Path of the file it runs.
    pub executable: Option<String>,
    /// Command name.
    pub comm: Comm,
    /// Real user id, as the kernel side tells it too.
    pub uid: u32,
    /// Whose users and groups it sees.
    pub scope: Scope,
}
