//! Ranks on several software devices, by the software NCCL: what passes is plumbing, order, sizes, streams and graphs.
use crate::conformance::{Step, judge_steps, step};
use crate::gate::{capturing, making};
use crate::support::cuda::{is_real, on_device};
use crate::support::run::{Epilogue, Inputs};
use crate::support::shapes::cases;
use crate::world::{LONG, parts};
use batchnorm::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use batchnorm::{
    Backward, Collective, Cuda, Device, Element, Engine, ForwardTrain, Memory, Nccl, Rank, Real,
    Result, Saved, Shape, Synced, Threads,
};
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
        captured::<f32>(rows);
        captured::<f16>(rows);
        captured::<f64>(rows);
    }
}

fn captured<E: Element>(rows: [usize; 3]) {
    let stats = on_devices(3, 16, LONG, |rank, engine| {
        let (on, stream) = (engine.memory().clone(), engine.engine().stream().clone());
        // SAFETY: everything of this context here is on one stream.
        #[allow(unsafe_code)]
        unsafe {
            stream.context().disable_event_tracking()
        };
        let shape = Shape::new(&[rows[rank], 5], 1).unwrap();
        let values = |k: usize| {
            let value = |i: usize| E::narrow(E::Acc::from_f64((i * k % 17) as f64 / 4.0));
            on.upload(&(0..shape.len()).map(value).collect::<Vec<E>>()).unwrap()
        };
        let (x, grad_y) = (values(7 + rank), values(5));
        let (mut mean, mut var) = (on.zeros::<E::Acc>(5).unwrap(), on.zeros::<E::Acc>(5).unwrap());
        let mut y = on.zeros::<E>(shape.len()).unwrap();
        let mut grad_x = on.zeros::<E>(shape.len()).unwrap();
        let mut saved = Saved::new();
        let mut step = || -> Result<()> {
            let args = ForwardTrain::<Device, E>::new(x.as_view(), y.as_view_mut())
                .running(mean.as_view_mut(), var.as_view_mut(), 1.0)
                .saved(&mut saved);
            engine.forward_train(&shape, args)?;
            let args = Backward::<Device, E>::new(&saved, x.as_view(), grad_y.as_view());
            engine.backward(&shape, args.grad_x(grad_x.as_view_mut()))
        };
        step().unwrap();
        engine.collective().wait(LONG).unwrap();
        let pass = capturing();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        step().unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        drop(pass);
        let of = |mean: &_, var: &_, grad_x: &_| {
            let wide = |v: Vec<E::Acc>| v.iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>();
            let running =
                [mean, var].map(|v| wide(on.download(Device::view::<E::Acc>(v)).unwrap()));
            (running, on.download(Device::view::<E>(grad_x)).unwrap())
        };
        let right = of(&mean, &var, &grad_x);
        for _ in 0..3 {
            on.zero(mean.as_view_mut()).unwrap();
            on.zero(grad_x.as_view_mut()).unwrap();
            graph.launch().unwrap();
            engine.collective().wait(LONG).unwrap();
            assert_eq!(of(&mean, &var, &grad_x), right, "rank {rank} of {rows:?}");
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
