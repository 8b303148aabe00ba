//! A group of hosts: where an operator's tool puts agents, and by which way.
//!
//! In: [`wire::HostGroup`]. Out: [`HostGroup`], checked whole. What is read here becomes arguments of ssh: no part of a
//! [`Target`] begins with a dash, and none has a space, a quote or anything else that a shell or ssh's `%`-expansion could
//! take for something else.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroU16;

use crate::labels::Labels;
use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::spiffe::MemberName;
use crate::wire;

/// Most hosts of one group.
///
/// A hall of machines. Half of it makes people cut a group in two for no reason of theirs; double it, and a message of full
/// groups nears the size of a revision.
pub const HOSTS_MAX: usize = 1_024;

/// Most hosts that ssh goes through. Each costs a handshake; three is what nested networks take.
pub const JUMPS_MAX: usize = 4;

/// Longest host, in octets. Source: RFC 1035 §2.3.4.
pub const HOST_OCTETS_MAX: usize = 253;

/// Longest user, in octets. Source: useradd(8), LOGIN_NAME_MAX is larger.
pub const USER_OCTETS_MAX: usize = 32;

const REMEDY: &str = "write [USER@]HOST[:PORT], such as web-1, admin@192.0.2.7:2222 or [2001:db8::1]:22";

/// Whom ssh is to reach: `[USER@]HOST[:PORT]`. Displayed so, which parses to the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Whom to log in as; `None`: it is said elsewhere.
    pub user: Option<String>,
    /// An address, a name, or a `Host` of ssh's own configuration.
    pub host: String,
    /// TCP port; `None`: it is said elsewhere.
    pub port: Option<NonZeroU16>,
}

/// Hosts, and how they are reached. Made by parsing only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostGroup {
    /// Name, unique among groups.
    pub name: MemberName,
    /// Labels of the agents there.
    pub labels: Labels,
    /// At least one, at most [`HOSTS_MAX`], no host at one port twice. Users and ports of the group are filled in.
    pub hosts: Vec<Target>,
    /// What ssh goes through, the first one first; at most [`JUMPS_MAX`].
    pub jump: Vec<Target>,
    /// Whether root may be had by sudo.
    pub sudo: bool,
    /// Where agents there reach the controller; `None`: where the operator does. Without a user.
    pub controller: Option<Target>,
    /// Runtimes whose sockets agents there may use.
    pub runtimes: BTreeSet<Runtime>,
}

/// A runtime of containers whose socket an agent may be let use. Whoever may is as good as root on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// podman, of root.
    Podman,
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
}

impl Runtime {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "containerd",
            Self::Crio => "crio",
        }
    }

    /// The group that may write to its socket, as the runtime makes it. Docker has a group of its own; the others' sockets are
    /// root's, mode 0660: a member of its group needs no capability, which would hold for every file of the host.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman | Self::Containerd | Self::Crio => "root",
        }
    }

    fn parse(text: &str) -> Result<Self, Refused> {
        let all = [Self::Docker, Self::Podman, Self::Containerd, Self::Crio];
        let found = all.into_iter().find(|runtime| runtime.as_str() == text);
        let remedy = "write docker, podman, containerd or crio";
        found.ok_or_else(|| Refused::new("is no runtime that is known", remedy))
    }
}

impl Target {
    fn parse(text: &str) -> Result<Self, Refused> {
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(parse_user(user)?), rest),
            None => (None, text),
        };
        let (host, port) = split_port(rest)?;
        let name = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_');
        let address = host.parse::<Ipv6Addr>().is_ok();
        if host.is_empty() {
            return Err(Refused::new("has no host", REMEDY));
        }
        if host.len() > HOST_OCTETS_MAX || host.starts_with('-') || !(address || host.bytes().all(name)) {
            let why = "has a host that is neither an address nor a name";
            return Err(Refused::new(why, REMEDY));
        }
        Ok(Self {
            user,
            host: host.to_owned(),
            port,
        })
    }

    /// What makes it another place: who logs in does not.
    #[must_use]
    pub fn place(&self) -> (String, Option<NonZeroU16>) {
        (self.host.to_ascii_lowercase(), self.port)
    }
}

