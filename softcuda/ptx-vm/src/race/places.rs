//! What strong writes have left at the places that threads synchronise through.

use std::collections::HashMap;

use super::{
    clock::Clock,
    view::{Knowledge, Released},
};
use crate::instr::{Order, Scope};

/// What reading a value can teach.
#[derive(Debug, Default)]
struct Place {
    /// To a reader in any block.
    device: Clock,
    /// To readers in one block.
    blocks: Vec<(u32, Clock)>,
    version: u64,
}

/// The places of one state space, by address.
#[derive(Debug, Default)]
pub(crate) struct Places {
    places: HashMap<u64, Place>,
    version: u64,
    /// Tells the places of global memory from those of a block.
    space: u32,
}

/// The scope of a strong access; none of a weak one.
pub(crate) fn scope(order: Order) -> Option<Scope> {
    match order {
        Order::Weak => None,
        Order::Volatile => Some(Scope::System),
        Order::Relaxed(scope)
        | Order::Acquire(scope)
        | Order::Release(scope)
        | Order::AcquireRelease(scope)
        | Order::SequentiallyConsistent(scope) => Some(scope),
    }
}

/// The scope, if an access of that order acquires.
fn acquires(order: Order) -> Option<Scope> {
    match order {
        Order::Acquire(scope)
        | Order::AcquireRelease(scope)
        | Order::SequentiallyConsistent(scope) => Some(scope),
        Order::Weak | Order::Volatile | Order::Relaxed(_) | Order::Release(_) => None,
    }
}

/// The scope, if an access of that order releases.
fn releases(order: Order) -> Option<Scope> {
    match order {
        Order::Release(scope)
        | Order::AcquireRelease(scope)
        | Order::SequentiallyConsistent(scope) => Some(scope),
        Order::Weak | Order::Volatile | Order::Relaxed(_) | Order::Acquire(_) => None,
    }
}

impl Places {
    /// Those of the shared memory of a block.
    pub(crate) fn of_block() -> Self {
        Self { space: 1, ..Self::default() }
    }

    /// Lanes read a place strongly; `update` if they also write it.
    pub(crate) fn read(
        &self,
        at: u64,
        order: Order,
        warp: &mut Knowledge,
        lanes: u32,
        update: bool,
    ) {
        let (Some(place), Some(reach)) = (self.places.get(&at), scope(order)) else { return };
        let acquire = acquires(order);
        let version = place.version << 1 | u64::from(acquire.is_some());
        if warp.already_seen((self.space, at), version, lanes) {
            return;
        }
        let own = place.blocks.iter().find(|(block, _)| *block == warp.block());
        let mut found = Released::default();
        if let Some((_, clock)) = own {
            found = Released { device: clock.clone(), block: clock.clone() };
        }
        if reach != Scope::Block {
            found.device.join(&place.device, None);
        }
        warp.acquire(lanes, acquire, update, &found);
    }

    /// A lane writes a place strongly; `update` if it read the value that it replaces.
    pub(crate) fn write(
        &mut self,
        at: u64,
        order: Order,
        warp: &Knowledge,
        lane: u32,
        update: bool,
    ) {
        let Some(reach) = scope(order) else { return };
        let released = warp.release(lane, releases(order), reach);
        if !update {
            self.places.remove(&at);
        }
        if let Some(place) = self.places.get_mut(&at)
            && reach == Scope::Block
        {
            // Other blocks' writes and this one do not see each other.
            place.device = Clock::default();
            place.blocks.retain(|(block, _)| *block == warp.block());
        }
        if released.block.is_empty() {
            return;
        }
        let place = self.places.entry(at).or_default();
        self.version += 1;
        place.version = self.version;
        place.device.join(&released.device, None);
        match place.blocks.iter_mut().find(|(block, _)| *block == warp.block()) {
            Some((_, clock)) => clock.join(&released.block, None),
            None => place.blocks.push((warp.block(), released.block)),
        }
    }
}
