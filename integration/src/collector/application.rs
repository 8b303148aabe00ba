//! The collector as a process of its own: binds as ntopng does, handles one message after the other, and says so.
//!
//! What is said last when it is killed is exactly what it had handled: whatever waited in libzmq's queue and in the
//! kernel is gone with it, as ntopng's is. Ends well when standard input closes, as ntopng does when it is stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::handled::{Handled, Line};
use super::message::Message;
use super::ndpi::Ndpi;
use super::zmq::{ZmqContext, kind};
use crate::process::print_line;
use crate::traffic::server::wait_for_stdin_end;

/// What the collector is like.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Where to bind, `tcp://ADDRESS:PORT`; `*`: any port.
    #[arg(long)]
    pub bind: String,
    /// How long a message takes.
    #[arg(long, default_value_t = 0)]
    pub delay_us: u64,
    /// Messages that wait inside libzmq, with a small kernel buffer beside [default: as ntopng has it].
    #[arg(long)]
    pub queue: Option<i32>,
    /// Takes messages and throws them away, unread.
    #[arg(long)]
    pub discard: bool,
}

/// Handles messages until standard input closes.
///
/// # Errors
/// When the endpoint is taken, a library is missing or standard output is gone.
pub fn run(plan: &Plan) -> Result<()> {
    let ndpi = Ndpi::load()?;
    // Declared in this order: the socket closes before its context ends.
    let context = ZmqContext::new()?;
    let socket = context.socket(kind::SUB)?;
    super::configure(&socket, None, plan.queue)?;
    let endpoint = socket.bind(&plan.bind)?;
    let closed = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&closed);
    std::thread::spawn(move || {
        // Standard input that fails is closed as well.
        let _ = wait_for_stdin_end();
        theirs.store(true, Ordering::Relaxed);
    });
    print_line(&Line::Ready(endpoint))?;
    let delay = Duration::from_micros(plan.delay_us);
    while !closed.load(Ordering::Relaxed) {
        let Some(frames) = socket.receive()? else {
            continue;
        };
        if plan.discard {
            continue;
        }
        let handled = Message::read(&ndpi, &frames).and_then(|message| Handled::try_from(&message));
        std::thread::sleep(delay);
        print_line(&match handled {
            Ok(handled) => Line::Handled(handled),
            Err(error) => Line::Unreadable(format!("{error:#}")),
        })?;
    }
    Ok(())
}
