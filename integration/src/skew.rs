//! The wall clock of one process, set forward and back while it runs; the machine's clock is not touched.
//!
//! Programs read clocks through the vDSO, code that the kernel maps into each process. Its `clock_gettime` is replaced,
//! in the memory of one process, by code that asks the kernel and adds to `CLOCK_REALTIME` a number of seconds that
//! stands behind it. To this process it is what a person does who sets the clock: other clocks run on. Root may write
//! there by `/proc/PID/mem`, as debuggers do for breakpoints; the page becomes the process's own.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{self, PATIENCE};

/// ```text
/// 0   b8 e4 00 00 00        mov eax, 228 (clock_gettime)
/// 5   0f 05                 syscall
/// 7   85 ff                 test edi, edi (CLOCK_REALTIME)
/// 9   75 0a                 jne 21
/// 11  48 8b 0d 06 00 00 00  mov rcx, [24]
/// 18  48 01 0e              add [rsi], rcx (tv_sec)
/// 21  c3                    ret
/// 22  90 90                 nop
/// 24  seconds to add, i64
/// ```
const CODE: [u8; 24] = [
    0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x85, 0xff, 0x75, 0x0a, 0x48, 0x8b, 0x0d, 6, 0, 0, 0, 0x48, 0x01, 0x0e,
    0xc3, 0x90, 0x90,
];
/// Name that the loader has for the vDSO of every process.
const LIBRARY: &str = "linux-vdso.so.1";

/// A process with a wall clock of its own.
#[derive(Debug)]
pub struct Skewed {
    memory: File,
    /// Where the seconds stand.
    seconds_at: u64,
}

/// Why no clock can be set on this machine; `None`: it can.
#[must_use]
pub fn lacks() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("needs the clock of one process, whose code is written for x86_64".to_owned());
    }
    crate::need::Need::Root.lacks()
}

impl Skewed {
    /// Gives the process a clock of its own, still right.
    ///
    /// # Errors
    /// When not root, or the process has ended.
    pub fn new(pid: u32) -> Result<Self> {
        let (start, end) = vdso(&pid.to_string())?;
        let at = start + offset_in_vdso()?;
        ensure!(
            at.is_multiple_of(8) && at + 32 <= end,
            "clock_gettime of the vDSO at {at:#x}"
        );
        let path = format!("/proc/{pid}/mem");
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .context(path)?;
        // No thread may be within what is overwritten.
        let process = Pid::from_raw(i32::try_from(pid)?);
        kill(process, Signal::SIGSTOP)?;
        let written = wait::until_true(PATIENCE, "a moment without a clock reading", || {
            if outside(pid, start, end).unwrap_or(false) {
                return true;
            }
            // Let them get on, a little.
            let _ = kill(process, Signal::SIGCONT).and_then(|()| kill(process, Signal::SIGSTOP));
            false
        })
        .and_then(|()| {
            memory.write_all_at(&0_i64.to_le_bytes(), at + CODE.len() as u64)?;
            Ok(memory.write_all_at(&CODE, at)?)
        });
        kill(process, Signal::SIGCONT)?;
        written.context("write the clock of one process")?;
        Ok(Self {
            memory,
            seconds_at: at + CODE.len() as u64,
        })
    }

    /// Sets its wall clock to what is right and `seconds` more.
    ///
    /// # Errors
    /// When it has ended.
    pub fn set(&self, seconds: i64) -> Result<()> {
        Ok(self
            .memory
            .write_all_at(&seconds.to_le_bytes(), self.seconds_at)?)
    }
}

/// Whether all threads stand still, none of them in `start..end`.
fn outside(pid: u32, start: u64, end: u64) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("syscall"))?;
        // `running`, or `... SP PC`.
        let Some(pc) = text
            .trim()
            .rsplit(' ')
            .next()
            .and_then(|word| word.strip_prefix("0x"))
        else {
            return Ok(false);
        };
        if (start..end).contains(&u64::from_str_radix(pc, 16)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where a process has its vDSO.
fn vdso(process: &str) -> Result<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps"))?;
    let line = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .context("no vDSO")?;
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let (start, end) = range.context("no range")?;
    Ok((u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?))
}

/// Where `clock_gettime` is in every vDSO of this machine, asked of the own one.
fn offset_in_vdso() -> Result<u64> {
    let library = crate::collector::library::open(LIBRARY)?;
    // SAFETY: only its address is taken.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>(b"__vdso_clock_gettime\0") }?;
    let (start, _) = vdso("self")?;
    (*symbol as usize as u64)
        .checked_sub(start)
        .context("clock_gettime lies outside of the vDSO")
}
