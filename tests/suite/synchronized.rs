//! Statistics in common, by hand: a batch in unequal parts is one batch, forward and backward.
use crate::support::engines::engines;
use crate::support::oracle::{self, Expected, Tensor, judge, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Spread, Want};
use crate::support::shapes::{SMALL, cases};
use approx::abs_diff_eq;
use batchnorm::{Element, Engine, Real, Reference, Shape};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split, gpu_slowly] [
    parts_are_one_batch_f64,
    parts_are_one_batch_f32,
    parts_are_one_batch_f16,
    parts_are_one_batch_bf16,
    records_of_every_shape_hold_its_statistics,
    one_part_is_the_batch,
    empty_parts_alone_leave_running_statistics,
    large_means_keep_their_digits,
    records_are_merged_in_any_order,
] }

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
    judge(&without_record(&merged), &merged_statistics(whole));

    let (mut saved, mut y) = (vec![], Outcome::from([("y", vec![])]));
    for part in &mut parts {
        part.record = Some(merged["record"].clone());
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

fn without_record(merged: &Outcome) -> Outcome {
    let mut statistics = merged.clone();
    statistics.remove("record");
    statistics
}

/// The whole batch's statistics.
fn merged_statistics<E: Element>(whole: &Inputs<E>) -> Expected {
    let forward = oracle::forward(whole, Mode::Train(Some(FACTOR)));
    let record = run::stats(&Reference, &whole.wide()).unwrap();
    let c = whole.shape.channels();
    let exact = |values: &[f64]| Tensor { values: values.to_vec(), drift: vec![0.0; c] };
    let mut right = Expected::new();
    right.insert("running_mean", forward["running_mean"].clone());
    right.insert("running_var", forward["running_var"].clone());
    right.insert("mean", exact(&record[..c]));
    right.insert("var", exact(&record[2 * c..3 * c]));
    right
}

/// Parts whose mean is up to 1e7 deviations away from 0 are as good as the whole batch: statistics, y
/// and gradients.
fn large_means_keep_their_digits<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G, mean: f64, limit: f64) {
        let (c, counts) = (3, [2 * 36, 100, 1]);
        let rows: usize = counts.iter().sum();
        let shape = Shape::new(&[rows, c], 1).unwrap();
        let spread = Spread { mean, std: 3.0 };
        let whole = Inputs::<E>::spread(&shape, Epilogue::PLAIN, spread, 11);
        let what = format!("{}, {}, mean {mean}", engine.name(), E::DTYPE);
        let (mut records, mut parts, mut start) = (vec![], vec![], 0);
        for rows in counts {
            let mine = part(&whole, Shape::new(&[rows, c], 1).unwrap(), start);
            start += rows * c;
            let Some(record) = served(run::stats(engine, &mine)) else { return };
            records.extend(record);
            parts.push(mine);
        }
        let merged = run::merge_stats::<E::Acc, G>(engine, &records, c, None).unwrap();
        let right = run::stats(&Reference, &whole.wide()).unwrap();
        let near = |name: &str, got: &[f64], right: &[f64], limit: f64| {
            for (got, right) in got.iter().zip(right) {
                let off = (got - right).abs();
                assert!(off <= limit * right.abs().max(1.0), "{what}: {name} {got}, right {right}");
            }
        };
        near("var", &merged["var"], &right[2 * c..3 * c], limit);

        // By one of the parts: the others' record stands for them.
        let (mut saved, mine) = (SavedOn::<G, E>::new(), &mut parts[1]);
        mine.record = Some(merged["record"].clone());
        let y = run::forward(engine, mine, Mode::Eval, Some(&mut saved)).unwrap();
        let got = run::backward(engine, mine, Want::all(mine.epilogue), &saved, None).unwrap();
        let mut wide = mine.wide();
        wide.record = Some(right);
        let mut saved = SavedOn::<Reference, f64>::new();
        let right = run::forward(&Reference, &wide, Mode::Eval, Some(&mut saved)).unwrap();
        near("y", &y["y"], &right["y"], limit);
        let want = Want::all(mine.epilogue);
        let right = run::backward(&Reference, &wide, want, &saved, None).unwrap();
        near("grad_weight", &got["grad_weight"], &right["grad_weight"], 100.0 * limit);
    }
    for mean in [0.0, 1e4, 1e6, 3e7] {
        one::<f32, G>(engine, mean, 4e-6);
        one::<f64, G>(engine, mean, 1e-12);
    }
    one::<f64, G>(engine, 1e15, 1e-12);
}

fn records_of_every_shape_hold_its_statistics<G: Engine>(engine: &G) {
    fn record<E: Element, G: Engine>(engine: &G) {
        for case in cases() {
            let inputs = Inputs::<E>::new(&case.shape(), Epilogue::PLAIN, 7);
            let Some(got) = served(run::stats(engine, &inputs)) else { continue };
            let right = run::stats(&Reference, &inputs.wide()).unwrap();
            let c = inputs.shape.channels();
            let what = format!("{}, {}, {:?} ({})", engine.name(), E::DTYPE, case.dims, case.why);
            assert_eq!(got[3 * c], inputs.shape.per_channel() as f64, "{what}: m");
            let (mut outcome, mut expected) = (Outcome::new(), Expected::new());
            for (name, range) in [("mean", 0..c), ("var", 2 * c..3 * c)] {
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
    assert_eq!(nothing, vec![0.0; 3 * c + 1], "{}: an empty part", engine.name());
    for records in [record.clone(), [&nothing[..], &record, &nothing].concat()] {
        let merged = run::merge_stats::<f32, G>(engine, &records, c, None);
        let Some(got) = served(merged) else { return };
        assert_eq!(got["record"], record, "{}", engine.name());
    }
}

fn empty_parts_alone_leave_running_statistics<G: Engine>(engine: &G) {
    let records = vec![0.0; 3 * 10];
    let (mean, var) = ([0.5f32, -1.0, 2.0], [0.25f32, 1.0, 3.0]);
    let running = Some((&mean[..], &var[..], 0.5));
    let Some(got) = served(run::merge_stats(engine, &records, 3, running)) else { return };
    assert_eq!(got["running_mean"], run::widen(&mean), "{}", engine.name());
    assert_eq!(got["running_var"], run::widen(&var), "{}", engine.name());
}

/// What has been merged is a record like any other: (a + b) + c is a + (b + c).
fn records_are_merged_in_any_order<G: Engine>(engine: &G) {
    let whole = Inputs::<f32>::new(&Shape::new(&[9, 4], 1).unwrap(), Epilogue::PLAIN, 3);
    let shape = Shape::new(&[3, 4], 1).unwrap();
    let record = |k: usize| served(run::stats(engine, &part(&whole, shape, k * shape.len())));
    let merge = |a: &[f64], b: &[f64]| {
        run::merge_stats::<f32, G>(engine, &[a, b].concat(), 4, None).unwrap()["record"].clone()
    };
    let (Some(a), Some(b), Some(c)) = (record(0), record(1), record(2)) else { return };
    let (left, right) = (merge(&merge(&a, &b), &c), merge(&a, &merge(&b, &c)));
    for (left, right) in left.iter().zip(&right) {
        assert!(abs_diff_eq!(left, right, epsilon = 1e-14), "{}: {left}, {right}", engine.name());
    }
    assert_eq!(left[12], 9.0);
}
