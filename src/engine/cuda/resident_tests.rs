//! Every element once, whatever the shape and the device; what the kernels ask of a plan; and which
//! regime tensors get that are known from networks.
use super::*;
use crate::engine::cuda::profiles::{PROFILES, Sizes};
use std::num::NonZeroU32;

const STEPS: [Step; 2] = [Step::Forward, Step::Backward];

fn tunings() -> [Tuning; 5] {
    let resident = |blocks| Family::Resident { blocks: NonZeroU32::new(blocks) };
    [
        Tuning::default(),
        Tuning::new(resident(0)),
        Tuning::new(resident(1)),
        Tuning::new(resident(3)),
        Tuning::new(resident(0)).spared(5),
    ]
}

/// All elements that the blocks of all groups take, as the kernels go over them.
fn seen(shape: &Shape, plan: &Resident) -> Vec<u8> {
    let g = plan.geometry;
    let mut seen = vec![0; shape.len()];
    for group in 0..plan.groups {
        for slice in (group..g.slices).step_by(plan.groups as usize) {
            for block in 0..u64::from(plan.blocks) {
                for n in block * g.tile..((block + 1) * g.tile).min(g.vectors) {
                    let column = u64::from(slice) * g.width + n % g.width;
                    if column < g.row {
                        let first = (n / g.width * g.row + column) * u64::from(plan.lanes);
                        let vector = first as usize..(first + u64::from(plan.lanes)) as usize;
                        seen[vector].iter_mut().for_each(|n| *n += 1);
                    }
                }
            }
        }
    }
    seen
}

#[test]
fn every_element_is_covered_once() {
    let (mut sizes, mut plans) = (Sizes(3), 0);
    for round in 0..6000 {
        let shape = sizes.shape();
        let (element, step) = ([2, 4][round % 2], STEPS[round / 2 % 2]);
        let (figures, tuning) = (PROFILES[round % PROFILES.len()], tunings()[round % 5]);
        let Some(plan) = plan(&shape, element, step, &figures, &tuning) else { continue };
        let what = format!("{shape}, {element} bytes, {figures:?}, {tuning:?}: {plan:?}");
        assert!(seen(&shape, &plan).iter().all(|&n| n == 1), "{what}");
        plans += 1;
    }
    assert!(plans > 1000, "{plans}");
}

#[test]
fn plans_are_what_the_kernels_ask_for() {
    let mut sizes = Sizes(4);
    for round in 0..3000 {
        let shape = sizes.shape();
        for figures in PROFILES {
            for tuning in tunings() {
                for step in STEPS {
                    check(&shape, [2, 4][round % 2], step, &figures, &tuning);
                }
            }
        }
    }
}

