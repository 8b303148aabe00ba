//! Makes traffic and tells the truth about it: the helper of end-to-end tests, see `integration::traffic`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use integration::traffic::{attempt, client, idle, load, server, spawn, steady, udp};

/// Makes traffic and prints its truth, one JSON line a flow.
#[derive(Parser)]
enum Command {
    /// Serves TCP until standard input closes.
    Serve {
        /// Where to listen; port 0: any.
        #[arg(long)]
        listen: SocketAddr,
        /// How to accept and who talks.
        #[arg(long, value_enum)]
        style: server::Style,
        /// Workers of the styles that have some.
        #[arg(long, default_value_t = 4)]
        workers: usize,
    },
    /// Talks on the connection that is standard input.
    Inherited {
        /// The process that accepted it.
        #[arg(long)]
        acceptor: u32,
    },
    /// Connects by TCP.
    Connect(client::Plan),
    /// Sends back whatever comes by TCP until standard input closes.
    Echo {
        /// Where to listen; port 0: any.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Holds TCP connections with steady traffic until standard input closes.
    Steady(steady::Plan),
    /// Answers datagrams until standard input closes.
    UdpServe {
        /// Where to listen; port 0: any.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Exchanges datagrams.
    UdpExchange(udp::Plan),
    /// Connects where it must fail.
    Attempt {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// How often.
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Connects once and ends.
    Once {
        /// Where to.
        to: SocketAddr,
        /// A word for the truth.
        tag: String,
    },
    /// Starts many processes that connect once.
    Storm {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// Processes a second.
        #[arg(long)]
        rate: u32,
        /// Processes in all.
        #[arg(long)]
        total: usize,
    },
    /// Holds idle connections until standard input closes.
    Idle {
        /// Where to listen; port 0: any.
        #[arg(long)]
        listen: SocketAddr,
        /// Connections, two sockets each.
        #[arg(long)]
        connections: usize,
        /// Time between two octets that each sends [default: none is sent].
        #[arg(long)]
        chat_every_ms: Option<u64>,
    },
    /// Prints the seconds of the wall clock for each line of standard input.
    Clock,
    /// Runs a load and prints what it cost.
    Load(load::Plan),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Storms start hundreds of these a second: no command-line parser on their way.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [command, to, tag] = words.as_slice()
        && command == "once"
    {
        return spawn::once(to.parse()?, tag);
    }
    match Command::parse() {
        Command::Serve {
            listen,
            style,
            workers,
        } => server::serve(listen, style, workers),
        Command::Inherited { acceptor } => server::talk_inherited(acceptor),
        Command::Connect(plan) => client::connect(&plan),
        Command::Echo { listen } => steady::serve(listen),
        Command::Steady(plan) => steady::run(&plan),
        Command::UdpServe { listen } => udp::serve(listen),
        Command::UdpExchange(plan) => udp::exchange(&plan),
        Command::Attempt { to, count } => attempt::attempt(to, count),
        Command::Once { to, tag } => spawn::once(to, &tag),
        Command::Storm { to, rate, total } => spawn::storm(to, rate, total),
        Command::Idle {
            listen,
            connections,
            chat_every_ms,
        } => idle::idle(listen, connections, chat_every_ms.map(Duration::from_millis)),
        Command::Clock => {
            for _ in std::io::stdin().lines() {
                // Read as the agent reads it.
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
                integration::process::print_line(&now.tv_sec)?;
            }
            Ok(())
        }
        Command::Load(plan) => load::run(&plan),
    }
}
