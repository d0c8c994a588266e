//! Where the lanes of a warp go in one instruction.

use super::{
    atomic,
    piece::Elements,
    runs::Run,
    trouble::Trouble,
    warp::{Warp, lanes},
};
use crate::{
    fault::FaultKind,
    instr::{Address, LOCAL_WINDOW, Order, Reg, SHARED_WINDOW, Scope, Space, Type, WINDOW},
    race::{Strength, scope},
};

/// One access of an instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The index of the instruction.
    pub(crate) at: u32,
    /// The registers of the elements, or the operands of an atomic operation.
    pub(crate) regs: &'a [Reg],
    pub(crate) ty: Type,
    pub(crate) address: Address,
    pub(crate) order: Order,
    /// The lanes.
    pub(crate) mask: u32,
}

impl Request<'_> {
    pub(super) fn elements(&self) -> Elements<'_> {
        Elements { regs: self.regs, size: atomic::size(self.ty) }
    }

    pub(super) fn is_strong(&self) -> bool {
        self.order != Order::Weak
    }

    pub(super) fn strength(&self) -> Strength {
        match scope(self.order) {
            None => Strength::Weak,
            Some(Scope::Block) => Strength::Block,
            Some(Scope::Device | Scope::System) => Strength::Device,
        }
    }

    /// Where the lanes go if it is one run in memory that has an order of its own for weak accesses only.
    #[inline(always)]
    pub(super) fn single(&self, warp: &Warp, width: usize, reads: bool) -> Option<(Space, Run)> {
        if self.is_strong() {
            return None;
        }
        let offset = self.address.offset as u64;
        let mut run = match self.address.base {
            Some(base) => Run::single(warp.registers.row(base), offset, self.mask, width, reads),
            None => Run::single(&[0; 32], offset, self.mask, width, reads),
        }?;
        let bytes = u64::from(run.count) * width as u64;
        let space = match self.address.space {
            Space::Local => return None,
            Space::Shared => {
                run.address &= 0xffff_ffff;
                (run.address + bytes <= WINDOW).then_some(Space::Shared)
            }
            Space::Generic => {
                let windows = SHARED_WINDOW..LOCAL_WINDOW + WINDOW;
                let end = run.address.checked_add(bytes)?;
                (end <= windows.start || run.address >= windows.end).then_some(Space::Global)
            }
            space => Some(space),
        };
        space.map(|space| (space, run))
    }

    /// Where the lanes go, by space. Generic addresses are sorted by the window they lie in and made offsets into it.
    pub(super) fn resolve(&self, warp: &Warp) -> ([u64; 32], [(Space, u32); 3]) {
        let offset = self.address.offset as u64;
        let mut addresses = match self.address.base {
            Some(base) => *warp.registers.row(base),
            None => [0; 32],
        };
        addresses.iter_mut().for_each(|address| *address = address.wrapping_add(offset));
        if matches!(self.address.space, Space::Shared | Space::Local) {
            addresses.iter_mut().for_each(|address| *address &= 0xffff_ffff);
        }
        let none = (Space::Global, 0);
        if self.address.space != Space::Generic {
            return (addresses, [(self.address.space, self.mask), none, none]);
        }
        let (mut shared, mut local) = (0, 0);
        for lane in lanes(self.mask) {
            let address = &mut addresses[lane as usize];
            for (start, mask) in [(SHARED_WINDOW, &mut shared), (LOCAL_WINDOW, &mut local)] {
                if (start..start + WINDOW).contains(address) {
                    *address -= start;
                    *mask |= 1 << lane;
                    break;
                }
            }
        }
        let global = self.mask & !shared & !local;
        (addresses, [(Space::Global, global), (Space::Shared, shared), (Space::Local, local)])
    }
}

pub(super) fn aligned(run: &Run, width: usize, verb: &str) -> Result<(), Trouble> {
    if run.address.is_multiple_of(width as u64) {
        return Ok(());
    }
    let detail = format!("{verb} {width} bytes at {:#x}, not a multiple of {width}", run.address);
    Err(Trouble::new(FaultKind::Misaligned, run.lane, detail))
}

/// The offset of a run in a window of `len` bytes.
pub(super) fn within(
    run: &Run,
    width: usize,
    len: usize,
    verb: &str,
    what: &str,
) -> Result<usize, Trouble> {
    let bytes = u64::from(run.count) * width as u64;
    if run.address.checked_add(bytes).is_some_and(|end| end <= len as u64) {
        return Ok(run.address as usize);
    }
    let last = (len as u64).checked_sub(width as u64);
    for i in 0..run.count {
        let at = run.address.wrapping_add(u64::from(i) * width as u64);
        if last.is_none_or(|last| at > last) {
            let detail = format!("{verb} {width} bytes at byte {} of {len} of {what}", at as i64);
            return Err(Trouble::new(FaultKind::OutOfBounds, run.lane + i, detail));
        }
    }
    Ok(run.address as usize)
}

/// Lanes that access one place, for each place.
pub(super) fn by_place(addresses: &[u64; 32], mask: u32) -> impl Iterator<Item = (u64, u32)> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let first = *addresses.get(left.trailing_zeros() as usize)?;
        let same = lanes(left).filter(|lane| addresses[*lane as usize] == first);
        let same = same.fold(0, |all, lane| all | 1 << lane);
        left &= !same;
        Some((first, same))
    })
}

/// The lanes whose store is not also done by a lower lane: several storing one value to one place do no harm.
pub(super) fn without_twins(
    warp: &Warp,
    elements: Elements<'_>,
    addresses: &[u64; 32],
    mask: u32,
) -> u32 {
    let same = |a: u32, b: u32| {
        addresses[a as usize] == addresses[b as usize]
            && elements.regs.iter().all(|reg| {
                let row = warp.registers.row(*reg);
                row[a as usize] == row[b as usize]
            })
    };
    lanes(mask).fold(0, |kept, lane| {
        if lanes(kept).any(|lower| same(lower, lane)) { kept } else { kept | 1 << lane }
    })
}
