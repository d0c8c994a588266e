//! Through cudarc's safe API.

use std::sync::Arc;

use cudarc::{
    curand::{CudaRng, sys::curandStatus_t as Status},
    driver::{CudaContext, CudaStream},
};
use softcuda::Exclusive;
use softcurand::Control;

fn stream() -> (Exclusive, &'static Control, Arc<CudaStream>) {
    let device = softcuda::install().expect("the software device").exclusive(0);
    let curand = softcurand::install().expect("the library");
    curand.reset();
    (device, curand, CudaContext::new(0).unwrap().new_stream().unwrap())
}

#[test]
fn numbers_come_in_the_order_of_the_stream_and_by_the_seed() {
    let (device, curand, stream) = stream();
    let mut rng = CudaRng::new(5, stream.clone()).unwrap();
    let mut x = stream.alloc_zeros::<f32>(1000).unwrap();
    rng.fill_with_uniform(&mut x).unwrap();
    let first = stream.clone_dtoh(&x).unwrap();
    rng.fill_with_uniform(&mut x).unwrap();
    assert_ne!(stream.clone_dtoh(&x).unwrap(), first);
    rng.set_seed(5).unwrap();
    rng.fill_with_uniform(&mut x).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), first);
    let mean = first.iter().sum::<f32>() / 1000.0;
    assert!((mean - 0.5).abs() < 0.05 && first.iter().all(|x| *x > 0.0 && *x <= 1.0));
    let mut y = stream.alloc_zeros::<f64>(1000).unwrap();
    rng.fill_with_normal(&mut y, 10.0, 0.5).unwrap();
    let normal = stream.clone_dtoh(&y).unwrap();
    let mean = normal.iter().sum::<f64>() / 1000.0;
    assert!((mean - 10.0).abs() < 0.1, "{mean}");
    let mut words = stream.alloc_zeros::<u32>(64).unwrap();
    rng.fill_with_uniform(&mut words).unwrap();
    let words = stream.clone_dtoh(&words).unwrap();
    assert!(words.iter().fold(0, |all, word| all | word) == u32::MAX);
    drop((rng, x, y));
    assert_eq!((curand.refusals(), curand.live()), (vec![], vec![]));
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn what_curand_refuses_is_refused() {
    let (_device, curand, stream) = stream();
    let rng = CudaRng::new(5, stream.clone()).unwrap();
    let mut odd = stream.alloc_zeros::<f32>(3).unwrap();
    let refused = rng.fill_with_normal(&mut odd, 0.0, 1.0).unwrap_err();
    assert_eq!(refused.0, Status::CURAND_STATUS_LENGTH_NOT_MULTIPLE);
    let mut wide = stream.alloc_zeros::<u64>(2).unwrap();
    assert_eq!(rng.fill_with_uniform(&mut wide).unwrap_err().0, Status::CURAND_STATUS_TYPE_ERROR);
    assert_eq!(
        curand.refusals(),
        [
            "curandGenerateNormal: 3 normal numbers; they come in pairs",
            "curandGenerateLongLong: 64-bit integers come from quasi-random generators only"
        ]
    );
    curand.fail("curandGenerateUniform", 0, 201);
    assert_eq!(
        rng.fill_with_uniform(&mut odd).unwrap_err().0,
        Status::CURAND_STATUS_LAUNCH_FAILURE
    );
    rng.fill_with_uniform(&mut odd).unwrap();
    assert_eq!(curand.live().len(), 1);
}
