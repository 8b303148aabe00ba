//! The controller is away: for a day, and for longer than anybody waits. Clocks are set on both sides.

use std::net::SocketAddr;
use std::sync::Arc;

use flowtilla_controller::fleet::Change;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Object, object};

use super::host::{Host, place};
use super::*;

/// A setting whose controller has gone.
struct Gone {
    address: SocketAddr,
    clock: Clock,
    asker: Asker,
    folder: TempDir,
}

impl Setting {
    async fn leave(self) -> Result<Gone> {
        let address = self.controller.address();
        self.controller.stop().await?;
        Ok(Gone {
            address,
            clock: self.clock,
            asker: self.asker,
            folder: self.folder,
        })
    }

    async fn deploy(&self) -> Result<u64> {
        let policy = wire::Policy {
            name: "all".into(),
            ..wire::Policy::default()
        };
        let change = Change {
            objects: vec![Object {
                kind: Some(object::Kind::Policy(policy)),
            }],
            ..Change::default()
        };
        Ok(self.controller.parts().fleet.apply(change).await?.revision)
    }

    async fn host(&self, name: &str, token: Option<Token>, instance: u64) -> Host {
        Host::start(&self.folder.path().join(name), token, &self.asker, instance).await
    }

    async fn connected(&self) -> Result<(u32, u32)> {
        let standing = self.controller.parts().fleet.standing().await?;
        Ok((standing.connected, standing.converged))
    }

    fn key_of(&self, name: &str) -> Result<Vec<u8>> {
        let state = self.folder.path().join(name);
        Ok(std::fs::read(place(&state).join("current/key.pem"))?)
    }
}

impl Gone {
    fn pass(&self, by: Duration) {
        self.clock.advance(by);
        self.asker.clock.advance(by);
    }

    async fn come_back(self) -> Result<Setting> {
        let mut options = Options::new(self.folder.path().join("controller"), vec![self.address]);
        options.clock = self.clock.clone();
        Ok(Setting {
            controller: Controller::start(options).await?,
            clock: self.clock,
            asker: self.asker,
            folder: self.folder,
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_keep_what_is_in_force_without_a_controller_and_come_back_as_who_they_were() -> Result<()> {
    let setting = Setting::start().await?;
    let revision = setting.deploy().await?;
    let first = Token::Given(setting.token().await?);
    let mut first = setting.host("first", Some(first), 1).await;
    let in_force = |news: &flowtilla_agent::session::News| news.in_force && news.policy == "all";
    first.until("the policy", WAIT, in_force).await?;
    // The second one enrols an hour later: its SVID outlives the day.
    setting.pass(HOUR);
    let second = Token::Given(setting.token().await?);
    let mut second = setting.host("second", Some(second), 2).await;
    second.until("the policy", WAIT, in_force).await?;
    let key = setting.key_of("first")?;

    let gone = setting.leave().await?;
    gone.pass(23 * HOUR + HOUR / 2);
    for host in [&mut first, &mut second] {
        let news = host.until("alone", WAIT, |news| !news.connected).await?;
        ensure!(in_force(&news), "{news:?}");
    }
    // The host starts again meanwhile: what it held is in force before anybody is asked.
    first.stop().await?;
    let state = gone.folder.path().join("first");
    let mut first = Host::start(&state, None, &gone.asker, 3).await;
    ensure!(first.remembers.applied() == [revision]);
    let waits = |news: &flowtilla_agent::session::News| news.why.is_some();
    first.until("it looks for the controller", WAIT, waits).await?;

    let setting = gone.come_back().await?;
    for host in [&mut first, &mut second] {
        let news = host.until("back", 2 * WAIT, |news| news.connected).await?;
        ensure!(in_force(&news), "{news:?}");
    }
    ensure!(
        setting.key_of("first")? == key,
        "it has run out, and came back with its key"
    );
    ensure!(
        setting.controller.parts().identities.agents().len() == 2,
        "nobody enrolled anew"
    );
    wait_for(async || Ok(setting.connected().await? == (2, 2))).await?;
    for host in [&first, &second] {
        ensure!(
            host.remembers.applied() == [revision],
            "nothing was applied twice"
        );
    }

    // Longer than the grace: both wait for an operator, each for itself.
    let gone = setting.leave().await?;
    gone.pass(24 * HOUR + RENEW_GRACE_DEFAULT + HOUR);
    let setting = gone.come_back().await?;
    let awaits = |news: &flowtilla_agent::session::News| {
        news.why
            .as_ref()
            .is_some_and(|why| why.contains("agentctl approve"))
    };
    for host in [&mut first, &mut second] {
        let news = host.until("it waits for an operator", 2 * WAIT, awaits).await?;
        ensure!(in_force(&news), "{news:?}");
    }
    ensure!(setting.connected().await?.0 == 0);
    let agents = setting.controller.parts().identities.agents();
    ensure!(agents.iter().all(|(_, record)| record.awaiting), "{agents:?}");
    for (host, (name, _)) in (1..).zip(&agents) {
        let (parts, name) = (Arc::clone(setting.controller.parts()), name.clone());
        tokio::task::spawn_blocking(move || parts.identities.approve(&name, None)).await??;
        wait_for(async || Ok(setting.connected().await? == (host, host))).await?;
    }
    for host in [first, second] {
        ensure!(
            host.remembers.applied() == [revision],
            "nothing was applied twice"
        );
        host.stop().await?;
    }
    setting.controller.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_svid_runs_out_and_the_agent_recovers_it() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let mut host = setting.host("one", Some(token), 1).await;
    host.until("welcomed", WAIT, |news| news.connected).await?;
    // The agent's clock stands: it does not renew, and does not know that it should have.
    setting.clock.advance(25 * HOUR);
    let ended = |news: &flowtilla_agent::session::News| !news.connected;
    let news = host.until("the end of the stream", WAIT, ended).await?;
    let why = news.why.unwrap_or_default();
    // The latter: it has tried again since, by a clock that is a day behind.
    ensure!(
        why.contains("has run out") || why.contains("check the clocks"),
        "{why}"
    );
    setting.asker.clock.advance(25 * HOUR);
    let back = |news: &flowtilla_agent::session::News| news.connected && news.renewals >= 1;
    host.until("back", 2 * WAIT, back).await?;
    host.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_identity_is_told_to_the_operator_and_the_copies_give_way() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let mut original = setting.host("original", Some(token), 1).await;
    original.until("welcomed", WAIT, |news| news.connected).await?;
    let (from, to) = (
        setting.folder.path().join("original"),
        setting.folder.path().join("copy"),
    );
    integration::process::run(std::process::Command::new("cp").arg("-a").args([&from, &to]))?;
    let mut copy = setting.host("copy", None, 2).await;
    copy.until("welcomed", WAIT, |news| news.connected).await?;
    let told = |news: &flowtilla_agent::session::News| {
        let why = news.why.as_deref().unwrap_or_default();
        why.contains("host-1") && why.contains("host-2") && why.contains("enrol it")
    };
    copy.until("the copy is told", 2 * WAIT, told).await?;
    original.until("the original is told", 4 * WAIT, told).await?;
    let standing = setting.controller.parts().fleet.standing().await?;
    ensure!(standing.conflicts == 1, "{standing:?}");
    let agents = setting
        .controller
        .parts()
        .fleet
        .agents(Default::default())
        .await?;
    ensure!(agents.agents[0].conflict.contains("at host-"), "{agents:?}");
    copy.stop().await?;
    original.stop().await
}

async fn wait_for(mut is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let waited = async {
        while !is().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(2 * WAIT, waited).await.context("in time")?
}
