//! The last accesses to every place of a piece of memory.
//!
//! A page keeps its cells as wide as the narrowest access it has seen: 16 bytes at first, one byte at worst. So wide
//! accesses are cheap, and narrow ones next to each other are never mistaken for accesses to one place. It does without
//! cells while it can ([`super::spans`]).

use super::{
    page::{NONE, PAGE, Page},
    spans::Span,
    stamp::{Stamp, Strength},
    view::{Knowledge, View},
};

/// log2 of the bytes of the widest cell.
const WIDEST: u32 = 4;
/// Readers of one place that are remembered when nothing orders them; further ones replace others.
const READERS: usize = 32;
/// Stands for a list of readers, whose index stands where the lanes are otherwise.
pub(super) const LIST: Stamp = Stamp(1 << 32);

/// A set of lanes of a warp that read at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reader {
    stamp: Stamp,
    lanes: u32,
}

/// The last accesses to a piece of memory.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    pages: Vec<Option<Box<Page>>>,
    lists: Vec<Vec<Reader>>,
    generation: u32,
}

/// An access that nothing orders with the one that was to be noted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Conflict {
    /// The lane of the access that was to be noted.
    pub(crate) lane: u32,
    /// The earlier access.
    pub(crate) other: Stamp,
    /// Whether it wrote.
    pub(crate) wrote: bool,
}

/// Accesses of lanes of one view in one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Access<'a> {
    knowledge: &'a Knowledge,
    view: &'a View,
    stamp: Stamp,
}

impl<'a> Access<'a> {
    /// Accesses of the lanes of `view`, now.
    pub(crate) fn new(knowledge: &'a Knowledge, view: &'a View, strength: Strength) -> Self {
        Self { knowledge, view, stamp: knowledge.stamp(strength) }
    }

    /// It as a span of `count` places of `1 << shift` bytes from byte `start` of a page on, which lanes from `lane` on
    /// access one by one, or those that do `together` all of.
    #[inline]
    fn span(&self, (start, count): (usize, u32), shift: u32, lane: u32, together: u32) -> Span {
        Span {
            stamp: self.stamp,
            together,
            start: start as u16,
            end: (start + ((count as usize) << shift)) as u16,
            lane: lane as u8,
            shift: shift as u8,
        }
    }

    /// Whether an earlier access needs no more order with this of `lane`.
    #[inline]
    fn settled(&self, earlier: Stamp, lane: u32) -> bool {
        self.knowledge.knows(self.view, lane, earlier) || self.both_strong(earlier)
    }

    /// Whether no lane needs order with an earlier access, whichever lane of its warp made it.
    #[inline]
    pub(super) fn warp_settled(&self, earlier: Stamp) -> bool {
        self.knowledge.knows_warp(self.view, earlier) || self.both_strong(earlier)
    }

    /// Whether an earlier access happens before this one, whichever lane of its warp made it.
    #[inline]
    pub(super) fn knows_warp(&self, earlier: Stamp) -> bool {
        self.knowledge.knows_warp(self.view, earlier)
    }

    /// Whether all lanes know that they have come as far as an earlier access of their warp.
    #[inline]
    pub(super) fn warp_knows_itself(&self, earlier: Stamp) -> bool {
        earlier.time() <= self.view.lanes.least()
    }

    fn both_strong(&self, earlier: Stamp) -> bool {
        let least = earlier.strength().min(self.stamp.strength());
        least == Strength::Device
            || least == Strength::Block
                && self.knowledge.block_of(earlier.warp()) == self.knowledge.block()
    }

    /// The first lane of a reader that this access of `lane` needs order with.
    fn unsettled(&self, reader: Reader, lane: u32) -> Option<Stamp> {
        if self.both_strong(reader.stamp) {
            return None;
        }
        let mut left = reader.lanes;
        while left != 0 {
            let by = reader.stamp.with_lane(left.trailing_zeros());
            if !self.knowledge.knows(self.view, lane, by) {
                return Some(by);
            }
            left &= left - 1;
        }
        None
    }
}

impl Shadow {
    /// Forgets all accesses, of memory that has `len` bytes.
    pub(crate) fn reset(&mut self, len: usize) {
        self.pages.resize_with(len.div_ceil(PAGE), || None);
        self.lists.clear();
        self.generation += 1;
    }

