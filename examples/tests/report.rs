//! `report` on a small record.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn report(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_report")).args(arguments).output().unwrap()
}
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report").join(name)
}

#[test]
fn a_report_puts_the_rows_that_are_lost_first() {
    let output = report(&[&fixture("peers.jsonl"), &fixture("ours.jsonl")]);
    assert!(output.status.success(), "{output:?}");
    let expected = std::fs::read_to_string(fixture("expected.md")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn a_report_draws_charts_of_rows_with_a_floor() {
    let out = std::env::temp_dir().join(format!("batchnorm-report-{}", std::process::id()));
    let (peers, ours) = (fixture("peers.jsonl"), fixture("ours.jsonl"));
    let output = report(&[&peers, &ours, Path::new("--out"), &out]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert!(read("speed-f32-t2.png").starts_with(b"\x89PNG"));
    let svg = String::from_utf8(read("speed-f32-t2.svg")).unwrap();
    for text in ["fwd_train", "bwd", "batchnorm-cpu", "torch-eager", "NCHW", "4.0", "9.0"] {
        assert!(svg.contains(text), "{text}");
    }
    // Its rows have no floor.
    assert!(!svg.contains("NC\n") && !svg.contains("infer"));
    assert!(String::from_utf8(read("report.md")).unwrap().contains("(speed-f32-t2.png)"));
    std::fs::remove_dir_all(&out).unwrap();
}

#[test]
fn a_line_that_is_malformed_is_named() {
    let line = r#""op": "bwd", "shape": [4, 3], "layout": "nc", "dtype": "f32", "threads": 2"#;
    let wrong = [
        ("{".to_string(), "EOF while parsing"),
        (format!(r#"{{"peer": "a", {line}}}"#), "missing field `median_s`"),
        (format!(r#"{{"peer": "a", {line}, "median_s": 0}}"#), "expected above 0, got 0"),
        (format!(r#"{{"peer": "a", {line}, "median_s": "1"}}"#), "invalid type"),
        (r#"{"peer": "a", "median_s": 1}"#.to_string(), "missing field"),
    ];
    for (k, (text, why)) in wrong.iter().enumerate() {
        let name = format!("batchnorm-malformed-{}-{k}.jsonl", std::process::id());
        let file = std::env::temp_dir().join(&name);
        let good = format!(r#"{{"peer": "a", {line}, "median_s": 1}}"#);
        std::fs::write(&file, format!("{good}\n\n{text}\n")).unwrap();
        let output = report(&[&file]);
        std::fs::remove_file(&file).unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(&format!("{name}, line 3")), "{text}: {error}");
        assert!(error.contains(why), "{text}: {error}");
    }
}
