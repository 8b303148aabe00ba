//! What a test needs of the machine, and the note it leaves when it had to be skipped.
//!
//! A skipped test prints a line that begins with [`SKIPPED`]; the runner has cargo show it, and lists it.

use std::path::PathBuf;

/// How the line begins by which a test says that it was skipped. Tests of every crate write it so.
pub const SKIPPED: &str = "skipped: ";

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
    println!("{SKIPPED}{reason}");
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
