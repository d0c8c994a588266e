//! Whole steps of ghost batches - forward, backward, the backward's gradients - with masks and without: beside the same
//! of every group as a batch of its own.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    every_group_doubles_as_a_batch,
    every_group_counts_by_its_part_of_a_mask,
    groups_in_which_nothing_counts_follow_the_rule,
] }

/// Tensors of a step, and what is given for the gradients of a backward.
#[derive(Clone)]
struct Step<E: Element> {
    dims: Vec<usize>,
    axis: usize,
    x: Vec<E>,
    residual: Vec<E>,
    grad_y: Vec<E>,
    v_x: Vec<E>,
    v_residual: Vec<E>,
    v_weight: Vec<E::Acc>,
    v_bias: Vec<E::Acc>,
    mask: Option<OfMask>,
}
/// Places, and the rules of a mask: without the last axis of this length, if it is one of those.
#[derive(Clone)]
struct OfMask {
    places: Vec<u8>,
    last: Option<usize>,
    count_eps: f64,
    all_masked: AllMasked,
}

/// What a step leaves: y, grad_x, grad_residual; gg_grad_y, gg_x, gg_residual; then gradients of weight and bias, of
/// both backwards.
#[derive(Debug, Default)]
struct Outcome {
    tensors: [Vec<f64>; 6],
    sums: [Vec<f64>; 4],
}

fn narrowed<E: Element>(values: &[f64]) -> Vec<E> {
    values.iter().map(|v| E::narrow(Real::from_f64(*v))).collect()
}

impl<E: Element> Step<E> {
    fn new(dims: &[usize], axis: usize, mask: Option<OfMask>) -> Self {
        let len = dims.iter().product();
        // Exact in every type that is tested.
        let tensor = |seed| narrowed::<E>(&wide(&numbers::<bf16>(len, seed)));
        let channel = |seed| narrowed_acc::<E>(&wide(&numbers::<bf16>(dims[axis], seed)));
        Self {
            dims: dims.to_vec(),
            axis,
            x: tensor(1),
            residual: tensor(2),
            grad_y: tensor(3),
            v_x: tensor(4),
            v_residual: tensor(5),
            v_weight: channel(6),
            v_bias: channel(7),
            mask,
        }
    }
    fn row_len(&self) -> usize {
        self.x.len() / self.dims[0]
    }
    /// These rows in f64.
    fn rows(&self, rows: &[usize]) -> Step<f64> {
        let some = |all: &[E]| -> Vec<f64> {
            let row = |row: &usize| wide(&all[row * self.row_len()..][..self.row_len()]);
            rows.iter().flat_map(row).collect()
        };
        let mask = self.mask.clone().map(|mask| {
            let len = mask.places.len() / self.dims[0];
            let row = |row: &usize| mask.places[row * len..][..len].to_vec();
            OfMask { places: rows.iter().flat_map(row).collect(), ..mask }
        });
        let channel = |all: &[E::Acc]| all.iter().map(|v| v.to_f64()).collect();
        Step {
            dims: [&[rows.len()], &self.dims[1..]].concat(),
            axis: self.axis,
            x: some(&self.x),
            residual: some(&self.residual),
            grad_y: some(&self.grad_y),
            v_x: some(&self.v_x),
            v_residual: some(&self.v_residual),
            v_weight: channel(&self.v_weight),
            v_bias: channel(&self.v_bias),
            mask,
        }
    }