fn check(shape: &Shape, element: usize, step: Step, figures: &Figures, tuning: &Tuning) -> bool {
    let Some(plan) = plan(shape, element, step, figures, tuning) else { return false };
    let (g, what) =
        (plan.geometry, format!("{shape}, {element}, {figures:?}, {tuning:?}: {plan:?}"));
    let [threads, k] = [u64::from(g.threads), u64::from(g.slice_channels)];
    let [blocks, groups, kept] = [plan.blocks, plan.groups, plan.kept].map(u64::from);
    assert!((1..=THREADS).contains(&threads) && g.tile % threads == 0, "{what}");
    assert_eq!(u64::from(plan.lanes) * element as u64, 16, "{what}");
    assert_eq!(g.aligned, 1, "{what}");
    assert!(blocks * g.tile >= g.vectors && (blocks - 1) * g.tile < g.vectors, "{what}");
    assert!(groups >= 1 && groups <= u64::from(g.slices), "{what}");
    assert_eq!(u64::from(g.slices), u64::from(g.channels).div_ceil(k), "{what}");
    assert_eq!(g.width * u64::from(plan.lanes), k * g.inner, "{what}");
    assert_eq!(g.row * u64::from(plan.lanes), u64::from(g.channels) * g.inner, "{what}");
    assert_eq!(plan.count, shape.per_channel() as u64, "{what}");
    if k > 1 {
        assert!(g.width <= THREADS && threads % g.width == 0 && k * g.inner <= 512, "{what}");
    }
    // They fit, all of those that wait for each other at the same time.
    let shared = figures.shared / occupancy(figures) - figures.shared_reserved;
    assert!(plan.shared <= shared.min(figures.shared_block) && kept <= plan.steps(), "{what}");
    let tensors = if step == Step::Forward { 1 } else { 2 };
    assert!(u64::from(plan.shared) > 16 * threads * kept * tensors + 56, "{what}");
    let free = figures.multiprocessors.saturating_sub(tuning.spared).max(1);
    if blocks > 1 {
        assert!(figures.cooperative, "{what}");
        assert!(blocks * groups <= u64::from(free * occupancy(figures)), "{what}");
        assert!(128 * groups as usize <= Resident::words_len(figures), "{what}");
        assert_eq!(plan.partials(), 16 * blocks * groups * k, "{what}");
    } else {
        assert_eq!((groups, plan.partials()), (u64::from(g.slices), 0), "{what}");
    }
    if let Family::Resident { blocks: Some(most) } = tuning.family {
        assert!(plan.blocks <= most.get(), "{what}");
    }
    true
}

#[test]
fn tensors_past_2_to_the_31_are_covered_to_their_end() {
    let dims: [[usize; 3]; 6] = [
        [2, 4, 1 << 30],
        [1 << 26, 64, 1],
        [256, 64, 1_000_008],
        [3_000_000_000, 1, 1],
        [1 << 24, 304, 7],
        [2, (1 << 31) - 8, 8],
    ];
    let mut plans = 0;
    for dims in dims {
        let shape = Shape::new(&dims, 1).unwrap();
        for element in [2, 4] {
            for figures in PROFILES {
                for tuning in tunings() {
                    plans += usize::from(check(&shape, element, Step::Forward, &figures, &tuning));
                    plans += usize::from(check(&shape, element, Step::Backward, &figures, &tuning));
                    let Some(plan) = plan(&shape, element, Step::Forward, &figures, &tuning) else {
                        continue;
                    };
                    // The last vector of the last slice is the last of the tensor.
                    let g = plan.geometry;
                    let before = u64::from(g.slices - 1) * g.width;
                    let row = (g.vectors - 1) / g.width;
                    let end = (row * g.row + before + (g.row - before)) * u64::from(plan.lanes);
                    assert_eq!(end, shape.len() as u64, "{plan:?}");
                }
            }
        }
    }
    assert!(plans > 200, "{plans}");
}

/// f16, channels last, 256 samples, on an H200: bytes beside one read and one write for each tensor,
/// as if nothing were in the cache.
#[test]
fn tensors_of_networks_stay_on_the_device() {
    let cases: [([usize; 2], [f64; 2]); 6] = [
        // channels, plane; how much of what is read is read again, forward and backward, at most
        ([64, 112 * 112], [0.94, 0.97]),
        ([64, 56 * 56], [0.75, 0.88]), // a slice of all channels: two would wait for each other, too
        // Two groups, one of which moves while the other waits, keep less than one would.
        ([256, 56 * 56], [0.75, 0.88]),
        ([512, 28 * 28], [0.0, 0.46]),
        // Four groups and more, whose waiting others hide: what they do not keep, the cache does.
        ([1024, 14 * 14], [0.0, 0.52]),
        ([2048, 7 * 7], [0.0, 0.52]),
    ];
    for ([channels, plane], most) in cases {
        let shape = Shape::new(&[256 * plane, channels], 1).unwrap();
        for (step, most) in STEPS.into_iter().zip(most) {
            let plan = plan(&shape, 2, step, &PROFILES[0], &Tuning::default()).unwrap();
            let again = 1.0 - f64::from(plan.kept) / plan.steps() as f64;
            assert!(again <= most, "{shape}, {step:?}: {again}, {plan}");
            assert!(plan.geometry.width * 16 >= 64, "{shape}, {step:?}: {plan}");
            let busy =
                f64::from(plan.grid()) * f64::from(plan.geometry.slices.div_ceil(plan.groups));
            assert!(busy >= 0.8 * 264.0, "{shape}, {step:?}: {plan}");
        }
    }
}

