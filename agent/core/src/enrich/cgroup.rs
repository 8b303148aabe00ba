//! Container id and runtime from a cgroup2 path.
//!
//! In: a path below the cgroup2 root, as `/proc/PID/cgroup` (`0::`) or the kernel tells it. Out: a [`Container`], or
//! `None` where the path names none. Every runtime puts an id of 64 lower-case hex digits into one component; the **last**
//! component that holds one decides, and folders below it (`/container`, `/init`, a systemd inside) belong to it.
//! Monitors (`conmon`) and pods are no containers: where the last such component is one of theirs, nothing is found, not
//! even further up.
//!
//! | component | runtime |
//! |---|---|
//! | `docker-<id>.scope`, `<id>` below `docker` | Docker |
//! | `cri-containerd-<id>.scope`, `nerdctl-<id>.scope`, `<id>` below `k8s.io` or `default` | containerd |
//! | `crio-<id>.scope`, `crio-<id>` | CRI-O |
//! | `libpod-<id>.scope`, `libpod-<id>`, `libpod-payload-<id>` | podman |
//! | `<id>` below `pod<uid>` or `kubepods*` | Kubernetes, runtime not told |
//! | `<id>`, `<anything else>-<id>.scope` | other |
//! | any of them below a service, `user@1000.service` among them | a user's own |
//!
//! A service's cgroup may be handed to the user that it runs as, and whoever has it makes folders of any name. Runtimes of the host
//! put none there, but podman where a unit asks for it (`libpod-payload-<id>`).
//!
//! Source: paths measured with Docker 20.10, podman 4.3, containerd 1.6 to 2.1; CRI-O's from its documentation.

use crate::owner::{Container, Runtime};

/// Digits of a container id. Every runtime takes 256 random bits, or a SHA-256.
const ID_DIGITS: usize = 64;

/// Finds the container a cgroup belongs to.
#[must_use]
pub fn container(path: &str) -> Option<Container> {
    let parts: Vec<&str> = path.split('/').collect();
    let (at, id) = parts
        .iter()
        .enumerate()
        .rev()
        .find_map(|(at, part)| id_in(part).map(|id| (at, id)))?;
    let (above, below) = (&parts[..at], &parts[at + 1..]);
    if below
        .iter()
        .any(|part| *part == "conmon" || part.starts_with("libpod-conmon"))
    {
        return None;
    }
    let (before, after) = parts[at].split_once(id)?;
    if !matches!(after, "" | ".scope") {
        return None;
    }
    let runtime = if before.is_empty() {
        bare(above)?
    } else {
        prefixed(before.strip_suffix('-')?)?
    };
    let runtime = if is_handed_on(above, before) {
        Runtime::User
    } else {
        runtime
    };
    Some(Container {
        id: id.to_owned(),
        runtime,
        name: None,
        pod: None,
    })
}

/// Whether somebody else than the host's root may have named the cgroup. `before`: what stands before the id.
fn is_handed_on(above: &[&str], before: &str) -> bool {
    let to_user = |part: &&str| part.starts_with("user@") && part.ends_with(".service");
    let to_service = |part: &&str| part.ends_with(".service");
    above.iter().any(to_user) || before != "libpod-payload-" && above.iter().any(to_service)
}

/// The run of exactly [`ID_DIGITS`] lower-case hex digits in one component.
fn id_in(part: &str) -> Option<&str> {
    part.split(|c: char| !matches!(c, '0'..='9' | 'a'..='f'))
        .find(|run| run.len() == ID_DIGITS)
}

/// Runtime of `PREFIX-<id>`; `None`: not a container.
fn prefixed(prefix: &str) -> Option<Runtime> {
    Some(match prefix {
        "docker" => Runtime::Docker,
        "cri-containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::CriO,
        "libpod" | "libpod-payload" => Runtime::Podman,
        monitor if monitor.ends_with("conmon") => return None,
        pod if pod.ends_with("_pod") || pod.ends_with("libpod_pod_") => return None,
        _ => Runtime::Other,
    })
}

