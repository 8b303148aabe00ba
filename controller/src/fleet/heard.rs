//! What an agent says, checked: the door of its stream.
//!
//! In: wire messages of `session.v1`. Out: [`Hello`] and [`Heard`], in which every list and text has its bound, and takes the memory
//! of what is kept of it and not of what was sent. What is beyond a bound that an honest agent keeps is refused; long sentences
//! are cut.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::labels::Labels;
use flowtilla_proto::wire::session::{self as wire, from_agent::Body};

use super::content::Hash;

/// Most octets of one message of an agent.
///
/// A heartbeat that tells of a thousand peers takes 64 KiB. Half of it cuts those; double it, and a captured agent takes
/// twice the memory.
pub const FROM_AGENT_OCTETS_MAX: usize = 128 << 10;
/// Most addresses of an agent. Source: `session.proto`.
pub const ADDRESSES_MAX: usize = 256;
/// Longest sentence that is kept, in characters.
///
/// Two lines of a terminal. Half of it cuts paths; double it, and a table of nacks is not read.
pub const SENTENCE_CHARS_MAX: usize = 256;
/// Longest name of a host, a version, a program, in octets. Source of the host's: RFC 1035 §2.3.4.
pub const TEXT_OCTETS_MAX: usize = 255;
/// Most entries of a list in a heartbeat or an ack that are kept: programs, drops, peers, collectors, limits.
///
/// The agent's programs are tens, its peers are what may be many. Half of it hides peers of a busy host; double it, and
/// 10,000 agents' health takes more memory than their streams.
pub const LIST_KEPT_MAX: usize = 256;
/// Most counts of lost records in a heartbeat that are kept of all collectors together.
///
/// An honest agent tells some of each of its collectors, of which it has tens. Half of it still holds those; double it, and a
/// captured agent takes more memory for what nobody reads.
pub const DROPS_KEPT_MAX: usize = 1_024;

/// Most octets of an agent's instance. Source: `session.proto`.
const INSTANCE_OCTETS_MAX: usize = 16;

/// What an agent says first, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// As it was said, for people; long texts cut, `addresses`, `labels` and `held` taken out. `features`: those that this
    /// version knows, each once.
    pub said: wire::Hello,
    /// Addresses of the host that others reach it at.
    pub addresses: Vec<IpAddr>,
    /// The source id that it would take.
    pub source_id: SourceId,
    /// What it holds.
    pub held: Option<Mark>,
    /// Labels from the host's own configuration.
    pub labels: Labels,
}

/// Names one content at one agent: epoch, then version, then what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Rises with a restore from a backup.
    pub epoch: u64,
    /// Rises with each change.
    pub version: u64,
    /// SHA-256 of the content.
    pub digest: Hash,
}

/// What an agent says later.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// It lives, and how it does.
    Heartbeat {
        /// What it has in force; `None`: it did not say.
        held: Option<Mark>,
        /// How it does.
        health: Option<Box<wire::Health>>,
        /// Its addresses, when they have changed.
        addresses: Option<Vec<IpAddr>>,
    },
    /// An offer is in force.
    Ack {
        /// Which.
        nonce: u64,
        /// What is in force.
        held: Mark,
        /// As it turned out; `None`: as it was told on this stream.
        effective: Option<Box<wire::Effective>>,
    },
    /// An offer is not in force.
    Nack(Box<wire::Nack>),
    /// It asks who is at the other end.
    Question {
        /// Names the question.
        id: u64,
        /// What it asks about.
        about: About,
    },
    /// It answers.
    Answer {
        /// Which question.
        id: u64,
        /// Who it is; `None`: it does not know.
        end: Option<Box<wire::End>>,
    },
    /// Who does how much on its host.
    Top(Box<wire::TopAnswer>),
    /// It ends on purpose.
    Goodbye,
    /// A message that only a later version knows.
    Unknown,
}

/// A question's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// The end that is asked about.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// 6 or 17.
    pub protocol: u8,
    /// The asking end.
    pub peer_address: IpAddr,
    /// Its port.
    pub peer_port: u16,
}

/// What an agent may not say. `Display`: one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The first message is another one.
    #[error("the first message is not a hello")]
    NotHello,
    /// A second hello.
    #[error("a second hello")]
    SecondHello,
    /// A field has a value that it cannot have.
    #[error("{field}: {why}")]
    Field {
        /// Its name.
        field: &'static str,
        /// Why.
        why: String,
    },
}

fn field(field: &'static str, why: impl Into<String>) -> Refused {
    Refused::Field {
        field,
        why: why.into(),
    }
}