#[test]
fn what_the_kernels_cannot_do_has_no_plan() {
    let on = |dims: &[usize], element, family| {
        let shape = Shape::new(dims, 1).unwrap();
        let tuning = Tuning::new(family);
        plan(&shape, element, Step::Forward, &PROFILES[0], &tuning)
    };
    let forced = Family::Resident { blocks: None };
    assert!(on(&[64, 32, 49], 4, forced).is_some());
    assert_eq!(on(&[64, 32, 49], 4, Family::Split), None);
    assert_eq!(on(&[64, 32, 49], 8, forced), None, "f64");
    assert_eq!(on(&[64, 35, 49], 4, forced), None, "rows that are not whole vectors");
    assert_eq!(on(&[0, 32, 49], 4, forced), None, "nothing");
    assert_eq!(on(&[2, (1 << 31) - 8, 8], 4, forced), None, "2^32 vectors");
    assert!(on(&[2, (1 << 31) - 8, 8], 2, forced).is_some(), "some less");
    let shape = Shape::new(&[64, 32, 49], 1).unwrap();
    let none = PROFILES[PROFILES.len() - 1];
    let tuning = Tuning::new(forced);
    assert_eq!(plan(&shape, 4, Step::Forward, &none, &tuning), None, "no shared memory");
}

#[test]
fn spared_multiprocessors_are_left_alone() {
    let shape = Shape::new(&[802_816, 64], 1).unwrap();
    let family = Family::Resident { blocks: None };
    let grid = |spared| {
        plan(&shape, 2, Step::Forward, &PROFILES[0], &Tuning::new(family).spared(spared))
            .unwrap()
            .grid()
    };
    assert!(grid(0) > 224);
    assert!((200..=224).contains(&grid(20)), "{}", grid(20));
    assert!(grid(1000) <= 2);
}

/// One group of all blocks moves nothing while it waits: a plan has it only where there is one slice.
#[test]
fn where_there_are_two_slices_there_are_two_groups() {
    let (mut sizes, mut plans) = (Sizes(5), 0);
    for round in 0..4000 {
        let (shape, step) = (sizes.shape(), STEPS[round % 2]);
        let Some(plan) = plan(&shape, 2, step, &PROFILES[round % 5], &Tuning::default()) else {
            continue;
        };
        assert!(plan.groups > 1 || plan.geometry.slices == 1, "{shape}: {plan}");
        plans += 1;
    }
    assert!(plans > 100, "{plans}");
}

/// What a barrier takes is then no less than what memory does.
#[test]
fn small_tensors_have_small_groups_or_several_launches() {
    let dims: [&[usize]; 7] = [
        &[32 * 28 * 28, 128],
        &[32 * 14 * 14, 256],
        &[32 * 7 * 7, 512],
        &[32 * 7 * 7, 2048],
        &[64 * 14 * 14, 256],
        &[32, 256, 14 * 14],
        &[32, 512, 7 * 7],
    ];
    for dims in dims {
        let shape = Shape::new(dims, 1).unwrap();
        assert!(2 * shape.len() < 12_000_000);
        for step in STEPS {
            let plan = plan(&shape, 2, step, &PROFILES[0], &Tuning::default());
            assert!(plan.is_none_or(|plan| plan.blocks <= 8), "{shape}, {step:?}: {plan:?}");
        }
    }
}

