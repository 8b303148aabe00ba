//! A socket where Kubernetes' CRI v1 is spoken: by containerd, by CRI-O.
//!
//! Version, events where they may be followed, the list of what is there, then events and asks as they come. Where events
//! may not be followed, a new container is known by an ask: naming asks for it when the kernel tells of its cgroup.
//!
//! **Events are followed only where every listener gets all of them.** containerd before 2.0 and CRI-O before 1.28 hand
//! each event to one listener: what this agent took, a kubelet that follows events would miss. An observer takes nothing.
//! Invariant: only [`Version`](VersionRequest), lists, an image's status and events are asked for.
//! Source: `k8s.io/cri-api` v1; containerd's pull request 9661, CRI-O's 6838.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowtilla_agent_core::enrich::container::{
    ContainerFacts, ContainerId, ContainerNews, PodFacts, RuntimeKind, Teller,
};
use flowtilla_grpc::cri::wire::image_service_client::ImageServiceClient;
use flowtilla_grpc::cri::wire::runtime_service_client::RuntimeServiceClient;
use flowtilla_grpc::cri::wire::{
    Container, ContainerEventResponse, ContainerFilter, ContainerMetadata, GetEventsRequest, Image,
    ImageSpec, ImageStatusRequest, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest,
    PodSandboxFilter, PodSandboxMetadata, VersionRequest, VersionResponse,
};
use flowtilla_grpc::cri::{self, ConnectError};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::failure::{ANSWER_OCTETS_MAX, Failure, LIST_OCTETS_MAX, REQUEST_WAIT};
use super::{EVENTS_MAX, Ended, INSPECTS_MAX, Socket};

/// How often a runtime whose events are not followed is asked whether it is there.
///
/// A call takes some 0.2 ms of both. Half of it is work for nothing; double it, and flows wait for the names of one that
/// has gone for as long.
const PING: Duration = Duration::from_secs(10);
/// Names of images remembered by digest; beyond it all are forgotten and asked for again. A node has some hundred.
const IMAGES_MAX: usize = 1_024;
/// Most octets of an image's name that are remembered.
const IMAGE_OCTETS_MAX: usize = 512;

impl Socket {
    /// From the first request to the failure that ends it; `is_up` once the runtime has told what runs.
    pub(super) async fn by_cri(&self, is_up: &mut bool) -> Result<Infallible, Ended> {
        let runtime = Runtime::connect(&self.path).await?;
        let version = runtime.version().await?;
        let (send, mut events) = mpsc::channel(EVENTS_MAX);
        // Before the list, so that no container slips between.
        let mut follow =
            tells_all(&version).then(|| AbortOnDropHandle::new(tokio::spawn(runtime.clone().follow(send))));
        let mut asks = self.asks.subscribe();
        let list = runtime.list().await?;
        let containers = list.len();
        for facts in list {
            self.news.send(ContainerNews::Known(facts)).await?;
        }
        let stands = Teller::Tells(RuntimeKind::Cri);
        self.news.send(ContainerNews::Stands(self.place, stands)).await?;
        *is_up = true;
        tracing::info!(
            socket = %self.path.display(), runtime = version.runtime_name, version = version.runtime_version, containers,
            events = follow.is_some(), "containers go by their names"
        );
        let mut ping = tokio::time::interval(PING);
        let mut came = false;
        let mut inspects = JoinSet::new();
        loop {
            // No order: a flood of one kind must not keep the others waiting.
            tokio::select! {
                event = events.recv(), if follow.is_some() => match (event, &mut follow) {
                    (Some(facts), _) => {
                        came = true;
                        self.news.send(ContainerNews::Known(facts)).await?;
                    }
                    (None, Some(following)) => {
                        let failure = following.await.unwrap_or(Failure::Ended);
                        if came || !failure.may_be_another_api() {
                            return Err(failure.into());
                        }
                        // CRI-O without evented PLEG ends the stream at once, others do not know the call.
                        tracing::debug!(socket = %self.path.display(), why = failure.chain(), "no events");
                        follow = None;
                    }
                    (None, None) => {}
                },
                Some(inspected) = inspects.join_next() => {
                    if let Ok(inspected) = inspected {
                        self.news.send(inspected?).await?;
                    }
                }
                asked = asks.recv(), if inspects.len() < INSPECTS_MAX => match asked {
                    Ok(ask) => {
                        if RuntimeKind::Cri.may_know(ask.runtime) {
                            inspects.spawn(runtime.clone().inspect(ask.id));
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Ended::Unwanted),
                },
                _ = ping.tick() => {
                    runtime.version().await?;
                }
            }
        }
    }
}

/// Whether every listener of this runtime gets every event.
fn tells_all(version: &VersionResponse) -> bool {
    let number = |text: &str| -> Option<u32> {
        let digits = text.trim_start_matches('v');
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    let mut parts = version.runtime_version.split('.').map(number);
    let found = (parts.next().flatten(), parts.next().flatten());
    match version.runtime_name.as_str() {
        "containerd" => found >= (Some(2), Some(0)),
        "cri-o" => found >= (Some(1), Some(28)),
        _ => false,
    }
}

/// A connection to a runtime, and the names of its images.
#[derive(Clone)]
struct Runtime {
    channel: Channel,
    images: Arc<Mutex<HashMap<String, String>>>,
}

impl Runtime {
    async fn connect(socket: &Path) -> Result<Self, Failure> {
        let channel = tokio::time::timeout(REQUEST_WAIT, cri::connect(socket))
            .await
            .map_err(|_| Failure::Late)?
            .map_err(|error| match error {
                ConnectError::Connect(error) => Failure::connect(error),
                ConnectError::Transport(error) => Failure::Channel(error),
            })?;
        Ok(Self {
            channel,
            images: Arc::default(),
        })
    }

    fn runtime_service(&self, octets_max: usize) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(octets_max)
    }

    fn image_service(&self, octets_max: usize) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(octets_max)
    }

