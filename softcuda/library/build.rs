//! Tells the libraries that this crate is part of what it is built from.

fn main() -> std::io::Result<()> {
    softcuda_mark::part()
}