    fn run<G: Engine>(&self, bn: &mut BatchNorm<E::Acc, G>, doubles: bool) -> Outcome {
        let (engine, n) = (bn.engine().clone(), self.x.len());
        let shape = Shape::new(&self.dims, self.axis).unwrap();
        let up = |values: &[E]| up(&engine, values);
        let [x, residual, grad_y] = [&self.x, &self.residual, &self.grad_y].map(|v| up(v));
        let nan = vec![narrowed::<E>(&[f64::NAN])[0]; n];
        let mut to = [(); 6].map(|()| up(&nan));
        let of = view::<G, E>;
        let on_engine = |mask: &OfMask| engine.memory().upload(&mask.places).unwrap();
        let places = self.mask.as_ref().map(on_engine);
        let places = || places.as_ref().map(|places| view::<G, u8>(places));
        let mut saved = Saved::new();
        let y = view_mut::<G, E>(&mut to[0]);
        match (&self.mask, places()) {
            (Some(of_mask), Some(places)) => {
                let mut mask = Mask::new(places).count_eps(of_mask.count_eps);
                mask.last = of_mask.last;
                let mask = mask.all_masked(of_mask.all_masked);
                let r = Some(of(&residual));
                bn.forward_masked_into(&shape, of(&x), r, mask, y, &mut saved).unwrap();
            }
            _ => bn.forward_into(&shape, of(&x), Some(of(&residual)), y, &mut saved).unwrap(),
        }
        bn.zero_grad();
        let again = || Some(of(&residual));
        {
            let [_, grad_x, grad_residual, ..] = &mut to;
            let (to_x, to_r) =
                (Some(view_mut::<G, E>(grad_x)), Some(view_mut::<G, E>(grad_residual)));
            let g = Input::View(of(&grad_y));
            match places() {
                Some(places) => {
                    bn.backward_masked_into(&saved, of(&x), again(), places, g, to_x, to_r).unwrap()
                }
                None => bn.backward_into(&saved, of(&x), again(), g, to_x, to_r).unwrap(),
            }
        }
        let channels = |bn: &BatchNorm<E::Acc, G>, name: &str| -> Vec<f64> {
            let grad = grad(bn, name).unwrap_or_default();
            grad.iter().map(|v| v.to_f64()).collect()
        };
        let mut outcome = Outcome::default();
        outcome.sums[..2].clone_from_slice(&["weight", "bias"].map(|name| channels(bn, name)));
        if doubles {
            bn.zero_grad();
            let [v_x, v_residual] = [&self.v_x, &self.v_residual].map(|v| up(v));
            let [v_weight, v_bias] =
                [&self.v_weight, &self.v_bias].map(|v| engine.memory().upload(v).unwrap());
            let [.., gg_grad_y, gg_x, gg_residual] = &mut to;
            let args = DoubleBackward::<G::Memory, E>::new(&saved, of(&x), of(&grad_y))
                .residual(of(&residual))
                .v_x(of(&v_x))
                .v_residual(of(&v_residual))
                .v_weight(view::<G, E::Acc>(&v_weight))
                .v_bias(view::<G, E::Acc>(&v_bias))
                .gg_grad_y(view_mut::<G, E>(gg_grad_y))
                .gg_x(view_mut::<G, E>(gg_x))
                .gg_residual(view_mut::<G, E>(gg_residual));
            bn.double_backward_into(args).unwrap();
            outcome.sums[2..].clone_from_slice(&["weight", "bias"].map(|name| channels(bn, name)));
        }
        outcome.tensors = to.map(|buf| wide(&down::<G, E>(&engine, &buf)));
        outcome
    }
}

fn narrowed_acc<E: Element>(values: &[f64]) -> Vec<E::Acc> {
    values.iter().map(|v| Real::from_f64(*v)).collect()
}

fn parameterized<P: Real, G: Engine>(
    engine: &G,
    channels: usize,
    config: Config,
) -> BatchNorm<P, G> {
    let mut bn = BatchNorm::new(engine, channels, config).unwrap();
    for (seed, (_, param)) in bn.named_parameters_mut().enumerate() {
        let values = wide(&numbers::<bf16>(channels, seed as u64 + 40));
        param.value = up(engine, &values.into_iter().map(P::from_f64).collect::<Vec<_>>());
    }
    bn
}

/// The rows of every group.
fn groups(rows: usize, ghost: Ghost) -> Vec<Vec<usize>> {
    match ghost.rows {
        GhostRows::Strided => {
            let groups = rows / ghost.size;
            (0..groups).map(|j| (j..rows).step_by(groups).collect()).collect()
        }
        _ => {
            let all: Vec<usize> = (0..rows).collect();
            all.chunks(ghost.size).map(<[usize]>::to_vec).collect()
        }
    }
}

