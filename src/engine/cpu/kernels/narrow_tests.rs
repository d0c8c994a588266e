use super::super::super::table::Table;
use super::super::super::tiles::numbers_mut;
use super::*;
use half::bf16;

/// Values without a pattern, zeros of both signs among them.
fn values<E: Element>(n: usize, seed: usize) -> Vec<E> {
    let value = |i: usize| match (i * 2_654_435_761 + seed) >> 7 & 1023 {
        0..40 => -0.0,
        40..80 => 0.0,
        v => v as f64 / 171.0 - 3.0,
    };
    (0..n).map(|i| E::narrow(E::Acc::from_f64(value(i)))).collect()
}

/// At every level and of every number of groups: the bits of one row after the other.
fn sums_run_row_by_row<E: Element>() {
    for simd in SimdLevel::available().filter_map(Simd::new) {
        for (groups, rows) in (1..=9).flat_map(|groups| [1, 2, 5, 32].map(|rows| (groups, rows))) {
            let columns = groups * GROUP;
            let [x, g] = [1, 77].map(|seed| values::<E>(rows * columns, seed));
            let mut fields = vec![0.0; Table::<E::Acc>::FIELDS * columns];
            for (k, field) in numbers_mut::<E::Acc>(&mut fields).iter_mut().enumerate() {
                *field = E::Acc::from_f64((k % 13) as f64 / 8.0 - 0.5);
            }
            let mut strip = Strip::new();
            strip.load_channels(0..columns, &Table::new(&fields, 0..columns), false);
            let narrow = Narrow { tensors: [&x[..], &g[..]], columns, ahead: 512 };
            for relu in [false, true] {
                let none = [E::Acc::from_f64(f64::NAN); BLOCK];
                let (mut sum, mut product) = (none, none);
                gradients(simd, narrow, &strip, relu, (&mut sum, &mut product));
                let zero = E::Acc::from_f64(-0.0);
                let mut expected = ([zero; BLOCK], [zero; BLOCK]);
                for (i, (x, g)) in x.iter().zip(&g).enumerate() {
                    let (j, x, g) = (i % columns, x.widen(), g.widen());
                    let coef = strip.at(j);
                    let g = if relu { gate::<E, true>(coef, x, g) } else { g };
                    expected.0[j] += g;
                    expected.1[j] += g * (x - coef.mean);
                }
                let bits = |sums: &[E::Acc; BLOCK]| {
                    sums[..columns].iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>()
                };
                assert_eq!(bits(&sum), bits(&expected.0), "{simd:?}, {groups}, {rows}, {relu}");
                assert_eq!(bits(&product), bits(&expected.1), "{simd:?}, {groups}, {rows}, {relu}");
            }
        }
    }
}

#[test]
fn sums_in_registers_and_in_memory_run_row_by_row() {
    sums_run_row_by_row::<f32>();
    sums_run_row_by_row::<f64>();
    sums_run_row_by_row::<bf16>();
}
