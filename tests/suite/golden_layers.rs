//! Every engine over the golden cases of a whole layer, kind by kind.
use crate::support::files::checkout;
use crate::support::golden::{Document, ENGINES, Golden, files, kinds};
use batchnorm::Reference;

fn documents() -> Vec<Document> {
    let files = files(&checkout("tests/golden/frameworks")).unwrap();
    let document = |file: &std::path::PathBuf| match Golden::read(file).unwrap() {
        Golden::Layer(document) => document,
        Golden::Step(case) => panic!("{} names no kind", case.name),
    };
    files.iter().map(document).collect()
}

#[test]
fn every_engine_computes_what_each_kind_asks_for() {
    let mut wrong = Vec::new();
    for document in documents() {
        for engine in ENGINES {
            let outcome = (engine.layer)(&document).unwrap();
            let name = format!("{}: {}", engine.name, document.name);
            let refuses = engine.name == "cudnn";
            assert!(refuses || outcome.refused.is_empty(), "{name}: {:?}", outcome.refused);
            assert!(refuses || !outcome.verdicts.is_empty(), "{name}: nothing was judged");
            let verdicts = outcome.verdicts.into_iter().filter(|verdict| !verdict.pass);
            wrong.extend(verdicts.map(|verdict| format!("{name}: {verdict:?}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_golden_tensor_is_judged() {
    let inputs =
        ["weight", "bias", "residual", "mask", "running_mean", "running_var", "running_std"];
    for document in documents() {
        let outcome = kinds::run(&Reference, &document).unwrap();
        let is_judged = |name: &str| outcome.verdicts.iter().any(|verdict| verdict.tensor == name);
        for name in document.names() {
            let is_input = name.starts_with('x') || name.starts_with("grad_y");
            let is_input = is_input
                || name.starts_with("v_")
                || document.kind == "fold" && name.starts_with("conv_")
                || document.kind == "optimizer" && name.starts_with("grad_")
                || document.kind.starts_with("population")
                    && ["counts", "linear", "weight_", "bias_"].iter().any(|i| name.starts_with(i));
            // By what the batch is normalized, which no layer hands out.
            let by = ["batch_mean", "batch_var", "count"].contains(&name)
                || document.kind == "renorm" && (name.starts_with("r_") || name.starts_with("d_"));
            // Where what renormalization keeps starts.
            let starts = ["moving_mean", "moving_stddev", "renorm_mean", "renorm_stddev"];
            let by = by || starts.contains(&name);
            let skip = is_input || by || inputs.contains(&name);
            assert!(skip || is_judged(name), "{}: {name}", document.name);
        }
    }
}

#[test]
fn a_golden_value_that_is_off_is_seen_in_every_kind() {
    for document in documents() {
        for verdict in kinds::run(&Reference, &document).unwrap().verdicts {
            let mut other = document.clone();
            let values = other.values_mut(&verdict.tensor).unwrap();
            values[verdict.index] += 3.0 * verdict.tolerance.max(f64::MIN_POSITIVE);
            let outcome = kinds::run(&Reference, &other).unwrap();
            let is_seen = outcome.verdicts.iter().any(|v| v.tensor == verdict.tensor && !v.pass);
            assert!(is_seen, "{}: {verdict:?}", document.name);
        }
    }
}

#[test]
fn what_is_wrong_in_a_document_is_named() {
    let path = checkout("tests/golden/frameworks/steps_keras3_nhwc.safetensors");
    let bytes = std::fs::read(path).unwrap();
    // In the header, whose length stays.
    let with = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut other = bytes.clone();
        other[at..at + to.len()].copy_from_slice(to.as_bytes());
        let document = match Document::parse("other", &other) {
            Ok(document) => document.unwrap(),
            Err(error) => return format!("{error:#}"),
        };
        format!("{:#}", kinds::run(&Reference, &document).unwrap_err())
    };
    for (from, to, message) in [
        (r#""steps":"3""#, r#""steps":"?""#, r#"metadata: steps: expected a JSON value, got "?""#),
        (r#""steps":"3""#, r#""stepz":"3""#, "steps is missing"),
        (r#""steps":"3""#, r#""steps":"4""#, "x_3: is missing"),
        (r#"\"ema\""#, r#"\"amy\""#, "rule: expected ema, cumulative or debiased, got \"amy\""),
        (r#"\"f32\""#, r#"\"f31\""#, "dtype: expected f64, f32, f16 or bf16, got \"f31\""),
        (r#""axis":"3""#, r#""axis":"4""#, "expected more than 4 axes, got [4, 3, 5, 6]"),
    ] {
        let error = with(from, to);
        assert!(error.contains(message), "{to}: {error}");
    }
}

#[test]
fn an_unknown_kind_is_named() {
    let mut document = documents().remove(0);
    document.kind = "unheard_of".into();
    let error = kinds::run(&Reference, &document).unwrap_err();
    assert_eq!(error.to_string(), "kind \"unheard_of\" is not known");
}
