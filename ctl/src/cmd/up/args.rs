//! The flags of `agentctl up`, and the policy and collectors that they make.
//!
//! Flags become wire messages and go through the same parser as everything else ([`flowtilla_proto`]); what it refuses
//! is told with the flag's name instead of the field's.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flowtilla_agent_core::policy::Wanted;
use flowtilla_proto::collector::{Collector, RECORDS_PER_SECOND_DEFAULT, RECORDS_PER_SECOND_NESTED_DEFAULT};
use flowtilla_proto::ids::NAME_OCTETS_MAX;
use flowtilla_proto::mistake::{Mistake, Mistakes};
use flowtilla_proto::policy::{
    ACTIVE_TIMEOUT_EXPORTING_MS_MAX, ACTIVE_TIMEOUT_MS_DEFAULT, BUFFER_OCTETS_DEFAULT,
    IDLE_TIMEOUT_MS_DEFAULT, MAX_FLOWS_DEFAULT, Policy, Scope,
};
use flowtilla_proto::wire;

use crate::cmd::fleet::top::View;
use crate::exit::UsageError;

/// Largest key file that is read, in octets. A key has 40 or 80; more is another file.
const KEY_FILE_OCTETS_MAX: u64 = 4096;

/// The grammar of `--include` and `--exclude`.
const RULE: &str = "cidr=…,port=…,process=…,user=…,cgroup=…,container=…,image=…,namespace=…,pod-label=…";

/// Octets of a key in Z85.
const KEY_OCTETS: usize = 40;

/// Longest `--duration`: a year. Longer is a slip of the unit.
const DURATION_MS_MAX: u64 = 366 * 24 * 3600 * 1000;

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// ntopng that gets the flows (its -i tcp://*:PORTc). May be repeated.
    #[arg(long, value_name = "tcp://HOST:PORT")]
    pub(crate) ntopng: Vec<String>,

    /// ntopng's public CURVE key, or @ and a file that holds it: one for all of --ntopng, or one for each, in order.
    #[arg(long, value_name = "KEY|@FILE")]
    pub(crate) curve_key: Vec<String>,

    /// How flows are shown: a live table, one line a record, or one JSON object a record [default: table on a terminal,
    /// lines elsewhere].
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Format>,

    /// Part of the host that is observed: a cgroup with all below it, or a network namespace (/run/netns/NAME,
    /// /proc/PID/ns/net). May be repeated [default: the whole host].
    #[arg(long, value_name = "cgroup=PATH|netns=PATH", value_parser = parse_scope)]
    pub(crate) scope: Vec<wire::Scope>,

    /// Leaves UDP out.
    #[arg(long)]
    pub(crate) no_udp: bool,

    /// Keeps only flows that this matches; of several, any. cidr=… and port=… at either end; process=… (name, or path
    /// with *), user=…, cgroup=…, container=… and image=… (names, with *), namespace=… and pod-label=KEY=VALUE or KEY (of
    /// its pod) of an owner on this host. Within a rule each kind must match, of one kind any.
    #[arg(long, value_name = "KIND=MEMBER,…", value_parser = parse_rule)]
    pub(crate) include: Vec<wire::FlowRule>,

    /// Leaves flows out that this matches, included or not. May be repeated.
    #[arg(long, value_name = "KIND=MEMBER,…", value_parser = parse_rule)]
    pub(crate) exclude: Vec<wire::FlowRule>,

    /// Keeps one flow in N, whole; what is left out is counted [default: every flow].
    #[arg(long, value_name = "1/N", value_parser = parse_share)]
    pub(crate) sample: Option<u64>,

    /// How much of command lines is shown and exported: nothing, what is left without secrets, or everything
    /// [default: redacted].
    #[arg(long, value_enum)]
    pub(crate) command_line: Option<CommandLine>,

    /// Unix socket of a runtime that knows the names of containers: Docker, podman, containerd, CRI-O. May be repeated
    /// [default: the usual ones of all four, and k3s's].
    #[arg(long, value_name = "PATH")]
    pub(crate) container_socket: Vec<String>,

    /// Asks no runtime for the names of containers: they go by their ids.
    #[arg(long)]
    pub(crate) no_container_names: bool,

    #[arg(long, value_name = "TIME", value_parser = parse_time, help = active_help())]
    pub(crate) active_timeout: Option<u64>,

    #[arg(long, value_name = "TIME", value_parser = parse_time, help = idle_help())]
    pub(crate) idle_timeout: Option<u64>,

    #[arg(long, value_name = "N", value_parser = parse_number,
          help = format!("Most flows at once; the oldest ends when there are more [default: {MAX_FLOWS_DEFAULT}]"))]
    pub(crate) max_flows: Option<u64>,

    /// What ntopng sees of a loopback address, which it would take for one host with all others' [default:
    /// hostAddress].
    #[arg(long, value_enum)]
    pub(crate) loopback: Option<Loopback>,

    /// Feeds the first --ntopng that is in reach, in their order, instead of each of them.
    #[arg(long)]
    pub(crate) failover: bool,

    /// Directory that keeps what no ntopng has yet, and what was counted, from run to run [default: a temporary one,
    /// gone at the end].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    #[arg(long, value_name = "SIZE", value_parser = parse_size, help = buffer_help())]
    pub(crate) buffer: Option<u64>,

    #[arg(long, value_name = "N", value_parser = parse_number,
          help = format!("Most records a second that each --ntopng gets; what waits drains at this pace [default: {RECORDS_PER_SECOND_DEFAULT}; {RECORDS_PER_SECOND_NESTED_DEFAULT} of nestedJson]"))]
    pub(crate) rate: Option<u64>,

    /// How flow records are written for each --ntopng: nestedJson is for ntopng 5.2, which shows pods by it [default: tlv].
    #[arg(long, value_enum)]
    pub(crate) encoding: Option<Encoding>,

    /// Exports each record's identity (boot id, cookie, part) with it.
    #[arg(long)]
    pub(crate) record_ids: bool,

    /// Begins with who does how much in the last minute, as `agentctl top` shows it of a fleet. The table has it at the keys
    /// 1 to 5, and its flows at 0.
    #[arg(long, value_name = "VIEW", value_enum)]
    pub(crate) top: Option<View>,

    /// Prints what was observed, made, taken and lost every 10 s.
    #[arg(long)]
    pub(crate) stats: bool,

    /// Ends after this time, as Ctrl-C does.
    #[arg(long, value_name = "SECONDS", value_parser = parse_time)]
    pub(crate) duration: Option<u64>,
}

