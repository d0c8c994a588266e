//! Descriptors answer as libcudnn 9.26 was seen to answer. `SOFTCUDNN_COMPARE=/path/libcudnn.so.9` runs these tests on a
//! real library, which needs no GPU.
#![allow(unsafe_code)]

mod common;

use std::ptr;

use common::{
    Activation, BAD_PARAM, Format, NOT_SUPPORTED, OK, PER_ACTIVATION, PERSISTENT, SPATIAL, Tensor,
    cudnn, norm::strides,
};
use cudarc::cudnn::sys::{self, cudnnDataType_t as Type, *};

/// Whether the library is the real one.
fn is_real() -> bool {
    let Some(path) = std::env::var_os("SOFTCUDNN_COMPARE") else {
        cudnn();
        return false;
    };
    // SAFETY: the vendor's library.
    let library = unsafe { libloading::Library::new(path) }.unwrap();
    std::mem::forget(library);
    true
}

#[test]
fn what_can_be_described() {
    is_real();
    let (float, tensor) = (Type::CUDNN_DATA_FLOAT, Tensor::new());
    for (dims, strides, status) in [
        (&[2, 8, 5, 7][..], &[280, 35, 7, 1][..], OK),
        (&[2, 8, 5, 7], &[280, 1, 56, 8], OK),
        (&[2, 8, 5, 7], &[1000, 100, 10, 1], OK),
        (&[2, 8, 3, 5, 7], &[840, 1, 280, 56, 8], OK),
        (&[4, 8], &[8, 1], OK),
        (&[4], &[1], BAD_PARAM),
        (&[4, 8, 0, 2], &[8, 1, 1, 1], BAD_PARAM),
        (&[4, 8, -1, 2], &[8, 1, 1, 1], BAD_PARAM),
        (&[4, 8, 1, 2], &[8, 1, 0, 1], OK),
        (&[2, 8, 5, 7], &[0, 35, 7, 1], BAD_PARAM),
        (&[1; 8], &[1; 8], OK),
        (&[1; 9], &[1; 9], NOT_SUPPORTED),
        (&[32_767, 65_536, 1, 1], &[65_536, 1, 1, 1], OK),
        (&[32_768, 65_536, 1, 1], &[65_536, 1, 1, 1], NOT_SUPPORTED),
    ] {
        assert_eq!(tensor.set(float, dims, strides), status, "{dims:?} {strides:?}");
        if status == OK {
            assert_eq!(tensor.get(), (float, dims.to_vec(), strides.to_vec()));
        }
    }
}

#[test]
fn what_the_parameters_are() {
    is_real();
    let (float, double) = (Type::CUDNN_DATA_FLOAT, Type::CUDNN_DATA_DOUBLE);
    for (data_type, parameter) in [
        (float, float),
        (double, double),
        (Type::CUDNN_DATA_HALF, float),
        (Type::CUDNN_DATA_BFLOAT16, float),
    ] {
        for dims in [&[2, 8, 5, 7][..], &[2, 8, 3, 5, 7], &[4, 8, 5], &[4, 8], &[2, 1, 5, 7]] {
            for format in [Format::CUDNN_TENSOR_NCHW, Format::CUDNN_TENSOR_NHWC] {
                let (x, derived) = (Tensor::new(), Tensor::new());
                assert_eq!(x.set(data_type, dims, &strides(dims, format)), OK);
                for mode in [PER_ACTIVATION, SPATIAL, PERSISTENT] {
                    // SAFETY: descriptors that live.
                    let status = unsafe { cudnnDeriveBNTensorDescriptor(derived.0, x.0, mode) };
                    assert_eq!(status, OK);
                    let kept = |axis| axis == 1 || (mode == PER_ACTIVATION && axis > 0);
                    let wanted = dims.iter().enumerate();
                    let wanted: Vec<_> =
                        wanted.map(|(axis, dim)| if kept(axis) { *dim } else { 1 }).collect();
                    let packed = strides(&wanted, Format::CUDNN_TENSOR_NCHW);
                    assert_eq!(derived.get(), (parameter, wanted, packed), "{mode:?}");
                }
            }
        }
    }
    let (unset, derived) = (Tensor::new(), Tensor::new());
    // SAFETY: descriptors that live, one of them not set.
    assert_eq!(unsafe { cudnnDeriveBNTensorDescriptor(derived.0, unset.0, SPATIAL) }, BAD_PARAM);
}

