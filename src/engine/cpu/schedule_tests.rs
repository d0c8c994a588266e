//! How a training step divides among threads, counted: the values that every task touches and those that no other
//! thread can, for the layers of a ResNet-50 on 32 images.
use super::super::counted::trace::{self, Trace};
use super::super::shares::Shares;
use crate::{Backward, Cpu, Element, Engine, ForwardTrain, Host, Running, Saved, Shape};
use half::bf16;

/// Channels, and rows and columns of an image.
const LAYERS: [(usize, usize); 9] = [
    (64, 112),
    (64, 56),
    (256, 56),
    (128, 28),
    (512, 28),
    (256, 14),
    (1024, 14),
    (512, 7),
    (2048, 7),
];
const THREADS: [usize; 4] = [8, 16, 32, 64];
/// Least percents of them that are to have work at any time: the smallest layers have 8 tasks.
const USED: [usize; 4] = [75, 45, 20, 10];

/// What the training forward and the backward of a layer count.
fn traces<E: Element>((channels, side): (usize, usize), channels_last: bool) -> [Trace; 2] {
    let (dims, axis) = match channels_last {
        true => ([32, side, side, channels], 3),
        false => ([32, channels, side, side], 1),
    };
    let shape = Shape::new(&dims, axis).unwrap();
    let x = vec![E::default(); shape.len()];
    let (mut y, mut grad_x) = (x.clone(), x.clone());
    let zeros = vec![E::Acc::default(); channels];
    let (mut mean, mut var, weight, bias) =
        (zeros.clone(), zeros.clone(), zeros.clone(), zeros.clone());
    let (mut grad_weight, mut grad_bias) = (zeros.clone(), zeros);
    let (engine, mut saved) = (Cpu::default(), Saved::new());
    let of = |run: &mut (dyn FnMut() + Send)| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| trace::of(run))
    };
    let forward = of(&mut || {
        let mut args = ForwardTrain::<Host, E>::new(&x, &mut y).saved(&mut saved);
        (args.weight, args.bias) = (Some(&weight[..]), Some(&bias[..]));
        args.running = Some(Running::<Host, _>::new(&mut mean[..], &mut var[..], 0.1));
        engine.forward_train(&shape, args).unwrap();
    });
    let backward = of(&mut || {
        let mut args = Backward::<Host, E>::new(&saved, &x, &y);
        args.grad_x = Some(&mut grad_x);
        (args.grad_weight, args.grad_bias) = (Some(&mut grad_weight[..]), Some(&mut grad_bias[..]));
        engine.backward(&shape, args).unwrap();
    });
    // Every element is read by both passes and written by the second.
    for (trace, tensors) in [(&forward, 3), (&backward, 5)] {
        let work: usize = trace.rounds.iter().flatten().sum();
        assert!(work >= tensors * shape.len(), "{work} of {channels} channels by {side}");
    }
    [forward, backward]
}

/// The values that pass one after the other where `threads` take tasks as those of the engine do, and are as fast.
fn longest(tasks: &[usize], threads: usize) -> usize {
    let threads = threads.min(tasks.len());
    let shares = Shares::new(tasks.len(), threads, false);
    let mut each = vec![(0, 0); threads];
    let mut idle = vec![false; threads];
    while let Some(thread) = (0..threads).filter(|t| !idle[*t]).min_by_key(|t| each[*t].0) {
        let (time, empty) = &mut each[thread];
        match shares.next(thread, empty) {
            Some(task) => *time += tasks[task],
            None => idle[thread] = true,
        }
    }
    each.into_iter().map(|(time, _)| time).max().unwrap_or(0)
}

#[test]
fn little_is_left_to_one_thread() {
    println!("{:34} tasks  one thread of 32   of {THREADS:?} threads, used", "");
    let mut worst = 0f64;
    for layer in LAYERS {
        for channels_last in [false, true] {
            let of_types = [
                ("f32", traces::<f32>(layer, channels_last)),
                ("bf16", traces::<bf16>(layer, channels_last)),
            ];
            for (dtype, traces) in of_types {
                for (operation, trace) in ["forward_train", "backward"].iter().zip(traces) {
                    let alone = trace.serial + trace.awaited;
                    let work: usize = trace.serial + trace.rounds.iter().flatten().sum::<usize>();
                    let time = |threads| {
                        let rounds = trace.rounds.iter().map(|tasks| longest(tasks, threads));
                        alone + rounds.sum::<usize>()
                    };
                    let share = alone as f64 / time(32) as f64;
                    let used = THREADS.map(|t| 100 * work / (t * time(t)));
                    let layout = if channels_last { "nhwc" } else { "nchw" };
                    let name = format!("{}x{0} {layout} {dtype} {operation}", layer.1);
                    let tasks: Vec<usize> = trace.rounds.iter().map(Vec::len).collect();
                    println!(
                        "{:5}x{name:34} {tasks:?} {:.2} %  {used:?} %",
                        layer.0,
                        100.0 * share
                    );
                    worst = worst.max(share);
                    let enough = used.iter().zip(USED).all(|(used, least)| *used >= least);
                    assert!(enough, "{}x{name}: {used:?} % of {THREADS:?} threads used", layer.0);
                }
            }
        }
    }
    assert!(worst <= 0.02, "one thread alone for {:.1} % of the time of 32", 100.0 * worst);
}
