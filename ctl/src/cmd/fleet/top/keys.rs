//! Keys that are pressed, one at a time, as long as the terminal is in the mode that the screen has put it in.

use std::io::{self, Stdin};
use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Octets that are read at a time: what is pasted is no key.
const OCTETS: usize = 16;

/// The keyboard; none where stdin is no terminal.
pub(crate) struct Keys(Option<AsyncFd<Stdin>>);

impl Keys {
    pub(crate) fn open() -> Self {
        let stdin = io::stdin();
        let terminal = io::IsTerminal::is_terminal(&stdin).then_some(stdin);
        // What cannot be waited for gives no keys; signals end the command all the same.
        Self(terminal.and_then(|stdin| AsyncFd::register_with_interest(stdin, Interest::READABLE).ok()))
    }

    /// Waits for a key.
    ///
    /// # Cancel safety
    ///
    /// None is lost.
    pub(crate) async fn next(&mut self) -> char {
        loop {
            let Some(stdin) = &self.0 else {
                return std::future::pending().await;
            };
            let Ok(mut ready) = stdin.readable().await else {
                self.0 = None;
                continue;
            };
            let mut octets = [0; OCTETS];
            // There is something: it does not wait. Only what this program reads is taken from the terminal.
            let read = rustix::io::read(stdin.get_ref().as_fd(), &mut octets);
            ready.clear_ready();
            match read {
                // Arrows and the like are several octets.
                Ok(1) => return octets[0].into(),
                Ok(0) => self.0 = None,
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => self.0 = None,
            }
        }
    }
}
