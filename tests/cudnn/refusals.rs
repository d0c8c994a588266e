//! Everything that `Cudnn` is asked for is right, or refused as `refused.txt` says; nothing else.
//!
//! `BATCHNORM_WRITE_TABLE=1` writes the table. A row that begins with `cuDNN:` is the library's own
//! refusal of what the engine's limits do not know: another library may serve it.
use crate::support::cuda::is_real;
use crate::support::cudnn::{engine, gpu};
use crate::support::files::checkout;
use crate::support::golden::{Case, Golden, compute_served, files, kinds};
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, Rules, SavedOn, Want};
use crate::support::shapes::cases;
use batchnorm::{
    Activation, Cudnn, DType, Element, Engine, Error, NonFinite, OneValue, Op, Request, Result,
    Shape, Variance,
};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

const FILE: &str = "tests/cudnn/refused.txt";

/// What is refused, by operation, epilogue, dtype and limit: which cases; and how many are served.
#[derive(Default)]
struct Table {
    refused: BTreeMap<(String, String), Vec<&'static str>>,
    served: BTreeMap<String, usize>,
}

/// A refusal without the figures of its case.
fn limit(error: &Error) -> String {
    let Error::Unsupported { engine, reason } = error else { panic!("{error}") };
    assert_eq!(*engine, "cudnn");
    match reason.split_once(": ") {
        Some((call, status)) if call.starts_with("cudnn") => {
            format!("cuDNN: {call}, {}", status.split(',').next().unwrap_or_default())
        }
        _ => reason.split(", got").next().unwrap_or_default().to_owned(),
    }
}

fn operation(op: Op, epilogue: Epilogue, dtype: DType, in_place: bool) -> String {
    let relu = if epilogue.activation == Activation::Relu { " relu" } else { "" };
    let residual = if epilogue.residual { " residual" } else { "" };
    let in_place = if in_place { " in place" } else { "" };
    format!("{op:?}{residual}{relu}{in_place} {dtype}")
}

impl Table {
    /// Whether it was served; what the engine says beforehand agrees.
    fn note<T>(
        &mut self,
        why: &'static str,
        shape: &Shape,
        epilogue: Epilogue,
        (op, dtype, in_place): (Op, DType, bool),
        result: Result<T>,
    ) -> Option<T> {
        let Epilogue { activation, residual, .. } = epilogue;
        let request =
            Request::new(op, dtype).activation(activation).residual(residual).in_place(in_place);
        let said = engine().supports(shape, request);
        let key = operation(op, epilogue, dtype, in_place);
        match result {
            Ok(value) => {
                assert_eq!(said, Ok(()), "{key}, {why}");
                *self.served.entry(key).or_default() += 1;
                Some(value)
            }
            Err(error) => {
                assert_eq!(said.as_ref().err(), Some(&error), "{key}, {why}");
                self.refused.entry((key, limit(&error))).or_default().push(why);
                None
            }
        }
    }

    fn lines(self) -> Vec<String> {
        let Self { refused, served } = self;
        let list = |cases: &[&str]| match cases.len() {
            n if n > 6 => format!("{n} shapes, the first of them {:?}", cases[0]),
            _ => format!("{cases:?}"),
        };
        let refused = refused.iter();
        let mut lines: Vec<String> = refused
            .map(|((key, limit), cases)| format!("{key}: refused: {limit}: {}", list(cases)))
            .chain(served.iter().map(|(key, n)| format!("{key}: {n} shapes served")))
            .collect();
        lines.sort();
        lines
    }
}

