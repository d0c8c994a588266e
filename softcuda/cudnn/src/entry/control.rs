//! Entry points that cuDNN does not have: what tests set and ask.

use softlibrary::StandIn;

use crate::{
    handle::{LOG, live},
    status::is_failure,
};

const LIBRARY: StandIn = StandIn {
    stem: "softcudnn",
    name: "libcudnn.so",
    other_names: &["libcudnn.so.1", "libcudnn.so.7", "libcudnn.so.8", "libcudnn.so.9"],
    sources: match std::ffi::CStr::from_bytes_with_nul(
        concat!("softcudnn sources ", env!("SOFTCUDA_SOURCES"), "\0").as_bytes(),
    ) {
        Ok(text) => text,
        Err(_) => panic!("one 0, at the end"),
    },
    mark: c"softcudnn_sources",
};

softlibrary::control!(
    LIBRARY, LOG, live, is_failure:
    softcudnn_sources, softcudnn_message, softcudnn_fail, softcudnn_reset, softcudnn_set_version
);