/// How flows are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Lines,
    Json,
}

/// See [`flowtilla_proto::policy::CommandLine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CommandLine {
    None,
    Redacted,
    Full,
}

/// See [`flowtilla_proto::policy::Loopback`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "camelCase")]
pub(crate) enum Loopback {
    HostAddress,
    Omit,
    AsIs,
}

/// See [`flowtilla_proto::collector::Encoding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "camelCase")]
pub(crate) enum Encoding {
    Tlv,
    NestedJson,
}

impl Encoding {
    /// As a collector has it.
    pub(crate) fn sent(flag: Option<Self>) -> wire::Encoding {
        match flag {
            None => wire::Encoding::Unspecified,
            Some(Self::Tlv) => wire::Encoding::Tlv,
            Some(Self::NestedJson) => wire::Encoding::NestedJson,
        }
    }
}

/// What the flags ask for: objects for the controller, and what is the agent's own.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The policy, without scopes.
    pub(crate) policy: wire::Policy,
    /// The collectors that it names.
    pub(crate) collectors: Vec<wire::Collector>,
    /// Parts of the host that the agent is for.
    pub(crate) scopes: Vec<Scope>,
}

/// Name of the policy that the flags make.
pub(super) const POLICY_NAME: &str = "up";

impl UpArgs {
    /// What the flags ask for.
    ///
    /// # Errors
    ///
    /// Every flag that is refused, one line each.
    pub(crate) fn asked(&self) -> Result<Asked, UsageError> {
        let wanted = self.wanted()?;
        let scopes = wanted.policy().map(|policy| policy.capture.scopes.clone());
        let mut policy = self.policy();
        POLICY_NAME.clone_into(&mut policy.name);
        if let Some(capture) = &mut policy.capture {
            capture.scopes.clear();
        }
        let collectors = self.collectors(self.keys().unwrap_or_default());
        Ok(Asked {
            policy,
            collectors: collectors.collect(),
            scopes: scopes.unwrap_or_default(),
        })
    }

