//! Real pods on the left host: a containerd with its CRI and a bridge between pods, and what a kubelet asks of it.
//!
//! No kubelet is there: [`Cri`] gives pods the names, labels and cgroups that one gives. Everything of a runtime goes when it
//! is dropped, pods, mounts, cgroups; what a killed run left, with the next one ([`Belongings`]).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flowtilla_grpc::codec::SmallCodec;
use flowtilla_grpc::cri;
use flowtilla_grpc::cri::wire::{ContainerMetadata, ImageSpec, PodSandboxMetadata};
use nix::sys::signal::Signal;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use crate::belongings::Belongings;
use crate::need::{self, Need};
use crate::process::{Process, run};
use crate::wait::{self, PATIENCE};
use crate::world::World;

/// The image of pods and containers: busybox.
pub const IMAGE: &str = "localhost/flowtilla-test:1";
/// Namespace of all pods.
pub const NAMESPACE: &str = "shop";
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The pods' own network.
const POD_NETWORK: &str = "10.99.30.0/24";
/// Longest time for a runtime to start or stop one pod on a busy machine.
const CALL_WITHIN: Duration = Duration::from_secs(60);

/// What real pods need, beside a containerd.
pub const NEEDS: [Need; 3] = [
    Need::Program("busybox", "busybox-static"),
    Need::Program("runc", "runc"),
    Need::Program("sha256sum", "coreutils"),
];

/// Why there can be no pods; `None`: there can.
#[must_use]
pub fn lacks_plugins() -> Option<String> {
    let bridge = Path::new(PLUGINS).join("bridge");
    (!bridge.is_file()).then(|| {
        format!(
            "needs {} (Debian package containernetworking-plugins)",
            bridge.display()
        )
    })
}

/// A containerd on the left host with data of its own.
#[derive(Debug)]
pub struct Containerd<'a> {
    world: &'a World,
    /// Folder of its programs; `None`: those on the PATH.
    programs: Option<PathBuf>,
    daemon: Option<Process>,
    /// Declared last: cleared when the daemon has ended.
    belongings: Belongings,
}

impl<'a> Containerd<'a> {
    /// Starts one, with the image in it.
    ///
    /// # Errors
    /// When it does not come up, with its last words.
    pub fn start(world: &'a World, package: Option<&Path>) -> Result<Self> {
        let mut runtime = Self {
            world,
            programs: package.map(|root| root.join("usr/bin")),
            daemon: None,
            belongings: Belongings::make()?,
        };
        runtime.join_networks()?;
        runtime.write_configuration()?;
        runtime.start_daemon()?;
        runtime.import_image()?;
        Ok(runtime)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// What an agent is to see that sees its pods only; their cgroup is made here.
    ///
    /// # Errors
    /// When there is no cgroup2.
    pub fn scope(&self) -> Result<String> {
        let root = crate::cgroup::root()?.context("cgroup2 is mounted")?;
        let name = self.name();
        fs::create_dir_all(root.join(&name))?;
        Ok(format!("cgroup=/{name}"))
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn cri(&self) -> Result<Cri> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let channel = runtime.block_on(cri::connect(&self.socket()))?;
        Ok(Cri {
            runtime,
            channel,
            cgroups: self.name(),
        })
    }

    /// Name that everything of it carries: its folder, and that of all its cgroups below the root of each hierarchy.
    #[must_use]
    pub fn name(&self) -> String {
        self.belongings.name()
    }

    /// Ends the daemon, and starts it anew; its pods live on.
    ///
    /// # Errors
    /// When it does not end, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.stop_daemon(Signal::SIGTERM)?;
        self.start_daemon()
    }

