//! The command line of `flowtilla-controller`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use flowtilla_grpc::telemetry::{OTLP_VARIABLE, Otlp};
use flowtilla_proto::spiffe::TrustDomain;

use crate::setup::DOMAIN_DEFAULT;

/// Port of the gRPC services.
pub const PORT_DEFAULT: u16 = 7443;

/// Where /metrics is when nothing else is said.
pub const METRICS_DEFAULT: &str = "127.0.0.1:7444";

/// Tells agents what to do: gives identities, keeps policies, brings them to agents.
#[derive(Debug, Parser)]
#[command(name = "flowtilla-controller", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a state directory, with a CA, and the first operator's join token.
    Init(InitArgs),
    /// Run the controller.
    Run(RunArgs),
    /// Make a join token for an operator, whether the controller runs or not.
    Token(TokenArgs),
    /// Write everything, keys included, into one file, whether the controller runs or not.
    Backup(BackupArgs),
    /// Make a state directory of a backup.
    Restore(RestoreArgs),
}

/// Where the state is.
#[derive(Debug, Args)]
pub struct StateArg {
    /// The controller's state directory.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
}

/// Of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where.
    #[command(flatten)]
    pub state: StateArg,
    /// Name of the trust domain; it never changes.
    #[arg(long, value_name = "NAME", default_value = DOMAIN_DEFAULT, value_parser = domain)]
    pub domain: TrustDomain,
    /// Your own CA's intermediate certificate, then its issuers, the root last (PEM).
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// The intermediate's key: ECDSA P-256, PKCS#8, PEM, mode 0600.
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
    /// Name of the first operator.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub operator: String,
    /// Write the operator's join token to a new file of mode 0600, instead of the standard output.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where.
    #[command(flatten)]
    pub state: StateArg,
    /// Where to listen; may be repeated. Default: every address of the host, port 7443.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<SocketAddr>,
    /// How long after its SVID ran out an agent gets it back without an operator, such as 12h or 7d.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
    pub renew_grace: Duration,
    /// Where /metrics is served, or off.
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = METRICS_DEFAULT, value_parser = metrics)]
    pub metrics: Metrics,
    /// Where traces go (OTLP over gRPC, not encrypted), or off.
    #[arg(long, value_name = "http://HOST[:PORT]|off", env = OTLP_VARIABLE, default_value = "off", value_parser = Otlp::parse)]
    pub otlp: Otlp,
}

/// Where /metrics is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics(pub Option<SocketAddr>);

impl Command {
    /// Where traces go.
    #[must_use]
    pub fn otlp(&self) -> Otlp {
        match self {
            Self::Run(args) => args.otlp.clone(),
            _ => Otlp::default(),
        }
    }
}

/// Of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Where.
    #[command(flatten)]
    pub state: StateArg,
    /// The operator's name.
    #[arg(long, value_name = "NAME")]
    pub operator: String,
    /// Write it to a new file of mode 0600, instead of the standard output.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where.
    #[command(flatten)]
    pub state: StateArg,
    /// The file to make, with mode 0600. It holds the CA's keys.
    pub file: PathBuf,
}

/// Of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup. Restore it once: of source ids of 8 bits (collectors of nested JSON or header version 1) a second restore of the
    /// same file may give those again that the first one has given. Agents that came in since are to be stopped or enrolled anew
    /// before.
    pub file: PathBuf,
    /// Where; nothing may be there yet.
    #[command(flatten)]
    pub state: StateArg,
}

fn domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::parse(text).map_err(|mistakes| mistakes.to_string())
}

fn metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics(None)),
        _ => text
            .parse()
            .map(|address| Metrics(Some(address)))
            .map_err(|_| format!("is no address; write ADDRESS:PORT, such as {METRICS_DEFAULT}, or off")),
    }
}

/// Reads a time: a whole number and `s`, `m`, `h` or `d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write a whole number and s, m, h or d, such as 12h");
    let end = text
        .len()
        .checked_sub(1)
        .filter(|&end| text.is_char_boundary(end))
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    if !number.bytes().all(|octet| octet.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds = number.parse::<u32>().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(seconds) * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    fn run(more: &[&str]) -> Result<RunArgs, String> {
        let words = ["flowtilla-controller", "run", "--state", "/s"];
        let cli = Cli::try_parse_from(words.iter().chain(more)).map_err(|error| error.to_string())?;
        match cli.command {
            Command::Run(args) => Ok(args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn metrics_are_on_loopback_unless_it_is_said() {
        let default = run(&[]).expect("it is right").metrics.0.expect("they are on");
        assert!(default.ip().is_loopback() && default.port() == 7444, "{default}");
        assert_eq!(
            run(&["--metrics", "off"]).expect("it is right").metrics,
            Metrics(None)
        );
        let said = run(&["--metrics", "0.0.0.0:1"]).expect("it is right").metrics.0;
        assert_eq!(said, Some(SocketAddr::from(([0, 0, 0, 0], 1))));
        let wrong = run(&["--metrics", "7444"]).expect_err("no address");
        assert!(wrong.contains("write ADDRESS:PORT"), "{wrong}");
    }

    #[test]
    fn times_are_whole_numbers_with_a_unit() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in [
            "",
            "7",
            "d",
            "-1d",
            "+1d",
            "1.5h",
            "1w",
            "99999999999d",
            "7\u{e4}",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
