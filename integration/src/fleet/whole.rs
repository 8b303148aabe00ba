//! A fleet as a whole: hosts, a controller, an agent on each host but the last, and one collector, libzmq's own SUB.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::shown::{Key, Shown, Sum, key_of};
use super::{Controller, Hub, Member};
use crate::collector::{self, Collector, Setup};
use crate::need::{self, Need};
use crate::scene::Told;
use crate::wait::{self, PATIENCE};

/// Lists are told half a minute after the controller's start, and settle; and some, on a busy machine.
pub const ONCE_WITHIN: Duration = Duration::from_secs(180);
/// Records of flows that have ended are at the collector within the idle timeout of UDP, and some.
pub const ARRIVED_WITHIN: Duration = Duration::from_secs(120);
const NFT: Need = Need::Program("nft", "nftables");

/// Between which hosts, by which protocol, and what both ends said.
pub type Traffic = ((u8, u8), u64, Told);

/// Controller, agents, collector and hosts.
pub struct Fleet {
    /// What all agents export to.
    pub collector: Collector,
    /// The agents: of host 0, 1 and so on.
    pub members: Vec<Member>,
    /// What they obey.
    pub controller: Controller,
    sum: RefCell<Sum>,
    /// Declared last: its namespaces go last.
    pub hub: Hub,
}

