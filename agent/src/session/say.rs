//! What the agent says, put into the words of the API.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::session::{FEATURES, Held, Outgoing};
use flowtilla_agent_core::top::wire::Question as TopQuestion;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::wire::session::{self as wire, from_agent::Body};

/// Addresses that are told at most. Source: `session.proto`, Hello.
pub const ADDRESSES_MAX: usize = 256;

/// What a hello says beside what is held.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Version of the agent.
    pub version: String,
    /// The host's name.
    pub host_name: String,
    /// `uname -r`.
    pub kernel: String,
    /// Name of the operating system.
    pub operating_system: String,
    /// The source id that the agent would take.
    pub source_id: SourceId,
    /// From the host's own configuration.
    pub labels: BTreeMap<String, String>,
    /// The run of the kernel.
    pub boot: BootId,
    /// Part of the host that it watches, in words; empty: all of it.
    pub scope: String,
    /// Drawn at each start of the process: tells a copy of this agent from this one.
    pub instance: u64,
}

/// What the session asks of the agent, again and again. Each answers at once.
pub struct Vitals {
    /// How it does.
    pub health: Box<dyn FnMut() -> wire::Health + Send>,
    /// The host's own addresses.
    pub addresses: Box<dyn FnMut() -> Vec<IpAddr> + Send>,
    /// Who does how much.
    pub top: Box<dyn FnMut(TopQuestion) -> wire::TopAnswer + Send>,
}

/// Turns what the core says into messages, and remembers which addresses were told.
pub(super) struct Speaker {
    pub(super) facts: Facts,
    pub(super) vitals: Vitals,
    told: Vec<Vec<u8>>,
}

impl Speaker {
    pub(super) fn new(facts: Facts, vitals: Vitals) -> Self {
        Self {
            facts,
            vitals,
            told: Vec::new(),
        }
    }

    pub(super) fn say(&mut self, what: Outgoing) -> wire::FromAgent {
        let body = match what {
            Outgoing::Hello(held) => Body::Hello(self.hello(held)),
            Outgoing::Heartbeat(held) => Body::Heartbeat(self.heartbeat(held)),
            Outgoing::Ack {
                nonce,
                held,
                effective,
            } => Body::Ack(wire::Ack {
                nonce,
                held: Some(held.into()),
                effective,
            }),
            Outgoing::Nack { nonce, held, fault } => Body::Nack(wire::Nack {
                nonce,
                held: held.map(Into::into),
                ..fault.into()
            }),
            Outgoing::Top(question) => Body::Top((self.vitals.top)(question)),
            Outgoing::Goodbye => Body::Goodbye(wire::Goodbye {
                reason: "it was told to stop".into(),
            }),
        };
        wire::FromAgent { body: Some(body) }
    }

    fn hello(&mut self, held: Option<Held>) -> wire::Hello {
        self.told = self.addresses();
        wire::Hello {
            version: self.facts.version.clone(),
            host_name: self.facts.host_name.clone(),
            kernel: self.facts.kernel.clone(),
            operating_system: self.facts.operating_system.clone(),
            addresses: self.told.clone(),
            source_id: self.facts.source_id.number(),
            held: held.map(Into::into),
            labels: self.facts.labels.clone(),
            boot_id: self.facts.boot.0.to_vec(),
            scope: self.facts.scope.clone(),
            instance: self.facts.instance.to_be_bytes().to_vec(),
            features: FEATURES.map(Into::into).to_vec(),
        }
    }

    fn heartbeat(&mut self, held: Option<Held>) -> wire::Heartbeat {
        let addresses = self.addresses();
        let changed = addresses != self.told;
        self.told.clone_from(&addresses);
        wire::Heartbeat {
            held: held.map(Into::into),
            health: Some((self.vitals.health)()),
            addresses: changed.then_some(wire::Addresses { addresses }),
        }
    }

    fn addresses(&mut self) -> Vec<Vec<u8>> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut addresses: Vec<_> = (self.vitals.addresses)().into_iter().map(octets).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }
}
