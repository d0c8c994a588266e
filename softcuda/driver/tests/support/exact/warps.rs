//! `exact_threads.cu`: what the lanes of a warp and the threads of a block tell each other.
use super::super::data::Random;
use super::super::device::{Device, blocks};
use super::Check;
use super::launch::launch;
use cudarc::driver::DriverError;

const THREADS: usize = 96;
const LEN: usize = 4 * THREADS;

fn inputs() -> Vec<u32> {
    let mut random = Random::new(7);
    (0..LEN).map(|_| random.bits() as u32).collect()
}

/// An operation: its name, and what a thread gets, from the values of its warp or block and its place there.
type Op = (&'static str, fn(&[u32], usize) -> u32);

/// A lane of the piece of `width` lanes that `lane` is in; itself where there is none such.
fn within(lane: usize, source: isize, width: usize) -> usize {
    let first = lane / width * width;
    let inside = source >= first as isize && source < (first + width) as isize;
    if inside { source as usize } else { lane }
}

fn wide(value: u32) -> u64 {
    u64::from(value) << 20 | u64::from(value)
}

const SHUFFLES: &[Op] = &[
    ("idx", |warp, _| warp[5]),
    ("idx, any", |warp, lane| warp[warp[lane] as usize % 32]),
    ("idx of 8", |warp, lane| warp[lane / 8 * 8 + lane * 7 % 8]),
    ("up", |warp, lane| warp[within(lane, lane as isize - 1, 32)]),
    ("up of 8", |warp, lane| warp[within(lane, lane as isize - 3, 8)]),
    ("down", |warp, lane| warp[within(lane, lane as isize + 7, 32)]),
    ("down of 4", |warp, lane| warp[within(lane, lane as isize + 2, 4)]),
    ("bfly", |warp, lane| warp[lane ^ 16]),
    ("bfly of 16", |warp, lane| warp[lane ^ 5]),
    ("halves of a warp", |warp, lane| match lane {
        0..16 => warp[lane ^ 3],
        _ => warp[within(lane, lane as isize + 1, 32)],
    }),
    ("64 bits, low", |warp, lane| wide(warp[lane ^ 9]) as u32),
    ("64 bits, high", |warp, lane| (wide(warp[lane ^ 9]) >> 32) as u32),
];

/// The bits of the lanes of a thread's warp for which that holds.
fn ballot(block: &[u32], thread: usize, holds: impl Fn(u32) -> bool) -> u32 {
    let warp = &block[thread / 32 * 32..][..32];
    warp.iter().enumerate().map(|(lane, v)| u32::from(holds(*v)) << lane).sum()
}

const VOTES: &[Op] = &[
    ("ballot", |block, thread| ballot(block, thread, |v| v & 1 != 0)),
    ("ballot of signs", |block, thread| ballot(block, thread, |v| v as i32 > 0)),
    ("any", |block, thread| u32::from(ballot(block, thread, |v| v % 64 == 0) != 0)),
    ("all", |block, thread| u32::from(ballot(block, thread, |v| v % 64 == 0) == 0)),
    ("ballot among some", |block, thread| {
        let one = block[thread] & 2;
        let bit = if one != 0 { 4 } else { 8 };
        ballot(block, thread, |v| v & 2 == one && v & bit != 0)
    }),
    ("rank", |block, thread| {
        (ballot(block, thread, |v| v & 1 != 0) & ((1 << (thread % 32)) - 1)).count_ones()
    }),
    ("bar.red.popc", |block, _| block.iter().map(|v| v & 1).sum()),
    ("bar.red.and", |block, _| u32::from(block.iter().all(|v| *v != 0))),
    ("bar.red.or", |block, _| u32::from(block.iter().any(|v| v % 1024 == 0))),
];

/// Runs a kernel of `(in, out, n)` on four blocks; each operation gives thread `i` of a piece of `size` threads its
/// value.
fn by_piece(
    device: &Device,
    kernel: &str,
    size: usize,
    ops: &[Op],
) -> Result<Vec<Check>, DriverError> {
    let input = inputs();
    let (source, config) = ("exact_threads", blocks(LEN / THREADS, THREADS));
    let outs = [ops.len() * LEN];
    let out = launch(device, (source, kernel), &[&input], &outs, config, &[LEN as i32])?.remove(0);
    let checks = ops.iter().zip(out.chunks_exact(LEN)).map(|((name, op), got)| {
        let pieces = input.chunks_exact(size);
        let expected: Vec<u32> =
            pieces.flat_map(|piece| (0..size).map(move |i| op(piece, i))).collect();
        Check::new(format!("{kernel}/{name}"), got, &expected)
    });
    Ok(checks.collect())
}

/// A bit per element above 0, for a length that ends inside a warp.
fn sign_masks(device: &Device) -> Result<Check, DriverError> {
    let mut random = Random::new(8);
    let values: Vec<f32> = (0..1013).map(|_| random.uniform() as f32).collect();
    let (kernel, config) = (("exact_threads", "sign_masks"), blocks(3, 64));
    let outs = [values.len().div_ceil(32)];
    let n = values.len() as i32;
    let out: Vec<u32> = launch(device, kernel, &[&values], &outs, config, &[n])?.remove(0);
    let word = |values: &[f32]| -> u32 {
        values.iter().enumerate().map(|(i, v)| u32::from(*v > 0.0) << i).sum()
    };
    let expected: Vec<u32> = values.chunks(32).map(word).collect();
    Ok(Check::new("sign_masks", &out, &expected))
}

pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let mut checks = by_piece(device, "shuffles", 32, SHUFFLES)?;
    checks.extend(by_piece(device, "votes", THREADS, VOTES)?);
    checks.push(sign_masks(device)?);
    Ok(checks)
}
