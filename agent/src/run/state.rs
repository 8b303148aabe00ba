//! What an agent finds of the one before: its spool, what it had reported, law 1 of all runs.

use std::io;
use std::path::Path;

use flowtilla_agent_core::flow::checkpoint::Checkpoint;
use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::flow::restore::Restore;
use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::spool::value;
use flowtilla_proto::policy::Buffer;

use crate::clock;
use crate::spool::{self, Bounds, Opened, Spool};

/// A directory that goes with the agent: where `TMPDIR` says, otherwise on a disk. `/tmp` may be memory.
pub(super) fn temporary() -> io::Result<tempfile::TempDir> {
    let on_disk = Path::new("/var/tmp");
    let place = match std::env::var_os("TMPDIR") {
        None if on_disk.is_dir() => on_disk.to_owned(),
        _ => std::env::temp_dir(),
    };
    tempfile::Builder::new().prefix("flowtilla-up-").tempdir_in(place)
}

pub(super) fn bounds(buffer: &Buffer) -> Bounds {
    Bounds {
        octets_max: buffer.octets_max,
        age_max: buffer.age_max,
        free_octets_min: buffer.free_octets_min,
        sync_interval: buffer.sync_interval,
    }
}

/// Records that are read back at a start when there is no checkpoint. There is one after 8 MiB of values, and each minute.
const REPLAY_RECORDS_MAX: u64 = 1_000_000;

/// What the agent before had reported: its checkpoint, and the records after it.
pub(super) fn restore(spool: &Spool, stored: Option<&spool::Checkpoint>, boot: BootId) -> Restore {
    let offset = clock::wall_offset();
    let nothing = || {
        let after = spool.newest().saturating_sub(REPLAY_RECORDS_MAX);
        (Restore::new(boot, offset), after)
    };
    let (mut restore, after) = match stored {
        None => nothing(),
        Some(stored) => match Checkpoint::from_octets(&stored.octets) {
            Ok(checkpoint) => (
                Restore::from_checkpoint(boot, offset, checkpoint),
                stored.sequence,
            ),
            Err(error) => {
                tracing::warn!(%error, "what was reported before the start cannot be told: connections begin anew");
                nothing()
            }
        },
    };
    let replayed = spool.replay(after, |value| {
        match value::decode(&value.octets, Some(value.first)) {
            Ok((header, records)) => (header.first..)
                .zip(&records)
                .filter(|&(sequence, _)| sequence > after)
                .for_each(|(_, record)| restore.replay(record)),
            Err(error) => {
                tracing::warn!(%error, first = value.first, "a value of the spool cannot be read back")
            }
        }
    });
    tracing::info!(
        values = replayed.values,
        gaps = replayed.lost.len(),
        sockets = restore.sockets(),
        "read back what was reported before the start"
    );
    restore
}

/// Law 1 over the runs before this one, and this one begun.
pub(super) fn ledger(opened: &Opened) -> Ledger {
    let kept = opened.ledger.as_deref().map(serde_json::from_slice::<Ledger>);
    kept.transpose()
        .unwrap_or_else(|error| {
            tracing::warn!(%error, "law 1 of earlier runs is not known");
            None
        })
        .unwrap_or_default()
        .begin(opened.clean)
}

/// What a start has to say about the run before.
pub(super) fn report_opened(opened: &Opened) {
    for aside in &opened.set_aside {
        tracing::warn!(path = %aside.path.display(), first = aside.first, last = aside.last, "a part of the spool cannot be read and was set aside");
    }
    if !opened.clean {
        tracing::warn!(
            lost = opened.lost,
            "the last run did not stop cleanly: records that were not yet on disk are lost, and flows that ended since"
        );
    }
}
