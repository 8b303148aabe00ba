//! Hosts with systemd on this machine, reached by ssh: what `agentctl deploy` brings agents to.
//!
//! Each is a systemd-nspawn container with systemd as PID 1, sshd, a network namespace and a cgroup2 subtree of its own, over one
//! image that is made of Debian's packages once ([`image`]) and kept below the target folder. They hang on one switch with the hub,
//! where controller, operator and collectors are; host `n` has the address `10.79.0.(11 + n)` and the name `hN` in ssh's
//! configuration, which only the `ssh` of [`Site::operator`] reads: the caller's own configuration, keys and known hosts are
//! not touched. Sites of one process may be there at the same time: each has a switch of its own.
//!
//! The kernel is one: an agent there must be told to watch its own network namespace (`/proc/1/ns/net`).

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cgroup;
use crate::need::Need;
use crate::netns::NetNs;
use crate::process::{Process, built_folder, run};
use crate::wait::{self, PATIENCE};
use crate::world::{Alone, INTERFACE};

/// What a test with such hosts needs.
pub const NEEDS: [Need; 9] = [
    Need::Root,
    Need::Program("ip", "iproute2"),
    Need::Program("ethtool", "ethtool"),
    Need::Program("nsenter", "util-linux"),
    Need::Program("ssh", "openssh-client"),
    Need::Program("ssh-keygen", "openssh-client"),
    Need::Program("systemd-nspawn", "systemd-container"),
    Need::Program("mmdebstrap", "mmdebstrap"),
    Need::Program("script", "bsdutils"),
];

/// Name of the image. Another recipe: another name.
const IMAGE: &str = "image-1";
/// What is in it.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,openssh-server,iproute2,procps,sudo";
/// How names of our cgroups begin.
const CGROUP: &str = "flowtilla-test-host";
/// How names of the folders of a run begin.
const RUN: &str = "run-";
/// A host boots in 4 s; on a machine that builds something beside, in more.
const BOOTED_WITHIN: Duration = Duration::from_secs(90);

/// The image's folder; made when it is not there. `None`, with the reason: it cannot be made here.
///
/// # Errors
/// When the file system refuses.
pub fn image() -> Result<std::result::Result<PathBuf, String>> {
    // One at a time: tests run side by side.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder()?;
    let image = folder.join(IMAGE);
    if image.is_dir() {
        return Ok(Ok(image));
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    // The programs are built against this system's C library.
    if value("ID=") != "debian" {
        return Ok(Err(
            "needs Debian: the image of the hosts is made of this system's own packages".to_owned(),
        ));
    }
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let Some(sources) = sources.into_iter().find(|path| Path::new(path).is_file()) else {
        return Ok(Err("needs a list of apt's sources".to_owned()));
    };
    let making = folder.join(format!("{IMAGE}.making"));
    remove(&making)?;
    let made = Command::new("mmdebstrap")
        .args(["-q", "--variant=apt"])
        .arg(format!("--include={PACKAGES}"))
        .arg("--customize-hook=chroot \"$1\" useradd --create-home --shell /bin/bash op")
        // Each host gets its own.
        .arg("--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_* \"$1\"/etc/machine-id")
        .arg(value("VERSION_CODENAME="))
        .arg(&making)
        .arg(sources)
        .output()?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).into_owned();
        let last = said.lines().next_back().unwrap_or_default();
        remove(&making)?;
        return Ok(Err(format!(
            "needs an image of Debian, and mmdebstrap says: {last}"
        )));
    }
    fs::rename(&making, &image)?;
    Ok(Ok(image))
}

/// Some hosts, and the hub.
#[derive(Debug)]
pub struct Site {
    hosts: Vec<Host>,
    /// Where controller, operator and collectors are.
    pub hub: NetNs,
    folder: PathBuf,
    /// Declared last: released when all sites of this process are gone.
    _alone: Arc<Alone>,
}

