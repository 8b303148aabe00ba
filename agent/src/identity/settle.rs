//! The first identity of a run: what is kept, what it is recovered to, or what a token gets. The table is in [`super`].

use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_grpc::channel::Address;
use flowtilla_proto::token::{JoinToken, TOKEN_OCTETS_MAX, TokenError};
use tokio_util::sync::CancellationToken;

use super::ask::{AskError, Asked, enrol, recover};
use super::files::{FileError, Place};
use super::{Credentials, Identity, WallClock};

/// Bounds of the delay before the next try, in milliseconds. The upper one as for connections.
const AGAIN_BACKOFF_MS: (u64, u64) = (1_000, 30_000);
/// The same while an operator has to approve: a person is asked.
const APPROVAL_BACKOFF_MS: (u64, u64) = (5_000, 60_000);

/// Where the join token is.
#[derive(Clone, Debug)]
pub enum Token {
    /// In a file, which holds nothing else.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether it is removed when it was used.
        remove: bool,
    },
    /// In memory: controller and agent are one process.
    Given(JoinToken),
}

/// Why there is no identity, and will be none.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Nothing to begin with.
    #[error(
        "this agent is not enrolled: make a token with `agentctl token create`, and give its file with --token-file"
    )]
    NotEnrolled,
    /// The token's file.
    #[error("--token-file {path}")]
    TokenFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token.
    #[error("--token-file {path}: its content {why}")]
    Token {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: TokenError,
    },
    /// The disk.
    #[error(transparent)]
    Files(#[from] FileError),
    /// The controller will not have this agent.
    #[error("{what}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: AskError,
    },
    /// Told to stop first.
    #[error("stopped before the controller had answered")]
    Stopped,
}

/// Who asks whom.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Whom.
    pub controller: Address,
    /// What its id begins with.
    pub host_name: String,
    /// Seed of its delays.
    pub seed: u64,
    /// What tells the time.
    pub clock: WallClock,
}

/// Finds or gets the identity. Waits for a controller that is away, and for an approval, as long as it takes. `told` hears
/// why it waits, each time that changes.
///
/// # Errors
/// [`SettleError`].
pub async fn settle(
    directory: Option<PathBuf>,
    token: Option<&Token>,
    asker: &Asker,
    stop: &CancellationToken,
    mut told: impl FnMut(&str) + Send,
) -> Result<Credentials, SettleError> {
    let place = Place(directory.clone());
    let kept = match (place.load(), token) {
        (Ok(kept), _) => kept,
        (Err(error @ FileError::Damaged { .. }), Some(_)) => {
            tracing::error!(error = %super::ask::chain(&error), "enrols anew");
            None
        }
        (Err(error), _) => return Err(error.into()),
    };
    let mut refused = None;
    if let Some(kept) = kept {
        if !kept.validity().is_over(asker.clock.now()) {
            return Ok(Credentials::new(kept, directory, asker.clock.clone()));
        }
        tracing::warn!(id = %kept.id(), "the SVID has run out while this agent was away: asks for the next one");
        let asking = || recover(&asker.controller, &kept, &asker.clock);
        match insist(asker, stop, &mut told, asking).await? {
            Ok(next) => return keep(directory, asker, &kept, next),
            Err(error) => refused = Some(("recovering the identity that has run out", error)),
        }
    }
    match (token, refused) {
        (Some(token), _) => enrol_with(directory, &place, token, asker, stop, &mut told).await,
        (None, Some((what, source))) => Err(SettleError::Refused { what, source }),
        (None, None) => Err(SettleError::NotEnrolled),
    }
}

