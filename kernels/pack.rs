//! Packs the PTX into the library, compressed, and each text once: where two targets need
//! the same instructions, the lower one serves both, as a driver compiles it for the device it has.
use miniz_oxide::deflate::compress_to_vec;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs, io};

const FOLDER: &str = "kernels/ptx";
/// Of compression: higher ones gain little and take long in a build without optimization.
const LEVEL: u8 = 6;

pub fn pack() -> io::Result<()> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut modules = BTreeMap::<String, BTreeMap<u32, String>>::new();
    for file in fs::read_dir(FOLDER)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parts = name.strip_suffix(".ptx").and_then(|name| name.split_once(".sm_"));
        let Some((module, target)) = parts else { continue };
        let target = target.parse().map_err(|_| io::Error::other(format!("{name}: no target")))?;
        modules.entry(module.into()).or_default().insert(target, fs::read_to_string(&path)?);
    }

    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let mut table = String::from("&[");
    for (module, targets) in modules {
        let mut kept: Vec<(u32, &str)> = vec![];
        for (&target, text) in &targets {
            if !kept.last().is_some_and(|(_, lower)| lines(lower).eq(lines(text))) {
                kept.push((target, text));
            }
        }
        write!(table, "({module:?}, &[").map_err(io::Error::other)?;
        for (target, text) in kept.into_iter().rev() {
            let file = format!("{module}.sm_{target}.ptx.deflate");
            fs::write(Path::new(&out).join(&file), compress_to_vec(text.as_bytes(), LEVEL))?;
            // Beside the table: a target folder that is moved is whole.
            write!(table, "({target}, include_bytes!({file:?})),").map_err(io::Error::other)?;
        }
        table.push_str("]),");
    }
    table.push(']');
    fs::write(Path::new(&out).join("ptx.rs"), table)
}

/// All but the target.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with(".target "))
}
