//! How far something long has come: one line on stderr that is rewritten, or plain lines where stderr is no terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

/// Nothing is told before: most is done by then.
const FIRST_AFTER: Duration = Duration::from_secs(1);
/// Time between two pictures on a terminal.
const REDRAW: Duration = Duration::from_millis(200);
/// Time between two plain lines.
const LINES: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Progress<W: Write = io::Stderr> {
    out: W,
    terminal: bool,
    next: Instant,
    shown: bool,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self::to(io::stderr(), io::stderr().is_terminal(), Instant::now())
    }
}

impl<W: Write> Progress<W> {
    fn to(out: W, terminal: bool, now: Instant) -> Self {
        Self {
            out,
            terminal,
            next: now + FIRST_AFTER,
            shown: false,
        }
    }

    /// Tells it, when it is time.
    pub(super) fn tick(&mut self, text: impl FnOnce() -> String) {
        self.tick_at(Instant::now(), text);
    }

    fn tick_at(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if now < self.next {
            return;
        }
        // That nobody may read it is no failure.
        let _ = if self.terminal {
            self.next = now + REDRAW;
            self.shown = true;
            write!(self.out, "\r\x1b[K{}", text())
        } else {
            self.next = now + LINES;
            writeln!(self.out, "agentctl: {}", text())
        };
        let _ = self.out.flush();
    }

    /// Takes the line away, before something else is written.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(self.out, "\r\x1b[K");
            let _ = self.out.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_within_the_first_second_and_a_line_now_and_then_after_it() {
        let begun = Instant::now();
        let mut progress = Progress::to(Vec::new(), false, begun);
        for second in 0..30 {
            let now = begun + Duration::from_secs(second);
            progress.tick_at(now, || format!("{second}"));
        }
        progress.clear();
        assert_eq!(
            String::from_utf8(progress.out).unwrap(),
            "agentctl: 1\nagentctl: 11\nagentctl: 21\n"
        );
    }

    #[test]
    fn a_terminal_has_one_line_that_goes() {
        let begun = Instant::now();
        let mut progress = Progress::to(Vec::new(), true, begun);
        progress.tick_at(begun + Duration::from_secs(2), || "half".into());
        progress.clear();
        progress.clear();
        assert_eq!(
            String::from_utf8(progress.out).unwrap(),
            "\r\u{1b}[Khalf\r\u{1b}[K"
        );
    }
}
