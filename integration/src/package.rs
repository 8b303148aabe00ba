//! Debian packages: what is laid out for them, and their making.
//!
//! What a package holds stands in `[package.metadata.deb]` of its crate; [`lay_out`] puts what is built where that looks for it
//! ([`Laid`]), pages of the manual and completions included, which the programs' own definitions of their flags make, and notices of
//! what they are made of ([`notices`]). The writer
//! is cargo-deb, called as a library in a process of its own ([`write`]): it takes the folder from `CARGO_TARGET_DIR`.
//! Builds nothing: `release.rs` of the test command does, and tests take what they have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_deb::compress::{CompressConfig, Format};
use cargo_deb::config::{BuildOptions, DebConfigOverrides, DebugSymbolOptions};
use cargo_deb::listener::Listener;
use cargo_deb::{CargoDeb, OutputPath};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::notices::{self, Part, Sources};
use crate::process::run;

/// Names of the packages, of their crates and of their programs.
pub const PACKAGES: [&str; 3] = ["flowtilla-agent", "flowtilla-controller", "agentctl"];
/// Shells that get completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];
/// Section of the manual for daemons.
const DAEMONS: &str = "8";

/// A folder with everything that goes into packages.
#[derive(Debug)]
pub struct Laid(PathBuf);

/// Who has linked the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// zig, for hosts of any age.
    ForAny,
    /// This system's own linker, for hosts as new as it.
    Native,
    /// The same; the package is for a test, and larger.
    NativeForTest,
}

impl Linked {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::ForAny => &[],
            Self::Native => &["--native"],
            Self::NativeForTest => &["--native", "--fast"],
        }
    }
}

/// One package.
#[derive(Debug, clap::Args)]
pub struct Order {
    /// Its name.
    #[arg(long)]
    package: String,
    /// Folder that it is written to.
    #[arg(long)]
    out: PathBuf,
    /// Debian's revision of this version.
    #[arg(long)]
    revision: String,
    /// Larger, and written faster.
    #[arg(long)]
    fast: bool,
    /// Of programs that this system's own linker has made.
    #[arg(long)]
    native: bool,
}

/// Programs that a package holds.
#[must_use]
pub fn programs(package: &str) -> &'static [&'static str] {
    match package {
        "flowtilla-agent" => &["flowtilla-agent"],
        "flowtilla-controller" => &["flowtilla-controller"],
        // For `deploy`.
        _ => &["agentctl", "flowtilla-agent"],
    }
}

/// Lays out what goes into packages in `folder`: the programs of `built`, pages of the manual, completions, notices of what the
/// programs are made of; `added`: what their linker has put into them.
///
/// # Errors
/// When a program is not built or does not run here, a crate has no notice, or the disk refuses.
pub fn lay_out(built: &Path, folder: &Path, added: &[Part]) -> Result<Laid> {
    // Where cargo-deb looks for what a release build made.
    let root = folder.join("release");
    let [man, completions, notices] = ["man", "completions", "notices"].map(|name| root.join(name));
    for folder in [&man, &completions, &notices] {
        fs::create_dir_all(folder)?;
    }
    for name in PACKAGES {
        let from = built.join(name);
        ensure!(from.is_file(), "{} is not built", from.display());
        let to = root.join(name);
        if to.exists() {
            fs::remove_file(&to)?;
        }
        // Of another disk: copied.
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    let agentctl = root.join("agentctl");
    run(Command::new(&agentctl).arg("man").arg(&man))?;
    for shell in SHELLS {
        let text = run(Command::new(&agentctl).args(["completions", &shell.to_string()]))?;
        fs::write(completions.join(file_name(shell, "agentctl")), text)?;
    }
    let daemons = [
        ("flowtilla-agent", flowtilla_agent::config::Cli::command()),
        (
            "flowtilla-controller",
            flowtilla_controller::config::Cli::command(),
        ),
    ];
    for (name, mut command) in daemons {
        // What completions are made of has been built, `help` with all its commands included.
        let mut pages = command.clone().disable_help_subcommand(true);
        for shell in SHELLS {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, name, &mut text);
            fs::write(completions.join(file_name(shell, name)), text)?;
        }
        pages.build();
        write_pages(&pages, &man)?;
    }
    write_notices(&notices, added)?;
    for folder in [&man, &notices] {
        compress(folder)?;
    }
    Ok(Laid(folder.to_owned()))
}

