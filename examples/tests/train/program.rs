//! The example as a program: its signals, its limits and what it says of them.
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use super::example::{checkpoint, data::Data};
use super::{experiment, folder};

const TRAIN: &str = env!("CARGO_BIN_EXE_train");

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A run that does not end by itself, begun by `command` with the program and its options after it;
/// what it prints, and has printed.
fn endless(command: &[&str], folder: &Path) -> (Child, BufReader<ChildStdout>, String) {
    let words = [command, &[TRAIN, "--device", "cpu", "--steps", "1000000000", "--out"]].concat();
    let mut train = Command::new(words[0]);
    train.args(&words[1..]).arg(folder).arg("--checkpoint").arg(folder.join("checkpoint"));
    let mut train = train.stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = BufReader::new(train.stdout.take().unwrap());
    let mut text = String::new();
    while !text.contains("seed 1") {
        assert!(printed.read_line(&mut text).unwrap() > 0, "{text}");
    }
    (train, printed, text)
}

fn send(signal: &str, to: &Child) {
    let id = to.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
}

/// `timeout` sends SIGTERM twice, at once.
#[test]
fn sigterm_leaves_checkpoint_table_and_plots_however_often_it_comes_at_once() {
    let folder = folder("sigterm");
    let path = folder.join("checkpoint");
    let (mut train, mut printed, mut text) = endless(&[], &folder);
    send("-TERM", &train);
    send("-TERM", &train);
    printed.read_to_string(&mut text).unwrap();
    assert_eq!(train.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("steps to 80 % accuracy"), "{text}");
    assert!(text.contains(&format!("--resume {} continues", path.display())), "{text}");
    assert!(folder.join("accuracy.png").exists() && folder.join("accuracy.svg").exists());
    let data = Data::digits().unwrap();
    let mut stopped = experiment("", &data);
    checkpoint::load(&fs::read(&path).unwrap(), &mut stopped).unwrap();
    assert!(text.contains(&format!("stopped at step {};", stopped.step)), "{text}");
}

#[test]
fn a_run_under_nohup_outlives_sighup() {
    let (mut train, mut printed, mut text) = endless(&["nohup"], &folder("nohup"));
    send("-HUP", &train);
    std::thread::sleep(Duration::from_millis(500));
    assert!(train.try_wait().unwrap().is_none());
    send("-TERM", &train);
    printed.read_to_string(&mut text).unwrap();
    assert_eq!(train.wait().unwrap().code(), Some(130), "{text}");
}

/// Files of at most 75 or 150 KiB, as shells count: plots fit, a checkpoint of 215 KiB does not.
#[test]
fn a_checkpoint_that_does_not_fit_costs_neither_table_nor_plots() {
    let folder = folder("full");
    let path = folder.join("checkpoint");
    fs::write(&path, b"old").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap '' XFSZ; ulimit -f 150; exec "$0" "$@""#]).arg(TRAIN);
    shell.args(["--device", "cpu", "--steps", "1001", "--out"]).arg(&folder);
    let output = shell.arg("--checkpoint").arg(&path).env_remove("RUST_BACKTRACE").output();
    let Output { status, stdout, stderr } = output.unwrap();
    let (printed, errors) = (text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(1), "{printed}{errors}");
    let why = format!("{}: cannot be written", path.display());
    let first = format!("step 1000: {why}: File too large");
    assert!(errors.starts_with(&first), "{errors}");
    assert!(errors.contains("; the run goes on\n"), "{errors}");
    assert!(errors.contains(&format!("\nError: {why}\n")), "{errors}");
    assert!(printed.contains("accuracy after 1001"), "{printed}");
    assert!(printed.contains("plots: "), "{printed}");
    assert!(printed.ends_with("ended at step 1001; no checkpoint could be written\n"), "{printed}");
    assert!(fs::read(folder.join("accuracy.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(fs::read_to_string(folder.join("accuracy.svg")).unwrap().contains("</svg>"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
}

#[cfg(feature = "cuda")]
#[test]
fn a_missing_driver_is_one_short_line_and_all_its_names_where_asked_for() {
    let folder = folder("driver");
    let error = |program: &str, more: &[&str]| {
        let mut command = Command::new(program);
        command.args(["--device", "cuda", "--steps", "1"]).args(more);
        let output = command.current_dir(&folder).env_remove("RUST_BACKTRACE").output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for program in [TRAIN, env!("CARGO_BIN_EXE_cnn")] {
        let all = error(program, &["--verbose"]);
        if !all.starts_with("Error: CUDA driver: ") {
            return println!("skipped: this machine has a CUDA driver");
        }
        for part in ["cuda.", ".12", "LD_LIBRARY_PATH"] {
            assert!(all.contains(part), "{part}: {all}");
        }
        let short = "Error: CUDA driver: not found; --verbose says where it was looked for\n";
        assert_eq!(error(program, &[]), short);
    }
}
