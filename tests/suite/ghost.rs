//! Ghost batches: every group of rows is a batch of its own, wherever its rows lie.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    every_group_is_a_batch,
    random_groups_are_batches,
    a_group_of_one_value_follows_the_rule,
    refusals_say_both_sides_and_change_nothing,
    calls_into_memory_and_in_place_have_the_same_bits,
    what_is_saved_belongs_to_the_last_forward,
] }

pub(crate) type Case<'a> = (&'a [usize], usize, Ghost);

/// Shapes, channel axes and groups: rows that divide and that do not, channels first, last and alone.
fn cases() -> Vec<Case<'static>> {
    let (near, apart) = (Ghost::consecutive, Ghost::strided);
    let (chunk, short) = (GhostRemainder::Chunk, GhostRemainder::ShortLast);
    vec![
        (&[8, 3, 2, 2], 1, near(2)),
        (&[8, 3, 2, 2], 1, near(4).update(GhostUpdate::Average)),
        (&[9, 3, 5], 1, near(4).remainder(chunk)),
        (&[9, 3, 5], 1, near(4).remainder(short)),
        (&[10, 7, 3], 2, near(4).remainder(short).update(GhostUpdate::Average)),
        (&[10, 7, 3], 2, near(4).remainder(chunk)),
        (&[6, 5], 1, near(3)),
        (&[6, 5, 2], 1, near(1)),
        (&[6, 2], 1, near(7).remainder(short)),
        (&[8, 3, 2, 2], 1, apart(2)),
        (&[8, 3, 3], 1, apart(4).update(GhostUpdate::Sequential)),
        (&[8, 2, 2, 3], 3, apart(2)),
        (&[8, 5, 3], 2, apart(4).update(GhostUpdate::Sequential)),
        // Rows of whole vectors, of several elements for each channel, and of more than kernels take at once.
        (&[6, 4, 16], 2, apart(3)),
        (&[9, 3, 2, 8, 4], 3, apart(3).update(GhostUpdate::Sequential)),
        (&[4, 2, 520], 2, apart(2)),
        (&[8, 1, 5], 1, apart(2)),
        (&[6, 5, 1], 2, apart(3)),
        (&[12, 17], 1, apart(3)),
        (&[4, 3, 2], 1, apart(4)),
        // Few rows of runs that are summed one by one, though they are short.
        (&[8, 9, 5, 7], 1, near(4)),
        (&[8, 9, 6, 8], 1, apart(4)),
        // Groups of few rows of vectors of channels, which an engine may take in one call.
        (&[10, 20], 1, near(4).remainder(short)),
        (&[9, 20], 1, near(4).remainder(chunk)),
        (&[12, 40], 1, near(4).update(GhostUpdate::Average)),
        (&[12, 68], 1, apart(4)),
    ]
}

/// The rows of every group.
pub(crate) fn groups(rows: usize, ghost: Ghost) -> Vec<Vec<usize>> {
    let by_size = |size: usize| {
        let ends = |from: usize| from..rows.min(from + size);
        (0..rows).step_by(size).map(|from| ends(from).collect()).collect()
    };
    match (ghost.rows, ghost.remainder) {
        (GhostRows::Strided, _) => {
            let groups = rows / ghost.size;
            (0..groups).map(|j| (j..rows).step_by(groups).collect()).collect()
        }
        (_, GhostRemainder::Chunk) => by_size(rows.div_ceil(rows.div_ceil(ghost.size))),
        _ => by_size(ghost.size),
    }
}

pub(crate) fn parameterized<P: Real, G: Engine>(
    engine: &G,
    channels: usize,
    config: Config,
) -> BatchNorm<P, G> {
    let mut bn = BatchNorm::new(engine, channels, config).unwrap();
    for (seed, (_, param)) in bn.named_parameters_mut().enumerate() {
        // Exact in every type.
        let values: Vec<f32> = numbers(channels, seed as u64 + 40);
        param.value =
            up(engine, &values.iter().map(|v| P::from_f64((*v).into())).collect::<Vec<_>>());
    }
    bn
}

