//! Steps of optimizers, regularizers and constraints of a vector, against the reference and formulas worked
//! out here; what a layer does with them is in `layer_optimizer.rs`.
use crate::support::engines::engines;
use crate::support::layer::*;
use batchnorm::*;

engines! { [reference, cpu, cuda, cudnn, gpu] [
    steps_are_those_of_the_reference_f64,
    steps_are_those_of_the_reference_f32,
    long_runs_correct_their_bias,
    the_last_step_is_taken_again_at_its_own_rate,
    amsgrad_keeps_the_greatest_moment,
    what_is_not_finite_stays_where_it_is,
    penalties_are_those_of_the_reference,
    penalties_of_what_is_not_finite,
    constraints_are_those_of_keras,
    numbers_without_meaning_are_refused,
] }

pub const ALGORITHMS: [Algorithm; 15] = [
    Algorithm::sgd(0.0),
    Algorithm::sgd(0.9),
    Algorithm::Sgd { momentum: 0.5, dampening: 0.25, nesterov: false },
    Algorithm::nesterov(0.8),
    Algorithm::adam(),
    Algorithm::Adam { beta1: 0.0, beta2: 0.5, eps: 0.1, amsgrad: false },
    Algorithm::Adam { beta1: 0.5, beta2: 0.25, eps: 0.01, amsgrad: true },
    Algorithm::adam_w(),
    Algorithm::adam_w().amsgrad(true),
    Algorithm::keras_sgd(0.0),
    Algorithm::keras_sgd(0.9),
    Algorithm::KerasSgd { momentum: 0.8, nesterov: true },
    Algorithm::keras_adam(),
    Algorithm::KerasAdam { beta1: 0.5, beta2: 0.25, eps: 0.01, amsgrad: true },
    Algorithm::MatlabSgdm { momentum: 0.9 },
];

/// A vector and what is kept of it, on an engine.
struct Vector<P: Real, G: Engine> {
    engine: G,
    value: Buf<G, P>,
    steps: Buf<G, f64>,
    first: Buf<G, P>,
    second: Buf<G, P>,
    third: Buf<G, P>,
}

impl<P: Real, G: Engine> Vector<P, G> {
    fn new(engine: &G, values: &[P]) -> Self {
        let zeros = || up(engine, &vec![P::default(); values.len()]);
        let (value, steps) = (up(engine, values), up(engine, &[0.0; 2]));
        let [first, second, third] = [zeros(), zeros(), zeros()];
        Self { engine: engine.clone(), value, steps, first, second, third }
    }
    fn step(&mut self, algorithm: Algorithm, grad: &[P], lr: f64, factor: f64, decay: f64) {
        let (grad, lr) = (up(&self.engine, grad), up(&self.engine, &[lr]));
        let steps = view_mut::<G, f64>(&mut self.steps);
        let args = OptimizerStep::<G::Memory, P>::new(
            view_mut::<G, P>(&mut self.value),
            view::<G, P>(&grad),
            algorithm,
            view::<G, f64>(&lr),
            steps,
        );
        let mut args = args.lr_factor(factor).weight_decay(decay);
        if !algorithm.buffers().is_empty() {
            args = args.first(view_mut::<G, P>(&mut self.first));
        }
        if algorithm.buffers().len() > 1 {
            args = args.second(view_mut::<G, P>(&mut self.second));
        }
        if algorithm.buffers().len() > 2 {
            args = args.third(view_mut::<G, P>(&mut self.third));
        }
        self.engine.optimizer_step(args).unwrap();
    }
    fn all(&self) -> Vec<f64> {
        let buffers = [&self.value, &self.first, &self.second, &self.third];
        let buffers = buffers.map(|buf| down(&self.engine, buf));
        let steps = down(&self.engine, &self.steps);
        buffers.iter().flatten().map(|v| v.to_f64()).chain(steps).collect()
    }
}

/// Within roundings of a few steps.
#[track_caller]
pub fn assert_all_near<P: Real>(what: &str, got: &[f64], right: &[f64]) {
    assert_eq!(got.len(), right.len());
    let bar = if P::DTYPE == DType::F64 { 1e-14 } else { 2.5e-7 };
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        let near = (got - right).abs() <= bar * right.abs().max(1.0) || got == right;
        assert!(near || got.is_nan() && right.is_nan(), "{what}: {got} at {i}, not {right}");
    }
}

