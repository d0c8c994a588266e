//! Allocation, copies and fills through cudarc.
#![allow(unsafe_code)]

mod common;

use common::{code, device, softcuda};
use cudarc::driver::{CudaContext, result, sys, sys::CUresult};
use softcuda::{Code, FailurePoint};

const POOLS: usize = 0;
const NO_POOLS: usize = 3;
const TINY: usize = 4;

#[test]
fn what_is_copied_to_the_device_comes_back() {
    for ordinal in [POOLS, NO_POOLS] {
        let (device, context) = device(ordinal);
        assert_eq!(context.has_async_alloc(), ordinal == POOLS);
        let stream = context.default_stream();
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let mut x = stream.clone_htod(&values).unwrap();
        let y = stream.clone_dtod(&x).unwrap();
        stream.memset_zeros(&mut x.slice_mut(10..20)).unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), values);
        let mut expected = values.clone();
        expected[10..20].fill(0.0);
        assert_eq!(stream.clone_dtoh(&x).unwrap(), expected);
        assert_eq!(stream.clone_dtoh(&x.slice(5..12)).unwrap(), expected[5..12]);
        drop((x, y));
        context.synchronize().unwrap();
        assert_eq!(device.used(), 0);
        assert_eq!(device.faults(), [""; 0]);
    }
}

#[test]
fn synchronous_calls_and_wide_fills() {
    let (_device, context) = device(POOLS);
    context.bind_to_thread().unwrap();
    // SAFETY: the memory is allocated here, of that size, and freed once.
    unsafe {
        let x = result::malloc_sync(16).unwrap();
        result::memcpy_htod_sync(x, &[1u32, 2, 3, 4]).unwrap();
        sys::cuMemsetD16_v2(x, 0xabcd, 2).result().unwrap();
        sys::cuMemsetD32_v2(x + 4, 0x0102_0304, 1).result().unwrap();
        result::memset_d8_sync(x + 8, 0xff, 2).unwrap();
        result::memcpy_dtod_sync(x + 12, x, 4).unwrap();
        let mut back = [0u32; 4];
        result::memcpy_dtoh_sync(&mut back, x).unwrap();
        assert_eq!(back, [0xabcd_abcd, 0x0102_0304, 0xffff, 0xabcd_abcd]);
        assert_eq!(
            sys::cuMemsetD32_v2(x + 2, 0, 1).result(),
            Err(result::DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)),
            "not aligned"
        );
        result::free_sync(x).unwrap();
    }
}