/// Host and port; an address of version 6 has colons of its own.
fn split_port(text: &str) -> Result<(&str, Option<NonZeroU16>), Refused> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return Err(Refused::new("has a bracket that is not closed", REMEDY));
        };
        if host.parse::<Ipv6Addr>().is_err() {
            let why = "has something in brackets that is not an IPv6 address";
            return Err(Refused::new(why, REMEDY));
        }
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(Refused::new("has something after its bracket", REMEDY)),
        };
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Ok((text, None)),
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<NonZeroU16, Refused> {
    (text.bytes().all(|octet| octet.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| Refused::new("has a port that is not a number from 1 to 65535", REMEDY))
}

fn parse_user(text: &str) -> Result<String, Refused> {
    let letter = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_');
    if text.is_empty() || text.len() > USER_OCTETS_MAX || text.starts_with('-') || !text.bytes().all(letter) {
        let remedy =
            format!("write 1 to {USER_OCTETS_MAX} of letters, digits, '-', '.' and '_', no '-' first");
        return Err(Refused::new("has no user's name", remedy));
    }
    Ok(text.to_owned())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match (self.port, self.host.contains(':')) {
            (None, _) => f.write_str(&self.host),
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
        }
    }
}

impl TryFrom<wire::HostGroup> for HostGroup {
    type Error = Mistakes;

    /// Checks every field.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the group.
    fn try_from(sent: wire::HostGroup) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let name = reading.inner("name", MemberName::parse(&sent.name));
        let labels = reading.inner("labels", Labels::parse(&sent.labels));
        let user = sent.user.as_deref();
        let user = user.map(|user| reading.text("user", user, parse_user));
        let port = sent.port.map(|port| {
            let range = 1..=u64::from(u16::MAX);
            let port = reading.number("port", Some(u64::from(port)), 0, &range, "")?;
            u16::try_from(port).ok().and_then(NonZeroU16::new)
        });
        let hosts = read_hosts(&mut reading, &sent.hosts);
        let mut jump = Vec::new();
        if let Some(text) = &sent.jump {
            let parse = |text: &str| text.split(',').map(Target::parse).collect::<Result<Vec<_>, _>>();
            jump = reading.text("jump", text, parse).unwrap_or_default();
            if jump.len() > JUMPS_MAX {
                let refused = Refused::new("has too many hosts", format!("write at most {JUMPS_MAX}"));
                reading.refuse("jump", Some(text), refused);
            }
        }
        let controller = sent.controller.as_deref();
        let controller = controller.map(|text| reading.text("controller", text, parse_controller));
        let mut runtimes = BTreeSet::new();
        for (n, text) in sent.runtimes.iter().enumerate() {
            runtimes.extend(reading.text(&format!("runtimes[{n}]"), text, Runtime::parse));
        }
        let made = (|| {
            let (user, port) = (lift(user)?, lift(port)?);
            let fill = |target: Target| Target {
                user: target.user.or_else(|| user.clone()),
                port: target.port.or(port),
                ..target
            };
            Some(Self {
                name: name?,
                labels: labels?,
                hosts: hosts?.into_iter().map(fill).collect(),
                jump,
                sudo: sent.sudo.unwrap_or(true),
                controller: lift(controller)?,
                runtimes,
            })
        })();
        reading.finish(made)
    }
}

/// A field that was there and refused is `None`; one that was not there is nothing.
fn lift<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        Some(read) => read.map(Some),
        None => Some(None),
    }
}

fn read_hosts(reading: &mut Reading, sent: &[String]) -> Option<Vec<Target>> {
    if sent.is_empty() {
        let refused = Refused::new("has no host", "write at least one, such as hosts: [web-1]");
        reading.refuse("hosts", None, refused);
        return None;
    }
    if sent.len() > HOSTS_MAX {
        let why = format!("has {} hosts", sent.len());
        let refused = Refused::new(why, format!("write at most {HOSTS_MAX} in a group"));
        reading.refuse("hosts", None, refused);
        return None;
    }
    let mut places = BTreeSet::new();
    let mut read = Vec::new();
    for (n, text) in sent.iter().enumerate() {
        let target = reading.text(&format!("hosts[{n}]"), text, |text| {
            let target = Target::parse(text)?;
            match places.insert(target.place()) {
                true => Ok(target),
                false => Err(Refused::new("is in the group twice", "write each host once")),
            }
        });
        read.push(target);
    }
    read.into_iter().collect()
}

