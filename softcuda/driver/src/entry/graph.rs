//! Graphs.

use super::{call, put, required};
use crate::{code::Code, driver::Id};

const AUTO_FREE_ON_LAUNCH: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(out: *mut Id, graph: Id, flags: u64) -> Code {
    call(|driver| {
        required(out)?;
        if flags > 15 || flags & DEVICE_LAUNCH != 0 && flags & AUTO_FREE_ON_LAUNCH != 0 {
            return Err(Code::InvalidValue);
        }
        if flags & DEVICE_LAUNCH != 0 {
            return Err(Code::NotSupported);
        }
        let executable = driver.instantiate(graph, flags & AUTO_FREE_ON_LAUNCH != 0)?;
        // SAFETY: the caller's pointer, as the driver's API demands.
        unsafe { put(out, executable) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(executable: Id, stream: u64) -> Code {
    call(|driver| {
        let id = driver.stream(stream)?;
        driver.launch_graph(executable, id)
    })
}

/// Nothing to do: a graph is ready as it is.
#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(executable: Id, stream: u64) -> Code {
    call(|driver| {
        driver.stream(stream)?;
        driver.executables.get(&executable).map(|_| ()).ok_or(Code::InvalidHandle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(executable: Id) -> Code {
    call(|driver| driver.executables.remove(&executable).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: Id) -> Code {
    call(|driver| driver.graphs.remove(&graph).map(|_| ()).ok_or(Code::InvalidHandle))
}