#[test]
fn free_memory_is_counted_and_comes_to_an_end() {
    let (_device, context) = device(TINY);
    let stream = context.default_stream();
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!((free, total), (4 << 20, 4 << 20));
    assert_eq!(context.total_mem().unwrap(), total);
    let x = stream.alloc_zeros::<u8>(3 << 20).unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, 1 << 20);
    assert_eq!(code(stream.alloc_zeros::<u8>((1 << 20) + 1)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let y = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    assert_eq!(code(stream.alloc_zeros::<u8>(1)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    drop(x);
    // Its free is queued, and done now that memory is wanted.
    let z = stream.alloc_zeros::<u8>(2 << 20).unwrap();
    drop((y, z));
    context.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, total);
}

#[test]
fn no_bytes_are_no_allocation() {
    let (_device, context) = device(POOLS);
    let stream = context.default_stream();
    let nothing = stream.null::<f32>().unwrap();
    assert_eq!(stream.clone_dtoh(&nothing).unwrap(), [0.0; 0]);
    drop(nothing);
    context.check_err().unwrap();
    let (_device, context) = common::device(NO_POOLS);
    assert_eq!(code(context.default_stream().null::<f32>()), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn what_was_never_written_cannot_be_read() {
    let (device, context) = device(POOLS);
    let stream = context.default_stream();
    // SAFETY: that it is not written is what is tested.
    let mut x = unsafe { stream.alloc::<u8>(16) }.unwrap();
    stream.memcpy_htod(&[7; 10], &mut x).unwrap();
    assert_eq!(stream.clone_dtoh(&x.slice(..10)).unwrap(), [7; 10]);
    assert_eq!(code(stream.clone_dtoh(&x)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    let faults = device.faults();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("6 of 16 bytes read were never written"), "{}", faults[0]);
    assert!(faults[0].contains("byte 10 of an allocation of 16 bytes"), "{}", faults[0]);
}

#[test]
fn what_lies_outside_is_refused() {
    let (device, context) = device(POOLS);
    let stream = context.default_stream();
    let x = stream.alloc_zeros::<u8>(16).unwrap();
    let raw = stream.cu_stream();
    let pointer = x.leak();
    // SAFETY: the driver is to refuse what is out of bounds; the memory is freed once.
    unsafe {
        let mut back = [0u8; 17];
        let outside = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(code(result::memcpy_dtoh_async(&mut back, pointer, raw)), outside);
        assert_eq!(code(result::memcpy_htod_async(pointer + 1, &[0u8; 16], raw)), outside);
        assert_eq!(code(result::memset_d8_async(pointer - 1, 0, 1, raw)), outside);
        assert_eq!(code(result::memcpy_dtod_async(pointer, pointer + 8, 9, raw)), outside);
        assert_eq!(code(result::memset_d8_async(0, 0, 1, raw)), outside);
        assert!(device.refusals()[0].contains("17 bytes at"), "{:?}", device.refusals());
        assert_eq!(code(result::free_async(pointer + 1, raw)), outside);
        result::free_async(pointer, raw).unwrap();
        assert_eq!(code(result::free_async(pointer, raw)), outside, "a second time");
        assert_eq!(code(result::memset_d8_async(pointer, 0, 1, raw)), outside, "after the free");
        assert!(device.refusals().last().unwrap().contains("it has been freed"));
        context.synchronize().unwrap();
        assert_eq!(code(result::free_async(pointer, raw)), outside, "long after");
    }
    assert_eq!(device.faults(), [""; 0], "none of it poisons the context");
}

#[test]
fn each_kind_of_allocation_has_its_own_free() {
    let (_device, context) = device(POOLS);
    let stream = context.default_stream();
    // SAFETY: each allocation is freed once in the end.
    unsafe {
        let x = result::malloc_sync(16).unwrap();
        let wrong = result::free_async(x, stream.cu_stream());
        assert_eq!(code(wrong), CUresult::CUDA_ERROR_INVALID_VALUE);
        result::free_sync(x).unwrap();
        let y = result::malloc_async(stream.cu_stream(), 16).unwrap();
        result::free_sync(y).unwrap();
    }
    let (_device, context) = common::device(NO_POOLS);
    // SAFETY: nothing is allocated.
    let refused = unsafe { result::malloc_async(context.default_stream().cu_stream(), 16) };
    assert_eq!(code(refused), CUresult::CUDA_ERROR_NOT_SUPPORTED);
}

#[test]
fn pageable_memory_is_free_when_the_call_returns() {
    let (_device, context) = device(POOLS);
    let stream = context.new_stream().unwrap();
    let mut host = vec![1u32; 100];
    let mut x = stream.clone_htod(&host).unwrap();
    host.fill(2);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1; 100]);
    stream.memcpy_htod(&host, &mut x).unwrap();
    drop(host);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [2; 100]);
}

#[test]
fn pinned_memory_is_read_when_its_stream_comes_to_it() {
    let (device, context) = device(POOLS);
    let stream = context.new_stream().unwrap();
    // SAFETY: filled before it is read.
    let mut host = unsafe { context.alloc_pinned::<u32>(4) }.unwrap();
    host.as_mut_slice().unwrap().fill(1);
    let x = stream.clone_htod(&host).unwrap();
    // cudarc waits here for the copy, and a careless program does not.
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1; 4]);
    let early = host.as_mut_ptr().unwrap();
    let mut y = stream.clone_htod(&host).unwrap();
    // SAFETY: the memory is there; that the copy still reads it is what is tested.
    unsafe { early.write(5) };
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [5, 1, 1, 1], "the copy had not begun");
    stream.memset_zeros(&mut y).unwrap();
    stream.memcpy_dtoh(&y, &mut host).unwrap();
    assert_eq!(host.as_slice().unwrap(), [0; 4]);
    // SAFETY: it is still there, as the free is refused.
    unsafe {
        let pointer = host.as_mut_ptr().unwrap();
        stream.memcpy_dtoh(&y, &mut host).unwrap();
        let refused = result::free_host(pointer.cast());
        assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_VALUE, "a copy has yet to use it");
    }
    drop(host);
    context.check_err().unwrap();
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn memory_of_another_device_can_be_copied() {
    let softcuda = softcuda();
    let (_zero, _mini) = (softcuda.exclusive(POOLS), softcuda.exclusive(5));
    let (a, b) = (CudaContext::new(POOLS).unwrap(), CudaContext::new(5).unwrap());
    let x = a.default_stream().clone_htod(&[1u32, 2, 3]).unwrap();
    // Not the null stream: cudarc makes the context of `x` current here, whose null stream is another.
    let stream = b.new_stream().unwrap();
    let y = stream.clone_dtod(&x).unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [1, 2, 3]);
    let mut reachable = 1;
    // SAFETY: the pointer is valid.
    unsafe { sys::cuDeviceCanAccessPeer(&mut reachable, 0, 5) }.result().unwrap();
    assert_eq!(reachable, 0);
}

