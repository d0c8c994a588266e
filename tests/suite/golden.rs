//! Every engine against what PyTorch computed in float64; and that the judge of that sees faults.
use crate::support::files::checkout;
use crate::support::golden::{
    COMPUTED, Case, Content, ENGINES, Tensors, Verdict, compute, files, judge,
};
use approx::relative_eq;
use batchnorm::{Activation, Reference};
use std::collections::BTreeSet;

fn cases() -> Vec<Case> {
    files(&checkout("tests/golden")).unwrap().iter().map(|file| Case::read(file).unwrap()).collect()
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

/// The names of the tensors that are wrong.
fn wrong(case: &Case, computed: &Tensors) -> Vec<&'static str> {
    let verdicts = judge(case, computed).unwrap();
    verdicts.into_iter().filter(|v| !v.pass).map(|v| v.tensor).collect()
}

fn faults(name: &str, case: &Case, computed: &Tensors) -> Vec<String> {
    wrongs(name, case, judge(case, computed).unwrap())
}

fn wrongs(name: &str, case: &Case, verdicts: Vec<Verdict>) -> Vec<String> {
    let verdicts = verdicts.into_iter().filter(|v| !v.pass);
    verdicts.map(|v| format!("{name}: {}: {v:?}", case.name)).collect()
}

#[test]
fn every_engine_computes_what_pytorch_computed() {
    let mut all = Vec::new();
    for case in cases() {
        for engine in ENGINES {
            // What is refused is compared with a table elsewhere: `tests/cudnn`.
            let verdicts = (engine.step)(&case).unwrap().judge(&case).unwrap();
            all.extend(wrongs(engine.name, &case, verdicts));
        }
    }
    assert!(all.is_empty(), "{all:#?}");
}

#[test]
fn the_reference_in_f64_is_pytorch_in_float64() {
    // Whatever the case's dtype: nothing but f64's own rounding lies between them.
    let mut all = Vec::new();
    for case in cases().iter().map(Case::widened) {
        all.extend(faults("widened", &case, &compute(&Reference, &case).unwrap()));
    }
    assert!(all.is_empty(), "{all:#?}");
}

#[test]
fn the_cases_cover_dtypes_ranks_axes_and_epilogues() {
    let cases = cases();
    let dtypes: BTreeSet<_> = cases.iter().map(|case| case.dtype.to_string()).collect();
    assert_eq!(dtypes.len(), 4);
    let ranks: BTreeSet<_> = cases.iter().map(|case| case.dims.len()).collect();
    assert!(ranks.is_superset(&(2..=5).collect()), "{ranks:?}");
    let axes: BTreeSet<_> = cases.iter().map(|case| case.metadata["axis"].as_str()).collect();
    assert!(axes.is_superset(&["0", "1", "2", "3"].into()), "{axes:?}");
    for activation in Activation::ALL {
        for residual in [false, true] {
            let mut of = cases.iter().filter(|case| case.activation == activation);
            let found = of.any(|case| case.optional("residual").is_some() == residual);
            assert!(found, "{activation}, residual {residual}");
        }
    }
    assert!(cases.iter().any(|case| case.optional("weight").is_none()));
}

/// Every tensor of every case, with its verdict and all that was computed.
fn each_tensor(mut visit: impl FnMut(&Case, &Tensors, &Verdict)) {
    for case in cases() {
        let computed = compute(&Reference, &case).unwrap();
        let verdicts = judge(&case, &computed).unwrap();
        let expected: Vec<_> = COMPUTED.iter().filter(|e| case.has(e)).map(|e| e.name).collect();
        assert_eq!(verdicts.iter().map(|v| v.tensor).collect::<Vec<_>>(), expected);
        verdicts.iter().for_each(|verdict| visit(&case, &computed, verdict));
    }
}

#[test]
fn a_value_beyond_its_tolerance_is_wrong_and_one_within_it_is_right() {
    each_tensor(|case, computed, verdict| {
        let is_y = verdict.tensor.starts_with('y');
        for (part, right) in [(1.01, false), (-1.01, false), (0.99, true), (-0.99, true)] {
            // Moving y within its tolerance may cross a kink, which the next tests are on.
            if right && is_y && case.activation != Activation::Identity {
                continue;
            }
            let mut computed = computed.clone();
            let moved = verdict.expected + part * verdict.tolerance;
            computed.get_mut(verdict.tensor).unwrap()[verdict.index] = moved;
            let wrong = wrong(case, &computed);
            let is_wrong = wrong.contains(&verdict.tensor);
            assert_eq!(is_wrong, !right, "{}: {verdict:?} moved to {moved:e}", case.name);
            assert!(is_y || wrong.len() == usize::from(!right), "{}: {wrong:?}", case.name);
        }
    });
}

