//! Groups of few rows of many channels by a mask of positions, which an engine may take in one call: beside the same of
//! every group as a batch of its own, of which all rows count, some, one or none.
use super::ghost_steps::compare;
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::steps::{OfMask, Step, parameterized};
use batchnorm::*;
use half::{bf16, f16};
use std::ops::Range;

engines! { [reference, cpu, cuda, gpu] [every_group_is_a_masked_batch] }

engines! { [reference_on_host, cpu_on_host] [
    groups_have_the_bits_of_masked_calls,
    strided_groups_have_the_bits_of_masked_calls,
    what_does_not_count_leaves_the_rest_as_it_is,
    any_number_of_threads_has_the_same_bits,
] }

const SHORT: GhostRemainder = GhostRemainder::ShortLast;
const RULES: [AllMasked; 3] = [AllMasked::Keep, AllMasked::Zero, AllMasked::Nan];

/// A byte for every position of so many rows: by turns some of a group count, none, all, one, and its first half.
fn places(shape: &Shape, rows: usize, ghost: Ghost, seed: usize) -> Vec<u8> {
    let positions = shape.per_channel() / rows;
    let some = numbers::<f64>(rows * positions, seed as u64);
    let groups = rows / ghost.size;
    let place = |i: usize| {
        let row = i / positions;
        let (group, within) = match ghost.rows {
            GhostRows::Strided => (row % groups, row / groups),
            _ => (row / ghost.size, row % ghost.size),
        };
        u8::from(match (group + seed) % 5 {
            0 => some[i] < -0.3,
            1 => false,
            2 => true,
            3 => within == 1 && i.is_multiple_of(positions),
            _ => 2 * within < ghost.size,
        })
    };
    (0..rows * positions).map(place).collect()
}

fn every_group_is_a_masked_batch<G: Engine>(engine: &G) {
    fn of<E: Element, G: Engine>(engine: &G, first: usize, eps: f64) {
        let (near, apart) = (Ghost::consecutive, Ghost::strided);
        let average = GhostUpdate::Average;
        let cases: [(&[usize], Ghost); 8] = [
            (&[22, 24], near(4).remainder(SHORT)),
            (&[40, 16], near(16).remainder(SHORT)),
            (&[80, 100], near(16)),
            (&[36, 33], near(4).update(average)),
            (&[20, 20], apart(4)),
            (&[80, 64], apart(16)),
            (&[14, 2, 2, 16], near(3).remainder(SHORT).update(average)),
            (&[10, 7, 40], near(2)),
        ];
        for (k, (dims, ghost)) in cases.into_iter().enumerate() {
            let k = k + first;
            let config = Config::default().eps(eps);
            let config = config
                .variance([Variance::Unbiased, Variance::Biased][k % 2])
                .momentum([Momentum::Exponential(0.3), Momentum::Cumulative][k / 2 % 2])
                .one_value([OneValue::Refuse, OneValue::KeepVariance][k / 4 % 2]);
            for seed in 0..3 {
                let shape = Shape::new(dims, dims.len() - 1).unwrap();
                let mask = OfMask {
                    places: places(&shape, dims[0], ghost, seed + k),
                    last: [None, Some(shape.channels())][(k + seed) % 2],
                    count_eps: 0.0,
                    all_masked: RULES[(k + seed) % 3],
                };
                let mut step = Step::<E>::new(dims, dims.len() - 1, Some(mask));
                compare(engine, &step, ghost, config, seed == 0);
                // A derivative of which x alone is taken.
                step.residual.clear();
                compare(engine, &step, ghost, config.activation(Activation::Relu), false);
            }
        }
    }
    of::<f64, G>(engine, 0, 1e-3);
    of::<f32, G>(engine, 1, 1e-2);
    of::<f16, G>(engine, 2, 0.1);
    of::<bf16, G>(engine, 5, 0.1);
}

/// Tensors of a step by a mask.
struct Tensors<'a, E> {
    x: &'a [E],
    grad_y: &'a [E],
    residual: Option<&'a [E]>,
    places: &'a [u8],
}

