//! A block: its warps, its shared memory and its barriers.

use super::{
    barrier::{BARRIERS, Barrier},
    shared::Shared,
    trouble::Trouble,
    warp::{Warp, lanes, ones},
};
use crate::{
    fault::FaultKind,
    instr::{BarrierMode, Instr, Op},
    race::{BlockTimes, WarpTime},
    registers::Registers,
};

/// A block.
pub(crate) struct Block {
    /// Its number in the grid.
    pub(crate) number: u32,
    pub(crate) warps: Vec<Warp>,
    pub(crate) shared: Shared,
    barriers: Vec<Barrier>,
}

impl Block {
    /// A block before its first instruction. `registers`: those of a warp at the start.
    pub(crate) fn new(
        number: u32,
        threads: u32,
        local: usize,
        shared: Shared,
        mut registers: impl FnMut(u32) -> Registers,
    ) -> Self {
        let count = threads.div_ceil(32);
        let nothing: BlockTimes = vec![WarpTime::default(); count as usize].into();
        let warp = |index: u32| {
            let existing = !0 >> (32 - (threads - 32 * index).min(32));
            Warp::new(registers(index), local, (number, index), existing, &nothing)
        };
        let warps = (0..count).map(warp).collect();
        let barriers = (0..BARRIERS).map(|_| Barrier::new(count as usize)).collect();
        Self { number, warps, shared, barriers }
    }

    /// Whether all threads have exited.
    pub(crate) fn is_done(&self) -> bool {
        self.warps.iter().all(|warp| warp.live == 0)
    }

    /// Whether some thread can run.
    pub(crate) fn can_run(&self) -> bool {
        self.warps.iter().any(|warp| warp.runnable() != 0)
    }

    /// The group of a warp has come to a barrier. Says whether that completed it.
    pub(crate) fn arrive(
        &mut self,
        index: usize,
        mask: u32,
        code: &[Instr],
    ) -> Result<bool, Trouble> {
        let warp = &mut self.warps[index];
        if mask == 0 {
            warp.at += 1;
            return Ok(false);
        }
        let Op::Barrier { aligned, id, .. } = code[warp.at as usize].op else { unreachable!() };
        let number = warp.uniform(id, mask, "the number of the barrier")?;
        if number >= BARRIERS {
            let detail = format!("there is no barrier {number}");
            return Err(Trouble::undefined(mask.trailing_zeros(), detail));
        }
        let here = mask | warp.parked_at_barrier(code, aligned, number);
        if here != warp.live {
            // The whole warp comes to a barrier, or none of it.
            warp.proceed(0, mask);
            return Ok(false);
        }
        self.enter(index, number as usize, here, code)
    }

    /// All lanes of a warp that have not exited have come to one barrier.
    fn enter(
        &mut self,
        index: usize,
        number: usize,
        here: u32,
        code: &[Instr],
    ) -> Result<bool, Trouble> {
        let all = self.warps.len() as u32 * 32;
        let (warp, barrier) = (&mut self.warps[index], &mut self.barriers[number]);
        let first = here.trailing_zeros();
        let mut stay = 0;
        for lane in lanes(here) {
            let Op::Barrier { mode, threads, value, .. } = code[warp.pc(lane) as usize].op else {
                unreachable!()
            };
            let expected = match threads {
                Some(threads) => warp.registers.row(threads)[lane as usize] as u32,
                None => all,
            };
            if expected == 0 || !expected.is_multiple_of(32) || expected > all {
                let detail = format!("a barrier of {expected} threads, of {all} in whole warps");
                return Err(Trouble::undefined(lane, detail));
            }
            if barrier.expected == 0 {
                barrier.expected = expected;
            }
            if barrier.expected != expected {
                let detail = format!(
                    "comes to barrier {number} of {expected} threads, but others to one of {}",
                    barrier.expected
                );
                return Err(Trouble::new(FaultKind::DivergentBarrier, lane, detail));
            }
            if let Some((value, negated)) = value {
                let yes = (ones(warp.registers.row(value)) >> lane & 1 == 1) != negated;
                barrier.votes.0 += u32::from(yes);
                barrier.votes.1 += 1;
            }
            if mode != BarrierMode::Arrive {
                stay |= 1 << lane;
            }
        }
        barrier.arrived += here.count_ones() + warp.existing.count_zeros();
        barrier.lanes[index] |= stay;
        barrier.meeting.arrive(&mut warp.knowledge, here);
        let on = here & !stay;
        warp.wait(stay);
        if on != 0 {
            // Those who only arrive go on; parked ones, too.
            warp.waiting |= on;
            warp.resume(on);
        }
        if barrier.arrived > barrier.expected {
            let detail = format!(
                "makes {} threads at barrier {number} of {}",
                barrier.arrived, barrier.expected
            );
            return Err(Trouble::new(FaultKind::DivergentBarrier, first, detail));
        }
        if barrier.arrived < barrier.expected {
            return Ok(false);
        }
        self.complete(number, code);
        Ok(true)
    }

    /// All that a barrier waits for have come.
    fn complete(&mut self, number: usize, code: &[Instr]) {
        let mut barrier = self.barriers[number].take();
        let met = barrier.meeting.end();
        let (yes, all) = barrier.votes;
        for (warp, waiting) in self.warps.iter_mut().zip(barrier.lanes) {
            if waiting == 0 {
                continue;
            }
            met.leave(&mut warp.knowledge, waiting);
            for lane in lanes(waiting) {
                let Op::Barrier { mode, result, .. } = code[warp.pc(lane) as usize].op else {
                    unreachable!()
                };
                let outcome = match mode {
                    BarrierMode::Sync | BarrierMode::Arrive => continue,
                    BarrierMode::Count => yes,
                    BarrierMode::And => u32::from(yes == all),
                    BarrierMode::Or => u32::from(yes != 0),
                };
                if let Some(result) = result {
                    warp.registers.row_mut(result)[lane as usize] = u64::from(outcome);
                }
            }
            warp.resume(waiting);
        }
    }
}

impl Warp {
    /// Parked lanes that stand at this barrier; if `aligned`, at this very instruction.
    fn parked_at_barrier(&self, code: &[Instr], aligned: bool, number: u64) -> u32 {
        if aligned {
            return self.standing_at(self.parked, self.at);
        }
        let at_it = |lane: &u32| match code[self.pc(*lane) as usize].op {
            Op::Barrier { aligned: false, id, .. } => {
                self.registers.row(id)[*lane as usize] == number
            }
            _ => false,
        };
        lanes(self.parked).filter(at_it).fold(0, |all, lane| all | 1 << lane)
    }
}
