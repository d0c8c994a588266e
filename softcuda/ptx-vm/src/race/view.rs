//! What the lanes of a warp know of all other threads, and how that grows.

use std::rc::Rc;

use super::{
    clock::{BlockTimes, Clock, Time, WarpTime, join_blocks},
    stamp::{Stamp, Strength},
};
use crate::instr::Scope;

/// What some lanes of a warp know; all of them alike.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The lanes.
    pub(crate) mask: u32,
    /// Up to when they know each other and the rest of their warp. Each knows itself without that.
    pub(crate) lanes: WarpTime,
    /// Up to when they know the other warps of their block.
    own: BlockTimes,
    /// Up to when they know other blocks.
    others: Clock,
}

/// What lanes knew at a fence: what they write strongly afterwards releases it.
#[derive(Clone, Debug)]
struct Fence {
    mask: u32,
    scope: Scope,
    view: View,
    time: Time,
}

/// What lanes have read strongly but not yet acquired: a fence afterwards does.
#[derive(Clone, Debug)]
struct Pending {
    mask: u32,
    /// Whether the read was a read-modify-write.
    update: bool,
    released: Released,
}

/// What a value in memory carries along from those that wrote it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Released {
    /// For an acquire of device scope.
    pub(crate) device: Clock,
    /// For one of block scope, or where the release was.
    pub(crate) block: Clock,
}

/// What the lanes of a warp know.
#[derive(Clone, Debug)]
pub(crate) struct Knowledge {
    block: u32,
    /// The warp in its block.
    index: u32,
    /// Warps of a block.
    warps: u32,
    /// Lanes that have threads.
    existing: u32,
    now: Time,
    views: Vec<View>,
    fences: Vec<Fence>,
    pending: Vec<Pending>,
    /// The place last acquired from, its version and the lanes: a poll that finds nothing new is free.
    seen: Option<((u32, u64), u64, u32)>,
}

fn is_block(scope: Scope) -> bool {
    scope == Scope::Block
}

impl Knowledge {
    /// That of a warp which has just begun.
    pub(crate) fn new(block: u32, index: u32, existing: u32, nothing: &BlockTimes) -> Self {
        let view = View {
            mask: existing,
            lanes: WarpTime::Uniform(0),
            own: nothing.clone(),
            others: Clock::default(),
        };
        Self {
            block,
            index,
            warps: nothing.len() as u32,
            existing,
            now: 1,
            views: vec![view],
            fences: Vec::new(),
            pending: Vec::new(),
            seen: None,
        }
    }

    /// The number of the block in the grid.
    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    /// The block that a warp of the grid belongs to.
    #[inline]
    pub(crate) fn block_of(&self, warp: u32) -> u32 {
        warp / self.warps
    }

    /// The stamp of lane 0 for an access now.
    #[inline]
    pub(crate) fn stamp(&self, strength: Strength) -> Stamp {
        Stamp::new(self.block * self.warps + self.index, self.now, strength)
    }

    /// The view that all those lanes share, if they share one.
    #[inline]
    pub(crate) fn shared_view(&self, lanes: u32) -> Option<&View> {
        self.views.iter().find(|view| view.mask & lanes == lanes)
    }

    /// The view of a lane.
    #[inline]
    pub(crate) fn view(&self, lane: u32) -> &View {
        self.views.iter().find(|view| view.mask >> lane & 1 == 1).expect("every live lane has one")
    }

    /// Whether an access happens before what a lane of that view does now.
    pub(crate) fn knows(&self, view: &View, lane: u32, stamp: Stamp) -> bool {
        let (by, time) = (stamp.lane(), stamp.time());
        match self.times(view, stamp.warp()) {
            Some(_) if self.is_mine(stamp) && by == lane => true,
            Some(times) => time <= times.of(by),
            None => false,
        }
    }

    /// Whether all that the warp of an access did at its time happens before what that view does now.
    #[inline]
    pub(crate) fn knows_warp(&self, view: &View, stamp: Stamp) -> bool {
        self.times(view, stamp.warp()).is_some_and(|times| stamp.time() <= times.least())
    }

    #[inline]
    fn is_mine(&self, stamp: Stamp) -> bool {
        stamp.warp() == self.block * self.warps + self.index
    }

