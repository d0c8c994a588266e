//! Stream capture and graphs, without kernels.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::{code, device};
use cudarc::driver::{
    CudaContext, CudaGraph, CudaStream, result, sys, sys::CUgraphInstantiate_flags as Flags,
    sys::CUresult, sys::CUstreamCaptureMode as Mode, sys::CUstreamCaptureStatus as Status,
};

const MODE: Mode = Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// A context in which cudarc adds no events of its own, and a stream of it.
fn start() -> (softcuda::Exclusive, Arc<CudaContext>, Arc<CudaStream>) {
    let (device, context) = device(0);
    // SAFETY: each test keeps its own order.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (device, context, stream)
}

fn capture(stream: &Arc<CudaStream>, work: impl FnOnce()) -> CudaGraph {
    stream.begin_capture(MODE).unwrap();
    work();
    stream.end_capture(Flags(0)).unwrap().unwrap()
}

#[test]
fn a_graph_repeats_what_was_captured() {
    let (device, _context, stream) = start();
    let mut x = stream.clone_htod(&[1u32; 4]).unwrap();
    let mut y = stream.clone_htod(&[5u32; 4]).unwrap();
    let graph = capture(&stream, || {
        stream.memcpy_dtod(&y, &mut x).unwrap();
        stream.memset_zeros(&mut y.slice_mut(..2)).unwrap();
    });
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [1; 4], "a capture does nothing");
    graph.upload().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0, 0, 5, 5]);
    stream.memcpy_htod(&[7; 4], &mut y).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [7; 4]);
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn other_streams_join_a_capture_by_events() {
    let (device, context, stream) = start();
    let other = context.new_stream().unwrap();
    let mut x = stream.alloc_zeros::<u32>(4).unwrap();
    let mut y = stream.clone_htod(&[1u32; 4]).unwrap();
    stream.synchronize().unwrap();
    let graph = capture(&stream, || {
        other.join(&stream).unwrap();
        assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE);
        other.memcpy_dtod(&y, &mut x).unwrap();
        stream.join(&other).unwrap();
        stream.memset_zeros(&mut y).unwrap();
    });
    assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    for seed in 1..10 {
        device.set_seed(seed);
        stream.memcpy_htod(&[seed as u32; 4], &mut y).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [seed as u32; 4]);
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [0; 4]);
    }
}

