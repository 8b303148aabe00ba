//! Which of several collectors is used, over generated histories of collectors that go, come, and only seem to be there.
//! The seed stands in every failure.

use std::time::Duration;

use flowtilla_agent_core::collector::failover::{BACK_AFTER_MAX, Change, Group, STEADY_AFTER, Times};
use flowtilla_agent_core::time::KernelTime;

const START: KernelTime = KernelTime(1_000_000_000_000);
const TIMES: Times = Times {
    fail_after: Duration::from_secs(30),
    fail_back_after: Duration::from_secs(60),
};

fn at(s: u64) -> KernelTime {
    START.after(Duration::from_secs(s))
}

/// A group whose probes find what `found` says, asked for and answered until `until`.
fn probe_until(group: &mut Group, found: &[bool], until: KernelTime) {
    while let Some(now) = group.poll_timeout().filter(|&at| at <= until) {
        let Some(member) = group.poll_probe(now) else {
            return; // A change is due.
        };
        group.handle_probed(member, found[member], now);
    }
}

fn changes_to(group: &Group, now: KernelTime) -> Option<usize> {
    group.poll_change(now).map(|change| change.to)
}

#[test]
fn one_alone_has_nothing_to_do() {
    let mut group = Group::alone();
    group.handle_reach(false, at(0));
    assert_eq!(
        (group.poll_probe(at(1_000_000)), group.poll_change(at(1_000_000))),
        (None, None)
    );
    assert_eq!((group.poll_timeout(), group.in_use()), (None, 0));
}

#[test]
fn outage_is_left_after_its_time_and_not_before() {
    let mut group = Group::new(3, 0, TIMES, 1, at(0));
    group.handle_reach(true, at(0));
    probe_until(&mut group, &[true, false, true], at(100));
    group.handle_reach(false, at(100));
    probe_until(&mut group, &[true, false, true], at(129));
    assert_eq!(group.poll_change(at(129)), None);
    probe_until(&mut group, &[true, false, true], at(130));
    let change = Change {
        to: 2,
        orderly: false,
    };
    assert_eq!(group.poll_change(at(130)), Some(change));
}

#[test]
fn nobody_in_reach_means_to_stay_and_whoever_comes_first_is_taken() {
    let mut group = Group::new(3, 0, TIMES, 1, at(0));
    probe_until(&mut group, &[false; 3], at(500));
    assert_eq!(group.poll_change(at(500)), None);
    probe_until(&mut group, &[false, false, true], at(520));
    assert_eq!(changes_to(&group, at(520)), Some(2));
}

#[test]
fn short_breaks_are_no_outage_and_short_connections_no_end_of_one() {
    let mut group = Group::new(2, 0, TIMES, 1, at(0));
    let mut now = at(0);
    for _ in 0..20 {
        group.handle_reach(true, now);
        now = now.after(STEADY_AFTER);
        group.handle_reach(false, now);
        now = now.after(TIMES.fail_after - Duration::from_secs(1));
        probe_until(&mut group, &[true; 2], now);
        assert_eq!(group.poll_change(now), None, "a second is missing");
    }
    let began = now;
    while group.poll_change(now).is_none() {
        group.handle_reach(true, now);
        now = now.after(Duration::from_secs(1));
        group.handle_reach(false, now);
        now = now.after(Duration::from_secs(1));
        probe_until(&mut group, &[true; 2], now);
        assert!(
            now.since(began) <= TIMES.fail_after,
            "a connection of a second counts"
        );
    }
}

/// In use: the second, from second 130 on.
fn changed_over() -> Group {
    let mut group = Group::new(2, 0, TIMES, 1, at(0));
    group.handle_reach(true, at(0));
    group.handle_reach(false, at(100));
    probe_until(&mut group, &[false, true], at(130));
    assert_eq!(changes_to(&group, at(130)), Some(1));
    group.handle_changed(1, at(130));
    group.handle_reach(true, at(130));
    group
}

#[test]
fn way_back_takes_its_time_without_a_break() {
    let mut group = changed_over();
    probe_until(&mut group, &[false, true], at(200));
    // In reach, but for one probe at second 240.
    probe_until(&mut group, &[true, true], at(240));
    assert!(group.is_reached(0));
    probe_until(&mut group, &[false, true], at(260));
    assert!(!group.is_reached(0));
    probe_until(&mut group, &[true, true], at(319));
    assert_eq!(group.poll_change(at(319)), None);
    probe_until(&mut group, &[true, true], at(340));
    assert_eq!(group.poll_change(at(340)), Some(Change { to: 0, orderly: true }));
}

