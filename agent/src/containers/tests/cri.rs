//! A runtime of Kubernetes that behaves, and some that do not. Real ones are tested end to end.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use flowtilla_agent_core::enrich::container::{ContainerFacts, PodFacts};
use flowtilla_agent_core::owner;
use flowtilla_grpc::cri::wire::image_service_server::{ImageService, ImageServiceServer};
use flowtilla_grpc::cri::wire::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use flowtilla_grpc::cri::wire::*;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;

const OTHER: &str = "5f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
const SANDBOX: &str = "6f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
const DIGEST: &str = "sha256:7f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
const CRI_TELLS: ContainerNews = ContainerNews::Stands(0, Teller::Tells(RuntimeKind::Cri));

/// What is wrong with a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ill {
    Nothing,
    /// It says nothing at all.
    Hangs,
    /// It says nothing about one container.
    HangsAtAsks,
    /// Its list is longer than is read.
    IsLong,
    /// It is no runtime of Kubernetes.
    KnowsNoCall,
    /// It ends the stream of events at once.
    HasNoEvents,
    /// It knows of no stream of events.
    KnowsNoEvents,
}

/// A runtime with one container, [`ID`], in its list, and one that only asks and events show, [`OTHER`].
#[derive(Clone)]
struct Fake {
    version: &'static str,
    ill: Ill,
    listeners: Arc<AtomicUsize>,
}

impl Fake {
    fn serve(version: &'static str, ill: Ill, at: &Runtime) -> Self {
        let fake = Self {
            version,
            ill,
            listeners: Arc::default(),
        };
        let listener = tokio::net::UnixListener::bind(at.path()).expect("a socket");
        let server = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(fake.clone()))
            .add_service(ImageServiceServer::new(fake.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server);
        fake
    }

