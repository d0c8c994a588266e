//! Names the library for the loader and marks it with its sources.

#[path = "../mark.rs"]
mod mark;

fn main() {
    mark::mark("libcudnn.so", &["src", "../library/src"]);
}
