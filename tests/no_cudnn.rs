//! Without a libcudnn, `Cudnn` is an error that says what was looked for, and `Gpu` works.
#![cfg(all(feature = "cudnn", target_os = "linux"))]
use batchnorm::{Activation, Choice, Cudnn, DType, Error, Gpu, Op, Request, Rule, Shape};

#[test]
fn a_missing_cudnn_is_an_error_that_names_it() {
    softcuda::install().unwrap();
    let error = match Cudnn::new(0) {
        Err(error) => error,
        Ok(_) => return println!("skipped: this machine has a cuDNN"),
    };
    let Error::Library { library, searched, reason } = &error else { panic!("{error}") };
    assert_eq!(*library, "cuDNN");
    let names = ["libcudnn.so", "libcudnn.so.9"].map(String::from);
    assert!(names.iter().all(|name| searched.contains(name)), "{searched:?}");
    assert!(reason.contains("LD_LIBRARY_PATH"), "{reason}");

    let gpu = Gpu::new(0).unwrap().with_rules(&[Rule::always(Choice::Cudnn)]);
    assert!(gpu.cudnn().is_none());
    let (op, dtype, activation) = (Op::ForwardTrain, DType::F32, Activation::Identity);
    let request = Request::new(op, dtype).activation(activation);
    let text = gpu.explain(&Shape::new(&[4, 8], 1).unwrap(), request).unwrap();
    assert!(text.ends_with(&format!("by rule 0 it would be cuDNN, but {error}")), "{text}");
}