/// A step of groups beside one of every group, and how both move the running statistics.
fn compare<E: Element, G: Engine>(
    engine: &G,
    step: &Step<E>,
    ghost: Ghost,
    config: Config,
    doubles: bool,
) {
    let channels = step.dims[step.axis];
    let mut bn = parameterized::<E::Acc, G>(engine, channels, config.ghost(ghost));
    let got = step.run(&mut bn, doubles);
    let mut plain = parameterized::<f64, _>(&Reference, channels, config);
    let averages = ghost.update == GhostUpdate::Average;
    let before = snapshot(&plain).running.unwrap();
    let groups = groups(step.dims[0], ghost);
    let (row_len, n) = (step.row_len(), groups.len() as f64);
    let mut right = Outcome {
        tensors: [(); 6].map(|()| vec![f64::NAN; step.x.len()]),
        sums: [(); 4].map(|()| vec![0.0; channels]),
    };
    let mut moved = [vec![0.0; channels], vec![0.0; channels]];
    for rows in &groups {
        if averages {
            // So that each moves from where all began.
            let running = plain.running_mut().unwrap();
            (running.mean, running.var) = (before.0.clone(), before.1.clone());
            running.num_batches_tracked = before.2;
        }
        let of = step.rows(rows).run(&mut plain, doubles);
        for (to, from) in right.tensors.iter_mut().zip(of.tensors) {
            for (row, from) in rows.iter().zip(from.chunks(row_len)) {
                to[row * row_len..][..row_len].copy_from_slice(from);
            }
        }
        for (to, from) in right.sums.iter_mut().zip(of.sums) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
        let (mean, var, _) = snapshot(&plain).running.unwrap();
        for (to, from) in moved.iter_mut().zip([&mean, &var]) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from / n);
        }
    }
    let say = format!("{:?} axis {} {ghost:?} {:?}", step.dims, step.axis, config.activation);
    let named = ["y", "grad_x", "grad_residual", "gg_grad_y", "gg_x", "gg_residual"];
    for ((name, got), right) in named.into_iter().zip(&got.tensors).zip(&right.tensors) {
        near::<E>(&format!("{say}: {name}"), got, right, Kind::Element);
    }
    let m = step.x.len() / channels;
    for (got, right) in got.sums.iter().zip(&right.sums).filter(|(got, _)| !got.is_empty()) {
        near::<E>(&format!("{say}: parameters"), got, right, Kind::Sum(m));
    }
    let (mean, var, count) = snapshot(&bn).running.unwrap();
    let (right_mean, right_var, right_count) = match averages {
        true => (moved[0].clone(), moved[1].clone(), before.2 + 1),
        false => snapshot(&plain).running.unwrap(),
    };
    assert_near(&mean, &right_mean, Kind::Statistic);
    assert_near(&var, &right_var, Kind::Statistic);
    assert_eq!(count, right_count, "{say}");
}

/// Gradients of gradients are differences of products, each of which has an error of its own.
#[track_caller]
fn near<E: Element>(say: &str, got: &[f64], right: &[f64], kind: Kind) {
    assert_eq!(got.len(), right.len(), "{say}");
    let max = right.iter().filter(|v| v.is_finite()).fold(0.0, |max: f64, v| max.max(v.abs()));
    let bar = 16.0 * crate::support::tolerance::tolerance(E::DTYPE, kind, max, 1.0);
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        let near = got.is_nan() && right.is_nan() || (got - right).abs() <= bar;
        assert!(near, "{say}: at {i} expected {right}, got {got}, tolerance {bar}");
    }
}

