//! Machine code of the kernels, for drivers that would compile their PTX otherwise.
use batchnorm_cubins::MODULES;
use cudarc::driver::{CudaContext, CudaModule};
use cudarc::nvrtc::Ptx;
use lzma_rust2::LzmaReader;
use std::io::Read;
use std::sync::Arc;

/// A module from machine code, if there is some for a device of this capability that was made of
/// this PTX, packed, and the driver takes it: one that is older than the assembler does not.
#[cfg_attr(not(feature = "cubins"), expect(dead_code))]
pub(super) fn load(
    context: &Arc<CudaContext>,
    name: &str,
    ptx: &[u8],
    capability: i32,
) -> Option<Arc<CudaModule>> {
    let (_, packed) = MODULES.iter().find(|(module, _)| *module == name)?;
    let reader = LzmaReader::new_mem_limit(*packed, u32::MAX, None).ok()?;
    let cubin = cubin(reader, capability, hash(ptx))?;
    context.load_module(Ptx::from_binary(cubin)).ok()
}

/// What precedes a cubin.
struct Head {
    target: i32,
    length: usize,
    source: u64,
}

impl Head {
    /// None at the end, or where the file is cut.
    fn read(from: &mut impl Read) -> Option<Self> {
        let (mut target, mut length, mut source) = ([0; 4], [0; 4], [0; 8]);
        from.read_exact(&mut target).ok()?;
        from.read_exact(&mut length).ok()?;
        from.read_exact(&mut source).ok()?;
        Some(Self {
            target: i32::try_from(u32::from_le_bytes(target)).ok()?,
            length: usize::try_from(u32::from_le_bytes(length)).ok()?,
            source: u64::from_le_bytes(source),
        })
    }
}

/// The cubin of an unpacked file for a device of this capability: of those of its major version, which
/// it runs, the highest that is not above it. None where that was made of other PTX.
fn cubin(mut reader: impl Read, capability: i32, source: u64) -> Option<Vec<u8>> {
    let (mut found, mut cubin) = (None, Vec::new());
    while let Some(head) = Head::read(&mut reader) {
        if head.target > capability {
            break;
        }
        cubin.clear();
        let length = head.length.next_multiple_of(16) as u64;
        reader.by_ref().take(length).read_to_end(&mut cubin).ok()?;
        let is_whole = cubin.len() as u64 == length;
        found = (is_whole && head.target / 10 == capability / 10).then_some(head);
    }
    let head = found.filter(|head| head.source == source)?;
    cubin.truncate(head.length);
    Some(cubin)
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[path = "cubins_tests.rs"]
mod tests;
