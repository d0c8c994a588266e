//! Executes kernels: a warp at a time, instruction by instruction.

mod access;
mod atomic;
mod barrier;
mod blame;
mod block;
mod equal;
mod exchange;
#[allow(unsafe_code)] // a processor's features
mod level;
mod local;
mod location;
mod order;
mod piece;
mod request;
mod runs;
mod say;
mod shared;
mod trouble;
mod warp;

use crate::{
    fault::{Fault, FaultKind},
    instr::{Fill, Instr, Op, Order, Special},
    launch::Launch,
    memory::Memory,
    race::{Places, scope},
    registers::Registers,
    report::Report,
};
use access::Access;
use block::Block;
use level::Level;
use order::{Blocks, Dice};
use request::Request;
use shared::Shared;
use trouble::Trouble;
use warp::{Warp, lanes};

/// Rounds in which nobody did anything but poll and no value changed, after which a launch counts as hanging.
const IDLE_ROUNDS: u32 = 4096;

/// As many where threads look at the clock: reading it often is nothing to wait for.
const TIMED_ROUNDS: u32 = 16 * IDLE_ROUNDS;
/// log2 of the nanoseconds that pass in a round in which all wait, at most: a second.
const MOST_IDLE: u32 = 30;

/// Why a warp stopped for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// Its turn is over.
    Turn,
    /// It has made a strong access: another may have to answer first.
    Poll,
    /// None of its lanes can run.
    Stuck,
}

/// A launch under way.
pub(crate) struct Machine<'a> {
    launch: &'a Launch<'a>,
    code: &'a [Instr],
    access: Access<'a>,
    dice: Dice,
    /// Thread instructions left.
    budget: u64,
    /// What a warp begins with, but for what its block and itself differ in.
    first: Registers,
    /// Registers of warps that are done.
    spare: Vec<Registers>,
    /// Simulated, in nanoseconds and in cycles alike: instructions of warps, sleeps, and what passes while all wait.
    time: u64,
    /// Whether anybody has looked at the clock or slept.
    is_timed: bool,
}

impl<'a> Machine<'a> {
    /// Makes a launch ready.
    pub(crate) fn new(memory: &'a mut Memory, launch: &'a Launch<'a>) -> Result<Self, Fault> {
        launch.check()?;
        let code = &launch.kernel.code[..];
        let access = Access {
            generation: memory.begin_launch(),
            memory,
            places: Places::default(),
            params: launch.params,
            report: Report::default(),
            hints: vec![0; code.len()],
            changes: 0,
        };
        let (dice, budget) = (Dice::new(launch.seed), launch.budget);
        let mut first = Registers::of(launch.kernel);
        first.set_seed(launch.seed);
        let spare = Vec::new();
        let is_timed = false;
        Ok(Self { launch, code, access, dice, budget, first, spare, time: 0, is_timed })
    }

    /// Runs all blocks, so many at a time.
    pub(crate) fn run(mut self) -> Result<Report, Fault> {
        let mut next = Blocks::new(self.launch.blocks(), &mut self.dice);
        let mut resident: Vec<Block> = Vec::new();
        let mut spare: Vec<Shared> = Vec::new();
        let mut idle = 0;
        loop {
            while resident.len() < self.launch.resident as usize
                && let Some(number) = next.next()
            {
                let shared = self.shared(&mut spare);
                resident.push(self.start(number, shared));
            }
            if resident.is_empty() {
                break;
            }
            let changes = self.access.changes;
            let mut polled_only = true;
            for index in self.dice.shuffled(resident.len()) {
                let block = &mut resident[index];
                polled_only &= self.visit(block)?;
                if !block.can_run() && !block.is_done() {
                    return Err(self.stuck(block));
                }
            }
            for index in (0..resident.len()).rev() {
                if resident[index].is_done() {
                    let block = resident.swap_remove(index);
                    self.spare.extend(block.warps.into_iter().map(|warp| warp.registers));
                    spare.push(block.shared);
                    polled_only = false;
                }
            }
            idle = if polled_only && self.access.changes == changes { idle + 1 } else { 0 };
            // Nobody does anything but wait: time flies, so that who waits by the clock ends.
            self.time += (1 << idle.min(MOST_IDLE)) - 1;
            let is_idle = idle >= if self.is_timed { TIMED_ROUNDS } else { IDLE_ROUNDS };
            if is_idle || self.budget == 0 {
                return Err(self.hang(&resident, is_idle));
            }
        }
        self.access.report.high_water = self.access.memory.high_water();
        Ok(self.access.report)
    }

