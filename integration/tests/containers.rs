//! Promise: a flow of a container carries the name that its runtime gave it, however briefly it lived.
//!
//! Real runtimes, each on its own socket with its own data: Docker on a host with cgroup v1 beside cgroup2, Docker on one
//! with cgroup2 only, podman with runc. Each container connects once, to a port of its own, by which its flow is found.

#[path = "containers/left_out.rs"]
mod left_out;
#[path = "containers/shown.rs"]
mod shown;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::belongings::Belongings;
use integration::cgroup;
use integration::need::{self, Need};
use integration::process::{Process, run};
use integration::product::Agent;
use integration::scene::TOLD_WITHIN;
use integration::soak;
use integration::wait::{self, PATIENCE};
use integration::workers;
use integration::world::{RIGHT_V4, World};
use nix::sys::signal::Signal;

/// Containers of the full count, in about a minute.
const CONTAINERS: usize = 200;
/// Port that the first one connects to; each has the next.
const PORT: usize = 21_000;
/// Containers at a time.
const AT_ONCE: usize = 3;
/// Names that are used, again and again: what had a name before is another container.
const NAMES: usize = 8;
/// Longest time for a runtime to start or stop one container on a busy machine.
const RUN_WITHIN: Duration = Duration::from_secs(60);
const IMAGE: &str = "localhost/flowtilla-test:1";

#[test]
fn brief_containers_of_docker_go_by_their_names() -> Result<()> {
    brief_containers(Kind::Docker, "docker")
}

#[test]
fn brief_containers_of_docker_on_cgroup2_alone_go_by_their_names() -> Result<()> {
    brief_containers(Kind::DockerCgroup2, "docker")
}

#[test]
fn brief_containers_of_podman_go_by_their_names() -> Result<()> {
    brief_containers(Kind::Podman, "podman")
}

#[test]
fn without_a_runtime_or_names_a_container_goes_by_its_id() -> Result<()> {
    if !need::met(&needs(Kind::Docker)) {
        return Ok(());
    }
    let world = World::build()?;
    let runtime = Runtime::start(Kind::Docker, &world)?;
    serve(&world, 1)?;
    let agent = Agent::watching(&world.left, &["--no-container-names"])?;
    let id = runtime.connect_once("nameless", PORT)?;
    let found = containers_by_port(&agent, 1)?;
    ensure!(found[&PORT] == (id, "docker".to_owned(), None), "{found:?}");
    agent.interrupt()?.check_laws()
}

/// Runs containers, half of them before the runtime is restarted, and compares.
fn brief_containers(kind: Kind, runtime_word: &str) -> Result<()> {
    if !need::met(&needs(kind)) {
        return Ok(());
    }
    let world = World::build()?;
    let mut runtime = Runtime::start(kind, &world)?;
    let count = soak::count(CONTAINERS);
    serve(&world, count)?;
    let socket = runtime.socket().display().to_string();
    // One that nobody serves is no obstacle to the other.
    let nowhere = runtime.path("nobody.sock").display().to_string();
    let flags = ["--container-socket", &nowhere, "--container-socket", &socket];
    let agent = Agent::watching(&world.left, &flags)?;
    let mut wanted = BTreeMap::new();
    let halves = [0..count / 2, count / 2..count];
    for (n, half) in halves.into_iter().enumerate() {
        if n > 0 {
            runtime.restart()?;
        }
        wanted.extend(runtime.connect_each(half)?);
    }
    let found = containers_by_port(&agent, count)?;
    let mut nameless = 0;
    for (port, (id, name)) in &wanted {
        let told = found
            .get(port)
            .with_context(|| format!("no flow of {name} to {port}"))?;
        ensure!(
            (&told.0, told.1.as_str()) == (id, runtime_word),
            "{name} ({id}) to {port}: {told:?}"
        );
        ensure!(
            told.2.as_ref().is_none_or(|told| told == name),
            "{name} to {port}: {told:?}"
        );
        nameless += usize::from(told.2.is_none());
    }
    println!("{kind:?}: {count} containers, {nameless} without their name");
    ensure!(
        nameless * 1_000 <= count,
        "{nameless} of {count} without their name"
    );
    agent.interrupt()?.check_laws()
}

