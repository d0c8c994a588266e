//! What a test has in its hands after installing a library: that library's own functions, safe.

use std::ffi::{CStr, c_char};

use crate::{InstallError, StandIn, log::List};

/// The functions by which a loaded library is controlled.
#[derive(Debug)]
#[doc(hidden)]
pub struct Calls {
    pub message: unsafe extern "C" fn(u32, usize, *mut u8, usize) -> usize,
    pub fail: unsafe extern "C" fn(*const c_char, u64, u32) -> bool,
    pub reset: extern "C" fn(),
    pub set_version: extern "C" fn(usize),
}

/// A library of this process, once it is installed. What it tells and what it is told is of the calling thread alone,
/// save its version.
#[derive(Debug)]
pub struct Control {
    calls: Calls,
}

impl Control {
    /// Loads a library for as long as the process lives, without the functions that are hidden.
    ///
    /// # Errors
    /// [`InstallError`].
    #[doc(hidden)]
    pub fn load(this: &StandIn, names: [&str; 4], hidden: &[&str]) -> Result<Self, InstallError> {
        let library = this.load_without(hidden)?;
        let get = || -> Result<Calls, libloading::Error> {
            let [message, fail, reset, version] = names;
            // SAFETY: the library was built from these sources, where the functions have these types.
            unsafe {
                Ok(Calls {
                    message: *library.get(message)?,
                    fail: *library.get(fail)?,
                    reset: *library.get(reset)?,
                    set_version: *library.get(version)?,
                })
            }
        };
        let calls = get().map_err(|error| InstallError::Broken {
            path: this.name.into(),
            reason: error.to_string(),
        })?;
        std::mem::forget(library);
        Ok(Self { calls })
    }

    /// Makes a call answer `status`, and do nothing: the next one of that name, or with `before` others before it.
    ///
    /// # Panics
    /// If the library has no such status, or it is success.
    pub fn fail(&self, call: &str, before: u64, status: u32) {
        let name = std::ffi::CString::new(call).expect("a name");
        // SAFETY: a text that ends in 0.
        let is_set = unsafe { (self.calls.fail)(name.as_ptr(), before, status) };
        assert!(is_set, "{call}: {status} is no failure");
    }

    /// Why calls were refused.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        self.messages(List::Refusals)
    }

    /// What queued work found wrong, when there was no call to refuse. Synchronise first.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.messages(List::Faults)
    }

    /// Handles and descriptors that exist.
    #[must_use]
    pub fn live(&self) -> Vec<String> {
        self.messages(List::Live)
    }

    /// The calls of this library that this thread has made since the last [`reset`](Self::reset), by name, in
    /// their order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.messages(List::Calls)
    }

    /// Forgets calls, refusals, faults and requested failures.
    pub fn reset(&self) {
        (self.calls.reset)();
    }

    /// Sets the version that the library says it has, for all threads.
    pub fn set_version(&self, version: usize) {
        (self.calls.set_version)(version);
    }

    fn messages(&self, list: List) -> Vec<String> {
        let message = |at: usize| {
            let mut text = vec![0; 1024];
            // SAFETY: there is as much room as it says.
            let length =
                unsafe { (self.calls.message)(list as u32, at, text.as_mut_ptr(), text.len()) };
            text.truncate(length);
            (length != usize::MAX).then(|| String::from_utf8_lossy(&text).into_owned())
        };
        (0..).map_while(message).collect()
    }
}

/// For [`control!`](crate::control): copies as much of a text as fits, and tells how long it is; `usize::MAX` where
/// there is none.
///
/// # Safety
/// `out` must be valid for writing `room` bytes.
#[doc(hidden)]
pub unsafe fn copy_text(text: Option<String>, out: *mut u8, room: usize) -> usize {
    let Some(text) = text else { return usize::MAX };
    // SAFETY: by the contract of this function.
    unsafe { out.copy_from_nonoverlapping(text.as_ptr(), text.len().min(room)) };
    text.len()
}

/// For [`control!`](crate::control).
///
/// # Safety
/// `text` must end in 0.
#[doc(hidden)]
pub unsafe fn text<'a>(text: *const c_char) -> &'a str {
    // SAFETY: by the contract of this function.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or_default()
}

/// The list of a number.
#[doc(hidden)]
#[must_use]
pub fn list(number: u32) -> Option<List> {
    [List::Refusals, List::Faults, List::Live, List::Calls].get(number as usize).copied()
}

/// Defines the functions by which a library is controlled, and `install` and `install_without`, which load it.
#[macro_export]
macro_rules! control {
    (
        $stand_in:ident, $log:path, $live:path, $is_failure:path:
        $sources:ident, $message:ident, $fail:ident, $reset:ident, $set_version:ident
    ) => {
        #[unsafe(no_mangle)]
        extern "C" fn $sources() -> *const std::ffi::c_char {
            $stand_in.sources.as_ptr()
        }

        /// # Safety
        /// `out` must be valid for writing `room` bytes.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $message(list: u32, at: usize, out: *mut u8, room: usize) -> usize {
            let text = match $crate::list(list) {
                Some($crate::List::Live) => $live().into_iter().nth(at),
                Some(list) => $log.message(list, at),
                None => None,
            };
            // SAFETY: by the contract of this function.
            unsafe { $crate::copy_text(text, out, room) }
        }

        /// # Safety
        /// `call` must end in 0.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $fail(
            call: *const std::ffi::c_char,
            before: u64,
            status: u32,
        ) -> bool {
            if $is_failure(status) {
                // SAFETY: by the contract of this function.
                $log.fail(unsafe { $crate::text(call) }, before, status);
            }
            $is_failure(status)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $reset() {
            $log.reset();
        }

        #[unsafe(no_mangle)]
        extern "C" fn $set_version(version: usize) {
            $log.set_version(version);
        }

        /// Makes this library the one of its name in this process. Call it before the first call to the library;
        /// calling it again, from any thread, changes nothing.
        ///
        /// # Errors
        /// [`InstallError`](softlibrary::InstallError).
        pub fn install() -> Result<&'static $crate::Control, $crate::InstallError> {
            install_without(&[])
        }

        /// [`install`] of a library that does not have these functions. What is installed first stays.
        ///
        /// # Errors
        /// [`InstallError`](softlibrary::InstallError).
        pub fn install_without(
            hidden: &[&str],
        ) -> Result<&'static $crate::Control, $crate::InstallError> {
            static INSTALLED: std::sync::Mutex<Option<&'static $crate::Control>> =
                std::sync::Mutex::new(None);
            let mut installed = INSTALLED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(installed) = *installed {
                return Ok(installed);
            }
            let names = [
                stringify!($message),
                stringify!($fail),
                stringify!($reset),
                stringify!($set_version),
            ];
            let control = $crate::Control::load(&$stand_in, names, hidden)?;
            Ok(installed.insert(Box::leak(Box::new(control))))
        }
    };
}
