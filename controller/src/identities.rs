//! Identities and join tokens: the tables, their changes, and who listens to revocations.
//!
//! One change at a time (`changing`): decide ([`crate::enrolment`]), commit, then show it to readers (`view`) and tell the
//! caller. So whoever is told something is told what is on the disk, and a token that many show at once is used once.
//! Readers never wait for the disk. Methods that change something block: call them from threads that may.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use flowtilla_grpc::svid::{self, SvidFacts};
use flowtilla_proto::mistake::Mistakes;
use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::token::{JoinToken, TokenId};
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::broadcast;

use crate::clock::WallMs;
use crate::enrolment::{self, Recovery, Refusal, SERIALS_KEPT, TokenVerdict};
use crate::identity::ca::{Authority, CaError, Issued};
use crate::identity::csr::PublicKey;
use crate::identity::rows::{self, IdentityRow, TokenRow};
use crate::store::counter::{self, Lost};
use crate::store::{Batch, Store, StoreError, Table};

pub use self::record::{IdentityRecord, TokenFacts};

mod operate;
mod record;

/// Most identities, revoked ones included. A controller serves some ten thousand agents.
pub const IDENTITIES_MAX: usize = 100_000;
/// Most tokens, used and expired ones included while they are kept.
pub const TOKENS_MAX: usize = 20_000;
/// How long a token is kept for the eyes of operators after it has run out.
pub const TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Revocations that a listener may be behind. One that is further behind hears so, and looks at everybody it serves.
pub const REVOCATIONS_BEHIND_MAX: usize = 256;

const PAGE: usize = 1024;
/// Most identities that are forgotten at once: one batch of the store.
const FORGET_MAX: usize = 4_096;
const TOO_MANY: &str = "there are too many identities: an operator must run `agentctl revoke` for hosts that are gone; what is \
                        revoked is forgotten when its SVID can count no more";
/// Octets of a host's name that are kept. Source: RFC 1035 §2.3.4.
const HOST_NAME_OCTETS_MAX: usize = 253;
/// Tries to find a name that nobody has, of 16 million for each host name.
const NAME_TRIES: usize = 32;

/// Identities and join tokens.
pub struct Identities {
    authority: Arc<Authority>,
    store: Arc<dyn Store>,
    grace: Duration,
    /// What restores have lost: they are made while no controller runs.
    lost: Vec<Lost>,
    changing: Mutex<()>,
    view: RwLock<View>,
    revocations: broadcast::Sender<SpiffeId>,
}

#[derive(Default)]
struct View {
    identities: BTreeMap<SpiffeId, Arc<IdentityRow>>,
    tokens: BTreeMap<TokenId, TokenRow>,
}

/// An identity, given.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Whose.
    pub id: SpiffeId,
    /// Its SVID.
    pub issued: Issued,
    /// The roots to believe in, DER.
    pub bundle: Vec<Vec<u8>>,
}

/// What is to be void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// An agent or an operator.
    Identity(SpiffeId),
    /// A token that is not used yet.
    Token(TokenId),
}

