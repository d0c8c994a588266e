//! Numbers that every peer can make again, in any language: a hash of the element's index.
use super::{Case, Layout};
use batchnorm::Element;
use rayon::prelude::*;

/// Seeds of the tensors.
pub const X: u32 = 1;
pub const GRAD_Y: u32 = 7;
pub const RESIDUAL: u32 = 13;

/// Element `i` in N, C, ... order: -1.5 to 2.5, a multiple of 2^-22.
pub fn value(i: u32, seed: u32) -> f32 {
    let mut h = i.wrapping_add(seed).wrapping_mul(2654435761);
    h ^= h >> 15;
    h = h.wrapping_mul(2246822519) >> 8;
    h as f32 * (4.0 / 16777216.0) - 1.5
}

pub fn weight(channels: usize) -> Vec<f32> {
    (0..channels).map(|c| (0.5 + (c % 7) as f64 / 7.0) as f32).collect()
}
pub fn bias(channels: usize) -> Vec<f32> {
    (0..channels).map(|c| ((c % 5) as f64 / 5.0 - 0.3) as f32).collect()
}

/// A tensor of the case as it lies in memory; the index counts in N, C, ... order all the same.
pub fn tensor<E: Element<Acc = f32>>(case: &Case, seed: u32) -> Vec<E> {
    let channels = case.dims[1];
    let positions: usize = case.dims[2..].iter().product();
    let mut tensor = vec![E::default(); case.dims.iter().product()];
    tensor.par_chunks_mut(channels * positions).enumerate().for_each(|(n, sample)| {
        let first = n * channels * positions;
        let put = |at: &mut E, i: usize| *at = E::narrow(value((first + i) as u32, seed));
        if case.layout == Layout::Nhwc {
            for (s, values) in sample.chunks_mut(channels).enumerate() {
                values.iter_mut().enumerate().for_each(|(c, at)| put(at, c * positions + s));
            }
        } else {
            sample.iter_mut().enumerate().for_each(|(i, at)| put(at, i));
        }
    });
    tensor
}
