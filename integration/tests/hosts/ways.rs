//! Promise: a group says how its hosts are reached, what their agents are called, and what they may do; and a change of that is all
//! that the next call does.

use anyhow::{Result, ensure};

use super::{Scene, told};

#[test]
fn a_host_behind_another_is_deployed_and_takes_other_labels_and_access_to_runtimes() -> Result<()> {
    let Some(mut scene) = Scene::build()? else {
        return Ok(());
    };
    scene.boot(&[0, 1])?;
    let output = scene.deploy_group("labels: {role: web}\nhosts: [h0]\njump: op@h1", &["--wait=120s"])?;
    told(&output, 0, &["h0: done: install"])?;
    let seen = scene.site.ssh(
        0,
        "journalctl -u ssh -o cat | grep 'Accepted publickey for op from'",
    )?;
    ensure!(
        seen.lines().all(|line| line.contains("from 10.79.0.12 ")) && !seen.is_empty(),
        "not every connection came from h1: {seen}"
    );
    let first = scene.agent(0)?;

    let output = scene.deploy_group("labels: {role: db}\nhosts: [h0]", &["--wait=120s"])?;
    told(&output, 0, &["h0: done: enrol it anew, with other labels"])?;
    let relabelled = scene.agent(0)?;
    ensure!(
        relabelled["labels"]["role"] == "db" && relabelled["id"] != first["id"],
        "{relabelled:#}"
    );
    let states: Vec<String> = (scene.controller.agents()?.iter())
        .map(|agent| format!("{}: {}", agent["id"], agent["state"]))
        .collect();
    ensure!(
        states.contains(&format!("{}: \"revoked\"", first["id"])),
        "{states:?}"
    );

    let with = "labels: {role: db}\nhosts: [h0]\nruntimes: [docker, containerd]";
    let output = scene.deploy_group(with, &[])?;
    told(
        &output,
        1,
        &["h0: FAILED at check: the host has no group docker; install docker there, or take docker out"],
    )?;
    scene.site.ssh(0, "groupadd --gid 4711 docker")?;
    let output = scene.deploy_group(with, &["--dry-run"])?;
    told(&output, 0, &["h0: would let it use runtimes' sockets"])?;
    let output = scene.deploy_group(with, &[])?;
    told(&output, 0, &["h0: done: let it use runtimes' sockets"])?;
    ensure!(scene.groups()? == ["0", "4711"], "{:?}", scene.groups()?);
    let output = scene.deploy_group(with, &[])?;
    told(&output, 0, &["h0: nothing to do"])?;

    let output = scene.deploy_group("labels: {role: db}\nhosts: [h0]", &[])?;
    told(
        &output,
        0,
        &["h0: done: let it use no runtimes' sockets any more"],
    )?;
    ensure!(scene.groups()?.is_empty(), "{:?}", scene.groups()?);
    scene.expect_flow(0)
}

impl Scene {
    fn deploy_group(&self, group: &str, flags: &[&str]) -> Result<std::process::Output> {
        let file = self.file(group)?;
        self.ctl(&[&["deploy", "-f", &file], flags].concat())
    }

    /// Groups of the agent's process beside its own.
    fn groups(&self) -> Result<Vec<String>> {
        let line = "id -g flowtilla; sed -n 's/^Groups://p' /proc/$(pidof flowtilla-agent)/status";
        let said = self.site.ssh(0, line)?;
        let mut words = said.split_whitespace();
        let own = words.next().unwrap_or_default();
        Ok(words.filter(|group| *group != own).map(str::to_owned).collect())
    }
}
