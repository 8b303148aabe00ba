//! What a runtime of containers has on this machine beside its daemon: a folder, processes, mounts, cgroups.
//!
//! All of it carries one name, which has the pid of its maker: the folder is called so, and so is the cgroup above those of its
//! containers, where a runtime lets us say so. Shims and containers are no children of the test: when it is killed they live on,
//! with their mounts. So a run clears its own when it ends, however it does, and [`sweep`] what killed ones left. Nothing is
//! touched that does not carry such a name: a process counts by the folder among a runtime's arguments, by its root file system
//! or by its cgroup.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::wait::{self, PATIENCE};
use crate::{cgroup, disk};

/// How all names begin.
const PREFIX: &str = "flowtilla-test";
/// Where the folders are. Not below TMPDIR: overlay file systems do not lie on each other.
const FOLDER: &str = "/var/tmp";
/// Programs that are ours when they were told the folder.
const PROGRAMS: [&str; 6] = [
    "conmon",
    "containerd",
    "containerd-shim-runc-v2",
    "dockerd",
    "podman",
    "runc",
];
/// Folders of shims by namespace and container: of containerd, and of Docker's.
const SHIMS: [&str; 2] = [
    "state/io.containerd.runtime.v2.task",
    "exec/containerd/daemon/io.containerd.runtime.v2.task",
];
/// Files there in which the address of a shim's socket is, up to containerd 1.7 and since.
const ADDRESSES: [&str; 2] = ["address", "bootstrap.json"];
/// Digits of a container's id.
const ID_DIGITS: usize = 64;
/// Folder of these sockets; nothing moves it.
const SOCKETS: &str = "/run/containerd/s/";

/// What one runtime has; cleared when dropped.
#[derive(Debug)]
pub struct Belongings {
    folder: TempDir,
}

impl Belongings {
    /// Makes the folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn make() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}-{}-", std::process::id()))
            .tempdir_in(FOLDER)?;
        Ok(Self { folder })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A place in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The name that all of it carries.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.folder.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

impl Drop for Belongings {
    fn drop(&mut self) {
        if let Err(error) = clear(&self.name()) {
            eprintln!("{error:#}; the next run sweeps it away");
        }
    }
}

/// Clears what runs left that are no more; how many there were.
///
/// # Errors
/// When something cannot be cleared.
pub fn sweep() -> Result<usize> {
    let mut names = Vec::new();
    let own = nix::unistd::geteuid().as_raw();
    let folders = hierarchies().into_iter().chain([PathBuf::from(FOLDER)]);
    // A cgroup of others may go meanwhile.
    for entry in folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Anybody may make a folder of such a name.
        let ours = entry.metadata().is_ok_and(|it| it.uid() == own);
        if ours && maker(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            names.push(name);
        }
    }
    names.sort();
    names.dedup();
    for name in &names {
        clear(name).with_context(|| format!("clear {name}"))?;
    }
    Ok(names.len())
}

/// What there is of a name, in words: processes, mounts, cgroups, the folder.
///
/// # Errors
/// When the kernel does not say.
pub fn left(name: &str) -> Result<Vec<String>> {
    let folder = Path::new(FOLDER).join(name);
    let processes = processes(name)?;
    let mut left: Vec<_> = processes.into_iter().map(|process| process.what).collect();
    let mounts = disk::mounted_below(&folder)?;
    left.extend(mounts.iter().map(|mount| format!("mount {mount}")));
    let places = at(name).into_iter().chain([folder]);
    left.extend(places.filter(|it| it.exists()).map(|it| it.display().to_string()));
    Ok(left)
}

