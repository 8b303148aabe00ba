//! A part of the host: a cgroup with everything below it, or one network namespace.

use std::fmt;
use std::path::Path;

use crate::reading::{Reading, Refused};
use crate::wire;

/// Longest path of a scope, in octets. Source: Linux `PATH_MAX`, its NUL not counted.
pub const SCOPE_OCTETS_MAX: usize = 4095;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// A path that begins with `/`, of at most [`SCOPE_OCTETS_MAX`] octets, without `.`, `..`, doubled slashes, control
/// characters or a slash at the end. Whether it exists is seen when capture attaches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopePath(String);

impl ScopePath {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// A part of the host. Displayed as `cgroup=PATH` or `netns=PATH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A cgroup and all below it, by its path from the root of the cgroup2 file system (`/system.slice/x.service`).
    Cgroup(ScopePath),
    /// A network namespace, by a file that stands for it (`/run/netns/NAME`, `/proc/PID/ns/net`).
    Netns(ScopePath),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup={}", path.0),
            Self::Netns(path) => write!(f, "netns={}", path.0),
        }
    }
}

/// Reads one scope; its mistakes are noted below `at`.
pub(super) fn parse(reading: &mut Reading, at: &str, sent: &wire::Scope) -> Option<Scope> {
    match &sent.part {
        Some(wire::scope::Part::Cgroup(text)) => {
            let path = reading.text(&format!("{at}.cgroup"), text, parse_cgroup);
            path.map(Scope::Cgroup)
        }
        Some(wire::scope::Part::Netns(text)) => {
            let path = reading.text(&format!("{at}.netns"), text, parse_netns);
            path.map(Scope::Netns)
        }
        None => {
            let refused = Refused::new("names no part of the host", "write cgroup or netns with a path");
            reading.refuse(at, None, refused);
            None
        }
    }
}

fn parse_cgroup(text: &str) -> Result<ScopePath, Refused> {
    cgroup_path(text, "leave the scope out")
}

/// The path of a cgroup from the root of its file system; `of_root` is what to do about the root itself.
pub(super) fn cgroup_path(text: &str, of_root: &str) -> Result<ScopePath, Refused> {
    let below = match text.strip_prefix(CGROUP_ROOT) {
        Some("") => "/",
        Some(below) if below.starts_with('/') => below,
        _ => text,
    };
    let remedy = "write the path of a cgroup, such as /system.slice/nginx.service";
    if below.trim_end_matches('/').is_empty() && below.starts_with('/') {
        return Err(Refused::new("is the root, which holds the whole host", of_root));
    }
    parse_path(below, remedy)
}

fn parse_netns(text: &str) -> Result<ScopePath, Refused> {
    let remedy = match text {
        "" => "write a path, such as /run/netns/NAME".to_owned(),
        name if !name.contains('/') => format!("write the path of a file, such as /run/netns/{name}"),
        _ => "write the path of a file, such as /run/netns/NAME or /proc/PID/ns/net".to_owned(),
    };
    parse_path(text, &remedy)
}

fn parse_path(text: &str, remedy: &str) -> Result<ScopePath, Refused> {
    let refuse = |why: &str| Err(Refused::new(why, remedy));
    if text.is_empty() {
        return refuse("is no path");
    }
    if text.len() > SCOPE_OCTETS_MAX {
        return refuse("is longer than a path may be");
    }
    let Some(inner) = text.strip_prefix('/') else {
        return refuse("does not begin with a slash");
    };
    if text.chars().any(char::is_control) {
        return refuse("has control characters");
    }
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return refuse("has an empty name, '.' or '..' in it");
    }
    Ok(ScopePath(format!("/{inner}")))
}
