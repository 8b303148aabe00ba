//! The owners of one value, each written once: names found by pointer first, then by what is written of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::parts::{put_names, put_owner};
use crate::owner::{Names, Owner};

/// Names and owners in the form in which they are kept, with the ways to find them again.
///
/// Two different ones under one hash only cost octets: the later is written again whenever it comes. The hash has no
/// secret, so that the same records make the same octets.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    /// Every names that is written.
    pub(super) names: Vec<u8>,
    /// Every owner that is written.
    pub(super) owners: Vec<u8>,
    names_at: Vec<Range<usize>>,
    owners_at: Vec<OwnerAt>,
    /// Position from 1, by address.
    names_by_address: HashMap<usize, u32, FixedState>,
    names_by_hash: HashMap<u64, u32, FixedState>,
    owners_by_hash: HashMap<u64, u32, FixedState>,
    /// What keeps the addresses from being used again.
    held: Vec<Arc<Names>>,
}

#[derive(Debug)]
struct OwnerAt {
    owner: Owner,
    /// Position from 1 of its names; 0: none.
    names: u32,
    octets: usize,
}

impl Dictionary {
    /// How many names there are.
    pub(super) fn names_count(&self) -> usize {
        self.names_at.len()
    }

    /// How many owners there are.
    pub(super) fn owners_count(&self) -> usize {
        self.owners_at.len()
    }

    /// Octets of both.
    pub(super) fn octets(&self) -> usize {
        self.names.len() + self.owners.len()
    }

    /// Octets that the owner at this position and its names take.
    pub(super) fn octets_of(&self, owner: u32) -> usize {
        let at = &self.owners_at[owner as usize];
        let names = match at.names {
            0 => 0,
            n => self.names_at[n as usize - 1].len(),
        };
        at.octets + names
    }

    /// Position of an owner, which is written when it is not there.
    pub(super) fn owner(&mut self, owner: &Owner) -> u32 {
        let names = owner.names.as_ref().map_or(0, |names| self.names(names));
        let hash = hash(owner, names);
        if let Some(&found) = self.owners_by_hash.get(&hash) {
            let at = &self.owners_at[found as usize];
            if at.names == names
                && at.owner.confidence == owner.confidence
                && at.owner.process == owner.process
            {
                return found;
            }
        }
        let before = self.owners.len();
        put_owner(&mut self.owners, owner, names);
        let position = position(self.owners_at.len());
        self.owners_at.push(OwnerAt {
            owner: owner.clone(),
            names,
            octets: self.owners.len() - before,
        });
        self.owners_by_hash.insert(hash, position);
        position
    }

    /// Position from 1 of names.
    fn names(&mut self, names: &Arc<Names>) -> u32 {
        let address = Arc::as_ptr(names).addr();
        if let Some(&found) = self.names_by_address.get(&address) {
            return found;
        }
        self.held.push(Arc::clone(names));
        let before = self.names.len();
        put_names(&mut self.names, names);
        let hash = FixedState::default().hash_one(&self.names[before..]);
        if let Some(&found) = self.names_by_hash.get(&hash) {
            let octets = self.names_at[found as usize - 1].clone();
            if self.names[octets] == self.names[before..] {
                self.names.truncate(before);
                self.names_by_address.insert(address, found);
                return found;
            }
        }
        self.names_at.push(before..self.names.len());
        let position = position(self.names_at.len());
        self.names_by_address.insert(address, position);
        self.names_by_hash.insert(hash, position);
        position
    }

    /// Forgets what came after these counts of names and owners. Nothing may be looked up before the next
    /// [`Dictionary::clear`].
    pub(super) fn truncate(&mut self, names: usize, owners: usize) {
        self.names_at.truncate(names);
        self.owners_at.truncate(owners);
        self.names.truncate(self.names_at.last().map_or(0, |at| at.end));
        self.owners
            .truncate(self.owners_at.iter().map(|at| at.octets).sum());
    }

    /// Forgets all, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.names.clear();
        self.owners.clear();
        self.names_at.clear();
        self.owners_at.clear();
        self.names_by_address.clear();
        self.names_by_hash.clear();
        self.owners_by_hash.clear();
        self.held.clear();
    }
}

fn hash(owner: &Owner, names: u32) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write_u32(names);
    owner.confidence.hash(&mut hasher);
    if let Some(process) = &owner.process {
        process.key.hash(&mut hasher);
        process.comm.hash(&mut hasher);
        hasher.write_u32(process.uid);
        hasher.write_u32(process.gid);
    }
    hasher.finish()
}

/// A value has less than 64 Ki octets of body, so that there are never more.
fn position(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
