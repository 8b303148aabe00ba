//! A small disk of its own: an ext4 file system in a file, which can be filled, freed and broken.
//!
//! The image is sparse, so that what is reserved in it costs this machine nothing. Unmounted when dropped; the loop
//! device goes with the mount, because mount(8) made it so.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::need::Need;
use crate::process::run;

/// What a disk needs.
pub const NEEDS: [Need; 3] = [
    Need::Root,
    Need::Program("mkfs.ext4", "e2fsprogs"),
    Need::Program("mount", "mount"),
];
/// `EXT4_IOC_SHUTDOWN` and its argument `EXT4_GOING_FLAGS_NOLOGFLUSH`: from then on every access fails with EIO.
/// Source: Linux `fs/ext4/ext4.h`.
const SHUTDOWN: nix::libc::c_ulong = nix::request_code_read!(b'X', 125, size_of::<u32>());
const WITHOUT_FLUSH: u32 = 2;
/// Step in which the last free octets are taken, in octets: one block.
const BLOCK_OCTETS: u64 = 4_096;

/// Name of the file that is the disk.
const IMAGE: &str = "image";

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    /// Declared first: unmounted before its folder goes.
    mounted: Mounted,
    folder: TempDir,
}

#[derive(Debug)]
struct Mounted(PathBuf);

impl Disk {
    /// Makes a file system of `octets` and mounts it. Errors make it read-only, as distributions have it.
    ///
    /// # Errors
    /// When not root, or the kernel has no loop devices.
    pub fn make(octets: u64) -> Result<Self> {
        Self::make_with(octets, "")
    }

    /// The same, whose journal commits by itself every five minutes only: what nobody synced is not there after a
    /// [`Self::cut`].
    ///
    /// # Errors
    /// See [`Self::make`].
    pub fn make_lazy(octets: u64) -> Result<Self> {
        Self::make_with(octets, ",commit=300")
    }

    fn make_with(octets: u64, options: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let image = folder.path().join(IMAGE);
        File::create(&image)?.set_len(octets)?;
        let at_once = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-E", at_once])
            .arg(&image))?;
        Self::mount(folder, options)
    }

    fn mount(folder: TempDir, options: &str) -> Result<Self> {
        let at = folder.path().join("disk");
        std::fs::create_dir(&at)?;
        run(Command::new("mount")
            .args(["-o", &format!("loop,errors=remount-ro{options}")])
            .arg(folder.path().join(IMAGE))
            .arg(&at))?;
        Ok(Self {
            mounted: Mounted(at),
            folder,
        })
    }

    /// The same disk as a power cut in this moment leaves it: what was synced, and nothing more than that for sure.
    ///
    /// # Errors
    /// When there is no room for the copy.
    pub fn cut(&self) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::copy(self.folder.path().join(IMAGE), folder.path().join(IMAGE))?;
        Self::mount(folder, "")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mounted.0
    }

    /// Octets that are free.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub fn free_octets(&self) -> Result<u64> {
        let status = rustix::fs::statvfs(self.path())?;
        Ok(status.f_bavail * status.f_frsize)
    }

    /// Takes all free octets but `left`.
    ///
    /// # Errors
    /// When the file system refuses before.
    pub fn fill(&self, left: u64) -> Result<()> {
        let file = File::create(self.filler())?;
        let mut octets = 0;
        loop {
            let more = self.free_octets()?.saturating_sub(left) / BLOCK_OCTETS * BLOCK_OCTETS;
            if more == 0 {
                return Ok(());
            }
            octets += more;
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, octets) {
                Ok(()) => {}
                // Others write as well, and the file system needs blocks of its own.
                Err(rustix::io::Errno::NOSPC) => return Ok(()),
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
    }

    /// Gives back what [`Self::fill`] took.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.filler())?)
    }

    /// Has the kernel find an error in the file system: it becomes read-only, open files or not.
    ///
    /// # Errors
    /// When the kernel has no such switch.
    pub fn make_read_only(&self) -> Result<()> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let at = self.path().to_string_lossy();
        let of_this = mounts.lines().find_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            (rest.split(' ').next() == Some(&*at)).then_some(device)
        });
        let device = of_this.and_then(|device| Path::new(device).file_name());
        let device = device.context("the disk is not mounted")?;
        let switch = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        std::fs::write(&switch, "test").with_context(|| format!("write {}", switch.display()))
    }

    /// Has every access fail from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn break_down(&self) -> Result<()> {
        let root = File::open(self.path())?;
        let how = WITHOUT_FLUSH;
        // SAFETY: the call reads one u32, which lives through it, and changes only this file system.
        let rc = unsafe { nix::libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const how) };
        nix::errno::Errno::result(rc).context("shut the file system down")?;
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: an agent that a failed test left may still have files open, and dies with the test.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

/// Where something is mounted below `folder`, in the order of mounting.
///
/// # Errors
/// When the mounts cannot be read.
pub fn mounted_below(folder: &Path) -> Result<Vec<String>> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| Path::new(point).starts_with(folder));
    Ok(ours.map(str::to_owned).collect())
}

/// Unmounts what is mounted below `folder`, the innermost first: what a runtime of containers left.
///
/// # Errors
/// When the mounts cannot be read, or one cannot be undone.
pub fn unmount_below(folder: &Path) -> Result<()> {
    for point in mounted_below(folder)?.iter().rev() {
        run(Command::new("umount").args(["-l", point]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need;

    #[test]
    fn a_disk_fills_up_and_breaks_by_itself() {
        if !need::met(&NEEDS) {
            return;
        }
        let disk = Disk::make(64 << 20).expect("root and a loop device");
        let at = disk.path().join("file");
        std::fs::write(&at, "before").expect("it is new");
        disk.fill(0).expect("it can be filled");
        let full = std::fs::write(disk.path().join("more"), vec![0; 1 << 20]);
        assert_eq!(
            full.expect_err("it is full").kind(),
            std::io::ErrorKind::StorageFull
        );
        disk.free().expect("it was filled");
        std::fs::write(disk.path().join("more"), "more").expect("there is room again");
        disk.make_read_only().expect("the kernel's own switch");
        let refused = std::fs::write(&at, "after").expect_err("it is read-only");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let disk = Disk::make(64 << 20).expect("root and a loop device");
        disk.break_down().expect("the kernel's own switch");
        let refused = std::fs::write(disk.path().join("file"), "after").expect_err("nothing works");
        assert_eq!(refused.raw_os_error(), Some(5));
    }
}
