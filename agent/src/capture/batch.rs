//! The few calls of bpf(2) that aya has no function for: reading and writing maps in batches.
//!
//! Source: `include/uapi/linux/bpf.h`, `union bpf_attr` (the `batch` member and the one of single elements).

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use flowtilla_abi::{SNAP_KEYS_MAX, UdpEntry, UdpPeerKey, UdpPeerValue};
use flowtilla_agent_core::observe::{Cookie, Endpoint};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::CaptureError;

const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
/// Copies values under their spin lock.
pub(super) const F_LOCK: u64 = 4;
/// Elements of one batch: more than the fullest bucket, small enough to stay in cache.
const BATCH: usize = 512;
/// How far the buffers grow for a bucket that does not fit.
const BATCH_MAX: usize = 65_536;

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Calls bpf(2).
///
/// # Safety
/// Every address in `attr` must point to memory of the size the command and the map's key and value sizes ask for.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: `attr` is a live structure of the size passed; the caller answers for the addresses in it.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn fd_number(map: BorrowedFd<'_>) -> u32 {
    map.as_raw_fd().cast_unsigned()
}

/// Reads every element of a hash map whose keys and values are `K` and `V`. An element that is put in or taken out
/// meanwhile may be missed or, when its bucket is read twice, seen again.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn each<K, V>(
    map: BorrowedFd<'_>,
    elem_flags: u64,
    mut f: impl FnMut(&K, &V),
) -> Result<(), CaptureError>
where
    K: FromBytes + Copy,
    V: FromBytes + Copy,
{
    let mut keys = vec![K::new_zeroed(); BATCH];
    let mut values = vec![V::new_zeroed(); BATCH];
    let mut cursor: Option<u32> = None;
    loop {
        let from = cursor.unwrap_or(0);
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: if cursor.is_none() {
                0
            } else {
                &raw const from as u64
            },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map_fd: fd_number(map),
            elem_flags,
            flags: 0,
        };
        // SAFETY: keys and values hold `count` elements of the map's sizes, both cursors are u32 as hash maps want, and
        // all four live longer than the call.
        let end = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && keys.len() < BATCH_MAX => {
                keys.resize(keys.len() * 2, K::new_zeroed());
                values.resize(values.len() * 2, V::new_zeroed());
                continue;
            }
            Err(source) => {
                return Err(CaptureError::Call {
                    what: "reading a map in batches",
                    source,
                });
            }
        };
        let found = (attr.count as usize).min(keys.len());
        keys[..found]
            .iter()
            .zip(&values[..found])
            .for_each(|(key, value)| f(key, value));
        if end {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Writes the cookies of the next snap into the array `due`, from index 0.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn write_due(map: BorrowedFd<'_>, cookies: &[Cookie]) -> Result<(), CaptureError> {
    let cookies = &cookies[..cookies.len().min(SNAP_KEYS_MAX)];
    let keys: Vec<u32> = (0..).take(cookies.len()).collect();
    let values: Vec<u64> = cookies.iter().map(|cookie| cookie.0).collect();
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(cookies.len()).unwrap_or(0),
        map_fd: fd_number(map),
        ..BatchAttr::default()
    };
    // SAFETY: keys are u32 and values u64 as the array map `due` has them, `count` of each, and both live on.
    unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.map_err(|source| CaptureError::Call {
        what: "writing the list of due sockets",
        source,
    })
}

/// Takes one peer out of the peer map; `None`: it is not there.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn take_peer(
    map: BorrowedFd<'_>,
    cookie: Cookie,
    peer: &Endpoint,
) -> Result<Option<UdpPeerValue>, CaptureError> {
    let remote = match peer.address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let key = UdpPeerKey {
        cookie: cookie.0,
        remote: remote.octets(),
        remote_port: peer.port,
        pad: [0; 6],
    };
    take(map, &key, "forgetting a UDP peer")
}

/// Takes a UDP socket's entry out, with the first peer that is counted in it; `None`: it is not there.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn take_first_peer(
    map: BorrowedFd<'_>,
    cookie: Cookie,
) -> Result<Option<UdpPeerValue>, CaptureError> {
    let taken: Option<UdpEntry> = take(map, &cookie.0, "forgetting a UDP socket of nobody's")?;
    Ok(taken.map(|entry| UdpPeerValue {
        tuple: entry.tuple,
        counters: entry.counters,
    }))
}

/// Puts one element in, or in the place of one with this key.
///
/// # Errors
/// [`CaptureError::Call`]; that of a full map is `E2BIG`.
pub(super) fn put<K, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    what: &'static str,
) -> Result<(), CaptureError>
where
    K: IntoBytes + Immutable,
    V: IntoBytes + Immutable,
{
    let mut attr = ElementAttr {
        map_fd: fd_number(map),
        key: key.as_bytes().as_ptr() as u64,
        value: value.as_bytes().as_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: key and value are as long as those of the map (the callers pass its types) and live longer than the call.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map_err(|source| CaptureError::Call { what, source })
}

/// Takes one element out; `None`: it is not there.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn take<K, V>(map: BorrowedFd<'_>, key: &K, what: &'static str) -> Result<Option<V>, CaptureError>
where
    K: IntoBytes + Immutable,
    V: FromBytes + IntoBytes,
{
    let mut value = V::new_zeroed();
    let mut attr = ElementAttr {
        map_fd: fd_number(map),
        key: key.as_bytes().as_ptr() as u64,
        value: value.as_mut_bytes().as_mut_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: key and value are as long as those of the map (the callers pass its types) and live longer than the call.
    match unsafe { bpf(MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(CaptureError::Call { what, source }),
    }
}

/// Deletes one element by its key's octets; one that is not there is fine.
///
/// # Errors
/// [`CaptureError::Call`].
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8], what: &'static str) -> Result<(), CaptureError> {
    let mut attr = ElementAttr {
        map_fd: fd_number(map),
        key: key.as_ptr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `key` is as long as the map's key (the callers pass its structure) and lives longer than the call.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(source) => Err(CaptureError::Call { what, source }),
    }
}
