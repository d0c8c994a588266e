//! What the library holds beside its sources.
use std::io::Result;

#[cfg(feature = "cuda")]
#[path = "kernels/pack.rs"]
mod kernels;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels::pack()?;
    Ok(())
}