impl Hello {
    /// Checks the first message.
    ///
    /// # Errors
    ///
    /// [`Refused`]: what it may not say.
    pub fn parse(message: wire::FromAgent) -> Result<Self, Refused> {
        let Some(Body::Hello(mut said)) = message.body else {
            return Err(Refused::NotHello);
        };
        let addresses = addresses("hello.addresses", &std::mem::take(&mut said.addresses))?;
        let labels = Labels::parse(&std::mem::take(&mut said.labels)).map_err(|mistakes| {
            let first = mistakes.iter().next().map(ToString::to_string);
            let mut first = first.unwrap_or_default();
            sentence(&mut first);
            field("hello.labels", first)
        })?;
        let source_id = SourceId::new(said.source_id)
            .ok_or_else(|| field("hello.source_id", "is 0, which names no source"))?;
        if !matches!(said.boot_id.len(), 0 | 16) {
            return Err(field("hello.boot_id", "has another length than 16 octets"));
        }
        if said.instance.len() > INSTANCE_OCTETS_MAX {
            return Err(field("hello.instance", "has more than 16 octets"));
        }
        let held = said
            .held
            .take()
            .map(|held| mark("hello.held", &held))
            .transpose()?;
        said.features
            .retain(|number| wire::Feature::try_from(*number).is_ok());
        said.features.sort_unstable();
        said.features.dedup();
        said.features.shrink_to_fit();
        for text in [
            &mut said.version,
            &mut said.host_name,
            &mut said.kernel,
            &mut said.operating_system,
            &mut said.scope,
        ] {
            cut(text, TEXT_OCTETS_MAX);
        }
        Ok(Self {
            said,
            addresses,
            source_id,
            held,
            labels,
        })
    }
}

impl Heard {
    /// Checks a message that is not the first.
    ///
    /// # Errors
    ///
    /// [`Refused`]: what it may not say.
    pub fn parse(message: wire::FromAgent) -> Result<Self, Refused> {
        Ok(match message.body {
            None => Self::Unknown,
            Some(Body::Hello(_)) => return Err(Refused::SecondHello),
            Some(Body::Heartbeat(sent)) => Self::Heartbeat {
                held: sent.held.map(|held| mark("heartbeat.held", &held)).transpose()?,
                health: sent.health.map(|health| Box::new(kept_health(health))),
                addresses: sent
                    .addresses
                    .map(|sent| addresses("heartbeat.addresses", &sent.addresses))
                    .transpose()?,
            },
            Some(Body::Ack(sent)) => Self::Ack {
                nonce: sent.nonce,
                held: match sent.held {
                    Some(held) => mark("ack.held", &held)?,
                    None => return Err(field("ack.held", "is absent")),
                },
                effective: sent.effective.map(|told| Box::new(kept_effective(told))),
            },
            Some(Body::Nack(mut sent)) => {
                if let Some(held) = &sent.held {
                    mark("nack.held", held)?;
                }
                if sent.section() == wire::Section::NotOffered {
                    sent.set_section(wire::Section::Unspecified); // The controller's word.
                }
                cut(&mut sent.path, TEXT_OCTETS_MAX);
                sentence(&mut sent.reason);
                Self::Nack(Box::new(sent))
            }
            Some(Body::Question(sent)) => Self::Question {
                id: sent.id,
                about: about(&sent)?,
            },
            Some(Body::Answer(sent)) => Self::Answer {
                id: sent.id,
                end: sent.end.map(|end| Box::new(kept_end(end))),
            },
            Some(Body::Top(sent)) => Self::Top(Box::new(kept_top(sent))),
            Some(Body::Goodbye(_)) => Self::Goodbye,
        })
    }
}

impl Mark {
    /// As it travels.
    #[must_use]
    pub fn to_wire(self) -> wire::Held {
        wire::Held {
            epoch: self.epoch,
            version: self.version,
            digest: self.digest.to_vec(),
        }
    }

    /// Its place in the order of an agent's offers.
    #[must_use]
    pub fn place(self) -> (u64, u64) {
        (self.epoch, self.version)
    }
}

fn mark(name: &'static str, sent: &wire::Held) -> Result<Mark, Refused> {
    let digest = sent.digest[..]
        .try_into()
        .map_err(|_| field(name, "has a digest of another length than 32 octets"))?;
    Ok(Mark {
        epoch: sent.epoch,
        version: sent.version,
        digest,
    })
}

/// An address of 4 or 16 octets; one that IPv6 maps from IPv4 is the IPv4 address.
fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let octets = <[u8; 16]>::try_from(octets).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

/// Addresses that others can reach; those of which every host has the same are left out.
fn addresses(name: &'static str, sent: &[Vec<u8>]) -> Result<Vec<IpAddr>, Refused> {
    if sent.len() > ADDRESSES_MAX {
        let why = format!("there are {}, and {ADDRESSES_MAX} at most are taken", sent.len());
        return Err(field(name, why));
    }
    let mut all = Vec::with_capacity(sent.len());
    for octets in sent {
        let address = address(octets).ok_or_else(|| field(name, "one has neither 4 nor 16 octets"))?;
        if of_one_host(address) && !all.contains(&address) {
            all.push(address);
        }
    }
    Ok(all)
}

/// Whether an address can name one host of the fleet.
fn of_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast())
        }
    }
}

