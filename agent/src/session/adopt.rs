//! Carries out orders: persist, apply, commit; and goes back to what was held when one of them fails.
//!
//! A task of its own, so that a slow change neither holds up heartbeats nor ends with the stream that it came by.
//! In: [`Job`]s, one at a time. Out: a [`Report`] for each order. Owns what assignments are applied to.

use std::future::Future;

use flowtilla_agent_core::session::{Adoption, Assignment, Done, Fault, Held, Order, Section, ShortIds};
use flowtilla_grpc::telemetry;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::wire::session as wire;
use tokio::sync::{mpsc, watch};
use tracing::{Instrument as _, Span};

use super::News;
use crate::held::{HeldStore, Kept};

/// What assignments are applied to: the agent, or what stands for one in a simulator.
pub trait Governed: Send + 'static {
    /// Puts an assignment in force in the place of the former one.
    ///
    /// An error leaves it consistent, and ready for the next call; it may have nothing or a part of either in force then.
    fn apply(
        &mut self,
        assignment: &Assignment,
    ) -> impl Future<Output = Result<wire::Effective, Fault>> + Send;

    /// From here on collectors know it by this source id.
    ///
    /// # Errors
    /// Why it does not everywhere, in one sentence. A part of what is in force may have stopped: it is applied again then.
    fn use_source_id(&mut self, id: SourceId) -> impl Future<Output = Result<(), String>> + Send;

    /// From here on collectors of header version 1 know it by these.
    ///
    /// # Errors
    /// Why they will not be known after a restart, in one sentence. They are used all the same.
    fn use_short_ids(&mut self, ids: ShortIds) -> impl Future<Output = Result<(), String>> + Send;
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Job {
    Order(Order),
    SourceId(SourceId),
    ShortIds(ShortIds),
}

/// What the session is told.
#[derive(Debug)]
pub(super) enum Report {
    /// What became of an order.
    Done(Done),
    /// What is held is not in force any more, and nobody asked for anything.
    NotInForce,
}

/// Carries out jobs.
pub(super) struct Adopter<G> {
    pub(super) governed: G,
    pub(super) store: HeldStore,
    /// What is held.
    pub(super) held: Option<(Held, Result<Assignment, Fault>)>,
    /// Whether that is in force.
    pub(super) in_force: bool,
    pub(super) news: watch::Sender<News>,
}

