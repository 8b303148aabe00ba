//! Paths of cgroups: the cgroup2 tree, and `/proc/PID/cgroup`.
//!
//! In: inode numbers. Out: paths below the cgroup2 root, beginning with `/`. Only the cgroup2 hierarchy is looked at: inode
//! numbers come again in others. Source: cgroups(7), `Documentation/admin-guide/cgroup-v2.rst`.

use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::owner::ProcessKey;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FsWord, Mode, OFlags};

use super::folder::Proc;
use super::{PASS, mounts, open_to_read, read_at_most, unescaped};

/// Most cgroups that a walk tells. Ten times what a node with 500 pods has.
pub const CGROUPS_WALK_MAX: usize = 65_536;
/// Most octets of /proc/PID/cgroup: a dozen hierarchies of the longest path.
const CGROUP_OCTETS_MAX: usize = 64 << 10;
/// Most octets of our own mountinfo.
const MOUNTINFO_OCTETS_MAX: usize = 4 << 20;
/// Inode of the topmost cgroup. Source: kernfs, the first number it gives.
const ROOT_ID: u64 = 1;
/// Inode of the first cgroup namespace. Source: Linux `include/linux/proc_ns.h`, `PROC_CGROUP_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFB;
/// Linux' magic number of cgroup2. Source: `include/uapi/linux/magic.h`.
const CGROUP2_SUPER_MAGIC: FsWord = 0x6367_7270;

/// The cgroup2 tree, as far as it is mounted here.
pub(super) struct Cgroups(Option<Tree>);

struct Tree {
    point: PathBuf,
    folder: OwnedFd,
    /// Whether all of the hierarchy is mounted, not a part of it.
    whole: bool,
}

impl Cgroups {
    /// Finds the mount, of several the one that shows most.
    pub(super) fn find(proc: &Proc) -> Self {
        let octets = open_to_read(proc.as_fd(), "self/mountinfo")
            .and_then(|file| read_at_most(file, MOUNTINFO_OCTETS_MAX))
            .map(|(octets, _)| octets)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&octets);
        let mut found: Vec<(bool, PathBuf)> = mounts(&text)
            .filter(|mount| mount.kind == "cgroup2")
            .map(|mount| (mount.root == "/", unescaped(mount.point)))
            .collect();
        found.sort_by_key(|(whole, point)| (!*whole, point.as_os_str().len()));
        Self(
            found
                .into_iter()
                .find_map(|(whole, point)| Tree::open(point, whole)),
        )
    }

    pub(super) fn root(&self) -> Option<&Path> {
        self.0.as_ref().map(|tree| tree.point.as_path())
    }

    /// Whether paths begin at the root of the hierarchy: all of it is mounted, and we are in no cgroup namespace.
    pub(super) fn sees_whole(&self, proc: &Proc) -> bool {
        let namespace = rustix::fs::statat(proc.as_fd(), "self/ns/cgroup", AtFlags::empty());
        let is_first = namespace.is_ok_and(|found| found.st_ino == FIRST_NAMESPACE);
        is_first && self.0.as_ref().is_some_and(|tree| tree.whole)
    }

    /// Every cgroup that can be seen, the root first.
    pub(super) fn walk(&self) -> Vec<(u64, String)> {
        let Some(tree) = &self.0 else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if let Ok(stat) = rustix::fs::fstat(&tree.folder) {
            found.push((stat.st_ino, "/".to_owned()));
        }
        let mut todo = vec![(tree.point.clone(), String::new())];
        while let Some((folder, path)) = todo.pop() {
            // One that was removed meanwhile has nothing below it.
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            for entry in entries.flatten() {
                if found.len() >= CGROUPS_WALK_MAX {
                    return found;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let path = format!("{path}/{}", entry.file_name().to_string_lossy());
                    found.push((entry.ino(), path.clone()));
                    todo.push((entry.path(), path));
                }
            }
        }
        found
    }

    /// The path of a cgroup, from a process that is in it.
    pub(super) fn path(&self, proc: &Proc, id: u64, process: ProcessKey) -> Option<String> {
        if id == ROOT_ID {
            return Some("/".to_owned());
        }
        let (octets, _) = proc.process(process)?.read("cgroup", CGROUP_OCTETS_MAX).ok()?;
        let path = cgroup2_line(&octets)?;
        // What lies outside of our own cgroup namespace or mount cannot be followed.
        let Some(tree) = self
            .0
            .as_ref()
            .filter(|tree| tree.whole && !path.starts_with("/.."))
        else {
            return Some(path);
        };
        // Where it can, it must lead to that inode: the process may have been moved since.
        (tree.id_of(&path) == Some(id)).then_some(path)
    }
}

impl Tree {
    fn open(point: PathBuf, whole: bool) -> Option<Self> {
        let folder = rustix::fs::open(&point, PASS | OFlags::DIRECTORY, Mode::empty()).ok()?;
        let kind = rustix::fs::fstatfs(&folder).ok()?;
        (kind.f_type == CGROUP2_SUPER_MAGIC).then_some(Self { point, folder, whole })
    }

    fn id_of(&self, path: &str) -> Option<u64> {
        let below = path.trim_start_matches('/');
        let below = if below.is_empty() { "." } else { below };
        rustix::fs::statat(&self.folder, below, AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|stat| stat.st_ino)
    }
}

/// The path of the line `0::PATH`; the others are of cgroup v1.
fn cgroup2_line(octets: &[u8]) -> Option<String> {
    let path = octets
        .split(|&octet| octet == b'\n')
        .find_map(|line| line.strip_prefix(b"0::"))?;
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    (!path.is_empty()).then(|| String::from_utf8_lossy(path).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_of_cgroup2_counts() {
        let line = |text: &str| cgroup2_line(text.as_bytes());
        assert_eq!(
            line("9:name=systemd:/x\n4:memory:/docker/y\n0::/docker/z\n").as_deref(),
            Some("/docker/z")
        );
        assert_eq!(line("0::/a:b (deleted)\n").as_deref(), Some("/a:b"));
        assert_eq!(line("0::/../x").as_deref(), Some("/../x"));
        assert_eq!(line("0::\n"), None);
        assert_eq!(line("10::/x\n"), None);
        assert_eq!(line(""), None);
    }
}
