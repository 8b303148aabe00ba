//! Requests to a runtime over its Unix socket, each with a connection of its own, bounded in time and octets.
//!
//! In: a path and a target. Out: what JSON the answer holds, or lines of a stream.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::containers::failure::{Failure, REQUEST_WAIT};

/// Longest event: ten times one with labels of 20 KiB. A longer one is passed over.
pub(in super::super) const EVENT_OCTETS_MAX: usize = 256 << 10;
/// What hyper reads ahead, head of the answer included.
const BUFFER_OCTETS_MAX: usize = 64 << 10;

/// An answer that has begun; its connection ends with it.
struct Answer {
    response: Response<Incoming>,
    _connection: AbortOnDropHandle<()>,
}

/// Reads the JSON of an answer of at most `octets_max`.
pub(super) async fn read<T: DeserializeOwned>(
    socket: &Path,
    target: &str,
    octets_max: usize,
) -> Result<T, Failure> {
    let whole = async {
        let answer = ask(socket, target).await?;
        let body = Limited::new(answer.response.into_body(), octets_max);
        body.collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return Failure::TooLong { max: octets_max };
            }
            error
                .downcast::<hyper::Error>()
                .map_or(Failure::Ended, |error| Failure::Connection(*error))
        })
    };
    let body = tokio::time::timeout(REQUEST_WAIT, whole)
        .await
        .map_err(|_| Failure::Late)??;
    serde_json::from_slice(&body.to_bytes()).map_err(Failure::Malformed)
}

/// Sends each line of an endless answer to `lines`; why it ended. It may begin as late as it likes: podman answers with
/// its first event.
pub(super) async fn follow(socket: Arc<PathBuf>, target: String, lines: mpsc::Sender<Vec<u8>>) -> Failure {
    let answer = match ask(&socket, &target).await {
        Ok(answer) => answer,
        Err(failure) => return failure,
    };
    let mut body = answer.response.into_body();
    let mut split = Lines::default();
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Failure::Connection(error),
        };
        let Ok(data) = frame.into_data() else { continue };
        for line in split.take(&data) {
            if lines.send(line).await.is_err() {
                return Failure::Ended;
            }
        }
    }
    Failure::Ended
}

async fn ask(socket: &Path, target: &str) -> Result<Answer, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(Failure::connect)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_OCTETS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(Failure::Connection)?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        let _ = connection.await; // Whoever waits for the answer hears why.
    }));
    let request = Request::get(target)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .expect("targets are ours: ASCII, without blanks");
    let response = sender.send_request(request).await.map_err(Failure::Connection)?;
    if response.status() != StatusCode::OK {
        return Err(Failure::Status(response.status()));
    }
    Ok(Answer {
        response,
        _connection: connection,
    })
}

/// Makes lines of chunks. Invariant: it holds at most [`EVENT_OCTETS_MAX`] octets.
#[derive(Default)]
struct Lines {
    begun: Vec<u8>,
    /// The line is too long: what is left of it is passed over.
    skipping: bool,
}

impl Lines {
    /// Lines that `data` ends, without their line feeds; empty ones and those too long are left out.
    fn take(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        let mut ended = Vec::new();
        let mut parts = data.split(|&octet| octet == b'\n').peekable();
        while let Some(part) = parts.next() {
            if self.begun.len() + part.len() > EVENT_OCTETS_MAX {
                self.skipping = true;
                self.begun = Vec::new();
            } else if !self.skipping {
                self.begun.extend_from_slice(part);
            }
            if parts.peek().is_some() {
                let line = std::mem::take(&mut self.begun);
                if !self.skipping && !line.is_empty() {
                    ended.push(line);
                }
                self.skipping = false;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let taken = chunks.iter().flat_map(|chunk| lines.take(chunk));
        taken.map(|line| String::from_utf8(line).expect("text")).collect()
    }

    #[test]
    fn lines_come_out_whole_however_they_are_cut() {
        assert_eq!(taken(&[b"{a}\n{b}\n"]), ["{a}", "{b}"]);
        assert_eq!(taken(&[b"{", b"a}", b"\n", b"\n\n{b", b"}\n{c}"]), ["{a}", "{b}"]);
        assert_eq!(taken(&[b""]), [""; 0]);
    }

    #[test]
    fn a_line_too_long_is_passed_over_and_nothing_of_it_is_kept() {
        let long = vec![b'x'; EVENT_OCTETS_MAX];
        let mut lines = Lines::default();
        for _ in 0..10 {
            assert!(lines.take(&long).is_empty());
            assert!(lines.begun.len() <= EVENT_OCTETS_MAX);
        }
        assert_eq!(lines.take(b"tail\n{a}\n"), [b"{a}".to_vec()]);
        assert_eq!(
            taken(&[&long, b"\n{b}\n"]).len(),
            2,
            "one of full length is taken"
        );
    }
}
