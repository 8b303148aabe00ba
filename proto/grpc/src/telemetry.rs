//! Log lines and traces of one program: where they go, and how a trace goes on in another program.
//!
//! Log: stderr, coloured on a terminal only; when that is systemd's journal, as the journal wants lines ([`journal`]). Traces: spans of our own crates over OTLP (gRPC), when an address is given; else
//! no span is ever made. Spans are at DEBUG, so that the log does not repeat them, and whatever INFO says inside one goes with it.
//! A receiver that is down, slow or deaf costs nothing but its spans: at most [`QUEUE_SPANS_MAX`] wait, what comes then is
//! dropped; a thread of its own sends them; the last ones get [`FLUSH_WAIT`].
//! A `traceparent` of somebody else is untrusted: [`continue_from`] takes it only when it is exactly what the standard says.
//! Source: W3C Trace Context §3.2; OpenTelemetry, OTLP/gRPC.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::{SpanContext, TraceContextExt as _, TraceState, TracerProvider as _};
use opentelemetry::{Context, KeyValue, SpanId, TraceFlags, TraceId};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use tonic::transport::Uri;
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt as log};

mod journal;
pub mod page;

/// Variable of the environment that says the same as the flag `--otlp`. Source: OpenTelemetry, OTLP exporter configuration.
pub const OTLP_VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Most spans that wait for the receiver.
///
/// Some two mebibytes. Half of it tears holes into the trace of a change for some thousand agents; double it, and a receiver
/// that is down costs that much more memory.
pub const QUEUE_SPANS_MAX: usize = 4_096;
/// How long the last spans may take when the program ends.
///
/// What a person does not mind at a prompt. Half of it loses them over a long line; double it, and it shows.
pub const FLUSH_WAIT: Duration = Duration::from_secs(1);
/// Spans of one call to the receiver.
const BATCH_SPANS: usize = 512;
/// How long spans wait for more of them.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How long one call to the receiver may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Port of OTLP over gRPC.
const PORT: u16 = 4317;
/// Beginnings of the names of our own crates: nobody else's spans are traced.
const OURS: [&str; 2] = ["flowtilla", "agentctl"];

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Otlp(Option<String>);

/// Which program this is.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Name of the host; empty: it is not said.
    pub host: &'a str,
}

/// Traces that are on their way. Without it none are sent.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Traces cannot be sent as it was said.
#[derive(Debug, thiserror::Error)]
#[error("--otlp {address}: {why}; see the variables OTEL_EXPORTER_OTLP_*, or write off")]
pub struct TelemetryError {
    address: String,
    why: String,
}

impl Otlp {
    /// Reads `http://HOST[:PORT]`, or `off`, or nothing, which is off too.
    ///
    /// # Errors
    ///
    /// What is wrong with it and what to write, as the end of a sentence that begins with the value.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text == "off" {
            return Ok(Self(None));
        }
        let wrong = |why: &str| format!("{why}; write http://HOST:{PORT}, or off");
        let uri: Uri = text.parse().map_err(|_| wrong("is no address"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                let why = "asks for TLS, which is not spoken here: have a receiver on this host that passes traces on";
                return Err(wrong(why));
            }
            _ => return Err(wrong("does not begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong("names no host, or a user too"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => PORT,
            Some(rest) => rest
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|&port| port != 0)
                .ok_or_else(|| wrong("has a wrong port"))?,
            None => return Err(wrong("names no host")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("has a path"));
        }
        Ok(Self(Some(format!("http://{}:{port}", authority.host()))))
    }

    /// Whether traces go anywhere.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Display for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("off"))
    }
}

/// Begins to log, when there is a filter for that, and to trace. Once in the life of a process, within a tokio runtime.
///
/// # Errors
///
/// [`TelemetryError`]: nothing has begun.
///
/// # Panics
///
/// When it is called outside of a tokio runtime with traces on.
pub fn start(
    program: Program<'_>,
    otlp: &Otlp,
    filter: Option<EnvFilter>,
) -> Result<Telemetry, TelemetryError> {
    let provider = match &otlp.0 {
        Some(address) => Some(provider(program, address)?),
        None => None,
    };
    let traces = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(program.name))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(filter_fn(is_traced))
    });
    let lines = filter.map(|filter| {
        let lines = log::layer().with_writer(io::stderr);
        match journal::is_there() {
            true => lines
                .with_ansi(false)
                .event_format(journal::Lines::new())
                .with_filter(filter)
                .boxed(),
            false => lines.with_ansi(coloured()).with_filter(filter).boxed(),
        }
    });
    // One that is there already stays: somebody has said where lines go.
    let _ = tracing_subscriber::registry().with(traces).with(lines).try_init();
    Ok(Telemetry(provider))
}

/// Says why a program ends, on stderr; in the journal it is an error.
pub fn complain(text: impl fmt::Display) {
    let mut lines = format!("{text}\n");
    if journal::is_there() {
        let plain = std::mem::take(&mut lines);
        let _ = journal::write_lines(&mut lines, journal::ERROR, &plain); // A String takes all.
    }
    let _ = io::stderr().write_all(lines.as_bytes()); // That nobody may read it is no failure.
}

/// Whether log lines may be coloured: stderr is a terminal, and nobody has asked for none (`NO_COLOR`).
#[must_use]
pub fn coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Telemetry {
    /// Sends what waits, for at most [`FLUSH_WAIT`]. Blocks: not to be called from an async task, and before the runtime ends.
    pub fn stop(self) {
        if let Some(provider) = self.0 {
            // What is not sent by then is lost; that the receiver is down was said before.
            let _ = provider.shutdown_with_timeout(FLUSH_WAIT);
        }
    }
}

