//! Whether this process may do what `up` does, and what to do when it may not.
//!
//! In: the effective capabilities of `/proc/self/status`. Out: go on, start again through sudo, or a sentence with the
//! remedy. Nothing else was done before: flags are parsed, nothing is attached, no collector is connected.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use flowtilla_agent::capabilities::Set;

use crate::exit::say;

/// What follows from the capabilities.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    GoOn,
    Sudo { program: PathBuf, why: String },
    Refuse(String),
}

/// Returns when this process has what it needs; otherwise starts it again through sudo, which does not return.
///
/// # Errors
///
/// There is no way to get the capabilities from here.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status cannot be read")?;
    let root = rustix::process::geteuid().is_root();
    let sudo = env::var_os("PATH").and_then(|path| find_in(&path, "sudo"));
    match judge(root, Set::effective(&status).unwrap_or(Set(0)), sudo) {
        Verdict::GoOn => Ok(()),
        Verdict::Refuse(why) => anyhow::bail!(why),
        Verdict::Sudo { program, why } => {
            say(format_args!("{why}; starting again through sudo"));
            let this = env::current_exe().context("the path of this program is not known; run it as root")?;
            let error = Command::new(&program)
                .arg("--")
                .arg(this)
                .args(env::args_os().skip(1))
                .exec();
            Err(error).with_context(|| format!("{} does not start; run this as root", program.display()))
        }
    }
}

fn judge(root: bool, effective: Set, sudo: Option<PathBuf>) -> Verdict {
    let missing = effective.missing();
    if missing.is_empty() {
        return Verdict::GoOn;
    }
    let missing = missing.join(", ");
    if root {
        return Verdict::Refuse(format!(
            "root lacks {missing} here, as in a container; add these capabilities (docker run --privileged --pid=host \
             --network=host), or run this on the host"
        ));
    }
    let why = format!("not root: {missing} missing");
    match sudo {
        Some(program) => Verdict::Sudo { program, why },
        None => Verdict::Refuse(format!("{why}, and there is no sudo; run this as root")),
    }
}

/// The first executable file of this name in the folders of `path`.
fn find_in(path: &OsStr, name: &str) -> Option<PathBuf> {
    let executable = |file: &Path| {
        file.metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|file| executable(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    #[test]
    fn whoever_has_the_capabilities_goes_on() {
        assert_eq!(judge(true, Set(ALL), None), Verdict::GoOn);
        assert_eq!(judge(false, Set(ALL), None), Verdict::GoOn);
        assert_eq!(
            judge(true, Set(ALL & !(3 << 38)), None),
            Verdict::GoOn,
            "SYS_ADMIN holds both"
        );
    }

    #[test]
    fn others_go_through_sudo_when_there_is_one() {
        let sudo = PathBuf::from("/usr/bin/sudo");
        let Verdict::Sudo { program, why } =
            judge(false, Set(ALL & !(1 << 39) & !(1 << 21)), Some(sudo.clone()))
        else {
            panic!("it should go through sudo");
        };
        assert_eq!((program, why.as_str()), (sudo, "not root: CAP_BPF missing"));
        assert_eq!(
            judge(false, Set(ALL & !(1 << 39) & !(1 << 21) & !(1 << 12)), None),
            Verdict::Refuse(
                "not root: CAP_NET_ADMIN, CAP_BPF missing, and there is no sudo; run this as root".into()
            )
        );
    }

    #[test]
    fn root_without_capabilities_is_not_sent_round_in_circles() {
        let Verdict::Refuse(why) = judge(true, Set(0xa804_25fb), Some("/usr/bin/sudo".into())) else {
            panic!("sudo would not help");
        };
        assert!(
            why.starts_with("root lacks CAP_DAC_READ_SEARCH, CAP_NET_ADMIN,"),
            "{why}"
        );
    }

    #[test]
    fn only_executable_files_in_absolute_folders_are_found() {
        assert!(find_in(OsStr::new("/nowhere:/bin:/usr/bin"), "sh").is_some());
        assert_eq!(find_in(OsStr::new("bin:."), "sh"), None);
        assert_eq!(find_in(OsStr::new("/etc"), "passwd"), None);
    }
}
