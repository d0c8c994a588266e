//! The kernels of exact arithmetic, `softcuda/kernels/exact_*.cu`: their inputs, and the same arithmetic in Rust.
use super::device::Device;
use super::element::Word;
use super::output::Output;
use cudarc::driver::DriverError;

pub mod floats;
pub mod halves;
pub mod integers;
#[allow(unsafe_code)]
pub mod launch;
pub mod memory;
pub mod warps;

/// What a kernel wrote, and what it should have.
pub struct Check {
    pub output: Output,
    pub expected: Vec<u64>,
}

impl Check {
    pub fn new<T: Word>(name: impl Into<String>, got: &[T], expected: &[T]) -> Self {
        assert_eq!(got.len(), expected.len());
        let expected = expected.iter().map(|v| v.bits()).collect();
        Self { output: Output::exact(name, got), expected }
    }

    /// Where the two differ, as `NAME[I]: expected BITS, got BITS`.
    pub fn differences(&self) -> Vec<String> {
        let places = self.output.differences(&self.expected);
        let line = |i: usize| {
            let (expected, got) = (self.expected[i], self.output.bits[i]);
            format!("{}[{i}]: expected {expected:#x}, got {got:#x}", self.output.name)
        };
        places.into_iter().map(line).collect()
    }
}

/// Runs all of them.
pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let parts = [integers::run, floats::run, halves::run, warps::run, memory::run];
    let checks: Result<Vec<_>, _> = parts.iter().map(|run| run(device)).collect();
    Ok(checks?.into_iter().flatten().collect())
}

/// An operation on three operands: its name, and what it is.
pub type Op<T, U> = (&'static str, fn(T, T, T) -> U);

/// An operation on one operand.
pub type UnaryOp<T, U> = (&'static str, fn(T) -> U);

/// Runs a kernel of `(as, bs, cs, out, n)` and computes the same here.
pub fn ternary<T: Word, U: Word>(
    device: &Device,
    (source, kernel): (&str, &str),
    operands: &[[T; 3]],
    ops: &[Op<T, U>],
) -> Result<Vec<Check>, DriverError> {
    let columns: Vec<Vec<T>> = (0..3).map(|k| operands.iter().map(|o| o[k]).collect()).collect();
    let inputs: Vec<&[T]> = columns.iter().map(Vec::as_slice).collect();
    let out = launch::elementwise(device, source, kernel, &inputs, ops.len())?;
    let checks = ops.iter().zip(out.chunks_exact(operands.len())).map(|((name, op), got)| {
        let expected: Vec<U> = operands.iter().map(|&[a, b, c]| op(a, b, c)).collect();
        Check::new(format!("{kernel}/{name}"), got, &expected)
    });
    Ok(checks.collect())
}

/// As [`ternary`], of `(as, out, n)`.
pub fn unary<T: Word, U: Word>(
    device: &Device,
    (source, kernel): (&str, &str),
    operands: &[T],
    ops: &[UnaryOp<T, U>],
) -> Result<Vec<Check>, DriverError> {
    let out = launch::elementwise(device, source, kernel, &[operands], ops.len())?;
    let checks = ops.iter().zip(out.chunks_exact(operands.len())).map(|((name, op), got)| {
        let expected: Vec<U> = operands.iter().map(|&a| op(a)).collect();
        Check::new(format!("{kernel}/{name}"), got, &expected)
    });
    Ok(checks.collect())
}
