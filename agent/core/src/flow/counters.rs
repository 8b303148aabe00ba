//! From the kernel's counters to IP octets, TCP flags and end reasons. Pure arithmetic, nothing kept.
//!
//! The kernel counts payload octets and segments; headers are added here. `ip` is 20 or 40 by the family on the wire
//! (an IPv4-mapped address is IPv4), `hl` the TCP header of every segment of an established connection, options
//! included:
//!
//! ```text
//! sent     packets = segs_out + tw + pas      octets = bytes_sent            + packets*(ip + hl) + syn
//! received packets = segs_in  + tw            octets = bytes_received - done + packets*(ip + hl) + syn
//! sent     payload = bytes_sent - bytes_retrans
//! received payload = bytes_received - done
//! ```
//!
//! `done`: a FIN was received, which `bytes_received` counts as one octet. `tw`: the socket left FIN_WAIT2 for a
//! mini-socket, which gets the peer's FIN and acknowledges it unseen. `pas`: a passive child's SYN-ACK is the listener's.
//!
//! `syn` is what a SYN's header has beyond `hl`: MSS, SACK permitted and window scale with their padding, 8 octets;
//! 12 without timestamps, because then SACK permitted needs padding of its own and `hl` is 20. It is counted
//!
//! - once a direction for a connection that stands, if anything went that way;
//! - for each SYN sent by an attempt that has no answer yet (there every segment sent is a SYN), and for those SYNs
//!   sent again before the connection stood that are known: retransmissions seen in SYN_SENT, or in ESTABLISHED
//!   while no payload octet was sent again;
//! - never for what an attempt receives before it stands: that is a reset, whose header is 20 octets and no option.
//!
//! The kernel counts segments in 32 bits, which one direction of a fast connection goes through in an hour or two: the count
//! that is nearest to what was seen before is meant. Octets do not wrap. Retransmissions of more than 2^32 segments would.
//!
//! Not seen, as measured: SACK options received, payload received twice, SYN-ACKs sent again.
//! Source: `tcp_connect_init`, `tcp_syn_options`, `tcp_create_openreq_child`, `tcp_segs_in` of Linux 6.18; compared
//! with the wire over 2,436 sockets.

use std::net::IpAddr;

use flowtilla_abi as abi;

use super::sides::Sides;
use crate::flow::record::{Counts, EndReason};
use crate::observe::{TcpObservation, TcpRole, TcpState, UdpCounters};

const IPV4_HEADER_OCTETS: u64 = 20;
const IPV6_HEADER_OCTETS: u64 = 40;
const TCP_HEADER_OCTETS: u64 = 20;
const SYN_EXTRA_OCTETS: u64 = 8;
const SYN_EXTRA_OCTETS_NO_TIMESTAMPS: u64 = 12;

/// TCP flags as in a header.
pub(super) mod flag {
    pub(in crate::flow) const FIN: u8 = 1;
    pub(in crate::flow) const SYN: u8 = 2;
    pub(in crate::flow) const RST: u8 = 4;
    pub(in crate::flow) const PSH: u8 = 8;
    pub(in crate::flow) const ACK: u8 = 16;
}

const EPIPE: u32 = 32;
const EACCES: u32 = 13;
const ENETUNREACH: u32 = 101;
const ECONNRESET: u32 = 104;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;
const EHOSTUNREACH: u32 = 113;

