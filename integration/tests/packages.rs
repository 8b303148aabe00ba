//! Promise: the Debian packages make a host an agent that says what it needs, keeps what it has through upgrade and removal, and
//! never stands beside one that `agentctl deploy` brought.
//!
//! The packages are made of the built programs, debug build or not, and installed with dpkg on a host with systemd
//! ([`integration::hosts`]).

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};
use integration::collector::{self, Collector, Setup};
use integration::fleet::{Controller, binary};
use integration::hosts::{self, Site};
use integration::need::{self, Need};
use integration::package::{self, Linked, PACKAGES};
use integration::process::built_folder;
use integration::wait::{self, PATIENCE, Stopwatch};
use serde_json::Value;
use tempfile::TempDir;

/// What making packages needs.
const NEEDS: [Need; 3] = [
    Need::Program("dpkg-shlibdeps", "dpkg-dev"),
    Need::Program("strip", "binutils"),
    Need::Program("gzip", "gzip"),
];
/// Element numbers of ntopng's flow records. Source: ntopng `ZMQParserInterface.cpp`.
const PROCESS_NAME: u32 = 57641;
const SERVICE: &str = "flowtilla-agent";

/// The packages: all three, and the agent's with the next revision.
struct Packages {
    first: Vec<PathBuf>,
    next_agent: PathBuf,
}

struct Scene {
    collector: Collector,
    controller: Controller,
    site: Site,
    folder: TempDir,
    packages: &'static Packages,
    watch: Stopwatch,
}

#[test]
fn a_package_says_what_its_agent_needs_and_keeps_what_it_has_through_upgrade_and_removal() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot()?;
    for package in &scene.packages.first {
        scene.bring(package)?;
    }
    scene.host("dpkg -i /root/*.deb")?;
    scene.note("installed");
    scene.expect_laid_out()?;
    scene.expect_at_rest(SERVICE, "FLOWTILLA_CONTROLLER=HOST[:PORT]")?;
    scene.expect_at_rest("flowtilla-controller", "flowtilla-controller init --state")?;
    let states = scene.host(
        "systemctl is-enabled flowtilla-agent flowtilla-controller; systemctl is-system-running || true",
    )?;
    ensure!(states == "enabled\nenabled\nrunning\n", "{states}");

    scene.enrol()?;
    scene.note("enrolled");
    let held = "its policy in force";
    wait::until(PATIENCE, held, || {
        Ok(scene
            .host("test -e /var/lib/flowtilla/held")
            .is_ok()
            .then_some(()))
    })?;
    scene.expect_journal_with_levels()?;
    let doctor = scene.doctor()?;
    for (check, part) in [
        ("service", "flowtilla-agent runs (/"),
        ("identity", "spiffe://fleet.test/agent/h0-"),
        ("controller", " is spiffe://fleet.test/controller/"),
        ("collectors", "main at tcp://"),
        ("programs", " attached in "),
    ] {
        let found = finding(&doctor, check)?;
        let what = found["what"].as_str().unwrap_or_default();
        ensure!(
            found["verdict"] == "ok" && what.contains(part),
            "{check}: {found}"
        );
    }

    let before = scene.kept()?;
    scene.bring(&scene.packages.next_agent)?;
    scene.host("dpkg -i /root/flowtilla-agent_*-2_*.deb")?;
    let version = scene.host("dpkg-query -W -f '${Version}' flowtilla-agent")?;
    ensure!(version.ends_with("-2"), "{version}");
    let after = scene.kept()?;
    ensure!(
        before.process != after.process,
        "it was not started again: {after:?}"
    );
    ensure!(before.identity == after.identity, "{before:?} became {after:?}");
    ensure!(after.newest >= before.newest, "{before:?} became {after:?}");
    scene.expect_flow()?;
    scene.host("agentctl loss --state /var/lib/flowtilla")?;
    scene.note("upgraded");

    scene.host("dpkg -r flowtilla-agent")?;
    let removed = scene.host(
        "pgrep -x flowtilla-agent || true; ls /usr/bin/flowtilla-agent 2>/dev/null || true; \
         ls /var/lib/flowtilla/identity/current/chain.pem /etc/flowtilla/agent.env",
    )?;
    ensure!(
        removed == "/etc/flowtilla/agent.env\n/var/lib/flowtilla/identity/current/chain.pem\n",
        "{removed}"
    );
    scene.host("dpkg -i /root/flowtilla-agent_*-2_*.deb")?;
    let back = scene.kept()?;
    ensure!(back.identity == before.identity, "{before:?} became {back:?}");
    ensure!(back.newest >= after.newest, "{after:?} became {back:?}");

    scene.note("removed, and back");
    scene.expect_controller_of_package()?;
    scene.host("dpkg -P flowtilla-agent flowtilla-controller agentctl")?;
    let left = scene.host(
        "ls -d /var/lib/flowtilla* /etc/flowtilla* /usr/bin/flowtilla* /usr/bin/agentctl /usr/lib/systemd/system/flowtilla* \
         /etc/systemd/system/*/flowtilla* /etc/systemd/system/flowtilla* 2>/dev/null || true; pgrep flowtilla || true",
    )?;
    ensure!(left.is_empty(), "purged, and left: {left}");
    scene.note("purged");
    Ok(())
}