fn parse_controller(text: &str) -> Result<Target, Refused> {
    const REMEDY: &str = "write HOST[:PORT], such as controller.example or 192.0.2.1:7443";
    let target = Target::parse(text).map_err(|refused| Refused::new(refused.why, REMEDY))?;
    match target.user {
        Some(_) => Err(Refused::new("has a user", REMEDY)),
        None => Ok(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(hosts: &[&str]) -> wire::HostGroup {
        wire::HostGroup {
            name: "web".to_owned(),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            ..wire::HostGroup::default()
        }
    }

    fn refused(group: wire::HostGroup) -> String {
        HostGroup::try_from(group).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_target_is_read_as_it_was_written() {
        for text in [
            "web-1",
            "web_1.example",
            "192.0.2.7",
            "admin@web-1:2222",
            "2001:db8::1",
            "root@[2001:db8::1]:22",
        ] {
            let target = Target::parse(text).unwrap_or_else(|refused| panic!("{text} {}", refused.why));
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn what_ssh_or_a_shell_could_take_for_something_else_is_refused() {
        for text in [
            "",
            "-oProxyCommand=x",
            "a b",
            "a;b",
            "$(a)",
            "a%h",
            "a'b",
            "a\nb",
            "-u@a",
            "u v@a",
            "@a",
            "a@",
            "a:",
            "a:0",
            "a:65536",
            "a:x",
            "a:+1",
            "[a]:1",
            "[::1",
            "[::1]x",
            "ssh://a",
            "ä",
        ] {
            assert!(Target::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn user_and_port_of_the_group_are_for_hosts_without() {
        let read = HostGroup::try_from(wire::HostGroup {
            user: Some("admin".to_owned()),
            port: Some(2222),
            jump: Some("a,b@c:1".to_owned()),
            controller: Some("10.0.0.1".to_owned()),
            runtimes: vec!["docker".to_owned(), "crio".to_owned(), "docker".to_owned()],
            ..group(&["one", "root@two", "three:22"])
        })
        .expect("sound");
        let hosts: Vec<String> = read.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["admin@one:2222", "root@two:2222", "admin@three:22"]);
        assert_eq!(read.jump.len(), 2);
        assert_eq!(read.runtimes, [Runtime::Docker, Runtime::Crio].into());
        assert!(read.sudo);
    }

    #[test]
    fn every_mistake_is_told_with_its_field_and_a_remedy() {
        let wrong = wire::HostGroup {
            name: "Web".to_owned(),
            labels: [("-".to_owned(), String::new())].into(),
            user: Some("a b".to_owned()),
            port: Some(65_536),
            jump: Some("a,,b".to_owned()),
            controller: Some("u@c".to_owned()),
            runtimes: vec!["rkt".to_owned()],
            ..group(&["a", "x y", "A"])
        };
        let told = refused(wrong);
        let paths: Vec<&str> = told
            .lines()
            .map(|line| line.split(": ").next().unwrap_or_default())
            .collect();
        assert_eq!(
            paths,
            [
                "name",
                "labels[-]",
                "user",
                "port",
                "hosts[1]",
                "hosts[2]",
                "jump",
                "controller",
                "runtimes[0]"
            ],
            "{told}"
        );
        assert!(told.contains("hosts[2]: \"A\" is in the group twice; write each host once"));
        assert_eq!(
            refused(group(&[])),
            "hosts: has no host; write at least one, such as hosts: [web-1]"
        );
        let many: Vec<String> = (0..=HOSTS_MAX).map(|n| format!("h{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(refused(group(&many)).contains("write at most 1024"));
        assert!(HostGroup::try_from(group(&many[1..])).is_ok());
    }
}
