#![doc = include_str!("../README.md")]

/// Name and machine code of each module, by name: an LZMA file of a cubin for every target, the lowest first.
///
/// Before each stand 16 bytes, little endian: the target as a `u32`, 86 for sm_86; the bytes of the cubin as a
/// `u32`; and as a `u64` the FNV-1a hash of the file of packed PTX that it was made of. Zeros fill each up to a multiple
/// of 16 bytes. `batchnorm` reads them; the format may change with every version.
pub const MODULES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));
