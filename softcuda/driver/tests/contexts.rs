//! Contexts: current ones, failed ones, ended ones; and what devices say about themselves.
#![allow(unsafe_code)]

mod common;

use std::{ffi::CStr, sync::Arc};

use common::{code, device, softcuda};
use cudarc::driver::{
    CudaContext, DriverError, result, sys, sys::CUdevice_attribute as Attribute, sys::CUresult,
};
use softcuda::PROFILES;

/// Fails the work of a context: what was never written is read.
fn fail(context: &Arc<CudaContext>) -> CUresult {
    let stream = context.default_stream();
    // SAFETY: that it is not written is what makes it fail.
    let x = unsafe { stream.alloc::<u8>(16) }.unwrap();
    code(stream.clone_dtoh(&x))
}

#[test]
fn each_ordinal_is_a_profile() {
    let softcuda = softcuda();
    assert_eq!(CudaContext::device_count().unwrap() as usize, PROFILES.len());
    for (ordinal, profile) in PROFILES.iter().enumerate() {
        let _device = softcuda.exclusive(ordinal);
        let context = CudaContext::new(ordinal).unwrap();
        let attribute = |attribute| context.attribute(attribute).unwrap() as u32;
        assert_eq!(context.name().unwrap(), format!("softcuda {}", profile.name));
        let (major, minor) = context.compute_capability().unwrap();
        assert_eq!((major as u32, minor as u32), profile.capability);
        assert_eq!(context.total_mem().unwrap() as u64, profile.memory);
        assert_eq!(context.has_async_alloc(), profile.pools);
        assert_eq!(
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            profile.multiprocessors
        );
        assert_eq!(
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            profile.shared_per_block_optin
        );
        assert_eq!(
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK),
            profile.shared_per_block_optin.min(48 << 10)
        );
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH), 1);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH), 0);
        assert_eq!(softcuda::ordinal(profile.name), Some(ordinal));
    }
    let uuids: Vec<_> = (0..PROFILES.len()).map(|i| result::device::get_uuid(i as i32)).collect();
    assert!((1..uuids.len()).all(|i| uuids[i].unwrap() != uuids[i - 1].unwrap()));
    assert_eq!(code(CudaContext::new(PROFILES.len())), CUresult::CUDA_ERROR_INVALID_DEVICE);
}

#[test]
fn failed_work_makes_its_context_unusable() {
    let softcuda = softcuda();
    let (device, other) = (softcuda.exclusive(0), softcuda.exclusive(5));
    let context = CudaContext::new(0).unwrap();
    let untouched = CudaContext::new(5).unwrap();
    let stream = context.default_stream();
    let x = stream.alloc_zeros::<u8>(16).unwrap();
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    assert_eq!(fail(&context), failed);
    context.check_err().unwrap_err();
    for again in [
        code(stream.alloc_zeros::<u8>(16)),
        code(stream.clone_dtoh(&x)),
        code(context.synchronize()),
        code(stream.synchronize()),
        code(context.new_event(None)),
        code(context.new_stream()),
        code(context.mem_get_info()),
    ] {
        assert_eq!(again, failed);
    }
    assert_eq!(device.faults().len(), 1);
    let alive = untouched.default_stream().clone_htod(&[1u8]).unwrap();
    assert_eq!(untouched.default_stream().clone_dtoh(&alive).unwrap(), [1]);
    assert_eq!(other.faults(), [""; 0]);
    drop(alive);
    drop((x, stream));
    drop(context);
    // The last holder is gone, and so is the failure.
    let context = CudaContext::new(0).unwrap();
    let y = context.default_stream().clone_htod(&[2u8]).unwrap();
    assert_eq!(context.default_stream().clone_dtoh(&y).unwrap(), [2]);
    drop((y, context));
    assert_eq!(device.leaks(), [""; 0]);
    assert_eq!(device.used(), 0);
}

