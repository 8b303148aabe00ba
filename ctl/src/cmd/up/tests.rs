//! The whole command against an agent made of channels.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use clap::Parser;
use flowtilla_agent::top::SharedTop;
use tokio::sync::{mpsc, watch as state};

use super::*;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    args: UpArgs,
}

fn args(words: &[&str]) -> UpArgs {
    Only::try_parse_from(["up"].iter().chain(words))
        .expect("clap takes it")
        .args
}

/// An agent that makes `before` records at once and one more when it is told to stop.
fn agent(before: usize, stopped: &Arc<AtomicUsize>) -> Running {
    let (records, receiver) = mpsc::channel(64);
    for record in samples::all().into_iter().take(before) {
        records.try_send(Arc::new(record)).expect("there is room");
    }
    let (keep, status) = state::channel(samples::status());
    let stopped = Arc::clone(stopped);
    let stop = move || async move {
        stopped.fetch_add(1, Ordering::SeqCst);
        records.send(Arc::new(samples::harmful())).await.ok();
        drop((records, keep));
        samples::status()
    };
    Running {
        attached: samples::report(),
        records: receiver,
        status,
        top: SharedTop::default(),
        stop: Box::new(|| Box::pin(stop())),
    }
}

/// Stdout of a test.
#[derive(Clone, Default)]
struct Pipe {
    written: Arc<Mutex<Vec<u8>>>,
    broken: bool,
}

impl Write for Pipe {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.written
            .lock()
            .expect("no writer panics")
            .extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn run_with(pipe: &Pipe, words: &[&str]) -> (anyhow::Result<Exit>, usize) {
    let stopped = Arc::new(AtomicUsize::new(0));
    let running = agent(3, &stopped);
    let view = View::Stream {
        text: String::new(),
        out: Box::new(pipe.clone()),
        render: lines::render,
    };
    let mut signals = Signals::new().expect("signals can be watched");
    let result = watch(running, view, &mut signals, &args(words), Format::Lines).await;
    (result, stopped.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_end_the_agent_is_stopped_and_its_last_records_are_shown() {
    let pipe = Pipe::default();
    let (result, stopped) = run_with(&pipe, &["--duration=100ms", "--stats"]).await;
    assert_eq!((result.expect("it ends well"), stopped), (Exit::Done, 1));
    let written =
        String::from_utf8(pipe.written.lock().expect("no writer panics").clone()).expect("it is text");
    let mut expected = String::new();
    let records = samples::all();
    records
        .iter()
        .take(3)
        .for_each(|record| lines::render(record, &mut expected));
    lines::render(&samples::harmful(), &mut expected);
    assert_eq!(written, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pipe_ends_it_quietly_and_stops_the_agent() {
    let pipe = Pipe {
        broken: true,
        ..Pipe::default()
    };
    let (result, stopped) = run_with(&pipe, &[]).await;
    assert_eq!((result.expect("it ends well"), stopped), (Exit::Done, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_reader_keeps_nothing_from_ending() {
    let (release, stuck) = std::sync::mpsc::sync_channel(1);
    let out = Stuck(Mutex::new(stuck));
    let stopped = Arc::new(AtomicUsize::new(0));
    let view = View::Stream {
        text: String::new(),
        out: Box::new(out),
        render: lines::render,
    };
    let mut signals = Signals::new().expect("signals can be watched");
    let words = args(&["--duration=100ms"]);
    let result = watch(agent(3, &stopped), view, &mut signals, &words, Format::Lines).await;
    drop(release);
    assert_eq!(
        (result.expect("it ends well"), stopped.load(Ordering::SeqCst)),
        (Exit::Done, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_by_itself_is_a_failure() {
    let stopped = Arc::new(AtomicUsize::new(0));
    let mut running = agent(3, &stopped);
    let (gone, records) = mpsc::channel(1);
    drop(gone);
    running.records = records;
    let view = View::Stream {
        text: String::new(),
        out: Box::new(Pipe::default()),
        render: lines::render,
    };
    let mut signals = Signals::new().expect("signals can be watched");
    let result = watch(running, view, &mut signals, &args(&[]), Format::Lines).await;
    assert!(
        result
            .expect_err("nobody asked for it")
            .to_string()
            .starts_with("the agent ended by itself")
    );
}

#[test]
fn the_format_follows_the_terminal_unless_asked() {
    assert_eq!(format(None, true), Ok(Format::Table));
    assert_eq!(format(None, false), Ok(Format::Lines));
    assert_eq!(format(Some(Format::Json), true), Ok(Format::Json));
    let refused = format(Some(Format::Table), false)
        .expect_err("no terminal")
        .to_string();
    assert!(
        refused.starts_with("--output: \"table\" needs a terminal"),
        "{refused}"
    );
}

/// A pipe whose reader does not read until the other end of the channel is dropped.
struct Stuck(Mutex<std::sync::mpsc::Receiver<()>>);

impl Write for Stuck {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").recv().ok();
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
