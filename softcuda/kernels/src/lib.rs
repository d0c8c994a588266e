//! The PTX of the kernels in this folder, which `ptx-vm` and `softcuda` are tested with: made by `scripts/build-ptx.sh`
//! of the repository, one gzip file for each target that has instructions of its own.

use std::io::Read;

/// The targets of a source, the highest first, and their PTX as gzip files.
type Targets = &'static [(u32, &'static [u8])];

macro_rules! sources {
    ($($name:literal: $($target:literal)+;)*) => {
        &[$(($name, &[$((
            $target,
            include_bytes!(concat!("../ptx/", $name, ".sm_", $target, ".ptx.gz")),
        )),+])),*]
    };
}

/// Every source in this folder, without its `.cu`.
pub const SOURCES: &[(&str, Targets)] = sources! {
    "batchnorm": 90 80 75;
    "cooperative": 90 80 75;
    "exact_floats": 90 80 75;
    "exact_integers": 75;
    "exact_threads": 75;
    "split_stats": 90 75;
};

/// The PTX of a source for a device of this compute capability (90 for 9.0): of the highest target that such a device
/// takes.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn ptx(source: &str, capability: u32) -> String {
    let (_, targets) = SOURCES.iter().find(|(name, _)| *name == source).expect("a source");
    let packed = targets.iter().find(|(target, _)| *target <= capability);
    unpack(packed.expect("compute capability 7.5 or more").1)
}

/// All texts, in a fixed order.
pub fn texts() -> impl Iterator<Item = String> {
    SOURCES.iter().flat_map(|(_, targets)| targets.iter().map(|(_, packed)| unpack(packed)))
}

fn unpack(packed: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("a whole gzip file");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_listed_and_is_for_its_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/ptx");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name());
        let mut files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
        let name = |source, target| format!("{source}.sm_{target}.ptx.gz");
        let mut listed = Vec::new();
        for (source, targets) in SOURCES {
            assert!(targets.is_sorted_by(|a, b| a.0 > b.0), "{source}");
            for (target, _) in *targets {
                assert!(ptx(source, *target).contains(&format!("\n.target sm_{target}")));
                listed.push(name(source, target));
            }
        }
        files.sort();
        listed.sort();
        assert_eq!(files, listed);
    }
}
