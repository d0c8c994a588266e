//! The first pass: `sum(g)` and `sum(g * (x - mean))` of every channel.
use super::super::few_runs;
use super::super::gate::Gate;
use super::super::kernels::columns::{Rows, column_gradients};
use super::super::kernels::elementwise::{At, ahead_of};
use super::super::kernels::moments::total;
use super::super::kernels::narrow::{self, Narrow};
use super::super::kernels::source::Runs;
use super::super::kernels::sums::{self, Lanes, STRIP_ROWS};
use super::super::plan::{Plan, Tile};
use super::super::policy::{AHEAD, LARGE_APART};
use super::super::simd::{BLOCK, Scratch, Simd};
use super::super::slots::{Columns, Sums};
use super::super::staged::Staged;
use super::super::table::{Strip, Table};
use super::super::tiles::{TileMut, of_rows};
use super::Read;
use crate::{Element, Real};
use std::ops::Range;

/// Values summed in the accumulating type before they are added up in f64.
const SEGMENT: usize = 4096;

/// The first pass: `sum(g)` (first half of `slot`) and `sum(g * (x - mean))` (second half) of a tile's
/// channels, or of its columns where runs are short.
pub fn sums<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    table: &Table<'_, E::Acc>,
    slot: &mut [f64],
) {
    if read.plan.by_run && !read.plan.long_runs {
        let slot = slot.split_at_mut(slot.len() / 2);
        return few_runs::sums(read, tile, grad_x, table, slot);
    }
    slot.fill(0.0);
    let slot = slot.split_at_mut(slot.len() / 2);
    match (read.plan.long_runs, is_in_order(read, tile)) {
        (true, _) => sums_of_runs(read, tile, grad_x, table, slot),
        (false, true) => sums_in_order(read, tile, grad_x, table, slot),
        (false, false) => sums_of_columns(read, tile, grad_x, (table, &mut OfColumns::new()), slot),
    }
}

/// The same, added to what the slot holds: not by runs, where they are short. `memory` may be that of a tile before it, by
/// the same table.
pub fn add_sums<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    (table, memory): (&Table<'_, E::Acc>, &mut OfColumns<E::Acc>),
    slot: &mut [f64],
) {
    let slot = slot.split_at_mut(slot.len() / 2);
    match (read.plan.long_runs, is_in_order(read, tile)) {
        (true, _) => sums_of_runs(read, tile, grad_x, table, slot),
        (false, true) => sums_in_order(read, tile, grad_x, table, slot),
        (false, false) => sums_of_columns(read, tile, grad_x, (table, memory), slot),
    }
}

/// What the sums of columns are made with.
pub struct OfColumns<A> {
    strip: Strip<A>,
    sum: [A; BLOCK],
    product: [A; BLOCK],
    /// Those whose coefficients the strip has.
    held: Option<Range<usize>>,
}

impl<A: Real> OfColumns<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let zeros = [A::default(); BLOCK];
        Self { strip: Strip::new(), sum: zeros, product: zeros, held: None }
    }
    /// Sets the coefficients of some columns.
    fn load(&mut self, plan: &Plan, cols: &Range<usize>, table: &Table<'_, A>) {
        if self.held.as_ref() != Some(cols) {
            self.strip.load(plan, cols, table, false);
            self.held = Some(cols.clone());
        }
    }
}

fn sums_of_runs<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    table: &Table<'_, E::Acc>,
    (sums, products): (&mut [f64], &mut [f64]),
) {
    let Read { simd, plan, gate, .. } = *read;
    let run = plan.inner().min(tile.cols.len());
    // The next row's run, where it is short: what fetches ahead by itself begins anew with every run, which
    // has taken a fifth of the time. Of a long one, the next block.
    let ahead = if run < SEGMENT { plan.width } else { BLOCK };
    let mut gated: Scratch<E> = Scratch::new();
    let (mut strip, mut staged) = (Strip::new(), Staged::new());
    for (k, start) in tile.cols.clone().step_by(run).enumerate() {
        let (channel, run_end) = (start / plan.inner(), start + run);
        let coef = table.at(channel);
        strip.load_channels(channel..channel + 1, table, false);
        let (mut sum, mut product, mut count) = (Lanes::new(), Lanes::new(), 0);
        for row in tile.rows.clone() {
            for at in (start..run_end).step_by(BLOCK) {
                let cols = at..(at + BLOCK).min(run_end);
                let x = read.x(row, cols.clone());
                let g = read.grad_y(grad_x, row, cols.clone());
                let to = (&mut sum, &mut product);
                let ahead = [x.as_ptr().wrapping_add(ahead), g.as_ptr().wrapping_add(ahead)];
                if gate.is_staged() {
                    let (strip, left) = (&strip, run_end - at);
                    let of_channel = At::Runs(Runs { strip, channel: 0, left, inner: left });
                    let from = read.staged(row, &cols, of_channel, g, &mut staged);
                    sums::gradients(simd, from, [from.0.as_ptr(); 2], coef, false, to);
                } else {
                    let g = read.masked(row, &cols, g, &mut gated);
                    sums::gradients(simd, (x, g), ahead, coef, gate.recomputes(), to);
                }
                count += x.len();
                if count >= SEGMENT {
                    sums[k] += std::mem::replace(&mut sum, Lanes::new()).total();
                    products[k] += std::mem::replace(&mut product, Lanes::new()).total();
                    count = 0;
                }
            }
        }
        sums[k] += sum.total();
        products[k] += product.total();
    }
}