/// x, residual and grad_y of a step, in f64 too.
pub(crate) fn tensors<E: Element>(len: usize, step: u64) -> [(Vec<E>, Vec<f64>); 3] {
    [1, 2, 3].map(|seed| {
        let values = numbers::<E>(len, step * 10 + seed);
        let wide = wide(&values);
        (values, wide)
    })
}

/// What is right, by a plain layer in f64 that each group is a batch of.
pub(crate) struct Right {
    pub bn: BatchNorm<f64, Reference>,
    pub y: Vec<f64>,
    pub grad_x: Vec<f64>,
    pub grad_residual: Vec<f64>,
}

impl Right {
    pub fn new(channels: usize, config: Config) -> Self {
        let mut config = config;
        config.ghost = None;
        let bn = parameterized(&Reference, channels, config);
        Self { bn, y: vec![], grad_x: vec![], grad_residual: vec![] }
    }
    pub fn step(&mut self, (dims, axis, ghost): Case<'_>, [x, residual, grad_y]: [&[f64]; 3]) {
        let (rows, len) = (dims[0], x.len());
        let row_len = len / rows;
        (self.y, self.grad_x, self.grad_residual) =
            (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let averages = ghost.update == GhostUpdate::Average;
        let (old, config) = (snapshot(&self.bn).running.unwrap(), *self.bn.config());
        let groups = groups(rows, ghost);
        let mut sums = vec![vec![0.0; old.0.len()]; 2];
        for group in &groups {
            let gather = |of: &[f64]| -> Vec<f64> {
                group.iter().flat_map(|row| of[row * row_len..][..row_len].to_vec()).collect()
            };
            let dims: Vec<usize> = [&[group.len()], &dims[1..]].concat();
            let shape = Shape::new(&dims, axis).unwrap();
            if averages {
                self.bn.set_momentum(Momentum::Exponential(1.0)).unwrap();
            }
            let (x, residual, grad_y) = (gather(x), gather(residual), gather(grad_y));
            let (y, saved) = self.bn.forward_add(&shape, &x, &residual).unwrap();
            let (grad_x, grad_residual) =
                self.bn.backward_add(&saved, &x, Some(&residual), &grad_y).unwrap();
            let all = [
                (&mut self.y, y),
                (&mut self.grad_x, grad_x),
                (&mut self.grad_residual, grad_residual),
            ];
            for (to, from) in all {
                for (row, from) in group.iter().zip(from.chunks(row_len)) {
                    to[row * row_len..][..row_len].copy_from_slice(from);
                }
            }
            let (mean, var, _) = snapshot(&self.bn).running.unwrap();
            for (sums, values) in sums.iter_mut().zip([mean, var]) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
        }
        if averages {
            self.bn.set_momentum(config.momentum).unwrap();
            let (mean, var) = config.momentum.factors(old.2);
            let running = self.bn.running_mut().unwrap();
            running.num_batches_tracked = old.2 + 1;
            let n = groups.len() as f64;
            for (to, old, sums, factor) in [
                (&mut running.mean, &old.0, &sums[0], mean),
                (&mut running.var, &old.1, &sums[1], var),
            ] {
                for ((to, old), sum) in to.iter_mut().zip(old).zip(sums) {
                    *to = (1.0 - factor) * old + factor * sum / n;
                }
            }
        }
    }
}

/// Two steps of a layer beside those of a plain one.
fn one<E: Element, G: Engine>(engine: &G, case: Case<'_>, config: Config) {
    let (dims, axis, ghost) = case;
    let shape = Shape::new(dims, axis).unwrap();
    let (len, m) = (shape.len(), shape.per_channel());
    let config = config.ghost(ghost);
    let mut bn = parameterized::<E::Acc, G>(engine, shape.channels(), config);
    let mut right = Right::new(shape.channels(), config);
    for step in 0..2 {
        let [x, residual, grad_y] = tensors::<E>(len, step);
        right.step(case, [&x.1, &residual.1, &grad_y.1]);
        let [x, residual, grad_y] = [x.0, residual.0, grad_y.0].map(|v| up(engine, &v));
        let [x, residual, grad_y] = [&x, &residual, &grad_y].map(view::<G, E>);
        let (y, saved) = bn
            .forward_add(&shape, G::Memory::reborrow(&x), G::Memory::reborrow(&residual))
            .unwrap();
        assert_eq!(saved.shape(), Some(shape));
        let (grad_x, grad_residual) = bn.backward_add(&saved, x, Some(residual), grad_y).unwrap();
        assert_near(&down::<G, E>(engine, &y), &right.y, Kind::Element);
        assert_near(&down::<G, E>(engine, &grad_x), &right.grad_x, Kind::Element);
        assert_near(&down::<G, E>(engine, &grad_residual), &right.grad_residual, Kind::Element);
    }
    // Both steps' running statistics, and both backwards' sums.
    let (got, right) = (snapshot(&bn), snapshot(&right.bn));
    let (got_running, right_running) = (got.running.unwrap(), right.running.unwrap());
    assert_near(&got_running.0, &right_running.0, Kind::Statistic);
    assert_near(&got_running.1, &right_running.1, Kind::Statistic);
    assert_eq!(got_running.2, right_running.2, "{case:?}");
    for (got, right) in got.grads.iter().zip(&right.grads) {
        assert_near(got.as_ref().unwrap(), right.as_ref().unwrap(), Kind::Sum(2 * m));
    }
}

fn every_group_is_a_batch<G: Engine>(engine: &G) {
    let leaky = Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 });
    for case in cases() {
        one::<f32, G>(engine, case, leaky);
    }
    for case in cases().into_iter().rev().take(4) {
        one::<f32, G>(engine, case, Config::default());
        one::<f64, G>(engine, case, Config::default().momentum(Momentum::Cumulative));
        one::<bf16, G>(engine, case, Config::default().bias(false).variance(Variance::Biased));
    }
    for case in [cases()[3], cases()[9], cases()[11]] {
        one::<f64, G>(engine, case, leaky.momentum(Momentum::Cumulative));
        one::<f16, G>(engine, case, Config::default().activation(Activation::Silu));
        one::<bf16, G>(engine, case, leaky.weight(false).variance(Variance::Biased));
    }
}

