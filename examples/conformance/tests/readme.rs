//! The program as README.md has it run, over all golden cases.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What the program says to these arguments, in the repository's folder.
fn run<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_conformance"));
    program.args(arguments).current_dir(root()).output().unwrap()
}

#[test]
fn engines_are_right_in_all_cases_by_the_command_of_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let command = "cargo run --release -p conformance -- ";
    let line = readme.lines().find_map(|line| line.strip_prefix(command)).expect(command);
    let (arguments, _) = line.split_once('#').expect("what it is for");
    let output = run(arguments.split_whitespace());
    let said = String::from_utf8(output.stdout).unwrap();
    println!("{said}");
    assert!(output.status.success(), "{:?}", output.status);
    let devices: &[&str] = match cfg!(all(feature = "cudnn", target_os = "linux")) {
        true => &["cuda", "cudnn", "gpu"],
        false => &[],
    };
    for engine in ["reference", "cpu"].iter().chain(devices) {
        let passes = |line: &&str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.get(1) == Some(engine) && words.last() == Some(&"pass")
        };
        // A case has several tensors.
        let (passed, cases) = (said.lines().filter(passes).count(), cases());
        assert!(passed > cases, "{engine}: {passed} tensors of {cases} cases");
    }
}

/// How many there are that every engine computes: those of one step.
fn cases() -> usize {
    let files = std::fs::read_dir(root().join("tests/golden")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".safetensors")).count()
}

#[test]
fn what_is_not_right_is_an_exit_status() {
    let case = std::fs::read(root().join("tests/golden/nc_f32.safetensors")).unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong.safetensors");
    let run_on = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        run(["--engine", "reference", path.to_str().unwrap()]).status.code()
    };
    assert_eq!(run_on(&case), Some(0));
    // x's last number, 2^64 times as far from zero, or as near to it.
    let mut wrong = case.clone();
    *wrong.last_mut().unwrap() ^= 0x20;
    assert_eq!(run_on(&wrong), Some(1));
    assert_eq!(run_on(&case[..case.len() / 2]), Some(1));
}