/// What a TCP socket sent and received. `syns_again`: SYNs it is known to have sent more than once; `before`: what was seen of
/// this connection until now, whose packets tell how often the kernel's counts have gone round.
pub(super) fn tcp(seen: &TcpObservation, syns_again: u32, before: Sides) -> Sides {
    let counters = &seen.counters;
    let has = |flag: u8| u64::from(counters.flags & flag != 0);
    let (done, tw) = (has(abi::tcp_flag::DONE), has(abi::tcp_flag::TIMEWAIT));
    let pas = u64::from(seen.role == TcpRole::Passive);
    let ip = match seen.tuple.local.address {
        IpAddr::V4(_) => IPV4_HEADER_OCTETS,
        IpAddr::V6(_) => IPV6_HEADER_OCTETS,
    };
    let hl = u64::from(counters.header_octets).max(TCP_HEADER_OCTETS);
    let syn = if hl == TCP_HEADER_OCTETS {
        SYN_EXTRA_OCTETS_NO_TIMESTAMPS
    } else {
        SYN_EXTRA_OCTETS
    };
    let unanswered = is_attempt(seen);

    let packets_out = unwound(counters.segs_out, tw + pas, before.sent.packets);
    let syns_out = match (packets_out, unanswered) {
        (0, _) => 0,
        (_, true) => packets_out,
        (_, false) => 1 + u64::from(syns_again),
    };
    let packets_in = unwound(counters.segs_in, tw, before.received.packets);
    let (header_in, syns_in) = if unanswered {
        (TCP_HEADER_OCTETS, 0)
    } else {
        (hl, u64::from(packets_in > 0))
    };
    let payload_in = counters.bytes_received.saturating_sub(done);
    Sides {
        sent: Counts {
            octets: counters
                .bytes_sent
                .saturating_add(packets_out * (ip + hl) + syns_out * syn),
            packets: packets_out,
            payload: counters.bytes_sent.saturating_sub(counters.bytes_retrans),
        },
        received: Counts {
            octets: payload_in.saturating_add(packets_in * (ip + header_in) + syns_in * syn),
            packets: packets_in,
            payload: payload_in,
        },
    }
}

/// A count of 32 bits and `more` as the number nearest to `before`.
fn unwound(count: u32, more: u64, before: u64) -> u64 {
    let once = u64::from(count) + more;
    let further = (once as u32).wrapping_sub(before as u32).cast_signed();
    // Less than nothing: it has not gone round once.
    before.checked_add_signed(i64::from(further)).unwrap_or(once)
}

/// What a UDP socket and one peer sent each other: the kernel side counts IP octets itself.
pub(super) fn udp(counters: &UdpCounters) -> Sides {
    Sides {
        sent: Counts {
            octets: counters.octets_out,
            packets: counters.packets_out,
            payload: counters.payload_out,
        },
        received: Counts {
            octets: counters.octets_in,
            packets: counters.packets_in,
            payload: counters.payload_in,
        },
    }
}

/// Whether it is a connection attempt that has not been answered (or was, by a reset).
fn is_attempt(seen: &TcpObservation) -> bool {
    seen.state == TcpState::SynSent && seen.established.is_none()
}

/// SYNs sent again, when this sight can tell.
pub(super) fn syns_again(seen: &TcpObservation) -> Option<u32> {
    let tells = seen.role == TcpRole::Active
        && (is_attempt(seen) || (seen.state == TcpState::Established && seen.counters.bytes_retrans == 0));
    tells.then_some(seen.counters.retransmits)
}

/// Why a TCP socket reached CLOSE, by the state it left and its error.
pub(super) fn end_reason(left: TcpState, error: u32) -> EndReason {
    match (left, error) {
        (TcpState::SynSent, ECONNREFUSED) => EndReason::Refused,
        (TcpState::SynSent, EHOSTUNREACH | ENETUNREACH | EACCES) => EndReason::Unreachable,
        (_, ECONNRESET | EPIPE) => EndReason::Reset,
        (_, ETIMEDOUT) => EndReason::TimedOut,
        _ => EndReason::EndOfFlow,
    }
}

/// What the flags of both ends are derived from.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlagFacts {
    pub(super) role: TcpRole,
    pub(super) state: TcpState,
    /// Bits of [`abi::tcp_flag`].
    pub(super) kernel_flags: u8,
    /// Segments left after CLOSE.
    pub(super) late: bool,
    pub(super) ended: Option<EndReason>,
    pub(super) seen: Sides,
}

