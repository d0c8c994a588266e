//! Instructions for which lanes of a warp wait for each other: `shfl`, `vote`, `bar.warp`.

use super::{
    trouble::Trouble,
    warp::{Warp, ones},
};
use crate::{
    instr::{Op, Reg, ShuffleMode, VoteMode},
    registers::Row,
};

/// Lanes of `mask` with the same members, and those members, for each.
#[inline(always)]
fn sets(members: &Row, mask: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let value = *members.get(left.trailing_zeros() as usize)?;
        let mut same = 0;
        for (lane, other) in members.iter().enumerate() {
            same |= u64::from(*other == value) << lane;
        }
        let set = left & same as u32;
        left &= !set;
        Some((set, value as u32))
    })
}

impl Warp {
    /// Does such an instruction for those lanes of `mask`, and of the lanes already parked here, whose members are all
    /// here; parks the rest of `mask`. False if no lane can run then.
    #[inline(always)]
    pub(crate) fn exchange(&mut self, op: &Op, members: Reg, mask: u32) -> Result<bool, Trouble> {
        if mask == 0 {
            self.at += 1;
            return Ok(true);
        }
        let here = mask | self.standing_at(self.parked, self.at);
        let ready = self.complete(members, here)?;
        if ready != 0 {
            match op {
                Op::Shuffle { mode, result, found, value, lane, clamp, .. } => {
                    let operands = [*value, *lane, *clamp, members];
                    self.shuffle(*mode, *result, *found, operands, ready)?;
                }
                Op::Vote { mode, result, value, negated, .. } => {
                    self.vote(*mode, *result, *value, *negated, members, ready);
                }
                _ => {
                    for (set, _) in sets(self.registers.row(members), ready) {
                        self.knowledge.synchronise(set);
                    }
                }
            }
        }
        Ok(self.proceed(ready, mask & !ready))
    }

    /// The lanes of `here` whose members, as far as they have not exited, are all here with the same members.
    #[inline(always)]
    fn complete(&self, members: Reg, here: u32) -> Result<u32, Trouble> {
        let mut ready = 0;
        for (set, named) in sets(self.registers.row(members), here) {
            if set & !named != 0 {
                let lane = (set & !named).trailing_zeros();
                let detail = format!("lane {lane} is not among its own members {named:#010x}");
                return Err(Trouble::undefined(lane, detail));
            }
            if named & self.live & !set == 0 {
                ready |= set;
            }
        }
        Ok(ready)
    }

    #[inline(always)]
    fn shuffle(
        &mut self,
        mode: ShuffleMode,
        result: Reg,
        found: Option<Reg>,
        [value, lane, clamp, members]: [Reg; 4],
        ready: u32,
    ) -> Result<(), Trouble> {
        let (by, clamp) = (self.registers.row(lane), self.registers.row(clamp));
        let (mut from, mut hits) = ([0; 32], [0; 32]);
        for i in 0..32 {
            let (me, b, c) = (i as i32, (by[i] & 31) as i32, (clamp[i] & 31) as i32);
            let segment = (clamp[i] >> 8 & 31) as i32;
            let least = me & segment;
            let most = least | c & !segment;
            let (other, hit) = match mode {
                ShuffleMode::Up => (me - b, me - b >= most),
                ShuffleMode::Down => (me + b, me + b <= most),
                ShuffleMode::Butterfly => (me ^ b, me ^ b <= most),
                ShuffleMode::Index => (least | b & !segment, least | b & !segment <= most),
            };
            from[i] = if hit { other } else { me } as u32;
            hits[i] = u64::from(hit);
        }
        let (values, members) = (self.registers.row(value), self.registers.row(members));
        let (mut results, mut fine) = ([0; 32], 0);
        for i in 0..32 {
            let takes_part = (u64::from(ready) & members[i]) >> (from[i] & 31) & 1;
            fine |= takes_part << i;
            results[i] = values[from[i] as usize & 31] & 0xffff_ffff;
        }
        let bad = ready & !(fine as u32);
        if bad != 0 {
            let lane = bad.trailing_zeros();
            let from = from[lane as usize];
            let detail = format!("lane {lane} reads from lane {from}, which takes no part");
            return Err(Trouble::undefined(lane, detail));
        }
        self.registers.merge(result, ready, &results);
        if let Some(found) = found {
            self.registers.merge(found, ready, &hits);
        }
        Ok(())
    }

    fn vote(
        &mut self,
        mode: VoteMode,
        result: Reg,
        value: Reg,
        negated: bool,
        members: Reg,
        ready: u32,
    ) {
        let mut yes = ones(self.registers.row(value));
        if negated {
            yes = !yes;
        }
        let members = *self.registers.row(members);
        for (set, _) in sets(&members, ready) {
            let votes = yes & set;
            let outcome = match mode {
                VoteMode::All => u64::from(votes == set),
                VoteMode::Any => u64::from(votes != 0),
                VoteMode::Uniform => u64::from(votes == 0 || votes == set),
                VoteMode::Ballot => u64::from(votes),
            };
            self.registers.merge(result, set, &[outcome; 32]);
        }
    }
}
