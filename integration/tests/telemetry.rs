//! Promise: a change can be watched from the operator's command to each agent's hooks as one trace, watching costs nothing when
//! nobody takes it, and `/metrics` says what its page of the documentation says, to this host alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::fleet::{Controller, Hub, Member};
use integration::need;
use integration::otlp::{Receiver, Span};
use integration::wait::{self, PATIENCE, Stopwatch};

/// A span: its service, its name, and those of its parent.
type Spanned = (&'static str, &'static str, Option<(&'static str, &'static str)>);

const POLICY: &str = "apiVersion: flowtilla/v1\nkind: Policy\nname: all\ncapture: {udp: false}\n";
/// What names each span of a deploy: program, what is done, and the span that it is a part of.
const TRACE: [Spanned; 10] = [
    ("agentctl", "deploy", None),
    ("flowtilla-controller", "apply", Some(("agentctl", "deploy"))),
    (
        "flowtilla-controller",
        "commit",
        Some(("flowtilla-controller", "apply")),
    ),
    (
        "flowtilla-controller",
        "offer",
        Some(("flowtilla-controller", "apply")),
    ),
    (
        "flowtilla-agent",
        "judge",
        Some(("flowtilla-controller", "offer")),
    ),
    (
        "flowtilla-agent",
        "adopt",
        Some(("flowtilla-controller", "offer")),
    ),
    ("flowtilla-agent", "persist", Some(("flowtilla-agent", "adopt"))),
    ("flowtilla-agent", "apply", Some(("flowtilla-agent", "adopt"))),
    ("flowtilla-agent", "plan", Some(("flowtilla-agent", "apply"))),
    ("flowtilla-agent", "attach", Some(("flowtilla-agent", "apply"))),
];
/// Longest that a receiver which never answers may hold up a command: what the last spans get, and some for a busy machine.
const HELD_UP_MAX: Duration = Duration::from_secs(3);
/// Longest answer of `/metrics` that is read.
const PAGE_OCTETS_MAX: u64 = 1 << 20;
/// Page of the documentation that names all metrics.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/watching.md");

#[test]
fn a_deploy_is_one_trace_from_the_command_to_each_agents_attach() -> Result<()> {
    if !need::met(&need::WORLD) {
        return Ok(());
    }
    let hub = Hub::build(2)?;
    let receiver = Receiver::start()?;
    let url = receiver.url();
    let flags = ["--metrics", "off", "--otlp", &url];
    let controller = Controller::start_with(&flags)?;
    let members = [
        Member::join_with(&controller, &hub, 0, &[], &flags)?,
        Member::join_with(&controller, &hub, 1, &[], &flags)?,
    ];
    let output = controller.deploy(POLICY, &["--wait=120s", "--otlp", &url])?;
    ensure!(output.status.success(), "{output:?}");

    let of = |spans: &[Span], (service, name): (&str, &str)| -> Vec<Span> {
        let theirs = spans
            .iter()
            .filter(|span| span.service == service && span.name == name);
        theirs.cloned().collect()
    };
    let spans = wait::until(PATIENCE, "every span of the deploy", || {
        let spans = receiver.spans();
        let all = TRACE.iter().all(|(service, name, _)| {
            let least = match (*service, *name) {
                ("flowtilla-agent", _) | (_, "offer") => members.len(),
                _ => 1,
            };
            of(&spans, (service, name)).len() >= least
        });
        Ok(all.then_some(spans))
    })?;
    ensure!(
        receiver.traces().len() == 1,
        "{} traces: {spans:#?}",
        receiver.traces().len()
    );
    for (service, name, parent) in TRACE {
        for span in of(&spans, (service, name)) {
            let Some(parent) = parent else {
                ensure!(span.parent.is_empty(), "{span:?} is a part of something");
                continue;
            };
            let parents = of(&spans, parent);
            let parent = parents.iter().find(|other| other.id == span.parent);
            let parent = parent.with_context(|| format!("{span:?} is a part of none of {parents:#?}"))?;
            ensure!(
                span.times.0 <= span.times.1 && parent.times.0 <= span.times.0,
                "{span:?} begins before {parent:?}"
            );
        }
    }
    // An offer is a span until its ack, and an ack means in force. One clock tells the time of all programs here.
    for offer in of(&spans, ("flowtilla-controller", "offer")) {
        let adopted = of(&spans, ("flowtilla-agent", "adopt"));
        let theirs = adopted.iter().find(|adopt| adopt.parent == offer.id);
        let theirs = theirs.with_context(|| format!("nobody took {offer:?}"))?;
        ensure!(theirs.times.1 <= offer.times.1, "{theirs:?} ends after {offer:?}");
    }
    Ok(())
}

