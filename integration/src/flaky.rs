//! A disk that fails as told: a folder, seen through FUSE, of which single kinds of access end with EIO.
//!
//! Every access is handed on to a folder below; nothing is cached, so that each one can fail. Inodes keep their numbers for
//! the life of the mount. Unmounted when dropped.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use tempfile::TempDir;

use crate::need::Need;

/// What such a disk needs.
pub const NEEDS: [Need; 2] = [Need::Root, Need::Program("fusermount3", "fuse3")];

/// Kinds of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading from a file.
    Read = 0,
    /// Writing to a file, or changing its length.
    Write = 1,
    /// Making sure that it is on the disk.
    Sync = 2,
    /// Making, renaming and removing files and folders.
    Names = 3,
}

/// Which accesses fail: one in so many, 0 means none.
#[derive(Debug, Default)]
struct Faults {
    one_in: [AtomicU32; 4],
    seen: [AtomicU64; 4],
    failed: AtomicU64,
}

/// A mounted disk.
#[derive(Debug)]
pub struct Flaky {
    // Declared first: unmounted before its folders go.
    _session: BackgroundSession,
    faults: Arc<Faults>,
    at: PathBuf,
    _folder: TempDir,
}

impl Flaky {
    /// Mounts one; nothing fails yet.
    ///
    /// # Errors
    /// When not root, or the kernel has no FUSE.
    pub fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (below, at) = (folder.path().join("below"), folder.path().join("disk"));
        std::fs::create_dir(&below)?;
        std::fs::create_dir(&at)?;
        let faults = Arc::new(Faults::default());
        let through = Through {
            names: Mutex::new(Names {
                paths: HashMap::from([(INodeNo::ROOT.0, below)]),
                next: INodeNo::ROOT.0 + 1,
            }),
            faults: Arc::clone(&faults),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("flaky".into()),
            MountOption::DefaultPermissions,
        ];
        let session = fuser::spawn_mount(through, &at, &config).context("mount by FUSE")?;
        Ok(Self {
            _session: session,
            faults,
            at,
            _folder: folder,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Has one in `one_in` accesses of a kind fail from now on; 0: none.
    pub fn fail(&self, access: Access, one_in: u32) {
        self.faults.one_in[access as usize].store(one_in, Relaxed);
    }

    /// How many accesses have failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.faults.failed.load(Relaxed)
    }
}

impl Faults {
    fn meet(&self, access: Access) -> io::Result<()> {
        let n = self.seen[access as usize].fetch_add(1, Relaxed) + 1;
        match self.one_in[access as usize].load(Relaxed) {
            0 => Ok(()),
            one_in if n.is_multiple_of(u64::from(one_in)) => {
                self.failed.fetch_add(1, Relaxed);
                Err(io::Error::from_raw_os_error(nix::libc::EIO))
            }
            _ => Ok(()),
        }
    }
}

/// How long the kernel may believe an answer: not at all.
const TTL: Duration = Duration::ZERO;

#[derive(Debug)]
struct Names {
    paths: HashMap<u64, PathBuf>,
    next: u64,
}

impl Names {
    fn path(&self, inode: INodeNo) -> io::Result<PathBuf> {
        let unknown = || io::Error::from_raw_os_error(nix::libc::ESTALE);
        self.paths.get(&inode.0).cloned().ok_or_else(unknown)
    }

    fn inode(&mut self, path: &Path) -> INodeNo {
        let known = self.paths.iter().find(|(_, known)| *known == path);
        INodeNo(known.map(|(&inode, _)| inode).unwrap_or_else(|| {
            let inode = self.next;
            self.next += 1;
            self.paths.insert(inode, path.to_owned());
            inode
        }))
    }

    /// A removed file's number is never used for another of its name.
    fn forget(&mut self, path: &Path) {
        self.paths.retain(|_, known| known != path);
    }

