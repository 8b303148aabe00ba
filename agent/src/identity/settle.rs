//! The first identity of a run: what is kept, what it is recovered to, or what a token gets. The table is in [`super`].

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_grpc::causes;
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
/// How often a new token is tried before an identity that still counts is used.
///
/// Half a minute, as delays go. Half of it gives up while a controller starts; double it, and a token of a controller that is
/// not there keeps an agent from its own for two minutes.
const FRESH_TRIES: u32 = 5;

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

/// How often the token's file is looked at while the controller will have none of this agent.
///
/// An operator has just written it. Half of it reads a file for nothing; double it, and the operator wonders.
pub(crate) const TOKEN_LOOK: Duration = Duration::from_secs(10);

/// Where a new token may come from while the agent runs.
#[derive(Clone, Debug)]
pub(crate) struct NewToken {
    place: Place,
    token: Token,
    asker: Asker,
}

impl NewToken {
    /// `None`: there is no file in which one could come, or nothing is kept that tells a new one.
    pub(crate) fn of(directory: Option<&PathBuf>, token: Option<&Token>, asker: &Asker) -> Option<Self> {
        let token = token.filter(|token| matches!(token, Token::File { .. }))?;
        Some(Self {
            place: Place(Some(directory?.clone())),
            token: token.clone(),
            asker: asker.clone(),
        })
    }

    /// Says what an operator can do.
    pub(crate) fn tell(&self) {
        if let Token::File { path, .. } = &self.token {
            tracing::error!(
                file = %path.display(),
                every_s = TOKEN_LOOK.as_secs(),
                "the controller will have none of this agent: make a token with `agentctl token create` and write it to this \
                 file, which is looked at; what is held stays in force meanwhile"
            );
        }
    }

    /// Says what an operator has still to do.
    pub(crate) fn ask_for(&self) {
        if let Token::File { path, .. } = &self.token {
            tracing::error!(
                file = %path.display(),
                every_s = TOKEN_LOOK.as_secs(),
                "this agent is not enrolled: make a token with `agentctl token create` and write it to this file, of mode 0600 and \
                 of this agent's user; it is looked for"
            );
        }
    }

    /// A token in the file that was neither used nor refused. Blocks on the disk, shortly.
    pub(crate) fn fresh(&self) -> Option<JoinToken> {
        let secret = read(&self.token).ok()?;
        (self.place.noted_token() != Some(secret.id)).then_some(secret)
    }

    /// Waits for one, or for the stop.
    pub(crate) async fn wait(&self, stop: &CancellationToken) -> Result<(), SettleError> {
        while self.fresh().is_none() {
            unless(stop, tokio::time::sleep(TOKEN_LOOK)).await?;
        }
        Ok(())
    }

    /// Asks for an identity with it. Whatever the answer is, it is not fresh after it, unless there was none.
    pub(crate) async fn enrol(&self, secret: &JoinToken) -> Result<Identity, EnrolError> {
        let key = self.place.asking_key()?;
        let asker = &self.asker;
        let asked = enrol(&asker.controller, secret, key, &asker.host_name, &asker.clock).await;
        if asked.as_ref().is_err_and(|error| error.asked() == Asked::Never) {
            self.place.note_token(secret.id);
        }
        Ok(asked?)
    }

    /// The identity is kept: the token is used up.
    pub(crate) fn used(&self, secret: &JoinToken) {
        self.place.note_token(secret.id);
        remove_used(&self.token);
    }
}

/// Why a new token gave no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Files(#[from] FileError),
}

