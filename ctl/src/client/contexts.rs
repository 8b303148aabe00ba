//! Contexts: names for controllers, each with the directory of the identity that is shown to it.
//!
//! `$FLOWTILLA_CONFIG`, or `$XDG_CONFIG_HOME/flowtilla/config.yaml`, or `~/.config/flowtilla/config.yaml`:
//!
//! ```yaml
//! current: prod                  # absent: none
//! contexts:
//!   prod:
//!     controller: HOST:PORT
//!     identity: /…/flowtilla/config.yaml.d/prod    # directory: identity.pem (0600), bundle.pem
//! ```
//!
//! Replaced as a whole: written under another name, synced, renamed. Identities are beside the file, below a directory
//! with its name and `.d`: those of another config file are below another one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flowtilla_proto::spiffe::MemberName;
use serde::{Deserialize, Serialize};

use crate::document::render::to_yaml;
use crate::exit::UsageError;
use crate::output::harmless;

/// Longest config file, in octets. Hundreds of contexts.
const FILE_OCTETS_MAX: u64 = 256 << 10;

/// Where the config file is.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    file: PathBuf,
}

/// What the config file holds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that counts when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// By their names.
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Place>,
}

/// A controller, and who one is to it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Place {
    /// `HOST:PORT`.
    pub(crate) controller: String,
    /// Directory of the identity.
    pub(crate) identity: PathBuf,
}

impl Home {
    /// The user's, by the environment.
    ///
    /// # Errors
    ///
    /// The environment names no place.
    pub(crate) fn of_user() -> anyhow::Result<Self> {
        Self::by(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// By the variables that `variable` gives.
    pub(crate) fn by(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Self> {
        let below = |directory: OsString| Path::new(&directory).join("flowtilla/config.yaml");
        let file = variable("FLOWTILLA_CONFIG")
            .map(PathBuf::from)
            .or_else(|| variable("XDG_CONFIG_HOME").map(below))
            .or_else(|| variable("HOME").map(|home| below(Path::new(&home).join(".config").into())))
            .context("neither FLOWTILLA_CONFIG nor HOME is set; set one, so that contexts have a place")?;
        Ok(Self { file })
    }

    /// What there is; nothing when there is no file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no config file.
    pub(crate) fn load(&self) -> anyhow::Result<Contexts> {
        let shown = self.shown();
        let mut text = String::new();
        match File::open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            opened => opened
                .and_then(|file| file.take(FILE_OCTETS_MAX).read_to_string(&mut text))
                .with_context(|| format!("{shown} cannot be read"))?,
        };
        if text.trim().is_empty() {
            return Ok(Contexts::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| {
            let told = harmless(&error.without_snippet().to_string());
            UsageError(vec![format!(
                "{shown}: {told}; correct it, or remove it and log in again"
            )])
            .into()
        })
    }

    /// Replaces what there is.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn store(&self, contexts: &Contexts) -> anyhow::Result<()> {
        let written = self
            .directory()
            .and_then(make_directory)
            .and_then(|()| replace(&self.file, to_yaml(contexts).as_bytes()));
        written.with_context(|| format!("{} cannot be written", self.shown()))
    }

    /// The context of this name, or the current one.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn context(&self, name: Option<&str>) -> anyhow::Result<(String, Place)> {
        let mut contexts = self.load()?;
        let usage = |line: String| anyhow::Error::new(UsageError(vec![line]));
        let name = match name.map(str::to_owned).or(contexts.current.take()) {
            Some(name) => name,
            None if contexts.contexts.is_empty() => {
                return Err(usage(
                    "no controller is known here; log in: agentctl login --controller HOST --token-file FILE"
                        .into(),
                ));
            }
            None => {
                let names = contexts.names();
                return Err(usage(format!(
                    "--context: no context is the current one; write one of {names}, or choose one with context use"
                )));
            }
        };
        match contexts.contexts.remove(&name) {
            Some(place) => Ok((name, place)),
            None => {
                let names = contexts.names();
                let shown = harmless(&name);
                Err(usage(format!(
                    "--context: {shown:?} is no context; write one of {names}, or log in"
                )))
            }
        }
    }

    /// Where a context's identity is kept.
    ///
    /// # Errors
    ///
    /// The name is no name.
    pub(crate) fn identity_of(&self, name: &str) -> anyhow::Result<PathBuf> {
        let refused = |mistakes| UsageError(vec![format!("--context: {mistakes}")]);
        MemberName::parse(name).map_err(refused)?;
        let mut below = self.file.file_name().unwrap_or_default().to_owned();
        below.push(".d");
        Ok(self.directory()?.join(below).join(name))
    }

    fn directory(&self) -> io::Result<&Path> {
        match self.file.parent() {
            Some(parent) if parent == Path::new("") => Ok(Path::new(".")),
            Some(parent) => Ok(parent),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")),
        }
    }

    fn shown(&self) -> String {
        harmless(&self.file.to_string_lossy())
    }
}

impl Contexts {
    fn names(&self) -> String {
        let names: Vec<_> = self.contexts.keys().map(|name| harmless(name)).collect();
        match names.is_empty() {
            true => "none that there is".to_owned(),
            false => names.join(", "),
        }
    }
}

/// Makes a directory for this user alone, and its parents.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => Ok(()),
        false => DirBuilder::new().recursive(true).mode(0o700).create(path),
    }
}

