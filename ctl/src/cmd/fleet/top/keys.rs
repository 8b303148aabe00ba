//! Keys that are pressed, one at a time, as long as the terminal is in the mode that the screen has put it in.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Octets that are read at a time: what is pasted is no key.
const OCTETS: usize = 16;

/// The keyboard; none where stdin is no terminal.
pub(crate) struct Keys(Option<AsyncFd<OwnedFd>>);

impl Keys {
    /// Begins to wait for keys. Where that cannot be, none comes; signals end the command all the same.
    pub(crate) fn open() -> Self {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(own) = stdin.as_fd().try_clone_to_owned() else {
            return Self(None);
        };
        // SAFETY: it is open, is ours alone, and is closed only when the `AsyncFd` is dropped.
        let waited_for = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        Self(waited_for.ok())
    }

    /// Waits for a key.
    ///
    /// # Cancel safety
    ///
    /// None is lost.
    pub(crate) async fn next(&mut self) -> char {
        loop {
            let Some(keyboard) = &self.0 else {
                return std::future::pending().await;
            };
            let Ok(mut ready) = keyboard.readable().await else {
                self.0 = None;
                continue;
            };
            let mut octets = [0; OCTETS];
            // There is something, so this does not wait: nobody else reads the terminal of a command in the foreground.
            let read = rustix::io::read(keyboard.get_ref(), &mut octets);
            ready.clear_ready();
            match read {
                // Arrows and the like are several octets.
                Ok(1) => return octets[0].into(),
                Ok(2..) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Ok(0) | Err(_) => self.0 = None,
            }
        }
    }
}
