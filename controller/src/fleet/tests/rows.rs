//! What is written when, and that what an earlier version wrote is read.

use prost::Message as _;

use super::memory::Memory;
use super::row::AgentRow;
use super::*;
use crate::rollout::{Member, Part};
use crate::store::{Batch, Store as _};

const MANY: u64 = 1_000;

fn rows(batch: &Batch, table: Table) -> usize {
    batch.0.iter().filter(|(of, _, _)| *of == table).count()
}

/// So many agents, connected, with a policy in force.
fn fleet_of(store: &Memory, agents: u64) -> Fleet {
    let mut fleet = Fleet::load(store, at(0)).expect("an empty store");
    let all = vec![object(policy("p", 0, &[], &[]))];
    fleet.apply(change(all, &[]), at(0)).expect("applied");
    for n in 1..=agents {
        let id = name(&format!("agent-{n}"));
        fleet
            .handle_open(
                &id,
                &Labels::default(),
                hello(n as u32, None),
                SessionId(n),
                at(1),
            )
            .expect("welcome");
    }
    answer(&mut fleet, 2);
    fleet.handle_timeout(at(3));
    fleet.finish_turn(at(3));
    store.commit(fleet.take_batch()).expect("kept");
    fleet
}

/// Every offer that waits is acked.
fn answer(fleet: &mut Fleet, ms: u64) -> usize {
    let mut answered = 0;
    for (session, speech) in drain(fleet) {
        if let Speech::Offer(offer) = speech {
            fleet.handle_heard(session, ack(&offer), at(ms));
            answered += 1;
        }
    }
    answered
}

fn another() -> Vec<Object> {
    let mut policy = policy("p", 0, &[], &[]);
    policy.capture = Some(wire::Capture {
        active_timeout_ms: Some(5_000),
        ..wire::Capture::default()
    });
    policy.rollout = Some(wire::Rollout {
        waves: vec!["50%".into(), "100%".into()],
        soak_ms: Some(0),
        ..wire::Rollout::default()
    });
    vec![object(policy)]
}

#[test]
fn a_change_for_very_many_agents_is_in_few_rows() {
    let store = Memory::default();
    let mut fleet = fleet_of(&store, MANY);
    let (mut holdings, mut parts, mut agents) = (0, 0, 0);
    let mut answered = 0;
    fleet.apply(change(another(), &[]), at(10)).expect("applied");
    for ms in 11..40 {
        fleet.finish_turn(at(ms));
        let batch = fleet.take_batch();
        holdings += rows(&batch, Table::Holdings);
        parts += rows(&batch, Table::Rollouts);
        agents += rows(&batch, Table::Agents);
        store.commit(batch).expect("kept");
        answered += answer(&mut fleet, ms);
    }
    assert_eq!(answered as u64, MANY, "two waves of a half each");
    assert!(fleet.rollouts.runs().next().is_none(), "it is done");
    assert_eq!(agents, 0, "nothing of an agent itself has changed");
    // Of 256: what both waves are to have; and the parts at the begin, at each wave, and at the end.
    assert!(holdings <= 2 * 256, "{holdings}");
    assert!(parts <= 5 * 256, "{parts}");
}

#[test]
fn an_ack_is_written_with_the_next_sweep_and_when_the_controller_stops() {
    let sweeps: fn(&mut Fleet) = |fleet| fleet.handle_timeout(at(12 + SWEEP_MS));
    for write in [sweeps, Fleet::handle_stop] {
        let store = Memory::default();
        let mut fleet = fleet_of(&store, 1);
        let before = fleet.agents[&name("agent-1")].held;
        fleet.apply(change(another(), &[]), at(10)).expect("applied");
        fleet.finish_turn(at(10));
        store.commit(fleet.take_batch()).expect("kept");
        assert_eq!(answer(&mut fleet, 11), 1);
        let acked = fleet.agents[&name("agent-1")].held;
        assert_ne!(acked, before);
        let kept = || Fleet::load(&store, at(20)).expect("what was kept").agents[&name("agent-1")].held;
        store.commit(fleet.take_batch()).expect("kept");
        assert_eq!(kept(), before, "it may wait: the agent will say it again");
        write(&mut fleet);
        store.commit(fleet.take_batch()).expect("kept");
        assert_eq!(kept(), acked);
    }
}

#[test]
fn what_a_step_of_a_rollout_rests_on_is_written_with_the_step() {
    let store = Memory::default();
    let mut fleet = fleet_of(&store, 8);
    fleet.apply(change(another(), &[]), at(10)).expect("applied");
    fleet.finish_turn(at(10));
    store.commit(fleet.take_batch()).expect("kept");
    assert_eq!(answer(&mut fleet, 11), 4);
    fleet.finish_turn(at(11));
    store.commit(fleet.take_batch()).expect("kept");
    let kept = Fleet::load(&store, at(12)).expect("what was kept");
    let run = kept.rollouts.runs().next().expect("it goes on");
    let acked = run
        .members()
        .values()
        .filter(|member| matches!(member.part, Part::Acked { .. }));
    assert_eq!((run.head().wave, acked.count()), (2, 4));
}

