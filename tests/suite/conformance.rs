//! Every engine, dtype, shape, operation and option against the f64 reference.
use crate::support::engines::engines;
use crate::support::oracle::{self, judge, served};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want, same_bits};
use crate::support::shapes::{CHANNELS_LAST, Case, Layout, SMALL, cases};
use batchnorm::{Activation, Element, Engine, Error};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cudnn, gpu_slowly] [
    every_shape_agrees_f64,
    every_shape_agrees_f32,
    every_shape_agrees_f16,
    every_shape_agrees_bf16,
    tensors_too_large_for_a_cache_agree,
    every_subset_of_gradients_is_the_whole,
    every_presence_of_parameters_agrees,
    what_is_saved_changes_no_output,
    running_statistics_follow_every_factor,
    one_saved_serves_every_shape_and_epilogue,
    one_saved_serves_every_dtype_of_its_parameters,
    inputs_may_change_between_forwards_that_share_a_saved,
] }
engines! { [cuda_split] [
    every_shape_agrees_f64,
    every_shape_agrees_f32,
    every_shape_agrees_f16,
    every_shape_agrees_bf16,
    every_subset_of_gradients_is_the_whole,
    every_presence_of_parameters_agrees,
    running_statistics_follow_every_factor,
] }

fn every_shape_agrees_f64<G: Engine>(engine: &G) {
    every_shape::<f64, G>(engine);
}
fn every_shape_agrees_f32<G: Engine>(engine: &G) {
    every_shape::<f32, G>(engine);
}
fn every_shape_agrees_f16<G: Engine>(engine: &G) {
    every_shape::<f16, G>(engine);
}
fn every_shape_agrees_bf16<G: Engine>(engine: &G) {
    every_shape::<bf16, G>(engine);
}

fn tensors_too_large_for_a_cache_agree<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G, case: Case) {
        let inputs = Inputs::<E>::new(&case.shape(), Epilogue::FULL, 1);
        let mode = Mode::Train(Some(0.1));
        let what = label::<E, G>(engine, &case, Epilogue::FULL, mode);
        there_and_back(&what, engine, &inputs, mode);
    }
    let layout = Layout::Axis(1);
    let why = "beyond 16 MB, where stores may go past the cache";
    one::<f32, G>(engine, Case { dims: &[2, 9, 240_001], layout, why });
    one::<f32, G>(engine, Case { dims: &[260_001, 17], layout, why });
    one::<bf16, G>(engine, Case { dims: &[175_001, 49], layout, why });
}

fn every_shape<E: Element, G: Engine>(engine: &G) {
    let others: Vec<Epilogue> = Epilogue::others().collect();
    for (seed, case) in cases().iter().enumerate() {
        // And one of the others, each of which comes with five shapes or more.
        for epilogue in Epilogue::affine().chain([others[7 * seed % others.len()]]) {
            let inputs = Inputs::<E>::new(&case.shape(), epilogue, seed as u64);
            for mode in [Mode::Train(Some(0.1)), Mode::Eval] {
                let what = label::<E, G>(engine, case, epilogue, mode);
                if case.shape().per_channel() == 1 && mode != Mode::Eval {
                    let error = run::forward(engine, &inputs, mode, None).unwrap_err();
                    assert!(matches!(error, Error::Invalid { what: "x", .. }), "{what}: {error}");
                    continue;
                }
                there_and_back(&what, engine, &inputs, mode);
            }
            let what = label::<E, G>(engine, case, epilogue, Mode::InPlace);
            let got = served(run::forward(engine, &inputs, Mode::InPlace, None));
            let right = oracle::forward(&inputs, Mode::InPlace);
            got.iter().for_each(|got| judge(&what, E::DTYPE, &inputs.shape, got, &right));
        }
    }
}

/// A forward, then backwards: replaced and apart, accumulated and in place.
fn there_and_back<E: Element, G: Engine>(
    what: &str,
    engine: &G,
    inputs: &Inputs<E>,
    mode: Mode,
) -> Option<()> {
    let mut saved = SavedOn::<G, E>::new();
    let got = served(run::forward(engine, inputs, mode, Some(&mut saved)))?;
    judge(what, E::DTYPE, &inputs.shape, &got, &oracle::forward(inputs, mode));
    for other_way in [false, true] {
        let all = Want::all(inputs.epilogue);
        let want = Want { accumulate: other_way, in_place: other_way, ..all };
        let gradients = served(run::backward(engine, inputs, want, &saved, None))?;
        let right = oracle::backward(inputs, mode, want, &got["y"], None);
        judge(&format!("{what}, {want:?}"), E::DTYPE, &inputs.shape, &gradients, &right);
    }
    Some(())
}

