//! A library that is old and has not got all functions. A process of its own: what is loaded stays.
#![allow(unsafe_code)]

use cudarc::cudnn::sys::cudnnGetVersion;

#[test]
fn functions_can_be_hidden_and_the_version_be_old() {
    let hidden = ["cudnnBatchNormalizationForwardTrainingEx", "cudnnQueryRuntimeError"];
    let cudnn = softcudnn::install_without(&hidden).unwrap();
    cudnn.set_version(7_605);
    // SAFETY: the library just installed.
    let library = unsafe { libloading::Library::new("libcudnn.so") }.unwrap();
    let has = |name: &str| {
        // SAFETY: not called.
        unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_ok()
    };
    assert_eq!(hidden.map(has), [false; 2]);
    assert!(
        has("cudnnBatchNormalizationForwardTraining") && has("cudnnBatchNormalizationBackward")
    );
    // SAFETY: always callable; not hidden.
    assert_eq!(unsafe { cudnnGetVersion() }, 7_605);
    cudnn.set_version(92_100);
    // What is installed first stays.
    assert!(std::ptr::eq(softcudnn::install().unwrap(), cudnn));
}