/// Every shape of the suite: training and back, evaluation, in place.
fn matrix<E: Element>(table: &mut Table) {
    let engine = engine();
    for (seed, case) in cases().iter().enumerate() {
        let (shape, why) = (case.shape(), case.why);
        for epilogue in Epilogue::affine() {
            let inputs = Inputs::<E>::new(&shape, epilogue, seed as u64);
            let what = format!("cudnn, {}, {why}, {epilogue:?}", E::DTYPE);
            let eval = run::forward(&engine, &inputs, Mode::Eval, None);
            let key = |op, in_place| (op, E::DTYPE, in_place);
            if let Some(y) = table.note(why, &shape, epilogue, key(Op::ForwardEval, false), eval) {
                judge(&what, E::DTYPE, &shape, &y, &oracle::forward(&inputs, Mode::Eval));
            }
            let over = run::forward(&engine, &inputs, Mode::InPlace, None);
            if let Some(y) = table.note(why, &shape, epilogue, key(Op::ForwardEval, true), over) {
                judge(&what, E::DTYPE, &shape, &y, &oracle::forward(&inputs, Mode::InPlace));
            }
            if shape.per_channel() == 1 {
                continue;
            }
            let (mode, mut saved) = (Mode::Train(Some(0.1)), SavedOn::<Cudnn, E>::new());
            let forward = run::forward(&engine, &inputs, mode, Some(&mut saved));
            let forward = table.note(why, &shape, epilogue, key(Op::ForwardTrain, false), forward);
            let Some(forward) = forward else { continue };
            judge(&what, E::DTYPE, &shape, &forward, &oracle::forward(&inputs, mode));
            for accumulate in [false, true] {
                let want = Want { sums: false, accumulate, ..Want::all(epilogue) };
                let back = run::backward(&engine, &inputs, want, &saved, None);
                let back = table.note(why, &shape, epilogue, key(Op::Backward, false), back);
                let right = oracle::backward(&inputs, mode, want, &forward["y"], None);
                judge(&what, E::DTYPE, &shape, &back.expect("as its forward"), &right);
            }
        }
    }
}

/// Compares with the table, but for what another library may serve.
fn compare(part: &str, lines: Vec<String>) {
    static FILE_IN_USE: Mutex<()> = Mutex::new(());
    let _alone = FILE_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = checkout(FILE);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let (start, end) = (format!("[{part}]\n"), "\n\n");
    let rest = text.split_once(&start).map_or("", |(_, rest)| rest);
    let committed: Vec<&str> = rest.split(end).next().unwrap_or_default().lines().collect();
    if std::env::var_os("BATCHNORM_WRITE_TABLE").is_some_and(|value| value == "1") {
        let old = format!("{start}{}{end}", committed.join("\n"));
        let new = format!("{start}{}{end}", lines.join("\n"));
        let text = if text.contains(&start) { text.replace(&old, &new) } else { text + &new };
        std::fs::write(path, text).unwrap();
        return;
    }
    let is_known =
        |line: &&str| !is_real() || !(line.contains("cuDNN: ") || line.contains("served"));
    let committed: Vec<&str> = committed.into_iter().filter(is_known).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).filter(is_known).collect();
    assert!(!lines.is_empty());
    assert_eq!(lines, committed, "{FILE}, [{part}]");
}

#[test]
fn every_shape_is_served_or_refused_by_the_table() {
    for part in ["f64", "f32", "f16", "bf16"] {
        let mut table = Table::default();
        match part {
            "f64" => matrix::<f64>(&mut table),
            "f32" => matrix::<f32>(&mut table),
            "f16" => matrix::<f16>(&mut table),
            _ => matrix::<bf16>(&mut table),
        }
        compare(part, table.lines());
    }
}

#[test]
fn golden_cases_are_right_or_refused_by_the_table() {
    let mut lines = Vec::new();
    for file in files(&checkout("tests/golden")).unwrap() {
        let case = Case::read(&file).unwrap();
        let ran = compute_served(&engine(), &case).unwrap();
        let verdicts = ran.judge(&case).unwrap();
        let wrong: Vec<_> = verdicts.iter().filter(|verdict| !verdict.pass).collect();
        assert!(wrong.is_empty(), "{}: {wrong:?}", case.name);
        let judged: Vec<&str> = verdicts.iter().map(|verdict| verdict.tensor).collect();
        lines.push(format!("{}: right: {}", case.name, judged.join(" ")));
        lines
            .extend(ran.refused.iter().map(|refused| format!("{}: refused: {refused}", case.name)));
        // Whatever is refused here, `Gpu` serves.
        assert!(compute_served(&gpu(), &case).unwrap().refused.is_empty());
    }
    compare("golden", lines);
}

