//! What a test needs of the machine, and the note it leaves when it had to be skipped.
//!
//! A skipped test prints `skipped: <reason>` and appends a line to the file that the runner reads, so that no skip is
//! silent.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Environment variable with the path of the file that collects skips; unset: they are only printed.
pub const SKIPS_VARIABLE: &str = "FLOWTILLA_SKIPS";

/// One thing a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// A program on the PATH, and the Debian package that has it.
    Program(&'static str, &'static str),
    /// A shared library that the loader finds, and the Debian package that has it.
    Library(&'static str, &'static str),
}

impl Need {
    /// Why it is not met; `None`: it is.
    #[must_use]
    pub fn lacks(self) -> Option<String> {
        match self {
            Self::Root if nix::unistd::geteuid().is_root() => None,
            Self::Root => Some("needs root".to_owned()),
            Self::Program(name, package) => match on_path(name) {
                Some(_) => None,
                None => Some(format!("needs the program `{name}` (Debian package {package})")),
            },
            Self::Library(name, package) => match crate::collector::library::open(name) {
                Ok(_) => None,
                Err(_) => Some(format!("needs the library {name} (Debian package {package})")),
            },
        }
    }
}

/// What every test with a [`World`](crate::world::World) needs.
pub const WORLD: [Need; 3] = [
    Need::Root,
    Need::Program("ip", "iproute2"),
    Need::Program("ethtool", "ethtool"),
];

/// Whether all of `needs` are met; otherwise notes the skip of the running test.
#[must_use]
pub fn met(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.lacks()) else {
        return true;
    };
    skip(&reason);
    false
}

/// Notes that the running test is skipped because of `reason`.
pub fn skip(reason: &str) {
    let test = name_of_running_test();
    println!("skipped: {reason}");
    let Some(path) = std::env::var_os(SKIPS_VARIABLE) else {
        return;
    };
    let line = format!("{test}: {reason}\n");
    let noted = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = noted {
        eprintln!("the skip of {test} could not be noted: {error}");
    }
}

/// Path of a program, as a shell would find it, `/usr/sbin` included.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn name_of_running_test() -> String {
    let binary = std::env::current_exe().unwrap_or_default();
    let stem = binary
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    // cargo appends `-` and 16 hex digits to the names of test binaries.
    let promise = stem.rsplit_once('-').map_or(stem.as_str(), |(name, _)| name);
    let thread = std::thread::current();
    format!("{promise}::{}", thread.name().unwrap_or("?"))
}

/// Folder of the built binaries: where the running executable is, or one above for test binaries in `deps`.
///
/// # Panics
/// When the running executable has no folder, which cannot be.
#[must_use]
pub fn built_folder() -> PathBuf {
    let binary = std::env::current_exe().expect("a running process knows its executable");
    let folder = binary.parent().expect("an executable lies in a folder");
    if folder.file_name().is_some_and(|name| name == "deps") {
        folder.parent().unwrap_or(Path::new("/")).to_owned()
    } else {
        folder.to_owned()
    }
}
