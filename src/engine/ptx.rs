//! The compiled kernels that ship, and how a context loads them.
use crate::memory::refused;
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use lzma_rust2::LzmaReader;
use std::io::Read;
use std::sync::Arc;

/// Name, targets and PTX of each module in `kernels/ptx`: `build.rs` lists them. An LZMA file has the
/// texts of all targets, the lowest first, of a module or two, and a 0 behind each: what they have in common is
/// packed once. The module's own begin at the last number.
type Packed = &'static [(&'static str, &'static [i32], &'static [u8], usize)];
pub(super) const PTX: Packed = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// The file of a module with PTX for a device of this capability, if there is one, and which of its
/// texts that is.
pub(super) fn packed(module: &str, capability: i32) -> Option<(&'static [u8], usize)> {
    let (_, targets, packed, first) = PTX.iter().find(|(name, ..)| *name == module)?;
    let place = targets.iter().rposition(|target| *target <= capability)?;
    Some((packed, first + place))
}

/// A text of a file.
pub(super) fn unpacked((packed, place): (&[u8], usize)) -> Option<String> {
    texts(packed)?.split('\0').nth(place).map(str::to_owned)
}

/// All texts of a file.
pub(super) fn texts(packed: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut reader = LzmaReader::new_mem_limit(packed, u32::MAX, None).ok()?;
    reader.read_to_string(&mut text).ok().map(|_| text)
}

/// Compute capability of a context's device: 90 of 9.0.
pub(super) fn capability(context: &CudaContext) -> Result<i32> {
    let (major, minor) = context.compute_capability().map_err(refused("cuDeviceGetAttribute"))?;
    Ok(10 * major + minor)
}

/// A module for a device of this capability, of its machine code where that ships and the driver
/// takes it, else of PTX; `engine` is who says that there is none.
pub(super) fn load(
    context: &Arc<CudaContext>,
    engine: &'static str,
    name: &str,
    capability: i32,
) -> Result<Arc<CudaModule>> {
    let packed = packed(name, capability);
    #[cfg(feature = "cubins")]
    if let Some((packed, _)) = packed
        && let Some(module) = super::cubins::load(context, name, packed, capability)
    {
        return Ok(module);
    }
    let text = packed.and_then(unpacked).ok_or_else(|| {
        let reason = format!("no module {name} for compute capability {}", dotted(capability));
        Error::Unsupported { engine, reason }
    })?;
    context.load_module(Ptx::from_src(text)).map_err(refused("cuModuleLoadData"))
}

/// `9.0` of 90.
pub(super) fn dotted(capability: i32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// A kernel of a module.
pub(super) fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(refused("cuModuleGetFunction"))
}
