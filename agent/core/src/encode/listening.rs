//! Ports on which the host listens: topic `listening-ports`, one JSON object, sent every 60 s.
//!
//! ```text
//! {"listening-ports":{"tcp4":[{"port":22,"proc":"/usr/sbin/sshd","pkg":"openssh-server"}],"udp4":[],"tcp6":[],"udp6":[]},
//!  "ip-addresses":["10.0.0.11"]}
//! ```
//!
//! It must be one message, and each replaces the one before it. `proc` and `pkg` are always written, for ntopng takes
//! an absent one from the entry before. Invariant: no payload exceeds [`PAYLOAD_OCTETS_MAX`]; what did not fit is
//! counted. Source: ntopng `ZMQParserInterface::parseListeningPorts`, `src/ListeningPorts.cpp`.

use std::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;

use super::text;

/// Most octets of one payload: about 1,500 ports.
///
/// ntopng drops what exceeds 131,072. Double it and that is reached; at half, a host with a thousand listening
/// containers shows only some of them.
pub const PAYLOAD_OCTETS_MAX: usize = 96 * 1_024;
/// Most addresses of the host that are told.
///
/// ntopng looks each of them up among its hosts. Hosts with more are container hosts whose addresses are not listened
/// on; double it and the addresses could take a fifth of the payload.
pub const ADDRESSES_MAX: usize = 256;

/// One port and who listens on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The port.
    pub port: u16,
    /// The executable's path or name; empty: not known.
    pub process: String,
    /// The package it came with; empty: not known.
    pub package: String,
}

/// Everything a host listens on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListeningPorts {
    /// The host's own addresses.
    pub addresses: Vec<IpAddr>,
    /// TCP over IPv4.
    pub tcp4: Vec<Listening>,
    /// UDP over IPv4.
    pub udp4: Vec<Listening>,
    /// TCP over IPv6.
    pub tcp6: Vec<Listening>,
    /// UDP over IPv6.
    pub udp6: Vec<Listening>,
}

/// A payload and what is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListeningPayload {
    /// The octets.
    pub payload: Bytes,
    /// Ports and addresses for which there was no room.
    pub left_out: usize,
}

#[derive(Serialize)]
struct Entry {
    port: u16,
    proc: String,
    pkg: String,
}

#[derive(Default, Serialize)]
struct Ports {
    tcp4: Vec<Entry>,
    udp4: Vec<Entry>,
    tcp6: Vec<Entry>,
    udp6: Vec<Entry>,
}

#[derive(Default, Serialize)]
struct Document {
    #[serde(rename = "listening-ports")]
    ports: Ports,
    #[serde(rename = "ip-addresses")]
    addresses: Vec<String>,
}

/// Writes what a host listens on. When there is not room for all, TCP goes before UDP and, in a list, the first before
/// the last.
#[must_use]
pub fn payload(ports: &ListeningPorts) -> ListeningPayload {
    let mut document = Document::default();
    let mut room = PAYLOAD_OCTETS_MAX - json(&document).len();
    let mut left_out = ports.addresses.len().saturating_sub(ADDRESSES_MAX);
    for address in ports.addresses.iter().take(ADDRESSES_MAX) {
        let address = address.to_string();
        room -= json(&address).len() + 1;
        document.addresses.push(address);
    }
    for (from, to) in [
        (&ports.tcp4, &mut document.ports.tcp4),
        (&ports.tcp6, &mut document.ports.tcp6),
        (&ports.udp4, &mut document.ports.udp4),
        (&ports.udp6, &mut document.ports.udp6),
    ] {
        for listening in from {
            let entry = Entry {
                port: listening.port,
                proc: text::path(&listening.process),
                pkg: text::name(&listening.package),
            };
            let with_comma = json(&entry).len() + 1;
            if with_comma > room {
                left_out += 1;
            } else {
                room -= with_comma;
                to.push(entry);
            }
        }
    }
    ListeningPayload {
        payload: Bytes::from(json(&document)),
        left_out,
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and texts always make JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::COLLECTOR_PAYLOAD_OCTETS_MAX;

    #[test]
    fn too_many_ports_are_left_out_and_counted() {
        let listening = |port| Listening {
            port,
            process: format!("/opt/{}", "x".repeat(60)),
            package: String::new(),
        };
        let ports = ListeningPorts {
            addresses: vec![IpAddr::from([10, 0, 0, 1]); ADDRESSES_MAX + 3],
            tcp4: (1..=700).map(listening).collect(),
            udp4: (1..=5_000).map(listening).collect(),
            ..ListeningPorts::default()
        };
        let ListeningPayload { payload, left_out } = super::payload(&ports);
        assert!(payload.len() <= PAYLOAD_OCTETS_MAX && PAYLOAD_OCTETS_MAX < COLLECTOR_PAYLOAD_OCTETS_MAX);
        assert!(payload.len() > PAYLOAD_OCTETS_MAX - 200);
        let made: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let told = |list: &str| made["listening-ports"][list].as_array().unwrap().len();
        assert_eq!(told("tcp4"), 700);
        assert_eq!(told("udp4") + left_out, 5_000 + 3);
        assert_eq!(made["ip-addresses"].as_array().unwrap().len(), ADDRESSES_MAX);
    }
}
