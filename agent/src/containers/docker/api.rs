//! What is read of Docker's API, and nothing else of it.
//!
//! In: JSON. Out: [`ContainerFacts`]. Every field may be absent: podman leaves out what Docker has, and both change.

use std::collections::BTreeMap;

use flowtilla_agent_core::enrich::container::{ContainerFacts, ContainerId, RuntimeKind};
use serde::Deserialize;

/// What runs.
pub(super) const LIST: &str = "/containers/json";

/// Attributes of an event that are no labels.
const NO_LABELS: &[&str] = &[
    "name",
    "image",
    "oldName",
    "exitCode",
    "execID",
    "signal",
    "containerExitCode",
    "podId",
];

type Labels = BTreeMap<String, String>;

/// Containers made, started and renamed since then, in seconds since the epoch, and from now on.
/// The filter: `{"type":["container"],"event":["create","start","rename"]}`.
pub(super) fn events(since_s: u64) -> String {
    format!(
        "/events?since={since_s}&filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%2C%22start%22%2C%22rename%22%5D%7D"
    )
}

/// One container, whether it runs or not.
pub(super) fn inspect(id: ContainerId) -> String {
    format!("/containers/{id}/json")
}

/// `/version`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    components: Option<Vec<Component>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: Option<String>,
}

impl Version {
    /// Whose API it is: the socket's path does not tell, podman may stand in for Docker.
    pub(super) fn kind(&self) -> RuntimeKind {
        let is_podman = |component: &Component| {
            let name = component.name.as_deref().unwrap_or_default();
            name.to_ascii_lowercase().starts_with("podman")
        };
        match self.components.iter().flatten().any(is_podman) {
            true => RuntimeKind::Podman,
            false => RuntimeKind::Docker,
        }
    }
}

/// An element of [`LIST`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    id: Option<String>,
    names: Option<Vec<String>>,
    image: Option<String>,
    labels: Option<Labels>,
}

impl Listed {
    pub(super) fn facts(&self) -> Option<ContainerFacts> {
        let id = ContainerId::parse(self.id.as_deref()?)?;
        let names = self.names.as_deref()?;
        // One with a second slash is what another container calls it (`--link`).
        let own = |name: &&String| !name.trim_start_matches('/').contains('/');
        let name = names.iter().find(own).or(names.first())?;
        facts(id, name, self.image.as_deref(), self.labels.as_ref())
    }
}

/// `/containers/{id}/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: Option<String>,
    name: Option<String>,
    config: Option<Config>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    image: Option<String>,
    labels: Option<Labels>,
}

impl Inspected {
    /// `None`: it is another container than was asked for, or has no name.
    pub(super) fn facts(&self, asked: ContainerId) -> Option<ContainerFacts> {
        let id = ContainerId::parse(self.id.as_deref()?).filter(|id| *id == asked)?;
        let config = self.config.as_ref();
        facts(
            id,
            self.name.as_deref()?,
            config.and_then(|config| config.image.as_deref()),
            config.and_then(|config| config.labels.as_ref()),
        )
    }
}

/// A line of [`events`].
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event {
    r#type: Option<String>,
    actor: Option<Actor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: Option<String>,
    attributes: Option<Labels>,
}

impl Event {
    /// Each event of a container tells all there is; `None`: it is of something else, or not to be read.
    pub(super) fn facts(line: &[u8]) -> Option<ContainerFacts> {
        let event: Self = serde_json::from_slice(line).ok()?;
        if event.r#type.is_some_and(|kind| kind != "container") {
            return None;
        }
        let actor = event.actor?;
        let id = ContainerId::parse(&actor.id?)?;
        let mut attributes = actor.attributes?;
        let (name, image) = (attributes.remove("name")?, attributes.remove("image"));
        attributes.retain(|key, _| !NO_LABELS.contains(&key.as_str()));
        facts(id, &name, image.as_deref(), Some(&attributes))
    }
}

fn facts(
    id: ContainerId,
    name: &str,
    image: Option<&str>,
    labels: Option<&Labels>,
) -> Option<ContainerFacts> {
    let labels = labels.into_iter().flatten();
    let labels = labels.map(|(key, value)| (key.as_str(), value.as_str()));
    ContainerFacts::new(id, name, image.unwrap_or_default(), labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";

    /// Source: what Docker 20.10.24 and podman 4.3.1 answered; a name by a link was added to Docker's.
    #[test]
    fn real_answers_are_read() {
        for (answer, name, image) in [
            (include_str!("../tests/docker-list.json"), "web", "img:1"),
            (
                include_str!("../tests/podman-list.json"),
                "pweb2",
                "localhost/img:1",
            ),
        ] {
            let list: Vec<Listed> = serde_json::from_str(answer).expect("a list");
            let facts = list[0].facts().expect("a container");
            assert_eq!(
                (facts.name(), facts.image(), facts.label("app")),
                (name, image, Some("shop"))
            );
        }
        let renamed = r#"{"status":"rename","Type":"container","Action":"rename","Actor":{"ID":"ID","Attributes":{"app":"shop",
            "image":"img:1","name":"web2","oldName":"/web"}},"scope":"local","time":1795879186}"#;
        let facts = Event::facts(renamed.replace("ID\":\"ID", &format!("ID\":\"{ID}")).as_bytes())
            .expect("a container");
        assert_eq!((facts.name(), facts.label("app")), ("web2", Some("shop")));
        assert_eq!(facts.label("oldName"), None);
        assert_eq!(
            Event::facts(renamed.replace("\"container\"", "\"image\"").as_bytes()),
            None
        );
    }
}
