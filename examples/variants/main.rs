//! What masks, renormalization, ghost batches and double backward are for: networks on handwritten digits, each with
//! one of them and without.
//!
//! ```text
//! cargo run --release -p examples --bin variants
//! ```
//!
//! `network.rs` is the code to look at for how the layer is used, `penalty.rs` for the four walks of a penalty on
//! gradients; `padding.rs` and `batches.rs` are the other experiments. All of it is for the `Cpu` engine.
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum, value_parser};
use rayon::prelude::*;

use data::{Data, Images};
use network::Network;

mod batches;
#[allow(dead_code)] // what only `train` needs, here and below
#[path = "../train/data.rs"]
pub(crate) mod data;
#[path = "../support/font.rs"]
mod font;
#[allow(dead_code)]
#[path = "../train/idx.rs"]
mod idx;
pub(crate) mod loss;
pub(crate) mod network;
pub(crate) mod padding;
pub(crate) mod penalty;
#[path = "../support/png.rs"]
mod picture;
mod plot;
#[path = "../train/random.rs"]
pub(crate) mod random;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Lines of digits, padded to one length: statistics with a mask and without.
    Padding,
    /// Batches of 4 images, plain and renormalized, and ghost batches in large ones.
    Batches,
    /// A penalty on the gradient with respect to the images, by double backward.
    Penalty,
}

/// What masks, renormalization, ghost batches and double backward are for, on handwritten digits.
#[derive(Debug, Clone, Parser)]
#[command(name = "variants")]
pub(crate) struct Options {
    /// All of them where none is named.
    #[arg(value_enum)]
    pub parts: Vec<Part>,
    /// Runs of each setting, from other weights and batches; tables and plots have their mean.
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// One seed and few steps: to see that it runs.
    #[arg(long)]
    pub quick: bool,
    /// Where the plots go.
    #[arg(long, value_name = "DIR", default_value = "target/variants")]
    pub out: PathBuf,
}

impl Options {
    /// So many steps, or few.
    fn steps(&self, full: u64) -> u64 {
        if self.quick { (full / 50).max(5) } else { full }
    }

    /// What `of` makes of every seed, at the same time where there are threads.
    fn of_seeds<T: Send>(&self, of: impl Fn(u64) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
        let seeds = if self.quick { 1 } else { self.seeds };
        (1..=seeds).into_par_iter().map(of).collect()
    }
}

fn main() -> Result<()> {
    run(&Options::parse(), &mut io::stdout())
}

/// All that was asked for; a line for every setting as soon as it is there.
pub(crate) fn run(options: &Options, to: &mut impl Write) -> Result<()> {
    let (data, out) = (Data::digits()?, &options.out);
    fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    writeln!(to, "{data}, engine cpu; percent of the test images, mean and standard error")?;
    let asked = |part: &Part| options.parts.is_empty() || options.parts.contains(part);
    for part in [Part::Padding, Part::Batches, Part::Penalty].into_iter().filter(asked) {
        let start = Instant::now();
        let (name, panels) = match part {
            Part::Padding => ("padding", padding::run(&data, options, to)?),
            Part::Batches => ("batches", batches::run(&data, options, to)?),
            Part::Penalty => ("penalty", penalty::run(&data, options, to)?),
        };
        let (png, svg) = (out.join(format!("{name}.png")), out.join(format!("{name}.svg")));
        fs::write(&png, plot::png(&panels)?).with_context(|| png.display().to_string())?;
        fs::write(&svg, plot::svg(&panels)?).with_context(|| svg.display().to_string())?;
        let seconds = start.elapsed().as_secs_f64();
        writeln!(to, "{name} took {seconds:.1} s; plots: {}, {}", png.display(), svg.display())?;
    }
    Ok(())
}

/// The test images.
fn tested(data: &Data) -> (Vec<f32>, Vec<u8>) {
    gather(&data.test, &(0..data.test.len()).collect::<Vec<_>>())
}

/// A learning rate that falls in a line, to nothing after the last step.
fn falling(rate: f32, step: u64, steps: u64) -> f32 {
    rate * (steps - step) as f32 / steps as f32
}

/// Images side by side, and their labels.
pub(crate) fn gather(images: &Images, indices: &[usize]) -> (Vec<f32>, Vec<u8>) {
    let x = indices.iter().flat_map(|&i| images.image(i)).collect();
    (x, indices.iter().map(|&i| images.labels()[i]).collect())
}

/// Percent of these images, in evaluation.
fn accuracy(network: &Network, x: &[f32], labels: &[u8]) -> Result<f64> {
    let right = loss::cross_entropy(&network.infer(x)?, labels).right;
    Ok(100.0 * right as f64 / labels.len() as f64)
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    sum / f64::from(count)
}

/// `98.02 +- 0.13`: the mean of several seeds and its standard error.
fn spread(values: &[f64]) -> String {
    let (mean, n) = (mean(values.iter().copied()), values.len() as f64);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = if n > 1.0 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
    format!("{mean:.2} +- {error:.2}")
}
