//! A fleet on this machine: hosts on one switch, a controller, an agent a host, and an operator's tool.
//!
//! The built programs, run as an operator runs them. Controller, agents and collectors live on this machine's own loopback;
//! what the agents watch are network namespaces ([`Hub`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::NetNs;
use crate::process::{Lines, Process, built_folder};
use crate::product;
use crate::scene::Told;
use crate::traffic::{self, Helper};
use crate::wait::{self, PATIENCE};
use crate::world::{Alone, INTERFACE};

/// What the line says by which a controller tells where it listens.
const LISTENS: &str = "the controller listens";
/// Many of each run at once on one machine, and nobody asks them.
const NO_METRICS: &[&str] = &["--metrics", "off"];

/// Hosts that are joined by a switch. Host `n` has the address `10.78.0.(n + 1)`.
#[derive(Debug)]
pub struct Hub {
    /// The hosts.
    pub hosts: Vec<NetNs>,
    _switch: NetNs,
    /// Declared last: released when all hosts are gone.
    _alone: Alone,
}

impl Hub {
    /// Builds so many hosts, once no other world is left.
    ///
    /// # Errors
    /// When not root or a tool is missing: ask [`need::met`](crate::need::met) before.
    pub fn build(count: u8) -> Result<Self> {
        let alone = Alone::wait()?;
        let switch = NetNs::create("switch")?;
        switch.run("ip", &["link", "add", "switch0", "type", "bridge"])?;
        switch.run("ip", &["link", "set", "switch0", "up"])?;
        let mut hosts = Vec::new();
        for n in 0..count {
            let host = NetNs::create(&format!("host{n}"))?;
            let path = switch.path();
            let name = path
                .file_name()
                .context("a namespace has a name")?
                .to_string_lossy();
            let port = format!("port{n}");
            host.run(
                "ip",
                &[
                    "link", "add", INTERFACE, "type", "veth", "peer", "name", &port, "netns", &name,
                ],
            )?;
            host.offload_off(INTERFACE)?;
            host.run(
                "ip",
                &[
                    "addr",
                    "add",
                    &format!("{}/24", Self::address(n)),
                    "dev",
                    INTERFACE,
                ],
            )?;
            host.run("ip", &["link", "set", INTERFACE, "up"])?;
            switch.run("ip", &["link", "set", &port, "master", "switch0", "up"])?;
            hosts.push(host);
        }
        Ok(Self {
            hosts,
            _switch: switch,
            _alone: alone,
        })
    }

    /// Address of a host.
    #[must_use]
    pub fn address(n: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 78, 0, n + 1))
    }

    /// TCP connections from one host to another; `plan` is more of the clients' words.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn tcp(&self, from: u8, to: u8, plan: &[&str]) -> Result<Told> {
        self.converse(from, to, &["serve", "--style", "thread"], "connect", plan)
    }

    /// UDP exchanges from one host with another; `plan` is more of the clients' words.
    ///
    /// # Errors
    /// When the traffic itself fails.
    pub fn udp(&self, from: u8, to: u8, plan: &[&str]) -> Result<Told> {
        self.converse(from, to, &["udp-serve"], "udp-exchange", plan)
    }

    fn converse(&self, from: u8, to: u8, serve: &[&str], command: &str, plan: &[&str]) -> Result<Told> {
        let listen = SocketAddr::new(Self::address(to), 0).to_string();
        let server = &self.hosts[usize::from(to)];
        let (server, ready) = Helper::serve(server, &[serve, &["--listen", &listen]].concat())?;
        let at = SocketAddr::new(Self::address(to), ready.address.port()).to_string();
        let plan = [&[command, "--to", &at], plan].concat();
        let clients = &self.hosts[usize::from(from)];
        let clients = traffic::run(clients, crate::scene::TRAFFIC_WITHIN, &plan)?;
        let servers = server.finish(crate::scene::TRAFFIC_WITHIN)?;
        Told::new(
            at.parse()?,
            ready.pid,
            traffic::flows(&clients),
            traffic::flows(&servers),
        )
    }
}

/// A controller with its state, and an operator who is logged in.
#[derive(Debug)]
pub struct Controller {
    process: Option<Process>,
    address: SocketAddr,
    flags: Vec<String>,
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
        let token = folder.path().join("admin.token");
        let state = folder.path().join("state");
        crate::process::run(
            Command::new(binary("flowtilla-controller")?)
                .args(["init", "--domain", "fleet.test", "--state"])
                .arg(&state)
                .arg("--token-file")
                .arg(&token),
        )?;
        let mut controller = Self {
            process: None,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            flags: owned(flags),
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
        let mut command = Command::new(binary("flowtilla-controller")?);
        command
            .arg("run")
            .arg("--state")
            .arg(self.state())
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

    /// Its process id.
    ///
    /// # Errors
    /// When it has gone.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the controller has gone")?.pid())
    }

    /// Directory of its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
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
        let mut command = product::command()?;
        command.args(arguments).env(
            "FLOWTILLA_CONFIG",
            self.folder.path().join("operator/config.yaml"),
        );
        Ok(command.output()?)
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
        let host = format!("h{n}");
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
            scope: format!("netns={}", hub.hosts[usize::from(n)].path().display()),
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
        let mut command = Command::new(binary("flowtilla-agent")?);
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
