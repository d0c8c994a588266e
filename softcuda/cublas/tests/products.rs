//! Matrix products as cudarc's safe API makes them, on the software device.
#![allow(unsafe_code)]

mod common;

use common::{Case, NO_TRANSPOSE, TRANSPOSE, blas, close, numbers, wanted};
use cudarc::{
    cublas::{Gemm, GemmConfig, StridedBatchedConfig, sys},
    driver::{DeviceRepr, ValidAsZeroBits},
};
use half::{bf16, f16};

/// Products of all transpositions, also where columns do not touch, with and without what C was.
fn products<T>(narrow: impl Fn(f64) -> T, widen: impl Fn(T) -> f64, tolerance: f64)
where
    T: Copy + DeviceRepr + ValidAsZeroBits,
    cudarc::cublas::CudaBlas: Gemm<T>,
{
    let (device, stream, blas) = blas();
    for (transa, transb) in [
        (NO_TRANSPOSE, NO_TRANSPOSE),
        (NO_TRANSPOSE, TRANSPOSE),
        (TRANSPOSE, NO_TRANSPOSE),
        (TRANSPOSE, TRANSPOSE),
    ] {
        for (padding, count, beta) in [(0, 1, 0.0), (3, 1, 0.5), (0, 3, -1.0), (2, 2, 0.0)] {
            let case = Case::new([5, 4, 7], [transa, transb], padding, count, [1.5, beta]);
            let rounded = |seed, length| -> Vec<T> {
                numbers(seed, length).into_iter().map(&narrow).collect()
            };
            let [a, b, c] = [0, 1, 2].map(|i| rounded(i as u64 + 1, case.distances[i] * count));
            let back = |x: &[T]| x.iter().map(|x| widen(*x)).collect::<Vec<f64>>();
            let want = wanted(&case, [&back(&a), &back(&b), &back(&c)]);
            let (a, b) = (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap());
            let mut c = stream.clone_htod(&c).unwrap();
            let gemm = case.config(&narrow);
            // SAFETY: the sizes are those of the case.
            unsafe {
                if count == 1 {
                    blas.gemm(gemm, &a, &b, &mut c).unwrap();
                } else {
                    let [stride_a, stride_b, stride_c] = case.distances.map(|d| d as i64);
                    let batch_size = count as i32;
                    let strided =
                        StridedBatchedConfig { gemm, batch_size, stride_a, stride_b, stride_c };
                    blas.gemm_strided_batched(strided, &a, &b, &mut c).unwrap();
                }
            }
            close(&back(&stream.clone_dtoh(&c).unwrap()), &want, tolerance);
        }
    }
    drop(blas);
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(common::cublas().refusals(), [""; 0]);
    assert_eq!(common::cublas().live(), [""; 0]);
}

#[test]
fn in_f32() {
    products(|x| x as f32, f64::from, 1e-6);
}

#[test]
fn in_f64() {
    products(|x| x, |x| x, 1e-14);
}

#[test]
fn in_f16() {
    products(f16::from_f64, f16::to_f64, 1e-3);
}

#[test]
fn in_bf16() {
    products(bf16::from_f64, bf16::to_f64, 8e-3);
}

#[test]
fn what_is_not_needed_is_not_read() {
    let (device, stream, blas) = blas();
    // SAFETY: written before they are read, if at all; the software device tells.
    let (a, mut c) = unsafe { (stream.alloc::<f32>(4).unwrap(), stream.alloc::<f32>(4).unwrap()) };
    let b = stream.clone_htod(&[1f32; 4]).unwrap();
    let two = |alpha, beta| GemmConfig {
        transa: NO_TRANSPOSE,
        transb: NO_TRANSPOSE,
        m: 2,
        n: 2,
        k: 2,
        alpha,
        lda: 2,
        ldb: 2,
        beta,
        ldc: 2,
    };
    // SAFETY: matrices of 2 by 2.
    unsafe { blas.gemm(two(0.0, 0.0), &a, &b, &mut c) }.unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [0.0; 4]);
    assert_eq!(device.faults(), [""; 0]);
    // SAFETY: as above; that A was never written is the program's fault.
    unsafe { blas.gemm(two(1.0, 0.0), &a, &b, &mut c) }.unwrap();
    stream.synchronize().unwrap_err();
    assert!(device.faults()[0].contains("copy to the host"), "{:?}", device.faults());
}

#[test]
fn a_sum_of_factors_in_half_precision_is_in_single() {
    let (_device, stream, blas) = blas();
    let a = stream.clone_htod(&[f16::from_f32(256.0); 512]).unwrap();
    let mut c = stream.alloc_zeros::<f32>(1).unwrap();
    let (alpha, beta) = (1f32, 0f32);
    {
        use cudarc::driver::{DevicePtr, DevicePtrMut};
        let ((a, _a), (c, _c)) = (a.device_ptr(&stream), c.device_ptr_mut(&stream));
        let half = sys::cudaDataType_t::CUDA_R_16F;
        // SAFETY: two vectors of 512 numbers, and one number.
        unsafe {
            cudarc::cublas::result::gemm_ex(
                *blas.handle(),
                TRANSPOSE,
                NO_TRANSPOSE,
                1,
                1,
                512,
                (&raw const alpha).cast(),
                a as *const _,
                half,
                512,
                a as *const _,
                half,
                512,
                (&raw const beta).cast(),
                c as *mut _,
                sys::cudaDataType_t::CUDA_R_32F,
                1,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .unwrap();
    }
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [256.0 * 256.0 * 512.0]);
}
