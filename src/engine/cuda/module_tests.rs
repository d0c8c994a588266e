//! The PTX that ships, and what kernels ask of a driver.
use super::*;
use crate::engine::ptx::{packed, texts, unpacked};

#[test]
fn every_type_has_its_ptx_for_every_target() {
    let names = DTYPES.iter().flat_map(|dtype| [dtype.to_string(), format!("any_{dtype}")]);
    let of = |name: String| {
        let split = (format!("split_{name}"), format!("apply_{name}_v"));
        let resident = (format!("resident_{name}"), format!("forward_resident_{name}"));
        let has_resident = !name.ends_with("f64");
        let masked = (format!("masked_{name}"), format!("masked_stats_{name}_v"));
        let is_plain = !name.starts_with("any");
        [Some(split), has_resident.then_some(resident), is_plain.then_some(masked)]
    };
    for (module, entry) in names.flat_map(of).flatten() {
        for target in [75, 80, 90] {
            let text = packed(&module, target).and_then(unpacked).unwrap();
            let (_, made_for) = text.split_once("\n.target sm_").unwrap();
            let made_for: i32 = made_for.lines().next().unwrap().parse().unwrap();
            assert!(made_for <= target, "{module} {target}");
            assert!(text.contains(&format!(".entry {entry}(")), "{module} {target}");
            let says = text.lines().any(|line| line == ".version 7.8");
            assert!(says, "{module} {target}: drivers from 520 on");
        }
    }
    assert_eq!(packed("split_f32", 70), None);
}

#[test]
fn every_text_is_packed_once_and_they_are_small() {
    let instructions = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with(".target ")).map(str::to_owned).collect()
    };
    let mut files: Vec<&[u8]> = Vec::new();
    for (name, targets, packed, first) in PTX {
        assert!(targets.is_sorted_by(|a, b| a < b), "{name} {targets:?}");
        let texts = texts(packed).unwrap();
        let all = texts.split_terminator('\0').map(instructions);
        let all: Vec<_> = all.skip(*first).take(targets.len()).collect();
        assert_eq!(all.len(), targets.len(), "{name}");
        if *first == 0 {
            files.push(packed);
        }
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{name} {targets:?}");
    }
    // A third of it is kernels for any activation, a fifth those for masks; loops of their own for what a ReLU's
    // derivatives are taken from, and for a residual, are 7 % of it. The package may have 1.5 MB.
    let packed: usize = files.iter().map(|packed| packed.len()).sum();
    assert!(packed < 1_100_000, "{packed}");
}

/// Neither can be seen in a launch on the software device, which has no first cache.
#[cfg(target_os = "linux")]
#[test]
fn resident_kernels_ask_for_all_shared_memory() {
    softcuda::install().unwrap();
    let context = CudaContext::new(softcuda::ordinal("sm_75").unwrap()).unwrap();
    let (modules, figures) = (Modules::of(&context).unwrap(), Figures::of(&context).unwrap());
    let of = |variant| modules.resident(DType::F16, variant, &figures).unwrap().unwrap();
    let all = Variant::ALL.map(of);
    let kernels = || all.iter().flat_map(|all| all.forward.iter().chain([&all.backward]));
    assert_eq!(kernels().count(), 5);
    for kernel in kernels() {
        let attribute = |attribute| kernel.get_attribute(attribute).unwrap();
        let carveout = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        assert_eq!(attribute(carveout), 100);
        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(attribute(most), 64 << 10);
    }
}

#[test]
fn a_file_that_is_cut_has_no_text() {
    let (whole, place) = packed("split_f32", 75).unwrap();
    assert!(unpacked((whole, place)).is_some());
    for cut in [0, 3, 10, 17, whole.len() / 2, whole.len() - 1] {
        assert_eq!(unpacked((&whole[..cut], place)), None, "{cut}");
    }
}
