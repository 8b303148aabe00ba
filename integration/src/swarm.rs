//! How many agents one controller holds: real mutual TLS from a process of its own, policies pushed to all, a restart.
//!
//! Controller and operator are the built programs. The agents are sessions of the agent's own core ([`agent`]) in this process,
//! which therefore shares the machine with the controller: what is measured is both together, but for the controller's own
//! CPU time and memory. Measure in a release build.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::{RENEW_GRACE_DEFAULT, TokenOrder};
use flowtilla_controller::setup;
use flowtilla_grpc::channel::Address;
use flowtilla_proto::token::JoinToken;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use self::agent::{Applied, Simulated};
use self::figures::{Figures, Idle, Push, resident_octets};
use crate::fleet::Controller;
use crate::process::{cpu_time, own_cpu_time};
use crate::wait::{self, Stopwatch};

pub mod agent;
pub mod figures;
pub mod lone;

/// Longest wait for all agents to have done something.
///
/// Ten times what 10,000 take on two cores. Half of it fails when a build runs beside; double only delays a failure.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause after the agents have connected, and after the last push.
///
/// A heartbeat and two keep-alives of each stream: their buffers have their size. Half of it misses some; double it for nothing.
const SETTLE: Duration = Duration::from_secs(12);

/// What is to be measured.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// How many agents.
    #[arg(default_value_t = 2_000)]
    pub agents: usize,
    /// Policies that are pushed to all of them, one after the other.
    #[arg(long, default_value_t = 5)]
    pub pushes: u32,
    /// Seconds for which the CPU of idle sessions is watched; 0: not at all.
    #[arg(long, default_value_t = 60)]
    pub idle_s: u64,
}

/// The controller, the agents, and what they told.
struct Swarm {
    plan: Plan,
    controller: Controller,
    runtime: Runtime,
    agents: Vec<Simulated>,
    applied: mpsc::Receiver<Applied>,
    watch: Stopwatch,
    /// The newest revision of the fleet's objects.
    revision: u64,
    /// For the lone agent.
    spare: JoinToken,
}

/// Measures, and tells each figure as soon as it is there.
///
/// # Errors
/// When a program is not built, an agent is refused, or something does not come within [`PATIENCE`].
pub fn measure(plan: Plan, mut say: impl FnMut(&str)) -> Result<Figures> {
    let mut swarm = Swarm::enrol(plan, &mut say)?;
    let begin = swarm.watch.elapsed();
    let (cpu, resident) = (swarm.cpu()?, swarm.resident()?);
    swarm.set_off()?;
    swarm.converged()?;
    let mut figures = Figures {
        agents: plan.agents,
        connected: swarm.watch.elapsed() - begin,
        connect_cpu: (swarm.cpu()? - cpu) / count(plan.agents),
        resident_before: resident,
        ..Figures::default()
    };
    figures.tell_connected(&mut say);
    swarm.settle()?;
    for _ in 0..plan.pushes {
        let push = swarm.push()?;
        push.tell(&mut say);
        figures.pushes.push(push);
    }
    swarm.settle()?;
    figures.resident = swarm.resident()?;
    figures.tell_memory(&mut say);
    if plan.idle_s > 0 {
        let idle = swarm.idle()?;
        idle.tell(plan.agents, &mut say);
        figures.idle = Some(idle);
    }
    figures.back = swarm.restart()?;
    say(&format!(
        "all back {} ms after the controller's restart",
        figures.back.as_millis()
    ));
    swarm.end()?;
    Ok(figures)
}

impl Swarm {
    /// A controller, and agents that have an identity.
    fn enrol(plan: Plan, say: &mut dyn FnMut(&str)) -> Result<Self> {
        let mut controller = Controller::start()?;
        let watch = Stopwatch::start();
        controller.stop()?;
        // An operator's tool would make one a call: the store is opened in its controller's stead.
        let mut tokens = tokens(&controller, plan.agents + 1)?;
        controller.come_back()?;
        let spare = tokens.pop().context("one token more than agents")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (told, applied) = mpsc::channel(plan.agents * 2);
        let address = address(&controller)?;
        let agents = runtime.block_on(agent::enrol(tokens, &address, told, watch))?;
        say(&format!(
            "{} agents enrolled after {} ms",
            agents.len(),
            watch.elapsed().as_millis()
        ));
        Ok(Self {
            plan,
            controller,
            runtime,
            agents,
            applied,
            watch,
            revision: 0,
            spare,
        })
    }

    /// Begins all sessions at once.
    fn set_off(&mut self) -> Result<()> {
        let address = address(&self.controller)?;
        self.runtime.block_on(async {
            for agent in &mut self.agents {
                agent.set_off(&address).await?;
            }
            Ok(())
        })
    }

