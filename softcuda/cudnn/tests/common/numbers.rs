//! Types of numbers, and numbers.

use cudarc::{
    cudnn::sys::cudnnDataType_t,
    driver::{DeviceRepr, ValidAsZeroBits},
};
use half::{bf16, f16};

/// A type of tensors.
pub trait Number: Copy + DeviceRepr + ValidAsZeroBits {
    /// That of parameters, statistics, alpha and beta.
    type Parameter: Number;
    const TYPE: cudnnDataType_t;
    /// How far a result may be off, relative to 1 or to itself.
    const TOLERANCE: f64;
    fn narrow(value: f64) -> Self;
    fn widen(self) -> f64;
}

macro_rules! number {
    ($($type:ty, $parameter:ty, $name:ident, $tolerance:literal, $narrow:expr, $widen:expr;)*) => {
        $(impl Number for $type {
            type Parameter = $parameter;
            const TYPE: cudnnDataType_t = cudnnDataType_t::$name;
            const TOLERANCE: f64 = $tolerance;
            fn narrow(value: f64) -> Self {
                $narrow(value)
            }
            fn widen(self) -> f64 {
                $widen(self)
            }
        })*
    };
}

number! {
    f32, f32, CUDNN_DATA_FLOAT, 1e-6, |x| x as f32, f64::from;
    f64, f64, CUDNN_DATA_DOUBLE, 1e-13, |x| x, |x| x;
    f16, f32, CUDNN_DATA_HALF, 1e-3, f16::from_f64, f16::to_f64;
    bf16, f32, CUDNN_DATA_BFLOAT16, 8e-3, bf16::from_f64, bf16::to_f64;
}

/// Numbers between -1 and 1, no two of a seed alike.
pub fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 32) as f64 / f64::from(1u32 << 31) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[track_caller]
pub fn close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(is_close || got == want, "{what} {at}: {got} for {want}");
    }
}
