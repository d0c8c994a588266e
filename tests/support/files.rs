//! Files that tests read and write. Nothing here holds the path of the checkout that it was compiled in: a test
//! program may be taken elsewhere, and run in a folder that has the same files.
use std::path::{Path, PathBuf};

/// A file or folder of the repository, by its path there. `cargo test` says where that is; otherwise it is the
/// current folder.
pub fn checkout(path: &str) -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
    Path::new(&root).join(path)
}

/// Where a test may write a file or folder of its own, which it removes.
pub fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("batchnorm-{}-{name}", std::process::id()))
}
