//! An agent that is killed at any step of its enrolment or of a renewal comes back as the one that it was to be.
//!
//! The agent's identity and session run in a process of their own, which is killed by SIGKILL. Moments by seed: some at random,
//! most when a step shows on the disk or at the controller. `FLOWTILLA_SOAK=1` runs all cycles, else a tenth.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;

use integration::soak;
use integration::wait::Stopwatch;

use super::host::{Host, place};
use super::*;

const CYCLES: usize = 120;
/// Where the child finds its state and the controller.
const STATE: &str = "FLOWTILLA_TEST_STATE";
const CONTROLLER: &str = "FLOWTILLA_TEST_CONTROLLER";
/// How far the child's clock is ahead: every SVID is past its half life, and none has run out.
const AHEAD: Duration = Duration::from_secs(13 * 3600 + 1800);

/// Steps of an enrolment, each seen from outside when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Begun,
    KeyKept,
    Answered,
    SetBegun,
    ChainKept,
    Current,
    Noted,
}

const STEPS: [Step; 7] = [
    Step::Begun,
    Step::KeyKept,
    Step::Answered,
    Step::SetBegun,
    Step::ChainKept,
    Step::Current,
    Step::Noted,
];

/// Not a test by itself: what the others kill. Enrols, then renews again and again.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn child_that_enrols_and_renews_until_it_is_killed() {
    let (Some(state), Ok(controller)) = (std::env::var_os(STATE), std::env::var(CONTROLLER)) else {
        return;
    };
    let state = PathBuf::from(state);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let clock = WallClock::system();
        clock.advance(AHEAD);
        let asker = Asker {
            controller: Address::parse(&controller).expect("an address"),
            host_name: "killed".to_owned(),
            seed: 7,
            clock,
        };
        let token = Token::File {
            path: state.join("token"),
            remove: true,
        };
        let mut host = Host::start(&state, Some(token), &asker, 1).await;
        loop {
            let renewals = host.news.borrow_and_update().renewals;
            println!("renewals {renewals}");
            if host.news.changed().await.is_err() {
                println!("ended {:?}", host.stop().await);
                return;
            }
        }
    });
}

struct Agent {
    child: Child,
    lines: Receiver<String>,
}

