//! The content of an offer, read whole before anything is touched.

use flowtilla_proto::collector::Collector;
use flowtilla_proto::mistake::{Mistake, Mistakes};
use flowtilla_proto::policy::Policy;
use flowtilla_proto::wire::session as wire;
use prost::Message as _;

use crate::policy::Wanted;

/// What one agent is to do, as a controller says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// What is wanted; nothing when no policy matches the agent.
    pub wanted: Wanted,
    /// Name of the policy; empty: none.
    pub policy: String,
    /// Revision of the fleet's objects that it was made from.
    pub revision: u64,
}

/// At which step something could not be done. What a nack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The offer itself.
    Offer,
    /// What is observed.
    Capture,
    /// What is learnt about processes.
    Enrich,
    /// Where records go.
    Export,
    /// What waits on disk.
    Buffer,
    /// What the agent may cost.
    Limits,
    /// The agent's own disk.
    Persist,
}

/// Why an assignment is not in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Fault {
    /// At which step.
    pub section: Section,
    /// Path of the field to blame, such as `capture.scopes[0].netns`; empty: none.
    pub path: String,
    /// One sentence.
    pub reason: String,
}

impl Assignment {
    /// Nothing: what an agent does that was never told anything.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            wanted: Wanted::nothing(),
            policy: String::new(),
            revision: 0,
        }
    }

    /// Reads the content of an offer.
    ///
    /// # Errors
    ///
    /// [`Fault`]: not what the API says, or something in it is refused.
    pub fn parse(content: &[u8]) -> Result<Self, Fault> {
        let sent = wire::Assignment::decode(content).map_err(|error| Fault {
            section: Section::Offer,
            path: String::new(),
            reason: format!("the content is no assignment: {error}"),
        })?;
        let revision = sent.revision;
        let Some(policy) = sent.policy else {
            return Ok(Self {
                revision,
                ..Self::nothing()
            });
        };
        let name = policy.name.clone();
        let (mut mistakes, mut collectors): (Vec<Mistake>, Vec<Collector>) = Default::default();
        for (n, collector) in sent.collectors.into_iter().enumerate() {
            match Collector::try_from(collector) {
                Ok(collector) => collectors.push(collector),
                Err(refused) => mistakes.extend(refused.under(&format!("collectors[{n}]"))),
            }
        }
        let policy = match Policy::try_from(policy) {
            Ok(policy) if mistakes.is_empty() => policy,
            Ok(_) => return Err(fault(mistakes)),
            Err(refused) => {
                mistakes.splice(0..0, refused);
                return Err(fault(mistakes));
            }
        };
        let wanted = Wanted::new(policy, collectors).map_err(Fault::from)?;
        let wanted = match sent.drain {
            true => wanted.drained(),
            false => wanted,
        };
        Ok(Self {
            wanted,
            policy: name,
            revision,
        })
    }
}

impl From<Mistakes> for Fault {
    fn from(mistakes: Mistakes) -> Self {
        fault(mistakes.into_iter().collect())
    }
}

/// Names the first mistake's place, and tells all of them.
fn fault(mistakes: Vec<Mistake>) -> Fault {
    let path = mistakes.first().map_or(String::new(), |first| first.path.clone());
    let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    Fault {
        section: Section::of_path(&path),
        path,
        reason: told.join("; "),
    }
}

impl Section {
    /// The section that holds the field at `path`.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        match path.split(['.', '[']).next() {
            Some("capture") => Self::Capture,
            Some("enrich") => Self::Enrich,
            Some("export" | "collectors") => Self::Export,
            Some("buffer") => Self::Buffer,
            Some("limits") => Self::Limits,
            _ => Self::Offer,
        }
    }
}