/// Any rows, sizes, layouts, rules, dtypes and epilogues: the same ones in every run.
fn random_groups_are_batches<G: Engine>(engine: &G) {
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..60 {
        let size = 1 + below(5);
        let even = below(3) > 0;
        let rows = if even { size * (1 + below(4)) } else { 1 + below(14) };
        let mut dims = vec![rows];
        dims.extend((0..1 + below(3)).map(|_| [1, 2, 3, 5, 7, 17][below(6)]));
        let axis = 1 + below(dims.len() - 1);
        let rules = [GhostRemainder::Chunk, GhostRemainder::ShortLast];
        let ghost = match (even, below(2)) {
            (true, 0) => Ghost::strided(size),
            (true, _) => Ghost::consecutive(size),
            (false, k) => Ghost::consecutive(size).remainder(rules[k]),
        };
        let ghost = ghost.update([GhostUpdate::Sequential, GhostUpdate::Average][below(2)]);
        let activations = [
            Activation::Identity,
            Activation::Silu,
            Activation::LeakyRelu { negative_slope: 0.25 },
            Activation::Gelu,
        ];
        let momenta = [Momentum::Exponential(0.3), Momentum::Cumulative, Momentum::Average];
        let config = Config::default()
            .activation(activations[below(4)])
            .momentum(momenta[below(3)])
            .variance([Variance::Biased, Variance::Unbiased][below(2)])
            .one_value(OneValue::ZeroVariance)
            .eps([1e-5, 1e-2][below(2)])
            .weight(below(4) > 0)
            .bias(below(4) > 0);
        let case = (&dims[..], axis, ghost);
        match below(4) {
            0 => one::<f64, G>(engine, case, config),
            1 => one::<f16, G>(engine, case, config.eps(1e-2)),
            2 => one::<bf16, G>(engine, case, config.eps(1e-2)),
            _ => one::<f32, G>(engine, case, config),
        }
    }
}

