//! Every element, mask byte and channel once, over shapes of every kind.
use super::super::tiles::clipped;
use super::*;

const SHAPES: &[(&[usize], usize)] = &[
    (&[7, 5], 1),
    (&[2, 3], 1),
    (&[1000, 3], 1),
    (&[100_003, 3], 1),
    (&[40_003, 24], 1),
    (&[2_001, 64], 1),
    (&[9_001, 7], 1),
    (&[5_003, 128], 1),
    (&[300, 700], 1),
    (&[3000, 2048], 1),
    (&[64, 33, 7], 1),
    (&[640, 129, 5], 1),
    (&[2, 40_000, 2], 1),
    (&[16, 64, 56 * 56], 1),
    (&[16, 64, 31], 1),
    (&[33, 65, 49], 1),
    (&[1, 1, 1_000_003], 1),
    (&[2, 3, 200_001], 1),
    (&[3, 1 << 20], 0),
    (&[32, 14, 14, 256], 3),
    (&[32, 7, 7, 1031], 3),
    (&[0, 5, 40], 1),
    (&[5, 4, 0], 1),
    (&[0, 4], 1),
    (&[17], 0),
];

fn plans() -> impl Iterator<Item = Plan> {
    SHAPES.iter().flat_map(|(dims, axis)| {
        let shape = Shape::new(dims, *axis).unwrap();
        let twice = [(2, 1), (4, 1), (4, 2), (8, 2)];
        let twice = twice.map(|(size, tensors)| Plan::new(&shape, size, tensors));
        twice.into_iter().chain([Plan::once(&shape)])
    })
}

#[test]
fn tiles_cover_every_element_and_mask_byte_once() {
    for plan in plans() {
        let mut elements = vec![0u8; plan.rows * plan.width];
        let mut mask = vec![0u8; plan.mask_len()];
        for index in 0..plan.tiles() {
            let tile = plan.tile(index);
            assert!(tile.rows.end <= plan.rows && tile.cols.end <= plan.width, "{plan:?}");
            assert_eq!(tile.index, index);
            for row in tile.rows.clone() {
                for count in &mut elements[row * plan.width..][tile.cols.clone()] {
                    *count += 1;
                }
                let bytes = plan.mask_cols(&tile.cols);
                mask[row * plan.mask_width()..][bytes].iter_mut().for_each(|count| *count += 1);
            }
        }
        assert!(elements.len() - plan.len() < plan.width.max(1), "{plan:?}");
        assert!(elements.iter().all(|&count| count == 1), "{plan:?}");
        assert!(mask.iter().all(|&count| count == 1), "{plan:?}");
    }
}

#[test]
fn narrow_rows_are_the_same_tiles() {
    let mut some = 0;
    for plan in plans() {
        let narrow = plan.narrow();
        assert!(narrow == plan || plan.is_joined() && narrow.width < plan.width, "{plan:?}");
        some += usize::from(narrow != plan);
        assert_eq!(narrow.row(), plan.row());
        assert!(narrow == plan || narrow.width.is_multiple_of(plan.row()), "{plan:?}");
        assert_eq!(narrow.tiles(), plan.tiles(), "{plan:?}");
        for (narrow_tile, tile) in (0..plan.tiles()).map(|i| (narrow.tile(i), plan.tile(i))) {
            let of = |plan: &Plan, tile: &Tile| {
                let end = clipped(tile.rows.end - 1, tile.cols.clone(), plan.width, plan.len()).end;
                (tile.block, tile.rows.start * plan.width + tile.cols.start, end)
            };
            assert_eq!(of(&narrow, &narrow_tile), of(&plan, &tile), "{plan:?}");
        }
    }
    assert!(some > 4, "{some} of them are narrower");
}

#[test]
fn blocks_hold_their_channels() {
    for plan in plans().filter(|plan| plan.tiles() > 0) {
        let mut seen = 0;
        for block in 0..plan.blocks() {
            assert_eq!(plan.channels(block).start, seen, "{plan:?}");
            seen = plan.channels(block).end;
            let tiles = plan.tiles_per_block();
            for tile in (block * tiles..(block + 1) * tiles).map(|index| plan.tile(index)) {
                assert_eq!(tile.block, block);
                for col in [tile.cols.start, tile.cols.end - 1] {
                    let channel = col / plan.inner() % plan.shape.channels();
                    assert!(plan.channels(block).contains(&channel), "{plan:?}");
                }
            }
        }
        assert_eq!(seen, plan.shape.channels(), "{plan:?}");
    }
}

#[test]
fn columns_get_the_values_of_their_channels() {
    for plan in plans().filter(|plan| plan.tiles() > 0 && !plan.long_runs) {
        let tile = plan.tile(plan.tiles() - 1);
        for start in tile.cols.clone().step_by(512) {
            let cols = start..(start + 512).min(tile.cols.end);
            let values: Vec<usize> = plan.channels_in(&cols).collect();
            let mut out = vec![usize::MAX; 512];
            plan.expand(&cols, &values, &mut out);
            let channel = |col: usize| col / plan.inner() % plan.shape.channels();
            let expected: Vec<_> = cols.clone().map(channel).collect();
            assert_eq!(out[..cols.len()], expected, "{plan:?}");
        }
    }
}
