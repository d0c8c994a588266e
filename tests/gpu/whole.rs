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
                        super::$test(&crate::support::cudnn::gpu());
                    }
                )+}
            };
        }
        pub(crate) use every_engine;
    }
}

#[path = "../suite/conformance.rs"]
mod conformance;
#[path = "../suite/properties.rs"]
mod properties;
#[path = "../suite/synchronized.rs"]
mod synchronized;
