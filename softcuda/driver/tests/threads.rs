//! Several threads use the devices at once.

mod common;

use common::{code, device, function, shape, softcuda};
use cudarc::driver::{CudaContext, PushKernelArg, sys::CUresult};

#[test]
#[allow(unsafe_code)]
fn threads_share_a_device() {
    let (device, context) = device(0);
    let add = function(&context, "add");
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (context, add) = (&context, &add);
            scope.spawn(move || {
                let stream = context.new_stream().unwrap();
                for round in 0..10u32 {
                    let mut x = stream.clone_htod(&vec![round; 1000]).unwrap();
                    let mut launch = stream.launch_builder(add);
                    launch.arg(&mut x).arg(&thread).arg(&1000u32);
                    // SAFETY: the arguments are those of the kernel.
                    unsafe { launch.launch(shape(8, 128)) }.unwrap();
                    assert_eq!(stream.clone_dtoh(&x).unwrap(), vec![round + thread; 1000]);
                }
            });
        }
    });
    drop(add);
    context.synchronize().unwrap();
    context.check_err().unwrap();
    drop(context);
    assert_eq!(device.launches().len(), 40);
    assert_eq!(device.faults(), [""; 0]);
    assert_eq!(device.leaks(), [""; 0]);
}

#[test]
#[allow(unsafe_code)]
fn threads_use_devices_side_by_side() {
    let softcuda = softcuda();
    let devices: Vec<_> =
        [1, 2, 5].into_iter().map(|ordinal| softcuda.exclusive(ordinal)).collect();
    std::thread::scope(|scope| {
        for device in &devices {
            scope.spawn(|| {
                let context = CudaContext::new(device.ordinal()).unwrap();
                let stream = context.default_stream();
                let add = function(&context, "add");
                let mut x = stream.alloc_zeros::<u32>(5000).unwrap();
                for _ in 0..10 {
                    let mut launch = stream.launch_builder(&add);
                    launch.arg(&mut x).arg(&1u32).arg(&5000u32);
                    // SAFETY: the arguments are those of the kernel.
                    unsafe { launch.launch(shape(40, 128)) }.unwrap();
                }
                assert_eq!(stream.clone_dtoh(&x).unwrap(), [10; 5000]);
            });
        }
    });
    for device in &devices {
        assert_eq!(device.launches().len(), 10);
        assert_eq!(device.leaks(), [""; 0]);
    }
}

#[test]
#[allow(unsafe_code)]
fn a_failure_reaches_all_threads() {
    let (device, context) = device(0);
    let twice = function(&context, "twice");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (context, twice) = (&context, &twice);
                scope.spawn(move || {
                    let stream = context.new_stream()?;
                    let mut x = stream.alloc_zeros::<u32>(64)?;
                    // One of them goes out of bounds; none waits for ever.
                    let blocks = if thread == 0 { 2 } else { 1 };
                    for _ in 0..20 {
                        let mut launch = stream.launch_builder(twice);
                        launch.arg(&mut x);
                        // SAFETY: the argument is that of the kernel, and what it does wrong is found.
                        unsafe { launch.launch(shape(blocks, 64)) }?;
                    }
                    context.synchronize()
                })
            })
            .collect();
        threads.into_iter().map(|thread| code(thread.join().unwrap())).collect()
    });
    let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(outcomes[0], illegal);
    assert_eq!(code(context.synchronize()), illegal);
    assert_eq!(device.faults().len(), 1, "{:?}", device.faults());
}
