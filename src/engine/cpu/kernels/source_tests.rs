use super::super::super::simd::tests::every_store;
use super::super::super::simd::{BLOCK, LINE};
use super::super::super::table::Table;
use super::super::super::tiles::numbers_mut;
use super::super::elementwise::{At, Work, normalize};
use super::*;
use crate::engine::cpu::plan::Plan;
use crate::{Element, Shape};

/// No count of lanes is cut to fewer bits before it is compared.
#[test]
fn a_run_of_any_length_has_its_own_coefficients() {
    let mut fields = vec![0.0; Table::<f32>::FIELDS * 2];
    numbers_mut::<f32>(&mut fields)[..2].copy_from_slice(&[1.0, 2.0]); // the means
    let mut strip = Strip::<f32>::new();
    strip.load_channels(0..2, &Table::new(&fields, 0..2), false);
    for left in [16, usize::MAX >> 33, usize::MAX >> 32, usize::MAX >> 31, usize::MAX / 2] {
        let runs = Runs { strip: &strip, channel: 0, left, inner: left };
        let lanes = runs.group(0);
        assert!((0..GROUP).all(|lane| lanes.at(lane).mean == 1.0), "{left}");
    }
}

/// Of every number of columns, in and past the cache, at any address, against one value at a time.
#[test]
fn columns_have_their_coefficients_again_and_again() {
    fn all<E: Element>() {
        const MOST: usize = 128;
        for columns in (GROUP..=MOST).step_by(GROUP) {
            let mut fields = vec![0.0; Table::<E::Acc>::FIELDS * columns];
            for (i, v) in numbers_mut(&mut fields).iter_mut().enumerate() {
                *v = E::Acc::from_f64(1.0 + i as f64 / 8.0);
            }
            let (plan, cols) =
                (Plan::new(&Shape::new(&[64, columns], 1).unwrap(), 4, 1), 0..2 * columns);
            let mut strip = Strip::new();
            strip.load(&plan, &cols, &Table::new(&fields, 0..columns), false);
            let x: Vec<E> = (0..2 * BLOCK).map(|i| E::narrow(E::Acc::from_f64(i as f64))).collect();
            for (start, n) in [(0, 2 * BLOCK), (3, 5 * columns + 7), (7, 130), (9, 40), (1, 5)] {
                let n = n.min(2 * BLOCK);
                let expected: Vec<E> = (0..n)
                    .map(|i| E::narrow(strip.at(i % columns).normalize(x[i].widen())))
                    .collect();
                every_store(
                    2 * BLOCK + LINE,
                    |store, memory: &mut [E]| {
                        let (from, out) = ([&x[..n]; 2], &mut memory[start..start + n]);
                        let (at, ahead) = (At::Again(&strip, columns), [std::ptr::null(); 2]);
                        let work = Work::Piece { store, at, from, out, ahead };
                        normalize(store.simd, (false, false), work);
                    },
                    |memory| {
                        assert_eq!(memory[start..start + n], expected, "{columns} {start} {n}");
                        let mut outside = memory[..start].iter().chain(&memory[start + n..]);
                        assert!(outside.all(|v| *v == E::default()));
                    },
                );
            }
        }
    }
    all::<f32>();
    all::<f64>();
    all::<half::f16>();
    all::<half::bf16>();
}

/// Every cut of runs of every length, in and past the cache, at any address, against one value at a
/// time.
#[test]
fn runs_have_the_coefficients_of_their_channel() {
    fn all<E: Element>() {
        const CHANNELS: usize = 16;
        let mut fields = vec![0.0; Table::<E::Acc>::FIELDS * CHANNELS];
        for (i, v) in numbers_mut(&mut fields).iter_mut().enumerate() {
            *v = E::Acc::from_f64(1.0 + i as f64 / 8.0);
        }
        let mut strip = Strip::new();
        strip.load_channels(0..CHANNELS, &Table::new(&fields, 0..CHANNELS), false);
        let values = |scale: f64| -> Vec<E> {
            (0..2 * BLOCK).map(|i| E::narrow(E::Acc::from_f64(scale * i as f64))).collect()
        };
        let (all_x, all_r) = (values(1.0), values(-0.5));
        for inner in [16, 17, 25, 31, 33, 49, 64, 100] {
            for from in [0, 1, inner - 1, inner, 2 * inner + 5] {
                for n in [1, 7, 15, 16, 17, 40, 127, 128, 130, 3 * inner, 5 * inner + 3] {
                    let runs = Runs {
                        strip: &strip,
                        channel: from / inner,
                        left: inner - from % inner,
                        inner,
                    };
                    let start = (from * 7 + n) % LINE;
                    let (x, other) = (&all_x[..n], &all_r[..n]);
                    let expected: Vec<E> = (0..n)
                        .map(|i| {
                            let z = strip.at((from + i) / inner).normalize(x[i].widen());
                            E::narrow(z + other[i].widen())
                        })
                        .collect();
                    let own = start..start + n;
                    every_store(
                        2 * BLOCK + LINE,
                        |store, memory: &mut [E]| {
                            let (at, out) = (At::Runs(runs), &mut memory[own.clone()]);
                            let (from, ahead) = ([x, other], [std::ptr::null(); 2]);
                            let work = Work::Piece { store, at, from, out, ahead };
                            normalize(store.simd, (true, false), work);
                        },
                        |memory| {
                            assert_eq!(memory[own.clone()], expected, "{inner} {from} {n}");
                            let mut outside = memory[..start].iter().chain(&memory[own.end..]);
                            assert!(outside.all(|v| *v == E::default()));
                        },
                    );
                }
            }
        }
    }
    all::<f32>();
    all::<f64>();
    all::<half::f16>();
    all::<half::bf16>();
}
