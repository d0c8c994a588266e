//! Every element once, whatever the shape and the device; and what the kernels ask of a geometry.
use super::*;
use crate::engine::cuda::profiles::{PROFILES, Sizes};

const WIDTHS: [usize; 3] = [2, 4, 8];

/// Calls `visit` with block, tile and first element of every vector that a block takes, as the
/// kernels go over them.
fn walk(plan: &Plan, mut visit: impl FnMut(u64, u64)) {
    let g = plan.geometry;
    for block in 0..u64::from(plan.blocks) {
        let (slice, tile) = (block % u64::from(g.slices), block / u64::from(g.slices));
        for n in tile * g.tile..((tile + 1) * g.tile).min(g.vectors) {
            let column = slice * g.width + n % g.width;
            if column < g.row {
                visit(tile, (n / g.width * g.row + column) * u64::from(plan.lanes));
            }
        }
    }
}

#[test]
fn every_element_is_covered_once_and_counted_where_it_lies() {
    let mut sizes = Sizes(1);
    for round in 0..3000 {
        let shape = sizes.shape();
        let (element, figures) = (WIDTHS[round % 3], PROFILES[round % PROFILES.len()]);
        let plan = Plan::new(&shape, element, figures).unwrap();
        let what = format!("{shape}, {element} bytes: {plan:?}");
        let mut seen = vec![0u8; shape.len()];
        let mut counts = vec![0u64; shape.channels() * plan.tiles as usize];
        walk(&plan, |tile, first| {
            for e in first..first + u64::from(plan.lanes) {
                seen[e as usize] += 1;
                let c = e as usize / shape.inner() % shape.channels();
                counts[c * plan.tiles as usize + tile as usize] += 1;
            }
        });
        assert!(seen.iter().all(|&n| n == 1), "{what}");
        let rest = plan.count - u64::from(plan.tiles - 1) * plan.tile_count;
        for tiles in counts.chunks(plan.tiles as usize) {
            let (last, others) = tiles.split_last().unwrap();
            assert!(others.iter().all(|&n| n == plan.tile_count) && *last == rest, "{what}");
        }
    }
}

#[test]
fn geometries_are_what_the_kernels_ask_for() {
    let mut sizes = Sizes(2);
    for round in 0..20_000 {
        let shape = sizes.shape();
        let element = WIDTHS[round % 3];
        for figures in PROFILES {
            let plan = Plan::new(&shape, element, figures).unwrap();
            asked_for(&shape, element as u64, &plan);
        }
    }
}

fn asked_for(shape: &Shape, element: u64, plan: &Plan) {
    let (g, lanes, what) = (plan.geometry, u64::from(plan.lanes), format!("{shape}: {plan:?}"));
    let [threads, k] = [u64::from(g.threads), u64::from(g.slice_channels)];
    assert!((1..=THREADS).contains(&threads) && g.tile % threads == 0, "{what}");
    assert!(lanes == 1 || lanes * element == 16, "{what}");
    assert_eq!(u64::from(plan.tiles), g.vectors.div_ceil(g.tile), "{what}");
    assert_eq!(u64::from(plan.blocks), u64::from(plan.tiles) * u64::from(g.slices), "{what}");
    assert_eq!(u64::from(g.slices), u64::from(g.channels).div_ceil(k), "{what}");
    assert_eq!(g.width * lanes, k * g.inner, "{what}");
    assert_eq!(g.row * lanes, u64::from(g.channels) * g.inner, "{what}");
    if k > 1 {
        assert!(g.width <= THREADS && threads % g.width == 0, "{what}");
        assert!(k * g.inner <= 2048 / element.max(4), "{what}");
    }
    let mask = mask_len(shape, element as usize) as u64;
    assert_eq!(mask * lanes, shape.len() as u64, "{what}");
}

#[test]
fn tensors_past_2_to_the_31_are_covered_to_their_end() {
    let dims: [[usize; 3]; 7] = [
        [2, 3, 1 << 30],
        [1 << 26, 64, 1],
        [256, 64, 1_000_003],
        [3_000_000_001, 1, 1],
        [1 << 24, 300, 7],
        [5, 1 << 20, 1 << 12],
        [2, (1 << 31) - 1, 3],
    ];
    for dims in dims {
        let shape = Shape::new(&dims, 1).unwrap();
        assert!(shape.len() > 1 << 31);
        for (element, figures) in WIDTHS.into_iter().zip(PROFILES) {
            let plan = Plan::new(&shape, element, figures).unwrap();
            asked_for(&shape, element as u64, &plan);
            let g = plan.geometry;
            assert_eq!(plan.count, shape.per_channel() as u64);
            let before_last = u64::from(plan.tiles - 1) * g.tile;
            assert!(before_last < g.vectors && g.vectors <= before_last + g.tile);
            // The last vector of the last slice is the last of the tensor.
            let last_width = g.row - u64::from(g.slices - 1) * g.width;
            let row = (g.vectors - 1) / g.width;
            let column = u64::from(g.slices - 1) * g.width + last_width - 1;
            let end = (row * g.row + column + 1) * u64::from(plan.lanes);
            assert_eq!(end, shape.len() as u64, "{plan:?}");
        }
    }
}

#[test]
fn large_tensors_occupy_the_device_and_small_workspaces() {
    let dims =
        [[256, 64, 12544], [256, 2048, 49], [802_816, 256, 1], [100_352, 512, 1], [8, 3, 1 << 20]];
    for dims in dims {
        let shape = Shape::new(&dims, 1).unwrap();
        for (element, figures) in [(2, PROFILES[0]), (4, PROFILES[0]), (4, PROFILES[2])] {
            let plan = Plan::new(&shape, element, figures).unwrap();
            assert!(plan.blocks >= 2 * figures.multiprocessors, "{plan}");
            let bytes = (shape.len() * element) as u64;
            // 16 bytes beside LEAST_BYTES of every channel.
            assert!(plan.partials() * 32 <= bytes, "{plan}: {} for {bytes}", plan.partials());
            assert!(plan.lanes > 1, "{plan}");
        }
    }
}

#[test]
fn an_empty_tensor_has_no_blocks() {
    let shape = Shape::new(&[0, 5, 3], 1).unwrap();
    let plan = Plan::new(&shape, 4, PROFILES[0]).unwrap();
    assert_eq!((plan.blocks, plan.tiles, plan.partials()), (0, 0, 0));
    assert_eq!(plan.geometry.channels, 5);
}

#[test]
fn too_many_channels_are_refused() {
    let shape = Shape::new(&[2, 1 << 31], 1).unwrap();
    let error = Plan::new(&shape, 4, PROFILES[0]).unwrap_err().to_string();
    assert_eq!(error, "cuda: expected at most 2147483647 channels, got 2147483648");
}