impl Fleet {
    /// Has agents with these labels join, one a host, without a policy: nothing is captured yet. The last host has no agent.
    /// `None`: the machine cannot.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn join(labels: &[&[&str]]) -> Result<Option<Self>> {
        if !need::met(&need::WORLD) || !need::met(&collector::NEEDS) || !need::met(&[NFT]) {
            return Ok(None);
        }
        let hosts = u8::try_from(labels.len() + 1)?;
        let hub = Hub::build(hosts)?;
        let collector = Collector::bind(Setup::default())?;
        let controller = Controller::start()?;
        let mut members = Vec::new();
        for (n, labels) in (0..).zip(labels) {
            members.push(Member::join(&controller, &hub, n, labels)?);
        }
        Ok(Some(Self {
            collector,
            members,
            controller,
            sum: RefCell::default(),
            hub,
        }))
    }

    /// Builds one of so many agents, with a policy for all of them that has `more`; `None`: the machine cannot.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn build(agents: u8, more: &str) -> Result<Option<Self>> {
        let labels: Vec<&[&str]> = vec![&[]; usize::from(agents)];
        let Some(fleet) = Self::join(&labels)? else {
            return Ok(None);
        };
        fleet.controller.deploy_all(&fleet.documents(more))?;
        Ok(Some(fleet))
    }

    /// The collector, and a policy for all agents that has `more`.
    #[must_use]
    pub fn documents(&self, more: &str) -> String {
        format!(
            "apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: {}\n---\n\
             apiVersion: flowtilla/v1\nkind: Policy\nname: all\nexport: {{collectors: [main]}}\n{more}\n",
            self.collector.endpoint()
        )
    }

    /// Makes traffic between the pairs of hosts until each of their agents leaves a flow to another, and flows are told by
    /// one agent alone.
    ///
    /// # Errors
    /// When they never are.
    pub fn wait_until_counted_once(&self, pairs: &[(u8, u8)]) -> Result<()> {
        let hosts: BTreeSet<String> = pairs
            .iter()
            .flat_map(|(from, to)| [format!("h{from}"), format!("h{to}")])
            .collect();
        wait::until(ONCE_WITHIN, "flows that are left to a peer", || {
            for &(from, to) in pairs {
                self.hub.tcp(from, to, &["--count", "4"])?;
            }
            let agents = self.controller.agents()?;
            let mut these = agents.iter().filter(|agent| {
                let host = agent["labels"]["host"].as_str();
                host.is_some_and(|host| hosts.contains(host))
            });
            let all = these.all(|agent| {
                let peers = agent["health"]["peers"].as_array().cloned().unwrap_or_default();
                let some = |what: &str| peers.iter().any(|peer| peer[what].as_u64() > Some(0));
                some("heldRecords") && some("spokenRecords")
            });
            Ok(all.then_some(()))
        })?;
        // Both are counted from the first list on; flows are told once when it has settled.
        let told = wait::until(ONCE_WITHIN, "a flow that one agent alone tells by deltas", || {
            let mut told = Vec::new();
            for &(from, to) in pairs {
                told.push(((from, to), 6, self.hub.tcp(from, to, &["--count", "4"])?));
            }
            let flows = self.wait_for(&told, &BTreeSet::new())?;
            for (_, protocol, told) in &told {
                for client in &told.clients {
                    let flow = &flows[&key_of(told, client, *protocol)?];
                    if (flow.told_by.len(), flow.counted_by.len()) != (1, 1) {
                        return Ok(None);
                    }
                }
            }
            Ok(Some(()))
        });
        told.with_context(|| format!("{:#?}", self.controller.agents()))
    }

    /// All flows so far.
    ///
    /// # Errors
    /// When a message is missing or cannot be read.
    pub fn shown(&self) -> Result<BTreeMap<Key, Shown>> {
        let mut sum = self.sum.borrow_mut();
        sum.take(&self.collector)?;
        Ok(sum.flows.clone())
    }

    /// Waits until the collector has all payload of these flows; the flows that are not among `already`.
    ///
    /// # Errors
    /// When it never has, with what is missing.
    pub fn wait_for(&self, told: &[Traffic], already: &BTreeSet<Key>) -> Result<BTreeMap<Key, Shown>> {
        let mut missing = String::new();
        let waited = wait::until(ARRIVED_WITHIN, "flows at the collector", || {
            let mut flows = self.shown()?;
            flows.retain(|key, _| !already.contains(key));
            for (way, protocol, told) in told {
                for client in &told.clients {
                    let key = key_of(told, client, *protocol)?;
                    let octets = flows.get(&key).map_or(0, Shown::sum);
                    if octets < client.sent + client.received {
                        missing = format!("{way:?} {key:?}: {octets} octets of {client:?}");
                        return Ok(None);
                    }
                }
            }
            Ok(Some(flows))
        });
        waited.context(missing)
    }

    /// Source id of the agent of a host.
    ///
    /// # Errors
    /// When the controller does not know it.
    pub fn source_of(&self, host: u8) -> Result<u32> {
        let agent = self.controller.agent(&format!("h{host}"))?;
        let agent = agent.context("the controller knows the agent")?;
        let id = agent["sourceId"].as_u64().context("an agent has a source id")?;
        Ok(u32::try_from(id)?)
    }

    /// Stops every agent as a service is stopped, and sees that the controller lost none before. The collector has all that
    /// there will be.
    ///
    /// # Errors
    /// When something was lost, or one does not end well.
    pub fn end(mut self) -> Result<Collector> {
        let mut said = String::new();
        // One that has just come back to the controller tells its sums with its next heartbeat.
        let waited = wait::until(PATIENCE, "a fleet that lost nothing", || {
            let loss = self.controller.ctl(&["loss", "-o", "json"])?;
            said =
                String::from_utf8_lossy(&loss.stdout).into_owned() + &String::from_utf8_lossy(&loss.stderr);
            let told: Value = serde_json::from_slice(&loss.stdout).context(said.clone())?;
            Ok(is_whole(&told).then_some(()))
        });
        println!("{said}");
        waited.context(said)?;
        for member in &mut self.members {
            member.stop()?;
        }
        Ok(self.collector)
    }
}

/// Whether all agents told their sums, and nothing is lost but runs of programs, which a busy kernel skips when several agents
/// watch it: what these would have seen is compared with the wire.
fn is_whole(told: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let agents = list(&told["agents"]);
    let whole = |agent: &Value| {
        let Some(drops) = agent["drops"].as_object() else {
            return false;
        };
        let collectors = list(&agent["collectors"]);
        agent["untoldOctets"] == 0
            && drops
                .iter()
                .all(|(point, count)| point == "ProgramSkipped" || *count == 0)
            && collectors
                .iter()
                .all(|one| one["lost"] == 0 && one["missing"] == 0)
    };
    !agents.is_empty() && agents.iter().all(whole)
}