fn a_group_of_one_value_follows_the_rule<G: Engine>(engine: &G) {
    let short = Ghost::consecutive(2).remainder(GhostRemainder::ShortLast);
    let (shape, x) = (Shape::new(&[3, 1], 1).unwrap(), [1f32, 3.0, 7.0]);
    let of = |ghost, one_value| -> BatchNorm<f32, G> {
        let config = Config::default().ghost(ghost).momentum(Momentum::Exponential(0.5));
        BatchNorm::new(engine, 1, config.variance(Variance::Biased).one_value(one_value)).unwrap()
    };
    let mut bn = of(short, OneValue::Refuse);
    let (before, error) = (snapshot(&bn), forward(&mut bn, &shape, &x).err().unwrap());
    assert_eq!(error.to_string(), "x: training needs more than 1 value per channel, got 1");
    assert_eq!(snapshot(&bn), before);
    let average = short.update(GhostUpdate::Average);
    // Means of 2 and 7, variances of 1 and of none, from 0 and 1.
    for (ghost, one_value, mean, var) in [
        (short, OneValue::ZeroVariance, 4.0, 0.5),
        (short, OneValue::KeepVariance, 4.0, 1.0),
        (average, OneValue::ZeroVariance, 2.25, 0.75),
        (average, OneValue::KeepVariance, 2.25, 1.0),
        (Ghost::strided(1), OneValue::ZeroVariance, 11.0 / 6.0, 0.5),
        (Ghost::strided(1), OneValue::KeepVariance, 11.0 / 6.0, 1.0),
    ] {
        let mut bn = of(ghost, one_value);
        let (y, _) = forward(&mut bn, &shape, &x).unwrap();
        assert_eq!(y[2], 0.0);
        let (got_mean, got_var, _) = snapshot(&bn).running.unwrap();
        assert_near(&got_mean, &[mean], Kind::Statistic);
        assert_near(&got_var, &[var], Kind::Statistic);
    }
}

fn refusals_say_both_sides_and_change_nothing<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn: BatchNorm<f32, G> = layer(engine, Config::default().ghost(Ghost::consecutive(3)));
    let before = snapshot(&bn);
    let error = forward(&mut bn, &shape, &x).err().unwrap().to_string();
    assert_eq!(error, "ghost: expected rows that groups of 3 divide, got 4 rows");
    assert_eq!(snapshot(&bn), before);
}

fn calls_into_memory_and_in_place_have_the_same_bits<G: Engine>(engine: &G) {
    for (case, config) in [
        ((&[8usize, 3, 2, 2][..], 1, Ghost::consecutive(2)), Config::default()),
        ((&[8, 3, 2, 2], 1, Ghost::strided(2)), Config::default()),
        ((&[8, 2, 2, 3], 3, Ghost::strided(2)), Config::default().activation(Activation::Relu)),
    ] {
        let (dims, axis, ghost) = case;
        let shape = Shape::new(dims, axis).unwrap();
        let (x, grad_y) = (numbers::<f32>(shape.len(), 1), numbers::<f32>(shape.len(), 2));
        let mut bn = parameterized::<f32, G>(engine, 3, config.ghost(ghost));
        let (y, saved) = forward(&mut bn, &shape, &x).unwrap();
        let grad_x = backward(&mut bn, &saved, &x, &grad_y).unwrap();
        let grads = snapshot(&bn).grads;
        bn.zero_grad();
        let (x, mut to_y) = (up(engine, &x), up(engine, &vec![0f32; shape.len()]));
        let mut saved = saved;
        bn.forward_into(
            &shape,
            view::<G, f32>(&x),
            None,
            view_mut::<G, f32>(&mut to_y),
            &mut saved,
        )
        .unwrap();
        let mut grad = up(engine, &grad_y);
        let in_place = Some(view_mut::<G, f32>(&mut grad));
        bn.backward_into(&saved, view::<G, f32>(&x), None, Input::InPlace, in_place, None).unwrap();
        let got = down::<G, f32>(engine, &grad);
        assert_near(&got, &wide(&grad_x), Kind::Element);
        assert_eq!(down::<G, f32>(engine, &to_y), y);
        // cuDNN, by which one has run apart, has no backward in place.
        if engine.name() != "gpu" {
            assert_eq!((got, snapshot(&bn).grads), (grad_x, grads));
        }
    }
}

