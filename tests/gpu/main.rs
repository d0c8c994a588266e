//! The suite, unchanged, on a `Gpu` that takes cuDNN wherever it serves: both engines behind it
//! have work, and nothing is refused. On the software device and the software cuDNN, unless real
//! ones are asked for.
//!
//! The suite has run on each engine already, so that `cargo test` does without what takes minutes:
//! `cargo test --test gpu_whole` runs it, from `whole.rs`.
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
                        super::$test(&crate::support::cudnn::gpu());
                    }
                )+}
            };
        }
        macro_rules! others {
            ($($test:ident),+ $(,)?) => {};
        }
        pub(crate) use others as every_host_engine;
        pub(crate) use {every_engine, every_engine as every_kernel};
    }
}

#[path = "../suite/bad_input.rs"]
mod bad_input;
#[path = "../suite/definition.rs"]
mod definition;
#[path = "../suite/gradients.rs"]
mod gradients;
#[path = "../suite/layer.rs"]
mod layer;
#[path = "../suite/nonfinite.rs"]
mod nonfinite;
#[path = "../suite/parameters.rs"]
mod parameters;
#[path = "../suite/state.rs"]
mod state;
