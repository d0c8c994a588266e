//! What the tests have in common.
#![allow(dead_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DriverError, LaunchConfig, sys::CUresult};
use softcuda::{Exclusive, Softcuda};

/// Kernels written by hand.
pub const PTX: &str = include_str!("kernels.ptx");

pub fn softcuda() -> &'static Softcuda {
    softcuda::install().expect("the software device")
}

/// A device that no other test has, and its context.
pub fn device(ordinal: usize) -> (Exclusive, Arc<CudaContext>) {
    let device = softcuda().exclusive(ordinal);
    let context = CudaContext::new(ordinal).unwrap();
    (device, context)
}

pub fn function(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    context.load_module(PTX.into()).unwrap().load_function(name).unwrap()
}

pub fn shape(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// The code of an error.
pub fn code<T>(result: Result<T, DriverError>) -> CUresult {
    match result {
        Ok(_) => CUresult::CUDA_SUCCESS,
        Err(DriverError(code)) => code,
    }
}
