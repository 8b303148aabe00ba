//! One rule, made ready for use.
//!
//! In: a validated [`FlowRule`]. Out: whether a named record matches. Text that a process chose (its path, its name) is
//! compared in time that grows with its length only.

use std::net::IpAddr;

use flowtilla_proto::policy::{FlowRule, PortRange, ProcessPattern, User};
use ipnet::IpNet;

use super::pattern::Pattern;
use super::place::Place;
use crate::enrich::Whereabouts;
use crate::flow::record::{FlowRecord, Party};
use crate::owner::Owner;

/// What rules look at, of both ends of a flow: taken apart once for all of them.
pub(super) struct Ends<'a>([End<'a>; 2]);

struct End<'a> {
    address: Bits,
    port: u16,
    owner: &'a Owner,
    program: Option<Running<'a>>,
    at: Whereabouts<'a>,
}

impl<'a> Ends<'a> {
    /// `whereabouts` is asked about owners on this host only.
    pub(super) fn of(record: &'a FlowRecord, whereabouts: impl Fn(&Owner) -> Whereabouts<'a>) -> Self {
        Self([
            End::of(&record.initiator, &whereabouts),
            End::of(&record.responder, &whereabouts),
        ])
    }

    /// Whether an owner on this host is in a container that nobody told of.
    pub(super) fn is_unnamed(&self) -> bool {
        self.0.iter().any(|end| end.at.unnamed)
    }

    /// Whether there are owners on this host, and this holds of the place of each of them.
    pub(super) fn all_own(&self, holds: impl Fn(&Whereabouts<'a>) -> bool) -> bool {
        let mut own = self.0.iter().filter(|end| end.is_own()).peekable();
        own.peek().is_some() && own.all(|end| holds(&end.at))
    }

    fn either(&self, holds: impl Fn(&End<'a>) -> bool) -> bool {
        self.0.iter().any(holds)
    }
}

impl<'a> End<'a> {
    fn of(party: &'a Party, whereabouts: &impl Fn(&Owner) -> Whereabouts<'a>) -> Self {
        let is_own = party.owner.process.is_some() && !party.owner.is_remote();
        Self {
            address: Bits::of(party.endpoint.address),
            port: party.endpoint.port,
            owner: &party.owner,
            program: Running::of(&party.owner),
            at: if is_own {
                whereabouts(&party.owner)
            } else {
                Whereabouts::default()
            },
        }
    }

    /// Whether its owner is a process of this host. What another host says of its own end must not decide what leaves
    /// this one.
    fn is_own(&self) -> bool {
        self.owner.process.is_some() && !self.owner.is_remote()
    }
}

/// A rule of the policy.
#[derive(Debug)]
pub(super) struct Rule {
    networks: Vec<Network>,
    ports: Vec<PortRange>,
    programs: Vec<Program>,
    users: Vec<User>,
    place: Place,
}

impl Rule {
    pub(super) fn new(rule: &FlowRule) -> Self {
        Self {
            networks: rule.cidrs.iter().map(Network::of).collect(),
            ports: rule.ports.clone(),
            programs: rule.processes.iter().map(Program::new).collect(),
            users: rule.users.clone(),
            place: Place::new(rule),
        }
    }

    /// Whether it can be decided only when a runtime has told of a container.
    pub(super) fn asks_runtimes(&self) -> bool {
        self.place.asks_runtimes()
    }

    /// Whether it is about where owners are, among other things.
    pub(super) fn asks_places(&self) -> bool {
        !self.place.is_empty()
    }

    /// Whether each list that is not empty has a member that matches at either end.
    pub(super) fn matches(&self, ends: &Ends<'_>) -> bool {
        let program = |end: &End<'_>| {
            let running = end.program.as_ref().filter(|_| end.is_own());
            running.is_some_and(|running| self.programs.iter().any(|wanted| wanted.matches(running)))
        };
        let user = |end: &End<'_>| end.is_own() && self.users.iter().any(|user| is_user(end.owner, user));
        (self.ports.is_empty() || ends.either(|end| self.ports.iter().any(|ports| ports.contains(end.port))))
            && (self.networks.is_empty()
                || ends.either(|end| self.networks.iter().any(|network| network.has(end.address))))
            && (self.programs.is_empty() || ends.either(program))
            && (self.users.is_empty() || ends.either(user))
            && self
                .place
                .lists()
                .iter()
                .all(|list| ends.either(|end| list.holds(&end.at)))
    }
}

/// An address as a number, and of which family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    four: bool,
    bits: u128,
}

impl Bits {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self {
                four: true,
                bits: address.to_bits().into(),
            },
            IpAddr::V6(address) => Self {
                four: false,
                bits: address.to_bits(),
            },
        }
    }
}