#[test]
fn deploy_and_package_make_one_agent_of_a_host_whichever_came_first() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot()?;
    scene.site.let_sudo(0, true)?;
    scene.bring(&scene.packages.first[0])?;

    scene.host("dpkg -i /root/flowtilla-agent_*-1_*.deb")?;
    let output = scene.deploy(&["deploy", "-f", "FILE"])?;
    told(
        &output,
        0,
        &[
            "of the Debian package 0.1.0-1",
            "h0: done: change its settings, enrol it",
        ],
    )?;
    let packaged = scene.expect_one_agent("/usr/bin/flowtilla-agent")?;
    let again = scene.deploy(&["deploy", "-f", "FILE"])?;
    told(&again, 0, &["h0: nothing to do"])?;
    ensure!(
        packaged == scene.expect_one_agent("/usr/bin/flowtilla-agent")?,
        "it was started again"
    );
    told(
        &scene.deploy(&["agents", "remove", "h0"])?,
        0,
        &["done: removed (h0-"],
    )?;
    let left = scene.host("dpkg-query -W -f '${db:Status-Status}' flowtilla-agent || true; pgrep flowtilla || true; ls /var/lib")?;
    ensure!(
        !left.contains("installed") && !left.contains("flowtilla"),
        "{left}"
    );

    told(
        &scene.deploy(&["deploy", "-f", "FILE"])?,
        0,
        &["h0: done: install"],
    )?;
    scene.note("deployed to the bare host");
    scene.expect_one_agent("/usr/local/bin/flowtilla-agent")?;
    let deployed = scene.kept_identity()?;
    let said = scene.host("dpkg -i /root/flowtilla-agent_*-1_*.deb")?;
    ensure!(
        said.contains("takes the place of the agent that agentctl deploy brought"),
        "{said}"
    );
    let process = scene.expect_one_agent("/usr/bin/flowtilla-agent")?;
    ensure!(deployed == scene.kept_identity()?, "it has another identity");
    scene.host(
        "test ! -e /usr/local/bin/flowtilla-agent -a ! -e /etc/systemd/system/flowtilla-agent.service",
    )?;
    scene.expect_flow()?;
    let output = scene.deploy(&["deploy", "-f", "FILE"])?;
    told(&output, 0, &["h0: nothing to do"])?;
    ensure!(
        process == scene.expect_one_agent("/usr/bin/flowtilla-agent")?,
        "it was started again"
    );

    scene.note("the package has taken its place");
    // Removed, not purged; then deploy; then purged: what deploy brought since is not the package's to take.
    scene.host("dpkg -r flowtilla-agent")?;
    told(
        &scene.deploy(&["deploy", "-f", "FILE"])?,
        0,
        &["h0: done: install"],
    )?;
    let process = scene.expect_one_agent("/usr/local/bin/flowtilla-agent")?;
    scene.host("dpkg -P flowtilla-agent")?;
    ensure!(
        process == scene.expect_one_agent("/usr/local/bin/flowtilla-agent")?,
        "it was started again"
    );
    ensure!(deployed == scene.kept_identity()?, "it has another identity");
    let output = scene.deploy(&["deploy", "-f", "FILE"])?;
    scene.note("deployed, and the package purged");
    told(&output, 0, &["h0: nothing to do"])
}

