//! Order in streams and graphs, what queued work finds, failures that a test asks for.
#![allow(unsafe_code)]

mod common;

use common::{ADD_RELU, At, BN, Handle, Norm, OK, PERSISTENT, RELU, SPATIAL, Status, cudnn, start};
use cudarc::{
    cudnn::sys::{cudnnErrQueryMode_t as Query, cudnnGetLastErrorString, cudnnGetVersion},
    driver::{
        CudaContext, sys::CUgraphInstantiate_flags as Flags, sys::CUstreamCaptureMode as Capture,
    },
};
use half::f16;
use softcuda::{Code, FailurePoint};

const DIMS: [i32; 4] = [2, 4, 3, 2];

#[test]
fn calls_stand_in_the_order_of_their_stream() {
    let (device, stream) = start();
    let mut norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    let mut results = Vec::new();
    for seed in 1..11 {
        device.set_seed(seed);
        for value in 0..3 {
            let x: Vec<f64> = (0..48).map(|i| f64::from((i * (value + 2)) % 11)).collect();
            norm.put(At::X, &x);
            assert_eq!(norm.forward(), OK);
        }
        let zeros = vec![0.0; 48];
        norm.put(At::X, &zeros);
        assert_eq!(norm.backward(), OK);
        results.push((norm.tensor(At::Y), norm.tensor(At::Dx), norm.per_group(At::SavedMean)));
    }
    assert!(results.iter().all(|result| *result == results[0]));
    assert!(results[0].2.iter().all(|mean| *mean > 1.0), "{:?}", results[0].2);
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn a_graph_repeats_a_step() {
    let (device, stream) = start();
    let mut norm = Norm::<f16>::new(&stream, PERSISTENT, ADD_RELU, &DIMS, true);
    norm.make_spaces().unwrap();
    let run = |norm: &Norm<f16>| {
        assert_eq!(norm.forward_ex(), OK);
        assert_eq!(norm.backward_ex(), OK);
    };
    let outcome = |norm: &Norm<f16>| {
        let tensors = [At::Y, At::Dx, At::Dz].map(|at| norm.tensor(at));
        (tensors, [At::RunningMean, At::RunningVar].map(|at| norm.per_group(at)))
    };
    let before = norm.per_group(At::RunningMean);
    stream.begin_capture(Capture::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    run(&norm);
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(norm.per_group(At::RunningMean), before, "a capture does nothing");
    let x: Vec<f64> = (0..48).map(|i| f64::from(i * 7 % 13) / 4.0).collect();
    norm.put(At::X, &x);
    graph.launch().unwrap();
    graph.launch().unwrap();
    let replayed = outcome(&norm);

    let mut other = Norm::<f16>::new(&stream, PERSISTENT, ADD_RELU, &DIMS, true);
    other.make_spaces().unwrap();
    other.put(At::X, &x);
    run(&other);
    run(&other);
    assert_eq!(outcome(&other), replayed);
    graph.launch().unwrap();
    drop(norm); // waits for the graph
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.refusals(), [""; 0]);
    drop((graph, other));
    assert_eq!(cudnn().live(), [""; 0]);
    drop(stream);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
fn an_overflow_of_the_persistent_mode_is_told_once() {
    let (_device, stream) = start();
    let overflow = Status::CUDNN_STATUS_RUNTIME_FP_OVERFLOW;
    let mut norm = Norm::<f32>::new(&stream, PERSISTENT, BN, &DIMS, false);
    let large: Vec<f64> = (0..48).map(|i| if i % 2 == 0 { 1e30 } else { -1e30 }).collect();
    norm.put(At::X, &large);
    stream.synchronize().unwrap();
    assert_eq!(norm.forward(), OK);
    // The work is queued, and nobody has waited for it.
    assert_eq!(norm.runtime_error(Query::CUDNN_ERRQUERY_RAWCODE), OK);
    let in_progress = norm.runtime_error(Query::CUDNN_ERRQUERY_NONBLOCKING);
    assert_eq!(in_progress, Status::CUDNN_STATUS_RUNTIME_IN_PROGRESS);
    assert_eq!(norm.runtime_error(Query::CUDNN_ERRQUERY_BLOCKING), overflow);
    assert_eq!(norm.runtime_error(Query::CUDNN_ERRQUERY_BLOCKING), OK);
    assert!(norm.tensor(At::Y).iter().all(|y| y.is_nan()));
    // Not so in the spatial mode, nor for NHWC.
    for (mode, nhwc) in [(SPATIAL, false), (PERSISTENT, true)] {
        let mut norm = Norm::<f32>::new(&stream, mode, BN, &DIMS, nhwc);
        norm.put(At::X, &large);
        assert_eq!(norm.forward(), OK);
        assert_eq!(norm.runtime_error(Query::CUDNN_ERRQUERY_BLOCKING), OK);
        assert!(norm.tensor(At::Y).iter().all(|y| y.is_finite()));
    }
    let norm = Norm::<f32>::new(&stream, PERSISTENT, BN, &DIMS, false);
    assert_eq!(norm.forward(), OK);
    assert_eq!(norm.runtime_error(Query::CUDNN_ERRQUERY_BLOCKING), OK);
}

#[test]
fn a_reserve_space_or_y_that_is_not_the_forwards_is_noticed() {
    let (_device, stream) = start();
    for ops in [BN, RELU] {
        let mut norm = Norm::<f16>::new(&stream, PERSISTENT, ops, &DIMS, true);
        norm.make_spaces().unwrap();
        assert_eq!(norm.forward_ex(), OK);
        norm.spoil_reserve();
        assert_eq!(norm.backward_ex(), OK);
        assert!(norm.tensor(At::Dx).iter().all(|dx| dx.is_nan()));
    }
    let faults = cudnn().faults();
    assert!(faults.len() == 2 && faults[1].contains("not that of a forward like this"));
    cudnn().reset();
    let mut norm = Norm::<f16>::new(&stream, PERSISTENT, RELU, &DIMS, true);
    norm.make_spaces().unwrap();
    assert_eq!(norm.forward_ex(), OK);
    let swapped: Vec<_> = norm.tensor(At::Y).iter().map(|y| f64::from(*y == 0.0)).collect();
    norm.put(At::Y, &swapped);
    assert_eq!(norm.backward_ex(), OK);
    stream.synchronize().unwrap();
    assert!(cudnn().faults()[0].contains("y is not what the forward"), "{:?}", cudnn().faults());
}

#[test]
fn what_no_forward_has_written_cannot_be_read() {
    let (device, stream) = start();
    let mut norm = Norm::<f16>::new(&stream, PERSISTENT, RELU, &DIMS, true);
    norm.make_spaces().unwrap();
    assert_eq!(norm.backward_ex(), OK);
    stream.synchronize().unwrap_err();
    assert!(device.faults()[0].contains("were never written"), "{:?}", device.faults());
}

#[test]
fn calls_fail_as_a_test_asks() {
    let (device, stream) = start();
    let norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    cudnn().fail("cudnnBatchNormalizationBackward", 1, 5000);
    assert_eq!([norm.forward(), norm.backward()], [OK; 2]);
    assert_eq!(norm.backward(), Status::CUDNN_STATUS_EXECUTION_FAILED);
    assert_eq!(norm.backward(), OK);
    let no_memory = Status::CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
    cudnn().fail("cudnnBatchNormalizationForwardTraining", 0, no_memory as u32);
    assert_eq!(norm.forward(), no_memory);
    assert_eq!(cudnn().refusals(), [""; 0]);
    // A copy that the driver refuses, and one whose failure comes later.
    device.fail(FailurePoint::Copy, 1, Code::InvalidValue);
    assert_eq!(norm.forward(), Status::CUDNN_STATUS_EXECUTION_FAILED);
    let mut text = [0; 64];
    // SAFETY: there is room for 64 bytes.
    unsafe { cudnnGetLastErrorString(text.as_mut_ptr(), text.len()) };
    // SAFETY: it ends in 0.
    let text = unsafe { std::ffi::CStr::from_ptr(text.as_ptr()) }.to_str().unwrap();
    assert!(text.starts_with("cudnnBatchNormalizationForwardTraining: cuMemcpy"), "{text}");
    assert_eq!(norm.forward(), OK);
    stream.synchronize().unwrap();
    let thread = std::thread::spawn(|| cudnn().refusals());
    assert_eq!(thread.join().unwrap(), [""; 0], "another thread's");
}

#[test]
#[should_panic(expected = "7 is no failure")]
fn a_status_that_does_not_exist_cannot_be_asked_for() {
    cudnn().fail("cudnnCreate", 0, 7);
}

#[test]
fn a_poisoned_context_ends_without_a_crash() {
    let (device, stream) = start();
    let mut norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    // SAFETY: that it was never written is the test.
    let unwritten = unsafe { stream.alloc::<f32>(48) }.unwrap();
    norm.at[At::X as usize] = {
        use cudarc::driver::DevicePtr;
        unwritten.device_ptr(&stream).0
    };
    assert_eq!(norm.forward(), OK);
    stream.synchronize().unwrap_err();
    assert_eq!(norm.forward(), Status::CUDNN_STATUS_BAD_PARAM, "the context is of no use");
    drop((norm, unwritten));
    assert_eq!(cudnn().live(), [""; 0]);
    drop(stream);
    let (_, stream) = (device, CudaContext::new(0).unwrap().new_stream().unwrap());
    let norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    assert_eq!(norm.forward(), OK);
}

#[test]
fn handles_and_versions() {
    let (device, stream) = start();
    let handle = Handle::new(&stream);
    assert_eq!(cudnn().live().len(), 1);
    drop(handle);
    assert_eq!(cudnn().live(), [""; 0]);
    drop(stream);
    assert_eq!(device.leaks(), [""; 0]);
    // SAFETY: always callable.
    let version = || unsafe { cudnnGetVersion() };
    assert_eq!(version(), 92_100);
}