fn label<E: Element, G: Engine>(engine: &G, case: &Case, epilogue: Epilogue, mode: Mode) -> String {
    let (name, dtype, Case { dims, why, .. }) = (engine.name(), E::DTYPE, case);
    format!("{name}, {dtype}, {dims:?} ({why}), {epilogue:?}, {mode:?}")
}

/// All 32 subsets, replaced or accumulated, apart or in place, through both kinds of statistics.
fn every_subset_of_gradients_is_the_whole<G: Engine>(engine: &G) {
    fn subsets<E: Element, G: Engine>(engine: &G, epilogue: Epilogue, mode: Mode) -> Option<()> {
        let inputs = Inputs::<E>::new(&SMALL.shape(), epilogue, 11);
        let mut saved = SavedOn::<G, E>::new();
        let y = served(run::forward(engine, &inputs, mode, Some(&mut saved)))?.remove("y")?;
        for bits in 0..128 {
            let bit = |k: u32| bits >> k & 1 > 0;
            let [grad_x, grad_residual, grad_weight, grad_bias] = [bit(0), bit(1), bit(2), bit(3)];
            let [sums, accumulate, in_place] = [bit(4), bit(5), bit(6)];
            if in_place && !grad_x || grad_residual && !epilogue.residual {
                continue;
            }
            let want =
                Want { grad_x, grad_residual, grad_weight, grad_bias, sums, accumulate, in_place };
            let what = format!("{} {}, {epilogue:?}, {want:?}", label_of(engine), E::DTYPE);
            let Some(got) = served(run::backward(engine, &inputs, want, &saved, None)) else {
                continue;
            };
            let tensors = [grad_x, grad_residual, grad_weight, grad_bias];
            let asked = tensors.iter().filter(|&&a| a).count() + if sums { 3 } else { 0 };
            assert_eq!(got.len(), asked, "{what}");
            let right = oracle::backward(&inputs, mode, want, &y, None);
            judge(&what, E::DTYPE, &inputs.shape, &got, &right);
        }
        Some(())
    }
    let plain = Epilogue { activation: Activation::Relu, ..Epilogue::PLAIN };
    // Two that are computed again, one by a mask, one that takes the residual again.
    let some = Epilogue::others().step_by(3);
    for epilogue in [Epilogue::PLAIN, plain, Epilogue::FULL].into_iter().chain(some) {
        for mode in [Mode::Train(None), Mode::Eval] {
            subsets::<f64, G>(engine, epilogue, mode);
            subsets::<f32, G>(engine, epilogue, mode);
            subsets::<f16, G>(engine, epilogue, mode);
            subsets::<bf16, G>(engine, epilogue, mode);
        }
    }
}

fn label_of<G: Engine>(engine: &G) -> &'static str {
    engine.name()
}

fn every_presence_of_parameters_agrees<G: Engine>(engine: &G) {
    fn presence<E: Element, G: Engine>(engine: &G, case: &Case) {
        for epilogue in Epilogue::all().chain(Epilogue::others()) {
            let inputs = Inputs::<E>::new(&case.shape(), epilogue, 21);
            for mode in [Mode::Train(Some(0.3)), Mode::Eval] {
                there_and_back(&label::<E, G>(engine, case, epilogue, mode), engine, &inputs, mode);
            }
        }
    }
    for case in [&SMALL, &CHANNELS_LAST] {
        presence::<f64, G>(engine, case);
        presence::<f32, G>(engine, case);
        presence::<f16, G>(engine, case);
        presence::<bf16, G>(engine, case);
    }
}

/// With and without a `Saved`, with and without running statistics: y is the same in every bit.
fn what_is_saved_changes_no_output<G: Engine>(engine: &G) {
    fn same<E: Element, G: Engine>(engine: &G, case: &Case) -> Option<()> {
        for epilogue in Epilogue::affine() {
            let inputs = Inputs::<E>::new(&case.shape(), epilogue, 31);
            for modes in [&[Mode::Train(Some(0.1)), Mode::Train(None)][..], &[Mode::Eval]] {
                let what = label::<E, G>(engine, case, epilogue, modes[0]);
                let first = served(run::forward(engine, &inputs, modes[0], None))?;
                for &mode in modes {
                    let mut saved = SavedOn::<G, E>::new();
                    for saved in [None, Some(&mut saved)] {
                        let got = served(run::forward(engine, &inputs, mode, saved))?;
                        for (name, values) in first.iter().filter(|(n, _)| got.contains_key(*n)) {
                            assert!(
                                values == &got[name],
                                "{what}: {name} depends on what is saved"
                            );
                        }
                    }
                }
            }
        }
        Some(())
    }
    for case in cases().iter().filter(|c| c.shape().per_channel() != 1) {
        same::<f32, G>(engine, case);
        same::<bf16, G>(engine, case);
    }
}

