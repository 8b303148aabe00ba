//! Tells what this host and this kernel allow, what is missing, and what to do about it: `agentctl doctor`, `flowtilla-agent doctor`.
//!
//! Every line is found out, not supposed: the programs are loaded and attached as the agent does it (and taken off again), the
//! controller and the collectors are connected to. Changes nothing; needs what the agent needs. Verdicts: `ok`; `warn`, something is
//! lost or will be; `fail`, nothing can be captured. Exit code: 0 when nothing fails, 1 otherwise; 2 flags are wrong.
//!
//! As JSON one object: `version`, `captures` (nothing fails), `findings`: `check`, `verdict`, `what`, `remedy` (null: none is needed).
//!
//! | part | checks |
//! |---|---|
//! | [`kernel`] | kernel, btf, capabilities, cgroup2, lockdown, settings, filesystems, memlock |
//! | [`programs`] | programs |
//! | [`host`] | clock, spool, service, runtimes |
//! | [`reach`] | identity, controller, collectors |

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use flowtilla_grpc::channel::{Address, AddressError};
use serde::Serialize;

mod host;
mod kernel;
mod programs;
mod reach;

/// Where `agentctl deploy` and the package keep the agent's state.
pub const STATE: &str = "/var/lib/flowtilla";
/// Where the service's settings are.
const SETTINGS: &str = "/etc/flowtilla/agent.env";
/// The setting that names the controller.
const CONTROLLER: &str = "FLOWTILLA_CONTROLLER";
/// Octets of the settings at most: a few lines.
const SETTINGS_OCTETS_MAX: u64 = 64 << 10;

/// What to look at.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// State directory of this host's agent.
    #[arg(long, value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,

    /// Where its controller is [default: what /etc/flowtilla/agent.env says].
    #[arg(long, value_name = "HOST[:PORT]", value_parser = |text: &str| Address::parse(text))]
    pub controller: Option<Address>,

    /// How to print: lines for people, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it is to be.
    Ok,
    /// Something is lost, or will be.
    Warn,
    /// Nothing can be captured.
    Fail,
}

/// What was found at one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// One sentence.
    pub what: String,
    /// What to do; `None`: nothing.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    fn warn(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(check, what)
        }
    }

    fn fail(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            remedy: Some(remedy.into()),
            ..Self::ok(check, what)
        }
    }
}

/// Looks at everything and prints it. Whether something can be captured.
///
/// # Errors
/// `out` cannot be written.
pub async fn run(args: &DoctorArgs, out: &mut (dyn Write + Send)) -> io::Result<bool> {
    let findings = examine(args).await;
    let captures = captures(&findings);
    let text = match args.output {
        Output::Text => text(&findings),
        Output::Json => json(&findings),
    };
    out.write_all(text.as_bytes())?;
    Ok(captures)
}

/// Looks at everything.
pub async fn examine(args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = kernel::examine();
    findings.extend(programs::examine().await);
    findings.extend(host::examine(&args.state));
    let (controller, wrong) = match &args.controller {
        Some(controller) => (Some(controller.clone()), None),
        None => configured(Path::new(SETTINGS)),
    };
    findings.extend(wrong);
    findings.extend(reach::examine(&args.state, controller.as_ref()).await);
    findings
}

/// The controller that the service's settings name, and what is wrong with that.
fn configured(path: &Path) -> (Option<Address>, Option<Finding>) {
    let octets = match read_regular(path, SETTINGS_OCTETS_MAX) {
        Ok(octets) => octets.unwrap_or_default(),
        Err(error) => {
            let what = format!("{} cannot be read ({error})", path.display());
            return (None, Some(Finding::warn("settings", what, "run this as root")));
        }
    };
    match controller_of(&String::from_utf8_lossy(&octets)) {
        Ok(controller) => (controller, None),
        Err(error) => {
            let what = format!("{}: {CONTROLLER} {error}", path.display());
            (
                None,
                Some(Finding::warn(
                    "settings",
                    what,
                    "mend it, then: systemctl restart flowtilla-agent",
                )),
            )
        }
    }
}

