//! Managed memory: one address for host and device, and who may use it when.
#![allow(unsafe_code)]

mod common;

use common::{code, device, shape};
use cudarc::driver::{DevicePtr, PushKernelArg, result, sys, sys::CUresult};

/// Adds 1 to the word at the address that stands at the address it is given.
const CHASE: &str = "
.version 7.8
.target sm_75
.address_size 64
.visible .entry chase(.param .u64 at)
{
    .reg .b32 %r<4>;
    .reg .b64 %d<4>;
    ld.param.u64 %d1, [at];
    ld.global.u64 %d2, [%d1];
    ld.global.u32 %r1, [%d2];
    add.u32 %r1, %r1, 1;
    st.global.u32 [%d2], %r1;
    ret;
}";
/// Shares managed memory with the host at any time, and only where it is attached to the stream at work.
const CONCURRENT: usize = 0;
const EXCLUSIVE: usize = 3;

#[test]
fn host_and_device_see_what_the_other_wrote() {
    let (device, context) = device(CONCURRENT);
    let stream = context.new_stream().unwrap();
    let chase = context.load_module(CHASE.into()).unwrap().load_function("chase").unwrap();
    // SAFETY: any bits are words.
    let (mut word, mut at) = unsafe {
        (
            context.alloc_unified::<u32>(1, true).unwrap(),
            context.alloc_unified::<u64>(1, true).unwrap(),
        )
    };
    assert_eq!(word.as_slice().unwrap(), [0]);
    word.as_mut_slice().unwrap()[0] = 41;
    // A pointer of the host is one of the device.
    at.as_mut_slice().unwrap()[0] = word.as_slice().unwrap().as_ptr().addr() as u64;
    for expected in [42, 43] {
        // SAFETY: the kernel takes the address of an address of a word.
        unsafe { stream.launch_builder(&chase).arg(&mut at).launch(shape(1, 1)) }.unwrap();
        stream.synchronize().unwrap();
        assert_eq!(word.as_slice().unwrap(), [expected]);
    }
    let copied = stream.clone_dtoh(&word).unwrap();
    assert_eq!(copied, [43]);
    stream.memset_zeros(&mut word).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(word.as_slice().unwrap(), [0]);
    word.prefetch().unwrap();
    drop((word, at, chase, stream, context));
    assert_eq!(device.leaks(), [""; 0]);
    assert_eq!((device.faults(), device.refusals()), (vec![], vec![]));
    assert_eq!(device.used(), 0);
}

#[test]
fn work_on_a_part_leaves_the_rest() {
    let (_device, context) = device(CONCURRENT);
    let stream = context.default_stream();
    // SAFETY: any bits are bytes.
    let mut bytes = unsafe { context.alloc_unified::<u8>(100_000, true) }.unwrap();
    bytes.as_mut_slice().unwrap().fill(7);
    stream.memset_zeros(&mut bytes.slice_mut(10..20)).unwrap();
    stream.memset_zeros(&mut bytes.slice_mut(99_990..100_000)).unwrap();
    stream.synchronize().unwrap();
    let host = bytes.as_slice().unwrap();
    for (i, byte) in host.iter().enumerate() {
        let zero = (10..20).contains(&i) || i >= 99_990;
        assert_eq!(*byte, if zero { 0 } else { 7 }, "{i}");
    }
}

#[test]
fn a_device_that_does_not_share_uses_what_is_attached_to_its_stream() {
    let (device, context) = device(EXCLUSIVE);
    let (own, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    context.bind_to_thread().unwrap();
    let chase = context.load_module(CHASE.into()).unwrap().load_function("chase").unwrap();
    // SAFETY: memory of two words, freed below; the calls check it.
    unsafe {
        let host = result::malloc_managed(16, sys::CUmemAttach_flags::CU_MEM_ATTACH_HOST).unwrap();
        *std::ptr::with_exposed_provenance_mut::<u64>(host as usize) = host + 8;
        let launch = |stream: &std::sync::Arc<cudarc::driver::CudaStream>| {
            code(stream.launch_builder(&chase).arg(&host).launch(shape(1, 1)))
        };
        let attach = |stream: &std::sync::Arc<cudarc::driver::CudaStream>, bytes, flags| {
            code(result::stream::attach_mem_async(stream.cu_stream(), host, bytes, flags))
        };
        const SINGLE: sys::CUmemAttach_flags = sys::CUmemAttach_flags::CU_MEM_ATTACH_SINGLE;
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(launch(&own), invalid, "attached to the host");
        assert_eq!(attach(&own, 8, SINGLE), invalid, "a part");
        assert_eq!(attach(&context.default_stream(), 0, SINGLE), invalid, "the null stream");
        assert_eq!(attach(&own, 0, SINGLE), CUresult::CUDA_SUCCESS);
        assert_eq!(launch(&own), CUresult::CUDA_SUCCESS);
        assert_eq!(launch(&other), invalid, "attached to one stream");
        assert_eq!(code(result::memset_d8_async(host, 0, 1, other.cu_stream())), invalid);
        own.synchronize().unwrap();
        assert_eq!(*std::ptr::with_exposed_provenance::<u32>(host as usize + 8), 1);
        attach(&own, 16, sys::CUmemAttach_flags::CU_MEM_ATTACH_GLOBAL);
        assert_eq!(launch(&other), CUresult::CUDA_SUCCESS);
        let refusals = device.refusals();
        for (refusal, says) in refusals.iter().zip([
            "is attached to the host, and this device does not share it",
            "8 bytes of 16: only all can be attached",
            "cannot be attached to the null stream alone",
            "is attached to another stream",
            "is attached to another stream",
        ]) {
            assert!(refusal.contains(says), "{refusal}: {says}");
        }
        assert_eq!(refusals.len(), 5);
        result::memory_free(host).unwrap();
    }
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let (_device, context) = device(CONCURRENT);
    let stream = context.new_stream().unwrap();
    context.bind_to_thread().unwrap();
    let plain = stream.alloc_zeros::<u8>(64).unwrap();
    let address = plain.device_ptr(&stream).0;
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let mut out = 0;
    // SAFETY: `out` can be written; the calls check all else.
    unsafe {
        assert_eq!(sys::cuMemAllocManaged(&mut out, 0, 1), invalid);
        assert_eq!(sys::cuMemAllocManaged(&mut out, 64, 4), invalid);
        assert_eq!(
            sys::cuMemAllocManaged(&mut out, usize::MAX / 2, 1),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY
        );
        assert_eq!(sys::cuStreamAttachMemAsync(stream.cu_stream(), address, 0, 1), invalid);
        assert_eq!(sys::cuStreamAttachMemAsync(stream.cu_stream(), address, 0, 3), invalid);
    }
}
