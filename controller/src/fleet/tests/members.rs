use std::net::IpAddr;

use super::*;
use crate::fleet::heard::PEERS_KEPT_MAX;
use crate::fleet::members::{ADDRESSES_LISTED_MAX, COALESCE_MS, FROZEN_MS, TOLD_WITHIN_MS};
use crate::fleet::silent::APART_MAX;

/// A list that was told: stream, collector, agents with the number of their addresses.
type Told = (u64, String, Vec<(String, usize)>);

struct Scene {
    fleet: Fleet,
    now_ms: u64,
}

impl Scene {
    fn new(objects: Vec<Object>) -> Self {
        let mut fleet = empty();
        fleet.apply(change(objects, &[]), at(0)).expect("applied");
        Self { fleet, now_ms: 1 }
    }

    /// An agent opens session `n` with these addresses, and acks what it is offered.
    fn join(&mut self, n: u64, addresses: &[&str]) {
        self.join_as(n, &format!("a{n}"), addresses);
    }

    fn join_as(&mut self, n: u64, id: &str, addresses: &[&str]) {
        let all: Vec<IpAddr> = addresses
            .iter()
            .map(|text| text.parse().expect("an address"))
            .collect();
        let sent = say::Hello {
            addresses: all
                .iter()
                .map(|address| match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                })
                .collect(),
            ..hello_wire(n as u32 + 1)
        };
        let hello = Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello");
        let labels = labels(&[("n", &n.to_string())]);
        let id = name(id);
        self.fleet
            .handle_open(&id, &labels, hello, SessionId(n), at(self.now_ms))
            .expect("welcome");
        let offer = offer_in(&drain(&mut self.fleet));
        self.fleet
            .handle_heard(SessionId(n), ack(&offer), at(self.now_ms));
    }

    /// Lists that are told when so much more time has passed.
    fn after(&mut self, ms: u64) -> Vec<Told> {
        let told = |(session, list): (u64, Arc<say::Members>)| {
            let members = list.members.iter();
            let members = members.map(|member| (member.agent.clone(), member.addresses.len()));
            (session, list.collector.clone(), members.collect())
        };
        self.lists_after(ms).into_iter().map(told).collect()
    }

    fn lists_after(&mut self, ms: u64) -> Vec<(u64, Arc<say::Members>)> {
        self.now_ms += ms;
        self.fleet.handle_timeout(at(self.now_ms));
        drain(&mut self.fleet)
            .into_iter()
            .filter_map(|(session, speech)| match speech {
                Speech::Members(list) => Some((session.0, list)),
                _ => None,
            })
            .collect()
    }

    /// An agent says that it has this address, and no other.
    fn moves(&mut self, n: u64, address: &str) {
        let heartbeat = Heard::Heartbeat {
            held: None,
            health: None,
            addresses: Some(vec![address.parse().expect("an address")]),
        };
        self.fleet.handle_heard(SessionId(n), heartbeat, at(self.now_ms));
    }
}

fn one_policy() -> Vec<Object> {
    vec![collector("c"), object(policy("p", 0, &[], &["c"]))]
}

fn list(of: &[(&str, usize)]) -> Vec<(String, usize)> {
    of.iter()
        .map(|(agent, count)| ((*agent).to_owned(), *count))
        .collect()
}

#[test]
fn lists_are_frozen_after_a_start_then_told_once() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1", "127.0.0.1", "fe80::1", "2001:db8::1"]);
    scene.join(2, &["10.0.0.2"]);
    assert_eq!(scene.after(FROZEN_MS - 1_000), []);
    let both = list(&[("a1", 2), ("a2", 1)]);
    let told = scene.after(COALESCE_MS + 1_000);
    assert_eq!(told, [(1, "c".into(), both.clone()), (2, "c".into(), both)]);
    assert_eq!(scene.after(COALESCE_MS), []);
}

#[test]
fn an_address_claimed_twice_is_in_nobodys_list() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1", "10.0.0.9"]);
    scene.join(2, &["10.0.0.9", "10.0.0.2"]);
    let told = scene.after(FROZEN_MS + COALESCE_MS);
    assert_eq!(told[0].2, list(&[("a1", 1), ("a2", 1)]));
    // One of them gives it up.
    scene.moves(2, "10.0.0.2");
    let told = scene.after(COALESCE_MS);
    assert_eq!(told[0].2, list(&[("a1", 2), ("a2", 1)]));
}

