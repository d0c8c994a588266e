//! Readers of one tensor on several streams, and who writes or drops it after them; several engines on one
//! stream, and several threads.
use crate::support::cuda::{SPLIT, on_device, resident};
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, same_bits};
use batchnorm::{
    Backward, Cuda, Device, Engine, ForwardEval, ForwardTrain, Memory, Saved, Shape, Tuning,
};
use cudarc::driver::{CudaSlice, CudaStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const C: usize = 4;

/// One per stream; the first owns the memory.
struct Readers {
    engines: Vec<Cuda>,
    shape: Shape,
    mean: CudaSlice<f32>,
    var: CudaSlice<f32>,
}

impl Readers {
    fn new(ordinal: usize) -> Self {
        let first = on_device(ordinal).unwrap();
        let context = first.stream().context().clone();
        let other = || Cuda::on_stream(context.new_stream().unwrap()).unwrap();
        let (a, b) = (other(), other());
        let memory = first.memory();
        let (mean, var) = (memory.zeros(C).unwrap(), memory.upload(&[1f32; C]).unwrap());
        let shape = Shape::new(&[40, C, 90], 1).unwrap();
        Self { engines: vec![first, a, b], shape, mean, var }
    }
    fn memory(&self) -> &Device {
        self.engines[0].memory()
    }
    /// y of x, which is x but for eps.
    fn read(&self, engine: usize, x: &CudaSlice<f32>) -> CudaSlice<f32> {
        let engine = &self.engines[engine];
        let mut y = engine.memory().zeros(self.shape.len()).unwrap();
        let args = ForwardEval::<Device, f32>::new(
            x.as_view(),
            y.as_view_mut(),
            self.mean.as_view(),
            self.var.as_view(),
        )
        .eps(1e-12);
        engine.forward_eval(&self.shape, args).unwrap();
        y
    }
}

/// The second reader's event stands for the first one, too, whoever it is: an engine on another stream
/// or a download.
#[test]
fn what_several_streams_read_is_written_and_dropped_after_them() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    for seed in 0..20 {
        device.set_seed(seed);
        let readers = Readers::new(device.ordinal());
        let (memory, n) = (readers.memory(), readers.shape.len());
        for download in [false, true] {
            let mut x = memory.upload(&vec![2f32; n]).unwrap();
            let first = readers.read(1, &x);
            let second = match download {
                true => memory.upload(&memory.download(x.as_view()).unwrap()).unwrap(),
                false => readers.read(2, &x),
            };
            memory.write(&vec![7f32; n], x.as_view_mut()).unwrap();
            let third = readers.read(1, &x);
            let fourth = readers.read(2, &x);
            drop(x);
            // What is freed is given out again.
            let again = memory.upload(&vec![-1f32; n]).unwrap();
            for (y, right) in [(first, 2f32), (second, 2.0), (third, 7.0), (fourth, 7.0)] {
                let y = memory.download(y.as_view()).unwrap();
                let wrong = y.iter().filter(|y| **y != right).count();
                assert_eq!(wrong, 0, "seed {seed}: values that are not {right}");
            }
            drop(again);
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// A forward and its backward.
fn step(engine: &Cuda, inputs: &Inputs<f32>) -> [Outcome; 2] {
    let mut saved = SavedOn::<Cuda, f32>::new();
    let forward = run::forward(engine, inputs, Mode::Train(Some(0.1)), Some(&mut saved)).unwrap();
    let want = Want::all(inputs.epilogue);
    [forward, run::backward(engine, inputs, want, &saved, None).unwrap()]
}

fn families() -> [Tuning; 3] {
    [SPLIT, resident(1), resident(2)]
}

/// A workspace for each size, so that it grows while other threads use it.
fn sizes() -> [Inputs<f32>; 3] {
    let shapes = [[4, 12, 30], [3, 40, 60], [2, 96, 24]].map(|dims| Shape::new(&dims, 1).unwrap());
    shapes.map(|shape| Inputs::new(&shape, Epilogue::FULL, 5))
}

/// Each thread makes its own engine, and drops it: the first finds no workspace, others that of a thread
/// that is at work.
#[test]
fn engines_of_one_stream_share_a_workspace_and_change_no_bit() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let inputs = sizes();
    let alone = families().map(|tuning| {
        let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
        inputs.each_ref().map(|inputs| step(&engine, inputs))
    });
    let context = on_device(device.ordinal()).unwrap().stream().context().clone();
    for seed in 1..12 {
        device.set_seed(seed);
        let (own, default) = (context.new_stream().unwrap(), context.default_stream());
        let (inputs, alone) = (&inputs, &alone);
        std::thread::scope(|scope| {
            for k in 0..6 {
                let stream: &Arc<CudaStream> = if k < 4 { &own } else { &default };
                scope.spawn(move || {
                    let family = k % families().len();
                    let engine = Cuda::on_stream(stream.clone()).unwrap().tuned(families()[family]);
                    for turn in 0..inputs.len() {
                        let at = (turn + k) % inputs.len();
                        let now = step(&engine, &inputs[at]);
                        let same = now.iter().zip(&alone[family][at]).all(|(a, b)| same_bits(a, b));
                        assert!(same, "seed {seed}, thread {k}, {}", inputs[at].shape);
                    }
                });
            }
        });
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// The launches of a step stay together, whoever else queues some on the stream: they work in one memory.
#[test]
fn steps_of_several_threads_do_not_mix() {
    const STEPS: usize = 40;
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let stream = engine.stream().clone();
    let shape = Shape::new(&[3, 4, 20], 1).unwrap();
    let forward = |engine: &Cuda, x: &CudaSlice<f32>, y: &mut CudaSlice<f32>| {
        let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
        engine.forward_train(&shape, args).unwrap();
    };
    for tuning in [SPLIT, resident(2)] {
        let (start, at_work) = (std::sync::Barrier::new(6), AtomicUsize::new(6));
        std::thread::scope(|scope| {
            // The driver is busy for somebody else in between, so that launches of all threads wait for it.
            scope.spawn(|| {
                while at_work.load(Ordering::Relaxed) > 0 {
                    stream.synchronize().unwrap();
                }
            });
            for thread in 0..6 {
                let (start, at_work) = (&start, &at_work);
                let (stream, forward) = (stream.clone(), &forward);
                scope.spawn(move || {
                    let engine = Cuda::on_stream(stream).unwrap().tuned(tuning);
                    let memory = engine.memory();
                    let x: Vec<f32> =
                        (0..shape.len()).map(|i| ((i * (thread + 5)) % 89) as f32).collect();
                    let x = memory.upload(&x).unwrap();
                    let mut ys: Vec<CudaSlice<f32>> =
                        (0..=STEPS).map(|_| memory.zeros(shape.len()).unwrap()).collect();
                    forward(&engine, &x, &mut ys[STEPS]);
                    let right = memory.download(ys[STEPS].as_view()).unwrap();
                    start.wait();
                    ys[..STEPS].iter_mut().for_each(|y| forward(&engine, &x, y));
                    at_work.fetch_sub(1, Ordering::Relaxed);
                    for (k, y) in ys.iter().enumerate() {
                        let y = memory.download(y.as_view()).unwrap();
                        assert!(y == right, "thread {thread}, step {k}, {tuning:?}");
                    }
                });
            }
        });
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// 53 layers take the memory of one, and the last one gives it back.
#[test]
fn as_many_engines_as_layers_own_one_workspace() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_75").unwrap());
    let stream = on_device(device.ordinal()).unwrap().stream().clone();
    let [inputs, ..] = sizes();
    let first = Cuda::on_stream(stream.clone()).unwrap();
    step(&first, &inputs);
    stream.synchronize().unwrap();
    let used = device.used();
    assert!(used > 0);
    let layers: Vec<_> = (0..53).map(|_| Cuda::on_stream(stream.clone()).unwrap()).collect();
    layers.iter().for_each(|engine| drop(step(engine, &inputs)));
    stream.synchronize().unwrap();
    assert_eq!(device.used(), used);
    let other = Cuda::on_stream(stream.context().new_stream().unwrap()).unwrap();
    step(&other, &inputs);
    assert!(device.used() > used, "another stream has another one");
    drop((other, first));
    assert!(layers.iter().all(|engine| !engine.take_nonfinite().unwrap()));
    drop((layers, stream));
    assert_eq!((device.used(), device.leaks()), (0, vec![]));
}

/// A forward on one stream and its backward on another, again and again into the same `Saved` and the same
/// tensors, which a third stream writes: x is read by two and written by one, what is saved likewise.
#[test]
fn a_step_goes_over_several_streams() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let shape = Shape::new(&[6, 12, 50], 1).unwrap();
    let values = |round: usize| -> Vec<f32> {
        (0..shape.len()).map(|i| ((i * (round + 3)) % 101) as f32 / 17.0).collect()
    };
    let first = on_device(device.ordinal()).unwrap();
    let context = first.stream().context().clone();
    let on_new = || Cuda::on_stream(context.new_stream().unwrap()).unwrap();
    let rounds = |engines: [&Cuda; 3], tuning: Tuning| -> Vec<Vec<f32>> {
        let [forward, backward, writer] = engines;
        let memory = writer.memory();
        let mut x = memory.upload(&values(0)).unwrap();
        let mut x_again = memory.upload(&values(0)).unwrap();
        let (mut y, mut grad_x) =
            (memory.zeros(shape.len()).unwrap(), memory.zeros(shape.len()).unwrap());
        let grad_y = memory.upload(&values(9)).unwrap();
        let (mut saved, mut got) = (Saved::new(), Vec::new());
        for round in 1..4 {
            let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
            let args = args.activation(batchnorm::Activation::Relu).saved(&mut saved);
            forward.tuned(tuning).forward_train(&shape, args).unwrap();
            // Of what the forward wrote or read, it reads what is saved alone.
            let args = Backward::<Device, f32>::new(&saved, x_again.as_view(), grad_y.as_view());
            let args = args.grad_x(grad_x.as_view_mut());
            backward.tuned(tuning).backward(&shape, args).unwrap();
            memory.write(&values(round), x.as_view_mut()).unwrap();
            memory.write(&values(round), x_again.as_view_mut()).unwrap();
            // Copies, so that nobody waits for the streams between the rounds.
            got.push(writer.stream().clone_dtod(&y).unwrap());
            got.push(writer.stream().clone_dtod(&grad_x).unwrap());
        }
        drop((x, saved));
        let again = memory.upload(&vec![-1f32; shape.len()]).unwrap();
        let got = got.iter().map(|got| memory.download(got.as_view()).unwrap()).collect();
        drop(again);
        got
    };
    for tuning in families() {
        let right = rounds([&first; 3], tuning);
        for seed in 0..12 {
            device.set_seed(seed);
            assert!(
                rounds([&first, &on_new(), &on_new()], tuning) == right,
                "seed {seed}, {tuning:?}"
            );
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}
