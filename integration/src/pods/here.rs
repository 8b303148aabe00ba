//! A containerd on the left host of a world, whose pods' cgroups are below one folder of ours: a kubelet with the cgroupfs driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::{Cri, Driver, POD_NETWORK, configuration, import_image, network, wait_for_cri, write_runc};
use crate::belongings::Belongings;
use crate::cgroup::{self, View};
use crate::process::Process;
use crate::wait::PATIENCE;
use crate::world::{LEFT_V4, World};

/// What of cgroups a runtime sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// What there is on this machine.
    AsHere,
    /// cgroup2, as on a host that has nothing else.
    V2Alone,
}

/// A containerd on the left host with data of its own.
#[derive(Debug)]
pub struct Containerd<'a> {
    world: &'a World,
    /// Folder of its programs; `None`: those on the PATH.
    programs: Option<PathBuf>,
    daemon: Option<Process>,
    /// Where it runs when it sees other cgroups; one for all its daemons: pods' networks are mounted there.
    view: Option<View>,
    /// Declared last: cleared when the daemon has ended.
    belongings: Belongings,
}

impl<'a> Containerd<'a> {
    /// Starts one, with the image in it.
    ///
    /// # Errors
    /// When it does not come up, with its last words.
    pub fn start(world: &'a World, package: Option<&Path>, cgroups: Cgroups) -> Result<Self> {
        let mut runtime = Self {
            world,
            programs: package.map(|root| root.join("usr/bin")),
            daemon: None,
            view: match cgroups {
                Cgroups::AsHere => None,
                Cgroups::V2Alone => Some(View::open()?),
            },
            belongings: Belongings::make()?,
        };
        runtime.join_networks()?;
        runtime.write_configuration()?;
        runtime.start_daemon()?;
        import_image(
            runtime.belongings.folder(),
            &runtime.program("ctr"),
            &runtime.socket(),
        )?;
        Ok(runtime)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// What an agent is to see that sees its pods only; their cgroup is made here.
    ///
    /// # Errors
    /// When there is no cgroup2.
    pub fn scope(&self) -> Result<String> {
        let root = cgroup::root()?.context("cgroup2 is mounted")?;
        let name = self.name();
        fs::create_dir_all(root.join(&name))?;
        Ok(format!("cgroup=/{name}"))
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket(), Driver::Cgroupfs { above: self.name() })
    }

    /// A command on its host, which sees the cgroups that the host has.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        match &self.view {
            Some(view) => view.command(&self.world.left, program),
            None => self.world.left.command(program),
        }
    }

    /// Name that everything of it carries: its folder, and that of all its cgroups below the root of each hierarchy.
    #[must_use]
    pub fn name(&self) -> String {
        self.belongings.name()
    }

    /// Ends the daemon, and starts it anew; its pods live on.
    ///
    /// # Errors
    /// When it does not end, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.stop_daemon(Signal::SIGTERM)?;
        self.start_daemon()
    }

    /// Kills the daemon; its pods live on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.stop_daemon(Signal::SIGKILL)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.belongings.path(name)
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.programs {
            Some(folder) => folder.join(name),
            None => name.into(),
        }
    }

    /// Lets the left host forward for the pods' network, and the right one answer to it.
    fn join_networks(&self) -> Result<()> {
        self.world.left.sysctl("ipv4/ip_forward", "1")?;
        self.world
            .right
            .run("ip", &["route", "add", POD_NETWORK, "via", LEFT_V4])?;
        Ok(())
    }

    fn write_configuration(&self) -> Result<()> {
        let plugins = self.path("cni");
        fs::create_dir_all(&plugins)?;
        fs::write(plugins.join("10-pods.conflist"), network(&self.path("addresses")))?;
        let path = |name: &str| self.path(name).display().to_string();
        let mut options = format!("Root = \"{}\"", path("runc"));
        if self.view.is_some() {
            let stand_in = self.path("runc-without-limits");
            write_runc(&stand_in)?;
            options += &format!("\nBinaryName = \"{}\"", stand_in.display());
        }
        fs::write(
            self.path("config.toml"),
            format!(
                r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
{pods}"#,
                root = path("root"),
                state = path("state"),
                socket = path("containerd.sock"),
                opt = path("opt"),
                pods = configuration(&plugins, &options),
            ),
        )?;
        Ok(())
    }

    fn start_daemon(&mut self) -> Result<()> {
        let mut command = self.command(&self.program("containerd"));
        command.arg("--config").arg(self.path("config.toml"));
        if let Some(programs) = &self.programs {
            // It finds its shims there.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        let mut daemon = Process::start(command)?;
        wait_for_cri(&self.socket(), || {
            ensure!(daemon.is_running()?, "{}", daemon.last_words());
            Ok(())
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn stop_daemon(&mut self, signal: Signal) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(signal)?;
            daemon.wait_end(PATIENCE)?;
        }
        Ok(())
    }

    /// As a kubelet would; what is left after that, killed pods included, is cleared by force.
    fn end(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            let pods = self.cri()?;
            for pod in pods.pods()? {
                pods.remove_pod(&pod)?;
            }
        }
        self.stop_daemon(Signal::SIGTERM)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("containerd: {error:#}");
        }
    }
}
