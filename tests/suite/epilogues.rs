//! What activations do at their kinks and with what is not finite, and what their backward is given.
use crate::support::engines::engines;
use crate::support::layer::{down, layer, numbers, small, up, view};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use crate::support::tolerance::{Kind, agrees, tolerance};
use batchnorm::{Activation, Config, Derivative, Element, Engine, Error, Real, Shape};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    kinks_and_special_values_are_as_defined,
    a_residual_is_asked_for_again_where_the_derivative_takes_it,
] }

/// What cuDNN's ReLU makes of -0, NVIDIA does not say.
mod without_cudnn {
    use super::*;
    engines! { [reference, cpu, cuda] [a_zero_keeps_its_sign] }
}

/// Frozen statistics by which z is x, and a gradient of ones: `grad_x` is the derivative.
fn kinks_and_special_values_are_as_defined<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G) {
        // The kinks, the numbers of the type next to them, and what is far away.
        let near = |z: f64| {
            let step = match E::DTYPE {
                batchnorm::DType::F64 => f64::EPSILON,
                batchnorm::DType::F32 => f64::from(f32::EPSILON),
                batchnorm::DType::F16 => 2f64.powi(-10),
                _ => 2f64.powi(-7),
            };
            [z * (1.0 - 2.0 * step), z, z * (1.0 + 2.0 * step)]
        };
        let mut values: Vec<f64> = [-3.0, 3.0, 6.0].into_iter().flat_map(near).collect();
        values.extend([0.0, -0.0, 1e-6, -1e-6, 0.5, -0.5, -20.0, 20.0, f64::NAN]);
        let shape = Shape::new(&[values.len(), 2], 1).unwrap();
        for epilogue in Epilogue::others() {
            let mut inputs = Inputs::<E>::new(&shape, epilogue, 1);
            let twice = values.iter().flat_map(|&z| [z, z]);
            inputs.x = twice.map(run::narrow).collect();
            inputs.residual.fill(run::narrow(0.0));
            inputs.grad_y.fill(run::narrow(1.0));
            (inputs.weight, inputs.bias) =
                (vec![Real::from_f64(1.0); 2], vec![E::Acc::default(); 2]);
            inputs.eps = 2f64.powi(-10);
            inputs.mean.fill(E::Acc::default());
            inputs.var.fill(Real::from_f64(1.0 - inputs.eps));
            let mut saved = SavedOn::<G, E>::new();
            let forward = run::forward(engine, &inputs, Mode::Eval, Some(&mut saved)).unwrap();
            let want = Want::all(epilogue);
            let backward = run::backward(engine, &inputs, want, &saved, None).unwrap();
            for (i, x) in inputs.x.iter().enumerate() {
                let (z, activation) = (x.widen().to_f64(), epilogue.activation);
                let right = [activation.value(z), activation.derivative::<E>(z)];
                let mut got = vec![(right[0], forward["y"][i]), (right[1], backward["grad_x"][i])];
                if epilogue.residual {
                    got.push((right[1], backward["grad_residual"][i]));
                }
                for (right, got) in got {
                    let bar = tolerance(E::DTYPE, Kind::Element, right.abs(), 0.0);
                    let what = format!("{}, {}, {epilogue:?} of {z}", engine.name(), E::DTYPE);
                    assert!(agrees(got, right, bar, E::DTYPE), "{what}: {got}, expected {right}");
                }
            }
        }
    }
    all::<f64, G>(engine);
    all::<f32, G>(engine);
    all::<f16, G>(engine);
    all::<bf16, G>(engine);
}

/// As PyTorch's activations have it on a CPU, in whole vectors and at their ends, in channels of ordinary
/// statistics and in those whose scale leaves no digits to the loops.
fn a_zero_keeps_its_sign<G: Engine>(engine: &G) {
    fn all<E: Element, G: Engine>(engine: &G) {
        let eps = 2f64.powi(if E::DTYPE == batchnorm::DType::F64 { -900 } else { -80 });
        for (activation, residual) in
            Activation::ALL.into_iter().flat_map(|a| [(a, false), (a, true)])
        {
            for (dims, zero) in [(&[37, 2][..], 0.0), (&[37, 2], -0.0), (&[3, 2, 45], -0.0)] {
                let epilogue = Epilogue { activation, residual, ..Epilogue::PLAIN };
                let mut inputs = Inputs::<E>::new(&Shape::new(dims, 1).unwrap(), epilogue, 1);
                inputs.x.fill(run::narrow(zero));
                inputs.residual.fill(run::narrow(zero));
                inputs.weight.fill(Real::from_f64(1.0));
                inputs.bias.fill(Real::from_f64(zero));
                inputs.mean.fill(Real::from_f64(0.0));
                (inputs.var, inputs.eps) = ([1.0, 0.0].map(Real::from_f64).to_vec(), eps);
                let y = &run::forward(engine, &inputs, Mode::Eval, None).unwrap()["y"];
                let is_kept = |y: &f64| y.to_bits() == zero.to_bits();
                assert!(y.iter().all(is_kept), "{}, {epilogue:?}, {dims:?}: {y:?}", E::DTYPE);
            }
        }
    }
    all::<f64, G>(engine);
    all::<f32, G>(engine);
    all::<f16, G>(engine);
    all::<bf16, G>(engine);
}

/// By a layer, with gradients of parameters that are as they were where it was refused.
fn a_residual_is_asked_for_again_where_the_derivative_takes_it<G: Engine>(engine: &G) {
    let shape = small();
    let [x, residual, grad_y] = [1, 2, 3].map(|seed| up(engine, &numbers::<f32>(48, seed)));
    for activation in Activation::ALL {
        let mut bn = layer::<f32, G>(engine, Config::default().activation(activation));
        let (x, residual) = (|| view::<G, f32>(&x), || view::<G, f32>(&residual));
        let (_, saved) = bn.forward_add(&shape, x(), residual()).unwrap();
        let without = bn.backward_add(&saved, x(), None, view::<G, f32>(&grad_y));
        let without = without.map(|(grad_x, grad_residual)| (grad_x, down(engine, &grad_residual)));
        if activation.derivative_from(true) == Derivative::FromResidual {
            let error = without.map(drop).unwrap_err();
            let expected = format!(
                "residual: expected that of the forward, which the derivative of {activation} takes, \
                 got none"
            );
            assert!(matches!(error, Error::Invalid { what: "residual", .. }), "{error}");
            assert_eq!(error.to_string(), expected);
            assert!(bn.named_parameters().all(|(_, param)| param.grad().is_none()));
            bn.backward_add(&saved, x(), Some(residual()), view::<G, f32>(&grad_y)).unwrap();
            continue;
        }
        // The others do not look at one.
        let again = bn.backward_add(&saved, x(), Some(residual()), view::<G, f32>(&grad_y));
        assert_eq!(without.unwrap().1, down(engine, &again.unwrap().1), "{activation}");
    }
}
