//! What no status can tell, or only after the fact.
#![allow(unsafe_code)]

mod common;

use std::{
    ffi::c_void,
    process::Command,
    sync::mpsc::{Receiver, Sender, channel},
};

use common::{At, BN, Norm, OK, PERSISTENT, RELU, SPATIAL, Status, cudnn, start};
use cudarc::{
    cudnn::sys::{cudnnErrQueryMode_t as Query, cudnnQueryRuntimeError, cudnnSetStream},
    driver::sys::{
        CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Capture, cuLaunchHostFunc,
    },
};
use half::f16;

const DIMS: [i32; 4] = [2, 4, 3, 2];

/// Runs in a copy of this program: launches a graph whose handle is gone.
#[test]
fn child() {
    if std::env::var_os("SOFTCUDNN_TEST_CHILD").is_none() {
        return;
    }
    let (_device, stream) = start();
    let norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    stream.begin_capture(Capture::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(norm.forward(), OK);
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    drop(norm);
    graph.launch().unwrap();
    let _ = stream.synchronize();
    println!("survived");
}

#[test]
fn a_graph_does_not_outlive_its_handle() {
    let mut copy = Command::new(std::env::current_exe().unwrap());
    copy.args(["--exact", "child", "--nocapture"]).env("SOFTCUDNN_TEST_CHILD", "1");
    let output = copy.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("a graph was launched whose handle has been destroyed"), "{told}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("survived"));
}

/// Says that it has come, and waits to be let go.
unsafe extern "C" fn gate(ends: *mut c_void) {
    // SAFETY: the ends that the test has made, and that it keeps until all work is done.
    let (arrived, go) = unsafe { &*ends.cast::<(Sender<()>, Receiver<()>)>() };
    arrived.send(()).unwrap();
    go.recv().unwrap();
}

#[test]
fn two_threads_in_a_call_with_one_handle() {
    let (_device, stream) = start();
    let norm = Norm::<f32>::new(&stream, SPATIAL, BN, &DIMS, false);
    let ((arrived, has_arrived), (let_go, go)) = (channel::<()>(), channel::<()>());
    let ends = Box::into_raw(Box::new((arrived, go)));
    // SAFETY: `gate` takes the ends.
    unsafe { cuLaunchHostFunc(stream.cu_stream(), Some(gate), ends.cast()) }.result().unwrap();
    let (handle, raw) = (norm.handle.0.expose_provenance(), stream.cu_stream().expose_provenance());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            stream.context().bind_to_thread().unwrap();
            let mut status = OK;
            // SAFETY: a handle that lives, and a status that can be written.
            unsafe {
                cudnnQueryRuntimeError(
                    std::ptr::with_exposed_provenance_mut(handle),
                    &mut status,
                    Query::CUDNN_ERRQUERY_BLOCKING,
                    std::ptr::null_mut(),
                )
            }
        });
        has_arrived.recv().unwrap();
        // SAFETY: that another thread is in a call is what is noticed.
        let status = unsafe {
            cudnnSetStream(
                std::ptr::with_exposed_provenance_mut(handle),
                std::ptr::with_exposed_provenance_mut(raw),
            )
        };
        let_go.send(()).unwrap(); // before anything can fail here
        assert_eq!(waiting.join().unwrap(), OK);
        assert_eq!(status, Status::CUDNN_STATUS_INTERNAL_ERROR);
        assert!(cudnn().refusals()[0].contains("another thread is in a call"));
    });
    // SAFETY: made above; all work is done.
    drop(unsafe { Box::from_raw(ends) });
}

#[test]
fn a_workspace_is_used_all_of_it() {
    let (device, stream) = start();
    let mut norm = Norm::<f16>::new(&stream, PERSISTENT, RELU, &DIMS, true);
    norm.make_spaces().unwrap();
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [OK; 2]);
    norm.workspace_bytes = 1 << 20;
    let failed = Status::CUDNN_STATUS_EXECUTION_FAILED;
    assert_eq!([norm.forward_ex(), norm.backward_ex()], [failed; 2]);
    assert!(cudnn().refusals()[0].contains("cuMemsetD8Async answered 1"));
    assert!(device.refusals()[0].contains("cuMemsetD8"), "{:?}", device.refusals());
    // Memory that is not there at all.
    norm.make_spaces().unwrap();
    norm.at[At::X as usize] = 0x10;
    assert_eq!(norm.forward_ex(), failed);
}
