//! A libcudnn that is too old or too new, or lacks a function. A process of its own: what is loaded stays.
#![cfg(all(feature = "cudnn", target_os = "linux"))]
use batchnorm::{Cudnn, Error, Gpu};

#[test]
fn an_old_cudnn_is_an_error_that_says_what_it_has() {
    softcuda::install().unwrap();
    let hidden = ["cudnnBatchNormalizationForwardTrainingEx", "cudnnQueryRuntimeError"];
    let cudnn = softcudnn::install_without(&hidden).unwrap();
    let refused = |expected: &str| {
        let error = Cudnn::new(0).unwrap_err();
        assert!(matches!(error, Error::LibraryUnfit { library: "cuDNN", .. }), "{error:?}");
        assert_eq!(error.to_string(), expected);
    };
    cudnn.set_version(7_605);
    refused("cuDNN: expected version 9, got 7.6.5");
    cudnn.set_version(8_907);
    refused("cuDNN: expected version 9, got 8.9.7");
    cudnn.set_version(100_203);
    refused("cuDNN: expected version 9, got 10.2.3");
    cudnn.set_version(90_100);
    refused(
        "cuDNN: version 9.1.0 does not have \
         cudnnBatchNormalizationForwardTrainingEx, cudnnQueryRuntimeError",
    );
    assert!(Gpu::new(0).is_ok());
}
