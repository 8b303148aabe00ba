//! The fleet as the store has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{Rollout, RolloutState};
use prost::Message;

use super::agent::Agent;
use super::content::{Content, Contents};
use super::members::Members;
use super::questions::Questions;
use super::rollouts::{Rollouts, Run};
use super::row::{AgentRow, META_KEY, MetaRow, RevisionRow, RolloutRow};
use super::source::SourceIds;
use super::{Fleet, Now, targets};
use crate::policy::Objects;
use crate::store::{Batch, Entry, Store, StoreError, Table};

/// Entries that are read from a table at once.
///
/// Bounds the memory of a read. Half of it asks twice as often; double it for nothing.
const SCAN: usize = 1_024;

/// Why the fleet cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row is not what it should be.
    #[error("the store's {table:?} has a row that cannot be read: {why}; restore a backup")]
    Row {
        /// Where.
        table: Table,
        /// Why.
        why: String,
    },
}

fn row(table: Table, why: impl ToString) -> LoadError {
    LoadError::Row {
        table,
        why: why.to_string(),
    }
}

/// Every entry of a table.
fn all(store: &dyn Store, table: Table) -> Result<Vec<Entry>, StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map(|(key, _)| key.clone());
        let more = store.scan(table, after.as_deref(), SCAN)?;
        let complete = more.len() < SCAN;
        entries.extend(more);
        if complete {
            return Ok(entries);
        }
    }
}

/// A revision, when it is kept.
///
/// # Errors
///
/// [`LoadError`].
pub(super) fn revision(store: &dyn Store, number: u64) -> Result<Option<RevisionRow>, LoadError> {
    let value = store.value(Table::Revisions, &number.to_be_bytes())?;
    value
        .map(|value| RevisionRow::decode(&value[..]).map_err(|error| row(Table::Revisions, error)))
        .transpose()
}

/// A rollout, when it is kept.
///
/// # Errors
///
/// [`LoadError`].
pub(super) fn rollout(store: &dyn Store, id: u64) -> Result<Option<RolloutRow>, LoadError> {
    let value = store.value(Table::Rollouts, &id.to_be_bytes())?;
    value
        .map(|value| RolloutRow::decode(&value[..]).map_err(|error| row(Table::Rollouts, error)))
        .transpose()
}

fn objects(store: &dyn Store, number: u64) -> Result<Objects, LoadError> {
    if number == 0 {
        return Ok(Objects::default());
    }
    let kept =
        revision(store, number)?.ok_or_else(|| row(Table::Revisions, format!("{number} is missing")))?;
    Objects::from_wire(&kept.objects).map_err(|mistakes| {
        let first = mistakes.0.first().map(|found| found.mistake.to_string());
        row(
            Table::Revisions,
            format!("{number}: {}", first.unwrap_or_default()),
        )
    })
}

impl Fleet {
    /// Reads the fleet. No agent is connected.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn load(store: &dyn Store, now: Now) -> Result<Self, LoadError> {
        let meta = match store.value(Table::Meta, META_KEY)? {
            Some(value) => MetaRow::decode(&value[..]).map_err(|error| row(Table::Meta, error))?,
            None => MetaRow::default(),
        };
        let mut contents = Contents::default();
        let mut kept = Vec::new();
        for (_, value) in all(store, Table::Contents)? {
            let content = Content::from_octets(&value).map_err(|error| row(Table::Contents, error))?;
            kept.push(contents.keep(content));
        }
        let mut batch = Batch::default();
        let now_objects = objects(store, meta.revision)?;
        let settled_objects = objects(store, meta.settled)?;
        let now_targets = targets(&now_objects, meta.revision, &mut contents, &mut batch);
        let settled = targets(&settled_objects, meta.settled, &mut contents, &mut batch);
        let mut agents = BTreeMap::new();
        for (key, value) in all(store, Table::Agents)? {
            let kept = AgentRow::decode(&value[..]).map_err(|error| row(Table::Agents, error))?;
            let agent = Agent::from_row(kept, &contents).map_err(|error| row(Table::Agents, error))?;
            agents.insert(name(Table::Agents, &key)?, agent);
        }
        let mut sources = SourceIds::default();
        for (key, value) in all(store, Table::SourceIds)? {
            let number = <[u8; 4]>::try_from(&key[..])
                .map(u32::from_be_bytes)
                .map_err(|error| row(Table::SourceIds, error))?;
            let id = SourceId::new(number).ok_or_else(|| row(Table::SourceIds, "0 names no source"))?;
            sources.restore(id, name(Table::SourceIds, &value)?);
        }
        let mut fleet = Self {
            traceparent: Arc::from(meta.traceparent.as_str()),
            meta,
            objects: now_objects,
            targets: now_targets,
            settled_objects,
            settled,
            agents,
            sessions: BTreeMap::new(),
            sources,
            contents,
            rollouts: rollouts(store)?,
            members: Members::new(now),
            questions: Questions::default(),
            forget_at_ms: 0,
            dirty: BTreeSet::new(),
            meta_dirty: false,
            batch,
            speech: VecDeque::new(),
        };
        drop(kept);
        fleet.rollouts.touch();
        let ids: Vec<MemberName> = fleet.agents.keys().cloned().collect();
        for id in &ids {
            fleet.settle(id);
        }
        Ok(fleet)
    }
}

fn name(table: Table, octets: &[u8]) -> Result<MemberName, LoadError> {
    let text = std::str::from_utf8(octets).map_err(|error| row(table, error))?;
    MemberName::parse(text).map_err(|mistakes| row(table, mistakes))
}

fn rollouts(store: &dyn Store) -> Result<Rollouts, LoadError> {
    let mut rollouts = Rollouts::default();
    for (_, value) in all(store, Table::Rollouts)? {
        let kept = RolloutRow::decode(&value[..]).map_err(|error| row(Table::Rollouts, error))?;
        let state = RolloutState::try_from(kept.state).unwrap_or_default();
        if kept.ended_ms != 0 {
            let summary = kept.ended.and_then(|event| event.rollout).unwrap_or(Rollout {
                id: kept.id,
                ..Rollout::default()
            });
            rollouts.past.insert(kept.id, summary);
            continue;
        }
        let names: Vec<String> =
            serde_json::from_slice(&kept.machine).map_err(|error| row(Table::Rollouts, error))?;
        let population = names
            .iter()
            .map(|text| name(Table::Rollouts, text.as_bytes()))
            .collect::<Result<_, _>>()?;
        let run = Run {
            id: kept.id,
            revision: kept.revision,
            policy: kept.policy,
            began_ms: kept.began_ms,
            state,
            failures: kept.failures,
            population,
        };
        rollouts.runs.insert(kept.id, run);
    }
    Ok(rollouts)
}
