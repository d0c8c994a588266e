//! Ranks as threads, and what each has of a batch.
use crate::support::run::{Inputs, Masked};
use batchnorm::{Cpu, Element, Engine, Reference, Shape, Synced, Threads};
use std::time::Duration;

/// Far more than any test takes: who waits for so long waits for ever.
pub const LONG: Duration = Duration::from_secs(120);

/// An engine for each of several ranks.
pub trait OfRanks: Engine {
    /// Whether it takes every number of ranks and every epilogue in a test's time.
    const IS_FAST: bool = true;
    fn of(ranks: usize) -> Vec<Self>;
}

impl OfRanks for Reference {
    const IS_FAST: bool = false;
    fn of(ranks: usize) -> Vec<Self> {
        vec![Reference; ranks]
    }
}
impl OfRanks for Cpu {
    fn of(ranks: usize) -> Vec<Self> {
        (0..ranks).map(|_| Cpu::default()).collect()
    }
}
/// Each on a stream of its own; on the software devices those of every PTX that ships.
#[cfg(all(feature = "cuda", target_os = "linux"))]
impl OfRanks for batchnorm::Cuda {
    const IS_FAST: bool = false;
    fn of(ranks: usize) -> Vec<Self> {
        use crate::support::cuda::{is_real, on_device};
        static RANKS: std::sync::OnceLock<Vec<batchnorm::Cuda>> = std::sync::OnceLock::new();
        let on = |name| match is_real() {
            true => batchnorm::Cuda::new(0),
            false => softcuda::install()
                .map(|_| softcuda::ordinal(name).expect("a profile"))
                .map_or_else(|_| on_device(0), on_device),
        };
        let _making = crate::gate::making();
        let make = || ["sm_90", "sm_80", "sm_75", "sm_90"].map(|name| on(name).expect(name));
        RANKS.get_or_init(|| make().into())[..ranks].to_vec()
    }
}

/// Makes a test of each engine.
macro_rules! on_engines {
    ($($test:ident),+ $(,)?) => {
        mod reference { $(#[test] fn $test() { super::$test::<batchnorm::Reference>(); })+ }
        mod cpu { $(#[test] fn $test() { super::$test::<batchnorm::Cpu>(); })+ }
        #[cfg(all(feature = "cuda", target_os = "linux"))]
        mod cuda { $(#[test] fn $test() { super::$test::<batchnorm::Cuda>(); })+ }
    };
}
pub(crate) use on_engines;

/// What every rank makes of its turn, by rank; a gather takes at most so many ranks at once.
pub fn on_ranks_in_steps<G: OfRanks, T: Send>(
    ranks: usize,
    at_once: usize,
    limit: Duration,
    turn: impl Fn(usize, Synced<G, Threads>) -> T + Sync,
) -> Vec<T> {
    let ranks = G::of(ranks).into_iter().zip(Threads::new(ranks, limit)).enumerate();
    let turn = &turn;
    std::thread::scope(|scope| {
        let threads = ranks.map(|(rank, (engine, threads))| {
            scope.spawn(move || {
                let engine = Synced::in_steps(&engine, &threads, at_once).unwrap();
                drop(threads);
                turn(rank, engine)
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
/// The same by the default of steps.
pub fn on_ranks<G: OfRanks, T: Send>(
    ranks: usize,
    turn: impl Fn(usize, Synced<G, Threads>) -> T + Sync,
) -> Vec<T> {
    on_ranks_in_steps(ranks, 16, LONG, turn)
}

/// What a rank has of a batch: its own inputs, and where each of its elements lies in the whole.
pub struct Part<E: Element> {
    pub inputs: Inputs<E>,
    pub at: Vec<usize>,
}

/// How many of so many rows each rank has: alike, all on the last rank, or one on the first and the rest on another.
fn counts(rows: usize, ranks: usize, way: usize) -> Vec<usize> {
    let alike = (0..ranks).map(|k| rows * (k + 1) / ranks - rows * k / ranks);
    match way % 3 {
        0 => alike.collect(),
        1 => (0..ranks).map(|k| if k + 1 == ranks { rows } else { 0 }).collect(),
        _ => {
            let first = rows.min(1);
            (0..ranks)
                .map(|k| match k {
                    _ if ranks == 1 => rows,
                    0 => first,
                    1 => rows - first,
                    _ => 0,
                })
                .collect()
        }
    }
}

/// The parts of a batch: of its outer dimension, or of its inner one where that is the longer.
pub fn parts<E: Element>(whole: &Inputs<E>, ranks: usize, way: usize) -> Vec<Part<E>> {
    let (shape, c) = (&whole.shape, whole.shape.channels());
    let (outer, inner) = (shape.outer(), shape.inner());
    let splits_inner = inner > outer;
    let mut start = 0;
    let part = |rows: usize| {
        let from = start;
        start += rows;
        let (outers, inners) = match splits_inner {
            true => (0..outer, from..from + rows),
            false => (from..from + rows, 0..inner),
        };
        let shape = Shape::new(&[outers.len(), c, inners.len()], 1).unwrap();
        let mut at = vec![];
        for o in outers {
            for c_at in 0..c {
                at.extend(inners.clone().map(|i| (o * c + c_at) * inner + i));
            }
        }
        let mine = |all: &[E]| at.iter().map(|&i| all[i]).collect::<Vec<E>>();
        let (x, residual, grad_y) = (mine(&whole.x), mine(&whole.residual), mine(&whole.grad_y));
        let mask = whole.mask.as_ref().map(|mask| mask_of_part(mask, (&whole.shape, &shape), &at));
        Part { inputs: Inputs { shape, x, residual, grad_y, mask, ..whole.clone() }, at }
    };
    counts(outer.max(inner), ranks, way).into_iter().map(part).collect()
}

/// The mask of a part, whose elements lie there in the whole.
fn mask_of_part(mask: &Masked, (whole, part): (&Shape, &Shape), at: &[usize]) -> Masked {
    let place = |shape: &Shape, i: usize| match mask.last {
        Some(last) => i / last,
        None => {
            let (channels, inner) = (shape.channels(), shape.inner());
            i / (channels * inner) * inner + i % inner
        }
    };
    let len = mask.last.map_or(part.per_channel(), |last| part.len() / last);
    let mut places = vec![0; len];
    at.iter().enumerate().for_each(|(k, &i)| places[place(part, k)] = mask.places[place(whole, i)]);
    Masked { places, ..mask.clone() }
}
