//! Where the names of containers come from.

use std::path::Path;

use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::wire;

/// Most sockets in one policy. A host has one or two runtimes, and a rootless podman a user.
pub const SOCKETS_MAX: usize = 8;
/// Longest path of a Unix socket, in octets. Source: Linux `sun_path`, its NUL not counted.
pub const SOCKET_OCTETS_MAX: usize = 107;

/// Where Docker, podman, containerd, CRI-O and k3s listen when nobody changed it.
const USUAL: [&str; 5] = [
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// The path of a Unix socket: begins with `/`, at most [`SOCKET_OCTETS_MAX`] octets, without control characters. Whether
/// somebody listens is seen when it is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketPath(String);

impl SocketPath {
    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// Sockets of runtimes that are asked for the names of containers, at most [`SOCKETS_MAX`], none twice. Empty: nobody is
/// asked. The default: the usual ones of Docker, podman, containerd, CRI-O and k3s.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Containers(Vec<SocketPath>);

impl Containers {
    /// The sockets.
    #[must_use]
    pub fn sockets(&self) -> &[SocketPath] {
        &self.0
    }
}

impl Default for Containers {
    fn default() -> Self {
        Self(USUAL.iter().map(|&path| SocketPath(path.to_owned())).collect())
    }
}

pub(super) fn parse(sent: wire::Containers) -> Result<Containers, Mistakes> {
    let mut reading = Reading::default();
    let is_wanted = sent.names.unwrap_or(true);
    if !is_wanted && !sent.sockets.is_empty() {
        let refused = Refused::new(
            "are given, and names is false: nobody is asked then",
            "leave one of the two out",
        );
        reading.refuse("sockets", None, refused);
    }
    if sent.sockets.len() > SOCKETS_MAX {
        let refused = Refused::new(
            format!("has {} sockets", sent.sockets.len()),
            format!("write at most {SOCKETS_MAX}"),
        );
        reading.refuse("sockets", None, refused);
    }
    let mut sockets: Vec<SocketPath> = Vec::new();
    for (n, text) in sent.sockets.iter().enumerate().take(SOCKETS_MAX) {
        let at = format!("sockets[{n}]");
        let Some(socket) = reading.text(&at, text, parse_socket) else {
            continue;
        };
        if sockets.contains(&socket) {
            let refused = Refused::new("is in the list twice", "leave one out");
            reading.refuse(&at, Some(text), refused);
        }
        sockets.push(socket);
    }
    reading.finish(Some(match (is_wanted, sockets.is_empty()) {
        (false, _) => Containers(Vec::new()),
        (true, true) => Containers::default(),
        (true, false) => Containers(sockets),
    }))
}

fn parse_socket(text: &str) -> Result<SocketPath, Refused> {
    let refuse = |why: &str| {
        let remedy = "write the path of a Unix socket, such as /run/docker.sock";
        Err(Refused::new(why, remedy))
    };
    if text.contains("://") && !text.starts_with("unix:///") {
        return refuse("is no Unix socket: others are not asked");
    }
    // As DOCKER_HOST has it.
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') {
        return refuse("does not begin with a slash");
    }
    if path.len() > SOCKET_OCTETS_MAX {
        return refuse("is longer than the path of a socket may be");
    }
    if path.chars().any(char::is_control) {
        return refuse("has control characters");
    }
    Ok(SocketPath(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(names: Option<bool>, sockets: &[&str]) -> Result<Vec<String>, String> {
        let sockets = sockets.iter().map(|&path| path.to_owned()).collect();
        let containers =
            parse(wire::Containers { names, sockets }).map_err(|mistakes| mistakes.to_string())?;
        let text = |socket: &SocketPath| socket.as_path().display().to_string();
        Ok(containers.sockets().iter().map(text).collect())
    }

    #[test]
    fn the_usual_sockets_are_asked_unless_it_is_said_otherwise() {
        let usual = Ok(USUAL.map(str::to_owned).to_vec());
        assert_eq!(parsed(None, &[]), usual);
        assert_eq!(parsed(Some(true), &[]), usual);
        assert_eq!(parsed(Some(false), &[]), Ok(Vec::new()));
        assert_eq!(
            parsed(None, &["unix:///run/a.sock", "/run/b.sock"]),
            Ok(vec!["/run/a.sock".into(), "/run/b.sock".into()])
        );
    }

    #[test]
    fn what_is_no_path_of_a_socket_is_refused() {
        let long = format!("/{}", "x".repeat(SOCKET_OCTETS_MAX));
        let many: Vec<String> = (0..=SOCKETS_MAX).map(|n| format!("/run/{n}.sock")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for (names, sockets, told) in [
            (
                None,
                &["tcp://10.0.0.1:2375"][..],
                "sockets[0]: \"tcp://10.0.0.1:2375\" is no Unix socket",
            ),
            (
                None,
                &["/a", "run/docker.sock"],
                "sockets[1]: \"run/docker.sock\" does not begin",
            ),
            (None, &[""], "sockets[0]: \"\" does not begin"),
            (None, &[&long], "is longer than"),
            (None, &["/a\n"], "has control characters"),
            (None, &["/a", "/a"], "sockets[1]: \"/a\" is in the list twice"),
            (None, &many, "sockets: has 9 sockets"),
            (Some(false), &["/a"], "sockets: are given, and names is false"),
        ] {
            let refused = parsed(names, sockets).expect_err("refused");
            assert!(refused.contains(told), "{refused}");
        }
    }
}
