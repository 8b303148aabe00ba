//! Brief pods: each lives some 50 ms, connects once to a port of its own, by which its flow is found, and is gone.
//!
//! Every other one is in the host's network; they go through all classes, and under names that come again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::{Class, Cri, Pod, Running};
use crate::netns::NetNs;
use crate::wait::PATIENCE;
use crate::workers;

/// Pods of the full count.
pub const PODS: usize = 200;
/// Port that the first one connects to; each has the next.
pub const PORT: usize = 22_000;
/// Pods started at a time.
const AT_ONCE: usize = 3;
/// Pods that each worker leaves before it removes the first: a kubelet removes what ended after some seconds.
const LEFT_FOR_LATER: usize = 3;

/// Whether a port is one of those that pods connect to.
#[must_use]
pub fn is_port(port: u64) -> bool {
    usize::try_from(port).is_ok_and(|port| (PORT..PORT + PODS).contains(&port))
}

/// What ran, by port.
pub type Ran = BTreeMap<usize, (Pod, Running)>;

/// Runs the pods of these numbers, several at a time; their names are `names` in turn.
///
/// # Errors
/// What the runtime says; a pod that does not connect.
pub fn run(
    cri: impl Fn() -> Result<Cri> + Sync,
    served: &Served,
    names: usize,
    which: Range<usize>,
) -> Result<Ran> {
    let run = workers::share(AT_ONCE, which, |numbers| {
        let cri = cri()?;
        let (mut run, mut left) = (Vec::new(), VecDeque::new());
        for n in numbers {
            let pod = pod(n, names, served.address);
            let running = cri.run_pod(&pod)?;
            served.wait(PORT + n)?;
            left.push_back(running.sandbox.clone());
            if left.len() > LEFT_FOR_LATER
                && let Some(first) = left.pop_front()
            {
                cri.remove_pod(&first)?;
            }
            run.push((PORT + n, (pod, running)));
        }
        left.iter().try_for_each(|sandbox| cri.remove_pod(sandbox))?;
        Ok(run)
    })?;
    Ok(run.into_iter().collect())
}

fn pod(n: usize, names: usize, to: Ipv4Addr) -> Pod {
    Pod {
        name: format!("web-{}", n % names),
        uid: format!("00000000-0000-4000-8000-{n:012}"),
        class: Class::ALL[n % Class::ALL.len()],
        on_host: n % 2 == 1,
        script: format!("sleep 0.05; echo {n} | nc -w 10 {to} {}", PORT + n),
    }
}

/// Where pods connect to.
#[derive(Clone)]
pub struct Served {
    address: Ipv4Addr,
    /// Whose connection was read to its end.
    ports: Arc<(Mutex<BTreeSet<usize>>, Condvar)>,
}

impl Served {
    fn wait(&self, port: usize) -> Result<()> {
        let (ports, changed) = &*self.ports;
        let ports = ports.lock().unwrap_or_else(PoisonError::into_inner);
        let (ports, _) = changed
            .wait_timeout_while(ports, PATIENCE, |ports| !ports.contains(&port))
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(ports.contains(&port), "nobody connected to {port}");
        Ok(())
    }

    fn tell(&self, port: usize) {
        let (ports, changed) = &*self.ports;
        let mut ports = ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.insert(port);
        changed.notify_all();
    }
}

/// Takes every connection to so many ports of a host and reads it to its end.
///
/// # Errors
/// When a port is taken.
pub fn serve(host: &NetNs, address: Ipv4Addr, ports: usize) -> Result<Served> {
    let served = Served {
        address,
        ports: Arc::default(),
    };
    for port in PORT..PORT + ports {
        let at = SocketAddr::from((address, u16::try_from(port)?));
        let listener = host.enter(|| Ok(TcpListener::bind(at)?))?;
        let served = served.clone();
        // Ends with the test's process: it holds nothing but its socket.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read_to_end(&mut Vec::new());
                drop(stream);
                served.tell(port);
            }
        });
    }
    Ok(served)
}
