//! What `main.rs` leaves out because it takes minutes: `cargo test --test gpu_whole`.
#![cfg(all(feature = "cudnn", target_os = "linux"))]
#![allow(dead_code)] // what the suite has for engines in ordinary memory

#[path = "../support/mod.rs"]
mod all_support;
/// As the suite knows it, but for the engines.
mod support {
    pub use crate::all_support::*;
    pub mod engines {
        macro_rules! every_engine {
            ($($test:ident),+ $(,)?) => {
                mod gpu {$(
                    #[test]
                    fn $test() {
                        super::$test(&crate::engine(module_path!()));
                    }
                )+}
            };
        }
        macro_rules! others {
            ($($test:ident),+ $(,)?) => {};
        }
        pub(crate) use {every_engine, every_engine as every_kernel};
        pub(crate) use {others as every_host_engine, others as split_kernels_too};
    }
}

/// The properties have means of 10^4 deviations, where the mean that cuDNN saves in f32 costs gradients
/// more than they are granted (`tests/cudnn/own.rs` says how much): there it evaluates alone.
fn engine(module: &str) -> batchnorm::Gpu {
    let gpu = support::cudnn::gpu();
    let always = batchnorm::Rule::always(batchnorm::Choice::Cudnn);
    let evaluates = always.clone().op(batchnorm::Op::ForwardEval);
    if module.contains("properties") { gpu.with_rules(&[evaluates]) } else { gpu }
}

#[path = "../suite/conformance.rs"]
mod conformance;
#[path = "../suite/properties.rs"]
mod properties;
#[path = "../suite/synchronized.rs"]
mod synchronized;
