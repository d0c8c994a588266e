//! Entry points that cuBLAS does not have: what tests set and ask.

use softlibrary::StandIn;

use crate::{
    handle::{LOG, live},
    status::is_failure,
};

const LIBRARY: StandIn = StandIn {
    stem: "softcublas",
    name: "libcublas.so",
    other_names: &[
        "libcublas.so.9",
        "libcublas.so.10",
        "libcublas.so.11",
        "libcublas.so.12",
        "libcublas.so.13",
    ],
    sources: match std::ffi::CStr::from_bytes_with_nul(
        concat!("softcublas sources ", env!("SOFTCUDA_SOURCES"), "\0").as_bytes(),
    ) {
        Ok(text) => text,
        Err(_) => panic!("one 0, at the end"),
    },
    mark: c"softcublas_sources",
};

softlibrary::control!(
    LIBRARY, LOG, live, is_failure:
    softcublas_sources, softcublas_message, softcublas_fail, softcublas_reset, softcublas_set_version
);
