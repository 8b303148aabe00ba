//! What befalls the disk that the spool lies on: a small file system of its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::collector::apart::{Apart, Likeness};
use integration::disk::{self, Disk};
use integration::flaky::{self, Access, Flaky};
use integration::need;
use integration::product::Agent;
use integration::wait::{self, PATIENCE};
use integration::world::World;

use super::{Traffic, agent_of, end_whole, met, wait_handled};

/// Octets of a disk with room for the spool, which leaves 256 MiB of any disk to others.
const LARGE: u64 = 1 << 30;
/// Longest pause between two trials of a disk that failed, and some.
const USED_AGAIN_WITHIN: Duration = Duration::from_secs(90);
/// Octets of a disk that has no room for it from the start.
const SMALL: u64 = 64 << 20;

#[test]
fn full_disk_is_told_and_costs_nothing_while_the_collector_reads() -> Result<()> {
    on_a_failing_disk(LARGE, |disk, agent| {
        disk.fill(0)?;
        told(agent)
    })
}

#[test]
fn disk_too_small_from_the_start_is_told_and_costs_nothing_while_the_collector_reads() -> Result<()> {
    on_a_failing_disk(SMALL, |_, agent| told(agent))
}

#[test]
fn disk_that_has_room_again_is_used_again() -> Result<()> {
    on_a_failing_disk(LARGE, |disk, agent| {
        disk.fill(0)?;
        told(agent)?;
        disk.free()?;
        // It may be tried a minute later only, and what is told of it is not worth a warning.
        let segments = disk.path().join("spool/segments");
        let before = octets_below(&segments)?;
        wait::until(USED_AGAIN_WITHIN, "octets on the disk", || {
            Ok((octets_below(&segments)? > before).then_some(()))
        })
    })
}

#[test]
fn disk_that_turns_read_only_is_told_and_costs_nothing_while_the_collector_reads() -> Result<()> {
    on_a_failing_disk(LARGE, |disk, agent| {
        disk.make_read_only()?;
        told(agent)
    })
}

#[test]
fn disk_that_fails_every_access_is_told_and_costs_nothing_while_the_collector_reads() -> Result<()> {
    on_a_failing_disk(LARGE, |disk, agent| {
        disk.break_down()?;
        told(agent)
    })
}

/// Has `fault` befall the disk under traffic, and checks that it costs nothing.
fn on_a_failing_disk(octets: u64, fault: impl FnOnce(&Disk, &mut Agent) -> Result<()>) -> Result<()> {
    if !met() || !need::met(&disk::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let disk = Disk::make(octets)?;
    let mut collector = Apart::start(Likeness::default())?;
    let state = disk.path().to_str().context("a folder with a plain name")?;
    let mut agent = agent_of(&world, &[&collector], &["--state", state])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    fault(&disk, &mut agent)?;
    traffic.goes_on(&agent)?;
    // Fresh records arrive, whatever the disk does.
    wait_handled(&mut collector, &agent.records()?)?;
    let ends = traffic.stop()?;
    ends.are_told(&agent)?;
    let ended = end_whole(agent, &mut collector)?;
    for point in ["SpoolUnwritable", "SpoolDamaged", "ShutdownGrace"] {
        ensure!(ended.lost(point) == 0, "{point}: {:?}", ended.words);
    }
    Ok(())
}

/// Octets of all files in the folders of a folder, as they are allocated.
fn octets_below(folder: &Path) -> Result<u64> {
    let mut octets = 0;
    for segment in std::fs::read_dir(folder)? {
        // A segment may go while we look.
        for file in std::fs::read_dir(segment?.path()).into_iter().flatten() {
            octets += file?.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        }
    }
    Ok(octets)
}

/// Waits until the agent has said what is wrong with its disk.
fn told(agent: &mut Agent) -> Result<()> {
    let said = agent.wait_for_words(PATIENCE, "words about the disk", |line| {
        let line = line.to_lowercase();
        line.contains("spool") && ["memory", "disk", "full"].iter().any(|word| line.contains(word))
    })?;
    println!("{said}");
    Ok(())
}

#[test]
fn disk_that_fails_single_accesses_costs_nothing_while_the_collector_reads() -> Result<()> {
    if !met() || !need::met(&flaky::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    // Each kind of access always, then now and then.
    for (access, one_in) in [
        (Access::Sync, 1),
        (Access::Write, 1),
        (Access::Names, 1),
        (Access::Sync, 3),
        (Access::Write, 3),
        (Access::Names, 3),
    ] {
        let disk = Flaky::make()?;
        let mut collector = Apart::start(Likeness::default())?;
        let state = disk.path().to_str().context("a folder with a plain name")?;
        let mut agent = agent_of(&world, &[&collector], &["--state", state])?;
        let traffic = Traffic::start(&world)?;
        traffic.goes_on(&agent)?;
        wait_handled(&mut collector, &agent.records()?)?;
        disk.fail(access, one_in);
        wait::until_true(PATIENCE, "an access that failed", || disk.failed() > 0)?;
        if one_in == 1 {
            told(&mut agent)?;
        }
        traffic.goes_on(&agent)?;
        wait_handled(&mut collector, &agent.records()?)?;
        disk.fail(access, 0);
        let ends = traffic.stop()?;
        ends.are_told(&agent)?;
        end_whole(agent, &mut collector).with_context(|| format!("{access:?}, one in {one_in}"))?;
        println!("{access:?}, one in {one_in}: {} accesses failed", disk.failed());
    }
    Ok(())
}

#[test]
fn backlog_that_cannot_be_read_is_stated_and_what_is_fresh_arrives() -> Result<()> {
    if !met() || !need::met(&flaky::NEEDS) {
        return Ok(());
    }
    let world = World::build()?;
    let disk = Flaky::make()?;
    let mut collector = Apart::start(Likeness::default())?;
    let state = disk.path().to_str().context("a folder with a plain name")?;
    let agent = agent_of(&world, &[&collector], &["--state", state])?;
    let traffic = Traffic::start(&world)?;
    traffic.goes_on(&agent)?;
    wait_handled(&mut collector, &agent.records()?)?;
    collector.close()?;
    traffic.goes_on(&agent)?;
    agent.interrupt()?;
    // The backlog is on the disk alone when the next agent begins.
    let mut agent = agent_of(&world, &[&collector], &["--state", state])?;
    traffic.goes_on(&agent)?;
    disk.fail(Access::Read, 1);
    collector.come_back()?;
    told(&mut agent)?;
    disk.fail(Access::Read, 0);
    traffic.goes_on(&agent)?;
    traffic.stop()?;
    let ended = agent.interrupt()?;
    ended.check_laws()?;
    // What the second agent made arrives, whatever became of the backlog; of that each record is counted. A restarted
    // collector may not have read what it had taken, so some of what it handled is counted as well.
    wait_handled(&mut collector, &ended.records)?;
    let (made, lost) = (ended.law_2("made")?, ended.lost("SpoolDamaged"));
    let handled = collector.account()?.records.len() as u64;
    println!(
        "{} accesses failed; {made} records made, {lost} lost, {handled} handled",
        disk.failed()
    );
    ensure!(
        lost > 0 && made - handled <= lost && made > lost,
        "{:?}",
        ended.words
    );
    collector.account()?.check_itself()
}
