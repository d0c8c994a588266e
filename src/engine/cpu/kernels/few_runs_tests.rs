use super::super::super::simd::SimdLevel;
use super::super::super::tiles::numbers_mut;
use super::*;
use half::{bf16, f16};

const RUNS: [usize; 7] = [16, 31, 32, 33, 48, 49, 79];

/// Whole numbers that every type has.
fn values<E: Element>(len: usize, by: usize) -> Vec<E> {
    let value = |i: usize| E::narrow(E::Acc::from_f64((i * by % 61) as f64 - 20.0));
    (0..len).map(value).collect()
}
/// The values of a channel.
fn of_channel<'x, E: Element>(
    rows: &'x [&[E]],
    (run, channel): (usize, usize),
) -> impl Iterator<Item = f64> + Clone + 'x {
    let runs = rows.iter().map(move |row| &row[channel * run..][..run]);
    runs.flatten().map(|v| v.widen().to_f64())
}
/// Of every level of vector instructions, what `f` makes of two arrays.
fn same_bits(n: usize, f: impl Fn(Simd, (&mut [f64], &mut [f64]))) -> [Vec<f64>; 2] {
    let of_level = |level: SimdLevel| {
        let [mut a, mut b] = [vec![f64::NAN; n], vec![f64::NAN; n]];
        f(Simd::of_level(level).unwrap(), (&mut a, &mut b));
        [a, b]
    };
    let mut all = SimdLevel::available().map(of_level);
    let first = all.next().unwrap();
    assert!(all.all(|other| other == first), "levels differ");
    first
}

#[test]
fn moments_of_few_runs_are_those_of_their_values() {
    fn all<E: Element>() {
        for (run, count, channels) in
            RUNS.into_iter().flat_map(|run| [(run, 1, 3), (run, 4, 8), (run, 7, 19)])
        {
            let x = values::<E>(count * channels * run, 37);
            let rows: Vec<&[E]> = x.chunks(channels * run).collect();
            let [offsets, squares] = same_bits(channels, |simd, to| few_runs(simd, &rows, run, to));
            for c in 0..channels {
                let (values, n) = (of_channel(&rows, (run, c)), (count * run) as f64);
                let first = values.clone().next().unwrap();
                let mean = values.clone().sum::<f64>() / n;
                let right = values.map(|v| (v - mean).powi(2)).sum::<f64>();
                let of = format!("{run} x {count}, channel {c}");
                assert!((first + offsets[c] - mean).abs() < 1e-5, "{of}");
                assert!((squares[c] / right - 1.0).abs() < 1e-5, "{of}");
            }
        }
    }
    all::<f32>();
    all::<f64>();
    all::<f16>();
    all::<bf16>();
}

#[test]
fn gradients_of_few_runs_are_those_of_their_values() {
    fn all<E: Element>(relu: bool) {
        for (run, count, channels) in
            RUNS.into_iter().flat_map(|run| [(run, 1, 3), (run, 4, 8), (run, 7, 19)])
        {
            let [x, g] = [37, 29].map(|by| values::<E>(count * channels * run, by));
            let rows: Vec<[&[E]; 2]> = x
                .chunks(channels * run)
                .zip(g.chunks(channels * run))
                .map(|(x, g)| [x, g])
                .collect();
            // The channel before is another tile's.
            let n = channels + 1;
            let mut memory = vec![0.0; Table::<E::Acc>::FIELDS * n];
            for (i, v) in numbers_mut::<E::Acc>(&mut memory)[..2 * n].iter_mut().enumerate() {
                *v = E::Acc::from_f64(if i < n { i as f64 - 3.0 } else { 1.0 });
            }
            let table = Table::<E::Acc>::new(&memory, 0..n);
            let [sums, products] = same_bits(channels, |simd, to| {
                few_gradients(simd, &rows, (run, relu), (&table, 1), to);
            });
            let [of_x, of_g] = [0, 1].map(|k| rows.iter().map(|row| row[k]).collect::<Vec<_>>());
            for c in 0..channels {
                let mean = (c + 1) as f64 - 3.0;
                let pairs = of_channel(&of_x, (run, c)).zip(of_channel(&of_g, (run, c)));
                let passed = pairs.filter(|(x, _)| !relu || *x > mean);
                let right = passed.fold([0.0; 2], |[s, p], (x, g)| [s + g, p + g * (x - mean)]);
                assert_eq!([sums[c], products[c]], right, "{run} x {count}, channel {c}");
            }
        }
    }
    for relu in [false, true] {
        all::<f32>(relu);
        all::<f64>(relu);
        all::<f16>(relu);
        all::<bf16>(relu);
    }
}