#[test]
fn work_that_is_not_joined_is_an_error() {
    let (_device, context, stream) = start();
    let other = context.new_stream().unwrap();
    let mut x = stream.alloc_zeros::<u32>(4).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    other.join(&stream).unwrap();
    other.memset_zeros(&mut x).unwrap();
    let end = stream.end_capture(Flags(0));
    assert_eq!(code(end), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    assert_eq!(other.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_NONE);
    other.memset_zeros(&mut x).unwrap();
    context.synchronize().unwrap();
}

/// Does something forbidden in a capture: it gives `error`, and the capture is lost.
#[track_caller]
fn loses_the_capture(stream: &Arc<CudaStream>, error: CUresult, f: impl FnOnce() -> CUresult) {
    stream.begin_capture(MODE).unwrap();
    assert_eq!(f(), error);
    let status = stream.capture_status().unwrap();
    assert_eq!(status, Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    let end = stream.end_capture(Flags(0));
    assert_eq!(code(end), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn what_a_capture_forbids_ends_it() {
    let (device, context, stream) = start();
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let mut x = stream.alloc_zeros::<u32>(4).unwrap();
    let outside = stream.record_event(None).unwrap();
    loses_the_capture(&stream, unsupported, || code(stream.synchronize()));
    loses_the_capture(&stream, unsupported, || code(context.synchronize()));
    // SAFETY: nothing is allocated.
    loses_the_capture(&stream, unsupported, || code(unsafe { result::malloc_sync(16) }));
    let isolation = CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    loses_the_capture(&stream, isolation, || code(stream.wait(&outside)));
    loses_the_capture(&stream, unsupported, || code(stream.memcpy_htod(&[1; 4], &mut x)));
    assert!(device.refusals()[0].contains("page-locked memory only"), "{:?}", device.refusals());
    loses_the_capture(&stream, CUresult::CUDA_ERROR_CAPTURED_EVENT, || {
        let event = stream.record_event(None).unwrap();
        code(event.synchronize())
    });
    let null = context.default_stream().begin_capture(MODE);
    assert_eq!(code(null), unsupported);
    let never = stream.end_capture(Flags(0));
    assert_eq!(code(never), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    stream.begin_capture(MODE).unwrap();
    assert_eq!(code(stream.begin_capture(MODE)), CUresult::CUDA_ERROR_ILLEGAL_STATE);
    assert!(stream.end_capture(Flags(0)).unwrap().is_some());
    assert_eq!(code(context.synchronize()), CUresult::CUDA_SUCCESS);
}

#[test]
fn the_null_stream_must_not_wait_for_a_capture() {
    let (_device, context, _) = start();
    let mut x = context.default_stream().alloc_zeros::<u32>(4).unwrap();
    let raw = result::stream::create(result::stream::StreamKind::Default).unwrap();
    // SAFETY: a stream of this context, destroyed after its last use.
    let blocking = unsafe { context.wrap_borrowed_stream(raw) };
    let implicit = CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    loses_the_capture(&blocking, implicit, || code(context.default_stream().memset_zeros(&mut x)));
    // SAFETY: as said above.
    unsafe { result::stream::destroy(raw) }.unwrap();
}

#[test]
fn another_thread_cannot_end_a_capture() {
    let (_device, _context, stream) = start();
    stream.begin_capture(MODE).unwrap();
    let other = Arc::clone(&stream);
    let end = std::thread::spawn(move || code(other.end_capture(Flags(0)))).join().unwrap();
    assert_eq!(end, CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    assert!(stream.end_capture(Flags(0)).unwrap().is_some());
}

#[test]
fn an_event_of_a_capture_means_nothing_outside() {
    let (_device, context, stream) = start();
    stream.begin_capture(MODE).unwrap();
    let event = stream.record_event(None).unwrap();
    stream.end_capture(Flags(0)).unwrap();
    let captured = CUresult::CUDA_ERROR_CAPTURED_EVENT;
    assert_eq!(code(event.try_is_complete()), captured);
    assert_eq!(code(context.default_stream().wait(&event)), captured);
    event.record(&stream).unwrap();
    assert_eq!(event.try_is_complete(), Ok(true));
}

#[test]
fn a_graph_allocates_and_frees() {
    let (device, context, stream) = start();
    let mut x = stream.alloc_zeros::<u32>(4).unwrap();
    let before = device.used();
    let graph = capture(&stream, || {
        let mut inner = stream.alloc_zeros::<u32>(4).unwrap();
        stream.memset_zeros(&mut inner).unwrap();
        stream.memcpy_dtod(&inner, &mut x).unwrap();
        // Its drop is captured too.
    });
    graph.launch().unwrap();
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    assert_eq!(device.used(), before);
    drop(graph);
    let mut kept = None;
    let graph = capture(&stream, || kept = Some(stream.alloc_zeros::<u32>(4).unwrap()));
    let kept = kept.unwrap();
    assert_eq!(
        code(stream.clone_dtoh(&kept)),
        CUresult::CUDA_ERROR_INVALID_VALUE,
        "the graph has not been launched"
    );
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&kept).unwrap(), [0; 4]);
    assert_eq!(code(graph.launch()), CUresult::CUDA_ERROR_INVALID_VALUE, "still allocated");
    drop(kept);
    graph.launch().unwrap();
    context.synchronize().unwrap();
    assert_eq!(device.used(), before + 256);
    drop((graph, x, stream));
    context.check_err().unwrap();
    drop(context);
    assert_eq!(device.leaks().len(), 1, "{:?}", device.leaks());
    assert!(device.leaks()[0].contains("16 bytes"), "{:?}", device.leaks());
}

#[test]
fn memory_from_outside_is_not_freed_by_a_graph() {
    let (device, _context, stream) = start();
    let x = stream.alloc_zeros::<u32>(4).unwrap().leak();
    stream.begin_capture(MODE).unwrap();
    // SAFETY: refused.
    let refused = unsafe { result::free_async(x, stream.cu_stream()) };
    assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert!(stream.end_capture(Flags(0)).is_err());
    assert!(device.refusals()[0].contains("did not allocate it"));
    // SAFETY: the first free that is not refused.
    unsafe { result::free_async(x, stream.cu_stream()) }.unwrap();
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let (_device, _context, stream) = start();
    stream.begin_capture(MODE).unwrap();
    let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH
        | Flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    assert_eq!(code(stream.end_capture(flags)), CUresult::CUDA_ERROR_INVALID_VALUE);
}

#[test]
fn pinned_memory_can_be_captured() {
    let (_device, context, stream) = start();
    // SAFETY: filled before it is read.
    let mut host = unsafe { context.alloc_pinned::<u32>(4) }.unwrap();
    let mut x = stream.alloc_zeros::<u32>(4).unwrap();
    let pointer = host.as_mut_ptr().unwrap();
    let target = {
        use cudarc::driver::DevicePtrMut;
        x.device_ptr_mut(&stream).0
    };
    let graph = capture(&stream, || {
        // SAFETY: the memory outlives the graph.
        unsafe { sys::cuMemcpyHtoDAsync_v2(target, pointer.cast(), 16, stream.cu_stream()) }
            .result()
            .unwrap();
    });
    for value in [3, 4] {
        host.as_mut_slice().unwrap().fill(value);
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), [value; 4]);
    }
}
