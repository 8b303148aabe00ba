//! Where log lines go: to stderr, or, while a table is on the terminal, to its last lines.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::EnvFilter;

/// Log lines that the table shows.
const LINES_MAX: usize = 3;
/// Longest log line that is kept, in octets; a terminal shows less.
const LINE_OCTETS_MAX: usize = 1024;
/// What is logged unless `RUST_LOG` says otherwise.
const LEVEL_DEFAULT: &str = "warn";

/// The last lines of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// The last lines, the oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}

impl Write for Tail {
    /// Takes one line, as the subscriber writes it in one go.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let kept = &octets[..octets.len().min(LINE_OCTETS_MAX)];
        let line = String::from_utf8_lossy(kept).trim_end().to_owned();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends this process's log to where it disturbs nothing.
pub(crate) fn init(table: bool) -> Tail {
    let tail = Tail::default();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVEL_DEFAULT));
    let base = tracing_subscriber::fmt().with_env_filter(filter);
    if table {
        let writer = tail.clone();
        base.with_ansi(false).with_writer(move || writer.clone()).init();
    } else {
        base.with_ansi(io::stderr().is_terminal())
            .with_writer(io::stderr)
            .init();
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let mut tail = Tail::default();
        for n in 0..LINES_MAX + 2 {
            tail.write_all(format!("line {n}\n").as_bytes())
                .expect("it takes everything");
        }
        assert_eq!(tail.lines(), ["line 2", "line 3", "line 4"]);
    }
}