#[test]
fn golden_layers_are_right_or_refused_by_the_table() {
    let mut lines = Vec::new();
    for file in files(&checkout("tests/golden/frameworks")).unwrap() {
        let Golden::Layer(document) = Golden::read(&file).unwrap() else { continue };
        if !kinds::is_known(&document.kind) {
            continue;
        }
        let outcome = kinds::run(&engine(), &document).unwrap();
        let name = &document.name;
        let wrong: Vec<_> = outcome.verdicts.iter().filter(|verdict| !verdict.pass).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:?}");
        let judged: Vec<&str> = outcome.verdicts.iter().map(|v| v.tensor.as_str()).collect();
        lines.push(format!("{name}: right: {}", judged.join(" ")));
        lines.extend(outcome.refused.iter().map(|refused| format!("{name}: refused: {refused}")));
        // Whatever is refused here, `Gpu` serves.
        assert_eq!(kinds::run(&gpu(), &document).unwrap().refused, [""; 0], "{name}");
    }
    compare("golden layers", lines);
}

/// Running statistics that do not move as cuDNN moves them; `Gpu` takes our kernels.
#[test]
fn rules_of_running_statistics_are_refused_by_name() {
    let shape = Shape::new(&[6, 5, 7], 1).unwrap();
    let mode = Mode::Train(Some(0.25));
    let refused = |shape: &Shape, rules: Rules, expected: &str| {
        let inputs = Inputs::<f32> { rules, ..Inputs::new(shape, Epilogue::PLAIN, 1) };
        let error = run::forward(&engine(), &inputs, mode, None).unwrap_err();
        assert_eq!(error.to_string(), format!("cudnn: {expected}"), "{rules:?}");
        let got = run::forward(&gpu(), &inputs, mode, None).unwrap();
        judge("gpu", DType::F32, shape, &got, &oracle::forward(&inputs, mode));
        // Both say so beforehand.
        let request = Request::new(Op::ForwardTrain, DType::F32).running(rules.of_request(0.25));
        assert_eq!(engine().supports(shape, request), Err(error.clone()), "{rules:?}");
        assert_eq!(engine().explain(shape, request), Err(error), "{rules:?}");
        let text = gpu().explain(shape, request).unwrap();
        assert!(text.ends_with(&format!("it would be cuDNN, but cudnn: {expected}")), "{text}");
    };
    let biased = Rules { variance: Variance::Biased, ..Rules::default() };
    refused(
        &shape,
        biased,
        "running statistics take the unbiased variance: expected that, got biased",
    );
    let separate = Rules { var_factor: Some(0.5), ..Rules::default() };
    refused(&shape, separate, "running statistics have one factor: expected equal ones, got two");
    let skips = Rules { non_finite: NonFinite::Skip, ..Rules::default() };
    refused(
        &shape,
        skips,
        "running statistics take what is not finite: expected propagate, got skip",
    );
    let averages = Rules { averages: true, skipped: Some(1.0), ..Rules::default() };
    refused(
        &shape,
        averages,
        "running statistics have one factor: expected it for all channels, got skipped",
    );
    let one = Rules { one_value: OneValue::ZeroVariance, ..Rules::default() };
    refused(
        &Shape::new(&[1, 8], 1).unwrap(),
        one,
        "the unbiased variance is over m - 1: expected more than 1 value per channel, got 1",
    );
}

