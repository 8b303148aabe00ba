//! The agent that `up` runs in its own process: the one file that knows the agent library's entry.
//!
//! Out: [`Running`], which a test can make as well.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use flowtilla_agent::run::{Agent, Options};
use flowtilla_agent::status::{AgentStatus, AttachReport};
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_proto::collector::Collector;
use flowtilla_proto::policy::Policy;
use tokio::sync::{mpsc, watch};

use super::args::Asked;

/// Records that wait for the screen or the pipe; more are counted as `ViewOverflow`.
///
/// Half a second at full rate. Half of it loses lines when a pipe's reader pauses to think; double it, and a stuck
/// reader costs megabytes.
pub(crate) const VIEW_RECORDS_MAX: usize = 16_384;

/// Ends the agent and gives its last status. The channel of records closes when the last one was sent.
pub(crate) type Stop = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = AgentStatus> + Send>> + Send>;

/// An agent at work.
pub(crate) struct Running {
    /// What attached.
    pub(crate) attached: AttachReport,
    /// Each record, as soon as it is made.
    pub(crate) records: mpsc::Receiver<Arc<FlowRecord>>,
    /// How it does.
    pub(crate) status: watch::Receiver<AgentStatus>,
    /// Ends it.
    pub(crate) stop: Stop,
}

/// Starts an agent that does what is wanted. `state`: where it keeps what no collector has yet.
///
/// # Errors
///
/// What the agent cannot do without is missing; the message says what.
pub(crate) async fn start(asked: Asked, state: Option<PathBuf>) -> anyhow::Result<Running> {
    let collectors = asked.collectors.into_iter().map(Collector::try_from);
    let wanted = Wanted::new(
        Policy::try_from(asked.policy)?,
        collectors.collect::<Result<_, _>>()?,
    )?;
    let (agent, records) = Agent::start(Options {
        wanted,
        scopes: asked.scopes,
        source_id: None,
        view_records_max: VIEW_RECORDS_MAX,
        state,
    })
    .await?;
    Ok(Running {
        attached: agent.attached().borrow().clone().unwrap_or_default(),
        records,
        status: agent.status(),
        stop: Box::new(|| Box::pin(agent.stop())),
    })
}
