//! A fleet on this machine: hosts on one switch, a controller, an agent a host, and an operator's tool.
//!
//! The built programs, run as an operator runs them. Controller, agents and collectors live on this machine's own loopback;
//! what the agents watch are network namespaces ([`Hub`]). All of it together is a [`whole::Fleet`](Fleet); what a collector shows
//! of its flows is in [`shown`].

mod hub;
pub mod shown;
mod whole;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Handle, NetNs};
use crate::process::{Lines, Process, built_folder};
use crate::product;
use crate::wait::{self, PATIENCE};

pub use hub::Hub;
pub use whole::{ARRIVED_WITHIN, Fleet, ONCE_WITHIN, Traffic};

/// What the line says by which a controller tells where it listens.
const LISTENS: &str = "the controller listens";
/// Many of each run at once on one machine, and nobody asks them.
const NO_METRICS: &[&str] = &["--metrics", "off"];

/// A controller with its state, and an operator who is logged in.
#[derive(Debug)]
pub struct Controller {
    process: Option<Process>,
    address: SocketAddr,
    flags: Vec<String>,
    state: PathBuf,
    /// Where it and its operator live; `None`: on this machine.
    place: Option<Handle>,
    folder: TempDir,
}

impl Controller {
    /// Makes the state, starts the controller and logs in.
    ///
    /// # Errors
    /// When a program is not built or refuses.
    pub fn start() -> Result<Self> {
        Self::start_with(NO_METRICS)
    }

    /// The same, with flags of `run` of its own.
    ///
    /// # Errors
    /// When a program is not built or refuses.
    pub fn start_with(flags: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::start_at(None, here, folder.path().join("state"), folder, flags)
    }

    /// The same, on another host, where it listens at an address; its operator is there, too.
    ///
    /// # Errors
    /// When a program is not built or refuses.
    pub fn start_on(host: &NetNs, address: IpAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let state = folder.path().join("state");
        Self::start_at(Some(host.handle()), address, state, folder, NO_METRICS)
    }

