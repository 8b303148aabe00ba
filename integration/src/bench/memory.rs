//! Memory and CPU time with many open sockets that do nothing.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use integration::bpf::{RunTime, Statistics, run_times};
use integration::product::Agent;
use integration::traffic::{self, Helper};
use integration::wait::{self, Stopwatch};

/// Connections of one helper, two sockets each: below a hard limit of 20,000 open files, and of 28,000 local ports.
const CONNECTIONS_PER_HELPER: usize = 8_000;
/// Span that is watched: two active timeouts, so that every socket was read and told at least twice.
const WATCHED: Duration = Duration::from_secs(22);

/// Measures with no socket of ours and with `sockets`, and prints.
pub(super) fn measure(sockets: usize) -> Result<()> {
    println!("## Open sockets that do nothing\n");
    println!(
        "| open sockets | resident memory MiB | KiB more a socket | agent's CPU, % of one | runs of `snap` | ms a run, mean |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    let _statistics = Statistics::on()?;
    let agent = Agent::start_unread(&[])?;
    let bare = watch(&agent)?;
    row(0, &bare, None);
    let helpers = open(sockets)?;
    let full = watch(&agent)?;
    row(sockets, &full, Some(&bare));
    let report = agent.words();
    agent.interrupt()?;
    for helper in helpers {
        helper.finish(wait::PATIENCE * 4)?;
    }
    println!("\n{}\n", report.first().map_or("", String::as_str));
    Ok(())
}

struct Watched {
    resident_octets: u64,
    cpu_share: f64,
    snap: RunTime,
}

fn watch(agent: &Agent) -> Result<Watched> {
    let snap = |times: Vec<RunTime>| {
        let none = RunTime {
            name: String::new(),
            runs: 0,
            run_ns: 0,
        };
        times
            .into_iter()
            .find(|program| program.name.contains("snap"))
            .unwrap_or(none)
    };
    let (cpu, before) = (agent.cpu_time()?, snap(run_times(agent.pid())?));
    let watch = Stopwatch::start();
    wait::throughout(WATCHED, "quiet sockets", || true)?;
    let after = snap(run_times(agent.pid())?);
    Ok(Watched {
        resident_octets: agent.resident_octets()?,
        cpu_share: (agent.cpu_time()? - cpu).as_secs_f64() / watch.elapsed().as_secs_f64(),
        snap: RunTime {
            name: after.name,
            runs: after.runs - before.runs,
            run_ns: after.run_ns - before.run_ns,
        },
    })
}

fn row(sockets: usize, watched: &Watched, bare: Option<&Watched>) {
    let more = bare.map_or_else(
        || "–".to_owned(),
        |bare| {
            let more = watched.resident_octets.saturating_sub(bare.resident_octets);
            format!("{:.2}", more as f64 / 1024.0 / sockets as f64)
        },
    );
    let runs = watched.snap.runs;
    let mean_ms = watched.snap.run_ns as f64 / 1e6 / runs.max(1) as f64;
    println!(
        "| {sockets} | {:.1} | {more} | {:.2} | {runs} | {mean_ms:.2} |",
        watched.resident_octets as f64 / f64::from(1 << 20),
        watched.cpu_share * 100.0,
    );
}

/// Opens at least `sockets` sockets, both ends of connections, each helper at an address of its own.
fn open(sockets: usize) -> Result<Vec<Helper>> {
    let mut left = sockets.div_ceil(2);
    let mut helpers = Vec::new();
    while left > 0 {
        let connections = left.min(CONNECTIONS_PER_HELPER);
        let address = Ipv4Addr::new(127, 0, 2, u8::try_from(helpers.len() + 1)?);
        let mut command = Command::new(traffic::binary());
        command
            .args(["idle", "--listen", &format!("{address}:0")])
            .args(["--connections", &connections.to_string()]);
        let mut helper = Helper::start_command(command)?;
        helper.ready()?;
        helpers.push(helper);
        left -= connections;
    }
    Ok(helpers)
}
