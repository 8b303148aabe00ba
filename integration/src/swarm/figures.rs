//! What a swarm has cost and how long it took, and how that is told.

use std::time::Duration;

use anyhow::{Context, Result};

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Agents.
    pub agents: usize,
    /// From the first connection until all had what they are to have.
    pub connected: Duration,
    /// CPU time of the controller for that, per agent.
    pub connect_cpu: Duration,
    /// What the controller held before, in octets.
    pub resident_before: u64,
    /// What it held after the last push, in octets.
    pub resident: u64,
    /// Each push.
    pub pushes: Vec<Push>,
    /// Sessions that have nothing to do; `None`: not measured.
    pub idle: Option<Idle>,
    /// From the controller's start until all were back.
    pub back: Duration,
}

/// One policy that was pushed to all.
#[derive(Clone, Copy, Debug)]
pub struct Push {
    /// Half of the agents had applied it, and said so then.
    pub p50: Duration,
    /// 99 of 100 had.
    pub p99: Duration,
    /// The last had.
    pub last: Duration,
    /// The controller knew of all, and said so to the operator.
    pub in_force: Duration,
    /// CPU time of the controller, per agent.
    pub cpu: Duration,
}

/// Shares of a core.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// For how long they were watched.
    pub span: Duration,
    /// A session in a process of its own.
    pub lone: f64,
    /// One of many in one process.
    pub session: f64,
    /// The controller's end of one of many.
    pub stream: f64,
}

impl Push {
    /// Of what each agent took, in any order, at least one.
    pub(super) fn new(mut times: Vec<Duration>, in_force: Duration, cpu: Duration) -> Self {
        times.sort_unstable();
        let at = |permille: usize| {
            let index = (times.len() * permille / 1_000).min(times.len().saturating_sub(1));
            times.get(index).copied().unwrap_or_default()
        };
        Self {
            p50: at(500),
            p99: at(990),
            last: at(1_000),
            in_force,
            cpu,
        }
    }

    pub(super) fn tell(&self, say: &mut dyn FnMut(&str)) {
        say(&format!(
            "push: applied and said so p50 {} ms, p99 {} ms, last {} ms; known at the controller after {} ms; {} us of its CPU an agent",
            self.p50.as_millis(),
            self.p99.as_millis(),
            self.last.as_millis(),
            self.in_force.as_millis(),
            self.cpu.as_micros()
        ));
    }
}

impl Idle {
    pub(super) fn tell(&self, agents: usize, say: &mut dyn FnMut(&str)) {
        say(&format!(
            "idle for {} s: a session in a process of its own {:.3} % of a core, one of {agents} in one process {:.3} %; \
             the controller {:.4} % a stream",
            self.span.as_secs(),
            self.lone * 100.0,
            self.session * 100.0,
            self.stream * 100.0
        ));
    }
}

impl Figures {
    pub(super) fn tell_connected(&self, say: &mut dyn FnMut(&str)) {
        say(&format!(
            "all connected and converged after {} ms; {} us of the controller's CPU an agent",
            self.connected.as_millis(),
            self.connect_cpu.as_micros()
        ));
    }

    pub(super) fn tell_memory(&self, say: &mut dyn FnMut(&str)) {
        let agents = u64::try_from(self.agents).unwrap_or(u64::MAX).max(1);
        say(&format!(
            "the controller holds {} MiB ({} MiB before the first stream): {:.1} KiB a stream; {:.1} with what it holds anyway",
            self.resident >> 20,
            self.resident_before >> 20,
            per(self.resident.saturating_sub(self.resident_before), agents),
            per(self.resident, agents)
        ));
    }
}

fn per(octets: u64, agents: u64) -> f64 {
    octets as f64 / 1_024.0 / agents as f64
}

/// What a process holds in memory, in octets.
pub(super) fn resident_octets(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("VmRSS")?;
    Ok(kib.parse::<u64>()? << 10)
}