/// A span that is a child of what `traceparent` names; none when that is not well formed, so that no trace begins here.
pub fn part_of(traceparent: &str, span: impl FnOnce() -> Span) -> Span {
    if !is_traceparent(traceparent) {
        return Span::none();
    }
    let span = span();
    continue_from(&span, traceparent);
    span
}

/// Makes a span that has not begun a child of what `traceparent` names; leaves it alone when that is not well formed.
pub fn continue_from(span: &Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        let parent = Context::new().with_remote_span_context(parent);
        let _ = span.set_parent(parent); // Nothing is traced then.
    }
}

/// A span within the current one; none where none is current, so that no trace begins here.
pub fn child(span: impl FnOnce() -> Span) -> Span {
    match Span::current().is_disabled() {
        true => Span::none(),
        false => span(),
    }
}

/// Whether it is a `traceparent` as the standard has it.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    parse(text).is_some()
}

/// What names a span to another program; `None`: it is not traced. Begins the span.
#[must_use]
pub fn traceparent_of(span: &Span) -> Option<String> {
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| {
        format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        )
    })
}

/// Version 00 alone: exactly 55 octets, lower-case hexadecimal, no id of zeros.
fn parse(text: &str) -> Option<SpanContext> {
    let lower = |field: &str, digits: usize| {
        let hex = |octet: u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
        field.len() == digits && field.bytes().all(hex)
    };
    let mut fields = text.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if fields.next().is_some() || version != "00" || !lower(trace, 32) || !lower(span, 16) || !lower(flags, 2)
    {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        // Flags of later versions are not ours to pass on.
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

fn is_traced(metadata: &Metadata<'_>) -> bool {
    let ours = OURS.iter().any(|name| metadata.target().starts_with(name));
    let least = match metadata.is_span() {
        true => Level::DEBUG,
        false => Level::INFO,
    };
    ours && *metadata.level() <= least
}

fn provider(program: Program<'_>, address: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = OtlpExporter::builder()
        .with_tonic()
        .with_endpoint(address)
        .with_timeout(CALL_TIMEOUT)
        .build()
        .map_err(|error| TelemetryError {
            address: address.to_owned(),
            why: error.to_string(),
        })?;
    let bounds = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE_SPANS_MAX)
        .with_max_export_batch_size(BATCH_SPANS)
        .with_scheduled_delay(BATCH_WAIT)
        .build();
    let exporter = Told {
        exporter,
        address: address.to_owned(),
        failing: AtomicBool::new(false),
    };
    let processor = BatchSpanProcessor::builder(exporter)
        .with_batch_config(bounds)
        .build();
    let mut facts = vec![KeyValue::new("service.version", program.version)];
    if !program.host.is_empty() {
        facts.push(KeyValue::new("host.name", program.host.to_owned()));
    }
    let resource = Resource::builder()
        .with_service_name(program.name)
        .with_attributes(facts)
        .build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_span_processor(processor)
        .build())
}

/// An exporter that says once when the receiver takes nothing, and when it does again.
#[derive(Debug)]
struct Told {
    exporter: OtlpExporter,
    address: String,
    failing: AtomicBool,
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let outcome = self.exporter.export(batch).await;
        let before = self.failing.swap(outcome.is_err(), Ordering::Relaxed);
        match &outcome {
            Err(error) if !before => tracing::warn!(address = self.address, %error, "traces are not taken"),
            Ok(()) if before => tracing::info!(address = self.address, "traces are taken again"),
            _ => {}
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_taken_only_when_it_is_exactly_one() {
        assert!(is_traceparent(GOOD));
        let context = parse(GOOD).expect("it is one");
        assert!(context.is_remote() && context.is_sampled());
        let not_sampled = format!("{}00", &GOOD[..GOOD.len() - 2]);
        assert!(!parse(&not_sampled).expect("it is one").is_sampled());
        for end in 0..GOOD.len() {
            assert!(!is_traceparent(&GOOD[..end]), "cut to {end} octets");
        }
        for wrong in [
            GOOD.to_uppercase(),
            GOOD.replacen("00-", "01-", 1),
            GOOD.replacen("00-", "ff-", 1),
            format!("{GOOD}-00"),
            format!(" {GOOD}"),
            format!("{GOOD}\n"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace("00f067aa0ba902b7", "+0f067aa0ba902b7"),
            GOOD.replace("00f067aa0ba902b7", "00f067aa0ba902b\u{e4}"),
        ] {
            assert!(!is_traceparent(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn where_traces_go_is_an_address_or_off() {
        let read = |text| Otlp::parse(text).map(|otlp| otlp.to_string());
        for (text, read_as) in [
            ("", "off"),
            ("off", "off"),
            ("http://127.0.0.1:4317", "http://127.0.0.1:4317"),
            ("http://localhost/", "http://localhost:4317"),
            ("http://[::1]:9", "http://[::1]:9"),
        ] {
            assert_eq!(read(text), Ok(read_as.to_owned()), "{text}");
        }
        for (text, why) in [
            ("localhost:4317", "http://"),
            ("https://h:4317", "TLS"),
            ("http://", "is no address"),
            ("http://u:p@h:4317", "a user too"),
            ("http://h:0", "port"),
            ("http://h:65536", "write http://HOST:4317, or off"),
            ("http://h:4317/v1/traces", "path"),
            ("ftp://h", "http://"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_not_traced_names_no_parent() {
        assert_eq!(traceparent_of(&Span::none()), None);
        continue_from(&Span::none(), GOOD); // It has nothing to go on with, and that is no failure.
    }
}
