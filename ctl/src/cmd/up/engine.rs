//! What `up` runs in its own process: a controller and an agent, as a fleet has them, over mutual TLS on loopback.
//!
//! Order: a controller with a state of its own in a temporary directory; an operator enrols and applies the flags' policy and
//! collectors; the agent enrols and is offered them; its ack is waited for. A nack ends it, with the agent's own words.
//! Identities and policy last as long as the command: the flags are the policy, and what an earlier run was told is not
//! put in force again. `state` keeps the spool alone.
//! Out: [`Running`], which a test can make as well. The one file that knows both libraries' entries.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use flowtilla_agent::fleet;
use flowtilla_agent::identity::{Token, WallClock};
use flowtilla_agent::session::News;
use flowtilla_agent::status::{AgentStatus, AttachReport};
use flowtilla_agent::top::SharedTop;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::{RENEW_GRACE_DEFAULT, TokenOrder};
use flowtilla_controller::identity::ca::Origin;
use flowtilla_controller::run::{Controller, Options};
use flowtilla_controller::setup::{self, DOMAIN_DEFAULT};
use flowtilla_grpc::channel::Address;
use flowtilla_proto::spiffe::TrustDomain;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::fleet::{ApplyRequest, Object, object::Kind};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::args::{Asked, POLICY_NAME};
use crate::client::Client;

/// Records that wait for the screen or the pipe; more are counted as `ViewOverflow`.
///
/// Half a second at full rate. Half of it loses lines when a pipe's reader pauses to think; double it, and a stuck
/// reader costs megabytes.
pub(crate) const VIEW_RECORDS_MAX: usize = 16_384;

/// How long the agent may take until the policy is in force. Attaching takes a tenth of a second, on a busy host some.
const ACK_WAIT: Duration = Duration::from_secs(60);

/// Name of the operator that `up` is to its controller.
const OPERATOR: &str = "up";

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
    /// Who does how much.
    pub(crate) top: SharedTop,
    /// Ends it.
    pub(crate) stop: Stop,
}

/// The controller of this process.
struct Control {
    controller: Controller,
    address: Address,
    // Declared after what uses it.
    _state: TempDir,
}

/// Starts an agent that does what is asked. `state`: where it keeps what no collector has yet.
///
/// # Errors
///
/// What the agent cannot do without is missing; the message says what.
pub(crate) async fn start(asked: Asked, state: Option<PathBuf>) -> anyhow::Result<Running> {
    let control = Control::start().await.context("the controller of this process")?;
    match begin(&control, asked, state).await {
        Ok(agent) => Ok(running(agent, control)),
        Err(error) => {
            control.stop().await;
            Err(error)
        }
    }
}

/// Applies the policy, starts the agent, and waits until the policy is in force.
async fn begin(control: &Control, asked: Asked, state: Option<PathBuf>) -> anyhow::Result<fleet::Running> {
    let operator = control.token(OPERATOR).await?;
    let client = Client::enrolled(&control.address, &operator).await?;
    let collectors = asked.collectors.into_iter().map(Kind::Collector);
    let objects = collectors.chain([Kind::Policy(asked.policy)]);
    let request = ApplyRequest {
        objects: objects.map(|kind| Object { kind: Some(kind) }).collect(),
        message: "agentctl up".into(),
        ..ApplyRequest::default()
    };
    client.ask(client.fleet().apply(request)).await?;
    let token = control.token("").await?;
    let mut agent = fleet::start(fleet::Options {
        controller: control.address.clone(),
        state: None,
        spool: state,
        token: Some(Token::Given(token)),
        labels: BTreeMap::new(),
        scopes: asked.scopes,
        alone: true,
        view_records_max: VIEW_RECORDS_MAX,
        clock: WallClock::system(),
        build: None,
    })
    .await?;
    let news = agent.news.clone();
    let in_force = tokio::select! { biased;
        error = agent.ended() => return Err(error.into()),
        judged = timeout(ACK_WAIT, judged(news)) => judged,
    };
    let refused = match in_force {
        Ok(Ok(())) => return Ok(agent),
        Ok(Err(refused)) => refused,
        Err(_) => {
            let why = agent.news.borrow().why.clone().unwrap_or_default();
            anyhow!(
                "the agent has not put the policy in force within {} s {why}",
                ACK_WAIT.as_secs()
            )
        }
    };
    let _ = agent.stop().await; // It says nothing that the refusal does not.
    Err(refused)
}

/// Waits until the agent has judged the policy.
async fn judged(mut news: watch::Receiver<News>) -> anyhow::Result<()> {
    let is_judged = |news: &News| match &news.last {
        Some((_, Some(_))) => true,
        Some((_, None)) => news.policy == POLICY_NAME,
        None => false,
    };
    let news = news.wait_for(is_judged).await.context("the agent ended")?.clone();
    match news.last {
        Some((_, Some(fault))) => bail!(fault.reason),
        Some((_, None)) | None => Ok(()),
    }
}

fn running(agent: fleet::Running, control: Control) -> Running {
    let (records, agent) = agent.without_records();
    let attached = agent.attached.borrow().clone();
    Running {
        attached: attached.unwrap_or_default(),
        records,
        status: agent.status.clone(),
        top: agent.top.clone(),
        stop: Box::new(|| {
            Box::pin(async move {
                let status = agent.status.clone();
                let last = agent.stop().await;
                control.stop().await;
                // One that ended by itself has logged why; what it told last is still true.
                last.unwrap_or_else(|_| status.borrow().clone())
            })
        }),
    }
}

impl Control {
    async fn start() -> anyhow::Result<Self> {
        let state = tempfile::Builder::new().prefix("flowtilla-up-").tempdir()?;
        let path = state.path().join("controller");
        let made = tokio::task::spawn_blocking(move || {
            let domain = TrustDomain::parse(DOMAIN_DEFAULT).expect("a good name");
            let now = Clock::system().now();
            setup::create(&path, &domain, &Origin::Own, RENEW_GRACE_DEFAULT, now)
        });
        let opened = made.await??;
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Options::new(state.path().join("controller"), vec![loopback]);
        let controller = Controller::start_on(opened, options).await?;
        let address = Address::parse(&controller.address().to_string())?;
        Ok(Self {
            controller,
            address,
            _state: state,
        })
    }

    /// A token; `operator`: its name, empty: for an agent.
    async fn token(&self, operator: &str) -> anyhow::Result<JoinToken> {
        let parts = Arc::clone(self.controller.parts());
        let order = TokenOrder {
            operator: operator.to_owned(),
            ..TokenOrder::default()
        };
        let made = tokio::task::spawn_blocking(move || {
            parts.identities.create_token(&order, None, parts.clock.now())
        });
        Ok(made.await??.0)
    }

    async fn stop(self) {
        if let Err(error) = self.controller.stop().await {
            tracing::warn!(%error, "the controller of this process did not end in order");
        }
    }
}
