//! Accesses to one piece of memory: an allocation, a block's shared memory or a thread's local memory.

use super::{runs::Run, trouble::Trouble, warp::Warp, warp::lanes};
use crate::{
    fault::FaultKind,
    instr::Reg,
    memory::Bits,
    race::{Access, Conflict, Shadow, Strength},
    registers::Registers,
};

/// What the elements of an access are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Elements<'a> {
    /// The register of each.
    pub(crate) regs: &'a [Reg],
    /// Bytes of each.
    pub(crate) size: usize,
}

impl Elements<'_> {
    /// Bytes of all of them.
    #[inline]
    pub(crate) fn width(&self) -> usize {
        self.size * self.regs.len()
    }
}

/// A piece of memory.
pub(crate) struct Piece<'a> {
    pub(crate) data: &'a mut [u8],
    pub(crate) written: &'a mut Bits,
    /// None where nobody else can come.
    pub(crate) shadow: Option<&'a mut Shadow>,
}

fn each<const N: usize>(bytes: &[u8], width: usize, skip: usize, row: &mut [u64]) {
    // A constant width makes vectors of the loop.
    match width / N {
        1 => each_of::<N>(bytes, N, 0, row),
        2 => each_of::<N>(bytes, 2 * N, skip, row),
        _ => each_of::<N>(bytes, 4 * N, skip, row),
    }
}

#[inline(always)]
fn each_of<const N: usize>(bytes: &[u8], width: usize, skip: usize, row: &mut [u64]) {
    for (value, chunk) in row.iter_mut().zip(bytes.chunks_exact(width)) {
        let mut element = [0; 8];
        element[..N].copy_from_slice(&chunk[skip..skip + N]);
        *value = u64::from_le_bytes(element);
    }
}

/// Puts elements that lie one behind the other, lane by lane, into registers.
#[inline]
fn take(registers: &mut Registers, elements: Elements<'_>, bytes: &[u8], run: Run) {
    let (first, width) = (run.lane as usize, elements.width());
    for (i, reg) in elements.regs.iter().enumerate() {
        let row = &mut registers.row_mut(*reg)[first..first + run.count as usize];
        match elements.size {
            1 => each::<1>(bytes, width, i, row),
            2 => each::<2>(bytes, width, 2 * i, row),
            4 => each::<4>(bytes, width, 4 * i, row),
            _ => each::<8>(bytes, width, 8 * i, row),
        }
        if run.together != 0 {
            let value = row[0];
            let row = registers.row_mut(*reg);
            lanes(run.together).for_each(|lane| row[lane as usize] = value);
        }
    }
}

impl Elements<'_> {
    /// Loads them for one lane.
    pub(crate) fn take(self, registers: &mut Registers, bytes: &[u8], run: Run) {
        take(registers, self, bytes, run);
    }
}

fn put_each<const N: usize>(bytes: &mut [u8], width: usize, skip: usize, row: &[u64]) {
    match width / N {
        1 => put_each_of::<N>(bytes, N, 0, row),
        2 => put_each_of::<N>(bytes, 2 * N, skip, row),
        _ => put_each_of::<N>(bytes, 4 * N, skip, row),
    }
}

#[inline(always)]
fn put_each_of<const N: usize>(bytes: &mut [u8], width: usize, skip: usize, row: &[u64]) {
    for (value, chunk) in row.iter().zip(bytes.chunks_exact_mut(width)) {
        chunk[skip..skip + N].copy_from_slice(&value.to_le_bytes()[..N]);
    }
}

/// Puts registers into elements that lie one behind the other, lane by lane.
#[inline]
fn put(registers: &Registers, elements: Elements<'_>, bytes: &mut [u8], run: Run) {
    let (first, width) = (run.lane as usize, elements.width());
    for (i, reg) in elements.regs.iter().enumerate() {
        let row = &registers.row(*reg)[first..first + run.count as usize];
        match elements.size {
            1 => put_each::<1>(bytes, width, i, row),
            2 => put_each::<2>(bytes, width, 2 * i, row),
            4 => put_each::<4>(bytes, width, 4 * i, row),
            _ => put_each::<8>(bytes, width, 8 * i, row),
        }
    }
}