#[test]
fn what_an_earlier_version_kept_is_read_and_written_anew() {
    let store = Memory::default();
    let mut fleet = fleet_of(&store, 3);
    fleet.apply(change(another(), &[]), at(10)).expect("applied");
    fleet.finish_turn(at(10));
    store.commit(fleet.take_batch()).expect("kept");
    let run = fleet.rollouts.runs().next().expect("it goes on");
    let (id, members) = (run.head().id, run.members().clone());
    // As it was: what an agent holds in its own row, its part of the rollout in a row of its own.
    let mut older = Batch::default();
    for table in [Table::Holdings, Table::Rollouts] {
        for (key, _) in store.scan(table, None, usize::MAX).expect("memory") {
            if table == Table::Holdings || key.len() > 8 {
                older.remove(table, key);
            }
        }
    }
    for (agent, member) in &members {
        let key = [&id.to_be_bytes()[..], agent.as_bytes()].concat();
        older.put(Table::Rollouts, key, serde_json::to_vec(member).expect("JSON"));
    }
    for (agent, kept) in &fleet.agents {
        let holding = kept.holding(agent.as_str());
        let row = AgentRow {
            wanted: holding.wanted,
            held: holding.held,
            floor_epoch: holding.floor_epoch,
            floor_version: holding.floor_version,
            ..AgentRow::decode(&kept.to_row()[..]).expect("a row")
        };
        older.put(Table::Agents, agent.as_str(), row.encode_to_vec());
    }
    store.commit(older).expect("kept");

    let same = |loaded: &Fleet| {
        for (id, agent) in &fleet.agents {
            let found = &loaded.agents[id];
            let mark = |agent: &Agent| agent.wanted.as_ref().map(|wanted| wanted.mark);
            assert_eq!(
                (mark(found), found.held, found.floor),
                (mark(agent), agent.held, agent.floor)
            );
        }
        let run = loaded.rollouts.runs().next().expect("it goes on");
        let found: BTreeMap<String, Member> = run.members().clone();
        assert_eq!(found, members);
    };
    let mut loaded = Fleet::load(&store, at(20)).expect("what was kept");
    same(&loaded);
    store.commit(loaded.take_batch()).expect("kept");
    let keys = store
        .scan(Table::Rollouts, None, usize::MAX)
        .expect("memory")
        .into_iter();
    let shapes = keys
        .filter(|(key, _)| key.len() > 8)
        .map(|(key, _)| (key.len(), key[8]));
    assert!(shapes.clone().count() > 0 && shapes.into_iter().all(|shape| shape == (10, 0)));
    same(&Fleet::load(&store, at(30)).expect("what was written anew"));
}

#[test]
fn an_agent_is_always_in_the_same_row() {
    let rows = ["", "a", "agent-1", "web-7f3a2c"].map(row::bucket);
    assert_eq!(rows, PINNED);
}

/// On disks by now.
const PINNED: [u8; 4] = [197, 237, 112, 34];

#[test]
fn what_comes_while_the_disk_is_full_is_written_when_there_is_room() {
    let store = Memory::default();
    let mut fleet = fleet_of(&store, 3);
    fleet.apply(change(another(), &[]), at(10)).expect("applied");
    fleet.finish_turn(at(10));
    store.commit(fleet.take_batch()).expect("kept");
    assert!(fleet.stand_still() && !fleet.stand_still());
    let offered = answer(&mut fleet, 11);
    assert!(offered > 0);
    // The next wave waits, whatever time it is: it would have to be on the disk before it is said.
    for ms in (20..200_000).step_by(5_000) {
        fleet.handle_timeout(at(ms));
        fleet.finish_turn(at(ms));
        assert!(fleet.take_batch().is_empty());
        for id in 1..=3 {
            let beat = Heard::Heartbeat {
                held: None,
                health: None,
                addresses: None,
            };
            fleet.handle_heard(SessionId(id), beat, at(ms));
        }
        assert_eq!(answer(&mut fleet, ms), 0);
    }
    assert!(fleet.go_on(at(200_000)) && !fleet.go_on(at(200_000)));
    fleet.handle_timeout(at(200_001));
    fleet.finish_turn(at(200_001));
    let batch = fleet.take_batch();
    assert!(
        rows(&batch, Table::Holdings) > 0,
        "what was acked meanwhile is written"
    );
    store.commit(batch).expect("kept");
    let mut answered = 0;
    for ms in 200_002..200_040 {
        answered += answer(&mut fleet, ms);
        fleet.finish_turn(at(ms));
        store.commit(fleet.take_batch()).expect("kept");
    }
    assert_eq!(offered + answered, 3, "each agent has the change once");
    assert_eq!(fleet.standing().converged, 3);
}