/// Part of a network.
#[derive(Debug)]
struct Network {
    first: Bits,
    mask: u128,
}

impl Network {
    fn of(cidr: &IpNet) -> Self {
        Self {
            first: Bits::of(cidr.network()),
            mask: Bits::of(cidr.netmask()).bits,
        }
    }

    fn has(&self, address: Bits) -> bool {
        self.first.four == address.four && address.bits & self.mask == self.first.bits
    }
}

fn is_user(owner: &Owner, user: &User) -> bool {
    match user {
        User::Id(id) => owner.process.as_ref().is_some_and(|process| process.uid == *id),
        User::Name(name) => {
            let known = owner.names.as_ref().and_then(|names| names.user.as_ref());
            known.is_some_and(|known| known == name)
        }
    }
}

/// What a process runs.
struct Running<'a> {
    /// The executable; `None`: not known.
    path: Option<&'a str>,
    /// The last part of the path, or the command name.
    name: &'a str,
}

impl<'a> Running<'a> {
    /// A command name is no path, whatever a process puts into it.
    fn of(owner: &'a Owner) -> Option<Self> {
        let names = owner.names.as_ref();
        if let Some(path) = names.and_then(|names| names.executable.as_deref()) {
            return Some(Self::at(path));
        }
        let process = owner.process.as_ref()?;
        Some(Self {
            path: None,
            name: &process.comm,
        })
    }

    fn at(path: &'a str) -> Self {
        Self {
            path: Some(path),
            name: path.rsplit_once('/').map_or(path, |(_, name)| name),
        }
    }
}

/// Programs that a pattern means.
#[derive(Debug)]
struct Program {
    path: bool,
    pattern: Pattern,
}

impl Program {
    fn new(pattern: &ProcessPattern) -> Self {
        Self {
            path: pattern.is_path(),
            pattern: Pattern::new(pattern.as_str()),
        }
    }

    fn matches(&self, running: &Running<'_>) -> bool {
        let text = match self.path {
            true => running.path,
            false => Some(running.name),
        };
        text.is_some_and(|text| self.pattern.matches(text))
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::policy::Policy;
    use flowtilla_proto::wire;

    use super::*;

    fn program(pattern: &str) -> Program {
        let rule = wire::FlowRule {
            processes: vec![pattern.into()],
            ..wire::FlowRule::default()
        };
        let policy = wire::Policy {
            capture: Some(wire::Capture {
                include: vec![rule],
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        };
        let policy = Policy::try_from(policy).expect("a sound pattern");
        Program::new(&policy.capture.include[0].processes[0])
    }

    /// A path, or a command name.
    fn running(text: &str) -> Running<'_> {
        if text.starts_with('/') {
            return Running::at(text);
        }
        Running {
            path: None,
            name: text,
        }
    }

    #[test]
    fn a_command_name_is_no_path_whatever_is_in_it() {
        let fake = Running {
            path: None,
            name: "/usr/bin/curl",
        };
        assert!(!program("/usr/bin/curl").matches(&fake) && !program("curl").matches(&fake));
        assert!(program("*").matches(&fake));
    }

    #[test]
    fn a_name_is_the_last_part_of_the_path_and_a_path_is_all_of_it() {
        for (pattern, matched, not) in [
            (
                "nginx",
                &["/usr/sbin/nginx", "nginx"][..],
                &["/usr/sbin/nginx2", "/nginx/x", "ngin"][..],
            ),
            (
                "/usr/sbin/nginx",
                &["/usr/sbin/nginx"],
                &["nginx", "/opt/usr/sbin/nginx"],
            ),
            (
                "python*",
                &["/usr/bin/python3.11", "python"],
                &["/usr/bin/pypython", "/python3/x"],
            ),
            ("*d", &["/usr/sbin/sshd", "d"], &["/usr/sbin/sshd2", ""]),
            (
                "/usr/*/x*",
                &["/usr/bin/x", "/usr/a/b/xy"],
                &["/usr/x", "x", "/opt/usr/bin/x"],
            ),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a*b*a", &["aba", "axbxa"], &["aa", "abb"]),
            ("*", &["x", "/x", ""], &[]),
            ("/*", &["/x", "/a/b"], &["x"]),
            ("a**b", &["ab", "axb"], &["a"]),
        ] {
            let program = program(pattern);
            for text in matched {
                assert!(program.matches(&running(text)), "{pattern} and {text}");
            }
            for text in not {
                assert!(!program.matches(&running(text)), "{pattern} and {text}");
            }
        }
    }

    #[test]
    fn a_long_path_against_many_stars_is_quick() {
        let program = program(&"*a".repeat(255));
        assert!(!program.matches(&running(&format!("{}b", "a".repeat(100_000)))));
        assert!(program.matches(&running(&"a".repeat(100_000))));
    }
}
