//! Ranks on several software devices, by the software NCCL: what passes is plumbing, order, sizes, streams and graphs.
use crate::capture::{Tensors, captured};
use crate::conformance::{Step, judge_steps, step};
use crate::gate::making;
use crate::support::cuda::{is_real, on_device};
use crate::support::run::{Epilogue, Inputs};
use crate::support::shapes::cases;
use crate::world::{LONG, parts};
use batchnorm::{Collective, Cuda, Element, Engine, Memory, Nccl, Rank, Shape, Synced, Threads};
use half::{bf16, f16};
use std::time::Duration;

pub type Ranks = Nccl<Threads>;

/// The software NCCL; none where tests run on a real device, which NCCL takes once.
pub fn nccl() -> Option<&'static softnccl::Control> {
    if is_real() {
        return None;
    }
    softcuda::install().expect("the software device");
    Some(softnccl::install().expect("the software NCCL"))
}

/// A device for each rank: the kernels of every PTX that ships.
const DEVICES: [&str; 4] = ["sm_90", "sm_80", "sm_75", "no pools"];

/// The engine of a rank, on a stream of its own.
pub fn of_rank(rank: usize) -> Cuda {
    let _making = making();
    on_device(softcuda::ordinal(DEVICES[rank]).expect("a profile")).expect("a device")
}