#[test]
fn dear_barriers_are_avoided_and_cheap_ones_are_not() {
    let shape = Shape::new(&[256 * 14 * 14, 256], 1).unwrap();
    let of = |barrier| {
        let costs = Costs { barrier, ..Costs::H200 };
        let tuning = Tuning::default().costs(costs);
        plan(&shape, 2, Step::Forward, &PROFILES[0], &tuning)
    };
    assert!(of(1).is_some());
    assert_eq!(of(100_000), None);
}

#[test]
fn what_is_forced_is_planned() {
    let shape = Shape::new(&[256 * 14 * 14, 256], 1).unwrap();
    let forced = Tuning::new(Family::Resident { blocks: NonZeroU32::new(7) });
    let of = |tuning: Tuning| plan(&shape, 2, Step::Forward, &PROFILES[0], &tuning).unwrap();
    for (asked, got) in [(1, 8), (8, 8), (100, 64), (128, 128), (10_000, 256)] {
        let plan = of(forced.channels(NonZeroU32::new(asked).unwrap()));
        assert_eq!((plan.blocks, plan.geometry.slice_channels), (7, got), "{plan}");
    }
    assert_eq!(of(forced.kept(3)).kept, 3);
    assert_eq!(of(forced.kept(0)).kept, 0);
}

/// Half a round later, of what the bandwidth moves in one; none that has nothing to do while others wait.
#[test]
fn half_of_the_groups_begin_later_where_they_take_several_slices() {
    let forced = |blocks| Tuning::new(Family::Resident { blocks: NonZeroU32::new(blocks) });
    let channels = NonZeroU32::new(32).unwrap();
    let of = |all, tuning: Tuning| {
        let shape = Shape::new(&[256 * 28 * 28, all], 1).unwrap();
        plan(&shape, 2, Step::Forward, &PROFILES[0], &tuning.channels(channels)).unwrap()
    };
    let two = of(512, forced(126));
    assert_eq!((two.groups, two.early), (2, 1));
    // 64 channels, read and written.
    let round = 2.0 * 2.0 * 64.0 * 256.0 * 28.0 * 28.0;
    let half = 1e9 * round / (1e6 * f64::from(PROFILES[0].costs.bandwidth)) / 2.0;
    assert!((f64::from(two.late) / half - 1.0).abs() < 0.02, "{} ns, of {half}", two.late);
    assert_eq!(of(512, forced(80)).early, 2, "of three groups");
    // A block each: of those that the device has at a time, not of all.
    let blocks = of(32 * 600, forced(1));
    assert_eq!((blocks.groups, blocks.early), (600, PROFILES[0].multiprocessors));
    assert!(blocks.late > 0);
    for (all, tuning) in
        [(64, forced(126)), (512, forced(10_000)), (512, forced(126).at_once(true))]
    {
        let plan = of(all, tuning);
        assert_eq!((plan.early, plan.late), (0, 0), "{plan}");
    }
}

/// Where f64 is slow plans have fewer turns and tiles: what they spend on sums across threads, in units of what the
/// memory takes, is less than half of what the plans for fast f64 would.
#[test]
fn slow_f64_makes_fewer_turns_and_tiles() {
    let (mut spent, mut otherwise) = (0.0, 0.0);
    for figures in &PROFILES[2..4] {
        for (channels, side) in [(64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)] {
            for dims in [&[64 * side * side, channels][..], &[64, channels, side * side]] {
                let shape = Shape::new(dims, 1).unwrap();
                for step in STEPS {
                    let part = |figures: &Figures, Costs { turn, tile, .. }: Costs| {
                        let resident = plan(&shape, 2, step, figures, &Tuning::default());
                        let split = Plan::new(&shape, 2, *figures).unwrap();
                        let sums = match resident {
                            Some(plan) if plan.blocks == 1 => {
                                plan.groups.div_ceil(2 * figures.multiprocessors) * turn
                            }
                            Some(plan) => plan.geometry.slices.div_ceil(plan.groups) * turn,
                            None => split.blocks.div_ceil(figures.multiprocessors) * tile,
                        };
                        let moved = 2.0 * shape.len() as f64 * (step.tensors() + 1) as f64;
                        figures.costs.bytes(sums.into()) / moved
                    };
                    spent += part(figures, figures.costs);
                    let bandwidth = figures.costs.bandwidth;
                    let fast = Figures { costs: Costs { bandwidth, ..Costs::H200 }, ..*figures };
                    otherwise += part(&fast, figures.costs);
                }
            }
        }
    }
    assert!(spent < otherwise / 2.0, "{spent}, {otherwise}");
}

