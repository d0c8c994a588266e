//! Statistics in common, by hand: a batch in unequal parts is one batch, forward and backward.
use crate::support::engines::every_kernel;
use crate::support::oracle::{self, Expected, Tensor, judge, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want};
use crate::support::shapes::{CASES, SMALL};
use batchnorm::{Element, Engine, Real, Reference, Shape};
use half::{bf16, f16};

every_kernel![
    parts_are_one_batch_f64,
    parts_are_one_batch_f32,
    parts_are_one_batch_f16,
    parts_are_one_batch_bf16,
    records_of_every_shape_hold_its_statistics,
    one_part_is_the_batch,
    empty_parts_alone_leave_running_statistics,
];

fn parts_are_one_batch_f64<G: Engine>(engine: &G) {
    parts_are_one_batch::<f64, G>(engine);
}
fn parts_are_one_batch_f32<G: Engine>(engine: &G) {
    parts_are_one_batch::<f32, G>(engine);
}
fn parts_are_one_batch_f16<G: Engine>(engine: &G) {
    parts_are_one_batch::<f16, G>(engine);
}
fn parts_are_one_batch_bf16<G: Engine>(engine: &G) {
    parts_are_one_batch::<bf16, G>(engine);
}

/// Rows of the three parts; one has a single row, where training alone would have no variance.
const PARTS: [usize; 3] = [5, 0, 1];
const FACTOR: f64 = 0.3;

fn parts_are_one_batch<E: Element, G: Engine>(engine: &G) {
    for behind in [&[5][..], &[35, 1], &[5, 7], &[3, 49], &[2, 1000]] {
        for epilogue in Epilogue::all() {
            let dims = |rows: usize| [&[rows], behind].concat();
            let shape = Shape::new(&dims(PARTS.iter().sum()), 1).unwrap();
            let whole = Inputs::<E>::new(&shape, epilogue, 5);
            let mut parts = vec![];
            let mut start = 0;
            for rows in PARTS {
                let shape = Shape::new(&dims(rows), 1).unwrap();
                parts.push(part(&whole, shape, start));
                start += shape.len();
            }
            let what = format!("{}, {}, {behind:?}, {epilogue:?}", engine.name(), E::DTYPE);
            synchronized(&what, engine, &whole, parts);
        }
    }
}

/// The elements from `start` on, as one device has them.
fn part<E: Element>(whole: &Inputs<E>, shape: Shape, start: usize) -> Inputs<E> {
    let mine = |all: &[E]| all[start..start + shape.len()].to_vec();
    let (x, residual, grad_y) = (mine(&whole.x), mine(&whole.residual), mine(&whole.grad_y));
    Inputs { shape, x, residual, grad_y, ..whole.clone() }
}

/// As a user would do it: `merge_stats` stands behind an all-gather, `total` for an all-reduce.
fn synchronized<E: Element, G: Engine>(
    what: &str,
    engine: &G,
    whole: &Inputs<E>,
    mut parts: Vec<Inputs<E>>,
) -> Option<()> {
    let (shape, c) = (&whole.shape, whole.shape.channels());
    let judge = |got: &Outcome, right: &Expected| judge(what, E::DTYPE, shape, got, right);
    let mode = Mode::Train(Some(FACTOR));
    let right = oracle::forward(whole, mode);

    let mut records = vec![];
    for part in &parts {
        records.extend(served(run::stats(engine, part))?);
    }
    let running = Some((&whole.mean[..], &whole.var[..], FACTOR));
    let merged = served(run::merge_stats(engine, &records, c, running))?;
    judge(&merged, &merged_statistics(whole));
    let (mean, var) = (narrowed(&merged["mean"]), narrowed(&merged["var"]));

    let (mut saved, mut y) = (vec![], Outcome::from([("y", vec![])]));
    for part in &mut parts {
        (part.mean, part.var) = (mean.clone(), var.clone());
        saved.push(SavedOn::<G, E>::new());
        let got = served(run::forward(engine, part, Mode::Eval, saved.last_mut()))?;
        append(&mut y, got);
    }
    y.retain(|name, _| *name == "y");
    judge(&y, &right);

    let mut total = vec![0.0; 2 * c + 1];
    let mut gradients = Outcome::new();
    let all = Want::all(whole.epilogue);
    for (part, saved) in parts.iter().zip(&saved) {
        let first = Want { grad_x: false, ..all };
        let mut got = served(run::backward(engine, part, first, saved, None))?;
        let names = ["sum_g", "sum_g_xhat", "count"];
        let sums = names.map(|name| got.remove(name).unwrap()).concat();
        total.iter_mut().zip(&sums).for_each(|(t, s)| *t += s);
        append(&mut gradients, got);
    }
    let total: Vec<E::Acc> = total.into_iter().map(E::Acc::from_f64).collect();
    for (part, saved) in parts.iter().zip(&saved) {
        let second = Want { grad_residual: false, grad_weight: false, grad_bias: false, ..all };
        let second = Want { sums: false, in_place: part.shape.len() % 2 == 1, ..second };
        let got = served(run::backward(engine, part, second, saved, Some(&total)))?;
        append(&mut gradients, got);
    }
    for name in ["grad_weight", "grad_bias"] {
        let all_parts = gradients.remove(name).unwrap();
        let sum = |k: usize| all_parts.chunks(c).map(|part| part[k]).sum();
        gradients.insert(name, (0..c).map(sum).collect());
    }
    judge(&gradients, &oracle::backward(whole, mode, all, &y["y"], None));
    Some(())
}