/// y and the gradients of x and the residual, that of y in place or not.
fn step<E: Element, G: Engine>(
    bn: &mut BatchNorm<E::Acc, G>,
    shape: &Shape,
    of: &Tensors<'_, E>,
    rule: AllMasked,
    in_place: bool,
) -> [Vec<E>; 3] {
    let engine = bn.engine().clone();
    let [x, own] = [of.x, of.grad_y].map(|all| up(&engine, all));
    let (mut grad_x, mut y) = (up(&engine, of.grad_y), up(&engine, of.grad_y));
    let mut grad_residual = up(&engine, of.residual.unwrap_or_default());
    let (places, residual) = (up(&engine, of.places), of.residual.map(|all| up(&engine, all)));
    let residual = || residual.as_ref().map(view::<G, E>);
    let mut saved = Saved::new();
    let mask = Mask::new(view::<G, u8>(&places)).all_masked(rule);
    let (at, to) = (view::<G, E>(&x), view_mut::<G, E>(&mut y));
    bn.forward_masked_into(shape, at, residual(), mask, to, &mut saved).unwrap();
    let from = if in_place { Input::InPlace } else { Input::View(view::<G, E>(&own)) };
    let to = Some(view_mut::<G, E>(&mut grad_x));
    let of_residual = residual().map(|_| view_mut::<G, E>(&mut grad_residual));
    let (at, places) = (view::<G, E>(&x), view::<G, u8>(&places));
    bn.backward_masked_into(&saved, at, residual(), places, from, to, of_residual).unwrap();
    [y, grad_x, grad_residual].map(|buf| down::<G, E>(&engine, &buf))
}

/// Groups beside calls of them, in all bits: of channels that calls by a mask sum a position at a time.
fn groups_have_the_bits_of_masked_calls<G: Engine>(engine: &G) {
    fn of<E: Element, G: Engine>(engine: &G, first: usize) {
        let cases: [(&[usize], usize, usize); 14] = [
            (&[22, 32], 1, 2),
            (&[18, 100], 1, 3),
            (&[42, 33], 1, 4),
            (&[42, 64], 1, 8),
            (&[100, 40], 1, 16),
            (&[96, 48], 1, 31),
            (&[160, 40], 1, 32),
            (&[11, 2, 3, 34], 3, 2),
            // A thread takes each of them whole.
            (&[36, 40, 5, 7], 1, 4),
            (&[24, 6, 130], 1, 2),
            (&[132, 16], 1, 66),
            (&[45, 7], 1, 9),
            (&[16, 3, 25, 20], 3, 2),
            (&[20, 50, 80], 1, 2),
        ];
        for (k, (dims, axis, size)) in cases.into_iter().enumerate() {
            for n in 0..6 {
                let (k, rule) = (k + first, RULES[(k + n) % 3]);
                let relu = [Activation::Identity, Activation::Relu][n % 2];
                let config = Config::default().activation(relu).eps(1e-3);
                let config = config
                    .weight((k + n) % 3 != 0)
                    .bias((k + n) % 4 != 0)
                    .one_value([OneValue::ZeroVariance, OneValue::KeepVariance][k % 2])
                    .variance([Variance::Unbiased, Variance::Biased][n / 2 % 2]);
                let ghost = Ghost::consecutive(size).remainder(SHORT);
                let (shape, len) = (Shape::new(dims, axis).unwrap(), dims.iter().product());
                let [x, grad_y, residual] = [1, 2, 3].map(|seed| numbers::<E>(len, seed));
                let places = places(&shape, dims[0], ghost, k + n);
                let residual = Some(&residual[..]).filter(|_| n != 1 && n < 4);
                let (row_len, positions) = (len / dims[0], places.len() / dims[0]);
                let part = |rows: Range<usize>| {
                    let at = rows.start * row_len..rows.end * row_len;
                    let places = &places[rows.start * positions..rows.end * positions];
                    let residual = residual.map(|all| &all[at.clone()]);
                    Tensors { x: &x[at.clone()], grad_y: &grad_y[at], residual, places }
                };
                let mut bn =
                    parameterized::<E::Acc, G>(engine, shape.channels(), config.ghost(ghost));
                let got = step(&mut bn, &shape, &part(0..dims[0]), rule, n == 3);
                let mut plain = parameterized::<E::Acc, G>(engine, shape.channels(), config);
                let mut right = [vec![], vec![], vec![]];
                for from in (0..dims[0]).step_by(size) {
                    let rows = from..dims[0].min(from + size);
                    let dims = [&[rows.len()], &dims[1..]].concat();
                    let shape = Shape::new(&dims, axis).unwrap();
                    let of = step(&mut plain, &shape, &part(rows), rule, false);
                    right.iter_mut().zip(of).for_each(|(right, of)| right.extend(of));
                }
                let say = format!("{} {shape} in {size}, {config}, {rule:?}", E::DTYPE);
                // NaN is NaN there.
                assert!(format!("{got:?}") == format!("{right:?}"), "{say}");
                let [got, right] = [&bn, &plain].map(|bn| format!("{:?}", snapshot(bn)));
                assert!(got == right, "{say}: parameters or running statistics");
            }
        }
    }
    of::<f32, G>(engine, 0);
    of::<f64, G>(engine, 1);
    of::<f16, G>(engine, 2);
    of::<bf16, G>(engine, 3);
}

