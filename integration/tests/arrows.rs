//! Promise: rooms import only what their arrows allow, and the core cannot do IO.
//!
//! The rule is a table; cargo's own metadata is the witness. Dependencies of tests and of build scripts are no arrows.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What each package of the workspace may import of the others.
const ARROWS: [(&str, &[&str]); 8] = [
    ("flowtilla-abi", &[]),
    ("flowtilla-proto", &[]),
    ("flowtilla-grpc", &["flowtilla-proto"]),
    ("flowtilla-agent-core", &["flowtilla-abi", "flowtilla-proto"]),
    (
        "flowtilla-agent",
        &[
            "flowtilla-agent-core",
            "flowtilla-abi",
            "flowtilla-grpc",
            "flowtilla-proto",
        ],
    ),
    ("flowtilla-controller", &["flowtilla-grpc", "flowtilla-proto"]),
    // `up` runs the agent in its own process, `loss` and `buffer` look at its spool, `doctor` asks it what it can: nothing else may
    // reach for it.
    (
        "agentctl",
        &[
            "flowtilla-proto",
            "flowtilla-grpc",
            "flowtilla-agent",
            "flowtilla-agent-core",
            "flowtilla-controller",
        ],
    ),
    (
        "integration",
        &[
            "flowtilla-abi",
            "flowtilla-proto",
            "flowtilla-agent-core",
            "flowtilla-agent",
            "flowtilla-controller",
            "flowtilla-grpc",
        ],
    ),
];

/// Crates that open sockets or files, or wait for them.
const IO_CRATES: [&str; 11] = [
    "aya", "hyper", "mio", "nix", "procfs", "rustix", "sled", "socket2", "tokio", "tonic", "zeromq",
];

#[test]
fn rooms_import_only_what_their_arrows_allow() -> Result<()> {
    let tree = Tree::ask()?;
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for name in &tree.workspace {
        let allowed = allowed
            .get(name.as_str())
            .with_context(|| format!("{name} has no row in the table of arrows"))?;
        for import in tree.imports_of(name) {
            ensure!(
                !tree.workspace.contains(&import) || allowed.contains(&import.as_str()),
                "{name} may not import {import}"
            );
        }
    }
    Ok(())
}

#[test]
fn no_crate_that_does_io_is_reachable_from_the_core() -> Result<()> {
    let tree = Tree::ask()?;
    let reached = tree.reachable_from("flowtilla-agent-core")?;
    ensure!(
        reached.contains("flowtilla-proto"),
        "the walk reached nothing: {reached:?}"
    );
    for name in IO_CRATES {
        ensure!(!reached.contains(name), "{name} is reachable from the core");
    }
    Ok(())
}

#[test]
fn only_up_doctor_and_one_file_for_the_spool_import_the_agent() -> Result<()> {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../ctl/src");
    let mut folders = vec![source.clone()];
    let mut importing = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).is_ok_and(|text| text.contains("flowtilla_agent::")) {
                importing.insert(path.strip_prefix(&source)?.to_owned());
            }
        }
    }
    for path in &importing {
        ensure!(
            ["cmd/up", "cmd/up.rs", "cmd/spooled.rs", "cmd/doctor.rs"]
                .iter()
                .any(|allowed| path.starts_with(allowed)),
            "{} imports the agent",
            path.display()
        );
    }
    Ok(())
}

/// Packages and who imports whom.
struct Tree {
    /// Names of the workspace's packages.
    workspace: BTreeSet<String>,
    /// Package id → name.
    names: BTreeMap<String, String>,
    /// Package id → ids of what it imports, tests and build scripts left out.
    imports: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn ask() -> Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: BTreeMap<String, String> = list(&metadata["packages"])
            .iter()
            .map(|package| (text(&package["id"]), text(&package["name"])))
            .collect();
        let workspace = list(&metadata["workspace_members"])
            .iter()
            .filter_map(|id| names.get(&text(id)).cloned())
            .collect();
        let is_import = |dependency: &Value| {
            list(&dependency["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"].is_null())
        };
        let imports = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let dependencies = list(&node["deps"]);
                let dependencies = dependencies.iter().filter(|dependency| is_import(dependency));
                (
                    text(&node["id"]),
                    dependencies.map(|dependency| text(&dependency["pkg"])).collect(),
                )
            })
            .collect();
        Ok(Self {
            workspace,
            names,
            imports,
        })
    }

    fn imports_of(&self, name: &str) -> Vec<String> {
        let ids = self.id_of(name).and_then(|id| self.imports.get(id));
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.names.get(id).cloned())
            .collect()
    }

    fn reachable_from(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut ids = vec![
            self.id_of(name)
                .with_context(|| format!("no package {name}"))?
                .clone(),
        ];
        let mut seen = BTreeSet::new();
        while let Some(id) = ids.pop() {
            if seen.insert(id.clone()) {
                ids.extend(self.imports.get(&id).cloned().unwrap_or_default());
            }
        }
        Ok(seen.iter().filter_map(|id| self.names.get(id).cloned()).collect())
    }

    fn id_of(&self, name: &str) -> Option<&String> {
        let mut ids = self.names.iter().filter(|(_, other)| *other == name);
        ids.next().map(|(id, _)| id)
    }
}