fn clear(name: &str) -> Result<()> {
    // Each look ends what has come since the last: a runtime may have been starting something.
    let mut emptied: BTreeSet<PathBuf> = at(name).into_iter().collect();
    wait::until_true(PATIENCE, "the end of what a runtime has started", || {
        let Ok(processes) = processes(name) else {
            return false;
        };
        for process in &processes {
            let _ = pidfd_send_signal(&process.handle, Signal::KILL); // It may have ended by itself.
            emptied.extend(process.cgroups.iter().flat_map(|path| at(path)));
        }
        processes.is_empty()
    })?;
    let folder = Path::new(FOLDER).join(name);
    disk::unmount_below(&folder)?;
    forget_shims(&folder)?;
    for cgroup in emptied {
        let what = format!("{} without processes", cgroup.display());
        wait::until_true(PATIENCE, &what, || cgroup::remove(&cgroup).is_ok())?;
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The pid in a name of ours.
fn maker(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split_once('-')?;
    (!rest.is_empty() && !rest.contains('-')).then_some(())?;
    pid.parse().ok()
}

struct Process {
    handle: OwnedFd,
    what: String,
    /// That of its container, in each hierarchy, where it has one to itself.
    cgroups: BTreeSet<String>,
}

/// Processes that carry the name, this one left out.
fn processes(name: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_string_lossy()
            .parse()
            .ok()
            .and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|&pid| pid != rustix::process::getpid()) else {
            continue;
        };
        // Before the look: the number may come to be another's, the handle may not.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let read = |file: &str| {
            let octets = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&octets).into_owned()
        };
        let (mounts, cgroups) = (read("mountinfo"), read("cgroup"));
        if carries(name, &read("cmdline"), &mounts, &cgroups) {
            let is_contained = mounts.lines().any(|line| is_root(line, name));
            let of_container = cgroups
                .lines()
                .filter_map(|line| of_container(line).filter(|_| is_contained));
            found.push(Process {
                handle,
                what: format!("process {} ({})", pid.as_raw_nonzero(), read("comm").trim()),
                cgroups: of_container.map(str::to_owned).collect(),
            });
        }
    }
    Ok(found)
}

/// Whether a process is of the runtime with this name, by its arguments, mounts and cgroups as `/proc` has them.
fn carries(name: &str, arguments: &str, mounts: &str, cgroups: &str) -> bool {
    let inside = format!("/{name}/");
    let mut words = arguments.split('\0');
    let program = Path::new(words.next().unwrap_or_default()).file_name();
    let is_told = program.is_some_and(|it| PROGRAMS.iter().any(|known| it == *known))
        && words.any(|word| word.contains(&inside));
    let is_in = |line: &str| format!("{line}/").contains(&inside);
    is_told || mounts.lines().any(|line| is_root(line, name)) || cgroups.lines().any(is_in)
}

/// Whether a line of mounts is that of a root file system in the folder with this name.
fn is_root(line: &str, name: &str) -> bool {
    line.split(' ').nth(4) == Some("/") && line.contains(&format!("/{name}/"))
}

/// The path in a line of cgroups, when it is that of one container: Docker's and podman's end with its id.
fn of_container(line: &str) -> Option<&str> {
    let path = line.splitn(3, ':').nth(2)?;
    let (_, last) = path.rsplit_once('/')?;
    let id = last.strip_prefix("libpod-").unwrap_or(last);
    (id.len() == ID_DIGITS && id.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(path)
}

/// Roots of the hierarchies of cgroups, where there are several; the one.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(cgroup::ROOT);
    let below = fs::read_dir(&root).into_iter().flatten().flatten();
    let folders = below.map(|entry| entry.path()).filter(|path| path.is_dir());
    folders.chain([root.clone()]).collect()
}

/// Where a path is in the hierarchies that have it.
fn at(path: &str) -> Vec<PathBuf> {
    let all = hierarchies()
        .into_iter()
        .map(|root| root.join(path.trim_start_matches('/')));
    all.filter(|path| path.is_dir()).collect()
}

