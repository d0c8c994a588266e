//! Becoming the driver: where the library is found, and when it is not taken.
#![allow(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use cudarc::driver::CudaContext;
use softcuda::{InstallError, install};

/// Tells a copy of this program what it is to see.
const EXPECTED: &str = "SOFTCUDA_TEST_EXPECTED";

#[test]
fn installing_again_from_any_thread_changes_nothing() {
    let threads: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(|| std::ptr::from_ref(install().unwrap()) as usize))
        .collect();
    let installed: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(installed, [installed[0]; 8]);
    assert_eq!(CudaContext::new(2).unwrap().compute_capability().unwrap(), (7, 5));
}

/// Runs in a copy of this program, in a folder that another test has made.
#[test]
fn child() {
    let Ok(expected) = std::env::var(EXPECTED) else { return };
    if expected == "loaded" {
        // SAFETY: a copy of a harmless library.
        let library = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
        std::mem::forget(library);
    }
    let seen = match install() {
        Ok(_) => {
            CudaContext::new(0).unwrap();
            "installed".to_owned()
        }
        Err(InstallError::Stale { path }) => format!("stale: {}", path.display()),
        Err(InstallError::NotFound { searched, .. }) => format!("not found: {}", searched.len()),
        Err(InstallError::Loaded { name, .. }) => format!("loaded: {name}"),
        Err(other) => panic!("{other}"),
    };
    println!("{seen}");
    assert!(seen.starts_with(&expected), "{seen}");
}

/// A folder of this test's own, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("softcuda-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// The path of a file there, whose folder is made.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The library that cargo has built with this program.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().with_file_name("libsoftcuda.so");
    assert!(deps.is_file(), "{}", deps.display());
    deps
}

fn run(program: &Path, expected: &str, libraries: Option<&Path>) -> Output {
    let mut command = Command::new(program);
    command.args(["--exact", "child", "--nocapture"]).env(EXPECTED, expected);
    command.env_remove("CARGO_TARGET_DIR").env_remove("LD_LIBRARY_PATH");
    if let Some(folder) = libraries {
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().unwrap()
}

#[track_caller]
fn sees(output: Output, expected: &str) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(expected), "{text}");
}

#[test]
fn the_library_is_found_wherever_cargo_puts_it() {
    let folder = Folder::new("found");
    let program = std::env::current_exe().unwrap();
    // A test, a binary, an example, whatever the profile is called; and a library that was built for itself.
    for (at, library_at) in [
        ("target/debug/deps/test-0123", "target/debug/deps/libsoftcuda.so"),
        ("elsewhere/fast/tool", "elsewhere/fast/deps/libsoftcuda.so"),
        ("target/release/examples/show", "target/release/deps/libsoftcuda-0f.so"),
        ("other/debug/deps/test-0123", "other/debug/libsoftcuda.so"),
    ] {
        let at = folder.file(at);
        std::fs::copy(&program, &at).unwrap();
        let library_at = folder.file(library_at);
        std::fs::copy(library(), &library_at).unwrap();
        sees(run(&at, "installed", None), "installed");
        std::fs::remove_file(library_at).unwrap();
        sees(run(&at, "not found", None), "not found");
    }
    // Documentation tests run from a folder of their own, with this variable.
    let at = folder.file("doctest/rust_out");
    std::fs::copy(&program, &at).unwrap();
    sees(run(&at, "installed", library().parent()), "installed");
}

#[test]
fn a_library_from_other_sources_is_not_taken() {
    let folder = Folder::new("stale");
    let program = folder.file("deps/test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut bytes = std::fs::read(library()).unwrap();
    let mark = b"softcuda sources ";
    let at = bytes.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    bytes[at] ^= 1;
    let stale = folder.file("deps/libsoftcuda.so");
    std::fs::write(&stale, bytes).unwrap();
    sees(run(&program, "stale", None), &format!("stale: {}", stale.display()));
    // One that fits, farther away, is taken instead.
    std::fs::copy(library(), folder.file("libsoftcuda.so")).unwrap();
    sees(run(&program, "installed", None), "installed");
}

#[test]
fn a_driver_that_is_loaded_stays_the_driver() {
    let folder = Folder::new("loaded");
    // Any library will do that is not this crate's.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let other = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains("libgcc_s"))
        .unwrap();
    std::fs::copy(other, folder.file("libcuda.so.1")).unwrap();
    let program = std::env::current_exe().unwrap();
    sees(run(&program, "loaded", Some(&folder.0)), "loaded: libcuda.so.1");
}