#[test]
fn a_member_says_since_which_list_it_is_as_it_is() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1"]);
    scene.join(2, &["10.0.0.2"]);
    let mut told = Vec::new();
    let mut tell = |scene: &mut Scene, ms| {
        let (_, list) = scene.lists_after(ms).remove(0);
        let since: Vec<u64> = list.members.iter().map(|member| member.since).collect();
        told.push((list.generation, since));
    };
    tell(&mut scene, FROZEN_MS + COALESCE_MS);
    scene.moves(2, "10.0.0.3");
    tell(&mut scene, COALESCE_MS);
    // As it was at first: another change all the same.
    scene.moves(2, "10.0.0.2");
    tell(&mut scene, COALESCE_MS);
    let [(first, _), (second, _), (third, _)] = told[..] else {
        panic!("{told:?}")
    };
    assert!(first < second && second < third, "{told:?}");
    assert_eq!(told[0].1, [first, first]);
    assert_eq!(told[1].1, [first, second]);
    assert_eq!(told[2].1, [first, third]);
}

#[test]
fn who_goes_leaves_the_list_within_the_coalescing_time() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1"]);
    scene.join(2, &["10.0.0.2"]);
    scene.after(FROZEN_MS + COALESCE_MS);
    scene.fleet.handle_closed(SessionId(2), at(scene.now_ms));
    assert_eq!(scene.after(COALESCE_MS - 1), []);
    assert_eq!(scene.after(1), [(1, "c".into(), list(&[("a1", 1)]))]);
}

#[test]
fn lists_are_by_collector_and_a_failover_group_is_one() {
    let mut pair = policy("pair", 1, &[("n", "3")], &["c", "d"]);
    pair.export.as_mut().expect("an export").mode = wire::Mode::Failover.into();
    let mut objects = one_policy();
    objects.extend([collector("d"), object(pair)]);
    let mut scene = Scene::new(objects);
    scene.join(1, &["10.0.0.1"]);
    scene.join(3, &["10.0.0.3"]);
    let told = scene.after(FROZEN_MS + COALESCE_MS);
    assert_eq!(
        told,
        [
            (1, "c".into(), list(&[("a1", 1)])),
            (3, "failover".into(), list(&[("a3", 1)]))
        ]
    );
}

