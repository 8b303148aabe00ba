//! The controller's state directory: what is where, who may read it, and that one controller at a time uses it.
//!
//! | path | what |
//! |---|---|
//! | `lock` | locked while a controller, or a command that changes the state, is at work; holds its process id |
//! | `store/` | [`crate::store::sled`] |
//! | `ca/` | keys of the authority: [`crate::identity::ca`] |
//! | `control.sock` | where a running controller hears this host's commands: [`crate::local`] |
//!
//! Directories have mode 0700, files of secrets 0600. What others could read is refused, with the remedy. Root makes and changes
//! nothing in another user's state ([`parent`]).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

mod parent;

/// Most octets of a key's or a certificate chain's file.
const SMALL_FILE_OCTETS_MAX: u64 = 256 << 10;

/// A state directory that is ours until it is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error(
        "{path} is in use by another controller{who}; stop that one, or use the commands that ask a running one"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process id, in words; empty when it is not known.
        who: String,
    },
    /// Nothing was made here.
    #[error(
        "{0} holds no controller's state; make it with `flowtilla-controller init --state {0}`, as the user that the controller \
         runs as (of a service: `runuser -u USER -- …`, its unit names the user), and start it again"
    )]
    Absent(PathBuf),
    /// Something was made here before.
    #[error("{0} holds a controller's state already; choose another directory, or remove it")]
    Present(PathBuf),
    /// Others could read or change it.
    #[error("{path} has mode {mode:o}: others could read it; run `chmod {wanted:o} {path}`")]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// What it should be.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}; {}", own(path, *owner, *user))]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// It is larger than what is expected there.
    #[error("{0} is too large: another file stands in its place")]
    Large(PathBuf),
    /// The system refused.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl StateDir {
    /// Makes a state directory. It may be there, when it is empty and nobody else's.
    ///
    /// # Errors
    ///
    /// [`StateError`]; [`StateError::Present`] when there is a state in it.
    pub fn create(path: &Path) -> Result<Self, StateError> {
        parent::check(path)?;
        private_directory(path)?;
        let state = Self::locked(path)?;
        if state.store().exists() {
            return Err(StateError::Present(path.to_owned()));
        }
        private_directory(&state.ca())?;
        private_directory(&state.store())?;
        Ok(state)
    }

    /// Takes a state directory that was made before.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let store = path.join("store");
        match store.try_exists() {
            Ok(true) => check_private(path, 0o700)?,
            Ok(false) => return Err(StateError::Absent(path.to_owned())),
            Err(source) => {
                // Whose it is says more.
                check_private(path, 0o700)?;
                return Err(io_error("reading", &store, source));
            }
        }
        let state = Self::locked(path)?;
        check_private(&state.ca(), 0o700)?;
        check_private(&state.store(), 0o700)?;
        Ok(state)
    }

    fn locked(path: &Path) -> Result<Self, StateError> {
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|source| io_error("opening", &lock_path, source))?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(io_error("locking", &lock_path, error.into()));
            }
            let mut who = String::new();
            let _ = (&mut lock).take(20).read_to_string(&mut who); // For people only.
            let who = match who.trim().parse::<u32>() {
                Ok(process) => format!(" (process {process})"),
                Err(_) => String::new(),
            };
            return Err(StateError::InUse {
                path: path.to_owned(),
                who,
            });
        }
        lock.set_len(0)
            .and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()))
            .map_err(|source| io_error("writing", &lock_path, source))?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where the authority's keys are.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }
}

/// Where a running controller hears this host's commands.
#[must_use]
pub fn control_socket(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// Makes a directory of mode 0700, or takes one that is ours alone.
///
/// # Errors
///
/// [`StateError`].
pub(crate) fn private_directory(path: &Path) -> Result<(), StateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_private(path, 0o700),
        Err(error) => Err(io_error("making the directory", path, error)),
    }
}

/// Writes a new file of mode 0600 and has it on the disk. One that is there already is not touched.
///
/// # Errors
///
/// [`StateError`].
pub fn write_private(path: &Path, octets: &[u8]) -> Result<(), StateError> {
    let mut file = create_private(path)?;
    file.write_all(octets)
        .and_then(|()| file.sync_all())
        .map_err(|source| io_error("writing", path, source))?;
    sync_parent(path)
}

/// Makes a new, empty file of mode 0600.
pub(crate) fn create_private(path: &Path) -> Result<File, StateError> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| io_error("making", path, source))?;
    // The process's umask may have taken more away than we need.
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(|source| io_error("making", path, source))?;
    Ok(file)
}

/// Reads a small file of a secret, when nobody else can.
///
/// # Errors
///
/// [`StateError`]: also when others could read it.
pub(crate) fn read_private(path: &Path) -> Result<Vec<u8>, StateError> {
    let file = File::open(path).map_err(|source| io_error("reading", path, source))?;
    let facts = file
        .metadata()
        .map_err(|source| io_error("reading", path, source))?;
    check_facts(path, &facts, 0o600)?;
    read_bounded(path, &file)
}

/// Reads a small file without a secret.
///
/// # Errors
///
/// [`StateError`].
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, StateError> {
    let file = File::open(path).map_err(|source| io_error("reading", path, source))?;
    read_bounded(path, &file)
}

fn read_bounded(path: &Path, file: &File) -> Result<Vec<u8>, StateError> {
    let mut octets = Vec::new();
    file.take(SMALL_FILE_OCTETS_MAX + 1)
        .read_to_end(&mut octets)
        .map_err(|source| io_error("reading", path, source))?;
    match octets.len() as u64 > SMALL_FILE_OCTETS_MAX {
        true => Err(StateError::Large(path.to_owned())),
        false => Ok(octets),
    }
}

fn check_private(path: &Path, wanted: u32) -> Result<(), StateError> {
    let facts = fs::metadata(path).map_err(|source| io_error("looking at", path, source))?;
    check_facts(path, &facts, wanted)
}

fn check_facts(path: &Path, facts: &fs::Metadata, wanted: u32) -> Result<(), StateError> {
    let path = path.to_owned();
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::Open { path, mode, wanted });
    }
    let (owner, user) = (facts.uid(), rustix::process::geteuid().as_raw());
    if owner != user {
        return Err(StateError::Foreign { path, owner, user });
    }
    Ok(())
}

/// What to do about `path`, which is `owner`'s, while we are `user`. Root does not take a service's state away from it.
fn own(path: &Path, owner: u32, user: u32) -> String {
    match user {
        0 => format!("run this as that user: put `runuser -u $(id -nu {owner}) --` before it"),
        _ => format!("run `chown -R {user} {}` as root", path.display()),
    }
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), StateError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error("syncing", parent, source))
}

pub(crate) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(owner: u32, user: u32) -> String {
        let path = PathBuf::from("/var/lib/x");
        StateError::Foreign { path, owner, user }.to_string()
    }

    #[test]
    fn root_is_never_told_to_take_a_services_state_away_from_it() {
        let text = foreign(997, 0);
        assert!(
            text.ends_with("`runuser -u $(id -nu 997) --` before it"),
            "{text}"
        );
        assert!(!text.contains("chown"), "{text}");
    }

    #[test]
    fn a_service_whose_state_root_made_says_whose_it_is_to_be() {
        let text = foreign(0, 997);
        assert!(text.ends_with("run `chown -R 997 /var/lib/x` as root"), "{text}");
    }

    #[test]
    fn an_empty_directory_holds_no_state() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = StateDir::open(directory.path()).expect_err("it is empty");
        assert!(matches!(error, StateError::Absent(_)), "{error}");
    }
}
