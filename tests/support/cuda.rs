//! The `Cuda` engine of tests: on a real device where there is one, else on the software device.
//! `BATCHNORM_REQUIRE_GPU=1` makes it an error that there is none, `BATCHNORM_REQUIRE_GPU=0` takes
//! the software device whatever there is.
use batchnorm::{Cuda, Family, Result, Tuning};
use std::num::NonZeroU32;
use std::sync::OnceLock;

/// Whether tests run on a real device. A driver is not asked: once it is loaded, the software
/// device cannot take its place.
pub fn is_real() -> bool {
    match std::env::var("BATCHNORM_REQUIRE_GPU").as_deref() {
        Ok("1") => true,
        Ok("0") => false,
        _ => std::fs::read_dir("/dev").is_ok_and(|mut files| {
            files.any(|file| file.is_ok_and(|file| is_device(&file.file_name().to_string_lossy())))
        }),
    }
}

/// `nvidia0`, not `nvidiactl`.
fn is_device(file: &str) -> bool {
    let number = file.strip_prefix("nvidia").unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// The engine that all tests of a program share, on device 0.
pub fn engine() -> Cuda {
    static ENGINE: OnceLock<Cuda> = OnceLock::new();
    let make = || if is_real() { Cuda::new(0) } else { on_device(0) };
    ENGINE.get_or_init(|| make().expect("a CUDA device")).clone()
}

/// The same, by the kernels that go without shared memory.
pub fn split() -> Cuda {
    engine().tuned(SPLIT)
}

/// The same on another software device, as each executes one kernel at a time: tests of the two take a processor each
/// then. On a real device it is [`split`].
pub fn split_elsewhere() -> Cuda {
    static ENGINE: OnceLock<Cuda> = OnceLock::new();
    let make = || {
        let ordinal = softcuda::ordinal("sm_80").expect("a profile");
        on_device(ordinal).expect("a CUDA device").tuned(SPLIT)
    };
    if is_real() { split() } else { ENGINE.get_or_init(make).clone() }
}

/// An engine of its own on a software device.
pub fn on_device(ordinal: usize) -> Result<Cuda> {
    softcuda::install().expect("the software device");
    Cuda::new(ordinal)
}

/// A launch for every pass.
pub const SPLIT: Tuning = Tuning::new(Family::Split);

/// One launch wherever it can be, by groups of at most so many blocks; 0: whatever is fastest.
pub fn resident(blocks: u32) -> Tuning {
    Tuning::new(Family::Resident { blocks: NonZeroU32::new(blocks) })
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
