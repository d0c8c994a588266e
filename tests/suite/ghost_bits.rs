//! Ghost batches that an engine on the host takes at once have the bits of calls one after the other: those of a
//! plain layer.
use crate::support::engines::engines;
use crate::support::layer::*;
use batchnorm::*;
use half::f16;

engines! { [reference_on_host, cpu_on_host] [
    groups_at_once_have_the_bits_of_calls,
    few_rows_have_the_bits_of_calls,
    numbers_of_all_kinds_have_the_bits_of_calls,
    strided_rows_have_the_bits_of_calls,
    in_place_has_the_same_bits,
    any_number_of_threads_has_the_same_bits,
] }

type Case<'a> = (&'a [usize], usize, usize);

/// A step in groups of so many rows, of these values, beside one of each group; with a residual, if it has any.
fn beside_calls<E: Element, G: Engine>(
    engine: &G,
    (dims, axis, size): Case<'_>,
    config: Config,
    [x, grad_y, residual]: [Vec<E>; 3],
) {
    let shape = Shape::new(dims, axis).unwrap();
    let config = config.one_value(OneValue::ZeroVariance);
    let ghost = Ghost::consecutive(size).remainder(GhostRemainder::ShortLast);
    let on = engine.memory();
    let step = |bn: &mut BatchNorm<E::Acc, G>, shape: &Shape, at: std::ops::Range<usize>| {
        let [x, grad_y] = [&x, &grad_y].map(|all| up(engine, &all[at.clone()]));
        let residual = residual.get(at.clone()).map(|residual| up(engine, residual));
        let residual = || residual.as_ref().map(view::<G, E>);
        let none = || on.zeros::<E>(at.len()).unwrap();
        let (mut y, mut grad_x, mut grad_residual, mut saved) =
            (none(), none(), none(), Saved::new());
        let to = view_mut::<G, E>(&mut y);
        bn.forward_into(shape, view::<G, E>(&x), residual(), to, &mut saved).unwrap();
        let to = Some(view_mut::<G, E>(&mut grad_x));
        let of_residual = residual().map(|_| view_mut::<G, E>(&mut grad_residual));
        let grad_y = Input::View(view::<G, E>(&grad_y));
        bn.backward_into(&saved, view::<G, E>(&x), residual(), grad_y, to, of_residual).unwrap();
        [y, grad_x, grad_residual].map(|buf| down::<G, E>(engine, &buf))
    };
    let mut bn = parameterized::<E::Acc, G>(engine, shape.channels(), config.ghost(ghost));
    let got = step(&mut bn, &shape, 0..shape.len());
    let mut plain = parameterized::<E::Acc, G>(engine, shape.channels(), config);
    let (row_len, mut right) = (shape.len() / dims[0], [vec![], vec![], vec![]]);
    for from in (0..dims[0]).step_by(size) {
        let to = dims[0].min(from + size);
        let of_group = Shape::new(&[&[to - from], &dims[1..]].concat(), axis).unwrap();
        let of = step(&mut plain, &of_group, from * row_len..to * row_len);
        right.iter_mut().zip(of).for_each(|(right, of)| right.extend(of));
    }
    // NaN is NaN there.
    assert!(format!("{got:?}") == format!("{right:?}"), "{shape} in {size}, {config}");
    assert_eq!(format!("{:?}", snapshot(&bn)), format!("{:?}", snapshot(&plain)), "{shape}");
}