    /// What is wanted of the agent, checked whole.
    ///
    /// # Errors
    ///
    /// Every flag that is refused, one line each.
    fn wanted(&self) -> Result<Wanted, UsageError> {
        let mut lines = Vec::new();
        let keys = self.keys().unwrap_or_else(|line| {
            lines.push(line);
            vec![None; self.ntopng.len()]
        });
        let mut collectors = Vec::new();
        for (n, sent) in self.collectors(keys).enumerate() {
            match Collector::try_from(sent) {
                Ok(collector) => collectors.push(collector),
                Err(mistakes) => lines.extend(self.told(mistakes.under(&format!("collectors[{n}]")))),
            }
        }
        if let Some(ms) = self.duration
            && !(1..=DURATION_MS_MAX).contains(&ms)
        {
            lines.push(format!(
                "--duration: \"{ms} ms\" is out of range; write a time from 1 s to a year"
            ));
        }
        let policy = Policy::try_from(self.policy());
        if let (Ok(policy), true) = (&policy, lines.is_empty()) {
            return Wanted::new(policy.clone(), collectors)
                .map_err(|mistakes| UsageError(self.told(mistakes).collect()));
        }
        lines.extend(policy.err().into_iter().flat_map(|mistakes| self.told(mistakes)));
        Err(UsageError(lines))
    }

    /// When to end by itself.
    pub(crate) fn duration(&self) -> Option<Duration> {
        self.duration.map(Duration::from_millis)
    }

    /// A collector for each `--ntopng`, with its key or none.
    fn collectors(&self, keys: Vec<Option<String>>) -> impl Iterator<Item = wire::Collector> {
        let encoding = Encoding::sent(self.encoding);
        self.ntopng
            .iter()
            .zip(keys)
            .map(move |(endpoint, key)| wire::Collector {
                name: collector_name(endpoint),
                endpoint: endpoint.clone(),
                curve_server_key: key,
                record_ids: Some(self.record_ids),
                records_per_second: self.rate,
                encoding: encoding.into(),
                ..wire::Collector::default()
            })
    }

    fn policy(&self) -> wire::Policy {
        let command_line = match self.command_line {
            None => wire::CommandLine::Unspecified,
            Some(CommandLine::None) => wire::CommandLine::None,
            Some(CommandLine::Redacted) => wire::CommandLine::Redacted,
            Some(CommandLine::Full) => wire::CommandLine::Full,
        };
        let loopback = match self.loopback {
            None => wire::Loopback::Unspecified,
            Some(Loopback::HostAddress) => wire::Loopback::HostAddress,
            Some(Loopback::Omit) => wire::Loopback::Omit,
            Some(Loopback::AsIs) => wire::Loopback::AsIs,
        };
        let mode = if self.failover {
            wire::Mode::Failover
        } else {
            wire::Mode::Mirror
        };
        wire::Policy {
            capture: Some(wire::Capture {
                tcp: None,
                udp: self.no_udp.then_some(false),
                scopes: self.scope.clone(),
                max_flows: self.max_flows,
                active_timeout_ms: self.active_timeout,
                idle_timeout_ms: self.idle_timeout,
                include: self.include.clone(),
                exclude: self.exclude.clone(),
                sampling: self.sample.map(|one_in| wire::Sampling { one_in: Some(one_in) }),
            }),
            enrich: Some(wire::Enrich {
                command_line: command_line.into(),
                containers: Some(wire::Containers {
                    names: self.no_container_names.then_some(false),
                    sockets: self.container_socket.clone(),
                }),
            }),
            export: Some(wire::Export {
                collectors: self
                    .ntopng
                    .iter()
                    .map(|endpoint| collector_name(endpoint))
                    .collect(),
                loopback: loopback.into(),
                mode: mode.into(),
                ..wire::Export::default()
            }),
            buffer: Some(wire::Buffer {
                octets_max: self.buffer,
                ..wire::Buffer::default()
            }),
            ..wire::Policy::default()
        }
    }

