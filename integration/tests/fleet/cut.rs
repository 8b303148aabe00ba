//! The line between an agent and its controller is cut without a word. The controller alone asks who is there; both ends notice,
//! neither keeps half a session, and there is one again when the line is back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::cable::{COLLECTOR_V4, Cable, DESK_V4};
use integration::fleet::{Controller, Member};
use integration::need::{self, Need};
use integration::netns::NetNs;
use integration::wait::{self, Stopwatch};
use integration::world::World;

/// Longest time until an end gives up, and until it is back: each takes less than half a minute by itself.
const NOTICED_WITHIN: Duration = Duration::from_secs(180);
/// How often the controller is asked what it thinks: each time is a process.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// What the agent says by which it tells that it has given up, and that it is back.
const GIVEN_UP: &str = "no controller";
const WELCOMED: &str = "welcomed";

#[test]
fn both_ends_of_a_cut_line_notice_and_meet_again_in_one_session() -> Result<()> {
    let needs = [Need::Program("nft", "nftables"), Need::Program("ss", "iproute2")];
    if !need::met(&need::WORLD) || !need::met(&needs) {
        return Ok(());
    }
    let world = World::build()?;
    let cable = Cable::lay()?;
    let mut controller = Controller::start_on(&cable.collector, COLLECTOR_V4.parse()?)?;
    let mut member = Member::join_from(&controller, &cable.desk, &world.left)?;
    controller.deploy_all(&policy(5))?;
    wait::until(NOTICED_WITHIN, "one session", || {
        Ok((sessions(&cable)? == (1, 1)).then_some(()))
    })?;
    let welcomes = said(&member, WELCOMED)?;
    let before = said(&member, GIVEN_UP)?;

    cable.pull()?;
    let watch = Stopwatch::start();
    let (mut agent, mut its_controller, mut asked) = (None, None, Duration::ZERO);
    let noticed = wait::until(NOTICED_WITHIN, "both ends that notice", || {
        if agent.is_none() && said(&member, GIVEN_UP)? > before {
            agent = Some(watch.elapsed());
        }
        let due = watch.elapsed() >= asked + ASK_EVERY;
        if due && its_controller.is_none() {
            asked = watch.elapsed();
            its_controller = (!is_connected(&controller)?).then_some(asked);
        }
        Ok(agent.zip(its_controller))
    });
    let (agent, its_controller) = noticed
        .with_context(|| format!("the agent after {agent:?}, its controller after {its_controller:?}"))?;
    println!("the agent gave up after {agent:.1?}, its controller after {its_controller:.1?}");
    wait::until(NOTICED_WITHIN, "ends that have closed the session", || {
        Ok((sessions(&cable)? == (0, 0)).then_some(()))
    })?;

    cable.put_back()?;
    let back = wait::until(NOTICED_WITHIN, "an agent that is back", || {
        Ok((said(&member, WELCOMED)? > welcomes).then_some(()))
    });
    back.with_context(|| member.last_words())?;
    member.wait_connected(&controller)?;
    wait::until(
        NOTICED_WITHIN,
        "one session, and no half of the former one",
        || Ok((sessions(&cable)? == (1, 1)).then_some(())),
    )?;
    controller.deploy_all(&policy(6))?;
    ensure!(controller.agents()?.len() == 1, "{:?}", controller.agents()?);
    member.stop()?;
    controller.stop()
}

fn policy(active_timeout_s: u32) -> String {
    format!(
        "apiVersion: flowtilla/v1\nkind: Policy\nname: all\ncapture: {{activeTimeout: {active_timeout_s}s}}\n"
    )
}

fn is_connected(controller: &Controller) -> Result<bool> {
    let agent = controller
        .agent("desk")?
        .context("the controller knows the agent")?;
    Ok(agent["state"] == "connected")
}

fn said(member: &Member, words: &str) -> Result<usize> {
    let lines = member.log()?.all();
    Ok(lines.iter().filter(|line| line.contains(words)).count())
}

/// Connections between the two that are open, as the agent's host sees them and as the controller's does.
fn sessions(cable: &Cable) -> Result<(usize, usize)> {
    let open = |host: &NetNs, peer: &str| -> Result<usize> {
        let told = host.run("ss", &["-Htn", "state", "established", "dst", peer])?;
        Ok(told.lines().count())
    };
    Ok((open(&cable.desk, COLLECTOR_V4)?, open(&cable.collector, DESK_V4)?))
}
