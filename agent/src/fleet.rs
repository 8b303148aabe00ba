//! An agent that does what a controller says: wiring of [`Agent`], identity and session.
//!
//! Start: the agent with nothing to do; what is held is put in force; only then a controller is looked for. So an agent
//! does its work whether there is a controller or not.
//! State directory: `identity/` ([`crate::identity`]), `held` ([`crate::held`]), `source-id` (what the controller gave, one
//! number), `short-source-ids` (the same of 8 bits, as [`ShortIds`] has them), `spool/` ([`crate::spool`]), `lock`. 0700,
//! files 0600.
//! Stop: the session says goodbye, then the agent ends in order.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_agent_core::session::ShortIds;
use flowtilla_agent_core::time::KernelTime;
use flowtilla_grpc::causes;
use flowtilla_grpc::channel::Address;
use flowtilla_proto::policy::Scope;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::build::Build;
use crate::clock;
use crate::files::{check_owner, make_directory, open_for_writing};
use crate::held::HeldStore;
use crate::identity::{self, Asker, NewToken, SettleError, Token, WallClock};
use crate::peers::Joined;
use crate::run::broken::Watched;
use crate::run::{self, Agent, StartError};
use crate::session::{Facts, News, Parts, Ready, Vitals};
use crate::status::{AgentStatus, AttachReport};
use crate::top::SharedTop;
use crate::vitals;

use self::governed::{Capturing, load_short_ids, load_source_id};

mod governed;

/// What an agent of a fleet is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the controller is.
    pub controller: Address,
    /// Keeps identity, assignment and source id between runs; `None`: in memory only.
    pub state: Option<PathBuf>,
    /// Keeps the spool between runs; `None`: in a temporary directory, which goes with the agent.
    pub spool: Option<PathBuf>,
    /// For the first identity.
    pub token: Option<Token>,
    /// From the host's own configuration. Those of the enrolment win.
    pub labels: BTreeMap<String, String>,
    /// Parts of the host that are its own, whatever a policy says.
    pub scopes: Vec<Scope>,
    /// Whether it is the only agent of its controller: then no list of others is waited for.
    pub alone: bool,
    /// Records that wait for whoever watches them. 0: nobody watches.
    pub view_records_max: usize,
    /// What tells the time of SVIDs.
    pub clock: WallClock,
    /// Which build of the agent's program runs; `None`: it is no program of its own, or that is not known.
    pub build: Option<Build>,
}

/// Why an agent of a fleet does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The agent itself.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The state directory.
    #[error("the state directory {path}: {why}")]
    State {
        /// Its path.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// No identity, and nothing held to go on with.
    #[error(transparent)]
    Identity(#[from] SettleError),
    /// A task ended by itself.
    #[error("a part of the agent ended; its last log line says why")]
    Task,
}

/// An agent at work.
pub struct Running {
    /// Each record, as soon as it is made. Closes when the last one was sent.
    pub records: mpsc::Receiver<Arc<FlowRecord>>,
    /// How it does.
    pub status: watch::Receiver<AgentStatus>,
    /// What attached; `None`: capture is off.
    pub attached: watch::Receiver<Option<AttachReport>>,
    /// How the session stands.
    pub news: watch::Receiver<News>,
    /// Who does how much.
    pub top: SharedTop,
    stop: CancellationToken,
    task: JoinHandle<Result<AgentStatus, FleetError>>,
}

impl Running {
    /// The records apart from the rest, for a reader of their own.
    #[must_use]
    pub fn without_records(mut self) -> (mpsc::Receiver<Arc<FlowRecord>>, Self) {
        let (_, nothing) = mpsc::channel(1);
        (std::mem::replace(&mut self.records, nothing), self)
    }

    /// Ends it in order, and tells how it stood.
    ///
    /// # Errors
    /// [`FleetError`]: why it had ended before.
    pub async fn stop(self) -> Result<AgentStatus, FleetError> {
        self.stop.cancel();
        self.task.await.unwrap_or(Err(FleetError::Task))
    }

    /// Waits until it ends by itself: it has no identity, will get none, and holds nothing. A token's file that is not there is waited
    /// for.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn ended(&mut self) -> FleetError {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) | Err(_) => FleetError::Task,
        }
    }
}

/// Runs an agent until it is told to stop.
///
/// # Errors
/// [`FleetError`].
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), FleetError> {
    let mut running = start(options).await?;
    tokio::select! { biased;
        () = stop.cancelled() => running.stop().await.map(drop),
        error = running.ended() => Err(error),
    }
}

