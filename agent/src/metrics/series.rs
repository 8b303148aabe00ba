//! Series of containers and pods: of some each its own, of all others together one.
//!
//! In: [`Top`], which chooses. Out: counters, which only rise while a series is there. Its label is a name that a runtime told,
//! made harmless when it was told, with the pod's before it: containers of many pods have one name. Where none did, it is the
//! beginning of the container's id. `_other` is no name of a container.

use std::hash::Hash;
use std::sync::atomic::AtomicU64;

use flowtilla_agent_core::owner::CONTAINER_ID_SHOWN;
use flowtilla_agent_core::top::{Subject, Sums, Top};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

/// What stands for all that have no series of their own.
const OTHER: &str = "_other";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Container {
    container: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pod {
    namespace: String,
    pod: String,
}

/// All of them at one moment.
pub(super) struct Series {
    containers: Families<Container>,
    pods: Families<Pod>,
}

impl Series {
    /// Copies them out of what the meter writes to, which waits meanwhile.
    pub(super) fn of(top: &Top) -> Self {
        let containers = Families::default();
        let (own, rest) = top.container_series();
        for (subject, sums) in own {
            if let Subject::Container { id, name, pod } = subject {
                let id = || id.get(..CONTAINER_ID_SHOWN).unwrap_or(id);
                let name = name.as_deref().unwrap_or_else(id);
                let container = match pod {
                    Some(pod) => format!("{}/{}/{name}", pod.namespace, pod.name),
                    None => name.to_owned(),
                };
                containers.add(&Container { container }, sums);
            }
        }
        let other = Container {
            container: OTHER.to_owned(),
        };
        containers.add(&other, rest);
        let pods = Families::default();
        let (own, rest) = top.pod_series();
        for (subject, sums) in own {
            if let Subject::Pod(pod) = subject {
                let label = Pod {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                };
                pods.add(&label, sums);
            }
        }
        let other = Pod {
            namespace: OTHER.to_owned(),
            pod: OTHER.to_owned(),
        };
        pods.add(&other, rest);
        Self { containers, pods }
    }

    /// Adds them to a page.
    pub(super) fn register(self, registry: &mut Registry) {
        self.containers.register(registry, "container");
        self.pods.register(registry, "pod");
    }
}

type Count<L> = Family<L, Counter>;
type Seconds<L> = Family<L, Counter<f64, AtomicU64>>;

/// A counter of whole numbers.
struct One<L> {
    name: &'static str,
    help: &'static str,
    value: fn(&Sums) -> u64,
    family: Count<L>,
}

/// The counters of one kind of label.
struct Families<L> {
    counts: [One<L>; 10],
    rtt: Seconds<L>,
    rtt_variance: Seconds<L>,
}

impl<L: Clone + Hash + Eq> Default for Families<L> {
    fn default() -> Self {
        let of = |name, help, value: fn(&Sums) -> u64| One {
            name,
            help,
            value,
            family: Count::default(),
        };
        Self {
            counts: [
                of("sent_octets", "IP octets sent", |sums| sums.sent.octets),
                of("received_octets", "IP octets received", |sums| {
                    sums.received.octets
                }),
                of("sent_packets", "Packets sent", |sums| sums.sent.packets),
                of("received_packets", "Packets received", |sums| {
                    sums.received.packets
                }),
                of("client_flows", "Flows begun", |sums| sums.flows_client),
                of("server_flows", "Flows accepted", |sums| sums.flows_server),
                of("retransmits", "Segments sent again", |sums| sums.retransmits),
                of(
                    "failed_attempts",
                    "Attempts that nobody answered, or that were refused",
                    |sums| sums.failed,
                ),
                of("rtt_samples", "Records with a round-trip time", |sums| {
                    sums.rtt_samples
                }),
                of("rtt_variance_samples", "Records with a deviation of it", |sums| {
                    sums.rtt_variance_samples
                }),
            ],
            rtt: Seconds::default(),
            rtt_variance: Seconds::default(),
        }
    }
}

impl<L: Clone + std::fmt::Debug + Hash + Eq + EncodeLabelSet + Send + Sync + 'static> Families<L> {
    /// Two of one name are one series.
    fn add(&self, label: &L, sums: &Sums) {
        for one in &self.counts {
            one.family.get_or_create(label).inc_by((one.value)(sums));
        }
        for (family, us) in [
            (&self.rtt, sums.rtt_us),
            (&self.rtt_variance, sums.rtt_variance_us),
        ] {
            family.get_or_create(label).inc_by(us as f64 / 1e6);
        }
    }

    fn register(self, registry: &mut Registry, kind: &str) {
        for one in self.counts {
            registry.register(format!("{kind}_{}", one.name), one.help, one.family);
        }
        for (name, help, family) in [
            ("rtt", "Smoothed round-trip times, summed over records", self.rtt),
            (
                "rtt_variance",
                "Mean deviations of round-trip times, summed over records",
                self.rtt_variance,
            ),
        ] {
            registry.register_with_unit(format!("{kind}_{name}"), help, Unit::Seconds, family);
        }
    }
}
