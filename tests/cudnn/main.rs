//! The `Cudnn` engine: what the suite has for engines that may refuse, a table of what this one
//! refuses, and what only it has. `Gpu` has a program of its own.
//!
//! On the software device and the software cuDNN, where passing shows that the plumbing is right,
//! not that cuDNN is.
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
                mod cudnn {$(
                    #[test]
                    fn $test() {
                        super::$test(&crate::support::cudnn::engine());
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

#[path = "../suite/bad_input.rs"]
mod bad_input;
#[path = "../suite/conformance.rs"]
mod conformance;
#[path = "../suite/definition.rs"]
mod definition;
#[path = "../suite/gradients.rs"]
mod gradients;
#[path = "../suite/nonfinite.rs"]
mod nonfinite;
#[path = "../suite/properties.rs"]
mod properties;

mod choice; // what `Gpu` takes, and why
mod failures; // calls that fail, what is left afterwards
mod own; // overflow, graphs, explanations
mod places; // memory of other devices, arguments at odd addresses
mod refusals; // the committed table: what is not refused is right
