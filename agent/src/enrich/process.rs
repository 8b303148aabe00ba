//! What a live process says about itself in /proc.
//!
//! In: a process key. Out: [`ProcessFacts`], or nothing when the process is gone, dead or another one. Its start is compared
//! before anything is believed, and state and name once more afterwards.
//! Source: proc_pid_cmdline(5).

use flowtilla_agent_core::enrich::{ParentFacts, ProcessFacts};
use flowtilla_agent_core::owner::{Comm, ProcessKey};

use super::folder::{Proc, ProcessFolder, Stat};
use super::user::Users;

/// Most octets of a command line that are read.
///
/// Records show 1 KiB; a redaction needs some more to see the ends of words. Half of it would still do.
const CMDLINE_OCTETS_MAX: usize = 4096;
/// How often a process that executes something else while it is read is read anew.
const TRIES_MAX: usize = 3;

/// What this process says; `None` when it is gone, dead, or not the one that is meant.
pub(super) fn facts(proc: &Proc, users: &mut Users, key: ProcessKey) -> Option<Box<ProcessFacts>> {
    let folder = proc.process(key)?;
    let mut before = folder.stat().ok()?;
    for _ in 0..TRIES_MAX {
        let facts = read_once(proc, users, &folder, &before)?;
        let after = folder.stat().ok()?;
        if after.dead {
            return None;
        }
        // The same name: it has not executed something else while it was read.
        if after.comm == before.comm && after.parent_pid == before.parent_pid {
            return Some(Box::new(facts));
        }
        before = after;
    }
    None
}

fn read_once(proc: &Proc, users: &mut Users, folder: &ProcessFolder, stat: &Stat) -> Option<ProcessFacts> {
    let (cmdline, cut) = folder.read("cmdline", CMDLINE_OCTETS_MAX).ok()?;
    Some(ProcessFacts {
        executable: folder.executable(),
        arguments: arguments(&cmdline),
        cut,
        comm: Comm::from(&stat.comm[..]),
        uid: folder.uid()?,
        scope: users.scope(proc, folder),
        parent: parent(proc, users, stat.parent_pid),
    })
}

/// The caller makes sure afterwards that this still is the parent: then it lived all the while.
fn parent(proc: &Proc, users: &mut Users, pid: u32) -> Option<ParentFacts> {
    if pid == 0 {
        return None;
    }
    let folder = proc.pid(pid)?;
    let stat = folder.stat().ok()?;
    Some(ParentFacts {
        pid,
        executable: folder.executable(),
        comm: Comm::from(&stat.comm[..]),
        uid: folder.uid()?,
        scope: users.scope(proc, &folder),
    })
}

/// Arguments, each ended by NUL; a process that wrote its own title may have filled up with more of them.
fn arguments(cmdline: &[u8]) -> Vec<String> {
    let end = cmdline
        .iter()
        .rposition(|&octet| octet != 0)
        .map_or(0, |at| at + 1);
    if end == 0 {
        return Vec::new();
    }
    cmdline[..end].split(|&octet| octet == 0).map(lossy).collect()
}

fn lossy(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_after_the_arguments_is_none() {
        assert_eq!(arguments(b""), Vec::<String>::new());
        assert_eq!(arguments(b"\0\0\0"), Vec::<String>::new());
        assert_eq!(arguments(b"nginx: worker\0\0\0\0"), ["nginx: worker"]);
        assert_eq!(arguments(b"a\0\0b\0"), ["a", "", "b"]);
        assert_eq!(arguments(b"\xff\0"), ["\u{fffd}"]);
    }
}