fn write_notices(folder: &Path, added: &[Part]) -> Result<()> {
    let (sources, library) = (Sources::of(&PACKAGES)?, notices::rust_library()?);
    for package in PACKAGES {
        let mut parts = sources.parts(programs(package))?;
        parts.extend(added.iter().cloned());
        fs::write(folder.join(package), notices::render(package, &parts, &library))?;
    }
    Ok(())
}

/// Each file of a folder.
fn compress(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "gz") {
            run(Command::new("gzip").args(["-9nf", "--"]).arg(path))?;
        }
    }
    Ok(())
}

/// A daemon's page, and one for each of its commands.
fn write_pages(command: &clap::Command, folder: &Path) -> Result<()> {
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        write_pages(part, folder)?;
    }
    let page = clap_mangen::Man::new(command.clone()).section(DAEMONS);
    page.generate_to(folder)
        .map(drop)
        .context("write a page of the manual")
}

/// As the shell looks for it, but for bash, which looks for the bare name: that is the program's here.
fn file_name(shell: Shell, name: &str) -> String {
    match shell {
        Shell::Zsh => format!("_{name}"),
        Shell::Fish => format!("{name}.fish"),
        _ => format!("{name}.bash"),
    }
}

impl Laid {
    /// Notices of what the programs of a package are made of, compressed.
    #[must_use]
    pub fn notices(&self, package: &str) -> PathBuf {
        self.0.join("release/notices").join(format!("{package}.gz"))
    }

    /// Makes one of [`PACKAGES`] in `out` and returns its path. `maker`: the program `integration`.
    ///
    /// # Errors
    /// When the metadata names what is not there, a tool is missing (dpkg-dev, binutils, xz-utils), or the disk refuses.
    pub fn make(
        &self,
        maker: &Path,
        package: &str,
        out: &Path,
        revision: &str,
        linked: Linked,
    ) -> Result<PathBuf> {
        fs::create_dir_all(out)?;
        let mut command = Command::new(maker);
        command
            .args(["deb", "--package", package, "--revision", revision, "--out"])
            .arg(out)
            .args(linked.flags())
            .env("CARGO_TARGET_DIR", &self.0)
            .stdin(Stdio::null());
        let said = run(&mut command)?;
        let path = said.lines().next_back().map(PathBuf::from);
        path.filter(|path| path.is_file())
            .with_context(|| format!("no package was written: {said}"))
    }
}

/// Writes one package, and its path to the standard output.
///
/// # Errors
/// What cargo-deb says.
pub fn write(order: &Order) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = root.join("Cargo.toml");
    let mut overrides = DebConfigOverrides::default();
    overrides.deb_revision = Some(order.revision.clone());
    let made = CargoDeb {
        no_build: true,
        deb_output: Some(OutputPath {
            path: &order.out,
            is_dir: true,
        }),
        compress_config: CompressConfig {
            fast: order.fast,
            compress_type: if order.fast { Format::Gzip } else { Format::Xz },
            compress_system: !order.fast,
            rsyncable: false,
        },
        options: BuildOptions {
            manifest_path: Some(&manifest),
            selected_package_name: Some(&order.package),
            config_variant: order.native.then_some("native"),
            overrides,
            debug: DebugSymbolOptions {
                strip_override: Some(true),
                ..DebugSymbolOptions::default()
            },
            ..BuildOptions::default()
        },
        ..CargoDeb::default()
    };
    made.process(&Warnings)
        .with_context(|| format!("the package {}", order.package))
}

/// Tells warnings; the path of what was written goes to the standard output.
struct Warnings;

impl Listener for Warnings {
    fn warning(&self, text: String) {
        eprintln!("cargo-deb: {text}");
    }

    fn info(&self, _: String) {}
}
