//! Keeps the announcements, the host's addresses, and the collectors' and the spool's part of the status fresh, and what of
//! the policy's limits is passed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use flowtilla_agent_core::collector::lag::Lag;
use flowtilla_agent_core::cost::CostWatch;
use flowtilla_agent_core::encode::listening::ListeningPorts;
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_proto::policy::Limits;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cost;
use crate::export::Announcements;
use crate::host;
use crate::spool::SpoolStatus;
use crate::status::{AgentStatus, CollectorStatus};

/// How often.
const REFRESH: Duration = Duration::from_secs(1);
/// How often the host's addresses are read, in refreshes: a minute.
const ADDRESSES_EACH: u32 = 60;

/// Keeps fresh what collectors are told, and what is told about collectors.
pub(super) struct Refresh {
    pub(super) announcements: watch::Sender<Announcements>,
    pub(super) collectors: watch::Receiver<Vec<watch::Receiver<CollectorStatus>>>,
    pub(super) spools: watch::Receiver<Option<watch::Receiver<SpoolStatus>>>,
    pub(super) listening: watch::Receiver<Option<ListeningPorts>>,
    pub(super) status: watch::Sender<AgentStatus>,
    pub(super) addresses: watch::Sender<Vec<IpAddr>>,
    /// How long records have waited for each collector.
    pub(super) lags: BTreeMap<String, Lag>,
    pub(super) limits: watch::Receiver<Limits>,
    pub(super) cost: CostWatch,
}

impl Refresh {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let began = clock::instant();
        let mut refreshes = 0_u32;
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => self.refresh(began.elapsed()),
            }
            refreshes = refreshes.wrapping_add(1);
            if refreshes.is_multiple_of(ADDRESSES_EACH) {
                let read = host::addresses().0;
                self.addresses.send_if_modified(|known| {
                    let changed = *known != read;
                    *known = read;
                    changed
                });
            }
        }
    }

    /// How long the oldest record has waited, by collector.
    fn lags(&mut self, collectors: &[CollectorStatus]) -> BTreeMap<String, Duration> {
        let now = clock::kernel_now();
        let mut known = std::mem::take(&mut self.lags);
        let mut told = BTreeMap::new();
        for CollectorStatus { name, law, .. } in collectors {
            let mut lag = known.remove(name).unwrap_or_default();
            told.insert(name.clone(), lag.handle_law(law, now));
            self.lags.insert(name.clone(), lag);
        }
        told
    }

    fn refresh(&mut self, since: Duration) {
        let collectors: Vec<_> = self
            .collectors
            .borrow()
            .iter()
            .map(|one| one.borrow().clone())
            .collect();
        let spool = self.spools.borrow().as_ref().map(|spool| spool.borrow().clone());
        let lags = self.lags(&collectors);
        self.cost
            .observe(clock::kernel_now(), clock::cpu_time(), cost::resident_octets());
        let over_limits = self.cost.over(&self.limits.borrow());
        self.status.send_if_modified(|status| {
            if status.over_limits.is_empty() != over_limits.is_empty() {
                match over_limits.is_empty() {
                    true => tracing::info!("within the policy's limits again"),
                    false => tracing::warn!(over = over_limits.join("; "), "beyond the policy's limits"),
                }
            }
            let changed = status.collectors != collectors
                || status.spool != spool
                || status.lags != lags
                || status.over_limits != over_limits;
            (status.collectors, status.spool, status.lags) = (collectors, spool, lags);
            status.over_limits = over_limits;
            changed
        });
        let (law, drops) = {
            let status = self.status.borrow();
            (status.kernel_law, status.drops)
        };
        let listening = self.listening.borrow_and_update().clone().map(|mut ports| {
            ports.addresses.clone_from(&self.addresses.borrow());
            ports
        });
        let seconds = since.as_secs().max(1);
        self.announcements.send_modify(|all| {
            all.event.octets = law.observed_octets;
            all.event.packets = law.observed_packets;
            all.event.packet_drops = drops.at(DropPoint::PeerMapFull) + drops.at(DropPoint::UnknownSocket);
            all.event.average_bps = law.observed_octets.saturating_mul(8) / seconds;
            all.event.average_pps = law.observed_packets / seconds;
            all.event.table_drops = drops.at(DropPoint::SocketMapFull);
            all.listening = listening;
        });
    }
}
