//! Lists the compiled kernels in `kernels/ptx` for `src/engine/cuda/module.rs`, so that a new one needs no list by
//! hand. Nothing is compiled or compressed here: `scripts/build-ptx.sh` made the files.
use std::cmp::Reverse;
use std::{env, fs, io};

const FOLDER: &str = "kernels/ptx";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo::rerun-if-changed={FOLDER}");
        let out = env::var("OUT_DIR").map_err(io::Error::other)?;
        fs::write(format!("{out}/ptx.rs"), table()?)?;
    }
    Ok(())
}

/// `&[("split_f32", 75, b".."), ..]`: name, target and LZMA file of each text, a name's highest target first.
fn table() -> io::Result<String> {
    let mut texts = Vec::new();
    for file in fs::read_dir(FOLDER)? {
        let file = file?.file_name().into_string().unwrap_or_default();
        let parts = file.strip_suffix(".ptx.lzma").and_then(|name| name.split_once(".sm_"));
        let Some((name, target)) = parts else { continue };
        let target: u32 =
            target.parse().map_err(|_| io::Error::other(format!("{file}: no target")))?;
        texts.push((name.to_owned(), Reverse(target)));
    }
    texts.sort();
    let row = |(name, Reverse(target)): &(String, Reverse<u32>)| {
        let path = format!(
            "concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{FOLDER}/{name}.sm_{target}.ptx.lzma\")"
        );
        format!("    ({name:?}, {target}, include_bytes!({path})),\n")
    };
    Ok(format!("&[\n{}]\n", texts.iter().map(row).collect::<String>()))
}