/// What an upgrade must not touch, and the process, which it must.
#[derive(Debug)]
struct Kept {
    process: String,
    identity: String,
    /// Last number of a record that the spool gave.
    newest: u64,
}

impl Scene {
    fn build() -> Result<Option<Self>> {
        if ![&hosts::NEEDS[..], &collector::NEEDS, &NEEDS]
            .iter()
            .all(|needs| need::met(needs))
        {
            return Ok(None);
        }
        let image = match hosts::image()? {
            Ok(image) => image,
            Err(reason) => {
                need::skip(&reason);
                return Ok(None);
            }
        };
        let watch = Stopwatch::start();
        let packages = packages()?;
        println!(
            "the packages were there after {:.1} s",
            watch.elapsed().as_secs_f32()
        );
        let site = Site::build(1, &image)?;
        let watch = Stopwatch::start();
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
            packages,
            watch,
        }))
    }

    fn boot(&mut self) -> Result<()> {
        self.site.boot_all()?;
        self.note("the host is up");
        Ok(())
    }

    /// A shell's line on the host, as root.
    fn host(&self, line: &str) -> Result<String> {
        self.site.ssh(0, line)
    }

    fn bring(&self, package: &Path) -> Result<()> {
        let name = package
            .file_name()
            .context("a package has a name")?
            .to_string_lossy();
        self.site.put(0, package, &format!("/root/{name}"))
    }

    /// Runs agentctl as an operator who reaches the host by ssh. `FILE`: collector, policy, and the host's group.
    fn deploy(&self, words: &[&str]) -> Result<Output> {
        let file = self.write_documents(true)?;
        let words: Vec<&str> = words
            .iter()
            .map(|&word| if word == "FILE" { file.as_str() } else { word })
            .collect();
        let mut command = self.controller.ctl_command(&words)?;
        self.site.operator(&mut command)?;
        Ok(command.output()?)
    }

    fn write_documents(&self, with_group: bool) -> Result<String> {
        let file = self.folder.path().join("fleet.yaml");
        std::fs::write(&file, self.documents(with_group))?;
        Ok(file.to_string_lossy().into_owned())
    }

    fn documents(&self, with_group: bool) -> String {
        let group = match with_group {
            true => {
                "apiVersion: flowtilla/v1\nkind: HostGroup\nname: web\nlabels: {role: web}\nhosts: [h0]\nuser: op\n---\n"
            }
            false => "",
        };
        format!(
            "{group}apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: {}\n---\n\
             apiVersion: flowtilla/v1\nkind: Policy\nname: web\nselector: {{labels: {{role: web}}}}\n\
             capture: {{scopes: [{{netns: /proc/1/ns/net}}]}}\nexport: {{collectors: [main]}}\n",
            self.collector.endpoint()
        )
    }

    /// As the journal of an agent that is not set up says it.
    fn enrol(&self) -> Result<()> {
        let file = self.write_documents(false)?;
        self.controller.must(&["deploy", "-f", &file])?;
        let token = self.folder.path().join("token");
        let path = token.to_string_lossy();
        self.controller
            .must(&["token", "create", "--label", "role=web", "--token-file", &path])?;
        self.site.put(0, &token, "/root/token")?;
        self.host(&format!(
            "set -e; echo FLOWTILLA_CONTROLLER={} > /etc/flowtilla/agent.env; systemctl restart flowtilla-agent",
            self.controller.address()
        ))?;
        let awaits = || {
            Ok(self
                .journal(SERVICE)
                .contains("this agent is not enrolled")
                .then_some(()))
        };
        wait::until(PATIENCE, "an agent that asks for a token", awaits)?;
        // It is looked for: no second start.
        self.host(
            "install -m 0600 -o flowtilla -g flowtilla /root/token /var/lib/flowtilla/join-token.new && \
             mv /var/lib/flowtilla/join-token.new /var/lib/flowtilla/join-token",
        )?;
        let enrolled = || {
            let agents = self.controller.agents()?;
            Ok(agents
                .iter()
                .any(|agent| agent["state"] == "connected")
                .then_some(()))
        };
        wait::until(PATIENCE, "an agent that is connected", enrolled).with_context(|| self.journal(SERVICE))
    }

    /// Programs, pages of the manual, completions, unit, user and settings are in their places, and the programs run.
    fn expect_laid_out(&self) -> Result<()> {
        self.host(
            "set -e; flowtilla-agent --version; flowtilla-controller --version; agentctl --version; \
             for page in man8/flowtilla-agent man8/flowtilla-agent-run man8/flowtilla-controller man1/agentctl man1/agentctl-deploy; do \
             zcat /usr/share/man/$page.[18].gz | grep -q '^[.]SH DESCRIPTION'; done; \
             for name in flowtilla-agent flowtilla-controller agentctl; do \
             bash -n /usr/share/bash-completion/completions/$name; \
             grep -q \"^#compdef $name\" /usr/share/zsh/vendor-completions/_$name; \
             grep -q \"complete -c $name\" /usr/share/fish/vendor_completions.d/$name.fish; \
             test -s /usr/share/doc/$name/copyright -a -s /usr/share/doc/$name/changelog.Debian.gz; \
             zcat /usr/share/doc/$name/third-party-notices.gz | grep -q '^ring [0-9.]*: Apache-2.0 AND ISC .*[0-9]'; done; \
             test -f /etc/flowtilla/agent.env; getent passwd flowtilla flowtilla-controller; \
             cmp /usr/bin/flowtilla-agent /usr/lib/flowtilla/flowtilla-agent",
        )
        .map(drop)
    }

    /// A service that nobody has set up has ended once, without failing, and said what is to be done.
    fn expect_at_rest(&self, service: &str, part: &str) -> Result<()> {
        let shown = "systemctl show -p ActiveState -p NRestarts -p ExecMainStatus";
        let at_rest = || {
            let state = self.host(&format!("{shown} {service}"))?;
            Ok(state.contains("ExecMainStatus=78").then_some(state))
        };
        let state = wait::until(PATIENCE, "a service that has ended", at_rest)?;
        ensure!(
            state.contains("ActiveState=inactive") && state.contains("NRestarts=0"),
            "{state}"
        );
        let said = self.host(&format!("journalctl -u {service} -p err -o cat --no-pager"))?;
        ensure!(said.contains(part), "its errors in the journal: {said}");
        Ok(())
    }

    /// Messages carry no time of their own, no level in words and no mark of one; the journal knows their levels.
    fn expect_journal_with_levels(&self) -> Result<()> {
        let said = self.host("journalctl -u flowtilla-agent -o json --no-pager _COMM=flowtilla-agent")?;
        let mut priorities = Vec::new();
        for line in said.lines() {
            let entry: Value = serde_json::from_str(line)?;
            let message = entry["MESSAGE"].as_str().context("text")?;
            ensure!(
                !message.starts_with(|c: char| c.is_ascii_digit() || c == '<' || c == ' '),
                "{message}"
            );
            priorities.push(entry["PRIORITY"].as_str().context("a priority")?.to_owned());
        }
        ensure!(
            ["3", "6"]
                .iter()
                .all(|level| priorities.iter().any(|it| it == level)),
            "{said}"
        );
        Ok(())
    }

    fn doctor(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.host("agentctl doctor -o json")?)?)
    }

    /// Makes connections on the host until the collector has one more with its process.
    fn expect_flow(&self) -> Result<()> {
        let controller = self.controller.address();
        let line = format!(
            "bash -c 'exec 3<>/dev/tcp/{}/{}'",
            controller.ip(),
            controller.port()
        );
        let count = || {
            let flows = self.collector.flows()?;
            let named = |name: Option<&str>| name.is_some_and(|name| name.ends_with("bash"));
            anyhow::Ok(flows.iter().filter(|flow| named(flow.text(PROCESS_NAME))).count())
        };
        let before = count()?;
        let more = || {
            self.host(&line)?;
            Ok((count()? > before).then_some(()))
        };
        wait::until(PATIENCE, "a flow of bash", more).with_context(|| self.journal(SERVICE))
    }

    /// How long it has taken so far, builds and waiting for other tests left out.
    fn note(&self, what: &str) {
        println!("{:5.1} s: {what}", self.watch.elapsed().as_secs_f32());
    }

    fn journal(&self, service: &str) -> String {
        let line = format!("journalctl -u {service} -o cat -n 20 --no-pager");
        self.host(&line).unwrap_or_default()
    }

    fn kept(&self) -> Result<Kept> {
        let account = self.host("agentctl loss --state /var/lib/flowtilla -o json || true")?;
        let account: Value = serde_json::from_str(&account).with_context(|| account.clone())?;
        Ok(Kept {
            process: self.process()?,
            identity: self.kept_identity()?,
            newest: account["newest"].as_u64().context("a number")?,
        })
    }

    fn process(&self) -> Result<String> {
        self.host("systemctl show -p MainPID --value flowtilla-agent")
    }

    fn kept_identity(&self) -> Result<String> {
        self.host("sha256sum < /var/lib/flowtilla/identity/current/key.pem")
    }

    /// One process of the agent, that of the service, runs this program.
    fn expect_one_agent(&self, program: &str) -> Result<String> {
        let process = self.process()?;
        let all = self.host("pgrep -x flowtilla-agent")?;
        ensure!(all == process, "the service's is {process}, and there are {all}");
        let runs = self.host(&format!("readlink /proc/{}/exe", process.trim()))?;
        ensure!(runs.trim() == program, "{runs}");
        ensure!(
            self.host("systemctl is-enabled flowtilla-agent")?.trim() == "enabled",
            "it is not enabled"
        );
        Ok(process)
    }

    /// The controller's package does as its journal says.
    fn expect_controller_of_package(&self) -> Result<()> {
        self.host(
            "runuser -u flowtilla-controller -- flowtilla-controller init --state /var/lib/flowtilla-controller/state >/dev/null && \
             systemctl restart flowtilla-controller",
        )?;
        let up = || {
            let said = self.host("journalctl -u flowtilla-controller -o cat --no-pager")?;
            Ok(said.contains("the controller listens").then_some(()))
        };
        wait::until(PATIENCE, "a controller that listens", up)
    }
}