/// Shapes, channel axes and groups: channels first, last, between others and alone.
fn cases() -> Vec<(&'static [usize], usize, Ghost)> {
    let (near, apart) = (Ghost::consecutive, Ghost::strided);
    let short = GhostRemainder::ShortLast;
    vec![
        (&[8, 3, 5], 1, near(3).remainder(short)),
        (&[8, 3, 2, 2], 1, apart(4)),
        (&[12, 5], 1, apart(3).update(GhostUpdate::Sequential)),
        (&[8, 2, 2, 3], 3, near(4).update(GhostUpdate::Average)),
        (&[8, 2, 2, 3], 3, apart(4)),
        // Rows of whole vectors, of several elements for each channel, and of more than kernels take at once.
        (&[9, 3, 4, 8], 2, apart(3).update(GhostUpdate::Sequential)),
        (&[6, 2, 2, 40], 2, apart(3)),
        (&[4, 2, 520], 2, apart(2)),
        (&[8, 1, 5], 1, apart(2)),
    ]
}

fn every_group_doubles_as_a_batch<G: Engine>(engine: &G) {
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let silu = Config::default().activation(Activation::Silu).eps(1e-2);
    for (k, (dims, axis, ghost)) in cases().into_iter().enumerate() {
        let config = if k % 2 == 0 { leaky } else { silu };
        compare(engine, &Step::<f64>::new(dims, axis, None), ghost, config, true);
        compare(engine, &Step::<f32>::new(dims, axis, None), ghost, config.eps(1e-2), true);
    }
    for k in [1, 4, 5] {
        let (dims, axis, ghost) = cases()[k];
        compare(engine, &Step::<f16>::new(dims, axis, None), ghost, silu.eps(0.1), true);
        compare(engine, &Step::<bf16>::new(dims, axis, None), ghost, leaky.eps(0.1), true);
    }
}

/// Places of which about three of five count, other ones for every seed; none in the first two rows.
fn places(len: usize, rows: usize, seed: u64) -> Vec<u8> {
    let none = 2 * len / rows;
    let counts = numbers::<f64>(len, seed).into_iter().map(|v| u8::from(v < -0.3));
    counts.enumerate().map(|(i, one)| if i < none { 0 } else { one }).collect()
}

fn masks(dims: &[usize], axis: usize, seed: u64) -> [OfMask; 2] {
    let (len, last) = (dims.iter().product::<usize>(), dims[dims.len() - 1]);
    let of = |len| places(len, dims[0], seed);
    let exact = OfMask {
        places: of(len / dims[axis]),
        last: None,
        count_eps: 0.0,
        all_masked: AllMasked::Keep,
    };
    // Another one for every channel, where these are not last.
    let keras = OfMask {
        places: of(len / last),
        last: Some(last),
        count_eps: 1e-2,
        all_masked: AllMasked::Zero,
    };
    [exact, keras]
}

fn every_group_counts_by_its_part_of_a_mask<G: Engine>(engine: &G) {
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let silu = Config::default().activation(Activation::Silu);
    for (k, (dims, axis, ghost)) in cases().into_iter().enumerate() {
        let config = if k % 2 == 0 { silu } else { leaky }.eps(1e-2);
        let config = config.momentum([Momentum::Exponential(0.3), Momentum::Cumulative][k / 2 % 2]);
        let other = match ghost.update {
            GhostUpdate::Average => ghost.update(GhostUpdate::Sequential),
            _ => ghost.update(GhostUpdate::Average),
        };
        let [exact, keras] = masks(dims, axis, k as u64);
        compare(engine, &Step::<f64>::new(dims, axis, Some(exact.clone())), ghost, config, DOUBLES);
        compare(engine, &Step::<f32>::new(dims, axis, Some(exact)), other, config, DOUBLES);
        compare(engine, &Step::<f64>::new(dims, axis, Some(keras)), other, config, DOUBLES);
    }
    for k in [1, 3, 5] {
        let (dims, axis, ghost) = cases()[k];
        let [exact, keras] = masks(dims, axis, 9);
        let config = silu.eps(0.1);
        compare(engine, &Step::<f16>::new(dims, axis, Some(exact)), ghost, config, DOUBLES);
        compare(engine, &Step::<bf16>::new(dims, axis, Some(keras)), ghost, config, DOUBLES);
    }
}
const DOUBLES: bool = false;