/// Whether rows are taken whole, in the order of memory.
fn is_in_order<E: Element>(read: &Read<'_, E>, tile: &Tile) -> bool {
    let Read { plan, gate, .. } = *read;
    let is_plain = matches!(gate, Gate::Open | Gate::Recompute);
    // A table of channels is one of columns.
    let is_direct = plan.inner() == 1 && !plan.is_joined();
    let in_cache = plan.len().saturating_mul(3 * size_of::<E>()) < LARGE_APART;
    is_plain && is_direct && tile.cols.len() > BLOCK && in_cache
}

/// The sums of columns of rows that are longer than a block, by whole rows: what comes from the cache in the order of
/// memory comes by itself, and a backward takes 0.88 to 0.95 of the time of one that takes a block of columns after the
/// other and asks for later rows. From memory, or where the cache holds them only just, it would take longer.
fn sums_in_order<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    table: &Table<'_, E::Acc>,
    (sums, products): (&mut [f64], &mut [f64]),
) {
    /// As many columns as have their sums in the first cache.
    const MOST: usize = 4 * BLOCK;
    let [mut sum, mut product] = [[E::Acc::default(); MOST]; 2];
    for start in tile.cols.clone().step_by(MOST) {
        let cols = start..(start + MOST).min(tile.cols.end);
        let (n, normal) = (cols.len(), table.normal(cols.clone()));
        let here = start - tile.cols.start..cols.end - tile.cols.start;
        let (sums, products) = (&mut sums[here.clone()], &mut products[here]);
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            let mut rows = Rows::new();
            for row in first..(first + STRIP_ROWS).min(tile.rows.end) {
                let x = read.x(row, cols.clone());
                let g = read.grad_y(grad_x, row, cols.clone());
                // For what is read itself: no loop of its own is compiled for this.
                rows.push([x, g], [x.as_ptr(), g.as_ptr()]);
            }
            let (relu, to) = (read.gate.recomputes(), (&mut sum[..], &mut product[..]));
            column_gradients(read.simd, &rows, normal, (relu, true), to);
            sums::add_widened(read.simd, sums, &sum[..n]);
            sums::add_widened(read.simd, products, &product[..n]);
        }
    }
}

fn sums_of_columns<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    (table, memory): (&Table<'_, E::Acc>, &mut OfColumns<E::Acc>),
    (sums, products): (&mut [f64], &mut [f64]),
) {
    let Read { simd, plan, gate, .. } = *read;
    let narrow = read.summed();
    if narrow.width < plan.width {
        return sums_of_joined(read, tile, grad_x, (table, memory), (sums, products), narrow.width);
    }
    let full = tile.rows.end - usize::from(plan.has_short_row(tile));
    let mut gated: [Scratch<E>; 2] = [Scratch::new(), Scratch::new()];
    let mut staged = Staged::new();
    // A mask's rows are brought to memory of their own, two at a time.
    let most = if matches!(gate, Gate::Mask(_)) { gated.len() } else { STRIP_ROWS };
    for start in tile.cols.clone().step_by(BLOCK) {
        let cols = start..(start + BLOCK).min(tile.cols.end);
        let n = cols.len();
        memory.load(plan, &cols, table);
        let OfColumns { strip, sum, product, .. } = &mut *memory;
        let (strip, sum, product) = (&*strip, &mut *sum, &mut *product);
        let sums = &mut sums[start - tile.cols.start..][..n];
        let products = &mut products[start - tile.cols.start..][..n];
        for first in tile.rows.clone().step_by(STRIP_ROWS) {
            let end = (first + STRIP_ROWS).min(tile.rows.end);
            let mut row = first;
            while gate.is_staged() && row < end {
                let g = read.grad_y(grad_x, row, cols.clone());
                let (x, g) = read.staged(row, &cols, At::Columns(strip), g, &mut staged);
                let (mut rows, to) = (Rows::new(), (&mut sum[..], &mut product[..]));
                rows.push([x, g], [std::ptr::null(); 2]);
                column_gradients(simd, &rows, strip.normal(), (false, row == first), to);
                row += 1;
            }
            while row < end {
                // A shorter last row goes alone.
                let some = row..(row + most).min(if row < full { end.min(full) } else { end });
                let mut rows = Rows::new();
                let mut gated = gated.iter_mut();
                for row in some.clone() {
                    let x = read.x(row, cols.clone());
                    let g = read.grad_y(grad_x, row, cols.clone());
                    let ahead = ahead_of([x, g], tile.ahead(row, &cols, plan.width));
                    let g = match gate {
                        Gate::Mask(_) => match gated.next() {
                            Some(gated) => read.masked(row, &cols, g, gated),
                            None => g,
                        },
                        _ => g,
                    };
                    rows.push([x, g], ahead);
                }
                let to = (&mut sum[..], &mut product[..]);
                let is_first = row == first;
                column_gradients(simd, &rows, strip.normal(), (gate.recomputes(), is_first), to);
                row = some.end;
            }
            sums::add_widened(simd, sums, &sum[..n]);
            sums::add_widened(simd, products, &product[..n]);
        }
    }
}

