//! Promise: one command makes bare hosts a fleet, tells of each host what is wrong with it, and, called again, does the rest and
//! nothing else.
//!
//! Three hosts with systemd and sshd ([`integration::hosts`]), a controller and a collector beside them, agentctl over the
//! system's ssh.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::collector::ndpi::Elements;
use integration::collector::{self, Collector, Setup};
use integration::fleet::{Controller, binary};
use integration::hosts::{self, Site};
use integration::need;
use integration::wait::{self, PATIENCE, Stopwatch};
use serde_json::Value;
use tempfile::TempDir;

#[path = "hosts/broken_off.rs"]
mod broken_off;
#[path = "hosts/drain.rs"]
mod drain;
#[path = "hosts/proof.rs"]
mod proof;
#[path = "hosts/upgrade.rs"]
mod upgrade;
#[path = "hosts/ways.rs"]
mod ways;

/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
mod element {
    pub(super) const PORTS: [u32; 2] = [7, 11];
    pub(super) const ADDRESSES: [u32; 2] = [8, 12];
    pub(super) const NAME: u32 = 57641;
    pub(super) const USER: u32 = 57844;
}

/// Hosts.
const HOSTS: u8 = 3;
/// The group that all of them are in.
const GROUP: &str = "labels: {role: web}\nhosts: [h0, h1, h2]";
/// A flow's first record leaves within a second; and some, on a busy machine.
const FLOW_WITHIN: Duration = Duration::from_secs(60);
/// The worst that a hardened unit may be rated. 10: nothing is closed.
const EXPOSURE_MAX: f32 = 3.0;

/// What every test here has.
struct Scene {
    collector: Collector,
    controller: Controller,
    site: Site,
    folder: TempDir,
}

#[test]
fn one_command_makes_bare_hosts_a_fleet() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.site.boot_all()?;
    for n in 0..HOSTS {
        scene.site.let_sudo(n, true)?;
    }
    let planned = scene.deploy(&["--dry-run"])?;
    told(
        &planned,
        0,
        &["h0: would install", "h1: would install", "h2: would install"],
    )?;
    for n in 0..HOSTS {
        scene.site.ssh(
            n,
            "test -z \"$(ls -d /usr/local/bin/flowtilla* /etc/flowtilla 2>/dev/null)\"",
        )?;
    }

    let watch = Stopwatch::start();
    let output = scene.deploy(&["--wait=120s"])?;
    told(
        &output,
        0,
        &["h0: done: install", "h1: done: install", "h2: done: install"],
    )?;
    for n in 0..HOSTS {
        scene.expect_flow(n)?;
    }
    println!(
        "from bare to flows of {HOSTS} hosts in the collector: {:.1} s",
        watch.elapsed().as_secs_f32()
    );

    for n in 0..HOSTS {
        scene.site.ssh(
            n,
            "set -e; test ! -e /var/lib/flowtilla/join-token; test $(stat -c %U:%a /var/lib/flowtilla) = flowtilla:700; \
             test $(stat -c %U /proc/$(pidof flowtilla-agent)) = flowtilla",
        )?;
    }
    scene.expect_hardened(0, "flowtilla-agent")?;
    scene.expect_sound(0)?;
    scene.expect_build(0)?;
    let output = scene.ctl(&["doctor", "--host", "web"])?;
    told(
        &output,
        0,
        &[
            "op@h0: flows can be captured: ",
            "op@h2: flows can be captured: ",
            "hosts: 3 can capture, 0 cannot, 0 have not said",
        ],
    )?;

    let before = scene.services()?;
    let again = scene.deploy(&["--wait=120s"])?;
    told(
        &again,
        0,
        &[
            "h0: nothing to do",
            "h1: nothing to do",
            "h2: nothing to do",
            "nothing changes",
        ],
    )?;
    let after = scene.services()?;
    ensure!(before == after, "{before:#?} became {after:#?}");
    let mut command = scene.controller.ctl_command(&["agents", "remove", "h2"])?;
    scene.site.operator(&mut command)?;
    told(&command.output()?, 0, &["op@h2: done: removed (h2-"])?;
    scene.site.ssh(
        2,
        "set -e; test -z \"$(ls -d /usr/local/bin/flowtilla* /etc/flowtilla /var/lib/flowtilla /etc/systemd/system/flowtilla* 2>/dev/null)\"; \
         test -z \"$(id -u flowtilla 2>/dev/null)\"; test -z \"$(pgrep flowtilla-agent)\"",
    )?;
    let agents = scene.controller.agents()?;
    let states: Vec<_> = agents.iter().map(|agent| agent["state"].as_str()).collect();
    ensure!(
        states.iter().filter(|state| **state == Some("revoked")).count() == 1,
        "{agents:#?}"
    );
    scene.expect_examined()?;
    let again = scene.deploy(&["--wait=120s"])?;
    told(
        &again,
        0,
        &["h0: nothing to do", "h1: nothing to do", "h2: done: install"],
    )?;
    let groups = scene.controller.must(&["get", "hostgroups"])?;
    ensure!(
        groups.contains("h0,h1,h2") && groups.contains("role=web"),
        "{groups}"
    );
    Ok(())
}

