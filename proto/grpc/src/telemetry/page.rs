//! `/metrics`: one page of text over HTTP/1, for Prometheus. What agent and controller have in common of it.
//!
//! Whoever is on this host may connect, and must not keep a program from starting, going on or stopping: the usual address may be
//! taken (then it is tried again), at most [`CONNECTIONS_MAX`] connections are open, each has one request and [`WITHIN`], and a
//! stop waits for none.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Most connections at once; further ones wait. A host has one or two Prometheus, and an operator with curl.
const CONNECTIONS_MAX: usize = 32;
/// How long a connection may last. A page is some 100 KiB on loopback.
const WITHIN: Duration = Duration::from_secs(10);
/// How often an address that is taken is tried again.
const AGAIN_EVERY: Duration = Duration::from_secs(60);
/// Pause after a connection that could not be taken: there are no descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// The page's path.
const PATH: &str = "/metrics";

/// Why no page can be served.
#[derive(Debug, thiserror::Error)]
#[error("--metrics {address}: it cannot listen there; write another address, or off")]
pub struct PageError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Where the page will be served.
#[derive(Debug)]
pub enum Place {
    /// Nowhere.
    Off,
    /// Here.
    At(TcpListener),
    /// Here, once whoever has the address gives it up.
    Taken(SocketAddr),
}

/// Takes the address, before anything else is started. `usual`: the one of a program that was told nothing. Anybody may have it:
/// that keeps no program from its work.
///
/// # Errors
///
/// [`PageError`]: it is an address that somebody wrote.
pub async fn bind(address: Option<SocketAddr>, usual: &str) -> Result<Place, PageError> {
    let Some(address) = address else {
        return Ok(Place::Off);
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Place::At(listener)),
        Err(error) if address.to_string() == usual => {
            tracing::warn!(%address, %error, "/metrics is not served: this address cannot be had; it is tried again each minute, and --metrics names another");
            Ok(Place::Taken(address))
        }
        Err(source) => Err(PageError { address, source }),
    }
}

impl Place {
    /// Serves until it is told to stop. `page`: its text as OpenMetrics has it, or why there is none at this moment.
    pub async fn serve<P, F>(self, page: P, stop: CancellationToken)
    where
        P: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<String, &'static str>> + Send,
    {
        let served = async {
            if let Some(listener) = self.listener(AGAIN_EVERY).await {
                serve(&listener, page).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = served => {}
        }
    }

    async fn listener(self, again_every: Duration) -> Option<TcpListener> {
        match self {
            Self::Off => None,
            Self::At(listener) => Some(listener),
            Self::Taken(address) => loop {
                tokio::time::sleep(again_every).await;
                if let Ok(listener) = TcpListener::bind(address).await {
                    tracing::info!(%address, "/metrics is served");
                    return Some(listener);
                }
            },
        }
    }
}

async fn serve<P, F>(listener: &TcpListener, page: P)
where
    P: Fn() -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<String, &'static str>> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "/metrics: a connection was not taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let page = page.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| answer(request, page.clone()));
            let served = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off, or takes longer, has seen it.
            let _ = tokio::time::timeout(WITHIN, served).await;
        });
    }
}

async fn answer<P, F>(request: Request<Incoming>, page: P) -> Result<Response<Full<Bytes>>, Infallible>
where
    P: Fn() -> F,
    F: Future<Output = Result<String, &'static str>>,
{
    const PLAIN: &str = "text/plain; charset=utf-8";
    let (status, kind, text) = match (request.uri().path(), request.method()) {
        (PATH, &Method::GET | &Method::HEAD) => match page().await {
            Ok(text) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                (StatusCode::OK, kind, text)
            }
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
        },
        (PATH, _) => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, String::new()),
        _ => (StatusCode::NOT_FOUND, PLAIN, format!("it is at {PATH}\n")),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn anywhere() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn page() -> Result<String, &'static str> {
        Ok("# EOF\n".to_owned())
    }

    /// Serves the page; where, and what ends with it.
    async fn served(stop: &CancellationToken) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let place = bind(Some(anywhere()), "").await.expect("a place");
        let Place::At(listener) = &place else {
            panic!("{place:?}")
        };
        let address = listener.local_addr().expect("an address");
        (address, tokio::spawn(place.serve(page, stop.clone())))
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await;
        read.expect("in time").expect("an answer");
        text
    }

    #[tokio::test]
    async fn the_page_is_at_its_path_alone_and_each_connection_has_one_answer() {
        let stop = CancellationToken::new();
        let (address, serving) = served(&stop).await;
        for (request, wanted, end) in [
            (
                "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
                "HTTP/1.1 200",
                "# EOF\n",
            ),
            (
                "GET /metrics?a=b HTTP/1.1\r\nhost: x\r\n\r\n",
                "HTTP/1.1 200",
                "# EOF\n",
            ),
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404", "/metrics\n"),
            (
                "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
                "HTTP/1.1 405",
                "",
            ),
        ] {
            let said = ask(address, request).await;
            assert!(
                said.starts_with(wanted) && said.ends_with(end),
                "{request}: {said}"
            );
        }
        stop.cancel();
        tokio::time::timeout(PATIENCE, serving)
            .await
            .expect("it stops")
            .expect("no panic");
    }

    #[tokio::test]
    async fn half_a_request_holds_no_stop_up() {
        let stop = CancellationToken::new();
        let (address, serving) = served(&stop).await;
        let mut half = TcpStream::connect(address).await.expect("connected");
        half.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n")
            .await
            .expect("sent");
        // It has been taken: whoever comes after it is answered.
        ask(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        stop.cancel();
        tokio::time::timeout(WITHIN / 2, serving)
            .await
            .expect("it waits for no connection")
            .expect("no panic");
    }

    #[tokio::test]
    async fn the_usual_address_may_be_taken_for_a_while_and_a_written_one_may_not() {
        let other = TcpListener::bind(anywhere()).await.expect("a port");
        let taken = other.local_addr().expect("an address");
        let refused = bind(Some(taken), "127.0.0.1:1").await.expect_err("it is taken");
        assert!(
            refused.to_string().contains("write another address, or off"),
            "{refused}"
        );
        let place = bind(Some(taken), &taken.to_string())
            .await
            .expect("it is the usual one");
        assert!(matches!(place, Place::Taken(_)), "{place:?}");
        let coming = tokio::spawn(place.listener(Duration::from_millis(5)));
        drop(other);
        let came = tokio::time::timeout(PATIENCE, coming).await.expect("in time");
        assert!(came.expect("no panic").is_some());
        assert!(matches!(bind(None, "").await, Ok(Place::Off)));
    }
}
