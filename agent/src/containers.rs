//! Names of containers: asks the runtimes on this host, those that speak Docker's API (Docker, podman) and those that speak
//! Kubernetes' CRI (containerd, CRI-O).
//!
//! In: paths of Unix sockets, and [`ContainerAsk`]s of naming. Out: [`ContainerNews`] for naming, by a bounded channel.
//! A task a socket. It never touches a flow: the meter takes news at its own pace and waits for nobody, so a runtime that
//! is slow, hangs or lies costs names and nothing else. Nothing is asked that changes anything.
//!
//! A socket's life: whose API it is, then what `docker` or `cri` makes of it, until anything fails or takes too long. Then
//! everything is begun anew after a pause; a socket that is not there is tried for ever.
//! Which API a socket speaks shows when it is spoken to: the one that worked last or that its name promises goes first.
//! Bounds: [`NEWS_MAX`], [`ASKS_MAX`], [`INSPECTS_MAX`], [`EVENTS_MAX`], those of `failure`, those of naming.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_agent_core::enrich::Naming;
use flowtilla_agent_core::enrich::container::{ContainerAsk, ContainerNews, Teller};
use flowtilla_proto::policy::SocketPath;
use tokio::sync::{broadcast, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::clock;

mod cri;
mod docker;
mod failure;

use failure::Failure;

/// News that wait for the meter, which empties this five times a second. Beyond it the sockets' tasks wait.
const NEWS_MAX: usize = 1_024;
/// Asks that wait for a socket's task; of more the oldest go, and are asked again after a minute.
const ASKS_MAX: usize = 256;
/// Asks that one runtime has to answer at a time.
const INSPECTS_MAX: usize = 4;
/// Events that wait for their socket's task.
const EVENTS_MAX: usize = 256;
/// Bound of the first pause before a lost socket is tried again, in milliseconds.
const RETRY_BASE_MS: u64 = 200;
/// Largest bound of the pause, in milliseconds. A try where nobody listens costs some 20 µs.
const RETRY_CAP_MS: u64 = 1_000;
/// Pause after an answer that no API here is spoken.
///
/// Docker's own containerd is such a one: its socket is there, its CRI is off. Half of it writes to that one's log for
/// nothing; double it, and one whose CRI was switched on stays nameless for a minute.
const UNSPOKEN_PAUSE: Duration = Duration::from_secs(30);
/// How long flows wait for names of a runtime that was there and is not.
///
/// A restart of Docker takes some seconds, and its first container may come before the next try. Half of it is shorter
/// than that on a busy host; double it, and containers of others wait for a runtime that was removed.
const RECOVERY: Duration = Duration::from_secs(15);

/// The meter's end.
pub(crate) struct Link {
    news: mpsc::Receiver<ContainerNews>,
    asks: broadcast::Sender<ContainerAsk>,
    sockets: usize,
}

/// Tasks that ask runtimes; they end when it is dropped.
pub(crate) struct Containers {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Containers {
    /// Starts a task a socket; `None` twice when there is none. `seed` spreads the pauses between tries.
    pub(crate) fn start(sockets: &[SocketPath], seed: u64) -> (Option<Self>, Option<Link>) {
        if sockets.is_empty() {
            return (None, None);
        }
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let (asks, _) = broadcast::channel(ASKS_MAX);
        let task = |(place, path): (usize, &SocketPath)| {
            let socket = Socket {
                place,
                path: Arc::new(path.as_path().to_owned()),
                api: Api::promised(path.as_path()),
                news: tell.clone(),
                asks: asks.clone(),
                backoff: Backoff::with_bounds(seed ^ place as u64, RETRY_BASE_MS, RETRY_CAP_MS),
            };
            AbortOnDropHandle::new(tokio::spawn(socket.run()))
        };
        let tasks = sockets.iter().enumerate().map(task).collect();
        let link = Link {
            news,
            asks,
            sockets: sockets.len(),
        };
        (Some(Self { _tasks: tasks }), Some(link))
    }
}

impl Link {
    /// Sockets that are tried.
    pub(crate) fn sockets(&self) -> usize {
        self.sockets
    }

    /// Tells naming what has come, at most [`NEWS_MAX`]. Waits for nothing.
    pub(crate) fn tell(&mut self, naming: &mut Naming) {
        for _ in 0..NEWS_MAX {
            let Ok(news) = self.news.try_recv() else { return };
            naming.learn_container(news);
        }
    }

    /// Passes on what naming asks. Waits for nothing.
    pub(crate) fn ask(&self, naming: &mut Naming) {
        while let Some(ask) = naming.poll_container_ask() {
            let _ = self.asks.send(ask); // An error: the tasks are gone.
        }
    }
}

/// One socket.
struct Socket {
    place: usize,
    path: Arc<PathBuf>,
    api: Api,
    news: mpsc::Sender<ContainerNews>,
    asks: broadcast::Sender<ContainerAsk>,
    backoff: Backoff,
}

/// What may be spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Docker,
    Cri,
}

impl Api {
    /// What the socket's name promises; that it keeps it is seen later.
    fn promised(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.contains("containerd") || name.contains("cri") {
            true => Self::Cri,
            false => Self::Docker,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Docker => Self::Cri,
            Self::Cri => Self::Docker,
        }
    }
}

/// Why a socket's task is at an end with its connection.
enum Ended {
    /// Begin anew.
    Failed(Failure),
    /// Nobody listens to news any more.
    Unwanted,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<T> From<mpsc::error::SendError<T>> for Ended {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self::Unwanted
    }
}

/// How a socket was lost, or not reached.
struct Lost {
    why: String,
    is_absence: bool,
    /// By neither API.
    is_unspoken: bool,
}

impl Socket {
    async fn run(mut self) {
        let mut lost_at: Option<Instant> = None;
        let mut told = None;
        let mut last = String::new();
        loop {
            let mut was_up = false;
            let Some(lost) = self.attempt(&mut was_up).await else {
                return;
            };
            if was_up {
                self.backoff.handle_success();
                lost_at = Some(clock::instant());
                told = None;
                last.clear();
            }
            if lost.why != last {
                let (socket, why) = (self.path.display(), lost.why.as_str());
                match (lost.is_absence || lost.is_unspoken) && !was_up {
                    true => tracing::debug!(%socket, why, "no container runtime here"),
                    false => tracing::warn!(%socket, why, "names of containers: no answer; trying again"),
                }
                last = lost.why;
            }
            let stands = match lost_at.is_some_and(|at| at.elapsed() < RECOVERY) {
                true => Teller::Trying,
                false => Teller::Away,
            };
            if told != Some(stands) {
                told = Some(stands);
                let news = ContainerNews::Stands(self.place, stands);
                if self.news.send(news).await.is_err() {
                    return;
                }
            }
            let pause = self.backoff.handle_failure();
            tokio::time::sleep(match lost.is_unspoken {
                true => UNSPOKEN_PAUSE,
                false => pause,
            })
            .await;
        }
    }

    /// One connection, by the other API if it is not the one that was expected; `None`: nobody listens to news any more.
    /// `is_up` once the runtime has told what runs.
    async fn attempt(&mut self, is_up: &mut bool) -> Option<Lost> {
        let first = self.speak(self.api, is_up).await?;
        let lost = |failure: &Failure, why: String| Lost {
            why,
            is_absence: failure.is_absence(),
            is_unspoken: false,
        };
        if *is_up || !first.may_be_another_api() {
            return Some(lost(&first, first.chain()));
        }
        let other = self.api.other();
        let second = self.speak(other, is_up).await?;
        if *is_up {
            self.api = other;
            return Some(lost(&second, second.chain()));
        }
        let why = format!(
            "by {:?}: {}; by {other:?}: {}",
            self.api,
            first.chain(),
            second.chain()
        );
        Some(Lost {
            why,
            is_absence: second.is_absence(),
            is_unspoken: first.is_unspoken() || second.is_unspoken(),
        })
    }

    async fn speak(&self, api: Api, is_up: &mut bool) -> Option<Failure> {
        let ended = match api {
            Api::Docker => self.by_docker(is_up).await,
            Api::Cri => self.by_cri(is_up).await,
        };
        match ended {
            Err(Ended::Failed(failure)) => Some(failure),
            Err(Ended::Unwanted) => None,
        }
    }
}

#[cfg(test)]
mod tests;
