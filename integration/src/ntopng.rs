//! A real ntopng, when the machine has one.
//!
//! `NTOPNG` names the binary, else the PATH is asked; `NTOPNG52` that of a version 5.2, which reads other flow records. It runs with a redis-server of its own, on loopback, in a
//! temporary folder, and is asked through its REST calls. A build that runs from its source folder brings its pages
//! along: they are taken when they stand beside the binary.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::need;
use crate::process::Process;
use crate::wait;

/// Environment variable with the path of the binary.
pub const VARIABLE: &str = "NTOPNG";
/// The same of a version 5.2.
pub const VARIABLE_52: &str = "NTOPNG52";
/// ntopng loads hundreds of scripts before it answers.
const START_WITHIN: Duration = Duration::from_secs(120);
/// ntopng ends in steps of a second.
const END_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A running ntopng.
#[derive(Debug)]
pub struct Ntopng {
    http: SocketAddr,
    zmq_port: u16,
    /// Declared in the order in which they must go.
    process: Process,
    _redis: Process,
    folder: TempDir,
}

/// Where the binary is, or why no ntopng can be run here.
///
/// # Errors
/// The reason, fit for a skip.
pub fn find() -> Result<PathBuf, String> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let Some(binary) = named.or_else(|| need::on_path("ntopng")) else {
        return Err(format!(
            "no ntopng: neither {VARIABLE} nor the PATH has one (Debian packages none)"
        ));
    };
    runnable(VARIABLE, binary)
}

/// The same of a version 5.2.
///
/// # Errors
/// The reason, fit for a skip.
pub fn find_52() -> Result<PathBuf, String> {
    match std::env::var_os(VARIABLE_52) {
        Some(binary) => runnable(VARIABLE_52, binary.into()),
        None => Err(format!(
            "no ntopng 5.2: {VARIABLE_52} names none (Debian packages none)"
        )),
    }
}

fn runnable(variable: &str, binary: PathBuf) -> Result<PathBuf, String> {
    if !binary.is_file() {
        return Err(format!("{variable}: {} is no file", binary.display()));
    }
    match need::Need::Program("redis-server", "redis-server").lacks() {
        Some(reason) => Err(reason),
        None => Ok(binary),
    }
}

impl Ntopng {
    /// Starts it with one ZeroMQ interface that binds; `flags` are more of ntopng's own.
    ///
    /// # Errors
    /// When it does not come up, with the end of its log.
    pub fn start(binary: &Path, flags: &[&str]) -> Result<Self> {
        let [zmq_port] = free_ports()?;
        Self::start_at(binary, zmq_port, flags)
    }

