//! Registers that are not in use at one time become one: a warp's fit into a cache then, and are quick to set up.
//!
//! A compiler gives each value a register of its own, thousands of them. A register is kept from the first to the last
//! instruction between which some thread may still read it; others take its place before and after. One that may be read
//! before it is written is kept from the start, and so is 0 as ever.

use crate::instr::{Instr, Op, Reg};
use std::{cmp::Reverse, collections::BinaryHeap};

/// How an instruction touches a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    Reads,
    Writes,
}

/// Visits the registers of an instruction. `counts`: how many results and operands of an [`Op::Alu`] there are.
fn each_register(instr: &mut Instr, counts: (u8, u8), mut f: impl FnMut(&mut Reg, Touch)) {
    use Touch::{Reads, Writes};
    if let Some(guard) = &mut instr.guard {
        f(&mut guard.reg, Reads);
    }
    match &mut instr.op {
        Op::Alu(alu) => {
            alu.from[..counts.1 as usize].iter_mut().for_each(|reg| f(reg, Reads));
            alu.to[..counts.0 as usize].iter_mut().for_each(|reg| f(reg, Writes));
        }
        Op::Load { count, regs, address, .. } => {
            address.base.iter_mut().for_each(|reg| f(reg, Reads));
            regs[..*count as usize].iter_mut().for_each(|reg| f(reg, Writes));
        }
        Op::Store { count, regs, address, .. } => {
            address.base.iter_mut().for_each(|reg| f(reg, Reads));
            regs[..*count as usize].iter_mut().for_each(|reg| f(reg, Reads));
        }
        Op::Atomic { result, values, address, .. } => {
            address.base.iter_mut().for_each(|reg| f(reg, Reads));
            values.iter_mut().for_each(|reg| f(reg, Reads));
            result.iter_mut().for_each(|reg| f(reg, Writes));
        }
        Op::Shuffle { result, found, value, lane, clamp, members, .. } => {
            [value, lane, clamp, members].into_iter().for_each(|reg| f(reg, Reads));
            f(result, Writes);
            found.iter_mut().for_each(|reg| f(reg, Writes));
        }
        Op::Vote { result, value, members, .. } => {
            f(value, Reads);
            f(members, Reads);
            f(result, Writes);
        }
        Op::WarpBarrier { members } => f(members, Reads),
        Op::Barrier { id, threads, result, value, .. } => {
            f(id, Reads);
            threads.iter_mut().for_each(|reg| f(reg, Reads));
            value.iter_mut().for_each(|(reg, _)| f(reg, Reads));
            result.iter_mut().for_each(|reg| f(reg, Writes));
        }
        Op::ActiveMask { result } | Op::Clock { result, .. } => f(result, Writes),
        Op::Sleep { time } => f(time, Reads),
        Op::Assertion { message, file, line, function } => {
            [message, file, line, function].into_iter().for_each(|reg| f(reg, Reads));
        }
        Op::Print { result, format, values } => {
            f(format, Reads);
            f(values, Reads);
            f(result, Writes);
        }
        Op::Fence { .. } | Op::Branch { .. } | Op::Exit | Op::Trap | Op::Nop => {}
    }
}

/// A set of registers.
#[derive(Clone, Debug, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn new(registers: usize) -> Self {
        Self(vec![0; registers.div_ceil(64)])
    }

    fn insert(&mut self, reg: Reg) {
        self.0[usize::from(reg) / 64] |= 1 << (reg % 64);
    }

    fn has(&self, reg: Reg) -> bool {
        self.0[usize::from(reg) / 64] >> (reg % 64) & 1 == 1
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(i, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(64 * i + bit)
            })
        })
    }
}

/// Instructions that are executed one after the other.
struct Run {
    start: usize,
    /// The last.
    end: usize,
    /// Runs that may follow.
    next: Vec<usize>,
    /// Read here before they are written.
    reads: Set,
    /// Written here in every thread that passes.
    writes: Set,
    /// Needed at the start, and behind the end.
    needed: Set,
    needed_after: Set,
}

