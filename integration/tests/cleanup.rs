//! Promise: after its end, however it came, nothing of the agent is left in the kernel.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Result, ensure};
use integration::bpf::{self, Objects};
use integration::need::{self, Need};
use integration::process::run;
use integration::product::{Agent, Ended};
use integration::scene;
use integration::wait::{self, PATIENCE};
use integration::world::{Family, Place, World};

#[test]
fn ctrl_c_leaves_nothing() -> Result<()> {
    nothing_is_left(|agent| {
        let ended = agent.interrupt()?;
        ended.check_laws()?;
        Ok(ended)
    })
}

#[test]
fn kill_9_leaves_nothing() -> Result<()> {
    nothing_is_left(Agent::kill)
}

fn nothing_is_left(end: impl Fn(Agent) -> Result<Ended>) -> Result<()> {
    if !need::met(&need::WORLD) || !need::met(&[bpf::NEEDS, Need::Program("tc", "iproute2")]) {
        return Ok(());
    }
    let world = World::build()?;
    let before = Outside::look(&world)?;
    let agent = Agent::watching(&world.left, &[])?;
    scene::tcp(&world, Place::Wire, Family::V4, "thread", &["--count", "10"])?;
    let held = Objects::held_by(agent.pid())?;
    ensure!(
        !held.programs.is_empty() && !held.maps.is_empty(),
        "an agent at work holds programs and maps: {held:?}"
    );
    let alive = Objects::alive()?.common(&held);
    ensure!(
        alive == held,
        "bpftool sees what the agent holds: {alive:?}, {held:?}"
    );
    end(agent)?;
    // The kernel frees programs and maps some time after the last reference.
    let mut left = held.clone();
    let waited = wait::until(PATIENCE, "end of all BPF objects", || {
        left = Objects::alive()?.common(&held);
        Ok(left.is_empty().then_some(()))
    });
    ensure!(waited.is_ok(), "left: {left:?}");
    let after = Outside::look(&world)?;
    ensure!(after == before, "before {before:?}, after {after:?}");
    Ok(())
}

/// What an agent could leave beside programs, maps and links.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    pins: BTreeSet<std::path::PathBuf>,
    qdiscs: Vec<String>,
}

impl Outside {
    fn look(world: &World) -> Result<Self> {
        Ok(Self {
            pins: bpf::pins()?,
            qdiscs: vec![
                run(Command::new("tc").args(["qdisc", "show"]))?,
                world.left.run("tc", &["qdisc", "show"])?,
                world.right.run("tc", &["qdisc", "show"])?,
            ],
        })
    }
}
