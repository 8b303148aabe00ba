//! Structures and numbers that the kernel programs and the agent share (`ebpf/include/flowtilla_abi.h`).
//!
//! Each structure is declared once here; a test of `flowtilla-agent` compares names, offsets and sizes with the BTF of
//! the checked-in kernel object. Decoding is checked: wrong lengths and unknown kinds are errors, never panics.
//! Addresses are 16 octets in network order, IPv4 as `::ffff:a.b.c.d`; ports are in host order; times are
//! nanoseconds of `CLOCK_BOOTTIME`.
#![no_std]

mod decode;
mod event;
mod limits;

pub use decode::{DecodeError, Event, decode};
pub use event::*;
pub use limits::*;
