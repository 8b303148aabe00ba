//! `/metrics`: how the agent does, for Prometheus. On loopback unless it is told otherwise; no secret, no address of a flow.

use std::sync::Arc;

use flowtilla_agent_core::loss::DropPoint;
use flowtilla_grpc::telemetry::page::Place;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cost;
use crate::session::News;
use crate::status::{AgentStatus, CollectorState};
use crate::top::SharedTop;

mod series;

use series::Series;

/// What the page tells of.
#[derive(Debug)]
pub struct Sources {
    /// How the agent does.
    pub status: watch::Receiver<AgentStatus>,
    /// How its session stands.
    pub news: watch::Receiver<News>,
    /// Who does how much.
    pub top: SharedTop,
}

impl Sources {
    /// Serves them until it is told to stop.
    pub async fn serve(self, place: Place, stop: CancellationToken) {
        let sources = Arc::new(self);
        let page = move || {
            let sources = Arc::clone(&sources);
            async move { Ok(sources.render()) }
        };
        place.serve(page, stop).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPoint {
    point: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCollector {
    collector: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCollectorAndPoint {
    collector: String,
    point: String,
}

type Gauges = Family<ByCollector, Gauge>;

impl Sources {
    /// The page at this moment.
    fn render(&self) -> String {
        // Copies: whoever writes to these does not wait for a page.
        let (status, news) = (self.status.borrow().clone(), self.news.borrow().clone());
        let series = Series::of(&self.top.lock());
        render(&status, &news, series)
    }
}

fn render(status: &AgentStatus, news: &News, series: Series) -> String {
    let mut registry = Registry::with_prefix("flowtilla_agent");
    let mut counter =
        |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    let (law, coverage) = (&status.kernel_law, &status.coverage);
    counter(
        "observed_octets",
        "IP octets that the kernel side has shown",
        law.observed_octets,
    );
    counter(
        "observed_packets",
        "Packets that the kernel side has shown",
        law.observed_packets,
    );
    counter("records", "Records made", status.records);
    counter(
        "owner_ends",
        "Ends on this host of flows that have ended",
        coverage.ends,
    );
    counter(
        "owner_ends_with_process",
        "Of these, ends with a process",
        coverage.with_process,
    );
    counter(
        "owner_ends_with_names",
        "Of these, ends whose executable is known",
        coverage.with_names,
    );
    counter(
        "container_asks",
        "Containers that a runtime was asked for by id",
        status.containers.asks,
    );
    counter(
        "containers_evicted",
        "Containers that others pushed out of the table of names",
        status.containers.evicted,
    );
    let outside = &status.left_out;
    counter(
        "kernel_left_out_connections",
        "TCP connections that the kernel side left out by the policy",
        outside.sum.connections,
    );
    counter(
        "kernel_left_out_packets",
        "Their packets, counted when they end, and datagrams, as each socket saw them",
        outside.sum.packets,
    );
    counter(
        "kernel_left_out_octets",
        "IP octets of these packets",
        outside.sum.octets,
    );
    counter(
        "unnamed_container_decisions",
        "Flows that a rule was to decide about by a container that no runtime had named",
        status.unnamed_containers,
    );
    counter("sessions", "Sessions with a controller", news.sessions);
    counter("svid_renewals", "SVIDs renewed", news.renewals);
    let mut gauge =
        |name: &str, help: &str, value: i64| registry.register(name, help, ConstGauge::new(value));
    gauge("flows", "Flows in the table", signed(status.flows));
    gauge(
        "containers",
        "Containers whose names are known",
        signed(status.containers.known),
    );
    gauge(
        "container_sockets",
        "Sockets of runtimes that tell of their containers",
        signed(status.containers.telling),
    );
    gauge(
        "kernel_left_out_cgroups",
        "Cgroups that the kernel side leaves out by the policy",
        signed(outside.cgroups),
    );
    gauge(
        "kernel_left_out_beyond",
        "Cgroups that found no room there: the agent leaves them out",
        signed(outside.beyond),
    );
    gauge(
        "connected",
        "Whether there is a session with a controller",
        i64::from(news.connected),
    );
    gauge(
        "policy_in_force",
        "Whether what is held is in force",
        i64::from(news.in_force),
    );
    let version = news.held.map_or(0, |held| held.version.number);
    gauge("policy_version", "Version of what is held", signed(version));
    gauge(
        "spool_octets",
        "Octets that the spool takes on the disk",
        signed(status.spool.as_ref().map_or(0, |spool| spool.octets)),
    );
    gauge(
        "resident_octets",
        "Resident memory",
        signed(cost::resident_octets().unwrap_or(0)),
    );
    registry.register_with_unit(
        "cpu",
        "CPU time of the process",
        Unit::Seconds,
        ConstCounter::new(clock::cpu_time().as_secs_f64()),
    );
    if let Some(time) = status.programs_time {
        registry.register_with_unit(
            "programs_cpu",
            "CPU time of the kernel programs",
            Unit::Seconds,
            ConstCounter::new(time.as_secs_f64()),
        );
    }
    let drops = Family::<ByPoint, Gauge>::default();
    for point in DropPoint::ALL {
        let label = ByPoint {
            point: point.to_string(),
        };
        drops.get_or_create(&label).set(signed(status.drops.at(point)));
    }
    registry.register(
        "dropped",
        "Lost before the records, by place, since the start",
        drops,
    );
    register_collectors(&mut registry, status);
    series.register(&mut registry);
    let mut page = String::new();
    encode(&mut page, &registry).expect("a string takes everything");
    page
}

fn register_collectors(registry: &mut Registry, status: &AgentStatus) {
    let families: [(&str, &str, Gauges); 6] = [
        ("collector_made", "Records for the collector", Gauges::default()),
        (
            "collector_taken",
            "Records that the collector has",
            Gauges::default(),
        ),
        (
            "collector_waiting",
            "Records that wait for the collector",
            Gauges::default(),
        ),
        (
            "collector_evicted",
            "Records that a bound of the spool pushed out",
            Gauges::default(),
        ),
        (
            "collector_lag_ms",
            "How long the oldest record has waited",
            Gauges::default(),
        ),
        ("collector_streaming", "Whether records flow", Gauges::default()),
    ];
    let dropped = Family::<ByCollectorAndPoint, Gauge>::default();
    for one in &status.collectors {
        let lag = status
            .lags
            .get(&one.name)
            .map_or(0, std::time::Duration::as_millis);
        let values = [
            one.law.made,
            one.law.taken,
            one.law.waiting,
            one.law.evicted,
            u64::try_from(lag).unwrap_or(u64::MAX),
            u64::from(matches!(one.state, CollectorState::Streaming { .. })),
        ];
        let label = ByCollector {
            collector: one.name.clone(),
        };
        for ((_, _, family), value) in families.iter().zip(values) {
            family.get_or_create(&label).set(signed(value));
        }
        for (point, records) in one.law.dropped.lossy() {
            let label = ByCollectorAndPoint {
                collector: one.name.clone(),
                point: point.to_string(),
            };
            dropped.get_or_create(&label).set(signed(records));
        }
    }
    for (name, help, family) in families {
        registry.register(name, help, family);
    }
    registry.register(
        "collector_dropped",
        "Records lost on the way to the collector, by place",
        dropped,
    );
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use flowtilla_agent_core::top::Top;

    use super::*;

    #[test]
    fn the_page_says_what_the_status_says() {
        let mut status = AgentStatus {
            records: 41,
            ..AgentStatus::default()
        };
        status.drops.add(DropPoint::PeerMapFull, 3);
        status.left_out.cgroups = 2;
        status.left_out.sum.octets = 77;
        let page = render(
            &status,
            &News {
                connected: true,
                ..News::default()
            },
            Series::of(&Top::default()),
        );
        for line in [
            "flowtilla_agent_records_total 41",
            "flowtilla_agent_connected 1",
            "flowtilla_agent_kernel_left_out_cgroups 2",
            "flowtilla_agent_kernel_left_out_octets_total 77",
            "flowtilla_agent_dropped{point=\"PeerMapFull\"} 3",
        ] {
            assert!(page.lines().any(|said| said == line), "{line} is not in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }
}
