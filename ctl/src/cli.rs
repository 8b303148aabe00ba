//! The command line: which commands there are, and how a wrong one is refused.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use flowtilla_grpc::telemetry::Otlp;

use crate::cmd::buffer::BufferCommand;
use crate::cmd::doctor::ExamineArgs;
use crate::cmd::fleet::admit::{ApproveArgs, RevokeArgs};
use crate::cmd::fleet::ca::CaCommand;
use crate::cmd::fleet::context::ContextCommand;
use crate::cmd::fleet::delete::DeleteArgs;
use crate::cmd::fleet::deploy::{DeployArgs, RollbackArgs};
use crate::cmd::fleet::describe::DescribeArgs;
use crate::cmd::fleet::diff::DiffArgs;
use crate::cmd::fleet::get::{AgentsArgs, GetArgs};
use crate::cmd::fleet::history::HistoryArgs;
use crate::cmd::fleet::login::LoginArgs;
use crate::cmd::fleet::rollout::RolloutCommand;
use crate::cmd::fleet::status::StatusArgs;
use crate::cmd::fleet::token::TokenCommand;
use crate::cmd::fleet::top::TopArgs;
use crate::cmd::loss::LossArgs;
use crate::cmd::tap::TapArgs;
use crate::cmd::up::args::UpArgs;
use crate::exit::{Exit, say};
use crate::schema::SchemaArgs;

/// Shows who talks on this host, tells ntopng, and runs a fleet of agents.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows this host's flows, each with its process, and exports them to ntopng when asked.
    Up(Box<UpArgs>),
    /// Listens as ntopng does, and shows what agents send and what was lost on the way.
    Tap(TapArgs),
    /// Tells what became of every record: taken, waiting, or lost and where. Of an agent with --state, or of the whole fleet.
    Loss(LossArgs),
    /// Looks into what waits on disk: of an agent at work, of one that stopped, or a copy of the directory.
    #[command(subcommand)]
    Buffer(BufferCommand),
    /// Logs in to a controller with a join token.
    Login(LoginArgs),
    /// The controllers that are known here.
    #[command(subcommand)]
    Context(ContextCommand),
    /// Join tokens, each of which lets one host or one operator in, once.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Puts agents on hosts, makes policies and collectors what files say, and brings them to the agents.
    Deploy(Box<DeployArgs>),
    /// Shows how files differ from what the controller has. Exit code 1: they do.
    Diff(DiffArgs),
    /// Lists agents, policies, collectors, groups of hosts, operators, tokens, revisions or rollouts.
    Get(GetArgs),
    /// Lists agents: get agents. Or upgrades, drains or takes them away.
    Agents(AgentsArgs),
    /// Shows everything that the controller knows of one thing.
    Describe(DescribeArgs),
    /// Takes a policy, a collector or a group of hosts away.
    Delete(DeleteArgs),
    /// Shows revisions, the newest first.
    History(HistoryArgs),
    /// Brings the objects of an earlier revision back.
    Rollback(RollbackArgs),
    /// Looks at a change on its way, and steers it.
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Shows how the controller and its fleet do. Exit code 1: an agent has not what it is to have, or none is connected.
    Status(StatusArgs),
    /// Shows who does how much on the agents' hosts, and how well their TCP runs: in the last minute, drawn anew.
    Top(TopArgs),
    /// Makes an identity or a token void.
    Revoke(RevokeArgs),
    /// Lets an agent come back whose SVID ran out too long ago.
    Approve(ApproveArgs),
    /// The certificate authority of the fleet.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Prints the JSON schema of documents.
    Schema(SchemaArgs),
    /// Tells what this host and its kernel allow, or with --host those of agents, what is missing, and what to do about it. Exit code 1:
    /// nothing can be captured, here or on one of them.
    Doctor(Box<ExamineArgs>),
    /// Prints completions for a shell.
    Completions(CompletionsArgs),
    /// Writes the pages of the manual, one for each command.
    Man(ManArgs),
}