fn parameterized<P: Real, G: Engine>(
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

fn groups_at_once_have_the_bits_of_calls<G: Engine>(engine: &G) {
    let config = Config::default().activation(Activation::Relu);
    for case in [
        (&[64usize, 40][..], 1, 4),
        (&[40, 3, 5, 7], 1, 4),
        (&[36, 50, 12], 2, 4),
        (&[10, 2048], 1, 3),
        (&[16, 600, 60], 1, 2),
    ] {
        let len = case.0.iter().product();
        let tensors = [numbers::<f32>(len, 1), numbers(len, 2), vec![]];
        beside_calls(engine, case, config, tensors);
    }
}

/// Rows at the bounds of what is taken in registers, channels that vectors divide and that they do not; of all
/// dtypes, with and without parameters, ReLU and residual.
fn few_rows_have_the_bits_of_calls<G: Engine>(engine: &G) {
    fn of<E: Element, G: Engine>(engine: &G, first: usize) {
        let cases: [Case<'_>; 8] = [
            (&[6, 16], 1, 2),
            (&[12, 17], 1, 3),
            (&[30, 33], 1, 4),
            (&[30, 15], 1, 5),
            (&[17, 40], 1, 8),
            (&[62, 100], 1, 31),
            (&[64, 48], 1, 32),
            (&[66, 40], 1, 33),
        ];
        for (k, case) in cases.into_iter().enumerate() {
            let len = case.0.iter().product();
            let variants = [(Activation::Identity, false), (Activation::Relu, false)];
            let more = [(Activation::Identity, true), (Activation::Relu, true)];
            for (n, (activation, residual)) in variants.into_iter().chain(more).enumerate() {
                let config = Config::default().activation(activation).eps(1e-3);
                let config = config
                    .weight(!(k + n + first).is_multiple_of(3))
                    .bias(!(k + n).is_multiple_of(4));
                let r = numbers(if residual { len } else { 0 }, 3);
                beside_calls(engine, case, config, [numbers::<E>(len, 1), numbers(len, 2), r]);
            }
        }
    }
    of::<f32, G>(engine, 0);
    of::<f64, G>(engine, 1);
    of::<f16, G>(engine, 2);
    of::<half::bf16, G>(engine, 0);
}

/// Constants, numbers that are not finite, and those at the ends of the range, each in a channel of its own.
fn numbers_of_all_kinds_have_the_bits_of_calls<G: Engine>(engine: &G) {
    let (dims, channels) = (&[40usize, 21][..], 21);
    for activation in [Activation::Identity, Activation::Relu] {
        for eps in [1e-5, 1e-36] {
            let mut x = numbers::<f32>(840, 1);
            let mut grad_y = numbers::<f32>(840, 2);
            for row in 0..40 {
                let at = row * channels;
                x[at] = 7.25;
                x[at + 1] *= 1e30;
                x[at + 2] *= 1e-30;
                x[at + 3] += 1e6;
                grad_y[at + 4] *= 3e38;
            }
            x[11 * channels + 5] = f32::INFINITY;
            x[22 * channels + 6] = f32::NAN;
            grad_y[33 * channels + 20] = f32::INFINITY;
            let config = Config::default().activation(activation).eps(eps);
            beside_calls(engine, (dims, 1, 4), config, [x, grad_y, vec![]]);
        }
    }
}

/// A step's y, grad_x, running statistics and gradients, the gradient in place or not.
fn step_of<E: Element, G: Engine>(
    engine: &G,
    (dims, axis): (&[usize], usize),
    config: Config,
    [x, grad_y]: [&[E]; 2],
    in_place: bool,
) -> [String; 4] {
    let shape = Shape::new(dims, axis).unwrap();
    let mut bn = parameterized::<E::Acc, G>(engine, shape.channels(), config);
    let (x, mut grad_x) = (up(engine, x), up(engine, grad_y));
    let (mut y, mut saved) = (up(engine, grad_y), Saved::new());
    // Twice, so that both find something there.
    for _ in 0..2 {
        grad_x = up(engine, grad_y);
        let to = view_mut::<G, E>(&mut y);
        bn.forward_into(&shape, view::<G, E>(&x), None, to, &mut saved).unwrap();
        let own = up(engine, grad_y);
        let from = if in_place { Input::InPlace } else { Input::View(view::<G, E>(&own)) };
        let to = Some(view_mut::<G, E>(&mut grad_x));
        bn.backward_into(&saved, view::<G, E>(&x), None, from, to, None).unwrap();
    }
    let of = snapshot(&bn);
    let [y, grad_x] = [y, grad_x].map(|buf| format!("{:?}", down::<G, E>(engine, &buf)));
    [y, grad_x, format!("{:?}", of.running), format!("{:?}", of.grads)]
}

/// y and the gradient of x of rows at equal distances are those of a batch of these rows.
fn strided_rows_have_the_bits_of_calls<G: Engine>(engine: &G) {
    fn of<E: Element, G: Engine>(engine: &G, activation: Activation) {
        for (rows, channels, size) in [(8, 16, 2), (12, 40, 4), (15, 100, 5), (64, 33, 32)] {
            let groups = rows / size;
            let config = Config::default().activation(activation);
            let (mut x, grad_y) =
                (numbers::<E>(rows * channels, 1), numbers::<E>(rows * channels, 2));
            // Of one group a channel that is not finite, and one that leaves the range of f32.
            x[channels + 3] = E::narrow(E::Acc::from_f64(f64::NAN));
            for row in (0..rows).step_by(groups) {
                let at = row * channels + 5;
                x[at] = E::narrow(E::Acc::from_f64(x[at].widen().to_f64() * 1e30));
            }
            let ghost = config.ghost(Ghost::strided(size));
            let whole = step_of(engine, (&[rows, channels], 1), ghost, [&x, &grad_y], false);
            let mut apart = [vec![String::new(); rows], vec![String::new(); rows]];
            for group in 0..groups {
                let gather = |of: &[E]| -> Vec<E> {
                    let rows = (group..rows).step_by(groups);
                    rows.flat_map(|row| of[row * channels..][..channels].to_vec()).collect()
                };
                let (x, grad_y) = (gather(&x), gather(&grad_y));
                let all = step_of(engine, (&[size, channels], 1), config, [&x, &grad_y], false);
                for (apart, all) in apart.iter_mut().zip(&all) {
                    let values: Vec<&str> = all.trim_matches(['[', ']']).split(", ").collect();
                    for (k, row) in values.chunks(channels).enumerate() {
                        apart[k * groups + group] = row.join(", ");
                    }
                }
            }
            for (whole, apart) in whole.iter().zip(&apart) {
                assert!(
                    *whole == format!("[{}]", apart.join(", ")),
                    "{rows} x {channels} in {size}"
                );
            }
        }
    }
    of::<f32, G>(engine, Activation::Identity);
    of::<f32, G>(engine, Activation::Relu);
    of::<f64, G>(engine, Activation::Relu);
    of::<f16, G>(engine, Activation::Identity);
    of::<half::bf16, G>(engine, Activation::Relu);
}

fn in_place_has_the_same_bits<G: Engine>(engine: &G) {
    for (dims, ghost) in [
        (&[12usize, 17][..], Ghost::consecutive(4)),
        (&[12, 68], Ghost::consecutive(6)),
        (&[12, 100], Ghost::strided(3)),
        (&[12, 64], Ghost::strided(4)),
        // Units of one row, and of several.
        (&[8, 33, 130], Ghost::strided(4)),
        (&[14, 40, 26], Ghost::strided(7)),
    ] {
        let (len, axis) = (dims.iter().product(), dims.len() - 1);
        let (mut x, grad_y) = (numbers::<f32>(len, 1), numbers::<f32>(len, 2));
        x[dims[axis] + 2] = f32::INFINITY;
        let config = Config::default().ghost(ghost).activation(Activation::Relu);
        let [apart, own] = [false, true]
            .map(|in_place| step_of(engine, (dims, axis), config, [&x[..], &grad_y], in_place));
        assert!(apart == own, "{dims:?}, {ghost}");
    }
}

fn any_number_of_threads_has_the_same_bits<G: Engine>(engine: &G) {
    for (dims, ghost) in [
        (&[600usize, 100][..], Ghost::consecutive(4)),
        (&[602, 100], Ghost::consecutive(4).remainder(GhostRemainder::ShortLast)),
        (&[700, 72], Ghost::strided(7)),
        (&[640, 64], Ghost::consecutive(5).update(GhostUpdate::Average)),
        // Groups that are a task each, and shares of two groups.
        (&[24, 40, 64], Ghost::strided(4)),
        (&[28, 40, 32], Ghost::strided(14)),
    ] {
        let (len, axis) = (dims.iter().product(), dims.len() - 1);
        let (mut x, grad_y) = (numbers::<f32>(len, 1), numbers::<f32>(len, 2));
        x[dims[axis] + 2] = 1e30;
        let config = Config::default().ghost(ghost);
        let [right, others @ ..] = [1, 2, 3, 8].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| step_of(engine, (dims, axis), config, [&x[..], &grad_y], false))
        });
        assert!(others.iter().all(|other| *other == right), "{dims:?}, {ghost}");
    }
}
