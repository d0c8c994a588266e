//! Kernels: loading, launching, what is counted, and what goes wrong.
#![allow(unsafe_code)]

mod common;

use std::sync::Arc;

use common::{PTX, code, device, function, shape, softcuda};
use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
        sys, sys::CUfunction_attribute as Attribute, sys::CUgraphInstantiate_flags as Flags,
        sys::CUresult,
    },
    nvrtc::Ptx,
};
use softcuda::{Code, FailurePoint};

const MINI: usize = 5;

fn launch(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    x: &mut CudaSlice<u32>,
    shape: LaunchConfig,
) -> Result<(), DriverError> {
    let mut launch = stream.launch_builder(function);
    launch.arg(x);
    // SAFETY: a kernel of one pointer; what it does wrong is found.
    unsafe { launch.launch(shape) }.map(|_| ())
}

fn add(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    x: &mut CudaSlice<u32>,
    value: u32,
) -> Result<(), DriverError> {
    let n = x.len() as u32;
    let mut launch = stream.launch_builder(function);
    launch.arg(x).arg(&value).arg(&n);
    // SAFETY: the arguments are those of the kernel.
    unsafe { launch.launch(shape(n.div_ceil(128), 128)) }.map(|_| ())
}

#[test]
fn a_kernel_runs_and_is_counted() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let function = function(&context, "add");
    let values: Vec<u32> = (0..1000).collect();
    let mut x = stream.clone_htod(&values).unwrap();
    add(&stream, &function, &mut x, 5).unwrap();
    assert!(device.launches().is_empty(), "nobody has waited for it");
    let expected: Vec<u32> = (5..1005).collect();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), expected);
    let launch = device.last_launch().unwrap();
    assert_eq!(
        (launch.kernel.as_str(), launch.grid, launch.block),
        ("add", [8, 1, 1], [128, 1, 1])
    );
    assert_eq!(launch.counts.global_loads.bytes, 4000);
    assert_eq!(launch.counts.global_loads.sectors, 125);
    assert_eq!(launch.counts.global_stores.bytes, 4000);
    assert_eq!(launch.counts.global_stores.requests, 32);
    assert!(launch.counts.high_water >= 4000);
    assert_eq!(launch.seed, device.seed());
}

#[test]
fn arguments_are_taken_when_the_call_is_made() {
    let (_device, context) = device(0);
    let stream = context.new_stream().unwrap();
    let function = function(&context, "add");
    let mut x = stream.alloc_zeros::<u32>(128).unwrap();
    let (mut value, n) = (1, 128);
    for _ in 0..3 {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut x).arg(&value).arg(&n);
        // SAFETY: the arguments are those of the kernel.
        unsafe { launch.launch(shape(1, 128)) }.unwrap();
        value *= 10;
    }
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [111; 128]);
}

#[test]
fn a_graph_repeats_kernels_with_their_arguments() {
    let (device, context) = device(0);
    // SAFETY: one stream only.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let function = function(&context, "add");
    let mut x = stream.alloc_zeros::<u32>(128).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    for value in [1, 10] {
        add(&stream, &function, &mut x, value).unwrap();
    }
    let graph = stream.end_capture(Flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [0; 128]);
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    drop(function);
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [33; 128]);
    assert_eq!(device.launches().len(), 6);
}

#[test]
fn a_fault_is_told_at_the_next_wait_and_stays() {
    let (device, context) = device(0);
    device.set_seed(77);
    let stream = context.default_stream();
    let function = function(&context, "twice");
    let mut x = stream.alloc_zeros::<u32>(100).unwrap();
    launch(&stream, &function, &mut x, shape(2, 64)).unwrap();
    // Nothing has gone wrong yet: that work is asynchronous.
    let y = stream.alloc_zeros::<u32>(1).unwrap();
    let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_eq!(code(stream.synchronize()), illegal);
    assert_eq!(code(stream.clone_dtoh(&y)), illegal);
    assert_eq!(code(launch(&stream, &function, &mut x, shape(1, 64))), illegal);
    let faults = device.faults();
    assert_eq!(faults.len(), 1);
    for part in [
        "kernel twice",
        "out of bounds",
        "PTX line 43",
        "ld.global.u32 %r5, [%rd4]",
        "block [1, 0, 0], thread [36, 0, 0]",
        "0 bytes past the end of an allocation of 400 bytes",
        "SOFTCUDA_SEED=77",
    ] {
        assert!(faults[0].contains(part), "{part}: {}", faults[0]);
    }
    assert!(device.launches().is_empty());
}

