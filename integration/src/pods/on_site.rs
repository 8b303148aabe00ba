//! A containerd on a host of a [`Site`]: systemd is PID 1 and its driver, cgroup2 is all there is of cgroups.
//!
//! It runs by Debian's own unit at its usual place, so that whoever looks for it there finds it. Its programs are this machine's: the
//! image of the hosts is of the same release. Its pods' cgroups are those of the host, and go with it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{
    Cri, Driver, PLUGINS, POD_NETWORK, configuration, import_image, network, wait_for_cri, write_runc,
};
use crate::hosts::Site;
use crate::need::{Need, on_path};

/// What it needs, beside [`NEEDS`](super::NEEDS) and those of hosts.
pub const NEEDS: [Need; 2] = [
    Need::Program("containerd", "containerd"),
    Need::Program("ctr", "containerd"),
];
/// Where Debian has the unit.
const UNIT: &str = "/lib/systemd/system/containerd.service";
/// Programs that the host gets.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "runc"];
/// Plugins that it gets.
const NETWORKING: [&str; 3] = ["bridge", "host-local", "loopback"];
/// Where it listens, on its host.
const SOCKET: &str = "run/containerd/containerd.sock";

/// A containerd on a host.
#[derive(Debug)]
pub struct OnSite<'a> {
    site: &'a Site,
    host: u8,
}

impl<'a> OnSite<'a> {
    /// Lays out a host for it, which is not booted.
    ///
    /// # Errors
    /// When a program is missing or the file system refuses.
    pub fn lay_out(site: &mut Site, host: u8) -> Result<()> {
        site.let_contain(host)?;
        let copy = |from: &Path, to: &str| {
            let to = site.written(host, to);
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(from, to).with_context(|| format!("copy {}", from.display()))
        };
        for name in PROGRAMS {
            copy(
                &on_path(name).with_context(|| name.to_owned())?,
                &format!("usr/sbin/{name}"),
            )?;
        }
        for name in NETWORKING {
            let plugin = Path::new(PLUGINS).join(name);
            copy(&plugin, &plugin.display().to_string())?;
        }
        let unit = fs::read_to_string(UNIT).with_context(|| format!("read {UNIT}"))?;
        let unit = unit.replace("=/usr/bin/", "=/usr/sbin/");
        let stand_in = "/usr/sbin/runc-without-limits";
        write_runc(&site.written(host, stand_in))?;
        let networks = Path::new("/etc/cni/net.d");
        let options = format!("SystemdCgroup = true\nBinaryName = \"{stand_in}\"");
        let addresses = network(Path::new("/var/lib/cni"));
        let pods = configuration(networks, &options);
        for (path, text) in [
            ("etc/systemd/system/containerd.service", unit),
            ("etc/cni/net.d/10-pods.conflist", addresses),
            ("etc/containerd/config.toml", format!("version = 2\n{pods}")),
        ] {
            let path = site.written(host, path);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        Ok(())
    }

    /// Starts it on a host that was laid out for it and has booted, with the image in it.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn start(site: &'a Site, host: u8) -> Result<Self> {
        let runtime = Self { site, host };
        let via = Site::address(host).to_string();
        site.hub.run("ip", &["route", "add", POD_NETWORK, "via", &via])?;
        runtime.systemctl("start")?;
        let folder = TempDir::new()?;
        import_image(folder.path(), &on_path("ctr").context("ctr")?, &runtime.socket()?)?;
        Ok(runtime)
    }

    /// Ends the daemon, and starts it anew; its pods live on.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn restart(&self) -> Result<()> {
        self.systemctl("restart")
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket()?, Driver::Systemd)
    }

    fn socket(&self) -> Result<PathBuf> {
        Ok(self.site.root(self.host)?.join(SOCKET))
    }

    fn systemctl(&self, what: &str) -> Result<()> {
        let log = "journalctl -u containerd -o cat -n 20";
        self.site.ssh(
            self.host,
            &format!("systemctl {what} containerd || {{ {log}; false; }}"),
        )?;
        let said = || self.site.ssh(self.host, log).unwrap_or_default();
        wait_for_cri(&self.socket()?, || Ok(())).with_context(said)
    }
}
