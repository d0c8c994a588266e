//! Every engine over the golden cases of a whole layer, kind by kind.
use crate::support::files::checkout;
use crate::support::golden::{Document, ENGINES, Golden, files, kinds};
use batchnorm::Reference;

/// Kinds whose cases stand here and have no runner yet.
const NO_RUNNER: &[&str] = &["optimizer", "population", "population_network", "regularizer"];

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
        if NO_RUNNER.contains(&document.kind.as_str()) {
            assert!(!kinds::is_known(&document.kind), "{} has a runner", document.kind);
            continue;
        }
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
    let inputs = ["weight", "bias", "residual", "running_mean", "running_var", "running_std"];
    for document in documents() {
        if NO_RUNNER.contains(&document.kind.as_str()) {
            continue;
        }
        let outcome = kinds::run(&Reference, &document).unwrap();
        let is_judged = |name: &str| outcome.verdicts.iter().any(|verdict| verdict.tensor == name);
        for name in document.names() {
            let is_input = name.starts_with('x') || name.starts_with("grad_y");
            // By what the batch is normalized, which no layer hands out.
            let by = ["batch_mean", "batch_var"].contains(&name);
            let skip = is_input || by || inputs.contains(&name);
            assert!(skip || is_judged(name), "{}: {name}", document.name);
        }
    }
}

#[test]
fn a_golden_value_that_is_off_is_seen_in_every_kind() {
    for document in documents() {
        if NO_RUNNER.contains(&document.kind.as_str()) {
            continue;
        }
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
fn an_unknown_kind_is_named() {
    let mut document = documents().remove(0);
    document.kind = "unheard_of".into();
    let error = kinds::run(&Reference, &document).unwrap_err();
    assert_eq!(error.to_string(), "kind \"unheard_of\" is not known");
}
