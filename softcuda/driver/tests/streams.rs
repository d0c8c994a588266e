//! What waits for what, and what happens where nothing does.
#![allow(unsafe_code)]

mod common;

use std::{
    collections::BTreeSet,
    ffi::c_void,
    sync::{Arc, mpsc},
    time::Duration,
};

use common::{code, device};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, result, sys, sys::CUresult};

const SEEDS: std::ops::Range<u64> = 1..21;

/// A copy of `value` to all of `x`, in the order of `stream` and of nothing else.
fn put(stream: &CudaStream, x: &CudaSlice<u32>, value: u32) {
    let pointer = pointer(x);
    // SAFETY: within the allocation.
    unsafe { sys::cuMemsetD32Async(pointer, value, x.len(), stream.cu_stream()) }.result().unwrap();
}

fn pointer(x: &CudaSlice<u32>) -> u64 {
    use cudarc::driver::DevicePtr;
    x.device_ptr(x.stream()).0
}

/// What `program` gives under each of several seeds. It has a fresh context each time, in which cudarc does not keep
/// streams in order by itself.
fn outcomes<T: Ord>(program: impl Fn(&Arc<CudaContext>) -> T) -> BTreeSet<T> {
    let (device, context) = device(0);
    // SAFETY: what is out of order is the program's matter.
    unsafe { context.disable_event_tracking() };
    let run = |seed| {
        device.set_seed(seed);
        program(&context)
    };
    SEEDS.map(run).collect()
}

