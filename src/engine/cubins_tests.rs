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
            assert!(cubin.is_some_and(|cubin| cubin.starts_with(b"\x7fELF")), "{name} {target}");
        }
    }
    let size: usize = MODULES.iter().map(|(_, packed)| packed.len()).sum();
    assert!(size <= 4_000_000, "{size}");
}
