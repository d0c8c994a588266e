//! Any rank, any axis or several, from either end: shapes beside what the dims themselves say, element by
//! element, and a layer on them beside a computation of its own in f64 that knows no shapes.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

engines! { [reference_on_host, cpu_on_host] [
    every_axis_is_normalized_as_the_dims_say,
    ranks_one_to_six_pass_through_a_layer,
] }

const EPS: f64 = 1e-3;

/// A tensor and the axes of its channels, some of them counted from the end, in any order.
#[derive(Debug, Clone)]
struct Case {
    dims: Vec<usize>,
    is_channel: Vec<bool>,
    axes: Vec<isize>,
    seed: u64,
}

impl Case {
    fn new(dims: Vec<usize>, is_channel: Vec<bool>, seed: u64) -> Self {
        let rank = dims.len();
        let chosen = (0..rank).filter(|&k| is_channel[k]);
        let from_either_end =
            |k| if seed >> k & 1 == 1 { k as isize - rank as isize } else { k as isize };
        let mut axes: Vec<isize> = chosen.map(from_either_end).collect();
        let turn = seed as usize % axes.len().max(1);
        axes.rotate_left(turn);
        Self { dims, is_channel, axes, seed }
    }
    fn len(&self) -> usize {
        self.dims.iter().product()
    }
    /// The channel of an element of row-major memory: its position on the channel axes alone.
    fn channel_of(&self, element: usize) -> usize {
        let (mut rest, mut channel, mut step) = (element, 0, 1);
        for (&size, &is_channel) in self.dims.iter().zip(&self.is_channel).rev() {
            if is_channel {
                channel += rest % size * step;
                step *= size;
            }
            rest /= size;
        }
        channel
    }
    fn channels(&self) -> usize {
        self.dims
            .iter()
            .zip(&self.is_channel)
            .filter(|(_, is)| **is)
            .map(|(size, _)| size)
            .product()
    }
    /// Whether a layout of outer x channels x inner, in whatever way it is cut, says of each element its channel.
    fn is_said_by(&self, inner: usize) -> bool {
        (0..self.len()).all(|i| i / inner % self.channels() == self.channel_of(i))
    }
}

/// The same cases in every run; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` look for others.
fn check(cases: u32, test: impl Fn(Case)) {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let dims = prop::collection::vec(1usize..6, 1..=6);
    let dims = dims.prop_filter("small", |dims| dims.iter().product::<usize>() <= 2000);
    let cases = dims.prop_flat_map(|dims| {
        let rank = dims.len();
        let any_axes = prop::collection::vec(any::<bool>(), rank);
        // Most lists of axes have gaps.
        let neighbours = (0..rank, 0..rank).prop_map(move |(a, b)| {
            (0..rank).map(|k| (a.min(b)..=a.max(b)).contains(&k)).collect()
        });
        (Just(dims), prop_oneof![2 => any_axes, 1 => neighbours], any::<u64>())
    });
    let cases = cases.prop_map(|(dims, is_channel, seed)| Case::new(dims, is_channel, seed));
    TestRunner::new(config).run(&cases, |case| (test(case), Ok(())).1).unwrap();
}

#[test]
fn axes_fold_where_any_layout_does_and_are_refused_otherwise() {
    use std::cell::Cell;
    let (served, refused) = (Cell::new(0), Cell::new(0));
    check(600, |case| {
        let inners = (1..=case.len()).filter(|inner| case.len() % (inner * case.channels()) == 0);
        let layout = inners.into_iter().find(|&inner| case.is_said_by(inner));
        match Shape::with_axes(&case.dims, &case.axes) {
            Ok(shape) => {
                assert_eq!((shape.len(), shape.channels()), (case.len(), case.channels()));
                assert!(case.is_said_by(shape.inner()), "{case:?}: {shape}");
                let batch = if case.is_channel[0] { 1 } else { case.dims[0] };
                assert_eq!(shape.batch(), batch, "{case:?}");
                served.set(served.get() + 1);
            }
            Err(_) if case.axes.is_empty() => {}
            Err(error) => {
                assert!(layout.is_none(), "{case:?}: {error}, although {layout:?} would do");
                assert!(error.to_string().contains(&format!("{:?}", case.dims)), "{error}");
                refused.set(refused.get() + 1);
            }
        }
        if let [axis] = case.axes[..] {
            assert_eq!(Shape::from_end(&case.dims, axis), Shape::with_axes(&case.dims, &[axis]));
        }
    });
    let (served, refused) = (served.get(), refused.get());
    assert!(served > 100 && refused > 40, "{served} served, {refused} refused");
}

/// What a layer gives, by the definition, in f64: y, gradients of x, weight and bias, and the statistics.
struct Right {
    y: Vec<f64>,
    grad_x: Vec<f64>,
    grad_weight: Vec<f64>,
    grad_bias: Vec<f64>,
    mean: Vec<f64>,
    var: Vec<f64>,
}