    /// Starts it at this port of ZeroMQ, as new: of a former one it knows nothing.
    ///
    /// # Errors
    /// When it does not come up, with the end of its log.
    pub fn start_at(binary: &Path, zmq_port: u16, flags: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [http, redis_port] = free_ports()?;
        let redis = start_redis(folder.path(), redis_port)?;
        let data = folder.path().join("data");
        // ntopng 5 does not make the folder its keys go to.
        std::fs::create_dir_all(data.join("0"))?;
        let mut command = Command::new(binary);
        command
            .args(["-i", &format!("tcp://127.0.0.1:{zmq_port}c")])
            .args(["-w", &format!("127.0.0.1:{http}"), "-W", "0"])
            .args(["-r", &format!("127.0.0.1:{redis_port}@0")])
            .args(["-n", "3", "-l", "1", "-s"])
            .args(["-m", "10.0.0.0/8,192.168.0.0/16,172.16.0.0/12,fd00::/8"])
            .arg("-d")
            .arg(&data)
            .arg("-G")
            .arg(folder.path().join("ntopng.pid"));
        let home = binary.parent().context("a file lies in a folder")?;
        if home.join("httpdocs").is_dir() && home.join("scripts").is_dir() {
            command.current_dir(home).arg("-t").arg(home);
            command.arg("-1").arg(home.join("httpdocs"));
            command.arg("-2").arg(home.join("scripts"));
            command.arg("-3").arg(home.join("scripts/callbacks"));
        }
        // Last, because ntopng 5 does not know it and ignores whatever follows.
        command.args(flags).arg("--offline");
        let mut ntopng = Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, http)),
            zmq_port,
            process: Process::start(command)?,
            _redis: redis,
            folder,
        };
        ntopng.wait_until_ready()?;
        Ok(ntopng)
    }

    /// Where agents connect to.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.zmq_port)
    }

    /// Folder of its data, keys included.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Answer of a page, such as `/lua/rest/v2/get/interface/data.lua?ifid=0`.
    ///
    /// # Errors
    /// When it does not answer with status 200 and JSON.
    pub fn ask(&self, path: &str) -> Result<Value> {
        let text = http_ask(self.http, path)?;
        serde_json::from_str(&text).with_context(|| format!("read ntopng's answer to {path}: {text}"))
    }

    /// ZeroMQ counters of its interface: `zmq_msg_rcvd`, `zmq_msg_drops`, `flows`, `dropped_flows`, `events`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn zmq_counters(&self) -> Result<Value> {
        let answer = self.ask("/lua/rest/v2/get/interface/data.lua?ifid=0")?;
        Ok(answer["rsp"]["zmqRecvStats"].clone())
    }

    /// Active flows; `filter` such as `&username=root`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn flows(&self, filter: &str) -> Result<Vec<Value>> {
        let path = format!("/lua/rest/v2/get/flow/active_list.lua?ifid=0&start=0&length=1000{filter}");
        let answer = self.ask(&path)?;
        let list = match &answer["rsp"] {
            Value::Array(list) => list,
            object => object["data"]
                .as_array()
                .context("no list of flows in the answer")?,
        };
        Ok(list.clone())
    }

    /// Rows of a page's table, such as `/lua/get_containers_data.lua?ifid=0`.
    ///
    /// # Errors
    /// When it does not answer with a table.
    pub fn rows(&self, path: &str) -> Result<Vec<Value>> {
        let answer = self.ask(path)?;
        let rows = answer["data"].as_array();
        Ok(rows
            .with_context(|| format!("no table at {path}: {answer}"))?
            .clone())
    }

    /// IP octets that a host has sent and received, as ntopng counted them; (0, 0): it does not know the host.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn host_octets(&self, address: &str) -> Result<(u64, u64)> {
        let answer = self.ask(&format!("/lua/rest/v2/get/host/data.lua?ifid=0&host={address}"))?;
        let number = |name: &str| answer["rsp"][name].as_u64().unwrap_or(0);
        Ok((number("bytes.sent"), number("bytes.rcvd")))
    }

    /// Stops all its threads: its kernel still takes octets.
    ///
    /// # Errors
    /// When it has ended.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets a frozen one go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Ends it without a chance to handle what it has.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(mut self) -> Result<()> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait_end(END_WITHIN).map(drop)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let lines = self.process.out().clone();
        self.process
            .wait_for_line(lines, START_WITHIN, "binding", |line| {
                line.contains("Collecting flows on").then_some(())
            })
            .with_context(|| {
                let log = self.process.out().all();
                format!(
                    "its log ends: {}",
                    log[log.len().saturating_sub(10)..].join(" | ")
                )
            })?;
        wait::until(START_WITHIN, "answer of ntopng", || {
            let answer = self.ask("/lua/rest/v2/get/ntopng/interfaces.lua");
            Ok(answer.ok().filter(|answer| answer["rc"] == 0).map(drop))
        })
    }
}

impl Drop for Ntopng {
    fn drop(&mut self) {
        if !self.process.is_running().unwrap_or(true) {
            return;
        }
        // A frozen one would not hear the rest.
        let _ = self.thaw();
        let ended = self
            .process
            .signal(Signal::SIGTERM)
            .and_then(|()| self.process.wait_end(END_WITHIN));
        if let Err(error) = ended {
            eprintln!("ntopng is killed: {error:#}");
        }
    }
}

fn start_redis(folder: &Path, port: u16) -> Result<Process> {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(folder);
    let redis = Process::start(command)?;
    wait::until_true(wait::PATIENCE, "redis-server", || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
    })?;
    Ok(redis)
}

/// Ports that were free a moment ago.
///
/// # Errors
/// When none is free.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}

/// Body of an answer. HTTP/1.0, so that it ends with the connection and has no chunks.
fn http_ask(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets)?;
    let text = String::from_utf8_lossy(&octets);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .context("an answer without end of head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(
        status.split(' ').nth(1) == Some("200"),
        "ntopng answers {path} with {status}"
    );
    Ok(body.to_owned())
}
