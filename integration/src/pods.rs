//! Real pods: a containerd with its CRI and a bridge between pods, and what a kubelet asks of it.
//!
//! No kubelet is there: [`Cri`] gives pods the names, labels and cgroups that one gives, by either driver. A runtime is on the
//! left host of a world ([`Containerd`]), with this machine's view of cgroups or with that of a host with cgroup2 alone, or on a
//! host with systemd ([`OnSite`]). Everything of it goes when it is dropped, pods, mounts, cgroups; what a killed run left, with
//! the next one. [`brief`] are the pods that most promises are about.

pub mod brief;
mod cri;
mod here;
mod on_site;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use flowtilla_grpc::cri as stubs;

use crate::need::{self, Need};
use crate::process::run;
use crate::wait::{self, PATIENCE};

pub use cri::{Cri, Driver};
pub use here::{Cgroups, Containerd};
pub use on_site::{NEEDS as ON_SITE_NEEDS, OnSite};

/// The image of pods and containers: busybox.
pub const IMAGE: &str = "localhost/flowtilla-test:1";
/// Namespace of all pods.
pub const NAMESPACE: &str = "shop";
/// Name of each pod's container.
pub const CONTAINER: &str = "client";
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// The pods' own network.
const POD_NETWORK: &str = "10.99.30.0/24";
/// Longest time for a runtime to start or stop one pod on a busy machine.
const CALL_WITHIN: Duration = Duration::from_secs(60);
/// Stands for runc where cgroup2 has no controllers, which a host with cgroup2 alone would have: takes the limits out of what a
/// container is to be. The path of its cgroup stays.
const RUNC_WITHOUT_LIMITS: &str = r#"#!/bin/sh
last= bundle=
for word; do
  [ "$last" = --bundle ] && bundle=$word
  last=$word
done
[ -z "$bundle" ] || sed -i -E 's/"(cpu|memory|pids)":\{[^{}]*\},?//g; s/,\}/}/g' "$bundle/config.json"
exec runc "$@"
"#;

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

/// A pod as it is wanted.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name; others had it before.
    pub name: String,
    /// Its uid, which no other has.
    pub uid: String,
    /// Which folder of cgroups it is in.
    pub class: Class,
    /// Whether it has the host's network.
    pub on_host: bool,
    /// What its container runs in a shell.
    pub script: String,
}

/// How much of its host a pod is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kubernetes' own words")]
pub enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BestEffort, Self::Burstable, Self::Guaranteed];

    /// Its folder below that of all pods; `None`: that one itself.
    fn folder(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// What runs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Id of its sandbox.
    pub sandbox: String,
    /// Id of its container, [`CONTAINER`].
    pub container: String,
}

/// The plugins' configuration of a bridge between pods. `addresses`: where they note what is taken.
fn network(addresses: &Path) -> String {
    format!(
        r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"bridge","bridge":"pods0","isGateway":true,
        "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"{POD_NETWORK}"}}]],
        "routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#,
        addresses.display()
    )
}

/// The part of containerd's configuration that is about pods. `networks`: folder of the plugins' configuration; `options`: lines
/// for runc.
fn configuration(networks: &Path, options: &str) -> String {
    format!(
        r#"[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
# Without CAP_SYS_RESOURCE the score of the sandbox cannot be lowered.
restrict_oom_score_adj = true
# Below our folder, not in /run.
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{PLUGINS}"
conf_dir = "{}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
{options}
"#,
        networks.display()
    )
}

/// Writes the program that stands for runc where cgroup2 has no controllers.
fn write_runc(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, RUNC_WITHOUT_LIMITS)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Waits for a runtime's CRI; `look` fails once waiting is in vain.
fn wait_for_cri(socket: &Path, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let ready = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    wait::until(PATIENCE, "containerd's CRI", || {
        look()?;
        Ok(ready.block_on(is_ready(socket)).then_some(()))
    })
}

async fn is_ready(socket: &Path) -> bool {
    let Ok(channel) = stubs::connect(socket).await else {
        return false;
    };
    let mut service = stubs::wire::runtime_service_client::RuntimeServiceClient::new(channel);
    let list = service.list_containers(stubs::wire::ListContainersRequest::default());
    matches!(tokio::time::timeout(CALL_WITHIN, list).await, Ok(Ok(_)))
}

/// Makes an archive as `docker save` does, without Docker, in a folder of its own, and has containerd's tool `ctr` import it.
fn import_image(folder: &Path, ctr: &Path, socket: &Path) -> Result<()> {
    let (root, archive) = (folder.join("image"), folder.join("archive"));
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
    let image = folder.join("image.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&archive)
        .arg("-cf")
        .arg(&image)
        .args(["manifest.json", "config.json", "layer.tar"]))?;
    run(Command::new(ctr)
        .arg("-a")
        .arg(socket)
        .args(["-n", "k8s.io", "images", "import"])
        .arg(&image))?;
    Ok(())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
