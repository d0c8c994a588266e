//! Backward in f64 against central differences of `sum(y * grad_y)`, `grad_y` random: with ones,
//! `grad_x` and `grad_weight` would be zero whatever the code does.
use crate::support::engines::engines;
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use approx::relative_eq;
use batchnorm::{Activation, Engine, Reference, Shape};

engines! { [reference, cpu, cuda, cuda_split, cudnn, gpu] [
    gradients_are_central_differences,
    gradients_of_layouts_are_central_differences,
] }

const STEP: f64 = 1e-6;
/// A central difference errs by about `STEP^2`, and by rounding of a sum of a few dozen values
/// over `STEP`.
const TOLERANCE: f64 = 2e-8;
/// No value is so near to zero before its ReLU that a step could move it across.
const AWAY_FROM_THE_KINK: f64 = 1e-3;

fn gradients_are_central_differences<G: Engine>(engine: &G) {
    let shape = Shape::new(&[4, 2, 3], 1).unwrap();
    for epilogue in Epilogue::all().chain(Epilogue::others()) {
        for mode in [Mode::Train(None), Mode::Eval] {
            differences_agree(engine, &shape, epilogue, mode);
        }
    }
}

fn gradients_of_layouts_are_central_differences<G: Engine>(engine: &G) {
    let (full, train) = (Epilogue::FULL, Mode::Train(None));
    differences_agree(engine, &Shape::new(&[5, 3], 1).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[2, 3, 2, 3], 3).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[2, 3, 2, 2], 2).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[3, 5], 0).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[1, 1, 17], 1).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[2, 3], 1).unwrap(), full, train);
    differences_agree(engine, &Shape::new(&[3], 0).unwrap(), full, Mode::Eval);
    differences_agree(engine, &Shape::per_activation(&[4, 2, 3]).unwrap(), full, train);
}

/// The first inputs whose values before the ReLU all keep away from its kink, on both sides of it.
fn away_from_the_kink(shape: &Shape, epilogue: Epilogue, mode: Mode) -> Inputs<f64> {
    let linear = Epilogue { activation: Activation::Identity, ..epilogue };
    let fits = |inputs: &Inputs<f64>| {
        let y = run::forward(&Reference, inputs, mode, None).unwrap().remove("y").unwrap();
        let positive = y.iter().filter(|&&v| v > 0.0).count();
        y.iter().all(|v| v.abs() > AWAY_FROM_THE_KINK) && (1..y.len()).contains(&positive)
    };
    let new = |seed| Inputs { eps: 1e-3, ..Inputs::<f64>::new(shape, linear, seed) };
    let found = (0..1000).map(new).find(fits).expect("one of a thousand");
    Inputs { epilogue, ..found }
}

fn differences_agree<G: Engine>(engine: &G, shape: &Shape, epilogue: Epilogue, mode: Mode) {
    let inputs = away_from_the_kink(shape, epilogue, mode);
    let loss = |inputs: &Inputs<f64>| -> Option<f64> {
        let y = served(run::forward(engine, inputs, mode, None))?.remove("y")?;
        Some(y.iter().zip(&inputs.grad_y).map(|(y, g)| y * g).sum())
    };
    let mut saved = SavedOn::<G, f64>::new();
    if served(run::forward(engine, &inputs, mode, Some(&mut saved))).is_none() {
        return;
    }
    let want = Want { sums: false, ..Want::all(epilogue) };
    let Some(gradients) = served(run::backward(engine, &inputs, want, &saved, None)) else {
        return;
    };
    for (name, gradient) in gradients {
        for (k, got) in gradient.into_iter().enumerate() {
            let at = |step: f64| {
                let mut moved = inputs.clone();
                match name {
                    "grad_x" => moved.x[k] += step,
                    "grad_residual" => moved.residual[k] += step,
                    "grad_weight" => {
                        // An absent weight is ones, and has a gradient all the same.
                        if !epilogue.weight {
                            moved.weight.fill(1.0);
                        }
                        moved.epilogue.weight = true;
                        moved.weight[k] += step;
                    }
                    _ => {
                        if !epilogue.bias {
                            moved.bias.fill(0.0);
                        }
                        moved.epilogue.bias = true;
                        moved.bias[k] += step;
                    }
                }
                loss(&moved)
            };
            let (Some(above), Some(below)) = (at(STEP), at(-STEP)) else { continue };
            let numeric = (above - below) / (2.0 * STEP);
            let what = format!("{}, {shape}, {epilogue:?}, {mode:?}", engine.name());
            assert!(
                relative_eq!(numeric, got, epsilon = TOLERANCE, max_relative = TOLERANCE),
                "{what}: {name}[{k}] is {got:e}, the difference quotient {numeric:e}"
            );
        }
    }
}
