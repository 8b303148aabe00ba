//! What operators do with identities: tokens, revocation, approval, change of root. Blocking, as all that changes something.

use std::collections::BTreeMap;

use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::token::{JoinToken, TokenId, TokenSecret};

use super::{
    FORGET_MAX, Identities, IdentityError, Revocation, Revoked, TOKEN_KEPT, TOKENS_MAX, by_text, fill,
    may_name, name_taken, put_token,
};
use crate::clock::WallMs;
use crate::enrolment::{self, Refusal, TokenOrder};
use crate::identity::ca::{CaError, RootFacts, RotateStep};
use crate::identity::rows::{IdentityRow, TokenRow};
use crate::store::{Batch, Table};

/// How many tokens that are of no use any more go at once when there is no room for another one.
const SPENT_MAX: usize = 1_024;

impl Identities {
    /// Makes an identity void, with the unused tokens of an operator, or takes a token back. Listeners hear of an identity when it
    /// is on the disk. `by`: who asks; `None`: a command on the controller's host. Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NotFound`], [`IdentityError::Precondition`] for a token that was used, and for the last operator unless
    /// the controller's host asks; [`IdentityError::Store`].
    pub fn revoke(
        &self,
        what: &Revocation,
        by: Option<&SpiffeId>,
        now: WallMs,
    ) -> Result<Revoked, IdentityError> {
        let _changing = self.change();
        let by_whom = by.map(ToString::to_string).unwrap_or_default();
        match what {
            Revocation::Identity(id) => {
                let Some(row) = self.row(id) else {
                    return Err(IdentityError::NotFound(format!("{id} is not known here")));
                };
                if row.revoked_ms == 0 {
                    if by.is_some() && self.is_last_operator(id, now) {
                        return Err(IdentityError::Precondition(format!(
                            "{id} is the last operator: let another one log in first, with a token of `agentctl token create \
                             --operator NAME`"
                        )));
                    }
                    let mut row = IdentityRow::clone(&row);
                    row.revoked_ms = now.0.max(1);
                    row.awaiting = false;
                    row.approved = false;
                    self.write(id, row)?;
                    tracing::info!(%id, by = by_text(&by_whom), "revoked");
                }
                let _ = self.revocations.send(id.clone()); // Nobody listens: no stream is open.
                return self.void_tokens_of(id);
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
                tracing::info!(token = %id, by = by_text(&by_whom), "taken back");
            }
        }
        Ok(Revoked::default())
    }

    /// Takes back what an operator has made and nobody has used. The operator is revoked on the disk: a crash in between leaves
    /// tokens that are refused because of their maker, and the next revocation takes them back.
    fn void_tokens_of(&self, operator: &SpiffeId) -> Result<Revoked, IdentityError> {
        let made_by = operator.to_string();
        let unused: Vec<(TokenId, TokenRow)> = self.read(|view| {
            let theirs = view
                .tokens
                .iter()
                .filter(|(_, row)| row.made_by == made_by && row.used_by.is_empty() && !row.revoked);
            theirs.map(|(id, row)| (*id, row.clone())).collect()
        });
        for page in unused.chunks(FORGET_MAX) {
            let mut page = page.to_vec();
            let mut batch = Batch::default();
            for (id, row) in &mut page {
                row.revoked = true;
                put_token(&mut batch, *id, row);
            }
            self.store.commit(batch)?;
            self.show(|view| view.tokens.extend(page));
        }
        let admitted = self.read(|view| {
            let theirs = view
                .identities
                .iter()
                .filter(|(_, row)| row.admitted_by == made_by && row.revoked_ms == 0);
            theirs.map(|(id, _)| id.clone()).collect::<Vec<_>>()
        });
        if !unused.is_empty() || !admitted.is_empty() {
            let tokens = unused.len();
            let came = admitted.len();
            tracing::warn!(%operator, tokens, came, "unused tokens of a revoked operator are void; some came in by others");
        }
        Ok(Revoked {
            tokens: unused.len(),
            admitted,
        })
    }