impl Command {
    /// Where traces of it go.
    pub(crate) fn otlp(&self) -> Otlp {
        match self {
            Self::Deploy(args) => args.follow.otlp.clone(),
            Self::Rollback(args) => args.follow.otlp.clone(),
            _ => Otlp::default(),
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CompletionsArgs {
    /// Which shell.
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ManArgs {
    /// Where to; it is made when it is not there.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes the pages of the manual.
///
/// # Errors
///
/// The disk refuses.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let written = std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.folder));
    written.with_context(|| format!("{} cannot be written", args.folder.display()))?;
    Ok(Exit::Done)
}

/// Prints completions for a shell.
///
/// # Errors
///
/// stdout cannot be written.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "agentctl", &mut text);
    crate::cmd::fleet::print(&String::from_utf8_lossy(&text))
}

/// Prints help and version as clap has them, and everything else as one sentence that names the flag and the remedy.
pub(crate) fn refuse(error: &clap::Error) -> Exit {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let wrong = error.use_stderr();
        let text = error.render();
        if wrong {
            let _ = write!(std::io::stderr(), "{text}");
            return Exit::Usage;
        }
        let _ = write!(std::io::stdout(), "{text}");
        return Exit::Done;
    }
    say(sentence(error));
    Exit::Usage
}

fn sentence(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(list)) => Some(list.join(", ")),
        _ => None,
    };
    // `--max-flows <N>`, `--wait[=<TIME>]`: the flag alone.
    let alone = |arg: &String| {
        let name = arg.split(" <").next().unwrap_or_default();
        let name = name.split("[=").next().unwrap_or_default();
        name.trim_matches(['<', '>']).to_owned()
    };
    let named = |kind| -> Vec<String> {
        match error.get(kind) {
            Some(ContextValue::String(arg)) => vec![alone(arg)],
            Some(ContextValue::Strings(args)) => args.iter().map(alone).collect(),
            _ => Vec::new(),
        }
    };
    let flags = named(ContextKind::InvalidArg);
    let flag = flags.join(", ");
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => match text(ContextKind::SuggestedArg) {
            Some(similar) => format!("{flag}: is no flag of this command; did you mean {similar}?"),
            None if flag.starts_with(|first: char| first.is_ascii_digit()) => {
                format!(
                    "{flag}: is more than this command takes; a time follows its flag after =, as in --wait=10s"
                )
            }
            None if !flag.starts_with('-') => format!("{flag}: is more than this command takes; see --help"),
            None => format!("{flag}: is no flag of this command; see --help"),
        },
        ErrorKind::InvalidSubcommand => {
            let command = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            format!("{command:?} is no command; see agentctl --help")
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{flag}: has no value; write one after it"),
        ErrorKind::InvalidValue => {
            let choices = text(ContextKind::ValidValue).unwrap_or_default();
            format!("{flag}: {value:?} is not known; write one of {choices}")
        }
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(error)
                .map(ToString::to_string)
                .unwrap_or_default();
            match why.contains("; ") {
                true => format!("{flag}: {value:?} {why}"), // a sentence of ours, with its remedy
                false => format!("{flag}: {value:?} is refused ({why}); see --help"),
            }
        }
        ErrorKind::ArgumentConflict => match named(ContextKind::PriorArg) {
            others if others.is_empty() || others == flags => format!("{flag}: is given twice; give it once"),
            others => format!("{flag}: does not go with {}; see --help", others.join(", ")),
        },
        ErrorKind::MissingRequiredArgument if flags.len() > 1 => format!("{flag}: are missing; see --help"),
        ErrorKind::MissingRequiredArgument => format!("{flag}: is missing; see --help"),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("{}; see --help", first.trim_start_matches("error: "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &[&str]) -> String {
        let all = ["agentctl"].iter().chain(args);
        sentence(&Cli::try_parse_from(all).expect_err("it should be refused"))
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn each_wrong_flag_is_one_sentence_with_its_name_and_a_remedy() {
        for (args, sentence) in [
            (
                &["up", "--foo"][..],
                "--foo: is no flag of this command; see --help",
            ),
            (
                &["up", "--max-flow", "3"],
                "--max-flow: is no flag of this command; did you mean --max-flows?",
            ),
            (&["down"], "\"down\" is no command; see agentctl --help"),
            (
                &["up", "-o", "xml"],
                "--output: \"xml\" is not known; write one of table, lines, json",
            ),
            (
                &["up", "--max-flows"],
                "--max-flows: has no value; write one after it",
            ),
            (
                &["up", "--max-flows", "many"],
                "--max-flows: \"many\" is not a number; write digits only, such as 65536",
            ),
            (
                &["up", "--idle-timeout", "soon"],
                "--idle-timeout: \"soon\" is not a time; write seconds, or a number with ms, s, m or h",
            ),
            (
                &["up", "--scope", "web"],
                "--scope: \"web\" names no part of the host; write cgroup=PATH or netns=PATH",
            ),
            (
                &["up", "--include", "port=80,host=x"],
                "--include: \"port=80,host=x\" has the member \"host=x\", which is of no known kind; write \
                 cidr=…,port=…,process=…,user=…,cgroup=…,container=…,image=…,namespace=…,pod-label=…, each as often as needed",
            ),
            (
                &["up", "--exclude", ""],
                "--exclude: \"\" has the member \"\", which is of no known kind; write \
                 cidr=…,port=…,process=…,user=…,cgroup=…,container=…,image=…,namespace=…,pod-label=…, each as often as needed",
            ),
            (
                &["up", "--sample", "4"],
                "--sample: \"4\" is no share; write 1/N, such as 1/10",
            ),
            (
                &["up", "--sample", "1/x"],
                "--sample: \"1/x\" is no share; write 1/N, such as 1/10",
            ),
            (
                &["up", "--command-line", "some"],
                "--command-line: \"some\" is not known; write one of none, redacted, full",
            ),
            (
                &["up", "--loopback", "some"],
                "--loopback: \"some\" is not known; write one of hostAddress, omit, asIs",
            ),
            (
                &["tap", "--count", "0"],
                "--count: \"0\" is refused (number would be zero for non-zero type); see --help",
            ),
            (&["deploy"], "--file: is missing; see --help"),
            (
                &["deploy", "-f", "x", "--wait=soon"],
                "--wait: \"soon\" is not a time; write a number with its unit: 500ms, 10s, 5m, 2h or 7d",
            ),
            (
                &["get", "agent", "-o", "xml"],
                "--output: \"xml\" is not known; write one of table, wide, json, yaml, name",
            ),
            (
                &["get", "hosts"],
                "KIND: \"hosts\" is not known; write one of agents, policies, collectors, hostgroups, operators, tokens, revisions, rollouts",
            ),
            (
                &["token", "create", "--label", "role"],
                "--label: \"role\" is no label; write KEY=VALUE",
            ),
            (
                &["token", "create", "--ttl", "90"],
                "--ttl: \"90\" has no unit; write a number with its unit: 500ms, 10s, 5m, 2h or 7d",
            ),
            (
                &["login", "--controller", "c"],
                "--token-file: is missing; see --help",
            ),
            (
                &["loss", "--state", "x", "--context", "y"],
                "--state: does not go with --context; see --help",
            ),
            (
                &["loss", "--state", "x", "-o", "xml"],
                "--output: \"xml\" is not known; write one of text, json",
            ),
            (&["buffer", "inspect"], "DIR: is missing; see --help"),
            (
                &["top", "hosts"],
                "VIEW: \"hosts\" is not known; write one of containers, pods, processes, users, flows",
            ),
            (
                &["top", "flows", "-n", "0"],
                "--rows: \"0\" is no number of rows; write one from 1 to 200",
            ),
            (
                &["top", "flows", "--sort", "size"],
                "--sort: \"size\" is not known; write one of octets, rtt, retransmits, flows, failed",
            ),
            (&["describe"], "KIND, NAME: are missing; see --help"),
            (&["describe", "agent"], "NAME: is missing; see --help"),
            (
                &["buffer", "verify", "x", "y"],
                "y: is more than this command takes; see --help",
            ),
            (
                &["buffer", "mend", "x"],
                "\"mend\" is no command; see agentctl --help",
            ),
            (
                &["buffer", "replay", "x", "--from", "first"],
                "--from: \"first\" is not a number; write digits only, such as 65536",
            ),
            (
                &["buffer", "replay", "x", "--since", "noon"],
                "--since: \"noon\" is no time; write RFC 3339 such as 2026-03-01T12:00:00Z, or a span before now such as 2h",
            ),
            (
                &["buffer", "replay", "x", "--rate", "fast"],
                "--rate: \"fast\" is not a number; write digits only, such as 65536",
            ),
            (
                &["up", "table"],
                "table: is more than this command takes; see --help",
            ),
            (
                &["deploy", "-f", "x", "--wait", "10s"],
                "10s: is more than this command takes; a time follows its flag after =, as in --wait=10s",
            ),
            (
                &["agents", "drain", "x", "--undo", "--wait"],
                "--undo: does not go with --wait; see --help",
            ),
            (
                &["up", "--duration", "1s", "--duration", "2s"],
                "--duration: is given twice; give it once",
            ),
        ] {
            assert_eq!(refused(args), sentence, "{args:?}");
        }
    }
}
