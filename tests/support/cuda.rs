//! The `Cuda` engine of tests: on the software device, so that it runs anywhere; on a real one
//! where `BATCHNORM_REQUIRE_GPU=1` asks for that, which is an error where there is none.
use batchnorm::{Cuda, Result};
use std::sync::OnceLock;

/// Whether a real device is asked for.
pub fn is_real() -> bool {
    std::env::var_os("BATCHNORM_REQUIRE_GPU").is_some_and(|value| value == "1")
}

/// The engine that all tests of a program share, on device 0.
pub fn engine() -> Cuda {
    static ENGINE: OnceLock<Cuda> = OnceLock::new();
    ENGINE.get_or_init(|| on_device(0).expect("a CUDA device")).clone()
}

/// An engine of its own on a device.
pub fn on_device(ordinal: usize) -> Result<Cuda> {
    if !is_real() {
        softcuda::install().expect("the software device");
    }
    Cuda::new(ordinal)
}

/// The same where cuBLAS is called too: the software one on the software device.
pub fn beside_cublas() -> Cuda {
    let engine = engine();
    if !is_real() {
        softcublas::install().expect("the software cuBLAS");
    }
    engine
}

/// An engine beside cuBLAS for each PTX that ships: on the software devices of its target, or on
/// the real one.
pub fn of_every_target() -> Vec<Cuda> {
    let first = beside_cublas();
    let others = if is_real() { &[][..] } else { &["sm_80", "sm_75"] };
    let on = |name: &&str| on_device(softcuda::ordinal(name).expect("a profile")).expect(name);
    std::iter::once(first).chain(others.iter().map(on)).collect()
}

/// On the software devices: that nothing was wrong with device 0, and that cuBLAS refused this
/// thread nothing.
#[track_caller]
pub fn assert_no_faults() {
    if !is_real() {
        let softcuda = softcuda::install().expect("the software device");
        assert_eq!(softcuda.device(0).faults(), [""; 0]);
        let cublas = softcublas::install().expect("the software cuBLAS");
        assert_eq!((cublas.refusals(), cublas.faults()), (vec![], vec![]));
    }
}
