//! Loads, stores and atomic operations in all state spaces.

use super::{
    atomic,
    piece::{Act, By, Load, Piece, Problem, Store},
    request::{Request, aligned, by_place, within, without_twins},
    runs::{Run, Runs, sectors},
    shared::Shared,
    trouble::Trouble,
    warp::{Warp, lanes},
};
use crate::{
    fault::FaultKind,
    instr::{AtomicOp, Reg, Space},
    memory::Memory,
    race::Places,
    report::{Report, Traffic},
};

/// What all accesses of a launch share.
pub(crate) struct Access<'a> {
    pub(crate) memory: &'a mut Memory,
    pub(crate) places: Places,
    pub(crate) params: &'a [u8],
    pub(crate) report: Report,
    /// The allocation that each instruction last hit.
    pub(crate) hints: Vec<u32>,
    /// Tells the launches of a memory apart.
    pub(crate) generation: u32,
    /// Counts changes of memory, so that idling can be told from working.
    pub(crate) changes: u64,
}

impl Access<'_> {
    /// The allocation that a run lies in, and where in it.
    #[inline(always)]
    fn locate(
        &mut self,
        at: u32,
        run: &Run,
        width: usize,
        verb: &str,
    ) -> Result<(usize, usize), Trouble> {
        let bytes = width as u64 * u64::from(run.count);
        let hint = self.hints[at as usize] as usize;
        if hint < self.memory.count() {
            let allocation = self.memory.allocation(hint);
            let offset = run.address.wrapping_sub(allocation.base);
            let len = allocation.data.len() as u64;
            if offset < len && bytes <= len - offset {
                return Ok((hint, offset as usize));
            }
        }
        for i in 0..run.count {
            let address = run.address.wrapping_add(u64::from(i) * width as u64);
            let index = self.memory.index(address);
            let left = index.map(|index| self.memory.allocation(index).end() - address);
            if left.is_none_or(|left| left < width as u64) {
                // Name the first byte outside.
                let near = self.memory.describe(address.wrapping_add(left.unwrap_or(0)));
                let detail = format!("{verb} {width} bytes at {address:#x}: {near}");
                return Err(Trouble::new(FaultKind::OutOfBounds, run.lane + i, detail));
            }
        }
        let index = self.memory.index(run.address).expect("just looked up");
        self.hints[at as usize] = index as u32;
        Ok((index, (run.address - self.memory.allocation(index).base) as usize))
    }

    fn global(&mut self, index: usize) -> Piece<'_> {
        let generation = self.generation;
        let allocation = self.memory.allocation_mut(index);
        allocation.shadow.renew(generation, allocation.data.len());
        Piece {
            data: &mut allocation.data,
            written: &mut allocation.written,
            shadow: Some(&mut allocation.shadow),
        }
    }

    /// Does `act` to every run of the lanes that access `space`, with the piece of memory it lies in and its offset there.
    #[inline(always)]
    fn each_run(
        &mut self,
        (warp, shared): (&mut Warp, &mut Shared),
        request: &Request<'_>,
        (space, width, verb): (Space, usize, &str),
        runs: &[Run],
        mut act: impl Act,
    ) -> Result<(), Trouble> {
        for run in runs {
            aligned(run, width, verb)?;
            let (index, offset) = match space {
                Space::Global | Space::Generic | Space::Const => {
                    self.locate(request.at, run, width, verb)?
                }
                Space::Shared => (0, within(run, width, shared.len(), verb, "shared memory")?),
                Space::Local => {
                    local_run(warp, (width, verb), run, &mut act)?;
                    continue;
                }
                Space::Param => {
                    let detail = format!("{verb} a parameter");
                    return Err(Trouble::undefined(run.lane, detail));
                }
            };
            let mut piece = match space {
                Space::Shared => shared.piece(),
                _ => self.global(index),
            };
            if let Err(problem) = act.act(&mut piece, warp, offset, *run) {
                return Err(match space {
                    Space::Shared => explain_shared(problem, (width, verb), run),
                    _ => self.explain_global(problem, (width, verb), run, index),
                });
            }
        }
        Ok(())
    }

    #[cold]
    fn explain_global(
        &self,
        problem: Problem,
        (width, verb): (usize, &str),
        run: &Run,
        index: usize,
    ) -> Trouble {
        let near = |address| self.memory.describe(address);
        let base = self.memory.allocation(index).base;
        let place = |lane| {
            let address = run.address_of(lane, width);
            format!("{width} bytes at {address:#x}, {}", near(address))
        };
        problem.explain(verb, place, |byte| near(base + byte as u64))
    }

    /// `ld`.
    #[inline(always)]
    pub(crate) fn load(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        request: &Request<'_>,
    ) -> Result<(), Trouble> {
        match request.single(warp, request.elements().width(), true) {
            Some((space, run)) => {
                self.load_runs((warp, shared), request, (space, request.mask), &[run])
            }
            None => self.load_scattered(warp, shared, request),
        }
    }

    #[inline(never)]
    fn load_scattered(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        request: &Request<'_>,
    ) -> Result<(), Trouble> {
        let width = request.elements().width();
        let (addresses, spaces) = request.resolve(warp);
        for (space, mask) in spaces.into_iter().filter(|(_, mask)| *mask != 0) {
            let runs = Runs::new(&addresses, mask, width, space != Space::Local);
            self.load_runs((warp, shared), request, (space, mask), runs.as_slice())?;
            if request.is_strong() && space != Space::Param {
                let places = if space == Space::Shared { &shared.places } else { &self.places };
                for (place, lanes) in by_place(&addresses, mask) {
                    places.read(place, request.order, &mut warp.knowledge, lanes, false);
                }
            }
        }
        Ok(())
    }

    /// Loads of the lanes of `mask`, which are those of the runs.
    #[inline(always)]
    fn load_runs(
        &mut self,
        (warp, shared): (&mut Warp, &mut Shared),
        request: &Request<'_>,
        (space, mask): (Space, u32),
        runs: &[Run],
    ) -> Result<(), Trouble> {
        let (elements, strength) = (request.elements(), request.strength());
        let width = elements.width();
        let bytes = width as u64 * u64::from(mask.count_ones());
        match space {
            Space::Global | Space::Generic => {
                let traffic = Traffic { bytes, sectors: sectors(runs, width), requests: 1 };
                if request.is_strong() {
                    self.report.polls += traffic;
                } else {
                    self.report.global_loads += traffic;
                }
            }
            Space::Shared => self.report.shared_loads += bytes,
            Space::Local | Space::Const => {}
            Space::Param => {
                for run in runs {
                    aligned(run, width, "loads")?;
                    let len = self.params.len();
                    let at = within(run, width, len, "loads", "the parameters")?;
                    elements.take(&mut warp.registers, &self.params[at..], *run);
                }
                return Ok(());
            }
        }
        let what = (space, width, "loads");
        self.each_run((warp, shared), request, what, runs, Load(elements, strength))
    }

    /// `st`.
    #[inline(always)]
    pub(crate) fn store(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        request: &Request<'_>,
    ) -> Result<(), Trouble> {
        self.changes += 1;
        match request.single(warp, request.elements().width(), false) {
            Some((space, run)) => {
                self.count_stores(request, (space, request.mask), &[run]);
                self.store_runs((warp, shared), request, space, &[run])
            }
            None => self.store_scattered(warp, shared, request),
        }
    }

    #[inline(never)]
    fn store_scattered(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        request: &Request<'_>,
    ) -> Result<(), Trouble> {
        let elements = request.elements();
        let width = elements.width();
        let (addresses, spaces) = request.resolve(warp);
        for (space, mask) in spaces.into_iter().filter(|(_, mask)| *mask != 0) {
            let mut runs = Runs::new(&addresses, mask, width, false);
            self.count_stores(request, (space, mask), runs.as_slice());
            // In local memory one address is another place for each lane.
            if space != Space::Local && runs.as_slice().len() > 1 {
                let ones = without_twins(warp, elements, &addresses, mask);
                if ones != mask {
                    runs = Runs::new(&addresses, ones, width, false);
                }
            }
            self.store_runs((warp, shared), request, space, runs.as_slice())?;
            if request.is_strong() {
                let places =
                    if space == Space::Shared { &mut shared.places } else { &mut self.places };
                for lane in lanes(mask) {
                    let place = addresses[lane as usize];
                    places.write(place, request.order, &warp.knowledge, lane, false);
                }
                warp.knowledge.advance();
            }
        }
        Ok(())
    }

    /// Counts stores of the lanes of `mask`, which are those of the runs.
    #[inline(always)]
    fn count_stores(&mut self, request: &Request<'_>, (space, mask): (Space, u32), runs: &[Run]) {
        let width = request.elements().width();
        let bytes = width as u64 * u64::from(mask.count_ones());
        match space {
            Space::Global | Space::Generic => {
                let traffic = Traffic { bytes, sectors: sectors(runs, width), requests: 1 };
                self.report.global_stores += traffic;
            }
            Space::Shared => self.report.shared_stores += bytes,
            Space::Local | Space::Param | Space::Const => {}
        }
    }

    #[inline(always)]
    fn store_runs(
        &mut self,
        (warp, shared): (&mut Warp, &mut Shared),
        request: &Request<'_>,
        space: Space,
        runs: &[Run],
    ) -> Result<(), Trouble> {
        let (elements, strength) = (request.elements(), request.strength());
        let what = (space, elements.width(), "stores");
        if !self.memory.equal_writes_pass() {
            return self.each_run((warp, shared), request, what, runs, Store(elements, strength));
        }
        let store = |piece: &mut Piece<'_>, warp: &mut Warp, offset: usize, run: Run| {
            piece.store(warp, elements, offset, run, strength).or_else(|problem| {
                piece.store_unless_equal(problem, warp, elements, (offset, run), strength)
            })
        };
        self.each_run((warp, shared), request, what, runs, By(store))
    }

    /// `atom`, `red`: lane by lane.
    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        request: &Request<'_>,
        op: AtomicOp,
        result: Option<Reg>,
    ) -> Result<(), Trouble> {
        let (ty, size, strength) = (request.ty, atomic::size(request.ty), request.strength());
        let (addresses, spaces) = request.resolve(warp);
        self.report.atomics += u64::from(request.mask.count_ones());
        for (space, mask) in spaces.into_iter().filter(|(_, mask)| *mask != 0) {
            let runs = Runs::new(&addresses, mask, size, false);
            let in_global = space == Space::Global;
            let mut changes = 0;
            let what = (space, size, "updates");
            let update = |piece: &mut Piece<'_>, warp: &mut Warp, offset: usize, run: Run| {
                for i in 0..run.count {
                    let lane = run.lane + i;
                    let operand = |i: usize| warp.registers.row(request.regs[i])[lane as usize];
                    let operands = [operand(0), operand(1)];
                    let new = |old| atomic::apply(op, ty, old, operands, in_global);
                    let offset = offset + i as usize * size;
                    let old = piece.update(warp, offset, size, lane, strength, new)?;
                    changes += u64::from(new(old) != old);
                    if let Some(reg) = result {
                        warp.registers.row_mut(reg)[lane as usize] = old;
                    }
                }
                Ok(())
            };
            self.each_run((warp, shared), request, what, runs.as_slice(), By(update))?;
            self.changes += changes;
            let places = if space == Space::Shared { &mut shared.places } else { &mut self.places };
            for lane in lanes(mask) {
                let place = addresses[lane as usize];
                places.read(place, request.order, &mut warp.knowledge, 1 << lane, true);
                places.write(place, request.order, &warp.knowledge, lane, true);
            }
        }
        warp.knowledge.advance();
        Ok(())
    }
}

/// [`Access::each_run`] in local memory, where each lane has its own.
#[inline(never)]
fn local_run(
    warp: &mut Warp,
    (width, verb): (usize, &str),
    run: &Run,
    act: &mut impl Act,
) -> Result<(), Trouble> {
    let mut local = std::mem::take(&mut warp.local);
    for lane in lanes(run.lanes()) {
        let address = run.address_of(lane, width);
        let run = Run { address, lane, count: 1, together: 0 };
        let at = within(&run, width, local.len(), verb, "local memory")?;
        let (mut piece, start) = local.of(lane);
        act.act(&mut piece, warp, start + at, run).map_err(|problem| {
            let name = |byte| format!("byte {} of local memory", byte - start);
            problem.explain(verb, |_| "local memory".to_owned(), name)
        })?;
    }
    warp.local = local;
    Ok(())
}

#[cold]
fn explain_shared(problem: Problem, (width, verb): (usize, &str), run: &Run) -> Trouble {
    let place =
        |lane| format!("{width} bytes at byte {} of shared memory", run.address_of(lane, width));
    problem.explain(verb, place, |byte| format!("byte {byte} of shared memory"))
}
