//! A training step after the first allocates nothing of a tensor's size, nor does a state dict that borrows its file.
#![allow(unsafe_code)] // a global allocator is unsafe to implement

use batchnorm::{
    Activation, Backward, BatchNorm, Config, Cpu, Element, Engine, ForwardTrain, Ghost, Host,
    Input, Part, PartGradients, Reference, Saved, SavedParts, Shape,
};
#[cfg(feature = "safetensors")]
use batchnorm::{StateDict, Strict};
use half::f16;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The system's allocator, with a count of the bytes that were asked for, by any thread.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` as it came; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.dealloc(ptr, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_add(size, Ordering::Relaxed);
        // SAFETY: `ptr` came from `System` with this layout.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Tests run side by side and share the counter: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Bytes that the second of two equal training steps allocates, over those of x.
fn second_step<E: Element, G: Engine<Memory = Host>>(engine: &G, shape: &Shape) -> f64 {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (n, c) = (shape.len(), shape.channels());
    let value = |i: usize| E::narrow(batchnorm::Real::from_f64((i as f64 * 0.37).sin()));
    let x: Vec<E> = (0..n).map(value).collect();
    let residual = x.clone();
    let (mut y, mut grad_x, mut grad_residual) = (x.clone(), x.clone(), x.clone());
    let parameter = |i: usize| <E::Acc as batchnorm::Real>::from_f64(1.0 + i as f64 / 64.0);
    let weight: Vec<E::Acc> = (0..c).map(parameter).collect();
    let (bias, mut mean, mut var) = (weight.clone(), weight.clone(), weight.clone());
    let (mut grad_weight, mut grad_bias) = (weight.clone(), weight.clone());
    let mut saved = Saved::new();
    let mut step = || {
        let before = BYTES.load(Ordering::Relaxed);
        let forward = ForwardTrain::<Host, E>::new(&x, &mut y)
            .residual(&residual)
            .weight(&weight)
            .bias(&bias)
            .activation(Activation::Relu)
            .running(&mut mean, &mut var, 0.1)
            .saved(&mut saved);
        engine.forward_train(shape, forward).unwrap();
        let backward = Backward::<Host, E>::new(&saved, &x, &y)
            .grad_x(&mut grad_x)
            .grad_residual(&mut grad_residual)
            .grad_weight(&mut grad_weight)
            .grad_bias(&mut grad_bias);
        engine.backward(shape, backward).unwrap();
        BYTES.load(Ordering::Relaxed) - before
    };
    step();
    step() as f64 / size_of_val(&x[..]) as f64
}

/// Bytes that the second of two equal training steps over a list of two inputs allocates, over those of
/// all inputs.
fn second_step_of_parts(shape: &Shape) -> f64 {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let config = Config::default().activation(Activation::Relu);
    let mut bn = BatchNorm::<f32, Cpu>::new(&Cpu::default(), shape.channels(), config).unwrap();
    let x: Vec<f32> = (0..shape.len()).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut ys = [x.clone(), x.clone()];
    let mut gradients = [x.clone(), x.clone(), x.clone(), x.clone()];
    let mut saved = SavedParts::new();
    let mut step = || {
        let before = BYTES.load(Ordering::Relaxed);
        let parts = ys.iter_mut().map(|y| Part::<Host, f32>::new(*shape, &x, y).residual(&x));
        let mut parts: Vec<_> = parts.collect();
        bn.forward_parts_into(&mut parts, &mut saved).unwrap();
        let parts = gradients.chunks_exact_mut(2).map(|to| {
            let [to_x, to_residual] = to else { panic!("two") };
            let part = PartGradients::<Host, f32>::new(&x, &x).residual(&x);
            part.grad_x(to_x).grad_residual(to_residual)
        });
        let mut parts: Vec<_> = parts.collect();
        bn.backward_parts_into(&mut saved, &mut parts).unwrap();
        BYTES.load(Ordering::Relaxed) - before
    };
    step();
    step() as f64 / (2 * size_of_val(&x[..])) as f64
}

