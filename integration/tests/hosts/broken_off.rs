//! Promise: what breaks under an upgrade is no verdict. A host whose ssh broke off is tried again, counts as one of its wave, and
//! goes back with it; a controller that restarts is waited for.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::hosts::Site;
use integration::process::Process;
use integration::wait;

use super::{Scene, told, write_program};

/// An upgrade of one host takes seconds, and a minute when the controller restarts meanwhile.
const ENDED_WITHIN: Duration = Duration::from_secs(400);
const OURS: &str = env!("CARGO_PKG_VERSION");

#[test]
fn an_upgrade_under_which_ssh_or_the_controller_breaks_off_is_judged_and_goes_back_or_goes_on() -> Result<()>
{
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot(&[0])?;
    let (older, former) = scene.older_agent()?;
    let output = scene.deploy(&["--limit", "h0", "--agent-binary", &older.to_string_lossy()])?;
    told(&output, 0, &[&format!("h0: done: install {former}")])?;
    scene.expect_flow(0)?;
    let broken = scene.ssh_that_breaks()?;

    // The host has its program and is not reached: its agent is heard of, and is not well.
    let mute = scene.mute_agent()?;
    broken.breaks(2)?;
    let flags = ["--soak", "8s", "--patience", "1s", "--agent-binary"];
    let output = scene
        .upgrade_by(&broken, &[&flags[..], &[&mute.to_string_lossy()]].concat())?
        .output()?;
    told(
        &output,
        1,
        &["h0: WENT BACK: wave 1 of 1: ", "lag: a record of h0-"],
    )?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("h0: not known whether it has its program: "),
        "{said}"
    );
    scene.expect_version(0, former)?;
    scene.expect_flow(0)?;

    // The controller restarts when it is asked what the agent was like before, and again while the agent restarts, whose install
    // breaks off once.
    broken.breaks(1)?;
    let mut process = Process::start(scene.upgrade_asked_by(&broken, &["--soak", "1s"])?)?;
    let lines = process.out().clone();
    let says = |what: &str| {
        wait::until(ENDED_WITHIN, what, || {
            let said = lines.all().iter().any(|line| line.contains(what));
            Ok(said.then_some(()))
        })
    };
    says(&format!("h0: upgrade {former} to {OURS}")).with_context(|| process.last_words())?;
    scene.controller.kill()?;
    let listener = scene.deaf_controller()?;
    process.write_line("y")?;
    expect_asked(&listener).with_context(|| process.last_words())?;
    drop(listener);
    scene.controller.come_back()?;
    says("h0: tries again: connect: ").with_context(|| process.last_words())?;
    scene.controller.kill()?;
    scene.controller.come_back()?;
    let ended = process.wait_end(ENDED_WITHIN)?;
    let out = process.out().all().join("\n");
    ensure!(ended.success(), "{ended}: {out}");
    ensure!(
        out.contains(&format!("h0: done: upgrade {former} to {OURS}")),
        "{out}"
    );
    scene.expect_version(0, OURS)?;
    scene.expect_flow(0)?;
    told(
        &scene.upgrade_by(&broken, &[])?.output()?,
        0,
        &["h0: nothing to do"],
    )
}

/// Waits until the operator has called the controller that is away.
fn expect_asked(listener: &TcpListener) -> Result<()> {
    wait::until(ENDED_WITHIN, "a call of the operator's", || {
        match listener.accept() {
            // Agents call it, too.
            Ok((_, from)) => Ok((from.ip() == Site::hub_address()).then_some(())),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}

/// An `ssh` that breaks off under installs.
struct Broken {
    folder: PathBuf,
}

impl Broken {
    /// The next install goes to its end on the host, and whoever began it hears that the connection broke; `calls` in all are
    /// broken off or do not connect.
    fn breaks(&self, calls: u32) -> Result<()> {
        Ok(std::fs::write(self.folder.join("calls"), calls.to_string())?)
    }
}

impl Scene {
    /// In the place of a controller that is away: takes calls, and says nothing.
    fn deaf_controller(&self) -> Result<TcpListener> {
        let address = self.controller.address();
        let bound = self.site.hub.enter(|| Ok(TcpListener::bind(address)?))?;
        bound.set_nonblocking(true)?;
        Ok(bound)
    }

    fn ssh_that_breaks(&self) -> Result<Broken> {
        let folder = self.folder.path().join("breaks");
        std::fs::create_dir(&folder)?;
        let script = r#"#!/bin/sh
here=${0%/*}
PATH=${PATH#*:}
left=$(cat "$here/calls")
case $* in *" install "*) ;; *) exec ssh "$@" ;; esac
[ "$left" -gt 0 ] || exec ssh "$@"
echo $((left - 1)) >"$here/calls"
if [ -e "$here/begun" ]; then
    rm "$here/begun"
    echo 'ssh: connect to host h0 port 22: Connection timed out' >&2
    exit 255
fi
[ "$left" = 1 ] || : >"$here/begun"
ssh "$@" >"$here/out" 2>&1
echo 'Connection to h0 closed by remote host.' >&2
exit 255
"#;
        write_program(&folder.join("ssh"), script.as_bytes())?;
        let broken = Broken { folder };
        broken.breaks(0)?;
        Ok(broken)
    }

    fn upgrade_by(&self, broken: &Broken, flags: &[&str]) -> Result<Command> {
        let file = self.file(super::GROUP)?;
        let words = [&["agents", "upgrade", "-f", &file, "--limit", "h0"], flags].concat();
        self.by(broken, self.controller.ctl_command(&words)?)
    }

    /// The same on a terminal, where somebody is asked; all that it says is on its standard output.
    fn upgrade_asked_by(&self, broken: &Broken, flags: &[&str]) -> Result<Command> {
        let file = self.file(super::GROUP)?;
        let words = [&["agents", "upgrade", "-f", &file, "--limit", "h0"], flags].concat();
        self.by(broken, self.controller.ctl_on_terminal(&words)?)
    }

    fn by(&self, broken: &Broken, mut command: Command) -> Result<Command> {
        self.site.operator(&mut command)?;
        let path = command.get_envs().find(|(name, _)| *name == "PATH");
        let path = path
            .and_then(|(_, path)| path)
            .context("the site's PATH")?
            .to_owned();
        let all = std::iter::once(broken.folder.clone()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(all)?);
        Ok(command)
    }
}