/// The same of joined rows by their first `columns`, after which channels repeat: everything is read in the order of
/// memory.
fn sums_of_joined<E: Element>(
    read: &Read<'_, E>,
    tile: &Tile,
    grad_x: &Option<TileMut<'_, E>>,
    (table, memory): (&Table<'_, E::Acc>, &mut OfColumns<E::Acc>),
    (sums, products): (&mut [f64], &mut [f64]),
    columns: usize,
) {
    let Read { simd, plan, gate, .. } = *read;
    memory.load(plan, &(0..columns), table);
    let OfColumns { strip, sum, product, .. } = memory;
    let strip = &*strip;
    let [x, g] = [read.x, read.grad_y.unwrap_or_default()]
        .map(|of| &of[of_rows(&tile.rows, plan.width, of.len())]);
    let g = match grad_x {
        Some(grad_x) if read.grad_y.is_none() => grad_x.whole(),
        _ => g,
    };
    let (relu, ahead, most) = (gate.recomputes(), AHEAD * plan.width, STRIP_ROWS * columns);
    for (x, g) in x.chunks(most).zip(g.chunks(most)) {
        let n = x.len() - x.len() % columns;
        if n > 0 {
            let rows = Narrow { tensors: [&x[..n], &g[..n]], columns, ahead };
            narrow::gradients(simd, rows, strip, relu, (&mut *sum, &mut *product));
            sums::add_widened(simd, &mut sums[..columns], &sum[..columns]);
            sums::add_widened(simd, &mut products[..columns], &product[..columns]);
        }
        // A shorter last row goes alone.
        let (x, g) = (&x[n..], &g[n..]);
        if !x.is_empty() {
            let mut rows = Rows::new();
            rows.push([x, g], [std::ptr::null(); 2]);
            let to = (&mut sum[..], &mut product[..]);
            column_gradients(simd, &rows, strip.normal(), (relu, true), to);
            sums::add_widened(simd, &mut sums[..x.len()], &sum[..x.len()]);
            sums::add_widened(simd, &mut products[..x.len()], &product[..x.len()]);
        }
    }
}

/// Adds up the sums of some channels over all tiles: each into as many values of `into` as they are, `sum(g)` and
/// then `sum(g * (x - mean))` in a backward.
pub fn merge(simd: Simd, plan: &Plan, mut sums: Sums<'_>, into: &mut [f64]) {
    let columns = Columns::of(plan);
    for (i, into) in into.chunks_mut(sums.channels.len()).enumerate() {
        let [all] = sums.merged(i, columns, |[to], [from], _| sums::add_f64(simd, to, from));
        if columns.inner == 1 {
            into.copy_from_slice(all);
        } else {
            for (into, columns) in into.iter_mut().zip(all.chunks(columns.inner)) {
                *into = total(simd, columns);
            }
        }
    }
}

/// `sum(g)` and `sum(g * xhat)` of a channel by the definition, in f64; `normalize` is what the
/// forward computed of x.
pub fn wide_sums<E: Element>(
    read: &Read<'_, E>,
    elements: impl Iterator<Item = usize>,
    grad_x: &Option<TileMut<'_, E>>,
    normalize: impl Fn(E::Acc) -> f64,
    xhat: impl Fn(f64) -> f64,
) -> (f64, f64) {
    let Read { plan, x, gate, .. } = *read;
    let (mut sum, mut product) = (0.0, 0.0);
    for i in elements {
        let (row, col, x) = (i / plan.width, i % plan.width, x[i].widen());
        let grad_y = read.grad_y(grad_x, row, col..col + 1)[0].widen().to_f64();
        let g = gate.pass(plan, i, || normalize(x), grad_y);
        sum += g;
        product += g * xhat(x.to_f64()); // 0 times infinity is NaN here, too
    }
    (sum, product)
}
