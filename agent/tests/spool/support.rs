//! What the tests of the spool share: values that can be told from any other, waits, file systems in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flowtilla_agent::spool::{LostCause, LostRange, Opened, Read, Reader, Spool, SpoolOptions, SpoolStatus};
use flowtilla_agent_core::spool::Value;
use flowtilla_proto::collector::Collector;
use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::wire;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// Long enough for a loaded machine; no wait takes it unless something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A value whose octets follow from its first sequence.
pub(crate) fn value(first: u64, records: u32, length: usize) -> Value {
    let mut octets = vec![0; length];
    fastrand::Rng::with_seed(first).fill(&mut octets);
    Value {
        first,
        records,
        octets: octets.into(),
    }
}

/// Whether a value is the one that [`value`] makes.
pub(crate) fn assert_true(found: &Value) {
    let made = value(found.first, found.records, found.octets.len());
    assert!(made == *found, "value {} is not what was appended", found.first);
}

pub(crate) fn options(directory: &Path) -> SpoolOptions {
    SpoolOptions {
        free_octets_min: 0,
        sync_interval: Duration::from_millis(20),
        ..SpoolOptions::in_directory(directory.join("spool"))
    }
}

/// Opens; the one before may need a moment to let the directory go.
pub(crate) fn open(options: &SpoolOptions) -> (Spool, Opened) {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
    let begun = flowtilla_agent::clock::instant();
    loop {
        match Spool::open(options.clone()) {
            Ok(opened) => return opened,
            Err(error) if begun.elapsed() > DEADLINE => panic!("{error}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

pub(crate) fn collector(name: &str) -> CollectorName {
    let sent = wire::Collector {
        name: name.to_owned(),
        endpoint: "tcp://127.0.0.1:5556".to_owned(),
        ..wire::Collector::default()
    };
    Collector::try_from(sent).unwrap().name
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until the status is as wanted.
pub(crate) fn wait(spool: &Spool, what: &str, wanted: impl FnMut(&SpoolStatus) -> bool) -> SpoolStatus {
    let mut status = spool.status();
    let waited = runtime().block_on(async {
        tokio::time::timeout(DEADLINE, status.wait_for(wanted))
            .await
            .map(|got| got.unwrap().clone())
    });
    waited.unwrap_or_else(|_| panic!("not {what}: {:?}", spool.status().borrow()))
}

pub(crate) fn wait_durable(spool: &Spool) {
    let newest = spool.newest();
    wait(spool, "all durable", |status| status.durable >= newest);
}

/// Reads all that may be read after `after`, and checks that it follows without a hole that is not told.
pub(crate) fn drain(reader: &Reader, after: u64) -> (Vec<Value>, Vec<LostRange>) {
    let (mut values, mut lost, mut after) = (Vec::new(), Vec::new(), after);
    runtime().block_on(async {
        loop {
            match reader.read(after, 256 << 10).await {
                Read::Values(found) => {
                    for value in found {
                        assert!(
                            value.first <= after + 1 && value.last() > after,
                            "value {} after {after}",
                            value.first
                        );
                        assert_true(&value);
                        after = value.last();
                        values.push(value);
                    }
                }
                Read::Lost { upto, cause } => {
                    assert!(upto > after, "lost up to {upto} after {after}");
                    lost.push(LostRange {
                        first: after + 1,
                        last: upto,
                        cause,
                    });
                    after = upto;
                }
                Read::Nothing => return (values, lost),
            }
        }
    })
}

/// Whether what was read is what was appended, and nothing was lost.
pub(crate) fn assert_same((values, lost): &(Vec<Value>, Vec<LostRange>), appended: &[Value]) {
    let firsts = |values: &[Value]| values.iter().map(|value| value.first).collect::<Vec<_>>();
    assert_eq!((firsts(values), lost), (firsts(appended), &vec![]));
    assert!(values == appended, "other octets");
}

pub(crate) fn records(values: &[Value]) -> u64 {
    values.iter().map(|value| u64::from(value.records)).sum()
}

pub(crate) fn lost_for(lost: &[LostRange], cause: LostCause) -> u64 {
    lost.iter()
        .filter(|range| range.cause == cause)
        .map(|range| range.last - range.first + 1)
        .sum()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An ext4 in a file, mounted for this thread, its children and nobody else: it goes with them, whatever ends them.
pub(crate) struct Image {
    pub(crate) file: PathBuf,
    mounted: PathBuf,
    _directory: TempDir,
}

impl Image {
    /// `None`: this machine or user cannot, and it was printed why.
    pub(crate) fn make(octets: u64, options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image");
        fs::File::create(&file).unwrap().set_len(octets).unwrap();
        let made = own_mounts().and_then(|()| {
            run(
                "mkfs.ext4",
                &[
                    "-q",
                    "-F",
                    "-m",
                    "0",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0",
                    text(&file),
                ],
            )
        });
        let image = Self {
            mounted: directory.path().join("mounted"),
            file,
            _directory: directory,
        };
        match made.and_then(|()| image.mount(options)) {
            Ok(()) => Some(image),
            Err(why) => {
                println!("skipped: no file system in a file: {why}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mounted
    }

    /// The same octets as another disk, as they are at this moment, without a sync.
    pub(crate) fn cut(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image");
        fs::copy(&self.file, &file).unwrap();
        let image = Self {
            mounted: directory.path().join("mounted"),
            file,
            _directory: directory,
        };
        image.mount("loop").unwrap();
        image
    }

    pub(crate) fn remount(&self, how: &str) -> Result<(), String> {
        run("mount", &["-o", &format!("remount,{how}"), text(&self.mounted)])
    }

    fn mount(&self, options: &str) -> Result<(), String> {
        fs::create_dir_all(&self.mounted).unwrap();
        run("mount", &["-o", options, text(&self.file), text(&self.mounted)])
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", text(&self.mounted)]);
    }
}

fn own_mounts() -> Result<(), String> {
    // SAFETY: only this thread's view of mounts becomes its own; no file descriptor is shared anew.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(|error| format!("unshare: {error}"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| format!("private mounts: {error}"))
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `soak` when the switch for long runs is set, else `usual`.
pub(crate) fn count(usual: u64, soak: u64) -> u64 {
    if std::env::var("FLOWTILLA_SOAK").is_ok_and(|set| set == "1") {
        soak
    } else {
        usual
    }
}
