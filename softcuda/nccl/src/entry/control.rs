//! Entry points that NCCL does not have: what tests set and ask.

use softlibrary::StandIn;

use crate::{
    rank::{LOG, live},
    status::is_failure,
};

const LIBRARY: StandIn = StandIn {
    stem: "softnccl",
    name: "libnccl.so.2",
    other_names: &["libnccl.so"],
    sources: match std::ffi::CStr::from_bytes_with_nul(
        concat!("softnccl sources ", env!("SOFTCUDA_SOURCES"), "\0").as_bytes(),
    ) {
        Ok(text) => text,
        Err(_) => panic!("one 0, at the end"),
    },
    mark: c"softnccl_sources",
};

softlibrary::control!(
    LIBRARY, LOG, live, is_failure:
    softnccl_sources, softnccl_message, softnccl_fail, softnccl_reset, softnccl_set_version
);