/// Of `scripts/predicted_table.py`, which makes a page of it; and for looking at a change of the model.
/// `BATCHNORM_WRITE_TABLE=1` writes it.
#[test]
fn plans_of_networks_are_those_of_the_committed_table() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/plans.txt");
    let text = networks();
    if std::env::var_os("BATCHNORM_WRITE_TABLE").is_some_and(|value| value == "1") {
        std::fs::write(FILE, &text).unwrap();
    }
    let committed = std::fs::read_to_string(FILE).unwrap_or_default();
    for (line, committed) in text.lines().zip(committed.lines()) {
        assert_eq!(line, committed, "BATCHNORM_WRITE_TABLE=1 writes {FILE}");
    }
    assert_eq!(text.len(), committed.len(), "BATCHNORM_WRITE_TABLE=1 writes {FILE}");
}

fn networks() -> String {
    let Costs { turn, barrier, merge, launch, bandwidth, .. } = PROFILES[0].costs;
    let mut text = format!(
        "Plans of the Cuda engine on an H200: written by the library's test of the committed table.\n\n\
         costs | turn {turn} | barrier {barrier} | merge {merge} | launch {launch} | bandwidth {bandwidth}\n"
    );
    let mut row = |dtype: &str, dims: &[usize], steps: &[(&str, Option<Step>, Family)]| {
        let (layout, element) = if dtype == "f32" { ("nchw", 4) } else { ("nhwc", 2) };
        let [n, channels, side] = [0, 1, 2].map(|k| dims.get(k).copied().unwrap_or(1));
        let (plane, named) = (side * side, dims.len() > 2);
        let shape = match layout {
            "nhwc" => Shape::new(&[n * plane, channels], 1),
            _ => Shape::new(&[n, channels, plane], 1),
        };
        let shape = shape.unwrap();
        let place = if named { format!("x{side}x{side}") } else { String::new() };
        for &(name, step, family) in steps {
            let tuning = Tuning::new(family);
            let resident = step.and_then(|step| plan(&shape, element, step, &PROFILES[0], &tuning));
            let plan = match resident {
                Some(plan) => format!("resident | {plan}"),
                None => format!("split | {}", Plan::new(&shape, element, PROFILES[0]).unwrap()),
            };
            text += &format!("{dtype} | {layout} | {n}x{channels}{place} | {name} | {plan}\n");
        }
    };
    let (fastest, split) = (Family::Fastest, Family::Split);
    let training =
        [("forward", Some(Step::Forward), fastest), ("backward", Some(Step::Backward), fastest)];
    let several = [
        ("forward, split", Some(Step::Forward), split),
        ("backward, split", Some(Step::Backward), split),
    ];
    for (dtype, n) in [("f16", 256), ("f32", 64)] {
        row(dtype, &[n, 512, 28], &[("inference", None, fastest)]);
        row(dtype, &[n, 512, 28], &several);
        for [channels, side] in [
            [64, 112],
            [64, 56],
            [256, 56],
            [128, 28],
            [512, 28],
            [256, 14],
            [1024, 14],
            [512, 7],
            [2048, 7],
        ] {
            row(dtype, &[n, channels, side], &training);
        }
    }
    row("f16", &[32, 512, 7], &training);
    row("f32", &[256, 1024], &training);
    text
}
