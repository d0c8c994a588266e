//! Handles, order in streams and graphs, refusals and failures.
#![allow(unsafe_code)]

mod common;

use common::{NO_TRANSPOSE, TRANSPOSE, blas, cublas};
use cudarc::{
    cublas::{CudaBlas, Gemm, GemmConfig, sys, sys::cublasStatus_t as Status},
    driver::{
        CudaContext, CudaSlice, sys::CUgraphInstantiate_flags as Flags,
        sys::CUstreamCaptureMode as Mode,
    },
};

/// A product of matrices of 2 by 2, each column after the other.
fn two_by_two() -> GemmConfig<f32> {
    GemmConfig {
        transa: NO_TRANSPOSE,
        transb: NO_TRANSPOSE,
        m: 2,
        n: 2,
        k: 2,
        alpha: 1.0,
        lda: 2,
        ldb: 2,
        beta: 0.0,
        ldc: 2,
    }
}

fn multiply(
    blas: &CudaBlas,
    config: GemmConfig<f32>,
    a: &CudaSlice<f32>,
    c: &mut CudaSlice<f32>,
) -> Status {
    // SAFETY: what is wrong with the sizes is refused before anything is read.
    match unsafe { blas.gemm(config, a, a, c) } {
        Ok(()) => Status::CUBLAS_STATUS_SUCCESS,
        Err(error) => error.0,
    }
}

#[test]
fn products_stand_in_the_order_of_their_stream() {
    let (device, stream, mut blas) = blas();
    for seed in 1..11 {
        device.set_seed(seed);
        let other = stream.context().new_stream().unwrap();
        let mut a = stream.clone_htod(&[1f32, 0.0, 0.0, 1.0]).unwrap();
        let mut c = stream.alloc_zeros::<f32>(4).unwrap();
        for step in 0..3 {
            stream.memcpy_htod(&[step as f32, 1.0, 0.0, 1.0], &mut a).unwrap();
            assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_SUCCESS);
            // A's next value must not come before the product has read this one.
        }
        stream.memset_zeros(&mut a).unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), [4.0, 3.0, 0.0, 1.0]);
        // SAFETY: cudarc keeps the slices in order by events.
        unsafe { blas.set_stream(other.clone()) }.unwrap();
        assert_eq!(multiply(&blas, two_by_two(), &c, &mut a), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(stream.clone_dtoh(&a).unwrap(), [16.0, 15.0, 0.0, 1.0]);
        // SAFETY: as above.
        unsafe { blas.set_stream(stream.clone()) }.unwrap();
    }
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn streams_of_one_handle_do_not_disturb_each_other() {
    let (device, stream, mut blas) = blas();
    // SAFETY: the two streams have nothing in common.
    unsafe { stream.context().disable_event_tracking() };
    let streams = [stream.clone(), stream.context().new_stream().unwrap()];
    let mut matrices = [1f32, 2.0].map(|x| {
        let a = stream.clone_htod(&[x, 0.0, 0.0, x]).unwrap();
        (a, stream.alloc_zeros::<f32>(4).unwrap())
    });
    stream.synchronize().unwrap();
    for seed in 1..21 {
        device.set_seed(seed);
        for (stream, (a, c)) in streams.iter().zip(&mut matrices) {
            // SAFETY: as above.
            unsafe { blas.set_stream(stream.clone()) }.unwrap();
            stream.memset_zeros(c).unwrap();
            assert_eq!(multiply(&blas, two_by_two(), a, c), Status::CUBLAS_STATUS_SUCCESS);
        }
        stream.context().synchronize().unwrap();
        let [one, two] = [0, 1].map(|i| stream.clone_dtoh(&matrices[i].1).unwrap());
        assert_eq!((one, two), (vec![1.0, 0.0, 0.0, 1.0], vec![4.0, 0.0, 0.0, 4.0]), "seed {seed}");
    }
    // SAFETY: as above.
    unsafe { blas.set_stream(stream) }.unwrap();
}

#[test]
fn a_graph_repeats_products() {
    let (device, stream, blas) = blas();
    // SAFETY: there is one stream.
    unsafe { stream.context().disable_event_tracking() };
    let mut a = stream.clone_htod(&[1f32, 0.0, 0.0, 1.0]).unwrap();
    let mut c = stream.alloc_zeros::<f32>(4).unwrap();
    stream.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_SUCCESS);
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [0.0; 4], "a capture does nothing");
    for factor in [2f32, 3.0] {
        stream.memcpy_htod(&[factor, 0.0, 0.0, 1.0], &mut a).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), [factor * factor, 0.0, 0.0, 1.0]);
    }
    graph.launch().unwrap();
    drop(blas); // waits for the graph
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
    drop((graph, a, c));
    drop(stream);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn what_the_documentation_forbids_is_refused() {
    let (_device, stream, blas) = blas();
    let (a, mut c) =
        (stream.clone_htod(&[1f32; 4]).unwrap(), stream.clone_htod(&[7f32; 4]).unwrap());
    let base = two_by_two;
    let invalid = [
        (GemmConfig { m: -1, ..base() }, "m, n, k are [-1, 2, 2]"),
        (GemmConfig { lda: 1, ..base() }, "A has 2 rows and a leading dimension of 1"),
        (GemmConfig { ldb: 1, ..base() }, "B has 2 rows and a leading dimension of 1"),
        (GemmConfig { ldc: 1, ..base() }, "C has 2 rows and a leading dimension of 1"),
        (GemmConfig { transa: TRANSPOSE, k: 3, ..base() }, "A has 3 rows"),
        (
            GemmConfig { transb: sys::cublasOperation_t::CUBLAS_OP_CONJG, ..base() },
            "no operation 3",
        ),
    ];
    for (config, reason) in invalid {
        cublas().reset();
        assert_eq!(multiply(&blas, config, &a, &mut c), Status::CUBLAS_STATUS_INVALID_VALUE);
        let refusals = cublas().refusals();
        assert!(refusals.len() == 1 && refusals[0].contains(reason), "{refusals:?}");
    }
    blas.set_pointer_mode(sys::cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE).unwrap();
    assert_eq!(multiply(&blas, base(), &a, &mut c), Status::CUBLAS_STATUS_NOT_SUPPORTED);
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [7.0; 4]);
}

