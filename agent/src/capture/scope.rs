//! The part of the host an agent looks at: cgroups by id and depth, network namespaces by inode.
//!
//! In: paths of the policy. Out: numbers the kernel programs compare. A path is read once; what it names later is
//! another part.

use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use flowtilla_abi::SCOPES_MAX;
use flowtilla_proto::policy::Scope;

/// A part of the host; empty: all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeSet {
    /// (inode, depth below the root) of each cgroup.
    pub cgroups: Vec<(u64, u32)>,
    /// Inode of each network namespace.
    pub netns: Vec<u32>,
}

/// Where paths of cgroups begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupRoot {
    /// Where cgroup2 is mounted.
    pub path: PathBuf,
    /// How deep what is mounted there lies below the topmost cgroup; `None`: not known.
    pub depth: Option<u32>,
}

/// Why a scope is none.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// The kernel asks for a cgroup by its depth, and that cannot be told.
    #[error(
        "scope {scope}: what is above {path} is hidden by a cgroup namespace, and so is how deep this lies; run the agent in \
         the host's PID namespace or in no cgroup namespace of its own, or name network namespaces"
    )]
    Depth {
        /// As written.
        scope: String,
        /// Where cgroup2 is mounted.
        path: PathBuf,
    },
    /// The path cannot be read.
    #[error("scope {scope}: {path} cannot be read; name an existing {kind}")]
    Unreadable {
        /// As written.
        scope: String,
        /// What was looked for.
        path: PathBuf,
        /// What kind of thing is wanted.
        kind: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Too many.
    #[error("{found} scopes of one kind; at most {SCOPES_MAX} are possible")]
    TooMany {
        /// How many.
        found: usize,
    },
}

impl ScopeSet {
    /// Reads what the policy's scopes name at this moment.
    ///
    /// # Errors
    /// [`ScopeError`].
    pub fn resolve(scopes: &[Scope], root: &CgroupRoot) -> Result<Self, ScopeError> {
        let mut set = Self::default();
        for scope in scopes {
            match scope {
                Scope::Cgroup(path) => set.add_cgroup(root, path.as_str())?,
                Scope::Netns(path) => set.add_netns(path.as_str())?,
            }
        }
        Ok(set)
    }

    /// Adds a cgroup, given below the cgroup2 root or as a full path in it.
    fn add_cgroup(&mut self, root: &CgroupRoot, path: &str) -> Result<(), ScopeError> {
        let given = Path::new(path);
        let below = given
            .strip_prefix(&root.path)
            .unwrap_or_else(|_| given.strip_prefix("/").unwrap_or(given));
        let full = root.path.join(below);
        let meta = std::fs::metadata(&full).map_err(|source| ScopeError::Unreadable {
            scope: format!("cgroup={path}"),
            path: full.clone(),
            kind: "cgroup2 folder",
            source,
        })?;
        let above = root.depth.ok_or_else(|| ScopeError::Depth {
            scope: format!("cgroup={path}"),
            path: root.path.clone(),
        })?;
        let depth = below
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .count();
        let depth = u32::try_from(depth).unwrap_or(u32::MAX);
        self.cgroups.push((meta.st_ino(), above.saturating_add(depth)));
        self.check(self.cgroups.len())
    }

    /// Adds a network namespace by a file that names it, such as `/run/netns/a` or `/proc/1/ns/net`.
    fn add_netns(&mut self, path: &str) -> Result<(), ScopeError> {
        let meta = std::fs::metadata(path).map_err(|source| ScopeError::Unreadable {
            scope: format!("netns={path}"),
            path: path.into(),
            kind: "network namespace file",
            source,
        })?;
        self.netns.push(u32::try_from(meta.st_ino()).unwrap_or(0));
        self.check(self.netns.len())
    }

    fn check(&self, found: usize) -> Result<(), ScopeError> {
        if found > SCOPES_MAX {
            Err(ScopeError::TooMany { found })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_as_deep_as_what_is_mounted_and_what_is_below_it() {
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(folder.path().join("a/b")).expect("it is new");
        let found = |depth| {
            let root = CgroupRoot {
                path: folder.path().to_owned(),
                depth,
            };
            let mut set = ScopeSet::default();
            set.add_cgroup(&root, "/a/b").map(|()| set.cgroups)
        };
        for (above, depth) in [(0, 2), (3, 5)] {
            let cgroups = found(Some(above)).expect("it is there");
            assert_eq!(
                cgroups.iter().map(|(_, depth)| *depth).collect::<Vec<_>>(),
                [depth]
            );
        }
        let refused = found(None).expect_err("nobody knows how deep it is");
        assert!(matches!(refused, ScopeError::Depth { .. }), "{refused}");
    }
}