impl<G: Governed> Adopter<G> {
    /// Works until there are no more jobs.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>, reports: mpsc::Sender<Report>) -> G {
        while let Some(job) = jobs.recv().await {
            let order = match job {
                Job::Order(order) => order,
                Job::ShortIds(ids) => {
                    if let Err(why) = self.governed.use_short_ids(ids).await {
                        tracing::error!(%why, "the source ids of 8 bits are not kept");
                    }
                    continue;
                }
                Job::SourceId(id) => {
                    let Err(why) = self.governed.use_source_id(id).await else {
                        continue;
                    };
                    tracing::error!(source_id = id.number(), %why, "the source id is not used everywhere: what is held is put in force again");
                    let lost = self.in_force && self.restore().await.is_err();
                    if lost && reports.send(Report::NotInForce).await.is_err() {
                        break; // The session has ended.
                    }
                    continue;
                }
            };
            let outcome = match order {
                Order::Adopt(adoption) => self.adopt(*adoption).await,
                Order::Retry => self.restore().await,
            };
            let reported = Done {
                held: self.held.as_ref().map(|(held, _)| *held),
                in_force: self.in_force,
                outcome,
            };
            if reports.send(Report::Done(reported)).await.is_err() {
                break; // The session has ended.
            }
        }
        self.governed
    }

    /// Puts what is held in force, when that is so little known as at a start.
    pub(super) async fn restore(&mut self) -> Result<wire::Effective, Fault> {
        let (held, assignment) = match &self.held {
            Some((held, Ok(assignment))) => (*held, assignment.clone()),
            Some((_, Err(fault))) => return Err(fault.clone()),
            None => return Ok(wire::Effective::default()),
        };
        let outcome = self.governed.apply(&assignment).await;
        self.in_force = outcome.is_ok();
        match &outcome {
            Ok(_) => tracing::info!(version = %held.version, policy = assignment.policy, "in force"),
            Err(fault) => {
                tracing::error!(version = %held.version, path = fault.path, reason = fault.reason, "what is held is not in force")
            }
        }
        self.tell(Some(held), &outcome);
        outcome
    }

    async fn adopt(&mut self, adoption: Adoption) -> Result<wire::Effective, Fault> {
        let Adoption {
            held,
            content,
            assignment,
            traceparent,
        } = adoption;
        let span = telemetry::part_of(
            &traceparent,
            || tracing::debug_span!(parent: None, "adopt", policy = assignment.policy, revision = assignment.revision),
        );
        let kept = Kept { held, content };
        let outcome = self.try_adopt(kept, &assignment).instrument(span).await;
        match &outcome {
            Ok(_) => {
                tracing::info!(version = %held.version, policy = assignment.policy, revision = assignment.revision, traceparent, "in force");
                (self.held, self.in_force) = (Some((held, Ok(assignment))), true);
            }
            Err(fault) => {
                tracing::warn!(version = %held.version, path = fault.path, reason = fault.reason, traceparent, "refused");
            }
        }
        self.tell(Some(held), &outcome);
        outcome
    }

    async fn try_adopt(&mut self, kept: Kept, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        on_disk(&self.store, move |store| store.prepare(&kept))
            .instrument(part("persist"))
            .await?;
        let applied = self.governed.apply(assignment).instrument(part("apply")).await;
        let outcome = match applied {
            Ok(effective) => {
                let committed = on_disk(&self.store, HeldStore::commit);
                let committed = committed.instrument(part("commit")).await;
                committed.map(|()| effective)
            }
            Err(fault) => {
                let discard = |store: &HeldStore| {
                    store.discard();
                    Ok(())
                };
                // What stays of it is not read.
                let _ = on_disk(&self.store, discard).await;
                Err(fault)
            }
        };
        if outcome.is_err() {
            self.go_back().instrument(part("go_back")).await;
        }
        outcome
    }

    /// Puts in force what was so before, or nothing.
    async fn go_back(&mut self) {
        let former = match &self.held {
            Some((_, Ok(former))) if self.in_force => former.clone(),
            _ => Assignment::nothing(),
        };
        if let Err(fault) = self.governed.apply(&former).await {
            // What waits for collectors stays: what is held is tried again.
            tracing::error!(
                path = fault.path,
                reason = fault.reason,
                "going back failed: what is held is not in force"
            );
            self.in_force = false;
        }
    }

    fn tell(&self, judged: Option<Held>, outcome: &Result<wire::Effective, Fault>) {
        let held = self.held.as_ref().map(|(held, _)| *held);
        let policy = match &self.held {
            Some((_, Ok(assignment))) => assignment.policy.as_str(),
            Some((_, Err(_))) | None => "",
        };
        self.news.send_modify(|news| {
            news.held = held;
            policy.clone_into(&mut news.policy);
            news.in_force = self.in_force;
            news.last = judged.map(|judged| (judged, outcome.clone().err()));
        });
    }
}

/// A part of what is traced; nothing where nothing is.
fn part(name: &'static str) -> Span {
    telemetry::child(|| tracing::debug_span!("part", otel.name = name))
}

async fn on_disk(
    store: &HeldStore,
    work: impl FnOnce(&HeldStore) -> std::io::Result<()> + Send + 'static,
) -> Result<(), Fault> {
    let store = store.clone();
    let outcome = tokio::task::spawn_blocking(move || work(&store)).await;
    let reason = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Err(Fault {
        section: Section::Persist,
        path: String::new(),
        reason: format!("the agent's state directory cannot be written: {reason}"),
    })
}

#[cfg(test)]
mod tests;
