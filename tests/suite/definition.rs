//! Numbers worked out by hand: where the reference itself were wrong, comparing with it would show
//! nothing.
use crate::support::engines::engines;
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, gradient_before};
use approx::abs_diff_eq;
use batchnorm::{Activation, Engine, Shape};

engines! { [reference, cpu, cuda, cudnn, gpu] [
    running_variance_is_unbiased_and_momentum_weighs_the_new_value,
    merged_running_variance_is_unbiased_over_all_parts,
    accumulated_gradients_are_added_to_what_was_there,
    a_relu_is_gated_by_its_output_after_the_residual,
] }

/// Four values of one channel, 1 to 4: mean 2.5, variance 5 / 4 biased and 5 / 3 unbiased.
fn one_to_four() -> Inputs<f64> {
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let mut inputs = Inputs::<f64>::new(&shape, Epilogue::PLAIN, 1);
    inputs.x = vec![1.0, 2.0, 3.0, 4.0];
    (inputs.weight, inputs.bias) = (vec![2.0], vec![0.5]);
    (inputs.mean, inputs.var) = (vec![-1.5], vec![7.0]);
    inputs.eps = 0.3125; // variance + eps = 1.5625 = 1.25^2
    inputs
}

fn close(what: &str, got: &[f64], right: &[f64]) {
    assert!(abs_diff_eq!(got, right, epsilon = 1e-14), "{what}: {got:?}, by hand {right:?}");
}

fn running_variance_is_unbiased_and_momentum_weighs_the_new_value<G: Engine>(engine: &G) {
    let (inputs, mut saved) = (one_to_four(), SavedOn::<G, f64>::new());
    let mode = Mode::Train(Some(0.25));
    let Some(got) = served(run::forward(engine, &inputs, mode, Some(&mut saved))) else { return };
    close("y", &got["y"], &[-1.9, -0.3, 1.3, 2.9]);
    close("saved mean", &got["saved_mean"], &[2.5]);
    close("saved invstd", &got["saved_invstd"], &[0.8]);
    close("running mean", &got["running_mean"], &[0.75 * -1.5 + 0.25 * 2.5]);
    close("running variance", &got["running_var"], &[0.75 * 7.0 + 0.25 * 5.0 / 3.0]);
}

fn merged_running_variance_is_unbiased_over_all_parts<G: Engine>(engine: &G) {
    // 1 and 2; nothing; 3 and 4: mean and its rest, biased variance, count.
    let records = [[1.5, 0.0, 0.25, 2.0], [0.0; 4], [3.5, 0.0, 0.25, 2.0]].concat();
    let running = Some((&[-1.5][..], &[7.0][..], 0.25));
    let Some(got) = served(run::merge_stats::<f64, G>(engine, &records, 1, running)) else {
        return;
    };
    close("mean", &got["mean"], &[2.5]);
    close("variance", &got["var"], &[1.25]);
    close("running mean", &got["running_mean"], &[0.75 * -1.5 + 0.25 * 2.5]);
    close("running variance", &got["running_var"], &[0.75 * 7.0 + 0.25 * 5.0 / 3.0]);
}

fn gradients<G: Engine>(
    engine: &G,
    inputs: &Inputs<f64>,
    mode: Mode,
    want: Want,
) -> Option<Outcome> {
    let mut saved = SavedOn::<G, f64>::new();
    served(run::forward(engine, inputs, mode, Some(&mut saved)))?;
    served(run::backward(engine, inputs, want, &saved, None))
}

fn accumulated_gradients_are_added_to_what_was_there<G: Engine>(engine: &G) {
    let mut inputs = one_to_four();
    inputs.grad_y = vec![1.0, 0.0, 0.0, 2.0];
    // xhat is -1.2, -0.4, 0.4, 1.2: the sums are 3 and 1.2.
    for mode in [Mode::Train(None), Mode::Eval] {
        (inputs.mean, inputs.var) = (vec![2.5], vec![1.25]);
        for (accumulate, before) in [(false, 0.0), (true, gradient_before(0))] {
            let want = Want { accumulate, ..Want::all(inputs.epilogue) };
            let Some(got) = gradients(engine, &inputs, mode, want) else { return };
            close("grad_bias", &got["grad_bias"], &[before + 3.0]);
            close("grad_weight", &got["grad_weight"], &[before + 1.2]);
            let grad_x = match mode {
                // 1.6 * (g - 0.75 - xhat * 0.3)
                Mode::Train(_) => [0.976, -1.008, -1.392, 1.424],
                _ => [1.6, 0.0, 0.0, 3.2],
            };
            close("grad_x", &got["grad_x"], &grad_x);
        }
    }
}

fn a_relu_is_gated_by_its_output_after_the_residual<G: Engine>(engine: &G) {
    let mut inputs = one_to_four();
    inputs.epilogue = Epilogue::FULL;
    assert_eq!(inputs.epilogue.activation, Activation::Relu);
    // Before it: -1.9, -0.3, 1.3, 2.9.
    inputs.residual = vec![2.0, 0.0, -2.0, 0.0];
    inputs.grad_y = vec![1.0, 10.0, 100.0, 1000.0];
    let mut saved = SavedOn::<G, f64>::new();
    let forward = served(run::forward(engine, &inputs, Mode::Train(None), Some(&mut saved)));
    let Some(forward) = forward else { return };
    close("y", &forward["y"], &[0.1, 0.0, 0.0, 2.9]);
    let want = Want::all(inputs.epilogue);
    let Some(got) = served(run::backward(engine, &inputs, want, &saved, None)) else { return };
    assert_eq!(got["grad_residual"], [1.0, 0.0, 0.0, 1000.0]);
    close("grad_bias", &got["grad_bias"], &[1001.0]);
}
