//! What a kubelet asks of a runtime, by CRI.
//!
//! In: pods as they are wanted. Out: ids. The stubs of the product only list; what starts and ends pods is here, a message with
//! the fields that are used. Source of names and numbers: CRI v1, `api.proto`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use flowtilla_grpc::codec::SmallCodec;
use flowtilla_grpc::cri;
use flowtilla_grpc::cri::wire::{ContainerMetadata, ImageSpec, PodSandboxMetadata};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::{CALL_WITHIN, CONTAINER, IMAGE, NAMESPACE, Pod, Running};

/// How a kubelet says which cgroup a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// As a path, here below a folder of ours.
    Cgroupfs {
        /// The folder, below the root.
        above: String,
    },
    /// As a slice of systemd, whose name has those of all slices above it.
    Systemd,
}

impl Driver {
    /// Source: kubelet, `ToCgroupfs` and `ToSystemd` of its container manager.
    fn parent(&self, pod: &Pod) -> String {
        match self {
            Self::Cgroupfs { above } => {
                let class = pod.class.folder().map(|folder| format!("/{folder}"));
                format!("/{above}/kubepods{}/pod{}", class.unwrap_or_default(), pod.uid)
            }
            Self::Systemd => {
                let class = pod.class.folder().map(|folder| format!("-{folder}"));
                format!(
                    "kubepods{}-pod{}.slice",
                    class.unwrap_or_default(),
                    pod.uid.replace('-', "_")
                )
            }
        }
    }
}

/// What a kubelet asks.
#[derive(Debug)]
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    driver: Driver,
}

impl Cri {
    /// A connection to the runtime with this socket.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn connect(socket: &Path, driver: Driver) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(cri::connect(socket))?;
        Ok(Self {
            runtime,
            channel,
            driver,
        })
    }

    /// Starts a pod and its container.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn run_pod(&self, pod: &Pod) -> Result<Running> {
        let config = Some(self.configuration(pod));
        let sandbox = self.call("RunPodSandbox", RunPodSandboxRequest { config })?;
        let container = self.run_container(pod, &sandbox, CONTAINER)?;
        Ok(Running { sandbox, container })
    }

    /// Starts one more container of a pod; its id.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn run_container(&self, pod: &Pod, sandbox: &str, name: &str) -> Result<String> {
        let container = self.call(
            "CreateContainer",
            CreateContainerRequest {
                pod_sandbox_id: sandbox.to_owned(),
                config: Some(ContainerConfig {
                    metadata: Some(ContainerMetadata {
                        name: name.to_owned(),
                    }),
                    image: Some(ImageSpec {
                        image: IMAGE.to_owned(),
                        ..ImageSpec::default()
                    }),
                    command: vec!["/bin/sh".to_owned(), "-c".to_owned(), pod.script.clone()],
                    labels: labels(pod, ("io.kubernetes.container.name", name)),
                    linux: Some(LinuxContainerConfig {}),
                }),
                sandbox_config: Some(self.configuration(pod)),
            },
        )?;
        self.call(
            "StartContainer",
            One {
                id: container.clone(),
            },
        )?;
        Ok(container)
    }

    fn configuration(&self, pod: &Pod) -> PodSandboxConfig {
        // With the host's network goes the host's name.
        let (network, hostname) = match pod.on_host {
            true => (NAMESPACE_NODE, String::new()),
            false => (NAMESPACE_POD, pod.name.clone()),
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                namespace: NAMESPACE.to_owned(),
            }),
            hostname,
            labels: labels(pod, ("app", "web")),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.driver.parent(pod),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network,
                        pid: NAMESPACE_CONTAINER,
                    }),
                }),
            }),
        }
    }

    /// Ends a pod and what runs in it.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn remove_pod(&self, sandbox: &str) -> Result<()> {
        for call in ["StopPodSandbox", "RemovePodSandbox"] {
            self.call(
                call,
                One {
                    id: sandbox.to_owned(),
                },
            )?;
        }
        Ok(())
    }

    /// Ids of all pods' sandboxes.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn pods(&self) -> Result<Vec<String>> {
        let mut service = cri::wire::runtime_service_client::RuntimeServiceClient::new(self.channel.clone());
        let list = service.list_pod_sandbox(cri::wire::ListPodSandboxRequest::default());
        let list = self.runtime.block_on(list)?.into_inner();
        Ok(list.items.into_iter().map(|pod| pod.id).collect())
    }

    /// Asks; the one text that answers have first, an id.
    fn call<T: prost::Message + 'static>(&self, name: &'static str, request: T) -> Result<String> {
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{name}"))?;
        let asked = async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await?;
            let codec = SmallCodec::<T, One>::default();
            let answer = grpc.unary(tonic::Request::new(request), path, codec).await?;
            anyhow::Ok(answer.into_inner().id)
        };
        self.runtime
            .block_on(async { tokio::time::timeout(CALL_WITHIN, asked).await })
            .with_context(|| format!("{name} takes too long"))?
            .with_context(|| name)
    }
}

/// Labels that a kubelet gives, and one more.
fn labels(pod: &Pod, more: (&str, &str)) -> BTreeMap<String, String> {
    let all = [
        ("io.kubernetes.pod.name", pod.name.as_str()),
        ("io.kubernetes.pod.namespace", NAMESPACE),
        ("io.kubernetes.pod.uid", &pod.uid),
        more,
    ];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    all.into_iter().map(owned).collect()
}

// What a kubelet tells a runtime; names and numbers are those of CRI v1.

const NAMESPACE_POD: i32 = 0;
const NAMESPACE_CONTAINER: i32 = 1;
const NAMESPACE_NODE: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(btree_map = "string, string", tag = "6")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<LinuxSandboxSecurityContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxSandboxSecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(btree_map = "string, string", tag = "9")]
    labels: BTreeMap<String, String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainerConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxContainerConfig {}

/// Requests and answers that are one id, or nothing.
#[derive(Clone, PartialEq, prost::Message)]
struct One {
    #[prost(string, tag = "1")]
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Class;

    #[test]
    fn cgroups_of_pods_are_those_that_a_kubelet_names() {
        let cgroupfs = Driver::Cgroupfs {
            above: "ours".to_owned(),
        };
        for (class, path, slice) in [
            (
                Class::Guaranteed,
                "/ours/kubepods/poda-b",
                "kubepods-poda_b.slice",
            ),
            (
                Class::Burstable,
                "/ours/kubepods/burstable/poda-b",
                "kubepods-burstable-poda_b.slice",
            ),
            (
                Class::BestEffort,
                "/ours/kubepods/besteffort/poda-b",
                "kubepods-besteffort-poda_b.slice",
            ),
        ] {
            let pod = Pod {
                name: "web-0".to_owned(),
                uid: "a-b".to_owned(),
                class,
                on_host: false,
                script: String::new(),
            };
            assert_eq!(cgroupfs.parent(&pod), path);
            assert_eq!(Driver::Systemd.parent(&pod), slice);
        }
    }
}