/// What else a revocation has led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Unused tokens that the operator had made: they are void, too.
    pub tokens: usize,
    /// Those who came in by the operator's tokens, and are in still.
    pub admitted: Vec<SpiffeId>,
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Whoever asks is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request is wrong.
    #[error("{0}")]
    Mistakes(Mistakes),
    /// There is no such agent, operator or token.
    #[error("{0}")]
    NotFound(String),
    /// Not as things stand.
    #[error("{0}")]
    Precondition(String),
    /// See there.
    #[error("the authority failed")]
    Ca(#[source] CaError),
    /// See there.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

impl Identities {
    /// Reads what there is.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn load(
        authority: Arc<Authority>,
        store: Arc<dyn Store>,
        grace: Duration,
    ) -> Result<Self, StoreError> {
        let mut view = View::default();
        each(&*store, Table::Identities, |key, value| {
            let id = std::str::from_utf8(key)
                .ok()
                .and_then(|text| SpiffeId::parse(text).ok());
            let id =
                id.ok_or_else(|| StoreError::Failed("the store holds an identity without an id".into()))?;
            view.identities
                .insert(id, Arc::new(rows::read("identity", value)?));
            Ok(())
        })?;
        each(&*store, Table::Tokens, |key, value| {
            let id: [u8; 8] = key
                .try_into()
                .map_err(|_| StoreError::Failed("the store holds a token without an id".into()))?;
            let id = TokenId(u64::from_be_bytes(id));
            view.tokens.insert(id, rows::read("token", value)?);
            Ok(())
        })?;
        let lost = counter::lost(&*store)?;
        Ok(Self {
            authority,
            store,
            grace,
            lost,
            changing: Mutex::new(()),
            view: RwLock::new(view),
            revocations: broadcast::Sender::new(REVOCATIONS_BEHIND_MAX),
        })
    }

    /// The authority that signs.
    #[must_use]
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Gives an identity for a token. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn enrol(
        &self,
        token: &str,
        csr: &[u8],
        host_name: &str,
        now: WallMs,
    ) -> Result<Granted, IdentityError> {
        let token = JoinToken::parse(token).map_err(Refusal::TokenMalformed)?;
        let key = PublicKey::of_request(csr).map_err(Refusal::Csr)?;
        let _changing = self.change();
        let mut token_row = self.token_row(token.id).unwrap_or_default();
        let known = Some(&token_row).filter(|row| !row.secret_hash.is_empty());
        let verdict = enrolment::judge_token(known, &token.secret, &key, now)?;
        let (id, mut row) = match verdict {
            TokenVerdict::Again(id) => {
                let row = self.row(&id);
                enrolment::judge_standing(&id, row.as_deref())?;
                let row = row.expect("it stands well");
                (id, IdentityRow::clone(&row))
            }
            TokenVerdict::Fresh => {
                self.judge_maker(&token_row)?;
                self.newcomer(&token_row, host_name, now)?
            }
        };
        let issued = self.sign(&id, &key, &mut row, None, now)?;
        token_row.used_by = id.to_string();
        token_row.used_key_hash = key.hash().to_vec();
        let mut batch = Batch::default();
        put_token(&mut batch, token.id, &token_row);
        put_identity(&mut batch, &id, &row);
        self.store.commit(batch)?;
        tracing::info!(%id, token = %token.id, token_by = by_text(&token_row.made_by), "enrolled");
        self.show(|view| {
            view.tokens.insert(token.id, token_row);
            view.identities.insert(id.clone(), Arc::new(row));
        });
        Ok(self.granted(id, issued))
    }

    /// Gives the next SVID to somebody who has shown a good one, whose serial number is `shown`. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn renew(
        &self,
        caller: &SpiffeId,
        shown: &[u8],
        csr: &[u8],
        now: WallMs,
    ) -> Result<Granted, IdentityError> {
        let key = PublicKey::of_request(csr).map_err(Refusal::Csr)?;
        let _changing = self.change();
        self.next(caller, &key, shown, now)
    }

    /// Gives the next SVID to somebody whose last one has run out. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn recover(&self, svid: &[u8], csr: &[u8], now: WallMs) -> Result<Granted, IdentityError> {
        let key = PublicKey::of_request(csr).map_err(Refusal::Csr)?;
        let facts = self.ours(svid)?;
        let _changing = self.change();
        let row = self.row(&facts.id);
        match enrolment::judge_recovery(row.as_deref(), &facts, &key, &self.lost, self.grace, now)? {
            Recovery::Granted => self.next(&facts.id, &key, &facts.serial, now),
            Recovery::Awaits => {
                let mut row = row.map(|row| IdentityRow::clone(&row)).unwrap_or_default();
                if !row.awaiting {
                    row.awaiting = true;
                    self.write(&facts.id, row)?;
                    tracing::warn!(id = %facts.id, "wants its identity back and waits for an operator");
                }
                Err(Refusal::AwaitingApproval(facts.id).into())
            }
        }
    }

    /// What is known of an identity; `None`: nothing.
    #[must_use]
    pub fn identity(&self, id: &SpiffeId) -> Option<IdentityRecord> {
        self.row(id).map(|row| IdentityRecord::of(&row))
    }

    /// Whether somebody who has shown an SVID stands well now: known and not revoked, and the newest SVID has not run out.
    /// A connection may be older than that SVID; and after a restore the one that was shown may be newer than any that is known.
    /// `shown`: seconds since the epoch after which it is void.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn check(&self, id: &SpiffeId, shown: i64, now: WallMs) -> Result<(), Refusal> {
        let row = self.row(id);
        enrolment::judge_standing(id, row.as_deref())?;
        let not_after = row.map_or(shown, |row| row.not_after.max(shown));
        match now.seconds() > not_after {
            true => Err(Refusal::NotAllowed(format!(
                "the SVID of {id} has run out: recover it"
            ))),
            false => Ok(()),
        }
    }

    /// Whether the newest SVID of somebody has run out, those that were shown included ([`Self::check`]).
    #[must_use]
    pub fn has_run_out(&self, id: &SpiffeId, shown: i64, now: WallMs) -> bool {
        self.row(id)
            .is_some_and(|row| now.seconds() > row.not_after.max(shown))
    }

    /// All agents, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<(MemberName, IdentityRecord)> {
        self.members(Role::Agent)
    }

    /// All operators, by name.
    #[must_use]
    pub fn operators(&self) -> Vec<(MemberName, IdentityRecord)> {
        self.members(Role::Operator)
    }

    /// All tokens that are kept, by id.
    #[must_use]
    pub fn tokens(&self) -> Vec<TokenFacts> {
        self.read(|view| {
            let rows = view.tokens.iter();
            rows.map(|(id, row)| TokenFacts::of(*id, row)).collect()
        })
    }

    /// Tells each identity that is revoked from here on. Whoever is told that it is too far behind
    /// ([`REVOCATIONS_BEHIND_MAX`]) asks [`Self::check`] about everybody it serves.
    #[must_use]
    pub fn subscribe_revocations(&self) -> broadcast::Receiver<SpiffeId> {
        self.revocations.subscribe()
    }

    /// The SPIFFE ID of a name in this trust domain.
    #[must_use]
    pub fn id(&self, role: Role, name: MemberName) -> SpiffeId {
        SpiffeId {
            domain: self.authority.domain().clone(),
            role,
            name,
        }
    }

    fn members(&self, role: Role) -> Vec<(MemberName, IdentityRecord)> {
        self.read(|view| {
            let theirs = view.identities.iter().filter(|(id, _)| id.role == role);
            theirs
                .map(|(id, row)| (id.name.clone(), IdentityRecord::of(row)))
                .collect()
        })
    }

    fn ours(&self, svid: &[u8]) -> Result<SvidFacts, Refusal> {
        let facts = svid::read(svid).map_err(|_| Refusal::ForeignSvid)?;
        let ours = facts.id.domain == *self.authority.domain() && self.authority.has_signed(svid);
        ours.then_some(facts).ok_or(Refusal::ForeignSvid)
    }

    /// A token counts no longer than whoever made it.
    fn judge_maker(&self, token: &TokenRow) -> Result<(), Refusal> {
        if token.made_by.is_empty() {
            return Ok(());
        }
        let maker = SpiffeId::parse(&token.made_by).map_err(|_| Refusal::TokenRevoked)?;
        enrolment::judge_standing(&maker, self.row(&maker).as_deref()).map_err(|_| Refusal::TokenRevoked)
    }

    /// Name and row of somebody who shows a token for the first time.
    fn newcomer(
        &self,
        token: &TokenRow,
        host_name: &str,
        now: WallMs,
    ) -> Result<(SpiffeId, IdentityRow), IdentityError> {
        if self.read(|view| view.identities.len()) >= IDENTITIES_MAX {
            return Err(Refusal::Busy(TOO_MANY).into());
        }
        let mut row = IdentityRow {
            labels: token.labels.clone(),
            enrolled_ms: now.0,
            admitted_by: token.made_by.clone(),
            ..IdentityRow::default()
        };
        if !token.operator.is_empty() {
            let name = MemberName::parse(&token.operator).map_err(|_| Refusal::TokenUnknown)?;
            let id = self.id(Role::Operator, name);
            // An operator may enrol on another machine under the same name.
            return match self.row(&id) {
                Some(known) if known.revoked_ms != 0 => Err(Refusal::Revoked(id).into()),
                // It came in after the token was made.
                Some(_) if !may_name(&id, &token.made_by) => Err(Refusal::NotAllowed(name_taken(&id)).into()),
                Some(known) => {
                    let mut row = IdentityRow::clone(&known);
                    // A command on the controller's host vouches for it anew.
                    if token.made_by.is_empty() {
                        row.admitted_by = String::new();
                    }
                    Ok((id, row))
                }
                None => Ok((id, row)),
            };
        }
        row.host_name = bounded(host_name, HOST_NAME_OCTETS_MAX).to_owned();
        for _ in 0..NAME_TRIES {
            let mut random = [0; 3];
            fill(&mut random)?;
            let suffix: String = random.iter().map(|octet| format!("{octet:02x}")).collect();
            let id = self.id(Role::Agent, MemberName::nearest(&row.host_name, &suffix));
            if self.row(&id).is_none() {
                return Ok((id, row));
            }
        }
        Err(Refusal::Busy("no name is free for this host").into())
    }

    /// The next SVID of somebody who may have it, on the disk.
    fn next(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        shown: &[u8],
        now: WallMs,
    ) -> Result<Granted, IdentityError> {
        let row = self.row(id);
        enrolment::judge_standing(id, row.as_deref())?;
        let mut row = row.map(|row| IdentityRow::clone(&row)).unwrap_or_default();
        let issued = self.sign(id, key, &mut row, Some(shown), now)?;
        self.write(id, row)?;
        tracing::debug!(%id, "renewed");
        Ok(self.granted(id.clone(), issued))
    }

    /// `shown`: serial of the SVID that it was asked with. It is in the asker's hands, which nobody knows of a later one: it
    /// stays among those that an identity is given back for.
    fn sign(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        row: &mut IdentityRow,
        shown: Option<&[u8]>,
        now: WallMs,
    ) -> Result<Issued, IdentityError> {
        let issued = self.authority.issue(id, key, now).map_err(IdentityError::Ca)?;
        row.not_after = issued.not_after;
        row.root = issued.root;
        row.awaiting = false;
        row.approved = false;
        row.serials.push(issued.serial.clone());
        while row.serials.len() > SERIALS_KEPT {
            let oldest = row
                .serials
                .iter()
                .position(|serial| Some(serial.as_slice()) != shown);
            row.serials.remove(oldest.unwrap_or(0));
        }
        Ok(issued)
    }

    fn granted(&self, id: SpiffeId, issued: Issued) -> Granted {
        let bundle = self.authority.bundle().iter().map(|der| der.to_vec()).collect();
        Granted { id, issued, bundle }
    }

    fn write(&self, id: &SpiffeId, row: IdentityRow) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        put_identity(&mut batch, id, &row);
        self.store.commit(batch)?;
        self.show(|view| view.identities.insert(id.clone(), Arc::new(row)));
        Ok(())
    }

    fn row(&self, id: &SpiffeId) -> Option<Arc<IdentityRow>> {
        self.read(|view| view.identities.get(id).cloned())
    }

    fn token_row(&self, id: TokenId) -> Option<TokenRow> {
        self.read(|view| view.tokens.get(&id).cloned())
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn show<T>(&self, change: impl FnOnce(&mut View) -> T) {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Whether whoever is named by `made_by` may make a token for an operator who is there: that operator, or a command on the
/// controller's host.
fn may_name(operator: &SpiffeId, made_by: &str) -> bool {
    made_by.is_empty() || made_by == operator.to_string()
}

fn name_taken(operator: &SpiffeId) -> String {
    format!(
        "{operator} is there already: only that operator, or `flowtilla-controller token` on the controller's host, makes a \
         token for this name"
    )
}

/// Who did something, for the log.
fn by_text(by: &str) -> &str {
    match by.is_empty() {
        true => "the controller's host",
        false => by,
    }
}

fn put_token(batch: &mut Batch, id: TokenId, row: &TokenRow) {
    batch.put(Table::Tokens, id.0.to_be_bytes(), row.encode_to_vec());
}

fn put_identity(batch: &mut Batch, id: &SpiffeId, row: &IdentityRow) {
    batch.put(Table::Identities, id.to_string(), row.encode_to_vec());
}

fn each(
    store: &dyn Store,
    table: Table,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = store.scan(table, after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        for (key, value) in &page {
            take(key, value)?;
        }
    }
}

fn fill(octets: &mut [u8]) -> Result<(), IdentityError> {
    SystemRandom::new()
        .fill(octets)
        .map_err(|_| IdentityError::Ca(CaError::Random))
}

fn bounded(text: &str, octets_max: usize) -> &str {
    let end = (0..=octets_max.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
