//! What can be chosen on the command line.
use std::path::PathBuf;

use clap::{Parser, value_parser};

use super::backend::Nonlinearity;
use super::device::Device;

/// Trains one network twice on handwritten digits, with and without batch normalization before
/// its nonlinearities, from the same weights and on the same batches: the experiment of Ioffe and
/// Szegedy (2015), section 4.1.
///
/// Three hidden layers of 100 units, plain SGD. Ctrl-C, SIGTERM or SIGHUP ends a run after its
/// step, with table, plot and checkpoint of what there is (exit status 130, whichever it was); one
/// more, a second later, ends it at once. Under nohup it outlives SIGHUP.
#[derive(Debug, Clone, Parser)]
#[command(name = "train")]
pub struct Options {
    /// What follows every hidden layer.
    #[arg(long, value_enum, default_value_t = Nonlinearity::Sigmoid)]
    pub activation: Nonlinearity,
    /// Of SGD, for both networks.
    #[arg(long, default_value_t = 0.5, value_parser = positive)]
    pub learning_rate: f32,
    /// By what the trained network normalizes: moving averages of the training, which the curve is made
    /// by, or also the statistics of all training images at its end, which the table then shows beside
    /// them.
    #[arg(long, value_enum, default_value_t = Statistics::Moving)]
    pub statistics: Statistics,
    /// Where to train.
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub device: Device,
    /// When to end [default: 10000; 50000 with --mnist].
    #[arg(long, value_parser = value_parser!(u64).range(1..=1 << 53))]
    pub steps: Option<u64>,
    /// Images in a step; batch normalization needs 2.
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u64).range(2..))]
    pub batch: u64,
    /// Of weights and batches: the same seed gives the same bits on the same device, on any number
    /// of threads, and the same curve within rounding on another one.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps from one test to the next [default: 10; 100 with --mnist].
    #[arg(long, value_parser = value_parser!(u64).range(1..=1 << 53))]
    pub test_every: Option<u64>,
    /// Train on the four IDX files of MNIST in this folder (train-images-idx3-ubyte, ..., plain or
    /// gzipped) instead of the digits that come with the example.
    #[arg(long, value_name = "DIR")]
    pub mnist: Option<PathBuf>,
    /// Write the state of the run to this file, every 1000 steps and at the end. It may be new, a
    /// regular file, or a link to either, which stays. Where it cannot be written the run goes on,
    /// and fails after table and plots if that is so at the end, too.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Continue the run that wrote this checkpoint, to the same bits as without a break. All
    /// options must be the same, but --steps may be more.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Write what the run starts from to this file, as safetensors, for another program to train on the
    /// same: the initial weights of both networks (with.layer1.weight, ..., without.layer4.bias) and
    /// the training images of every step, counted from 0 (batches, --steps x --batch).
    #[arg(long, value_name = "FILE")]
    pub export_start: Option<PathBuf>,
    /// Where the plots go: accuracy.png, accuracy.svg.
    #[arg(long, value_name = "DIR", default_value = "target/train")]
    pub out: PathBuf,
    /// If a CUDA library is missing, say where it was looked for.
    #[arg(long)]
    pub verbose: bool,
}

/// What a trained network normalizes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Statistics {
    /// The running statistics.
    Moving,
    /// Those of the whole training set.
    Population,
}

/// What decides every bit of a run, but for how long it goes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    pub nonlinearity: Nonlinearity,
    pub learning_rate: f32,
    pub batch: usize,
    pub seed: u64,
    pub test_every: u64,
}

impl Options {
    /// The last step.
    pub fn steps(&self) -> u64 {
        self.steps.unwrap_or(if self.mnist.is_some() { 50_000 } else { 10_000 })
    }

    pub fn settings(&self) -> Settings {
        Settings {
            nonlinearity: self.activation,
            learning_rate: self.learning_rate,
            // More than any number of images there can be, which is checked later.
            batch: usize::try_from(self.batch).unwrap_or(usize::MAX),
            seed: self.seed,
            test_every: self.test_every.unwrap_or(if self.mnist.is_some() { 100 } else { 10 }),
        }
    }
}

impl Settings {
    /// As a checkpoint remembers them, one per line.
    pub fn identity(&self) -> String {
        let Self { learning_rate, batch, seed, test_every, .. } = self;
        let activation = self.nonlinearity.name();
        format!(
            "activation: {activation}\nlearning rate: {learning_rate}\nbatch: {batch}\n\
             seed: {seed}\ntest every: {test_every}"
        )
    }
}

fn positive(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a finite number above 0".into()),
    }
}
