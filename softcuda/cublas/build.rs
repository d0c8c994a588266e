#[path = "../mark.rs"]
mod mark;

fn main() {
    mark::mark("libcublas.so", &["src", "../library/src"]);
}
