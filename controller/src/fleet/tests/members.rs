use std::net::IpAddr;

use super::*;
use crate::fleet::members::{ADDRESSES_LISTED_MAX, COALESCE_MS, FROZEN_MS};

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
        let id = name(&format!("a{n}"));
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

fn partial(fleet: &mut Fleet) -> BTreeMap<String, bool> {
    let said = drain(fleet);
    let lists = said.iter().filter_map(|(_, speech)| match speech {
        Speech::Members(list) => Some(list),
        _ => None,
    });
    let members = lists.flat_map(|list| &list.members);
    members
        .map(|member| (member.agent.clone(), member.partial))
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
    for n in 0..12 {
        scene.now_ms += HEARTBEAT_MS;
        sums(&mut scene, 2, &[]);
        sums(&mut scene, 3, &[(1, 0, n * 20_000)]);
        sums(&mut scene, 1, &[(2, n * 20_000, 0), (3, n * 20_000, 0)]);
    }
    scene.fleet.handle_timeout(at(scene.now_ms));
    let untold = untold(&scene.fleet);
    assert!(untold[1] > 0 && untold[0] == 0 && untold[2] == 0, "{untold:?}");
    let wanted = [("a1", false), ("a2", true), ("a3", false)].map(|(agent, is)| (agent.to_owned(), is));
    assert_eq!(partial(&mut scene.fleet), BTreeMap::from(wanted));
    // With other addresses it is another matter.
    let heartbeat = Heard::Heartbeat {
        held: None,
        health: None,
        addresses: Some(vec!["10.0.0.4".parse().expect("an address")]),
    };
    scene
        .fleet
        .handle_heard(SessionId(2), heartbeat, at(scene.now_ms));
    scene.now_ms += COALESCE_MS;
    scene.fleet.handle_timeout(at(scene.now_ms));
    assert!(!partial(&mut scene.fleet)["a2"]);
}

/// Of all agents, in their order.
fn untold(fleet: &Fleet) -> Vec<u64> {
    let agents = fleet.agents(&wire::fleet::AgentsRequest::default());
    agents.iter().map(|agent| agent.untold_octets).collect()
}