    fn moved(&mut self, from: &Path, to: &Path) {
        self.forget(to);
        for known in self.paths.values_mut() {
            if let Ok(rest) = known.strip_prefix(from) {
                *known = if rest.as_os_str().is_empty() {
                    to.to_owned()
                } else {
                    to.join(rest)
                };
            }
        }
    }
}

#[derive(Debug)]
struct Through {
    names: Mutex<Names>,
    faults: Arc<Faults>,
}

impl Through {
    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.names().path(parent)?.join(name))
    }

    fn attributes(&self, path: &Path) -> io::Result<FileAttr> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(attributes(self.names().inode(path), &metadata))
    }

    fn change(&self, inode: INodeNo, mode: Option<u32>, size: Option<u64>) -> io::Result<FileAttr> {
        let path = self.names().path(inode)?;
        if let Some(size) = size {
            self.faults.meet(Access::Write)?;
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
        self.attributes(&path)
    }

    fn read_at(&self, inode: INodeNo, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        self.faults.meet(Access::Read)?;
        let file = File::open(self.names().path(inode)?)?;
        let mut octets = vec![0; size as usize];
        let mut filled = 0;
        while filled < octets.len() {
            match file.read_at(&mut octets[filled..], offset + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        octets.truncate(filled);
        Ok(octets)
    }

    fn write_at(&self, inode: INodeNo, offset: u64, octets: &[u8]) -> io::Result<()> {
        self.faults.meet(Access::Write)?;
        let path = self.names().path(inode)?;
        OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all_at(octets, offset)
    }

    fn sync(&self, inode: INodeNo) -> io::Result<()> {
        self.faults.meet(Access::Sync)?;
        File::open(self.names().path(inode)?)?.sync_all()
    }

    fn make(&self, parent: INodeNo, name: &OsStr, mode: u32, folder: bool) -> io::Result<FileAttr> {
        self.faults.meet(Access::Names)?;
        let path = self.child(parent, name)?;
        if folder {
            std::fs::create_dir(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        } else {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .open(&path)?;
        }
        self.attributes(&path)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, folder: bool) -> io::Result<()> {
        self.faults.meet(Access::Names)?;
        let path = self.child(parent, name)?;
        if folder {
            std::fs::remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
        self.names().forget(&path);
        Ok(())
    }

    fn rename_to(
        &self,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
    ) -> io::Result<()> {
        self.faults.meet(Access::Names)?;
        let (from, to) = (self.child(parent, name)?, self.child(newparent, newname)?);
        std::fs::rename(&from, &to)?;
        self.names().moved(&from, &to);
        Ok(())
    }

    fn entries(&self, inode: INodeNo) -> io::Result<Vec<(INodeNo, FileType, std::ffi::OsString)>> {
        let path = self.names().path(inode)?;
        let mut entries = vec![
            (inode, FileType::Directory, ".".into()),
            (INodeNo::ROOT, FileType::Directory, "..".into()),
        ];
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((self.names().inode(&entry.path()), kind, entry.file_name()));
        }
        Ok(entries)
    }
}

fn attributes(inode: INodeNo, metadata: &Metadata) -> FileAttr {
    let time = |time: io::Result<std::time::SystemTime>| time.unwrap_or(std::time::UNIX_EPOCH);
    FileAttr {
        ino: inode,
        size: metadata.len(),
        blocks: metadata.blocks(),
        atime: time(metadata.accessed()),
        mtime: time(metadata.modified()),
        ctime: time(metadata.modified()),
        crtime: time(metadata.modified()),
        kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink() as u32,
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Through {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name).and_then(|path| self.attributes(&path)) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let path = self.names().path(ino);
        match path.and_then(|path| self.attributes(&path)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.change(ino, mode, size) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        match self.make(parent, name, mode, true) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.make(parent, name, mode, false) {
            Ok(attr) => reply.created(
                &TTL,
                &attr,
                Generation(0),
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.remove(parent, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.remove(parent, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer(self.rename_to(parent, name, newparent, newname), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.names().path(ino).and_then(|path| {
            if flags.0 & nix::libc::O_TRUNC != 0 {
                self.faults.meet(Access::Write)?;
                OpenOptions::new().write(true).truncate(true).open(path)?;
            }
            Ok(())
        });
        match opened {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_at(ino, offset, size) {
            Ok(octets) => reply.data(&octets),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_at(ino, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync(ino), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(self.sync(ino), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.entries(ino) {
            Ok(entries) => {
                for (n, (inode, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(inode, n as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let path = self.names().path(INodeNo::ROOT);
        let asked = path.and_then(|path| Ok(rustix::fs::statvfs(path)?));
        match asked {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(error.into()),
        }
    }
}

fn answer(done: io::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(Errno::from(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::need;

    #[test]
    fn each_kind_of_access_fails_by_itself() {
        if !need::met(&NEEDS) {
            return;
        }
        let disk = Flaky::make().expect("root and FUSE");
        let path = disk.path().join("file");
        std::fs::write(&path, "octets").expect("nothing fails yet");
        assert_eq!(std::fs::read(&path).expect("nothing fails yet"), b"octets");
        let eio = |done: io::Result<()>| assert_eq!(done.expect_err("it fails").raw_os_error(), Some(5));
        disk.fail(Access::Read, 1);
        eio(std::fs::read(&path).map(drop));
        disk.fail(Access::Read, 0);
        disk.fail(Access::Sync, 1);
        let mut file = File::create(disk.path().join("other")).expect("only sync fails");
        file.write_all(b"more").expect("only sync fails");
        eio(file.sync_all());
        disk.fail(Access::Sync, 0);
        disk.fail(Access::Write, 2);
        let done: Vec<_> = (0..4).map(|_| file.write_all(b"x").is_ok()).collect();
        assert_eq!(done.iter().filter(|&&ok| ok).count(), 2, "{done:?}");
        disk.fail(Access::Write, 0);
        disk.fail(Access::Names, 1);
        eio(std::fs::rename(&path, disk.path().join("third")));
        disk.fail(Access::Names, 0);
        std::fs::rename(&path, disk.path().join("third")).expect("nothing fails any more");
        assert_eq!(
            std::fs::read(disk.path().join("third")).expect("it moved"),
            b"octets"
        );
        assert!(disk.failed() >= 4);
    }
}
