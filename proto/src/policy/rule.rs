//! A rule that chooses flows: by address, port, process, user, cgroup, container or pod.
//!
//! In: [`wire::FlowRule`]. Out: [`FlowRule`], each member checked by itself, the rule as a whole for being one: a rule
//! without members would match every flow, and is refused.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::scope::{ScopePath, cgroup_path};
use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::wire;

/// Most rules of one list.
///
/// A flow is compared with each of them once. What needs more is a few wide rules; double it, and the worst case of a
/// flow's first record grows with it.
pub const RULES_MAX: usize = 64;
/// Most members of one rule, all its lists together.
pub const RULE_MEMBERS_MAX: usize = 64;
/// Longest pattern of a process, in octets.
///
/// Paths of executables are short, but for those of build systems and stores (some 200). Double it, and a policy of
/// rules alone may be a quarter of a MiB longer.
pub const PROCESS_OCTETS_MAX: usize = 512;
/// Longest pattern of a container's name, an image or a namespace, in octets.
///
/// Names of images with their registry and digest have some 200. Double it, and a policy of rules alone may be a quarter of
/// a MiB longer.
pub const NAME_PATTERN_OCTETS_MAX: usize = 512;
/// Longest key of a pod's label, in octets. Source: Kubernetes, a DNS name of 253 octets, a slash and 63 more.
pub const POD_LABEL_KEY_OCTETS_MAX: usize = 317;
/// Longest value of a pod's label, in octets. Source: Kubernetes.
pub const POD_LABEL_VALUE_OCTETS_MAX: usize = 63;
/// Longest name of a user, in octets. Source: Linux `LOGIN_NAME_MAX`, its NUL not counted.
pub const USER_OCTETS_MAX: usize = 255;

/// Chooses a flow for which each list that is not empty has a member that matches. At least one list is not empty, none
/// has a member twice, and all have [`RULE_MEMBERS_MAX`] members at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FlowRule {
    /// An address at either end. No bit beyond the length is set; IPv4 is never written as IPv6.
    pub cidrs: Vec<IpNet>,
    /// A port at either end.
    pub ports: Vec<PortRange>,
    /// The program of an owner on this host.
    pub processes: Vec<ProcessPattern>,
    /// The user of an owner on this host.
    pub users: Vec<User>,
    /// A cgroup that an owner on this host is in or below.
    pub cgroups: Vec<ScopePath>,
    /// The name of the container of an owner on this host; no slash in it.
    pub containers: Vec<NamePattern>,
    /// What the container of an owner on this host was made from.
    pub images: Vec<NamePattern>,
    /// The namespace of the pod of an owner on this host; no slash in it.
    pub namespaces: Vec<NamePattern>,
    /// A label of the pod of an owner on this host.
    pub pod_labels: Vec<PodLabel>,
}

/// Ports from the first to the last, both in it; 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Whether the port is in it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Name of a program, or path of its executable, in which `*` stands for any characters: 1 to [`PROCESS_OCTETS_MAX`]
/// octets without control characters, with a slash at the beginning or nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessPattern(String);

impl ProcessPattern {
    /// The pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is about the path of the executable, not the name of the program.
    #[must_use]
    pub fn is_path(&self) -> bool {
        self.0.starts_with('/')
    }
}

/// Name of a container, an image or a namespace, in which `*` stands for any characters: 1 to [`NAME_PATTERN_OCTETS_MAX`]
/// octets without blanks and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A label of a pod. The key is 1 to [`POD_LABEL_KEY_OCTETS_MAX`] of `a-z A-Z 0-9 - . _ /`, the value 0 to
/// [`POD_LABEL_VALUE_OCTETS_MAX`] of `a-z A-Z 0-9 - . _`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodLabel {
    /// Its key.
    pub key: String,
    /// Its value; `None`: any.
    pub value: Option<String>,
}

impl fmt::Display for PodLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// A user of this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum User {
    /// By number, as the kernel's first user namespace counts.
    Id(u32),
    /// By name, as the process's own list of users has it: 1 to [`USER_OCTETS_MAX`] octets without blanks, colons and control
    /// characters, not digits alone.
    Name(String),
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Reads the rules of one list; their mistakes are noted below `list`.
pub(super) fn parse_all(reading: &mut Reading, list: &str, sent: &[wire::FlowRule]) -> Option<Vec<FlowRule>> {
    if sent.len() > RULES_MAX {
        let why = format!("has {} rules", sent.len());
        let remedy = format!("write at most {RULES_MAX}, some of them wider");
        reading.refuse(list, None, Refused::new(why, remedy));
        return None;
    }
    let rules: Vec<Option<FlowRule>> = sent
        .iter()
        .enumerate()
        .map(|(n, rule)| reading.inner(&format!("{list}[{n}]"), parse(rule)))
        .collect();
    rules.into_iter().collect()
}

