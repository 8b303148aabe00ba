//! Network namespaces as hosts.
//!
//! Made and removed with `ip netns`, entered with setns(2) by one thread or by a child before exec. Never through
//! `ip netns exec`, which mounts another /sys and would hide the cgroup tree. Names carry the pid of their maker, so
//! that a run can sweep away what a killed one left.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::run;

/// How the names of all namespaces of this crate begin.
pub(crate) const PREFIX: &str = "flowtilla-test";
/// Where iproute2 keeps them.
pub(crate) const FOLDER: &str = "/run/netns";

/// One network namespace; removed when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    file: Arc<File>,
}

impl NetNs {
    /// Makes a namespace with loopback up and segmentation offload off on it. `label` is for people.
    ///
    /// # Errors
    /// When not root, or when iproute2 or ethtool is missing.
    pub fn create(label: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{n}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(FOLDER).join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()));
        let file = match file {
            Ok(file) => file,
            Err(error) => {
                remove(&name)?;
                return Err(error);
            }
        };
        let netns = Self {
            name,
            file: Arc::new(file),
        };
        netns.run("ip", &["link", "set", "lo", "up"])?;
        netns.offload_off("lo")?;
        Ok(netns)
    }

    /// Path that names the namespace to others, such as `--scope netns=PATH`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Inode: the kernel's number of the namespace.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn inode(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.file.metadata()?.ino())
    }

    /// A command that runs in here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.handle().command(program)
    }

    /// Runs a program in here to its end; its standard output.
    ///
    /// # Errors
    /// When it does not succeed, with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Calls `work` on a thread in here.
    ///
    /// # Errors
    /// When the namespace cannot be entered or `work` fails.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let joined = std::thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(self.file.as_fd(), NETWORK).context("enter namespace")?;
                work()
            };
            scope.spawn(inside).join()
        });
        joined.map_err(|_| anyhow!("a thread in {} panicked", self.name))?
    }

    /// A handle that a long-lived thread can enter by.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.file))
    }

    /// Sets a value below `/proc/sys/net`.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.enter(|| std::fs::write(&path, value).with_context(|| format!("write {}", path.display())))
    }

    /// Turns off what makes one packet of many, so that counters see what a wire would.
    ///
    /// # Errors
    /// When ethtool refuses.
    pub fn offload_off(&self, interface: &str) -> Result<()> {
        self.run(
            "ethtool",
            &["-K", interface, "tso", "off", "gso", "off", "gro", "off"],
        )?;
        Ok(())
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("{error:#}; the next run sweeps it away");
        }
    }
}

/// Lets a thread of its own enter a namespace.
#[derive(Clone, Debug)]
pub struct Handle(Arc<File>);

impl Handle {
    /// A command that runs in there.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.0);
        // SAFETY: setns is a system call without allocation or locks; it touches only the child.
        unsafe {
            command.pre_exec(move || Ok(move_into_link_name_space(file.as_fd(), NETWORK)?));
        }
        command
    }

    /// Moves the calling thread, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), NETWORK).context("enter namespace")
    }
}

/// Removes the namespaces of runs that are no more; how many there were.
///
/// # Errors
/// When one cannot be removed.
pub fn sweep() -> Result<usize> {
    let mut swept = 0;
    let Ok(folder) = std::fs::read_dir(FOLDER) else {
        return Ok(0);
    };
    for entry in folder {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if maker(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name)?;
            swept += 1;
        }
    }
    Ok(swept)
}

const NETWORK: Option<LinkNameSpaceType> = Some(LinkNameSpaceType::Network);

fn maker(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?;
    rest.split('-').next()?.parse().ok()
}

fn remove(name: &str) -> Result<()> {
    run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maker_is_read_from_our_names_only() {
        assert_eq!(maker("flowtilla-test-42-0-left"), Some(42));
        assert_eq!(maker("flowtilla-test-x-0-left"), None);
        assert_eq!(maker("cni-42"), None);
    }
}
