#[path = "../mark.rs"]
mod mark;

fn main() {
    mark::mark("libcudnn.so", &["src", "../library/src"]);
}