#[test]
fn the_controller_runs_by_its_hardened_unit() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.site.boot(0)?;
    scene.site.wait_up(0)?;
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controller/flowtilla-controller.service");
    scene
        .site
        .put(0, &unit, "/etc/systemd/system/flowtilla-controller.service")?;
    scene.site.put(
        0,
        &binary("flowtilla-controller")?,
        "/usr/local/bin/flowtilla-controller",
    )?;
    // As the unit's head says.
    scene.site.ssh(
        0,
        "set -e; useradd --system --home-dir /var/lib/flowtilla-controller --shell /usr/sbin/nologin flowtilla-controller; \
         install -d -m 0700 -o flowtilla-controller /var/lib/flowtilla-controller; \
         runuser -u flowtilla-controller -- flowtilla-controller init --state /var/lib/flowtilla-controller/state; \
         systemctl enable --quiet --now flowtilla-controller",
    )?;
    let what = "a controller that answers /metrics";
    wait::until(PATIENCE, what, || {
        let asked =
            "exec 3<>/dev/tcp/127.0.0.1/7444 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && head -1 <&3";
        let said = scene
            .site
            .ssh(0, &format!("bash -c {asked:?} 2>/dev/null || true"))?;
        Ok(said.contains("200 OK").then_some(()))
    })
    .with_context(|| {
        scene
            .site
            .ssh(0, "journalctl -u flowtilla-controller -o cat -n 5")
            .unwrap_or_default()
    })?;
    scene.expect_hardened(0, "flowtilla-controller")
}