    /// The same, with its state on a disk of its own. What the operator keeps is elsewhere.
    ///
    /// # Errors
    /// When a program is not built or refuses.
    pub fn start_on_disk(disk: &Path) -> Result<Self> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::start_at(None, here, disk.join("state"), tempfile::tempdir()?, NO_METRICS)
    }

    fn start_at(
        place: Option<Handle>,
        address: IpAddr,
        state: PathBuf,
        folder: TempDir,
        flags: &[&str],
    ) -> Result<Self> {
        let token = folder.path().join("admin.token");
        crate::process::run(
            Command::new(binary("flowtilla-controller")?)
                .args(["init", "--domain", "fleet.test", "--state"])
                .arg(&state)
                .arg("--token-file")
                .arg(&token),
        )?;
        let mut controller = Self {
            process: None,
            address: SocketAddr::new(address, 0),
            flags: owned(flags),
            state,
            place,
            folder,
        };
        controller.come_back()?;
        let at = controller.address.to_string();
        let token = token.to_string_lossy().into_owned();
        controller.must(&["login", "--controller", &at, "--token-file", &token])?;
        Ok(controller)
    }

    /// Starts the next incarnation, where the last one was.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn come_back(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the controller has not gone");
        let mut command = self.command(&binary("flowtilla-controller")?);
        command
            .arg("run")
            .arg("--state")
            .arg(&self.state)
            .args(["--listen", &self.address.to_string()])
            .args(&self.flags);
        let mut process = Process::start(command)?;
        let lines = process.err().clone();
        self.address = process.wait_for_line(lines, PATIENCE, "a controller that listens", |line| {
            let addresses = line.split_once(LISTENS)?.1.rsplit_once('[')?.1;
            let end = addresses.find([',', ']'])?;
            addresses[..end].trim().parse().ok()
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends it without a chance to say goodbye.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the controller has gone")?;
        process.signal(Signal::SIGKILL)?;
        process.wait_end(PATIENCE)?;
        Ok(())
    }

    /// Waits until it has ended by itself: how, and what it said.
    ///
    /// # Errors
    /// When it does not end, or had gone before.
    pub fn wait_end(&mut self, deadline: Duration) -> Result<(ExitStatus, String)> {
        let process = self.process.as_mut().context("the controller has gone")?;
        let status = process.wait_end(deadline)?;
        let words = process.err().all().join("\n");
        self.process = None;
        Ok((status, words))
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        self.process.as_mut().map_or(Ok(false), Process::is_running)
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has gone.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the controller has gone")?.pid())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it says, on standard error.
    ///
    /// # Errors
    /// When it has gone.
    pub fn log(&self) -> Result<&Lines> {
        Ok(self.process.as_ref().context("the controller has gone")?.err())
    }

    /// Has it end as a stop of the service does.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the controller has gone")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait_end(PATIENCE)?;
        ensure!(
            status.success(),
            "the controller ended with {status}: {}",
            process.last_words()
        );
        Ok(())
    }

    /// Runs `agentctl` as the operator, to its end.
    ///
    /// # Errors
    /// When it is not built.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.ctl_command(arguments)?.output()?)
    }

    /// What [`Self::ctl`] runs.
    ///
    /// # Errors
    /// When it is not built.
    pub fn ctl_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.command(&product::binary()?);
        command.args(arguments).env(
            "FLOWTILLA_CONFIG",
            self.folder.path().join("operator/config.yaml"),
        );
        Ok(command)
    }

    /// `agentctl` as the operator's, on a terminal whose keys are the command's standard input; all that it says is on the standard
    /// output.
    ///
    /// # Errors
    /// When it is not built.
    pub fn ctl_on_terminal(&self, arguments: &[&str]) -> Result<Command> {
        let plain = self.ctl_command(arguments)?;
        let words = std::iter::once(plain.get_program()).chain(plain.get_args());
        let words: Vec<String> = words
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let mut command = self.command(Path::new("script"));
        command.args(["-qec", &words.join(" "), "/dev/null"]);
        for (name, value) in plain.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        Ok(command)
    }

    fn command(&self, program: &Path) -> Command {
        match &self.place {
            Some(place) => place.command(program),
            None => Command::new(program),
        }
    }

    /// Runs `agentctl` as the operator; its standard output.
    ///
    /// # Errors
    /// When it does not succeed, with what it said.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ctl(arguments)?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        ensure!(
            output.status.success(),
            "agentctl {arguments:?}: {}\n{out}{err}",
            output.status
        );
        Ok(out)
    }

    /// Writes documents to a file, and deploys it with more flags; what `agentctl` did and said.
    ///
    /// # Errors
    /// When it is not built.
    pub fn deploy(&self, documents: &str, flags: &[&str]) -> Result<Output> {
        let file = self.folder.path().join("fleet.yaml");
        std::fs::write(&file, documents)?;
        let file = file.to_string_lossy().into_owned();
        self.ctl(&[&["deploy", "-f", &file], flags].concat())
    }

    /// The same, waits for all answers, and sees that all agents acked.
    ///
    /// # Errors
    /// When it is refused or taken back, with what was said.
    pub fn deploy_all(&self, documents: &str) -> Result<()> {
        let output = self.deploy(documents, &["--wait=300s"])?;
        ensure!(
            output.status.success(),
            "{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// The agents, as `agentctl get agents -o json` tells them.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn agents(&self) -> Result<Vec<Value>> {
        let text = self.must(&["get", "agents", "-o", "json"])?;
        match serde_json::from_str(&text)? {
            Value::Array(agents) => Ok(agents),
            other => bail!("{other} is no list"),
        }
    }

    /// The agent with this label `host`.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn agent(&self, host: &str) -> Result<Option<Value>> {
        let mut agents = self.agents()?.into_iter();
        Ok(agents.rfind(|agent| agent["labels"]["host"] == host))
    }
}

/// An agent with its state.
#[derive(Debug)]
pub struct Member {
    process: Option<Process>,
    scope: String,
    /// Where it lives; `None`: on this machine.
    place: Option<Handle>,
    controller: SocketAddr,
    flags: Vec<String>,
    folder: TempDir,
    /// Its label `host`.
    pub host: String,
}

