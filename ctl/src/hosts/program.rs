//! The agent's program, as it is to be on hosts: its octets, and what a host must have to run it.
//!
//! What it needs is read from the file itself: the machine from its ELF header, the C library from the names of the symbol
//! versions that it asks for (`GLIBC_2.34`).

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::output::{harmless, hex};

/// Most octets of a program. A debug build with its symbols has 200 MiB.
const OCTETS_MAX: u64 = 512 << 20;
/// ELF machines that agents are built for. Source: ELF, e_machine; names as of uname(1).
const MACHINES: [(u16, &str); 2] = [(62, "x86_64"), (183, "aarch64")];
/// Its name.
const NAME: &str = "flowtilla-agent";
/// Where agentctl's package has it, from the folder above agentctl's own.
const PACKAGED: &str = "lib/flowtilla/flowtilla-agent";
/// Most characters of what another program calls itself that are told.
const SAID_MAX: usize = 60;
/// How names of the C library's symbol versions begin.
const GLIBC: &[u8] = b"GLIBC_2.";

/// A version of the C library: 2.N.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glibc(pub(crate) u32);

impl fmt::Display for Glibc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2.{}", self.0)
    }
}

/// A program.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) octets: Arc<[u8]>,
    /// SHA-256, hex.
    pub(crate) digest: String,
    /// As of `uname -m`.
    pub(crate) machine: &'static str,
    /// The oldest C library that has everything it asks for.
    pub(crate) glibc: Glibc,
    /// What it says of itself; empty: it does not run here.
    pub(crate) version: String,
}

impl fmt::Debug for Program {
    /// Without its octets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({}, {} octets)", self.digest, self.octets.len())
    }
}

/// Where the program is when nobody names another: beside agentctl, or where agentctl's package has it.
pub(crate) fn beside(agentctl: &Path) -> PathBuf {
    let beside = agentctl.with_file_name(NAME);
    let packaged = agentctl.ancestors().nth(2).map(|above| above.join(PACKAGED));
    match packaged.filter(|packaged| !beside.is_file() && packaged.is_file()) {
        Some(packaged) => packaged,
        None => beside,
    }
}

impl Program {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// Why, and what to do, after the path.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        const REMEDY: &str = "name flowtilla-agent's program with --agent-binary";
        let unreadable = |error: std::io::Error| format!("cannot be read ({error}); {REMEDY}");
        let file = File::open(path).map_err(unreadable)?;
        let mut octets = Vec::new();
        file.take(OCTETS_MAX + 1)
            .read_to_end(&mut octets)
            .map_err(unreadable)?;
        if octets.len() as u64 > OCTETS_MAX {
            return Err(format!("is larger than {} MiB; {REMEDY}", OCTETS_MAX >> 20));
        }
        let machine =
            machine(&octets).ok_or_else(|| format!("is no program that runs on Linux; {REMEDY}"))?;
        let said = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        let version = match &said {
            Ok(output) if output.status.success() => {
                let said = String::from_utf8_lossy(&output.stdout);
                if said.split_whitespace().next() != Some(NAME) {
                    let said: String = harmless(said.lines().next().unwrap_or_default())
                        .chars()
                        .take(SAID_MAX)
                        .collect();
                    return Err(format!(
                        "is another program, which calls itself {said:?}; {REMEDY}"
                    ));
                }
                version_of(&said)
            }
            _ => String::new(), // For hosts of another machine, say.
        };
        Ok(Self {
            digest: digest(&octets),
            machine,
            glibc: Glibc(newest_glibc(&octets)),
            version,
            octets: octets.into(),
        })
    }
}

/// SHA-256, hex.
pub(crate) fn digest(octets: &[u8]) -> String {
    hex(&Sha256::digest(octets))
}

/// `flowtilla-agent 0.1.0` → `0.1.0`.
pub(crate) fn version_of(said: &str) -> String {
    said.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn machine(octets: &[u8]) -> Option<&'static str> {
    // Magic, 64 bits, least octet first; e_machine is at 18.
    let header = octets.strip_prefix(b"\x7fELF\x02\x01")?;
    let machine = header.get(12..14)?;
    let machine = u16::from_le_bytes([machine[0], machine[1]]);
    MACHINES
        .into_iter()
        .find(|(number, _)| *number == machine)
        .map(|(_, name)| name)
}

fn newest_glibc(octets: &[u8]) -> u32 {
    let mut newest = 0;
    let mut rest = octets;
    while let Some(at) = rest.iter().position(|&octet| octet == GLIBC[0]) {
        rest = &rest[at + 1..];
        let Some(digits) = rest.strip_prefix(&GLIBC[1..]) else {
            continue;
        };
        let end = digits
            .iter()
            .take(3)
            .take_while(|octet| octet.is_ascii_digit())
            .count();
        // The name stands alone in a table of strings: `GLIBC_2.2.5`, too.
        if matches!(digits.get(end), Some(0 | b'.'))
            && let Some(number) = std::str::from_utf8(&digits[..end])
                .ok()
                .and_then(|text| text.parse().ok())
        {
            newest = newest.max(number);
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_needs_is_read_from_it() {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.extend([0; 12]);
        file.extend(183_u16.to_le_bytes());
        file.extend(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0GLIBC_2.99x\0");
        assert_eq!(machine(&file), Some("aarch64"));
        assert_eq!(newest_glibc(&file), 34);
        assert_eq!(machine(&file[..18]), None);
        assert_eq!(machine(b"#!/bin/sh"), None);
        assert_eq!(newest_glibc(b"GLIBC_2."), 0);
    }

    #[test]
    fn this_very_program_can_be_read() {
        let path = std::env::current_exe().expect("a path");
        let program = Program::load(&path).expect("it is a program");
        assert_eq!(program.machine, std::env::consts::ARCH);
        assert!(program.glibc >= Glibc(17), "{}", program.glibc);
        assert_eq!(program.digest.len(), 64);
        let folder = tempfile::tempdir().expect("a directory");
        let text = folder.path().join("text");
        std::fs::write(&text, "no program").expect("written");
        for wrong in [&text, &folder.path().join("none")] {
            let why = Program::load(wrong).expect_err("it is none");
            assert!(why.ends_with("--agent-binary"), "{why}");
        }
    }

    #[test]
    fn a_program_that_is_no_agent_is_refused_by_what_it_calls_itself() {
        let why = Program::load(Path::new("/bin/true")).expect_err("it is none");
        assert!(
            why.starts_with("is another program, which calls itself \"true"),
            "{why}"
        );
        assert!(why.ends_with("--agent-binary"), "{why}");
    }

    #[test]
    fn the_program_is_beside_agentctl_or_in_its_package() {
        let folder = tempfile::tempdir().expect("a directory");
        let bin = folder.path().join("bin");
        let (agentctl, own) = (bin.join("agentctl"), bin.join(NAME));
        let packaged = folder.path().join(PACKAGED);
        assert_eq!(beside(&agentctl), own);
        std::fs::create_dir_all(packaged.parent().expect("a folder")).expect("made");
        std::fs::write(&packaged, "").expect("written");
        assert_eq!(beside(&agentctl), packaged);
        std::fs::create_dir(&bin).expect("made");
        std::fs::write(&own, "").expect("written");
        assert_eq!(beside(&agentctl), own);
    }

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        assert_eq!(
            digest(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
