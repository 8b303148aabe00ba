//! Operators' files: YAML documents, read into the objects of the API and written from them.
//!
//! In: texts with names ([`Text`]). Out: [`Documents`] and every [`Complaint`] about them, each with file, line and column;
//! or, the other way, an object as YAML or JSON. Reads no files itself, except in [`files`]; sends nothing.
//!
//! A document is flat: `apiVersion: flowtilla/v1`, `kind: Policy`, `Collector` or `HostGroup`, then the fields of the message of that
//! name, by [`fields`]'s rules. It goes text → [`tree`] (places kept) → [`transcode`] (by the API's descriptors) → wire object →
//! validated type, whose mistakes are brought back to their places by [`place`].
//!
//! Invariant: each complaint's place is within its file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flowtilla_proto::collector::Collector;
use flowtilla_proto::hosts::HostGroup;
use flowtilla_proto::mistake::{Mistake, Mistakes};
use flowtilla_proto::policy::Policy;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Object, ObjectName, object};

use self::fields::Shape;
use self::tree::Node;
use crate::output::harmless;

pub(crate) mod fields;
pub(crate) mod files;
mod place;
pub(crate) mod render;
mod transcode;
mod tree;
pub(crate) mod units;

/// The one version of documents there is.
pub(crate) const API_VERSION: &str = "flowtilla/v1";

/// Longest text of a file, in octets.
///
/// Thousands of objects. Half of it splits a large fleet's file; double it, and a wrong file is read for longer.
pub(crate) const TEXT_OCTETS_MAX: usize = 1 << 20;

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    /// Path as it was given, or `stdin`.
    pub(crate) name: String,
    /// At most [`TEXT_OCTETS_MAX`] octets.
    pub(crate) content: String,
}

/// Kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// One ntopng.
    Collector,
    /// Hosts that are to have an agent.
    HostGroup,
    /// What one agent is to do.
    Policy,
}

impl Kind {
    /// All of them, in the order of their names.
    pub(crate) const ALL: [Self; 3] = [Self::Collector, Self::HostGroup, Self::Policy];

    /// The name of it, as documents and the API have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Collector => "Collector",
            Self::HostGroup => "HostGroup",
            Self::Policy => "Policy",
        }
    }

    /// The kind of this name.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Where something stands in a text: from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// One thing that is wrong with a text. Displayed as `FILE:LINE:COLUMN: field: value why; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// Which text, by its place in the list.
    text: usize,
    file: String,
    pub(crate) place: Place,
    pub(crate) mistake: Mistake,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        let mistake = self.mistake.to_string();
        write!(f, "{}:{line}:{column}: {}", harmless(&self.file), mistake)
    }
}

/// An object and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    text: usize,
    root: tree::Item,
    kind: Kind,
    /// The object, as it travels.
    pub(crate) object: Object,
}

/// What was read from texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Documents {
    names: Vec<String>,
    /// Those that could be read, in the order of the texts.
    pub(crate) list: Vec<Document>,
}

impl Document {
    /// Its kind and name.
    pub(crate) fn name(&self) -> ObjectName {
        name_of(&self.object)
    }
}

/// Kind and name of an object; both empty when it is of a kind that this version does not know.
pub(crate) fn name_of(object: &Object) -> ObjectName {
    let (kind, name) = match &object.kind {
        Some(object::Kind::Policy(policy)) => (Kind::Policy.name(), policy.name.clone()),
        Some(object::Kind::Collector(collector)) => (Kind::Collector.name(), collector.name.clone()),
        Some(object::Kind::HostGroup(group)) => (Kind::HostGroup.name(), group.name.clone()),
        None => ("", String::new()),
    };
    ObjectName {
        kind: kind.to_owned(),
        name,
    }
}

