//! `agentctl tap`: stands in for ntopng, shows what exporters send, counts what was lost on the way.
//!
//! Binds a SUB socket, as ntopng does, and takes every topic. In: messages of two frames. Out: a line a record, event or
//! list of ports ([`show`]); at the end a table of sources ([`ledger`]). Decodes with the agent's own decoder.
//! Invariant: whatever a peer sends, nothing reaches the terminal that moves its cursor.
//! Limit: the receiving crate bounds no frame's length, so bind where only agents can connect.

mod flow;
mod ledger;
mod show;
mod text;

use std::future::Future;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::pin::pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flowtilla_agent_core::encode::header::Topic;
use zeromq::{Endpoint, Host, Socket, SocketRecv, SubSocket, ZmqError};

pub(crate) use self::ledger::Ledger;
use self::show::{Arrival, Printer};
use crate::exit::UsageError;

/// Longest pause, in ms, after a peer was cut off, before the next message is awaited.
///
/// The receiving crate gives no other hint; without it, peers that reconnect at once would fill the screen.
const CUT_OFF_PAUSE: Duration = Duration::from_millis(100);

/// Shows what agents send, as ntopng would receive it.
#[derive(Args, Clone, Debug)]
pub(crate) struct TapArgs {
    /// Where to listen, such as tcp://*:5556 (all IPv4 addresses) or tcp://[::1]:5556
    #[arg(default_value = "tcp://127.0.0.1:5556", value_name = "ENDPOINT")]
    pub(crate) endpoint: String,
    /// How to print: lines for people, or one JSON object a line
    #[arg(short, long, value_enum, default_value_t = Output::Lines)]
    pub(crate) output: Output,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<NonZeroU64>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people.
    #[default]
    Lines,
    /// One JSON object a line.
    Json,
}

/// Listens until `stop` is ready, `args.count` messages have come, or nobody reads `out` any more; then prints the
/// sources.
///
/// # Errors
/// [`UsageError`] when the endpoint is none to listen on; otherwise the address could not be bound, or `out` failed.
///
/// # Cancel safety
/// Dropping it closes the socket; the table of sources is then not printed.
pub(crate) async fn run(
    args: &TapArgs,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Ledger> {
    let endpoint = endpoint(&args.endpoint)?;
    let mut socket = SubSocket::new();
    for topic in Topic::ALL {
        socket.subscribe(topic.name()).await?;
    }
    let bound = socket
        .bind(&endpoint.to_string())
        .await
        .map_err(|error| bind_failed(&endpoint, &error))?;
    let mut ledger = Ledger::default();
    match listen(args, out, stop, &mut socket, &bound, &mut ledger).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ledger),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(ledger),
    }
}

/// Receives and prints. Fails only with `out`.
async fn listen(
    args: &TapArgs,
    out: &mut impl Write,
    stop: impl Future<Output = ()>,
    socket: &mut SubSocket,
    bound: &Endpoint,
    ledger: &mut Ledger,
) -> io::Result<()> {
    let mut stop = pin!(stop);
    let mut printer = Printer::new(args.output, out);
    printer.listening(&bound.to_string())?;
    let begin = tokio::time::Instant::now();
    while args.count.is_none_or(|count| ledger.messages() < count.get()) {
        let received = tokio::select! {
            biased;
            () = &mut stop => break,
            received = socket.recv() => received,
        };
        match received {
            Ok(message) => {
                let arrival = Arrival::decode(&message.into_vec());
                ledger.handle_arrival(&arrival, begin.elapsed());
                printer.arrival(&arrival)?;
            }
            Err(error) => {
                printer.cut_off(&error.to_string())?;
                tokio::time::sleep(CUT_OFF_PAUSE).await;
            }
        }
    }
    printer.summary(ledger)
}

/// Reads `tcp://HOST:PORT`.
fn endpoint(given: &str) -> Result<Endpoint, UsageError> {
    let refuse = |why: &str| {
        let given = text::escape(given);
        Err(UsageError(vec![format!(
            "ENDPOINT: \"{given}\" {why}; write tcp://HOST:PORT, such as tcp://*:5556 or tcp://[::1]:5556"
        )]))
    };
    let Some(rest) = given.strip_prefix("tcp://") else {
        return refuse("does not begin with tcp://");
    };
    let Some((host, port)) = rest.rsplit_once(':') else {
        return refuse("has no port");
    };
    let Ok(port) = port.parse::<u16>() else {
        return refuse("has a port that is no number from 0 to 65535");
    };
    if host == "*" {
        return Ok(Endpoint::Tcp(Host::Ipv4(Ipv4Addr::UNSPECIFIED), port));
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return refuse("has an IPv6 address without brackets");
    }
    match host.parse::<Host>() {
        Ok(Host::Domain(name)) if name.contains(|c: char| !(c.is_alphanumeric() || "-._".contains(c))) => {
            refuse("has a host that is no name")
        }
        Ok(host) => Ok(Endpoint::Tcp(host, port)),
        Err(_) => refuse("has no host"),
    }
}

fn bind_failed(endpoint: &Endpoint, error: &ZmqError) -> anyhow::Error {
    let remedy = match error {
        ZmqError::Network(error) => match error.kind() {
            io::ErrorKind::AddrInUse => "stop the ntopng or tap that listens there, or choose another port",
            io::ErrorKind::AddrNotAvailable => "choose an address of this host, or * for all",
            io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "choose another address or port",
        },
        _ => "choose another address or port",
    };
    anyhow::anyhow!("cannot listen on {endpoint}: {error}; {remedy}")
}

#[cfg(test)]
mod tests;