    fn shared(&self, spare: &mut Vec<Shared>) -> Shared {
        match spare.pop() {
            Some(mut shared) => {
                shared.renew();
                shared
            }
            None => Shared::new(self.launch.shared_bytes()),
        }
    }

    fn start(&mut self, number: u32, shared: Shared) -> Block {
        let (kernel, threads) = (self.launch.kernel, self.launch.threads());
        // What all warps of the block begin with.
        let mut first = std::mem::take(&mut self.first);
        let mut spare = std::mem::take(&mut self.spare);
        let mut differ = Vec::new();
        for &(reg, fill) in &kernel.fills {
            match fill {
                Fill::Constant(_) => {}
                Fill::Special(special) if special.is_of_block() => {
                    *first.row_mut(reg) = [self.special(special, number, 0, 0); 32];
                }
                Fill::Special(special) => differ.push((reg, special)),
                Fill::Symbol(..) => unreachable!("the launch is checked for those"),
            }
        }
        let block = Block::new(number, threads, kernel.local, shared, |warp| {
            let mut registers = match spare.pop() {
                Some(mut registers) => {
                    registers.restart(&first, &kernel.kept);
                    registers
                }
                None => first.clone(),
            };
            for &(reg, special) in &differ {
                *registers.row_mut(reg) =
                    std::array::from_fn(|lane| self.special(special, number, warp, lane as u32));
            }
            registers
        });
        (self.first, self.spare) = (first, spare);
        block
    }

    fn special(&self, special: Special, block: u32, warp: u32, lane: u32) -> u64 {
        let launch = self.launch;
        let bit = 1u32 << lane;
        u64::from(match special {
            Special::Thread(axis) => launch.thread(32 * warp + lane)[axis as usize],
            Special::Threads(axis) => launch.block[axis as usize],
            Special::Block(axis) => launch.block_index(block)[axis as usize],
            Special::Blocks(axis) => launch.grid[axis as usize],
            Special::Lane => lane,
            Special::Warp => warp,
            Special::Warps => launch.threads().div_ceil(32),
            Special::LaneMaskEq => bit,
            Special::LaneMaskLt => bit - 1,
            Special::LaneMaskLe => bit | (bit - 1),
            Special::LaneMaskGt => !(bit | (bit - 1)),
            Special::LaneMaskGe => !(bit - 1),
            Special::DynamicSharedSize => launch.dynamic_shared,
            Special::TotalSharedSize => launch.shared_bytes() as u32,
        })
    }

    /// Gives every warp of a block its turn. Says whether all that could run did nothing but poll.
    fn visit(&mut self, block: &mut Block) -> Result<bool, Fault> {
        let mut polled_only = true;
        for index in self.dice.shuffled(block.warps.len()) {
            let turn = self.dice.turn();
            if block.warps[index].runnable() == 0 {
                continue;
            }
            let pause = self
                .step(block, index, turn)
                .map_err(|(at, trouble)| self.fault(block, index, at, trouble))?;
            polled_only &= pause == Pause::Poll;
            if self.budget == 0 {
                break;
            }
        }
        Ok(polled_only)
    }

