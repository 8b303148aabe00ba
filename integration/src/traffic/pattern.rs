//! The payload of TCP traffic: a head that says how long both ways are, then octets that both ends check.
//!
//! ```text
//! request:  request length u64 BE | reply length u64 BE | client address 16 octets | client port u16 BE | pattern
//! reply:    pattern
//! ```
//! Lengths count all octets of their way, the head included. The address stands there so that a server that asks
//! the kernel for nothing still knows its peer. Pattern: octet `i` of the way is `i mod 251`; 251 is prime, so that a
//! lost or doubled block shows.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

/// Octets of the head.
pub const HEAD_OCTETS: u64 = 34;
/// Period of the pattern.
const PERIOD: usize = 251;
/// Octets moved by one system call; a multiple of nothing, so that blocks never line up with the pattern.
const BLOCK_OCTETS: usize = 65_536;

/// Head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Octets of the request, head included.
    pub request: u64,
    /// Octets of the reply.
    pub reply: u64,
    /// Where the client is.
    pub client: SocketAddr,
}

impl Head {
    /// The octets of the head.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_OCTETS as usize] {
        let address = match self.client.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut octets = [0; HEAD_OCTETS as usize];
        octets[..8].copy_from_slice(&self.request.to_be_bytes());
        octets[8..16].copy_from_slice(&self.reply.to_be_bytes());
        octets[16..32].copy_from_slice(&address.octets());
        octets[32..].copy_from_slice(&self.client.port().to_be_bytes());
        octets
    }

    /// Reads a head.
    ///
    /// # Errors
    /// When the stream ends before, or the request is shorter than its head.
    pub fn read(stream: &mut impl Read) -> Result<Self> {
        let mut octets = [0; HEAD_OCTETS as usize];
        stream
            .read_exact(&mut octets)
            .context("read the request's head")?;
        let number = |at: usize| {
            octets[at..at + 8]
                .iter()
                .fold(0, |n, &octet| n << 8 | u64::from(octet))
        };
        let mut address = [0; 16];
        address.copy_from_slice(&octets[16..32]);
        let head = Self {
            request: number(0),
            reply: number(8),
            client: SocketAddr::new(
                IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
                u16::from_be_bytes([octets[32], octets[33]]),
            ),
        };
        ensure!(
            head.request >= HEAD_OCTETS,
            "a request of {} octets",
            head.request
        );
        Ok(head)
    }
}

/// Writes octets `from..to` of the pattern.
///
/// # Errors
/// When the stream does.
pub fn write(stream: &mut impl Write, from: u64, to: u64) -> Result<()> {
    let block = block();
    let mut at = from;
    while at < to {
        let phase = phase(at);
        let length = (to - at).min(BLOCK_OCTETS as u64) as usize;
        stream
            .write_all(&block[phase..phase + length])
            .with_context(|| format!("write at octet {at} of {to}"))?;
        at += length as u64;
    }
    Ok(())
}

/// Reads octets `from..to` of the pattern and checks each.
///
/// # Errors
/// When the stream ends or fails, or an octet is another.
pub fn read(stream: &mut impl Read, from: u64, to: u64) -> Result<()> {
    let block = block();
    let mut buffer = vec![0; BLOCK_OCTETS];
    let mut at = from;
    while at < to {
        let want = (to - at).min(BLOCK_OCTETS as u64) as usize;
        let length = stream
            .read(&mut buffer[..want])
            .with_context(|| format!("read at octet {at} of {to}"))?;
        ensure!(length > 0, "the stream ended at octet {at} of {to}");
        let phase = phase(at);
        ensure!(
            buffer[..length] == block[phase..phase + length],
            "octets from {at} on are not the pattern"
        );
        at += length as u64;
    }
    Ok(())
}

/// Reads to the end of a stream that must have nothing left.
///
/// # Errors
/// When it has.
pub fn read_end(stream: &mut impl Read) -> Result<()> {
    let length = stream.read(&mut [0]).context("read the end")?;
    ensure!(length == 0, "the stream goes on after what was announced");
    Ok(())
}

fn phase(at: u64) -> usize {
    (at % PERIOD as u64) as usize
}

fn block() -> Vec<u8> {
    (0..BLOCK_OCTETS + PERIOD).map(|i| (i % PERIOD) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_survives_the_way() {
        let head = Head {
            request: 40,
            reply: 1 << 40,
            client: "10.0.0.1:65535".parse().expect("an address"),
        };
        assert_eq!(Head::read(&mut head.encode().as_slice()).expect("whole"), head);
        assert!(Head::read(&mut &head.encode()[..33]).is_err());
    }

    #[test]
    fn pattern_is_checked_octet_by_octet() {
        let mut octets = Vec::new();
        write(&mut octets, 7, 200_000).expect("memory takes all");
        read(&mut octets.as_slice(), 7, 200_000).expect("unchanged");
        octets[150_000] ^= 1;
        assert!(read(&mut octets.as_slice(), 7, 200_000).is_err());
    }
}