#[test]
fn a_reset_ends_a_failed_context_too() {
    let (device, context) = device(0);
    assert_eq!(fail(&context), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    // SAFETY: the old context is not used any more, but for being told so.
    unsafe {
        sys::cuDevicePrimaryCtxReset_v2(0).result().unwrap();
        let fresh = result::primary_ctx::retain(0).unwrap();
        assert_ne!(fresh, context.cu_ctx());
        result::ctx::set_current(fresh).unwrap();
        let x = result::malloc_sync(16).unwrap();
        result::free_sync(x).unwrap();
        // The new context's only holder is `context` now, which releases by device.
    }
    drop(context);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn what_is_left_at_the_end_is_told() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let kept = stream.alloc_zeros::<u8>(100).unwrap();
    kept.leak();
    let freed = stream.alloc_zeros::<u8>(200).unwrap();
    drop(freed);
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    drop(stream);
    assert_eq!(device.leaks(), [""; 0], "not before the end");
    drop(context);
    let leaks = device.leaks();
    assert_eq!(leaks.len(), 2, "{leaks:?}");
    assert!(leaks[0].contains("100 bytes at 0x") && leaks[0].contains("cuMemAllocAsync"));
    assert!(leaks[1].ends_with("1 streams"), "{leaks:?}");
    assert_eq!(device.used(), 0, "told, and gone");
}

#[test]
fn contexts_are_current_on_a_stack_of_each_thread() {
    let softcuda = softcuda();
    let (_zero, _mini) = (softcuda.exclusive(0), softcuda.exclusive(5));
    let (a, b) = (CudaContext::new(0).unwrap(), CudaContext::new(5).unwrap());
    assert_eq!(result::ctx::get_current().unwrap(), Some(b.cu_ctx()));
    // SAFETY: contexts that live, and valid pointers.
    unsafe {
        sys::cuCtxPushCurrent_v2(a.cu_ctx()).result().unwrap();
        let mut device = -1;
        sys::cuCtxGetDevice(&mut device).result().unwrap();
        assert_eq!(device, 0);
        let mut popped = std::ptr::null_mut();
        sys::cuCtxPopCurrent_v2(&mut popped).result().unwrap();
        assert_eq!(popped, a.cu_ctx());
        assert_eq!(result::ctx::get_current().unwrap(), Some(b.cu_ctx()));
        let elsewhere = std::thread::spawn(|| result::ctx::get_current().unwrap().is_none());
        assert!(elsewhere.join().unwrap());
        result::ctx::set_current(std::ptr::null_mut()).unwrap();
        let without = code(result::malloc_sync(16));
        assert_eq!(without, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(
            code(result::ctx::set_current(0xdead as sys::CUcontext)),
            CUresult::CUDA_ERROR_INVALID_CONTEXT
        );
    }
}

#[test]
fn a_context_of_its_own_is_destroyed_by_hand() {
    let (device, primary) = device(0);
    let mut raw = std::ptr::null_mut();
    // SAFETY: a valid pointer, and no parameters.
    unsafe { sys::cuCtxCreate_v4(&mut raw, std::ptr::null_mut(), 0, 0) }.result().unwrap();
    assert_ne!(raw, primary.cu_ctx());
    // SAFETY: handed over.
    let context = unsafe { CudaContext::from_raw_context(0, 0, raw) }.unwrap();
    let x = context.default_stream().clone_htod(&[1u32]).unwrap();
    assert_eq!(context.default_stream().clone_dtoh(&x).unwrap(), [1]);
    drop(x);
    drop(context);
    assert_eq!(code(primary.synchronize()), CUresult::CUDA_SUCCESS);
    // SAFETY: refused.
    let refused = unsafe { sys::cuCtxDestroy_v2(primary.cu_ctx()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_CONTEXT);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn limits_and_preferences_are_kept() {
    let (_device, context) = device(0);
    let stack = sys::CUlimit::CU_LIMIT_STACK_SIZE;
    context.set_limit(stack, 4096).unwrap();
    assert_eq!(context.get_limit(stack).unwrap(), 4096);
    let unknown = sys::CUlimit::CU_LIMIT_PERSISTING_L2_CACHE_SIZE;
    assert_eq!(code(context.get_limit(unknown)), CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT);
    let shared = sys::CUfunc_cache::CU_FUNC_CACHE_PREFER_SHARED;
    context.set_cache_config(shared).unwrap();
    assert_eq!(context.get_cache_config().unwrap(), shared);
    context.set_blocking_synchronize().unwrap();
    drop(cudarc::driver::Profiler::new().unwrap());
}

#[test]
fn errors_have_names() {
    softcuda();
    let error = DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.error_string().unwrap(), c"an illegal memory access was encountered");
    let mut text = c"".as_ptr();
    let unknown = CUresult::CUDA_ERROR_GRAPH_RECAPTURE_FAILURE;
    // SAFETY: the pointer is valid.
    let answer = unsafe { sys::cuGetErrorName(unknown, &mut text) };
    assert_eq!((answer, text.is_null()), (CUresult::CUDA_ERROR_INVALID_VALUE, true));
    // Codes are spelt as cudarc spells them.
    for number in 0..1000 {
        if let Some(code) = softcuda::Code::from_number(number) {
            assert!(code.name().to_str().unwrap().starts_with("CUDA_"));
            let _: &CStr = code.description();
        }
    }
}
