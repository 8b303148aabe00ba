//! The flows themselves, in slots that are used again, and handles to them.
//!
//! A handle costs no hashing, and tells a flow from those that had its slot before. Invariant: two flows never have equal
//! handles while one of them, or anything that names it, is about (the number comes again after 2^32 flows).

use std::num::NonZeroU32;
use std::ops::Index;

use super::entry::Flow;

/// Slots that are kept when the table is empty; more would keep the memory of the greatest crowd for ever.
const SLOTS_KEPT: usize = 1024;

/// Which flow. Ordered as the flows were put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Handle {
    number: NonZeroU32,
    slot: u32,
}

impl Handle {
    /// As a number, in the same order.
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.number.get()) << 32 | u64::from(self.slot)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self {
            number: NonZeroU32::new((bits >> 32) as u32).unwrap_or(NonZeroU32::MIN),
            slot: bits as u32,
        }
    }
}

#[derive(Debug)]
struct Slot {
    number: NonZeroU32,
    flow: Option<Flow>,
}

#[derive(Debug)]
pub(super) struct Flows {
    slots: Vec<Slot>,
    free: Vec<u32>,
    number: NonZeroU32,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            number: NonZeroU32::MIN,
        }
    }
}

impl Flows {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, flow: Flow) -> Handle {
        let number = self.number;
        self.number = number.checked_add(1).unwrap_or(NonZeroU32::MIN);
        let flow = Some(flow);
        if let Some(slot) = self.free.pop() {
            let free = &mut self.slots[slot as usize];
            free.number = number;
            free.flow = flow;
            return Handle { number, slot };
        }
        let slot = u32::try_from(self.slots.len()).expect("the table's bound is far below 2^32");
        self.slots.push(Slot { number, flow });
        Handle { number, slot }
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Flow> {
        let slot = self.slots.get(handle.slot as usize)?;
        slot.flow.as_ref().filter(|_| slot.number == handle.number)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Flow> {
        let slot = self.slots.get_mut(handle.slot as usize)?;
        slot.flow.as_mut().filter(|_| slot.number == handle.number)
    }

    pub(super) fn contains(&self, handle: Handle) -> bool {
        self.get(handle).is_some()
    }

    /// Forgets a flow where it stands.
    pub(super) fn remove(&mut self, handle: Handle) {
        let Some(slot) = self.slots.get_mut(handle.slot as usize) else {
            return;
        };
        if slot.number != handle.number || slot.flow.is_none() {
            return;
        }
        slot.flow = None;
        self.free.push(handle.slot);
        if self.len() == 0 && self.slots.len() > SLOTS_KEPT {
            self.slots = Vec::new();
            self.free = Vec::new();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &Flow)> {
        self.slots.iter().zip(0..).filter_map(|(held, slot)| {
            let handle = Handle {
                number: held.number,
                slot,
            };
            held.flow.as_ref().map(|flow| (handle, flow))
        })
    }
}

#[cfg(test)]
impl Handle {
    pub(super) fn of(number: u32) -> Self {
        Self {
            number: NonZeroU32::new(number).expect("from 1"),
            slot: 0,
        }
    }
}

impl Index<Handle> for Flows {
    type Output = Flow;

    fn index(&self, handle: Handle) -> &Flow {
        self.get(handle)
            .expect("twins and pairs name flows in the table only")
    }
}
