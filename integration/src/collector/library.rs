//! Shared libraries of Debian, opened at run time: the crate builds without them, and tests that need them skip.

use anyhow::{Context, Result};
use libloading::Library;

/// Opens a library by its loader name, such as `libzmq.so.5`.
///
/// # Errors
/// When the loader does not find it.
pub fn open(name: &str) -> Result<Library> {
    // SAFETY: Debian's libraries named here run no initialisers that ask anything of their process.
    unsafe { Library::new(name) }.with_context(|| format!("open {name}"))
}