#[test]
fn result_of_a_probe_of_the_one_that_came_into_use_says_nothing() {
    let mut group = Group::new(2, 0, TIMES, 1, at(0));
    group.handle_reach(true, at(0));
    probe_until(&mut group, &[true; 2], at(29));
    let probed = group.poll_timeout().expect("a probe is due");
    assert_eq!(group.poll_probe(probed), Some(1));
    group.handle_changed(1, probed);
    group.handle_probed(1, false, probed);
    assert!(group.is_reached(1));
}

/// What a collector is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Away,
    /// Probes find it, and it takes nothing.
    Hollow,
    Good,
}

/// A driver and its collectors.
struct World {
    seed: u64,
    random: fastrand::Rng,
    times: Times,
    group: Group,
    natures: Vec<Nature>,
    now: KernelTime,
    /// Results under way: when, of whom, what.
    probes: Vec<(KernelTime, usize, bool)>,
    /// When the one in use will be connected; `None`: it is, or it is away.
    connects_at: Option<KernelTime>,
    connected_since: Option<KernelTime>,
    /// When it was last in reach for long enough to count.
    steady_at: KernelTime,
    changed_at: KernelTime,
    changes: u64,
    /// Since when every probe found it.
    found_since: Vec<Option<KernelTime>>,
    used: Vec<Duration>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let count = random.usize(1..=5);
        let times = Times {
            fail_after: Duration::from_secs(random.u64(1..60)),
            fail_back_after: Duration::from_secs(random.u64(1..120)),
        };
        let first = random.usize(0..count);
        let mut world = Self {
            seed,
            times,
            group: Group::new(count, first, times, seed, START),
            natures: vec![Nature::Good; count],
            now: START,
            probes: Vec::new(),
            connects_at: None,
            connected_since: None,
            steady_at: START,
            changed_at: START,
            changes: 0,
            found_since: vec![None; count],
            used: vec![Duration::ZERO; count],
            random,
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        let delay = Duration::from_millis(self.random.u64(1..900));
        self.connects_at = Some(self.now.after(delay));
    }

    fn become_so(&mut self, member: usize, nature: Nature) {
        self.natures[member] = nature;
        if member == self.group.in_use() && nature != Nature::Good {
            self.lose_reach();
        }
        if member == self.group.in_use() {
            self.connect();
        }
    }

    fn lose_reach(&mut self) {
        if let Some(since) = self.connected_since.take()
            && self.now.since(since) >= STEADY_AFTER.min(self.times.fail_after)
        {
            self.steady_at = self.now;
        }
        self.group.handle_reach(false, self.now);
    }

