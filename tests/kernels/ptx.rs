//! The kernels that ship.
use crate::support::files::checkout;
use lzma_rust2::LzmaReader;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// The text of `kernels/ptx/MODULE+MODULE.sm_XX.sm_YY.ptx.lzma`, of the highest target that a device of this capability takes.
pub fn ptx(module: &str, capability: i32) -> String {
    // Unpacked once: each test makes many devices.
    static TEXTS: Mutex<BTreeMap<(String, i32), String>> = Mutex::new(BTreeMap::new());
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (module.to_owned(), capability);
    texts.entry(key).or_insert_with(|| unpacked(module, capability)).clone()
}

fn unpacked(module: &str, capability: i32) -> String {
    let folder = std::fs::read_dir(checkout("kernels/ptx")).unwrap();
    let files = folder.map(|file| file.unwrap().file_name().into_string().unwrap());
    let place = |file: &str| file.split(".sm_").next()?.split('+').position(|name| name == module);
    let found = files.into_iter().find_map(|file| Some((place(&file)?, file)));
    let (place, file) = found.expect(module);
    let targets = file.strip_suffix(".ptx.lzma").unwrap().split(".sm_").skip(1);
    let first = place * targets.clone().count();
    let served = targets.filter(|target| target.parse::<i32>().unwrap() <= capability).count();
    let mut text = String::new();
    let file = File::open(checkout(&format!("kernels/ptx/{file}"))).unwrap();
    let mut reader = LzmaReader::new_mem_limit(file, u32::MAX, None).unwrap();
    reader.read_to_string(&mut text).unwrap();
    text.split('\0').nth(first + served - 1).unwrap().to_owned()
}
