//! /proc, and the folders of processes in it.
//!
//! In: a process key. Out: an open folder of exactly that process, what its files hold, bounded, and where its links point.
//! A folder goes stale with its process: what comes with the same pid is never read through it. What the facts mean is
//! for others. Source: proc_pid_stat(5), proc_pid_status(5).

use std::io;

use flowtilla_agent_core::owner::ProcessKey;
use flowtilla_agent_core::time::KernelTime;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::{LookupError, PASS, open_to_read, read_at_most};

/// Most octets of `stat` and `status` that are read: the kernel writes about 2 KiB.
const STATUS_OCTETS_MAX: usize = 8192;
/// By how many clock ticks a start may differ: both sides round.
const START_TICKS_OFF_MAX: u64 = 1;

/// The process file system.
pub(super) struct Proc {
    folder: OwnedFd,
    tick_ns: u64,
}

/// The folder of one process. Reads from it fail once the process is gone, even when its pid has come again.
pub(super) struct ProcessFolder(OwnedFd);

/// The fields of `stat` that are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: Vec<u8>,
    pub(super) dead: bool,
    pub(super) parent_pid: u32,
    start_ticks: u64,
}

impl Proc {
    pub(super) fn open() -> Result<Self, LookupError> {
        let flags = PASS | OFlags::DIRECTORY;
        let folder = rustix::fs::open("/proc", flags, Mode::empty())
            .map_err(|error| LookupError::Proc(error.into()))?;
        let kind = rustix::fs::fstatfs(&folder).map_err(|error| LookupError::Proc(error.into()))?;
        if kind.f_type != rustix::fs::PROC_SUPER_MAGIC {
            return Err(LookupError::NotProc);
        }
        Ok(Self {
            folder,
            tick_ns: 1_000_000_000 / procfs::ticks_per_second().max(1),
        })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The folder of this very process.
    pub(super) fn process(&self, key: ProcessKey) -> Option<ProcessFolder> {
        let folder = self.pid(key.pid)?;
        let stat = folder.stat().ok()?;
        (!stat.dead && self.started(&stat, key.start)).then_some(folder)
    }

    /// The folder of whatever has this pid now.
    pub(super) fn pid(&self, pid: u32) -> Option<ProcessFolder> {
        let flags = PASS | OFlags::DIRECTORY;
        rustix::fs::openat(&self.folder, pid.to_string(), flags, Mode::empty())
            .ok()
            .map(ProcessFolder)
    }

    fn started(&self, stat: &Stat, start: KernelTime) -> bool {
        stat.start_ticks.abs_diff(start.0 / self.tick_ns) <= START_TICKS_OFF_MAX
    }
}

impl ProcessFolder {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// At most `max` octets of one of its files, and whether there may be more.
    pub(super) fn read(&self, name: &str, max: usize) -> io::Result<(Vec<u8>, bool)> {
        read_at_most(open_to_read(&self.0, name)?, max)
    }

    /// Where one of its links points, as octets.
    pub(super) fn link(&self, name: &str) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes())
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        let (octets, _) = self.read("stat", STATUS_OCTETS_MAX)?;
        parse_stat(&octets).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub(super) fn uid(&self) -> Option<u32> {
        let (octets, _) = self.read("status", STATUS_OCTETS_MAX).ok()?;
        parse_uid(&octets)
    }

    /// `None`: a kernel thread, or not ours to read.
    pub(super) fn executable(&self) -> Option<String> {
        let path = self.link("exe").ok()?;
        let path = match path.strip_suffix(b" (deleted)") {
            // A file that is gone, unless it is really called so.
            Some(bare) if self.is_unlinked("exe") => bare,
            _ => &path,
        };
        (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned())
    }

    fn is_unlinked(&self, name: &str) -> bool {
        // No round trip to a file server: what is known here is enough.
        rustix::fs::statx(&self.0, name, AtFlags::STATX_DONT_SYNC, StatxFlags::NLINK)
            .is_ok_and(|stat| stat.stx_nlink == 0)
    }
}

/// `PID (comm) S PPID …`; the name may hold anything, parentheses included.
fn parse_stat(octets: &[u8]) -> Option<Stat> {
    let open = octets.iter().position(|&octet| octet == b'(')?;
    let close = octets.iter().rposition(|&octet| octet == b')')?;
    let comm = octets.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(&octets[close + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent_pid = fields.next()?.parse().ok()?;
    // Field 22; state is field 3.
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        comm,
        dead: matches!(state, "Z" | "X" | "x"),
        parent_pid,
        start_ticks,
    })
}

/// The real user id: the first of `Uid:`.
fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status
        .split(|&octet| octet == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    let line = std::str::from_utf8(line).ok()?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &[u8] = b" S 41 42 42 0 -1 4194560 0 0 0 0 1 2 3 4 20 0 1 0 987654 1 2";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        for comm in [
            &b"curl"[..],
            b"a) S 1 (b",
            b"",
            b" ",
            b"\xff\n)",
            b"((((",
            b"))))",
        ] {
            let mut line = b"42 (".to_vec();
            line.extend_from_slice(comm);
            line.push(b')');
            line.extend_from_slice(TAIL);
            let stat = parse_stat(&line).expect("it is a line of the kernel");
            assert_eq!(stat.comm, comm);
            assert_eq!(
                (stat.parent_pid, stat.start_ticks, stat.dead),
                (41, 987_654, false)
            );
        }
    }

    #[test]
    fn a_cut_or_senseless_line_is_nothing() {
        let mut line = b"42 (x)".to_vec();
        line.extend_from_slice(TAIL);
        // Cut within the start it would be another start, which then matches no process.
        let whole = line.len() - b"987654 1 2".len();
        for end in 0..whole {
            assert_eq!(parse_stat(&line[..end]), None, "{end}");
        }
        assert_eq!(parse_stat(b")("), None);
        assert_eq!(
            parse_uid(b"Name:\tUid:\t7\nUmask:\t0\nUid:\t1\t2\t3\t4\n"),
            Some(1)
        );
        assert_eq!(parse_uid(b"Uid:\t-1\n"), None);
        assert_eq!(parse_uid(b"Uid:"), None);
    }
}