fn append(to: &mut Outcome, from: Outcome) {
    for (name, values) in from {
        to.entry(name).or_default().extend(values);
    }
}

fn narrowed<P: Real>(values: &[f64]) -> Vec<P> {
    values.iter().map(|&v| P::from_f64(v)).collect()
}

/// The whole batch's statistics. The records hold rounded means: between two parts the variance
/// sees `(mean - mean')^2`, so that one rounding costs it `|mean - mean'| <= 2 std` units of `mean`.
fn merged_statistics<E: Element>(whole: &Inputs<E>) -> Expected {
    let forward = oracle::forward(whole, Mode::Train(Some(FACTOR)));
    let record = run::stats(&Reference, &whole.wide()).unwrap();
    let c = whole.shape.channels();
    let (mean, var) = (record[..c].to_vec(), record[c..2 * c].to_vec());
    let drift: Vec<f64> = mean.iter().zip(&var).map(|(m, v)| 2.0 * m.abs() * v.sqrt()).collect();
    let mut right = Expected::new();
    right.insert("running_mean", forward["running_mean"].clone());
    let values = forward["running_var"].values.clone();
    right.insert("running_var", Tensor { values, drift: drift.clone() });
    right.insert("mean", Tensor { values: mean, drift: vec![0.0; c] });
    right.insert("var", Tensor { values: var, drift });
    right
}

fn records_of_every_shape_hold_its_statistics<G: Engine>(engine: &G) {
    fn record<E: Element, G: Engine>(engine: &G) {
        for case in CASES {
            let inputs = Inputs::<E>::new(&case.shape(), Epilogue::PLAIN, 7);
            let Some(got) = served(run::stats(engine, &inputs)) else { continue };
            let (got, right) = (run::widen(&got), run::stats(&Reference, &inputs.wide()).unwrap());
            let c = inputs.shape.channels();
            let what = format!("{}, {}, {:?} ({})", engine.name(), E::DTYPE, case.dims, case.why);
            assert_eq!(got[2 * c], inputs.shape.per_channel() as f64, "{what}: m");
            let (mut outcome, mut expected) = (Outcome::new(), Expected::new());
            for (name, range) in [("mean", 0..c), ("var", c..2 * c)] {
                outcome.insert(name, got[range.clone()].to_vec());
                let tensor = Tensor { values: right[range].to_vec(), drift: vec![0.0; c] };
                expected.insert(name, tensor);
            }
            judge(&what, E::DTYPE, &inputs.shape, &outcome, &expected);
        }
    }
    record::<f64, G>(engine);
    record::<f32, G>(engine);
    record::<f16, G>(engine);
    record::<bf16, G>(engine);
}

/// Merging a single record changes nothing of it; empty parts beside it neither.
fn one_part_is_the_batch<G: Engine>(engine: &G) {
    let inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::PLAIN, 9);
    let c = inputs.shape.channels();
    let empty = Inputs::<f32>::new(&Shape::new(&[0, c, 7], 1).unwrap(), Epilogue::PLAIN, 9);
    let Some(record) = served(run::stats(engine, &inputs)) else { return };
    let Some(nothing) = served(run::stats(engine, &empty)) else { return };
    assert_eq!(nothing, vec![0.0; 2 * c + 1], "{}: an empty part", engine.name());
    for records in [record.clone(), [&nothing[..], &record, &nothing].concat()] {
        let Some(got) = served(run::merge_stats(engine, &records, c, None)) else { return };
        assert_eq!(got["mean"], run::widen(&record[..c]), "{}", engine.name());
        assert_eq!(got["var"], run::widen(&record[c..2 * c]), "{}", engine.name());
    }
}

fn empty_parts_alone_leave_running_statistics<G: Engine>(engine: &G) {
    let records = vec![0f32; 3 * 7];
    let (mean, var) = ([0.5f32, -1.0, 2.0], [0.25f32, 1.0, 3.0]);
    let running = Some((&mean[..], &var[..], 0.5));
    let Some(got) = served(run::merge_stats(engine, &records, 3, running)) else { return };
    assert_eq!(got["running_mean"], run::widen(&mean), "{}", engine.name());
    assert_eq!(got["running_var"], run::widen(&var), "{}", engine.name());
}
