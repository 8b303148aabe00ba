//! The cable between an agent's desk and its collector, or its controller: two more hosts, and a wire that can be pulled.
//!
//! Pulled means that packets of both directions are dropped without a word, as when someone takes the plug out behind a
//! switch: neither end sees its link go down. Nothing of the traffic that agents watch passes here.

use anyhow::{Context, Result};

use crate::netns::NetNs;

/// Address of the collector.
pub const COLLECTOR_V4: &str = "10.78.0.2";
/// Address of the desk.
pub const DESK_V4: &str = "10.78.0.1";
const INTERFACE: &str = "cable0";
const TABLE: [&str; 3] = ["table", "inet", "flowtilla_cable"];
const RULES: &str = "
table inet flowtilla_cable {
    chain received {
        type filter hook input priority -10; policy accept;
        iifname cable0 drop
    }
    chain sent {
        type filter hook output priority -10; policy accept;
        oifname cable0 drop
    }
}";

/// Two hosts and their cable.
#[derive(Debug)]
pub struct Cable {
    /// Where the agent's own process lives.
    pub desk: NetNs,
    /// Where the collector, or the controller, lives.
    pub collector: NetNs,
}

impl Cable {
    /// Lays it. Belongs to a [`World`](crate::world::World), of which there is one at a time.
    ///
    /// # Errors
    /// When not root or a tool is missing.
    pub fn lay() -> Result<Self> {
        let cable = Self {
            desk: NetNs::create("desk")?,
            collector: NetNs::create("collector")?,
        };
        let far = cable.collector.path();
        let far = far
            .file_name()
            .context("a namespace has a name")?
            .to_string_lossy();
        let link = [
            "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", &far,
        ];
        cable.desk.run("ip", &link)?;
        for (host, address) in [(&cable.desk, DESK_V4), (&cable.collector, COLLECTOR_V4)] {
            host.run("ip", &["addr", "add", &format!("{address}/24"), "dev", INTERFACE])?;
            host.run("ip", &["link", "set", INTERFACE, "up"])?;
        }
        Ok(cable)
    }

    /// Pulls it.
    ///
    /// # Errors
    /// When nft is missing or refuses, or it is pulled already.
    pub fn pull(&self) -> Result<()> {
        self.collector.run("nft", &[RULES]).map(drop)
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When it was not pulled.
    pub fn put_back(&self) -> Result<()> {
        self.collector
            .run("nft", &[&["delete"], &TABLE[..]].concat())
            .map(drop)
    }
}
