//! The `Cudnn` and `Gpu` engines of tests, on the software device with the software cuDNN, or on a
//! real device with the cuDNN that is installed. What passes with the software cuDNN is plumbing.
use super::cuda::is_real;
use batchnorm::{Choice, Cudnn, Gpu, Op, Result, Rule};
use std::sync::OnceLock;

/// The engine that all tests of a program share, on device 0; an error where no cuDNN is installed.
pub fn find() -> Result<Cudnn> {
    static ENGINE: OnceLock<Result<Cudnn>> = OnceLock::new();
    ENGINE.get_or_init(|| on_device(0)).clone()
}

/// The same where there must be one.
pub fn engine() -> Cudnn {
    find().expect("a CUDA device and cuDNN")
}

/// An engine of its own on a device.
pub fn on_device(ordinal: usize) -> Result<Cudnn> {
    install();
    Cudnn::new(ordinal)
}

/// cuDNN wherever it serves, so that both engines have work; shared by all tests of a program.
pub fn gpu() -> Gpu {
    static ENGINE: OnceLock<Gpu> = OnceLock::new();
    let gpu = || gpu_on(0).expect("a CUDA device");
    ENGINE.get_or_init(gpu).clone()
}

/// The same for the tests of a module. The properties have means of 10^4 deviations, where the mean that
/// cuDNN saves in f32 costs gradients more than they are granted (`tests/cudnn/own.rs` says how much):
/// there it evaluates alone.
pub fn gpu_for(module: &str) -> Gpu {
    let evaluates = Rule::always(Choice::Cudnn).op(Op::ForwardEval);
    if module.contains("properties") { gpu().with_rules(&[evaluates]) } else { gpu() }
}

/// The same on a device, an engine of its own.
pub fn gpu_on(ordinal: usize) -> Result<Gpu> {
    install();
    Ok(Gpu::new(ordinal)?.with_rules(&[Rule::always(Choice::Cudnn)]))
}

fn install() {
    if !is_real() {
        softcuda::install().expect("the software device");
        softcudnn::install().expect("the software cuDNN");
    }
}
