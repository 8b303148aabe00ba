//! What came from each source, and what did not, by ntopng's own rules.
//!
//! A source counts its messages over all topics. An id that follows the last one is fine; one that skips n tells that n
//! messages were lost; an equal or smaller one tells nothing (smaller: the source began anew). ntopng forgets a source
//! after 10 s of silence and then sees no gap; here such a gap is kept apart. A payload that ntopng refuses leaves the last
//! id as it was, so the next message counts it as lost.
//! Source: ntopng `ZMQCollectorInterface::collect_flows`, `checkIdleProbes`.

use std::collections::BTreeMap;
use std::time::Duration;

use flowtilla_agent_core::encode::header::{Header, Topic};
use serde::Serialize;

use super::show::{Arrival, Content};

/// Silence after which ntopng forgets a source. Source: ntopng `ZMQ_PROBE_EXPIRATION_TIME`.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// Most sources that are kept apart; messages of more are counted as one.
///
/// A fleet has 10,000 agents at most, and anybody who can connect can make ids up. Half of it cuts a fleet; double it,
/// and a liar fills twice the screens.
const SOURCES_MAX: usize = 10_000;

/// What came from one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Source {
    /// Messages of any topic.
    pub(crate) messages: u64,
    /// Flow records.
    pub(crate) records: u64,
    /// Events.
    pub(crate) events: u64,
    /// Messages that did not come, by ntopng's rules.
    pub(crate) lost: u64,
    /// Messages that did not come, which ntopng does not notice: the source had been silent for too long.
    pub(crate) lost_after_silence: u64,
    /// How often the ids began anew.
    pub(crate) restarts: u64,
    /// Messages that could not be read.
    pub(crate) unreadable: u64,
    #[serde(skip)]
    last: Option<(u32, Duration)>,
}

/// All sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    sources: BTreeMap<u32, Source>,
    others: Source,
    messages: u64,
    nameless: u64,
}

impl Ledger {
    /// Messages that came, readable or not.
    #[must_use]
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// Messages whose header could not be read, so that no source is known.
    #[must_use]
    pub(crate) fn nameless(&self) -> u64 {
        self.nameless
    }

    /// Sources by id, the lowest first.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (u32, &Source)> {
        self.sources.iter().map(|(&id, source)| (id, source))
    }

    /// Sources beyond the limit, as one; gaps are not counted among them.
    #[must_use]
    pub(crate) fn others(&self) -> &Source {
        &self.others
    }

    /// Counts a message that came `at` after the begin.
    pub(super) fn handle_arrival(&mut self, arrival: &Arrival, at: Duration) {
        self.messages += 1;
        let Some(header) = &arrival.header else {
            self.nameless += 1;
            return;
        };
        let room = self.sources.len() < SOURCES_MAX;
        let source = if room || self.sources.contains_key(&header.source_id) {
            let source = self.sources.entry(header.source_id).or_default();
            if !matches!(arrival.content, Content::Refused(_)) {
                source.handle_id(header.message_id, at);
            }
            source
        } else {
            &mut self.others
        };
        source.handle_content(header, &arrival.content);
    }
}

impl Source {
    fn handle_id(&mut self, id: u32, at: Duration) {
        if let Some((last, seen)) = self.last {
            let lost = u64::from(id.saturating_sub(last).saturating_sub(1));
            if at.saturating_sub(seen) > FORGOTTEN_AFTER {
                self.lost_after_silence += lost;
            } else {
                self.lost += lost;
            }
            self.restarts += u64::from(id < last);
        }
        self.last = Some((id, at));
    }

    fn handle_content(&mut self, header: &Header, content: &Content) {
        self.messages += 1;
        match content {
            Content::Flows(flows) => self.records += flows.len() as u64,
            Content::Document(_) => self.events += u64::from(header.topic == Topic::Event),
            Content::Refused(_) | Content::Unreadable(_) => self.unreadable += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding};

    fn arrival(source_id: u32, message_id: u32, payload: &'static [u8]) -> Arrival {
        let header = header::encode(
            HeaderLayout::V2,
            Topic::Event,
            PayloadEncoding::Json,
            payload.len(),
            message_id,
            source_id,
        );
        Arrival::decode(&[header, payload.into()])
    }

    fn after(ids: &[(u32, u64)]) -> Source {
        let mut ledger = Ledger::default();
        for &(id, at_s) in ids {
            ledger.handle_arrival(&arrival(7, id, b"{}"), Duration::from_secs(at_s));
        }
        ledger.sources[&7].clone()
    }

    #[test]
    fn gaps_are_lost_messages() {
        let source = after(&[(100, 0), (101, 0), (105, 0), (106, 0), (3, 0), (4, 0)]);
        assert_eq!(
            (source.lost, source.restarts, source.messages, source.events),
            (3, 1, 6, 6)
        );
    }

    #[test]
    fn the_first_id_and_an_equal_one_tell_nothing() {
        let source = after(&[(900, 0), (900, 0), (901, 0)]);
        assert_eq!((source.lost, source.restarts), (0, 0));
        let source = after(&[(u32::MAX, 0), (0, 0)]);
        assert_eq!((source.lost, source.restarts), (0, 1));
    }

    #[test]
    fn a_gap_after_silence_is_kept_apart() {
        let source = after(&[(1, 0), (4, 10), (9, 21)]);
        assert_eq!((source.lost, source.lost_after_silence), (2, 4));
    }

    #[test]
    fn a_refused_payload_is_lost_at_the_next_message() {
        let mut ledger = Ledger::default();
        for (id, payload) in [(1, b"{}".as_slice()), (2, b""), (3, b"{}")] {
            ledger.handle_arrival(&arrival(7, id, payload), Duration::ZERO);
        }
        let source = &ledger.sources[&7];
        assert_eq!((source.lost, source.unreadable, source.messages), (1, 1, 3));
    }

    #[test]
    fn sources_do_not_share_ids() {
        let mut ledger = Ledger::default();
        for (source, id) in [(1, 1), (2, 50), (1, 2), (2, 51)] {
            ledger.handle_arrival(&arrival(source, id, b"{}"), Duration::ZERO);
        }
        assert!(
            ledger
                .sources()
                .all(|(_, source)| source.lost == 0 && source.restarts == 0)
        );
    }

    #[test]
    fn made_up_sources_are_bounded() {
        let mut ledger = Ledger::default();
        for source in 0..=SOURCES_MAX {
            ledger.handle_arrival(&arrival(u32::try_from(source).unwrap(), 1, b"{}"), Duration::ZERO);
        }
        assert_eq!(ledger.sources().count(), SOURCES_MAX);
        assert_eq!(ledger.others().messages, 1);
        ledger.handle_arrival(&Arrival::decode(&[]), Duration::ZERO);
        assert_eq!(
            (ledger.nameless(), ledger.messages()),
            (1, SOURCES_MAX as u64 + 2)
        );
    }
}
