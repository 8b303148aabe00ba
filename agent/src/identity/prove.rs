//! `flowtilla-agent prove`: whoever is root on this host asks, through the agent's own user, who its agent is.
//!
//! In: where the state is, a challenge. Out: the chain of the identity that is kept, and a signature of the challenge with its key, as
//! PEM: blocks `CERTIFICATE`, then one of [`proof::SIGNATURE_TAG`]. The key is read and shown to nobody. Nothing is changed, and an
//! agent that runs meanwhile is not disturbed: when it puts another identity in the place of the one that is being read, that one
//! is read.

use std::path::Path;

use flowtilla_grpc::proof;

use super::IdentityError;
use super::files::{FileError, Place, pem};

/// How often the files are read when they are replaced meanwhile. An identity is renewed twice a day.
const READS_MAX: usize = 3;

/// Why nothing can be proven.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// What is to be signed.
    #[error("the challenge on stdin has {0} octets; 1 to {max} are taken", max = proof::CHALLENGE_OCTETS_MAX)]
    Challenge(usize),
    /// It was never enrolled.
    #[error("there is no identity here: the agent was never enrolled")]
    None,
    /// The files.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The key does not sign.
    #[error("the key cannot be used")]
    Key(#[source] rustls::Error),
}

/// See the module. `state`: the agent's directory.
///
/// # Errors
///
/// [`ProveError`].
pub fn prove(state: &Path, challenge: &[u8]) -> Result<String, ProveError> {
    if challenge.is_empty() || challenge.len() > proof::CHALLENGE_OCTETS_MAX {
        return Err(ProveError::Challenge(challenge.len()));
    }
    let place = Place::below(state);
    let mut reads = 1;
    let identity = loop {
        match place.load() {
            Err(FileError::Damaged {
                source: IdentityError::Missing(_),
                ..
            }) if reads < READS_MAX => reads += 1,
            read => break read?.ok_or(ProveError::None)?,
        }
    };
    let unusable = || {
        ProveError::Key(rustls::Error::General(
            "it does not sign as SVIDs' keys do".to_owned(),
        ))
    };
    let key = identity.certified.key.choose_scheme(&[proof::SCHEME]);
    let signature = key
        .ok_or_else(unusable)?
        .sign(&proof::signed(challenge))
        .map_err(ProveError::Key)?;
    let chain: String = identity.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    Ok(chain + &pem(proof::SIGNATURE_TAG, &signature))
}