    /// Up to when a view knows the lanes of a warp of the grid.
    #[inline]
    fn times<'a>(&self, view: &'a View, warp: u32) -> Option<&'a WarpTime> {
        let index = warp.wrapping_sub(self.block * self.warps);
        if index == self.index {
            Some(&view.lanes)
        } else if index < self.warps {
            Some(&view.own[index as usize])
        } else {
            let times = view.others.block(warp / self.warps)?;
            Some(&times[(warp % self.warps) as usize])
        }
    }

    /// Forgets lanes that have exited.
    pub(crate) fn exit(&mut self, lanes: u32) {
        self.views.iter_mut().for_each(|view| view.mask &= !lanes);
        self.views.retain(|view| view.mask != 0);
        self.fences.retain(|fence| fence.mask & !lanes != 0);
        self.pending.retain(|pending| pending.mask & !lanes != 0);
    }

    /// Ends what one time covers: later accesses are not among those already known to others.
    pub(crate) fn advance(&mut self) {
        self.now += 1;
    }

    /// Whether those lanes are all the threads of the warp; lanes without a thread never count.
    fn everyone(&self, lanes: u32) -> u32 {
        lanes | !self.existing
    }

    /// Makes those lanes one view that knows what each of them knew.
    fn merge(&mut self, lanes: u32) -> &mut View {
        if let Some(index) = self.views.iter().position(|view| view.mask == lanes) {
            return &mut self.views[index];
        }
        let mut merged: Option<View> = None;
        for view in &mut self.views {
            if view.mask & lanes == 0 {
                continue;
            }
            match &mut merged {
                None => merged = Some(View { mask: lanes, ..view.clone() }),
                Some(merged) => {
                    merged.lanes.join(&view.lanes);
                    join_blocks(&mut merged.own, &view.own);
                    merged.others.join(&view.others, None);
                }
            }
            view.mask &= !lanes;
        }
        self.views.retain(|view| view.mask != 0);
        self.views.push(merged.expect("the lanes are live"));
        self.views.last_mut().expect("just pushed")
    }

    /// Lanes of the warp synchronise with each other.
    pub(crate) fn synchronise(&mut self, lanes: u32) {
        let (everyone, now) = (self.everyone(lanes), self.now);
        self.merge(lanes).lanes.raise(everyone, now);
        self.now += 1;
    }

    /// Those lanes come to a barrier of the block. After a read-modify-write it counts as the fence that CUDA's own sample
    /// of a ("last block done") ticket leaves out, though the model asks for one of device scope.
    fn acquire_updates(&mut self, lanes: u32) {
        if self.pending.iter().any(|entry| entry.update && entry.mask & lanes != 0) {
            let (updates, others) =
                std::mem::take(&mut self.pending).into_iter().partition(|entry| entry.update);
            self.pending = others;
            let updates: Vec<Pending> = updates;
            for mut entry in updates {
                if entry.mask & lanes != 0 {
                    self.learn(entry.mask & lanes, &entry.released.device);
                    entry.mask &= !lanes;
                }
                if entry.mask != 0 {
                    self.pending.push(entry);
                }
            }
        }
    }

    /// A fence of those lanes: acquires what they have read, and notes what they know for what they write.
    pub(crate) fn fence(&mut self, lanes: u32, scope: Scope) {
        let pending = std::mem::take(&mut self.pending);
        for mut entry in pending {
            let mine = entry.mask & lanes;
            if mine != 0 {
                let clock =
                    if is_block(scope) { &entry.released.block } else { &entry.released.device };
                self.learn(mine, clock);
            }
            // What a fence of block scope could not acquire, a later one may.
            if !is_block(scope) {
                entry.mask &= !lanes;
            }
            if entry.mask != 0 {
                self.pending.push(entry);
            }
        }
        self.fences.iter_mut().for_each(|fence| {
            if is_block(fence.scope) || !is_block(scope) {
                fence.mask &= !lanes;
            }
        });
        self.fences.retain(|fence| fence.mask != 0);
        for view in &self.views {
            let mask = view.mask & lanes;
            if mask != 0 {
                self.fences.push(Fence { mask, scope, view: view.clone(), time: self.now });
            }
        }
        self.now += 1;
    }

    /// What a lane of a view knew at a time, itself included, as others can take it on.
    fn publish(&self, view: &View, lane: u32, time: Time) -> Clock {
        let mut own = view.own.to_vec();
        let mine = &mut own[self.index as usize];
        mine.join(&view.lanes);
        mine.raise(1 << lane, time);
        let mut clock = view.others.clone();
        clock.join_block(self.block, &own.into());
        clock
    }

    /// What a strong write of a lane carries along. `release`: the scope of the write if it is itself a release;
    /// `write`: its scope as an access.
    pub(crate) fn release(&self, lane: u32, release: Option<Scope>, write: Scope) -> Released {
        let mut released = Released::default();
        let mut add = |scope: Scope, clock: Clock| {
            if !is_block(scope) && !is_block(write) {
                released.device.join(&clock, None);
            }
            released.block.join(&clock, None);
        };
        for fence in self.fences.iter().filter(|fence| fence.mask >> lane & 1 == 1) {
            add(fence.scope, self.publish(&fence.view, lane, fence.time));
        }
        if let Some(scope) = release {
            add(scope, self.publish(self.view(lane), lane, self.now));
        }
        released
    }

    /// Whether a place of that version was already read by those lanes; notes that it is now.
    pub(crate) fn already_seen(&mut self, place: (u32, u64), version: u64, lanes: u32) -> bool {
        let seen = Some((place, version, lanes));
        let already = self.seen == seen;
        self.seen = seen;
        already
    }

    /// A strong read of those lanes found `released`; `acquire` is its scope if it is itself an acquire, and `update`
    /// says whether it is a read-modify-write.
    pub(crate) fn acquire(
        &mut self,
        lanes: u32,
        acquire: Option<Scope>,
        update: bool,
        released: &Released,
    ) {
        if let Some(scope) = acquire {
            self.learn(lanes, if is_block(scope) { &released.block } else { &released.device });
        }
        let same = |pending: &&mut Pending| pending.mask == lanes && pending.update == update;
        match self.pending.iter_mut().find(same) {
            Some(pending) => {
                pending.released.device.join(&released.device, None);
                pending.released.block.join(&released.block, None);
            }
            None => self.pending.push(Pending { mask: lanes, update, released: released.clone() }),
        }
    }

    /// Those lanes take on what `clock` knows.
    fn learn(&mut self, lanes: u32, clock: &Clock) {
        if clock.is_empty() {
            return;
        }
        let (block, index) = (self.block, self.index as usize);
        let mut parts = Vec::with_capacity(1);
        for view in &mut self.views {
            let mask = view.mask & lanes;
            if mask != 0 {
                view.mask &= !lanes;
                parts.push(View { mask, ..view.clone() });
            }
        }
        self.views.retain(|view| view.mask != 0);
        for part in &mut parts {
            part.others.join(clock, Some(block));
            if let Some(times) = clock.block(block) {
                join_blocks(&mut part.own, times);
                part.lanes.join(&times[index]);
            }
        }
        self.views.append(&mut parts);
    }
}