fn running_statistics_follow_every_factor<G: Engine>(engine: &G) {
    let inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::PLAIN, 41);
    for factor in [0.0, 1e-3, 0.1, 0.5, 1.0] {
        let mode = Mode::Train(Some(factor));
        let Some(got) = served(run::forward(engine, &inputs, mode, None)) else { continue };
        let what = format!("{}, factor {factor}", engine.name());
        judge(&what, batchnorm::DType::F32, &inputs.shape, &got, &oracle::forward(&inputs, mode));
        if factor == 0.0 {
            assert_eq!(got["running_mean"], run::widen(&inputs.mean), "{what}");
            assert_eq!(got["running_var"], run::widen(&inputs.var), "{what}");
        }
    }
}

/// Forward and backward by this `Saved` and by a fresh one; whether it was served at all.
fn as_by_a_fresh_one<E: Element, G: Engine>(
    engine: &G,
    saved: &mut SavedOn<G, E>,
    inputs: &Inputs<E>,
    mode: Mode,
) -> Option<()> {
    let mut fresh = SavedOn::<G, E>::new();
    let want = Want::all(inputs.epilogue);
    let step = |saved: &mut SavedOn<G, E>| {
        let forward = served(run::forward(engine, inputs, mode, Some(saved)))?;
        Some((forward, served(run::backward(engine, inputs, want, saved, None))?))
    };
    let (again, first) = (step(saved)?, step(&mut fresh)?);
    let what = (engine.name(), E::DTYPE, inputs.shape, inputs.epilogue, mode);
    assert!(same_bits(&again.0, &first.0) && same_bits(&again.1, &first.1), "{what:?}");
    assert_eq!(saved.shape(), Some(inputs.shape));
    assert_eq!(saved.is_frozen(), Some(mode == Mode::Eval));
    Some(())
}

fn one_saved_serves_every_shape_and_epilogue<G: Engine>(engine: &G) {
    let mut saved = SavedOn::<G, f32>::new();
    let mut others = Epilogue::others().collect::<Vec<_>>().into_iter().cycle();
    // Forth and back, so that its buffers grow, shrink, and change their channels.
    for case in cases().iter().chain(cases().iter().rev()) {
        for epilogue in Epilogue::affine().chain(others.next()) {
            let inputs = Inputs::<f32>::new(&case.shape(), epilogue, 51);
            if inputs.shape.per_channel() != 1 {
                as_by_a_fresh_one(engine, &mut saved, &inputs, Mode::Train(None));
            }
            as_by_a_fresh_one(engine, &mut saved, &inputs, Mode::Eval);
        }
    }
}

fn one_saved_serves_every_dtype_of_its_parameters<G: Engine>(engine: &G) {
    fn step<E: Element<Acc = f32>, G: Engine>(engine: &G, saved: &mut SavedOn<G, E>) {
        for (epilogue, mode) in [(Epilogue::FULL, Mode::Train(None)), (Epilogue::PLAIN, Mode::Eval)]
        {
            let inputs = Inputs::<E>::new(&SMALL.shape(), epilogue, 61);
            as_by_a_fresh_one(engine, saved, &inputs, mode);
        }
    }
    let mut saved = SavedOn::<G, f32>::new();
    for _ in 0..2 {
        step::<f32, G>(engine, &mut saved);
        step::<f16, G>(engine, &mut saved);
        step::<bf16, G>(engine, &mut saved);
    }
}

/// Nothing of the first forward is left in the second's gate or statistics.
fn inputs_may_change_between_forwards_that_share_a_saved<G: Engine>(engine: &G) {
    let mut saved = SavedOn::<G, f16>::new();
    for seed in 0..4 {
        let inputs = Inputs::<f16>::new(&SMALL.shape(), Epilogue::FULL, 70 + seed);
        as_by_a_fresh_one(engine, &mut saved, &inputs, Mode::Train(None));
    }
}