    /// Whether nobody but this operator could ask anything of the controller.
    fn is_last_operator(&self, id: &SpiffeId, now: WallMs) -> bool {
        let may_come = |row: &IdentityRow| {
            row.revoked_ms == 0 && now.since(WallMs::from_seconds(row.not_after)) <= self.grace
        };
        let is_other = |other: &SpiffeId| other.role == Role::Operator && other != id;
        id.role == Role::Operator
            && !self.read(|view| {
                let mut all = view.identities.iter();
                all.any(|(other, row)| is_other(other) && may_come(row))
            })
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

    /// Lets an agent have its identity back once, that waits for it. `by`: who asks; `None`: a command on the controller's host.
    /// Blocking.
    ///
    /// # Errors
    ///
    /// [`IdentityError::NotFound`], [`IdentityError::Precondition`] when it does not wait, [`IdentityError::Store`].
    pub fn approve(&self, agent: &MemberName, by: Option<&SpiffeId>) -> Result<(), IdentityError> {
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
        let by = by.map(ToString::to_string).unwrap_or_default();
        tracing::info!(%id, by = by_text(&by), "approved");
        Ok(())
    }

    /// Makes a token. Blocking. `by`: who asks; `None`: a command on the controller's host.
    ///
    /// # Errors
    ///
    /// [`IdentityError`]; [`IdentityError::Precondition`] for the name of another operator who is there.
    pub fn create_token(
        &self,
        order: &TokenOrder,
        by: Option<&SpiffeId>,
        now: WallMs,
    ) -> Result<(JoinToken, WallMs), IdentityError> {
        let order = order.check().map_err(IdentityError::Mistakes)?;
        let _changing = self.change();
        if let Some(by) = by {
            // A moment ago it stood well.
            enrolment::judge_standing(by, self.row(by).as_deref())?;
        }
        let made_by = by.map(ToString::to_string).unwrap_or_default();
        if let Some(name) = &order.operator {
            let id = self.id(Role::Operator, name.clone());
            let why = match self.row(&id) {
                Some(row) if row.revoked_ms != 0 => format!("{id} was revoked: choose another name"),
                Some(_) if !may_name(&id, &made_by) => name_taken(&id),
                _ => String::new(),
            };
            if !why.is_empty() {
                return Err(IdentityError::Precondition(why));
            }
        }
        let mut batch = Batch::default();
        let gone = self.read(|view| tokens_to_drop(&view.tokens, now));
        for id in &gone {
            batch.remove(Table::Tokens, id.0.to_be_bytes());
        }
        if self.read(|view| view.tokens.len()) - gone.len() >= TOKENS_MAX {
            let why = "there are too many join tokens that nobody has used: take some back with `agentctl token revoke`";
            return Err(Refusal::Busy(why).into());
        }
        let mut secret = [0; 32];
        let mut id = [0; 8];
        fill(&mut secret)?;
        fill(&mut id)?;
        let (pin, root) = self.authority.pin().map_err(IdentityError::Ca)?;
        let token = JoinToken {
            id: TokenId(u64::from_be_bytes(id)),
            secret: TokenSecret(secret),
            pin,
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
            made_by,
            root,
            ..TokenRow::default()
        };
        put_token(&mut batch, token.id, &row);
        self.store.commit(batch)?;
        tracing::info!(
            token = %token.id,
            by = by_text(&row.made_by),
            operator = row.operator,
            "a join token was made"
        );
        self.show(|view| {
            for id in &gone {
                view.tokens.remove(id);
            }
            view.tokens.insert(token.id, row);
        });
        Ok((token, expires))
    }

    /// Takes a step of a change of root. Blocking. `force`: retire a root although some would not believe the controller then:
    /// identities that have not renewed, and whoever gets a token that pins it.
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
            let retiring: Vec<u64> = self
                .authority
                .roots()
                .iter()
                .filter(|root| root.retiring)
                .map(|root| root.number)
                .collect();
            let mut why = Vec::new();
            let left = self.believers(&retiring, now);
            if let Some(one) = left.first() {
                why.push(format!(
                    "{} identities have not renewed since the root was activated, {one} among them: they would not \
                     believe the controller any more; wait, revoke them, or force it",
                    left.len()
                ));
            }
            let tokens = self.read(|view| tokens_of(&view.tokens, &retiring, now));
            if let Some(one) = tokens.first() {
                why.push(format!(
                    "{} join tokens that nobody has used pin the root that is to be retired, {one} among them: whoever shows \
                     one would take the controller for another; wait until they are used or have run out, take them back with \
                     `agentctl revoke token`, or force it",
                    tokens.len()
                ));
            }
            if !why.is_empty() {
                return Err(IdentityError::Precondition(why.join("; ")));
            }
        }
        self.authority.rotate(step, now).map_err(|error| match error {
            CaError::Step(why) => IdentityError::Precondition(why),
            error => IdentityError::Ca(error),
        })
    }

    /// Those whose newest SVID was signed under a root that is to be retired, and who may still come back by themselves.
    fn believers(&self, retiring: &[u64], now: WallMs) -> Vec<SpiffeId> {
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

/// Tokens that somebody may still use and that pin a root that is to be retired; of those that do not tell, all.
fn tokens_of(tokens: &BTreeMap<TokenId, TokenRow>, retiring: &[u64], now: WallMs) -> Vec<TokenId> {
    let counts = |row: &TokenRow| row.used_by.is_empty() && !row.revoked && now.0 < row.expires_ms;
    let pins = |row: &TokenRow| !retiring.is_empty() && (row.root == 0 || retiring.contains(&row.root));
    let those = tokens.iter().filter(|(_, row)| counts(row) && pins(row));
    those.map(|(id, _)| *id).collect()
}

/// Those that have run out long ago; and when there is no room, of those that are of no use any more the oldest. Used ones that have
/// not run out come last: whoever did not hear the answer may show one again.
fn tokens_to_drop(tokens: &BTreeMap<TokenId, TokenRow>, now: WallMs) -> Vec<TokenId> {
    let is_stale = |row: &TokenRow| now.since(WallMs(row.expires_ms)) > TOKEN_KEPT;
    let stale = tokens.iter().filter(|(_, row)| is_stale(row));
    let mut gone: Vec<TokenId> = stale.map(|(id, _)| *id).collect();
    if tokens.len() - gone.len() < TOKENS_MAX {
        return gone;
    }
    let spent = tokens.iter().filter_map(|(id, row)| {
        let is_void = row.revoked || now.0 >= row.expires_ms;
        let is_spent = is_void || !row.used_by.is_empty();
        (is_spent && !is_stale(row)).then_some((!is_void, row.made_ms, *id))
    });
    let mut spent: Vec<(bool, i64, TokenId)> = spent.collect();
    spent.sort_unstable();
    gone.extend(spent.iter().take(SPENT_MAX).map(|(_, _, id)| *id));
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_pin_a_root_are_counted_while_somebody_may_use_them() {
        let now = WallMs(1_000_000);
        let row = |root| TokenRow {
            root,
            expires_ms: now.0 + 1,
            ..TokenRow::default()
        };
        let of_no_use = [
            TokenRow {
                used_by: "x".to_owned(),
                ..row(1)
            },
            TokenRow {
                revoked: true,
                ..row(1)
            },
            TokenRow {
                expires_ms: now.0,
                ..row(1)
            },
        ];
        let rows = [row(1), row(2), row(0)].into_iter().chain(of_no_use);
        let tokens: BTreeMap<TokenId, TokenRow> = (0..).map(TokenId).zip(rows).collect();
        assert_eq!(tokens_of(&tokens, &[1], now), [TokenId(0), TokenId(2)]);
        assert_eq!(tokens_of(&tokens, &[2], now), [TokenId(1), TokenId(2)]);
        assert_eq!(tokens_of(&tokens, &[], now), [], "nothing is retired");
    }

    #[test]
    fn tokens_of_no_use_make_room_and_unused_ones_stay() {
        let now = WallMs(1_000_000_000_000);
        let later = now.plus(TOKEN_KEPT).0;
        let row = |used: &str, revoked| TokenRow {
            used_by: used.to_owned(),
            revoked,
            expires_ms: later,
            ..TokenRow::default()
        };
        let full = |spent: u64, used: &str, revoked| -> BTreeMap<TokenId, TokenRow> {
            let unused = (spent..TOKENS_MAX as u64).map(|n| (TokenId(n), row("", false)));
            let spent = (0..spent).map(|n| (TokenId(n), row(used, revoked)));
            spent.chain(unused).collect()
        };
        assert_eq!(tokens_to_drop(&full(0, "", false), now), []);
        assert_eq!(
            tokens_to_drop(&full(2, "x", false), now),
            [TokenId(0), TokenId(1)]
        );
        assert_eq!(tokens_to_drop(&full(2, "", true), now), [TokenId(0), TokenId(1)]);
        // What is void goes before what was used and may be shown again.
        let mut mixed = full(SPENT_MAX as u64 + 5, "x", false);
        mixed.insert(TokenId(SPENT_MAX as u64 + 4), row("", true));
        let gone = tokens_to_drop(&mixed, now);
        assert_eq!((gone.len(), gone[0]), (SPENT_MAX, TokenId(SPENT_MAX as u64 + 4)));
        // With room nothing goes but what has run out long ago.
        mixed.remove(&TokenId(TOKENS_MAX as u64 - 1));
        assert_eq!(tokens_to_drop(&mixed, now), []);
        let long_after = WallMs(later).plus(TOKEN_KEPT * 2);
        assert_eq!(tokens_to_drop(&mixed, long_after).len(), mixed.len());
    }
}