/// What the threads that have arrived at a barrier of the block know together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meeting {
    own: Option<Vec<WarpTime>>,
    /// The times last joined: warps mostly come with the same.
    last: Option<BlockTimes>,
    others: Clock,
}

/// What all know after a [`Meeting`].
#[derive(Clone, Debug)]
pub(crate) struct Met {
    own: BlockTimes,
    others: Clock,
}

impl Meeting {
    /// Lanes of a warp bring what they know.
    pub(crate) fn arrive(&mut self, warp: &mut Knowledge, lanes: u32) {
        warp.acquire_updates(lanes);
        let everyone = warp.everyone(lanes);
        for view in warp.views.iter().filter(|view| view.mask & lanes != 0) {
            let own = self.own.get_or_insert_with(|| view.own.to_vec());
            if self.last.as_ref().is_none_or(|last| !Rc::ptr_eq(last, &view.own)) {
                own.iter_mut().zip(view.own.iter()).for_each(|(mine, theirs)| mine.join(theirs));
                self.last = Some(view.own.clone());
            }
            let mine = &mut own[warp.index as usize];
            mine.join(&view.lanes);
            mine.raise(everyone, warp.now);
            self.others.join(&view.others, None);
        }
        warp.now += 1;
    }

    /// All have arrived.
    pub(crate) fn end(&mut self) -> Met {
        let Self { own, others, .. } = std::mem::take(self);
        Met { own: own.unwrap_or_default().into(), others }
    }
}

impl Met {
    /// Waiting lanes of a warp take on what all know.
    pub(crate) fn leave(&self, warp: &mut Knowledge, lanes: u32) {
        let index = warp.index as usize;
        let view = warp.merge(lanes);
        // They themselves brought all they knew.
        view.own = self.own.clone();
        view.lanes = self.own[index].clone();
        view.others = self.others.clone();
    }
}
