//! Promise: an upgrade cannot hurt the fleet. A program that is not well goes back by itself, whoever began is not needed to end, and
//! no record is lost over any of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::fleet::binary;
use integration::process::Process;
use integration::wait::PATIENCE;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Scene, patch, told, write_program};

const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// Two programs are copied and started, and two agents join. Seconds on an idle machine.
const WATCHED_WITHIN: Duration = Duration::from_secs(300);
const OURS: &str = env!("CARGO_PKG_VERSION");

#[test]
fn an_upgrade_that_is_not_well_goes_back_and_one_that_was_broken_off_goes_on_and_nothing_is_lost()
-> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot(&[0, 1])?;
    let (older, former) = scene.older_agent()?;
    let output = scene.deploy(&["--limit", "h0", "--limit", "h1", "--agent-binary", &text(&older)])?;
    told(
        &output,
        0,
        &[&format!("h0: done: install {former}"), "h1: done: install"],
    )?;
    scene.expect_flow(0)?;
    let first = scene.services()?;
    let spool = scene.spool(0)?;

    // It runs, connects and captures, and no collector takes anything of it.
    let mute = scene.mute_agent()?;
    let output = scene.upgrade(&[
        "--waves",
        "1,100%",
        "--soak",
        "8s",
        "--agent-binary",
        &text(&mute),
    ])?;
    told(
        &output,
        1,
        &[
            "h0: WENT BACK: wave 1 of 2: ",
            "lag: a record of h0-",
            "s was to be expected, and 3.0 s more is allowed (agents: h0-",
            "h1: stays as it is: a wave before it went back",
            "h2: FAILED at connect: it ",
            "hosts: 0 changed, 0 as they are to be, 2 failed, 1 not yet",
        ],
    )?;
    let back = scene.services()?;
    ensure!(first["h1"] == back["h1"], "{first:#?} became {back:#?}");
    scene.expect_version(0, former)?;
    scene.expect_flow(0)?;

    // Whoever is asked may say no.
    let both = ["--limit", "h0", "--limit", "h1"];
    let planned = scene.upgrade(&[&both[..], &["--waves", "1,100%", "--dry-run"]].concat())?;
    let step = format!("would upgrade {former} to {OURS}");
    told(
        &planned,
        0,
        &[
            &format!("h0: {step} (wave 1 of 2)"),
            &format!("h1: {step} (wave 2 of 2)"),
        ],
    )?;
    let refused = scene.upgrade_asked(&both, "n")?;
    ensure!(
        refused.contains("go on? [y/N]") && refused.contains("nothing was changed"),
        "{refused}"
    );
    ensure!(scene.services()? == back, "{refused}");

    // The operator's machine dies while all is watched.
    scene.break_off(&[&both[..], &["--waves", "100%", "--soak", "1h"]].concat())?;
    scene.expect_version(1, OURS)?;
    let output = scene.upgrade(&[&both[..], &["--soak", "1s"]].concat())?;
    told(
        &output,
        0,
        &[
            &format!("h0: done: watch {OURS}, which is on trial (h0-"),
            &format!("h1: done: watch {OURS}, which is on trial (h1-"),
        ],
    )?;
    let after = scene.services()?;
    let output = scene.upgrade(&both)?;
    told(&output, 0, &["h0: nothing to do", "h1: nothing to do"])?;
    ensure!(
        scene.services()? == after,
        "a third call changed something: {after:#?}"
    );
    for host in ["h0", "h1"] {
        ensure!(
            first[host].identity == after[host].identity,
            "{first:#?} became {after:#?}"
        );
    }

    scene.expect_flow(0)?;
    let later = scene.spool(0)?;
    ensure!(later["nothingLost"] == true, "{later:#}");
    let newest = |told: &Value| told["newest"].as_u64().unwrap_or(0);
    ensure!(
        newest(&spool) > 0 && newest(&later) > newest(&spool),
        "{spool:#} became {later:#}"
    );
    let (_, ids) = scene.collector.messages()?;
    ensure!(ids.missing == 0, "{ids:?}");
    told(&scene.ctl(&["loss"])?, 0, &[])
}

impl Scene {
    fn upgrade(&self, flags: &[&str]) -> Result<std::process::Output> {
        let file = self.file(super::GROUP)?;
        self.ctl(&[&["agents", "upgrade", "-f", &file], flags].concat())
    }

    /// The same on a terminal, with an answer to what is asked; all that it said.
    fn upgrade_asked(&self, flags: &[&str], answer: &str) -> Result<String> {
        let file = self.file(super::GROUP)?;
        let words = [&["agents", "upgrade", "-f", &file], flags].concat();
        let mut command = self.controller.ctl_on_terminal(&words)?;
        self.site.operator(&mut command)?;
        let mut process = Process::start(command)?;
        process.write_line(answer)?;
        let ended = process.wait_end(PATIENCE)?;
        let said = process.out().all().join("\n");
        ensure!(ended.code() == Some(130), "{ended}: {said}");
        Ok(said)
    }

    /// Begins an upgrade, and kills agentctl as soon as all have the program and are watched.
    fn break_off(&self, flags: &[&str]) -> Result<()> {
        let file = self.file(super::GROUP)?;
        let words = [&["agents", "upgrade", "-f", &file], flags].concat();
        let mut command = self.controller.ctl_command(&words)?;
        self.site.operator(&mut command)?;
        // A killed process leaves its sockets.
        command.stdin(Stdio::null()).env("TMPDIR", self.folder.path());
        let mut process = Process::start(command)?;
        let err = process.err().clone();
        integration::wait::until(WATCHED_WITHIN, "a wave that is watched", || {
            let watched = err.all().iter().any(|line| line.contains("watched for 3600 s"));
            Ok(watched.then_some(()))
        })
        .with_context(|| process.last_words())?;
        process.signal(Signal::SIGKILL)?;
        process.wait_end(ENDED_WITHIN).map(drop)
    }

    /// What became of a host's records: what `loss` says of its state.
    fn spool(&self, n: u8) -> Result<Value> {
        let state = self.site.written(n, "/var/lib/flowtilla/spool");
        let output = self.ctl(&["loss", "--state", &text(&state), "-o", "json"])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&said).with_context(|| said + &String::from_utf8_lossy(&output.stderr))
    }

    pub(super) fn expect_version(&self, n: u8, version: &str) -> Result<()> {
        let said = self.site.ssh(n, "/usr/local/bin/flowtilla-agent --version")?;
        ensure!(
            said.trim() == format!("flowtilla-agent {version}"),
            "h{n}: {said}"
        );
        let agent = self.agent(n)?;
        ensure!(
            agent["version"] == *version && agent["state"] == "connected",
            "{agent:#}"
        );
        Ok(())
    }

    /// The agent's program, but for what it calls a property of ZMTP: it takes no collector for one.
    pub(super) fn mute_agent(&self) -> Result<PathBuf> {
        let mut octets = std::fs::read(binary("flowtilla-agent")?)?;
        patch(&mut octets, b"Socket-Type", b"Socket-Typo");
        let path = self.folder.path().join("mute");
        write_program(&path, &octets)?;
        Ok(path)
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