/// Makes the packages once for all tests.
fn packages() -> Result<&'static Packages> {
    static MADE: OnceLock<Result<Packages, String>> = OnceLock::new();
    let made = MADE.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|why| anyhow!("{why}"))
}

fn make() -> Result<Packages> {
    let built = built_folder();
    let folder = built.parent().context("the target folder")?.join("test-packages");
    let maker = binary("integration")?;
    let laid = package::lay_out(&built, &folder, &[])?;
    let out = folder.join("out");
    let make = |name, revision| laid.make(&maker, name, &out, revision, Linked::NativeForTest);
    Ok(Packages {
        first: PACKAGES
            .iter()
            .map(|name| make(name, "1"))
            .collect::<Result<_>>()?,
        next_agent: make(SERVICE, "2")?,
    })
}

fn finding<'a>(doctor: &'a Value, check: &str) -> Result<&'a Value> {
    let findings = doctor["findings"].as_array().context("findings")?;
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .with_context(|| format!("no finding of {check}: {doctor}"))
}

/// Sees that it ended with this code, and said all of this.
fn told(output: &Output, code: i32, parts: &[&str]) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.code() == Some(code),
        "{} instead of {code}\n{said}",
        output.status
    );
    for part in parts {
        ensure!(said.contains(part), "{part:?} is not in\n{said}");
    }
    Ok(())
}