    async fn check(&self) -> Result<(), Status> {
        match self.ill {
            Ill::Hangs => std::future::pending().await,
            Ill::KnowsNoCall => Err(Status::unimplemented("unknown service")),
            _ => Ok(()),
        }
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    pairs.iter().map(owned).collect()
}

fn metadata() -> Option<PodSandboxMetadata> {
    Some(PodSandboxMetadata {
        name: "web-0".to_owned(),
        uid: "u-1".to_owned(),
        namespace: "shop".to_owned(),
    })
}

fn spec() -> Option<ImageSpec> {
    Some(ImageSpec {
        image: DIGEST.to_owned(),
        user_specified_image: String::new(),
    })
}

fn named(name: &str) -> Option<ContainerMetadata> {
    Some(ContainerMetadata {
        name: name.to_owned(),
    })
}

fn container(id: &str, name: &str) -> Container {
    Container {
        id: id.to_owned(),
        pod_sandbox_id: SANDBOX.to_owned(),
        metadata: named(name),
        image: spec(),
        labels: labels(&[("io.kubernetes.container.name", name), ("own", "yes")]),
    }
}

#[tonic::async_trait]
impl RuntimeService for Fake {
    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        self.check().await?;
        Ok(Response::new(VersionResponse {
            runtime_name: "containerd".to_owned(),
            runtime_version: self.version.to_owned(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let pod = PodSandbox {
            id: SANDBOX.to_owned(),
            metadata: metadata(),
            labels: labels(&[("app", "shop")]),
        };
        Ok(Response::new(ListPodSandboxResponse { items: vec![pod] }))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let asked = request.into_inner().filter.map(|filter| filter.id);
        let containers = match asked.as_deref() {
            Some(_) if self.ill == Ill::HangsAtAsks => std::future::pending().await,
            Some(OTHER) => vec![container(OTHER, "asked")],
            Some(_) => Vec::new(),
            None if self.ill == Ill::IsLong => {
                // Each has its name twice: 10 MiB, little more than is read.
                let long = "x".repeat(1 << 20);
                let many = (0..5).map(|n| container(&format!("{n:064x}"), &long));
                many.collect()
            }
            None => vec![container(ID, "listed"), container("short", "no id")],
        };
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        self.listeners.fetch_add(1, Ordering::SeqCst);
        let about = |id: &str| ContainerEventResponse {
            container_id: id.to_owned(),
            pod_sandbox_status: Some(PodSandboxStatus {
                id: SANDBOX.to_owned(),
                metadata: metadata(),
                labels: labels(&[("app", "shop")]),
            }),
            containers_statuses: vec![ContainerStatus {
                id: OTHER.to_owned(),
                metadata: named("<told>"),
                image: spec(),
                labels: BTreeMap::new(),
            }],
        };
        let events = match self.ill {
            Ill::KnowsNoEvents => return Err(Status::unimplemented("unknown method")),
            Ill::HasNoEvents => Vec::new(),
            // One of a pod tells of no container.
            _ => vec![Ok(about(SANDBOX)), Ok(about(OTHER))],
        };
        let ends = self.ill == Ill::HasNoEvents;
        let (send, events) = {
            let (send, receive) = tokio::sync::mpsc::channel(4);
            for event in events {
                send.try_send(event).expect("room");
            }
            (send, receive)
        };
        if !ends {
            // The stream stays open for as long as the test runs.
            tokio::spawn(async move { send.closed().await });
        }
        let events = tokio_stream::wrappers::ReceiverStream::new(events);
        Ok(Response::new(Box::pin(events)))
    }
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn list_images(
        &self,
        _: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        Ok(Response::new(ListImagesResponse::default()))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let asked = request.into_inner().image.map(|image| image.image);
        let image = Image {
            id: DIGEST.to_owned(),
            repo_tags: vec!["registry.example/web:1".to_owned()],
            repo_digests: Vec::new(),
        };
        Ok(Response::new(ImageStatusResponse {
            image: (asked.as_deref() == Some(DIGEST)).then_some(image),
        }))
    }
}

fn facts<'a>(came: &'a [ContainerNews], wanted: &str) -> &'a ContainerFacts {
    let known = came.iter().filter_map(|news| match news {
        ContainerNews::Known(facts) => Some(facts),
        _ => None,
    });
    let mut named = known.filter(|facts| facts.name() == wanted);
    named.next().expect("it was told")
}

fn ask(link: &Link, id: &str) {
    let ask = ContainerAsk {
        id: ContainerId::parse(id).expect("an id"),
        runtime: owner::Runtime::Containerd,
    };
    link.asks.send(ask).expect("a task listens");
}

#[tokio::test]
async fn containers_of_the_list_and_of_asks_have_their_pods_labels_and_images() {
    let runtime = Runtime::absent();
    Fake::serve("1.6.20~ds1", Ill::Nothing, &runtime);
    let (_tasks, mut link) = start(&runtime);
    let listed = news(&mut link, |news| *news == CRI_TELLS).await;
    ask(&link, OTHER);
    let asked = news(&mut link, |news| name(news) == Some("asked")).await;
    for (came, container, image) in [
        (&listed, "listed", DIGEST),
        (&asked, "asked", "registry.example/web:1"),
    ] {
        let facts = facts(came, container);
        assert_eq!(
            (facts.pod_namespace(), facts.pod_name()),
            (Some("shop"), Some("web-0"))
        );
        assert_eq!(facts.pod().and_then(PodFacts::uid), Some("u-1"));
        assert_eq!(
            (facts.label("own"), facts.pod_label("app")),
            (Some("yes"), Some("shop"))
        );
        assert_eq!(facts.image(), image, "{container}");
    }
    ask(&link, &format!("{:064x}", 1));
    news(&mut link, |news| matches!(news, ContainerNews::NotMine(_))).await;
}

#[tokio::test]
async fn events_are_followed_where_that_takes_them_from_nobody() {
    let runtime = Runtime::absent();
    let fake = Fake::serve("v2.1.9", Ill::Nothing, &runtime);
    let (_tasks, mut link) = start(&runtime);
    let came = news(&mut link, |news| name(news) == Some("‹told›")).await;
    let told = facts(&came, "‹told›");
    assert_eq!(
        (told.pod_name(), told.pod_label("app")),
        (Some("web-0"), Some("shop"))
    );
    assert_eq!(told.image(), "registry.example/web:1");
    assert_eq!(fake.listeners.load(Ordering::SeqCst), 1);

    let runtime = Runtime::absent();
    let fake = Fake::serve("v1.7.24", Ill::Nothing, &runtime);
    let (_tasks, mut link) = start(&runtime);
    news(&mut link, |news| *news == CRI_TELLS).await;
    ask(&link, OTHER);
    news(&mut link, |news| name(news) == Some("asked")).await;
    assert_eq!(fake.listeners.load(Ordering::SeqCst), 0, "they are the kubelet's");
}

#[tokio::test]
async fn one_without_events_or_with_too_long_a_list_still_answers() {
    for ill in [Ill::HasNoEvents, Ill::KnowsNoEvents, Ill::IsLong] {
        let runtime = Runtime::absent();
        Fake::serve("v2.1.9", ill, &runtime);
        let (_tasks, mut link) = start(&runtime);
        news(&mut link, |news| *news == CRI_TELLS).await;
        ask(&link, OTHER);
        let came = news(&mut link, |news| name(news) == Some("asked")).await;
        let lost = |news: &ContainerNews| matches!(news, ContainerNews::Stands(..));
        assert!(!came.iter().any(lost), "{ill:?}: {came:?}");
    }
}

#[tokio::test]
async fn what_hangs_or_knows_no_call_is_away() {
    for ill in [Ill::Hangs, Ill::KnowsNoCall] {
        let runtime = Runtime::absent_at("containerd.sock");
        Fake::serve("v2.1.9", ill, &runtime);
        let (_tasks, mut link) = start(&runtime);
        let came = news(&mut link, |news| matches!(news, ContainerNews::Stands(..))).await;
        assert_eq!(came, [ContainerNews::Stands(0, Teller::Away)], "{ill:?}");
    }
}

#[tokio::test]
async fn one_that_hangs_at_an_ask_is_left_and_begun_anew() {
    let runtime = Runtime::absent();
    Fake::serve("1.6.20", Ill::HangsAtAsks, &runtime);
    let (_tasks, mut link) = start(&runtime);
    news(&mut link, |news| *news == CRI_TELLS).await;
    ask(&link, OTHER);
    news(&mut link, |news| {
        *news == ContainerNews::Stands(0, Teller::Trying)
    })
    .await;
    news(&mut link, |news| *news == CRI_TELLS).await;
}

#[tokio::test]
async fn which_api_a_socket_speaks_is_found_out_whatever_its_name_says() {
    let of_docker = Runtime::absent_at("containerd.sock");
    of_docker.serve(usize::MAX, sound);
    let (_tasks, mut link) = start(&of_docker);
    news(&mut link, |news| *news == TELLS).await;

    let of_kubernetes = Runtime::absent_at("docker.sock");
    Fake::serve("1.6.20", Ill::Nothing, &of_kubernetes);
    let (_tasks, mut link) = start(&of_kubernetes);
    news(&mut link, |news| *news == CRI_TELLS).await;
}
