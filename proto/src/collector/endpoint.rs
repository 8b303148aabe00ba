//! Where a collector listens: `tcp://HOST:PORT`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use crate::reading::Refused;

/// Longest host name, in octets. Source: RFC 1123 §2.1.
pub const HOST_NAME_OCTETS_MAX: usize = 253;
const LABEL_OCTETS_MAX: usize = 63;

const SCHEME: &str = "tcp://";
const REMEDY: &str = "write tcp://HOST:PORT, such as tcp://192.0.2.1:5556 or tcp://[2001:db8::1]:5556";

/// Host name: labels of letters, digits, `-` and `_`, joined by dots. Lower case, no dot at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host, by address or by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// Address.
    Address(IpAddr),
    /// Name, to be resolved each time it is connected to.
    Name(HostName),
}

/// Where a collector listens. Displayed as `tcp://HOST:PORT`, which parses to the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectorEndpoint {
    /// Which host.
    pub host: Host,
    /// TCP port, never 0.
    pub port: NonZeroU16,
}

impl CollectorEndpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, Refused> {
        if text.is_empty() {
            return Err(Refused::new("is no endpoint", REMEDY));
        }
        let Some(rest) = text.strip_prefix(SCHEME) else {
            return Err(Refused::new("does not begin with tcp://", REMEDY));
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(Refused::new("has no port", REMEDY));
        };
        let host = parse_host(host)?;
        let port = (port.bytes().all(|octet| octet.is_ascii_digit()))
            .then(|| port.parse::<NonZeroU16>().ok())
            .flatten()
            .ok_or_else(|| {
                let why = "has a port that is not a number from 1 to 65535";
                Refused::new(
                    why,
                    "write the port that ntopng's --interface (-i) names, such as 5556",
                )
            })?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for CollectorEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V4(address)) => write!(f, "{SCHEME}{address}:{}", self.port),
            Host::Address(IpAddr::V6(address)) => write!(f, "{SCHEME}[{address}]:{}", self.port),
            Host::Name(name) => write!(f, "{SCHEME}{}:{}", name.0, self.port),
        }
    }
}

fn parse_host(text: &str) -> Result<Host, Refused> {
    let address = if let Some(inner) = text.strip_prefix('[') {
        let Some(inner) = inner.strip_suffix(']') else {
            return Err(Refused::new("has a bracket that is not closed", REMEDY));
        };
        let Ok(address) = inner.parse::<Ipv6Addr>() else {
            return Err(Refused::new(
                "has something in brackets that is not an IPv6 address",
                REMEDY,
            ));
        };
        Some(IpAddr::V6(address))
    } else {
        text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    };
    if text == "*" || address.is_some_and(|address| address.is_unspecified()) {
        let why = "names no host: only the side that binds may write that";
        return Err(Refused::new(
            why,
            "write the address or name of the host that runs ntopng",
        ));
    }
    if address.is_some_and(|address| address.is_multicast()) {
        return Err(Refused::new(
            "is a multicast address",
            "write the address of one host",
        ));
    }
    match address {
        Some(address) => Ok(Host::Address(address)),
        None => parse_name(text).map(Host::Name),
    }
}

fn parse_name(text: &str) -> Result<HostName, Refused> {
    if text.is_empty() {
        return Err(Refused::new("has no host", REMEDY));
    }
    if text.contains(':') {
        let why = "has more than one colon after tcp:// and no brackets";
        return Err(Refused::new(
            why,
            "put an IPv6 address in brackets, such as tcp://[2001:db8::1]:5556",
        ));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=LABEL_OCTETS_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A name whose last label is a number is an IPv4 address with a slip (RFC 1123 §2.1).
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|octet| octet.is_ascii_digit()));
    if numeric || name.len() > HOST_NAME_OCTETS_MAX || !name.split('.').all(label) {
        return Err(Refused::new(
            "has a host that is neither an address nor a name",
            REMEDY,
        ));
    }
    Ok(HostName(name.to_ascii_lowercase()))
}