#[test]
fn four_dimensions_have_calls_of_their_own() {
    is_real();
    let (half, tensor) = (Type::CUDNN_DATA_HALF, Tensor::new());
    // SAFETY: a descriptor that lives.
    let set = |format| unsafe { cudnnSetTensor4dDescriptor(tensor.0, format, half, 2, 8, 5, 7) };
    assert_eq!(set(Format::CUDNN_TENSOR_NCHW), OK);
    assert_eq!(tensor.get(), (half, vec![2, 8, 5, 7], vec![280, 35, 7, 1]));
    assert_eq!(set(Format::CUDNN_TENSOR_NHWC), OK);
    assert_eq!(tensor.get(), (half, vec![2, 8, 5, 7], vec![280, 1, 56, 8]));
    assert_eq!(set(Format::CUDNN_TENSOR_NCHW_VECT_C), BAD_PARAM);
    let float = Type::CUDNN_DATA_FLOAT;
    let mut bytes = 0;
    // SAFETY: a descriptor that lives, and a size that can be written.
    unsafe {
        let status = cudnnSetTensor4dDescriptorEx(tensor.0, float, 2, 8, 5, 7, 1000, 100, 10, 1);
        assert_eq!(status, OK);
        assert_eq!(tensor.get(), (float, vec![2, 8, 5, 7], vec![1000, 100, 10, 1]));
        assert_eq!(cudnnGetTensorSizeInBytes(tensor.0, &mut bytes), OK);
    }
    assert_eq!(bytes, 6988);
}

#[test]
fn activations_and_texts() {
    use cudnnActivationMode_t as Mode;
    is_real();
    let nan = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
    let activation = Activation::new(Mode::CUDNN_ACTIVATION_CLIPPED_RELU, nan);
    let (mut mode, mut propagation) =
        (Mode::CUDNN_ACTIVATION_SIGMOID, cudnnNanPropagation_t::CUDNN_NOT_PROPAGATE_NAN);
    let mut coefficient = 1.0;
    // SAFETY: a descriptor that lives, and values that can be written.
    let status = unsafe {
        cudnnGetActivationDescriptor(activation.0, &mut mode, &mut propagation, &mut coefficient)
    };
    assert_eq!(status, OK);
    assert_eq!((mode, propagation), (Mode::CUDNN_ACTIVATION_CLIPPED_RELU, nan));
    assert_eq!(coefficient, 0.0);
    for (status, name) in [
        (OK, "CUDNN_STATUS_SUCCESS"),
        (BAD_PARAM, "CUDNN_STATUS_BAD_PARAM"),
        (sys::cudnnStatus_t::CUDNN_STATUS_RUNTIME_FP_OVERFLOW, "CUDNN_STATUS_RUNTIME_FP_OVERFLOW"),
        (
            sys::cudnnStatus_t::CUDNN_STATUS_EXECUTION_FAILED_CURAND,
            "CUDNN_STATUS_EXECUTION_FAILED_CURAND",
        ),
    ] {
        // SAFETY: a constant of the library.
        let text = unsafe { std::ffi::CStr::from_ptr(cudnnGetErrorString(status)) };
        assert_eq!(text.to_str().unwrap(), name);
    }
    // SAFETY: null is no descriptor to destroy.
    unsafe {
        assert_eq!(cudnnDestroyTensorDescriptor(ptr::null_mut()), OK);
        assert_eq!(cudnnDestroyActivationDescriptor(ptr::null_mut()), OK);
    }
}

#[test]
fn versions_agree() {
    is_real();
    let part = |property| {
        let mut value = -1;
        // SAFETY: a value that can be written.
        assert_eq!(unsafe { cudnnGetProperty(property, &mut value) }, OK);
        value as usize
    };
    let [major, minor, patch] = [
        libraryPropertyType_t::MAJOR_VERSION,
        libraryPropertyType_t::MINOR_VERSION,
        libraryPropertyType_t::PATCH_LEVEL,
    ]
    .map(part);
    // SAFETY: always callable.
    assert_eq!(unsafe { cudnnGetVersion() }, major * 10_000 + minor * 100 + patch);
    assert!(major >= 9);
}

#[test]
fn descriptors_are_counted_and_stale_ones_noticed() {
    if is_real() {
        return; // it crashes
    }
    let tensor = Tensor::new();
    let nan = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
    let activation = Activation::new(cudnnActivationMode_t::CUDNN_ACTIVATION_RELU, nan);
    assert_eq!(cudnn().live().len(), 2);
    let (stale, of_another_kind) = (tensor.0, activation.0);
    drop(tensor);
    // SAFETY: numbers that are noticed to be no tensor descriptors.
    unsafe {
        assert_eq!(cudnnDestroyTensorDescriptor(stale), BAD_PARAM);
        assert_eq!(cudnnDestroyTensorDescriptor(of_another_kind.cast()), BAD_PARAM);
        let mut bytes = 0;
        assert_eq!(cudnnGetTensorSizeInBytes(ptr::null_mut(), &mut bytes), BAD_PARAM);
        assert_eq!(cudnnCreateTensorDescriptor(ptr::null_mut()), BAD_PARAM);
        let float = Type::CUDNN_DATA_FLOAT;
        let null = ptr::null();
        assert_eq!(
            cudnnSetTensorNdDescriptor(activation.0.cast(), float, 4, null, null),
            BAD_PARAM
        );
    }
    let refusals = cudnn().refusals();
    assert!(refusals[0].contains("is no tensor descriptor, or none any more"), "{refusals:?}");
    drop(activation);
    assert_eq!(cudnn().live(), [""; 0]);
}