#[derive(Debug)]
struct Host {
    process: Option<Process>,
    netns: NetNs,
    cgroup: PathBuf,
    upper: PathBuf,
    key: String,
    /// Whether containers run there.
    contains: bool,
}

impl Site {
    /// Lays out so many hosts, none of them booted, once no other process has a world.
    ///
    /// # Errors
    /// When not root or a tool is missing: ask [`need::met`](crate::need::met) with [`NEEDS`] before.
    pub fn build(count: u8, image: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let alone = alone()?;
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let root = cgroup::root()?.context("no cgroup2 mount")?;
        let hub = NetNs::create("hub")?;
        hub.run("ip", &["link", "add", INTERFACE, "type", "bridge"])?;
        let address = format!("{}/24", Self::hub_address());
        hub.run("ip", &["addr", "add", &address, "dev", INTERFACE])?;
        hub.run("ip", &["link", "set", INTERFACE, "up"])?;
        let folder = folder()?.join(format!("{RUN}{name}"));
        fs::create_dir(&folder)?;
        let mut site = Self {
            hosts: Vec::new(),
            hub,
            folder,
            _alone: alone,
        };
        site.keygen(&site.folder.join("id"))?;
        for n in 0..count {
            let cgroup = root.join(format!("{CGROUP}-{name}-{n}"));
            let host = site.lay_out(n, cgroup, image)?;
            site.hosts.push(host);
        }
        site.write_ssh()?;
        for n in 0..count {
            site.trust(n, true)?;
        }
        Ok(site)
    }

