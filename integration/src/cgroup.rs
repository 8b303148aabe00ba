//! Cgroups of our own, processes in them, and what others see of them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::netns::NetNs;
use crate::process::Process;
use crate::wait::PATIENCE;

/// Where all hierarchies are.
pub const ROOT: &str = "/sys/fs/cgroup";

/// For `sh -c`, in a mount namespace of its own: leaves cgroup2 alone at its usual place, and goes on with the arguments.
const V2_ALONE: &str = "umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup; \
                            mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";

/// Arguments of unshare(1) for whatever comes behind them: it sees cgroup2 alone, as a host does that has no cgroup v1.
pub fn see_v2_alone(unshare: &mut Command) {
    unshare.args(["-m", "--propagation", "private", "sh", "-c", V2_ALONE, "sh"]);
}

/// Where cgroup2 is mounted. Source: `/proc/self/mountinfo`, field after ` - `.
///
/// # Errors
/// When the mounts cannot be read.
pub fn root() -> Result<Option<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from))
}

/// Removes a cgroup and those below it, where it is.
///
/// # Errors
/// When there are processes in one.
pub fn remove(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(folder).with_context(|| format!("remove {}", folder.display()))
}

/// A cgroup of ours and the folder around it; removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    outer: PathBuf,
    inner: PathBuf,
}

impl Cgroup {
    /// Makes `inner` in `outer`, which is new.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn make(root: &Path, outer: &str, inner: &str) -> Result<Self> {
        let outer = root.join(format!("flowtilla-test-{outer}"));
        let group = Self {
            inner: outer.join(inner),
            outer,
        };
        std::fs::create_dir_all(&group.inner).with_context(|| format!("make {}", group.inner.display()))?;
        Ok(group)
    }

    /// The folder around it.
    #[must_use]
    pub fn outer(&self) -> &Path {
        &self.outer
    }

    /// The cgroup itself.
    #[must_use]
    pub fn inner(&self) -> &Path {
        &self.inner
    }

    /// Has a command run in it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn take_in(&self, command: &mut Command) -> Result<()> {
        let procs = std::fs::OpenOptions::new()
            .write(true)
            .open(self.inner.join("cgroup.procs"))?;
        // SAFETY: one write(2) of a constant, before exec: the kernel reads 0 as the writing process.
        unsafe {
            command.pre_exec(move || {
                rustix::io::write(&procs, b"0")?;
                Ok(())
            });
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in [&self.inner, &self.outer] {
            if let Err(error) = std::fs::remove_dir(folder) {
                eprintln!("{} stays: {error}", folder.display());
            }
        }
    }
}

/// A mount namespace in which cgroup2 is all that there is of cgroups, as on a host without cgroup v1. Processes in it keep it
/// when it is dropped.
#[derive(Debug)]
pub struct View(Process);

impl View {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open() -> Result<Self> {
        let mut command = Command::new("unshare");
        // What holds it ends with this process.
        see_v2_alone(&mut command);
        command.args(["sh", "-c", "echo ready; exec cat"]);
        let mut holder = Process::start(command)?;
        let out = holder.out().clone();
        holder.wait_for_line(out, PATIENCE, "a view of cgroup2", |line| {
            (line == "ready").then_some(())
        })?;
        Ok(Self(holder))
    }

    /// A command in it, on a host.
    #[must_use]
    pub fn command(&self, host: &NetNs, program: &Path) -> Command {
        let mut command = host.command("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.0.pid()))
            .arg("--")
            .arg(program);
        command
    }
}

/// The folder of the cgroup that this process is in. Source: `/proc/self/cgroup`, the line of hierarchy 0.
///
/// # Errors
/// When that cannot be read.
pub fn own(root: &Path) -> Result<PathBuf> {
    let lines = std::fs::read_to_string("/proc/self/cgroup")?;
    let own = lines.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(root.join(own.context("this process is in no cgroup2")?))
}

/// Puts a process that runs into the cgroup of this folder.
///
/// # Errors
/// When either is gone.
pub fn put(folder: &Path, pid: u32) -> Result<()> {
    let procs = folder.join("cgroup.procs");
    std::fs::write(&procs, pid.to_string()).with_context(|| format!("put {pid} into {}", procs.display()))
}
