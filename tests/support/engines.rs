//! One body of a test, one line per engine.

/// Makes a test of each engine from each function that is generic over the engine.
///
/// ```ignore
/// engines! { [reference, cpu, cuda] [y_agrees, gradients_agree] }
/// ```
///
/// This is the place where engines are listed. `cargo test --test suite -- ::cpu::` runs one's tests.
///
/// | | |
/// |---|---|
/// | `reference`, `cpu` | |
/// | `reference_on_host`, `cpu_on_host` | for tests that look into ordinary memory |
/// | `cuda` | on a real device where there is one, else on the software device |
/// | `cuda_split` | the same by the split kernels, which it leaves for resident ones where it can, on a software device for sm_80 |
/// | `cudnn` | for tests that let an engine refuse |
/// | `gpu` | one that takes cuDNN wherever it serves: both engines behind it have work, and nothing is refused |
/// | `gpu_slowly` | the same, for what takes minutes and the engines behind it have shown: ignored, but for `--include-ignored` |
macro_rules! engines {
    ([$($engine:ident),+] $tests:tt) => {
        $($crate::support::engines::engines! { @ $engine $tests })+
    };
    (@ reference $tests:tt) => {
        $crate::support::engines::engines! { @ reference, batchnorm::Reference; $tests }
    };
    (@ cpu $tests:tt) => {
        $crate::support::engines::engines! { @ cpu, batchnorm::Cpu::default(); $tests }
    };
    (@ reference_on_host $tests:tt) => {
        $crate::support::engines::engines! { @ reference_on_host, batchnorm::Reference; $tests }
    };
    (@ cpu_on_host $tests:tt) => {
        $crate::support::engines::engines! { @ cpu_on_host, batchnorm::Cpu::default(); $tests }
    };
    (@ cuda $tests:tt) => {
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        $crate::support::engines::engines! { @ cuda, crate::support::cuda::engine(); $tests }
    };
    (@ cuda_split $tests:tt) => {
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        $crate::support::engines::engines! { @ cuda_split, crate::support::cuda::split_elsewhere(); $tests }
    };
    (@ cudnn $tests:tt) => {
        #[cfg(all(feature = "cudnn", target_os = "linux"))]
        $crate::support::engines::engines! { @ cudnn, crate::support::cudnn::engine(); $tests }
    };
    (@ gpu $tests:tt) => {
        #[cfg(all(feature = "cudnn", target_os = "linux"))]
        $crate::support::engines::engines! { @ gpu, crate::support::cudnn::gpu(); $tests }
    };
    (@ gpu_slowly $tests:tt) => {
        #[cfg(all(feature = "cudnn", target_os = "linux"))]
        $crate::support::engines::engines! {
            @ gpu, crate::support::cudnn::gpu_for(module_path!()); #[ignore = "takes minutes"] $tests
        }
    };
    (@ $name:ident, $engine:expr; $(#[$ignored:meta])? [$($test:ident),+ $(,)?]) => {
        mod $name {
            $crate::support::engines::engines! { @@ $engine; $(#[$ignored])? [$($test)+] }
        }
    };
    (@@ $engine:expr; #[$ignored:meta] [$($test:ident)+]) => {$(
        #[test]
        #[$ignored]
        fn $test() {
            super::$test(&$engine);
        }
    )+};
    (@@ $engine:expr; [$($test:ident)+]) => {$(
        #[test]
        fn $test() {
            super::$test(&$engine);
        }
    )+};
}
pub(crate) use engines;
