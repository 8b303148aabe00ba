//! Follows rollouts to their end: each agent's answer as it comes, and a picture of the whole.
//!
//! In: the stream of `Watch`, one a rollout; after a break it is asked for again, and what was told already is not told twice.
//! Out: plain lines on stdout; on a terminal a last line on stderr that is rewritten. Exit code 0: all acked; 1: something failed
//! or was taken back (each gate's sentence is printed), or the time is over; 130: told to end. The rollout goes on in the last two.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use crate::clock;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::{Rollout, RolloutEvent, RolloutPart, RolloutState, WatchRequest};
use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Code;

use super::print;
use crate::client::Client;
use crate::client::explain::{Failed, Stage};
use crate::exit::{Exit, say};
use crate::output::{harmless, word};
use crate::signals::Signals;
use crate::view;

/// How often the controller is asked again after a break, and how long it is waited in between.
///
/// A restart takes seconds. Half of it gives up on a slow one; double it, and a dead controller is watched for minutes.
const TRIES_MAX: u32 = 60;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What was told of rollouts.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    rollouts: BTreeMap<u64, Seen>,
}

#[derive(Debug)]
struct Seen {
    state: RolloutState,
    wave: u32,
    parts: BTreeMap<String, RolloutPart>,
    /// How many failures were told.
    failures: usize,
    /// What it waits for, as it was told.
    waits_for: String,
    rollout: Rollout,
}

impl Picture {
    /// Takes an event; what is to be told of it, a line each.
    pub(crate) fn take(&mut self, event: RolloutEvent) -> Vec<String> {
        let Some(rollout) = event.rollout.clone() else {
            return Vec::new();
        };
        let seen = self.rollouts.entry(rollout.id).or_insert_with(|| Seen {
            state: RolloutState::Unspecified,
            wave: 0,
            parts: BTreeMap::new(),
            failures: 0,
            waits_for: String::new(),
            rollout: Rollout::default(),
        });
        let mut lines = Vec::new();
        if (seen.state, seen.wave) != (rollout.state(), rollout.wave) {
            (seen.state, seen.wave) = (rollout.state(), rollout.wave);
            let policy = match rollout.policy.is_empty() {
                true => String::new(),
                false => format!(" of {}", word(&rollout.policy)),
            };
            lines.push(format!(
                "rollout {}{policy}: {}, wave {} of {}",
                rollout.id,
                view::rollout_state(rollout.state()),
                rollout.wave,
                rollout.waves
            ));
        }
        let failures = rollout.failures.iter().skip(seen.failures);
        lines.extend(failures.map(|failure| format!("  {}", harmless(&failure.message))));
        seen.failures = seen.failures.max(rollout.failures.len());
        if seen.waits_for != rollout.waits_for {
            seen.waits_for.clone_from(&rollout.waits_for);
            if !rollout.waits_for.is_empty() {
                lines.push(format!("  waits: {}", harmless(&rollout.waits_for)));
            }
        }
        for agent in &event.agents {
            let before = seen.parts.insert(agent.agent.clone(), agent.part());
            if before == Some(agent.part()) {
                continue;
            }
            let word_of = match agent.part() {
                RolloutPart::Unspecified | RolloutPart::Waiting => continue,
                RolloutPart::Offered => "offered",
                RolloutPart::Acked => "acked",
                RolloutPart::Nacked => "REFUSED",
                RolloutPart::Offline => "offline, gets it when it is back",
                RolloutPart::TakingBack => "is taken back",
                RolloutPart::TakenBack => "taken back",
            };
            let why = match agent.reason.is_empty() {
                true => String::new(),
                false => format!(": {}", harmless(&agent.reason)),
            };
            lines.push(format!("  {} {word_of}{why}", word(&agent.agent)));
        }
        seen.rollout = rollout;
        lines
    }