/// Whether there is an identity in this directory.
pub(crate) fn is_enrolled(directory: Option<&PathBuf>) -> bool {
    matches!(Place(directory.cloned()).load(), Ok(Some(_)))
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

impl SettleError {
    /// Whether all that is missing is the token's file: an operator has still to write it.
    pub(crate) fn is_awaiting_token(&self) -> bool {
        matches!(self, Self::TokenFile { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
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
    if let Some(Token::File { path, .. }) = token {
        warn_of_readers(path);
    }
    let kept = match (place.load(), token) {
        (Ok(kept), _) => kept,
        (Err(error @ FileError::Damaged { .. }), Some(_)) => {
            tracing::error!(error = %causes::chain(&error), "enrols anew");
            None
        }
        (Err(error), _) => return Err(error.into()),
    };
    let mut waits = Waits::new(asker.seed);
    let Some(kept) = kept else {
        let token = token.ok_or(SettleError::NotEnrolled)?;
        let secret = read(token)?;
        let identity = loop {
            match enrol_once(&place, &secret, asker, stop).await? {
                Ok(identity) => break identity,
                Err(source) if source.asked() == Asked::Never => {
                    place.note_token(secret.id);
                    let what = "enrolling";
                    return Err(SettleError::Refused { what, source });
                }
                Err(error) => waits.wait(&error, stop, &mut told).await?,
            }
        };
        return enrolled(directory, &place, (token, &secret), identity, asker);
    };
    let mut fresh = token.and_then(|token| Some((token, fresh(&place, token)?)));
    let counts = !kept.validity().is_over(asker.clock.now());
    if !counts {
        tracing::warn!(id = %kept.id(), "the SVID has run out while this agent was away: asks for the next one");
    }
    let (mut tries, mut never) = (0, None);
    loop {
        let mut why = None;
        if let Some((token, secret)) = &fresh {
            match enrol_once(&place, secret, asker, stop).await? {
                Ok(identity) => return enrolled(directory, &place, (*token, secret), identity, asker),
                Err(error) if error.asked() == Asked::Never => {
                    tracing::warn!(%error, "the new token is refused: the identity that is kept stays");
                    place.note_token(secret.id);
                    fresh = None;
                }
                Err(error) => why = Some(error),
            }
        }
        tries += 1;
        if counts && (fresh.is_none() || tries >= FRESH_TRIES) {
            if let Some(error) = why {
                tracing::warn!(%error, "the new token was not used: goes on with the identity that is kept; start anew to try again");
            }
            return Ok(Credentials::new(kept, directory, asker.clock.clone()));
        }
        if !counts && never.is_none() {
            match unless(stop, recover(&asker.controller, &kept, &asker.clock)).await? {
                Ok(next) => return keep(directory, asker, &kept, next),
                Err(error) if error.asked() == Asked::Never => never = Some(error),
                Err(error) => why = Some(error),
            }
        }
        match (why, never.take_if(|_| fresh.is_none())) {
            (_, Some(source)) => {
                let what = "recovering the identity that has run out";
                return Err(SettleError::Refused { what, source });
            }
            (Some(error), None) => waits.wait(&error, stop, &mut told).await?,
            (None, None) => {}
        }
    }
}

/// The token, when it is another than the one that was used last: an operator wants this agent to enrol anew.
fn fresh(place: &Place, token: &Token) -> Option<JoinToken> {
    match read(token) {
        Ok(secret) => (place.noted_token() != Some(secret.id)).then_some(secret),
        // It is removed when it was used.
        Err(SettleError::TokenFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(error = %causes::chain(&error), "the identity that is kept stays");
            None
        }
    }
}

async fn enrol_once(
    place: &Place,
    secret: &JoinToken,
    asker: &Asker,
    stop: &CancellationToken,
) -> Result<Result<Identity, AskError>, SettleError> {
    let key = place.asking_key()?;
    let asking = enrol(&asker.controller, secret, key, &asker.host_name, &asker.clock);
    unless(stop, asking).await
}

fn enrolled(
    directory: Option<PathBuf>,
    place: &Place,
    (token, secret): (&Token, &JoinToken),
    identity: Identity,
    asker: &Asker,
) -> Result<Credentials, SettleError> {
    tracing::info!(id = %identity.id(), "enrolled");
    store(place, &identity)?;
    place.note_token(secret.id);
    remove_used(token);
    Ok(Credentials::new(identity, directory, asker.clock.clone()))
}

fn remove_used(token: &Token) {
    if let Token::File { path, remove: true } = token
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "the token is used up, and its file stays");
    }
}

async fn unless<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Result<T, SettleError> {
    tokio::select! { biased;
        () = stop.cancelled() => Err(SettleError::Stopped),
        done = work => Ok(done),
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

/// Whoever reads a token first may be in instead of this agent.
fn warn_of_readers(path: &Path) {
    let facts = fs::metadata(path).ok().filter(fs::Metadata::is_file);
    if let Some(mode) = facts
        .map(|facts| facts.mode() & 0o7777)
        .filter(|mode| mode & 0o077 != 0)
    {
        tracing::warn!(
            file = %path.display(),
            mode = format_args!("{mode:o}"),
            "others can read the token's file, and whoever uses the token first is in: make it with mode 0600"
        );
    }
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
