//! Safetensors files: those that torch wrote, and made by hand.
use super::files::checkout;
use batchnorm::StateDict;

/// A file of `tests/state/`.
pub fn file(name: &str) -> Vec<u8> {
    std::fs::read(checkout(&format!("tests/state/{name}.safetensors"))).unwrap()
}
pub fn dict(name: &str) -> StateDict {
    StateDict::from_bytes(&file(name)).unwrap()
}

/// One tensor's line of a header.
pub fn info(name: &str, dtype: &str, shape: &str, [start, end]: [u64; 2]) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}
/// A file with this header and data.
pub fn bytes_of(header: &[String], data: &[u8]) -> Vec<u8> {
    let header = format!("{{{}}}", header.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
pub fn handmade(header: &[String], data: &[u8]) -> StateDict {
    StateDict::from_bytes(&bytes_of(header, data)).unwrap()
}