/// Replaces a file as a whole, for this user alone.
pub(super) fn replace(path: &Path, octets: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(octets)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // On a full disk each command would leave one.
        let _ = fs::remove_file(&temporary);
    })?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/config.yaml");
        let home = Home::by(|name| (name == "FLOWTILLA_CONFIG").then(|| path.clone().into()));
        (directory, home.expect("it is set"))
    }

    fn place(controller: &str) -> Place {
        Place {
            controller: controller.to_owned(),
            identity: "/x".into(),
        }
    }

    #[test]
    fn contexts_are_read_as_they_were_written_and_are_the_users_alone() {
        let (_directory, home) = home();
        assert_eq!(home.load().expect("nothing yet"), Contexts::default());
        let contexts = Contexts {
            current: Some("prod".to_owned()),
            contexts: [("prod", "a:1"), ("lab", "[::1]:2")]
                .map(|(name, at)| (name.to_owned(), place(at)))
                .into(),
        };
        home.store(&contexts).expect("written");
        assert_eq!(home.load().expect("readable"), contexts);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&home.file), 0o600);
        assert_eq!(mode(home.file.parent().expect("a directory")), 0o700);
        assert_eq!(home.context(None).expect("the current one").0, "prod");
        assert_eq!(home.context(Some("lab")).expect("there").1, place("[::1]:2"));
    }

    #[test]
    fn what_is_missing_is_told_with_the_remedy() {
        let (_directory, home) = home();
        let told = |name| home.context(name).expect_err("there is none").to_string();
        assert!(told(None).ends_with("log in: agentctl login --controller HOST --token-file FILE"));
        let mut contexts = Contexts::default();
        contexts.contexts.insert("prod".to_owned(), place("a:1"));
        home.store(&contexts).expect("written");
        assert_eq!(
            told(None),
            "--context: no context is the current one; write one of prod, or choose one with context use"
        );
        assert_eq!(
            told(Some("lab")),
            "--context: \"lab\" is no context; write one of none that there is, or log in"
                .replace("none that there is", "prod")
        );
        fs::write(&home.file, "contexts: {prod: {controler: a}}\n").expect("written");
        let told = home.load().expect_err("no config").to_string();
        assert!(
            told.contains("controler") && told.ends_with("log in again"),
            "{told}"
        );
        assert!(home.identity_of("../x").is_err());
    }

    #[test]
    fn the_place_follows_the_environment() {
        let by = |set: &[(&str, &str)]| {
            Home::by(|name| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).into())
            })
        };
        let shown = |set: &[(&str, &str)]| by(set).expect("a place").shown();
        assert_eq!(shown(&[("HOME", "/h")]), "/h/.config/flowtilla/config.yaml");
        assert_eq!(
            shown(&[("HOME", "/h"), ("XDG_CONFIG_HOME", "/c")]),
            "/c/flowtilla/config.yaml"
        );
        assert_eq!(
            shown(&[("FLOWTILLA_CONFIG", "/f.yaml"), ("HOME", "/h")]),
            "/f.yaml"
        );
        assert!(by(&[]).is_err());
    }
}
