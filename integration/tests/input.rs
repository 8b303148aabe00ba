//! Promise: what is wrong is told in one sentence that names the field and the remedy, with exit code 2, before
//! anything was touched; and what attached is told within a second.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration::need;
use integration::product::{self, Agent};
use integration::world::World;

/// What attached is on the screen within this. The dev profile of a busy machine gets twice the release's second.
const ATTACHED_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn wrong_flags_are_refused_with_their_name() -> Result<()> {
    for (flags, field) in [
        (&["--nonsense"][..], "--nonsense"),
        (&["--output", "xml"], "--output"),
        (&["--ntopng", "nonsense"], "--ntopng"),
        (&["--ntopng", "tcp://host"], "--ntopng"),
        (&["--ntopng", "tcp://host:0"], "--ntopng"),
        (&["--ntopng", "tcp://host:70000"], "--ntopng"),
        (&["--ntopng", "udp://host:5556"], "--ntopng"),
        (
            &["--ntopng", "tcp://host:5556", "--curve-key", "short"],
            "--curve-key",
        ),
        (
            &["--ntopng", "tcp://host:5556", "--curve-key", "@/nonexistent"],
            "--curve-key",
        ),
        (&["--curve-key", "@/nonexistent"], "--curve-key"),
        (&["--scope", "nonsense"], "--scope"),
        (&["--duration", "soon"], "--duration"),
    ] {
        let output = product::command()?
            .arg("up")
            .args(flags)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(2),
            "{flags:?}: {}: {said}",
            output.status
        );
        ensure!(said.contains(field), "{flags:?}: {said}");
        ensure!(
            said.trim_end().lines().count() == 1,
            "{flags:?}: more than a sentence: {said}"
        );
        ensure!(
            output.stdout.is_empty(),
            "{flags:?}: nothing was asked for that stdout is for"
        );
    }
    Ok(())
}

#[test]
fn what_attached_is_told_at_once() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let world = World::build()?;
    let agent = Agent::watching(&world.left, &[])?;
    println!("attach report after {} ms", agent.ready_after().as_millis());
    ensure!(
        agent.ready_after() < ATTACHED_WITHIN,
        "after {:?}",
        agent.ready_after()
    );
    agent.interrupt()?.check_laws()
}