fn strided_groups_have_the_bits_of_masked_calls<G: Engine>(engine: &G) {
    fn of<E: Element, G: Engine>(engine: &G, activation: Activation) {
        for (seed, (rows, channels, size)) in
            [(20, 32, 4), (25, 100, 5), (160, 33, 32)].into_iter().enumerate()
        {
            let (groups, len) = (rows / size, rows * channels);
            let ghost = Ghost::strided(size);
            let config = Config::default().activation(activation);
            let (mut x, grad_y) = (numbers::<E>(len, 1), numbers::<E>(len, 2));
            // Of one group a channel that leaves the range of f32.
            for row in (0..rows).step_by(groups) {
                let at = row * channels + 5;
                x[at] = E::narrow(E::Acc::from_f64(x[at].widen().to_f64() * 1e30));
            }
            let shape = Shape::new(&[rows, channels], 1).unwrap();
            let places = places(&shape, rows, ghost, seed);
            let mut bn = parameterized::<E::Acc, G>(engine, channels, config.ghost(ghost));
            let of = Tensors { x: &x, grad_y: &grad_y, residual: None, places: &places };
            let whole = step(&mut bn, &shape, &of, AllMasked::Zero, false);
            for group in 0..groups {
                let rows = || (group..rows).step_by(groups);
                let gather = |of: &[E]| -> Vec<E> {
                    rows().flat_map(|row| of[row * channels..][..channels].to_vec()).collect()
                };
                let own: Vec<u8> = rows().map(|row| places[row]).collect();
                let (x, grad_y) = (gather(&x), gather(&grad_y));
                let of = Tensors { x: &x, grad_y: &grad_y, residual: None, places: &own };
                let shape = Shape::new(&[size, channels], 1).unwrap();
                let mut plain = parameterized::<E::Acc, G>(engine, channels, config);
                let right = step(&mut plain, &shape, &of, AllMasked::Zero, false);
                for (whole, right) in whole.iter().zip(&right).take(2) {
                    let (got, right) = (format!("{:?}", gather(whole)), format!("{right:?}"));
                    assert!(
                        got == right,
                        "{} {rows:?} x {channels}: group {group}",
                        E::DTYPE,
                        rows = size
                    );
                }
            }
        }
    }
    of::<f32, G>(engine, Activation::Identity);
    of::<f64, G>(engine, Activation::Relu);
    of::<f16, G>(engine, Activation::Identity);
    of::<bf16, G>(engine, Activation::Relu);
}

