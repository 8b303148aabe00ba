//! What a record says in a few words: the cells that the table and the lines share.
//!
//! The end that is told about is the one on this host; when both are, the initiator. `up` is what left it, `down` what
//! came to it. Names are as processes chose them; whoever prints them makes them harmless.

use std::borrow::Cow;
use std::net::SocketAddr;

use flowtilla_agent_core::flow::record::{EndReason, FlowRecord, Party, Protocol, Traffic};
use flowtilla_agent_core::observe::Endpoint;
use flowtilla_agent_core::owner::{Confidence, Owner, Unknown};

/// The end that is told about, and the other.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) near: &'a Party,
    pub(crate) far: &'a Party,
    /// Whether the near end is the initiator.
    pub(crate) outward: bool,
}

/// The ends of `record`.
pub(crate) fn ends(record: &FlowRecord) -> Ends<'_> {
    let remote = |party: &Party| party.owner.is_remote();
    let outward = !remote(&record.initiator) || remote(&record.responder);
    let (near, far) = if outward {
        (&record.initiator, &record.responder)
    } else {
        (&record.responder, &record.initiator)
    };
    Ends { near, far, outward }
}

impl Ends<'_> {
    /// Octets that left the near end, and octets that came to it.
    pub(crate) fn octets(&self, traffic: &Traffic) -> (u64, u64) {
        let (forward, backward) = (traffic.forward.octets, traffic.backward.octets);
        if self.outward {
            (forward, backward)
        } else {
            (backward, forward)
        }
    }

    /// A cell of the near end, and of the far end as well when that is on this host and says something else.
    pub(crate) fn both(&self, cell: fn(&Owner) -> Cow<'_, str>) -> Cow<'_, str> {
        let (near, far) = (cell(&self.near.owner), cell(&self.far.owner));
        match (near.is_empty(), far.is_empty()) {
            (false, false) if near != far => format!("{near}{}{far}", self.arrow()).into(),
            (true, _) => far,
            _ => near,
        }
    }

    /// `→` when the near end is the initiator, otherwise `←`.
    pub(crate) fn arrow(&self) -> &'static str {
        if self.outward { "→" } else { "←" }
    }
}

/// The executable's name without its folder, or the command name.
pub(crate) fn process(owner: &Owner) -> Cow<'_, str> {
    match owner.program() {
        None if owner.confidence == Confidence::Unknown(Unknown::Kernel) => "[kernel]",
        program => program
            .and_then(|path| path.rsplit('/').next())
            .unwrap_or_default(),
    }
    .into()
}

/// Process id.
pub(crate) fn pid(owner: &Owner) -> Cow<'_, str> {
    match &owner.process {
        Some(process) => process.key.pid.to_string().into(),
        None => "".into(),
    }
}

/// User name, or user id where the name is not known.
pub(crate) fn user(owner: &Owner) -> Cow<'_, str> {
    let name = owner.names.as_ref().and_then(|names| names.user.as_deref());
    let id = || Some(owner.process?.uid.to_string().into());
    name.map(Cow::Borrowed).or_else(id).unwrap_or_default()
}

/// `namespace/pod/container`, the container's name, or the beginning of its id.
pub(crate) fn container(owner: &Owner) -> Cow<'_, str> {
    let Some(container) = owner.names.as_ref().and_then(|names| names.container.as_ref()) else {
        return "".into();
    };
    container.shown()
}

/// The systemd unit.
pub(crate) fn unit(owner: &Owner) -> Cow<'_, str> {
    let unit = owner.names.as_ref().and_then(|names| names.unit.as_deref());
    unit.unwrap_or_default().into()
}

/// `tcp`, `udp`.
pub(crate) fn protocol(record: &FlowRecord) -> &'static str {
    match record.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// How the flow stands: the TCP state or `open` while it lives, then how it ended.
pub(crate) fn state(record: &FlowRecord) -> &'static str {
    record.reason.state(record.tcp.and_then(|tcp| tcp.state))
}

/// Whether the record is the last of its flow.
pub(crate) fn ended(record: &FlowRecord) -> bool {
    record.reason != EndReason::ActiveTimeout
}

/// Whether an attempt failed, or a connection was cut off by the other end or the network.
pub(crate) fn failed(record: &FlowRecord) -> bool {
    matches!(
        record.reason,
        EndReason::Refused | EndReason::Reset | EndReason::TimedOut | EndReason::Unreachable
    )
}

/// Retransmits of both ends since the last record.
pub(crate) fn retransmits(record: &FlowRecord) -> Option<u64> {
    let tcp = record.tcp?;
    Some(u64::from(tcp.retransmits_forward) + u64::from(tcp.retransmits_backward))
}

/// `192.0.2.1:80`, `[2001:db8::1]:80`.
pub(crate) fn socket(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address, endpoint.port)
}

/// How sure the attribution is, or why there is none.
pub(crate) fn confidence(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Exact => "exact",
        Confidence::Inherited => "inherited",
        Confidence::Backfilled => "backfilled",
        Confidence::Told => "told",
        Confidence::Unknown(Unknown::Remote) => "remote",
        Confidence::Unknown(Unknown::Kernel) => "kernel",
        Confidence::Unknown(Unknown::NotSeen) => "not-seen",
    }
}