/// Runtime of a component that is nothing but an id, from the folders above it; `None`: a pod of podman.
fn bare(above: &[&str]) -> Option<Runtime> {
    let parent = above.last().copied().unwrap_or_default();
    Some(match parent {
        "docker" => Runtime::Docker,
        "k8s.io" | "default" => Runtime::Containerd,
        "libpod_parent" => return None,
        _ if parent.starts_with("pod") || above.iter().any(|part| part.starts_with("kubepods")) => {
            Runtime::Kubernetes
        }
        _ => Runtime::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f2f9a0c3d1e5b6a79880102030405060708090a0b0c0d0e0f1011121314a5b6";
    const OUTER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

    fn found(path: &str) -> Option<Runtime> {
        let path = path
            .replace("ID", ID)
            .replace("OUTER", OUTER)
            .replace("U_ID", &UID.replace('-', "_"))
            .replace("UID", UID);
        container(&path).map(|container| {
            assert_eq!(container.id, ID, "in {path}");
            container.runtime
        })
    }

    #[test]
    fn every_runtime_and_driver_is_known() {
        for (path, runtime) in [
            ("/docker/ID", Runtime::Docker),
            ("/system.slice/docker-ID.scope", Runtime::Docker),
            ("/libpod_parent/libpod-ID", Runtime::Podman),
            ("/libpod_parent/OUTER/libpod-ID", Runtime::Podman),
            ("/machine.slice/libpod-ID.scope", Runtime::Podman),
            ("/machine.slice/libpod-ID.scope/container", Runtime::Podman),
            (
                "/machine.slice/machine-libpod_pod_OUTER.slice/libpod-ID.scope",
                Runtime::Podman,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
                Runtime::User,
            ),
            ("/system.slice/web.service/libpod-payload-ID", Runtime::Podman),
            ("/system.slice/ci.service/docker-ID.scope", Runtime::User),
            (
                "/user.slice/user-7.slice/user@7.service/libpod-payload-ID",
                Runtime::User,
            ),
            (
                "/user.slice/user-7.slice/user@7.service/kubepods/podUID/ID",
                Runtime::User,
            ),
            ("/kubepods/burstable/podUID/ID", Runtime::Kubernetes),
            ("/kubepods/podUID/ID", Runtime::Kubernetes),
            (
                "/kubepods/besteffort/pod6da70bd4d8a7a3b1c0f9e8d7c6b5a493/ID",
                Runtime::Kubernetes,
            ),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_ID.slice/cri-containerd-ID.scope",
                Runtime::Containerd,
            ),
            (
                "/kubepods.slice/kubepods-podU_ID.slice/crio-ID.scope",
                Runtime::CriO,
            ),
            ("/kubepods/burstable/podUID/crio-ID", Runtime::CriO),
            (
                "/kubepods.slice/kubepods-podU_ID.slice/docker-ID.scope",
                Runtime::Docker,
            ),
            ("/k8s.io/ID", Runtime::Containerd),
            ("/default/ID", Runtime::Containerd),
            ("/system.slice/nerdctl-ID.scope", Runtime::Containerd),
            ("/../ID", Runtime::Other),
            ("/../cri-containerd-ID.scope", Runtime::Containerd),
            ("/../../podUID/ID", Runtime::Kubernetes),
            ("/lxc.payload/box-ID", Runtime::Other),
        ] {
            assert_eq!(found(path), Some(runtime), "{path}");
        }
    }

    #[test]
    fn what_runs_below_a_container_belongs_to_it() {
        for below in ["/init", "/init.scope", "/system.slice/nginx.service"] {
            assert_eq!(found(&format!("/docker/ID{below}")), Some(Runtime::Docker));
        }
    }

    #[test]
    fn the_innermost_container_counts() {
        assert_eq!(found("/docker/OUTER/docker/ID"), Some(Runtime::Docker));
        assert_eq!(
            found("/docker/OUTER/kubelet/kubepods/podUID/ID"),
            Some(Runtime::Kubernetes)
        );
    }

    #[test]
    fn monitors_and_pods_are_no_containers() {
        for path in [
            "/machine.slice/libpod-conmon-ID.scope",
            "/system.slice/crio-conmon-ID.scope",
            "/kubepods.slice/kubepods-podU_ID.slice/crio-conmon-ID.scope",
            "/machine.slice/machine-libpod_pod_OUTER.slice/libpod-conmon-ID.scope",
            "/libpod_parent/libpod-ID/conmon",
            "/machine.slice/machine-libpod_pod_ID.slice",
            "/libpod_parent/ID",
            "/system.slice/ID.service",
            "/system.slice/ID-51ab.timer",
        ] {
            assert_eq!(found(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_not_64_digits_is_no_id() {
        let upper = ID.to_uppercase();
        let docker = |id: &str| container(&format!("/docker/{id}"));
        assert!(docker(ID).is_some());
        assert_eq!(docker(&ID[1..]), None);
        assert_eq!(docker(&format!("0{ID}")), None);
        assert_eq!(docker(&upper), None);
        for path in [
            "",
            "/",
            "/init.scope",
            "/user.slice/user-1000.slice/session-3.scope",
            "0::/docker",
        ] {
            assert_eq!(container(path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_panics(path in "(/|\\.\\.|[a-f0-9]{63,65}|docker-|libpod-|\\.scope|\\PC){0,12}") {
            if let Some(container) = container(&path) {
                proptest::prop_assert_eq!(container.id.len(), ID_DIGITS);
            }
        }
    }
}
