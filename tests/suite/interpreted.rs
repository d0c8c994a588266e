//! What `scripts/miri.sh` runs under Miri: the CPU engine's unsafe code in every regime that few elements reach, on
//! one thread and on several. Elsewhere these are small tests like others.
use crate::support::near::near_the_definition;
use crate::support::run::{Epilogue, Inputs, Mode};
use batchnorm::{Cpu, Element, Shape};
use half::{bf16, f16};

fn all<E: Element>(dims: &[usize]) {
    let shape = Shape::new(dims, 1).unwrap();
    let inputs = Inputs::<E>::new(&shape, Epilogue::FULL, 1);
    near_the_definition(&Cpu::default(), &inputs, Mode::Train(Some(0.1)));
    near_the_definition(&Cpu::default(), &inputs, Mode::Eval);
}

fn every_type(dims: &[usize]) {
    all::<f32>(dims);
    all::<f64>(dims);
    all::<f16>(dims);
    all::<bf16>(dims);
}

#[test]
fn short_runs() {
    every_type(&[2, 3, 5]);
    all::<f32>(&[2, 3, 16]);
}
#[test]
fn long_runs() {
    all::<f32>(&[1, 2, 259]);
}
#[test]
fn columns() {
    every_type(&[6, 3]);
    all::<f32>(&[2, 530]);
}
#[test]
fn empty() {
    every_type(&[0, 3, 2]);
}

/// More than one thread is woken for.
fn on_threads(dims: &[usize]) {
    let shape = Shape::new(dims, 1).unwrap();
    let inputs = Inputs::<f32>::new(&shape, Epilogue::FULL, 2);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| near_the_definition(&Cpu::default(), &inputs, Mode::Train(Some(0.1))));
}

#[test]
fn long_runs_on_threads() {
    on_threads(&[1, 2, 35_001]);
}
#[test]
fn columns_on_threads() {
    on_threads(&[132, 257]);
}