impl Piece<'_> {
    /// Reads of a run of lanes, from `offset` on.
    pub(crate) fn load(
        &mut self,
        warp: &mut Warp,
        elements: Elements<'_>,
        offset: usize,
        run: Run,
        strength: Strength,
    ) -> Result<(), Problem> {
        let width = elements.width();
        let bytes = width * run.count as usize;
        if let Some(shadow) = self.shadow.as_deref_mut() {
            let mask = run.lanes();
            let knowledge = &warp.knowledge;
            match knowledge.shared_view(mask) {
                Some(view) => {
                    let access = Access::new(knowledge, view, strength);
                    if run.together != 0 {
                        shadow.read_together(&access, offset, width, run.together)
                    } else {
                        shadow.read(&access, offset, width, run.lane, run.count)
                    }
                    .map_err(Problem::Race)?;
                }
                None => {
                    for lane in lanes(mask) {
                        let access = Access::new(knowledge, knowledge.view(lane), strength);
                        let step = if run.together != 0 { 0 } else { (lane - run.lane) as usize };
                        shadow
                            .read(&access, offset + step * width, width, lane, 1)
                            .map_err(Problem::Race)?;
                    }
                }
            }
        }
        if let Some(byte) = self.written.first_clear(offset, bytes) {
            let lane = run.lane + ((byte - offset) / width) as u32;
            return Err(Problem::Uninitialised(lane, byte));
        }
        take(&mut warp.registers, elements, &self.data[offset..offset + bytes], run);
        Ok(())
    }

    /// Writes of a run of lanes, from `offset` on.
    pub(crate) fn store(
        &mut self,
        warp: &Warp,
        elements: Elements<'_>,
        offset: usize,
        run: Run,
        strength: Strength,
    ) -> Result<(), Problem> {
        let width = elements.width();
        let bytes = width * run.count as usize;
        if let Some(shadow) = self.shadow.as_deref_mut() {
            let knowledge = &warp.knowledge;
            match knowledge.shared_view(run.lanes()) {
                Some(view) => {
                    let access = Access::new(knowledge, view, strength);
                    shadow
                        .write(&access, offset, width, run.lane, run.count)
                        .map_err(Problem::Race)?;
                }
                None => {
                    for i in 0..run.count {
                        let lane = run.lane + i;
                        let access = Access::new(knowledge, knowledge.view(lane), strength);
                        shadow
                            .write(&access, offset + i as usize * width, width, lane, 1)
                            .map_err(Problem::Race)?;
                    }
                }
            }
        }
        self.written.set(offset, bytes);
        put(&warp.registers, elements, &mut self.data[offset..offset + bytes], run);
        Ok(())
    }

    /// The value that an atomic operation of a lane finds, 8 bytes at most.
    pub(crate) fn update(
        &mut self,
        warp: &Warp,
        offset: usize,
        size: usize,
        lane: u32,
        strength: Strength,
        new: impl FnOnce(u64) -> u64,
    ) -> Result<u64, Problem> {
        if let Some(shadow) = self.shadow.as_deref_mut() {
            let access = Access::new(&warp.knowledge, warp.knowledge.view(lane), strength);
            shadow.write(&access, offset, size, lane, 1).map_err(Problem::Race)?;
        }
        if let Some(byte) = self.written.first_clear(offset, size) {
            return Err(Problem::Uninitialised(lane, byte));
        }
        let place = &mut self.data[offset..offset + size];
        let mut old = [0; 8];
        old[..size].copy_from_slice(place);
        let old = u64::from_le_bytes(old);
        place.copy_from_slice(&new(old).to_le_bytes()[..size]);
        Ok(old)
    }
}

/// What is wrong with an access to a piece.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Two accesses that nothing orders.
    Race(Conflict),
    /// A lane, and the first byte of the piece that it reads unwritten.
    Uninitialised(u32, usize),
}

impl Problem {
    /// In words. `verb`: what the lanes do. `place`: where they do it. `name`: names a byte of the piece.
    pub(crate) fn explain(
        self,
        verb: &str,
        place: impl FnOnce(u32) -> String,
        name: impl FnOnce(usize) -> String,
    ) -> Trouble {
        match self {
            Self::Uninitialised(lane, byte) => {
                let detail = format!("{verb} bytes that were never written: {}", name(byte));
                Trouble::new(FaultKind::Uninitialised, lane, detail)
            }
            Self::Race(Conflict { lane, other, wrote }) => {
                let did = if wrote { "written" } else { "read" };
                let how = match other.strength() {
                    Strength::Weak => "",
                    Strength::Block => " with block scope",
                    Strength::Device => " strongly",
                };
                let detail = format!(
                    "{verb} {}, which another thread has {did}{how} with nothing to order the two",
                    place(lane)
                );
                let mut trouble = Trouble::new(FaultKind::Race, lane, detail);
                trouble.other = Some(other);
                trouble
            }
        }
    }
}
