//! Sessions of the agent's own core on one controller: the simulator of many agents itself, small. What it measures is worth
//! something in a release build alone; here every agent must get each policy, and come back.

use anyhow::{Result, ensure};
use integration::swarm::{self, Plan};

const AGENTS: usize = 50;

#[test]
fn every_agent_of_a_small_swarm_gets_each_policy_and_comes_back() -> Result<()> {
    let plan = Plan {
        agents: AGENTS,
        pushes: 2,
        idle_s: 1,
    };
    let figures = swarm::measure(plan, |line| println!("{line}"))?;
    ensure!(figures.pushes.len() == 2, "{figures:?}");
    for push in &figures.pushes {
        ensure!(push.p50 <= push.p99 && push.p99 <= push.last, "{push:?}");
        ensure!(
            push.last <= push.in_force,
            "known before it was applied: {push:?}"
        );
    }
    ensure!(figures.resident > figures.resident_before, "{figures:?}");
    let idle = figures
        .idle
        .ok_or_else(|| anyhow::anyhow!("idle sessions were watched"))?;
    ensure!(
        idle.lone > 0.0 && idle.session > 0.0 && idle.stream > 0.0,
        "{idle:?}"
    );
    Ok(())
}