/// What every rank makes of its turn on its device, by rank; a gather takes at most so many ranks at once, and a
/// collective so long. Nothing is left of the communicators, unless a turn keeps one.
pub fn on_devices<T: Send>(
    ranks: usize,
    at_once: usize,
    limit: Duration,
    turn: impl Fn(usize, Synced<Cuda, Ranks>) -> T + Sync,
) -> Vec<T> {
    on_ranks(ranks, limit, |rank, own, ranks| {
        let engine = Synced::in_steps(&own, &ranks, at_once).unwrap();
        drop((own, ranks));
        turn(rank, engine)
    })
}
/// The same without an engine around the ranks.
pub fn on_ranks<T: Send>(
    ranks: usize,
    limit: Duration,
    turn: impl Fn(usize, Cuda, Ranks) -> T + Sync,
) -> Vec<T> {
    let turn = &turn;
    std::thread::scope(|scope| {
        let threads = Threads::new(ranks, LONG).into_iter().enumerate().map(|(rank, hosts)| {
            scope.spawn(move || {
                let nccl = nccl().expect("no real device");
                nccl.reset();
                let own = of_rank(rank);
                let ranks = Nccl::new(own.stream(), &hosts, limit).unwrap();
                drop(hosts);
                let done = turn(rank, own, ranks);
                assert_eq!(nccl.live(), [""; 0], "rank {rank}");
                done
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn assert_sound() {
    let nccl = nccl().expect("no real device");
    assert_eq!((nccl.refusals(), nccl.faults()), (vec![], vec![]));
}

/// One epilogue of each shape that this type's turn is at, and the seeds in turn: the devices do their work in another
/// order each time.
fn every_shape<E: Element>(turn: usize) {
    if nccl().is_none() {
        return;
    }
    let softcuda = softcuda::install().unwrap();
    let epilogues: Vec<Epilogue> = Epilogue::affine().chain(Epilogue::others()).collect();
    for (seed, case) in cases().iter().enumerate() {
        if case.shape().per_channel() == 1 || seed % 3 != turn {
            continue;
        }
        let epilogue = epilogues[seed % epilogues.len()];
        let whole = Inputs::<E>::new(&case.shape(), epilogue, seed as u64);
        let ranks = 2 + seed % 3;
        let what = format!("{}, {:?}, {epilogue:?}, {ranks} devices", E::DTYPE, case.dims);
        one_batch(&what, &whole, (ranks, 16), seed, || softcuda.set_seed(seed as u64));
    }
}

fn one_batch<E: Element>(
    what: &str,
    whole: &Inputs<E>,
    (ranks, at_once): (usize, usize),
    way: usize,
    begin: impl Fn() + Sync,
) {
    let parts = parts(whole, ranks, way);
    let steps: Vec<Step> = on_devices(ranks, at_once, LONG, |rank, engine| {
        begin();
        let done = step(&engine, &parts[rank].inputs, rank);
        engine.collective().wait(LONG).unwrap();
        drop(engine);
        assert_sound();
        done
    });
    judge_steps(what, whole, &parts, &steps);
}

#[test]
fn every_shape_is_one_batch_f64() {
    every_shape::<f64>(0);
}
#[test]
fn every_shape_is_one_batch_f32() {
    every_shape::<f32>(1);
}
#[test]
fn every_shape_is_one_batch_f16() {
    every_shape::<f16>(2);
}
#[test]
fn every_shape_is_one_batch_bf16() {
    every_shape::<bf16>(0);
}

#[test]
fn gathers_in_steps_are_by_communicators_of_their_own() {
    let Some(_) = nccl() else { return };
    let shape = Shape::new(&[13, 5, 3], 1).unwrap();
    let whole = Inputs::<f32>::new(&shape, Epilogue::FULL, 3);
    for way in 0..3 {
        one_batch("steps of 2", &whole, (4, 2), way, || ());
    }
    let said = on_devices(4, 2, LONG, |_, engine| engine.explain());
    assert_eq!(said, ["4 ranks: gathers of 2, then of 2 records, one reduction of sums"; 4]);
}

/// Gathers and sums by themselves, one behind the other without a wait, under many orders of the devices' work.
#[test]
fn collectives_stand_in_the_order_of_their_stream() {
    let Some(_) = nccl() else { return };
    let softcuda = softcuda::install().unwrap();
    on_ranks(3, LONG, |rank, own, ranks| {
        let on = own.memory();
        for seed in 0..12 {
            softcuda.set_seed(seed);
            let value = |rank: usize, i: usize| (100 * rank + i) as f64 + seed as f64 / 64.0;
            let mine: Vec<f64> = (0..5).map(|i| value(rank, i)).collect();
            let (mut part, mut all) = (on.upload(&mine).unwrap(), on.zeros::<f64>(15).unwrap());
            let mut sums =
                on.upload(&mine.iter().map(|v| *v as f32).collect::<Vec<f32>>()).unwrap();
            ranks.all_gather(on, part.as_view(), all.as_view_mut()).unwrap();
            on.zero(part.as_view_mut()).unwrap(); // behind the gather, which has read it
            ranks.all_reduce(on, sums.as_view_mut()).unwrap();
            ranks.all_reduce(on, sums.as_view_mut()).unwrap();
            ranks.all_reduce(on, part.as_view_mut()).unwrap();
            ranks.wait(LONG).unwrap();
            let right: Vec<f64> = (0..15).map(|k| value(k / 5, k % 5)).collect();
            assert_eq!(on.download(all.as_view()).unwrap(), right);
            let right: Vec<f32> =
                (0..5).map(|i| (0..3).map(|r| value(r, i) as f32).sum::<f32>() * 3.0).collect();
            assert_eq!(on.download(sums.as_view()).unwrap(), right);
            assert_eq!(on.download(part.as_view()).unwrap(), [0.0; 5]);
        }
        drop(ranks);
        assert_sound();
    });
}

/// A step with its collectives is one graph on every device, which all launch.
#[test]
fn a_step_of_several_devices_is_captured() {
    let Some(_) = nccl() else { return };
    for rows in [[1, 6, 3], [0, 4, 1]] {
        a_captured_step::<f32>(rows);
        a_captured_step::<f16>(rows);
        a_captured_step::<f64>(rows);
    }
}

fn a_captured_step<E: Element>(rows: [usize; 3]) {
    let stats = on_devices(3, 16, LONG, |rank, engine| {
        let stream = engine.engine().stream().clone();
        // SAFETY: everything of this context here is on one stream.
        #[allow(unsafe_code)]
        unsafe {
            stream.context().disable_event_tracking()
        };
        let mut tensors = Tensors::<E>::new(engine.memory(), rows[rank], 7 + rank);
        tensors.step(&engine).unwrap();
        engine.collective().wait(LONG).unwrap();
        let (done, graph) = captured(&stream, || tensors.step(&engine));
        done.unwrap();
        let graph = graph.unwrap().unwrap();
        let right = tensors.results();
        for _ in 0..3 {
            tensors.clear();
            graph.launch().unwrap();
            engine.collective().wait(LONG).unwrap();
            assert_eq!(tensors.results(), right, "rank {rank} of {rows:?}");
        }
        drop(graph);
        drop(engine);
        assert_sound();
        right.0
    });
    assert!(stats[0][0].iter().any(|bits| *bits != 0));
    assert!(stats.iter().all(|other| *other == stats[0]), "{stats:?}");
}

#[test]
fn one_rank_alone_is_the_engine_itself() {
    let Some(_) = nccl() else { return };
    on_ranks(1, LONG, |_, own, ranks| {
        let on = own.memory();
        let mut all = on.zeros::<f64>(2).unwrap();
        let part = on.upload(&[3.0, 4.0]).unwrap();
        ranks.all_gather(on, part.as_view(), all.as_view_mut()).unwrap();
        assert_eq!(on.download(all.as_view()).unwrap(), [3.0, 4.0]);
        assert_eq!((ranks.rank(), ranks.size()), (0, 1));
        assert_eq!(Ranks::version().unwrap(), 23_000);
    });
}