/// What a request does not say, but arguments do.
#[test]
fn arguments_beyond_a_limit_are_refused_by_name() {
    let engine = engine();
    let shape = Shape::new(&[6, 5, 7], 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 1);
    let mut saved = SavedOn::<Cudnn, f32>::new();
    run::forward(&engine, &inputs, Mode::Train(None), Some(&mut saved)).unwrap();
    let all = Want { sums: false, ..Want::all(Epilogue::PLAIN) };
    let refusals = [
        (
            Want { grad_x: false, ..all },
            "backward writes every tensor: expected a grad_x, got none",
        ),
        (
            Want { sums: true, ..all },
            "backward has no sums of a part of a batch: expected no sums, no total_sums",
        ),
        (
            Want { in_place: true, ..all },
            "expected an output apart from the input, got it in place",
        ),
    ];
    for (want, expected) in refusals {
        let error = run::backward(&engine, &inputs, want, &saved, None).unwrap_err();
        assert_eq!(error.to_string(), format!("cudnn: {expected}"));
    }
    // Gradients of parameters may be left out, and added up.
    let all = Want { accumulate: true, ..all };
    for want in [Want { grad_weight: false, ..all }, Want { grad_bias: false, ..all }] {
        run::backward(&engine, &inputs, want, &saved, None).unwrap();
    }
    let error = run::forward(&engine, &inputs, Mode::Eval, Some(&mut saved)).unwrap_err();
    let expected =
        "cudnn: there is no backward through frozen statistics: expected nothing to save";
    assert_eq!(error.to_string(), expected);
    // The refusal of an evaluation leaves what was saved.
    run::backward(&engine, &inputs, all, &saved, None).unwrap();

    let rows = Shape::new(&[6, 8], 1).unwrap();
    let inputs = Inputs::<f16>::new(&rows, Epilogue::FULL, 1);
    let mut saved = SavedOn::<Cudnn, f16>::new();
    run::forward(&engine, &inputs, Mode::Train(None), Some(&mut saved)).unwrap();
    let want = Want { grad_residual: false, sums: false, ..Want::all(Epilogue::FULL) };
    let error = run::backward(&engine, &inputs, want, &saved, None).unwrap_err();
    let expected = "cudnn: backward writes every tensor: expected a grad_residual, got none";
    assert_eq!(error.to_string(), expected);

    // `Gpu` says beforehand which of them fall to our kernels.
    let eval = Request::new(Op::ForwardEval, DType::F32);
    let text = |request| gpu().explain(&shape, request).unwrap();
    let record = "it would be cuDNN, but cudnn: statistics are mean and variance: expected these, \
                  got a record";
    assert!(text(eval.by_record(true)).ends_with(record), "{}", text(eval.by_record(true)));
    assert!(text(eval.saves(true)).starts_with("cudnn: "), "{}", text(eval.saves(true)));

    let error = run::stats(&engine, &inputs).unwrap_err();
    assert_eq!(error.to_string(), "cudnn: there is no call for statistics alone");
    let error = run::merge_stats::<f32, _>(&engine, &[0.0, 0.0, 1.0, 2.0], 1, None).unwrap_err();
    assert_eq!(error.to_string(), "cudnn: there is no call that merges statistics");
}

/// Whatever else would be served: an activation that it does not fuse is refused by its name, and `Gpu`
/// takes our kernels.
#[test]
fn activations_that_it_does_not_fuse_are_refused_by_name() {
    let shape = Shape::new(&[6, 8], 1).unwrap();
    for epilogue in Epilogue::others() {
        let inputs = Inputs::<f16>::new(&shape, epilogue, 1);
        let expected = format!("cudnn: of activations it fuses relu, got {}", epilogue.activation);
        for mode in [Mode::Train(None), Mode::Eval, Mode::InPlace] {
            let error = run::forward(&engine(), &inputs, mode, None).unwrap_err();
            assert_eq!(error.to_string(), expected, "{epilogue:?}, {mode:?}");
        }
        let (mode, mut saved) = (Mode::Train(None), SavedOn::<batchnorm::Gpu, f16>::new());
        let y = run::forward(&gpu(), &inputs, mode, Some(&mut saved)).unwrap();
        let want = Want::all(epilogue);
        let gradients = run::backward(&gpu(), &inputs, want, &saved, None).unwrap();
        let right = oracle::backward(&inputs, mode, want, &y["y"], None);
        judge(&format!("gpu, {epilogue:?}"), DType::F16, &shape, &gradients, &right);
    }
}
