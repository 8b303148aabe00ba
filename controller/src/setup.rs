//! A controller's state: made once, opened at each start.
//!
//! Made: state directory, authority, names, counters, in this order; one commit makes it whole, so that a command that was cut
//! off leaves nothing that looks like a state. Blocking.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId, TrustDomain};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::clock::WallMs;
use crate::identities::Identities;
use crate::identity::ca::{Authority, CaError, Origin};
use crate::state::{StateDir, StateError};
use crate::store::counter;
use crate::store::sled::SledStore;
use crate::store::{Batch, Store, StoreError, Table};

const DOMAIN: &[u8] = b"domain";
const NAME: &[u8] = b"controller";

/// A trust domain's name when nobody chooses one.
pub const DOMAIN_DEFAULT: &str = "flowtilla.internal";

/// The state, opened. The directory is ours until this goes.
pub struct Opened {
    /// The directory.
    pub directory: StateDir,
    /// The store.
    pub store: Arc<SledStore>,
    /// The identities, and the authority.
    pub identities: Arc<Identities>,
    /// Who the controller is.
    pub id: SpiffeId,
}

/// Why there is no state to work with.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A command that made it was cut off.
    #[error(
        "{0} is not whole: a command that made it was cut off (then remove it, and run that command again), or its store was \
         lost (then restore a backup)"
    )]
    Cut(String),
    /// See there.
    #[error(transparent)]
    State(#[from] StateError),
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// See there.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// Makes a state.
///
/// # Errors
///
/// [`SetupError`].
pub fn create(
    path: &Path,
    domain: &TrustDomain,
    origin: &Origin,
    grace: Duration,
    now: WallMs,
) -> Result<Opened, SetupError> {
    let directory = StateDir::create(path)?;
    let store = SledStore::open(&directory.store())?;
    let mut random = [0; 4];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| CaError::Random)?;
    let suffix: String = random.iter().map(|octet| format!("{octet:02x}")).collect();
    let mut batch = Batch::default();
    batch.put(Table::Meta, DOMAIN, domain.as_str());
    batch.put(
        Table::Meta,
        NAME,
        MemberName::nearest("controller", &suffix).as_str(),
    );
    counter::note_epoch(&mut batch, 1);
    Authority::found(domain, &directory.ca(), origin, now, &mut batch)?;
    store.commit(batch)?;
    finish(directory, store, grace)
}

/// Opens a state.
///
/// # Errors
///
/// [`SetupError`].
pub fn open(path: &Path, grace: Duration) -> Result<Opened, SetupError> {
    let directory = StateDir::open(path)?;
    let store = SledStore::open(&directory.store())?;
    finish(directory, store, grace)
}

fn finish(directory: StateDir, store: SledStore, grace: Duration) -> Result<Opened, SetupError> {
    let store = Arc::new(store);
    let cut = || SetupError::Cut(directory.path().display().to_string());
    let fact = |key| {
        let value = store.value(Table::Meta, key)?.ok_or_else(cut)?;
        String::from_utf8(value).map_err(|_| cut())
    };
    let domain = TrustDomain::parse(&fact(DOMAIN)?).map_err(|_| cut())?;
    let name = MemberName::parse(&fact(NAME)?).map_err(|_| cut())?;
    let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
    let authority = Authority::load(domain.clone(), directory.ca(), Arc::clone(&shared))?;
    let identities = Identities::load(Arc::new(authority), shared, grace)?;
    Ok(Opened {
        directory,
        store,
        identities: Arc::new(identities),
        id: SpiffeId {
            domain,
            role: Role::Controller,
            name,
        },
    })
}
