//! What operators do with identities: tokens, revocation, approval, change of root. Blocking, as all that changes something.

use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::token::{JoinToken, TokenId, TokenSecret};

use super::{FORGET_MAX, Identities, IdentityError, Revocation, TOKEN_KEPT, TOKENS_MAX, fill, put_token};
use crate::clock::WallMs;
use crate::enrolment::{self, Refusal, TokenOrder};
use crate::identity::ca::{CaError, RootFacts, RotateStep};
use crate::identity::rows::{IdentityRow, TokenRow};
use crate::store::{Batch, Table};

impl Identities {
    /// Makes an identity void, or takes a token back. Listeners hear of an identity when it is on the disk. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NotFound`], [`IdentityError::Precondition`] for a token that was used, [`IdentityError::Store`].
    pub fn revoke(&self, what: &Revocation, now: WallMs) -> Result<(), IdentityError> {
        let _changing = self.change();
        match what {
            Revocation::Identity(id) => {
                let Some(row) = self.row(id) else {
                    return Err(IdentityError::NotFound(format!("{id} is not known here")));
                };
                if row.revoked_ms == 0 {
                    let mut row = IdentityRow::clone(&row);
                    row.revoked_ms = now.0.max(1);
                    row.awaiting = false;
                    row.approved = false;
                    self.write(id, row)?;
                    tracing::info!(%id, "revoked");
                }
                let _ = self.revocations.send(id.clone()); // Nobody listens: no stream is open.
            }
            Revocation::Token(id) => {
                let Some(mut row) = self.token_row(*id) else {
                    return Err(IdentityError::NotFound(format!("there is no token {id}")));
                };
                if !row.used_by.is_empty() {
                    let why = format!("the token {id} was used by {}: revoke that one", row.used_by);
                    return Err(IdentityError::Precondition(why));
                }
                row.revoked = true;
                let mut batch = Batch::default();
                put_token(&mut batch, *id, &row);
                self.store.commit(batch)?;
                self.show(|view| view.tokens.insert(*id, row));
                tracing::info!(token = %id, "taken back");
            }
        }
        Ok(())
    }

    /// Forgets identities that are void for good: revoked, and the newest SVID ran out so long ago that nobody gets it back.
    /// Whoever shows one of their SVIDs is refused as before, as somebody unknown. Tells how many. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Store`]: they stay.
    pub fn forget(&self, now: WallMs) -> Result<usize, IdentityError> {
        let _changing = self.change();
        let is_void = |row: &IdentityRow| {
            row.revoked_ms != 0 && now.since(WallMs::from_seconds(row.not_after)) > self.grace
        };
        let void: Vec<SpiffeId> = self.read(|view| {
            let rows = view.identities.iter().filter(|(_, row)| is_void(row));
            rows.map(|(id, _)| id.clone()).take(FORGET_MAX).collect()
        });
        let mut batch = Batch::default();
        for id in &void {
            batch.remove(Table::Identities, id.to_string());
        }
        self.store.commit(batch)?;
        self.show(|view| {
            for id in &void {
                view.identities.remove(id);
            }
        });
        Ok(void.len())
    }

    /// Lets an agent have its identity back once, that waits for it. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NotFound`], [`IdentityError::Precondition`] when it does not wait, [`IdentityError::Store`].
    pub fn approve(&self, agent: &MemberName) -> Result<(), IdentityError> {
        let _changing = self.change();
        let id = self.id(Role::Agent, agent.clone());
        let Some(row) = self.row(&id) else {
            return Err(IdentityError::NotFound(format!("{id} is not known here")));
        };
        if row.approved {
            return Ok(());
        }
        if !row.awaiting {
            return Err(IdentityError::Precondition(format!(
                "{id} does not wait for approval"
            )));
        }
        let mut row = IdentityRow::clone(&row);
        row.approved = true;
        self.write(&id, row)?;
        tracing::info!(%id, "approved");
        Ok(())
    }

