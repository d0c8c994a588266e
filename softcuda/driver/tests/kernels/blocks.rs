//! Statistics that cross blocks: by the last one to finish, and through a barrier of the grid.
use crate::support::batchnorm::{Dims, Inputs};
use crate::support::cooperative::{self, Plan, normalize};
use crate::support::element::{Element, Word};
use crate::support::split::statistics;
use crate::{counts, judge, on, under_seeds};
use cudarc::driver::sys::CUresult;
use half::{bf16, f16};
use softcuda::{Report, Traffic};

fn split_agrees<T: Element<Acc = f32>>(profile: &str) {
    // One block per channel; pieces of whole vectors; more blocks than there are pieces, so that some have nothing;
    // more than a warp has lanes.
    let cases = [(1, 77), (4, 1024), (7, 49), (40, 2051)];
    for (splits, plane) in cases {
        let dims = Dims::new(3, 3, plane);
        let inputs = Inputs::<T>::new(dims);
        under_seeds(profile, |device, _| {
            let runs = statistics(device, &inputs.x, dims, splits).unwrap();
            assert!(runs[0] == runs[1], "another result at the second launch");
            let [_, got] = runs;
            judge::split_statistics(&inputs.x, dims, splits, &got);
            got.mean.into_iter().chain(got.var).map(f32::to_bits).collect::<Vec<_>>()
        });
    }
}

#[test]
fn split_statistics_agree_with_f64() {
    split_agrees::<f32>("sm_90");
    split_agrees::<bf16>("sm_80");
    split_agrees::<f16>("sm_75");
    split_agrees::<f32>("mini");
}

/// x once. On top of it, for each block that has a piece, its first value; for each block its part, written once and
/// read once by the last block; the results.
#[test]
fn split_statistics_read_once() {
    let (dims, splits) = (Dims::new(4, 3, 2048), 8);
    let inputs = Inputs::<f32>::new(dims);
    let counts = under_seeds("sm_90", |device, exclusive| {
        statistics(device, &inputs.x, dims, splits).unwrap();
        counts(exclusive)
    });
    let (channels, blocks) = (dims.channels as u64, (dims.channels * splits) as u64);
    assert_eq!(counts.global_loads.bytes, 4 * dims.len() as u64 + 4 * blocks + 8 * blocks);
    assert_eq!(counts.global_stores.bytes, 8 * blocks + 8 * channels);
    assert_eq!(counts.atomics, blocks);
}

/// Bits of y, mean and variance; counts, but for those that depend on how often blocks look at the barrier.
fn grid<T: Element<Acc = f32>>(profile: &str, plan: Plan) -> (Vec<u64>, Report) {
    let inputs = Inputs::<T>::new(Dims::new(plan.rows, plan.channels, 1));
    under_seeds(profile, |device, exclusive| {
        let Inputs { x, weight, bias, .. } = &inputs;
        let got = normalize(device, plan, x, weight, bias, 2).unwrap();
        judge::normalize_grid(&inputs, plan, &got);
        let launch = exclusive.last_launch().unwrap();
        assert!(launch.cooperative && launch.resident as usize >= plan.blocks);
        let counts = Report {
            polls: Traffic::default(),
            thread_instructions: 0,
            warp_instructions: 0,
            ..counts(exclusive)
        };
        let statistics = got.mean.iter().chain(&got.var).map(|v| v.bits());
        (got.y.iter().map(|v| v.bits()).chain(statistics).collect(), counts)
    })
}

#[test]
fn a_grid_that_meets_at_a_barrier_agrees_with_f64() {
    grid::<f32>("sm_90", Plan::resident::<f32>(250, 64, 9));
    grid::<f16>("sm_90", Plan::resident::<f16>(515, 128, 33));
    grid::<bf16>("sm_80", Plan::resident::<bf16>(100, 32, 8));
    grid::<f16>("sm_75", Plan::resident::<f16>(64, 256, 5));
    // More blocks than rows: the last ones have none.
    grid::<f32>("sm_90", Plan::resident::<f32>(20, 16, 24));
}

#[test]
fn a_small_device_reads_again_what_does_not_fit() {
    let plan = Plan { tile_rows: 32, ..Plan::resident::<f32>(250, 64, 4) };
    assert!(plan.shared::<f32>() <= 15 << 10 && plan.tile_rows < 250 / 4);
    grid::<f32>("mini", plan);
}

/// x once, where it fits into shared memory, and each row that does not twice more. On top of it, for each block, the
/// sums of all blocks twice, and weight and bias by every thread for its columns.
#[test]
fn a_resident_grid_reads_once() {
    let resident = Plan::resident::<f32>(256, 64, 8);
    let half = Plan { tile_rows: 16, ..resident };
    let Plan { rows, channels, blocks, .. } = resident;
    let per_block = 2 * blocks * channels * 4 + 2 * 4 * cooperative::THREADS * 4;
    for (plan, read_again) in [(resident, 0), (half, 2 * (rows - 16 * blocks))] {
        let counts = grid::<f32>("sm_90", plan).1;
        let loads = 4 * channels * (rows + read_again) + blocks * per_block;
        assert_eq!(counts.global_loads.bytes, loads as u64, "{plan:?}");
        let stores = 4 * channels * rows + blocks * 2 * channels * 4 + 2 * channels * 4;
        assert_eq!(counts.global_stores.bytes, stores as u64, "{plan:?}");
    }
}

#[test]
fn a_grid_that_cannot_be_resident_is_refused() {
    on("mini", |device, _| {
        let plan = Plan { tile_rows: 32, ..Plan::resident::<f32>(250, 64, 5) };
        let Inputs { x, weight, bias, .. } = Inputs::<f32>::new(Dims::new(250, 64, 1));
        let error = normalize(device, plan, &x, &weight, &bias, 1).err().unwrap();
        assert_eq!(error.0, CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    });
}