fn steps_are_those_of_the_reference<P: Real, G: Engine>(engine: &G) {
    // A block of a device and what is around it, and more than one.
    for len in [1, 5, 255, 257, 1000] {
        for algorithm in ALGORITHMS {
            for (factor, decay) in [(1.0, 0.0), (0.5, 0.1)] {
                let values = numbers::<P>(len, 1);
                let mut got = Vector::new(engine, &values);
                let mut right = Vector::new(&Reference, &values);
                for step in 0..6 {
                    let (grad, lr) = (numbers::<P>(len, 2 + step), 0.1 / (1.0 + step as f64));
                    got.step(algorithm, &grad, lr, factor, decay);
                    right.step(algorithm, &grad, lr, factor, decay);
                    let what = format!("{algorithm:?}, {len} values, step {step}");
                    assert_all_near::<P>(&what, &got.all(), &right.all());
                }
                let [steps, word] = got.all()[4 * len..] else { panic!("two numbers") };
                assert_eq!((steps, word), (6.0, 0.0));
                assert_ne!(down(engine, &got.value), values);
            }
        }
    }
}
fn steps_are_those_of_the_reference_f64<G: Engine>(engine: &G) {
    steps_are_those_of_the_reference::<f64, G>(engine);
}
fn steps_are_those_of_the_reference_f32<G: Engine>(engine: &G) {
    steps_are_those_of_the_reference::<f32, G>(engine);
}

/// The number of steps so far decides how much of the moments is missing.
fn long_runs_correct_their_bias<G: Engine>(engine: &G) {
    for before in [0.0, 1.0, 9.0, 1000.0, 1e6, 2f64.powi(40)] {
        let mut vector = Vector::<f64, G>::new(engine, &[1.0]);
        vector.steps = up(engine, &[before, 0.0]);
        vector.step(Algorithm::adam(), &[2.0], 0.125, 1.0, 0.0);
        let t = before + 1.0;
        let (m, v) = (0.1 * 2.0 / (1.0 - 0.9f64.powf(t)), 0.001 * 4.0 / (1.0 - 0.999f64.powf(t)));
        let right = 1.0 - 0.125 * m / (v.sqrt() + 1e-8);
        let got = down(engine, &vector.value)[0];
        // 1 - 0.999 itself is off by 1e-14.
        assert!((got - right).abs() < 1e-13, "{before}: {got}, not {right}");
        assert_eq!(down(engine, &vector.steps), [t, 0.0]);
    }
}

/// MATLAB's rule as it is documented, by the parameter before the last step; and torch's, which is another
/// one as soon as the rate changes.
fn the_last_step_is_taken_again_at_its_own_rate<G: Engine>(engine: &G) {
    let values = numbers::<f64>(7, 1);
    let [mut matlab, mut keras, mut torch] =
        std::array::from_fn(|_| Vector::<f64, G>::new(engine, &values));
    let (mut right, mut before) = (values.clone(), values.clone());
    for (step, lr) in [0.1, 0.1, 0.01, 0.2].into_iter().enumerate() {
        let grad = numbers::<f64>(7, 2 + step as u64);
        matlab.step(Algorithm::MatlabSgdm { momentum: 0.9 }, &grad, lr, 1.0, 0.25);
        keras.step(Algorithm::keras_sgd(0.9), &grad, lr, 1.0, 0.0);
        torch.step(Algorithm::sgd(0.9), &grad, lr, 1.0, 0.0);
        let moved = (0..7).map(|i| {
            let g = grad[i] + 0.25 * right[i];
            right[i] - lr * g + 0.9 * (right[i] - before[i])
        });
        (before, right) = (right.clone(), moved.collect());
        assert_all_near::<f64>("matlab", &down(engine, &matlab.value), &right);
        let [keras, torch] = [&keras, &torch].map(|vector| down(engine, &vector.value));
        let apart = keras.iter().zip(&torch).map(|(k, t)| (k - t).abs()).fold(0.0, f64::max);
        assert_eq!(apart > 1e-3, step >= 2, "step {step}: {apart}");
    }
}

/// The denominator does not forget a gradient that was large once; NaN is one that it keeps for ever.
fn amsgrad_keeps_the_greatest_moment<G: Engine>(engine: &G) {
    let (beta1, beta2, eps, amsgrad) = (0.9, 0.5, 1e-8, true);
    for algorithm in [
        Algorithm::Adam { beta1, beta2, eps, amsgrad },
        Algorithm::AdamW { beta1, beta2, eps, amsgrad },
        Algorithm::KerasAdam { beta1, beta2, eps, amsgrad },
    ] {
        let mut vector = Vector::<f64, G>::new(engine, &[1.0; 2]);
        for (step, grad) in [8.0, 0.5, 0.25, 0.0].into_iter().enumerate() {
            vector.step(algorithm, &[grad, 0.0], 0.1, 1.0, 0.0);
            let (second, third) = (down(engine, &vector.second), down(engine, &vector.third));
            assert_eq!(third[0], 0.5 * 64.0, "{algorithm:?}");
            assert_eq!(second[0] < third[0], step > 0, "{algorithm:?}, {step}: {second:?}");
        }
        vector.step(algorithm, &[f64::NAN, 0.0], 0.1, 1.0, 0.0);
        vector.step(algorithm, &[0.0; 2], 0.1, 1.0, 0.0);
        let third = down(engine, &vector.third);
        assert!(third[0].is_nan() && third[1] == 0.0, "{algorithm:?}: {third:?}");
    }
}

