//! What `flowtilla-agent` is told on its command line.
//!
//! Values are checked whole before anything is touched. No secret stands in an argument: a token is read from a file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use flowtilla_grpc::channel::{Address, AddressError};
use flowtilla_grpc::telemetry::{OTLP_VARIABLE, Otlp};
use flowtilla_proto::policy::{Policy, Scope};
use flowtilla_proto::wire;

use crate::doctor::DoctorArgs;
use crate::fleet;
use crate::identity::{Token, WallClock};

/// Where /metrics is when nothing else is said.
pub const METRICS_DEFAULT: &str = "127.0.0.1:7445";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "flowtilla-agent",
    version,
    about = "Captures the flows of this host as its controller says."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the agent until it is told to stop (SIGTERM, SIGINT).
    Run(RunArgs),
    /// Tells what this host and this kernel allow, what is missing, and what to do about it. Exit code 1: nothing can be captured.
    Doctor(DoctorArgs),
    /// Proves to whoever is root here who the agent is: signs the challenge on stdin. What agentctl calls.
    #[command(hide = true)]
    Prove(ProveArgs),
}

/// Whose identity is proven.
#[derive(Args, Debug)]
pub struct ProveArgs {
    /// Directory that keeps identity, policy and records between runs.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}

/// How to run.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Directory that keeps identity, policy and records between runs.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,

    /// Where the controller is; port 7443 unless it is said. Empty: not said yet.
    #[arg(long, value_name = "HOST[:PORT]", value_parser = parse_controller)]
    pub controller: Controller,

    /// File with a join token, for the first start.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Removes the token's file when it was used.
    #[arg(long, requires = "token_file")]
    pub remove_token_file: bool,

    /// Says something of this host to policies' selectors. May be repeated. Labels of the token win.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,

    /// Part of the host that this agent is for, whatever a policy says. May be repeated [default: the whole host].
    #[arg(long = "scope", value_name = "cgroup=PATH|netns=PATH", value_parser = parse_scope)]
    pub scopes: Vec<Scope>,

    /// Where /metrics is served, or off.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = METRICS_DEFAULT, value_parser = parse_metrics)]
    pub metrics: Metrics,

    /// Where traces go (OTLP over gRPC, not encrypted), or off.
    #[arg(long, value_name = "http://HOST[:PORT]|off", env = OTLP_VARIABLE, default_value = "off", value_parser = Otlp::parse)]
    pub otlp: Otlp,
}

/// Where the controller is; `None`: nobody has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller(pub Option<Address>);

/// Nobody has said where the controller is: a package was installed, and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host is not set up: no controller is named. Write FLOWTILLA_CONTROLLER=HOST[:PORT] to /etc/flowtilla/agent.env; make a \
     join token with `agentctl token create`, and write it to /var/lib/flowtilla/join-token, of mode 0600 and the user flowtilla; \
     then run `systemctl restart flowtilla-agent`"
)]
pub struct NotSetUp;

impl NotSetUp {
    /// The program's exit code then. Source: sysexits.h, EX_CONFIG.
    pub const EXIT_CODE: u8 = 78;
}

/// Where /metrics is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics(pub Option<SocketAddr>);

impl RunArgs {
    /// The agent's options.
    ///
    /// # Errors
    /// [`NotSetUp`].
    pub fn options(&self) -> Result<fleet::Options, NotSetUp> {
        let controller = self.controller.0.clone().ok_or(NotSetUp)?;
        let token = self.token_file.clone().map(|path| Token::File {
            path,
            remove: self.remove_token_file,
        });
        Ok(fleet::Options {
            controller,
            state: Some(self.state.clone()),
            spool: Some(self.state.clone()),
            token,
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            scopes: self.scopes.clone(),
            alone: false,
            view_records_max: 0,
            clock: WallClock::system(),
            build: None,
        })
    }
}

/// The unit hands over what the settings say, which is nothing at first.
fn parse_controller(text: &str) -> Result<Controller, AddressError> {
    match text.is_empty() {
        true => Ok(Controller(None)),
        false => Address::parse(text).map(|address| Controller(Some(address))),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("is no label; write KEY=VALUE".into()),
    }
}

fn parse_metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics(None)),
        _ => text
            .parse()
            .map(|address| Metrics(Some(address)))
            .map_err(|_| format!("is no address; write ADDRESS:PORT, such as {METRICS_DEFAULT}, or off")),
    }
}

/// A scope, read by the parser of policies.
fn parse_scope(text: &str) -> Result<Scope, String> {
    let part = match text.split_once('=') {
        Some(("cgroup", path)) => wire::scope::Part::Cgroup(path.to_owned()),
        Some(("netns", path)) => wire::scope::Part::Netns(path.to_owned()),
        _ => return Err("names no part of the host; write cgroup=PATH or netns=PATH".into()),
    };
    let sent = wire::Policy {
        capture: Some(wire::Capture {
            scopes: vec![wire::Scope { part: Some(part) }],
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    let policy = Policy::try_from(sent).map_err(|mistakes| mistakes.to_string())?;
    policy
        .capture
        .scopes
        .into_iter()
        .next()
        .ok_or_else(|| "names no part of the host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<RunArgs, String> {
        let first = ["flowtilla-agent", "run", "--state", "/s", "--controller", "c"];
        let cli = Cli::try_parse_from(first.iter().chain(more)).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Run(args) => Ok(args),
            Command::Doctor(_) | Command::Prove(_) => Err("another command".to_owned()),
        }
    }

    #[test]
    fn flags_become_options() {
        let flags = [
            "--scope",
            "netns=/run/netns/a",
            "--label",
            "role=web",
            "--token-file",
            "/t",
        ];
        let args = parse(&flags).expect("good flags");
        assert_eq!(args.metrics, Metrics(METRICS_DEFAULT.parse().ok()));
        let options = args.options().expect("a controller is named");
        assert_eq!(options.controller.to_string(), "c:7443");
        assert_eq!(options.scopes[0].to_string(), "netns=/run/netns/a");
        assert_eq!(options.labels["role"], "web");
        assert!(matches!(options.token, Some(Token::File { remove: false, .. })));
    }

    #[test]
    fn what_nobody_has_set_up_says_how_that_is_done() {
        let flags = ["flowtilla-agent", "run", "--state", "/s", "--controller", ""];
        let Ok(Command::Run(args)) = Cli::try_parse_from(flags).map(|cli| cli.command) else {
            panic!("an empty address is one that was not said");
        };
        let why = args.options().expect_err("no controller").to_string();
        for part in [
            "/etc/flowtilla/agent.env",
            "agentctl token create",
            "systemctl restart",
        ] {
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn bad_flags_name_the_remedy() {
        for (flags, remedy) in [
            (["--scope", "netns=rel"], "write"),
            (["--scope", "x"], "write cgroup=PATH or netns=PATH"),
            (["--label", "x"], "write KEY=VALUE"),
            (["--metrics", "x"], "or off"),
        ] {
            let error = parse(&flags).expect_err(flags[1]);
            assert!(error.contains(remedy), "{error}");
        }
    }
}
