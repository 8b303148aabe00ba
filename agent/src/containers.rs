//! Names of containers: asks the runtimes on this host that speak Docker's API, Docker and podman.
//!
//! In: paths of Unix sockets, and [`ContainerAsk`]s of naming. Out: [`ContainerNews`] for naming, by a bounded channel.
//! A task a socket. It never touches a flow: the meter takes news at its own pace and waits for nobody, so a runtime that
//! is slow, hangs or lies costs names and nothing else. Nothing is asked that changes anything.
//!
//! A socket's life: version (whose API it is), events followed from a moment ago, the list of what runs, then events and
//! asks as they come. The list comes after the events have begun, so no container slips between. When anything fails or
//! takes too long, everything is begun anew after a pause; a socket that is not there is tried for ever.
//! Bounds: [`NEWS_MAX`], [`ASKS_MAX`], [`INSPECTS_MAX`], those of `http`, those of naming.
//! Source: Docker Engine API 1.41 (`/version`, `/events`, `/containers/json`, `/containers/{id}/json`), asked for without
//! a version: the newest one that the runtime has. Answers hold what is used here in all of them, and podman's too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_agent_core::enrich::Naming;
use flowtilla_agent_core::enrich::container::{ContainerAsk, ContainerId, ContainerNews, Teller};
use flowtilla_proto::policy::SocketPath;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;

mod api;
mod http;

use api::{Event, Inspected, Listed, Version};
use http::Failure;

/// News that wait for the meter, which empties this five times a second. Beyond it the sockets' tasks wait.
const NEWS_MAX: usize = 1_024;
/// Asks that wait for a socket's task; of more the oldest go, and are asked again after a minute.
const ASKS_MAX: usize = 256;
/// Asks that one runtime has to answer at a time.
const INSPECTS_MAX: usize = 4;
/// Events that wait for their socket's task.
const EVENTS_MAX: usize = 256;
/// How far back events are asked for, in seconds: what began and ended while nobody listened.
const LOOK_BACK_S: u64 = 30;
/// Bound of the first pause before a lost socket is tried again, in milliseconds.
const RETRY_BASE_MS: u64 = 200;
/// Largest bound of the pause, in milliseconds. A try where nobody listens costs some 20 µs.
const RETRY_CAP_MS: u64 = 1_000;
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
    news: mpsc::Sender<ContainerNews>,
    asks: broadcast::Sender<ContainerAsk>,
    backoff: Backoff,
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

impl Socket {
    async fn run(mut self) {
        let mut lost_at: Option<Instant> = None;
        let mut told = None;
        let mut last = String::new();
        loop {
            let mut was_up = false;
            let Err(ended) = self.connection(&mut was_up).await else {
                return;
            };
            let Ended::Failed(failure) = ended else { return };
            if was_up {
                self.backoff.handle_success();
                lost_at = Some(clock::instant());
                told = None;
                last.clear();
            }
            let why = http::chain(&failure);
            if why != last {
                let socket = self.path.display();
                match failure.is_absence() && !was_up {
                    true => tracing::debug!(%socket, why, "no container runtime here"),
                    false => tracing::warn!(%socket, why, "names of containers: no answer; trying again"),
                }
                last = why;
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
            tokio::time::sleep(self.backoff.handle_failure()).await;
        }
    }

    /// From the first request to the failure that ends it; `is_up` once the runtime has told what runs.
    async fn connection(&mut self, is_up: &mut bool) -> Result<(), Ended> {
        let version: Version = http::read(&self.path, "/version", http::ANSWER_OCTETS_MAX).await?;
        let kind = version.kind();
        let since = (clock::wall_now().0 / 1_000_000_000).saturating_sub(LOOK_BACK_S);
        let (send, mut lines) = mpsc::channel(EVENTS_MAX);
        let follow = http::follow(Arc::clone(&self.path), api::events(since), send);
        let mut follow = AbortOnDropHandle::new(tokio::spawn(follow));
        let mut asks = self.asks.subscribe();
        let mut containers = 0;
        match http::read::<Vec<Listed>>(&self.path, api::LIST, http::LIST_OCTETS_MAX).await {
            Ok(list) => {
                for facts in list.iter().filter_map(Listed::facts) {
                    containers += 1;
                    self.news.send(ContainerNews::Known(facts)).await?;
                }
            }
            // Each is asked for when a flow shows it.
            Err(Failure::TooLong { max }) => {
                tracing::warn!(socket = %self.path.display(), max, "the list of containers is too long to be read");
            }
            Err(failure) => return Err(failure.into()),
        }
        self.news
            .send(ContainerNews::Stands(self.place, Teller::Tells(kind)))
            .await?;
        *is_up = true;
        tracing::info!(socket = %self.path.display(), runtime = ?kind, containers, "containers go by their names");
        let mut inspects = JoinSet::new();
        loop {
            // No order: a flood of one kind must not keep the others waiting.
            tokio::select! {
                line = lines.recv() => match line {
                    Some(line) => {
                        if let Some(facts) = Event::facts(&line) {
                            self.news.send(ContainerNews::Known(facts)).await?;
                        }
                    }
                    None => return Err((&mut follow).await.unwrap_or(Failure::Ended).into()),
                },
                Some(inspected) = inspects.join_next() => {
                    if let Ok(inspected) = inspected {
                        self.news.send(inspected?).await?;
                    }
                }
                asked = asks.recv(), if inspects.len() < INSPECTS_MAX => match asked {
                    Ok(ask) => {
                        if kind.may_know(ask.runtime) {
                            inspects.spawn(inspect(Arc::clone(&self.path), ask.id));
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Ended::Unwanted),
                },
            }
        }
    }
}

async fn inspect(socket: Arc<PathBuf>, id: ContainerId) -> Result<ContainerNews, Failure> {
    let found = http::read::<Inspected>(&socket, &api::inspect(id), http::ANSWER_OCTETS_MAX).await;
    match found {
        Ok(found) => Ok(found
            .facts(id)
            .map_or(ContainerNews::NotMine(id), ContainerNews::Known)),
        // Broken, too long or gone: this one has no name, the others may.
        Err(Failure::Status(_) | Failure::TooLong { .. } | Failure::Malformed(_)) => {
            Ok(ContainerNews::NotMine(id))
        }
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests;
