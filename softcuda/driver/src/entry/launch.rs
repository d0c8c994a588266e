//! Launches, and how many blocks run at a time.

use std::{
    ffi::{c_int, c_uint, c_void},
    sync::Arc,
};

use super::{call_in_context, named_call, put, step};
use crate::{
    code::Code,
    driver::Id,
    module::Shape,
    occupancy::{best_block, blocks_per_multiprocessor, dynamic_shared},
    profile::MAX_THREADS,
    report::FailurePoint,
    work::Work,
};

/// `CUlaunchAttribute`
#[repr(C)]
struct Attribute {
    id: c_uint,
    padding: c_uint,
    value: [c_uint; 16],
}

/// `CUlaunchConfig`
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: u64,
    attributes: *const Attribute,
    count: c_uint,
}

const ATTRIBUTE_IGNORE: c_uint = 0;
const ATTRIBUTE_COOPERATIVE: c_uint = 2;
const ATTRIBUTE_CLUSTER: c_uint = 4;
const ATTRIBUTE_PRIORITY: c_uint = 8;

/// # Safety
/// `params` must point to as many pointers as the kernel has parameters, each to as many bytes as its parameter has.
unsafe fn launch(
    name: &'static str,
    function: Id,
    shape: Shape,
    stream: u64,
    params: *const *const u8,
    extra: *const c_void,
) -> Code {
    named_call(name, |driver| {
        let stream = driver.stream(stream)?;
        let context = driver.streams[&stream].context;
        let (this, _) = driver.function(function)?;
        if this.context != context {
            return Err(Code::InvalidHandle);
        }
        let kernel = Arc::clone(&this.kernel);
        if !extra.is_null() {
            return Err(Code::NotSupported);
        }
        if params.is_null() && !kernel.params.is_empty() {
            return Err(Code::InvalidValue);
        }
        let mut block = vec![0; kernel.param_bytes];
        for (i, param) in kernel.params.iter().enumerate() {
            let into = &mut block[param.offset..param.offset + param.size];
            // SAFETY: the caller gives a pointer for each parameter, to all of its bytes.
            unsafe { (*params.add(i)).copy_to_nonoverlapping(into.as_mut_ptr(), param.size) };
        }
        let words = block.chunks_exact(8).map(|word| word.try_into().expect("8 bytes"));
        let words: Vec<u64> = words.map(u64::from_le_bytes).collect();
        driver.check_attached(stream, name, words)?;
        let launch = driver.prepare_launch(function, shape, block)?;
        if let Some(code) = driver.device_of(context)?.log.failure(FailurePoint::Launch) {
            return Err(driver.injected(context, code));
        }
        driver.enqueue(stream, Work::Kernel(Arc::new(launch)))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: Id,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: u64,
    params: *const *const u8,
    extra: *const c_void,
) -> Code {
    let shape = Shape {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared: shared,
        cooperative: false,
    };
    // SAFETY: the same contract.
    unsafe { launch("cuLaunchKernel", function, shape, stream, params, extra) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: Id,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: u64,
    params: *const *const u8,
) -> Code {
    const NAME: &str = "cuLaunchCooperativeKernel";
    let shape = Shape {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared: shared,
        cooperative: true,
    };
    // SAFETY: the same contract.
    unsafe { launch(NAME, function, shape, stream, params, std::ptr::null()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: Id,
    params: *const *const u8,
    extra: *const c_void,
) -> Code {
    // SAFETY: null, or a configuration, as the driver's API demands.
    let Some(config) = (unsafe { config.as_ref() }) else { return Code::InvalidValue };
    let attributes = match config.count {
        0 => &[],
        _ if config.attributes.is_null() => return Code::InvalidValue,
        // SAFETY: not null, and the caller says how many there are.
        count => unsafe { std::slice::from_raw_parts(config.attributes, count as usize) },
    };
    let mut cooperative = false;
    for attribute in attributes {
        match attribute.id {
            ATTRIBUTE_IGNORE | ATTRIBUTE_PRIORITY => {}
            ATTRIBUTE_COOPERATIVE => cooperative = attribute.value[0] != 0,
            // A cluster of one block is no cluster.
            ATTRIBUTE_CLUSTER if attribute.value[..3] == [1, 1, 1] => {}
            _ => return Code::NotSupported,
        }
    }
    let (grid, block, dynamic_shared) = (config.grid, config.block, config.shared);
    let shape = Shape { grid, block, dynamic_shared, cooperative };
    // SAFETY: the same contract.
    unsafe { launch("cuLaunchKernelEx", function, shape, config.stream, params, extra) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    out: *mut c_int,
    function: Id,
    threads: c_int,
    shared: usize,
) -> Code {
    call_in_context(|driver, _| {
        let (function, device) = driver.function(function)?;
        let threads = u32::try_from(threads).map_err(|_| Code::InvalidValue)?;
        let most = function.kernel.max_threads.unwrap_or(MAX_THREADS);
        let shared = function.kernel.static_shared.saturating_add(shared);
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        if threads == 0 {
            return Err(Code::InvalidValue);
        }
        let blocks = match threads <= most {
            true => blocks_per_multiprocessor(&device.available(), threads, shared),
            false => 0,
        };
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, blocks as c_int) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    out: *mut c_int,
    function: Id,
    threads: c_int,
    shared: usize,
    _flags: c_uint,
) -> Code {
    // SAFETY: the same contract. The one flag there is concerns a cache.
    unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(out, function, threads, shared) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    out: *mut usize,
    function: Id,
    blocks: c_int,
    threads: c_int,
) -> Code {
    call_in_context(|driver, _| {
        let (function, device) = driver.function(function)?;
        let blocks = u32::try_from(blocks).map_err(|_| Code::InvalidValue)?;
        let threads = u32::try_from(threads).map_err(|_| Code::InvalidValue)?;
        let fixed = function.kernel.static_shared as u32;
        let bytes = dynamic_shared(&device.available(), blocks, threads, fixed);
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, bytes.ok_or(Code::InvalidValue)? as usize) }
    })
}

/// `shared_of` is called without the lock, as any function of the caller is.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut c_int,
    block: *mut c_int,
    function: Id,
    shared_of: Option<unsafe extern "C" fn(c_int) -> usize>,
    shared: usize,
    limit: c_int,
) -> Code {
    let mut found = None;
    let checked = call_in_context(|driver, _| {
        let (function, device) = driver.function(function)?;
        found = Some((Arc::clone(&function.kernel), device.available()));
        Ok(())
    });
    let Some((kernel, profile)) = found else { return checked };
    let most = kernel.max_threads.unwrap_or(MAX_THREADS);
    let limit = u32::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(most).min(most);
    let shared_at = |threads: u32| {
        // SAFETY: a function of the caller for this purpose.
        let bytes = shared_of.map_or(shared, |of| unsafe { of(threads as c_int) });
        u32::try_from(kernel.static_shared.saturating_add(bytes)).unwrap_or(u32::MAX)
    };
    let best = best_block(&profile, limit, shared_at);
    step(|_| {
        let (blocks, threads) = best.ok_or(Code::InvalidValue)?;
        // SAFETY: the caller's pointers, as the driver's API demands.
        unsafe {
            put(grid, blocks as c_int)?;
            put(block, threads as c_int)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    function: Id,
    shared_of: Option<unsafe extern "C" fn(c_int) -> usize>,
    shared: usize,
    limit: c_int,
    _flags: c_uint,
) -> Code {
    // SAFETY: the same contract. The one flag there is concerns a cache.
    unsafe { cuOccupancyMaxPotentialBlockSize(grid, block, function, shared_of, shared, limit) }
}
