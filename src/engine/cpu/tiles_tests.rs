//! Every tile writes its own part and no other, on several threads; `scripts/miri.sh` runs them too.
use super::super::simd::BLOCK;
use super::*;
use crate::{Shape, SimdLevel};
use half::f16;
use std::sync::atomic::{AtomicUsize, Ordering};

/// On more threads than one, whatever the machine has.
fn on_threads(test: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(test);
}
fn shape(dims: &[usize]) -> Shape {
    Shape::new(dims, 1).unwrap()
}
/// Several tiles of runs, of parts of rows, and of rows that are joined, the last of which is short; just
/// large enough for several threads.
fn plans() -> [Plan; 4] {
    [
        Plan::once(&shape(&[2, 2, 33_000])),
        Plan::once(&shape(&[9, 8201])),
        Plan::once(&shape(&[22_001, 6])),
        Plan::new(&shape(&[40_003, 2]), 4, 2),
    ]
}

#[test]
fn every_tile_has_its_own_part_on_any_thread() {
    on_threads(|| {
        for (plan, newest_first) in plans().iter().flat_map(|plan| [(plan, false), (plan, true)]) {
            let tiles = plan.tiles();
            assert!((2..=200).contains(&tiles), "{plan:?}: {tiles} tiles");
            let mut tensor = vec![0u8; plan.len()];
            let (mut mask, mut slots) = (vec![0u8; plan.mask_len()], vec![0.0; 2 * tiles]);
            let of_tensor = Elements::new(&mut tensor);
            let mut outputs = (of_tensor, Elements::mask(&mut mask), Slots::new(&mut slots, 2));
            for_each_tile(
                plan,
                newest_first,
                &mut outputs,
                |tile, (mut tensor, mut mask, slot)| {
                    let number = tile.index as u8 + 1;
                    for row in tile.rows.clone() {
                        tensor.row_mut(row, tile.cols.clone()).fill(number);
                        mask.row_mut(row, plan.mask_cols(&tile.cols)).fill(number);
                        assert!(
                            tensor.row(row, tile.cols.clone()).first().is_none_or(|v| *v == number)
                        );
                    }
                    slot.fill(f64::from(number));
                },
            );
            with_whole(plan, &mut outputs, |(tensor, mask, slots)| {
                assert_eq!(slots[..], [1.0; 2], "those of the first tile");
                for tile in (0..tiles).map(|index| plan.tile(index)) {
                    let number = [tile.index as u8 + 1];
                    for row in tile.rows.clone() {
                        for (part, cols) in
                            [(tensor, tile.cols.clone()), (mask, plan.mask_cols(&tile.cols))]
                        {
                            let part = part.row(row, cols);
                            assert!(part == number.repeat(part.len()), "{tile:?}");
                        }
                    }
                }
            });
            let expected = (1..=tiles).flat_map(|number| [number as f64; 2]);
            assert!(slots.into_iter().eq(expected), "{plan:?}");
        }
    });
}

#[test]
fn what_is_not_there_has_no_parts() {
    let plan = Plan::once(&shape(&[3, 600]));
    let (mut tensor, mut none) = (vec![1f32; plan.len()], None::<Elements<'_, u8>>);
    let mut outputs = (Elements::new(&mut tensor), &mut none);
    for_each_tile(&plan, false, &mut outputs, |tile, (mut tensor, mask)| {
        assert!(mask.is_none());
        tensor.row_mut(tile.rows.start, 5..7).fill(2.0);
    });
    assert_eq!(tensor[4..8], [1.0, 2.0, 2.0, 1.0]);
}

#[test]
#[should_panic(expected = "elements of the plan")]
fn a_tensor_of_another_size_is_not_handed_out() {
    let (plan, mut tensor) = (Plan::once(&shape(&[3, 600])), vec![0f32; 1799]);
    for_each_tile(&plan, false, &mut Elements::new(&mut tensor), |_, _| {});
}

#[test]
#[should_panic(expected = "columns of the tile")]
fn a_tile_has_no_columns_of_its_neighbour() {
    let plan = Plan::once(&shape(&[9, 8201]));
    let mut tensor = vec![0u8; plan.len()];
    for_each_tile(&plan, false, &mut Elements::new(&mut tensor), |tile, mut part| {
        part.row_mut(tile.rows.start, 0..plan.width).fill(1);
    });
}

#[test]
fn writers_write_past_the_cache_what_they_write_through_it() {
    fn all<E: Element>() {
        let plan = Plan::once(&shape(&[2, 520]));
        let hundred: Vec<E> =
            (0..100).map(|i| E::narrow(E::Acc::from_f64(f64::from(i) + 1.0))).collect();
        let number = |i: usize| hundred[i % 100];
        let level = SimdLevel::available().filter_map(Simd::new).last().unwrap();
        for (past_cache, as_lines) in [(false, false), (true, false), (true, true)] {
            for cols in [0..BLOCK, 5..77, 9..10, 64..64] {
                let mut tensor = vec![E::default(); plan.len()];
                for_each_tile(&plan, false, &mut Elements::new(&mut tensor), |_, tile| {
                    let mut writer = Writer { tile, past_cache, buffer: Scratch::new() };
                    for row in 0..2 {
                        writer.write(level, row, cols.clone(), as_lines, |store, to| {
                            let values: Vec<E> = (row..row + to.len()).map(number).collect();
                            match as_lines {
                                true => store.copy(&values, to),
                                false => to.copy_from_slice(&values),
                            }
                        });
                    }
                });
                for (at, value) in tensor.iter().enumerate() {
                    let (row, col) = (at / 520, at % 520);
                    let written = cols.contains(&col);
                    let expected =
                        if written { number(row + col - cols.start) } else { E::default() };
                    assert!(
                        *value == expected,
                        "{past_cache}, {as_lines}, {cols:?}: {value:?} at {at}"
                    );
                }
            }
        }
    }
    all::<f32>();
    all::<f64>();
    all::<f16>();
}

#[test]
fn memory_of_f64_is_memory_of_twice_as_many_f32() {
    let mut memory = [0.0; 5];
    numbers_mut::<f32>(&mut memory).iter_mut().zip(1u8..).for_each(|(v, i)| *v = i.into());
    assert_eq!(numbers::<f32>(&memory), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
    assert_eq!(numbers_mut::<f64>(&mut memory).len(), 5);
}

/// Shares of tasks have none twice and none left, whatever the numbers of threads and tasks, more of the
/// one than of the other or than there are shares among them.
#[test]
fn every_task_runs_once_on_any_number_of_threads() {
    let most = if cfg!(miri) { 3 } else { 2 * Shares::MOST + 1 };
    for threads in [1, 2, 3, Shares::MOST + 1, most] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.min(most)).build().unwrap();
        for tasks in [0, 1, 2, 5, Shares::MOST, Shares::MOST + 1, 3 * Shares::MOST - 1] {
            for backwards in [false, true] {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.install(|| {
                    in_parallel(tasks, false, backwards, &|i| {
                        runs[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                let once = runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1);
                assert!(once, "{tasks} tasks on {threads} threads: {runs:?}");
            }
        }
    }
}
