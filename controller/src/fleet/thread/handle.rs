//! How others speak to the fleet's thread. Decides nothing.

use std::sync::Arc;

use flowtilla_proto::labels::Labels;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{
    AgentsRequest, AgentsResponse, ApplyResponse, HistoryResponse, JudgeResponse, MeasureResponse,
    ObjectsResponse, Rollout, Steering, TopRequest, TopResponse,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::Span;

use super::{Command, FleetError, Known, Reply, Watched};
use crate::fleet::heard::{Heard, Hello};
use crate::fleet::mailbox::Mailbox;
use crate::fleet::offers::Counts;
use crate::fleet::view::Standing;
use crate::fleet::{Change, SessionId, Trial};

/// Speaks to the fleet's thread. When all of them are gone, the thread ends.
#[derive(Clone)]
pub struct FleetHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) counts: Arc<Counts>,
}

impl FleetHandle {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, FleetError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| FleetError::Stopping)?;
        answer.await.map_err(|_| FleetError::Stopping)?
    }

    /// What became of offers and streams.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// An agent has opened a stream and said hello. Its mailbox gets what is to be said.
    ///
    /// # Errors
    ///
    /// [`FleetError`]: the stream is not accepted.
    pub async fn open(
        &self,
        id: MemberName,
        labels: Labels,
        hello: Hello,
        mailbox: Arc<Mailbox>,
    ) -> Result<SessionId, FleetError> {
        self.ask(|reply| Command::Open {
            id,
            labels,
            hello: Box::new(hello),
            mailbox,
            reply,
        })
        .await
    }

    /// An agent has said something.
    ///
    /// # Errors
    ///
    /// [`FleetError::Stopping`].
    pub async fn heard(
        &self,
        session: SessionId,
        heard: Heard,
        place: OwnedSemaphorePermit,
    ) -> Result<(), FleetError> {
        let sent = self.commands.send(Command::Heard(session, heard, place)).await;
        sent.map_err(|_| FleetError::Stopping)
    }

    /// A stream has ended.
    pub async fn closed(&self, session: SessionId) {
        // The thread has ended: nobody is left who could be told.
        let _ = self.commands.send(Command::Closed(session)).await;
    }

    /// Agents that have an identity, and those whose identity is void: streams of the latter end.
    pub async fn known(&self, agents: Vec<Known>) {
        // The thread has ended: nobody is left who could be told.
        let _ = self.commands.send(Command::Known(agents, false)).await;
    }

    /// The same of all agents that there are: those that are void and not among them are forgotten.
    pub async fn all_known(&self, agents: Vec<Known>) {
        // The thread has ended: nobody is left who could be told.
        let _ = self.commands.send(Command::Known(agents, true)).await;
    }

    /// An agent's SVID has run out: its stream ends.
    pub async fn expired(&self, id: MemberName) {
        // The thread has ended: nobody is left who could be told.
        let _ = self.commands.send(Command::Expired(id)).await;
    }

    /// Ends the thread: every stream is told that the controller stops.
    pub async fn stop(&self) {
        // It has ended already.
        let _ = self.commands.send(Command::Stop).await;
    }

    /// An identity of an agent is void; whether a stream was cut.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn revoked(&self, id: MemberName) -> Result<bool, FleetError> {
        self.ask(|reply| Command::Revoked(id, reply)).await
    }

    /// The roots of the trust domain have changed (DER): every agent is told.
    ///
    /// # Errors
    ///
    /// [`FleetError::Stopping`].
    pub async fn bundle(&self, roots: Vec<Vec<u8>>) -> Result<(), FleetError> {
        let sent = self.commands.send(Command::Bundle(roots)).await;
        sent.map_err(|_| FleetError::Stopping)
    }

    /// Makes a revision.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn apply(&self, change: Change) -> Result<ApplyResponse, FleetError> {
        self.ask(|reply| Command::Apply(Box::new(change), Span::current(), reply))
            .await
    }

    /// Makes a revision with the objects of an earlier one; 0: what [`Fleet::revision_before`] tells.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn roll_back(&self, to: u64, change: Change) -> Result<ApplyResponse, FleetError> {
        self.ask(|reply| Command::RollBack(to, Box::new(change), Span::current(), reply))
            .await
    }

    /// Pauses, resumes or aborts a rollout; 0: the newest that goes on.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn steer(&self, id: u64, steering: Steering, by: String) -> Result<Rollout, FleetError> {
        self.ask(|reply| Command::Steer(id, steering, by, reply)).await
    }

    /// The objects of a revision; 0: of the newest.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn objects(&self, revision: u64) -> Result<ObjectsResponse, FleetError> {
        self.ask(|reply| Command::Objects(revision, reply)).await
    }

    /// Revisions, the newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn history(&self, limit: usize) -> Result<HistoryResponse, FleetError> {
        self.ask(|reply| Command::History(limit, reply)).await
    }

    /// Agents, by id, as the fleet knows them.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn agents(&self, request: AgentsRequest) -> Result<AgentsResponse, FleetError> {
        self.ask(|reply| Command::Agents(request, reply)).await
    }

    /// Rollouts, the newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn rollouts(&self, limit: usize) -> Result<Vec<Rollout>, FleetError> {
        self.ask(|reply| Command::Rollouts(limit, reply)).await
    }

    /// Watches a rollout; 0: the newest. The sender is gone when it has ended.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn watch(&self, rollout: u64) -> Result<Watched, FleetError> {
        self.ask(|reply| Command::Watch(rollout, reply)).await
    }

    /// Who does how much, as agents say at this moment.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn top(&self, request: TopRequest) -> Result<TopResponse, FleetError> {
        self.ask(|reply| Command::Top(request, reply)).await
    }

    /// Agents are to capture nothing from here on, and to send what waits; or to go on.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn drain(&self, ids: Vec<MemberName>, drain: bool) -> Result<(), FleetError> {
        self.ask(|reply| Command::Drain(ids, drain, reply)).await
    }

    /// What agents were like of late.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn measure(&self, ids: Vec<MemberName>, soak_ms: u64) -> Result<MeasureResponse, FleetError> {
        self.ask(|reply| Command::Measure(ids, soak_ms, reply)).await
    }

    /// How agents that have changed do.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn judge(&self, trial: Trial) -> Result<JudgeResponse, FleetError> {
        self.ask(|reply| Command::Judge(Box::new(trial), reply)).await
    }

    /// How the fleet stands.
    ///
    /// # Errors
    ///
    /// [`FleetError`].
    pub async fn standing(&self) -> Result<Standing, FleetError> {
        self.ask(Command::Standing).await
    }
}
