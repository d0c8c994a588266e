//! A page of memory: the last accesses to each of its places.

use super::{
    shadow::Access,
    spans::{self, Span, Spans},
    stamp::Stamp,
};

/// Bytes of a page.
pub(super) const PAGE: usize = 1024;
/// No access.
pub(super) const NONE: Stamp = Stamp(0);

#[derive(Debug, Default)]
pub(super) struct Page {
    /// The launch or block that the cells belong to.
    generation: u32,
    /// log2 of the bytes of a cell.
    pub(super) shift: u32,
    /// The last accesses, while there is no cell.
    read: Spans,
    written: Spans,
    /// The last write to each cell; empty while there was none.
    pub(super) writes: Vec<Stamp>,
    /// The last read of each cell since the last write, or [`super::shadow::LIST`]; empty while there was none.
    pub(super) reads: Vec<Stamp>,
    /// The lanes of that read.
    pub(super) lanes: Vec<u32>,
}

impl Page {
    /// Makes it one of that generation, for accesses of `1 << shift` bytes.
    #[inline]
    pub(super) fn renew(&mut self, generation: u32, shift: u32) {
        if self.generation != generation {
            self.generation = generation;
            self.shift = shift;
            self.read.clear();
            self.written.clear();
            self.writes.clear();
            self.reads.clear();
            self.lanes.clear();
        }
        if shift < self.shift {
            self.split(shift);
        }
    }

    /// Makes cells no wider than `1 << shift` bytes.
    fn split(&mut self, shift: u32) {
        let times = 1 << (self.shift - shift);
        fn repeat<T: Copy>(cells: &mut Vec<T>, times: usize) {
            *cells = cells.iter().flat_map(|cell| std::iter::repeat_n(*cell, times)).collect();
        }
        repeat(&mut self.writes, times);
        repeat(&mut self.reads, times);
        repeat(&mut self.lanes, times);
        self.shift = shift;
    }

    /// Notes a read without cells. False if they must tell, which then know what was noted so far.
    #[inline]
    pub(super) fn read_span(&mut self, access: &Access<'_>, span: Span) -> bool {
        let noted = self.has_no_cells() && spans::read(access, span, &mut self.read, &self.written);
        if !noted {
            self.spill();
        }
        noted
    }

    /// Notes a write, as [`Page::read_span`] does reads.
    #[inline]
    pub(super) fn write_span(&mut self, access: &Access<'_>, span: Span) -> bool {
        let noted =
            self.has_no_cells() && spans::write(access, span, &mut self.read, &mut self.written);
        if !noted {
            self.spill();
        }
        noted
    }

    /// Whether spans tell.
    #[cfg(test)]
    pub(super) fn has_spans(&self) -> bool {
        !(self.read.is_empty() && self.written.is_empty())
    }

    #[inline]
    fn has_no_cells(&self) -> bool {
        self.writes.is_empty() && self.reads.is_empty()
    }

    /// Has the cells say what the spans say.
    pub(super) fn spill(&mut self) {
        let (count, shift) = (PAGE >> self.shift, self.shift);
        let cells = |span: &Span| usize::from(span.start) >> shift..usize::from(span.end) >> shift;
        if !self.written.is_empty() {
            self.writes.resize(count, NONE);
            for span in self.written.iter() {
                for cell in cells(span) {
                    self.writes[cell] = span.stamp.with_lane(span.lane(cell << shift));
                }
            }
            self.written.clear();
        }
        if !self.read.is_empty() {
            self.reads.resize(count, NONE);
            self.lanes.resize(count, 0);
            for span in self.read.iter() {
                for cell in cells(span) {
                    let lanes = match span.together {
                        0 => 1 << span.lane(cell << shift),
                        together => together,
                    };
                    (self.reads[cell], self.lanes[cell]) = (span.stamp, lanes);
                }
            }
            self.read.clear();
        }
    }
}
