//! What is done once, at the start: take the directory, read the small files, tell the next sequence.

use std::fs::{self, File};
use std::path::PathBuf;

use bytes::Bytes;
use flowtilla_agent_core::loss::CollectorLaw;
use flowtilla_agent_core::spool::{Cursor, Passed};

use super::files::{self, Format, Layout, Mark};
use super::lost::{Losses, LostCause};
use super::shared::{Cursors, Shared, held};
use super::store::Store;
use super::tail::Tail;
use super::{Checkpoint, SetAside, SpoolError};

/// The directory, as far as it could be had.
pub(crate) struct Claim {
    pub(crate) lock: Option<File>,
    pub(crate) set_aside: Vec<SetAside>,
    /// Why it cannot be written.
    pub(crate) refusal: Option<String>,
}

/// Locks the directory and makes what is missing. What another version wrote is set aside as a whole.
pub(crate) fn claim(layout: &Layout) -> Result<Claim, SpoolError> {
    let unreadable = |source| SpoolError::Unreadable {
        path: layout.directory.clone(),
        source,
    };
    let mut claim = Claim {
        lock: None,
        set_aside: Vec::new(),
        refusal: None,
    };
    claim.take(layout)?;
    match layout.read_format().map_err(unreadable)? {
        Format::Known => {}
        Format::Absent => claim.refused(layout.make().err()),
        Format::Unknown(found) => {
            let aside = free_name(&layout.directory);
            fs::rename(&layout.directory, &aside).map_err(unreadable)?;
            tracing::error!(found, path = %aside.display(), "a spool of another version was set aside; none of it is sent");
            claim.set_aside.push(SetAside {
                path: aside,
                first: 0,
                last: 0,
            });
            claim.lock = None;
            claim.take(layout)?;
            claim.refused(layout.make().err());
        }
    }
    Ok(claim)
}

impl Claim {
    fn take(&mut self, layout: &Layout) -> Result<(), SpoolError> {
        self.refused(files::make_directory(&layout.directory).err());
        layout.check_owner()?;
        match layout.lock() {
            Ok(Some(lock)) => self.lock = Some(lock),
            Ok(None) => return Err(SpoolError::Locked(layout.directory.clone())),
            Err(error) => self.refused(Some(error)),
        }
        Ok(())
    }

    fn refused(&mut self, error: Option<std::io::Error>) {
        if let Some(error) = error {
            self.refusal
                .get_or_insert_with(|| format!("the spool's directory cannot be used: {error}"));
        }
    }
}

fn free_name(directory: &std::path::Path) -> PathBuf {
    let name = |n: u32| {
        let mut name = directory.as_os_str().to_owned();
        name.push(format!(".set-aside-{n}"));
        PathBuf::from(name)
    };
    (0..u32::MAX)
        .map(name)
        .find(|path| !path.exists())
        .unwrap_or_else(|| name(u32::MAX))
}

/// What the small files say.
pub(crate) struct Files {
    pub(crate) cursors: Cursors,
    pub(crate) unreadable: Vec<String>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) losses: Losses,
    pub(crate) ledger: Option<Bytes>,
    /// The last sequence that any of them speaks of.
    pub(crate) known: u64,
    pub(crate) clean: bool,
}

impl Files {
    pub(crate) fn load(layout: &Layout) -> std::io::Result<Self> {
        let (by_collector, unreadable) = layout.load_cursors()?;
        let checkpoint = layout.load_checkpoint().unwrap_or_else(|error| {
            tracing::error!(%error, "the checkpoint is not used");
            None
        });
        let ledger = layout.load_ledger().unwrap_or_else(|error| {
            tracing::error!(%error, "the ledger is not used");
            None
        });
        let losses = layout.load_losses().unwrap_or_else(|error| {
            tracing::error!(%error, "what was lost earlier is not known");
            None
        });
        let losses = losses.unwrap_or_default();
        let mark = Mark::load(layout)?;
        let sequences = by_collector
            .values()
            .flat_map(|cursor| [cursor.begin, cursor.read, cursor.taken])
            .chain(checkpoint.as_ref().map(|checkpoint| checkpoint.sequence))
            .chain(losses.ranges().last().map(|range| range.last))
            .chain(mark.map(|(last, _)| last));
        let known = sequences.max().unwrap_or(0);
        Ok(Self {
            known,
            // A directory that nothing was ever kept in has nothing to be unclean about.
            clean: mark.map_or(known == 0, |(_, clean)| clean),
            cursors: Cursors {
                by_collector,
                ..Cursors::default()
            },
            unreadable,
            checkpoint,
            ledger,
            losses,
        })
    }
}

/// Says where the sequences go on, and which records of the last run never reached the disk. Tells both.
pub(crate) fn settle(shared: &Shared, store: &Store, files: &Files, on_disk: Option<u64>) -> (u64, u64) {
    let newest = files.known.max(on_disk.unwrap_or(0));
    *held(&shared.tail) = Tail::new(newest, shared.options.tail_octets_max);
    shared.count(|status| status.durable = newest);
    shared.raise_readable(newest);

    let oldest = store.oldest().unwrap_or(newest + 1) - 1;
    let mut cursors = held(&shared.cursors);
    for name in &files.unreadable {
        tracing::error!(
            collector = name,
            "its cursor is damaged: it gets everything there is once more"
        );
        cursors.put(name.clone(), begin_at(oldest));
    }
    drop(cursors);

    let from = on_disk.unwrap_or(0).max(shared.passed());
    let lost = if from < newest {
        held(&shared.losses).add(from + 1, newest, LostCause::SpoolDamaged)
    } else {
        0
    };
    shared.count_lost(lost, LostCause::SpoolDamaged);
    (newest, lost)
}

/// A cursor that has everything up to `sequence` behind it.
pub(crate) fn begin_at(sequence: u64) -> Cursor {
    Cursor {
        begin: sequence,
        read: sequence,
        taken: sequence,
        law: CollectorLaw::default(),
        at_risk: Passed::default(),
        member: None,
    }
}

/// Lets what sled frees go back to the kernel.
///
/// glibc keeps freed blocks below a threshold that grows by itself with the largest block freed, here to 512 KiB: sled's
/// buffers then stay with the process, spread over the arenas of its threads. A fixed threshold gives back each of them
/// as it is freed. Measured in [`super`]: 7 MiB instead of 33 MiB. It holds for the whole process.
pub(crate) fn settle_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Blocks from here on are mapped each for itself: sled's pages and buffers, and no record.
        const MMAP_THRESHOLD: libc::c_int = 64 << 10;
        // SAFETY: mallopt takes two numbers, and is safe to call from any thread.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD) };
        if set != 1 {
            tracing::warn!("the allocator keeps its threshold: the spool takes more memory");
        }
    }
}
