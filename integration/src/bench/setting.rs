//! What a load runs under: nothing, the agent, or another probe.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use integration::bpf::Objects;
use integration::need;
use integration::process::Process;
use integration::product::Agent;
use integration::wait::{self, PATIENCE};
use nix::sys::signal::Signal;
use nix::time::ClockId;
use tempfile::TempDir;

/// What a load runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// Nothing attached.
    Nothing,
    /// The agent's default policy.
    Agent,
    /// The agent without UDP.
    AgentNoUdp,
    /// softflowd on loopback.
    Softflowd,
}

/// What runs beside a load.
pub(super) enum Probe {
    Nothing,
    Agent(Agent),
    /// With the folder of its control socket.
    Softflowd(Process, TempDir),
}

impl Setting {
    /// Those that this machine has, the bare one first.
    pub(super) fn available(no_softflowd: bool) -> Vec<Self> {
        let mut settings = vec![Self::Nothing, Self::Agent, Self::AgentNoUdp];
        if no_softflowd {
            println!("*softflowd: left out (--no-softflowd).*\n");
        } else if need::on_path("softflowd").is_none() {
            println!("*softflowd: skipped, it is not installed (Debian package softflowd).*\n");
        } else {
            settings.push(Self::Softflowd);
        }
        settings
    }

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing attached",
            Self::Agent => "`agentctl up`",
            Self::AgentNoUdp => "`agentctl up --no-udp`",
            Self::Softflowd => "softflowd on lo",
        }
    }

    /// Whether a process runs beside the load.
    pub(super) fn has_probe(self) -> bool {
        self != Self::Nothing
    }

    /// Attaches it.
    pub(super) fn start(self) -> Result<Probe> {
        match self {
            Self::Nothing => Ok(Probe::Nothing),
            Self::Agent => Ok(Probe::Agent(Agent::start_unread(&[])?)),
            Self::AgentNoUdp => Ok(Probe::Agent(Agent::start_unread(&["--no-udp"])?)),
            Self::Softflowd => start_softflowd(),
        }
    }
}

impl Probe {
    /// CPU time of its process so far.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        match self {
            Self::Nothing => Ok(Duration::ZERO),
            Self::Agent(agent) => agent.cpu_time(),
            Self::Softflowd(process, _) => {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(process.pid())?);
                Ok(ClockId::pid_cpu_clock_id(pid)?.now()?.into())
            }
        }
    }

    /// Ends it, and waits until nothing of it is attached.
    pub(super) fn stop(self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Agent(agent) => {
                let held = Objects::held_by(agent.pid())?;
                agent.interrupt()?;
                wait::until(PATIENCE, "end of the agent's BPF objects", || {
                    Ok(Objects::alive()?.common(&held).is_empty().then_some(()))
                })
            }
            Self::Softflowd(mut process, _folder) => {
                process.signal(Signal::SIGTERM)?;
                process.wait_end(PATIENCE).map(drop)
            }
        }
    }
}

fn start_softflowd() -> Result<Probe> {
    let folder = tempfile::tempdir()?;
    let control = folder.path().join("control");
    let mut command = Command::new(need::on_path("softflowd").context("softflowd was there")?);
    // To a loopback port that nobody listens at: what it exports costs it what it would cost in the field.
    command
        .args(["-d", "-i", "lo", "-n", "127.0.0.9:9", "-m", "100000", "-p"])
        .arg(folder.path().join("pid"))
        .arg("-c")
        .arg(&control);
    let process = Process::start(command)?;
    wait::until_true(PATIENCE, "softflowd's control socket", || control.exists())?;
    Ok(Probe::Softflowd(process, folder))
}
