//! Shared libraries of vendors, looked for before anything calls them: cudarc panics where one is not there.
use crate::{Error, Result};
use libloading::Library;
use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::sync::OnceLock;

/// Makes sure that there is a CUDA driver to call.
pub(crate) fn driver() -> Result<()> {
    static DRIVER: OnceLock<Library> = OnceLock::new();
    if DRIVER.get().is_none() {
        let library = load("CUDA driver", &names(&["cuda", "nvcuda"]))?;
        let _ = DRIVER.set(library); // or another thread has
    }
    Ok(())
}

/// The cuDNN whose statuses mean what cudarc's bindings say: any version 9.
#[cfg(feature = "cudnn")]
const CUDNN: std::ops::Range<usize> = 90_000..100_000;

/// Makes sure that there is a cuDNN to call, of the right version, with these functions.
#[cfg(feature = "cudnn")]
pub(crate) fn cudnn(functions: &[&str]) -> Result<()> {
    static FIT: OnceLock<Library> = OnceLock::new();
    if FIT.get().is_some() {
        return Ok(());
    }
    let library = load("cuDNN", &names(&["cudnn"]))?;
    let unfit = |reason| Err(Error::LibraryUnfit { library: "cuDNN", reason });
    // SAFETY: so it is declared in every cudnn.h.
    let version = unsafe { library.get::<unsafe extern "C" fn() -> usize>("cudnnGetVersion") };
    let version = match version {
        // SAFETY: it takes nothing and may be called at any time.
        Ok(version) => unsafe { version() },
        Err(error) => return unfit(format!("expected a cudnnGetVersion: {error}")),
    };
    // Until version 8 the major version was counted in thousands.
    let major = if version < 10_000 { 1000 } else { 10_000 };
    let name = format!("{}.{}.{}", version / major, version % major / 100, version % 100);
    if !CUDNN.contains(&version) {
        return unfit(format!("expected version 9, got {name}"));
    }
    let missing = missing(&library, functions);
    if !missing.is_empty() {
        return unfit(format!("version {name} does not have {missing}"));
    }
    let _ = FIT.set(library); // or another thread has
    Ok(())
}

/// The NCCL that has what is called of it: communicators that do not block the host, and all results of today.
#[cfg(feature = "nccl")]
const NCCL: std::ops::Range<usize> = 21_800..30_000;

/// An NCCL of the right version, with these functions. It is called through what this gives, not through cudarc, which
/// looks for other names than those that NVIDIA's wheels and packages install, and panics without one.
#[cfg(feature = "nccl")]
pub(crate) fn nccl(functions: &[&str]) -> Result<&'static Library> {
    static FIT: OnceLock<Library> = OnceLock::new();
    if let Some(library) = FIT.get() {
        return Ok(library);
    }
    let library = load("NCCL", &nccl_names())?;
    let unfit = |reason| Err(Error::LibraryUnfit { library: "NCCL", reason });
    type GetVersion = unsafe extern "C" fn(*mut std::ffi::c_int) -> u32;
    let mut version = 0;
    // SAFETY: so it is declared in every nccl.h.
    let status = match unsafe { library.get::<GetVersion>("ncclGetVersion") } {
        // SAFETY: `version` can be written, and it may be called at any time.
        Ok(get) => unsafe { get(&mut version) },
        Err(error) => return unfit(format!("expected a ncclGetVersion: {error}")),
    };
    let version = usize::try_from(version).unwrap_or_default();
    let name = format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100);
    if status != 0 || !NCCL.contains(&version) {
        return unfit(format!("expected version 2.18 or a later version 2, got {name}"));
    }
    let missing = missing(&library, functions);
    if !missing.is_empty() {
        return unfit(format!("version {name} does not have {missing}"));
    }
    Ok(FIT.get_or_init(|| library))
}

/// `libnccl.so.2` is what NVIDIA's wheels and packages install; a link without a version comes with its headers.
#[cfg(feature = "nccl")]
fn nccl_names() -> Vec<String> {
    let plain = format!("{DLL_PREFIX}nccl{DLL_SUFFIX}");
    if cfg!(unix) { vec![format!("{plain}.2"), plain] } else { vec![plain] }
}

/// Those of some functions that a library does not have.
#[cfg(any(feature = "cudnn", feature = "nccl"))]
fn missing(library: &Library, functions: &[&str]) -> String {
    // SAFETY: not called as this type.
    let has = |name: &str| unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_ok();
    let missing: Vec<&str> = functions.iter().copied().filter(|name| !has(name)).collect();
    missing.join(", ")
}

/// What libraries may be called: names that cudarc tries too, in its order, so that what is found
/// here is what it calls.
fn names(libraries: &[&str]) -> Vec<String> {
    let plain = libraries.iter().map(|library| format!("{DLL_PREFIX}{library}"));
    plain.flat_map(|plain| files(&plain, DLL_SUFFIX)).collect()
}

/// `cudnn64_9.dll` on Windows, `libcudnn.so.9` elsewhere, without a version first.
fn files(plain: &str, suffix: &str) -> Vec<String> {
    let mut files = vec![format!("{plain}{suffix}")];
    if suffix == ".dll" {
        files.push(format!("{plain}64{suffix}"));
        files.extend([10, 11, 12, 9].map(|version| format!("{plain}64_{version}{suffix}")));
    } else {
        files.extend([12, 11, 10, 9, 1].map(|version| format!("{plain}{suffix}.{version}")));
    }
    files
}

fn load(library: &'static str, names: &[String]) -> Result<Library> {
    // SAFETY: the vendor's own library, whose loading only sets up its own state.
    let mut found = names.iter().map(|name| unsafe { Library::new(name) });
    found.find_map(std::result::Result::ok).ok_or_else(|| {
        let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let reason = format!("LD_LIBRARY_PATH is {path:?}, then come the system's own folders");
        Error::Library { library, searched: names.to_vec(), reason }
    })
}

#[cfg(test)]
#[path = "library_tests.rs"]
mod tests;
