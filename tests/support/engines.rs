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
        $crate::support::engines::every_engine!(@ reference, batchnorm::Reference; $($test),+);
        $crate::support::engines::every_engine!(@ cpu, batchnorm::Cpu::default(); $($test),+);
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        $crate::support::engines::every_engine!(@ cuda, crate::support::cuda::engine(); $($test),+);
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
        $crate::support::engines::every_engine!(@ cuda_split, crate::support::cuda::split(); $($test),+);
    };
}
/// Both, for the same tests.
macro_rules! every_kernel {
    ($($test:ident),+ $(,)?) => {
        $crate::support::engines::every_engine![$($test),+];
        $crate::support::engines::split_kernels_too![$($test),+];
    };
}
/// As [`every_engine`], for tests that look into ordinary memory.
macro_rules! every_host_engine {
    ($($test:ident),+ $(,)?) => {
        $crate::support::engines::every_engine!(@ reference_on_host, batchnorm::Reference; $($test),+);
        $crate::support::engines::every_engine!(@ cpu_on_host, batchnorm::Cpu::default(); $($test),+);
    };
}
pub(crate) use {every_engine, every_host_engine, every_kernel, split_kernels_too};