/// Rows of their own size, which are taken where they lie, and short ones, several of which are taken together.
#[test]
fn a_second_step_of_strided_groups_allocates_no_tensor() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (dims, size) in [(&[16, 32, 32, 32], 4), (&[64, 7, 7, 40], 16), (&[32, 32, 32, 32], 16)] {
        let shape = Shape::new(dims, 3).unwrap();
        let config = Config::default().activation(Activation::Relu).ghost(Ghost::strided(size));
        let mut bn = BatchNorm::<f32, Cpu>::new(&Cpu::default(), dims[3], config).unwrap();
        let x: Vec<f32> = (0..shape.len()).map(|i| (i as f32 * 0.37).sin()).collect();
        let (mut y, mut grad_x, mut saved) = (x.clone(), x.clone(), Saved::new());
        let mut step = || {
            let before = BYTES.load(Ordering::Relaxed);
            bn.forward_into(&shape, &x, Some(&x), &mut y, &mut saved).unwrap();
            let (grad_y, to) = (Input::View(&x[..]), Some(&mut grad_x[..]));
            bn.backward_into(&saved, &x, Some(&x), grad_y, to, None).unwrap();
            BYTES.load(Ordering::Relaxed) - before
        };
        step();
        // As many threads may be at work at once as have not been before, which have memory of their own then.
        let least = (0..MOST_STEPS).map(|_| step()).min().unwrap_or_default();
        let bytes = least as f64 / size_of_val(&x[..]) as f64;
        assert!(bytes < LIMIT, "{shape} in {size}: {bytes} of the tensor");
    }
}

#[test]
fn a_second_list_allocates_no_tensor() {
    for shape in shapes() {
        let bytes = second_step_of_parts(&shape);
        assert!(bytes < LIMIT, "{shape}: {bytes} of the inputs");
    }
}

/// Steps after the first of which one finds everything there, where threads take shares as they come.
const MOST_STEPS: usize = 8;

/// What a step may allocate, over the size of x: handles and partial sums, no tensor.
const LIMIT: f64 = 1.0 / 20.0;

fn shapes() -> [Shape; 3] {
    [(&[16, 32, 32, 32][..], 1), (&[16, 32, 32, 32], 3), (&[8192, 64], 1)]
        .map(|(dims, axis)| Shape::new(dims, axis).unwrap())
}

fn allocates_no_tensor<G: Engine<Memory = Host>>(engine: &G) {
    for (shape, [single, half]) in second_steps(engine) {
        assert!(single < LIMIT, "{}, {shape}, f32: {single} of the tensor", engine.name());
        assert!(half < LIMIT, "{}, {shape}, f16: {half} of the tensor", engine.name());
    }
}

fn second_steps<G: Engine<Memory = Host>>(engine: &G) -> [(Shape, [f64; 2]); 3] {
    shapes().map(|shape| {
        (shape, [second_step::<f32, G>(engine, &shape), second_step::<f16, G>(engine, &shape)])
    })
}

/// The engines that are made to be fast, one line each.
macro_rules! a_second_step_allocates_no_tensor {
    ($($name:ident: $engine:expr),* $(,)?) => {
        $(#[test]
        fn $name() {
            allocates_no_tensor(&$engine);
        })*
    };
}
a_second_step_allocates_no_tensor! { cpu: Cpu::default() }

/// The reference lists the gradients of every channel: what the counter sees there, it would see
/// elsewhere.
#[test]
fn the_counter_sees_what_the_reference_allocates() {
    for (shape, bytes) in second_steps(&Reference) {
        assert!(bytes.iter().all(|&b| b > 20.0 * LIMIT), "{shape}: {bytes:?} of the tensor");
    }
}

/// Of a file that is another layer's for the most part, a dict that borrows copies what is loaded; one of its own bytes
/// copies all, which shows that the counter would see it.
#[cfg(feature = "safetensors")]
#[test]
fn a_borrowing_state_dict_copies_what_is_loaded() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut bn = BatchNorm::<f32, Cpu>::new(&Cpu::default(), 64, Config::default()).unwrap();
    let mut dict = bn.state_dict("bn1.").unwrap();
    dict.insert("fc.weight", &[1 << 20], &vec![0.5f32; 1 << 20]).unwrap();
    dict.insert("bn1.running_mean", &[64], &[0.25f32; 64]).unwrap();
    let file = dict.to_bytes().unwrap();
    // As a part of a larger file, which starts at an odd address.
    let moved = [&[0], &file[..]].concat();
    let mut allocated = |load: &dyn Fn(&mut BatchNorm<f32, Cpu>)| {
        let before = BYTES.load(Ordering::Relaxed);
        load(&mut bn);
        (BYTES.load(Ordering::Relaxed) - before) as f64 / file.len() as f64
    };
    for bytes in [&file[..], &moved[1..]] {
        let borrowed = allocated(&|bn| {
            let dict = StateDict::borrow_bytes(bytes).unwrap();
            bn.load_state_dict(&dict, "bn1.", Strict::Yes).unwrap();
        });
        assert!(borrowed < LIMIT, "{borrowed} of the file");
        let owned = allocated(&|bn| {
            let dict = StateDict::from_bytes(bytes).unwrap();
            bn.load_state_dict(&dict, "bn1.", Strict::Yes).unwrap();
        });
        assert!((1.0 - LIMIT..2.0).contains(&owned), "{owned} of the file");
    }
    assert_eq!(bn.running().unwrap().mean, [0.25; 64]);
}
