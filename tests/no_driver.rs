//! Without a CUDA driver the engine is an error that says what was looked for, never a panic.
#![cfg(feature = "cuda")]
use batchnorm::{Cuda, Error};

#[test]
fn a_missing_driver_is_an_error_that_names_it() {
    match Cuda::new(0) {
        Err(Error::Library { library, searched, reason }) => {
            assert_eq!(library, "CUDA driver");
            assert!(searched.iter().any(|name| name.contains("cuda")), "{searched:?}");
            assert!(reason.contains("LD_LIBRARY_PATH"), "{reason}");
        }
        // This machine has a driver, with or without a device.
        Ok(_) | Err(Error::Device { .. } | Error::Unsupported { .. }) => {
            println!("skipped: this machine has a CUDA driver");
        }
        Err(other) => panic!("{other}"),
    }
}
