//! The `compare_kernels` example, software device against software device.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program; `cargo test` builds it, `cargo test --test compare` does not.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap(); // target/debug of target/debug/deps/compare-..
    let path = profile.join("examples/compare_kernels");
    let changed = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/compare_kernels");
    let sources = std::fs::read_dir(sources).unwrap().map(|file| changed(&file.unwrap().path()));
    assert!(
        sources.max() <= Some(changed(&path)),
        "{} is missing or old: cargo build --profile test -p softcuda --example compare_kernels",
        path.display()
    );
    path
}

fn run(file: &Path, arguments: &[&str]) -> (Output, String) {
    let mut command = Command::new(program());
    let output = command.args(arguments).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

struct Record(PathBuf);

impl Record {
    fn new(test: &str) -> Self {
        let name = format!("softcuda-{test}-{}.safetensors", std::process::id());
        let record = Self(std::env::temp_dir().join(name));
        let (output, _) = run(&record.0, &["--software", "--seed", "1", "--record"]);
        assert!(output.status.success(), "{output:?}");
        record
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn another_seed_and_another_profile_give_the_same_bits_and_a_changed_bit_is_seen() {
    let record = Record::new("bits");
    let (output, text) = run(&record.0, &["--software", "--seed", "2", "--compare"]);
    assert!(output.status.success() && text.contains("pass: 0 of"), "{output:?}");
    // sm_75: other PTX of the same kernels.
    let (output, text) = run(&record.0, &["--software", "--ordinal", "2", "--compare"]);
    assert!(output.status.success() && text.contains("not run: this device"), "{output:?}");

    // The first tensor of the file is one of exact results; its first byte lies behind the header.
    let mut bytes = std::fs::read(&record.0).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header] ^= 1;
    std::fs::write(&record.0, bytes).unwrap();
    let (output, text) = run(&record.0, &["--software", "--compare"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("FAIL: 1 of") && text.contains("    [0]: recorded 0x"), "{text}");
}

#[test]
fn a_record_that_is_cut_short_is_an_error() {
    let record = Record::new("short");
    let bytes = std::fs::read(&record.0).unwrap();
    std::fs::write(&record.0, &bytes[..bytes.len() - 1]).unwrap();
    let (output, _) = run(&record.0, &["--software", "--compare"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Error"), "{output:?}");
}
