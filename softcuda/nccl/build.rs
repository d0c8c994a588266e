//! Names the library for the loader and marks it with its sources.

fn main() -> std::io::Result<()> {
    softcuda_mark::library("libnccl.so.2")
}