    /// The hub's address.
    #[must_use]
    pub fn hub_address() -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, 1))
    }

    /// A host's address.
    #[must_use]
    pub fn address(n: u8) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 79, 0, 11 + n))
    }

    /// Has a host be one, from its next boot on, where a runtime of containers may run.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn let_contain(&mut self, n: u8) -> Result<()> {
        let host = &mut self.hosts[usize::from(n)];
        host.contains = true;
        let data = host.upper.with_file_name("containerd");
        fs::create_dir_all(&data).with_context(|| format!("make {}", data.display()))
    }

    /// Boots a host; [`Self::wait_up`] waits for it.
    ///
    /// # Errors
    /// When systemd-nspawn does not start.
    pub fn boot(&mut self, n: u8) -> Result<()> {
        let host = &mut self.hosts[usize::from(n)];
        // One that is down answers nothing at all.
        host.netns.run("ip", &["link", "set", INTERFACE, "up"])?;
        let mut command = Command::new("bash");
        command.args(["-c", BOOT, "bash"]);
        command.arg(&host.cgroup).arg(host.netns.path());
        command.arg(host.upper.with_file_name("lower"));
        command.arg(&host.upper).arg(host.upper.with_file_name("work"));
        command.arg(host.upper.with_file_name("root"));
        command.arg(format!("h{n}"));
        if host.contains {
            command.arg(host.upper.with_file_name("containerd"));
        }
        host.process = Some(Process::start(command)?);
        Ok(())
    }

    /// Whether a host was booted.
    #[must_use]
    pub fn is_booted(&self, n: u8) -> bool {
        self.hosts[usize::from(n)].process.is_some()
    }

    /// Waits until commands run there.
    ///
    /// # Errors
    /// When it does not come up, with what it said.
    pub fn wait_up(&self, n: u8) -> Result<()> {
        let waited = wait::until(BOOTED_WITHIN, "a host that has booted", || {
            Ok(self.ssh_output(n, "true")?.status.success().then_some(()))
        });
        waited.with_context(|| {
            let process = self.hosts[usize::from(n)].process.as_ref();
            process.map(Process::last_words).unwrap_or_default()
        })
    }

    /// Boots all hosts and waits for them.
    ///
    /// # Errors
    /// As [`Self::boot`] and [`Self::wait_up`].
    pub fn boot_all(&mut self) -> Result<()> {
        let all = 0..u8::try_from(self.hosts.len())?;
        for n in all.clone() {
            self.boot(n)?;
        }
        all.into_iter().try_for_each(|n| self.wait_up(n))
    }

    /// Has a host's key be known as it is, or another one in its place.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn trust(&self, n: u8, right: bool) -> Result<()> {
        let path = self.folder.join("known_hosts");
        let name = format!("h{n},{}", Self::address(n));
        let known = fs::read_to_string(&path).unwrap_or_default();
        let mut text: String = known
            .lines()
            .filter(|line| !line.starts_with(&format!("{name} ")))
            .flat_map(|line| [line, "\n"])
            .collect();
        let key = match right {
            true => self.hosts[usize::from(n)].key.clone(),
            false => public(&self.folder.join("id"))?,
        };
        writeln!(text, "{name} {key}")?;
        Ok(fs::write(&path, text)?)
    }

    /// Lets the user `op` of a host become root without a password, or not.
    ///
    /// # Errors
    /// When the host does not do it.
    pub fn let_sudo(&self, n: u8, may: bool) -> Result<()> {
        let line = match may {
            true => "echo 'op ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/op",
            false => "rm -f /etc/sudoers.d/op",
        };
        self.ssh(n, line).map(drop)
    }

    /// Runs a shell's line on a host as root; what it printed.
    ///
    /// # Errors
    /// When it does not succeed, with what it said.
    pub fn ssh(&self, n: u8, line: &str) -> Result<String> {
        let output = self.ssh_output(n, line)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "h{n}: {line}: {said}{complained}");
        Ok(said)
    }

    /// Brings a file to a host, where it may be executed.
    ///
    /// # Errors
    /// When it cannot be read, or the host does not take it.
    pub fn put(&self, n: u8, from: &Path, to: &str) -> Result<()> {
        let mut command = self.ssh_command(n, &format!("umask 022; cat > {to} && chmod 755 {to}"));
        let output = command.stdin(fs::File::open(from)?).output()?;
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "h{n}: {to}: {complained}");
        Ok(())
    }

    fn ssh_output(&self, n: u8, line: &str) -> Result<Output> {
        Ok(self.ssh_command(n, line).stdin(Stdio::null()).output()?)
    }

    fn ssh_command(&self, n: u8, line: &str) -> Command {
        let mut command = self.hub.command(self.folder.join("bin/ssh"));
        let direct = ["-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=no", "-o"];
        command.args(direct).arg("UserKnownHostsFile=/dev/null");
        command.args(["-o", "LogLevel=ERROR", &format!("root@h{n}"), line]);
        command
    }

    /// Where a file that a host has written is on this machine.
    #[must_use]
    pub fn written(&self, n: u8, path: &str) -> PathBuf {
        self.hosts[usize::from(n)]
            .upper
            .join(path.trim_start_matches('/'))
    }

    /// Has a command find the `ssh` that knows these hosts.
    ///
    /// # Errors
    /// When PATH holds what cannot be there.
    pub fn operator(&self, command: &mut Command) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::iter::once(self.folder.join("bin")).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all)?);
        Ok(())
    }

    /// The folder of the cgroup that is a booted host's topmost one.
    #[must_use]
    pub fn cgroup(&self, n: u8) -> PathBuf {
        self.hosts[usize::from(n)].cgroup.join("payload")
    }

    /// The root folder of a booted host, as whatever runs there has it.
    ///
    /// # Errors
    /// When nothing runs there.
    pub fn root(&self, n: u8) -> Result<PathBuf> {
        let init = self.cgroup(n).join("init.scope/cgroup.procs");
        let pids = fs::read_to_string(&init).with_context(|| format!("read {}", init.display()))?;
        let pid = pids.lines().next().context("a host without processes")?;
        Ok(Path::new("/proc").join(pid).join("root"))
    }

    fn lay_out(&self, n: u8, cgroup: PathBuf, image: &Path) -> Result<Host> {
        let netns = NetNs::create(&format!("h{n}"))?;
        let (port, hub) = (format!("port{n}"), self.hub.path());
        let hub = hub
            .file_name()
            .context("a namespace has a name")?
            .to_string_lossy();
        let link = [
            "link", "add", INTERFACE, "type", "veth", "peer", "name", &port, "netns", &hub,
        ];
        netns.run("ip", &link)?;
        let address = format!("{}/24", Self::address(n));
        netns.run("ip", &["addr", "add", &address, "dev", INTERFACE])?;
        self.hub
            .run("ip", &["link", "set", &port, "master", INTERFACE, "up"])?;

        let folder = self.folder.join(format!("h{n}"));
        let upper = folder.join("upper");
        for name in [
            "upper/etc/ssh",
            "upper/root/.ssh",
            "upper/home/op/.ssh",
            "work",
            "root",
        ] {
            fs::create_dir_all(folder.join(name))?;
        }
        std::os::unix::fs::symlink(image, folder.join("lower"))?;
        fs::write(upper.join("etc/hostname"), format!("h{n}\n"))?;
        fs::write(
            upper.join("etc/hosts"),
            format!("127.0.0.1 localhost\n127.0.1.1 h{n}\n"),
        )?;
        let key = upper.join("etc/ssh/ssh_host_ed25519_key");
        self.keygen(&key)?;
        for home in ["root", "home/op"] {
            let of = |name: &str| upper.join(home).join(name);
            fs::copy(self.folder.join("id.pub"), of(".ssh/authorized_keys"))?;
            fs::set_permissions(of(".ssh/authorized_keys"), fs::Permissions::from_mode(0o600))?;
            fs::set_permissions(of(".ssh"), fs::Permissions::from_mode(0o700))?;
        }
        fs::set_permissions(upper.join("root"), fs::Permissions::from_mode(0o700))?;
        for path in ["home/op", "home/op/.ssh", "home/op/.ssh/authorized_keys"] {
            // The first user of the image.
            std::os::unix::fs::chown(upper.join(path), Some(1000), Some(1000))?;
        }
        Ok(Host {
            process: None,
            netns,
            cgroup,
            key: public(&key)?,
            upper,
            contains: false,
        })
    }

    fn write_ssh(&self) -> Result<()> {
        let folder = self.folder.display();
        let mut text = format!(
            "Host *\n  IdentityFile {folder}/id\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
        );
        for n in 0..u8::try_from(self.hosts.len())? {
            writeln!(text, "Host h{n}\n  HostName {}", Self::address(n))?;
        }
        let config = self.folder.join("ssh_config");
        fs::write(&config, text)?;
        let ssh = crate::need::on_path("ssh").context("no ssh")?;
        let bin = self.folder.join("bin");
        fs::create_dir(&bin)?;
        let wrapper = bin.join("ssh");
        let call = format!(
            "#!/bin/sh\nexec {} -F {} \"$@\"\n",
            ssh.display(),
            config.display()
        );
        fs::write(&wrapper, call)?;
        Ok(fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?)
    }

    fn keygen(&self, path: &Path) -> Result<()> {
        let words = ["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"];
        run(Command::new("ssh-keygen").args(words).arg(path)).map(drop)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            kill_all(&host.cgroup);
            host.process = None;
        }
        for host in &self.hosts {
            let gone = wait::until_true(PATIENCE, "a cgroup without processes", || {
                remove_cgroup(&host.cgroup).is_ok()
            });
            if let Err(error) = gone {
                eprintln!(
                    "{}: {error:#}; the next run sweeps it away",
                    host.cgroup.display()
                );
            }
        }
        if let Err(error) = remove(&self.folder) {
            eprintln!("{error:#}; the next run sweeps it away");
        }
    }
}

