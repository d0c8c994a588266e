#[path = "../mark.rs"]
mod mark;

fn main() {
    mark::mark("libcuda.so", &["src", "../ptx-vm/src"]);
}
