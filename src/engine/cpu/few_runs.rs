//! The first passes of few rows of short runs, as small ghost batches of planes have: by runs, where sums by columns
//! would take more for each column than for its few values. Groups of 4 planes of 7 x 7 take 1.2 to 1.6 times a step of
//! the whole batch so, instead of 1.5 to 1.9.
use super::gradients::Read;
use super::kernels::few_runs::{few_gradients, few_runs};
use super::plan::{Plan, Tile};
use super::policy::OF_ROWS;
use super::simd::Simd;
use super::table::Table;
use super::tiles::{TileMut, clipped};
use crate::Element;

/// Offsets of the mean and sums of squares of a tile's channels: see [`moments`](super::stats::moments).
pub(super) fn moments<E: Element>(
    simd: Simd,
    plan: &Plan,
    tile: &Tile,
    x: &[E],
    (offsets, squares): (&mut [f64], &mut [f64]),
) {
    let mut rows: [&[E]; OF_ROWS] = [&[]; OF_ROWS];
    for (to, row) in rows.iter_mut().zip(tile.rows.clone()) {
        *to = &x[clipped(row, tile.cols.clone(), plan.width, x.len())];
    }
    let (rows, n) = (&rows[..tile.rows.len()], plan.channels(tile.block).len());
    few_runs(simd, rows, plan.inner(), (&mut offsets[..n], &mut squares[..n]));
}

/// Sums of a tile's channels behind a gate that needs no memory: see [`sums`](super::gradients::sums).
pub(super) fn sums<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    table: &Table<'_, E::Acc>,
    (sums, products): (&mut [f64], &mut [f64]),
) {
    let Read { simd, plan, x, gate, .. } = *read;
    let mut rows: [[&[E]; 2]; OF_ROWS] = [[&[]; 2]; OF_ROWS];
    for (to, row) in rows.iter_mut().zip(tile.rows.clone()) {
        let of_x = &x[clipped(row, tile.cols.clone(), plan.width, x.len())];
        *to = [of_x, read.grad_y(grad_x, row, tile.cols.clone())];
    }
    let (rows, channels) = (&rows[..tile.rows.len()], plan.channels(tile.block));
    let to = (&mut sums[..channels.len()], &mut products[..channels.len()]);
    let of_run = (plan.inner(), gate.recomputes());
    few_gradients(simd, rows, of_run, (table, channels.start), to);
}
