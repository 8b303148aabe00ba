//! The identity on the disk: key, SVID and roots, replaced as one.
//!
//! Below the agent's state, directories 0700, files 0600:
//!
//! | path | what |
//! |---|---|
//! | `identity/%016x/key.pem` | PKCS#8, made here, and it stays here |
//! | `identity/%016x/chain.pem` | the SVID, then the certificates between it and a root |
//! | `identity/%016x/bundle.pem` | roots of the trust domain |
//! | `identity/current` | symbolic link to the one of these directories that counts |
//! | `identity/asked.pem` | key of an enrolment that has no answer yet |
//! | `identity/token` | id, not the secret, of the join token that was used or refused last |
//!
//! Order of writes: the three files of a directory, each synced; the directory; the link under another name, renamed; its
//! directory; then what the link does not name is removed. So the link names a whole set at any time, and a crash leaves
//! the former one. The key of an enrolment is on the disk before the token is shown: when the answer is lost, the same key
//! asks again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flowtilla_proto::token::TokenId;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Identity, IdentityError, new_key};
use crate::files::{check_owner, entries, make_directory, read_at_most, replace, sync_directory};

/// Octets of a file at most: a chain or a bundle of 64 certificates.
const FILE_OCTETS_MAX: u64 = 256 << 10;
/// Octets in a line of PEM. Source: RFC 7468 §2.
const PEM_LINE: usize = 64;

/// Where the identity is kept; `None`: in memory only, for an agent that ends with its process.
#[derive(Clone, Debug)]
pub(super) struct Place(pub(super) Option<PathBuf>);

/// Why an identity cannot be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refuses.
    #[error("{path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else could change it.
    #[error("{path} is not safe to use: {why}")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// What is there is no identity.
    #[error("the identity in {path} cannot be used; enrol anew with --token-file")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
}

