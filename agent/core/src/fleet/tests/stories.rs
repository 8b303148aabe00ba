//! Whatever happens to agents and lists, the sums at the collector are those of the traffic.

use super::world::{Flow, World};
use crate::flow::record::Traffic;

/// Seeds of each story; fifty times as many with `FLOWTILLA_SOAK=1`.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let soak = std::env::var("FLOWTILLA_SOAK").is_ok_and(|set| set == "1");
    first..first + if soak { 400 } else { 8 }
}

fn flow(world: &mut World, hosts: [usize; 2], begin: u64, length: u64) -> usize {
    let random = &mut world.random;
    let equal = random.u8(0..8) == 0;
    let port = random.u16(32_768..60_000);
    let ports = match random.u8(0..2) {
        _ if equal => [5_060, 5_060],
        0 => [port, 443],
        _ => [443, port],
    };
    let rate = [random.u64(0..100_000), random.u64(0..100_000)];
    world.flows.push(Flow {
        hosts,
        ports,
        begin,
        end: begin + length,
        traffic: Traffic::default(),
        rate,
    });
    world.flows.len() - 1
}

/// Flows between all pairs of hosts, short and long, from now to `until`.
fn crowd(world: &mut World, hosts: usize, until: u64) {
    for _ in 0..60 {
        let from = world.random.usize(0..hosts);
        let to = (from + world.random.usize(1..hosts)) % hosts;
        let begin = world.now + world.random.u64(0..until - world.now);
        let length = match world.random.u8(0..3) {
            0 => world.random.u64(100..2_000),
            1 => world.random.u64(2_000..30_000),
            _ => world.random.u64(30_000..200_000),
        };
        flow(world, [from, to], begin, length);
    }
}

fn check(world: &World, seed: u64, story: &str) {
    for (id, flow) in world.flows.iter().enumerate() {
        let outside = flow.hosts.iter().find(|&&host| host >= world.were_away.len());
        if outside.is_some()
            && flow
                .hosts
                .iter()
                .any(|&host| world.were_away.get(host).is_some_and(|&away| away))
        {
            continue;
        }
        let wanted = [flow.traffic.forward.octets, flow.traffic.backward.octets];
        let got = world.collected.get(&id).copied().unwrap_or_default();
        assert_eq!(got, wanted, "{story}, seed {seed}, flow {id}: {flow:?}");
    }
}

fn finish(world: &mut World) {
    let end = world.flows.iter().map(|flow| flow.end).max().unwrap_or(world.now);
    world.run_until(end.max(world.now) + 90_000);
}

#[test]
fn flows_of_a_calm_fleet_are_told_once_and_by_one_end() {
    for seed in seeds(0) {
        let mut world = World::new(seed, 3, 4_000);
        world.run_until(world.now + 60_000);
        let spoken: Vec<_> = (0..3).map(|host| world.sums(host)).collect();
        assert_eq!(spoken, [(0, 0); 3]);
        let until = world.now + 120_000;
        crowd(&mut world, 3, until);
        for host in 0..3 {
            flow(&mut world, [host, 7], until - 60_000, 50_000);
            flow(&mut world, [8, host], until - 60_000, 500);
        }
        finish(&mut world);
        check(&world, seed, "calm");
        let (spoken, left) = (0..3)
            .map(|host| world.sums(host))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert!(spoken > 0 && left > 0, "seed {seed}: {spoken} {left}");
        // Each agent's sums say of the others what those say of it.
        for host in 0..3 {
            for (peer, sums) in world.fleet(host).sums() {
                let other = (0..3).find(|&other| super::world::name(other) == *peer).unwrap();
                let mirror = world
                    .fleet(other)
                    .sums()
                    .find(|(peer, _)| **peer == super::world::name(host))
                    .map(|(_, sums)| (sums.held_octets, sums.spoken_octets));
                assert_eq!(
                    mirror,
                    Some((sums.spoken_octets, sums.held_octets)),
                    "seed {seed}"
                );
            }
        }
    }
}

#[test]
fn agents_that_start_among_flows_count_them_once() {
    for seed in seeds(1000) {
        let mut world = World::new(seed, 3, 4_000);
        let until = world.now + 60_000;
        crowd(&mut world, 3, until);
        flow(&mut world, [0, 9], until - 59_000, 70_000);
        finish(&mut world);
        check(&world, seed, "start");
    }
}

#[test]
fn agents_that_wait_long_for_their_first_list_count_flows_once() {
    for seed in seeds(6000) {
        let mut world = World::new(seed, 3, 4_000);
        world.freeze(30_000);
        let until = world.now + 90_000;
        crowd(&mut world, 3, until);
        for host in 0..3 {
            flow(&mut world, [host, 7], until - 89_000, 70_000);
            flow(&mut world, [8, host], until - 85_000, 9_000);
        }
        finish(&mut world);
        check(&world, seed, "first list");
    }
}

#[test]
fn peers_report_in_place_of_an_agent_that_was_killed() {
    for seed in seeds(2000) {
        let hosts = 2 + usize::try_from(seed % 2).unwrap();
        let mut world = World::new(seed, hosts, 4_000);
        let until = world.now + 150_000;
        crowd(&mut world, hosts, until);
        world.run_for(30_000..100_000);
        world.kill(0, false);
        if world.random.bool() {
            world.run_for(300..90_000);
            world.start(0);
            assert!(world.is_running(0));
        }
        finish(&mut world);
        check(&world, seed, "kill");
    }
}

#[test]
fn an_agent_that_comes_back_without_its_state_takes_nothing_from_the_sums() {
    for seed in seeds(3000) {
        let mut world = World::new(seed, 2, 4_000);
        let until = world.now + 150_000;
        crowd(&mut world, 2, until);
        world.run_for(30_000..100_000);
        world.kill(0, true);
        world.run_for(300..60_000);
        world.start(0);
        finish(&mut world);
        check(&world, seed, "amnesia");
    }
}

#[test]
fn an_agent_cut_off_from_the_controller_doubles_nothing() {
    for seed in seeds(4000) {
        let mut world = World::new(seed, 3, 4_000);
        let until = world.now + 300_000;
        crowd(&mut world, 3, until);
        for _ in 0..3 {
            world.run_for(10_000..60_000);
            let (host, away) = (world.random.usize(0..3), world.random.u64(0..120_000));
            world.cut(host, away);
        }
        finish(&mut world);
        check(&world, seed, "cut");
    }
}

#[test]
fn of_a_peer_whose_policy_leaves_out_flows_both_tell() {
    for seed in seeds(5000) {
        let mut world = World::new(seed, 3, 4_000);
        let until = world.now + 300_000;
        crowd(&mut world, 3, until);
        world.run_for(20_000..60_000);
        let nth = world.random.usize(1..4);
        world.leave_out(1, Some(nth));
        world.run_for(1_000..120_000);
        world.leave_out(1, None);
        finish(&mut world);
        check(&world, seed, "partial");
    }
}
