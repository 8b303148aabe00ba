//! Whether the host at the other end of a TCP connection is still there.
//!
//! In: what the kernel says of the socket, about once a second. Out: a reason to give the connection up, or none. A
//! collector that does not read is no reason: its host acknowledges, if only zero-window probes, and what its kernel
//! holds would arrive twice over another connection.
//! Source: tcp(7); `tcp_get_info` and `tcp_send_probe0` of the kernel.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use flowtilla_agent_core::time::KernelTime;

/// How long sent segments may go without any acknowledgement.
///
/// Some round-trips and retransmissions of any line in use. Half of it gives up lines that lose packets; double it, and
/// records wait that much longer when the collector's host loses power.
pub const DEAD_AFTER: Duration = Duration::from_secs(5);

/// Zero-window probes in a row without an answer. One may be lost on the way; at double, a dead host behind a closed
/// window is found minutes later, for probes come ever more seldom.
pub const PROBES_UNANSWERED_MAX: u8 = 3;

/// What the kernel says of a TCP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TcpFacts {
    /// Segments sent and not acknowledged.
    pub(super) unacked: u32,
    /// Zero-window probes sent since the last acknowledgement.
    pub(super) probes: u8,
    /// Time since the last acknowledgement of any kind.
    pub(super) last_ack: Duration,
}

/// Judges one connection.
#[derive(Debug, Default)]
pub(super) struct Health {
    waiting_since: Option<KernelTime>,
}

impl Health {
    /// Why the connection is dead; `None`: it is not, as far as one can see.
    pub(super) fn judge(&mut self, facts: TcpFacts, now: KernelTime) -> Option<String> {
        if facts.unacked == 0 && facts.probes == 0 {
            self.waiting_since = None;
            return None;
        }
        // The last acknowledgement may be old because nothing was sent since: the time that counts is the later one.
        let since = *self.waiting_since.get_or_insert(now);
        let silent = now.since(since).min(facts.last_ack);
        let suspect = facts.unacked > 0 || facts.probes >= PROBES_UNANSWERED_MAX;
        (suspect && silent >= DEAD_AFTER).then(|| {
            format!(
                "its host has acknowledged nothing for {} s ({} segments on the way, {} probes unanswered)",
                silent.as_secs(),
                facts.unacked,
                facts.probes
            )
        })
    }
}

/// Reads `TCP_INFO` of a socket.
///
/// # Errors
/// What `getsockopt` says: the descriptor is no TCP socket.
pub(super) fn tcp_facts(socket: BorrowedFd<'_>) -> io::Result<TcpFacts> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).expect("a few hundred octets");
    // SAFETY: `info` is writable for `size` octets, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all fields are integers, for which zeros and whatever the kernel wrote are valid.
    let info = unsafe { info.assume_init() };
    Ok(TcpFacts {
        unacked: info.tcpi_unacked,
        probes: info.tcpi_probes,
        last_ack: Duration::from_millis(u64::from(info.tcpi_last_ack_recv)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn facts(unacked: u32, probes: u8, last_ack_s: u64) -> TcpFacts {
        TcpFacts {
            unacked,
            probes,
            last_ack: Duration::from_secs(last_ack_s),
        }
    }

    #[test]
    fn silence_counts_from_what_was_sent_not_from_the_last_acknowledgement() {
        let mut health = Health::default();
        // Idle for a minute, then one segment goes out.
        assert_eq!(health.judge(facts(0, 0, 60), KernelTime(0)), None);
        assert_eq!(health.judge(facts(1, 0, 60), KernelTime(S)), None);
        assert_eq!(health.judge(facts(1, 0, 64), KernelTime(5 * S)), None);
        assert!(health.judge(facts(1, 0, 65), KernelTime(6 * S)).is_some());
    }

    #[test]
    fn any_acknowledgement_keeps_it_alive() {
        let mut health = Health::default();
        for second in 0..60 {
            assert_eq!(health.judge(facts(9, 0, 1), KernelTime(second * S)), None);
        }
        assert_eq!(health.judge(facts(0, 0, 1), KernelTime(61 * S)), None);
        assert_eq!(
            health.judge(facts(1, 0, 60), KernelTime(120 * S)),
            None,
            "counts anew"
        );
    }

    #[test]
    fn closed_window_is_alive_while_probes_are_answered() {
        let mut health = Health::default();
        for second in 0..600 {
            let probes = u8::from(second % 7 == 0);
            assert_eq!(
                health.judge(facts(0, probes, second % 100), KernelTime(second * S)),
                None
            );
        }
        for second in 600..605 {
            assert_eq!(health.judge(facts(0, 3, 100), KernelTime(second * S)), None);
        }
        assert!(health.judge(facts(0, 4, 105), KernelTime(606 * S)).is_some());
    }

    #[test]
    fn kernel_tells_of_a_live_connection() {
        use std::os::fd::AsFd;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let facts = tcp_facts(stream.as_fd()).unwrap();
        assert_eq!((facts.unacked, facts.probes), (0, 0));
        let pipe = std::fs::File::open("/dev/null").unwrap();
        assert!(tcp_facts(pipe.as_fd()).is_err());
    }
}
