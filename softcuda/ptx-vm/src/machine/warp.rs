//! The lanes of a warp: which of them run together, and which wait.
//!
//! Lanes that stand at the same instruction run together, the lowest instruction first, so that those who took the
//! longer way catch up. Lanes that only poll are set aside for a while when others could run: the one they wait for may
//! be among those.

use super::{local::Local, trouble::Trouble};
use crate::{
    instr::Instr,
    race::{BlockTimes, Knowledge},
    registers::Registers,
};

/// Strong accesses of lanes before others of the warp get their turn.
const PATIENCE: u32 = 32;

/// A warp.
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    pub(crate) knowledge: Knowledge,
    pub(crate) local: Local,
    /// Lanes that have threads.
    pub(crate) existing: u32,
    /// Lanes that have not exited.
    pub(crate) live: u32,
    /// Lanes that wait for others of the warp.
    pub(crate) parked: u32,
    /// Lanes that wait at a barrier of the block.
    pub(crate) waiting: u32,
    /// Lanes that poll, set aside.
    polling: u32,
    /// Strong accesses since the group was chosen.
    polls: u32,
    /// The lanes that run; none when none can.
    pub(crate) group: u32,
    /// Where they are.
    pub(crate) at: u32,
    /// The lowest instruction where other lanes could run: the group stops there.
    next: u32,
    /// Where the lanes outside the group are.
    pcs: [u32; 32],
}

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        (lane < 32).then_some(lane)
    })
}

impl Warp {
    /// A warp before its first instruction.
    pub(crate) fn new(
        registers: Registers,
        local: usize,
        (block, index): (u32, u32),
        existing: u32,
        nothing: &BlockTimes,
    ) -> Self {
        Self {
            registers,
            knowledge: Knowledge::new(block, index, existing, nothing),
            local: Local::new(local),
            existing,
            live: existing,
            parked: 0,
            waiting: 0,
            polling: 0,
            polls: 0,
            group: existing,
            at: 0,
            next: u32::MAX,
            pcs: [0; 32],
        }
    }

    /// Lanes that could run.
    pub(crate) fn runnable(&self) -> u32 {
        self.live & !self.parked & !self.waiting
    }

    /// Where a lane is.
    pub(crate) fn pc(&self, lane: u32) -> u32 {
        if self.group >> lane & 1 == 1 { self.at } else { self.pcs[lane as usize] }
    }

    /// The lanes of a mask that are at an instruction.
    pub(crate) fn standing_at(&self, mask: u32, at: u32) -> u32 {
        lanes(mask).filter(|lane| self.pc(*lane) == at).fold(0, |all, lane| all | 1 << lane)
    }

    /// Moves lanes outside the group.
    pub(crate) fn put(&mut self, mask: u32, at: u32) {
        for (lane, pc) in self.pcs.iter_mut().enumerate() {
            *pc = if mask >> lane & 1 == 1 { at } else { *pc };
        }
    }

    /// Ends the group.
    fn disband(&mut self) {
        self.put(self.group, self.at);
        self.group = 0;
    }

    /// Chooses who runs: the lanes at the lowest instruction. False if none can.
    pub(crate) fn choose(&mut self) -> bool {
        let before = self.group;
        self.disband();
        let mut candidates = self.runnable() & !self.polling;
        if candidates == 0 {
            self.polling = 0;
            candidates = self.runnable();
        }
        self.next = u32::MAX;
        if candidates == 0 {
            return false;
        }
        let pcs = &self.pcs;
        // Lanes that are no candidates stand behind all instructions.
        let pc = |lane: usize| pcs[lane] | (candidates >> lane & 1).wrapping_sub(1);
        let (mut lowest, mut next) = (u32::MAX, u32::MAX);
        for lane in 0..32 {
            lowest = lowest.min(pc(lane));
        }
        let mut group = 0;
        for lane in 0..32 {
            let here = pc(lane) == lowest;
            group |= u32::from(here) << lane;
            next = if here { next } else { next.min(pc(lane)) };
        }
        (self.at, self.group, self.next) = (lowest, group, next);
        if self.group != before {
            self.polls = 0;
        }
        true
    }

