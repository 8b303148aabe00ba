//! What the agent knows about its host: identity, addresses, the interface it is told by.
//!
//! Read from /proc, /etc and the kernel's list of addresses; whatever is missing is absent, except the boot id.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtilla_agent_core::flow::record::BootId;
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::policy::Scope;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Which agent this is, and how a collector knows its host.
#[derive(Clone, Debug)]
pub struct Host {
    /// The run of the kernel.
    pub boot: BootId,
    /// The agent's id to collectors: a hash of machine id and scopes, stable for life.
    pub source_id: SourceId,
    /// The machine id; the host's name where there is none.
    pub machine: String,
    /// The host's name.
    pub name: String,
    /// Name of the operating system.
    pub operating_system: String,
    /// The host's addresses, loopback and link-local ones left out.
    pub addresses: Vec<IpAddr>,
    /// The interface by which the host is told to collectors.
    pub interface: Option<Interface>,
}

/// An interface with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Speed in Mbit/s; 0: not known.
    pub speed_mbit: u32,
    /// Its first address.
    pub address: IpAddr,
}

impl Host {
    /// Reads everything.
    ///
    /// # Errors
    /// The boot id cannot be read: records would have no identity.
    pub fn read(scopes: &[Scope]) -> io::Result<Self> {
        let machine = first_line("/etc/machine-id")
            .or_else(|| first_line("/proc/sys/kernel/hostname"))
            .unwrap_or_else(|| "unknown".to_owned());
        let (addresses, interface) = addresses();
        Ok(Self {
            name: first_line("/proc/sys/kernel/hostname").unwrap_or_else(|| "host".to_owned()),
            boot: boot_id()?,
            source_id: source_id(&machine, scopes.iter().map(ToString::to_string).collect()),
            operating_system: operating_system(),
            machine,
            addresses,
            interface,
        })
    }

    /// What sends records again on this host, to collectors: never an agent's, which they count by.
    #[must_use]
    pub fn replay_source_id(&self) -> SourceId {
        source_id(&self.machine, vec!["replay".to_owned()])
    }

    /// The first IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The first IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        })
    }
}

fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines()
        .next()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
}

fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut octets = [0; 16];
    if digits.len() != 32 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the boot id has not 32 hex digits",
        ));
    }
    for (octet, pair) in octets.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(io::Error::other)?;
        *octet = u8::from_str_radix(pair, 16).map_err(io::Error::other)?;
    }
    Ok(BootId(octets))
}

/// CRC-32 of machine id and scopes, in an order that does not depend on how they were written.
fn source_id(machine: &str, mut scopes: Vec<String>) -> SourceId {
    scopes.sort();
    let mut hash = crc32fast::Hasher::new();
    hash.update(machine.as_bytes());
    for name in scopes {
        hash.update(&[0]);
        hash.update(name.as_bytes());
    }
    SourceId::from_hash(hash.finalize())
}

fn operating_system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Addresses of interfaces that are up, and the first of these interfaces.
pub(crate) fn addresses() -> (Vec<IpAddr>, Option<Interface>) {
    let (mut found, mut interface) = (Vec::new(), None);
    let Ok(all) = getifaddrs() else {
        return (found, interface);
    };
    for entry in all.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(storage) = entry.address else { continue };
        let address = if let Some(v4) = storage.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else if let Some(v6) = storage.as_sockaddr_in6() {
            IpAddr::V6(v6.ip())
        } else {
            continue;
        };
        if address.is_loopback() || matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            continue;
        }
        if interface.is_none() {
            interface = Some(Interface {
                speed_mbit: speed(&entry.interface_name),
                name: entry.interface_name,
                address,
            });
        }
        found.push(address);
    }
    (found, interface)
}

fn speed(interface: &str) -> u32 {
    first_line(&format!("/sys/class/net/{interface}/speed"))
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_id_depends_on_machine_and_scopes_and_not_on_their_order() {
        let id = |machine: &str, scopes: &[&str]| {
            source_id(machine, scopes.iter().map(|&scope| scope.to_owned()).collect())
        };
        let (a, b) = ("netns=/run/netns/a", "netns=/run/netns/b");
        assert_eq!(id("m", &[a, b]), id("m", &[b, a]));
        assert_ne!(id("m", &[a]), id("m", &[b]));
        assert_ne!(id("m", &[]), id("n", &[]));
    }

    #[test]
    fn this_host_has_a_boot_id() {
        assert_ne!(boot_id().unwrap(), BootId([0; 16]));
    }
}
