//! Promise: an operator sees within seconds who talks, on the screen and through `agentctl tap`, without an ntopng.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::need;
use integration::process::Process;
use integration::product::{self, Agent};
use integration::scene;
use integration::traffic::{self, Helper};
use integration::wait::{self, PATIENCE, Stopwatch};
use integration::world::{Family, Place, World};
use nix::sys::signal::Signal;

/// A flow's first record is told within this of its connect.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn a_flow_is_told_within_two_seconds_of_its_connect() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    let (server, ready, to) = scene::serve(&world, Place::Wire, Family::V4, &["serve", "--style", "thread"])?;
    let watch = Stopwatch::start();
    let (client, _) = Helper::serve(&world.left, &["connect", "--to", &to, "--hold"])?;
    let record = wait::until(PATIENCE, "first record", || {
        let records = agent.records()?;
        Ok(records
            .into_iter()
            .find(|record| record.responder.port == ready.address.port()))
    })?;
    let after = watch.elapsed();
    println!("told {} ms after the client's start", after.as_millis());
    ensure!(after < TOLD_WITHIN, "told after {after:?}: {record:?}");
    ensure!(
        !record.ended && record.reason == "active-timeout",
        "it lives: {record:?}"
    );
    client.finish(PATIENCE)?;
    server.finish(PATIENCE)?;
    agent.interrupt()?.check_laws()
}

#[test]
fn tap_shows_what_an_agent_sends() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let endpoint = {
        let free = TcpListener::bind("127.0.0.1:0")?;
        format!("tcp://{}", free.local_addr()?)
    };
    let mut command = product::command()?;
    command.args(["tap", &endpoint]);
    let mut tap = Process::start(command)?;
    let agent = Agent::watching(&world.left, &["--ntopng", &endpoint])?;
    let told = scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "1"])?;
    let client = told.clients.first().context("one connection")?;
    let lines = tap.out().clone();
    let line = tap.wait_for_line(lines, PATIENCE, "flow", |line| {
        line.contains(&client.local.to_string()).then(|| line.to_owned())
    })?;
    println!("{line}");
    let program = traffic::binary();
    for part in [
        told.server.to_string(),
        program.display().to_string(),
        client.pid.to_string(),
        "root".to_owned(),
    ] {
        ensure!(line.contains(&part), "no {part} in: {line}");
    }
    agent.interrupt()?.check_laws()?;
    tap.signal(Signal::SIGINT)?;
    let status = tap.wait_end(PATIENCE)?;
    ensure!(status.success(), "tap ended with {status}: {}", tap.last_words());
    Ok(())
}
