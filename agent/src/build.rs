//! Which build of the agent's program runs: tells two of one version apart, to whoever knows the file that was installed.
//!
//! In: the program's own file, as the kernel has it open (`/proc/self/exe`: also when another one has taken its place meanwhile).
//! Out: its SHA-256. Read once, at the start.

use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

/// The file that runs.
const RUNNING: &str = "/proc/self/exe";
/// Most octets of a program. As much as agentctl brings to a host; a debug build with its symbols has 200 MiB.
const OCTETS_MAX: u64 = 512 << 20;

/// SHA-256 of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build(pub [u8; 32]);

impl Build {
    /// Of the program that runs.
    ///
    /// # Errors
    /// Its file cannot be read, or has more than [`OCTETS_MAX`].
    pub fn running() -> io::Result<Self> {
        Self::read(File::open(RUNNING)?, OCTETS_MAX)
    }

    fn read(file: impl Read, most: u64) -> io::Result<Self> {
        let mut hasher = Sha256::new();
        let octets = io::copy(&mut file.take(most.saturating_add(1)), &mut hasher)?;
        if octets > most {
            let why = format!("the program has more than {most} octets");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Self(hasher.finalize().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_the_digest_of_the_file_that_runs_and_one_that_is_too_long_is_none() {
        let path = std::env::current_exe().expect("a path");
        let digest = Sha256::digest(std::fs::read(path).expect("read"));
        assert_eq!(Build::running().expect("read").0, *digest);
        // SHA-256 of "abc": FIPS 180-2, B.1.
        let abc = Build::read(&b"abc"[..], 3).expect("three octets");
        assert_eq!(abc.0[..4], [0xba, 0x78, 0x16, 0xbf]);
        Build::read(&b"abc"[..], 2).expect_err("one more than it may have");
    }
}
