//! The examples as programs.
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One of them, in `examples/NAME/`; `cargo test` builds it, `cargo test --test ..` does not.
pub fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let profile = tests.ancestors().nth(2).unwrap(); // target/debug of target/debug/deps/speed-..
    let path = profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let built = changed(&path);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
    let sources = std::fs::read_dir(sources).unwrap().map(|file| changed(&file.unwrap().path()));
    assert!(
        built.is_some() && sources.max() <= Some(built),
        "{} is missing or old: cargo build --profile test --example {name}",
        path.display()
    );
    path
}

fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|data| data.modified()).ok()
}
