//! Entry points that cuRAND does not have: what tests set and ask.

use softlibrary::StandIn;

use crate::{
    generator::{LOG, live},
    status::is_failure,
};

const LIBRARY: StandIn = StandIn {
    stem: "softcurand",
    name: "libcurand.so",
    other_names: &["libcurand.so.9", "libcurand.so.10"],
    sources: match std::ffi::CStr::from_bytes_with_nul(
        concat!("softcurand sources ", env!("SOFTCUDA_SOURCES"), "\0").as_bytes(),
    ) {
        Ok(text) => text,
        Err(_) => panic!("one 0, at the end"),
    },
    mark: c"softcurand_sources",
};

softlibrary::control!(
    LIBRARY, LOG, live, is_failure:
    softcurand_sources, softcurand_message, softcurand_fail, softcurand_reset, softcurand_set_version
);
