//! Trains a small residual network on handwritten digits, with batch normalization behind every
//! convolution:
//!
//! ```text
//! cargo run --release -p examples --bin cnn -- --layout nhwc
//! ```
//!
//! `unit.rs` is the code to look at for how the layer is used; `spatial/` and the `train` example's
//! `backend/` have the arithmetic beside it.
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use batchnorm::{Engine, Memory, StateDict};
use clap::{Parser, value_parser};

use backend::Backend;
use data::{Data, Images, Sampler};
use device::{Device, Place};
use network::Network;
use random::Random;
use spatial::{HostSpatial, Layout, Spatial};

// Not private: the tests take this file as a module.
#[allow(dead_code)] // what only `train` needs, here and below
#[path = "../train/backend/mod.rs"]
pub(crate) mod backend;
#[allow(dead_code)]
#[path = "../train/data.rs"]
pub(crate) mod data;
#[path = "../train/device.rs"]
pub(crate) mod device;
#[allow(dead_code)]
#[path = "../train/idx.rs"]
mod idx;
pub(crate) mod network;
#[path = "../train/random.rs"]
pub(crate) mod random;
pub(crate) mod spatial;
mod unit;

/// Trains a small residual network on handwritten digits, with batch normalization behind every
/// convolution.
#[derive(Debug, Clone, Parser)]
#[command(name = "cnn")]
pub(crate) struct Options {
    /// Where to train.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// How images lie in memory.
    #[arg(long, value_enum, default_value_t = Layout::Nchw)]
    pub layout: Layout,
    /// When to end.
    #[arg(long, default_value_t = 400)]
    pub steps: u64,
    /// Images in a step.
    #[arg(long, default_value_t = 32, value_parser = value_parser!(u64).range(2..))]
    pub batch: u64,
    /// Of SGD at first; it falls in a line, to nothing after the last step.
    #[arg(long, default_value_t = 0.2)]
    pub learning_rate: f32,
    /// Of weights and batches.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps from one line to the next.
    #[arg(long, default_value_t = 50, value_parser = value_parser!(u64).range(1..))]
    pub test_every: u64,
    /// Start from the parameters in this file.
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Write the parameters to this file at the end: safetensors, the same names in both layouts.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// If a CUDA library is missing, say where it was looked for.
    #[arg(long)]
    pub verbose: bool,
}

fn main() -> Result<()> {
    let (options, to) = (Options::parse(), &mut io::stdout());
    let place = Place::new(options.device, options.verbose)?;
    writeln!(to, "device: {}", place.name())?;
    match &place {
        Place::Cpu { engine, backend, .. } => train(engine, (backend, &HostSpatial), &options, to),
        #[cfg(feature = "cuda")]
        Place::Cuda { engine, backend, .. } => {
            let spatial = spatial::CudaSpatial::new(engine.memory())?;
            train(engine, (backend, &spatial), &options, to)
        }
    }
}

/// A whole run, wherever `engine` and what is beside it are.
pub(crate) fn train<M, G, B, S>(
    engine: &G,
    beside: (&B, &S),
    options: &Options,
    to: &mut impl Write,
) -> Result<()>
where
    M: Memory,
    G: Engine<Memory = M>,
    B: Backend<Memory = M>,
    S: Spatial<Memory = M>,
{
    let &Options { layout, steps, learning_rate, seed, .. } = options;
    let (data, memory) = (Data::digits()?, engine.memory());
    let (images, batch) = (data.train.len(), usize::try_from(options.batch)?);
    ensure!(batch <= images, "batch: expected 2 to {images}, got {batch}");
    let sizes = [batch, data.test.len()];
    let mut network = Network::new(engine, beside, layout, sizes, &mut Random::new(seed, 0))?;
    if let Some(path) = &options.load {
        let mut load = || network.load_state_dict(&StateDict::from_bytes(&std::fs::read(path)?)?);
        load().with_context(|| path.display().to_string())?;
    }
    let test: Vec<usize> = (0..data.test.len()).collect();
    let (test_x, test_labels) = gather(&data.test, &test);
    let (test_x, test_labels) = (memory.upload(&test_x)?, memory.upload(&test_labels)?);
    let (mut x, mut labels) = (memory.zeros(batch * data.train.inputs)?, memory.zeros(batch)?);
    let mut sampler = Sampler::new(seed, images, batch);

    writeln!(to, "{data}, {layout:?}, engine {}", engine.name())?;
    writeln!(
        to,
        "{:>6} {:>13} {:>10} {:>13}",
        "step", "training loss", "test loss", "test accuracy"
    )?;
    let start = Instant::now();
    for step in 1..=steps {
        let (batch_x, batch_labels) = gather(&data.train, sampler.batch(step - 1));
        memory.write(&batch_x, M::view_mut(&mut x))?;
        memory.write(&batch_labels, M::view_mut(&mut labels))?;
        let left = (steps + 1 - step) as f32 / steps as f32;
        network.step(&x, &labels, left * learning_rate)?;
        if step.is_multiple_of(options.test_every) || step == steps {
            let loss = network.trained()?.loss;
            let score = network.evaluate(&test_x, &test_labels)?;
            let accuracy = 100.0 * score.accuracy;
            writeln!(to, "{step:>6} {loss:>13.4} {:>10.4} {accuracy:>11.1} %", score.loss)?;
        }
    }
    writeln!(to, "{steps} steps took {:.1} s", start.elapsed().as_secs_f64())?;
    if let Some(path) = &options.save {
        let bytes = network.state_dict()?.to_bytes()?;
        std::fs::write(path, bytes).with_context(|| path.display().to_string())?;
        writeln!(to, "parameters: {}", path.display())?;
    }
    Ok(())
}

/// Images side by side, and their labels.
pub(crate) fn gather(images: &Images, indices: &[usize]) -> (Vec<f32>, Vec<u8>) {
    let x = indices.iter().flat_map(|&i| images.image(i)).collect();
    (x, indices.iter().map(|&i| images.labels()[i]).collect())
}