    async fn version(&self) -> Result<VersionResponse, Failure> {
        let mut service = self.runtime_service(ANSWER_OCTETS_MAX);
        answer(service.version(VersionRequest {}), ANSWER_OCTETS_MAX).await
    }

    /// All containers. Of what is too long to be read, each is asked for when a flow shows it.
    async fn list(&self) -> Result<Vec<ContainerFacts>, Failure> {
        let mut service = self.runtime_service(LIST_OCTETS_MAX);
        let pods = answer(
            service.list_pod_sandbox(ListPodSandboxRequest::default()),
            LIST_OCTETS_MAX,
        )
        .await;
        let pods: HashMap<String, Arc<PodFacts>> = readable(pods, "pods")?
            .items
            .into_iter()
            .filter_map(|pod| Some((pod.id, pod_facts(pod.metadata.as_ref(), &pod.labels)?)))
            .collect();
        let mut images = self.image_service(LIST_OCTETS_MAX);
        let images = answer(images.list_images(ListImagesRequest::default()), LIST_OCTETS_MAX).await;
        for image in readable(images, "images")?.images.into_iter().take(IMAGES_MAX) {
            self.remember(image.id.clone(), &image);
        }
        let containers = answer(
            service.list_containers(ListContainersRequest::default()),
            LIST_OCTETS_MAX,
        )
        .await;
        let containers = readable(containers, "containers")?.containers;
        let facts = |container: &Container| {
            let image = image_of(container.image.as_ref());
            let image = self.remembered(image).unwrap_or_else(|| image.to_owned());
            container_facts(container, &image, pods.get(&container.pod_sandbox_id).cloned())
        };
        Ok(containers.iter().filter_map(facts).collect())
    }

    async fn inspect(self, id: ContainerId) -> Result<ContainerNews, Failure> {
        match self.find(id).await {
            Ok(found) => Ok(found.map_or(ContainerNews::NotMine(id), ContainerNews::Known)),
            // Broken or too long: this one has no name, the others may.
            Err(failure) if failure.is_answer() => Ok(ContainerNews::NotMine(id)),
            Err(failure) => Err(failure),
        }
    }

    async fn find(&self, id: ContainerId) -> Result<Option<ContainerFacts>, Failure> {
        let mut service = self.runtime_service(ANSWER_OCTETS_MAX);
        let filter = Some(ContainerFilter { id: id.to_string() });
        let found = answer(
            service.list_containers(ListContainersRequest { filter }),
            ANSWER_OCTETS_MAX,
        )
        .await?;
        let is_asked = |container: &&Container| ContainerId::parse(&container.id) == Some(id);
        let Some(container) = found.containers.iter().find(is_asked) else {
            return Ok(None);
        };
        let filter = Some(PodSandboxFilter {
            id: container.pod_sandbox_id.clone(),
        });
        let pods = answer(
            service.list_pod_sandbox(ListPodSandboxRequest { filter }),
            ANSWER_OCTETS_MAX,
        )
        .await?;
        let is_its = |pod: &&cri::wire::PodSandbox| pod.id == container.pod_sandbox_id;
        let pod = pods.items.iter().find(is_its);
        let pod = pod.and_then(|pod| pod_facts(pod.metadata.as_ref(), &pod.labels));
        let image = self.image(image_of(container.image.as_ref())).await;
        Ok(container_facts(container, &image, pod))
    }

    /// Sends on what events tell about containers; why they ended. The first may come as late as it likes.
    async fn follow(self, tell: mpsc::Sender<ContainerFacts>) -> Failure {
        let failed = |status: Status| Failure::call(&status, ANSWER_OCTETS_MAX);
        let mut service = self.runtime_service(ANSWER_OCTETS_MAX);
        let mut events = match service.get_container_events(GetEventsRequest {}).await {
            Ok(events) => events.into_inner(),
            Err(status) => return failed(status),
        };
        loop {
            let event = match events.message().await {
                Ok(Some(event)) => event,
                Ok(None) => return Failure::Ended,
                Err(status) => return failed(status),
            };
            if let Some(facts) = self.told_by(event).await
                && tell.send(facts).await.is_err()
            {
                return Failure::Ended;
            }
        }
    }

