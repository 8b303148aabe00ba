//! The JSON shape of `agentctl top`. Fields are added, never renamed.
//!
//! ```text
//! view, sort     as they were asked for
//! windowMs       the longest window of an agent
//! agents, answered
//! silent         [{agent, why}]: those that did not answer, the first 100
//! rows           agent, windowMs, and one of
//!                  container {id, name, podNamespace, pod}   pod {podNamespace, name}
//!                  process {program, container, unit}        user {name}
//!                  flow {protocol, client, server, state}; an end has address, port, program, container, unit
//!                window, total: sums; what is not known is absent
//! more           how many rows more there are
//! evicted        rows that bounds of agents pushed out
//! other          window, total: the sums of these
//!
//! sums           flowsClient, flowsServer, octetsSent, octetsReceived, packetsSent, packetsReceived, rttUs and rttVarianceUs
//!                (means over records), retransmits, failed
//! ```

use std::net::IpAddr;

use flowtilla_proto::wire::fleet::{TopAgentRow, TopResponse};
use flowtilla_proto::wire::session::top_row::Subject;
use flowtilla_proto::wire::session::{TopFlowEnd, TopProcess, TopSums};

use super::Looking;
use crate::document::render::Plain;

/// The whole answer.
pub(crate) fn top(response: &TopResponse, looking: Looking) -> Plain {
    let silent = response
        .silent
        .iter()
        .map(|silent| map([("agent", text(&silent.agent)), ("why", text(&silent.why))]));
    let other = map([
        ("window", sums(response.other.as_ref())),
        ("total", sums(response.other_total.as_ref())),
    ]);
    map([
        ("view", text(looking.view.word())),
        ("sort", text(looking.sort.word())),
        ("windowMs", number(response.window_ms)),
        ("agents", number(response.agents.into())),
        ("answered", number(response.answered.into())),
        ("silent", Some(Plain::List(silent.collect()))),
        ("rows", Some(Plain::List(response.rows.iter().map(row).collect()))),
        ("more", number(response.more)),
        ("evicted", number(response.evicted)),
        ("other", Some(other)),
    ])
}

fn row(row: &TopAgentRow) -> Plain {
    let told = row.row.as_ref();
    let subject = told.and_then(|told| told.subject.as_ref()).map(subject);
    let (name, subject) = subject.unzip();
    let mut fields = vec![("agent", text(&row.agent)), ("windowMs", number(row.window_ms))];
    fields.extend(name.map(|name| (name, subject)));
    fields.extend([
        ("window", sums(told.and_then(|told| told.window.as_ref()))),
        ("total", sums(told.and_then(|told| told.total.as_ref()))),
    ]);
    map(fields)
}

fn subject(subject: &Subject) -> (&'static str, Plain) {
    match subject {
        Subject::Container(one) => (
            "container",
            map([
                ("id", text(&one.id)),
                ("name", text(&one.name)),
                ("podNamespace", text(&one.pod_namespace)),
                ("pod", text(&one.pod)),
            ]),
        ),
        Subject::Pod(pod) => (
            "pod",
            map([
                ("podNamespace", text(&pod.pod_namespace)),
                ("name", text(&pod.name)),
            ]),
        ),
        Subject::Process(one) => ("process", map(process(one))),
        Subject::User(user) => ("user", map([("name", text(&user.name))])),
        Subject::Flow(flow) => (
            "flow",
            map([
                ("protocol", text(protocol(flow.protocol))),
                ("client", flow.client.as_ref().map(end)),
                ("server", flow.server.as_ref().map(end)),
                ("state", text(&flow.state)),
            ]),
        ),
    }
}

fn process(one: &TopProcess) -> [(&'static str, Option<Plain>); 3] {
    [
        ("program", text(&one.program)),
        ("container", text(&one.container)),
        ("unit", text(&one.unit)),
    ]
}

fn end(end: &TopFlowEnd) -> Plain {
    let mut fields = vec![
        (
            "address",
            address(end).and_then(|address| text(&address.to_string())),
        ),
        ("port", number(end.port.into())),
    ];
    fields.extend(end.process.iter().flat_map(process));
    map(fields)
}

/// The address of an end.
pub(super) fn address(end: &TopFlowEnd) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(&*end.address).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(&*end.address).map(IpAddr::from))
        .ok()
}

/// `tcp`, `udp`.
pub(super) fn protocol(number: u32) -> &'static str {
    match number {
        6 => "tcp",
        17 => "udp",
        _ => "",
    }
}

fn sums(sums: Option<&TopSums>) -> Option<Plain> {
    let sums = sums?;
    Some(map([
        ("flowsClient", number(sums.flows_client)),
        ("flowsServer", number(sums.flows_server)),
        ("octetsSent", number(sums.octets_sent)),
        ("octetsReceived", number(sums.octets_received)),
        ("packetsSent", number(sums.packets_sent)),
        ("packetsReceived", number(sums.packets_received)),
        ("rttUs", sums.rtt_mean_us().map(Plain::Number)),
        ("rttVarianceUs", sums.rtt_variance_mean_us().map(Plain::Number)),
        ("retransmits", number(sums.retransmits)),
        ("failed", number(sums.failed)),
    ]))
}

fn number(n: u64) -> Option<Plain> {
    Some(Plain::Number(n))
}

/// Nothing where there is none.
fn text(text: &str) -> Option<Plain> {
    (!text.is_empty()).then(|| Plain::Text(text.to_owned()))
}

fn map(fields: impl IntoIterator<Item = (&'static str, Option<Plain>)>) -> Plain {
    let there = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Plain::Map(there.collect())
}