impl Documents {
    /// Reads texts. What can be read is there whatever is wrong with the rest.
    pub(crate) fn read(texts: &[Text]) -> (Self, Vec<Complaint>) {
        let mut documents = Self {
            names: texts.iter().map(|text| text.name.clone()).collect(),
            list: Vec::new(),
        };
        let mut complaints = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            match tree::parse(&text.content) {
                Ok(roots) => {
                    for root in roots {
                        documents.take(n, root, &mut complaints);
                    }
                }
                Err((place, mistake)) => complaints.push(documents.complaint(n, place, mistake)),
            }
        }
        documents.twice(&mut complaints);
        (documents, sorted(complaints))
    }

    /// The objects, as they travel.
    pub(crate) fn objects(&self) -> Vec<Object> {
        self.list.iter().map(|document| document.object.clone()).collect()
    }

    /// Names of collectors that a policy here asks for, and that neither are here nor in `known`.
    pub(crate) fn dangling(&self, known: &BTreeSet<String>) -> Vec<Complaint> {
        let here: BTreeSet<&str> = self
            .list
            .iter()
            .filter_map(|document| match &document.object.kind {
                Some(object::Kind::Collector(collector)) => Some(collector.name.as_str()),
                _ => None,
            })
            .collect();
        let mut complaints = Vec::new();
        for document in &self.list {
            let Some(object::Kind::Policy(policy)) = &document.object.kind else {
                continue;
            };
            let named = policy
                .export
                .as_ref()
                .map_or(&[][..], |export| &export.collectors);
            for (n, name) in named.iter().enumerate() {
                let again = named[..n].contains(name); // Said already, as is what is no name.
                let is_name = MemberName::parse(name).is_ok();
                if again || !is_name || here.contains(name.as_str()) || known.contains(name) {
                    continue;
                }
                let all = here.iter().copied().chain(known.iter().map(String::as_str));
                let remedy = match fields::nearest(name, all) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "add a document of kind Collector with this name".to_owned(),
                };
                let mistake = Mistake {
                    path: format!("export.collectors[{n}]"),
                    value: Some(name.clone()),
                    why: "is no collector, neither in these files nor at the controller".to_owned(),
                    remedy,
                };
                complaints.push(self.placed(document, mistake));
            }
        }
        sorted(complaints)
    }

    /// The groups of hosts. Each is as it is to be: mistakes were told when they were read.
    pub(crate) fn host_groups(&self) -> Vec<HostGroup> {
        let group = |document: &Document| match &document.object.kind {
            Some(object::Kind::HostGroup(group)) => HostGroup::try_from(group.clone()).ok(),
            _ => None,
        };
        self.list.iter().filter_map(group).collect()
    }

    /// Groups that do not say where their hosts find the controller, when the operator's own way, `host`, leads there to the
    /// host itself.
    pub(crate) fn astray(&self, host: &str) -> Vec<Complaint> {
        let is_own = |host: &str| {
            let address = host.parse::<std::net::IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        };
        let mut complaints = Vec::new();
        for document in self.list.iter().filter(|_| is_own(host)) {
            let Some(object::Kind::HostGroup(sent)) = &document.object.kind else {
                continue;
            };
            let group = HostGroup::try_from(sent.clone());
            if group.is_ok_and(|group| {
                group.controller.is_none() && !group.hosts.iter().all(|target| is_own(&target.host))
            }) {
                let mistake = Mistake {
                    path: "controller".to_owned(),
                    value: None,
                    why: format!(
                        "is absent, and {host}, where this operator has it, is on each host the host itself"
                    ),
                    remedy: "write the address by which the hosts reach the controller".to_owned(),
                };
                complaints.push(self.placed(document, mistake));
            }
        }
        sorted(complaints)
    }

    /// Mistakes that the controller found: each goes to its place; what is in no document of ours stays a sentence.
    pub(crate) fn refused(&self, mistakes: &[wire::fleet::Mistake]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut complaints = Vec::new();
        for told in mistakes {
            let mistake = Mistake {
                path: told.path.clone(),
                value: told.value.clone(),
                why: harmless(&told.why),
                remedy: harmless(&told.remedy),
            };
            let of = usize::try_from(told.object).ok().and_then(|n| self.list.get(n));
            match of {
                Some(document) => complaints.push(self.placed(document, mistake)),
                None => lines.push(mistake.to_string()),
            }
        }
        let complaints = sorted(complaints);
        complaints.iter().map(ToString::to_string).chain(lines).collect()
    }

    /// One document: what is wrong with its head, then with its fields, then with the object as a whole.
    fn take(&mut self, text: usize, root: tree::Item, complaints: &mut Vec<Complaint>) {
        let mut found = Vec::new();
        let kind = head(&root, &mut found);
        if let Some(kind) = kind {
            let (object, mut refused) = transcode::object(&root, kind);
            found.append(&mut refused);
            let settled: BTreeSet<String> = found.iter().map(|(_, mistake)| mistake.path.clone()).collect();
            let told = |path: &str| settled.iter().any(|known| place::overlap(known, path));
            let message = fields::message(kind);
            for mistake in judge(&object) {
                let path = place::written(&message, &mistake.path);
                if !told(&path) {
                    found.push(place::put(&root, &message, mistake));
                }
            }
            self.list.push(Document {
                text,
                root,
                kind,
                object,
            });
        }
        for (place, mistake) in found {
            complaints.push(self.complaint(text, place, mistake));
        }
    }

    /// Objects of the same kind and name.
    fn twice(&self, complaints: &mut Vec<Complaint>) {
        let mut first: BTreeMap<(Kind, String), &Document> = BTreeMap::new();
        for document in &self.list {
            let name = document.name().name;
            if name.is_empty() {
                continue; // Said already.
            }
            let Some(before) = first.insert((document.kind, name.clone()), document) else {
                continue;
            };
            let at = place::of(&before.root, &fields::message(document.kind), "name");
            let mistake = Mistake {
                path: "name".to_owned(),
                value: Some(name),
                why: format!(
                    "is also the name of the {} at {}:{}",
                    document.kind.name(),
                    harmless(&self.names[before.text]),
                    at.line
                ),
                remedy: "write each object once".to_owned(),
            };
            complaints.push(self.placed(document, mistake));
        }
    }

    fn placed(&self, document: &Document, mistake: Mistake) -> Complaint {
        let (place, mistake) = place::put(&document.root, &fields::message(document.kind), mistake);
        self.complaint(document.text, place, mistake)
    }

    fn complaint(&self, text: usize, place: Place, mistake: Mistake) -> Complaint {
        Complaint {
            text,
            file: self.names[text].clone(),
            place,
            mistake,
        }
    }
}