#[test]
fn kernels_of_two_streams_go_either_way_unless_ordered() {
    let (device, context) = device(0);
    // SAFETY: the missing wait is what is tested.
    unsafe { context.disable_event_tracking() };
    let (a, b) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let (add_one, twice) = (function(&context, "add"), function(&context, "twice"));
    for is_ordered in [false, true] {
        let mut seen: Vec<u32> = (1..20)
            .map(|seed| {
                device.set_seed(seed);
                let mut x = a.clone_htod(&[1u32; 64]).unwrap();
                a.synchronize().unwrap();
                add(&a, &add_one, &mut x, 1).unwrap();
                if is_ordered {
                    b.join(&a).unwrap();
                }
                launch(&b, &twice, &mut x, shape(1, 64)).unwrap();
                context.synchronize().unwrap();
                a.clone_dtoh(&x).unwrap()[63]
            })
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, if is_ordered { vec![4] } else { vec![3, 4] });
    }
    assert_eq!(device.faults(), [""; 0], "no kernel did wrong");
}

#[test]
fn a_cooperative_grid_runs_all_at_once_or_not_at_all() {
    let (device, context) = device(MINI);
    let stream = context.default_stream();
    let function = function(&context, "meet");
    let cooperative = |blocks: u32| {
        let mut word = stream.alloc_zeros::<u32>(1).unwrap();
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut word);
        // SAFETY: the argument is that of the kernel.
        unsafe { launch.launch_cooperative(shape(blocks, 512)) }?;
        stream.clone_dtoh(&word)
    };
    for seed in 1..6 {
        device.set_seed(seed);
        assert_eq!(cooperative(8).unwrap(), [8], "two blocks on each of four multiprocessors");
    }
    let launch = device.last_launch().unwrap();
    assert!(launch.cooperative && launch.resident == 8);
    assert_eq!(code(cooperative(9)), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    assert!(device.refusals()[0].contains("8 run at a time"), "{:?}", device.refusals());
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn shared_memory_that_is_taken_leaves_room_for_fewer_blocks() {
    let (device, context) = device(MINI);
    let stream = context.default_stream();
    let function = function(&context, "meet");
    let mut word = stream.alloc_zeros::<u32>(1).unwrap();
    let blocks = || function.occupancy_max_active_blocks_per_multiprocessor(32, 4096, None);
    let mut cooperative = |blocks: u32| {
        let mut launch = stream.launch_builder(&function);
        launch.arg(&mut word);
        let shape = LaunchConfig { shared_mem_bytes: 4096, ..shape(blocks, 32) };
        // SAFETY: the argument is that of the kernel.
        unsafe { launch.launch_cooperative(shape) }
    };
    assert_eq!(blocks(), Ok(3), "of 5 KiB in 16");
    device.set_shared_taken(7 << 10);
    assert_eq!(blocks(), Ok(1));
    assert_eq!(code(cooperative(5)), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    device.reset();
    assert_eq!(blocks(), Ok(3));
    cooperative(5).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn blocks_that_wait_for_blocks_hang_without_that_attribute() {
    let (device, context) = device(MINI);
    let stream = context.default_stream();
    let function = function(&context, "meet");
    let mut word = stream.alloc_zeros::<u32>(1).unwrap();
    device.set_budget(1_000_000);
    launch(&stream, &function, &mut word, shape(8, 32)).unwrap();
    let end = code(stream.synchronize());
    assert_eq!(end, CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    assert!(device.faults()[0].contains("kernel meet"), "{:?}", device.faults());
}

/// `cuLaunchKernelEx` with one attribute.
fn launch_with(
    function: &CudaFunction,
    stream: &CudaStream,
    word: u64,
    id: sys::CUlaunchAttributeID,
    set: impl FnOnce(&mut sys::CUlaunchAttributeValue),
) -> CUresult {
    // SAFETY: plain data.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = id;
    set(&mut attribute.value);
    let config = sys::CUlaunchConfig {
        gridDimX: 8,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream.cu_stream(),
        attrs: &mut attribute,
        numAttrs: 1,
    };
    let mut params = [(&raw const word).cast_mut().cast()];
    let (function, extra) = (function.cu_function(), std::ptr::null_mut());
    // SAFETY: the argument is that of the kernel.
    unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), extra) }
}

#[test]
fn launches_take_attributes() {
    let (device, context) = device(MINI);
    let stream = context.default_stream();
    let function = function(&context, "meet");
    let word = stream.alloc_zeros::<u32>(1).unwrap();
    let pointer = word.leak();
    let cooperative = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    let end = launch_with(&function, &stream, pointer, cooperative, |v| v.cooperative = 1);
    assert_eq!(end, CUresult::CUDA_SUCCESS);
    stream.synchronize().unwrap();
    assert!(device.last_launch().unwrap().cooperative);
    let cluster = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    let end = launch_with(&function, &stream, pointer, cluster, |v| {
        v.clusterDim.x = 2;
        v.clusterDim.y = 1;
        v.clusterDim.z = 1;
    });
    assert_eq!(end, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    // SAFETY: allocated above, as four bytes.
    drop(unsafe { stream.upgrade_device_ptr::<u32>(pointer, 1) });
}

#[test]
fn more_shared_memory_is_given_to_who_asks_for_it() {
    let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    for (ordinal, limit) in [(0, 227 << 10), (1, 163 << 10), (2, 64 << 10)] {
        let (_device, context) = device(ordinal);
        let stream = context.default_stream();
        let function = function(&context, "neighbour");
        let mut x = stream.alloc_zeros::<u32>(256).unwrap();
        let shape = |bytes| LaunchConfig { shared_mem_bytes: bytes, ..shape(1, 256) };
        launch(&stream, &function, &mut x, shape(48 << 10)).unwrap();
        let expected: Vec<u32> = (0..256).map(|i| (i + 1) % 256).collect();
        assert_eq!(stream.clone_dtoh(&x).unwrap(), expected);
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(code(launch(&stream, &function, &mut x, shape((48 << 10) + 1))), invalid);
        assert_eq!(code(function.set_attribute(most, limit + 1)), invalid);
        function.set_attribute(most, limit).unwrap();
        assert_eq!(function.get_attribute(most).unwrap(), limit);
        launch(&stream, &function, &mut x, shape(limit as u32)).unwrap();
        stream.synchronize().unwrap();
    }
    let (device, context) = device(MINI);
    let stream = context.default_stream();
    let function = function(&context, "neighbour");
    let mut x = stream.alloc_zeros::<u32>(256).unwrap();
    let shape = LaunchConfig { shared_mem_bytes: 16 << 10, ..shape(1, 256) };
    let refused = launch(&stream, &function, &mut x, shape);
    assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_VALUE);
    let reason = device.refusals().remove(0);
    assert!(reason.contains("kernel neighbour: 16384 bytes of dynamic shared"), "{reason}");
}

#[test]
fn too_little_shared_memory_is_a_fault() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let function = function(&context, "neighbour");
    let mut x = stream.alloc_zeros::<u32>(256).unwrap();
    let shape = LaunchConfig { shared_mem_bytes: 1020, ..shape(1, 256) };
    launch(&stream, &function, &mut x, shape).unwrap();
    assert_eq!(code(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(device.faults()[0].contains("thread [255, 0, 0]"), "{:?}", device.faults());
}

#[test]
fn shapes_that_no_device_takes_are_refused() {
    let (_device, context) = device(0);
    let stream = context.default_stream();
    let (twice, small) = (function(&context, "twice"), function(&context, "small"));
    let mut x = stream.alloc_zeros::<u32>(4096).unwrap();
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    for bad in [
        shape(0, 32),
        shape(1, 0),
        shape(1, 1025),
        LaunchConfig { block_dim: (1, 1, 65), ..shape(1, 1) },
        LaunchConfig { block_dim: (32, 33, 1), ..shape(1, 1) },
        LaunchConfig { grid_dim: (1, 65536, 1), ..shape(1, 1) },
    ] {
        assert_eq!(code(launch(&stream, &twice, &mut x, bad)), invalid, "{bad:?}");
    }
    assert_eq!(code(launch(&stream, &small, &mut x, shape(1, 65))), invalid, ".maxntid 64");
    launch(&stream, &small, &mut x, shape(1, 64)).unwrap();
    launch(&stream, &twice, &mut x, shape(4, 1024)).unwrap();
    stream.synchronize().unwrap();
}

extern "C" fn four_bytes_a_thread(threads: i32) -> usize {
    4 * threads as usize
}

#[test]
fn functions_tell_what_they_need() {
    let (_device, context) = device(0);
    let (neighbour, small) = (function(&context, "neighbour"), function(&context, "small"));
    assert_eq!(small.max_threads_per_block().unwrap(), 64);
    assert_eq!(neighbour.max_threads_per_block().unwrap(), 1024);
    assert_eq!(neighbour.shared_size_bytes().unwrap(), 0);
    assert_eq!(neighbour.local_size_bytes().unwrap(), 0);
    assert_eq!(neighbour.ptx_version().unwrap(), 78);
    assert_eq!(neighbour.binary_version().unwrap(), 90);
    assert_eq!(neighbour.num_regs().unwrap(), 32);
    let blocks = |threads, shared| {
        neighbour.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None).unwrap()
    };
    assert_eq!(blocks(256, 0), 8);
    assert_eq!(blocks(256, 103 << 10), 2);
    assert_eq!(neighbour.occupancy_available_dynamic_smem_per_block(2, 256).unwrap(), 113 << 10);
    let best =
        neighbour.occupancy_max_potential_block_size(four_bytes_a_thread, 0, 0, None).unwrap();
    assert_eq!(best, (264, 1024));
}

#[test]
fn what_does_not_load_says_why() {
    let (device, context) = device(2);
    let loads = |text: String| code(context.load_module(text.into()));
    let invalid = CUresult::CUDA_ERROR_INVALID_PTX;
    assert_eq!(loads(PTX.replace("shl.b32 %r5, %r5, 1", "shl.b47 %r5, %r5, 1")), invalid);
    let reason = device.refusals().remove(0);
    assert!(reason.contains("line 44") && reason.contains("shl.b47"), "{reason}");
    assert_eq!(loads(PTX.replace("sm_75", "sm_80")), invalid);
    assert!(device.refusals()[1].contains("the target is sm_80, the device sm_75"));
    let binary = Ptx::from_binary(b"\x7fELF\x02\x01\x01\0".to_vec());
    let refused = context.load_module(binary);
    assert_eq!(code(refused), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let missing = context.load_module(Ptx::from_file("/nowhere/kernels.ptx"));
    assert_eq!(code(missing), CUresult::CUDA_ERROR_FILE_NOT_FOUND);
    let module = context.load_module(PTX.into()).unwrap();
    assert_eq!(code(module.load_function("absent")), CUresult::CUDA_ERROR_NOT_FOUND);
    let stream = context.default_stream();
    assert_eq!(code(module.get_global("absent", &stream)), CUresult::CUDA_ERROR_NOT_FOUND);
    let first = module.load_function("add").unwrap().cu_function();
    assert_eq!(module.load_function("add").unwrap().cu_function(), first);
    let path = std::env::temp_dir().join(format!("softcuda-{}.ptx", std::process::id()));
    std::fs::write(&path, PTX).unwrap();
    let from_file = context.load_module(Ptx::from_file(&path));
    std::fs::remove_file(&path).unwrap();
    from_file.unwrap();
}

#[test]
fn a_launch_that_is_to_fail_fails() {
    let (device, context) = device(0);
    let stream = context.default_stream();
    let function = function(&context, "add");
    let mut x = stream.alloc_zeros::<u32>(128).unwrap();
    device.fail(FailurePoint::Launch, 1, Code::LaunchOutOfResources);
    device.fail(FailurePoint::Module, 0, Code::OutOfMemory);
    let refused = context.load_module(PTX.into());
    assert_eq!(code(refused), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    add(&stream, &function, &mut x, 1).unwrap();
    let failed = add(&stream, &function, &mut x, 1);
    assert_eq!(code(failed), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    add(&stream, &function, &mut x, 1).unwrap();
    assert_eq!(stream.clone_dtoh(&x).unwrap(), [2; 128]);
    // A code of work that had begun takes the context along.
    device.fail(FailurePoint::Launch, 0, Code::LaunchFailed);
    let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
    assert_eq!(code(add(&stream, &function, &mut x, 1)), failed);
    assert_eq!(code(stream.synchronize()), failed);
}

#[test]
fn a_function_belongs_to_its_context() {
    let softcuda = softcuda();
    let (_zero, _mini) = (softcuda.exclusive(0), softcuda.exclusive(MINI));
    let (a, b) = (CudaContext::new(0).unwrap(), CudaContext::new(MINI).unwrap());
    let function = function(&a, "twice");
    let stream = b.new_stream().unwrap();
    let mut x = stream.alloc_zeros::<u32>(64).unwrap();
    let refused = launch(&stream, &function, &mut x, shape(1, 64));
    assert_eq!(code(refused), CUresult::CUDA_ERROR_INVALID_HANDLE);
}