#[test]
fn streams_that_nothing_orders_go_either_way() {
    let seen = outcomes(|context| {
        let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let x = a.alloc_zeros::<u32>(4).unwrap();
        a.synchronize().unwrap();
        put(&a, &x, 1);
        put(&b, &x, 2);
        context.synchronize().unwrap();
        a.clone_dtoh(&x).unwrap()[0]
    });
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[test]
fn an_event_orders_two_streams() {
    let seen = outcomes(|context| {
        let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let x = a.alloc_zeros::<u32>(4).unwrap();
        put(&a, &x, 1);
        b.wait(&a.record_event(None).unwrap()).unwrap();
        put(&b, &x, 2);
        a.join(&b).unwrap();
        a.clone_dtoh(&x).unwrap()[0]
    });
    assert_eq!(seen, BTreeSet::from([2]));
}

#[test]
fn an_event_stands_for_what_came_before_it() {
    let seen = outcomes(|context| {
        let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let x = a.alloc_zeros::<u32>(4).unwrap();
        let event = a.record_event(None).unwrap();
        b.wait(&event).unwrap();
        put(&a, &x, 1);
        // Recorded anew, too late for the wait above.
        event.record(&a).unwrap();
        let y = b.clone_dtoh(&x).unwrap()[0];
        context.synchronize().unwrap();
        y
    });
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

#[test]
fn the_null_stream_and_blocking_streams_wait_for_each_other() {
    let blocking = |context: &Arc<CudaContext>| {
        let raw = result::stream::create(result::stream::StreamKind::Default).unwrap();
        // SAFETY: a stream of this context, which lives as long as it.
        unsafe { context.wrap_borrowed_stream(raw) }
    };
    let program = |context: &Arc<CudaContext>, other: &CudaStream| {
        let null = context.default_stream();
        let x = null.alloc_zeros::<u32>(4).unwrap();
        put(other, &x, 1);
        put(&null, &x, 2);
        put(other, &x, 3);
        put(&null, &x, 4);
        let seen = null.clone_dtoh(&x).unwrap()[0];
        context.synchronize().unwrap();
        seen
    };
    let seen = outcomes(|context| program(context, &blocking(context)));
    assert_eq!(seen, BTreeSet::from([4]));
    let seen = outcomes(|context| program(context, &context.per_thread_stream()));
    assert_eq!(seen, BTreeSet::from([4]));
    // A non-blocking stream does not wait, so its work may even come before the allocation: separate that.
    let seen = outcomes(|context| {
        let (null, other) = (context.default_stream(), context.new_stream().unwrap());
        let x = null.alloc_zeros::<u32>(4).unwrap();
        null.synchronize().unwrap();
        put(&other, &x, 1);
        put(&null, &x, 2);
        context.synchronize().unwrap();
        null.clone_dtoh(&x).unwrap()[0]
    });
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[test]
fn memory_is_there_only_behind_its_allocation() {
    let (device, _) = device(0);
    let mut failed = 0;
    for seed in SEEDS {
        device.set_seed(seed);
        let context = CudaContext::new(0).unwrap();
        // SAFETY: the missing wait is what is tested.
        unsafe { context.disable_event_tracking() };
        let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        // SAFETY: written before it is read, if at all.
        let x = unsafe { a.alloc::<u32>(4) }.unwrap();
        put(&b, &x, 1);
        let end = code(context.synchronize());
        if end != CUresult::CUDA_SUCCESS {
            assert_eq!(end, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            failed += 1;
        }
    }
    assert!((1..SEEDS.end - SEEDS.start).contains(&failed), "{failed}");
    assert_eq!(device.faults().len() as u64, failed);
    let hint = "are allocated in a stream that it does not wait for";
    assert!(device.faults()[0].contains(hint), "{:?}", device.faults());
}

#[test]
fn what_another_stream_still_uses_cannot_be_freed() {
    let (device, context) = device(0);
    // SAFETY: the missing wait is what is tested.
    unsafe { context.disable_event_tracking() };
    let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let x = a.alloc_zeros::<u32>(4).unwrap();
    b.join(&a).unwrap();
    put(&b, &x, 1);
    let pointer = x.leak();
    // SAFETY: refused the first time.
    unsafe {
        let refused = result::free_async(pointer, a.cu_stream());
        assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(device.refusals()[0].contains("used by a memset in another stream"));
        a.join(&b).unwrap();
        result::free_async(pointer, a.cu_stream()).unwrap();
    }
    context.synchronize().unwrap();
}

#[test]
fn cudarc_keeps_its_slices_in_order_by_itself() {
    let (device, context) = device(0);
    for seed in SEEDS {
        device.set_seed(seed);
        let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let mut x = a.clone_htod(&[1u32; 64]).unwrap();
        let y = b.clone_dtod(&x).unwrap();
        a.memset_zeros(&mut x).unwrap();
        b.memcpy_dtod(&y, &mut x).unwrap();
        assert_eq!(a.clone_dtoh(&x).unwrap(), [1; 64]);
        drop((x, y));
        context.synchronize().unwrap();
        context.check_err().unwrap();
    }
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
}

#[test]
fn queries_tell_what_is_left_and_come_to_an_end() {
    let (_device, context) = device(0);
    let stream = context.new_stream().unwrap();
    let event = context.new_event(None).unwrap();
    assert!(event.is_complete(), "never recorded");
    let x = stream.alloc_zeros::<u32>(4).unwrap();
    put(&stream, &x, 1);
    event.record(&stream).unwrap();
    assert_eq!(event.try_is_complete(), Ok(false));
    let mut queries = 1;
    while !event.try_is_complete().unwrap() {
        queries += 1;
    }
    assert!(queries <= 3, "{queries}");
    // SAFETY: a stream that lives.
    assert_eq!(unsafe { sys::cuStreamQuery(stream.cu_stream()) }, CUresult::CUDA_SUCCESS);
}

#[test]
fn no_time_passes() {
    let (_device, context) = device(0);
    let stream = context.default_stream();
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = stream.record_event(flags).unwrap();
    let x = stream.alloc_zeros::<u32>(1 << 20).unwrap();
    let end = stream.record_event(flags).unwrap();
    // SAFETY: events that live.
    let early = unsafe { result::event::elapsed(start.cu_event(), end.cu_event()) };
    assert_eq!(code(early), CUresult::CUDA_ERROR_NOT_READY);
    assert_eq!(start.elapsed_ms(&end).unwrap(), 0.0);
    let untimed = stream.record_event(None).unwrap();
    assert_eq!(code(start.elapsed_ms(&untimed)), CUresult::CUDA_ERROR_INVALID_HANDLE);
    drop(x);
}

#[test]
fn priorities_are_clamped_to_their_range() {
    let (_device, context) = device(0);
    assert_eq!(result::stream::get_priority_range().unwrap(), (0, -5));
    for (asked, given) in [(-3, -3), (-100, -5), (7, 0)] {
        let stream = context.new_stream_with_priority(asked).unwrap();
        let mut priority = 1;
        // SAFETY: the pointer is valid.
        unsafe { sys::cuStreamGetPriority(stream.cu_stream(), &mut priority) }.result().unwrap();
        assert_eq!(priority, given);
    }
}

#[test]
fn handles_of_nothing_are_refused() {
    let (_device, context) = device(0);
    let stream = context.new_stream().unwrap();
    let raw = stream.cu_stream();
    drop(stream);
    let invalid = CUresult::CUDA_ERROR_INVALID_HANDLE;
    // SAFETY: handles are numbers here, which are looked up and never followed.
    unsafe {
        assert_eq!(code(result::stream::synchronize(raw)), invalid);
        assert_eq!(code(result::stream::destroy(raw)), invalid);
        assert_eq!(code(result::event::synchronize(raw.cast())), invalid);
        let event = context.new_event(None).unwrap();
        assert_eq!(code(result::stream::synchronize(event.cu_event().cast())), invalid);
    }
}

struct Job {
    release: mpsc::Receiver<()>,
    called: CUresult,
}

/// Waits for the test, and tries a call, which is not allowed here.
unsafe extern "C" fn job(data: *mut c_void) {
    // SAFETY: what the test gave, which waits until this is done.
    let job = unsafe { &mut *data.cast::<Job>() };
    job.release.recv_timeout(Duration::from_secs(30)).unwrap();
    // SAFETY: a call without pointers.
    job.called = unsafe { sys::cuCtxSynchronize() };
}

#[test]
fn a_function_of_the_host_runs_in_the_order_of_its_stream() {
    let (_device, context) = device(0);
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (sender, release) = mpsc::channel();
    let mut data = Job { release, called: CUresult::CUDA_SUCCESS };
    // SAFETY: the data outlives the call, as the stream is waited for below.
    unsafe {
        result::stream::launch_host_function(stream.cu_stream(), job, (&raw mut data).cast())
    }
    .unwrap();
    let event = stream.record_event(None).unwrap();
    assert!(!event.is_complete());
    // The driver is not locked while it runs.
    let x = other.clone_htod(&[1u32]).unwrap();
    assert_eq!(other.clone_dtoh(&x).unwrap(), [1]);
    assert!(!event.is_complete());
    sender.send(()).unwrap();
    stream.synchronize().unwrap();
    assert!(event.is_complete());
    assert_eq!(data.called, CUresult::CUDA_ERROR_NOT_PERMITTED);
}
