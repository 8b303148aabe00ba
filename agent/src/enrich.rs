//! Finds out what naming asks: reads /proc, lists of users and groups, and the cgroup2 tree.
//!
//! In: [`Ask`]s of [`Naming`]. Out: [`Answer`]s. Decides nothing about names, changes nothing on the host.
//!
//! A process can choose its name, arguments, root file system and cgroup: each read has a limit, and whatever is missing,
//! malformed or gone in between is "nothing", never an error. Everything about a process is read through one open folder of
//! /proc, which goes stale with the process, so that a pid that comes again cannot slip in.
//!
//! What may take long, because another process has a say: `cmdline` (its memory may be slow to come), a container's own
//! passwd file (only local file systems are touched), and the host's user database beyond `/etc/passwd` (NSS). So the meter
//! has it [`Beside`] itself, on another thread.

use std::io;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::enrich::{Answer, Ask};
use rustix::fs::{Mode, OFlags};

mod beside;
mod cgroup;
mod folder;
mod process;
mod user;

use cgroup::Cgroups;
use folder::Proc;
use user::Users;

/// Why nothing can be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// /proc is not there or not readable.
    #[error("cannot open /proc")]
    Proc(#[source] io::Error),
    /// Something else is mounted there.
    #[error("what is mounted at /proc is no process file system")]
    NotProc,
}

/// Answers asks.
pub struct Lookups {
    proc: Proc,
    users: Users,
    cgroups: Cgroups,
}

impl Lookups {
    /// Opens /proc and finds the cgroup2 mount. A host without one is no error: cgroups then have no paths.
    ///
    /// # Errors
    /// [`LookupError::Proc`] and [`LookupError::NotProc`]: there is no /proc to read.
    pub fn open() -> Result<Self, LookupError> {
        let proc = Proc::open()?;
        Ok(Self {
            users: Users::of_this_host(&proc),
            cgroups: Cgroups::find(&proc),
            proc,
        })
    }

    /// Looks for the answer to one ask. Does not fail: what cannot be found is absent.
    #[must_use]
    pub fn answer(&mut self, ask: &Ask) -> Answer {
        match *ask {
            Ask::Process(key) => Answer::Process(process::facts(&self.proc, &mut self.users, key)),
            Ask::User { scope, uid } => Answer::Name(self.users.user(scope, uid)),
            Ask::Group { scope, gid } => Answer::Name(self.users.group(scope, gid)),
            Ask::Cgroup { id, process } => Answer::Path(self.cgroups.path(&self.proc, id, process)),
        }
    }

    /// Every cgroup there is: inode of its folder, and path below the cgroup2 root. At most [`CGROUPS_WALK_MAX`].
    #[must_use]
    pub fn existing_cgroups(&self) -> Vec<(u64, String)> {
        self.cgroups.walk()
    }

    /// Whether the paths of cgroups begin at the root of the hierarchy, not at that of a cgroup namespace or of a mount.
    #[must_use]
    pub fn sees_whole_hierarchy(&self) -> bool {
        self.cgroups.sees_whole(&self.proc)
    }

    /// Where the cgroup2 hierarchy is mounted; `None`: nowhere.
    #[must_use]
    pub fn cgroup2_root(&self) -> Option<&Path> {
        self.cgroups.root()
    }
}

pub use beside::{ASKS_OUT_MAX, Beside};
pub use cgroup::CGROUPS_WALK_MAX;

/// How every folder and file is opened that is only passed through.
const PASS: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// How every file is opened that is read. `NONBLOCK`: a pipe somebody put there does not hold us up.
const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK);

/// At most `max` octets of a file, and whether there may be more.
fn read_at_most(file: impl rustix::fd::AsFd, max: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut octets = vec![0; max];
    let mut filled = 0;
    while filled < max {
        match rustix::io::read(&file, &mut octets[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    octets.truncate(filled);
    Ok((octets, filled == max))
}

fn open_to_read(folder: impl rustix::fd::AsFd, name: &str) -> io::Result<rustix::fd::OwnedFd> {
    Ok(rustix::fs::openat(folder, name, READ, Mode::empty())?)
}

/// Undoes the octal escapes of /proc/PID/mountinfo (`\040` for a blank).
fn unescaped(field: &str) -> PathBuf {
    let mut octets = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        octets.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        octets,
    ))
}

/// One line of /proc/PID/mountinfo.
struct Mount<'a> {
    /// Which folder of its file system is mounted.
    root: &'a str,
    /// Where, still escaped.
    point: &'a str,
    /// Type of the file system.
    kind: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        Some(Mount {
            root: fields.next()?,
            point: fields.next()?,
            kind: after.split(' ').next()?,
        })
    })
}

#[cfg(test)]
mod tests;