#[test]
fn a_receiver_that_is_down_or_deaf_holds_up_nothing() -> Result<()> {
    // Deaf: connections are made by the kernel, and nobody ever reads them.
    let deaf = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let deaf_url = format!("http://{}", deaf.local_addr()?);
    let down_url = {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        format!("http://{}", closed.local_addr()?)
    };
    let mut controller = Controller::start_with(&["--metrics", "off", "--otlp", &deaf_url])?;
    let timed = |otlp: &str| -> Result<Duration> {
        let watch = Stopwatch::start();
        let output = controller.deploy(POLICY, &["--otlp", otlp])?;
        ensure!(output.status.success(), "--otlp {otlp}: {output:?}");
        Ok(watch.elapsed())
    };
    let off = timed("off")?;
    let (deaf_took, down_took) = (timed(&deaf_url)?, timed(&down_url)?);
    println!("a deploy takes {off:?} untraced, {deaf_took:?} to a deaf receiver, {down_took:?} to none");
    for took in [deaf_took, down_took] {
        ensure!(
            took < off + HELD_UP_MAX,
            "held up for {took:?} instead of {off:?}"
        );
    }
    let watch = Stopwatch::start();
    controller.stop()?;
    let stopped = watch.elapsed();
    ensure!(
        stopped < HELD_UP_MAX + Duration::from_secs(5),
        "stopped in {stopped:?}"
    );

    let refused = {
        let mut command = integration::product::command()?;
        command
            .args(["deploy", "-f", "/nowhere", "--otlp", "localhost:4317"])
            .output()?
    };
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(2) && said.contains("--otlp") && said.contains("http://HOST:4317"),
        "{said}"
    );
    Ok(())
}

#[test]
fn metrics_of_the_controller_are_those_of_their_page() -> Result<()> {
    let mut controller = Controller::start_with(&["--metrics", "127.0.0.1:0"])?;
    let address = served_at(&controller)?;
    let before = scrape(address)?;
    ensure!(
        before.value("flowtilla_controller_revision")? == 0.0,
        "{before:?}"
    );
    ensure!(
        before.value("flowtilla_controller_identities_given_total{call=\"enrol\"}")? == 1.0,
        "the operator enrolled once: {before:?}"
    );
    let output = controller.deploy(POLICY, &[])?;
    ensure!(output.status.success(), "{output:?}");
    let token = controller.must(&["token", "create", "--operator", "somebody"])?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, token)?;
    let file = file.to_string_lossy().into_owned();
    let at = controller.address().to_string();
    let login = ["login", "--controller", &at, "--token-file", &file];
    controller.must(&[&login[..], &["--context", "first"]].concat())?;
    let again = controller.ctl(&[&login[..], &["--context", "second"]].concat())?;
    ensure!(!again.status.success(), "a token was used twice: {again:?}");

    let after = scrape(address)?;
    ensure!(after.value("flowtilla_controller_revision")? == 1.0, "{after:?}");
    ensure!(
        after.value("flowtilla_controller_identities_refused_total{reason=\"token_used\"}")? == 1.0,
        "{after:?}"
    );
    for grows in [
        "flowtilla_controller_store_commit_seconds_count",
        "flowtilla_controller_handshakes_total",
        "flowtilla_controller_cpu_seconds_total",
    ] {
        ensure!(
            after.value(grows)? > before.value(grows)?,
            "{grows}: {before:?}, {after:?}"
        );
    }
    ensure!(
        after.value("flowtilla_controller_resident_octets")? > 1e6,
        "{after:?}"
    );
    ensure!(
        after.value("flowtilla_controller_fleet_answers")? == 1.0,
        "{after:?}"
    );

    let documented = documented("flowtilla_controller_")?;
    ensure!(
        after.families == documented,
        "served and not documented, or the reverse: {:#?}",
        after
            .families
            .symmetric_difference(&documented)
            .collect::<Vec<_>>()
    );
    let labels: BTreeSet<&str> = after.labels.iter().map(String::as_str).collect();
    let bounded = BTreeSet::from(["call", "le", "reason", "state", "version"]);
    ensure!(labels.is_subset(&bounded), "labels {labels:?}");
    for line in controller.log()?.all() {
        ensure!(!line.contains('\u{1b}'), "colours where no terminal is: {line:?}");
    }
    controller.stop()
}

