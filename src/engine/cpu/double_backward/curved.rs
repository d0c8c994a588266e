//! Both passes behind an activation that is curved: blocks are brought to the accumulating type, in memory that stays
//! in the first cache.
use super::super::kernels::activation::Block;
use super::super::kernels::convert::narrow;
use super::super::kernels::double_backward::{self as kernel, FIELDS, FORWARD, Many, One};
use super::super::kernels::double_backward::{SUMS, Values};
use super::super::kernels::sums::{STRIP_ROWS, add_widened};
use super::super::plan::Tile;
use super::super::simd::{BLOCK, GROUP, ROOM};
use super::super::tiles::Writer;
use super::coefs::Table;
use super::read::Read;
use super::{SEGMENT, Tiles, Work};
use crate::{Element, Real};
use std::ops::Range;

impl<E: Element> Work<'_, E> {
    /// The first pass where runs are long: the sums of a tile's channels.
    pub(super) fn sum_curved_runs(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let Read { simd, plan, .. } = self.read;
        let run = plan.inner().min(tile.cols.len());
        let by_mask = self.read.places.is_some();
        let (mut values, zeros) = (Values::new(), [[E::Acc::default(); GROUP]; SUMS]);
        for (channel, start) in tile.cols.clone().step_by(run).enumerate() {
            let coefs = One(table.at(start / plan.inner()));
            let (mut sums, mut count) = (zeros, 0);
            let mut flush = |sums: &mut [[E::Acc; GROUP]; SUMS]| {
                for (k, lanes) in std::mem::replace(sums, zeros).iter().enumerate() {
                    let total: f64 = lanes.iter().map(|v| v.to_f64()).sum();
                    slot[k * part + channel] += total;
                }
            };
            for row in tile.rows.clone() {
                for at in (start..start + run).step_by(BLOCK) {
                    let cols = at..(at + BLOCK).min(start + run);
                    let n = self.read.stage(row, &cols, coefs, &mut values);
                    values.add_to_lanes(simd, by_mask, &mut sums, n);
                    count += n;
                    if count >= SEGMENT {
                        flush(&mut sums);
                        count = 0;
                    }
                }
            }
            flush(&mut sums);
        }
    }
    /// The same where they are short: the sums of a tile's columns.
    pub(super) fn sum_curved_columns(
        &self,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
        part: usize,
    ) {
        let Read { simd, plan, .. } = self.read;
        let zero = E::Acc::default();
        let by_mask = self.read.places.is_some();
        let (mut values, mut sums) = (Values::new(), [[zero; ROOM]; SUMS]);
        let mut fields = [[zero; ROOM]; FIELDS];
        for start in tile.cols.clone().step_by(BLOCK) {
            let cols = start..(start + BLOCK).min(tile.cols.end);
            table.expand(plan, &cols, FORWARD, &mut fields);
            for first in tile.rows.clone().step_by(STRIP_ROWS) {
                for row in first..(first + STRIP_ROWS).min(tile.rows.end) {
                    let n = self.read.stage(row, &cols, Many(&fields), &mut values);
                    values.add_to_columns(simd, by_mask, &mut sums, n);
                }
                for (k, sums) in sums.iter_mut().enumerate() {
                    let to = &mut slot[k * part + start - tile.cols.start..][..cols.len()];
                    add_widened(simd, to, &sums[..cols.len()]);
                    sums.fill(zero);
                }
            }
        }
    }

    /// The second pass.
    pub(super) fn write_curved(&self, tile: &Tile, to: Tiles<'_, E>, table: &Table<'_, E::Acc>) {
        let Read { plan, .. } = self.read;
        let [grad_y, x, residual] =
            [to.0, to.1, to.2].map(|to| to.map(|to| Writer::new(plan, to, self.tensors, false)));
        let mut to = Writers { grad_y, x, residual };
        let zero = E::Acc::default();
        let mut values = (Values::new(), [zero; ROOM], [zero; ROOM]);
        if plan.long_runs {
            let run = plan.inner().min(tile.cols.len());
            for start in tile.cols.clone().step_by(run) {
                let coefs = One(table.at(start / plan.inner()));
                for row in tile.rows.clone() {
                    for at in (start..start + run).step_by(BLOCK) {
                        let cols = at..(at + BLOCK).min(start + run);
                        self.write_block(row, cols, coefs, &mut values, &mut to);
                    }
                }
            }
            return;
        }
        let mut fields = [[zero; ROOM]; FIELDS];
        for start in tile.cols.clone().step_by(BLOCK) {
            let cols = start..(start + BLOCK).min(tile.cols.end);
            table.expand(plan, &cols, FIELDS, &mut fields);
            for row in tile.rows.clone() {
                self.write_block(row, cols.clone(), Many(&fields), &mut values, &mut to);
            }
        }
    }
    fn write_block(
        &self,
        row: usize,
        cols: Range<usize>,
        coefs: impl kernel::Coefs<E::Acc>,
        (values, u, x): &mut Blocks<E::Acc>,
        to: &mut Writers<'_, E>,
    ) {
        let (read, simd) = (self.read, self.read.simd);
        let n = read.stage(row, &cols, coefs, values);
        let through = (self.batch, read.places.is_some());
        values.gradients(simd, coefs, through, (u, x), n);
        if let Some(to) = &mut to.x {
            to.write(simd, row, cols.clone(), false, |_, out| narrow(simd, &x[..n], out));
        }
        if let Some(to) = &mut to.residual {
            let h = &values.q[..n];
            to.write(simd, row, cols.clone(), false, |_, out| narrow(simd, h, out));
        }
        if let Some(to) = &mut to.grad_y {
            to.write(simd, row, cols, false, |_, out| narrow(simd, &u[..n], out));
        }
    }
}

/// What a task computes in: what it reads, u, and the gradient of x.
type Blocks<A> = (Values<A>, Block<A>, Block<A>);

/// How a task writes.
struct Writers<'p, E> {
    grad_y: Option<Writer<'p, E>>,
    x: Option<Writer<'p, E>>,
    residual: Option<Writer<'p, E>>,
}