#[test]
fn above_its_bound_a_list_is_off_and_says_so() {
    let mut scene = Scene::new(one_policy());
    for n in 0..=(ADDRESSES_LISTED_MAX / 256) as u64 {
        let all: Vec<String> = (0..256).map(|host| format!("10.0.{n}.{host}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        scene.join(n, &all);
    }
    scene.now_ms += FROZEN_MS + COALESCE_MS;
    scene.fleet.handle_timeout(at(scene.now_ms));
    let said = drain(&mut scene.fleet);
    assert!(!said.is_empty());
    for (_, speech) in said {
        let Speech::Members(list) = speech else {
            panic!("{speech:?}");
        };
        assert!(list.off && list.members.is_empty(), "{list:?}");
    }
}

/// Agent `n` tells its sums with others: which, octets that it left to it, and octets that it told of those left to itself.
fn sums(scene: &mut Scene, n: u64, with: &[(u64, u64, u64)]) {
    let peers = with
        .iter()
        .map(|&(other, held_octets, spoken_octets)| say::PeerSums {
            peer: format!("a{other}"),
            held_octets,
            spoken_octets,
            ..say::PeerSums::default()
        });
    let health = say::Health {
        peers: peers.collect(),
        ..say::Health::default()
    };
    let heartbeat = Heard::Heartbeat {
        held: None,
        health: Some(Box::new(health)),
        addresses: None,
    };
    scene
        .fleet
        .handle_heard(SessionId(n), heartbeat, at(scene.now_ms));
}

/// How the list that is told next has each member: partial, apart from whom.
fn listed(scene: &mut Scene) -> BTreeMap<String, (bool, Vec<String>)> {
    let told = scene.lists_after(COALESCE_MS);
    let (_, list) = told.last().expect("a list");
    let members = list.members.iter();
    members
        .map(|member| (member.agent.clone(), (member.partial, member.apart.clone())))
        .collect()
}

#[test]
fn who_does_not_tell_what_is_left_to_it_is_not_relied_upon() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1"]);
    scene.join(2, &["10.0.0.2"]);
    scene.join(3, &["10.0.0.3"]);
    scene.after(FROZEN_MS + COALESCE_MS);
    // 1 leaves as much to 2 as to 3; only 3 tells it.
    let beats = |scene: &mut Scene, beats: std::ops::Range<u64>| {
        for n in beats {
            scene.now_ms += HEARTBEAT_MS;
            sums(scene, 2, &[]);
            sums(scene, 3, &[(1, 0, n * 20_000)]);
            sums(scene, 1, &[(2, n * 20_000, 0), (3, n * 20_000, 0)]);
        }
    };
    beats(&mut scene, 0..12);
    let untold = untold(&scene.fleet);
    assert!(untold[1] > 0 && untold[0] == 0 && untold[2] == 0, "{untold:?}");
    let by = scene.fleet.agents(&wire::fleet::AgentsRequest::default());
    assert_eq!(by[1].untold_by, ["a1"]);
    let all = |of_first: (bool, Vec<String>)| {
        let names = ["a1", "a2", "a3"].map(str::to_owned);
        let [first, second, third] = names;
        BTreeMap::from([
            (first, of_first),
            (second, (false, vec![])),
            (third, (false, vec![])),
        ])
    };
    assert_eq!(listed(&mut scene), all((false, vec!["a2".to_owned()])));
    // It leaves flows to it all the same, as one of another version does.
    beats(&mut scene, 12..30);
    assert_eq!(listed(&mut scene), all((true, vec!["a2".to_owned()])));
    // With other addresses it is another matter.
    scene.moves(1, "10.0.0.5");
    assert_eq!(listed(&mut scene), all((false, vec![])));
}

#[test]
fn what_was_found_of_an_agent_is_forgotten_with_its_addresses() {
    let mut scene = Scene::new(one_policy());
    scene.join(1, &["10.0.0.1"]);
    scene.join(2, &["10.0.0.2"]);
    scene.after(FROZEN_MS + COALESCE_MS);
    for n in 0..12 {
        scene.now_ms += HEARTBEAT_MS;
        sums(&mut scene, 2, &[]);
        sums(&mut scene, 1, &[(2, n * 20_000, 0)]);
    }
    assert_eq!(listed(&mut scene)["a1"].1, ["a2"]);
    scene.moves(2, "10.0.0.4");
    assert_eq!(listed(&mut scene)["a1"], (false, vec![]));
}

#[test]
fn one_agents_word_changes_nothing_for_others_than_itself() {
    let mut objects = one_policy();
    objects.extend([collector("d"), object(policy("d", 1, &[("n", "98")], &["d"]))]);
    let mut scene = Scene::new(objects);
    // 98 feeds another collector, 99 the same one as the honest.
    let honest = 1..=40_u64;
    for n in honest.clone().chain([98, 99]) {
        scene.join(n, &[&format!("10.0.0.{n}")]);
    }
    scene.after(FROZEN_MS + COALESCE_MS);
    for beat in 0..40 {
        scene.now_ms += HEARTBEAT_MS;
        for n in honest.clone() {
            sums(&mut scene, n, &[]);
        }
        let accusing: Vec<(u64, u64, u64)> = honest.clone().map(|n| (n, beat * 1_000_000_000, 0)).collect();
        sums(&mut scene, 98, &accusing);
        sums(&mut scene, 99, &accusing);
    }
    for agent in scene.fleet.agents(&wire::fleet::AgentsRequest::default()) {
        assert!(!agent.untold_by.iter().any(|by| by == "a98"), "{agent:?}");
        assert_eq!(agent.untold_octets > 0, agent.untold_by == ["a99"]);
    }
    let mut listed = listed(&mut scene);
    let (partial, apart) = listed.remove("a99").expect("it is listed");
    assert!(partial && apart.len() == APART_MAX, "{apart:?}");
    assert!(
        listed.len() == 40 && listed.values().all(|as_before| *as_before == (false, vec![])),
        "{listed:?}"
    );
}

#[test]
fn one_with_more_peers_than_there_is_room_for_is_not_said_to_tell_too_little() {
    for others in [300, PEERS_KEPT_MAX as u64 * 2] {
        let mut scene = Scene::new(one_policy());
        scene.join(1, &["10.0.0.1"]);
        scene.join(2, &["10.0.0.2"]);
        scene.after(FROZEN_MS + COALESCE_MS);
        for n in 0..12 {
            scene.now_ms += HEARTBEAT_MS;
            let spoken = |peer: String| say::PeerSums {
                peer,
                spoken_octets: n * 20_000,
                ..say::PeerSums::default()
            };
            let mut peers: Vec<say::PeerSums> = (0..others).map(|n| spoken(format!("a0-{n}"))).collect();
            peers.push(spoken("a1".to_owned()));
            let heartbeat = say::Heartbeat {
                health: Some(say::Health {
                    peers,
                    ..say::Health::default()
                }),
                ..say::Heartbeat::default()
            };
            let heard = Heard::parse(from_agent(say::from_agent::Body::Heartbeat(heartbeat)));
            let now = at(scene.now_ms);
            scene
                .fleet
                .handle_heard(SessionId(2), heard.expect("a heartbeat"), now);
            sums(&mut scene, 1, &[(2, n * 20_000, 0)]);
        }
        assert_eq!(untold(&scene.fleet), [0, 0], "{others} others");
    }
}

/// When each agent of a collector is told its list, and whether that is off, if the time is looked at so often.
fn told_of(scene: &mut Scene, collector: &str, each_ms: u64) -> Vec<(u64, bool)> {
    let mut told = Vec::new();
    let until = scene.now_ms + TOLD_WITHIN_MS + each_ms;
    while scene.now_ms < until {
        let lists = scene.lists_after(each_ms);
        let of_it = lists.iter().filter(|(_, list)| list.collector == collector);
        told.extend(of_it.map(|(_, list)| (scene.now_ms, list.off)));
    }
    told
}

#[test]
fn all_agents_of_a_list_are_told_a_change_within_the_time_that_their_rule_bears() {
    let mut objects = one_policy();
    objects.extend([collector("d"), object(policy("alone", 1, &[("n", "0")], &["d"]))]);
    let mut scene = Scene::new(objects);
    let join = |scene: &mut Scene, n: u64| {
        let addresses = [format!("2001:db8::1:{n:x}"), format!("2001:db8::2:{n:x}")];
        scene.join_as(n, &format!("{n:0>60}"), &[&addresses[0], &addresses[1]]);
    };
    (0..=1_000).for_each(|n| join(&mut scene, n));
    scene.now_ms += FROZEN_MS;
    let check = |told: &[(u64, bool)], count: usize, off: bool, within_ms: u64| {
        let ms = told.last().expect("some").0 - told[0].0;
        assert_eq!(told.len(), count);
        assert!(
            told.iter().all(|one| one.1 == off),
            "{count} agents, off is {off}"
        );
        assert!(ms <= within_ms, "{count} agents in {ms} ms");
        ms
    };
    let told = told_of(&mut scene, "c", 500);
    assert!(check(&told, 1_000, false, TOLD_WITHIN_MS) > 0, "in several steps");
    // A change of more than can be told in time.
    (1_001..=1_500).for_each(|n| join(&mut scene, n));
    let told = told_of(&mut scene, "c", 500);
    check(&told, 1_500, true, TOLD_WITHIN_MS);
    // Its time does not come as often as it should.
    (1_001..=1_500).for_each(|n| scene.fleet.handle_closed(SessionId(n), at(scene.now_ms)));
    scene.moves(0, "10.0.0.1");
    let told = told_of(&mut scene, "c", 2_000);
    check(&told, 1_000, false, TOLD_WITHIN_MS + 2_000);
}

/// Of all agents, in their order.
fn untold(fleet: &Fleet) -> Vec<u64> {
    let agents = fleet.agents(&wire::fleet::AgentsRequest::default());
    agents.iter().map(|agent| agent.untold_octets).collect()
}