fn parse(sent: &wire::FlowRule) -> Result<FlowRule, Mistakes> {
    let mut reading = Reading::default();
    let lists = [
        &sent.cidrs,
        &sent.ports,
        &sent.processes,
        &sent.users,
        &sent.cgroups,
        &sent.containers,
        &sent.images,
        &sent.namespaces,
        &sent.pod_labels,
    ];
    match lists.into_iter().map(Vec::len).sum::<usize>() {
        0 => {
            let why = "has no member, and would match every flow";
            let remedy = "write cidrs, ports, processes, users, cgroups, containers, images, namespaces or podLabels into it, \
                          or leave the rule out";
            reading.refuse("", None, Refused::new(why, remedy));
        }
        n if n > RULE_MEMBERS_MAX => {
            let remedy = format!("write at most {RULE_MEMBERS_MAX} in all its lists, or a second rule");
            reading.refuse("", None, Refused::new(format!("has {n} members"), remedy));
            return reading.finish(None);
        }
        _ => {}
    }
    let cidrs = members(&mut reading, "cidrs", &sent.cidrs, parse_cidr);
    let ports = members(&mut reading, "ports", &sent.ports, parse_ports);
    let processes = members(&mut reading, "processes", &sent.processes, parse_process);
    let users = members(&mut reading, "users", &sent.users, parse_user);
    let cgroups = members(&mut reading, "cgroups", &sent.cgroups, parse_cgroup);
    let containers = members(&mut reading, "containers", &sent.containers, parse_container);
    let images = members(&mut reading, "images", &sent.images, parse_image);
    let namespaces = members(&mut reading, "namespaces", &sent.namespaces, parse_namespace);
    let pod_labels = members(&mut reading, "podLabels", &sent.pod_labels, parse_pod_label);
    let made = (|| {
        Some(FlowRule {
            cidrs: cidrs?,
            ports: ports?,
            processes: processes?,
            users: users?,
            cgroups: cgroups?,
            containers: containers?,
            images: images?,
            namespaces: namespaces?,
            pod_labels: pod_labels?,
        })
    })();
    reading.finish(made)
}

/// The members of one list, none of them twice.
fn members<T: PartialEq>(
    reading: &mut Reading,
    list: &str,
    sent: &[String],
    parse: fn(&str) -> Result<T, Refused>,
) -> Option<Vec<T>> {
    let mut made = Vec::new();
    for (n, text) in sent.iter().enumerate() {
        let at = format!("{list}[{n}]");
        match reading.text(&at, text, parse) {
            Some(member) if made.contains(&member) => {
                reading.refuse(&at, Some(text), Refused::new("is there twice", "write it once"));
            }
            Some(member) => made.push(member),
            None => {}
        }
    }
    (made.len() == sent.len()).then_some(made)
}

/// Bits of an address of IPv6 before that of an IPv4 address mapped into it. Source: RFC 4291 §2.5.5.2.
const MAPPED_BITS: u8 = 96;

fn parse_cidr(text: &str) -> Result<IpNet, Refused> {
    let sample = "write ADDRESS or ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/8";
    let (address, length) = match text.split_once('/') {
        None => (text, None),
        Some((address, length)) => (address, Some(length)),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(Refused::new("has no IP address before its length", sample));
    };
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => bits,
        Some(digits) => match digits.parse::<u8>() {
            Ok(length) if length <= bits && is_plain(digits) => length,
            _ => {
                let remedy = format!("write a length of 0 to {bits}");
                return Err(Refused::new("has no length of such an address", remedy));
            }
        },
    };
    let net = IpNet::new(address, length).map_err(|_| Refused::new("is no part of a network", sample))?;
    if let IpAddr::V6(address) = address
        && let Some(mapped) = address.to_ipv4_mapped()
    {
        let why = "is an IPv4 address in IPv6, which no record has";
        let remedy = match length.checked_sub(MAPPED_BITS) {
            Some(length) => format!("write {mapped}/{length}"),
            None => sample.to_owned(),
        };
        return Err(Refused::new(why, remedy));
    }
    if net.addr() != net.network() {
        let why = format!("has bits beyond its length of {length}");
        let remedy = format!("write {} for the network, {address} for the host", net.trunc());
        return Err(Refused::new(why, remedy));
    }
    Ok(net)
}

