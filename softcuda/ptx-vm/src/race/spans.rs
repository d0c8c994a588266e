//! Accesses of whole warps to neighbouring places, in one piece each.
//!
//! While all accesses to a page are such that they can be kept apart by where they begin and end, a short list of them
//! says the same as a cell for each place. The first that cannot (it races or may, it takes a part of an earlier one, it
//! is one too many) has them put into the cells, which tell from then on.

use std::ops::Range;

use super::{shadow::Access, stamp::Stamp};

/// Spans of a page at most: of bytes, a warp's are as long as this many in it.
const SPANS: usize = 32;

/// What lanes of a warp accessed in one instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    /// Of lane 0.
    pub(super) stamp: Stamp,
    /// Not 0: these lanes all accessed all of it.
    pub(super) together: u32,
    /// Bytes of the page.
    pub(super) start: u16,
    pub(super) end: u16,
    /// The lane at the start; the next lanes follow.
    pub(super) lane: u8,
    /// log2 of the bytes of a lane.
    pub(super) shift: u8,
}

impl Span {
    /// The lane of a byte of the page.
    pub(super) fn lane(&self, byte: usize) -> u32 {
        u32::from(self.lane) + ((byte - usize::from(self.start)) >> self.shift) as u32
    }

    /// Whether each place that both have was accessed by one and the same thread, and by no other.
    fn same_threads(&self, other: &Self) -> bool {
        let origin = |span: &Self| i32::from(span.start) - (i32::from(span.lane) << span.shift);
        self.stamp.warp() == other.stamp.warp()
            && self.shift == other.shift
            && self.together | other.together == 0
            && origin(self) == origin(other)
    }

    fn is_within(&self, other: &Self) -> bool {
        other.start <= self.start && self.end <= other.end
    }
}

/// The last accesses of one kind to the places of a page, in order and without overlap.
#[derive(Debug, Default)]
pub(super) struct Spans(Vec<Span>);

impl Spans {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Span> {
        self.0.iter()
    }

    /// Those that have places in common with a span.
    #[inline]
    fn overlapping(&self, span: &Span) -> Range<usize> {
        let first = self.0.partition_point(|old| old.end <= span.start);
        let mut last = first;
        while last < self.0.len() && self.0[last].start < span.end {
            last += 1;
        }
        first..last
    }

    /// Puts a span in the place of those.
    #[inline]
    fn replace(&mut self, range: Range<usize>, span: Span) {
        if range.len() == 1 {
            self.0[range.start] = span;
        } else {
            self.0.splice(range, [span]);
        }
    }

    fn is_full(&self) -> bool {
        self.0.len() == SPANS
    }
}

/// Notes a read. False, with nothing done, if the cells must tell.
#[inline]
pub(super) fn read(access: &Access<'_>, span: Span, reads: &mut Spans, writes: &Spans) -> bool {
    for write in &writes.0[writes.overlapping(&span)] {
        if !access.warp_settled(write.stamp) && !write.same_threads(&span) {
            return false;
        }
    }
    let range = reads.overlapping(&span);
    // An earlier read is forgotten if whatever comes after this one comes after it.
    let done = |old: &Span| {
        let same_kind = old.stamp.same_kind(span.stamp);
        let same = old.same_threads(&span) || old.together != 0 && old.together == span.together;
        old.is_within(&span)
            && (same_kind && same
                || same_kind && span.together == 0 && access.warp_knows_itself(old.stamp)
                || old.stamp.strength() >= span.stamp.strength() && access.knows_warp(old.stamp))
    };
    if !reads.0[range.clone()].iter().all(done) || range.is_empty() && reads.is_full() {
        return false;
    }
    reads.replace(range, span);
    true
}

/// Notes a write. False, with nothing done, if the cells must tell.
#[inline]
pub(super) fn write(
    access: &Access<'_>,
    span: Span,
    reads: &mut Spans,
    writes: &mut Spans,
) -> bool {
    let done = |old: &Span| {
        old.is_within(&span) && (access.warp_settled(old.stamp) || old.same_threads(&span))
    };
    let (read, written) = (reads.overlapping(&span), writes.overlapping(&span));
    if !reads.0[read.clone()].iter().all(done)
        || !writes.0[written.clone()].iter().all(done)
        || written.is_empty() && writes.is_full()
    {
        return false;
    }
    reads.0.drain(read);
    writes.replace(written, span);
    true
}
