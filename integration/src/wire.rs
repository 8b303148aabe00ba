//! What really crossed a host's wire or loopback: IP octets and packets, counted by nftables.
//!
//! Counted where packets arrive, never where they leave: TCP makes large packets whatever the interface says, and they
//! are cut to segments between netfilter's output hook and the interface. With receive offload off, what arrives is
//! what a wire carries, and its length is the IP total length. What a host sent is what the other one received.

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