    /// A key, or none, for each `--ntopng`.
    fn keys(&self) -> Result<Vec<Option<String>>, String> {
        let wanted = self.ntopng.len();
        let keys = self
            .curve_key
            .iter()
            .map(|text| read_key(text))
            .collect::<Result<Vec<_>, _>>()?;
        match keys.as_slice() {
            [] => Ok(vec![None; wanted]),
            [_, ..] if wanted == 0 => {
                Err("--curve-key: there is no collector it is for; write --ntopng too".into())
            }
            [key] => Ok(vec![Some(key.clone()); wanted]),
            _ if keys.len() == wanted => Ok(keys.into_iter().map(Some).collect()),
            _ => {
                let n = keys.len();
                Err(format!(
                    "--curve-key: there are {n} keys for {wanted} collectors; write one, or one for each --ntopng"
                ))
            }
        }
    }

    /// The mistakes, each with the name of the flag in place of the field's path.
    fn told(&self, mistakes: Mistakes) -> impl Iterator<Item = String> {
        mistakes.into_iter().map(|mistake| {
            let path = flag(&mistake.path).map_or(mistake.path.clone(), str::to_owned);
            Mistake { path, ..mistake }.to_string()
        })
    }
}

/// Name of the collector at `endpoint`: the same in each run, whatever other collectors there are, because its place in
/// what waits on disk is kept under it. Of a host's name as much as fits.
fn collector_name(endpoint: &str) -> String {
    let address = endpoint.strip_prefix("tcp://").unwrap_or(endpoint).to_lowercase();
    let plain = |text: &str| -> String {
        let plain = text.chars().map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        });
        plain.collect::<String>().trim_matches(['-', '.']).to_owned()
    };
    let (host, port) = address.rsplit_once(':').unwrap_or((&address, ""));
    let (mut host, port) = (plain(host), plain(port));
    host.truncate(NAME_OCTETS_MAX - "ntopng--".len() - port.len().min(PORT_OCTETS_MAX));
    let name = format!("ntopng-{}-{port}", host.trim_end_matches(['-', '.']));
    name.trim_end_matches('-').chars().take(NAME_OCTETS_MAX).collect()
}

/// Digits of the highest port.
const PORT_OCTETS_MAX: usize = 5;

/// The flag that sets the field at `path`.
fn flag(path: &str) -> Option<&'static str> {
    const FLAGS: [(&str, &str); 16] = [
        ("capture.include", "--include"),
        ("capture.exclude", "--exclude"),
        ("capture.sampling", "--sample"),
        ("capture.scopes", "--scope"),
        ("capture.maxFlows", "--max-flows"),
        ("capture.activeTimeoutMs", "--active-timeout"),
        ("capture.idleTimeoutMs", "--idle-timeout"),
        ("enrich.commandLine", "--command-line"),
        ("enrich.containers", "--container-socket"),
        ("export.loopback", "--loopback"),
        ("export.mode", "--failover"),
        ("export.collectors", "--ntopng"),
        ("buffer.octetsMax", "--buffer"),
        ("endpoint", "--ntopng"),
        ("curveServerKey", "--curve-key"),
        ("recordsPerSecond", "--rate"),
    ];
    let path = match path.strip_prefix("collectors[") {
        Some(rest) => rest.split_once("].").map_or(path, |(_, field)| field),
        None => path,
    };
    FLAGS
        .iter()
        .find(|(field, _)| path.starts_with(field))
        .map(|&(_, flag)| flag)
}

fn active_help() -> String {
    format!(
        "Longest span that one record of a live flow covers; at most {} s with --ntopng [default: {} s]",
        ACTIVE_TIMEOUT_EXPORTING_MS_MAX / 1000,
        ACTIVE_TIMEOUT_MS_DEFAULT / 1000
    )
}

fn idle_help() -> String {
    format!(
        "Longest silence before a flow ends [default: {} s]",
        IDLE_TIMEOUT_MS_DEFAULT / 1000
    )
}

fn buffer_help() -> String {
    format!(
        "Most octets that wait on disk, such as 512MiB; beyond it the oldest go [default: {} GiB]",
        BUFFER_OCTETS_DEFAULT >> 30
    )
}