    /// One line: how they all stand.
    pub(crate) fn line(&self, now: WallTime) -> String {
        let mut sums = [0_u32; 4];
        let mut soaks = String::new();
        for rollout in self.rollouts.values().map(|seen| &seen.rollout) {
            let counts = [rollout.acked, rollout.nacked, rollout.pending, rollout.offline];
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum = sum.saturating_add(count);
            }
            if rollout.soak_until_ms > 0 && rollout.state() == RolloutState::Soaking {
                soaks = format!(", soaks for {}", view::until(rollout.soak_until_ms, now));
            }
        }
        let [acked, nacked, pending, offline] = sums;
        format!("{acked} acked, {nacked} refused, {pending} pending, {offline} offline{soaks}")
    }

    /// How it ended; `None`: it goes on. `of`: how many rollouts there are.
    pub(crate) fn outcome(&self, of: usize) -> Option<Exit> {
        let over = |state: RolloutState| {
            matches!(
                state,
                RolloutState::Done | RolloutState::RolledBack | RolloutState::Superseded
            )
        };
        let states = || self.rollouts.values().map(|seen| seen.state);
        if states().filter(|state| over(*state)).count() < of {
            return None;
        }
        let well = states().all(|state| state == RolloutState::Done);
        Some(if well { Exit::Done } else { Exit::Failed })
    }
}

/// Follows rollouts; 0 is the newest.
///
/// # Errors
///
/// The controller refuses, or stays away; stdout cannot be written.
pub(crate) async fn watch(
    client: &Client,
    rollouts: &[u64],
    timeout: Option<Duration>,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let mut picture = Picture::default();
    let terminal = io::stderr().is_terminal();
    tokio::select! { biased;
        () = signals.next() => {
            clear(terminal);
            say("no longer watched; the rollout goes on");
            Ok(Exit::Interrupted)
        }
        () = at(end) => {
            clear(terminal);
            say("the time is over; the rollout goes on: see agentctl rollout watch");
            Ok(Exit::Failed)
        }
        ended = follow(client, rollouts, &mut picture, terminal) => ended,
    }
}

async fn follow(
    client: &Client,
    rollouts: &[u64],
    picture: &mut Picture,
    terminal: bool,
) -> anyhow::Result<Exit> {
    let mut tries = 0;
    loop {
        match listen(client, rollouts, picture, terminal, &mut tries).await? {
            Ok(exit) => {
                clear(terminal);
                print(&format!("{}\n", picture.line(clock::wall_now())))?;
                return Ok(exit);
            }
            Err(failed) => {
                let comes_back = matches!(
                    failed.code,
                    None | Some(
                        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal | Code::Ok
                    )
                );
                tries += 1;
                if !comes_back || tries > TRIES_MAX {
                    clear(terminal);
                    return Err(failed.into());
                }
                if tries == 1 {
                    clear(terminal);
                    say(format_args!("{failed}; asks again"));
                }
                sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// Reads the streams until all rollouts have ended, or one stream breaks.
async fn listen(
    client: &Client,
    rollouts: &[u64],
    picture: &mut Picture,
    terminal: bool,
    tries: &mut u32,
) -> anyhow::Result<Result<Exit, Failed>> {
    let mut streams = Vec::new();
    for &rollout in rollouts {
        match client.ask(client.fleet().watch(WatchRequest { rollout })).await {
            Ok(stream) => streams.push(stream),
            Err(failed) => return Ok(Err(failed)),
        }
    }
    let mut events = select_all(streams);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(status) => return Ok(Err(Failed::status(Stage::Call, &status))),
        };
        *tries = 0;
        let lines = picture.take(event);
        if !lines.is_empty() {
            clear(terminal);
            print(&lines.into_iter().map(|line| line + "\n").collect::<String>())?;
        }
        if let Some(exit) = picture.outcome(rollouts.len()) {
            return Ok(Ok(exit));
        }
        if terminal {
            // That nobody may read it is no failure.
            let _ = write!(io::stderr(), "\r\x1b[K{}", picture.line(clock::wall_now()));
            let _ = io::stderr().flush();
        }
    }
    match picture.outcome(rollouts.len()) {
        Some(exit) => Ok(Ok(exit)),
        None => Ok(Err(Failed::broken())),
    }
}

fn clear(terminal: bool) {
    if terminal {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
