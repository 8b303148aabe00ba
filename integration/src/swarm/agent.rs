//! One agent of the swarm: its own identity, its own connection, its own session, and nothing that captures.
//!
//! Identity and session are the agent's own code ([`flowtilla_agent::session`]). What an assignment is applied to is a stand-in
//! that notes when it came; what the agent tells of itself is as long as what a real one tells.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use flowtilla_agent::held::HeldStore;
use flowtilla_agent::identity::{self, Asker, Credentials, Token, WallClock};
use flowtilla_agent::session::{Facts, Governed, News, Parts, Ready, Vitals};
use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::session::{Assignment, Fault, ShortIds};
use flowtilla_agent_core::top::Report;
use flowtilla_grpc::channel::Address;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::session as wire;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::wait::Stopwatch;

/// Agents that enrol at once.
///
/// The controller signs one after the other: more of them only wait. Half of it would do; double it, and visitors are sent away.
const ENROLLING_MAX: usize = 64;
/// Programs that a real agent attaches, as it names them.
const PROGRAMS: [&str; 13] = [
    "tcp_state",
    "tcp_accept",
    "tcp_destroy",
    "tcp_snap",
    "sock_iter",
    "udp_send4",
    "udp_send6",
    "skb_egress",
    "skb_ingress",
    "sched_exec",
    "sched_fork",
    "bprm_creds",
    "cgroup_mkdir",
];

/// An assignment was applied.
#[derive(Clone, Copy, Debug)]
pub struct Applied {
    /// Its revision.
    pub revision: u64,
    /// When, since the swarm's start.
    pub at: Duration,
}

/// One agent.
#[derive(Debug)]
pub struct Simulated {
    number: u32,
    credentials: Arc<Credentials>,
    told: mpsc::Sender<Applied>,
    clock: Stopwatch,
    session: Option<Session>,
}

#[derive(Debug)]
struct Session {
    news: watch::Receiver<News>,
    stop: CancellationToken,
    task: JoinHandle<Noting>,
}

/// Stands for what captures.
#[derive(Debug)]
pub struct Noting {
    told: mpsc::Sender<Applied>,
    clock: Stopwatch,
}

/// Agents with an identity for each token, at most [`ENROLLING_MAX`] at once.
///
/// # Errors
/// What the controller refuses.
pub async fn enrol(
    tokens: Vec<JoinToken>,
    controller: &Address,
    told: mpsc::Sender<Applied>,
    clock: Stopwatch,
) -> Result<Vec<Simulated>> {
    let gate = Arc::new(Semaphore::new(ENROLLING_MAX));
    let mut enrolling = JoinSet::new();
    for (n, token) in tokens.into_iter().enumerate() {
        let number = u32::try_from(n)? + 1;
        let (gate, controller, told) = (Arc::clone(&gate), controller.clone(), told.clone());
        enrolling.spawn(async move {
            let _permit = gate.acquire().await?;
            Simulated::enrol(number, token, controller, told, clock).await
        });
    }
    let mut agents = Vec::with_capacity(enrolling.len());
    while let Some(enrolled) = enrolling.join_next().await {
        agents.push(enrolled??);
    }
    Ok(agents)
}

/// Ends all sessions, as agents do that are told to stop.
///
/// # Errors
/// When one has panicked.
pub async fn end(agents: Vec<Simulated>) -> Result<()> {
    let sessions: Vec<Session> = agents.into_iter().filter_map(|agent| agent.session).collect();
    sessions.iter().for_each(|session| session.stop.cancel());
    for session in sessions {
        session.task.await?;
    }
    Ok(())
}

impl Simulated {
    /// An agent that has an identity, and no session.
    ///
    /// # Errors
    /// What the controller refuses.
    pub(super) async fn enrol(
        number: u32,
        token: JoinToken,
        controller: Address,
        told: mpsc::Sender<Applied>,
        clock: Stopwatch,
    ) -> Result<Self> {
        let asker = Asker {
            controller,
            host_name: format!("host-{number}"),
            seed: u64::from(number),
            clock: WallClock::system(),
        };
        let stop = CancellationToken::new();
        let credentials = identity::settle(None, Some(&Token::Given(token)), &asker, &stop, |_| {}).await?;
        Ok(Self {
            number,
            credentials: Arc::new(credentials),
            told,
            clock,
            session: None,
        })
    }