/// Id, runtime and name by the port connected to.
type Found = BTreeMap<usize, (String, String, Option<String>)>;

/// Waits for the flows of containers to end; who was behind each.
fn containers_by_port(agent: &Agent, count: usize) -> Result<Found> {
    let ours = |port: u16| (PORT..PORT + CONTAINERS).contains(&usize::from(port));
    let flows = agent.wait_for_ended(TOLD_WITHIN, count, |flow| ours(flow.first().responder.port))?;
    let mut found = Found::new();
    for flow in &flows {
        // Every record of a flow, not only the last, says the same.
        for record in &flow.parts {
            let end = &record.initiator;
            let container = end.names.as_ref().and_then(|names| names.container.clone());
            let container = container.with_context(|| format!("no container: {end:?}"))?;
            let told = (container.id, container.runtime, container.name);
            let before = found.insert(usize::from(record.responder.port), told.clone());
            ensure!(
                before.as_ref().is_none_or(|before| *before == told),
                "{before:?}, then {told:?}"
            );
        }
    }
    Ok(found)
}

/// Which runtime, and what of cgroups it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Docker,
    DockerCgroup2,
    Podman,
}

fn needs(kind: Kind) -> Vec<Need> {
    let mut needs = need::WORLD.to_vec();
    needs.push(Need::Program("busybox", "busybox-static"));
    needs.push(Need::Program("runc", "runc"));
    needs.extend(match kind {
        Kind::Docker | Kind::DockerCgroup2 => [
            Need::Program("dockerd", "docker.io"),
            Need::Program("docker", "docker.io"),
        ],
        Kind::Podman => [
            Need::Program("podman", "podman"),
            Need::Program("conmon", "conmon"),
        ],
    });
    needs
}

/// A runtime on the left host with data of its own; everything of it goes when it is dropped.
struct Runtime<'a> {
    kind: Kind,
    world: &'a World,
    daemon: Option<Process>,
    /// Declared last: cleared when the daemon has ended.
    belongings: Belongings,
}