#[test]
fn pools_count() {
    let (_device, context) = device(POOLS);
    let stream = context.new_stream().unwrap();
    let used = |pool| {
        let mut used = 0u64;
        let out = (&raw mut used).cast();
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        // SAFETY: the attribute is a number of 64 bits.
        unsafe { result::mem_pool::get_attribute(pool, attribute, out) }.unwrap();
        used
    };
    // SAFETY: pools and memory are destroyed once, after their use.
    unsafe {
        let own = result::device::get_default_mem_pool(context.cu_device()).unwrap();
        assert_eq!(result::device::get_mem_pool(context.cu_device()).unwrap(), own);
        let before = used(own);
        let x = stream.alloc_zeros::<u8>(1000).unwrap();
        assert_eq!(used(own), before + 1000);
        drop(x);
        assert_eq!(used(own), before);
        let mut properties: sys::CUmemPoolProps = std::mem::zeroed();
        properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        let pool = result::mem_pool::create(&properties).unwrap();
        let y = result::mem_pool::alloc_async(pool, 64, stream.cu_stream()).unwrap();
        assert_eq!((used(pool), used(own)), (64, before));
        result::free_async(y, stream.cu_stream()).unwrap();
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let (mut set, mut got) = (u64::MAX, 0u64);
        result::mem_pool::set_attribute(pool, threshold, (&raw mut set).cast()).unwrap();
        result::mem_pool::get_attribute(pool, threshold, (&raw mut got).cast()).unwrap();
        assert_eq!(got, u64::MAX);
        result::mem_pool::trim_to(pool, 0).unwrap();
        result::mem_pool::destroy(pool).unwrap();
    }
}

#[test]
fn the_call_that_is_to_fail_fails() {
    let (device, context) = device(POOLS);
    let stream = context.default_stream();
    device.fail(FailurePoint::Allocation, 1, Code::OutOfMemory);
    device.fail(FailurePoint::Copy, 0, Code::InvalidValue);
    // SAFETY: never read.
    let first = unsafe { stream.alloc::<u8>(1) };
    assert!(first.is_ok());
    // SAFETY: never read.
    let second = unsafe { stream.alloc::<u8>(1) };
    assert_eq!(code(second), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // SAFETY: never read.
    let mut third = unsafe { stream.alloc::<u8>(1) }.unwrap();
    assert_eq!(code(stream.memset_zeros(&mut third)), CUresult::CUDA_ERROR_INVALID_VALUE);
    stream.memset_zeros(&mut third).unwrap();
    assert_eq!(stream.clone_dtoh(&third).unwrap(), [0]);
}
