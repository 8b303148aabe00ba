//! The fleet as the store has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::spiffe::MemberName;
use prost::Message;

use super::agent::Agent;
use super::assign::targets;
use super::content::{Content, Contents};
use super::members::Members;
use super::questions::Questions;
use super::rollouts::Rollouts;
use super::row::{AgentRow, HoldingsRow, META_KEY, MetaRow, RevisionRow, RolloutRow, bucket};
use super::short::ShortIds;
use super::source::SourceIds;
use super::top::Tops;
use super::{Fleet, Now, Numbers};
use crate::policy::Objects;
use crate::rollout::{Head, Member, Moment, Rollout};
use crate::store::counter::{self, Counter};
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
        let numbers = Numbers {
            epoch: counter::epoch(store)?,
            version: Counter::Version.last(store)?,
            revision: Counter::Revision.last(store)?,
            rollout: Counter::Rollout.last(store)?,
            source: Counter::SourceId.last(store)?,
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
        // What is there need not be written: a fleet that is read on a full disk can answer at least.
        let there: BTreeSet<&[u8]> = kept.iter().map(|content| &content.digest[..]).collect();
        batch
            .0
            .retain(|(table, key, _)| *table != Table::Contents || !there.contains(&key[..]));
        let mut agents = BTreeMap::new();
        let mut holdings = BTreeMap::new();
        for (_, value) in all(store, Table::Holdings)? {
            let kept = HoldingsRow::decode(&value[..]).map_err(|error| row(Table::Holdings, error))?;
            holdings.extend(kept.agents.into_iter().map(|kept| (kept.agent.clone(), kept)));
        }
        let mut buckets = BTreeSet::new();
        for (key, value) in all(store, Table::Agents)? {
            let kept = AgentRow::decode(&value[..]).map_err(|error| row(Table::Agents, error))?;
            let id = name(Table::Agents, &key)?;
            let holding = holdings.remove(id.as_str());
            if holding.is_none() {
                buckets.insert(bucket(id.as_str()));
            }
            let mut agent =
                Agent::from_row(kept, holding, &contents).map_err(|error| row(Table::Agents, error))?;
            // What is offered again belongs to the deploy that it brings; of earlier ones no context is kept.
            if let Some(wanted) = &mut agent.wanted
                && wanted.content.revision == meta.revision
            {
                wanted.traceparent = Arc::from(meta.traceparent.as_str());
            }
            agents.insert(id, agent);
        }
        let mut sources = SourceIds::default();
        for (key, value) in all(store, Table::SourceIds)? {
            let number = <[u8; 4]>::try_from(&key[..])
                .map(u32::from_be_bytes)
                .map_err(|error| row(Table::SourceIds, error))?;
            let id = SourceId::new(number).ok_or_else(|| row(Table::SourceIds, "0 names no source"))?;
            sources.restore(id, name(Table::SourceIds, &value)?);
        }
        let mut short = ShortIds::new(counter::restored(store)?, now);
        for (key, value) in all(store, Table::ShortSourceIds)? {
            let why = "an entry names no endpoint, number or agent";
            let restored = short.restore(&key, &value);
            restored.ok_or_else(|| row(Table::ShortSourceIds, why))?;
        }
        let rollouts = rollouts(store, &mut batch, now)?;
        let mut fleet = Self {
            traceparent: Arc::from(meta.traceparent.as_str()),
            meta,
            numbers,
            numbers_kept: numbers,
            objects: now_objects,
            targets: now_targets,
            settled_objects,
            settled,
            agents,
            sessions: BTreeMap::new(),
            sources,
            short,
            contents,
            rollouts,
            members: Members::new(now),
            questions: Questions::default(),
            tops: Tops::default(),
            sweep_at_ms: 0,
            forget_at_ms: 0,
            dirty: BTreeSet::new(),
            late: BTreeSet::new(),
            holdings: buckets,
            holdings_late: BTreeSet::new(),
            meta_dirty: false,
            batch,
            still: matches!(store.room(), Err(StoreError::Full { .. })),
            speech: VecDeque::new(),
        };
        drop(kept);
        fleet.rollouts.touch();
        // A policy that is being taken away is among the settled ones alone.
        let soak = fleet
            .objects
            .longest_soak()
            .max(fleet.settled_objects.longest_soak());
        fleet.rollouts.handle_soak(soak);
        let ids: Vec<MemberName> = fleet.agents.keys().cloned().collect();
        for id in &ids {
            fleet.settle(id, now);
        }
        Ok(fleet)
    }
}

fn name(table: Table, octets: &[u8]) -> Result<MemberName, LoadError> {
    let text = std::str::from_utf8(octets).map_err(|error| row(table, error))?;
    MemberName::parse(text).map_err(|mistakes| row(table, mistakes))
}

/// The rollouts. Rows of an earlier version are to go with the first batch, others to come in their place.
fn rollouts(store: &dyn Store, batch: &mut Batch, now: Now) -> Result<Rollouts, LoadError> {
    let mut rollouts = Rollouts::default();
    let mut heads = BTreeMap::new();
    let mut members = BTreeMap::<u64, BTreeMap<String, Member>>::new();
    let unread = |error: serde_json::Error| row(Table::Rollouts, error);
    for (key, value) in all(store, Table::Rollouts)? {
        let Some((id, agent)) = key.split_first_chunk::<8>() else {
            return Err(row(Table::Rollouts, "a key is too short"));
        };
        let id = u64::from_be_bytes(*id);
        if let [0, _] = agent {
            let kept: BTreeMap<String, Member> = serde_json::from_slice(&value).map_err(unread)?;
            members.entry(id).or_default().extend(kept);
            continue;
        }
        if !agent.is_empty() {
            let agent = name(Table::Rollouts, agent)?;
            let member = serde_json::from_slice(&value).map_err(unread)?;
            members.entry(id).or_default().insert(agent.to_string(), member);
            rollouts.note(id, agent.as_str());
            batch.remove(Table::Rollouts, key);
            continue;
        }
        let kept = RolloutRow::decode(&value[..]).map_err(|error| row(Table::Rollouts, error))?;
        match kept.ended {
            Some(event) => rollouts.restore_past(id, event.rollout.unwrap_or_default()),
            None => {
                let head: Head = serde_json::from_slice(&kept.head).map_err(unread)?;
                heads.insert(id, head);
            }
        }
    }
    let now = Moment(now.wall_ms.max(0).cast_unsigned());
    for (id, head) in heads {
        let members = members.remove(&id).unwrap_or_default();
        rollouts.restore(Rollout::restore(head, members, now));
    }
    Ok(rollouts)
}