fn parse_scope(text: &str) -> Result<wire::Scope, String> {
    let part = match text.split_once('=') {
        Some(("cgroup", path)) => wire::scope::Part::Cgroup(path.to_owned()),
        Some(("netns", path)) => wire::scope::Part::Netns(path.to_owned()),
        _ => return Err("names no part of the host; write cgroup=PATH or netns=PATH".into()),
    };
    Ok(wire::Scope { part: Some(part) })
}

/// Members of a rule, each with its kind before it: `port=80,port=443,process=/usr/bin/*`.
fn parse_rule(text: &str) -> Result<wire::FlowRule, String> {
    let mut rule = wire::FlowRule::default();
    for member in text.split(',') {
        let (kind, value) = member.split_once('=').unwrap_or((member, ""));
        let list = match kind.trim() {
            "cidr" => &mut rule.cidrs,
            "port" => &mut rule.ports,
            "process" => &mut rule.processes,
            "user" => &mut rule.users,
            "cgroup" => &mut rule.cgroups,
            "container" => &mut rule.containers,
            "image" => &mut rule.images,
            "namespace" => &mut rule.namespaces,
            "pod-label" => &mut rule.pod_labels,
            _ => {
                return Err(format!(
                    "has the member {member:?}, which is of no known kind; write {RULE}, each as often as needed"
                ));
            }
        };
        list.push(value.trim().to_owned());
    }
    Ok(rule)
}

/// N of `1/N`.
fn parse_share(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("1/").map(parse_number);
    match number {
        Some(Ok(number)) => Ok(number),
        _ => Err("is no share; write 1/N, such as 1/10".into()),
    }
}

pub(crate) fn parse_number(text: &str) -> Result<u64, String> {
    let digits = text.bytes().all(|octet| octet.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ if digits && !text.is_empty() => Err("is too large; write a smaller number".into()),
        _ => Err("is not a number; write digits only, such as 65536".into()),
    }
}

/// Octets of `1048576`, `512MiB`, `2 GiB`.
fn parse_size(text: &str) -> Result<u64, String> {
    let refused = || "is not a size; write octets, or a number with KiB, MiB, GiB or TiB".to_owned();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit.trim_start() {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err(refused()),
    };
    if number.is_empty() {
        return Err(refused());
    }
    let too_large = || "is too large; write a smaller size".to_owned();
    let number: u64 = number.parse().map_err(|_| too_large())?;
    number.checked_mul(1 << shift).ok_or_else(too_large)
}

/// Milliseconds of `10`, `10s`, `500 ms`, `2m`, `1h`; without a unit it is seconds.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    let refused = || "is not a time; write seconds, or a number with ms, s, m or h".to_owned();
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let ms: u64 = match unit.trim_start() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refused()),
    };
    if number.is_empty() {
        return Err(refused());
    }
    let number: u64 = number
        .parse()
        .map_err(|_| "is too long; write a shorter time".to_owned())?;
    number
        .checked_mul(ms)
        .ok_or_else(|| "is too long; write a shorter time".to_owned())
}

/// The key itself, or what is in the file after `@`, without blanks at its ends.
pub(crate) fn read_key(text: &str) -> Result<String, String> {
    let Some(path) = text.strip_prefix('@') else {
        return Ok(text.to_owned());
    };
    let mut octets = Vec::new();
    let read = File::open(path).and_then(|file| file.take(KEY_FILE_OCTETS_MAX + 1).read_to_end(&mut octets));
    let remedy = "write the key itself, or @ and the path of a file that holds nothing else";
    if let Err(error) = read {
        // A key may begin with @ as well.
        if error.kind() == std::io::ErrorKind::NotFound && text.len() == KEY_OCTETS {
            return Ok(text.to_owned());
        }
        return Err(format!(
            "--curve-key: {text:?} cannot be read ({error}); {remedy}"
        ));
    }
    match String::from_utf8(octets) {
        Ok(content) if content.len() as u64 <= KEY_FILE_OCTETS_MAX => Ok(content.trim().to_owned()),
        _ => Err(format!(
            "--curve-key: {text:?} is a file with something else than a key; {remedy}"
        )),
    }
}

#[cfg(test)]
mod tests;