fn groups_in_which_nothing_counts_follow_the_rule<G: Engine>(engine: &G) {
    let shape = Shape::new(&[4, 1], 1).unwrap();
    let x = [1f32, 3.0, 7.0, 9.0];
    // Means of 2 and of nothing, variances of 1 and of nothing, from 0 and 1.
    let none = f32::NAN;
    for (ghost, places) in
        [(Ghost::consecutive(2), [1u8, 1, 0, 0]), (Ghost::strided(2), [1, 0, 1, 0])]
    {
        let x = if ghost == Ghost::strided(2) { [x[0], x[2], x[1], x[3]] } else { x };
        for (all_masked, update, mean, var) in [
            (AllMasked::Keep, GhostUpdate::Sequential, 1.0, 1.0),
            (AllMasked::Zero, GhostUpdate::Sequential, 0.5, 0.5),
            (AllMasked::Nan, GhostUpdate::Sequential, none, none),
            (AllMasked::Keep, GhostUpdate::Average, 0.5, 1.0),
            (AllMasked::Zero, GhostUpdate::Average, 0.5, 0.75),
            (AllMasked::Nan, GhostUpdate::Average, none, none),
        ] {
            let config = Config::default().ghost(ghost.update(update)).eps(1e-12);
            let config = config.momentum(Momentum::Exponential(0.5)).variance(Variance::Biased);
            let mut bn: BatchNorm<f32, G> = BatchNorm::new(engine, 1, config).unwrap();
            let (on_engine, places) = (up(engine, &x), up(engine, &places));
            let mask = Mask::new(view::<G, u8>(&places)).all_masked(all_masked);
            let (y, saved) = bn.forward_masked(&shape, view::<G, f32>(&on_engine), mask).unwrap();
            assert_eq!((saved.is_masked(), saved.shape()), (Some(true), Some(shape)));
            let y = down::<G, f32>(engine, &y);
            let counted = if ghost == Ghost::strided(2) { [y[0], y[2]] } else { [y[0], y[1]] };
            assert!((counted[0] + 1.0).abs() < 1e-6 && (counted[1] - 1.0).abs() < 1e-6, "{y:?}");
            let (got_mean, got_var, count) = snapshot(&bn).running.unwrap();
            let say = format!("{ghost:?} {all_masked:?} {update:?}");
            let same = |got: f32, right: f32| got.is_nan() && right.is_nan() || got == right;
            assert!(
                same(got_mean[0], mean) && same(got_var[0], var),
                "{say} {got_mean:?} {got_var:?}"
            );
            assert_eq!(count, if update == GhostUpdate::Average { 1 } else { 2 });
            // Its backward asks for the mask.
            let grads = bn.backward(&saved, view::<G, f32>(&on_engine), view::<G, f32>(&on_engine));
            let error = grads.err().unwrap().to_string();
            assert_eq!(error, "saved: the forward had mask one, this backward has none");
        }
    }
}

#[test]
fn masks_of_groups_are_refused_in_words() {
    let mut bn: BatchNorm<f32, _> =
        layer(&Cpu::default(), Config::default().ghost(Ghost::consecutive(2)));
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let before = snapshot(&bn);
    let mut refusal =
        |places: &[u8]| bn.forward_masked(&shape, &x, Mask::new(places)).err().unwrap().to_string();
    assert_eq!(refusal(&[1; 15]), "mask: expected 16 elements, got 15");
    let mut places = [1; 16];
    places[9] = 2;
    assert_eq!(refusal(&places), "mask: expected 0 or 1 at every place, got 2 at place 9");
    assert_eq!(snapshot(&bn), before);
    let (_, saved) = bn.forward_masked(&shape, &x, Mask::new(&[1; 16][..])).unwrap();
    let error = bn.backward_masked(&saved, &x, &[1; 15], &x).unwrap_err().to_string();
    assert_eq!(error, "mask: expected 16 elements, got 15");
}
