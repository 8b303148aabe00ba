//! The last good assignment on the disk: what is in force at once at a start, with or without a controller.
//!
//! Two files below the agent's state, 0600: `held` is what was put in force last; `held.next` is what is about to be.
//! Order: `held.next` is written and synced; it is put in force; the former one gets `held.former` as a second name; `held.next`
//! is renamed to `held`, the directory synced; then it is acknowledged. So a crash at any step leaves `held` as the last
//! assignment that worked: one that takes the agent down is not tried at the next start. When the directory cannot be synced
//! the former one is `held` again, because the new one is refused then.
//!
//! Format, version 1; numbers are little-endian:
//!
//! | octets | what |
//! |---|---|
//! | 0–3 | `FTHD` |
//! | 4–7 | u32, 1 |
//! | 8–15 | u64, epoch |
//! | 16–23 | u64, version |
//! | 24–55 | SHA-256 of the content |
//! | 56–59 | u32, octets of the content, at most 2^20 |
//! | 60–63 | u32, CRC-32 (IEEE) of octets 0–59 and the content |
//! | 64– | the content: `flowtilla.session.v1.Assignment`, encoded |
//!
//! A file that is anything else is moved to `held.damaged`: nothing is in force then, rather than something else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::session::{CONTENT_OCTETS_MAX, Digest, Held, Version};

use crate::files::{make_directory, read_at_most, replace, sync_directory};

const MAGIC: &[u8; 4] = b"FTHD";
const VERSION: u32 = 1;
const HEAD: usize = 64;

/// An assignment as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub held: Held,
    /// An assignment, encoded.
    pub content: Vec<u8>,
}

/// Why what is held is not known.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The disk.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error(
        "{path} is damaged ({why}): nothing is in force until a controller says what; it is kept as {aside}"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
        /// Where it is now.
        aside: PathBuf,
    },
}

/// Where assignments are kept; `None`: in memory only, for an agent that ends with its process.
#[derive(Clone, Debug)]
pub struct HeldStore(pub Option<PathBuf>);

impl HeldStore {
    /// What was put in force last; `None`: nothing ever was.
    ///
    /// # Errors
    /// [`HeldError`].
    pub fn load(&self) -> Result<Option<Kept>, HeldError> {
        let Some(directory) = &self.0 else { return Ok(None) };
        let path = directory.join("held");
        let most = (HEAD + CONTENT_OCTETS_MAX) as u64;
        let damaged = |why| {
            let aside = directory.join("held.damaged");
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!(path = %path.display(), %error, "it cannot be moved aside");
            }
            HeldError::Damaged {
                path: path.clone(),
                why,
                aside,
            }
        };
        let octets = match read_at_most(&path, most) {
            Ok(Some(octets)) => octets,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged("longer than any assignment"));
            }
            Err(source) => return Err(HeldError::Io { path, source }),
        };
        decode(&octets).map(Some).map_err(damaged)
    }

    /// Writes what is about to be put in force.
    ///
    /// # Errors
    /// What the system says; what is held is untouched.
    pub fn prepare(&self, kept: &Kept) -> io::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        make_directory(directory)?;
        replace(&directory.join("held.next"), &encode(kept))
    }

    /// What was prepared is in force: from here on it is held.
    ///
    /// # Errors
    /// What the system says; what was held before is held again then.
    pub fn commit(&self) -> io::Result<()> {
        self.commit_by(sync_directory)
    }

    fn commit_by(&self, sync: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let Some(directory) = &self.0 else { return Ok(()) };
        let (held, former) = (directory.join("held"), directory.join("held.former"));
        absent_is_fine(fs::remove_file(&former))?;
        absent_is_fine(fs::hard_link(&held, &former))?;
        fs::rename(directory.join("held.next"), &held)?;
        let Err(error) = sync(directory) else {
            if let Err(error) = absent_is_fine(fs::remove_file(&former)) {
                tracing::warn!(path = %former.display(), %error, "it stays, and is not read");
            }
            return Ok(());
        };
        let undone = match fs::rename(&former, &held) {
            // There was none before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::remove_file(&held),
            undone => undone,
        };
        if let Err(error) = undone {
            tracing::error!(path = %held.display(), %error, "it was refused, and is in force after a restart: the disk takes nothing back");
        }
        Err(error)
    }

    /// What was prepared could not be put in force.
    pub fn discard(&self) {
        let Some(directory) = &self.0 else { return };
        let path = directory.join("held.next");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "it stays, and is not read");
            }
            _ => {}
        }
    }
}

fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn encode(kept: &Kept) -> Vec<u8> {
    let mut octets = Vec::with_capacity(HEAD + kept.content.len());
    octets.extend_from_slice(MAGIC);
    octets.extend_from_slice(&VERSION.to_le_bytes());
    octets.extend_from_slice(&kept.held.version.epoch.to_le_bytes());
    octets.extend_from_slice(&kept.held.version.number.to_le_bytes());
    octets.extend_from_slice(&kept.held.digest.0);
    let length = u32::try_from(kept.content.len()).expect("an offer's content is bounded");
    octets.extend_from_slice(&length.to_le_bytes());
    let sum = sum(&octets, &kept.content);
    octets.extend_from_slice(&sum.to_le_bytes());
    octets.extend_from_slice(&kept.content);
    octets
}

pub(crate) fn decode(octets: &[u8]) -> Result<Kept, &'static str> {
    let (head, content) = octets.split_first_chunk::<HEAD>().ok_or("cut off")?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight octets"));
    let short = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four octets"));
    if head[..4] != *MAGIC {
        return Err("no such file");
    }
    if short(4) != VERSION {
        return Err("of a version that this one does not know");
    }
    if short(56) as usize != content.len() {
        return Err("cut off");
    }
    if short(60) != sum(&head[..60], content) {
        return Err("its checksum is wrong");
    }
    let digest = Digest(head[24..56].try_into().expect("32 octets"));
    if digest != Digest::of(content) {
        return Err("its SHA-256 is wrong");
    }
    Ok(Kept {
        held: Held {
            version: Version {
                epoch: number(8),
                number: number(16),
            },
            digest,
        },
        content: content.to_vec(),
    })
}

fn sum(head: &[u8], content: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(head);
    sum.update(content);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn kept(number: u64) -> Kept {
        let content = format!("assignment {number}").into_bytes();
        Kept {
            held: Held {
                version: Version { epoch: 1, number },
                digest: Digest::of(&content),
            },
            content,
        }
    }

    #[test]
    fn a_crash_at_any_step_leaves_the_last_one_that_was_in_force() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = HeldStore(Some(directory.path().join("state")));
        assert_eq!(store.load().expect("nothing yet"), None);
        for number in 1..20 {
            let before = store.load().expect("what was committed");
            store.prepare(&kept(number)).expect("a disk");
            assert_eq!(store.load().expect("the former"), before, "prepared is not held");
            if number % 3 == 0 {
                store.discard();
                store.discard();
                assert_eq!(store.load().expect("the former"), before);
            } else {
                store.commit().expect("a disk");
                assert_eq!(store.load().expect("the new one"), Some(kept(number)));
            }
        }
        let mode = |name: &str| {
            fs::metadata(directory.path().join("state").join(name)).map(|m| m.permissions().mode() & 0o777)
        };
        assert_eq!((mode("held").ok(), mode("").ok()), (Some(0o600), Some(0o700)));
    }

    #[test]
    fn what_cannot_be_synced_is_not_held_after_a_restart_either() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = HeldStore(Some(directory.path().join("state")));
        let fails = |_: &Path| Err(io::Error::from_raw_os_error(libc::EIO));
        store.prepare(&kept(1)).expect("a disk");
        store.commit_by(fails).expect_err("it cannot be synced");
        assert_eq!(store.load().expect("readable"), None, "the first one");
        store.prepare(&kept(1)).expect("a disk");
        store.commit().expect("a disk");
        store.prepare(&kept(2)).expect("a disk");
        store.commit_by(fails).expect_err("it cannot be synced");
        assert_eq!(store.load().expect("readable"), Some(kept(1)));
        // Without a second name: a crash before it was removed.
        fs::write(directory.path().join("state/held.former"), b"left").expect("a disk");
        store.prepare(&kept(2)).expect("a disk");
        store.commit().expect("a disk");
        assert_eq!(store.load().expect("readable"), Some(kept(2)));
        let left = fs::read_dir(directory.path().join("state")).expect("a directory");
        assert_eq!(left.count(), 1, "held alone");
    }

    #[test]
    fn any_damage_is_told_and_nothing_is_held_then() {
        let whole = encode(&kept(7));
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        for at in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            damaged.push(flipped);
        }
        damaged.push([&whole[..], b"x"].concat());
        damaged.push(vec![0; HEAD + CONTENT_OCTETS_MAX + 1]);
        let directory = tempfile::tempdir().expect("a directory");
        let store = HeldStore(Some(directory.path().to_owned()));
        for octets in damaged {
            fs::write(directory.path().join("held"), &octets).expect("a disk");
            let error = store.load().expect_err("damaged");
            assert!(matches!(error, HeldError::Damaged { .. }), "{error}");
            assert_eq!(store.load().expect("it was moved aside"), None);
            assert_eq!(
                fs::read(directory.path().join("held.damaged")).expect("kept aside"),
                octets
            );
        }
    }
}
