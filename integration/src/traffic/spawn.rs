//! Processes that connect once and are gone, and storms of them.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};

use super::client::{self, Plan};
use super::{Storm, Truth, tell};
use crate::wait::Stopwatch;

/// Most processes of a storm that may be alive at once; beyond it the storm waits.
///
/// A machine that is too slow for the rate gets a longer storm, not a fork bomb.
const ALIVE_MAX: usize = 256;

/// Connects once, with the smallest exchange, and returns.
///
/// # Errors
/// When the server is not there.
pub fn once(to: SocketAddr, tag: &str) -> Result<()> {
    client::connect(&Plan {
        to,
        from: None,
        count: 1,
        concurrent: 1,
        request: 0,
        reply: 1,
        until_closed: false,
        pause_us: 0,
        hold: false,
        expect_reset: false,
        tag: tag.to_owned(),
        ignored: Vec::new(),
    })
}

/// Starts `total` processes that do [`once`], `rate` a second, each with its own tag.
///
/// # Errors
/// When a process cannot be started.
pub fn storm(to: SocketAddr, rate: u32, total: usize) -> Result<()> {
    let me = std::env::current_exe()?;
    let watch = Stopwatch::start();
    let mut alive: Vec<Child> = Vec::new();
    let mut failed = 0;
    for index in 0..total {
        let due = Duration::from_secs(1) * u32::try_from(index)? / rate;
        loop {
            failed += reap(&mut alive)?;
            if watch.elapsed() >= due && alive.len() < ALIVE_MAX {
                break;
            }
            std::thread::sleep(due.saturating_sub(watch.elapsed()).min(Duration::from_millis(1)));
        }
        let child = Command::new(&me)
            .args(["once", &to.to_string(), &format!("storm-{index}")])
            .spawn()
            .context("start a short process")?;
        alive.push(child);
    }
    let took_ms = u64::try_from(watch.elapsed().as_millis())?;
    for mut child in alive {
        failed += u64::from(!child.wait()?.success());
    }
    tell(&Truth::Storm(Storm {
        started: total as u64,
        failed,
        took_ms,
    }))
}

fn reap(alive: &mut Vec<Child>) -> Result<u64> {
    let mut failed = 0;
    let mut still = Vec::with_capacity(alive.len());
    for mut child in alive.drain(..) {
        match child.try_wait()? {
            None => still.push(child),
            Some(status) => failed += u64::from(!status.success()),
        }
    }
    *alive = still;
    Ok(failed)
}