#[test]
fn nan_and_infinity_where_a_number_is_due_are_wrong() {
    each_tensor(|case, computed, verdict| {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut computed = computed.clone();
            let last = computed.get_mut(verdict.tensor).unwrap().last_mut().unwrap();
            if last.is_infinite() && *last == value {
                continue;
            }
            *last = value;
            assert!(wrong(case, &computed).contains(&verdict.tensor), "{value}: {verdict:?}");
        }
    });
}

#[test]
fn a_missing_or_short_tensor_is_an_error_that_names_it() {
    each_tensor(|case, computed, verdict| {
        for short in [false, true] {
            let mut computed = computed.clone();
            if short {
                computed.get_mut(verdict.tensor).unwrap().pop();
            } else {
                computed.remove(verdict.tensor);
            }
            let error = judge(case, &computed).unwrap_err().to_string();
            let start = format!("{}: {}: expected", case.name, verdict.tensor);
            assert!(error.starts_with(&start), "{error}");
        }
    });
}

/// Where the ReLU is shut, and the value before it is far below zero.
fn far_below_zero(case: &Case) -> usize {
    let mut before = case.widened();
    before.activation = Activation::Identity;
    let before = compute(&Reference, &before).unwrap();
    let least = before["y"].iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert!(*least.1 < -0.5, "{least:?}");
    least.0
}

#[test]
fn a_gate_that_is_open_where_it_must_be_shut_makes_y_wrong() {
    let case = case("nchw_bf16_relu");
    let mut computed = compute(&Reference, &case).unwrap();
    // As a value it lies well within the tolerance of y.
    computed.get_mut("y").unwrap()[far_below_zero(&case)] = 1e-6;
    let verdicts = judge(&case, &computed).unwrap();
    let verdict = verdicts.iter().find(|v| v.tensor == "y").unwrap();
    assert!(!verdict.pass);
    assert!(
        verdict.note.as_ref().unwrap().starts_with("another side of relu's kink"),
        "{verdict:?}"
    );
}

#[test]
fn a_gradient_through_a_gate_that_y_does_not_show_is_wrong() {
    for name in ["nhwc_f16_add_relu", "nhwc_f32_relu"] {
        let case = case(name);
        let computed = compute(&Reference, &case).unwrap();
        let index = far_below_zero(&case);
        let grad_y = case.tensor("grad_y").unwrap()[index];
        assert!(grad_y.abs() > 0.1);
        let mut leaks = computed.clone();
        leaks.get_mut("grad_x").unwrap()[index] += grad_y;
        assert_eq!(wrong(&case, &leaks), ["grad_x"]);
        if let Some(grad_residual) = computed.get("grad_residual") {
            assert_eq!(grad_residual[index], 0.0);
            let mut leaks = computed.clone();
            leaks.get_mut("grad_residual").unwrap()[index] = grad_y;
            assert_eq!(wrong(&case, &leaks), ["grad_residual"]);
        }
    }
}

#[test]
fn a_borderline_gate_is_judged_by_the_gradients_it_asks_for() {
    // In f16 some of these outputs are 0, and pass no gradient; in float64 they are above 0.
    let case = case("f16_y_underflows_1e-07");
    let computed = compute(&Reference, &case).unwrap();
    let golden = case.tensor("y").unwrap();
    let borderline = |(y, golden): &(&f64, &f64)| **y == 0.0 && **golden > 0.0;
    assert!(computed["y"].iter().zip(golden).filter(borderline).count() > 10);
    assert_eq!(wrong(&case, &computed), [""; 0]);
    // The golden gradients belong to another gate.
    for tensor in ["grad_bias", "grad_weight"] {
        let mut other = computed.clone();
        other.insert(tensor, case.tensor(tensor).unwrap().to_vec());
        assert_eq!(wrong(&case, &other), [tensor]);
    }
}

