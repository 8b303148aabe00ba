//! A collector: one ntopng, and how it is fed.
//!
//! In: [`wire::Collector`]. Out: [`Collector`], checked whole. Sources: ntopng's ZMQ interface (header versions, CURVE
//! key forms), RFC 3986 §3.2.2 (addresses in brackets), RFC 1123 §2.1 (host names).

use std::ops::RangeInclusive;

use crate::ids::CollectorName;
use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::wire;

pub use self::endpoint::{CollectorEndpoint, HOST_NAME_OCTETS_MAX, Host, HostName};
pub use self::key::CurveKey;

mod endpoint;
mod key;

/// Octets that may be sent and not yet known to be taken, unless the collector says otherwise.
///
/// What ntopng's queue of 1,000 messages holds at typical sizes. Half of it leaves a long line idle between two
/// acknowledgements; double it, and twice as much is sent again after a break.
pub const WINDOW_OCTETS_DEFAULT: u64 = 4 * 1024 * 1024;

/// Least and most of `windowOctets`.
///
/// Below 64 KiB two full messages do not fit; above 64 MiB the window is a second queue.
pub const WINDOW_OCTETS: RangeInclusive<u64> = 64 * 1024..=64 * 1024 * 1024;

/// Records a second that a collector is sent at most, unless it says otherwise.
///
/// One ntopng keeps up with it. Half of it makes an ordinary backlog last twice as long; double it, and a backlog can
/// take the collector's processor from its other agents.
pub const RECORDS_PER_SECOND_DEFAULT: u64 = 20_000;

/// The same for a collector that gets nested JSON.
///
/// ntopng 5.2 kept up with 20,000 JSON records a second on two cores that had nothing else to do, and a flow record makes
/// two of them. Half of it makes an ordinary backlog last twice as long; double it, and records are lost in ntopng's queue.
pub const RECORDS_PER_SECOND_NESTED_DEFAULT: u64 = 8_000;

/// Least and most of `recordsPerSecond`.
pub const RECORDS_PER_SECOND: RangeInclusive<u64> = 1..=1_000_000;

/// Version of ntopng's ZMQ message header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HeaderVersion {
    /// Version 1: a source id of 8 bits. 24 octets.
    V1,
    /// Version 2: a source id of 32 bits. 28 octets.
    #[default]
    V2,
    /// Version 3.
    V3,
}

/// How flow records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// nDPI's TLV with flat fields.
    #[default]
    Tlv,
    /// JSON with an object for each end's process and container. Goes with [`HeaderVersion::V1`].
    NestedJson,
}

/// What becomes of records that a collector's process had taken, and perhaps not read, when it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnCollectorRestart {
    /// They are sent again: some may be counted twice.
    #[default]
    Replay,
    /// They are counted as lost.
    Skip,
}

/// One ntopng, and how it is fed. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Collector {
    /// Name, unique within a policy.
    pub name: CollectorName,
    /// Where it listens.
    pub endpoint: CollectorEndpoint,
    /// Its public CURVE key; `None`: plain text.
    pub curve_server_key: Option<CurveKey>,
    /// How flow records are written.
    pub encoding: Encoding,
    /// Version of the message header.
    pub header: HeaderVersion,
    /// Most octets that are sent and not yet known to be taken, within [`WINDOW_OCTETS`].
    pub window_octets: u64,
    /// Most records a second, within [`RECORDS_PER_SECOND`].
    pub records_per_second: u64,
    /// What becomes of records at risk when its process ends.
    pub on_restart: OnCollectorRestart,
    /// Whether each record carries its identity (boot id, cookie, stream, part).
    pub record_ids: bool,
}

impl TryFrom<wire::Collector> for Collector {
    type Error = Mistakes;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the collector.
    fn try_from(sent: wire::Collector) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let name = reading.text("name", &sent.name, CollectorName::parse);
        if name.as_ref().is_some_and(CollectorName::is_failover) {
            let why = "is kept for a failover group";
            reading.refuse("name", Some(&sent.name), Refused::new(why, "write another name"));
        }
        let endpoint = reading.text("endpoint", &sent.endpoint, CollectorEndpoint::parse);
        let key = match &sent.curve_server_key {
            Some(text) => reading.text("curveServerKey", text, CurveKey::parse).map(Some),
            None => Some(None),
        };
        let encoding = reading.member(
            "encoding",
            sent.encoding,
            |sent| match sent {
                wire::Encoding::Unspecified | wire::Encoding::Tlv => Encoding::Tlv,
                wire::Encoding::NestedJson => Encoding::NestedJson,
            },
            "tlv or nestedJson",
        );
        let nested = encoding == Some(Encoding::NestedJson);
        let header = reading.member(
            "headerVersion",
            sent.header_version,
            |sent| match sent {
                wire::HeaderVersion::Unspecified if nested => HeaderVersion::V1,
                wire::HeaderVersion::V1 => HeaderVersion::V1,
                wire::HeaderVersion::Unspecified | wire::HeaderVersion::V2 => HeaderVersion::V2,
                wire::HeaderVersion::V3 => HeaderVersion::V3,
            },
            "1, 2 or 3",
        );
        if let (true, Some(other @ (HeaderVersion::V2 | HeaderVersion::V3))) = (nested, header) {
            let version = if other == HeaderVersion::V2 { "v2" } else { "v3" };
            let why = "is not read by the versions of ntopng that nested JSON is for";
            let remedy = "write v1 or leave it out, or leave encoding out";
            reading.refuse("headerVersion", Some(version), Refused::new(why, remedy));
        }
        let window_octets = reading.number(
            "windowOctets",
            sent.window_octets,
            WINDOW_OCTETS_DEFAULT,
            &WINDOW_OCTETS,
            " octets",
        );
        let records_per_second = reading.number(
            "recordsPerSecond",
            sent.records_per_second,
            if nested {
                RECORDS_PER_SECOND_NESTED_DEFAULT
            } else {
                RECORDS_PER_SECOND_DEFAULT
            },
            &RECORDS_PER_SECOND,
            "",
        );
        let on_restart = reading.member(
            "onCollectorRestart",
            sent.on_collector_restart,
            |sent| match sent {
                wire::OnCollectorRestart::Unspecified | wire::OnCollectorRestart::Replay => {
                    OnCollectorRestart::Replay
                }
                wire::OnCollectorRestart::Skip => OnCollectorRestart::Skip,
            },
            "replay or skip",
        );
        let made = (|| {
            Some(Self {
                name: name?,
                endpoint: endpoint?,
                curve_server_key: key?,
                encoding: encoding?,
                header: header?,
                window_octets: window_octets?,
                records_per_second: records_per_second?,
                on_restart: on_restart?,
                record_ids: sent.record_ids.unwrap_or(false),
            })
        })();
        reading.finish(made)
    }
}

#[cfg(test)]
#[path = "collector/tests.rs"]
mod tests;
