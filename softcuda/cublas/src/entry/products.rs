//! Matrix products.

use std::ffi::{c_int, c_longlong, c_uint, c_void};

use half::f16;
use softlibrary::Number;

use super::required;
use crate::{
    gemm::{Matrix, Product, Types, multiply},
    handle::on_handle,
    status::{Refusal, Status},
};

/// One of alpha and beta, where the call gives it.
///
/// # Safety
/// `pointer` must be null or valid for reading a number of this type.
unsafe fn scalar(pointer: *const c_void, number: Number, what: &str) -> Result<f64, Refusal> {
    required(pointer, what)?;
    // SAFETY: not null, and valid by the contract of this function.
    Ok(unsafe {
        match number {
            Number::F16 => pointer.cast::<f16>().read().to_f64(),
            Number::F64 => pointer.cast::<f64>().read(),
            _ => f64::from(pointer.cast::<f32>().read()),
        }
    })
}

/// A product as a call describes it.
struct Call {
    name: &'static str,
    handle: usize,
    operations: [c_uint; 2],
    sizes: [c_int; 3],
    scalars: [*const c_void; 2],
    /// Address, leading dimension, distance from one of a batch to the next: of A, B and C.
    matrices: [(u64, c_int, c_longlong); 3],
    count: c_int,
}

impl Call {
    /// # Safety
    /// The scalars must be null or valid for reading a number of the type that `types` gives them.
    unsafe fn run(self, types: impl FnOnce() -> Result<Types, Refusal>) -> Status {
        on_handle(self.name, self.handle, |handle| {
            if handle.pointer_mode != 0 {
                let reason = "this stand-in takes alpha and beta in host memory only";
                return Status::NotSupported.because(reason);
            }
            let types = types()?;
            let [alpha, beta] = self.scalars;
            // SAFETY: by the contract of this function, in host pointer mode.
            let (alpha, beta) = unsafe {
                (scalar(alpha, types.scale, "alpha")?, scalar(beta, types.scale, "beta")?)
            };
            let matrices =
                self.matrices.map(|(address, ld, distance)| Matrix { address, ld, distance });
            let product =
                Product::new(self.operations, self.sizes, [alpha, beta], matrices, self.count)?;
            multiply(handle, types, product)
        })
    }
}

macro_rules! gemm {
    ($name:ident, $strided:ident, $number:expr, $type:ty) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(
            handle: usize,
            transa: c_uint,
            transb: c_uint,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: *const $type,
            a: u64,
            lda: c_int,
            b: u64,
            ldb: c_int,
            beta: *const $type,
            c: u64,
            ldc: c_int,
        ) -> Status {
            let call = Call {
                name: stringify!($name),
                handle,
                operations: [transa, transb],
                sizes: [m, n, k],
                scalars: [alpha.cast(), beta.cast()],
                matrices: [(a, lda, 0), (b, ldb, 0), (c, ldc, 0)],
                count: 1,
            };
            // SAFETY: the caller's pointers, as the documentation demands.
            unsafe { call.run(|| Ok(Types::all($number))) }
        }

        #[unsafe(no_mangle)]
        unsafe extern "C" fn $strided(
            handle: usize,
            transa: c_uint,
            transb: c_uint,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: *const $type,
            a: u64,
            lda: c_int,
            stride_a: c_longlong,
            b: u64,
            ldb: c_int,
            stride_b: c_longlong,
            beta: *const $type,
            c: u64,
            ldc: c_int,
            stride_c: c_longlong,
            count: c_int,
        ) -> Status {
            let call = Call {
                name: stringify!($strided),
                handle,
                operations: [transa, transb],
                sizes: [m, n, k],
                scalars: [alpha.cast(), beta.cast()],
                matrices: [(a, lda, stride_a), (b, ldb, stride_b), (c, ldc, stride_c)],
                count,
            };
            // SAFETY: the caller's pointers, as the documentation demands.
            unsafe { call.run(|| Ok(Types::all($number))) }
        }
    };
}

gemm!(cublasSgemm_v2, cublasSgemmStridedBatched, Number::F32, f32);
gemm!(cublasDgemm_v2, cublasDgemmStridedBatched, Number::F64, f64);

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmEx(
    handle: usize,
    transa: c_uint,
    transb: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    a_type: c_uint,
    lda: c_int,
    b: u64,
    b_type: c_uint,
    ldb: c_int,
    beta: *const c_void,
    c: u64,
    c_type: c_uint,
    ldc: c_int,
    compute: c_uint,
    algorithm: c_int,
) -> Status {
    let call = Call {
        name: "cublasGemmEx",
        handle,
        operations: [transa, transb],
        sizes: [m, n, k],
        scalars: [alpha, beta],
        matrices: [(a, lda, 0), (b, ldb, 0), (c, ldc, 0)],
        count: 1,
    };
    // SAFETY: the caller's pointers, as the documentation demands.
    unsafe { call.run(|| Types::of([a_type, b_type, c_type], compute, algorithm)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: usize,
    transa: c_uint,
    transb: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    a_type: c_uint,
    lda: c_int,
    stride_a: c_longlong,
    b: u64,
    b_type: c_uint,
    ldb: c_int,
    stride_b: c_longlong,
    beta: *const c_void,
    c: u64,
    c_type: c_uint,
    ldc: c_int,
    stride_c: c_longlong,
    count: c_int,
    compute: c_uint,
    algorithm: c_int,
) -> Status {
    let call = Call {
        name: "cublasGemmStridedBatchedEx",
        handle,
        operations: [transa, transb],
        sizes: [m, n, k],
        scalars: [alpha, beta],
        matrices: [(a, lda, stride_a), (b, ldb, stride_b), (c, ldc, stride_c)],
        count,
    };
    // SAFETY: the caller's pointers, as the documentation demands.
    unsafe { call.run(|| Types::of([a_type, b_type, c_type], compute, algorithm)) }
}
