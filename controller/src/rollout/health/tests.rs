//! Windows: what they keep, and what they do not mix up.

use super::super::host::{Host, Load};
use super::*;

const SOAK_MS: u64 = 60_000;

/// A host that beats each 5 s.
struct Beating {
    windows: HealthWindows,
    host: Host,
    now: u64,
}

impl Beating {
    fn new() -> Self {
        Self {
            windows: HealthWindows::new(SOAK_MS),
            host: Host::default(),
            now: 1_000_000,
        }
    }

    fn run(&mut self, seconds: u64, load: &Load) -> Moment {
        for _ in 0..seconds / 5 {
            self.now += 5_000;
            self.host.run(5_000, load);
            self.windows.note("a", self.host.health(), Moment(self.now));
        }
        Moment(self.now)
    }
}

#[test]
fn figures_are_those_of_the_span_only() {
    let mut beating = Beating::new();
    let wild = Load {
        lost: 500,
        cpu_ms: 900,
        memory: 900 << 20,
        lag_ms: 90_000,
        owned: 10,
        ..Load::default()
    };
    beating.run(300, &wild);
    let change = beating.run(90, &Load::default());
    let before = beating.windows.before("a", SOAK_MS).expect("two heartbeats");
    assert!((45_000..=60_000).contains(&before.span_ms), "{before:?}");
    assert_eq!(
        Figures {
            up_ms: 0,
            span_ms: 0,
            ..before
        },
        Figures {
            coverage_ppm: Some(980_000),
            lag_ms: 200,
            lag_first_ms: 200,
            cpu_ppm: 100_000,
            memory_octets: 50 << 20,
            capturing: true,
            ..Figures::default()
        }
    );
    beating.run(30, &wild);
    let since = beating.windows.since("a", change).expect("two heartbeats");
    assert_eq!(
        (since.cpu_ppm, since.memory_octets, since.lag_ms),
        (900_000, 900 << 20, 90_000)
    );
    assert_eq!(since.coverage_ppm, Some(100_000));
    assert_eq!(since.drops_ppm, 500_000);
}

#[test]
fn a_restart_of_the_agent_is_no_loss_and_no_gain() {
    let mut beating = Beating::new();
    beating.run(60, &Load::default());
    let from = Moment(beating.now);
    beating.host.restart();
    beating.run(30, &Load::default());
    beating.host.restart();
    beating.run(30, &Load::default());
    let since = beating.windows.since("a", from).expect("two heartbeats");
    assert_eq!(since.starts, 2);
    assert_eq!(since.cpu_ppm, 100_000, "a share of the time it ran");
    assert_eq!(since.coverage_ppm, Some(980_000));
    assert!(since.drops_ppm == 0 && since.up_ms <= 60_000, "{since:?}");
}

#[test]
fn lost_records_count_as_much_as_lost_packets() {
    let mut beating = Beating::new();
    let from = beating.run(30, &Load::default());
    let load = Load {
        lost_records: 5,
        ..Load::default()
    };
    beating.run(60, &load);
    let since = beating.windows.since("a", from).expect("two heartbeats");
    assert_eq!(since.drops_ppm, 250_000);
}

#[test]
fn few_losses_and_few_ends_say_nothing() {
    let mut beating = Beating::new();
    let from = beating.run(5, &Load::default());
    let mut quiet = Load {
        packets: 1,
        ends: 0,
        owned: 0,
        ..Load::default()
    };
    beating.run(60, &quiet);
    let since = beating.windows.since("a", from).expect("two heartbeats");
    assert_eq!((since.drops_ppm, since.coverage_ppm), (0, None));
    quiet.lost = 1;
    let from = Moment(beating.now);
    beating.run(60, &quiet);
    assert!(
        beating
            .windows
            .since("a", from)
            .expect("two heartbeats")
            .drops_ppm
            > 400_000
    );
}

#[test]
fn one_heartbeat_is_no_span() {
    let mut beating = Beating::new();
    assert_eq!(beating.windows.before("a", SOAK_MS), None);
    let at = beating.run(5, &Load::default());
    assert_eq!(beating.windows.before("a", SOAK_MS), None);
    assert_eq!(beating.windows.last_at("a"), Some(at));
    beating.run(5, &Load::default());
    assert!(beating.windows.before("a", SOAK_MS).is_some());
    beating.windows.remove("a");
    assert_eq!(beating.windows.before("a", SOAK_MS), None);
}

#[test]
fn a_window_is_bounded_whatever_an_agent_sends() {
    let mut windows = HealthWindows::new(SOAK_MS);
    let mut rng = fastrand::Rng::with_seed(5);
    let mut health = wire::Health {
        collectors: vec![wire::CollectorHealth::default(); 200],
        drops: vec![wire::Drop::default(); 200],
        over_limits: vec!["ä".repeat(5_000); 200],
        coverage: Some(wire::Coverage::default()),
        cost: Some(wire::Cost::default()),
        ..wire::Health::default()
    };
    for _ in 0..2_000 {
        let mut any = || if rng.bool() { rng.u64(..) } else { u64::MAX };
        health.uptime_ms = any();
        health.observed_packets = any();
        health.drops[0].count = any();
        health.drops[1].count = any();
        health.collectors[0].made = any();
        health.collectors[1].made = any();
        health.collectors[0].evicted = any();
        health.coverage = Some(wire::Coverage {
            ends: any(),
            with_process: any(),
            with_names: 0,
        });
        health.cost = Some(wire::Cost {
            cpu_ns: any(),
            programs_ns: Some(any()),
            resident_octets: any(),
            map_octets: any(),
        });
        let at = Moment(any());
        windows.note("a", &health, at);
        let _ = windows.before("a", any());
        let _ = windows.since("a", Moment(any()));
    }
    let window = &windows.windows["a"];
    assert!(window.slots.len() <= SLOTS_MAX);
    assert!(window.over_limits.len() <= OVER_LIMITS_MAX);
    assert!(
        window
            .over_limits
            .iter()
            .all(|text| text.len() <= SENTENCE_OCTETS_MAX)
    );
}