#[test]
fn a_host_that_is_down_strange_or_old_stops_no_other_and_the_next_call_does_the_rest() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    // Down, strange, old.
    for n in 1..HOSTS {
        scene.site.boot(n)?;
    }
    for n in 1..HOSTS {
        scene.site.wait_up(n)?;
    }

    let refused = scene.deploy(&["--limit", "h1"])?;
    told(
        &refused,
        1,
        &[
            "h1: FAILED at sudo: sudo: a",
            "NOPASSWD",
            "1 failed",
            "revision 1 is the newest",
        ],
    )?;
    for n in 1..HOSTS {
        scene.site.let_sudo(n, true)?;
    }
    let (older, version) = scene.older_agent()?;
    let path = older.to_string_lossy();
    let output = scene.deploy(&["--limit", "h2", "--agent-binary", &path])?;
    told(&output, 0, &[&format!("h2: done: install {version}")])?;
    let old = scene.services()?;
    scene.site.trust(1, false)?;
    let output = scene.ctl(&["doctor", "--host", "h1", "--host", "h2"])?;
    told(
        &output,
        1,
        &[
            "h1: FAILED at connect: its host key is not the known one; somebody may stand in between",
            "h2: flows can be captured: ",
            &format!("(flowtilla-agent {version})"),
            "hosts: 1 can capture, 0 cannot, 1 (op@h1) have not said",
        ],
    )?;

    let output = scene.deploy(&["--soak", "0s"])?;
    told(
        &output,
        1,
        &[
            "h0: FAILED at connect: it ",
            "h1: FAILED at connect: its host key is not the known one; somebody may stand in between",
            &format!("h2: done: upgrade {version} to {}", env!("CARGO_PKG_VERSION")),
            "hosts: 1 changed, 0 as they are to be, 2 failed",
            "is the newest",
        ],
    )?;
    scene.expect_flow(2)?;
    let upgraded = scene.services()?;
    ensure!(
        old["h2"].identity == upgraded["h2"].identity,
        "{old:#?} became {upgraded:#?}"
    );
    scene
        .site
        .ssh(2, "test -x /usr/local/bin/flowtilla-agent.previous")?;

    scene.site.boot(0)?;
    scene.site.wait_up(0)?;
    scene.site.let_sudo(0, true)?;
    scene.site.trust(1, true)?;
    let output = scene.deploy(&["--wait=120s"])?;
    told(
        &output,
        0,
        &["h0: done: install", "h1: done: install", "h2: nothing to do"],
    )?;
    for n in 0..HOSTS {
        scene.expect_flow(n)?;
    }
    let all = scene.services()?;
    ensure!(all["h2"] == upgraded["h2"], "{upgraded:#?} became {all:#?}");

    let output = scene.deploy(&["--wait=120s"])?;
    told(
        &output,
        0,
        &[
            "hosts: 0 changed, 3 as they are to be, 0 failed",
            "nothing changes",
        ],
    )?;
    let after = scene.services()?;
    ensure!(all == after, "{all:#?} became {after:#?}");

    // An operator with a former build: what is newer stays.
    let output = scene.deploy(&["--limit", "h0", "--agent-binary", &path])?;
    told(&output, 0, &["h0: nothing to do", "it has the newer version"])?;

    // A program that does not stay up: the one before is back, and the agent with it.
    let broken = scene.broken_agent()?;
    let output = scene.deploy(&[
        "--limit",
        "h0",
        "--limit",
        "h1",
        "--agent-binary",
        &broken.to_string_lossy(),
    ])?;
    told(
        &output,
        1,
        &[
            "h0: FAILED at start: the service does not stay up; the program from before is back",
            "h1: stays as it is: a wave before it went back",
            "hosts: 0 changed, 0 as they are to be, 1 failed, 1 not yet",
        ],
    )?;
    scene.expect_flow(0)?;
    let broken = scene.services()?;
    ensure!(broken["h1"] == all["h1"], "{all:#?} became {broken:#?}");
    let output = scene.deploy(&["--limit", "h0"])?;
    told(&output, 0, &["h0: nothing to do"])?;
    Ok(())
}

impl Scene {
    fn build() -> Result<Option<Self>> {
        if !need::met(&hosts::NEEDS) || !need::met(&collector::NEEDS) {
            return Ok(None);
        }
        let watch = Stopwatch::start();
        let image = match hosts::image()? {
            Ok(image) => image,
            Err(reason) => {
                need::skip(&reason);
                return Ok(None);
            }
        };
        println!("the image was there after {:.1} s", watch.elapsed().as_secs_f32());
        let site = Site::build(HOSTS, &image)?;
        let hub = Site::hub_address();
        Ok(Some(Self {
            collector: Collector::bind(Setup {
                endpoint: Some(format!("tcp://{hub}:*")),
                host: Some(&site.hub),
                ..Setup::default()
            })?,
            controller: Controller::start_on(&site.hub, hub)?,
            site,
            folder: tempfile::tempdir()?,
        }))
    }

    /// Deploys the group, the collector and a policy for the group.
    fn deploy(&self, flags: &[&str]) -> Result<Output> {
        let file = self.file(GROUP)?;
        self.ctl(&[&["deploy", "-f", &file], flags].concat())
    }