/// Digits alone, without a needless 0.
fn is_plain(digits: &str) -> bool {
    digits.bytes().all(|octet| octet.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'))
}

const PORTS: RangeInclusive<u16> = 1..=u16::MAX;

fn parse_ports(text: &str) -> Result<PortRange, Refused> {
    let port = |digits: &str| {
        let number = digits.parse().ok().filter(|_| is_plain(digits));
        number.filter(|port| PORTS.contains(port))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
        (Some(first), Some(last)) => Err(Refused::new(
            "ends before it begins",
            format!("write {last}-{first}"),
        )),
        _ => Err(Refused::new(
            "is no port",
            "write a number of 1 to 65535, or two of them, such as 8000-8100",
        )),
    }
}

fn parse_process(text: &str) -> Result<ProcessPattern, Refused> {
    let remedy =
        "write the name of a program, such as nginx, or the path of its executable, such as /usr/lib/jvm/*";
    let refuse = |why: &str| Err(Refused::new(why, remedy));
    if text.is_empty() {
        return refuse("is no name");
    }
    if text.len() > PROCESS_OCTETS_MAX {
        let remedy = format!("write at most {PROCESS_OCTETS_MAX} octets, with * for the rest");
        return Err(Refused::new("is too long", remedy));
    }
    if text.chars().any(char::is_control) {
        return refuse("has control characters");
    }
    if text.contains('/') && !text.starts_with('/') {
        return refuse("is neither a name nor a path from the root");
    }
    Ok(ProcessPattern(text.to_owned()))
}

fn parse_user(text: &str) -> Result<User, Refused> {
    let remedy = "write the name of a user, or its number";
    if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) {
        // The last number means nobody. Source: Linux `(uid_t) -1`.
        return match text.parse() {
            Ok(id) if id < u32::MAX => Ok(User::Id(id)),
            _ => Err(Refused::new("is no number of a user", "write 0 to 4294967294")),
        };
    }
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':';
    if text.is_empty() || text.len() > USER_OCTETS_MAX || text.contains(odd) {
        return Err(Refused::new("is no name of a user", remedy));
    }
    Ok(User::Name(text.to_owned()))
}

fn parse_cgroup(text: &str) -> Result<ScopePath, Refused> {
    cgroup_path(text, "leave it out")
}

fn parse_container(text: &str) -> Result<NamePattern, Refused> {
    let remedy =
        "write the name of a container, such as web or web-*; that of a pod's namespace goes into namespaces";
    parse_name(text, remedy, false)
}

fn parse_image(text: &str) -> Result<NamePattern, Refused> {
    parse_name(
        text,
        "write the name of an image, such as nginx:1.27 or */nginx:*",
        true,
    )
}

fn parse_namespace(text: &str) -> Result<NamePattern, Refused> {
    parse_name(text, "write the namespace of a pod, such as kube-system", false)
}

fn parse_name(text: &str, remedy: &str, may_have_slash: bool) -> Result<NamePattern, Refused> {
    let refuse = |why: &str| Err(Refused::new(why, remedy));
    if text.is_empty() {
        return refuse("is no name");
    }
    if text.len() > NAME_PATTERN_OCTETS_MAX {
        let remedy = format!("write at most {NAME_PATTERN_OCTETS_MAX} octets, with * for the rest");
        return Err(Refused::new("is too long", remedy));
    }
    if text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return refuse("has blanks or control characters");
    }
    if text.contains('/') && !may_have_slash {
        return refuse("has a slash, which no such name has");
    }
    Ok(NamePattern(text.to_owned()))
}

fn parse_pod_label(text: &str) -> Result<PodLabel, Refused> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    let made_of = |text: &str, marks: &[u8]| {
        text.bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || marks.contains(&octet))
    };
    if key.is_empty() || key.len() > POD_LABEL_KEY_OCTETS_MAX || !made_of(key, b"-._/") {
        let remedy = "write KEY=VALUE or KEY, such as app.kubernetes.io/name=web";
        return Err(Refused::new("has no key of a label", remedy));
    }
    let is_value = |value: &str| value.len() <= POD_LABEL_VALUE_OCTETS_MAX && made_of(value, b"-._");
    if !value.is_none_or(is_value) {
        let remedy = format!(
            "write at most {POD_LABEL_VALUE_OCTETS_MAX} of letters, digits, '-', '.' and '_', or the key alone for any value"
        );
        return Err(Refused::new("has no value of a label", remedy));
    }
    Ok(PodLabel {
        key: key.to_owned(),
        value: value.map(str::to_owned),
    })
}

impl fmt::Display for FlowRule {
    /// Its members as `agentctl up` takes them: `cidr=10.0.0.0/8,port=443`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.cidrs.iter().map(|cidr| format!("cidr={cidr}")));
        words.extend(self.ports.iter().map(|ports| format!("port={ports}")));
        words.extend(
            self.processes
                .iter()
                .map(|process| format!("process={}", process.0)),
        );
        words.extend(self.users.iter().map(|user| format!("user={user}")));
        words.extend(
            self.cgroups
                .iter()
                .map(|path| format!("cgroup={}", path.as_str())),
        );
        let named = |kind: &'static str, list: &[NamePattern]| -> Vec<String> {
            list.iter().map(|name| format!("{kind}={}", name.0)).collect()
        };
        words.extend(named("container", &self.containers));
        words.extend(named("image", &self.images));
        words.extend(named("namespace", &self.namespaces));
        words.extend(self.pod_labels.iter().map(|label| format!("pod-label={label}")));
        f.write_str(&words.join(","))
    }
}

#[cfg(test)]
mod tests;
