//! Accesses to one piece of memory: an allocation, a block's shared memory or a thread's local memory.

use super::{runs::Run, trouble::Trouble, warp::Warp, warp::lanes};
use crate::{
    fault::FaultKind,
    instr::Reg,
    memory::Bits,
    race::{Access, Conflict, Shadow, Strength},
    registers::{Registers, Row},
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

/// 8 bytes of every lane of a run, or all `N` of them where there are fewer: `W` bytes lie between lanes, the first
/// `skip` of which go before.
#[inline(always)]
fn words<const N: usize, const W: usize>(bytes: &[u8], skip: usize) -> Row {
    let mut words = [0; 32];
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<W>().0) {
        let mut all = [0; 8];
        all[..N].copy_from_slice(&chunk[skip..skip + N]);
        *word = u64::from_le_bytes(all);
    }
    words
}

/// The reverse of [`words`].
#[inline(always)]
fn put_words<const N: usize, const W: usize>(words: &Row, bytes: &mut [u8], skip: usize) {
    for (word, chunk) in words.iter().zip(bytes.as_chunks_mut::<W>().0) {
        chunk[skip..skip + N].copy_from_slice(&word.to_le_bytes()[..N]);
    }
}

/// Puts elements that lie one behind the other, lane by lane, into registers.
#[inline(always)]
fn take(registers: &mut Registers, elements: Elements<'_>, bytes: &[u8], run: Run) {
    let (first, count) = (run.lane as usize, run.count as usize);
    // Elements come by words of up to 8 bytes, all lanes' at a time, and are cut out of those: that makes vectors.
    let keep = u64::MAX >> (64 - 8 * elements.size);
    for (column, regs) in elements.columns() {
        let words = match elements.width() {
            1 => words::<1, 1>(bytes, 0),
            2 => words::<2, 2>(bytes, 0),
            4 => words::<4, 4>(bytes, 0),
            8 => words::<8, 8>(bytes, 0),
            16 => words::<8, 16>(bytes, column),
            _ => words::<8, 32>(bytes, column),
        };
        for (i, reg) in regs.iter().enumerate() {
            let shift = 8 * elements.size * i;
            let row = registers.row_mut(*reg);
            if run.together != 0 {
                let value = words[0] >> shift & keep;
                lanes(run.together).for_each(|lane| row[lane as usize] = value);
            } else if count == 32 {
                row.iter_mut().zip(&words).for_each(|(value, word)| *value = word >> shift & keep);
            } else {
                let row = &mut row[first..first + count];
                row.iter_mut().zip(&words).for_each(|(value, word)| *value = word >> shift & keep);
            }
        }
    }
}

impl<'a> Elements<'a> {
    /// Loads them for one lane.
    pub(crate) fn take(self, registers: &mut Registers, bytes: &[u8], run: Run) {
        take(registers, self, &bytes[..self.width() * run.count as usize], run);
    }

    /// The registers whose elements lie in the same 8 bytes of a lane, and where those begin.
    #[inline(always)]
    fn columns(self) -> impl Iterator<Item = (usize, &'a [Reg])> {
        self.regs.chunks(8 / self.size).enumerate().map(|(i, regs)| (8 * i, regs))
    }
}

/// Puts registers into elements that lie one behind the other, lane by lane.
#[inline(always)]
fn put(registers: &Registers, elements: Elements<'_>, bytes: &mut [u8], run: Run) {
    let (first, count) = (run.lane as usize, run.count as usize);
    let keep = u64::MAX >> (64 - 8 * elements.size);
    for (column, regs) in elements.columns() {
        let mut words = [0; 32];
        for (i, reg) in regs.iter().enumerate() {
            let shift = 8 * elements.size * i;
            let row = registers.row(*reg);
            if count == 32 {
                words
                    .iter_mut()
                    .zip(row)
                    .for_each(|(word, value)| *word |= (value & keep) << shift);
            } else {
                let row = &row[first..first + count];
                words
                    .iter_mut()
                    .zip(row)
                    .for_each(|(word, value)| *word |= (value & keep) << shift);
            }
        }
        match elements.width() {
            1 => put_words::<1, 1>(&words, bytes, 0),
            2 => put_words::<2, 2>(&words, bytes, 0),
            4 => put_words::<4, 4>(&words, bytes, 0),
            8 => put_words::<8, 8>(&words, bytes, 0),
            16 => put_words::<8, 16>(&words, bytes, column),
            _ => put_words::<8, 32>(&words, bytes, column),
        }
    }
}

/// What an instruction does to a piece of memory. A trait and not closures: its methods are compiled for the level that
/// calls them.
pub(crate) trait Act {
    /// Does it for a run of lanes, from `offset` on.
    fn act(
        &mut self,
        piece: &mut Piece<'_>,
        warp: &mut Warp,
        offset: usize,
        run: Run,
    ) -> Result<(), Problem>;
}

/// [`Piece::load`].
pub(crate) struct Load<'a>(pub(crate) Elements<'a>, pub(crate) Strength);

impl Act for Load<'_> {
    #[inline(always)]
    fn act(
        &mut self,
        piece: &mut Piece<'_>,
        warp: &mut Warp,
        offset: usize,
        run: Run,
    ) -> Result<(), Problem> {
        piece.load(warp, self.0, offset, run, self.1)
    }
}

/// [`Piece::store`].
pub(crate) struct Store<'a>(pub(crate) Elements<'a>, pub(crate) Strength);

impl Act for Store<'_> {
    #[inline(always)]
    fn act(
        &mut self,
        piece: &mut Piece<'_>,
        warp: &mut Warp,
        offset: usize,
        run: Run,
    ) -> Result<(), Problem> {
        piece.store(warp, self.0, offset, run, self.1)
    }
}

/// Anything else.
pub(crate) struct By<F>(pub(crate) F);

impl<F: FnMut(&mut Piece<'_>, &mut Warp, usize, Run) -> Result<(), Problem>> Act for By<F> {
    fn act(
        &mut self,
        piece: &mut Piece<'_>,
        warp: &mut Warp,
        offset: usize,
        run: Run,
    ) -> Result<(), Problem> {
        (self.0)(piece, warp, offset, run)
    }
}

impl Piece<'_> {
    /// Reads of a run of lanes, from `offset` on.
    #[inline(always)]
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
    #[inline(always)]
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
