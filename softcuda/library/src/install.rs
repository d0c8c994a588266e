//! Making a library of this workspace the one that a vendor's name stands for, in one process.

use std::{ffi::CStr, path::PathBuf};

/// Why a software library is not there in this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A library of that name has been loaded before, a vendor's or an unknown one.
    #[error("{name} is loaded already, and it is not {ours}: install it before the first call")]
    Loaded {
        /// The name it answers to.
        name: String,
        /// The library that was to be installed.
        ours: String,
    },
    /// A library was built from other sources than this program.
    #[error("{} was built from other sources than this program: build again", path.display())]
    Stale {
        /// The library.
        path: PathBuf,
    },
    /// The library is not where cargo puts it.
    #[error("{ours} is in none of {searched:?}; its crate must be a dependency of the program")]
    NotFound {
        /// The library.
        ours: String,
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
    #[error("the software libraries need Linux")]
    Unsupported,
}

/// A library that stands in for a vendor's.
#[derive(Debug)]
pub struct StandIn {
    /// Cargo calls its file `lib{stem}.so`.
    pub stem: &'static str,
    /// What callers ask the loader for, and what the library says it is called.
    pub name: &'static str,
    /// What else the vendor's may be called.
    pub other_names: &'static [&'static str],
    /// What it was built from: the text that [`StandIn::mark`] answers.
    pub sources: &'static CStr,
    /// The function that tells what a loaded library was built from, with the 0 at its end.
    pub mark: &'static CStr,
}

impl StandIn {
    /// Loads the library that cargo has built with this program: whoever asks the loader for its
    /// [name](StandIn::name) from now on gets it.
    ///
    /// It never stands in a vendor's library's way unasked: no file has its name, no variable is set, and where one has
    /// been loaded in this process it refuses.
    ///
    /// # Errors
    /// [`InstallError`].
    pub fn load(&self) -> Result<libloading::Library, InstallError> {
        self.load_without(&[])
    }

    /// [`StandIn::load`] of a copy in which these functions are called otherwise, as if it were a library that does not
    /// have them.
    ///
    /// # Errors
    /// [`InstallError`]; [`InstallError::Broken`] where there is no such function.
    #[cfg(not(target_os = "linux"))]
    pub fn load_without(&self, _hidden: &[&str]) -> Result<libloading::Library, InstallError> {
        Err(InstallError::Unsupported)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::{CStr, CString, OsStr, c_char},
        path::{Path, PathBuf},
        sync::atomic::{AtomicU32, Ordering},
    };

    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    use super::{InstallError, StandIn};

    /// Only tells whether a library is loaded.
    const RTLD_NOLOAD: i32 = 4;

    impl StandIn {
        /// [`StandIn::load`] of a copy in which these functions are called otherwise, as if it were a library that does
        /// not have them.
        ///
        /// # Errors
        /// [`InstallError`]; [`InstallError::Broken`] where there is no such function.
        pub fn load_without(&self, hidden: &[&str]) -> Result<libloading::Library, InstallError> {
            for name in self.other_names.iter().chain([&self.name]) {
                if let Some(loaded) = loaded(name)
                    && self.sources_of(&loaded).as_deref() != Some(self.sources)
                {
                    return Err(InstallError::Loaded {
                        name: (*name).into(),
                        ours: self.stem.into(),
                    });
                }
            }
            let path = self.find()?;
            let broken = |reason: String| InstallError::Broken { path: path.clone(), reason };
            let copy = match hidden {
                [] => None,
                _ => Some(without(&path, hidden).map_err(broken)?),
            };
            let file = copy.as_ref().unwrap_or(&path);
            // SAFETY: a library of this workspace, whose loading runs nothing of its own.
            let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
            if let Some(copy) = &copy {
                // Loaded or not, the file has done its work.
                std::fs::remove_file(copy).map_err(|error| broken(error.to_string()))?;
            }
            let library = library.map_err(|error| broken(error.to_string()))?;
            if self.sources_of(&library).as_deref() != Some(self.sources) {
                return Err(InstallError::Stale { path });
            }
            let answering = loaded(self.name).and_then(|library| self.sources_of(&library));
            if answering.as_deref() != Some(self.sources) {
                return Err(broken(format!("the loader does not know it as {}", self.name)));
            }
            Ok(library.into())
        }

        /// What a library says it was built from; `None` if it is not this one.
        fn sources_of(&self, library: &Library) -> Option<CString> {
            // SAFETY: no other library has a function of this name.
            let function = unsafe {
                library.get::<extern "C" fn() -> *const c_char>(self.mark.to_bytes_with_nul())
            }
            .ok()?;
            // SAFETY: it answers with a constant of the library, which is loaded.
            Some(unsafe { CStr::from_ptr(function()) }.to_owned())
        }

        /// The library that was built with this program.
        fn find(&self) -> Result<PathBuf, InstallError> {
            let searched = folders();
            let mut stale = None;
            for path in searched.iter().flat_map(|folder| libraries(folder, self.stem)) {
                // Look before loading: a stale library, once loaded, would be what the name stands for.
                match std::fs::read(&path) {
                    Ok(bytes) if find(&bytes, self.sources.to_bytes()).is_some() => {
                        return Ok(path);
                    }
                    Ok(_) => stale = Some(path),
                    Err(_) => {}
                }
            }
            let ours = format!("lib{}.so", self.stem);
            Err(match stale {
                Some(path) => InstallError::Stale { path },
                None => InstallError::NotFound { ours, searched },
            })
        }
    }

    /// A library that is loaded under that name.
    fn loaded(name: &str) -> Option<Library> {
        // SAFETY: nothing is loaded, so nothing of it runs.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) }.ok()
    }

    /// A copy in which these functions are called otherwise.
    fn without(path: &Path, hidden: &[&str]) -> Result<PathBuf, String> {
        static COPIES: AtomicU32 = AtomicU32::new(0);
        let mut bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        for function in hidden {
            let name = [b"\0", function.as_bytes(), b"\0"].concat();
            let mut found = false;
            while let Some(at) = find(&bytes, &name) {
                // The loader's table of hashes still leads here from the old name, and here it is another one.
                bytes[at + 1] = b'_';
                found = true;
            }
            if !found {
                return Err(format!("there is no {function}"));
            }
        }
        let copy = COPIES.fetch_add(1, Ordering::Relaxed);
        let copy =
            std::env::temp_dir().join(format!("softlibrary-{}-{copy}.so", std::process::id()));
        std::fs::write(&copy, bytes).map_err(|error| error.to_string())?;
        Ok(copy)
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
    fn libraries(folder: &Path, stem: &str) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let rest = name.strip_prefix("lib").and_then(|name| name.strip_prefix(stem));
            rest.is_some_and(|rest| {
                rest == ".so" || (rest.starts_with('-') && rest.ends_with(".so"))
            })
        };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(is_ours).collect()
    }

    /// Where a part of bytes is.
    fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
        bytes.windows(part.len()).position(|window| window == part)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_library_itself_is_taken() {
            let folder = std::env::temp_dir().join(format!("softlibrary-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            for name in ["libsoftcuda.so", "libsoftcuda-0a1b.so", "libsoftcuda.so.d", "libcuda.so"]
            {
                std::fs::write(folder.join(name), "").unwrap();
            }
            let mut found = libraries(&folder, "softcuda");
            found.sort();
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(found, [folder.join("libsoftcuda-0a1b.so"), folder.join("libsoftcuda.so")]);
        }
    }
}
