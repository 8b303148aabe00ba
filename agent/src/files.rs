//! Small files that must survive a crash: replaced as a whole, for this user alone, links not followed.
//!
//! A file is written under another name, synced, renamed, and its directory synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces a file as a whole.
pub(crate) fn replace(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = open_for_writing(&temporary, true)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Makes a directory for this user alone, and its parents, unless it is there. The parent of each that was made is synced.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    let missing = path
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.is_dir());
    let missing: Vec<&Path> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    missing.into_iter().try_for_each(sync_parent)
}

/// The parent of a plain name is the working directory.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        None => Ok(()),
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
    }
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Paths in a directory; none when there is no directory.
pub(crate) fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing?,
    };
    listing.map(|entry| Ok(entry?.path())).collect()
}

/// Refuses what another user can change: this process may be root, and follow where that user leads. What is not there is
/// fine.
///
/// # Errors
/// Why, and what to do.
pub(crate) fn check_owner(path: &Path) -> Result<(), String> {
    let ours = rustix::process::geteuid().as_raw();
    // A link of ours to another disk is welcome.
    let metadata = [fs::symlink_metadata(path), fs::metadata(path)];
    for metadata in metadata.into_iter().flatten() {
        let is_link = metadata.file_type().is_symlink();
        if metadata.uid() != ours {
            let uid = metadata.uid();
            return Err(format!(
                "it belongs to user {uid}, this is user {ours}: chown it, or name another directory"
            ));
        }
        if !is_link && metadata.mode() & 0o022 != 0 {
            return Err("others may write to it: chmod go-w it, or name another directory".to_owned());
        }
    }
    Ok(())
}

/// A whole file; `None` when there is none.
///
/// # Errors
/// What the system says; `InvalidData`: it has more than `most` octets.
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_for_reading(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    if length > most {
        let why = "larger than any that is written";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut octets = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.take(most).read_to_end(&mut octets)?;
    Ok(Some(octets))
}

/// Opens a file, unless it is a link.
pub(crate) fn open_for_reading(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Opens a file for this user alone, unless it is a link. Makes it when it is not there.
pub(crate) fn open_for_writing(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}