    /// [`Machine::step`], compiled for each level.
    #[inline(always)]
    fn step_by<L: Level>(
        &mut self,
        level: L,
        block: &mut Block,
        index: usize,
        turn: u32,
    ) -> Result<Pause, (u32, Trouble)> {
        let code = self.code;
        let (mut instructions, mut threads) = (0, 0);
        let mut pause = Ok(Pause::Turn);
        let mut warp = &mut block.warps[index];
        if warp.group == 0 || warp.meets_others() {
            warp.choose();
        }
        for _ in 0..turn {
            if warp.meets_others() {
                warp.choose();
            }
            let at = warp.at;
            let instr = &code[at as usize];
            let mask = warp.guarded(instr);
            instructions += 1;
            threads += u64::from(mask.count_ones());
            let outcome = match &instr.op {
                Op::Alu(alu) => {
                    level.execute(alu, &mut warp.registers, mask);
                    warp.at += 1;
                    continue;
                }
                Op::Branch { target, .. } => {
                    warp.branch(mask, *target);
                    continue;
                }
                Op::Nop => {
                    warp.at += 1;
                    continue;
                }
                Op::ActiveMask { result } => {
                    warp.registers.merge(*result, mask, &[u64::from(mask); 32]);
                    warp.at += 1;
                    continue;
                }
                Op::Exit => Ok(warp.exit(mask)),
                Op::Trap if mask == 0 => {
                    warp.at += 1;
                    continue;
                }
                Op::Trap => Err(Trouble::new(FaultKind::Trap, mask.trailing_zeros(), "trap")),
                Op::Clock { .. } | Op::Sleep { .. } if mask != 0 => {
                    self.pass(warp, &instr.op, mask, instructions);
                    warp.at += 1;
                    warp.polled();
                    pause = Ok(Pause::Poll);
                    break;
                }
                Op::Clock { .. } | Op::Sleep { .. } => {
                    warp.at += 1;
                    continue;
                }
                Op::Shuffle { members, .. }
                | Op::Vote { members, .. }
                | Op::WarpBarrier { members } => warp.exchange(&instr.op, *members, mask),
                Op::Barrier { .. } => {
                    let completed = block.arrive(index, mask, code);
                    warp = &mut block.warps[index];
                    completed.map(|completed| {
                        self.access.report.barriers += u64::from(completed);
                        warp.group != 0
                    })
                }
                op => {
                    if mask != 0
                        && let Err(trouble) =
                            level.memory(self, (warp, &mut block.shared), op, mask)
                    {
                        pause = Err((at, trouble));
                        break;
                    }
                    warp.at += 1;
                    if op.is_strong() && mask != 0 {
                        warp.polled();
                        pause = Ok(Pause::Poll);
                        break;
                    }
                    continue;
                }
            };
            match outcome {
                Ok(true) => {}
                Ok(false) => {
                    pause = Ok(Pause::Stuck);
                    break;
                }
                Err(trouble) => {
                    pause = Err((at, trouble));
                    break;
                }
            }
        }
        self.access.report.warp_instructions += instructions;
        self.access.report.thread_instructions += threads;
        self.time += instructions;
        self.budget = self.budget.saturating_sub(threads.max(1));
        pause
    }

    /// Reads the time or lets some pass; `instructions` of this turn are not counted yet.
    fn pass(&mut self, warp: &mut Warp, op: &Op, mask: u32, instructions: u64) {
        self.is_timed = true;
        match *op {
            Op::Clock { result, shift, bits } => {
                let value = (self.time + instructions) >> shift & u64::MAX >> (64 - bits);
                warp.registers.merge(result, mask, &[value; 32]);
            }
            Op::Sleep { time } => {
                let row = warp.registers.row(time);
                self.time += lanes(mask).map(|lane| row[lane as usize]).max().unwrap_or(0);
            }
            _ => unreachable!("not an instruction of time"),
        }
    }

    /// Does an instruction that goes to memory.
    #[inline(always)]
    fn memory(
        &mut self,
        (warp, shared): (&mut Warp, &mut Shared),
        op: &Op,
        mask: u32,
    ) -> Result<(), Trouble> {
        let at = warp.at;
        match *op {
            Op::Load { ty, count, ref regs, address, order } => {
                let regs = &regs[..count as usize];
                let request = Request { at, regs, ty, address, order, mask };
                self.access.load(warp, shared, &request)
            }
            Op::Store { ty, count, ref regs, address, order } => {
                let regs = &regs[..count as usize];
                let request = Request { at, regs, ty, address, order, mask };
                self.access.store(warp, shared, &request)
            }
            Op::Atomic { op, ty, result, ref values, address, order } => {
                let request = Request { at, regs: values, ty, address, order, mask };
                self.access.atomic(warp, shared, &request, op, result)
            }
            Op::Fence { order } => {
                if let Some(scope) = scope(order) {
                    warp.knowledge.fence(mask, scope);
                }
                Ok(())
            }
            Op::Assertion { message, file, line, function } => {
                let texts = [message, file, line, function];
                Err(self.access.assertion(warp, shared, texts, mask))
            }
            Op::Print { result, format, values } => {
                self.access.print(warp, shared, [result, format, values], mask)
            }
            _ => unreachable!("not an instruction that goes to memory"),
        }
    }
}

impl Op {
    /// Whether it is an access through which threads may wait for each other.
    fn is_strong(&self) -> bool {
        match self {
            Self::Load { order, .. } | Self::Store { order, .. } => *order != Order::Weak,
            Self::Atomic { .. } => true,
            _ => false,
        }
    }
}