/// Starts an agent. Returns when what it holds is in force, before any controller was asked.
///
/// # Errors
/// [`FleetError::State`], [`FleetError::Start`].
pub async fn start(options: Options) -> Result<Running, FleetError> {
    let lock = options.state.as_deref().map(claim).transpose()?;
    let source_id_file = options.state.as_ref().map(|state| state.join("source-id"));
    let short_ids_file = options.state.as_ref().map(|state| state.join("short-source-ids"));
    let started = clock::kernel_now();
    let (mut agent, records) = Agent::start(run::Options {
        wanted: Wanted::nothing(),
        scopes: options.scopes.clone(),
        source_id: source_id_file.as_deref().and_then(load_source_id),
        short_ids: short_ids_file
            .as_deref()
            .map_or_else(ShortIds::untold, load_short_ids),
        view_records_max: options.view_records_max,
        state: options.spool.clone(),
    })
    .await?;
    let link = agent.take_peer_link().filter(|_| !options.alone);
    let peers = link
        .map(|link| Joined::start(link, Watched(agent.broken())))
        .transpose();
    let peers = peers.map_err(StartError::Thread)?;
    let (status, attached, top) = (agent.status(), agent.attached(), agent.top());
    let broken = agent.broken();
    let host = agent.host().clone();
    let seed = u64::from(host.source_id.number()) ^ started.0;
    let parts = Parts {
        facts: Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host_name: host.name.clone(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            operating_system: host.operating_system.clone(),
            source_id: host.source_id,
            labels: options.labels.clone(),
            boot: host.boot,
            scope: words(&options.scopes),
            instance: fastrand::u64(..),
            build: options.build,
        },
        vitals: vitals_of(&agent, started),
        governed: Capturing {
            agent,
            source_id: source_id_file,
            short_ids: short_ids_file,
        },
        store: HeldStore(options.state.clone()),
        peers,
        seed,
    };
    let ready = Ready::restore(parts).await;
    let news = ready.news();
    let stop = CancellationToken::new();
    let asker = Asker {
        controller: options.controller.clone(),
        host_name: host.name,
        seed,
        clock: options.clock.clone(),
    };
    let living = live(ready, options, asker, lock, stop.clone());
    let task = tokio::spawn(async move {
        tokio::select! {
            ended = living => ended,
            () = broken.cancelled() => Err(FleetError::Task),
        }
    });
    Ok(Running {
        records,
        status,
        attached,
        news,
        top,
        stop,
        task,
    })
}

/// Gets an identity, talks to the controller until it is told to stop, and ends the agent.
async fn live(
    ready: Ready<Capturing>,
    options: Options,
    asker: Asker,
    lock: Option<File>,
    stop: CancellationToken,
) -> Result<AgentStatus, FleetError> {
    let directory = options.state.as_ref().map(|state| state.join("identity"));
    let tell_why = ready.teller();
    let token = options.token.as_ref();
    let new_token = NewToken::of(directory.as_ref(), token, &asker);
    let ready = ready.with_new_token(new_token.clone());
    let settled = loop {
        let settled = identity::settle(directory.clone(), token, &asker, &stop, &tell_why).await;
        let goes_on = ready.is_in_force() || identity::is_enrolled(directory.as_ref());
        match (settled, &new_token) {
            (Err(SettleError::Stopped), _) => break Err(SettleError::Stopped),
            (Err(error), Some(new_token)) if goes_on => {
                tracing::error!(error = %causes::chain(&error), "no identity");
                tell_why(&causes::chain(&error));
                new_token.tell();
                if let Err(stopped) = new_token.wait(&stop).await {
                    break Err(stopped);
                }
            }
            (Err(error), Some(new_token)) if error.is_awaiting_token() => {
                tell_why(&causes::chain(&error));
                new_token.ask_for();
                if let Err(stopped) = new_token.wait(&stop).await {
                    break Err(stopped);
                }
            }
            (settled, _) => break settled,
        }
    };
    let (capturing, failed) = match settled {
        Ok(credentials) => {
            let run = ready.run(options.controller, Arc::new(credentials), stop);
            (run.await, None)
        }
        Err(SettleError::Stopped) => (ready.into_governed(), None),
        Err(error) if ready.is_in_force() => {
            tracing::error!(error = %causes::chain(&error), "no identity: goes on with what is held, without a controller");
            tell_why(&causes::chain(&error));
            stop.cancelled().await;
            (ready.into_governed(), None)
        }
        Err(error) => (ready.into_governed(), Some(error)),
    };
    let status = capturing.agent.stop().await;
    drop(lock);
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(status),
    }
}

fn vitals_of(agent: &Agent, started: KernelTime) -> Vitals {
    let (status, attached, addresses) = (agent.status(), agent.attached(), agent.addresses());
    let top = agent.top();
    Vitals {
        health: Box::new(move || {
            let (status, attached) = (status.borrow(), attached.borrow());
            vitals::health(&status, attached.as_ref(), started, clock::kernel_now())
        }),
        addresses: Box::new(move || -> Vec<IpAddr> { addresses.borrow().clone() }),
        top: Box::new(move |question| top.answer(question)),
    }
}

fn words(scopes: &[Scope]) -> String {
    let words: Vec<String> = scopes.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// Makes the state directory, unless it is there, and keeps a second agent out of it.
fn claim(path: &Path) -> Result<File, FleetError> {
    let refused = |why: String| FleetError::State {
        path: path.to_owned(),
        why,
    };
    make_directory(path).map_err(|error| refused(error.to_string()))?;
    check_owner(path).map_err(refused)?;
    let lock = open_for_writing(&path.join("lock"), false).map_err(|error| refused(error.to_string()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(_) => Err(refused(
            "another agent uses it: stop that one, or name another directory".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests;
