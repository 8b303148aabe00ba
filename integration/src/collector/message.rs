//! What an exporter sent, taken apart as ntopng does.
//!
//! Source: ntopng `include/ntop_typedefs.h` (headers, 24, 28 and 36 octets), `ZMQCollectorInterface::collect_flows`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::ndpi::{Elements, Ndpi};

/// Longest payload that ntopng takes, in octets.
pub const PAYLOAD_OCTETS_MAX: usize = 131_072;

/// A message's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Such as `flow`.
    pub topic: String,
    /// 2: JSON, 3: TLV, 4: the flags say.
    pub version: u8,
    /// Whether the payload is TLV.
    pub tlv: bool,
    /// Which exporter.
    pub source: u32,
    /// Number of the message.
    pub id: u32,
}

/// A message's payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Flow records.
    Flows(Vec<Elements>),
    /// Everything else is JSON.
    Json(serde_json::Value),
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Header.
    pub header: Header,
    /// Payload.
    pub payload: Payload,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// When it has a length or version that no ntopng from 5.4 on takes.
    pub fn read(frame: &[u8]) -> Result<Self> {
        let word = |at: usize| -> Result<[u8; 4]> {
            frame
                .get(at..at + 4)
                .and_then(|octets| octets.try_into().ok())
                .with_context(|| format!("a header of {} octets", frame.len()))
        };
        let topic = frame.get(..16).context("a header shorter than its topic")?;
        let end = topic
            .iter()
            .position(|&octet| octet == 0)
            .context("a topic without end")?;
        ensure!(
            topic[end..].iter().all(|&octet| octet == 0),
            "octets after the topic's end"
        );
        let version = *frame.get(16).context("a header without version")?;
        let (tlv, source, id) = match (frame.len(), version) {
            (24, 2 | 3) => (version == 3, frame[17].into(), u32::from_be_bytes(word(20)?)),
            (28, 2 | 3) => (
                version == 3,
                u32::from_le_bytes(word(24)?),
                u32::from_be_bytes(word(20)?),
            ),
            (36, 4) => {
                ensure!(frame[17] & 4 == 0, "a compressed payload");
                (
                    frame[17] & 2 != 0,
                    u32::from_le_bytes(word(32)?),
                    u32::from_be_bytes(word(28)?),
                )
            }
            (length, version) => bail!("a header of {length} octets with version {version}"),
        };
        Ok(Self {
            topic: String::from_utf8_lossy(&topic[..end]).into_owned(),
            version,
            tlv,
            source,
            id,
        })
    }
}

impl Message {
    /// Reads the frames of a message.
    ///
    /// # Errors
    /// When ntopng would drop it or a part of it.
    pub fn read(ndpi: &Ndpi, frames: &[Vec<u8>]) -> Result<Self> {
        let [header, payload] = frames else {
            bail!("a message of {} frames", frames.len());
        };
        let header = Header::read(header)?;
        ensure!(!payload.is_empty(), "message {}: no payload", header.id);
        ensure!(
            payload.len() <= PAYLOAD_OCTETS_MAX,
            "message {}: a payload of {} octets",
            header.id,
            payload.len()
        );
        let payload = if header.tlv {
            ensure!(header.topic == "flow", "a {} message in TLV", header.topic);
            let records = ndpi.read(payload)?;
            ensure!(
                (1..=255).contains(&records.len()),
                "message {}: {} records, ntopng counts to 255",
                header.id,
                records.len()
            );
            Payload::Flows(records)
        } else {
            let json = serde_json::from_slice(payload)
                .with_context(|| format!("read the JSON of a {} message", header.topic))?;
            Payload::Json(json)
        };
        Ok(Self { header, payload })
    }
}

/// Counts what is missing between message ids, by ntopng's rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    last: BTreeMap<u32, u32>,
    /// Messages missing, all sources together.
    pub missing: u64,
    /// Times an id went back: taken as a restart.
    pub restarts: u64,
}

impl Ids {
    /// Takes the next message: its exporter and its number.
    pub fn take(&mut self, source: u32, id: u32) {
        let Some(last) = self.last.insert(source, id) else {
            return;
        };
        match id.cmp(&last) {
            std::cmp::Ordering::Greater => self.missing += u64::from(id - last - 1),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => self.restarts += 1,
        }
    }

    /// The exporters seen.
    #[must_use]
    pub fn sources(&self) -> Vec<u32> {
        self.last.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_counted_per_source_and_a_smaller_id_is_a_restart() {
        let mut ids = Ids::default();
        for (source, id) in [
            (1, 100),
            (2, 1),
            (1, 101),
            (1, 105),
            (1, 106),
            (2, 2),
            (1, 3),
            (1, 4),
        ] {
            ids.take(source, id);
        }
        assert_eq!((ids.missing, ids.restarts), (3, 1));
        assert_eq!(ids.sources(), [1, 2]);
    }

    #[test]
    fn version_2_header_is_read() {
        let mut frame = b"flow\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        frame.extend([3, 0, 0, 0xc5, 0, 0, 0, 9, 0x78, 0x56, 0x34, 0x12]);
        let read = Header::read(&frame).expect("28 octets");
        assert_eq!((read.topic.as_str(), read.tlv), ("flow", true));
        assert_eq!((read.source, read.id), (0x1234_5678, 9));
        assert!(Header::read(&frame[..27]).is_err());
    }
}