/// Boots a host: cgroup, network namespace, lower, upper, work, root, name, and a folder where it is to have containers: their
/// overlays do not lie on the host's. The overlay is mounted where only this process sees it, and goes with it. The host sees its
/// own subtree of cgroup2 alone; programs for the kernel may be loaded there.
const BOOT: &str = r#"set -e
mkdir -p "$1"; echo $$ > "$1/cgroup.procs"
exec nsenter --net="$2" unshare -m --propagation private bash -c '
  set -e
  mount -t overlay overlay -o "lowerdir=$(readlink -f "$3"),upperdir=$4,workdir=$5" "$6"
  umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
  export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
  calls="bpf perf_event_open @keyring"
  if [ -n "$8" ]; then
    export SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes
    calls="$calls @mount @privileged"
    set -- "$@" --bind="$8:/var/lib/containerd"
  fi
  exec systemd-nspawn -q -D "$6" --boot --register=no --keep-unit --network-namespace-path="$2" --machine "$7" \
    --console=passive --capability=all --system-call-filter="$calls" \
    --bind=/sys/fs/bpf --bind=/sys/kernel/tracing ${9:+"$9"}
' bash "$@""#;

/// Folder of the image and of runs.
fn folder() -> Result<PathBuf> {
    let built = built_folder();
    let folder = built.parent().unwrap_or(&built).join("test-hosts");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// The public half of a key, without its comment.
fn public(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path.with_extension("pub"))?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// The machine, while sites of this process have it.
struct Shared {
    machine: Weak<Alone>,
    /// Whether the site that has it shares it with no other.
    by_one: bool,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared {
    machine: Weak::new(),
    by_one: false,
});

/// Longest time for all other sites of a process to come and go.
const OTHERS_WITHIN: Duration = Duration::from_secs(3_600);

thread_local! {
    static ONLY: Cell<bool> = const { Cell::new(false) };
}

/// The next sites that this thread builds have the machine for themselves: what they hold bears no other at work.
pub fn be_the_only_site() {
    ONLY.set(true);
}

/// The machine, which the sites of this process share unless one wants it for itself. The first of them sweeps what killed runs left.
fn alone() -> Result<Arc<Alone>> {
    let by_one = ONLY.get();
    wait::until(OTHERS_WITHIN, "the end of other sites", || {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match shared.machine.upgrade() {
            Some(_) if by_one || shared.by_one => Ok(None),
            Some(alone) => Ok(Some(alone)),
            None => {
                let alone = Arc::new(Alone::wait()?);
                sweep()?;
                let machine = Arc::downgrade(&alone);
                *shared = Shared { machine, by_one };
                Ok(Some(alone))
            }
        }
    })
}

/// What there is of the hosts that a process has made, in words: cgroups, network namespaces, the folder.
///
/// # Errors
/// When it cannot be looked for.
pub fn left(maker: u32) -> Result<Vec<String>> {
    let root = cgroup::root()?.context("no cgroup2 mount")?;
    let mut left = Vec::new();
    for (place, name) in [
        (root, format!("{CGROUP}-{maker}-")),
        (
            PathBuf::from(crate::netns::FOLDER),
            format!("{}-{maker}-", crate::netns::PREFIX),
        ),
        (folder()?, format!("{RUN}{maker}-")),
    ] {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    Ok(left)
}

/// Removes what killed runs left. Whoever calls it is alone.
///
/// # Errors
/// When something of it cannot be removed.
pub fn sweep() -> Result<()> {
    let root = cgroup::root()?.context("no cgroup2 mount")?;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(CGROUP) {
            kill_all(&entry.path());
            let empty = "a cgroup without processes";
            wait::until_true(PATIENCE, empty, || remove_cgroup(&entry.path()).is_ok())?;
        }
    }
    crate::netns::sweep()?;
    for entry in fs::read_dir(folder()?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(RUN) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Ends everything in a cgroup: systemd-nspawn's own end would leave what it has booted.
fn kill_all(folder: &Path) {
    let _ = fs::write(folder.join("cgroup.kill"), "1"); // It may not be there yet.
}

/// Removes a cgroup and those below it.
fn remove_cgroup(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(folder)?)
}