fn right(case: &Case, x: &[f64], grad_y: &[f64], weight: &[f64], bias: &[f64]) -> Right {
    let channels = case.channels();
    let m = (case.len() / channels) as f64;
    let of: Vec<usize> = (0..case.len()).map(|i| case.channel_of(i)).collect();
    let sums = |value: &dyn Fn(usize) -> f64| {
        let mut sums = vec![0.0; channels];
        of.iter().enumerate().for_each(|(i, &c)| sums[c] += value(i));
        sums
    };
    let mean: Vec<f64> = sums(&|i| x[i]).iter().map(|sum| sum / m).collect();
    let var = sums(&|i| (x[i] - mean[of[i]]).powi(2));
    let var: Vec<f64> = var.iter().map(|sum| sum / m).collect();
    let invstd = |c: usize| 1.0 / (var[c] + EPS).sqrt();
    let xhat = |i: usize| (x[i] - mean[of[i]]) * invstd(of[i]);
    let grad_weight = sums(&|i| grad_y[i] * xhat(i));
    let grad_bias = sums(&|i| grad_y[i]);
    let grad_x = |(i, &c): (usize, &usize)| {
        let through = grad_y[i] - grad_bias[c] / m - xhat(i) * grad_weight[c] / m;
        weight[c] * invstd(c) * through
    };
    let grad_x = of.iter().enumerate().map(grad_x).collect();
    let y = of.iter().enumerate().map(|(i, &c)| weight[c] * xhat(i) + bias[c]).collect();
    Right { y, grad_x, grad_weight, grad_bias, mean, var }
}

fn every_axis_is_normalized_as_the_dims_say<G: Engine<Memory = Host>>(engine: &G) {
    check(300, |case| {
        let Ok(shape) = Shape::with_axes(&case.dims, &case.axes) else { return };
        if shape.per_channel() > 1 {
            passes::<f64, G>(engine, &case, &shape);
            passes::<f32, G>(engine, &case, &shape);
        }
    });
}

fn passes<E: Element, G: Engine<Memory = Host>>(engine: &G, case: &Case, shape: &Shape) {
    let (channels, m) = (case.channels(), shape.per_channel());
    let (x, grad_y) =
        (numbers::<E>(case.len(), case.seed % 97), numbers::<E>(case.len(), 1 + case.seed % 89));
    let (weight, bias) = (numbers::<E::Acc>(channels, 5), numbers::<E::Acc>(channels, 6));
    let config = Config::keras().eps(EPS).momentum(Momentum::Cumulative);
    let mut bn = BatchNorm::<E::Acc, G>::new(engine, channels, config).unwrap();
    bn.weight_mut().unwrap().value = weight.clone();
    bn.bias_mut().unwrap().value = bias.clone();
    let (y, saved) = bn.forward(shape, &x).unwrap();
    let grad_x = bn.backward(&saved, &x, &grad_y).unwrap();
    let right = right(case, &wide(&x), &wide(&grad_y), &wide(&weight), &wide(&bias));
    assert_near(&y, &right.y, Kind::Element);
    assert_near(&grad_x, &right.grad_x, Kind::Element);
    assert_near(&grad(&bn, "weight").unwrap(), &right.grad_weight, Kind::Sum(m));
    assert_near(&grad(&bn, "bias").unwrap(), &right.grad_bias, Kind::Sum(m));
    let running = bn.running().unwrap();
    assert_near(&running.mean, &right.mean, Kind::Statistic);
    assert_near(&running.var, &right.var, Kind::Statistic);
}

/// A vector, a matrix, and higher ranks, with the batch and as one sample, channels first and last: each as
/// Wolfram's ports and MATLAB's layer take them.
fn ranks_one_to_six_pass_through_a_layer<G: Engine<Memory = Host>>(engine: &G) {
    for rank in 1..=6 {
        let sample: Vec<usize> = (0..rank).map(|k| 2 + k % 3).collect();
        let batch = [&[4], &sample[..]].concat();
        for interleaving in [false, true] {
            let axis = if interleaving { rank } else { 1 };
            let is_channel: Vec<bool> = (0..=rank).map(|k| k == axis).collect();
            let shape = Shape::interleaving(&batch, interleaving).unwrap();
            let case = Case::new(batch.clone(), is_channel, rank as u64);
            assert_eq!(Shape::with_axes(&batch, &case.axes), Ok(shape));
            passes::<f32, G>(engine, &case, &shape);

            // One sample alone has the same channels; evaluated, it gives what it gives in the batch.
            let alone = Shape::from_end(&sample, if interleaving { -1 } else { 0 - rank as isize });
            let alone = alone.unwrap();
            assert_eq!(alone.channels(), shape.channels());
            let mut bn =
                BatchNorm::<f32, G>::new(engine, shape.channels(), Config::default()).unwrap();
            let x = numbers::<f32>(shape.len(), 7);
            bn.forward(&shape, &x).unwrap();
            let y = bn.infer(&shape, &x).unwrap();
            let first = bn.infer(&alone, &x[..alone.len()]).unwrap();
            assert_eq!(first, y[..alone.len()]);
            if rank == 1 {
                let error = bn.forward(&alone, &x[..alone.len()]).unwrap_err();
                let message = "x: training needs more than 1 value per channel, got 1";
                assert_eq!(error.to_string(), message);
            }
        }
    }
}