    /// Whether the group has come to where other lanes stand.
    #[inline]
    pub(crate) fn meets_others(&self) -> bool {
        self.at >= self.next
    }

    /// Branches lanes of the group.
    #[inline]
    pub(crate) fn branch(&mut self, taken: u32, target: u32) {
        if taken == self.group {
            self.at = target;
            if self.next != u32::MAX {
                self.choose();
            }
        } else if taken == 0 {
            self.at += 1;
        } else {
            self.at += 1;
            self.disband();
            self.put(taken, target);
            self.choose();
        }
    }

    /// Ends lanes of the group. False if no lane of the warp can run any more.
    pub(crate) fn exit(&mut self, mask: u32) -> bool {
        self.at += 1;
        self.live &= !mask;
        self.group &= !mask;
        self.knowledge.exit(mask);
        // Nobody waits for them any more: those who did look again.
        let parked = std::mem::take(&mut self.parked);
        if self.group == 0 || parked != 0 {
            return self.choose();
        }
        true
    }

    /// At an instruction for which lanes wait for each other, `ready` lanes, parked ones among them, go on, and those of
    /// the group that `stay` are parked. The rest of the group goes on too. False if no lane can run.
    pub(crate) fn proceed(&mut self, ready: u32, stay: u32) -> bool {
        if ready & !self.group == 0 && stay == 0 {
            self.at += 1;
            return true;
        }
        let here = self.at;
        self.at += 1;
        self.disband();
        self.parked = self.parked & !ready | stay;
        self.put(ready, here + 1);
        self.put(stay, here);
        self.choose()
    }

    /// Lanes that have come to a barrier of the block wait there. False if no lane can run.
    pub(crate) fn wait(&mut self, mask: u32) -> bool {
        self.disband();
        self.parked &= !mask;
        self.waiting |= mask;
        self.choose()
    }

    /// Lanes that waited at a barrier of the block go on.
    pub(crate) fn resume(&mut self, mask: u32) {
        self.disband();
        self.waiting &= !mask;
        self.parked &= !mask;
        for (lane, pc) in self.pcs.iter_mut().enumerate() {
            *pc += mask >> lane & 1;
        }
        self.choose();
    }

    /// Notes a strong access of the group, which may be waiting for another lane.
    pub(crate) fn polled(&mut self) {
        self.polls += 1;
        if self.polls >= PATIENCE && self.runnable() != self.group {
            self.polling |= self.group;
            self.choose();
        }
    }

    /// The lanes of the group for which an instruction's guard holds.
    #[inline(always)]
    pub(crate) fn guarded(&self, instr: &Instr) -> u32 {
        match instr.guard {
            None => self.group,
            Some(guard) => {
                let holds = ones(self.registers.row(guard.reg));
                self.group & if guard.negated { !holds } else { holds }
            }
        }
    }

    /// The value of a register that must be the same in all those lanes.
    pub(crate) fn uniform(&self, reg: u16, mask: u32, what: &str) -> Result<u64, Trouble> {
        let row = self.registers.row(reg);
        let first = mask.trailing_zeros();
        match lanes(mask).find(|lane| row[*lane as usize] != row[first as usize]) {
            None => Ok(row[first as usize]),
            Some(lane) => Err(Trouble::undefined(
                lane,
                format!("{what} differs between lanes {first} and {lane} of the warp"),
            )),
        }
    }
}

/// The lanes in which a predicate is true.
#[inline(always)]
pub(crate) fn ones(row: &[u64; 32]) -> u32 {
    // A plain loop, which is compiled for the caller's level.
    let mut all = 0;
    for (lane, value) in row.iter().enumerate() {
        all |= (value & 1) << lane;
    }
    all as u32
}
