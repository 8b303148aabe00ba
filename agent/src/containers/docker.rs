//! A socket where Docker's API is spoken: by Docker itself, or by podman.
//!
//! Version (whose API it is), events followed from a moment ago, the list of what runs, then events and asks as they come.
//! The list comes after the events have begun, so no container slips between.
//! Source: Docker Engine API 1.41 (`/version`, `/events`, `/containers/json`, `/containers/{id}/json`), asked for without
//! a version: the newest one that the runtime has. Answers hold what is used here in all of them, and podman's too.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use flowtilla_agent_core::enrich::container::{ContainerId, ContainerNews, Teller};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::failure::{ANSWER_OCTETS_MAX, Failure, LIST_OCTETS_MAX};
use super::{EVENTS_MAX, Ended, INSPECTS_MAX, Socket};
use crate::clock;

pub(super) mod api;
pub(super) mod http;

use api::{Event, Inspected, Listed, Version};

/// How far back events are asked for, in seconds: what began and ended while nobody listened.
const LOOK_BACK_S: u64 = 30;

impl Socket {
    /// From the first request to the failure that ends it; `is_up` once the runtime has told what runs.
    pub(super) async fn by_docker(&self, is_up: &mut bool) -> Result<Infallible, Ended> {
        let version: Version = http::read(&self.path, "/version", ANSWER_OCTETS_MAX).await?;
        let kind = version.kind();
        let since = (clock::wall_now().0 / 1_000_000_000).saturating_sub(LOOK_BACK_S);
        let (send, mut lines) = mpsc::channel(EVENTS_MAX);
        let follow = http::follow(Arc::clone(&self.path), api::events(since), send);
        let mut follow = AbortOnDropHandle::new(tokio::spawn(follow));
        let mut asks = self.asks.subscribe();
        let mut containers = 0;
        match http::read::<Vec<Listed>>(&self.path, api::LIST, LIST_OCTETS_MAX).await {
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
    let found = http::read::<Inspected>(&socket, &api::inspect(id), ANSWER_OCTETS_MAX).await;
    match found {
        Ok(found) => Ok(found
            .facts(id)
            .map_or(ContainerNews::NotMine(id), ContainerNews::Known)),
        // Broken, too long or gone: this one has no name, the others may.
        Err(failure) if failure.is_answer() => Ok(ContainerNews::NotMine(id)),
        Err(failure) => Err(failure),
    }
}