    /// A file with a group of hosts, the collector and a policy for all agents; its path. Only lag is judged: what an agent
    /// costs on a busy machine says nothing.
    fn file(&self, group: &str) -> Result<String> {
        let documents = format!(
            "apiVersion: flowtilla/v1\nkind: HostGroup\nname: web\nuser: op\n{group}\n---\n\
             apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: {}\n---\n\
             apiVersion: flowtilla/v1\nkind: Policy\nname: web\n\
             capture: {{scopes: [{{netns: /proc/1/ns/net}}]}}\nexport: {{collectors: [main]}}\n\
             rollout: {{gates: {{lag: 3s, cpuPermille: 1000000, memoryOctets: 64GiB}}}}\n",
            self.collector.endpoint()
        );
        let file = self.folder.path().join("fleet.yaml");
        std::fs::write(&file, documents)?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Runs agentctl as the operator whose ssh knows the hosts.
    fn ctl(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.controller.ctl_command(words)?;
        self.site.operator(&mut command)?;
        Ok(command.output()?)
    }

    /// Boots a host, and lets the operator's user become root there.
    fn boot(&mut self, hosts: &[u8]) -> Result<()> {
        for &n in hosts {
            self.site.boot(n)?;
        }
        for &n in hosts {
            self.site.wait_up(n)?;
            self.site.let_sudo(n, true)?;
        }
        Ok(())
    }

    /// The agent of a host, the newest of several.
    fn agent(&self, n: u8) -> Result<Value> {
        let name = format!("h{n}");
        let of = |agent: &Value| agent["host"] == *name && agent["state"] != "revoked";
        let found = self.controller.agents()?.into_iter().find(of);
        found.with_context(|| format!("no agent of {name}"))
    }

    /// Makes connections on a host, as a user of its own, until the collector has one with its process.
    fn expect_flow(&self, n: u8) -> Result<()> {
        let controller = self.controller.address();
        let line = format!(
            "runuser -u nobody -- bash -c 'exec 3<>/dev/tcp/{}/{}; echo $$'",
            controller.ip(),
            controller.port()
        );
        let ours = |record: &Elements| {
            (0..2).any(|end| address(record, end) == Some(Site::address(n)))
                && (0..2).any(|end| record.number(element::PORTS[end]) == Some(controller.port().into()))
                && record
                    .text(element::NAME)
                    .is_some_and(|name| name.ends_with("bash"))
                && record.text(element::USER) == Some("nobody")
        };
        let count = || anyhow::Ok(self.collector.flows()?.into_iter().filter(ours).count());
        let before = count()?;
        // An agent that has just started may not see the first.
        wait::until(FLOW_WITHIN, &format!("a flow of bash on h{n}"), || {
            self.site.ssh(n, &line)?;
            Ok((count()? > before).then_some(()))
        })
    }

    /// What systemd says of how much a unit leaves open.
    fn expect_hardened(&self, n: u8, unit: &str) -> Result<()> {
        let line = format!("systemd-analyze security --no-pager {unit} | tail -1");
        let said = self.site.ssh(n, &line)?;
        let number = said.split_whitespace().find_map(|word| word.parse::<f32>().ok());
        let exposure = number.with_context(|| said.clone())?;
        println!("{}", said.trim());
        ensure!(exposure <= EXPOSURE_MAX, "{said}");
        Ok(())
    }

    /// What the agent's own program says there: to root that all is well, to anybody else what to do.
    fn expect_sound(&self, n: u8) -> Result<()> {
        let told: Value = serde_json::from_str(&self.site.ssh(n, "flowtilla-agent doctor -o json")?)?;
        ensure!(told["captures"] == true, "{told:#}");
        for (check, part) in [
            ("programs", " attached in "),
            ("service", "flowtilla-agent runs (/etc/systemd/system/"),
            ("identity", "/agent/h0-"),
            ("controller", " is spiffe://"),
            ("collectors", "main at tcp://"),
        ] {
            let found = finding(&told, check)?;
            let what = found["what"].as_str().unwrap_or_default();
            ensure!(found["verdict"] == "ok" && what.contains(part), "{found}");
        }
        let line = "runuser -u nobody -- flowtilla-agent doctor -o json; test $? = 1";
        let told: Value = serde_json::from_str(&self.site.ssh(n, line)?)?;
        for check in ["capabilities", "identity"] {
            let remedy = finding(&told, check)?["remedy"].as_str();
            ensure!(
                remedy.is_some_and(|text| text.starts_with("run this as root")),
                "{told:#}"
            );
        }
        Ok(())
    }

    /// The agent tells the controller which file it is that runs there.
    fn expect_build(&self, n: u8) -> Result<()> {
        let digest = self.site.ssh(n, "sha256sum </usr/local/bin/flowtilla-agent")?;
        let agent = self.agent(n)?;
        let build = agent["build"].as_str().context("a build")?;
        ensure!(
            digest.starts_with(build) && build.len() == 64,
            "{digest}: {agent:#}"
        );
        Ok(())
    }

    /// Of all hosts of a file one object, with the findings of those that have an agent, and what to do with h2, which has none.
    fn expect_examined(&self) -> Result<()> {
        let output = self.ctl(&["doctor", "-f", &self.file(GROUP)?, "-o", "json"])?;
        told(&output, 1, &[])?;
        let all: Value = serde_json::from_slice(&output.stdout)?;
        let hosts = all["hosts"].as_array().context("hosts")?;
        ensure!(all["captures"] == false && hosts.len() == 3, "{all:#}");
        for told in &hosts[..2] {
            ensure!(
                told["captures"] == true && finding(told, "programs")?["verdict"] == "ok",
                "{told:#}"
            );
        }
        ensure!(
            hosts[2]["host"] == "op@h2"
                && hosts[2]["trouble"]["why"] == "it has no agent"
                && hosts[2]["trouble"]["remedy"] == "agentctl deploy puts one there",
            "{all:#}"
        );
        Ok(())
    }

    /// Each booted host's service.
    fn services(&self) -> Result<BTreeMap<String, Service>> {
        let mut services = BTreeMap::new();
        for n in (0..HOSTS).filter(|&n| self.site.is_booted(n)) {
            let line = "systemctl show -p MainPID -p NRestarts -p ActiveState flowtilla-agent; stat -c '%i %Y' \
                        /usr/local/bin/flowtilla-agent; sha256sum /var/lib/flowtilla/identity/current/chain.pem";
            if let Ok(said) = self.site.ssh(n, line) {
                let (state, identity) = said.trim().rsplit_once('\n').context("more lines")?;
                let service = Service {
                    state: state.to_owned(),
                    identity: identity.to_owned(),
                };
                services.insert(format!("h{n}"), service);
            }
        }
        Ok(services)
    }

    /// The agent's program, but for a file that it does not find.
    fn broken_agent(&self) -> Result<PathBuf> {
        let mut octets = std::fs::read(binary("flowtilla-agent")?)?;
        patch(
            &mut octets,
            b"/proc/sys/kernel/random/boot_id",
            b"/proc/sys/kernel/random/no_file",
        );
        let path = self.folder.path().join("broken");
        write_program(&path, &octets)?;
        Ok(path)
    }

    /// The agent's program as it would be of an earlier version; its version.
    fn older_agent(&self) -> Result<(PathBuf, &'static str)> {
        const OLDER: &str = "0.0.9";
        let mut octets = std::fs::read(binary("flowtilla-agent")?)?;
        patch(
            &mut octets,
            env!("CARGO_PKG_VERSION").as_bytes(),
            OLDER.as_bytes(),
        );
        let path = self.folder.path().join("flowtilla-agent");
        write_program(&path, &octets)?;
        Ok((path, OLDER))
    }
}

/// What does not change when nothing is done.
#[derive(Debug, PartialEq, Eq)]
struct Service {
    state: String,
    identity: String,
}

fn finding<'a>(told: &'a Value, check: &str) -> Result<&'a Value> {
    let findings = told["findings"].as_array().context("findings")?;
    let found = findings.iter().find(|finding| finding["check"] == check);
    found.with_context(|| format!("no finding of {check}: {told:#}"))
}

/// Sees that it ended with this code, and said all of this.
fn told(output: &Output, code: i32, parts: &[&str]) -> Result<()> {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.code() == Some(code),
        "{} instead of {code}\n{out}{err}",
        output.status
    );
    for part in parts {
        ensure!(out.contains(part), "{part:?} is not in\n{out}{err}");
    }
    Ok(())
}

/// Puts one text in place of another of the same length.
fn patch(octets: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut at = 0;
    while at + from.len() <= octets.len() {
        if &octets[at..at + from.len()] == from {
            octets[at..at + from.len()].copy_from_slice(to);
        }
        at += 1;
    }
}

fn write_program(path: &Path, octets: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, octets)?;
    Ok(std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

fn address(record: &Elements, end: usize) -> Option<IpAddr> {
    if let Some(text) = record.text(element::ADDRESSES[end]) {
        return text.parse().ok();
    }
    let number = record.number(element::ADDRESSES[end])?;
    Some(IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).ok()?)))
}