/// Called between the steps of a change; an error ends it there, as a crash would.
pub(super) type Between<'a> = &'a mut dyn FnMut(&'static str) -> io::Result<()>;

impl Place {
    /// Below the agent's state.
    pub(super) fn below(state: &Path) -> Self {
        Self(Some(state.join("identity")))
    }

    /// The identity; `None`: there was never one.
    ///
    /// # Errors
    /// [`FileError`].
    pub(super) fn load(&self) -> Result<Option<Identity>, FileError> {
        let Some(directory) = &self.0 else { return Ok(None) };
        check_owner(directory).map_err(|why| FileError::Unsafe {
            path: directory.clone(),
            why,
        })?;
        let current = directory.join("current");
        let name = match fs::read_link(&current) {
            Ok(name) => name,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(&current, source)),
        };
        let damaged = |source| FileError::Damaged {
            path: directory.clone(),
            source,
        };
        let number = name.to_str().and_then(number_of);
        let set = directory.join(number.map(name_of).ok_or_else(|| damaged(IdentityError::Link))?);
        let text = |file: &str| {
            let path = set.join(file);
            let octets = read_at_most(&path, FILE_OCTETS_MAX).map_err(|source| io_error(&path, source))?;
            let octets = octets.ok_or_else(|| damaged(IdentityError::Missing(file.to_owned())))?;
            String::from_utf8(octets).map_err(|_| damaged(IdentityError::Pem(file.to_owned())))
        };
        let certificates = |file: &str| {
            let text = text(file)?;
            CertificateDer::pem_slice_iter(text.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| damaged(IdentityError::Pem(file.to_owned())))
        };
        let (key, chain, bundle) = (
            text("key.pem")?,
            certificates("chain.pem")?,
            certificates("bundle.pem")?,
        );
        let key = KeyPair::from_pem(&key).map_err(|_| damaged(IdentityError::Pem("key.pem".to_owned())))?;
        Identity::assemble(key, chain, bundle).map(Some).map_err(damaged)
    }

    /// Puts an identity in the place of the former one.
    ///
    /// # Errors
    /// [`FileError::Io`]: the former one counts, unless the last step failed.
    pub(super) fn store(&self, identity: &Identity, between: Between<'_>) -> Result<(), FileError> {
        let Some(directory) = &self.0 else { return Ok(()) };
        self.try_store(directory, identity, between)
            .map_err(|source| io_error(directory, source))
    }

    fn try_store(&self, directory: &Path, identity: &Identity, between: Between<'_>) -> io::Result<()> {
        make_directory(directory)?;
        let newest = entries(directory)?
            .iter()
            .filter_map(|path| {
                path.file_name()
                    .and_then(|name| name.to_str())
                    .and_then(number_of)
            })
            .max();
        let name = name_of(newest.unwrap_or(0).saturating_add(1));
        let set = directory.join(&name);
        make_directory(&set)?;
        between("directory")?;
        replace(&set.join("key.pem"), identity.key_pem().as_bytes())?;
        between("key")?;
        replace(&set.join("chain.pem"), certificates(identity.chain()).as_bytes())?;
        between("chain")?;
        replace(
            &set.join("bundle.pem"),
            certificates(identity.bundle()).as_bytes(),
        )?;
        between("bundle")?;
        let link = directory.join("current.tmp");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(&name, &link)?;
        between("link")?;
        fs::rename(&link, directory.join("current"))?;
        sync_directory(directory)?;
        between("renamed")?;
        self.tidy(directory, &name);
        Ok(())
    }

    /// Removes what does not count any more. What cannot be removed is tried again the next time.
    fn tidy(&self, directory: &Path, kept: &str) {
        for path in entries(directory).unwrap_or_default() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let outcome = match name {
                _ if name == kept => Ok(()),
                "asked.pem" => fs::remove_file(&path),
                _ if number_of(name).is_some() => fs::remove_dir_all(&path),
                _ => Ok(()),
            };
            if let Err(error) = outcome {
                tracing::warn!(path = %path.display(), %error, "a former identity stays on the disk");
            }
        }
    }

    /// Id of the join token that was used or refused last. Anything else in its file counts as none: the token is tried again.
    pub(super) fn noted_token(&self) -> Option<TokenId> {
        let octets = read_at_most(&self.0.as_ref()?.join("token"), FILE_OCTETS_MAX);
        TokenId::parse(std::str::from_utf8(&octets.ok()??).ok()?.trim())
    }

    /// Keeps the id of a join token. When that fails the token is tried once more at the next start, and refused.
    pub(super) fn note_token(&self, id: TokenId) {
        let Some(directory) = &self.0 else { return };
        let path = directory.join("token");
        if let Err(error) = replace(&path, format!("{id}\n").as_bytes()) {
            tracing::warn!(path = %path.display(), %error, "which token was used is not kept");
        }
    }

    /// The key of an enrolment: that of the last try without an answer, or a new one, which is on the disk then.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub(super) fn asking_key(&self) -> Result<KeyPair, FileError> {
        let Some(directory) = &self.0 else {
            return Ok(new_key());
        };
        let path = directory.join("asked.pem");
        let failed = |source| io_error(&path, source);
        make_directory(directory).map_err(failed)?;
        check_owner(directory).map_err(|why| FileError::Unsafe {
            path: directory.clone(),
            why,
        })?;
        let kept = read_at_most(&path, FILE_OCTETS_MAX).map_err(failed)?;
        let kept = kept.and_then(|octets| KeyPair::from_pem(std::str::from_utf8(&octets).ok()?).ok());
        if let Some(key) = kept {
            return Ok(key);
        }
        let key = new_key();
        replace(&path, key.serialize_pem().as_bytes()).map_err(failed)?;
        Ok(key)
    }
}

fn io_error(path: &Path, source: io::Error) -> FileError {
    FileError::Io {
        path: path.to_owned(),
        source,
    }
}

fn name_of(number: u64) -> String {
    format!("{number:016x}")
}

fn number_of(name: &str) -> Option<u64> {
    let hex = name.len() == 16 && name.bytes().all(|octet| octet.is_ascii_hexdigit());
    hex.then(|| u64::from_str_radix(name, 16).ok()).flatten()
}

/// Something in DER as text. Source: RFC 7468.
pub(super) fn pem(tag: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {tag}-----\n");
    let encoded = STANDARD.encode(der);
    for line in encoded.as_bytes().chunks(PEM_LINE) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text + &format!("-----END {tag}-----\n")
}

fn certificates(list: &[CertificateDer<'_>]) -> String {
    list.iter().map(|der| pem("CERTIFICATE", der)).collect()
}
