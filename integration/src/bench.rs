//! What the agent costs, as one markdown document.
//!
//! Interleaved: in each round a load runs once with nothing attached and once under each other setting, in an order that
//! turns from round to round; a setting is attached before its run and gone after it. Cost is CPU time of both ends of
//! the load, pinned to one CPU. A ratio is one of medians; its spread is that of the rounds' own ratios. Loads run on
//! loopback of this host, under the default `up` policy with its records written to `/dev/null` in their default form, so
//! that names, table, records and their lines are paid for.

mod memory;
mod pipeline;
mod setting;
mod table;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::bpf::{RunTime, Statistics, run_times};
use integration::product::Agent;
use integration::traffic::load::{Cost, Kind};
use integration::traffic::{self, Helper, Truth};
use integration::wait::{self, Stopwatch};
use integration::world::Alone;

use self::setting::Setting;
use self::table::Sample;

/// Longest run of one load: ten times what it takes on the slowest machine seen.
const LOAD_WITHIN: Duration = Duration::from_secs(120);
/// Time after a load in which a probe works off what it saw: an agent's flows leave 1 s after their start.
const AFTERMATH: Duration = Duration::from_millis(1_500);
/// Span over which a probe's CPU time without traffic is measured.
const QUIET: Duration = Duration::from_millis(500);

/// How to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Rounds; a median of fewer than 5 says little.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Loads to run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    only: Vec<Kind>,
    /// Size of the loads in per cent. At 100 each takes about a second.
    #[arg(long, default_value_t = 100)]
    size: u64,
    /// CPU that loads run on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Starts no further round after this many minutes.
    #[arg(long, default_value_t = 25)]
    minutes: u64,
    /// Leaves softflowd out, even when it is installed.
    #[arg(long)]
    no_softflowd: bool,
    /// Open sockets of the memory measurement; 0 leaves it out.
    #[arg(long, default_value_t = 50_000)]
    sockets: usize,
    /// Records of each run from the table to a collector; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    records: u64,
}

/// Operations of a full load.
fn full_count(kind: Kind) -> u64 {
    match kind {
        Kind::Bulk => 40_000,
        Kind::ConnectRequestClose => 40_000,
        Kind::RequestResponse => 150_000,
        Kind::Udp => 400_000,
        Kind::UdpPeers => 300_000,
        Kind::Syscalls => 1_500_000,
    }
}

/// Measures, and prints as it goes.
///
/// # Errors
/// When not root, or a load or an agent fails.
pub(crate) fn bench(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the agent needs root: run this command as root or through sudo"
    );
    ensure!(
        options.rounds > 0,
        "--rounds: 0 rounds measure nothing; write a number from 1 on"
    );
    build()?;
    let _alone = Alone::wait()?;
    let settings = Setting::available(options.no_softflowd);
    let watch = Stopwatch::start();
    println!("# What the agent costs\n");
    println!(
        "Loads on CPU {}, {} rounds, size {} %.\n",
        options.cpu, options.rounds, options.size
    );
    let mut samples: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for (row, &kind) in options.only.iter().enumerate() {
        for round in 0..options.rounds {
            if round > 0 && watch.elapsed() > Duration::from_secs(60 * options.minutes) {
                println!(
                    "*{} minutes are over: {kind:?} has {round} rounds.*\n",
                    options.minutes
                );
                break;
            }
            for turn in 0..settings.len() {
                let column = (round + turn) % settings.len();
                let sample = measure(settings[column], kind, options)
                    .with_context(|| format!("{kind:?}, {}", settings[column].name()))?;
                samples.entry((row, column)).or_default().push(sample);
            }
        }
        table::print_load(kind, &settings, |column| &samples[&(row, column)]);
    }
    if options.only.iter().any(|kind| *kind != Kind::Syscalls) {
        bpf_time(options)?;
    }
    if options.sockets > 0 {
        memory::measure(options.sockets)?;
    }
    if options.records > 0 {
        pipeline::measure(options.rounds.min(5), options.records, options.cpu)?;
    }
    Ok(())
}

/// Builds what is measured, as it is shipped.
fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "build",
            "--release",
            "-p",
            "agentctl",
            "-p",
            "integration",
            "--bins",
        ])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the build failed");
    if cfg!(debug_assertions) {
        println!("*This is a debug build: use `cargo run --release -p integration -- bench`.*\n");
    }
    Ok(())
}

/// One run of a load under a setting.
fn measure(setting: Setting, kind: Kind, options: &Options) -> Result<Sample> {
    let probe = setting.start()?;
    let quiet = Stopwatch::start();
    let before_quiet = probe.cpu_time()?;
    wait::throughout(QUIET, "quiet before a load", || true)?;
    let idle_share = (probe.cpu_time()? - before_quiet).as_secs_f64() / quiet.elapsed().as_secs_f64();
    let before = probe.cpu_time()?;
    let busy = Stopwatch::start();
    let cost = run_load(kind, options)?;
    if setting.has_probe() {
        wait::throughout(AFTERMATH, "aftermath of a load", || true)?;
    }
    let own = (probe.cpu_time()? - before).as_secs_f64() - idle_share * busy.elapsed().as_secs_f64();
    probe.stop()?;
    Ok(Sample {
        load_ns: cost.cpu_ns as f64 / cost.count as f64,
        own_ns: (own * 1e9 / cost.count as f64).max(0.0),
    })
}

fn run_load(kind: Kind, options: &Options) -> Result<Cost> {
    let name = clap::ValueEnum::to_possible_value(&kind).context("every kind has a name")?;
    let mut command = Command::new(traffic::binary());
    command
        .args(["load", "--kind", name.get_name()])
        .args([
            "--count",
            &(full_count(kind) * options.size / 100).max(1).to_string(),
        ])
        .args(["--cpu", &options.cpu.to_string()]);
    let told = Helper::start_command(command)?.wait(LOAD_WITHIN)?;
    match told.as_slice() {
        [Truth::Load(cost)] => Ok(cost.clone()),
        other => anyhow::bail!("a load told {other:?}"),
    }
}

/// Run time of the kernel programs per operation. A pass of its own: the statistics cost time themselves.
fn bpf_time(options: &Options) -> Result<()> {
    println!("## Run time of the kernel programs\n");
    println!("With `kernel.bpf_stats_enabled`, which has a floor of about 60 ns a run.\n");
    println!("| load | ns per operation | of it |");
    println!("|---|---:|---|");
    let _statistics = Statistics::on()?;
    for &kind in &options.only {
        let agent = Agent::start_unread(&[])?;
        let before = run_times(agent.pid())?;
        let cost = run_load(kind, options)?;
        let after = run_times(agent.pid())?;
        agent.interrupt()?;
        let mut spent: Vec<(String, f64)> = after
            .iter()
            .map(|program| spent(program, &before, cost.count))
            .collect();
        spent.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = spent.iter().map(|(_, ns)| ns).sum();
        let of_it: Vec<String> = spent
            .iter()
            .filter(|(_, ns)| *ns >= 1.0)
            .map(|(name, ns)| format!("{name} {ns:.0}"))
            .collect();
        println!("| {} | {total:.0} | {} |", table::title(kind), of_it.join(", "));
    }
    println!();
    Ok(())
}

fn spent(program: &RunTime, before: &[RunTime], count: u64) -> (String, f64) {
    let then = before
        .iter()
        .find(|other| other.name == program.name)
        .map_or(0, |other| other.run_ns);
    (
        program.name.clone(),
        program.run_ns.saturating_sub(then) as f64 / count as f64,
    )
}