fn what_does_not_count_leaves_the_rest_as_it_is<G: Engine>(engine: &G) {
    for ghost in [Ghost::consecutive(5), Ghost::strided(5)] {
        let (dims, channels) = (&[50usize, 40][..], 40);
        let shape = Shape::new(dims, 1).unwrap();
        let places = places(&shape, dims[0], ghost, 0);
        let mut x = numbers::<f32>(shape.len(), 1);
        let config = Config::default().ghost(ghost);
        let run = |x: &[f32]| {
            let mut bn = parameterized::<f32, G>(engine, channels, config);
            let (x, places) = (up(engine, x), up(engine, &places));
            let (x, mask) = (view::<G, f32>(&x), Mask::new(view::<G, u8>(&places)));
            let (y, _) = bn.forward_masked(&shape, x, mask).unwrap();
            (down::<G, f32>(engine, &y), snapshot(&bn))
        };
        let (right, before) = run(&x);
        let counts = |i: usize| places[i / channels] == 1;
        for (i, x) in x.iter_mut().enumerate().filter(|(i, _)| !counts(*i)) {
            *x = [f32::NAN, f32::INFINITY, 3e38, -0.0][i % 4];
        }
        let (got, after) = run(&x);
        assert_eq!(after, before);
        assert!((0..shape.len()).filter(|i| counts(*i)).all(|i| got[i] == right[i]), "{ghost}");
    }
}

fn any_number_of_threads_has_the_same_bits<G: Engine>(engine: &G) {
    for (dims, ghost) in [
        (&[602usize, 100][..], Ghost::consecutive(4).remainder(SHORT)),
        (&[700, 72], Ghost::strided(7)),
        (&[640, 64], Ghost::consecutive(5).update(GhostUpdate::Average)),
        (&[40, 30, 24], Ghost::consecutive(4)),
    ] {
        let shape = Shape::new(dims, 1).unwrap();
        let places = places(&shape, dims[0], ghost, 0);
        let (x, grad_y) = (numbers::<f32>(shape.len(), 1), numbers::<f32>(shape.len(), 2));
        let of = Tensors { x: &x, grad_y: &grad_y, residual: None, places: &places };
        let [right, others @ ..] = [1, 2, 3, 8].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let config = Config::default().ghost(ghost);
                let mut bn = parameterized::<f32, G>(engine, dims[1], config);
                let tensors = step(&mut bn, &shape, &of, AllMasked::Keep, false);
                format!("{tensors:?} {:?}", snapshot(&bn))
            })
        });
        assert!(others.iter().all(|other| *other == right), "{dims:?}, {ghost}");
    }
}

/// Nothing is changed by what is refused, before the first group or at the last one.
#[test]
fn masks_of_groups_in_one_call_are_refused_in_words() {
    for ghost in [Ghost::consecutive(4), Ghost::strided(4)] {
        let mut bn = parameterized::<f32, _>(&Cpu::default(), 16, Config::default().ghost(ghost));
        let shape = Shape::new(&[16, 16], 1).unwrap();
        let (x, before) = (numbers::<f32>(256, 1), snapshot(&bn));
        let mut y = vec![7.0; 256];
        let mut saved = Saved::new();
        let mut refusal = |places: &[u8], last: Option<usize>| {
            let mut mask = Mask::new(places);
            mask.last = last;
            let done = bn.forward_masked_into(&shape, &x, None, mask, &mut y, &mut saved);
            done.unwrap_err().to_string()
        };
        let mut places = [1; 16];
        assert_eq!(refusal(&places[..15], None), "mask: expected 16 elements, got 15");
        places[15] = 2;
        let right = "mask: expected 0 or 1 at every place, got 2 at place 15";
        assert_eq!(refusal(&places, None), right);
        assert_eq!(refusal(&places, Some(16)), right);
        assert_eq!((snapshot(&bn), &y[..]), (before, &[7.0; 256][..]));
        places[15] = 0;
        bn.forward_masked_into(&shape, &x, None, Mask::new(&places[..]), &mut y, &mut saved)
            .unwrap();
        assert_eq!((saved.is_masked(), saved.shape()), (Some(true), Some(shape)));
        let before = snapshot(&bn);
        let mut refusal = |places: Option<&[u8]>| {
            let done = match places {
                Some(places) => bn.backward_masked(&saved, &x, places, &x).map(drop),
                None => bn.backward(&saved, &x, &x).map(drop),
            };
            done.unwrap_err().to_string()
        };
        assert_eq!(refusal(Some(&[1; 15])), "mask: expected 16 elements, got 15");
        assert_eq!(
            refusal(Some(&[2; 16])),
            "mask: expected 0 or 1 at every place, got 2 at place 0"
        );
        assert_eq!(refusal(None), "saved: the forward had mask one, this backward has none");
        assert_eq!(snapshot(&bn), before);
    }
}