    /// Forgets all accesses if they are of another generation.
    pub(crate) fn renew(&mut self, generation: u32, len: usize) {
        if self.generation != generation {
            self.reset(len);
            self.generation = generation;
        }
    }

    /// Has cells tell wherever spans did.
    #[cfg(test)]
    pub(super) fn spill(&mut self) {
        self.pages.iter_mut().flatten().for_each(|page| page.spill());
    }

    /// Whether spans tell, on some page.
    #[cfg(test)]
    pub(super) fn has_spans(&self) -> bool {
        self.pages.iter().flatten().any(|page| page.has_spans())
    }

    /// The page that holds `offset`, with cells for accesses of `width` bytes.
    #[inline]
    fn page(&mut self, offset: usize, width: usize) -> (&mut Page, &mut Vec<Vec<Reader>>) {
        let page = self.pages[offset / PAGE].get_or_insert_default();
        let shift = width.trailing_zeros().min(WIDEST);
        page.renew(self.generation, shift);
        (page, &mut self.lists)
    }

    /// Notes reads of `width` bytes each by lanes next to each other, `count` from `lane` on, of places next to each
    /// other from `offset` on. Widths are powers of two, and offsets multiples of them.
    pub(crate) fn read(
        &mut self,
        access: &Access<'_>,
        mut offset: usize,
        width: usize,
        mut lane: u32,
        mut count: u32,
    ) -> Result<(), Conflict> {
        let log = width.trailing_zeros();
        while count != 0 {
            let start = offset % PAGE;
            let here = count.min(((PAGE - start) >> log) as u32);
            let (page, lists) = self.page(offset, width);
            if page.read_span(access, access.span((start, here), log, lane, 0)) {
                offset += (here as usize) << log;
                lane += here;
                count -= here;
                continue;
            }
            let per = log - page.shift;
            let first = start >> page.shift;
            let cells = first..first + ((here as usize) << per);
            if !page.writes.is_empty() {
                let mut settled = NONE;
                for (i, write) in page.writes[cells.clone()].iter().enumerate() {
                    if write.0 == 0 || write.with_lane(0) == settled {
                        continue;
                    }
                    if access.warp_settled(*write) {
                        settled = write.with_lane(0);
                        continue;
                    }
                    let lane = lane + (i >> per) as u32;
                    if !access.settled(*write, lane) {
                        return Err(Conflict { lane, other: *write, wrote: true });
                    }
                }
            }
            if page.reads.is_empty() {
                page.reads.resize(PAGE >> page.shift, NONE);
                page.lanes.resize(PAGE >> page.shift, 0);
            }
            let reads = page.reads[cells.clone()].iter_mut();
            let cells = reads.zip(page.lanes[cells].iter_mut());
            let least = access.view.lanes.least();
            for (i, (read, lanes)) in cells.enumerate() {
                let mine = 1 << (lane + (i >> per) as u32);
                // Nobody else, or the same warp at a time that all its lanes know.
                let replace = read.0 == 0
                    || read.same_kind(access.stamp) && (read.time() <= least || *lanes == mine);
                if replace {
                    (*read, *lanes) = (access.stamp, mine);
                } else {
                    note_read(access, read, lanes, mine, lists);
                }
            }
            offset += (here as usize) << log;
            lane += here;
            count -= here;
        }
        Ok(())
    }

    /// Notes a read of the same `width` bytes by several lanes.
    pub(crate) fn read_together(
        &mut self,
        access: &Access<'_>,
        offset: usize,
        width: usize,
        lanes: u32,
    ) -> Result<(), Conflict> {
        let (page, lists) = self.page(offset, width);
        let span = access.span((offset % PAGE, 1), width.trailing_zeros(), 0, lanes);
        if page.read_span(access, span) {
            return Ok(());
        }
        let first = (offset % PAGE) >> page.shift;
        if page.reads.is_empty() {
            page.reads.resize(PAGE >> page.shift, NONE);
            page.lanes.resize(PAGE >> page.shift, 0);
        }
        for cell in first..first + (width >> page.shift) {
            let write = page.writes.get(cell).copied().unwrap_or_default();
            if write.0 != 0 {
                // A lane knows itself, so that two lanes must be asked.
                let one = lanes.trailing_zeros();
                let other = 31 - lanes.leading_zeros();
                for lane in [one, other] {
                    if !access.settled(write, lane) {
                        return Err(Conflict { lane, other: write, wrote: true });
                    }
                }
            }
            note_read(access, &mut page.reads[cell], &mut page.lanes[cell], lanes, lists);
        }
        Ok(())
    }

