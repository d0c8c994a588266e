//! Merging by ranges of channels against the formula, one number after the other: the same bits.
use super::super::moments;
use super::super::ranges::ChannelRanges;
use super::super::simd::Simd;
use super::*;
use crate::{Shape, SimdLevel};

/// Numbers without a pattern, and with digits to lose.
fn numbers(len: usize) -> Vec<f64> {
    let mut state = 1u64;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(next).collect()
}

/// Plans of several tiles to a block: of rows that are joined, the last of them short, of short runs, of long runs in
/// pieces, of several blocks.
fn plans() -> impl Iterator<Item = (Shape, Plan)> {
    let dims: [&[usize]; 6] = [
        &[40_003, 24],
        &[3001, 700],
        &[9000, 24, 3],
        &[16, 12, 70_000],
        &[600, 9000],
        &[64, 32, 49],
    ];
    let shapes = dims.into_iter().map(|dims| Shape::new(dims, 1).unwrap());
    shapes.map(|shape| (shape, Plan::new(&shape, 4, 1)))
}

/// Chan's formula for column `at` of every tile of a block, then for the same channel's in joined rows: what
/// [`moments::merge`] is to do, by the counts of rows.
fn merged(plan: &Plan, slots: &[f64], block: usize, at: usize) -> (f64, f64) {
    let (slot_len, tiles) = (plan.slot_len(), plan.tiles_per_block());
    let joined = Columns::of(plan).joined;
    let merge = |all: (f64, f64, f64), (count, offset, square): (f64, f64, f64)| {
        let (before, delta) = (all.0, offset - all.1);
        if count == 0.0 {
            return all;
        }
        let (share, both) = (count / (before + count), before * count / (before + count));
        (before + count, all.1 + delta * share, all.2 + (square + delta * delta * both))
    };
    let of_row = |row: usize| {
        let of_tile = |k: usize| {
            let tile = plan.tile(block * tiles + k);
            let slot = &slots[(block * tiles + k) * slot_len..][..slot_len];
            let column = row * plan.row() + at;
            let run = if plan.long_runs { plan.inner().min(tile.cols.len()) } else { 1 };
            let elements = tile.rows.clone().filter(|r| r * plan.width + column < plan.len());
            let rows = if plan.long_runs { tile.rows.len() } else { elements.count() };
            ((rows * run) as f64, slot[column], slot[slot_len / 2 + column])
        };
        (1..tiles).map(of_tile).fold(of_tile(0), merge)
    };
    let (_, offset, squares) = (1..joined).map(of_row).fold(of_row(0), merge);
    (offset, squares)
}

#[test]
fn ranges_of_channels_are_merged_as_the_formula_says() {
    let simd = SimdLevel::available().filter_map(Simd::new).last().unwrap();
    for (shape, plan) in plans() {
        let slot_len = plan.slot_len();
        let (slots, x) = (numbers(plan.tiles() * slot_len), vec![0f32; plan.len()]);
        // In one range for each block, and in many.
        for ranges in [0, usize::MAX].map(|values| ChannelRanges::new(&plan, values)) {
            for i in 0..ranges.len() {
                let n = ranges.channels(i).len();
                let mut scratch = vec![f64::NAN; n * scratch_len(&plan, 2)];
                let mut memory = vec![f64::NAN; n * moments::Merged::FIELDS];
                let sums = Sums::of_range(&ranges, i, (&slots, slot_len), &mut scratch);
                let Columns { inner, .. } = Columns::of(&plan);
                let first = plan.channels(ranges.block(i)).start;
                moments::merge(simd, (&shape, &plan), sums, (&x, 1e-5), &mut memory);
                let merged = moments::Merged::new(&memory, &shape);
                for (k, c) in ranges.channels(i).enumerate().filter(|_| inner == 1) {
                    let expected = self::merged(&plan, &slots, ranges.block(i), c - first);
                    let found = (merged.offset[k], merged.squares[k]);
                    assert!(
                        found == expected,
                        "{plan:?}, channel {c}: {found:?}, not {expected:?}"
                    );
                }
            }
        }
    }
}