/// Removes sockets of shims that are no more, whose addresses are below `folder`.
fn forget_shims(folder: &Path) -> Result<()> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
    let namespaces = SHIMS.iter().flat_map(|place| entries(folder.join(place)));
    for shim in namespaces.flat_map(|namespace| entries(namespace.path())) {
        for file in ADDRESSES {
            let told = fs::read_to_string(shim.path().join(file)).unwrap_or_default();
            if let Some(socket) = socket_in(&told)
                && socket.exists()
            {
                fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
            }
        }
    }
    Ok(())
}

/// The socket that a shim's address names, when it is one of containerd's own.
fn socket_in(told: &str) -> Option<PathBuf> {
    let (_, rest) = told.split_once(SOCKETS)?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
    (end > 0).then(|| Path::new(SOCKETS).join(&rest[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "flowtilla-test-42-AbC";

    #[test]
    fn maker_is_read_from_our_names_only() {
        assert_eq!(maker(NAME), Some(42));
        for other in [
            "flowtilla-test-host-42-0",
            "flowtilla-test-42",
            "flowtilla-test-42-",
            "flowtilla-test-42-0-left",
            "flowtilla-test.lock",
            "containerd-42-x",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_counts_by_its_runtimes_folder_its_root_or_its_cgroup_and_by_nothing_else() {
        let host = "22 1 0:20 / / rw - overlay overlay rw,upperdir=/var/lib/x\n";
        let one = "99 22 0:60 / /var/tmp/flowtilla-test-42-AbC/state/r rw - overlay o rw,upperdir=/var/tmp/flowtilla-test-42-AbC/u\n";
        let outside = format!("{host}{one}");
        let root = "99 22 0:60 / / rw - overlay o rw,upperdir=/var/tmp/flowtilla-test-42-AbC/u\n";
        let shim =
            "/usr/bin/containerd-shim-runc-v2\0-address\0/var/tmp/flowtilla-test-42-AbC/containerd.sock\0";
        let editor = "vi\0/var/tmp/flowtilla-test-42-AbC/config.toml\0";
        let (ours, others) = (
            "0::/flowtilla-test-42-AbC/pod\n",
            "0::/user/flowtilla-test-42-AbCd\n",
        );
        for (arguments, mounts, cgroups, counts) in [
            (shim, &*outside, others, true),
            ("sleep\0", root, others, true),
            ("sleep\0", &outside, ours, true),
            ("sleep\0", &outside, "4:pids:/flowtilla-test-42-AbC\n", true),
            (editor, &outside, others, false),
            ("containerd\0-c\0/etc/containerd\0", &outside, others, false),
            ("", "", "", false),
        ] {
            let found = carries(NAME, arguments, mounts, cgroups);
            assert_eq!(found, counts, "{arguments:?} {mounts} {cgroups}");
        }
    }

    #[test]
    fn cgroups_of_one_container_end_with_its_id() {
        let id = "6a20625b0e5cc9f44cd6c8071784f5c56b3d46cba5f087d58e47978b9c3cc765";
        for path in [format!("/docker/{id}"), format!("/libpod_parent/libpod-{id}")] {
            assert_eq!(of_container(&format!("4:pids:{path}")), Some(&*path));
        }
        for other in [
            "0::/".to_owned(),
            "0::/docker".to_owned(),
            format!("0::/docker/{id}/init"),
            format!("0::/x-{id}"),
        ] {
            assert_eq!(of_container(&other), None, "{other}");
        }
    }

    #[test]
    fn only_sockets_of_shims_are_forgotten() {
        let socket = Some(PathBuf::from("/run/containerd/s/0a9f"));
        assert_eq!(socket_in("unix:///run/containerd/s/0a9f"), socket);
        assert_eq!(
            socket_in("{\"address\":\"unix:///run/containerd/s/0a9f\",\"version\":3}"),
            socket
        );
        for other in [
            "unix:///run/containerd/s/",
            "unix:///run/containerd/s/../x",
            "/run/x",
            "",
        ] {
            assert_eq!(socket_in(other), None, "{other}");
        }
    }
}
