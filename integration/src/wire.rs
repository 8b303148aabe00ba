//! What really crossed a host's wire or loopback: IP octets and packets, counted by nftables.
//!
//! Counted where packets arrive, never where they leave: TCP makes large packets whatever the interface says, and they
//! are cut to segments between netfilter's output hook and the interface. With receive offload off, what arrives is
//! what a wire carries, and its length is the IP total length. What a host sent is what the other one received.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::NetNs;
use crate::process::run;

/// One protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// IP octets.
    pub octets: u64,
    /// IP packets.
    pub packets: u64,
}

/// What one host received; on loopback also what it sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// TCP.
    pub tcp: Counted,
    /// UDP.
    pub udp: Counted,
}

const RULES: &str = "
table inet flowtilla_truth {
    counter tcp_seen { }
    counter udp_seen { }
    chain received {
        type filter hook input priority 0; policy accept;
        meta l4proto tcp counter name tcp_seen
        meta l4proto udp counter name udp_seen
    }
}";

/// The counters of one host.
#[derive(Debug)]
pub struct WireCounter<'a> {
    host: &'a NetNs,
}

impl<'a> WireCounter<'a> {
    /// Begins to count on `host`.
    ///
    /// # Errors
    /// When nft is missing or refuses.
    pub fn start(host: &'a NetNs) -> Result<Self> {
        host.run("nft", &[RULES])?;
        Ok(Self { host })
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// When nft refuses or answers in another form.
    pub fn read(&self) -> Result<Received> {
        let text = self.host.run(
            "nft",
            &["-j", "list", "counters", "table", "inet", "flowtilla_truth"],
        )?;
        let answer: Value = serde_json::from_str(&text).context("read nft's answer")?;
        let mut count = Received::default();
        for counter in answer["nftables"].as_array().into_iter().flatten() {
            let counter = &counter["counter"];
            let counted = Counted {
                octets: counter["bytes"].as_u64().unwrap_or(0),
                packets: counter["packets"].as_u64().unwrap_or(0),
            };
            match counter["name"].as_str() {
                Some("tcp_seen") => count.tcp = counted,
                Some("udp_seen") => count.udp = counted,
                _ => {}
            }
        }
        Ok(count)
    }
}

const FLOW_RULES: &str = "
table inet flowtilla_flows {
    set flows {
        type ipv4_addr . inet_service . ipv4_addr . inet_service . inet_proto
        size 65535
        flags dynamic
    }
    chain received {
        type filter hook input priority 0; policy accept;
        meta l4proto != { tcp, udp } accept
        update @flows { ip saddr . th sport . ip daddr . th dport . meta l4proto counter }
    }
}";

/// Where it came from, where to, and the protocol.
pub type Way = (SocketAddr, SocketAddr, u64);

/// Begins to count what each flow brings to `host`, IPv4.
///
/// # Errors
/// When nft is missing or refuses.
pub fn count_flows(host: &NetNs) -> Result<()> {
    host.run("nft", &[FLOW_RULES]).map(drop)
}

/// What was counted so far, by way.
///
/// # Errors
/// When nft refuses or answers in another form.
pub fn flows(host: &NetNs) -> Result<BTreeMap<Way, Counted>> {
    let text = host.run("nft", &["-j", "list", "set", "inet", "flowtilla_flows", "flows"])?;
    let answer: Value = serde_json::from_str(&text).context("read nft's answer")?;
    let sets = answer["nftables"].as_array().into_iter().flatten();
    let elements = sets.filter_map(|set| set["set"]["elem"].as_array()).flatten();
    elements.map(|element| counted(&element["elem"])).collect()
}

fn counted(element: &Value) -> Result<(Way, Counted)> {
    let parts = &element["val"]["concat"];
    let end = |n: usize| {
        let address = parts[n].as_str().and_then(|text| text.parse().ok());
        let port = parts[n + 1].as_u64().and_then(|port| u16::try_from(port).ok());
        Some(SocketAddr::new(address?, port?))
    };
    let protocol = match parts[4].as_str() {
        Some("tcp") => Some(6),
        Some("udp") => Some(17),
        _ => None,
    };
    let (Some(from), Some(to), Some(protocol)) = (end(0), end(2), protocol) else {
        bail!("nft counts another kind of flow: {element}");
    };
    let counted = Counted {
        octets: element["counter"]["bytes"].as_u64().unwrap_or(0),
        packets: element["counter"]["packets"].as_u64().unwrap_or(0),
    };
    Ok(((from, to, protocol), counted))
}

/// Makes `host` swallow what TCP peers at `port` send to it, so that attempts time out.
///
/// # Errors
/// When nft refuses.
pub fn swallow(host: &NetNs, port: u16) -> Result<()> {
    let rules = format!(
        "table inet flowtilla_swallow {{
            chain received {{
                type filter hook input priority -10; policy accept;
                tcp dport {port} drop
            }}
        }}"
    );
    host.run("nft", &[&rules]).map(drop)
}

/// Takes that back.
///
/// # Errors
/// When nothing is swallowed there.
pub fn let_through(host: &NetNs) -> Result<()> {
    let table = ["delete", "table", "inet", "flowtilla_swallow"];
    host.run("nft", &table).map(drop)
}

/// Segments that TCP sent again in `host` since it began; SYN included.
///
/// A busy machine is late with an acknowledgement, and TCP probes: what crossed a wire may then be more than what was written.
/// Source: `nstat`, `TcpRetransSegs`.
///
/// # Errors
/// When nstat is missing or answers in another form.
pub fn sent_again(host: &NetNs) -> Result<u64> {
    let text = host.run("nstat", &["--json", "-asz", "TcpRetransSegs"])?;
    let answer: Value = serde_json::from_str(&text).context("read nstat's answer")?;
    answer["kernel"]["TcpRetransSegs"]
        .as_u64()
        .with_context(|| format!("nstat tells no retransmissions: {text}"))
}

/// Octets and packets that an interface sent, link headers included. Source: `ip -s link`.
///
/// # Errors
/// When there is no such interface.
pub fn interface_sent(host: &NetNs, interface: &str) -> Result<Counted> {
    let text = run(host.command("ip").args(["-j", "-s", "link", "show", interface]))?;
    let answer: Value = serde_json::from_str(&text).context("read ip's answer")?;
    let sent = &answer[0]["stats64"]["tx"];
    let (Some(octets), Some(packets)) = (sent["bytes"].as_u64(), sent["packets"].as_u64()) else {
        bail!("ip tells no counters of {interface}: {text}");
    };
    Ok(Counted { octets, packets })
}
