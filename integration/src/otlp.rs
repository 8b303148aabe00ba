//! A receiver of traces: OpenTelemetry's own service over gRPC, on loopback. It keeps what it gets, and checks nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// Spans that are kept; more are an error of the sender.
const SPANS_MAX: usize = 10_000;

/// A span, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name of the program that it comes from.
    pub service: String,
    /// What was done.
    pub name: String,
    /// Names the trace.
    pub trace: Vec<u8>,
    /// Names the span.
    pub id: Vec<u8>,
    /// The span that it is a part of; empty: none.
    pub parent: Vec<u8>,
    /// When it began and ended, in nanoseconds since the epoch.
    pub times: (u64, u64),
}

/// A receiver, until it is dropped.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    kept: Kept,
    _runtime: Runtime,
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

impl Receiver {
    /// Begins to listen on a free port.
    ///
    /// # Errors
    /// When the system gives no port.
    pub fn start() -> Result<Self> {
        let runtime = Runtime::new()?;
        let kept = Kept::default();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let service = TraceServiceServer::new(kept.clone());
        runtime.spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Ok(Self {
            address,
            kept,
            _runtime: runtime,
        })
    }

    /// Where it is, as `--otlp` takes it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The traces that have come.
    #[must_use]
    pub fn traces(&self) -> BTreeSet<Vec<u8>> {
        self.spans().into_iter().map(|span| span.trace).collect()
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_program in request.into_inner().resource_spans {
            let facts = of_program.resource.map(|it| it.attributes).unwrap_or_default();
            let service = facts
                .into_iter()
                .find(|fact| fact.key == "service.name")
                .and_then(|fact| fact.value?.value);
            let service = match service {
                Some(Value::StringValue(name)) => name,
                _ => return Err(Status::invalid_argument("a program without a name")),
            };
            for span in of_program.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                if kept.len() >= SPANS_MAX {
                    return Err(Status::resource_exhausted("too many spans"));
                }
                kept.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    times: (span.start_time_unix_nano, span.end_time_unix_nano),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
