//! What changes parameters, by its kernels, with any number of blocks, against the reference engine.
use crate::launch::{Arg, Device, Grid, NormOptions, StepOptions};
use crate::step::Kernels;
use crate::support::run::{Random, narrow, widen};
use batchnorm::{
    Algorithm, Constrain, Constraint, DType, Engine, Host, OptimizerStep, Real, Reference,
    Regularize, Regularizer,
};

const BLOCK: u32 = 256;
/// Of values and gradients: more than a block of each of two.
const LEN: usize = 700;

/// A parameter of a type that has kernels of its own.
trait Parameter: Real + Kernels {}
impl Parameter for f32 {}
impl Parameter for f64 {}

fn numbers<P: Parameter>(seed: u64) -> Vec<P> {
    let mut random = Random(seed);
    (0..LEN).map(|_| narrow(random.normal())).collect()
}

/// Within roundings of a few steps.
fn near<P: Parameter>(what: &str, got: &[P], right: &[P]) {
    let bar = if P::DTYPE == DType::F64 { 1e-14 } else { 2.5e-7 };
    assert_eq!(got.len(), right.len());
    for (i, (got, right)) in widen(got).into_iter().zip(widen(right)).enumerate() {
        assert!(
            (got - right).abs() <= bar * right.abs().max(1.0),
            "{what}: {got} at {i}, not {right}"
        );
    }
}

fn launch<P: Parameter>(device: &Device, kernel: &str, blocks: usize, args: &[Arg]) {
    let kernel = format!("{kernel}_{}", P::NAME);
    let count = Arg::U64(LEN as u64);
    device.launch("parameters", &kernel, Grid::of(blocks, BLOCK), &[&[count], args].concat());
}

/// As the kernels are told.
fn options(algorithm: Algorithm) -> StepOptions {
    const NESTEROV: u32 = 1;
    const DECAY_APART: u32 = 2;
    const AMSGRAD: u32 = 4;
    const EPS_FIRST: u32 = 8;
    let (momentum, adam, velocity) = (0, 1, 2);
    let bit = |is_set, bit| if is_set { bit } else { 0 };
    let (family, switches, betas, eps) = match algorithm {
        Algorithm::Sgd { momentum: beta, dampening, nesterov } => {
            (momentum, bit(nesterov, NESTEROV), [beta, dampening], 0.0)
        }
        Algorithm::Adam { beta1, beta2, eps, amsgrad } => {
            (adam, bit(amsgrad, AMSGRAD), [beta1, beta2], eps)
        }
        Algorithm::AdamW { beta1, beta2, eps, amsgrad } => {
            (adam, DECAY_APART | bit(amsgrad, AMSGRAD), [beta1, beta2], eps)
        }
        Algorithm::KerasAdam { beta1, beta2, eps, amsgrad } => {
            (adam, EPS_FIRST | DECAY_APART | bit(amsgrad, AMSGRAD), [beta1, beta2], eps)
        }
        Algorithm::KerasSgd { momentum, nesterov } => {
            (velocity, DECAY_APART | bit(nesterov, NESTEROV), [momentum, 0.0], 0.0)
        }
        other => panic!("{other:?} has no kernel here"),
    };
    StepOptions { lr_factor: 0.5, weight_decay: 0.1, betas, eps, family, switches }
}

