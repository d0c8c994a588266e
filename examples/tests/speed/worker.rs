//! A process that answers requests, one JSON object per line.
use super::table::{Case, Pass};
use super::{reference, small_cases};
use approx::relative_eq;
use batchnorm::DType;
use half::{bf16, f16};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A worker, and what it answers.
struct Worker {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(engine: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_speed"));
        command.args(["--worker", engine]).env("RAYON_NUM_THREADS", "2");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }
    fn ask_bytes(&mut self, request: &[u8]) -> Value {
        let mut input = self.child.stdin.as_ref().unwrap();
        input.write_all(request).unwrap();
        input.write_all(b"\n").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }
    fn ask(&mut self, request: Value) -> Value {
        self.ask_bytes(request.to_string().as_bytes())
    }
    fn prepare(&mut self, case: &Case) -> Value {
        let (op, layout, dtype) = (case.op.name(), case.layout_name(), case.dtype.to_string());
        self.ask(prep(op, json!(case.dims), layout, &dtype))
    }
    /// Closes its input; it must end well, with nothing more to say.
    fn end(mut self) {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.answers.read_line(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert!(self.child.wait().unwrap().success());
    }
}

fn prep(op: &str, shape: Value, layout: &str, dtype: &str) -> Value {
    json!({"cmd": "prep", "op": op, "shape": shape, "layout": layout, "dtype": dtype})
}

#[test]
fn a_worker_computes_what_the_reference_does() {
    let mut worker = Worker::start("cpu");
    let version = worker.ask(json!({"cmd": "version"}));
    let version = version["version"].as_str().unwrap();
    assert!(version.starts_with(concat!("batchnorm ", env!("CARGO_PKG_VERSION"), " cpu ")));
    for case in small_cases() {
        let answer = worker.prepare(&case);
        assert_eq!(answer["ok"], true, "{case}: {answer}");
        let round = |v| match case.dtype {
            DType::F16 => f16::from_f32(v).into(),
            DType::Bf16 => bf16::from_f32(v).into(),
            _ => v,
        };
        let right = reference(&case.dims, case.op, round);
        let sum = |values: &[f32]| values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
        let right = match case.op.pass {
            Pass::Backward => {
                vec![sum(&right.grad_x), sum(&right.grad_weight), sum(&right.grad_bias)]
            }
            _ => vec![sum(&right.y)],
        };
        let sums: Vec<f64> = serde_json::from_value(answer["check"].clone()).unwrap();
        assert_eq!(sums.len(), right.len(), "{case}");
        // Half a unit of the dtype per value, most of which cancels in the sum.
        let part = if case.width() == 4 { 1e-6 } else { 2e-3 };
        for (sum, right) in sums.iter().zip(&right) {
            let same = relative_eq!(sum, right, epsilon = 0.0, max_relative = part);
            assert!(same, "{case}: {sum}, expected {right}");
        }
    }
    worker.end();
}

#[test]
fn a_worker_times_as_often_as_it_is_asked_to() {
    let mut worker = Worker::start("cpu");
    let case = Case::parse("fwd_train", &[8, 16, 40, 40], "nchw", "f32").unwrap();
    assert_eq!(worker.prepare(&case)["ok"], true);
    let answer = worker.ask(json!({"cmd": "time", "n": 7, "warm": 2}));
    let times: Vec<f64> = serde_json::from_value(answer["t"].clone()).unwrap();
    assert_eq!(times.len(), 7);
    assert!(times.iter().all(|t| *t > 0.0), "{answer}");
    assert!(answer["wall"].as_f64().unwrap() >= times.iter().sum(), "{answer}");
    for field in ["run", "wait"] {
        assert!(answer[field].as_f64().unwrap() >= 0.0, "{answer}");
    }
    assert_eq!(worker.ask(json!({"cmd": "time", "n": 1}))["t"].as_array().unwrap().len(), 1);
    if cfg!(target_os = "linux") {
        // Linux counts what a thread has run at the ticks of its clock, 10 ms apart at most: the
        // runs above may lie between two of them.
        let answer = worker.ask(json!({"cmd": "time", "n": 500}));
        assert!(answer["run"].as_f64().unwrap() > 0.0, "{answer}");
    }
    assert_eq!(worker.ask(json!({"cmd": "drop"})), json!({"ok": true}));
    let answer = worker.ask(json!({"cmd": "time", "n": 1}));
    assert_eq!(answer["why"], "time: expected a case that prep made, got none");
    worker.end();
}

#[test]
fn wrong_requests_are_answered_and_do_not_end_a_worker() {
    let mut worker = Worker::start("reference");
    let wrong = [
        (prep("fwd", json!([4, 3]), "nc", "f32"), "op: expected one of fwd_train, infer"),
        (prep("bwd", json!([4, 3]), "blocked", "f32"), "layout: expected one of nchw, nhwc, nc"),
        (prep("bwd", json!([4, 3]), "nc", "f64"), "dtype: expected one of f32, bf16, f16, got f64"),
        (prep("bwd", json!([4, 3]), "nhwc", "f32"), "layout nhwc: expected 3 axes or more"),
        (prep("bwd", json!([4, 3, 2]), "nc", "f32"), "layout nc: expected 2 axes"),
        (prep("bwd", json!([4, 0]), "nc", "f32"), "shape: expected no axis of size 0"),
        (prep("bwd", json!([1, 3]), "nc", "f32"), "more than 1 value per channel"),
        (prep("bwd", json!([-4, 3]), "nc", "f32"), "request: invalid value"),
        (prep("bwd", json!([1u64 << 40, 1u64 << 40]), "nc", "f32"), "overflows"),
        (prep("bwd", json!([1 << 22, 1 << 22]), "nc", "f32"), "available"),
        (json!({"cmd": "time", "n": 1}), "time: expected a case"),
        (json!({"cmd": "prep", "op": "bwd"}), "request: missing field `shape`"),
        (json!({"cmd": "stop"}), "request: unknown variant `stop`"),
        (json!([1, 2]), "request: "),
    ];
    for (request, why) in wrong {
        let answer = worker.ask(request.clone());
        assert_eq!(answer["ok"], false, "{request}: {answer}");
        let text = answer["why"].as_str().unwrap();
        assert!(text.contains(why), "{request}: {text}");
    }
    for bytes in [&b"{"[..], b"", b"\xff\xfe", b"null"] {
        assert_eq!(worker.ask_bytes(bytes)["ok"], false, "{bytes:?}");
    }
    assert_eq!(worker.prepare(&small_cases()[0])["ok"], true);
    for n in [json!(0), json!(10_000_000), json!(-1), json!("all")] {
        assert_eq!(worker.ask(json!({"cmd": "time", "n": n}))["ok"], false, "{n}");
    }
    assert_eq!(worker.ask(json!({"cmd": "time", "n": 2}))["t"].as_array().unwrap().len(), 2);
    worker.end();
}