fn runs(code: &mut [Instr], counts: &[(u8, u8)], registers: usize) -> Vec<Run> {
    let mut begins = vec![false; code.len() + 1];
    begins[0] = true;
    for (at, instr) in code.iter().enumerate() {
        if let Op::Branch { target, .. } = instr.op {
            begins[target as usize] = true;
            begins[at + 1] = true;
        }
    }
    let starts: Vec<usize> = (0..code.len()).filter(|at| begins[*at]).collect();
    let of = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    let mut runs = Vec::with_capacity(starts.len());
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).map_or(code.len(), |next| *next) - 1;
        let mut run = Run {
            start,
            end,
            next: Vec::new(),
            reads: Set::new(registers),
            writes: Set::new(registers),
            needed: Set::new(registers),
            needed_after: Set::new(registers),
        };
        for at in start..=end {
            let guarded = code[at].guard.is_some();
            let mut written = [None; 8];
            let mut slots = written.iter_mut();
            each_register(&mut code[at], counts[at], |reg, touch| match touch {
                Touch::Reads if !run.writes.has(*reg) => run.reads.insert(*reg),
                Touch::Reads => {}
                // Where the guard does not hold, what was there stays.
                Touch::Writes if guarded => {}
                Touch::Writes => *slots.next().expect("eight results at most") = Some(*reg),
            });
            written.into_iter().flatten().for_each(|reg| run.writes.insert(reg));
        }
        let last = &code[end];
        let goes_on = match last.op {
            Op::Branch { target, .. } => {
                run.next.push(of(target as usize));
                last.guard.is_some()
            }
            _ => true,
        };
        if goes_on && index + 1 < starts.len() {
            run.next.push(index + 1);
        }
        runs.push(run);
    }
    runs
}

/// Follows what is needed from where it is read back to where it is written.
fn follow(runs: &mut [Run]) {
    let mut changed = true;
    while changed {
        changed = false;
        for index in (0..runs.len()).rev() {
            let mut after = std::mem::replace(&mut runs[index].needed_after, Set(Vec::new()));
            for next in runs[index].next.clone() {
                after.0.iter_mut().zip(&runs[next].needed.0).for_each(|(mine, new)| *mine |= new);
            }
            let run = &mut runs[index];
            for (i, word) in after.0.iter().enumerate() {
                let needed = run.reads.0[i] | word & !run.writes.0[i];
                changed |= needed != run.needed.0[i];
                run.needed.0[i] = needed;
            }
            run.needed_after = after;
        }
    }
}

/// Renames the registers of a kernel; `counts` as in [`each_register`]. Gives how many are left, and what became of those
/// that are needed at the start.
pub(super) fn allocate(
    code: &mut [Instr],
    counts: &[(u8, u8)],
    registers: usize,
) -> (usize, Vec<Option<Reg>>) {
    let mut runs = runs(code, counts, registers);
    follow(&mut runs);
    let mut kept: Vec<Option<(usize, usize)>> = vec![None; registers];
    let mut keep = |reg: usize, at: usize| {
        let (first, last) = kept[reg].get_or_insert((at, at));
        (*first, *last) = ((*first).min(at), (*last).max(at));
    };
    for run in &runs {
        run.needed.iter().for_each(|reg| keep(reg, run.start));
        run.needed_after.iter().for_each(|reg| keep(reg, run.end));
    }
    for (at, instr) in code.iter_mut().enumerate() {
        each_register(instr, counts[at], |reg, _| keep(usize::from(*reg), at));
    }
    let mut order: Vec<usize> = (0..registers).filter(|reg| kept[*reg].is_some()).collect();
    order.sort_by_key(|reg| kept[*reg]);
    let (mut count, mut names) = (0, vec![0; registers]);
    let mut free: BinaryHeap<Reverse<Reg>> = BinaryHeap::new();
    // Those in use, the one that ends first on top.
    let mut used: BinaryHeap<Reverse<(usize, Reg)>> = BinaryHeap::new();
    for reg in order {
        let (first, last) = kept[reg].expect("it was filtered");
        while let Some(&Reverse((end, name))) = used.peek()
            && end < first
        {
            used.pop();
            free.push(Reverse(name));
        }
        let name = match free.pop() {
            Some(Reverse(name)) => name,
            None => {
                count += 1;
                count as Reg - 1
            }
        };
        names[reg] = name;
        used.push(Reverse((last, name)));
    }
    for (at, instr) in code.iter_mut().enumerate() {
        each_register(instr, counts[at], |reg, _| *reg = names[usize::from(*reg)]);
    }
    let at_start = |reg: usize| runs[0].needed.has(reg as Reg).then_some(names[reg]);
    (count, (0..registers).map(at_start).collect())
}
