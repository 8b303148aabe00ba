//! Promise: processes are named as they were when they used the network, and no secret leaves the host.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::cgroup::{self, Cgroup};
use integration::need::{self, Need};
use integration::product::Agent;
use integration::product::record::{End, Record};
use integration::scene::{self, TOLD_WITHIN};
use integration::traffic::{self, Helper};
use integration::wait::PATIENCE;
use integration::world::{Family, Place, World};

/// Text that must never be told.
const CANARY: &str = "c4n4ry-0123456789";
/// User id of `nobody` on Debian.
const NOBODY: u32 = 65_534;
/// A container id as runtimes make them.
const CONTAINER: &str = "5d1a1d1e0a7b4c9f8e2d3c4b5a69788796a5b4c3d2e1f0011223344556677889";

#[test]
fn secrets_in_command_lines_are_not_told() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let (server, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let mut ports = Vec::new();
    for words in [
        &["--password", CANARY][..],
        &[&format!("--token={CANARY}")],
        &[&format!("https://user:{CANARY}@host/path")],
        &[&format!("-p{CANARY}")],
        &[&format!("API_KEY={CANARY}")],
        &[&format!("Authorization: Bearer {CANARY}")],
    ] {
        ports.push(connect_with(&world, &to, words)?);
    }
    server.finish(PATIENCE)?;
    for port in ports {
        let end = initiator_at(&agent, port)?;
        ensure!(
            !end.command_line().is_empty(),
            "a redacted command line is not an absent one: {end:?}"
        );
        ensure!(!format!("{end:?}").contains(CANARY), "{end:?}");
    }
    let ended = agent.interrupt()?;
    let told = format!("{:?} {:?}", ended.records, ended.words);
    ensure!(!told.contains(CANARY), "a secret was told");
    Ok(())
}

#[test]
fn command_lines_are_told_as_the_policy_says() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let (server, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    for (how, told) in [("none", false), ("full", true)] {
        let agent = Agent::watching(&world.left, &["--command-line", how])?;
        let port = connect_with(&world, &to, &[&format!("--token={CANARY}")])?;
        let end = initiator_at(&agent, port)?;
        ensure!(end.command_line().contains(CANARY) == told, "{how}: {end:?}");
        ensure!(end.executable().ends_with("/traffic"), "{how}: {end:?}");
        agent.interrupt()?.check_laws()?;
    }
    server.finish(PATIENCE).map(drop)
}

#[test]
fn user_group_and_parent_are_named() -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[Need::Program("setpriv", "util-linux")]) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let (server, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let folder = tempfile::tempdir()?;
    let program = traffic::copy_for_everyone(folder.path(), "traffic")?;
    // Only after the namespace is entered: that takes root. setpriv executes the helper in its own place.
    let mut command = world.left.command("setpriv");
    let nobody = NOBODY.to_string();
    command
        .args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"])
        .arg(program)
        .args(["once", &to, "as-nobody"]);
    let flows = traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?);
    server.finish(PATIENCE)?;
    let end = initiator_at(&agent, flows[0].local.port())?;
    let process = end.process.as_ref().context("a process")?;
    ensure!((process.uid, process.gid) == (NOBODY, NOBODY), "{process:?}");
    let names = end.names.as_ref().context("names")?;
    ensure!(names.user.as_deref() == Some("nobody"), "{names:?}");
    ensure!(names.group.as_deref() == Some("nogroup"), "{names:?}");
    let parent = names.parent.as_ref().context("a parent")?;
    ensure!(parent.pid == std::process::id(), "{parent:?} is not this test");
    let me = std::env::current_exe()?;
    ensure!(
        Path::new(&parent.executable) == me,
        "{parent:?} is not {}",
        me.display()
    );
    agent.interrupt()?.check_laws()
}

#[test]
fn containers_are_known_by_their_cgroup() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let Some(root) = cgroup::root()? else {
        need::skip("no cgroup2 file system is mounted");
        return Ok(());
    };
    let world = World::build()?;
    let (server, _, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    // One made before the agent, the others after: both ways of learning a path.
    let before = Cgroup::make(
        &root,
        &format!("docker-before-{}", std::process::id()),
        &format!("docker-{CONTAINER}.scope"),
    )?;
    let agent = Agent::watching(&world.left, &[])?;
    let mut wanted = vec![(in_cgroup(&world, &before, &to)?, "docker")];
    let mut made = Vec::new();
    for (runtime, folder) in [
        ("docker", format!("docker-{CONTAINER}.scope")),
        ("containerd", format!("cri-containerd-{CONTAINER}.scope")),
        ("cri-o", format!("crio-{CONTAINER}.scope")),
        ("podman", format!("libpod-{CONTAINER}.scope")),
    ] {
        let group = Cgroup::make(&root, &format!("{runtime}-{}", std::process::id()), &folder)?;
        wanted.push((in_cgroup(&world, &group, &to)?, runtime));
        made.push(group);
    }
    server.finish(PATIENCE)?;
    for (port, runtime) in wanted {
        let end = initiator_at(&agent, port)?;
        let container = end.names.as_ref().and_then(|names| names.container.as_ref());
        let container = container.with_context(|| format!("no container for {runtime}: {end:?}"))?;
        ensure!(
            container.id == CONTAINER && container.runtime == runtime,
            "{runtime}: {container:?}"
        );
    }
    agent.interrupt()?.check_laws()
}

/// Connects once, with more words on the command line; the port.
fn connect_with(world: &World, to: &str, words: &[&str]) -> Result<u16> {
    // `--` ends the helper's own flags; it ignores what follows the tag.
    let plan = [&["connect", "--to", to, "--tag", "canary", "--"], words].concat();
    let flows = traffic::flows(&traffic::run(&world.left, PATIENCE, &plan)?);
    Ok(flows[0].local.port())
}

/// The initiator of the flow from `port`, once it has ended.
fn initiator_at(agent: &Agent, port: u16) -> Result<End> {
    let mut flows = agent.wait_for_ended(TOLD_WITHIN, 1, |flow| flow.first().initiator.port == port)?;
    let record: &Record = flows[0].last();
    let end = record.initiator.clone();
    flows.clear();
    Ok(end)
}

/// Connects once out of a cgroup; the port.
fn in_cgroup(world: &World, group: &Cgroup, to: &str) -> Result<u16> {
    let mut command = world.left.command(traffic::binary());
    command.args(["once", to, "contained"]);
    group.take_in(&mut command)?;
    let flows = traffic::flows(&Helper::start_command(command)?.wait(PATIENCE)?);
    Ok(flows[0].local.port())
}