async fn enrol_with(
    directory: Option<PathBuf>,
    place: &Place,
    token: &Token,
    asker: &Asker,
    stop: &CancellationToken,
    told: &mut (impl FnMut(&str) + Send),
) -> Result<Credentials, SettleError> {
    let secret = read(token)?;
    let place = place.clone();
    let asking = || {
        let key = place.asking_key();
        let secret = &secret;
        async move {
            match key {
                Ok(key) => Ok(enrol(&asker.controller, secret, key, &asker.host_name, &asker.clock).await),
                Err(error) => Err(error),
            }
        }
    };
    // The disk's failure ends it, as the controller's refusal does; in between it waits.
    let mut backoff = Waits::new(asker.seed);
    let identity = loop {
        let outcome = tokio::select! { biased;
            () = stop.cancelled() => return Err(SettleError::Stopped),
            outcome = asking() => outcome?,
        };
        match outcome {
            Ok(identity) => break identity,
            Err(source) if source.asked() == Asked::Never => {
                let what = "enrolling";
                return Err(SettleError::Refused { what, source });
            }
            Err(error) => backoff.wait(&error, stop, told).await?,
        }
    };
    tracing::info!(id = %identity.id(), "enrolled");
    store(&place, &identity)?;
    if let Token::File { path, remove: true } = token
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "the token is used up, and its file stays");
    }
    Ok(Credentials::new(identity, directory, asker.clock.clone()))
}

/// Asks until there is an answer that stays.
async fn insist<F>(
    asker: &Asker,
    stop: &CancellationToken,
    told: &mut (impl FnMut(&str) + Send),
    asking: impl Fn() -> F,
) -> Result<Result<Identity, AskError>, SettleError>
where
    F: Future<Output = Result<Identity, AskError>>,
{
    let mut backoff = Waits::new(asker.seed);
    loop {
        let outcome = tokio::select! { biased;
            () = stop.cancelled() => return Err(SettleError::Stopped),
            outcome = asking() => outcome,
        };
        match outcome {
            Err(error) if error.asked() != Asked::Never => backoff.wait(&error, stop, told).await?,
            settled => return Ok(settled),
        }
    }
}

/// Delays between tries.
struct Waits {
    again: Backoff,
    approval: Backoff,
    why: String,
}

impl Waits {
    fn new(seed: u64) -> Self {
        let backoff = |seed, (base, cap)| Backoff::with_bounds(seed, base, cap);
        Self {
            again: backoff(seed, AGAIN_BACKOFF_MS),
            approval: backoff(seed ^ 1, APPROVAL_BACKOFF_MS),
            why: String::new(),
        }
    }

    async fn wait(
        &mut self,
        error: &AskError,
        stop: &CancellationToken,
        told: &mut (impl FnMut(&str) + Send),
    ) -> Result<(), SettleError> {
        let wait = match error.asked() {
            Asked::AwaitsApproval => self.approval.handle_failure(),
            Asked::Again | Asked::Never => self.again.handle_failure(),
        };
        let why = error.to_string();
        if why != self.why {
            tracing::warn!(%why, "no identity yet");
            told(&why);
            self.why = why;
        }
        tokio::select! { biased;
            () = stop.cancelled() => Err(SettleError::Stopped),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

fn keep(
    directory: Option<PathBuf>,
    asker: &Asker,
    former: &Identity,
    next: Identity,
) -> Result<Credentials, SettleError> {
    let former = former
        .with_bundle(former.bundle().to_vec())
        .map_err(|source| FileError::Damaged {
            path: directory.clone().unwrap_or_default(),
            source,
        })?;
    let credentials = Credentials::new(former, directory, asker.clock.clone());
    credentials.renewed(next)?;
    Ok(credentials)
}

fn store(place: &Place, identity: &Identity) -> Result<(), FileError> {
    place.store(identity, &mut |_| Ok(()))
}

/// The token, wherever it is. The secret is in no error.
fn read(token: &Token) -> Result<JoinToken, SettleError> {
    let path = match token {
        Token::Given(token) => return Ok(token.clone()),
        Token::File { path, .. } => path,
    };
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(TOKEN_OCTETS_MAX as u64 + 1).read_to_string(&mut text))
        .map_err(|source| SettleError::TokenFile {
            path: path.clone(),
            source,
        })?;
    JoinToken::parse(&text).map_err(|why| SettleError::Token {
        path: path.clone(),
        why,
    })
}