#[test]
fn beyond_the_dtype_an_infinity_of_the_right_sign_is_right() {
    let case = case("f16_y_overflows");
    let computed = compute(&Reference, &case).unwrap();
    let infinite: Vec<_> =
        (0..case.shape.len()).filter(|&i| computed["y"][i].is_infinite()).collect();
    assert!(infinite.len() > 10);
    assert_eq!(wrong(&case, &computed), [""; 0]);
    for value in [f64::NEG_INFINITY, 65504.0, f64::NAN] {
        let mut other = computed.clone();
        // Far beyond it: just above 65504 that value is within the tolerance.
        let most = |&&i: &&usize| case.tensor("y").unwrap()[i] as i64;
        let index = *infinite.iter().max_by_key(most).unwrap();
        other.get_mut("y").unwrap()[index] = value;
        assert!(wrong(&case, &other).contains(&"y"), "{value}");
    }
    // The tolerance is that of values which f16 can hold.
    let verdicts = judge(&case, &computed).unwrap();
    let y = verdicts.iter().find(|v| v.tensor == "y").unwrap();
    assert!(y.tolerance < 100.0, "{y:?}");
}

#[test]
fn a_tolerance_grows_with_the_mean_of_its_own_pass() {
    // The batch's mean is 1e4, the running one about 0.
    let case = case("nchw_f32_large_mean");
    let verdicts = judge(&case, &compute(&Reference, &case).unwrap()).unwrap();
    for (y, mean, var) in
        [("y", "batch_mean", "batch_var"), ("y_eval", "running_mean", "running_var")]
    {
        let verdict = verdicts.iter().find(|v| v.tensor == y).unwrap();
        let of_channel = |name| case.tensor(name).unwrap()[verdict.channel];
        let max = case.tensor(y).unwrap().iter().fold(0.0, |max: f64, y| max.max(y.abs()));
        let invstd = 1.0 / (of_channel(var) + case.eps).sqrt();
        let drift = of_channel(mean).abs() * invstd * of_channel("weight").abs();
        let expected = 2e-6 * max + f64::from(f32::EPSILON) * drift;
        let same = relative_eq!(verdict.tolerance, expected, epsilon = 0.0, max_relative = 1e-9);
        assert!(same, "{expected:e}: {verdict:?}");
    }
}

#[test]
fn what_remains_of_terms_that_cancel_need_not_be_more_exact_than_they_are() {
    // Two values per channel and a small eps. Plain f32 is 1e3 times further off than f32's base
    // times the largest grad_x, and 1.2 times where only the rounded mean is allowed for.
    let case = case("nc_f32_pairs_cancel");
    let verdicts = judge(&case, &compute(&Reference, &case).unwrap()).unwrap();
    let verdict = verdicts.iter().find(|v| v.tensor == "grad_x").unwrap();
    let of_channel = |name| case.tensor(name).unwrap()[verdict.channel];
    let g = case.tensor("grad_y").unwrap().iter().enumerate();
    let g = g.filter(|(i, _)| case.channel_of(*i) == verdict.channel);
    let max_g = g.fold(0.0, |max: f64, (_, g)| max.max(g.abs()));
    let invstd = 1.0 / (of_channel("batch_var") + case.eps).sqrt();
    assert!(verdict.tolerance > 2e-6 * of_channel("weight").abs() * invstd * max_g, "{verdict:?}");
}

#[test]
fn what_is_written_reads_back_in_the_types_it_was_computed_in() {
    use safetensors::{Dtype, SafeTensors};
    for case in cases() {
        let computed = compute(&Reference, &case).unwrap();
        let bytes = crate::support::golden::serialize(&case, &computed).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref(), Some(&case.metadata));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), computed.len());
        for entry in COMPUTED.iter().filter(|entry| case.has(entry)) {
            let (view, values) = (file.tensor(entry.name).unwrap(), &computed[entry.name]);
            let dims = if entry.content == Content::Elements {
                case.dims.clone()
            } else {
                vec![case.shape.channels()]
            };
            assert_eq!(view.shape(), dims);
            assert_eq!(
                view.dtype().to_string().to_lowercase(),
                case.dtype_of(entry.content).to_string()
            );
            if view.dtype() == Dtype::F32 {
                let read = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
                assert!(read.map(f64::from).eq(values.iter().copied()), "{}", entry.name);
            }
        }
    }
}
