//! A host for the tests: an agent's counters, and what its health says of them.

use flowtilla_proto::wire::session as wire;

/// What an agent's counters do in a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) packets: u64,
    pub(crate) lost: u64,
    pub(crate) records: u64,
    pub(crate) lost_records: u64,
    pub(crate) ends: u64,
    pub(crate) owned: u64,
    pub(crate) cpu_ms: u64,
    pub(crate) memory: u64,
    pub(crate) lag_ms: u64,
    pub(crate) over_limits: bool,
}

impl Default for Load {
    /// 1,000 packets and 20 flow ends a second, a tenth of a core, 50 MiB, 98 % of owners known.
    fn default() -> Self {
        Self {
            packets: 1_000,
            lost: 0,
            records: 20,
            lost_records: 0,
            ends: 100,
            owned: 98,
            cpu_ms: 100,
            memory: 50 << 20,
            lag_ms: 200,
            over_limits: false,
        }
    }
}

/// An agent's counters since its start.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    health: wire::Health,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            health: wire::Health {
                coverage: Some(wire::Coverage::default()),
                cost: Some(wire::Cost::default()),
                collectors: vec![wire::CollectorHealth {
                    dropped: vec![drop_at("SpoolUnwritable")],
                    ..wire::CollectorHealth::default()
                }],
                drops: vec![drop_at("SocketMapFull"), drop_at("FlowRingFull")],
                capturing: true,
                ..wire::Health::default()
            },
        }
    }
}

fn drop_at(point: &str) -> wire::Drop {
    wire::Drop {
        point: point.to_owned(),
        count: 0,
    }
}

impl Host {
    /// Runs for some milliseconds under a load.
    pub(crate) fn run(&mut self, ms: u64, load: &Load) {
        let of = |per_second: u64| per_second * ms / 1_000;
        let health = &mut self.health;
        health.uptime_ms += ms;
        health.observed_packets += of(load.packets);
        health.drops[0].count += of(load.lost);
        // Harmless: hints that are found again.
        health.drops[1].count += of(load.packets);
        health.records += of(load.records);
        let collector = &mut health.collectors[0];
        collector.made += of(load.records);
        collector.dropped[0].count += of(load.lost_records);
        collector.lag_ms = load.lag_ms;
        if let Some(coverage) = &mut health.coverage {
            coverage.ends += of(load.ends);
            coverage.with_process += of(load.owned);
        }
        if let Some(cost) = &mut health.cost {
            cost.cpu_ns += of(load.cpu_ms * 1_000_000);
            cost.resident_octets = load.memory;
        }
        health.over_limits = if load.over_limits {
            vec!["memory is 600.0 MiB, the limit is 512.0 MiB".to_owned()]
        } else {
            Vec::new()
        };
    }

    /// Starts again: every counter is 0.
    pub(crate) fn restart(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn capture(&mut self, on: bool) {
        self.health.capturing = on;
    }

    pub(crate) fn health(&self) -> &wire::Health {
        &self.health
    }
}
