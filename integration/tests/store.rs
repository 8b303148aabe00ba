//! Promise: what a controller has answered is on its disk, and it says so when its disk fails.
//!
//! The built controller on a disk of its own, which loses its power, fills up, turns read-only, breaks down, or fails now and
//! then. Tokens, enrolments, revocations and revisions are asked for as operators and agents do. `FLOWTILLA_SOAK=1` makes
//! all cuts, else a tenth.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flowtilla_agent::identity::{self, Asker, Token, WallClock};
use flowtilla_controller::enrolment::RENEW_GRACE_DEFAULT;
use flowtilla_controller::local::{self, Ask};
use flowtilla_controller::run::{Options, STORE_WAIT_MAX};
use flowtilla_controller::{run, setup};
use flowtilla_grpc::channel::Address;
use flowtilla_proto::token::{JoinToken, TokenId};
use integration::disk::{self, Disk};
use integration::flaky::{self, Access, Flaky};
use integration::fleet::Controller;
use integration::need;
use integration::soak;
use integration::wait::{self, PATIENCE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

/// Octets of a disk: what a controller leaves free of it, and some.
const OCTETS: u64 = 256 << 20;
const CUTS: usize = 30;

/// What was answered.
#[derive(Clone, Debug, Default)]
struct Answered {
    tokens: BTreeSet<TokenId>,
    enrolled: BTreeSet<String>,
    revoked: BTreeSet<String>,
    revision: u64,
}

/// Asks a controller for changes, one after the other in each of its threads, until it is told to stop or an answer is a no.
struct Askers {
    answered: Arc<Mutex<Answered>>,
    stop: Arc<AtomicBool>,
    numbers: AtomicU64,
}

impl Askers {
    fn new() -> Self {
        Self {
            answered: Arc::default(),
            stop: Arc::default(),
            numbers: AtomicU64::new(1),
        }
    }

    fn answered(&self) -> Answered {
        self.answered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note(&self, note: impl FnOnce(&mut Answered)) {
        note(&mut self.answered.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn ask_until_told(&self, what: impl Fn(&Self) -> Result<()>) {
        while !self.stop.load(Ordering::Relaxed) && what(self).is_ok() {}
    }

    fn token(&self, controller: &Controller) -> Result<()> {
        let token = JoinToken::parse(&controller.must(&["token", "create"])?)?;
        self.note(|answered| _ = answered.tokens.insert(token.id));
        Ok(())
    }

    /// Of this host: many more in a second.
    fn operators_token(&self, controller: &Controller) -> Result<()> {
        let name = format!("operator-{}", self.numbers.fetch_add(1, Ordering::Relaxed));
        let mut text = Vec::new();
        local::ask(controller.state(), &Ask::Token(name), &mut text)?;
        let token = JoinToken::parse(std::str::from_utf8(&text)?)?;
        self.note(|answered| _ = answered.tokens.insert(token.id));
        Ok(())
    }

    fn enrol_and_revoke(&self, controller: &Controller) -> Result<()> {
        let token = JoinToken::parse(&controller.must(&["token", "create"])?)?;
        self.note(|answered| _ = answered.tokens.insert(token.id));
        let asker = Asker {
            controller: Address::parse(&controller.address().to_string())?,
            host_name: "store".to_owned(),
            seed: 7,
            clock: WallClock::system(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stop = CancellationToken::new();
        let settled = runtime.block_on(async {
            let given = Token::Given(token);
            let settling = identity::settle(None, Some(&given), &asker, &stop, |_| stop.cancel());
            settling.await
        })?;
        let id = settled.identity().id().clone();
        self.note(|answered| _ = answered.enrolled.insert(id.to_string()));
        controller.must(&["revoke", "agent", id.name.as_str()])?;
        self.note(|answered| _ = answered.revoked.insert(id.to_string()));
        Ok(())
    }

    fn deploy(&self, controller: &Controller) -> Result<()> {
        let flows = 1_000 + self.numbers.fetch_add(1, Ordering::Relaxed);
        let output = controller.deploy(&policy(flows), &[])?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.note(|answered| answered.revision += 1);
        Ok(())
    }

    /// Everything at once, until `meanwhile` has ended.
    fn busy<T>(&self, controller: &Controller, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            scope.spawn(|| self.ask_until_told(|it| it.operators_token(controller)));
            scope.spawn(|| self.ask_until_told(|it| it.enrol_and_revoke(controller)));
            scope.spawn(|| self.ask_until_told(|it| it.deploy(controller)));
            let outcome = meanwhile();
            self.stop.store(true, Ordering::Relaxed);
            outcome
        })
    }
}

fn policy(flows: u64) -> String {
    format!("apiVersion: flowtilla/v1\nkind: Policy\nname: all\ncapture: {{maxFlows: {flows}}}\n")
}

/// Opens the state and sees that all that was answered is there.
fn check(state: &std::path::Path, answered: &Answered) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let opened = setup::open(state, RENEW_GRACE_DEFAULT)?;
        let identities = Arc::clone(&opened.identities);
        let controller = run::Controller::start_on(
            opened,
            Options::new(state.to_owned(), vec![(Ipv4Addr::LOCALHOST, 0).into()]),
        )
        .await?;
        let kept: BTreeSet<TokenId> = identities.tokens().iter().map(|token| token.id).collect();
        let lost: Vec<_> = answered.tokens.difference(&kept).collect();
        ensure!(lost.is_empty(), "tokens {lost:?} were answered and are gone");
        let agents = identities.agents();
        for id in &answered.enrolled {
            let known = agents
                .iter()
                .find(|(name, _)| id.ends_with(&format!("/agent/{name}")));
            let (_, record) = known.with_context(|| format!("{id} was enrolled and is gone"))?;
            ensure!(
                record.revoked.is_some() || !answered.revoked.contains(id),
                "{id} was revoked and is not"
            );
        }
        let history = controller.parts().fleet.history(usize::MAX).await?;
        let newest = history.revisions.first().map_or(0, |revision| revision.revision);
        ensure!(
            newest >= answered.revision,
            "revision {} was answered, {newest} is the newest",
            answered.revision
        );
        ensure!(history.revisions.len() as u64 == newest, "a revision is missing");
        controller.stop().await?;
        Ok(())
    })
}

#[test]
fn power_cut_takes_nothing_that_was_answered() -> Result<()> {
    if !need::met(&disk::NEEDS) {
        return Ok(());
    }
    let seed = 3;
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cuts = soak::count(CUTS);
    for cut in 0..cuts {
        let disk = Disk::make_lazy(OCTETS)?;
        let controller = Controller::start_on_disk(disk.path())?;
        let askers = Askers::new();
        let enough = random.u64(2..30);
        let delay = Duration::from_micros(random.u64(..200_000));
        let (answered, after) = askers.busy(&controller, || {
            wait::until(PATIENCE, "answers", || {
                Ok((askers.answered().tokens.len() as u64 >= enough).then_some(()))
            })?;
            // The moment of the cut is what the test is about.
            std::thread::sleep(delay);
            let pid = Pid::from_raw(controller.pid()?.cast_signed());
            kill(pid, Signal::SIGSTOP)?;
            let answered = askers.answered();
            let after = disk.cut();
            kill(pid, Signal::SIGKILL)?; // What is asked and not answered ends.
            Ok((answered, after?))
        })?;
        let told = format!(
            "cut {}/{cuts}: {} tokens, {} enrolled, {} revoked, revision {}",
            cut + 1,
            answered.tokens.len(),
            answered.enrolled.len(),
            answered.revoked.len(),
            answered.revision
        );
        println!("{told}");
        check(&after.path().join("state"), &answered).context(told)?;
    }
    Ok(())
}

#[test]
fn full_disk_is_told_and_used_again_when_there_is_room() -> Result<()> {
    if !need::met(&disk::NEEDS) {
        return Ok(());
    }
    let disk = Disk::make(OCTETS)?;
    let mut controller = Controller::start_on_disk(disk.path())?;
    let askers = Askers::new();
    askers.token(&controller)?;
    askers.deploy(&controller)?;
    disk.fill(0)?;
    let refused = askers
        .token(&controller)
        .err()
        .context("a token on a full disk")?;
    let said = format!("{refused:#}");
    ensure!(said.contains("disk is full"), "{said}");
    let refused = askers
        .operators_token(&controller)
        .err()
        .context("a token on a full disk")?;
    let said = format!("{refused:#}");
    ensure!(said.contains("are free on its disk"), "{said}");
    let refused = askers
        .deploy(&controller)
        .err()
        .context("a revision on a full disk")?;
    ensure!(refused.to_string().contains("disk is full"), "{refused}");
    ensure!(controller.is_running()?, "a full disk is no reason to end");
    // What is known is told: reading needs no room.
    controller.must(&["get", "policies"])?;
    disk.free()?;
    askers.token(&controller)?;
    askers.deploy(&controller)?;
    controller.stop()?;
    check(controller.state(), &askers.answered())
}

/// A controller whose disk is of no use any more ends, and says what to do; the next start says what stands in the way.
fn ends_on(disk: &Disk, controller: &mut Controller) -> Result<()> {
    let askers = Askers::new();
    let refused = askers
        .operators_token(controller)
        .err()
        .context("a token on a disk that takes nothing")?;
    println!("refused: {refused:#}");
    let (status, words) = controller.wait_end(PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}: {words}");
    ensure!(words.contains("start the controller again"), "{words}");
    ensure!(!of_ours(&words), "{words}");
    let again = controller.come_back().err().context("it starts on such a disk")?;
    println!("the next start on {}: {again:#}", disk.path().display());
    Ok(())
}

/// Whether a panic is ours. sled panics on errors of a disk, and that is caught.
fn of_ours(words: &str) -> bool {
    words
        .lines()
        .any(|line| line.contains("panicked at") && !line.contains("sled-"))
}

#[test]
fn disk_that_turns_read_only_ends_the_controller_with_a_message() -> Result<()> {
    if !need::met(&disk::NEEDS) {
        return Ok(());
    }
    let disk = Disk::make(OCTETS)?;
    let mut controller = Controller::start_on_disk(disk.path())?;
    disk.make_read_only()?;
    ends_on(&disk, &mut controller)
}

#[test]
fn disk_that_breaks_down_ends_the_controller_with_a_message() -> Result<()> {
    if !need::met(&disk::NEEDS) {
        return Ok(());
    }
    let disk = Disk::make(OCTETS)?;
    let mut controller = Controller::start_on_disk(disk.path())?;
    disk.break_down()?;
    ends_on(&disk, &mut controller)
}

#[test]
fn failing_accesses_end_in_a_message_or_in_an_answer_that_is_kept() -> Result<()> {
    if !need::met(&flaky::NEEDS) {
        return Ok(());
    }
    let all = [
        (Access::Sync, 1),
        (Access::Write, 1),
        (Access::Sync, 3),
        (Access::Write, 3),
        (Access::Read, 1),
        (Access::Read, 3),
        (Access::Names, 1),
    ];
    for (access, one_in) in all {
        let what = format!("one in {one_in} of {access:?}");
        fails(access, one_in).context(what)?;
    }
    Ok(())
}

fn fails(access: Access, one_in: u32) -> Result<()> {
    let disk = Flaky::make()?;
    let mut controller = Controller::start_on_disk(disk.path())?;
    let askers = Askers::new();
    askers.token(&controller)?;
    askers.deploy(&controller)?;
    disk.fail(access, one_in);
    let mut refused = None;
    for _ in 0..20 {
        let outcome = askers
            .token(&controller)
            .and_then(|()| askers.deploy(&controller));
        if let Err(error) = outcome {
            refused = Some(format!("{error:#}"));
            break;
        }
    }
    println!(
        "one in {one_in} of {access:?}: {} failed; {refused:?}",
        disk.failed()
    );
    if refused.is_some() {
        let (status, words) = controller.wait_end(STORE_WAIT_MAX + PATIENCE)?;
        ensure!(status.code() == Some(1), "{status}: {words}");
        ensure!(words.contains("start the controller again"), "{words}");
        ensure!(!of_ours(&words), "{words}");
    } else {
        ensure!(
            one_in != 1 || !matches!(access, Access::Sync | Access::Write),
            "it goes on as if nothing failed"
        );
        controller.kill()?;
    }
    // The next start on such a disk comes up or ends, and does not hang.
    match controller.come_back() {
        Ok(()) => {
            // It can be read and not written, and says so at the first change.
            let taken = askers.token(&controller);
            println!("the next start on it comes up; a change: {taken:?}");
            match taken {
                Ok(()) => controller.kill()?,
                Err(_) => drop(controller.wait_end(STORE_WAIT_MAX + PATIENCE)?),
            }
        }
        Err(error) => {
            let said = format!("{error:#}");
            println!("the next start on it: {said}");
            ensure!(said.contains("ended before") && !of_ours(&said), "{said}");
        }
    }
    disk.fail(access, 0);
    controller.come_back()?;
    controller.must(&["status"])?;
    askers.token(&controller)?;
    askers.deploy(&controller)?;
    controller.stop()?;
    check(controller.state(), &askers.answered())
}