    /// Runs for `span`.
    fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        while self.now < end {
            let probes = self.probes.iter().map(|&(at, ..)| at);
            let next = probes
                .chain(self.connects_at)
                .chain(self.group.poll_timeout())
                .fold(end, KernelTime::min)
                .max(self.now);
            self.used[self.group.in_use()] += next.since(self.now);
            self.now = next;
            self.turn();
        }
    }

    fn turn(&mut self) {
        let (seed, now) = (self.seed, self.now);
        if self.connects_at.is_some_and(|at| at <= now) {
            self.connects_at = None;
            if self.natures[self.group.in_use()] == Nature::Good {
                self.connected_since.get_or_insert(now);
            }
        }
        self.group.handle_reach(self.connected_since.is_some(), now);
        let (done, under_way) = self.probes.iter().partition(|&&(at, ..)| at <= now);
        self.probes = under_way;
        for (_, member, found) in done {
            if member != self.group.in_use() {
                self.found_since[member] = found.then(|| self.found_since[member].unwrap_or(now));
            }
            self.group.handle_probed(member, found, now);
        }
        while let Some(member) = self.group.poll_probe(now) {
            assert_ne!(member, self.group.in_use(), "seed {seed}: probes who is in use");
            let found = self.natures[member] != Nature::Away;
            let took = self.random.u64(1..if found { 50 } else { 5_000 });
            self.probes
                .push((now.after(Duration::from_millis(took)), member, found));
        }
        if let Some(change) = self.group.poll_change(now) {
            self.change(change);
        }
    }

    fn change(&mut self, Change { to, orderly }: Change) {
        let (seed, now, from) = (self.seed, self.now, self.group.in_use());
        let Times {
            fail_after,
            fail_back_after,
        } = self.times;
        let what = format!("seed {seed}, {:?}, from {from} to {to}", now.since(START));
        assert_ne!(from, to, "{what}");
        assert!(
            self.changes == 0 || now.since(self.changed_at) >= fail_after.min(fail_back_after),
            "{what}: flaps"
        );
        assert_eq!(orderly, self.connected_since.is_some(), "{what}");
        let found = self.found_since[to].map(|since| now.since(since));
        let goes_back = to < from && found.is_some_and(|span| span >= fail_back_after);
        let fails = !orderly && now.since(self.steady_at.max(self.changed_at)) >= fail_after;
        assert!(
            goes_back || (fails && found.is_some()),
            "{what}: without a reason"
        );
        if orderly {
            assert!(goes_back, "{what}: leaves who is in reach");
        }
        // The driver calls off the probe of the one that comes into use.
        self.probes.retain(|&(_, member, _)| member != to);
        self.group.handle_changed(to, now);
        assert_eq!(self.group.in_use(), to, "{what}");
        self.found_since[from] = orderly.then_some(now);
        self.found_since[to] = None;
        self.changed_at = now;
        self.connected_since = None;
        self.changes += 1;
        self.connect();
    }

    /// Collectors go and come for a while.
    fn storm(&mut self, natures: &[Nature]) {
        for _ in 0..self.random.u64(1..40) {
            let member = self.random.usize(0..self.natures.len());
            let nature = natures[self.random.usize(0..natures.len())];
            self.become_so(member, nature);
            let most = 3 * (self.times.fail_after + self.times.fail_back_after).as_millis();
            let span = self.random.u64(1..u64::try_from(most).expect("minutes"));
            self.run(Duration::from_millis(span));
        }
    }
}

#[test]
fn after_any_history_the_best_one_is_used_and_kept() {
    let mut changes = 0;
    for seed in 0..300 {
        let mut world = World::new(seed);
        world.storm(&[Nature::Away, Nature::Hollow, Nature::Good]);
        for member in 0..world.natures.len() {
            let nature = [Nature::Away, Nature::Good][world.random.usize(0..2)];
            world.become_so(member, nature);
        }
        world.run(2 * BACK_AFTER_MAX);
        let best = world.natures.iter().position(|&nature| nature == Nature::Good);
        let was = world.changes;
        if let Some(best) = best {
            assert_eq!(world.group.in_use(), best, "seed {seed}: {:?}", world.natures);
        }
        world.run(BACK_AFTER_MAX);
        assert_eq!(world.changes, was, "seed {seed}: changes without a reason");
        changes += was;
    }
    assert!(changes > 300, "histories were meant to have changes: {changes}");
}

#[test]
fn the_only_good_one_among_hollow_ones_is_found_and_hollow_ones_are_tried_ever_more_seldom() {
    for seed in 1_000..1_200 {
        let mut world = World::new(seed);
        world.storm(&[Nature::Away, Nature::Hollow]);
        let count = world.natures.len();
        let good = world.random.usize(0..count);
        for member in 0..count {
            let nature = if member == good {
                Nature::Good
            } else {
                Nature::Hollow
            };
            world.become_so(member, nature);
        }
        // Each has its turn.
        let turn = world.times.fail_after + Duration::from_secs(40);
        let before = world.used[good];
        world.run(turn * u32::try_from(2 * count).expect("a few"));
        assert!(
            world.used[good] > before,
            "seed {seed}: {good} of {count} was not found"
        );
        world.run(4 * BACK_AFTER_MAX);
        let (before, changes) = (world.used[good], world.changes);
        world.run(10 * BACK_AFTER_MAX);
        let share = (world.used[good] - before).as_secs_f64() / (10 * BACK_AFTER_MAX).as_secs_f64();
        assert!(share > 0.9, "seed {seed}: {good} of {count} is used for {share}");
        let most = 10 * 2 * u64::try_from(count).expect("a few") + 4;
        assert!(
            world.changes - changes <= most,
            "seed {seed}: {} changes",
            world.changes - changes
        );
    }
}
