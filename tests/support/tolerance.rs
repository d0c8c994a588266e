//! How far a result may be from the reference: one function for every test.
use batchnorm::DType;

/// What a tensor holds, which decides how its errors grow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// y, grad_x, grad_residual: rounded to the dtype.
    Element,
    /// Means and variances: rounded to the accumulating type.
    Statistic,
    /// grad_weight, grad_bias: sums over this many values, in the accumulating type.
    Sum(usize),
}

/// The largest error allowed: `base * max(1, max |reference|) + drift`, sums times `sqrt(m)`.
///
/// `drift` is `|mean| * invstd * |weight|` of the channel (0 for statistics): one rounding of the
/// mean to the accumulating type costs half a unit of it, whatever is done afterwards.
pub fn tolerance(dtype: DType, kind: Kind, max_abs: f64, drift: f64) -> f64 {
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let base = match if kind == Kind::Element { dtype } else { acc } {
        DType::F64 => 1e-12,
        DType::F32 => 2e-6,
        DType::F16 => 1e-3,
        DType::Bf16 => 8e-3,
        other => panic!("{other} has no tolerance"),
    };
    let unit = if acc == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let one = base * max_abs.max(1.0) + unit * drift;
    match kind {
        Kind::Sum(m) => one * (m as f64).sqrt(),
        _ => one,
    }
}

/// Whether `got` is right where the reference has `expected`: within `tolerance`, or the same
/// infinity, or both NaN; and where `expected` lies beyond the dtype, an infinity of its sign.
pub fn agrees(got: f64, expected: f64, tolerance: f64, dtype: DType) -> bool {
    let largest = match dtype {
        DType::F64 => f64::MAX,
        DType::F32 => f64::from(f32::MAX),
        DType::F16 => 65504.0,
        DType::Bf16 => f64::from(half::bf16::MAX),
        other => panic!("{other} has no largest value here"),
    };
    if expected.is_nan() || got.is_nan() {
        return expected.is_nan() && got.is_nan();
    }
    if got.is_infinite() || expected.is_infinite() {
        return got == expected
            || got.is_infinite()
                && got.signum() == expected.signum()
                && expected.abs() + tolerance > largest;
    }
    (got - expected).abs() <= tolerance
}