    /// Notes writes, as [`Shadow::read`] does reads.
    pub(crate) fn write(
        &mut self,
        access: &Access<'_>,
        mut offset: usize,
        width: usize,
        mut lane: u32,
        mut count: u32,
    ) -> Result<(), Conflict> {
        let log = width.trailing_zeros();
        while count != 0 {
            let start = offset % PAGE;
            let here = count.min(((PAGE - start) >> log) as u32);
            let (page, lists) = self.page(offset, width);
            if page.write_span(access, access.span((start, here), log, lane, 0)) {
                offset += (here as usize) << log;
                lane += here;
                count -= here;
                continue;
            }
            let per = log - page.shift;
            let first = start >> page.shift;
            if page.writes.is_empty() {
                page.writes.resize(PAGE >> page.shift, NONE);
            }
            let cells = first..first + ((here as usize) << per);
            if !page.reads.is_empty() {
                let reads = page.reads[cells.clone()].iter_mut();
                let cells = reads.zip(&page.lanes[cells.clone()]);
                for (i, (read, lanes)) in cells.enumerate() {
                    if read.0 == 0 {
                        continue;
                    }
                    let by = lane + (i >> per) as u32;
                    let one = [Reader { stamp: *read, lanes: *lanes }];
                    let readers = if *read == LIST { &lists[*lanes as usize][..] } else { &one };
                    for reader in readers {
                        if let Some(other) = access.unsettled(*reader, by) {
                            return Err(Conflict { lane: by, other, wrote: false });
                        }
                    }
                    *read = NONE;
                }
            }
            let mut settled = NONE;
            for (i, write) in page.writes[cells].iter_mut().enumerate() {
                let by = lane + (i >> per) as u32;
                let mine = access.stamp.with_lane(by);
                if write.0 != 0 && *write != mine && write.with_lane(0) != settled {
                    if access.warp_settled(*write) {
                        settled = write.with_lane(0);
                    } else if !access.settled(*write, by) {
                        return Err(Conflict { lane: by, other: *write, wrote: true });
                    }
                }
                *write = mine;
            }
            offset += (here as usize) << log;
            lane += here;
            count -= here;
        }
        Ok(())
    }
}

/// Adds lanes to the readers of a cell, dropping those that happen before them.
fn note_read(
    access: &Access<'_>,
    read: &mut Stamp,
    lanes: &mut u32,
    mine: u32,
    lists: &mut Vec<Vec<Reader>>,
) {
    let new = Reader { stamp: access.stamp, lanes: mine };
    // An earlier read is done with if a write that comes after this one comes after it, and conflicts with it only
    // where it conflicts with this one.
    let done = |old: &Reader| {
        let lane = mine.trailing_zeros();
        old.stamp.strength() >= new.stamp.strength()
            && (old.stamp.same_kind(new.stamp) && old.lanes & !mine == 0
                || Access { stamp: NONE, ..*access }.unsettled(*old, lane).is_none())
    };
    if *read == LIST {
        let list = &mut lists[*lanes as usize];
        if let Some(last) = list.last_mut()
            && last.stamp == new.stamp
        {
            last.lanes |= mine;
            return;
        }
        // Looking for readers that are done with takes a while, so not at every read.
        let victim = (new.stamp.0 >> 7).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let victim = victim as usize % READERS;
        if list.len() == READERS && victim == 0 {
            list.retain(|old| !done(old));
        }
        if list.len() < READERS {
            list.push(new);
        } else {
            list[victim] = new;
        }
        return;
    }
    let old = Reader { stamp: *read, lanes: *lanes };
    if old.stamp == NONE || done(&old) {
        (*read, *lanes) = (new.stamp, mine);
    } else if old.stamp == new.stamp {
        *lanes |= mine;
    } else {
        (*read, *lanes) = (LIST, lists.len() as u32);
        lists.push(vec![old, new]);
    }
}