/// TCP flags that this end sent and received.
///
/// A socket that leaves ESTABLISHED or CLOSE_WAIT for CLOSE without an error was aborted by its process: a reset was
/// sent. What cannot be told from states and counters (URG, ECE, CWR) is absent.
pub(super) fn flags(facts: &FlagFacts) -> (u8, u8) {
    use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, SynSent, TimeWait};
    let (mut sent, mut received) = (0, 0);
    let seen = facts.seen;
    let has = |bit: u8| facts.kernel_flags & bit != 0;
    let stands = facts.state != SynSent;
    if stands {
        sent |= flag::ACK;
        received |= flag::ACK;
    }
    match facts.role {
        TcpRole::Active => {
            sent |= flag::SYN;
            received |= if stands { flag::SYN } else { 0 };
        }
        TcpRole::Passive => {
            sent |= flag::SYN;
            received |= flag::SYN;
        }
        TcpRole::Unknown | TcpRole::Listener => {}
    }
    sent |= if seen.sent.payload > 0 { flag::PSH } else { 0 };
    received |= if seen.received.payload > 0 { flag::PSH } else { 0 };
    if matches!(facts.state, FinWait1 | FinWait2 | TimeWait | Closing | LastAck) {
        sent |= flag::FIN;
    }
    if matches!(facts.state, CloseWait | Closing | LastAck | TimeWait)
        || has(abi::tcp_flag::DONE)
        || has(abi::tcp_flag::TIMEWAIT)
    {
        received |= flag::FIN;
    }
    let aborted = facts.ended == Some(EndReason::EndOfFlow) && matches!(facts.state, Established | CloseWait);
    if facts.late || aborted {
        sent |= flag::RST;
    }
    match facts.ended {
        Some(EndReason::Refused) => received |= flag::RST | flag::ACK,
        Some(EndReason::Reset) => received |= flag::RST,
        _ => {}
    }
    (sent, received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::world::{active, end, ms, tcp as established, tuple};
    use crate::observe::TcpObservation;

    fn octets(seen: &TcpObservation) -> (u64, u64) {
        let sides = tcp(seen, syns_again(seen).unwrap_or(0), Sides::default());
        (sides.sent.octets, sides.received.octets)
    }

    fn attempt(syns: u32) -> TcpObservation {
        let mut seen = active(1);
        seen.established = None;
        seen.state = TcpState::SynSent;
        seen.counters.segs_out = syns;
        seen.counters.segs_in = 0;
        seen.counters.retransmits = syns - 1;
        seen
    }

    #[test]
    fn handshake_is_three_segments_with_longer_syns() {
        let opener = active(1);
        let child = established(2, TcpRole::Passive, tuple("192.0.2.9:443", "10.0.0.1:40000"));
        assert_eq!(octets(&opener), (60 + 52, 60));
        assert_eq!(octets(&child), (60, 60 + 52));
    }

    #[test]
    fn header_is_twenty_octets_longer_in_ipv6_and_not_for_mapped_addresses() {
        let six = established(
            1,
            TcpRole::Active,
            tuple("[2001:db8::1]:4000", "[2001:db8::2]:80"),
        );
        assert_eq!(octets(&six), (80 + 72, 80));
        assert!(
            end("[::ffff:10.0.0.1]:1").address.is_ipv6(),
            "observe.rs makes these IPv4"
        );
    }

    #[test]
    fn syn_without_timestamps_has_twelve_octets_more_than_other_segments() {
        let mut seen = active(1);
        seen.counters.header_octets = 20;
        assert_eq!(octets(&seen), (52 + 40, 52));
    }

    #[test]
    fn fin_received_is_no_payload() {
        let mut seen = active(1).moved(10, 101);
        seen.counters.flags = abi::tcp_flag::DONE;
        let sides = tcp(&seen, 0, Sides::default());
        assert_eq!(sides.received.payload, 100);
        assert_eq!(sides.received.octets, 100 + 2 * 52 + 8);
    }

    #[test]
    fn mini_socket_adds_a_segment_each_way() {
        let mut seen = active(1).moved(10, 10);
        let before = tcp(&seen, 0, Sides::default());
        seen.counters.flags = abi::tcp_flag::TIMEWAIT;
        let after = tcp(&seen, 0, Sides::default());
        assert_eq!(after.minus(before).octets(), 2 * 52);
        assert_eq!(after.minus(before).packets(), 2);
    }

    #[test]
    fn payload_sent_again_is_octets_but_not_payload() {
        let mut seen = active(1).moved(3000, 0);
        seen.counters.bytes_retrans = 1000;
        seen.counters.retransmits = 1;
        let sides = tcp(&seen, syns_again(&seen).unwrap_or(0), Sides::default());
        assert_eq!(sides.sent.payload, 2000);
        assert_eq!(sides.sent.octets, 3000 + 3 * 52 + 8);
    }

    #[test]
    fn attempt_without_answer_has_whole_syns_and_no_octet_back() {
        assert_eq!(octets(&attempt(1)), (60, 0));
        assert_eq!(octets(&attempt(3)), (180, 0));
    }

    #[test]
    fn refused_attempt_gets_a_bare_reset() {
        let mut seen = attempt(1);
        seen.counters.segs_in = 1;
        assert_eq!(octets(&seen), (60, 40));
    }

    #[test]
    fn connection_that_needed_two_syns_has_both() {
        let mut seen = active(1);
        seen.counters.segs_out = 3;
        seen.counters.retransmits = 1;
        assert_eq!(octets(&seen), (60 + 60 + 52, 60));
    }

    #[test]
    fn segment_never_sent_has_no_octets() {
        let mut seen = attempt(1);
        seen.counters.segs_out = 0;
        assert_eq!(octets(&seen), (0, 0));
    }

    #[test]
    fn absurd_counters_do_not_overflow() {
        let mut seen = active(1);
        seen.counters.bytes_sent = u64::MAX;
        seen.counters.bytes_received = u64::MAX;
        seen.counters.bytes_retrans = u64::MAX;
        seen.counters.segs_out = u32::MAX;
        seen.counters.segs_in = u32::MAX;
        seen.counters.header_octets = u16::MAX;
        seen.counters.flags = u8::MAX;
        let sides = tcp(&seen, u32::MAX, Sides::default());
        assert_eq!((sides.sent.octets, sides.sent.payload), (u64::MAX, 0));
    }

    #[test]
    fn end_reason_tells_attempts_that_failed() {
        let attempts = [
            (ECONNREFUSED, EndReason::Refused),
            (ETIMEDOUT, EndReason::TimedOut),
            (EHOSTUNREACH, EndReason::Unreachable),
            (ENETUNREACH, EndReason::Unreachable),
            (EACCES, EndReason::Unreachable),
            (ECONNRESET, EndReason::Reset),
            (0, EndReason::EndOfFlow),
        ];
        for (error, reason) in attempts {
            assert_eq!(end_reason(TcpState::SynSent, error), reason, "error {error}");
        }
    }

    #[test]
    fn end_reason_of_a_connection_tells_resets_and_time_outs() {
        let ends = [
            (ECONNRESET, EndReason::Reset),
            (EPIPE, EndReason::Reset),
            (ETIMEDOUT, EndReason::TimedOut),
            (EHOSTUNREACH, EndReason::EndOfFlow),
            (0, EndReason::EndOfFlow),
        ];
        for (error, reason) in ends {
            assert_eq!(end_reason(TcpState::Established, error), reason, "error {error}");
        }
    }

    #[test]
    fn flags_tell_how_a_connection_went() {
        let of = |seen: &TcpObservation, ended| {
            flags(&FlagFacts {
                role: seen.role,
                state: seen.state,
                kernel_flags: seen.counters.flags,
                late: false,
                ended,
                seen: tcp(seen, 0, Sides::default()),
            })
        };
        const OPEN: u8 = flag::SYN | flag::ACK;
        assert_eq!(of(&active(1), None), (OPEN, OPEN));
        assert_eq!(of(&attempt(1), None), (flag::SYN, 0));
        let refused = of(&attempt(1), Some(EndReason::Refused));
        assert_eq!(refused, (flag::SYN, flag::RST | flag::ACK));
        let mut closed = active(1).ended(ms(9), TcpState::LastAck, 0);
        closed.counters.flags = abi::tcp_flag::DONE;
        let both = OPEN | flag::FIN;
        assert_eq!(of(&closed, Some(EndReason::EndOfFlow)), (both, both));
        let aborted = active(1).ended(ms(9), TcpState::Established, 0);
        assert_eq!(of(&aborted, Some(EndReason::EndOfFlow)), (OPEN | flag::RST, OPEN));
        assert_eq!(of(&aborted, Some(EndReason::Reset)), (OPEN, OPEN | flag::RST));
    }
}