impl Member {
    /// Has an agent for a host of the hub join the fleet, with the label `host=NAME` and more; waits until it is connected.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn join(controller: &Controller, hub: &Hub, n: u8, labels: &[&str]) -> Result<Self> {
        Self::join_with(controller, hub, n, labels, NO_METRICS)
    }

    /// The same, with flags of `run` of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn join_with(
        controller: &Controller,
        hub: &Hub,
        n: u8,
        labels: &[&str],
        flags: &[&str],
    ) -> Result<Self> {
        let watched = &hub.hosts[usize::from(n)];
        Self::join_at(controller, None, watched, format!("h{n}"), labels, flags)
    }

    /// Has an agent that lives on the host `desk` and sees `watched` join the fleet, with the label `host=desk`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn join_from(controller: &Controller, desk: &NetNs, watched: &NetNs) -> Result<Self> {
        let place = Some(desk.handle());
        Self::join_at(controller, place, watched, "desk".to_owned(), &[], NO_METRICS)
    }

    fn join_at(
        controller: &Controller,
        place: Option<Handle>,
        watched: &NetNs,
        host: String,
        labels: &[&str],
        flags: &[&str],
    ) -> Result<Self> {
        let label = format!("host={host}");
        let mut words = vec!["token", "create", "--label", &label];
        for label in labels {
            words.extend(["--label", label]);
        }
        let token = controller.must(&words)?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("token"), token)?;
        let mut member = Self {
            process: None,
            scope: format!("netns={}", watched.path().display()),
            place,
            controller: controller.address(),
            flags: owned(flags),
            folder,
            host,
        };
        member.come_back()?;
        member.wait_connected(controller)?;
        Ok(member)
    }

    /// Starts it (again), with what it had.
    ///
    /// # Errors
    /// When it is not built, or has not gone.
    pub fn come_back(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the agent has not gone");
        let program = binary("flowtilla-agent")?;
        let mut command = match &self.place {
            Some(place) => place.command(&program),
            None => Command::new(&program),
        };
        command
            .args(["run", "--controller", &self.controller.to_string()])
            .args(["--scope", &self.scope])
            .args(&self.flags)
            .arg("--state")
            .arg(self.folder.path().join("state"))
            .arg("--token-file")
            .arg(self.folder.path().join("token"));
        self.process = Some(Process::start(command)?);
        Ok(())
    }

    /// Waits until the controller sees it connected.
    ///
    /// # Errors
    /// When it is not in time, with its last words.
    pub fn wait_connected(&self, controller: &Controller) -> Result<()> {
        let waited = wait::until(PATIENCE, "an agent that is connected", || {
            let agent = controller.agent(&self.host)?;
            Ok(agent.filter(|agent| agent["state"] == "connected").map(drop))
        });
        waited.with_context(|| self.last_words())
    }

    /// Ends it without a chance to say goodbye.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent has gone")?;
        process.signal(Signal::SIGKILL)?;
        process.wait_end(PATIENCE)?;
        Ok(())
    }

    /// Has it end as a stop of the service does.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent has gone")?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait_end(PATIENCE)?;
        ensure!(
            status.success(),
            "the agent ended with {status}: {}",
            process.last_words()
        );
        Ok(())
    }

    /// What it says, on standard error.
    ///
    /// # Errors
    /// When it has gone.
    pub fn log(&self) -> Result<&Lines> {
        Ok(self.process.as_ref().context("the agent has gone")?.err())
    }

    /// What it said last.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.process.as_ref().map(Process::last_words).unwrap_or_default()
    }

    /// Directory of its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }
}

fn owned(flags: &[&str]) -> Vec<String> {
    flags.iter().map(ToString::to_string).collect()
}

/// A built program.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    let path = std::env::var_os(variable).map_or_else(|| built_folder().join(name), PathBuf::from);
    ensure!(
        Path::new(&path).is_file(),
        "{} is not built: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}
