//! What the tests have in common.
#![allow(dead_code)]

use std::sync::Arc;

use cudarc::{
    cublas::{CudaBlas, GemmConfig, sys},
    driver::{CudaContext, CudaStream},
};
use softcublas::Control;
use softcuda::Exclusive;

pub const NO_TRANSPOSE: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_N;
pub const TRANSPOSE: sys::cublasOperation_t = sys::cublasOperation_t::CUBLAS_OP_T;

pub fn cublas() -> &'static Control {
    softcublas::install().expect("the library")
}

/// A device that no other test has, a stream of it, and a handle there.
pub fn blas() -> (Exclusive, Arc<CudaStream>, CudaBlas) {
    let device = softcuda::install().expect("the software device").exclusive(0);
    cublas();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let blas = CudaBlas::new(stream.clone()).unwrap();
    (device, stream, blas)
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

/// Sizes of a product, in column-major order.
pub struct Case {
    /// Rows of C, columns of C, and what is summed over.
    pub sizes: [usize; 3],
    pub operations: [sys::cublasOperation_t; 2],
    /// Leading dimensions of A, B and C.
    pub lds: [usize; 3],
    /// Numbers of A, B and C, with those between columns.
    pub distances: [usize; 3],
    pub count: usize,
    pub scalars: [f64; 2],
}

impl Case {
    pub fn new(
        sizes: [usize; 3],
        operations: [sys::cublasOperation_t; 2],
        padding: usize,
        count: usize,
        scalars: [f64; 2],
    ) -> Self {
        let [m, n, k] = sizes;
        let [ta, tb] = operations.map(|operation| operation == TRANSPOSE);
        let stored = [if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) }, (m, n)];
        let lds = stored.map(|(rows, _)| rows + padding);
        let distances = [0, 1, 2].map(|i| lds[i] * stored[i].1);
        Self { sizes, operations, lds, distances, count, scalars }
    }

    pub fn config<T>(&self, narrow: impl Fn(f64) -> T) -> GemmConfig<T> {
        let [m, n, k] = self.sizes.map(|size| size as i32);
        let [lda, ldb, ldc] = self.lds.map(|ld| ld as i32);
        let [transa, transb] = self.operations;
        let [alpha, beta] = self.scalars.map(narrow);
        GemmConfig { transa, transb, m, n, k, alpha, lda, ldb, beta, ldc }
    }
}

/// C as it must be: what is between its columns is what it was.
pub fn wanted(case: &Case, [a, b, c]: [&[f64]; 3]) -> Vec<f64> {
    let ([m, n, k], [lda, ldb, ldc]) = (case.sizes, case.lds);
    let [ta, tb] = case.operations.map(|operation| operation == TRANSPOSE);
    let [da, db, dc] = case.distances;
    let mut want = c.to_vec();
    for index in 0..case.count {
        let (a, b) = (&a[index * da..], &b[index * db..]);
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let of_a = |l: usize| if ta { a[i * lda + l] } else { a[l * lda + i] };
            let of_b = |l: usize| if tb { b[l * ldb + j] } else { b[j * ldb + l] };
            let sum: f64 = (0..k).map(|l| of_a(l) * of_b(l)).sum();
            let at = index * dc + j * ldc + i;
            want[at] = case.scalars[0] * sum + case.scalars[1] * c[at];
        }
    }
    want
}

#[track_caller]
pub fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{at}: {got} for {want}");
    }
}