/// The last assignment counts, as systemd has it; quotes around the value are none of it.
fn controller_of(settings: &str) -> Result<Option<Address>, AddressError> {
    let of_line = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        (key.trim() == CONTROLLER).then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    match settings.lines().filter_map(of_line).next_back() {
        Some(value) if !value.is_empty() => Address::parse(&value).map(Some),
        _ => Ok(None),
    }
}

fn captures(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Fail)
}

/// Lines for people: each finding, what to do below it, and the sum.
fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let _ = writeln!(text, "{verdict:<4} {:<12} {}", finding.check, finding.what);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "     {:<12} → {remedy}", "");
        }
    }
    let count = |verdict| {
        findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    };
    let sum = match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "flows can be captured here, and nothing is missing".to_owned(),
        (0, warnings) => format!("flows can be captured here; {warnings} to look at"),
        (failures, _) => format!("no flow can be captured here: {failures} to mend"),
    };
    text + &sum + "\n"
}

#[derive(Serialize)]
struct Told<'a> {
    version: &'static str,
    captures: bool,
    findings: &'a [Finding],
}

fn json(findings: &[Finding]) -> String {
    let told = Told {
        version: env!("CARGO_PKG_VERSION"),
        captures: captures(findings),
        findings,
    };
    serde_json::to_string(&told).expect("texts are JSON") + "\n"
}

/// A file whole; `None`: there is none. What the agent's user owns may be a link or a pipe that it has put there, and this is
/// root: neither is followed or waited for.
fn read_regular(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no such file"));
    }
    let mut octets = Vec::new();
    file.take(most).read_to_end(&mut octets)?;
    Ok(Some(octets))
}

/// Octets for people.
fn octets(number: u64) -> String {
    match number {
        0..0x10_0000 => format!("{} KiB", number >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", number >> 20),
        _ => format!("{} GiB", number >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_is_what_the_settings_say_last() {
        let named = |text: &str| controller_of(text).map(|found| found.map(|it| it.to_string()));
        assert_eq!(named(""), Ok(None));
        assert_eq!(
            named("#FLOWTILLA_CONTROLLER=x\nFLOWTILLA_CONTROLLER=\n"),
            Ok(None)
        );
        assert_eq!(
            named("FLOWTILLA_CONTROLLER=a\nFLOWTILLA_CONTROLLER=\"b:1\"\n"),
            Ok(Some("b:1".into()))
        );
        assert!(named("FLOWTILLA_CONTROLLER=a:b:c:0\n").is_err());
    }

    #[test]
    fn a_link_or_a_pipe_in_the_place_of_a_file_is_not_read() {
        let folder = tempfile::tempdir().expect("a directory");
        let (file, link, pipe) = (
            folder.path().join("f"),
            folder.path().join("l"),
            folder.path().join("p"),
        );
        std::fs::write(&file, "text").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
        assert_eq!(read_regular(&file, 4).expect("read"), Some(b"text".to_vec()));
        assert_eq!(read_regular(&folder.path().join("n"), 4).expect("none"), None);
        for other in [&link, &pipe, folder.path()] {
            read_regular(other, 4).expect_err("not read");
        }
        read_regular(&file, 3).expect_err("too long");
    }

    #[test]
    fn only_a_failure_prevents_capture_and_each_remedy_stands_below_its_finding() {
        let mut findings = vec![
            Finding::ok("kernel", "Linux 6.1"),
            Finding::warn("clock", "it is not synchronised", "run chrony"),
        ];
        assert!(captures(&findings));
        assert_eq!(
            text(&findings),
            "ok   kernel       Linux 6.1\nWARN clock        it is not synchronised\n                  → run chrony\n\
             flows can be captured here; 1 to look at\n"
        );
        findings.push(Finding::fail("btf", "there is none", "boot another kernel"));
        assert!(!captures(&findings));
        let told: serde_json::Value = serde_json::from_str(&json(&findings)).expect("JSON");
        assert_eq!(told["captures"], false);
        assert_eq!(told["findings"][2]["verdict"], "fail");
        assert_eq!(told["findings"][0]["remedy"], serde_json::Value::Null);
        assert!(text(&findings).ends_with("no flow can be captured here: 1 to mend\n"));
    }
}
