//! What is wanted of an agent, what is in force, and the steps from one to the other.
//!
//! In: validated [`Policy`] and [`Collector`] values. Out: [`plan::Step`]s, which the agent executes one by one. After
//! each step that succeeded, [`InForce::apply`] notes it; so a plan that broke off is simply made again.
//! Nothing reaches capture, metering, naming or export in another way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flowtilla_proto::collector::Collector;
use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::mistake::{Mistake, Mistakes};
use flowtilla_proto::policy::{
    Buffer, CommandLine, Containers, Failover, FlowRule, Limits, Loopback, Policy, Sampling, Scope,
};

use crate::flow::record::CollectorSlot;

pub use self::plan::{Step, plan};

mod plan;

/// What is wanted of an agent: a policy with the collectors it names, or nothing at all.
///
/// Invariant: `collectors` are those that the policy names, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    policy: Option<Policy>,
    collectors: Vec<Collector>,
    /// Nothing is captured all the same; what waits goes on to the collectors.
    drained: bool,
}

/// What the kernel side is to observe. A change means to detach and to attach anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturePlan {
    /// Whether TCP sockets are observed.
    pub tcp: bool,
    /// Whether UDP sockets are observed.
    pub udp: bool,
    /// Parts of the host that are observed; empty: all of it.
    pub scopes: Vec<Scope>,
    /// Sizes the kernel's maps, which cannot grow: so many TCP sockets, likewise UDP peers; a quarter of it UDP sockets.
    pub max_flows: u32,
}

/// How the table cuts flows into records. Changed in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metering {
    /// Longest span that one record of a live flow covers.
    pub active_timeout: Duration,
    /// Longest silence before a flow ends.
    pub idle_timeout: Duration,
    /// Most flows at once.
    pub max_flows: u64,
}

/// Which flows are kept. Changed in place, from the next record of each flow on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtering {
    /// Flows that are kept: those that one of these matches; empty: all.
    pub include: Vec<FlowRule>,
    /// Flows that are left out, included or not.
    pub exclude: Vec<FlowRule>,
    /// Which share of the rest is kept.
    pub sampling: Sampling,
}

impl Filtering {
    /// Whether no flow is left out, whatever it is.
    #[must_use]
    pub fn keeps_everything(&self) -> bool {
        *self == Self::default()
    }
}

/// What holds for the export to every collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportTerms {
    /// What a collector sees of a loopback address.
    pub loopback: Loopback,
    /// When to change over; `None`: each collector is fed by itself.
    pub failover: Option<Failover>,
}

/// One stream of records with a cursor of its own: to a collector, or to the first of several that is in reach. A change
/// of collectors or terms means to stop and to start anew, from where the cursor stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporting {
    /// The collector's name, or that of all together.
    pub name: CollectorName,
    /// Its place in [`CollectorSet`](crate::flow::record::CollectorSet)s, kept as long as it is fed.
    pub slot: CollectorSlot,
    /// Which collectors, the preferred one first; more than one only with failover.
    pub collectors: Vec<Collector>,
    /// On which terms.
    pub terms: ExportTerms,
}

/// What an agent does at this moment. Made by executing steps only; an agent begins with nothing in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    capture: Option<CapturePlan>,
    metering: Option<Metering>,
    naming: Option<CommandLine>,
    containers: Option<Containers>,
    filtering: Filtering,
    limits: Limits,
    buffer: Option<Buffer>,
    collectors: BTreeMap<CollectorName, Exporting>,
}

impl Wanted {
    /// An agent that captures nothing and feeds nobody.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            policy: None,
            collectors: Vec::new(),
            drained: false,
        }
    }

    /// The same without capture: collectors are fed with what waits.
    #[must_use]
    pub fn drained(self) -> Self {
        Self {
            drained: true,
            ..self
        }
    }

    /// A policy and the collectors to choose from. Those that the policy does not name are left out.
    ///
    /// # Errors
    ///
    /// A name in the policy that no collector has; a name that two collectors have.
    pub fn new(policy: Policy, collectors: Vec<Collector>) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut by_name: BTreeMap<CollectorName, Collector> = BTreeMap::new();
        for (n, collector) in collectors.into_iter().enumerate() {
            if by_name.contains_key(&collector.name) {
                mistakes.push(Mistake {
                    path: format!("collectors[{n}].name"),
                    value: Some(collector.name.to_string()),
                    why: "is another collector's name too".into(),
                    remedy: "give each collector a name of its own".into(),
                });
                continue;
            }
            by_name.insert(collector.name.clone(), collector);
        }
        let mut chosen = Vec::new();
        for (n, name) in policy.export.collectors.iter().enumerate() {
            match by_name.remove(name) {
                Some(collector) => chosen.push(collector),
                None => mistakes.push(Mistake {
                    path: format!("export.collectors[{n}]"),
                    value: Some(name.to_string()),
                    why: "is no collector that exists".into(),
                    remedy: "name one that does, or make a Collector of this name".into(),
                }),
            }
        }
        match Mistakes::from_list(mistakes) {
            Some(mistakes) => Err(mistakes),
            None => Ok(Self {
                policy: Some(policy),
                collectors: chosen,
                drained: false,
            }),
        }
    }

    /// The same within these parts of the host, which are the agent's own whatever the policy says.
    ///
    /// # Errors
    ///
    /// A scope in the policy of a kind that the agent's own are of too: it would widen them.
    pub fn within(&self, own: &[Scope]) -> Result<Self, Mistakes> {
        let mut wanted = self.clone();
        let Some(policy) = &mut wanted.policy else {
            return Ok(wanted);
        };
        let kind = |scope: &Scope| match scope {
            Scope::Cgroup(_) => "cgroup",
            Scope::Netns(_) => "netns",
        };
        let mut mistakes = Vec::new();
        for (n, scope) in policy.capture.scopes.iter().enumerate() {
            let (name, is_own) = (kind(scope), own.iter().any(|own| kind(own) == kind(scope)));
            if is_own {
                mistakes.push(Mistake {
                    path: format!("capture.scopes[{n}].{name}"),
                    value: Some(scope.to_string()),
                    why: format!("is refused: this agent was started with a {name} scope of its own"),
                    remedy: "leave it out of the policy, or start the agent without --scope".into(),
                });
            }
        }
        policy.capture.scopes.extend_from_slice(own);
        match Mistakes::from_list(mistakes) {
            Some(mistakes) => Err(mistakes),
            None => Ok(wanted),
        }
    }

    /// The policy; `None`: nothing is wanted.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// The collectors that the policy names, in its order.
    #[must_use]
    pub fn collectors(&self) -> &[Collector] {
        &self.collectors
    }
}

