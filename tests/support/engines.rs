//! One body of a test, one line per engine.

/// Makes a test of every engine from each function that is generic over the engine.
///
/// ```ignore
/// every_engine![y_agrees, gradients_agree];
/// ```
///
/// This is the place where engines are listed.
macro_rules! every_engine {
    ($($test:ident),+ $(,)?) => {
        every_engine!(@ reference, batchnorm::Reference; $($test),+);
        every_engine!(@ cpu, batchnorm::Cpu::default(); $($test),+);
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        every_engine!(@ cuda, crate::support::cuda::engine(); $($test),+);
    };
    (@ $name:ident, $engine:expr; $($test:ident),+) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test(&$engine);
            })+
        }
    };
}
/// Makes a test of the split kernels, which [`batchnorm::Cuda`] leaves for resident ones where it can,
/// beside those of [`every_engine`]: for tests of what kernels compute.
macro_rules! split_kernels_too {
    ($($test:ident),+ $(,)?) => {
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        every_engine!(@ cuda_split, crate::support::cuda::split(); $($test),+);
    };
}
/// As [`every_engine`], for tests that look into ordinary memory.
macro_rules! every_host_engine {
    ($($test:ident),+ $(,)?) => {
        every_engine!(@ reference_on_host, batchnorm::Reference; $($test),+);
        every_engine!(@ cpu_on_host, batchnorm::Cpu::default(); $($test),+);
    };
}
pub(crate) use {every_engine, every_host_engine, split_kernels_too};