    /// Waits until the controller says that all agents have what they are to have.
    fn converged(&self) -> Result<()> {
        wait::until_true(PATIENCE, "agents that are connected", || {
            self.agents.iter().all(Simulated::is_connected)
        })?;
        let all = u64::try_from(self.plan.agents)?;
        wait::until(PATIENCE, "agents that have what they are to have", || {
            let output = self.controller.ctl(&["status", "-o", "json"])?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            Ok((status["converged"] == all).then_some(()))
        })
    }

    /// Lets buffers grow to their size, for at most as long as idle sessions are to be watched.
    fn settle(&self) -> Result<()> {
        let span = SETTLE.min(Duration::from_secs(self.plan.idle_s));
        wait::throughout(span, "agents that stay connected", || {
            self.agents.iter().all(Simulated::is_connected)
        })
    }

    /// Pushes another policy, and waits until it is in force everywhere.
    fn push(&mut self) -> Result<Push> {
        self.revision += 1;
        let (cpu, begin) = (self.cpu()?, self.watch.elapsed());
        let output = self.controller.deploy(&policy(self.revision), &[])?;
        ensure!(output.status.success(), "deploy: {output:?}");
        let mut times = Vec::with_capacity(self.agents.len());
        let receive = async {
            while times.len() < self.agents.len() {
                let applied = self.applied.recv().await.context("agents that live")?;
                if applied.revision == self.revision {
                    times.push(applied.at.saturating_sub(begin));
                }
            }
            anyhow::Ok(())
        };
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, receive).await })
            .context("a policy that all agents apply")??;
        self.converged()?;
        let in_force = self.watch.elapsed() - begin;
        let cpu = (self.cpu()? - cpu) / count(self.agents.len());
        Ok(Push::new(times, in_force, cpu))
    }

    /// What sessions cost that have nothing to do: the controller's, one of this process's, and one in a process of its own.
    fn idle(&self) -> Result<Idle> {
        let span = Duration::from_secs(self.plan.idle_s);
        let lone = lone::Process::start(&address(&self.controller)?, &self.spare, span)?;
        let (controller, own, begin) = (self.cpu()?, own_cpu_time()?, self.watch.elapsed());
        let lone = lone.finish(span + PATIENCE)?;
        let passed = self.watch.elapsed() - begin;
        let share = |cpu: Duration| cpu.as_secs_f64() / passed.as_secs_f64();
        let agents = count(self.agents.len());
        Ok(Idle {
            span: passed,
            lone,
            session: share((own_cpu_time()? - own) / agents),
            stream: share((self.cpu()? - controller) / agents),
        })
    }

    /// Ends the controller, starts it again, and waits for all agents.
    fn restart(&mut self) -> Result<Duration> {
        self.controller.stop()?;
        wait::until_true(PATIENCE, "agents that have noticed", || {
            !self.agents.iter().any(Simulated::is_connected)
        })?;
        let begin = self.watch.elapsed();
        self.controller.come_back()?;
        self.converged()?;
        Ok(self.watch.elapsed() - begin)
    }

    fn end(self) -> Result<()> {
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, agent::end(self.agents)).await })
            .context("agents that end")??;
        let mut controller = self.controller;
        controller.stop()
    }

    fn cpu(&self) -> Result<Duration> {
        cpu_time(self.controller.pid()?)
    }

    fn resident(&self) -> Result<u64> {
        resident_octets(self.controller.pid()?)
    }
}

/// Tokens for agents, of a controller that does not run.
fn tokens(controller: &Controller, count: usize) -> Result<Vec<JoinToken>> {
    let opened = setup::open(controller.state(), RENEW_GRACE_DEFAULT)?;
    let now = Clock::system().now();
    let make = |_| {
        Ok(opened
            .identities
            .create_token(&TokenOrder::default(), None, now)?
            .0)
    };
    (0..count).map(make).collect()
}

fn address(controller: &Controller) -> Result<Address> {
    Ok(Address::parse(&controller.address().to_string())?)
}

/// A policy of about 4 KiB, another one for each revision.
fn policy(revision: u64) -> String {
    let rule = |rule: u64| {
        let net = revision % 256;
        let cidrs: Vec<String> = (0..56).map(|host| format!("10.{net}.{rule}.{host}/32")).collect();
        format!("    - cidrs: [{}]\n", cidrs.join(", "))
    };
    let rules: String = (0..4).map(rule).collect();
    format!("apiVersion: flowtilla/v1\nkind: Policy\nname: all\ncapture:\n  exclude:\n{rules}")
}

fn count(agents: usize) -> u32 {
    u32::try_from(agents.max(1)).unwrap_or(u32::MAX)
}
