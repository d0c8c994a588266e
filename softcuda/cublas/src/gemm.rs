//! Matrix products: what is checked, and what is computed. Matrices are in column-major order.

use softlibrary::{Columns, Job, Memory, Number, Slot, Use};

use crate::{
    handle::{Handle, failed},
    status::{Refusal, Status},
};

/// Types of A and B, of C, and of alpha and beta.
#[derive(Clone, Copy, Debug)]
pub struct Types {
    factors: Number,
    result: Number,
    pub scale: Number,
}

impl Types {
    /// One type for everything.
    pub fn all(number: Number) -> Self {
        Self { factors: number, result: number, scale: number }
    }

    /// Those that cuBLAS documents for a compute type; integers and complex numbers are not among them here.
    pub fn of([a, b, c]: [u32; 3], compute: u32, algorithm: i32) -> Result<Self, Refusal> {
        if !matches!(algorithm, -1..=23 | 99..=115 | 999) {
            return Status::InvalidValue.because(format!("there is no algorithm {algorithm}"));
        }
        let number = |data_type: u32| match data_type {
            0 => Some(Number::F32),
            1 => Some(Number::F64),
            2 => Some(Number::F16),
            14 => Some(Number::Bf16),
            _ => None,
        };
        let types = number(a).zip(number(c)).filter(|_| a == b);
        let scale = match (compute, types) {
            (64 | 65, Some((Number::F16, Number::F16))) => Some(Number::F16),
            (68 | 69, Some((Number::F16 | Number::Bf16, Number::F32))) => Some(Number::F32),
            (68 | 69, Some((Number::F16, Number::F16))) => Some(Number::F32),
            (68 | 69, Some((Number::Bf16, Number::Bf16))) => Some(Number::F32),
            (68 | 69 | 74 | 75 | 77, Some((Number::F32, Number::F32))) => Some(Number::F32),
            (70 | 71, Some((Number::F64, Number::F64))) => Some(Number::F64),
            _ => None,
        };
        match (types, scale) {
            (Some((factors, result)), Some(scale)) => Ok(Self { factors, result, scale }),
            _ => Status::NotSupported.because(format!(
                "data types {a}, {b} and {c} do not go with compute type {compute}"
            )),
        }
    }
}

/// A matrix, or the first of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub address: u64,
    pub ld: i32,
    /// Numbers to the next one of a batch.
    pub distance: i64,
}

/// A product that makes sense.
#[derive(Clone, Debug)]
pub struct Product {
    is_transposed: [bool; 2],
    /// Rows of C, columns of C, and what is summed over.
    sizes: [usize; 3],
    scalars: [f64; 2],
    matrices: [Matrix; 3],
    /// Rows and columns as they are stored, of A, B and C.
    stored: [(usize, usize); 3],
    count: usize,
}

impl Product {
    pub fn new(
        operations: [u32; 2],
        sizes: [i32; 3],
        scalars: [f64; 2],
        matrices: [Matrix; 3],
        count: i32,
    ) -> Result<Self, Refusal> {
        let invalid = |reason: String| Status::InvalidValue.because(reason);
        if let Some(operation) = operations.into_iter().find(|operation| *operation > 2) {
            return invalid(format!("there is no operation {operation}"));
        }
        let unsigned = |value: i32| usize::try_from(value).ok();
        let [Some(m), Some(n), Some(k)] = sizes.map(unsigned) else {
            return invalid(format!("m, n, k are {sizes:?}"));
        };
        let Some(count) = unsigned(count) else {
            return invalid(format!("{count} products"));
        };
        // For real numbers the conjugate transpose is the transpose.
        let is_transposed = operations.map(|operation| operation != 0);
        let stored = [
            if is_transposed[0] { (k, m) } else { (m, k) },
            if is_transposed[1] { (n, k) } else { (k, n) },
            (m, n),
        ];
        for ((name, matrix), (rows, columns)) in ["A", "B", "C"].iter().zip(&matrices).zip(stored) {
            if unsigned(matrix.ld).is_none_or(|ld| ld < rows.max(1)) {
                let ld = matrix.ld;
                return invalid(format!("{name} has {rows} rows and a leading dimension of {ld}"));
            }
            if matrix.distance < 0 {
                return invalid(format!("{name} has a stride of {}", matrix.distance));
            }
            let extent = matrix.ld as i64 * columns as i64;
            if *name == "C" && count > 1 && matrix.distance < extent {
                let reason = format!("C's of {extent} numbers overlap, {} apart", matrix.distance);
                return invalid(reason);
            }
        }
        Ok(Self { is_transposed, sizes: [m, n, k], scalars, matrices, stored, count })
    }

    /// Whether A and B are read at all.
    fn has_factors(&self) -> bool {
        self.sizes[2] > 0 && self.scalars[0] != 0.0
    }

    /// C from A, B and what C was.
    fn compute(&self, a: &[f64], b: &[f64], c: &mut [f64]) {
        let ([m, n, k], [alpha, beta]) = (self.sizes, self.scalars);
        let [ta, tb] = self.is_transposed;
        for column in 0..n {
            for row in 0..m {
                let at_a = |i: usize| if ta { a[row * k + i] } else { a[i * m + row] };
                let at_b = |i: usize| if tb { b[i * n + column] } else { b[column * k + i] };
                let sum = match self.has_factors() {
                    true => (0..k).map(|i| at_a(i) * at_b(i)).sum::<f64>(),
                    false => 0.0,
                };
                let old = &mut c[column * m + row];
                let kept = if beta == 0.0 { 0.0 } else { beta * *old };
                *old = if self.has_factors() { alpha * sum + kept } else { kept };
            }
        }
    }
}

/// Queues a product.
pub fn multiply(handle: &Handle, types: Types, product: Product) -> Result<(), Refusal> {
    handle.queue.check(handle.stream).or_else(|reason| Status::InvalidValue.because(reason))?;
    let [m, n, _] = product.sizes;
    if m == 0 || n == 0 || product.count == 0 {
        return Ok(());
    }
    let mut job = Job::default();
    let mut slots = Vec::with_capacity(product.count);
    let of_c = if product.scalars[1] == 0.0 { Use::Write } else { Use::Update };
    for index in 0..product.count {
        let mut slot = |at: usize, how: Use, number: Number| -> Result<Slot, Refusal> {
            let (name, matrix) = (["A", "B", "C"][at], product.matrices[at]);
            let (rows, columns) = product.stored[at];
            let width = number.width() as u64;
            if matrix.address == 0 || !matrix.address.is_multiple_of(width) {
                let address = matrix.address;
                return Status::InvalidValue.because(format!("{name} is at {address:#x}"));
            }
            let address = matrix.address + index as u64 * matrix.distance as u64 * width;
            let stride = matrix.ld as usize;
            Ok(job.columns(how, number, Columns { address, rows, columns, stride }))
        };
        let factors = match product.has_factors() {
            true => Some((slot(0, Use::Read, types.factors)?, slot(1, Use::Read, types.factors)?)),
            false => None,
        };
        slots.push((factors, slot(2, of_c, types.result)?));
    }
    let run = move |memory: &mut Memory<'_>| {
        for (factors, c) in &slots {
            let (a, b) = match factors {
                Some((a, b)) => (memory.load(*a), memory.load(*b)),
                None => (Vec::new(), Vec::new()),
            };
            let mut result = memory.load(*c);
            product.compute(&a, &b, &mut result);
            memory.store(*c, &result);
        }
    };
    handle.queue.push(handle.stream, &job, run).map_err(failed)
}
