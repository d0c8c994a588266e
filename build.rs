//! Lists the compiled kernels in `kernels/ptx` for `src/engine/cuda/module.rs`, and the costs that were measured on
//! devices for `src/engine/cuda/costs.rs`, so that a new one needs no list by hand. Nothing is compiled or compressed
//! here: `scripts/build-ptx.sh` made the files.
use std::path::Path;
use std::{env, fs, io};

const FOLDER: &str = "kernels/ptx";
/// Of `cuda-DEVICE/DATE/costs.txt`.
const RECORDS: &str = "benches/record";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        println!("cargo::rerun-if-changed={FOLDER}");
        let out = env::var("OUT_DIR").map_err(io::Error::other)?;
        fs::write(format!("{out}/ptx.rs"), table()?)?;
        if Path::new(RECORDS).exists() {
            println!("cargo::rerun-if-changed={RECORDS}");
        }
        fs::write(format!("{out}/costs.rs"), costs()?)?;
    }
    Ok(())
}

/// `&[("split_f16", &[75, 80], b"..", 2), ..]`: name, targets and LZMA file of each module, and which of the file's texts
/// is its first.
fn table() -> io::Result<String> {
    let mut modules = Vec::new();
    for file in fs::read_dir(FOLDER)? {
        let file = file?.file_name().into_string().unwrap_or_default();
        let Some(parts) = file.strip_suffix(".ptx.lzma") else { continue };
        let mut parts = parts.split(".sm_");
        let names = parts.next().unwrap_or_default();
        let targets: Result<Vec<u32>, _> = parts.map(str::parse).collect();
        let targets = targets.map_err(|_| io::Error::other(format!("{file}: no targets")))?;
        for (k, name) in names.split('+').enumerate() {
            modules.push((name.to_owned(), targets.clone(), file.clone(), k * targets.len()));
        }
    }
    modules.sort();
    let row = |(name, targets, file, first): &(String, Vec<u32>, String, usize)| {
        let path = format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{FOLDER}/{file}\")");
        format!("    ({name:?}, &{targets:?}, include_bytes!({path}), {first}),\n")
    };
    Ok(format!("&[\n{}]\n", modules.iter().map(row).collect::<String>()))
}

/// `const RECORDS: &[&str] = &[include_str!(".."), ..];`: those of a device from the oldest to the newest.
fn costs() -> io::Result<String> {
    let mut files = Vec::new();
    for device in folders(Path::new(RECORDS))? {
        let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("cuda-") {
            files.extend(folders(&device)?.into_iter().map(|date| date.join("costs.txt")));
        }
    }
    files.retain(|file| file.exists());
    files.sort();
    let row = |file: &std::path::PathBuf| {
        format!(
            "    include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{}\")),\n",
            file.display()
        )
    };
    Ok(format!("const RECORDS: &[&str] = &[\n{}];\n", files.iter().map(row).collect::<String>()))
}

fn folders(of: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    if !of.is_dir() {
        return Ok(Vec::new()); // in a package without records
    }
    let entries = fs::read_dir(of)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}
