//! The bytes of a mask as the loops take them.
use super::super::masked::{Counts, Masked};
use super::super::plan::Plan;
use super::super::simd::BLOCK;
use std::ops::Range;

/// A task's memory for the bytes of a mask.
pub(super) struct Bytes {
    of_columns: Counts,
    of_runs: Vec<u8>,
}

impl Bytes {
    pub fn new() -> Self {
        Self { of_columns: Counts::new(), of_runs: vec![] }
    }
    /// Those of columns of a row; nothing without a mask.
    #[inline(always)]
    pub fn of_columns<'s>(
        &'s mut self,
        (mask, plan): (Option<&'s Masked<'_>>, &Plan),
        row: usize,
        cols: &Range<usize>,
    ) -> &'s [u8] {
        mask.map_or(&[], |mask| mask.of_columns(plan, row, cols, &mut self.of_columns))
    }
    /// The same of runs: of the first one, where the others have the same.
    #[inline(always)]
    pub fn of_runs<'s>(
        &'s mut self,
        (mask, plan): (Option<&'s Masked<'_>>, &Plan),
        row: usize,
        Piece { cols, len, .. }: &Piece,
    ) -> &'s [u8] {
        let Some(mask) = mask else { return &[] };
        if let Some(bytes) = mask.of_each_run(plan, row, &(cols.start..cols.start + len)) {
            return bytes;
        }
        self.of_runs.clear();
        for start in cols.clone().step_by(BLOCK) {
            let some = start..(start + BLOCK).min(cols.end);
            let bytes = mask.of_columns(plan, row, &some, &mut self.of_columns);
            self.of_runs.extend_from_slice(bytes);
        }
        &self.of_runs
    }
}

/// Columns of a row that hold the same part of the runs of some channels.
pub(super) struct Piece {
    pub cols: Range<usize>,
    pub channels: Range<usize>,
    /// Of each run.
    pub len: usize,
}