    /// Begins its session.
    ///
    /// # Errors
    /// When it has begun before.
    pub async fn set_off(&mut self, controller: &Address) -> Result<()> {
        ensure!(self.session.is_none(), "agent {} has a session", self.number);
        let noting = Noting {
            told: self.told.clone(),
            clock: self.clock,
        };
        let ready = Ready::restore(parts(self.number, noting)).await;
        let (news, stop) = (ready.news(), CancellationToken::new());
        let running = ready.run(controller.clone(), Arc::clone(&self.credentials), stop.clone());
        let task = tokio::spawn(running);
        self.session = Some(Session { news, stop, task });
        Ok(())
    }

    /// Whether the controller has welcomed it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.news.borrow().connected)
    }
}

impl Governed for Noting {
    async fn apply(&mut self, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        let applied = Applied {
            revision: assignment.revision,
            at: self.clock.elapsed(),
        };
        // Full: it is one of a push that nobody waits for any more.
        let _ = self.told.try_send(applied);
        Ok(wire::Effective {
            programs: PROGRAMS.map(str::to_owned).to_vec(),
            ..wire::Effective::default()
        })
    }

    async fn use_short_ids(&mut self, _: ShortIds) -> Result<(), String> {
        Ok(())
    }

    async fn use_source_id(&mut self, _: SourceId) -> Result<(), String> {
        Ok(())
    }
}

fn parts(number: u32, noting: Noting) -> Parts<Noting> {
    let facts = Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host_name: format!("host-{number}"),
        kernel: "6.1.0-37-amd64".to_owned(),
        operating_system: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        source_id: SourceId::from_hash(number),
        labels: [("role".to_owned(), "web".to_owned())].into(),
        boot: BootId([7; 16]),
        instance: u64::from(number),
        build: None,
        scope: String::new(),
    };
    let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000_u32.wrapping_add(number)));
    let mut beats = 0;
    let vitals = Vitals {
        health: Box::new(move || {
            beats += 1;
            health(beats)
        }),
        addresses: Box::new(move || vec![address]),
        top: Box::new(|question| Report::default().answer(question.id)),
    };
    Parts {
        governed: noting,
        vitals,
        facts,
        store: HeldStore(None),
        peers: None,
        seed: u64::from(number),
    }
}

/// Of an agent that is well and feeds one collector, after so many heartbeats.
fn health(beats: u64) -> wire::Health {
    let drop = |point: &str| wire::Drop {
        point: point.to_owned(),
        count: 3,
    };
    wire::Health {
        uptime_ms: beats * 10_000,
        observed_octets: beats * 12_345_678,
        observed_packets: beats * 12_345,
        drops: vec![drop("FlowRingFull"), drop("NameNotFound")],
        records: beats * 4_321,
        flows: 217,
        filtered: Some(wire::Aside::default()),
        sampled_out: Some(wire::Aside::default()),
        coverage: Some(wire::Coverage {
            ends: beats * 2_345,
            with_process: beats * 2_340,
            with_names: beats * 2_339,
        }),
        cost: Some(wire::Cost {
            cpu_ns: beats * 50_000_000,
            resident_octets: 40 << 20,
            programs_ns: Some(beats * 1_000_000),
            map_octets: 40 << 20,
        }),
        collectors: vec![wire::CollectorHealth {
            name: "main".to_owned(),
            state: wire::CollectorState::Streaming.into(),
            made: beats * 4_321,
            taken: beats * 4_300,
            waiting: 21,
            lag_ms: 480,
            ..wire::CollectorHealth::default()
        }],
        spool_octets: Some(12 << 20),
        programs: 13,
        capturing: true,
        ..wire::Health::default()
    }
}
