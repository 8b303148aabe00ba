//! What of BPF a process holds, and what is left of it in the kernel.
//!
//! Ids come from the process's own file descriptors, so that programs of others do not enter; whether they are still
//! alive is asked of the kernel by bpftool, an independent witness.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::need::Need;
use crate::process::run;

/// What asking needs.
pub const NEEDS: Need = Need::Program("bpftool", "bpftool");

/// Ids of BPF objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u64>,
    /// Maps.
    pub maps: BTreeSet<u64>,
    /// Links.
    pub links: BTreeSet<u64>,
}

impl Objects {
    /// Those that a process holds by file descriptors. Source: `/proc/PID/fdinfo`.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn held_by(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/fdinfo");
        let mut held = Self::default();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
            // A descriptor may close while we look.
            let Ok(text) = std::fs::read_to_string(entry?.path()) else {
                continue;
            };
            let id = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                    .and_then(|value| value.trim().parse::<u64>().ok())
            };
            held.programs.extend(id("prog_id"));
            held.maps.extend(id("map_id"));
            held.links.extend(id("link_id"));
        }
        Ok(held)
    }

    /// All that the kernel has. Source: bpftool.
    ///
    /// # Errors
    /// When bpftool is missing or not root.
    pub fn alive() -> Result<Self> {
        let ids = |what: &str| -> Result<BTreeSet<u64>> {
            let text = run(Command::new("bpftool").args(["-j", what, "show"]))?;
            let list: Value = serde_json::from_str(&text).context("read bpftool's answer")?;
            let list = list.as_array().cloned().unwrap_or_default();
            Ok(list.iter().filter_map(|object| object["id"].as_u64()).collect())
        };
        Ok(Self {
            programs: ids("prog")?,
            maps: ids("map")?,
            links: ids("link")?,
        })
    }

    /// Those that are in `other` too.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let common = |ours: &BTreeSet<u64>, theirs| ours.intersection(theirs).copied().collect();
        Self {
            programs: common(&self.programs, &other.programs),
            maps: common(&self.maps, &other.maps),
            links: common(&self.links, &other.links),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

/// Run time and runs of a program, as the kernel counts them while `kernel.bpf_stats_enabled` is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// Name in the kernel, at most 15 octets.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Time of all runs, in nanoseconds.
    pub run_ns: u64,
}

/// Run times of the programs that a process holds.
///
/// # Errors
/// When the process has ended, or bpftool is missing.
pub fn run_times(pid: u32) -> Result<Vec<RunTime>> {
    let held = Objects::held_by(pid)?;
    let text = run(Command::new("bpftool").args(["-j", "prog", "show"]))?;
    let list: Value = serde_json::from_str(&text).context("read bpftool's answer")?;
    let list = list.as_array().cloned().unwrap_or_default();
    Ok(list
        .iter()
        .filter(|program| {
            program["id"]
                .as_u64()
                .is_some_and(|id| held.programs.contains(&id))
        })
        .map(|program| RunTime {
            name: program["name"].as_str().unwrap_or("?").to_owned(),
            runs: program["run_cnt"].as_u64().unwrap_or(0),
            run_ns: program["run_time_ns"].as_u64().unwrap_or(0),
        })
        .collect())
}

/// Keys of the hash maps of this name that a process holds, and whose keys are numbers.
///
/// # Errors
/// When the process has ended, or bpftool is missing or does not know the type of the keys.
pub fn keys(pid: u32, map: &str) -> Result<BTreeSet<u64>> {
    let mut keys = BTreeSet::new();
    let held = Objects::held_by(pid)?;
    let text = run(Command::new("bpftool").args(["-j", "map", "show", "name", map]))?;
    // One map is told by itself, several in a list.
    let shown: Value = serde_json::from_str(&text).context("read bpftool's answer")?;
    let shown = shown.as_array().cloned().unwrap_or_else(|| vec![shown]);
    let ids = shown.iter().filter_map(|map| map["id"].as_u64());
    for id in ids.filter(|id| held.maps.contains(id)) {
        let text = run(Command::new("bpftool").args(["-j", "map", "dump", "id", &id.to_string()]))?;
        let entries: Value = serde_json::from_str(&text).context("read bpftool's answer")?;
        for entry in entries.as_array().context("entries of a map")? {
            // One that went between two looks has no value.
            if entry["value"]["error"].is_null() {
                keys.insert(entry["formatted"]["key"].as_u64().context("a number as key")?);
            }
        }
    }
    Ok(keys)
}

/// Turns the kernel's BPF statistics on, and back to what they were when dropped.
#[derive(Debug)]
pub struct Statistics {
    before: String,
}

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Statistics {
    /// Turns them on.
    ///
    /// # Errors
    /// When not root.
    pub fn on() -> Result<Self> {
        let before = std::fs::read_to_string(STATISTICS)?;
        std::fs::write(STATISTICS, "1").context("turn BPF statistics on")?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(STATISTICS, &self.before) {
            eprintln!("{STATISTICS} stays on: {error}");
        }
    }
}

/// Entries pinned in the BPF file system, by path.
///
/// # Errors
/// When it cannot be read; where none is mounted there are none.
pub fn pins() -> Result<BTreeSet<std::path::PathBuf>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![Path::new("/sys/fs/bpf").to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path());
            }
        }
    }
    Ok(found)
}
