//! The one test command: its steps, in order, and what it says at the end.
//!
//! One profile, dev, for lints, builds and tests: debug assertions and overflow checks stand while the product's claims
//! are tested, and a second profile would double the build on two cores. The workspace's dev profile optimises the
//! dependencies, so that real traffic runs at a real pace. The release profile is what the benchmark builds.
//!
//! Tests that need root get it: as another user, test binaries are run through sudo, cargo itself is not.

mod packages;
mod tally;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use integration::soak;

use self::packages::Privilege;
use self::tally::Tally;

/// How tests are run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Full counts and long runs.
    #[arg(long)]
    soak: bool,
    /// One step (format, lints, licences, build), one promise (a file of integration/tests), or the tests whose names
    /// contain this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Leaves the machine's packages as they are.
    #[arg(long)]
    no_install: bool,
}

/// Most failed tests that are run once more.
///
/// Of more than a thousand, chance fails one, hardly two. Half of it does not cover that; double it, and a change that makes
/// tests unsteady passes unseen.
const AGAIN_MAX: usize = 2;

/// A step besides the tests.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
}

const STEPS: [Step; 4] = [
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--check"],
    },
    Step {
        name: "lints",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    },
    Step {
        name: "licences",
        arguments: &["deny", "check", "bans", "licenses"],
    },
    Step {
        name: "build",
        arguments: &["build", "--workspace"],
    },
];

/// Runs everything; whether all passed.
///
/// # Errors
/// When cargo itself cannot be started.
pub(crate) fn test(options: &Options) -> Result<bool> {
    let privilege = Privilege::find();
    let mut tally = Tally::default();
    if options.no_install {
        println!("packages: left as they are (--no-install)");
    } else if let Err(reason) = packages::install(privilege) {
        tally.skip("packages", &reason);
    }
    let only = options.only.as_deref();
    let only_step = STEPS.iter().any(|step| Some(step.name) == only);
    for step in &STEPS {
        // The tests start the built binaries: building is part of running any of them.
        let wanted = match only {
            None => true,
            Some(name) => step.name == name || (step.name == "build" && !only_step),
        };
        if wanted {
            run_step(step, &mut tally)?;
        }
    }
    if !only_step {
        run_tests(options, privilege, &mut tally)?;
        run_again(options, privilege, &mut tally)?;
    }
    Ok(tally.tell())
}

fn run_step(step: &Step, tally: &mut Tally) -> Result<()> {
    if step.name == "licences" && !has_cargo_deny() {
        tally.skip(
            "licences",
            "cargo-deny is not installed (cargo install cargo-deny; building it takes too long here)",
        );
        return Ok(());
    }
    println!("== {}: cargo {}", step.name, step.arguments.join(" "));
    let status = cargo(step.arguments).status().context("start cargo")?;
    tally.step(step.name, status.success());
    Ok(())
}

fn run_tests(options: &Options, privilege: Privilege, tally: &mut Tally) -> Result<()> {
    let mut arguments = vec!["test"];
    match options.only.as_deref() {
        None => arguments.extend(["--workspace", "--no-fail-fast"]),
        Some(name) if is_promise(name) => arguments.extend(["-p", "integration", "--test", name]),
        Some(name) => arguments.extend(["--workspace", "--no-fail-fast", name]),
    }
    // What passed tests print is captured without this, and with it their reasons to skip.
    arguments.extend(["--", "--show-output"]);
    if options.soak {
        arguments.push("--include-ignored");
    }
    run_cargo_test(&arguments, options.soak, privilege, tally)
}

/// Runs tests on the real kernel that failed once more, each by itself: on a shared machine anything may be late. The end
/// names those that pass then. What fails twice, or is too much to be chance, stays a failure; so does any unit test, and
/// whatever fails in a soak.
fn run_again(options: &Options, privilege: Privilege, tally: &mut Tally) -> Result<()> {
    let failed = tally.failed_tests();
    if options.soak || failed.len() > AGAIN_MAX {
        return Ok(());
    }
    for name in failed {
        println!("== once more: {name}");
        let mut arguments = vec![
            "test",
            "--workspace",
            "--no-fail-fast",
            "--test",
            "*",
            name.as_str(),
        ];
        arguments.extend(["--", "--exact", "--show-output"]);
        let mut second = Tally::default();
        run_cargo_test(&arguments, false, privilege, &mut second)?;
        if second.is_one_pass() {
            tally.passed_again(&name);
        }
    }
    Ok(())
}

fn run_cargo_test(arguments: &[&str], soak: bool, privilege: Privilege, tally: &mut Tally) -> Result<()> {
    println!("== tests: cargo {}", arguments.join(" "));
    let mut command = cargo(arguments);
    // Errors here are sentences; their backtraces would bury them. Panics keep theirs.
    command.env("RUST_LIB_BACKTRACE", "0");
    if soak {
        command.env(soak::VARIABLE, "1");
    }
    if privilege == Privilege::Sudo {
        run_through_sudo(&mut command, soak);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start cargo")?;
    let output = child.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if tally.take(&line) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    // A failure that no test result tells of: a test binary that did not build, or was killed.
    tally.cargo_ended(status.success());
    Ok(())
}

/// Has cargo start test binaries through sudo, with the few variables they read.
fn run_through_sudo(command: &mut Command, soak: bool) {
    let mut runner = "sudo -n env RUST_LIB_BACKTRACE=0".to_owned();
    if soak {
        runner.push_str(&format!(" {}=1", soak::VARIABLE));
    }
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    // Tests of packages ask cargo, which root's home does not have.
    let of_home = |name: &str, folder: &str| match (value(name), value("HOME")) {
        (value, home) if value.is_empty() && !home.is_empty() => format!("{home}/{folder}"),
        (value, _) => value,
    };
    let mut passed = vec![
        ("CARGO_HOME", of_home("CARGO_HOME", ".cargo")),
        ("RUSTUP_HOME", of_home("RUSTUP_HOME", ".rustup")),
    ];
    let as_they_are = [
        "PATH",
        "NTOPNG",
        "NTOPNG52",
        "RUST_BACKTRACE",
        "RUST_LIB_BACKTRACE",
        "CARGO",
        "CARGO_MANIFEST_DIR",
    ];
    passed.extend(as_they_are.map(|name| (name, value(name))));
    for (name, value) in passed {
        // Cargo splits the runner at blanks.
        if !value.is_empty() && !value.contains(char::is_whitespace) {
            runner.push_str(&format!(" {name}={value}"));
        }
    }
    let target = format!("{}_UNKNOWN_LINUX_GNU", std::env::consts::ARCH.to_uppercase());
    command.env(format!("CARGO_TARGET_{target}_RUNNER"), runner);
}

/// A cargo command at the workspace's root, with the cargo that started this process.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    // Set by the `cargo run` around this process: they would mark all crates as changed.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

fn is_promise(name: &str) -> bool {
    root().join(format!("integration/tests/{name}.rs")).is_file()
}

fn has_cargo_deny() -> bool {
    cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
