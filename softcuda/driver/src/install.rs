//! Making this crate's library the driver of the process.

use std::{path::PathBuf, sync::OnceLock};

use crate::control::Softcuda;

/// Why there is no software device in this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A driver has been loaded before, one for real devices or an unknown one.
    #[error(
        "{name} is loaded already, and it is not the software device: install it before the first CUDA call"
    )]
    DriverLoaded {
        /// The name it answers to.
        name: String,
    },
    /// A library was built from other sources than this program.
    #[error("{} was built from other sources than this program: build again", path.display())]
    Stale {
        /// The library.
        path: PathBuf,
    },
    /// The library is not where cargo puts it.
    #[error(
        "libsoftcuda.so is in none of {searched:?}; softcuda must be a dependency of the program"
    )]
    NotFound {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The library does not load, or does not answer as it should.
    #[error("{}: {reason}", path.display())]
    Broken {
        /// The library.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Only the Linux loader finds a library by the name it says it has.
    #[error("the software device needs Linux")]
    Unsupported,
}

/// Makes the software device the CUDA driver of this process: whoever asks the loader for `libcuda.so` from now on
/// gets it. Call it before anything of CUDA; calling it again, from any thread, changes nothing.
///
/// It never stands in a real driver's way unasked: no file is called `libcuda.so`, no variable is set, and where a real
/// driver has been loaded in this process it refuses.
pub fn install() -> Result<&'static Softcuda, InstallError> {
    static INSTALLED: OnceLock<Softcuda> = OnceLock::new();
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(installed) = INSTALLED.get() {
        return Ok(installed);
    }
    let softcuda = load()?;
    Ok(INSTALLED.get_or_init(|| softcuda))
}

#[cfg(not(target_os = "linux"))]
fn load() -> Result<Softcuda, InstallError> {
    Err(InstallError::Unsupported)
}

#[cfg(target_os = "linux")]
use linux::load;

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::{CStr, OsStr, c_char},
        path::{Path, PathBuf},
    };

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::InstallError;
    use crate::control::{Calls, SOURCES, Softcuda};

    /// Only tells whether a library is loaded.
    const RTLD_NOLOAD: i32 = 4;
    /// What callers ask the loader for, and what the library says it is called.
    const NAME: &str = "libcuda.so";
    /// What else a driver may be called.
    const OTHER_NAMES: [&str; 8] = [
        "libcuda.so.1",
        "libcuda.so.9",
        "libcuda.so.10",
        "libcuda.so.11",
        "libcuda.so.12",
        "libcuda.so.13",
        "libcuda64.so",
        "libnvcuda.so",
    ];

    pub(super) fn load() -> Result<Softcuda, InstallError> {
        for name in OTHER_NAMES.into_iter().chain([NAME]) {
            if let Some(loaded) = loaded(name)
                && sources(&loaded).as_deref() != Some(SOURCES)
            {
                return Err(InstallError::DriverLoaded { name: name.to_owned() });
            }
        }
        let path = find()?;
        let broken = |reason: String| InstallError::Broken { path: path.clone(), reason };
        // SAFETY: this crate's own library, whose loading runs nothing of its own.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| broken(error.to_string()))?;
        if sources(&library).as_deref() != Some(SOURCES) {
            return Err(InstallError::Stale { path });
        }
        let answering = loaded(NAME).and_then(|library| sources(&library));
        if answering.as_deref() != Some(SOURCES) {
            return Err(broken(format!("the loader does not know it as {NAME}")));
        }
        let calls = calls(&library).map_err(|error| broken(error.to_string()))?;
        // It is the driver for as long as the process lives.
        std::mem::forget(library);
        Ok(Softcuda { calls })
    }

    /// A library that is loaded under that name.
    fn loaded(name: &str) -> Option<Library> {
        // SAFETY: nothing is loaded, so nothing of it runs.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.ok()
    }

    /// What a library says it was built from; `None` if it is not this crate's.
    fn sources(library: &Library) -> Option<std::ffi::CString> {
        // SAFETY: no other library has a function of this name.
        let function =
            unsafe { library.get::<extern "C" fn() -> *const c_char>(b"softcuda_sources\0") }
                .ok()?;
        // SAFETY: it answers with a constant of the library, which is loaded.
        Some(unsafe { CStr::from_ptr(function()) }.to_owned())
    }

    fn calls(library: &Library) -> Result<Calls, libloading::Error> {
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the library was built from these sources, where the function has this type.
                *unsafe { library.get(concat!($name, "\0").as_bytes()) }?
            };
        }
        Ok(Calls {
            seed: get!("softcuda_seed"),
            set_seed: get!("softcuda_set_seed"),
            set_all_seeds: get!("softcuda_set_all_seeds"),
            set_budget: get!("softcuda_set_budget"),
            launch_count: get!("softcuda_launch_count"),
            launch: get!("softcuda_launch"),
            launch_kernel: get!("softcuda_launch_kernel"),
            message: get!("softcuda_message"),
            fail: get!("softcuda_fail"),
            reset: get!("softcuda_reset"),
            used: get!("softcuda_used"),
        })
    }

    /// The library that was built with this program.
    fn find() -> Result<PathBuf, InstallError> {
        let searched = folders();
        let mut stale = None;
        for path in searched.iter().flat_map(|folder| libraries(folder)) {
            // Look before loading: a stale library, once loaded, would be the driver.
            match std::fs::read(&path) {
                Ok(bytes) if contains(&bytes, SOURCES.to_bytes()) => return Ok(path),
                Ok(_) => stale = Some(path),
                Err(_) => {}
            }
        }
        Err(match stale {
            Some(path) => InstallError::Stale { path },
            None => InstallError::NotFound { searched },
        })
    }

    /// Where cargo may have put it: beside the program (tests), in `deps` beside it (binaries) or beside its folder
    /// (examples), where `CARGO_TARGET_DIR` says, and on the path that cargo gives to what it runs (documentation
    /// tests, whose programs are elsewhere).
    fn folders() -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let mut add = |folder: &Path| {
            for folder in [folder.to_owned(), folder.join("deps")] {
                if folder.is_dir() && !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
        };
        if let Ok(program) = std::env::current_exe() {
            program.ancestors().skip(1).take(2).for_each(&mut add);
        }
        if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
            ["debug", "release"].iter().for_each(|profile| add(&Path::new(&target).join(profile)));
        }
        if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
            std::env::split_paths(&path).for_each(|folder| add(&folder));
        }
        folders
    }

    /// The files in a folder that cargo may have called so.
    fn libraries(folder: &Path) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            name == "libsoftcuda.so" || (name.starts_with("libsoftcuda-") && name.ends_with(".so"))
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_library_itself_is_taken() {
            let folder = std::env::temp_dir().join(format!("softcuda-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            for name in ["libsoftcuda.so", "libsoftcuda-0a1b.so", "libsoftcuda.so.d", "libcuda.so"]
            {
                std::fs::write(folder.join(name), "").unwrap();
            }
            let mut found = libraries(&folder);
            found.sort();
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(found, [folder.join("libsoftcuda-0a1b.so"), folder.join("libsoftcuda.so")]);
        }
    }
}
