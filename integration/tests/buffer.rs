//! Promise: what waits on disk can be seen, checked and sent by hand, while the agent runs and after it was killed.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::need;
use integration::process::Process;
use integration::product::{self, Agent};
use integration::scene;
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, World};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Connections of the test: each is a record at least.
const CONNECTIONS: &str = "200";

#[test]
fn the_buffer_is_seen_checked_and_sent_by_hand() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().to_str().context("a folder with a plain name")?;
    // Nobody listens there: all of it waits.
    let agent = Agent::watching(&world.left, &["--ntopng", "tcp://127.0.0.1:9", "--state", state])?;
    scene::tcp(
        &world,
        Place::Wire,
        Family::V4,
        "thread",
        &["--count", CONNECTIONS],
    )?;
    wait::until_true(PATIENCE, "records on disk", || {
        said(&["buffer", "inspect", "-o", "json", state], 0)
            .and_then(|json| Ok(serde_json::from_str::<Value>(&json)?))
            .is_ok_and(|told| told["newest"].as_u64() >= CONNECTIONS.parse().ok())
    })?;

    // At work.
    let told: Value = serde_json::from_str(&said(&["loss", "-o", "json", "--state", state], 0)?)?;
    ensure!(
        told["process"] == agent.pid() && told["nothingLost"] == true,
        "{told}"
    );
    let verified = said(&["buffer", "verify", state], 0)?;
    ensure!(verified.ends_with("no damage\n"), "{verified}");
    ensure!(
        said(&["buffer", "replay", "-o", "json", state], 0)?
            .lines()
            .count()
            >= 200
    );

    // Killed.
    agent.kill()?;
    let lost = product::loss(folder.path())?;
    ensure!(lost.contains("did not stop cleanly"), "{lost}");
    let before = shape(folder.path())?;
    let replayed = said(&["buffer", "replay", "-o", "json", state], 0)?
        .lines()
        .count();

    // Sent, as TLV and as nested JSON.
    let flat = send(state, replayed, &[])?;
    ensure!(
        flat.len() == replayed
            && flat
                .iter()
                .all(|told| told["flow"]["other"]["timestamp"].is_null()),
        "{flat:#?}"
    );
    let nested = send(state, replayed, &["--encoding", "nestedJson"])?;
    for told in &nested {
        ensure!(
            told["flow"]["other"]["timestamp"].is_string()
                && told["sourceId"].as_u64().is_some_and(|id| id < 256),
            "{told:#}"
        );
    }
    let with_process = |told: &&Value| told["flow"]["other"]["LOCAL_PROCESS"].is_string();
    ensure!(
        nested.iter().filter(with_process).count() >= CONNECTIONS.parse()?,
        "{nested:#?}"
    );
    ensure!(
        shape(folder.path())? == before,
        "a replay leaves the spool as it is"
    );
    Ok(())
}

/// Sends so many records to a tap, which may make more of them; the flows that it tells.
fn send(state: &str, records: usize, flags: &[&str]) -> Result<Vec<Value>> {
    let endpoint = {
        let free = TcpListener::bind("127.0.0.1:0")?;
        format!("tcp://{}", free.local_addr()?)
    };
    let mut command = product::command()?;
    command.args(["tap", "-o", "json", &endpoint]);
    let mut tap = Process::start(command)?;
    let words = [
        "buffer",
        "replay",
        state,
        "--ntopng",
        &endpoint,
        "--loopback",
        "asIs",
    ];
    let sent = run(&[&words, flags].concat())?;
    let words = String::from_utf8_lossy(&sent.stderr).into_owned();
    ensure!(sent.status.success(), "{words}");
    ensure!(
        words.contains(&format!("{records} records taken by {endpoint}")),
        "{words}"
    );
    let lines = tap.out().clone();
    let flows = || lines.all().into_iter().filter(|line| line.contains("\"flow\":"));
    wait::until_true(PATIENCE, "all records at the tap", || flows().count() >= records)?;
    tap.signal(Signal::SIGINT)?;
    tap.wait_end(Duration::from_secs(10))?;
    flows().map(|line| Ok(serde_json::from_str(&line)?)).collect()
}

fn run(words: &[&str]) -> Result<Output> {
    Ok(product::command()?.args(words).output()?)
}

/// What it prints, when it ends with this exit code.
fn said(words: &[&str], code: i32) -> Result<String> {
    let output = run(words)?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.code() == Some(code),
        "{words:?}: {}: {told}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(told)
}

/// Files of a directory with their octets, in order.
fn shape(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.display().to_string(), fs::read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}