impl InForce {
    /// What is observed; `None`: nothing is attached.
    #[must_use]
    pub fn capture(&self) -> Option<&CapturePlan> {
        self.capture.as_ref()
    }

    /// How flows are cut; `None` before the first policy.
    #[must_use]
    pub fn metering(&self) -> Option<Metering> {
        self.metering
    }

    /// How much of command lines leaves the host; `None` before the first policy.
    #[must_use]
    pub fn naming(&self) -> Option<CommandLine> {
        self.naming
    }

    /// Who is asked for the names of containers; `None` before the first policy.
    #[must_use]
    pub fn containers(&self) -> Option<&Containers> {
        self.containers.as_ref()
    }

    /// Which flows are kept; all before the first policy.
    #[must_use]
    pub fn filtering(&self) -> &Filtering {
        &self.filtering
    }

    /// What the agent may cost; whatever it takes before the first policy.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What may wait on disk; `None` before the first policy.
    #[must_use]
    pub fn buffer(&self) -> Option<Buffer> {
        self.buffer
    }

    /// Who is fed, by name.
    pub fn collectors(&self) -> impl Iterator<Item = &Exporting> {
        self.collectors.values()
    }

    /// Notes that `step` was executed. Doing it twice changes nothing more.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::DetachCapture => self.capture = None,
            Step::StopCollector(name) | Step::ForgetCollector(name) => {
                self.collectors.remove(name);
            }
            Step::UpdateMetering(metering) => self.metering = Some(*metering),
            Step::UpdateNaming(command_line) => self.naming = Some(*command_line),
            Step::UpdateContainers(containers) => self.containers = Some(containers.clone()),
            Step::UpdateFilter(filtering) => self.filtering = filtering.as_ref().clone(),
            Step::UpdateLimits(limits) => self.limits = *limits,
            Step::UpdateBuffer(buffer) => self.buffer = Some(*buffer),
            Step::StartCollector(exporting) => {
                self.collectors
                    .insert(exporting.name.clone(), exporting.as_ref().clone());
            }
            Step::AttachCapture(capture) => self.capture = Some(capture.clone()),
        }
    }

    fn slots(&self) -> BTreeSet<CollectorSlot> {
        self.collectors.values().map(|exporting| exporting.slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::wire;

    use super::*;

    fn wanted(scopes: &[&str]) -> Wanted {
        let part = |text: &str| {
            Some(match text.strip_prefix("cgroup=") {
                Some(path) => wire::scope::Part::Cgroup(path.to_owned()),
                None => wire::scope::Part::Netns(text.trim_start_matches("netns=").to_owned()),
            })
        };
        let policy = wire::Policy {
            capture: Some(wire::Capture {
                scopes: scopes
                    .iter()
                    .map(|text| wire::Scope { part: part(text) })
                    .collect(),
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        };
        Wanted::new(Policy::try_from(policy).expect("sound"), Vec::new()).expect("sound")
    }

    fn scopes(wanted: &Wanted) -> Vec<String> {
        let policy = wanted.policy().expect("a policy");
        policy.capture.scopes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_policy_narrows_the_agents_own_part_of_the_host_and_never_widens_it() {
        let own = wanted(&["netns=/run/netns/a"]);
        let own = &own.policy().expect("a policy").capture.scopes;
        let narrowed = wanted(&["cgroup=/x.slice"]).within(own).expect("of another kind");
        assert_eq!(scopes(&narrowed), ["cgroup=/x.slice", "netns=/run/netns/a"]);
        assert_eq!(
            scopes(&wanted(&[]).within(own).expect("none")),
            ["netns=/run/netns/a"]
        );
        let mistakes = wanted(&["cgroup=/x.slice", "netns=/run/netns/b"])
            .within(own)
            .expect_err("wider");
        assert!(
            mistakes.to_string().starts_with("capture.scopes[1].netns: "),
            "{mistakes}"
        );
        assert_eq!(Wanted::nothing().within(own), Ok(Wanted::nothing()));
        let both = wanted(&["netns=/run/netns/b"]);
        assert_eq!(both.within(&[]), Ok(both));
    }
}