fn sorted(mut complaints: Vec<Complaint>) -> Vec<Complaint> {
    complaints.sort_by_key(|complaint| (complaint.text, complaint.place));
    complaints
}

/// Reads `apiVersion` and `kind`.
fn head(root: &tree::Item, found: &mut Vec<(Place, Mistake)>) -> Option<Kind> {
    let Node::Map(entries) = &root.node else {
        let mistake = Mistake {
            path: String::new(),
            value: None,
            why: format!("a document holds {}, where it has fields", root.node.called()),
            remedy: format!("begin with apiVersion: {API_VERSION}, then kind and name"),
        };
        found.push((root.place, mistake));
        return None;
    };
    let mut text = |field: &str, remedy: String| {
        let Some((_, value)) = entries.iter().find(|(key, _)| key.text == field) else {
            let why = "is absent".to_owned();
            found.push((
                root.place,
                Mistake {
                    path: field.to_owned(),
                    value: None,
                    why,
                    remedy,
                },
            ));
            return None;
        };
        Some((value.place, value.raw(), remedy))
    };
    let version = text("apiVersion", format!("write apiVersion: {API_VERSION}"));
    let names = Kind::ALL.map(Kind::name).join(" or kind: ");
    let kind = text("kind", format!("write kind: {names}"));
    if let Some((place, raw, remedy)) = version
        && raw != API_VERSION
    {
        let why = "is not a version that this agentctl knows".to_owned();
        found.push((place, mistake("apiVersion", raw, why, remedy)));
    }
    let (place, raw, remedy) = kind?;
    let kind = Kind::of(&raw);
    if kind.is_none() {
        let remedy = match fields::nearest(&raw, Kind::ALL.map(Kind::name)) {
            Some(near) => format!("did you mean {near}?"),
            None => remedy,
        };
        found.push((
            place,
            mistake("kind", raw, "is no kind of object".to_owned(), remedy),
        ));
    }
    kind
}

fn mistake(path: &str, value: String, why: String, remedy: String) -> Mistake {
    Mistake {
        path: path.to_owned(),
        value: Some(value),
        why,
        remedy,
    }
}

/// What the validated type of an object says of it. A controller keeps objects by name: one without is refused here.
fn judge(object: &Object) -> Vec<Mistake> {
    let (name, said) = match object.kind.clone() {
        Some(object::Kind::Policy(policy)) => (policy.name.clone(), Policy::try_from(policy).err()),
        Some(object::Kind::Collector(collector)) => {
            (collector.name.clone(), Collector::try_from(collector).err())
        }
        Some(object::Kind::HostGroup(group)) => (group.name.clone(), HostGroup::try_from(group).err()),
        None => return Vec::new(),
    };
    let mut mistakes: Vec<Mistake> = said.into_iter().flat_map(Mistakes::into_iter).collect();
    if !mistakes.iter().any(|mistake| mistake.path == "name") {
        let said = MemberName::parse(&name).err();
        mistakes.extend(said.into_iter().flat_map(|mistakes| mistakes.under("name")));
    }
    for mistake in &mut mistakes {
        if mistake.path == "name" && name.is_empty() {
            mistake.value = None;
            mistake.why = "is absent".to_owned();
        }
    }
    mistakes
}

/// How a scalar field is written, for whoever tells it.
pub(crate) fn written_as(shape: &Shape) -> &'static str {
    match shape {
        Shape::Switch => "true or false",
        Shape::Number(_) => "a number",
        Shape::Duration => "a time, such as 10s, 500ms, 5m, 2h or 7d",
        Shape::Size => "octets, or a size such as 512MiB",
        Shape::Text => "a text",
        Shape::Choice(_) => "a word",
        Shape::Part(_) => "fields, each a name, a colon and a value",
    }
}

#[cfg(test)]
mod tests;