#[test]
fn types_that_do_not_go_together_are_refused() {
    use sys::{
        cublasComputeType_t as Compute, cublasGemmAlgo_t as Algorithm, cudaDataType_t as Type,
    };
    let (_device, _stream, blas) = blas();
    let one = 1f32;
    let scale: *const std::ffi::c_void = (&raw const one).cast();
    let run = |types: [Type; 3], compute, alpha| {
        // SAFETY: refused before a matrix is looked at.
        unsafe {
            sys::cublasGemmEx(
                *blas.handle(),
                NO_TRANSPOSE,
                NO_TRANSPOSE,
                1,
                1,
                1,
                alpha,
                std::ptr::null(),
                types[0],
                1,
                std::ptr::null(),
                types[1],
                1,
                scale,
                std::ptr::null_mut(),
                types[2],
                1,
                compute,
                Algorithm::CUBLAS_GEMM_DEFAULT,
            )
        }
    };
    let (f16, f32, f64) = (Type::CUDA_R_16F, Type::CUDA_R_32F, Type::CUDA_R_64F);
    let single = Compute::CUBLAS_COMPUTE_32F;
    let not_supported = Status::CUBLAS_STATUS_NOT_SUPPORTED;
    for (types, compute) in [
        ([f16, f32, f32], single),
        ([f64, f64, f64], single),
        ([f32, f32, f16], single),
        ([f32, f32, f32], Compute::CUBLAS_COMPUTE_16F),
        ([f16, f16, f16], Compute::CUBLAS_COMPUTE_32F_FAST_TF32),
        ([Type::CUDA_R_8I, Type::CUDA_R_8I, Type::CUDA_R_32I], Compute::CUBLAS_COMPUTE_32I),
    ] {
        assert_eq!(run(types, compute, scale), not_supported, "{types:?} {compute:?}");
    }
    let invalid = Status::CUBLAS_STATUS_INVALID_VALUE;
    assert_eq!(run([f32; 3], single, std::ptr::null()), invalid);
    assert_eq!(run([f32; 3], single, scale), invalid);
    let refusals = cublas().refusals();
    assert!(refusals[6].ends_with("alpha is null"), "{refusals:?}");
    assert!(refusals[7].ends_with("A is at 0x0"), "{refusals:?}");
}

#[test]
fn calls_fail_as_a_test_asks() {
    let (device, stream, blas) = blas();
    let (a, mut c) =
        (stream.clone_htod(&[1f32; 4]).unwrap(), stream.clone_htod(&[7f32; 4]).unwrap());
    cublas().fail("cublasSgemm_v2", 1, Status::CUBLAS_STATUS_ALLOC_FAILED as u32);
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_SUCCESS);
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_ALLOC_FAILED);
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_SUCCESS);
    cublas().fail("cublasCreate_v2", 0, Status::CUBLAS_STATUS_NOT_INITIALIZED as u32);
    CudaBlas::new(stream.clone()).unwrap_err();
    // A copy that the driver refuses.
    device.fail(softcuda::FailurePoint::Copy, 0, softcuda::Code::InvalidValue);
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_EXECUTION_FAILED);
    assert!(cublas().refusals()[0].contains("cuMemcpyDtoHAsync_v2 answered 1"));
    assert_eq!(multiply(&blas, two_by_two(), &a, &mut c), Status::CUBLAS_STATUS_SUCCESS);
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [2.0; 4]);
}

#[test]
fn handles_are_counted_and_stale_ones_noticed() {
    let (device, stream, blas) = blas();
    assert_eq!(cublas().live().len(), 1, "{:?}", cublas().live());
    let handle = *blas.handle();
    drop(blas);
    assert_eq!(cublas().live(), [""; 0]);
    // SAFETY: a handle that is noticed to be none any more.
    let again = unsafe { sys::cublasDestroy_v2(handle) };
    assert_eq!(again, Status::CUBLAS_STATUS_NOT_INITIALIZED);
    assert!(cublas().refusals()[0].contains("or none any more"));
    // A stream of another device.
    let there = softcuda::install().unwrap().exclusive(1);
    let other = CudaContext::new(there.ordinal()).unwrap().new_stream().unwrap();
    stream.context().bind_to_thread().unwrap();
    let mut blas = CudaBlas::new(stream.clone()).unwrap();
    // SAFETY: refused.
    let refused = unsafe { blas.set_stream(other.clone()) }.unwrap_err();
    assert_eq!(refused.0, Status::CUBLAS_STATUS_INVALID_VALUE);
    drop(blas);
    drop((stream, other));
    assert_eq!(device.leaks(), [""; 0]);
}