impl<'a> Runtime<'a> {
    fn start(kind: Kind, world: &'a World) -> Result<Self> {
        let mut runtime = Self {
            kind,
            world,
            daemon: None,
            belongings: Belongings::make()?,
        };
        std::fs::write(
            runtime.path("containers.conf"),
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n",
        )?;
        runtime.start_daemon()?;
        runtime.import_image()?;
        Ok(runtime)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.belongings.path(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("runtime.sock")
    }

    fn start_daemon(&mut self) -> Result<()> {
        let listen = format!("unix://{}", self.socket().display());
        let command = match self.kind {
            Kind::Docker => {
                let mut command = self.world.left.command("dockerd");
                self.docker_flags(&mut command, &listen);
                command
            }
            Kind::DockerCgroup2 => {
                let mut command = self.world.left.command("unshare");
                cgroup::see_v2_alone(&mut command);
                command.arg("dockerd");
                self.docker_flags(&mut command, &listen);
                command
            }
            Kind::Podman => {
                let mut command = self.world.left.command("podman");
                self.podman_flags(&mut command);
                command.args(["system", "service", "--time=0", &listen]);
                command
            }
        };
        let mut daemon = Process::start(command)?;
        let socket = self.socket();
        wait::until(PATIENCE, "the runtime's socket", || {
            ensure!(daemon.is_running()?, "{}", daemon.last_words());
            Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn docker_flags(&self, command: &mut Command, listen: &str) {
        command
            .args([
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "-H",
                listen,
            ])
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"));
    }

    fn podman_flags(&self, command: &mut Command) {
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .args([
                "--runtime=runc",
                "--cgroup-manager=cgroupfs",
                "--events-backend=file",
                "--root",
            ])
            .arg(self.path("data"))
            .arg("--runroot")
            .arg(self.path("exec"))
            .arg("--tmpdir")
            .arg(self.path("tmp"));
    }

    /// A command of the runtime's own tool.
    fn tool(&self) -> Command {
        match self.kind {
            Kind::Docker | Kind::DockerCgroup2 => {
                let mut command = Command::new("docker");
                command
                    .arg("-H")
                    .arg(format!("unix://{}", self.socket().display()));
                command
            }
            Kind::Podman => {
                // Its containers have the network of whoever starts them.
                let mut command = self.world.left.command("podman");
                self.podman_flags(&mut command);
                command
            }
        }
    }

    fn import_image(&self) -> Result<()> {
        let root = self.path("image");
        std::fs::create_dir_all(root.join("bin"))?;
        let busybox = need::on_path("busybox").context("busybox")?;
        std::fs::copy(busybox, root.join("bin/busybox"))?;
        for name in ["sh", "nc", "sleep"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        let archive = self.path("image.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("."))?;
        run(self
            .tool()
            .args(["import", "-c", "LABEL app=shop"])
            .arg(&archive)
            .arg(IMAGE))?;
        Ok(())
    }

    /// Runs a container that connects once to `port`; its id.
    fn connect_once(&self, name: &str, port: usize) -> Result<String> {
        let connect = format!("echo {name} | nc -w 10 {RIGHT_V4} {port}");
        let mut create = self.tool();
        create.args([
            "create",
            "--network",
            "host",
            "--name",
            name,
            IMAGE,
            "/bin/sh",
            "-c",
            &connect,
        ]);
        let id = self.finish(create)?.trim().to_owned();
        let mut start = self.tool();
        start.args(["start", "-a", &id]);
        self.finish(start)?;
        let mut remove = self.tool();
        remove.args(["rm", &id]);
        self.finish(remove)?;
        Ok(id)
    }

    /// Starts a container with labels that connects to `port` and stays; its id.
    fn connect_and_stay(&self, name: &str, port: usize, labels: &[&str]) -> Result<String> {
        let connect = format!("(echo {name}; sleep 600) | nc {RIGHT_V4} {port}");
        let mut start = self.tool();
        start.args(["run", "-d", "--network", "host", "--name", name]);
        for label in labels {
            start.args(["--label", label]);
        }
        start.args([IMAGE, "/bin/sh", "-c", &connect]);
        Ok(self.finish(start)?.trim().to_owned())
    }

    /// Ends a container and takes it away.
    fn remove(&self, id: &str) -> Result<()> {
        let mut remove = self.tool();
        remove.args(["rm", "-f", id]);
        self.finish(remove).map(drop)
    }

    /// Runs a command of the tool to its end; what it printed.
    fn finish(&self, command: Command) -> Result<String> {
        let what = format!("{command:?}");
        let mut running = Process::start(command)?;
        running.close_stdin();
        let status = running.wait_end(RUN_WITHIN)?;
        ensure!(status.success(), "{what}: {status}: {}", running.last_words());
        Ok(running.out().all().join("\n"))
    }

    /// The same of several at a time, under names that come again; id and name by port.
    fn connect_each(&self, which: Range<usize>) -> Result<BTreeMap<usize, (String, String)>> {
        let names = [const { Mutex::new(()) }; NAMES];
        let run = workers::share(AT_ONCE, which, |numbers| {
            let connect = |n: usize| {
                let name = format!("web-{}", n % NAMES);
                // Two containers have no name in common while they live.
                let _mine = names[n % NAMES].lock().unwrap_or_else(PoisonError::into_inner);
                let id = self.connect_once(&name, PORT + n)?;
                Ok((PORT + n, (id, name)))
            };
            numbers.map(connect).collect()
        })?;
        Ok(run.into_iter().collect())
    }

    fn stop_daemon(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM)?;
            daemon.wait_end(PATIENCE)?;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.stop_daemon()?;
        self.start_daemon()
    }
}

impl Drop for Runtime<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.stop_daemon() {
            eprintln!("{:?}: {error:#}", self.kind);
        }
    }
}

/// Takes every connection to so many ports of the right host and reads it to its end.
fn serve(world: &World, ports: usize) -> Result<()> {
    let address: Ipv4Addr = RIGHT_V4.parse()?;
    for port in PORT..PORT + ports {
        let at = SocketAddr::from((address, u16::try_from(port)?));
        let listener = world.right.enter(|| Ok(TcpListener::bind(at)?))?;
        // Ends with the test's process: it holds nothing but its socket.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = std::io::copy(&mut &stream, &mut std::io::sink());
            }
        });
    }
    Ok(())
}
