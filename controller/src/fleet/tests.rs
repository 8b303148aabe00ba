use std::collections::BTreeMap;

use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Object, ObjectName, object};
use flowtilla_proto::wire::session as say;

use super::heard::{Heard, Hello, Mark};
use super::*;
use crate::policy::KIND_POLICY;

mod drain;
mod gate;
mod history;
mod mailbox;
mod members;
pub(crate) mod memory;
mod order;
mod questions;
mod rollouts;
mod rows;
mod stream;
mod top;
mod trials;
mod waves;

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    let map: BTreeMap<String, String> = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Labels::parse(&map).expect("labels")
}

pub(crate) fn name(text: &str) -> MemberName {
    MemberName::parse(text).expect("a name")
}

pub(crate) fn at(ms: u64) -> Now {
    Now {
        wall_ms: 1_700_000_000_000 + ms.cast_signed(),
        run_ms: ms,
    }
}

pub(crate) fn hello_wire(source_id: u32) -> say::Hello {
    say::Hello {
        version: "0.1.0".into(),
        host_name: "host".into(),
        source_id,
        boot_id: vec![7; 16],
        features: features(),
        ..say::Hello::default()
    }
}

/// All that an agent of this version says that it understands.
pub(crate) fn features() -> Vec<i32> {
    let known = |number: &i32| say::Feature::try_from(*number).is_ok();
    (1..=i32::from(u8::MAX)).filter(known).collect()
}

pub(crate) fn from_agent(body: say::from_agent::Body) -> say::FromAgent {
    say::FromAgent { body: Some(body) }
}

pub(crate) fn hello(source_id: u32, held: Option<Mark>) -> Hello {
    let sent = say::Hello {
        held: held.map(Mark::to_wire),
        ..hello_wire(source_id)
    };
    Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello")
}

pub(crate) fn ack(offer: &OfferOut) -> Heard {
    Heard::Ack {
        nonce: offer.nonce,
        held: offer.mark,
        effective: Some(Box::default()),
    }
}

pub(crate) fn nack(nonce: u64, reason: &str) -> Heard {
    Heard::Nack(Box::new(say::Nack {
        nonce,
        reason: reason.into(),
        ..say::Nack::default()
    }))
}

pub(crate) fn collector(name: &str) -> Object {
    let collector = wire::Collector {
        name: name.into(),
        endpoint: "tcp://192.0.2.1:5556".into(),
        ..wire::Collector::default()
    };
    Object {
        kind: Some(object::Kind::Collector(collector)),
    }
}

pub(crate) fn policy(
    name: &str,
    priority: u32,
    selector: &[(&str, &str)],
    collectors: &[&str],
) -> wire::Policy {
    wire::Policy {
        name: name.into(),
        priority,
        selector: Some(wire::Selector {
            labels: labels(selector).as_map().clone(),
            agents: Vec::new(),
        }),
        export: Some(wire::Export {
            collectors: collectors.iter().map(|&name| name.to_owned()).collect(),
            ..wire::Export::default()
        }),
        ..wire::Policy::default()
    }
}

pub(crate) fn object(policy: wire::Policy) -> Object {
    Object {
        kind: Some(object::Kind::Policy(policy)),
    }
}

pub(crate) fn change(objects: Vec<Object>, removed: &[&str]) -> Change {
    let removed = removed.iter().map(|&name| ObjectName {
        kind: KIND_POLICY.into(),
        name: name.into(),
    });
    Change {
        objects,
        removed: removed.collect(),
        by: "spiffe://fleet.test/operator/admin".into(),
        ..Change::default()
    }
}

/// Everything that is to be said, in its order.
pub(crate) fn drain(fleet: &mut Fleet) -> Vec<(SessionId, Speech)> {
    std::iter::from_fn(|| fleet.poll_speech()).collect()
}

/// The one offer in there.
pub(crate) fn offer_in(said: &[(SessionId, Speech)]) -> OfferOut {
    let offers: Vec<&OfferOut> = said
        .iter()
        .filter_map(|(_, speech)| match speech {
            Speech::Offer(offer) => Some(offer),
            _ => None,
        })
        .collect();
    assert_eq!(offers.len(), 1, "{said:?}");
    offers[0].clone()
}

pub(crate) fn empty() -> Fleet {
    Fleet::load(&memory::Memory::default(), at(0)).expect("an empty store")
}
