//! Writes of the value that is there already, where the test lets those pass.

use super::{
    piece::{Elements, Piece, Problem},
    runs::Run,
    warp::Warp,
};
use crate::race::{Conflict, Strength};

impl Piece<'_> {
    /// After a store of a run was a problem: lane by lane, leaving out those that race with a write of the same value.
    pub(super) fn store_unless_equal(
        &mut self,
        problem: Problem,
        warp: &Warp,
        elements: Elements<'_>,
        (offset, run): (usize, Run),
        strength: Strength,
    ) -> Result<(), Problem> {
        if !matches!(problem, Problem::Race(Conflict { wrote: true, .. })) {
            return Err(problem);
        }
        for i in 0..run.count {
            let (at, lane) = (offset + i as usize * elements.width(), run.lane + i);
            let one = Run { lane, count: 1, ..run };
            match self.store(warp, elements, at, one, strength) {
                Err(Problem::Race(Conflict { wrote: true, .. }))
                    if self.holds(warp, elements, at, lane) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Whether a lane would write what is there.
    fn holds(&self, warp: &Warp, elements: Elements<'_>, at: usize, lane: u32) -> bool {
        let value = |reg: &u16| warp.registers.row(*reg)[lane as usize].to_le_bytes();
        let there = self.data[at..at + elements.width()].chunks_exact(elements.size);
        there.zip(elements.regs).all(|(there, reg)| there == &value(reg)[..elements.size])
    }
}