impl From<Section> for wire::Section {
    fn from(section: Section) -> Self {
        match section {
            Section::Offer => Self::Offer,
            Section::Capture => Self::Capture,
            Section::Enrich => Self::Enrich,
            Section::Export => Self::Export,
            Section::Buffer => Self::Buffer,
            Section::Limits => Self::Limits,
            Section::Persist => Self::Persist,
        }
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_proto::wire as objects;

    use super::*;

    fn content(policy: Option<objects::Policy>, collectors: Vec<objects::Collector>) -> Vec<u8> {
        wire::Assignment {
            policy,
            collectors,
            revision: 3,
            drain: false,
        }
        .encode_to_vec()
    }

    #[test]
    fn no_policy_is_nothing_to_do() {
        let assignment = Assignment::parse(&content(None, Vec::new())).expect("it says what it is");
        assert_eq!((assignment.wanted, assignment.revision), (Wanted::nothing(), 3));
    }

    #[test]
    fn a_drained_agent_is_told_so_beside_its_policy() {
        let policy = objects::Policy::default();
        let sent = wire::Assignment {
            policy: Some(policy.clone()),
            drain: true,
            ..wire::Assignment::default()
        };
        let drained = Assignment::parse(&sent.encode_to_vec()).expect("sound");
        let other = Assignment::parse(&content(Some(policy), Vec::new())).expect("sound");
        assert_eq!(drained.wanted, other.wanted.clone().drained());
        assert_ne!(drained.wanted, other.wanted);
    }

    #[test]
    fn every_mistake_is_told_and_the_first_one_names_the_section() {
        let policy = objects::Policy {
            capture: Some(objects::Capture {
                tcp: Some(false),
                udp: Some(false),
                ..objects::Capture::default()
            }),
            ..objects::Policy::default()
        };
        let collector = objects::Collector {
            name: "one".into(),
            endpoint: "udp://x".into(),
            ..objects::Collector::default()
        };
        let fault = Assignment::parse(&content(Some(policy), vec![collector])).expect_err("two mistakes");
        assert_eq!(fault.section, Section::Capture, "{fault:?}");
        assert!(fault.reason.contains("collectors[0].endpoint"), "{fault:?}");
        assert!(fault.reason.starts_with("capture"), "{fault:?}");
    }

    #[test]
    fn a_value_that_this_version_does_not_know_is_refused_at_its_place_and_is_no_default() {
        const LATER: i32 = 77;
        let collector = objects::Collector {
            name: "one".into(),
            endpoint: "tcp://192.0.2.1:5556".into(),
            ..objects::Collector::default()
        };
        let export = |mode, loopback| objects::Policy {
            export: Some(objects::Export {
                mode,
                loopback,
                ..objects::Export::default()
            }),
            ..objects::Policy::default()
        };
        let enrich = objects::Policy {
            enrich: Some(objects::Enrich {
                command_line: LATER,
                ..objects::Enrich::default()
            }),
            ..objects::Policy::default()
        };
        let scope = objects::Policy {
            capture: Some(objects::Capture {
                // As a part of the host of a kind that only a later version has.
                scopes: vec![objects::Scope { part: None }],
                ..objects::Capture::default()
            }),
            ..objects::Policy::default()
        };
        let of_collector = |change: fn(&mut objects::Collector)| {
            let mut collector = collector.clone();
            change(&mut collector);
            content(Some(objects::Policy::default()), vec![collector])
        };
        let of_policy = |policy| content(Some(policy), Vec::new());
        assert!(Assignment::parse(&of_collector(|_| {})).is_ok());
        for (content, section, path) in [
            (
                of_collector(|it| it.encoding = LATER),
                Section::Export,
                "collectors[0].encoding",
            ),
            (
                of_collector(|it| it.header_version = LATER),
                Section::Export,
                "collectors[0].headerVersion",
            ),
            (
                of_collector(|it| it.on_collector_restart = LATER),
                Section::Export,
                "collectors[0].onCollectorRestart",
            ),
            (of_policy(export(LATER, 0)), Section::Export, "export.mode"),
            (of_policy(export(0, LATER)), Section::Export, "export.loopback"),
            (of_policy(enrich), Section::Enrich, "enrich.commandLine"),
            (of_policy(scope), Section::Capture, "capture.scopes[0]"),
        ] {
            let fault = Assignment::parse(&content).expect_err("it is of a later version");
            assert_eq!((fault.section, fault.path.as_str()), (section, path), "{fault:?}");
        }
    }

    #[test]
    fn octets_that_are_no_assignment_are_the_offers_fault() {
        for octets in [&[0xff_u8][..], &[0x0a, 0x7f], &[0x0a, 0x02, 0x08]] {
            let fault = Assignment::parse(octets).expect_err("no assignment");
            assert_eq!(fault.section, Section::Offer, "{fault:?}");
        }
    }
}