#[test]
fn metrics_are_for_this_host_alone_unless_it_is_said() -> Result<()> {
    // The port is one for the whole machine: others may try it too.
    let controller = wait::until(PATIENCE, "the default port", || {
        Ok(Controller::start_with(&[]).ok())
    })?;
    let address = served_at(&controller)?;
    ensure!(
        address == SocketAddr::from((Ipv4Addr::LOCALHOST, 7444)),
        "{address}"
    );
    scrape(address)?;
    for (table, loopback) in [("tcp", "0100007F:"), ("tcp6", "-")] {
        let path = format!("/proc/{}/net/{table}", controller.pid()?);
        for line in std::fs::read_to_string(&path)?.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, _, state) = (fields.next(), fields.next(), fields.next());
            let local = local.unwrap_or_default();
            // 0A: it listens. Source: proc(5), /proc/net/tcp.
            if state == Some("0A") && local.ends_with(":1D14") {
                ensure!(local.starts_with(loopback), "{path}: {line}");
            }
        }
    }
    Ok(())
}

/// Where the controller says that it serves `/metrics`.
fn served_at(controller: &Controller) -> Result<SocketAddr> {
    let lines = controller.log()?;
    wait::until(PATIENCE, "a page of metrics that is served", || {
        let lines = lines.all();
        let line = lines.iter().find(|line| line.contains("/metrics is served"));
        let address = line.and_then(|line| line.split_once("address=")?.1.split_whitespace().next());
        Ok(address.and_then(|address| address.parse().ok()))
    })
}

/// A page of metrics, taken apart.
#[derive(Debug, Default)]
struct Page {
    /// Name and kind of each family, as it is declared.
    families: BTreeSet<(String, String)>,
    /// Series with their labels, as they are written, and their values.
    series: BTreeMap<String, f64>,
    /// Names of labels.
    labels: BTreeSet<String>,
}

impl Page {
    fn value(&self, series: &str) -> Result<f64> {
        let value = self.series.get(series).copied();
        value.with_context(|| format!("{series} is not served"))
    }

    /// Reads the OpenMetrics text format, as far as it is used: no escapes, no times, no exemplars.
    fn parse(text: &str) -> Result<Self> {
        let mut page = Self::default();
        let mut ended = false;
        for line in text.lines() {
            ensure!(!ended, "{line:?} after the end");
            if let Some(comment) = line.strip_prefix("# ") {
                match comment.split(' ').collect::<Vec<_>>()[..] {
                    ["EOF"] => ended = true,
                    ["TYPE", name, kind] => {
                        let new = page.families.insert((name.to_owned(), kind.to_owned()));
                        ensure!(new, "{name} is declared twice");
                    }
                    ["HELP" | "UNIT", ..] => {}
                    _ => bail!("{line:?} cannot be read"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').context("a line without a value")?;
            let value: f64 = value.parse().with_context(|| format!("{line:?}"))?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').context("labels without an end")?),
                None => (series, ""),
            };
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once('=').context("a label without a value")?;
                let quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
                ensure!(quoted && !value.contains('\\'), "{line:?} cannot be read");
                page.labels.insert(key.to_owned());
            }
            let suffixes = ["", "_total", "_info", "_bucket", "_sum", "_count"];
            let declared = suffixes.iter().filter_map(|suffix| name.strip_suffix(suffix));
            let declared = declared
                .filter(|family| page.families.iter().any(|(declared, _)| declared == family))
                .count();
            ensure!(declared == 1, "{name} belongs to {declared} families");
            let new = page.series.insert(series.to_owned(), value).is_none();
            ensure!(new, "{series} is there twice");
        }
        ensure!(ended, "the page has no end");
        Ok(page)
    }
}

fn scrape(address: SocketAddr) -> Result<Page> {
    let mut line = TcpStream::connect_timeout(&address, PATIENCE)?;
    line.set_read_timeout(Some(PATIENCE))?;
    line.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    line.take(PAGE_OCTETS_MAX).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    ensure!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    Page::parse(body)
}

/// Families with this beginning in the documentation's table: `| name | kind | …`.
fn documented(prefix: &str) -> Result<BTreeSet<(String, String)>> {
    let text = std::fs::read_to_string(PAGE)?;
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        Some((name.to_owned(), cells.next()?.to_owned()))
    });
    let families: BTreeSet<_> = rows.filter(|(name, _)| name.starts_with(prefix)).collect();
    ensure!(!families.is_empty(), "{PAGE} documents nothing of {prefix}");
    Ok(families)
}
