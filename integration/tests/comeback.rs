//! Promise: keys stay where they are made, and an agent keeps its identity: it renews, is killed, and comes back after days away.
//!
//! The agent's own identity code against a real controller over loopback TLS, both with a clock that the test sets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flowtilla_agent::identity::{self, AskError, Asker, Credentials, SettleError, Token, WallClock};
use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::{RENEW_GRACE_DEFAULT, TokenOrder};
use flowtilla_controller::identities::Revocation;
use flowtilla_controller::identity::ca::Origin;
use flowtilla_controller::run::{Controller, Options};
use flowtilla_controller::setup;
use flowtilla_grpc::channel::{self, Address};
use flowtilla_proto::spiffe::TrustDomain;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::Reason;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[path = "comeback/away.rs"]
mod away;
#[path = "comeback/host.rs"]
mod host;
#[path = "comeback/killed.rs"]
mod killed;
#[path = "comeback/token.rs"]
mod token;

/// How long anything may take. The controller looks each 5 s whether its own SVID has run out.
const WAIT: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A controller and what an agent keeps.
struct Setting {
    controller: Controller,
    clock: Clock,
    asker: Asker,
    folder: TempDir,
}

impl Setting {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (clock, state) = (Clock::system(), folder.path().join("controller"));
        let domain = TrustDomain::parse("test")?;
        let opened = setup::create(&state, &domain, &Origin::Own, RENEW_GRACE_DEFAULT, clock.now())?;
        let mut options = Options::new(state, vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))]);
        options.clock = clock.clone();
        let controller = Controller::start_on(opened, options).await?;
        let asker = Asker {
            controller: Address::parse(&controller.address().to_string())?,
            host_name: "Web_1".to_owned(),
            seed: 7,
            clock: WallClock::system(),
        };
        Ok(Self {
            controller,
            clock,
            asker,
            folder,
        })
    }

    fn place(&self) -> PathBuf {
        self.folder.path().join("agent/identity")
    }

    async fn token(&self) -> Result<JoinToken> {
        let parts = Arc::clone(self.controller.parts());
        let made = tokio::task::spawn_blocking(move || {
            parts
                .identities
                .create_token(&TokenOrder::default(), None, parts.clock.now())
        });
        Ok(made.await??.0)
    }

    async fn settle(&self, token: Option<&Token>) -> Result<Result<Credentials, SettleError>> {
        self.settle_at(self.place(), token).await
    }

    async fn settle_at(
        &self,
        place: PathBuf,
        token: Option<&Token>,
    ) -> Result<Result<Credentials, SettleError>> {
        let stop = CancellationToken::new();
        let settling = identity::settle(Some(place), token, &self.asker, &stop, |_| {});
        tokio::time::timeout(WAIT, settling)
            .await
            .context("an identity in time")
    }

    async fn renew(&self, credentials: &Credentials) -> Result<Result<identity::Identity, AskError>> {
        let channel = channel::connect(&self.asker.controller, credentials.tls()?).await?;
        tokio::time::timeout(WAIT, identity::renew(channel))
            .await
            .context("an answer in time")
    }

    /// Time passes for both.
    fn pass(&self, by: Duration) {
        self.clock.advance(by);
        self.asker.clock.advance(by);
    }

    fn key(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.place().join("current/key.pem"))?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrols_once_renews_with_a_new_key_and_comes_back_after_a_day_with_the_old_one() -> Result<()>
{
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let credentials = setting.settle(Some(&token)).await??;
    let id = credentials.identity().id().clone();
    ensure!(id.to_string().starts_with("spiffe://test/agent/web-1-"), "{id}");
    // The token is used up, and another key cannot use it.
    let elsewhere = setting.folder.path().join("other/identity");
    let refused = setting.settle_at(elsewhere, Some(&token)).await?;
    let Err(SettleError::Refused {
        source: AskError::Refused { reason, .. },
        ..
    }) = refused
    else {
        bail!("a used token was taken: {refused:?}");
    };
    ensure!(reason == Reason::TokenUsed, "{reason:?}");
    let first = setting.key()?;
    credentials.renewed(setting.renew(&credentials).await??)?;
    let second = setting.key()?;
    ensure!(first != second, "keys rotate at each renewal");
    ensure!(*credentials.identity().id() == id);
    drop(credentials);
    setting.pass(26 * HOUR);
    let back = setting.settle(None).await??;
    ensure!(
        *back.identity().id() == id && setting.key()? == second,
        "with its old key"
    );
    credentials_work(&setting, &back).await?;
    setting.controller.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_away_too_long_waits_for_an_operators_approval() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let id = setting.settle(Some(&token)).await??.identity().id().clone();
    setting.pass(24 * HOUR + RENEW_GRACE_DEFAULT + HOUR);
    let stop = CancellationToken::new();
    let (told, mut why) = tokio::sync::watch::channel(String::new());
    let place = Some(setting.place());
    let settling = identity::settle(place, None, &setting.asker, &stop, |text| {
        told.send_replace(text.to_owned());
    });
    let approve = async {
        let waits = why.wait_for(|why| why.contains("approve"));
        tokio::time::timeout(WAIT, waits)
            .await
            .context("it says what it waits for")??;
        let parts = Arc::clone(setting.controller.parts());
        let name = id.name.clone();
        tokio::task::spawn_blocking(move || parts.identities.approve(&name, None)).await??;
        Ok::<_, anyhow::Error>(())
    };
    let both = async { tokio::join!(settling, approve) };
    let (settled, approved) = tokio::time::timeout(2 * WAIT, both)
        .await
        .context("an identity in time")?;
    approved?;
    let back = settled?;
    ensure!(*back.identity().id() == id);
    credentials_work(&setting, &back).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_gets_no_other_svid() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let credentials = setting.settle(Some(&token)).await??;
    let parts = Arc::clone(setting.controller.parts());
    let what = Revocation::Identity(credentials.identity().id().clone());
    tokio::task::spawn_blocking(move || parts.identities.revoke(&what, None, parts.clock.now())).await??;
    let refused = setting.renew(&credentials).await?;
    ensure!(refused.is_err(), "a revoked agent was given an SVID");
    setting.pass(26 * HOUR);
    let Err(SettleError::Refused {
        source: AskError::Refused { reason, .. },
        ..
    }) = setting.settle(None).await?
    else {
        bail!("a revoked agent came back");
    };
    ensure!(reason == Reason::Revoked, "{reason:?}");
    Ok(())
}

async fn credentials_work(setting: &Setting, credentials: &Credentials) -> Result<()> {
    let next = setting.renew(credentials).await??;
    ensure!(next.id() == credentials.identity().id());
    Ok(())
}