impl Agent {
    fn start(state: &Path, setting: &Setting) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "killed::child_that_enrols_and_renews_until_it_is_killed",
            ])
            .args(["--ignored", "--nocapture"])
            .env(STATE, state)
            .env(CONTROLLER, setting.controller.address().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = BufReader::new(child.stdout.take().context("piped")?);
        let (says, lines) = std::sync::mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = says.try_send(line); // What is not read is not waited for.
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits for so many renewals. An agent that cannot go on is an error.
    fn renews(&self, count: u64) -> Result<()> {
        loop {
            let line = self.lines.recv_timeout(WAIT).context("the agent renews")?;
            if let Some(renewals) = line.split("renewals ").nth(1).and_then(|n| n.parse::<u64>().ok()) {
                if renewals >= count {
                    return Ok(());
                }
            } else if line.contains("ended ") {
                bail!("the agent has ended: {line}");
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

/// The last step whose trace is there.
fn seen(state: &Path, used: impl Fn() -> bool) -> Step {
    let place = place(state);
    let there = |name: &str| place.join(name).exists();
    let set = "0000000000000001";
    match () {
        () if place.join("token").exists() => Step::Noted,
        () if place.join("current").symlink_metadata().is_ok() => Step::Current,
        () if there(&format!("{set}/chain.pem")) => Step::ChainKept,
        () if there(set) => Step::SetBegun,
        () if used() => Step::Answered,
        () if there("asked.pem") => Step::KeyKept,
        () => Step::Begun,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_while_it_enrols_and_renews_is_the_same_at_the_end() -> Result<()> {
    let seed = 5;
    println!("seed {seed}");
    let setting = Arc::new(Setting::start().await?);
    let tokens = {
        let mut tokens = Vec::new();
        for _ in 0..soak::count(CYCLES) {
            tokens.push(setting.token().await?);
        }
        tokens
    };
    let cycles = tokens.len();
    let (killing, asked) = (Arc::clone(&setting), tokens.clone());
    let (left, kills) = tokio::task::spawn_blocking(move || kill_all(&killing, &asked, seed)).await??;
    println!("{cycles} agents, {kills} kills; left behind by kills in an enrolment: {left:?}");
    for (cycle, token) in tokens.iter().enumerate() {
        let what = || format!("agent {cycle}");
        let state = setting.folder.path().join(format!("agent-{cycle}"));
        let settled = setting.settle_at(place(&state), None).await?.with_context(what)?;
        let used = setting.controller.parts().identities.tokens();
        let used = used
            .into_iter()
            .find(|facts| facts.id == token.id)
            .with_context(what)?;
        ensure!(used.used_by == settled.identity().id().to_string(), "{}", what());
        let next = setting.renew(&settled).await?.with_context(what)?;
        ensure!(next.id() == settled.identity().id());
    }
    let known = setting.controller.parts().identities.agents().len();
    ensure!(known == cycles, "{known} identities for {cycles} tokens");
    Ok(())
}

fn kill_all(setting: &Setting, tokens: &[JoinToken], seed: u64) -> Result<(BTreeMap<Step, u32>, u32)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut left, mut kills) = (BTreeMap::new(), 0);
    for (cycle, token) in tokens.iter().enumerate() {
        let state = setting.folder.path().join(format!("agent-{cycle}"));
        std::fs::create_dir(&state)?;
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        std::fs::write(state.join("token"), token.expose())?;
        let identities = &setting.controller.parts().identities;
        let used = || {
            let tokens = identities.tokens();
            tokens
                .iter()
                .any(|facts| facts.id == token.id && !facts.used_by.is_empty())
        };
        for _ in 0..random.u32(1..=3) {
            let aim = STEPS[random.usize(..STEPS.len())];
            let mut agent = Agent::start(&state, setting)?;
            let began = Stopwatch::start();
            let delay = Duration::from_micros(random.u64(..60_000));
            let is_there = || match aim {
                Step::Begun => began.elapsed() >= delay,
                aim => seen(&state, used) >= aim,
            };
            while !is_there() {
                ensure!(
                    began.elapsed() < WAIT,
                    "seed {seed}, cycle {cycle}: it does not come to {aim:?}"
                );
            }
            agent.child.kill()?;
            agent.child.wait()?;
            kills += 1;
            *left.entry(seen(&state, used)).or_default() += 1;
        }
        for _ in 0..2 {
            let agent = Agent::start(&state, setting)?;
            let renewals = random.u64(..3);
            agent
                .renews(renewals)
                .with_context(|| format!("seed {seed}, cycle {cycle}"))?;
            // The moment of the kill is what the test is about: anywhere in the next renewal, or in the enrolment.
            std::thread::sleep(Duration::from_micros(random.u64(..120_000)));
            drop(agent);
            kills += 1;
        }
        let agent = Agent::start(&state, setting)?;
        agent
            .renews(1)
            .with_context(|| format!("seed {seed}, cycle {cycle}: the last start"))?;
    }
    Ok((left, kills))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_answer_was_lost_runs_out_with_a_remedy_that_works() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let lost = setting.settle(Some(&token)).await??;
    // The answer did not reach the disk: the key that asked is there, and nothing else.
    let key = setting.key()?;
    std::fs::remove_dir_all(setting.place())?;
    std::fs::create_dir(setting.place())?;
    std::fs::write(setting.place().join("asked.pem"), &key)?;
    let again = setting.settle(Some(&token)).await??;
    ensure!(again.identity().id() == lost.identity().id(), "the same identity");
    std::fs::remove_dir_all(setting.place())?;
    std::fs::create_dir(setting.place())?;
    std::fs::write(setting.place().join("asked.pem"), &key)?;
    setting.pass(2 * HOUR);
    let refused = setting.settle(Some(&token)).await?;
    let Err(error @ SettleError::Refused { .. }) = refused else {
        bail!("a token that has run out was taken: {refused:?}");
    };
    let said = format!("{:#}", anyhow::Error::from(error));
    ensure!(said.contains("ask the operator for another one"), "{said}");
    let token = Token::Given(setting.token().await?);
    setting.settle(Some(&token)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_answers_to_renewals_were_lost_comes_back_with_the_key_that_it_has() -> Result<()> {
    let setting = Setting::start().await?;
    let token = Token::Given(setting.token().await?);
    let credentials = setting.settle(Some(&token)).await??;
    for _ in 0..10 {
        setting.renew(&credentials).await??;
    }
    let key = setting.key()?;
    drop(credentials);
    setting.pass(26 * HOUR);
    let back = setting.settle(None).await??;
    ensure!(setting.key()? == key);
    credentials_work(&setting, &back).await
}
