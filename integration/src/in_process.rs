//! The product's agent in this process, for tests that change what it is to do and look at its status.
//!
//! In: what is wanted. Out: the agent, its records as they are made, and the runtime that it lives in: dropped last.

use std::sync::Arc;

use anyhow::Result;
use flowtilla_agent::run::{Agent, Options};
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::policy::Wanted;
use flowtilla_agent_core::session::ShortIds;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

/// Most records that wait for a test.
const RECORDS_MAX: usize = 65_536;

/// Starts one.
///
/// # Errors
/// When it does not start.
pub fn start(wanted: Wanted) -> Result<(Runtime, Agent, Receiver<Arc<FlowRecord>>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (agent, records) = runtime.block_on(Agent::start(Options {
        wanted,
        scopes: Vec::new(),
        source_id: None,
        short_ids: ShortIds::Own,
        view_records_max: RECORDS_MAX,
        state: None,
    }))?;
    Ok((runtime, agent, records))
}
