//! Lists the files of `packed` for `src/lib.rs`. Nothing is compiled or compressed here: `scripts/build-cubins.py` made
//! them.
use std::{env, fs, io};

const FOLDER: &str = "packed";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={FOLDER}");
    let mut names = Vec::new();
    // Without the files, in a checkout where nobody has made them, PTX serves.
    for file in fs::read_dir(FOLDER).into_iter().flatten() {
        let file = file?.file_name().into_string().unwrap_or_default();
        names.extend(file.strip_suffix(".cubins.lzma").map(str::to_owned));
    }
    names.sort();
    let row = |name: &String| {
        let path =
            format!("concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{FOLDER}/{name}.cubins.lzma\")");
        format!("    ({name:?}, include_bytes!({path})),\n")
    };
    let table = format!("&[\n{}]\n", names.iter().map(row).collect::<String>());
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(format!("{out}/modules.rs"), table)
}
