//! Debian packages that tests need: one list, installed with apt-get.

use std::process::{Command, Stdio};

/// The list, with a reason for each.
const LIST: &str = include_str!("../../debian-packages.txt");

/// How this process gets root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// It has it.
    Root,
    /// sudo gives it without a question.
    Sudo,
    /// Not at all: tests that need it are skipped, and say so.
    None,
}

impl Privilege {
    /// Asks the system.
    pub(crate) fn find() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self::Root;
        }
        let sudo = quiet(Command::new("sudo").args(["-n", "true"]));
        if sudo { Self::Sudo } else { Self::None }
    }
}

/// Installs what is missing.
///
/// # Errors
/// Why it cannot, fit for the list of skips: which packages are missing, and what to do.
pub(crate) fn install(privilege: Privilege) -> Result<(), String> {
    let wanted = names(LIST);
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        println!("packages: all {} are installed", wanted.len());
        return Ok(());
    }
    let remedy = format!("apt-get install {}", missing.join(" "));
    if privilege == Privilege::None {
        return Err(format!("neither root nor sudo without a password; run: {remedy}"));
    }
    println!("== packages: {remedy}");
    // Lists may be missing on a fresh machine, or unreachable on one that has the packages in its cache.
    let updated = apt(privilege, &["update"]);
    if apt(
        privilege,
        &[&["install", "-y", "--no-install-recommends"], &missing[..]].concat(),
    ) {
        return Ok(());
    }
    let why = if updated { "see above" } else { "no package lists" };
    Err(format!("apt-get failed ({why}); run: {remedy}"))
}

/// Names in the list: the first word of each line that is no comment.
fn names(list: &str) -> Vec<&str> {
    list.lines()
        .filter_map(|line| line.split('#').next()?.split_whitespace().next())
        .collect()
}

fn is_installed(name: &str) -> bool {
    let asked = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output();
    asked.is_ok_and(|output| output.stdout == b"installed")
}

fn apt(privilege: Privilege, arguments: &[&str]) -> bool {
    let mut command = match privilege {
        Privilege::Sudo => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            sudo
        }
        Privilege::Root | Privilege::None => Command::new("apt-get"),
    };
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q"])
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn quiet(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_the_list_has_a_reason() {
        let lines: Vec<&str> = LIST.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(names(LIST).len(), lines.len());
        for line in lines {
            let reason = line.split_once('#').map_or("", |(_, reason)| reason.trim());
            assert!(!reason.is_empty(), "{line}");
        }
    }
}
