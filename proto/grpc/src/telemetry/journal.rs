//! Log lines for systemd's journal: each has its level in front, and neither time nor colour, because the journal has its own.
//!
//! Source: sd-daemon(3), `<N>` in front of lines; systemd.exec(5), `$JOURNAL_STREAM`.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format};
use tracing_subscriber::registry::LookupSpan;

/// Variable of the environment that says to which socket a service's output goes.
const STREAM_VARIABLE: &str = "JOURNAL_STREAM";
/// Where the standard error output can be looked at.
const STDERR: &str = "/proc/self/fd/2";
/// Priority of an error. Source: syslog(3).
pub(super) const ERROR: u8 = 3;

/// Whether the standard error output of this process goes to the journal.
pub(super) fn is_there() -> bool {
    let told = std::env::var(STREAM_VARIABLE).unwrap_or_default();
    std::fs::metadata(STDERR).is_ok_and(|stderr| is_stream(&told, &stderr))
}

/// `DEVICE:INODE`, both decimal. Children inherit the variable, and may have another output.
fn is_stream(told: &str, output: &Metadata) -> bool {
    told == format!("{}:{}", output.dev(), output.ino())
}

/// Writes each line of `text` with its priority.
pub(super) fn write_lines(to: &mut impl fmt::Write, priority: u8, text: &str) -> fmt::Result {
    text.lines()
        .try_for_each(|line| writeln!(to, "<{priority}>{line}"))
}

/// Formats events for the journal.
pub(super) struct Lines(Format<Full, ()>);

impl Lines {
    pub(super) fn new() -> Self {
        Self(format().without_time().with_level(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        write_lines(&mut writer, priority(*event.metadata().level()), &text)
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("whole").write(octets)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_has_its_level_and_no_time() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(Lines::new())
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!(target: "t", "bad");
            tracing::warn!(target: "t", file = "x", "odd");
            tracing::info!(target: "t", "two\nlines");
            tracing::debug!(target: "t", "why");
        });
        let text = String::from_utf8(written.0.lock().expect("whole").clone()).expect("UTF-8");
        assert_eq!(
            text,
            "<3>t: bad\n<4>t: odd file=\"x\"\n<6>t: two\n<6>lines\n<7>t: why\n"
        );
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        let file = tempfile::tempfile()
            .expect("a file")
            .metadata()
            .expect("its metadata");
        let told = format!("{}:{}", file.dev(), file.ino());
        assert!(is_stream(&told, &file));
        for other in ["", "0:0", &format!("{told}1"), &file.ino().to_string()] {
            assert!(!is_stream(other, &file), "{other:?}");
        }
    }
}
