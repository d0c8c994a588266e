//! Work that has been asked for and has not been done.

use std::collections::{BTreeMap, BTreeSet};

use crate::{driver::Id, work::Work};

/// A piece of queued work. Numbers grow in the order of the calls.
pub type OpId = u64;

/// Queued work and what it waits for.
#[derive(Debug)]
pub struct Op {
    /// The context that it fails if it fails.
    pub context: Id,
    pub device: usize,
    pub work: Work,
    after: Vec<OpId>,
    running: bool,
}

/// All queued work of all devices.
#[derive(Debug, Default)]
pub struct Queue {
    ops: BTreeMap<OpId, Op>,
    last: OpId,
}

impl Queue {
    /// Queues `work` behind those of `after` that are still queued.
    pub fn push(&mut self, context: Id, device: usize, work: Work, after: &[OpId]) -> OpId {
        self.last += 1;
        let after = after.iter().copied().filter(|op| self.contains(*op)).collect();
        self.ops.insert(self.last, Op { context, device, work, after, running: false });
        self.last
    }

    /// Whether that work is not yet done.
    pub fn contains(&self, op: OpId) -> bool {
        self.ops.contains_key(&op)
    }

    /// Drops what is done from a list, and repetitions.
    pub fn prune(&self, ops: &mut Vec<OpId>) {
        ops.retain(|op| self.contains(*op));
        ops.sort_unstable();
        ops.dedup();
    }

    /// `targets` and all that they wait for, as far as it is queued.
    pub fn closure(&self, targets: &[OpId]) -> BTreeSet<OpId> {
        let mut found = BTreeSet::new();
        let mut open = targets.to_vec();
        while let Some(id) = open.pop() {
            if let Some(op) = self.ops.get(&id)
                && found.insert(id)
            {
                open.extend(&op.after);
            }
        }
        found
    }

    /// Whether nothing that it waits for is queued, and nobody is at it.
    pub fn is_ready(&self, op: OpId) -> bool {
        self.ops
            .get(&op)
            .is_some_and(|op| !op.running && !op.after.iter().any(|before| self.contains(*before)))
    }

    pub fn get(&self, op: OpId) -> Option<&Op> {
        self.ops.get(&op)
    }

    /// Queued work of a context, in the order of the calls.
    pub fn of_context(&self, context: Id) -> impl Iterator<Item = (OpId, &Op)> {
        self.ops.iter().map(|(id, op)| (*id, op)).filter(move |(_, op)| op.context == context)
    }

    /// Queued work of a device, in the order of the calls.
    pub fn of_device(&self, device: usize) -> impl Iterator<Item = (OpId, &Op)> {
        self.ops.iter().map(|(id, op)| (*id, op)).filter(move |(_, op)| op.device == device)
    }

    /// Marks work as being done, and tells what it is.
    pub fn start(&mut self, op: OpId) -> Work {
        let op = self.ops.get_mut(&op).expect("work that is ready is queued");
        op.running = true;
        op.work.clone()
    }

    /// Takes work out: it is done.
    pub fn finish(&mut self, op: OpId) {
        self.ops.remove(&op);
    }

    /// Takes out all work of a context that nobody is at.
    pub fn forget(&mut self, context: Id) {
        self.ops.retain(|_, op| op.context != context || op.running);
    }
}