    /// Makes a token. Blocking. `by`: who asks; `None`: a command on the controller's host.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub fn create_token(
        &self,
        order: &TokenOrder,
        by: Option<&SpiffeId>,
        now: WallMs,
    ) -> Result<(JoinToken, WallMs), IdentityError> {
        let order = order.check().map_err(IdentityError::Mistakes)?;
        let _changing = self.change();
        if let Some(name) = &order.operator {
            let id = self.id(Role::Operator, name.clone());
            if self.row(&id).is_some_and(|row| row.revoked_ms != 0) {
                let why = format!("{id} was revoked: choose another name");
                return Err(IdentityError::Precondition(why));
            }
        }
        let mut batch = Batch::default();
        let stale = self.stale_tokens(now);
        for id in &stale {
            batch.remove(Table::Tokens, id.0.to_be_bytes());
        }
        if self.read(|view| view.tokens.len()) - stale.len() >= TOKENS_MAX {
            return Err(Refusal::Busy("there are too many join tokens: wait until some have run out").into());
        }
        let mut secret = [0; 32];
        let mut id = [0; 8];
        fill(&mut secret)?;
        fill(&mut id)?;
        let token = JoinToken {
            id: TokenId(u64::from_be_bytes(id)),
            secret: TokenSecret(secret),
            pin: self.authority.pin().map_err(IdentityError::Ca)?,
        };
        let expires = now.plus(order.life);
        let row = TokenRow {
            secret_hash: enrolment::hash(&token.secret),
            labels: order.labels,
            operator: order
                .operator
                .map(|name| name.as_str().to_owned())
                .unwrap_or_default(),
            made_ms: now.0,
            expires_ms: expires.0,
            made_by: by.map(ToString::to_string).unwrap_or_default(),
            ..TokenRow::default()
        };
        put_token(&mut batch, token.id, &row);
        self.store.commit(batch)?;
        self.show(|view| {
            for id in &stale {
                view.tokens.remove(id);
            }
            view.tokens.insert(token.id, row);
        });
        tracing::info!(token = %token.id, "a join token was made");
        Ok((token, expires))
    }

    /// Takes a step of a change of root. Blocking. `force`: retire a root although some would not believe the controller then.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Precondition`] at the wrong time.
    pub fn rotate_ca(
        &self,
        step: RotateStep,
        force: bool,
        now: WallMs,
    ) -> Result<Vec<RootFacts>, IdentityError> {
        let _changing = self.change();
        if step == RotateStep::Retire && !force {
            let left = self.believers_of_retiring(now);
            if let Some(one) = left.first() {
                let why = format!(
                    "{} identities have not renewed since the root was activated, {one} among them: they would not \
                     believe the controller any more; wait, revoke them, or force it",
                    left.len()
                );
                return Err(IdentityError::Precondition(why));
            }
        }
        self.authority.rotate(step, now).map_err(|error| match error {
            CaError::Step(why) => IdentityError::Precondition(why),
            error => IdentityError::Ca(error),
        })
    }

    fn stale_tokens(&self, now: WallMs) -> Vec<TokenId> {
        let stale = |row: &TokenRow| now.since(WallMs(row.expires_ms)) > TOKEN_KEPT;
        self.read(|view| {
            let rows = view.tokens.iter().filter(|(_, row)| stale(row));
            rows.map(|(id, _)| *id).collect()
        })
    }

    /// Those whose newest SVID was signed under the root that is to be retired, and who may still come back by themselves.
    fn believers_of_retiring(&self, now: WallMs) -> Vec<SpiffeId> {
        let roots = self.authority.roots();
        let retiring: Vec<u64> = roots
            .iter()
            .filter(|root| root.retiring)
            .map(|root| root.number)
            .collect();
        let may_come = |row: &IdentityRow| {
            row.revoked_ms == 0 && now.since(WallMs::from_seconds(row.not_after)) <= self.grace
        };
        self.read(|view| {
            let left = view
                .identities
                .iter()
                .filter(|(_, row)| retiring.contains(&row.root) && may_come(row));
            left.map(|(id, _)| id.clone()).collect()
        })
    }
}
