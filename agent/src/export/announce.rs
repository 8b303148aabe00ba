//! What a collector is told beside records.

use bytes::Bytes;
use flowtilla_agent_core::collector::Collector;
use flowtilla_agent_core::encode::header::Topic;
use flowtilla_agent_core::encode::{event, listening};

use crate::clock;

/// What is announced to a collector beside records. Kept fresh by whoever knows; read when an announcement is due.
#[derive(Clone, Debug)]
pub struct Announcements {
    /// The probe. Its time, source id, exports and drops are filled in by the exporter.
    pub event: event::EventFields,
    /// What the host listens on; `None`: not known, nothing is announced.
    pub listening: Option<listening::ListeningPorts>,
}

/// The payload of an announcement; `None`: nothing is announced.
pub(super) fn announce(
    known: &Announcements,
    source_id: u32,
    core: &Collector,
    topic: Topic,
) -> Option<Bytes> {
    match topic {
        Topic::Event => {
            let law = core.law();
            let lost: u64 = law
                .dropped
                .lossy()
                .filter(|&(point, _)| !point.is_wanted())
                .map(|(_, records)| records)
                .sum();
            let mut fields = known.event.clone();
            fields.time = clock::wall_now();
            fields.source_id = source_id;
            fields.flow_exports = law.taken;
            fields.export_drops = lost;
            Some(event::payload(&fields))
        }
        Topic::ListeningPorts => {
            let made = listening::payload(known.listening.as_ref()?);
            if made.left_out > 0 {
                tracing::debug!(left_out = made.left_out, "listening ports beyond one message");
            }
            Some(made.payload)
        }
        Topic::Flow | Topic::Template | Topic::Option | Topic::Counter | Topic::Hello => None,
    }
}