fn what_is_not_finite_stays_where_it_is<G: Engine>(engine: &G) {
    for algorithm in ALGORITHMS {
        let mut vector = Vector::<f32, G>::new(engine, &[1.0; 6]);
        let grad = [0.5, f32::NAN, f32::INFINITY, f32::MAX, -0.0, f32::MIN_POSITIVE];
        vector.step(algorithm, &grad, 0.1, 1.0, 0.0);
        let mut right = Vector::<f32, Reference>::new(&Reference, &[1.0; 6]);
        right.step(algorithm, &grad, 0.1, 1.0, 0.0);
        let got = down(engine, &vector.value);
        for (i, (got, right)) in got.iter().zip(&right.value).enumerate() {
            let same = got == right || got.is_nan() && right.is_nan();
            let near = (got - right).abs() <= 2e-7 * right.abs();
            assert!(same || near, "{algorithm:?}: {got} at {i}, not {right}");
        }
        assert!(got[1].is_nan() && got[0].is_finite() && got[5].is_finite(), "{algorithm:?}");
    }
}

fn penalties_are_those_of_the_reference<G: Engine>(engine: &G) {
    for len in [1, 3, 255, 257, 1000] {
        let mut values = numbers::<f64>(len, 3);
        values[len / 2] = 0.0;
        let before = numbers::<f64>(len, 4);
        for regularizer in
            [Regularizer::new(0.5, 0.0), Regularizer::new(0.0, 0.25), Regularizer::halved(0.1, 3.0)]
        {
            let Regularizer { l1, l2, .. } = regularizer;
            for accumulate in [false, true] {
                let (value, mut grad) = (up(engine, &values), up(engine, &before));
                let mut loss = up(engine, &[7.0]);
                let args = Regularize::<G::Memory, f64>::new(view::<G, f64>(&value), regularizer)
                    .grad(view_mut::<G, f64>(&mut grad))
                    .loss(view_mut::<G, f64>(&mut loss))
                    .accumulate_grad(accumulate)
                    .accumulate_loss(accumulate);
                engine.regularize(args).unwrap();
                let sign = |w: f64| f64::from(w > 0.0) - f64::from(w < 0.0);
                let own = |w: f64| l1 * sign(w) + 2.0 * l2 * w;
                let kept = |old: f64| if accumulate { old } else { 0.0 };
                let right: Vec<f64> =
                    values.iter().zip(&before).map(|(&w, &b)| kept(b) + own(w)).collect();
                assert_all_near::<f64>("grad", &down(engine, &grad), &right);
                let penalty = |w: &f64| l1 * w.abs() + l2 * w * w;
                let right = kept(7.0) + values.iter().map(penalty).sum::<f64>();
                let got = down(engine, &loss)[0];
                assert!((got - right).abs() <= 1e-13 * right, "{got}, not {right}");
                // The loss alone, and twice the same.
                let mut alone = up(engine, &[0.0]);
                let args = Regularize::<G::Memory, f64>::new(view::<G, f64>(&value), regularizer);
                engine.regularize(args.loss(view_mut::<G, f64>(&mut alone))).unwrap();
                assert_eq!(down(engine, &alone)[0] + kept(7.0), got);
            }
        }
    }
}

/// A factor of 0 leaves out an infinite value; the gradient of NaN is NaN, that of its neighbours is not.
fn penalties_of_what_is_not_finite<G: Engine>(engine: &G) {
    let (infinite, nan) = ([f64::INFINITY, -1.0, 0.0], [f64::NAN, -1.0, 0.0]);
    for (l1, l2, gradient) in [(0.5, 0.0, 0.5), (0.0, 0.25, f64::INFINITY)] {
        for (values, loss, first) in
            [(infinite, f64::INFINITY, gradient), (nan, f64::NAN, f64::NAN)]
        {
            let (value, mut grad) = (up(engine, &values), up(engine, &[7.0; 3]));
            let mut to_loss = up(engine, &[7.0]);
            let args =
                Regularize::<G::Memory, f64>::new(view::<G, f64>(&value), Regularizer::new(l1, l2));
            let args = args.grad(view_mut::<G, f64>(&mut grad));
            engine.regularize(args.loss(view_mut::<G, f64>(&mut to_loss))).unwrap();
            let got = [down(engine, &grad), down(engine, &to_loss)].concat();
            assert_all_near::<f64>(&format!("{l1}, {l2}"), &got, &[first, -0.5, 0.0, loss]);
        }
    }
}

