//! Questions and reports as they travel.
//!
//! In: an operator's question, by way of the controller. Out: an answer of at most [`ANSWER_OCTETS_MAX`], whatever names are in
//! it.

use std::net::IpAddr;

use flowtilla_proto::wire::session as wire;
use prost::Message as _;

use super::{FlowEnd, Order, Place, Report, ReportRow, Subject, Sums, View};
use crate::owner::Pod;

/// Rows of an answer, at most.
pub const ANSWER_ROWS_MAX: usize = 200;
/// Octets of an answer, at most: rows that do not fit go into its sums. The controller reads messages of 128 KiB.
pub const ANSWER_OCTETS_MAX: usize = 96 << 10;
/// Longest text of a row, in octets; what is longer is cut. Source: paths of executables are seldom longer.
const TEXT_OCTETS_MAX: usize = 255;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Names the question on its stream.
    pub id: u64,
    /// Which view.
    pub view: View,
    /// In which order.
    pub order: Order,
    /// Rows, from 1 to [`ANSWER_ROWS_MAX`].
    pub rows: usize,
}

impl Question {
    /// Reads a question; `None`: of a view that this version does not know.
    #[must_use]
    pub fn parse(sent: &wire::TopQuestion) -> Option<Self> {
        let rows = usize::try_from(sent.rows).unwrap_or(usize::MAX);
        Some(Self {
            id: sent.id,
            view: match sent.view() {
                wire::TopView::Containers => View::Containers,
                wire::TopView::Pods => View::Pods,
                wire::TopView::Processes => View::Processes,
                wire::TopView::Users => View::Users,
                wire::TopView::Flows => View::Flows,
                wire::TopView::Unspecified => return None,
            },
            order: match sent.order() {
                wire::TopOrder::Rtt => Order::Rtt,
                wire::TopOrder::Retransmits => Order::Retransmits,
                wire::TopOrder::Flows => Order::Flows,
                wire::TopOrder::Failed => Order::Failed,
                wire::TopOrder::Octets | wire::TopOrder::Unspecified => Order::Octets,
            },
            rows: rows.clamp(1, ANSWER_ROWS_MAX),
        })
    }
}

impl Report {
    /// The answer to the question of this id.
    #[must_use]
    pub fn answer(mut self, id: u64) -> wire::TopAnswer {
        let mut octets = 0;
        let mut rows = Vec::new();
        let mut told = 0;
        for row in &self.rows {
            let sent = row_to_wire(row);
            octets += sent.encoded_len() + 4;
            if octets > ANSWER_OCTETS_MAX {
                break;
            }
            rows.push(sent);
            told += 1;
        }
        for row in self.rows.drain(told..) {
            self.more += 1;
            self.other.add(&row.window);
            self.other_total.add(&row.total);
        }
        let ms = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        wire::TopAnswer {
            id,
            window_ms: ms(self.window),
            since_ms: ms(self.since),
            rows,
            more: self.more,
            evicted: self.evicted,
            other: Some(self.other.into()),
            other_total: Some(self.other_total.into()),
        }
    }
}

impl From<Sums> for wire::TopSums {
    fn from(sums: Sums) -> Self {
        Self {
            flows_client: sums.flows_client,
            flows_server: sums.flows_server,
            octets_sent: sums.sent.octets,
            octets_received: sums.received.octets,
            packets_sent: sums.sent.packets,
            packets_received: sums.received.packets,
            rtt_us: sums.rtt_us,
            rtt_samples: sums.rtt_samples,
            rtt_variance_us: sums.rtt_variance_us,
            rtt_variance_samples: sums.rtt_variance_samples,
            retransmits: sums.retransmits,
            failed: sums.failed,
        }
    }
}

fn row_to_wire(row: &ReportRow) -> wire::TopRow {
    use wire::top_row::Subject as To;
    let subject = match &row.subject {
        Subject::Container { id, name, pod } => {
            let (pod_namespace, pod) = pod.as_ref().map(pod_texts).unwrap_or_default();
            To::Container(wire::TopContainer {
                id: text(id),
                name: name.as_deref().map(text).unwrap_or_default(),
                pod_namespace,
                pod,
            })
        }
        Subject::Pod(pod) => {
            let (pod_namespace, name) = pod_texts(pod);
            To::Pod(wire::TopPod { pod_namespace, name })
        }
        Subject::Process { program, place } => To::Process(process(program, place)),
        Subject::User(name) => To::User(wire::TopUser { name: text(name) }),
        Subject::Flow(flow) => To::Flow(wire::TopFlow {
            protocol: flow.protocol.number().into(),
            client: Some(end(&flow.client)),
            server: Some(end(&flow.server)),
            state: flow.reason.state(flow.state).to_owned(),
        }),
    };
    wire::TopRow {
        subject: Some(subject),
        window: Some(row.window.into()),
        total: Some(row.total.into()),
    }
}

fn pod_texts(pod: &Pod) -> (String, String) {
    (text(&pod.namespace), text(&pod.name))
}

fn process(program: &str, place: &Place) -> wire::TopProcess {
    let (container, unit) = match place {
        Place::Container(name) => (text(name), String::new()),
        Place::Unit(name) => (String::new(), text(name)),
        Place::Unknown => Default::default(),
    };
    wire::TopProcess {
        program: text(program),
        container,
        unit,
    }
}

fn end(end: &FlowEnd) -> wire::TopFlowEnd {
    wire::TopFlowEnd {
        address: match end.endpoint.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        },
        port: end.endpoint.port.into(),
        process: end.program.as_deref().map(|program| process(program, &end.place)),
    }
}

fn text(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_OCTETS_MAX)].to_owned()
}
