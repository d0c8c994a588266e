//! For build scripts of libraries of which a program has two copies: one that it links, and one that it loads as the
//! driver, cuBLAS or cuDNN. Both carry a hash of the sources that they were built from, so that a stale library is noticed.
//!
//! A crate that is part of such a library has a `links` key in its `Cargo.toml` and calls [`part`]; the library itself
//! calls [`library`]. Cargo tells a build script what those of its direct dependencies say: so a library's hash covers
//! the sources of its parts too, wherever cargo has them from.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// What cargo calls a dependency's hash for the scripts of those that depend on it: `DEP_{LINKS}_SOURCES`.
const KEY: &str = "_SOURCES";

/// Tells the crates that depend on this one what it is built from.
///
/// # Errors
/// Of reading the sources.
pub fn part() -> io::Result<()> {
    println!("cargo::metadata=sources={}", sources()?);
    Ok(())
}

/// Gives this crate its hash, as the environment variable `SOFTCUDA_SOURCES` of its compilation, and names its library
/// for the loader `soname` (`libcuda.so`), which is not the name of its file.
///
/// # Errors
/// Of reading the sources.
pub fn library(soname: &str) -> io::Result<()> {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    }
    println!("cargo::rustc-env=SOFTCUDA_SOURCES={}", sources()?);
    Ok(())
}

/// The hash of the package's `src` and of what its dependencies say.
fn sources() -> io::Result<String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src");
    let parts =
        std::env::vars().filter(|(name, _)| name.starts_with("DEP_") && name.ends_with(KEY));
    Ok(format!("{:016x}", hash(Path::new("src"), parts.collect())?))
}

/// FNV-1a of the names and contents of a folder's files, and of the parts' names and hashes.
fn hash(folder: &Path, parts: BTreeMap<String, String>) -> io::Result<u64> {
    let mut files = Vec::new();
    find(folder, &mut files)?;
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for file in &files {
        add(file.strip_prefix(folder).unwrap_or(file).to_string_lossy().as_bytes());
        add(&std::fs::read(file)?);
    }
    for (name, value) in &parts {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    Ok(hash)
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_their_names_and_parts_all_count() {
        let folder = std::env::temp_dir().join(format!("softcuda-mark-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("in")).unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).unwrap();
        let part = |value: &str| BTreeMap::from([("DEP_PTX_VM_SOURCES".into(), value.into())]);
        write("lib.rs", "mod a;");
        write("in/a.rs", "fn f() {}");
        let mut seen = vec![hash(&folder, part("1")).unwrap()];
        assert_eq!(hash(&folder, part("1")).unwrap(), seen[0]);
        seen.push(hash(&folder, part("2")).unwrap());
        seen.push(hash(&folder, BTreeMap::new()).unwrap());
        write("in/a.rs", "fn g() {}");
        seen.push(hash(&folder, part("1")).unwrap());
        std::fs::rename(folder.join("in/a.rs"), folder.join("in/b.rs")).unwrap();
        seen.push(hash(&folder, part("1")).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }
}
