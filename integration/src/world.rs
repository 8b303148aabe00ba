//! Two hosts and the wire between them.
//!
//! `left` and `right` are network namespaces joined by a veth pair without segmentation offload. One world exists at
//! a time on a machine: agents, BPF programs and CPU time of two would blur each other's figures.

use std::fs::File;
use std::net::IpAddr;
use std::sync::Once;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::belongings;
use crate::netns::{self, NetNs};

/// Interface of each host.
pub const INTERFACE: &str = "wire0";
/// Address of the left host.
pub const LEFT_V4: &str = "10.77.0.1";
/// Address of the right host.
pub const RIGHT_V4: &str = "10.77.0.2";
/// Address of the left host.
pub const LEFT_V6: &str = "fd77::1";
/// Address of the right host.
pub const RIGHT_V6: &str = "fd77::2";
/// Address that the right host also has: stands for a blacklisted one. Source: RFC 5737.
pub const BLACKLISTED_V4: &str = "203.0.113.66";
/// Address behind the right host that it calls unreachable.
pub const UNREACHABLE_V4: &str = "198.51.100.66";

/// Version of the internet protocol that traffic uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// IPv4 over an IPv6 socket: `::ffff:a.b.c.d`.
    Mapped,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];
}

/// Where client and server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Both on the left host, over its loopback.
    Loopback,
    /// The client left, the server right, over the wire.
    Wire,
}

/// Two hosts.
#[derive(Debug)]
pub struct World {
    /// The host that agents watch.
    pub left: NetNs,
    /// The other one.
    pub right: NetNs,
    /// Declared last: released when both hosts are gone.
    _alone: Alone,
}

/// The right to be the only world on this machine.
#[derive(Debug)]
pub struct Alone(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Alone {
    /// Waits until no other world is left.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn wait() -> Result<Self> {
        let path = std::env::temp_dir().join("flowtilla-test.lock");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        Ok(Self(lock))
    }
}

impl World {
    /// Builds both hosts, once no other world is left.
    ///
    /// # Errors
    /// When not root or a tool is missing: ask [`need::met`](crate::need::met) with [`need::WORLD`](crate::need::WORLD) before.
    pub fn build() -> Result<Self> {
        static SWEPT: Once = Once::new();
        let alone = Alone::wait()?;
        let mut swept = Ok(0);
        SWEPT.call_once(|| swept = belongings::sweep().and_then(|_| netns::sweep()));
        swept.context("sweep what a killed run left")?;
        let world = Self {
            left: NetNs::create("left")?,
            right: NetNs::create("right")?,
            _alone: alone,
        };
        world.join()?;
        Ok(world)
    }

    /// The namespace a server belongs into.
    #[must_use]
    pub fn server_side(&self, place: Place) -> &NetNs {
        match place {
            Place::Loopback => &self.left,
            Place::Wire => &self.right,
        }
    }

    /// Address that servers listen at.
    ///
    /// # Panics
    /// Never: the addresses are constants of this module.
    #[must_use]
    pub fn server_address(place: Place, family: Family) -> IpAddr {
        let text = match (place, family) {
            (Place::Loopback, Family::V4) => "127.0.0.1",
            (Place::Loopback, Family::V6) => "::1",
            (Place::Loopback, Family::Mapped) => "::ffff:127.0.0.1",
            (Place::Wire, Family::V4) => RIGHT_V4,
            (Place::Wire, Family::V6) => RIGHT_V6,
            (Place::Wire, Family::Mapped) => "::ffff:10.77.0.2",
        };
        text.parse().expect("constants of this module are addresses")
    }

    fn join(&self) -> Result<()> {
        let right_name = self.right.path();
        let right_name = right_name
            .file_name()
            .context("a namespace has a name")?
            .to_string_lossy();
        self.left.run(
            "ip",
            &[
                "link",
                "add",
                INTERFACE,
                "type",
                "veth",
                "peer",
                "name",
                INTERFACE,
                "netns",
                &right_name,
            ],
        )?;
        let hosts = [(&self.left, LEFT_V4, LEFT_V6), (&self.right, RIGHT_V4, RIGHT_V6)];
        for (host, v4, v6) in hosts {
            host.offload_off(INTERFACE)?;
            host.run("ip", &["addr", "add", &format!("{v4}/24"), "dev", INTERFACE])?;
            host.run(
                "ip",
                &["addr", "add", &format!("{v6}/64"), "dev", INTERFACE, "nodad"],
            )?;
            host.run("ip", &["link", "set", INTERFACE, "up"])?;
        }
        for destination in [BLACKLISTED_V4, UNREACHABLE_V4] {
            self.left
                .run("ip", &["route", "add", destination, "via", RIGHT_V4])?;
        }
        self.right
            .run("ip", &["addr", "add", BLACKLISTED_V4, "dev", "lo"])?;
        self.right
            .run("ip", &["route", "add", "unreachable", UNREACHABLE_V4])?;
        self.right.sysctl("ipv4/ip_forward", "1")?;
        // Each attempt is to get its answer, not one a second.
        self.right.sysctl("ipv4/icmp_ratelimit", "0")
    }
}
