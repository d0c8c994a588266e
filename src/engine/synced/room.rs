//! Memory that a synchronized step works in, kept from one to the next.
use crate::engine::DOUBLE_SUMS;
use crate::{Memory, Real, Result};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// By number of channels what a step of so many needs. Whoever holds it is the one step that an engine is at, since
/// ranks match calls by their order.
pub(super) struct Rooms<M: Memory>(Arc<Mutex<Map<M>>>);
pub(super) type Map<M> = HashMap<usize, Room<M>>;

/// What a step of so many channels needs: none of it is of a tensor's size.
pub(super) struct Room<M: Memory> {
    /// The record of this rank's part, then, of every step of gathering, what all ranks of it have come to: length
    /// 3C + 1 each.
    pub record: M::Buf<f64>,
    pub merged: M::Buf<f64>,
    /// The records of all ranks of a step.
    pub gathered: Vec<M::Buf<f64>>,
    /// The same of values that count for a mask, once there was one.
    counted: Option<CountedRoom<M>>,
    /// The sums of a double backward, once there was one.
    double_sums: Option<M::Buf<f64>>,
    /// The sums of a backward, length 2C + 1, by their type.
    sums: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
}

/// What the values that count come to, length 4C each: of this rank's part, of all ranks of each step, and together.
pub(super) struct CountedRoom<M: Memory> {
    pub mine: M::Buf<f64>,
    pub gathered: Vec<M::Buf<f64>>,
    pub merged: M::Buf<f64>,
}

impl<M: Memory> Clone for Rooms<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Memory> Rooms<M> {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(HashMap::new())))
    }
    pub fn enter(&self) -> MutexGuard<'_, Map<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That of so many channels, where steps of gathering have so many ranks.
pub(super) fn of<'r, M: Memory>(
    rooms: &'r mut Map<M>,
    memory: &M,
    channels: usize,
    steps: impl Iterator<Item = usize>,
) -> Result<&'r mut Room<M>> {
    match rooms.entry(channels) {
        Entry::Occupied(made) => Ok(made.into_mut()),
        Entry::Vacant(place) => {
            let len = channels.saturating_mul(3).saturating_add(1);
            let gathered = steps.map(|ranks| memory.zeros(len.saturating_mul(ranks)));
            Ok(place.insert(Room {
                record: memory.zeros(len)?,
                merged: memory.zeros(len)?,
                gathered: gathered.collect::<Result<_>>()?,
                counted: None,
                double_sums: None,
                sums: HashMap::new(),
            }))
        }
    }
}

impl<M: Memory> Room<M> {
    /// Memory for what counts for a mask, where steps of gathering have so many ranks; and for the record of that.
    pub fn counted(
        &mut self,
        memory: &M,
        channels: usize,
        steps: impl Iterator<Item = usize>,
    ) -> Result<(&mut CountedRoom<M>, &mut M::Buf<f64>)> {
        let counted = match self.counted.take() {
            Some(counted) => counted,
            None => {
                let len = channels.saturating_mul(4);
                let gathered = steps.map(|ranks| memory.zeros(len.saturating_mul(ranks)));
                let gathered = gathered.collect::<Result<_>>()?;
                CountedRoom { mine: memory.zeros(len)?, gathered, merged: memory.zeros(len)? }
            }
        };
        Ok((self.counted.insert(counted), &mut self.merged))
    }
    /// Memory for the sums of a double backward.
    pub fn double_sums(&mut self, memory: &M, channels: usize) -> Result<&mut M::Buf<f64>> {
        let sums = match self.double_sums.take() {
            Some(sums) => sums,
            None => memory.zeros(channels.saturating_mul(DOUBLE_SUMS))?,
        };
        Ok(self.double_sums.insert(sums))
    }
    /// Memory for the sums of a backward.
    pub fn sums<P: Real>(&mut self, memory: &M, channels: usize) -> Result<&mut M::Buf<P>> {
        let key = TypeId::of::<P>();
        let sums = match self.sums.entry(key) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => {
                let len = channels.saturating_mul(2).saturating_add(1);
                place.insert(Box::new(memory.zeros::<P>(len)?))
            }
        };
        let sums = sums.downcast_mut();
        sums.ok_or_else(|| crate::Error::invalid("sums", "expected memory of their type"))
    }
}
