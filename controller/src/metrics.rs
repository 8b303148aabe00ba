//! `/metrics`: how the controller and its fleet do, for Prometheus. On loopback unless it is told otherwise.
//!
//! In: the fleet's thread, which is asked once a page and gets [`FLEET_WAIT`] for it, and counts that others keep. Labels come
//! from lists in this program: no name of an agent, an operator or a policy, and no address. At most [`PAGES_AT_ONCE`] pages are
//! made at a time; who asks for more is told to come again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowtilla_grpc::telemetry::page::Place;
use flowtilla_proto::wire::fleet::{AgentState, RolloutState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::fleet::view::Standing;
use crate::identity::tls::refused::Reason;
use crate::run::Parts;

/// How long the fleet's thread may take to say how the fleet stands. Without an answer the page says so, and the rest.
///
/// A sync of a slow disk. Half of it leaves gaps under load; double it, and a scrape nears its own time limit.
const FLEET_WAIT: Duration = Duration::from_secs(3);
/// Pages that are made at a time: one for Prometheus, one for a person.
const PAGES_AT_ONCE: usize = 2;
/// States of agents that are told.
const AGENT_STATES: [(AgentState, &str); 4] = [
    (AgentState::New, "new"),
    (AgentState::Connected, "connected"),
    (AgentState::Offline, "offline"),
    (AgentState::Revoked, "revoked"),
];
/// States of rollouts that are told.
const ROLLOUT_STATES: [(RolloutState, &str); 7] = [
    (RolloutState::Running, "running"),
    (RolloutState::Soaking, "soaking"),
    (RolloutState::Paused, "paused"),
    (RolloutState::Done, "done"),
    (RolloutState::RollingBack, "rolling_back"),
    (RolloutState::RolledBack, "rolled_back"),
    (RolloutState::Superseded, "superseded"),
];

/// Serves the page until it is told to stop.
pub async fn serve(place: Place, parts: Arc<Parts>, stop: CancellationToken) {
    if let Place::At(listener) = &place
        && let Ok(address) = listener.local_addr()
    {
        tracing::info!(%address, "/metrics is served");
    }
    let turns = Arc::new(Semaphore::new(PAGES_AT_ONCE));
    let page = move || answer(Arc::clone(&parts), Arc::clone(&turns));
    place.serve(page, stop).await;
}

async fn answer(parts: Arc<Parts>, turns: Arc<Semaphore>) -> Result<String, &'static str> {
    let Ok(_turn) = turns.try_acquire() else {
        return Err("others ask too: come again");
    };
    let standing = tokio::time::timeout(FLEET_WAIT, parts.fleet.standing()).await;
    let standing = standing.ok().and_then(Result::ok);
    Ok(render(&parts, standing.as_ref()))
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// The page at this moment.
fn render(parts: &Parts, standing: Option<&Standing>) -> String {
    let mut registry = Registry::with_prefix("flowtilla_controller");
    let version = env!("CARGO_PKG_VERSION");
    registry.register("build", "What this program is", Info::new(Build { version }));
    register_process(&mut registry, parts);
    register_doors(&mut registry, parts);
    let counts = parts.fleet.counts();
    for (name, help, counter) in [
        (
            "sessions",
            "Streams of agents that were accepted",
            &counts.sessions,
        ),
        ("offers", "Offers made to agents", &counts.offers),
        ("acks", "Offers that are in force", &counts.acks),
        ("nacks", "Offers that an agent refused", &counts.nacks),
    ] {
        registry.register(name, help, counter.clone());
    }
    registry.register_with_unit(
        "push_ack",
        "From an offer to its ack",
        Unit::Seconds,
        counts.answered.clone(),
    );
    let answers = ConstGauge::new(i64::from(standing.is_some()));
    registry.register(
        "fleet_answers",
        "Whether the fleet's thread answers in time",
        answers,
    );
    if let Some(standing) = standing {
        register_standing(&mut registry, standing);
    }
    let mut page = String::new();
    encode(&mut page, &registry).expect("a string takes everything");
    page
}

fn register_process(registry: &mut Registry, parts: &Parts) {
    registry.register_with_unit(
        "cpu",
        "CPU time of the process",
        Unit::Seconds,
        ConstCounter::new(clock::cpu_time().as_secs_f64()),
    );
    registry.register(
        "resident_octets",
        "Resident memory",
        ConstGauge::new(signed(resident_octets().unwrap_or(0))),
    );
    registry.register_with_unit(
        "start_time",
        "When it started, since the epoch",
        Unit::Seconds,
        ConstGauge::new(parts.started.seconds()),
    );
    let counts = parts.store.counts();
    registry.register_with_unit(
        "store_commit",
        "Commits to the store, until they were on the disk",
        Unit::Seconds,
        counts.committed.clone(),
    );
    registry.register("store_failures", "Commits that failed", counts.failed.clone());
}

/// Who came in, and who did not.
fn register_doors(registry: &mut Registry, parts: &Parts) {
    let handshakes = &parts.handshakes;
    registry.register(
        "connections",
        "Connections that are open",
        ConstGauge::new(i64::try_from(parts.connections.count()).unwrap_or(i64::MAX)),
    );
    registry.register(
        "handshakes",
        "Handshakes that were done",
        ConstCounter::new(handshakes.done.load(Ordering::Relaxed)),
    );
    let refused = Family::<ByReason, Counter>::default();
    let count = |reason: &'static str, number: u64| {
        refused.get_or_create(&ByReason { reason }).inc_by(number);
    };
    for reason in Reason::ALL {
        count(reason.word(), handshakes.reasons.of(reason));
    }
    count("late", handshakes.late.load(Ordering::Relaxed));
    count("dropped", handshakes.dropped.load(Ordering::Relaxed));
    registry.register("handshakes_refused", "Handshakes that were not done", refused);
    let identities = &parts.enrolments;
    registry.register("identities_given", "SVIDs given", identities.given.clone());
    registry.register("identities_refused", "SVIDs refused", identities.refused.clone());
    registry.register(
        "identities_failed",
        "SVIDs that could not be given for a failure of the controller",
        identities.failed.clone(),
    );
}

fn register_standing(registry: &mut Registry, standing: &Standing) {
    let agents = Family::<ByState, Gauge>::default();
    for (state, word) in AGENT_STATES {
        let number = standing.by_state.get(&state).copied().unwrap_or(0);
        agents
            .get_or_create(&ByState { state: word })
            .set(i64::from(number));
    }
    registry.register("agents", "Agents, by state", agents);
    let rollouts = Family::<ByState, Gauge>::default();
    for (state, word) in ROLLOUT_STATES {
        let number = standing.rollouts.get(&state).copied().unwrap_or(0);
        rollouts
            .get_or_create(&ByState { state: word })
            .set(i64::from(number));
    }
    registry.register("rollouts", "Rollouts that are kept, by state", rollouts);
    for (name, help, value) in [
        (
            "agents_converged",
            "Agents connected, with what they are to have in force",
            i64::from(standing.converged),
        ),
        (
            "agents_nacked",
            "Agents that refused what they are to have",
            i64::from(standing.nacked),
        ),
        (
            "disk_full",
            "Whether there is no room on the store's disk: nothing is changed until there is",
            i64::from(standing.still),
        ),
        ("revision", "The revision of record", signed(standing.revision)),
        ("epoch", "Rises with each restore", signed(standing.epoch)),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
}

/// Resident memory of this process, in octets; `None`: /proc does not tell. Source: proc(5), `/proc/PID/status`.
fn resident_octets() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