    /// Kills the daemon; its pods live on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.stop_daemon(Signal::SIGKILL)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.belongings.path(name)
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.programs {
            Some(folder) => folder.join(name),
            None => name.into(),
        }
    }

    /// Lets the left host forward for the pods' network, and the right one answer to it.
    fn join_networks(&self) -> Result<()> {
        self.world.left.sysctl("ipv4/ip_forward", "1")?;
        let left = crate::world::LEFT_V4;
        self.world
            .right
            .run("ip", &["route", "add", POD_NETWORK, "via", left])?;
        Ok(())
    }

    fn write_configuration(&self) -> Result<()> {
        let plugins = self.path("cni");
        fs::create_dir_all(&plugins)?;
        fs::write(
            plugins.join("10-pods.conflist"),
            format!(
                r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"bridge","bridge":"pods0","isGateway":true,
                "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"{POD_NETWORK}"}}]],
                "routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#,
                self.path("addresses").display()
            ),
        )?;
        let path = |name: &str| self.path(name).display().to_string();
        fs::write(
            self.path("config.toml"),
            format!(
                r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
# Without CAP_SYS_RESOURCE the score of the sandbox cannot be lowered.
restrict_oom_score_adj = true
# Below our folder, not in /run.
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{runc}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{cni}"
"#,
                root = path("root"),
                state = path("state"),
                socket = path("containerd.sock"),
                opt = path("opt"),
                runc = path("runc"),
                cni = plugins.display(),
            ),
        )?;
        Ok(())
    }

    fn start_daemon(&mut self) -> Result<()> {
        let mut command = self.world.left.command(self.program("containerd"));
        command.arg("--config").arg(self.path("config.toml"));
        if let Some(programs) = &self.programs {
            // It finds its shims there.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(folders)?);
        }
        let mut daemon = Process::start(command)?;
        let socket = self.socket();
        let ready = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        wait::until(PATIENCE, "containerd's CRI", || {
            ensure!(daemon.is_running()?, "{}", daemon.last_words());
            Ok(ready.block_on(is_ready(&socket)).then_some(()))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn stop_daemon(&mut self, signal: Signal) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.signal(signal)?;
            daemon.wait_end(PATIENCE)?;
        }
        Ok(())
    }

    /// Makes an archive as `docker save` does, without Docker, and imports it.
    fn import_image(&self) -> Result<()> {
        let (root, archive) = (self.path("image"), self.path("archive"));
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(&archive)?;
        fs::copy(
            need::on_path("busybox").context("busybox")?,
            root.join("bin/busybox"),
        )?;
        for name in ["sh", "nc", "sleep"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        let layer = archive.join("layer.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&layer)
            .arg("."))?;
        let sum = run(Command::new("sha256sum").arg(&layer))?;
        let sum = sum.split_whitespace().next().context("a sum")?;
        fs::write(
            archive.join("config.json"),
            format!(
                r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["/bin/sleep","1000000"]}},
                "rootfs":{{"type":"layers","diff_ids":["sha256:{sum}"]}}}}"#,
                architecture()
            ),
        )?;
        fs::write(
            archive.join("manifest.json"),
            format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#),
        )?;
        let image = self.path("image.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(&archive)
            .arg("-cf")
            .arg(&image)
            .args(["manifest.json", "config.json", "layer.tar"]))?;
        run(Command::new(self.program("ctr"))
            .arg("-a")
            .arg(self.socket())
            .args(["-n", "k8s.io", "images", "import"])
            .arg(&image))?;
        Ok(())
    }

    /// As a kubelet would; what is left after that, killed pods included, is cleared by force.
    fn end(&mut self) -> Result<()> {
        if self.daemon.is_some() {
            let pods = self.cri()?;
            for pod in pods.pods()? {
                pods.remove_pod(&pod)?;
            }
        }
        self.stop_daemon(Signal::SIGTERM)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("containerd: {error:#}");
        }
    }
}

async fn is_ready(socket: &Path) -> bool {
    let Ok(channel) = cri::connect(socket).await else {
        return false;
    };
    let mut service = cri::wire::runtime_service_client::RuntimeServiceClient::new(channel);
    let list = service.list_containers(cri::wire::ListContainersRequest::default());
    matches!(tokio::time::timeout(CALL_WITHIN, list).await, Ok(Ok(_)))
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A pod as it is wanted.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name; others had it before.
    pub name: String,
    /// Its uid, which no other has.
    pub uid: String,
    /// Whether it has the host's network.
    pub on_host: bool,
    /// What its container runs in a shell.
    pub script: String,
}

/// What runs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Id of its sandbox.
    pub sandbox: String,
    /// Id of its container, `client`.
    pub container: String,
}

/// Name of each pod's container.
pub const CONTAINER: &str = "client";

/// What a kubelet asks.
#[derive(Debug)]
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    cgroups: String,
}

impl Cri {
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
                cgroup_parent: format!("/{}/kubepods/besteffort/pod{}", self.cgroups, pod.uid),
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