fn about(sent: &wire::Question) -> Result<About, Refused> {
    let port = |name, port: u32| u16::try_from(port).map_err(|_| field(name, "is above 65535"));
    let octets =
        |name, octets: &[u8]| address(octets).ok_or_else(|| field(name, "has neither 4 nor 16 octets"));
    Ok(About {
        address: octets("question.address", &sent.address)?,
        port: port("question.port", sent.port)?,
        protocol: match sent.protocol {
            6 => 6,
            17 => 17,
            _ => return Err(field("question.protocol", "is neither 6 nor 17")),
        },
        peer_address: octets("question.peer_address", &sent.peer_address)?,
        peer_port: port("question.peer_port", sent.peer_port)?,
    })
}

fn kept_effective(mut sent: wire::Effective) -> wire::Effective {
    keep(&mut sent.programs, LIST_KEPT_MAX);
    keep(&mut sent.refused, LIST_KEPT_MAX);
    keep(&mut sent.collectors, LIST_KEPT_MAX);
    for text in sent.programs.iter_mut().chain(&mut sent.collectors) {
        cut(text, TEXT_OCTETS_MAX);
    }
    for refused in &mut sent.refused {
        cut(&mut refused.program, TEXT_OCTETS_MAX);
        sentence(&mut refused.reason);
        sentence(&mut refused.without);
    }
    sent
}

fn kept_health(mut sent: wire::Health) -> wire::Health {
    keep(&mut sent.drops, LIST_KEPT_MAX);
    keep(&mut sent.peers, LIST_KEPT_MAX);
    keep(&mut sent.collectors, LIST_KEPT_MAX);
    keep(&mut sent.over_limits, LIST_KEPT_MAX);
    for drop in &mut sent.drops {
        cut(&mut drop.point, TEXT_OCTETS_MAX);
    }
    for peer in &mut sent.peers {
        cut(&mut peer.peer, TEXT_OCTETS_MAX);
    }
    for text in &mut sent.over_limits {
        sentence(text);
    }
    let mut drops_left = DROPS_KEPT_MAX;
    for collector in &mut sent.collectors {
        cut(&mut collector.name, TEXT_OCTETS_MAX);
        sentence(&mut collector.reason);
        keep(&mut collector.dropped, drops_left.min(LIST_KEPT_MAX));
        drops_left -= collector.dropped.len();
        for drop in &mut collector.dropped {
            cut(&mut drop.point, TEXT_OCTETS_MAX);
        }
    }
    sent
}

fn kept_end(mut sent: wire::End) -> wire::End {
    // A command line is what is long by right: the agent's own bound for it is 512 octets.
    cut(&mut sent.command_line, 4 * TEXT_OCTETS_MAX);
    for text in [
        &mut sent.program,
        &mut sent.executable,
        &mut sent.user,
        &mut sent.group,
        &mut sent.parent_program,
        &mut sent.container,
        &mut sent.container_name,
        &mut sent.pod,
        &mut sent.pod_namespace,
        &mut sent.host,
    ] {
        cut(text, TEXT_OCTETS_MAX);
    }
    sent
}

/// Rows that say who they are of, with short texts and whole addresses.
fn kept_top(mut sent: wire::TopAnswer) -> wire::TopAnswer {
    keep(&mut sent.rows, super::top::ROWS_MAX);
    // Rates are sums by it: who says more is not believed.
    sent.window_ms = sent.window_ms.min(super::top::WINDOW_MS_MAX);
    sent.rows
        .retain_mut(|row| row.subject.as_mut().is_some_and(kept_subject));
    sent
}

fn kept_subject(subject: &mut wire::top_row::Subject) -> bool {
    use wire::top_row::Subject;
    let process = |process: &mut wire::TopProcess| {
        for text in [&mut process.program, &mut process.container, &mut process.unit] {
            cut(text, TEXT_OCTETS_MAX);
        }
    };
    match subject {
        Subject::Container(one) => {
            for text in [&mut one.id, &mut one.name, &mut one.pod_namespace, &mut one.pod] {
                cut(text, TEXT_OCTETS_MAX);
            }
        }
        Subject::Pod(pod) => {
            cut(&mut pod.pod_namespace, TEXT_OCTETS_MAX);
            cut(&mut pod.name, TEXT_OCTETS_MAX);
        }
        Subject::Process(one) => process(one),
        Subject::User(user) => cut(&mut user.name, TEXT_OCTETS_MAX),
        Subject::Flow(flow) => {
            cut(&mut flow.state, TEXT_OCTETS_MAX);
            for end in [&mut flow.client, &mut flow.server] {
                let Some(end) = end else { return false };
                if !matches!(end.address.len(), 4 | 16) || end.port > u16::MAX.into() {
                    return false;
                }
                end.process.iter_mut().for_each(process);
            }
        }
    }
    true
}

fn sentence(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(SENTENCE_CHARS_MAX) {
        cut(text, at);
    }
}

/// The first `most` of a list. The memory of the others goes, too: a list grows by doubling, and an empty element of two octets on
/// the line takes a hundred here.
fn keep<T>(list: &mut Vec<T>, most: usize) {
    list.truncate(most);
    list.shrink_to_fit();
}

fn cut(text: &mut String, octets_max: usize) {
    if text.len() > octets_max {
        text.truncate(text.floor_char_boundary(octets_max));
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests;
