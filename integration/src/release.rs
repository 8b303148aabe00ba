//! `package`: Debian packages of all three programs, and the agent's program for hosts of any age.
//!
//! The linker is zig's, which has the symbols of each version of glibc: what it links against 2.28 runs on hosts since 2018,
//! whatever this system has. It and its driver come from PyPI, once, into the target folder. `--native` does without, and is for
//! hosts as new as this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use integration::need::on_path;
use integration::notices::Part;
use integration::package::{self, Linked, PACKAGES};
use integration::process::{built_folder, run};

use crate::runner::{cargo, root};

/// The oldest glibc that is built for: 2.N. Debian 10, RHEL 8 and Ubuntu 18.10 have it; Rust's own floor is 2.17.
const GLIBC: u32 = 28;
/// What is installed from PyPI. Pinned: another zig may link otherwise.
const TOOLS: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];

/// How packages are made.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Folder that they are written to [default: package/ in the target folder].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Debian's revision of this version.
    #[arg(long, value_name = "N", default_value = "1")]
    revision: String,
    /// Links by this system's own linker: for hosts whose glibc is as new as this one's.
    #[arg(long)]
    native: bool,
}

/// Builds, packs and checks.
///
/// # Errors
/// When a tool is missing, with how to get it; when a build fails; when a program would not run on hosts that it is for.
pub(crate) fn make(options: &Options) -> Result<()> {
    let (debug, maker) = (built_folder(), std::env::current_exe()?);
    let target = debug.parent().context("the target folder")?.to_owned();
    let out = match &options.out {
        Some(folder) => std::path::absolute(folder)?,
        None => target.join("package"),
    };
    for (program, package) in [
        ("dpkg-shlibdeps", "dpkg-dev"),
        ("strip", "binutils"),
        ("objdump", "binutils"),
        ("xz", "xz-utils"),
        ("gzip", "gzip"),
    ] {
        ensure!(
            on_path(program).is_some(),
            "{program} is missing: apt-get install {package}"
        );
    }
    let (built, added) = match options.native {
        true => (build_native(&target)?, Vec::new()),
        false => build_for_any(&target)?,
    };
    for name in PACKAGES {
        let needs = newest_glibc(&built.join(name))?;
        println!("{name} needs glibc 2.{needs}");
        ensure!(
            options.native || needs <= GLIBC,
            "{name} asks for glibc 2.{needs}, and is for hosts with 2.{GLIBC}: see what `objdump -T` lists of that version"
        );
    }
    let laid = package::lay_out(&built, &target.join("package-laid"), &added)?;
    let linked = match options.native {
        true => Linked::Native,
        false => Linked::ForAny,
    };
    let mut made = Vec::new();
    for name in PACKAGES {
        let path = laid.make(&maker, name, &out, &options.revision, linked)?;
        println!("{}", path.display());
        made.push(path);
    }
    let program = out.join("flowtilla-agent");
    fs::copy(built.join("flowtilla-agent"), &program)?;
    println!("{}: for agentctl deploy --agent-binary", program.display());
    let notices = out.join("flowtilla-agent.third-party-notices.gz");
    fs::copy(laid.notices("flowtilla-agent"), &notices)?;
    println!("{}: goes with it to others", notices.display());
    check(&made)
}

/// By this system's linker.
fn build_native(target: &Path) -> Result<PathBuf> {
    build(&mut cargo(&["build", "--release"]))?;
    Ok(target.join("release"))
}

/// By zig's; and what that puts into programs.
fn build_for_any(target: &Path) -> Result<(PathBuf, Vec<Part>)> {
    let tools = tools(&target.join("package-tools"))?;
    let added = added_by_zig(&tools)?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = cargo(&[
        "zigbuild",
        "--release",
        "--target",
        &format!("{triple}.2.{GLIBC}"),
    ]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(tools).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(all)?);
    build(&mut command)?;
    Ok((target.join(triple).join("release"), added))
}

/// Its own runtime, and LLVM's unwinder in place of the one that a system has as a shared library.
fn added_by_zig(programs: &Path) -> Result<Vec<Part>> {
    let library = programs.with_file_name("lib");
    let folders = fs::read_dir(&library).with_context(|| format!("read {}", library.display()))?;
    let home = folders
        .filter_map(|entry| Some(entry.ok()?.path().join("site-packages/ziglang")))
        .find(|folder| folder.is_dir())
        .with_context(|| format!("no ziglang below {}", library.display()))?;
    Ok(vec![
        Part::read("zig's compiler-rt", "MIT", &[home.join("LICENSE")])?,
        Part::read(
            "LLVM's libunwind",
            "Apache-2.0 WITH LLVM-exception",
            &[home.join("lib/libunwind/LICENSE.TXT")],
        )?,
    ])
}

fn build(command: &mut Command) -> Result<()> {
    for name in PACKAGES {
        command.args(["-p", name]);
    }
    let status = command.status().context("start cargo")?;
    ensure!(status.success(), "the build failed ({status}): see above");
    Ok(())
}

/// The folder of the tools' programs; installs them first when they are not there.
fn tools(folder: &Path) -> Result<PathBuf> {
    let programs = folder.join("bin");
    let noted = folder.join("installed");
    let wanted = TOOLS.join(" ");
    if fs::read_to_string(&noted).is_ok_and(|text| text == wanted) {
        return Ok(programs);
    }
    println!("== installing {wanted}");
    let remedy = "or build for hosts as new as this one with --native";
    if let Err(error) = run(Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(folder))
    {
        bail!("no virtual environment of Python: {error:#}; apt-get install python3-venv, {remedy}");
    }
    let pip = ["install", "--quiet", "--disable-pip-version-check"];
    if let Err(error) = run(Command::new(programs.join("pip")).args(pip).args(TOOLS)) {
        bail!("{wanted} cannot be had: {error:#}; see that pip reaches its index, {remedy}");
    }
    fs::write(noted, wanted)?;
    Ok(programs)
}

/// The newest version of glibc, 2.N, of which a program asks for a symbol.
fn newest_glibc(program: &Path) -> Result<u32> {
    let listed = run(Command::new("objdump").arg("-T").arg(program))?;
    newest_of(&listed).with_context(|| format!("{} asks for nothing of glibc", program.display()))
}

/// Of the table of symbols as `objdump -T` prints it.
fn newest_of(listed: &str) -> Option<u32> {
    let of_line = |line: &str| {
        let (_, version) = line.split_once("GLIBC_2.")?;
        let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    listed.lines().filter_map(of_line).max()
}

/// Has Debian's checker look at them, when it is here.
fn check(packages: &[PathBuf]) -> Result<()> {
    if on_path("lintian").is_none() {
        println!("lintian is not here, and has not looked at them (apt-get install lintian)");
        return Ok(());
    }
    println!("== lintian");
    let status = Command::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .args(packages)
        .current_dir(root())
        .status()
        .context("start lintian")?;
    ensure!(status.success(), "lintian found errors: see above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_as_a_number() {
        let listed = "0000 DF *UND* 0000 (GLIBC_2.2.5) free\n0000 DF *UND* 0000 (GLIBC_2.9) x\n\
                      0000  w   D  *UND* 0000 __gmon_start__\n0000 DF *UND* 0000 (GLIBC_2.28) fcntl64\n";
        assert_eq!(newest_of(listed), Some(28));
        assert_eq!(newest_of("0000 w D *UND* 0000 __gmon_start__\n"), None);
    }
}