/// Steps, by fewer blocks than there are values for, as many, and more.
fn steps_agree<P: Parameter>() {
    for algorithm in [
        Algorithm::sgd(0.0),
        Algorithm::Sgd { momentum: 0.5, dampening: 0.25, nesterov: false },
        Algorithm::nesterov(0.8),
        Algorithm::adam(),
        Algorithm::adam_w().amsgrad(true),
        Algorithm::keras_adam(),
        Algorithm::keras_sgd(0.9),
        Algorithm::KerasSgd { momentum: 0.8, nesterov: true },
    ] {
        for (seed, blocks) in [(1, 1), (2, 2), (3, 3), (4, 8)] {
            let device = Device::new("sm_90");
            device.set_seed(seed);
            let (zeros, lr) = (vec![P::default(); LEN], [0.25]);
            let mut right = [numbers::<P>(1), zeros.clone(), zeros.clone(), zeros];
            let mut right_steps = [0.0; 2];
            let got = right.each_ref().map(|values| device.upload(values, 0));
            let (to_lr, steps) = (device.upload(&lr, 0), device.upload(&[0f64; 2], 0));
            let ptr = |address| Arg::Pointer(address);
            for step in 0..3 {
                let grad = numbers::<P>(10 + step);
                let to_grad = device.upload(&grad, 0);
                let [value, first, second, third] = got.each_ref().map(|memory| memory.ptr());
                let tensors = [value, to_grad.ptr(), first, second, third].map(ptr);
                let first = [Arg::Step(options(algorithm)), ptr(to_lr.ptr()), ptr(steps.ptr())];
                launch::<P>(&device, "optimizer_step", blocks, &[&first[..], &tensors].concat());

                let [value, first, second, third] = &mut right;
                let mut args =
                    OptimizerStep::<Host, P>::new(value, &grad, algorithm, &lr, &mut right_steps)
                        .lr_factor(0.5)
                        .weight_decay(0.1);
                let buffers = algorithm.buffers().len();
                args.first = (buffers > 0).then_some(first);
                args.second = (buffers > 1).then_some(second);
                args.third = (buffers > 2).then_some(third);
                Reference.optimizer_step(args).unwrap();
                let what = format!("{algorithm:?}, {blocks} blocks, step {step}");
                for (got, right) in got.iter().zip(&right) {
                    near(&what, &device.download(got), right);
                }
                assert_eq!(device.download(&steps), right_steps, "{what}");
            }
            device.finish("steps");
        }
    }
}

#[test]
fn steps_agree_with_the_reference() {
    steps_agree::<f32>();
    steps_agree::<f64>();
}

fn penalties_agree<P: Parameter>() {
    let (values, before) = (numbers::<P>(3), numbers::<P>(4));
    for regularizer in [Regularizer::new(0.5, 0.0), Regularizer::new(0.25, 0.125)] {
        for accumulate in [false, true] {
            let device = Device::new("mini");
            let (value, grad) = (device.upload(&values, 0), device.upload(&before, 0));
            let loss = device.upload(&[7.0], 0);
            let factors = [regularizer.l1, regularizer.l2].map(Arg::F64);
            let to = [value.ptr(), grad.ptr(), loss.ptr()].map(Arg::Pointer);
            let flags = [Arg::U32(accumulate.into()); 2];
            launch::<P>(&device, "regularize", 1, &[&factors[..], &to, &flags].concat());

            let (mut right, mut right_loss) = (before.clone(), [7.0]);
            let args = Regularize::<Host, P>::new(&values, regularizer);
            let args = args.grad(&mut right).loss(&mut right_loss);
            let args = args.accumulate_grad(accumulate).accumulate_loss(accumulate);
            Reference.regularize(args).unwrap();
            let what = format!("{regularizer:?}, {accumulate}");
            near(&what, &device.download(&grad), &right);
            let got = device.download(&loss)[0];
            assert!((got - right_loss[0]).abs() <= 1e-13 * right_loss[0], "{what}: {got}");
            device.finish(&what);
        }
    }
}

#[test]
fn penalties_agree_with_the_reference() {
    penalties_agree::<f32>();
    penalties_agree::<f64>();
}

fn constraints_agree<P: Parameter>() {
    // The norm of so many values of variance 1 is about 26.
    for (constraint, norms, rate) in [
        (Constraint::NonNegative, None, 0.0),
        (Constraint::MaxNorm(2.0), Some([0.0, 2.0]), 1.0),
        (Constraint::UnitNorm, Some([1.0, 1.0]), 1.0),
        (Constraint::MinMaxNorm { min: 40.0, max: 50.0, rate: 0.25 }, Some([40.0, 50.0]), 0.25),
    ] {
        let device = Device::new("sm_75");
        let mut right = numbers::<P>(5);
        let value = device.upload(&right, 0);
        let non_negative = norms.is_none().into();
        let norms = norms.unwrap_or_default();
        let options = NormOptions { norms, rate, non_negative, reserved: 0 };
        launch::<P>(&device, "constrain", 1, &[Arg::Norms(options), Arg::Pointer(value.ptr())]);
        Reference.constrain(Constrain::<Host, P>::new(&mut right, constraint)).unwrap();
        near(&format!("{constraint:?}"), &device.download(&value), &right);
        device.finish("constraints");
    }
}

#[test]
fn constraints_agree_with_the_reference() {
    constraints_agree::<f32>();
    constraints_agree::<f64>();
}