fn constraints_are_those_of_keras<G: Engine>(engine: &G) {
    let constrained = |values: &[f64], constraint| {
        let mut value = up(engine, values);
        let args = Constrain::<G::Memory, f64>::new(view_mut::<G, f64>(&mut value), constraint);
        engine.constrain(args).unwrap();
        down(engine, &value)
    };
    let kept = constrained(&[-1.0, 2.0, -0.5, f64::NAN], Constraint::NonNegative);
    assert_eq!(kept[..3], [0.0, 2.0, 0.0]);
    assert!(kept[3].is_nan());
    for len in [2, 256, 1000] {
        let values = numbers::<f64>(len, 5);
        let norm = values.iter().map(|w| w * w).sum::<f64>().sqrt();
        for (constraint, wanted) in [
            (Constraint::MaxNorm(norm / 2.0), norm / 2.0),
            (Constraint::MaxNorm(2.0 * norm), norm),
            (Constraint::UnitNorm, 1.0),
            (Constraint::MinMaxNorm { min: 2.0 * norm, max: 3.0 * norm, rate: 1.0 }, 2.0 * norm),
            (Constraint::MinMaxNorm { min: 0.0, max: norm / 2.0, rate: 0.5 }, 0.75 * norm),
        ] {
            // Keras: w * (desired / (epsilon() + norms)).
            let right: Vec<f64> = values.iter().map(|w| w * (wanted / (1e-7 + norm))).collect();
            let got = constrained(&values, constraint);
            assert_all_near::<f64>(&format!("{constraint:?}"), &got, &right);
        }
    }
    // A vector of zeros has no direction.
    assert_eq!(constrained(&[0.0; 3], Constraint::UnitNorm), [0.0; 3]);
}

/// By the engine itself, whoever calls it: nothing is written.
fn numbers_without_meaning_are_refused<G: Engine>(engine: &G) {
    let (sgd, bad_beta) =
        (Algorithm::sgd(0.0), Algorithm::Adam { beta1: 1.0, beta2: 0.5, eps: 0.0, amsgrad: false });
    let nesterov = Algorithm::Sgd { momentum: 0.0, dampening: 0.0, nesterov: true };
    for (algorithm, lr_factor, weight_decay, what) in [
        (bad_beta, 1.0, 0.0, "beta1"),
        (nesterov, 1.0, 0.0, "nesterov"),
        (sgd, -1.0, 0.0, "lr_factor"),
        (sgd, f64::NAN, 0.0, "lr_factor"),
        (sgd, 1.0, f64::INFINITY, "weight_decay"),
    ] {
        let mut vector = Vector::<f64, G>::new(engine, &[1.0, 2.0]);
        let before = vector.all();
        let Vector { value, steps, first, second, .. } = &mut vector;
        let (grad, lr) = (up(engine, &[1.0; 2]), up(engine, &[0.1]));
        let args = OptimizerStep::<G::Memory, f64>::new(
            view_mut::<G, f64>(value),
            view::<G, f64>(&grad),
            algorithm,
            view::<G, f64>(&lr),
            view_mut::<G, f64>(steps),
        );
        let args = args.first(view_mut::<G, f64>(first)).second(view_mut::<G, f64>(second));
        let args = args.lr_factor(lr_factor).weight_decay(weight_decay);
        let error = engine.optimizer_step(args).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: got, .. } if got == what), "{error}");
        assert_eq!(vector.all(), before, "{what}");
    }
    for (regularizer, what) in [
        (Regularizer::new(-1.0, 0.0), "l1"),
        (Regularizer::new(0.0, -1.0), "l2"),
        (Regularizer::new(0.5, f64::NAN), "l2"),
    ] {
        let (value, mut grad) = (up(engine, &[1.0; 2]), up(engine, &[7.0; 2]));
        let mut loss = up(engine, &[7.0]);
        let args = Regularize::<G::Memory, f64>::new(view::<G, f64>(&value), regularizer);
        let args = args.grad(view_mut::<G, f64>(&mut grad)).loss(view_mut::<G, f64>(&mut loss));
        let error = engine.regularize(args).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: got, .. } if got == what), "{error}");
        assert_eq!((down(engine, &grad), down(engine, &loss)), (vec![7.0; 2], vec![7.0]), "{what}");
    }
    let mut value = up(engine, &[3.0, 4.0]);
    let args = Constrain::<G::Memory, f64>::new(
        view_mut::<G, f64>(&mut value),
        Constraint::MaxNorm(f64::NAN),
    );
    let error = engine.constrain(args).unwrap_err();
    assert!(matches!(error, Error::Invalid { what: "constraint", .. }), "{error}");
    assert_eq!(down(engine, &value), [3.0, 4.0]);
}