fn what_is_saved_belongs_to_the_last_forward<G: Engine>(engine: &G) {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn: BatchNorm<f32, G> = layer(engine, Config::default().ghost(Ghost::consecutive(2)));
    let (_, mut saved) = forward(&mut bn, &shape, &x).unwrap();
    assert_eq!((saved.is_frozen(), saved.shape()), (Some(false), Some(shape)));
    assert!(saved.mean().is_none() && saved.invstd().is_none());
    let on_engine = up(engine, &x);
    let args = Backward::<G::Memory, f32>::new(
        &saved,
        view::<G, f32>(&on_engine),
        view::<G, f32>(&on_engine),
    );
    let error = engine.backward(&shape, args).unwrap_err().to_string();
    assert!(error.starts_with("saved: expected what a forward of one batch saved"), "{error}");
    let short = &x[1..];
    let error = backward(&mut bn, &saved, &x, short).unwrap_err().to_string();
    assert_eq!(error, format!("grad_y: expected {} elements, got {}", x.len(), short.len()));
    // A forward in evaluation takes its place.
    bn.eval();
    let mut y = up(engine, &x);
    bn.forward_into(
        &shape,
        view::<G, f32>(&on_engine),
        None,
        view_mut::<G, f32>(&mut y),
        &mut saved,
    )
    .unwrap();
    assert_eq!(saved.is_frozen(), Some(true));
    assert!(saved.mean().is_some());
    let grad = backward(&mut bn, &saved, &x, &x).unwrap();
    let mut plain: BatchNorm<f32, G> = layer(engine, Config::default());
    let running = snapshot(&bn).running.unwrap();
    plain.running_mut().unwrap().mean = up(engine, &running.0);
    plain.running_mut().unwrap().var = up(engine, &running.1);
    plain.eval();
    let (_, plain_saved) = forward(&mut plain, &shape, &x).unwrap();
    assert_eq!(grad, backward(&mut plain, &plain_saved, &x, &x).unwrap());
}

#[test]
fn rules_that_do_not_go_together_are_refused() {
    let refusal = |config: Config| {
        let made = BatchNorm::<f32, _>::new(&Reference, 3, config);
        made.err().unwrap().to_string()
    };
    let config = Config::default();
    assert_eq!(
        refusal(config.ghost(Ghost::consecutive(0))),
        "ghost: expected groups of at least 1 row, got 0"
    );
    assert_eq!(
        refusal(config.ghost(Ghost::strided(2).remainder(GhostRemainder::Chunk))),
        "ghost: expected even where groups are strided, as rows / size is the distance, got chunk"
    );
    assert_eq!(
        refusal(config.ghost(Ghost::consecutive(2)).track_running_stats(false)),
        "ghost: expected running statistics, by which to evaluate, got none"
    );
    assert_eq!(
        refusal(config.ghost(Ghost::strided(2)).non_finite(NonFinite::Skip)),
        "ghost: expected consecutive groups with sequential updates, which can be skipped, got strided(2) with \
         non_finite=skip"
    );
    let ghost = Ghost::consecutive(2).remainder(GhostRemainder::ShortLast);
    let bn = BatchNorm::<f32, _>::new(&Reference, 3, config.ghost(ghost)).unwrap();
    assert!(bn.to_string().ends_with(", ghost=2, short_last)"), "{bn}");
}

#[test]
fn lists_and_rows_in_pieces_are_refused() {
    let mut bn: BatchNorm<f32, _> =
        layer(&Reference, Config::default().ghost(Ghost::consecutive(1)));
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let error = bn.forward_parts(&[(shape, &x[..])]).err().unwrap().to_string();
    assert_eq!(
        error,
        "ghost: expected none for a list of inputs, which is one batch; got groups of 1"
    );
    // The columns lie outside of the rows.
    let interleaved = Shape::strided(&[2, 3, 4], &[3, 1, 6], 1).unwrap();
    let error = forward(&mut bn, &interleaved, &x[..24]).err().unwrap().to_string();
    assert!(
        error.starts_with("ghost: expected rows that lie in one piece each, got strides"),
        "{error}"
    );
}
