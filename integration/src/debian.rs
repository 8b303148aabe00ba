//! Packages of other releases of Debian, unpacked beside the system: nothing is installed, apt's own state stays as it is.
//!
//! Kept in the build folder from one run to the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{built_folder, run};

/// Where apt's sources stand; the mirror is taken from there.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Root folder of a package of `suite`, unpacked; the inner error: why it cannot be had.
///
/// # Errors
/// When the build folder cannot be written.
pub fn unpacked(suite: &str, package: &str) -> Result<std::result::Result<PathBuf, String>> {
    let folder = built_folder();
    let folder = folder.parent().unwrap_or(&folder).join("test-packages");
    let ready = folder.join(format!("{package}-{suite}"));
    if ready.is_dir() {
        return Ok(Ok(ready));
    }
    fs::create_dir_all(&folder)?;
    // Beside others that fetch the same: the last one's is used.
    let work = tempfile::tempdir_in(&folder)?;
    if let Err(error) = fetch(suite, package, work.path()) {
        return Ok(Err(format!("needs {package} of {suite}: {error:#}")));
    }
    match fs::rename(work.path().join("root"), &ready) {
        Err(_) if ready.is_dir() => {}
        renamed => renamed.context("keep the unpacked package")?,
    }
    Ok(Ok(ready))
}

/// Fetches by a state of its own, and unpacks to `root` below `folder`.
fn fetch(suite: &str, package: &str, folder: &Path) -> Result<()> {
    let sources = fs::read_to_string(SOURCES).with_context(|| format!("read {SOURCES}"))?;
    let mirror = sources
        .lines()
        .find_map(|line| line.strip_prefix("URIs:"))
        .and_then(|uris| uris.split_whitespace().next())
        .with_context(|| format!("{SOURCES} names no mirror"))?;
    for part in ["lists/partial", "cache/archives/partial", "parts", "fetched"] {
        fs::create_dir_all(folder.join(part))?;
    }
    fs::write(
        folder.join("sources.list"),
        format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"),
    )?;
    fs::write(folder.join("status"), "")?;
    let at = |name: &str| folder.join(name).display().to_string();
    fs::write(
        folder.join("apt.conf"),
        format!(
            "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"{}\";\nDir::Etc::preferencesparts \"{}\";\n\
             Dir::State::Lists \"{}\";\nDir::State::status \"{}\";\nDir::Cache \"{}\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"2\";\nAPT::Sandbox::User \"root\";\n",
            at("sources.list"),
            at("parts"),
            at("parts"),
            at("lists"),
            at("status"),
            at("cache"),
        ),
    )?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.arg("-q")
            .arg("-c")
            .arg(at("apt.conf"))
            .current_dir(at("fetched"));
        apt
    };
    // Without it a mirror that is away is a warning.
    run(apt().args(["-o", "APT::Update::Error-Mode=any", "update"]))?;
    run(apt().args(["download", package]))?;
    let fetched = fs::read_dir(at("fetched"))?.collect::<std::io::Result<Vec<_>>>()?;
    ensure!(!fetched.is_empty(), "nothing was fetched");
    for file in fetched {
        run(Command::new("dpkg").arg("-x").arg(file.path()).arg(at("root")))?;
    }
    Ok(())
}
