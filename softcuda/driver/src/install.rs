//! Making this crate's library the driver of the process.

use std::sync::OnceLock;

use softlibrary::{InstallError, StandIn};

use crate::control::{Calls, SOURCES, Softcuda};

const DRIVER: StandIn = StandIn {
    stem: "softcuda",
    name: "libcuda.so",
    other_names: &[
        "libcuda.so.1",
        "libcuda.so.9",
        "libcuda.so.10",
        "libcuda.so.11",
        "libcuda.so.12",
        "libcuda.so.13",
        "libcuda64.so",
        "libnvcuda.so",
    ],
    sources: SOURCES,
    mark: c"softcuda_sources",
};

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
    let library = DRIVER.load()?;
    let calls = calls(&library).map_err(|error| InstallError::Broken {
        path: DRIVER.name.into(),
        reason: error.to_string(),
    })?;
    // It is the driver for as long as the process lives.
    std::mem::forget(library);
    Ok(INSTALLED.get_or_init(|| Softcuda { calls }))
}

fn calls(library: &libloading::Library) -> Result<Calls, libloading::Error> {
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
        let_equal_writes_pass: get!("softcuda_let_equal_writes_pass"),
        set_shared_taken: get!("softcuda_set_shared_taken"),
        launch_count: get!("softcuda_launch_count"),
        launch: get!("softcuda_launch"),
        launch_kernel: get!("softcuda_launch_kernel"),
        message: get!("softcuda_message"),
        fail: get!("softcuda_fail"),
        reset: get!("softcuda_reset"),
        used: get!("softcuda_used"),
        calls: get!("softcuda_calls"),
        forget_calls: get!("softcuda_forget_calls"),
    })
}
