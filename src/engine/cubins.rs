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
mod tests {
    use super::*;
    use crate::engine::ptx::PTX;

    /// What `scripts/build-cubins.py` packs, of targets, hashes and cubins.
    fn file(entries: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (target, source, cubin) in entries {
            bytes.extend(target.to_le_bytes());
            bytes.extend(u32::try_from(cubin.len()).unwrap().to_le_bytes());
            bytes.extend(source.to_le_bytes());
            bytes.extend(*cubin);
            bytes.resize(bytes.len().next_multiple_of(16), 0);
        }
        bytes
    }

    #[test]
    fn a_device_gets_what_was_made_for_it_or_a_lower_minor_version() {
        let file = file(&[(80, 5, b"eighty"), (86, 5, b"six"), (90, 7, b"ninety, and more of it")]);
        for (capability, wanted) in [
            (75, None),
            (80, Some("eighty")),
            (82, Some("eighty")),
            (86, Some("six")),
            (89, Some("six")),
            (90, None),
            (100, None),
        ] {
            let found = cubin(&file[..], capability, 5);
            assert_eq!(found.as_deref(), wanted.map(str::as_bytes), "{capability}");
        }
        assert_eq!(cubin(&file[..], 90, 7).unwrap(), b"ninety, and more of it");
        assert_eq!(cubin(&file[..], 80, 7), None, "made of other PTX");
        assert_eq!(cubin(&file[..], 100, 7), None, "of another major version");
    }

    #[test]
    fn a_file_that_is_cut_has_no_machine_code() {
        let (name, whole) = MODULES[0];
        let find = |packed| {
            let reader = LzmaReader::new_mem_limit(packed, u32::MAX, None).ok()?;
            let (_, _, ptx, _) = PTX.iter().find(|(module, ..)| *module == name)?;
            cubin(reader, 120, hash(ptx))
        };
        assert!(find(whole).is_some());
        for cut in [0, 3, 13, 20, whole.len() / 2, whole.len() - 100] {
            assert_eq!(find(&whole[..cut]), None, "{cut}");
        }
    }

    /// If not: `scripts/build-cubins.py`.
    #[test]
    fn every_module_has_machine_code_of_the_ptx_that_ships() {
        for (name, _, ptx, _) in PTX {
            let (_, packed) = MODULES.iter().find(|(module, _)| module == name).expect(name);
            for target in [80, 86, 89, 90, 100, 120] {
                let reader = LzmaReader::new_mem_limit(*packed, u32::MAX, None).unwrap();
                let cubin = cubin(reader, target, hash(ptx));
                assert!(
                    cubin.is_some_and(|cubin| cubin.starts_with(b"\x7fELF")),
                    "{name} {target}"
                );
            }
        }
        let size: usize = MODULES.iter().map(|(_, packed)| packed.len()).sum();
        assert!(size <= 4_000_000, "{size}");
    }
}
