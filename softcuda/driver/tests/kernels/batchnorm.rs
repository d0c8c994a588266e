//! Forward and backward with a block per channel.
use crate::support::batchnorm::{Dims, Inputs, backward, forward};
use crate::support::device::Device;
use crate::support::element::{Element, Word};
use crate::{counts, judge, on, under_seeds};
use half::{bf16, f16};
use softcuda::{Exclusive, Report, Traffic};

/// Whole vectors; planes that begin anywhere and end anywhere; planes shorter than a vector; one value each.
const SHAPES: [Dims; 6] = [
    Dims::new(2, 3, 1024),
    Dims::new(4, 3, 49),
    Dims::new(3, 2, 2051),
    Dims::new(17, 5, 3),
    Dims::new(300, 2, 1),
    Dims::new(2, 7, 128),
];

/// Bits and counts of both passes.
type Seen = (Vec<u64>, [Report; 2]);

fn both_passes<T: Element>(device: &Device, exclusive: &Exclusive, dims: Dims) -> Seen {
    let inputs = Inputs::<T>::new(dims);
    let there = forward(device, &inputs).unwrap();
    let of_forward = counts(exclusive);
    judge::forward(&inputs, &there);
    let back = backward(device, &inputs, &there.mean, &there.invstd).unwrap();
    let of_backward = counts(exclusive);
    judge::backward(&inputs, &there.mean, &there.invstd, &back);
    let elements = there.y.iter().chain(&back.grad_x).map(|v| v.bits());
    let sums = [&there.mean, &there.invstd, &back.grad_weight, &back.grad_bias];
    let sums = sums.into_iter().flatten().map(|v| v.bits());
    (elements.chain(sums).collect(), [of_forward, of_backward])
}

fn agrees<T: Element>(profile: &str) {
    for dims in SHAPES {
        under_seeds(profile, |device, exclusive| both_passes::<T>(device, exclusive, dims));
    }
}

macro_rules! agrees_with_f64 {
    ($($name:ident: $element:ty, $profile:literal;)*) => {
        $(#[test]
        fn $name() {
            agrees::<$element>($profile);
        })*
    };
}
agrees_with_f64! {
    f64_on_sm_90: f64, "sm_90";
    f32_on_sm_90: f32, "sm_90";
    f16_on_sm_90: f16, "sm_90";
    bf16_on_sm_90: bf16, "sm_90";
    f32_on_sm_80: f32, "sm_80";
    bf16_on_sm_80: bf16, "sm_80";
    f16_on_sm_75: f16, "sm_75";
    bf16_on_sm_75: bf16, "sm_75";
    f32_without_pools: f32, "no pools";
    f16_on_the_mini_device: f16, "mini";
}

/// Threads of a block, and warps.
const THREADS: u64 = 256;
const WARPS: u64 = 8;

fn bytes_and_sectors(traffic: Traffic) -> (u64, u64) {
    (traffic.bytes, traffic.sectors)
}

/// Two passes over the tensor forward, two over both tensors backward, and every value is stored once. What comes on
/// top, per channel, a 4-byte value each, where a warp's request for one value is one sector:
///
/// | | loads | stores |
/// |---|---|---|
/// | forward | the first x, running mean and variance by one thread; weight and bias by all | mean, invstd and both running ones |
/// | backward | mean, invstd and weight by all threads | grad_weight, grad_bias |
#[test]
fn forward_reads_twice_and_backward_four_times() {
    let dims = Dims::new(8, 16, 1024);
    let [forward, backward] =
        on("sm_90", |device, exclusive| both_passes::<f32>(device, exclusive, dims)).1;
    let (tensor, channels) = (4 * dims.len() as u64, dims.channels as u64);
    let loads = 2 * tensor + channels * 4 * (3 + 2 * THREADS);
    let sectors = 2 * tensor / 32 + channels * (3 + 2 * WARPS);
    assert_eq!(bytes_and_sectors(forward.global_loads), (loads, sectors));
    let stores = (tensor + channels * 4 * 4, tensor / 32 + channels * 4);
    assert_eq!(bytes_and_sectors(forward.global_stores), stores);

    let loads = 4 * tensor + channels * 4 * 3 * THREADS;
    let sectors = 4 * tensor / 32 + channels * 3 * WARPS;
    assert_eq!(bytes_and_sectors(backward.global_loads), (loads, sectors));
    let stores = (tensor + channels * 4 * 2, tensor / 32 + channels * 2);
    assert_eq!(bytes_and_sectors(backward.global_stores), stores);

    assert_eq!(forward.atomics + backward.atomics, 0);
    let share = forward.global_loads.bytes as f64 / tensor as f64;
    assert!((2.0..2.1).contains(&share), "{share}");
}

/// Where planes begin and end inside a vector, the bytes are the same: nothing is read twice.
#[test]
fn odd_planes_cost_no_bytes() {
    let dims = Dims::new(4, 3, 49);
    let [forward, backward] =
        on("sm_90", |device, exclusive| both_passes::<f16>(device, exclusive, dims)).1;
    let (tensor, channels) = (2 * dims.len() as u64, dims.channels as u64);
    // The first x has 2 bytes here, parameters and statistics 4.
    let once = channels * (2 + 4 * 2 + 4 * 2 * THREADS);
    assert_eq!(forward.global_loads.bytes, 2 * tensor + once);
    assert_eq!(forward.global_stores.bytes, tensor + channels * 4 * 4);
    assert_eq!(backward.global_loads.bytes, 4 * tensor + channels * 4 * 3 * THREADS);
    assert_eq!(backward.global_stores.bytes, tensor + channels * 4 * 2);
}