    /// The container that an event is about; `None`: it is about a pod, or tells too little.
    async fn told_by(&self, event: ContainerEventResponse) -> Option<ContainerFacts> {
        let status = event
            .containers_statuses
            .into_iter()
            .find(|status| status.id == event.container_id)?;
        let pod = event.pod_sandbox_status?;
        let pod = pod_facts(pod.metadata.as_ref(), &pod.labels);
        let container = Container {
            id: status.id,
            metadata: status.metadata,
            labels: status.labels,
            ..Container::default()
        };
        let image = self.image(image_of(status.image.as_ref())).await;
        container_facts(&container, &image, pod)
    }

    /// The name of an image that may be given by its digest; where nobody has one, what was given.
    async fn image(&self, given: &str) -> String {
        if !is_digest(given) {
            return given.to_owned();
        }
        if let Some(name) = self.remembered(given) {
            return name;
        }
        let mut service = self.image_service(ANSWER_OCTETS_MAX);
        let image = ImageSpec {
            image: given.to_owned(),
            ..ImageSpec::default()
        };
        let asked = service.image_status(ImageStatusRequest { image: Some(image) });
        // An image is worth nothing that its container's name would wait for: whatever fails, the digest stands.
        let found = answer(asked, ANSWER_OCTETS_MAX).await.ok();
        if let Some(image) = found.and_then(|found| found.image) {
            self.remember(given.to_owned(), &image);
        }
        self.remembered(given).unwrap_or_else(|| given.to_owned())
    }

    fn remembered(&self, digest: &str) -> Option<String> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(digest).cloned()
    }

    fn remember(&self, digest: String, image: &Image) {
        let Some(name) = image.repo_tags.first().or(image.repo_digests.first()) else {
            return;
        };
        if digest.len() > IMAGE_OCTETS_MAX || name.len() > IMAGE_OCTETS_MAX {
            return;
        }
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if images.len() >= IMAGES_MAX {
            images.clear();
        }
        images.insert(digest, name.clone());
    }
}

/// The message of an answer that comes in time.
async fn answer<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
    octets_max: usize,
) -> Result<T, Failure> {
    match tokio::time::timeout(REQUEST_WAIT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::call(&status, octets_max)),
        Err(_) => Err(Failure::Late),
    }
}

/// A list, or an empty one for one that is too long.
fn readable<T: Default>(list: Result<T, Failure>, of: &str) -> Result<T, Failure> {
    match list {
        Err(Failure::TooLong { max }) => {
            tracing::warn!(of, max, "a list of a container runtime is too long to be read");
            Ok(T::default())
        }
        other => other,
    }
}

fn pod_facts(
    metadata: Option<&PodSandboxMetadata>,
    labels: &BTreeMap<String, String>,
) -> Option<Arc<PodFacts>> {
    let pod = metadata?;
    let facts = PodFacts::new(&pod.namespace, &pod.name, Some(&pod.uid), pairs(labels))?;
    Some(Arc::new(facts))
}

fn container_facts(container: &Container, image: &str, pod: Option<Arc<PodFacts>>) -> Option<ContainerFacts> {
    let id = ContainerId::parse(&container.id)?;
    let name = container
        .metadata
        .as_ref()
        .map(|ContainerMetadata { name }| name.as_str());
    let facts = ContainerFacts::new(id, name?, image, pairs(&container.labels))?;
    Some(match pod {
        Some(pod) => facts.of_pod(pod),
        None => facts.of_labels(),
    })
}

fn pairs(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// What the pod says, or what the kubelet made of it; empty: nothing.
fn image_of(image: Option<&ImageSpec>) -> &str {
    match image {
        Some(image) if !image.user_specified_image.is_empty() => &image.user_specified_image,
        Some(image) => &image.image,
        None => "",
    }
}

/// Whether an image is given as the runtime's own id of it.
fn is_digest(image: &str) -> bool {
    ContainerId::parse(image.strip_prefix("sha256:").unwrap_or(image)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_followed_only_where_every_listener_gets_all() {
        for (name, version, wanted) in [
            ("containerd", "1.6.20~ds1", false),
            ("containerd", "v1.7.24", false),
            ("containerd", "v2.0.0", true),
            ("containerd", "2.1.9~ds1", true),
            ("containerd", "10.0", true),
            ("containerd", "2", false),
            ("containerd", "", false),
            ("cri-o", "1.27.9", false),
            ("cri-o", "1.28.0-dev", true),
            ("cri-o", "2.0.1", true),
            ("docker", "27.1.2", false),
        ] {
            let version = VersionResponse {
                runtime_name: name.to_owned(),
                runtime_version: version.to_owned(),
            };
            assert_eq!(tells_all(&version), wanted, "{version:?}");
        }
    }

    #[test]
    fn a_digest_is_told_from_a_name() {
        let digits = "0123456789abcdef".repeat(4);
        assert!(is_digest(&digits) && is_digest(&format!("sha256:{digits}")));
        for name in [
            "",
            "busybox",
            "localhost/img:1",
            "sha256:12",
            &format!("img@sha256:{digits}"),
        ] {
            assert!(!is_digest(name), "{name}");
        }
    }
}
