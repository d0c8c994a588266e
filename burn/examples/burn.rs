//! Trains a small convolutional network on handwritten digits twice, by turns: with burn's batch norm, and with this
//! crate's. From the same weights, on the same batches; the clock runs for each. At its end the record of one is
//! loaded by the other.
//!
//! `cargo run --release --manifest-path burn/Cargo.toml --example burn -- [--epochs 8] [--batch 64] [--checkpoint FILE]`
use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::store::ModuleRecord;
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Device, Int, Tensor, TensorData};
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// 1,797 images of 8 x 8 pixels; `examples/data/README.md` says whose.
const DIGITS: &[u8] = include_bytes!("../../examples/data/digits.csv.gz");
const SIDE: usize = 8;
const TEST: usize = 297;

/// Images and labels.
type Batch = (Tensor<4>, Tensor<1, Int>);

/// The network with whichever layer is used, and the steps that it takes.
macro_rules! run {
    ($name:ident, $layer:path) => {
        mod $name {
            use super::*;
            use $layer::{BatchNorm, BatchNormConfig};

            #[derive(Module, Debug)]
            pub struct Network {
                convolutions: [Conv2d; 3],
                norms: [BatchNorm; 3],
                head: Linear,
            }

            impl Network {
                pub fn new(device: &Device) -> Self {
                    let conv = |from, to, stride| {
                        let config = Conv2dConfig::new([from, to], [3, 3]).with_bias(false);
                        let config = config.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
                        config.with_stride([stride; 2]).init(device)
                    };
                    let norm = |channels| BatchNormConfig::new(channels).init(device);
                    Self {
                        convolutions: [conv(1, 32, 1), conv(32, 32, 1), conv(32, 64, 2)],
                        norms: [norm(32), norm(32), norm(64)],
                        head: LinearConfig::new(64, 10).init(device),
                    }
                }
                fn logits(&self, mut x: Tensor<4>) -> Tensor<2> {
                    for (conv, norm) in self.convolutions.iter().zip(&self.norms) {
                        x = relu(norm.forward(conv.forward(x)));
                    }
                    let channels = x.dims()[1];
                    self.head.forward(x.mean_dims(&[2, 3]).reshape([-1, channels as i64]))
                }
            }

            /// The network, its optimizer, and what its steps have taken.
            pub struct Run {
                pub network: Option<Network>,
                optimizer: ModuleOptimizer,
                pub time: Duration,
                pub loss: f32,
            }

            impl Run {
                pub fn new(network: Network) -> Self {
                    let optimizer = AdamWConfig::new().init();
                    Self { network: Some(network), optimizer, time: Duration::ZERO, loss: 0.0 }
                }
                pub fn step(&mut self, (x, labels): Batch) -> Result<()> {
                    let start = Instant::now();
                    let network = self.network.take().context("a network")?;
                    let loss = cross_entropy(network.logits(x), labels);
                    self.loss = loss.to_data().try_to_vec::<f32>().map_err(anyhow::Error::msg)?[0];
                    let grads = GradientsParams::from_grads(loss.backward(), &network);
                    self.network = Some(self.optimizer.step(2e-3, network, grads));
                    self.time += start.elapsed();
                    Ok(())
                }
                pub fn accuracy(&self, (x, labels): Batch) -> Result<f32> {
                    let network = self.network.as_ref().context("a network")?.valid();
                    let (x, labels) = (x.without_autodiff(), labels.without_autodiff());
                    let said = network.logits(x).argmax(1).reshape([-1]);
                    let right = said.equal(labels).float().mean().to_data();
                    Ok(right.try_to_vec::<f32>().map_err(anyhow::Error::msg)?[0] * 100.0)
                }
            }
        }
    };
}
run!(theirs, burn::nn);
run!(ours, batchnorm_burn);

fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    -log_softmax(logits, 1).gather(1, labels.unsqueeze_dim::<2>(1)).mean()
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let device = Device::flex().autodiff();
    let (train, test) = digits(&device)?;
    let start = theirs::Network::new(&device);
    // From the same weights.
    let same = ours::Network::new(&device).load_record(start.clone().into_record());
    let (mut theirs, mut ours) = (theirs::Run::new(start), ours::Run::new(same));

    let images = train.0.dims()[0];
    let steps = images / options.batch;
    ensure!(steps > 0, "--batch: expected at most {images}, got {}", options.batch);
    let bar = ProgressBar::new((options.epochs * steps) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left")?);
    let mut apart = 0f32;
    for epoch in 0..options.epochs {
        for step in 0..steps {
            // Every epoch begins elsewhere.
            let first = (step * options.batch + epoch * 17) % (images - options.batch + 1);
            let batch = part(&train, first, options.batch);
            if step % 2 == 0 {
                theirs.step(batch.clone())?;
                ours.step(batch)?;
            } else {
                ours.step(batch.clone())?;
                theirs.step(batch)?;
            }
            if epoch == 0 {
                apart = apart.max((theirs.loss - ours.loss).abs());
            }
            bar.set_message(format!("loss: burn {:.4}, batchnorm {:.4}", theirs.loss, ours.loss));
            bar.inc(1);
        }
    }
    bar.finish();
    println!("losses of the first epoch are apart by at most {apart:.1e}");
    let (theirs_say, ours_say) = (theirs.accuracy(test.clone())?, ours.accuracy(test.clone())?);
    for (name, time, says) in
        [("burn", theirs.time, theirs_say), ("batchnorm", ours.time, ours_say)]
    {
        let per_step = time.as_secs_f64() * 1e3 / (options.epochs * steps) as f64;
        println!("{name}: {per_step:6.2} ms a step, {says:.1} % of {TEST} test images");
    }
    let ratio = theirs.time.as_secs_f64() / ours.time.as_secs_f64();
    println!("a step takes burn {ratio:.2} times as long");

    let path = options.checkpoint;
    ours.network.take().context("a network")?.into_record().save(&path)?;
    let loaded = theirs.network.take().context("a network")?;
    theirs.network = Some(loaded.try_load_record(ModuleRecord::load(&path)?)?);
    let says = theirs.accuracy(test)?;
    println!("{}: loaded with burn's layers it says {says:.1} %", path.display());
    Ok(())
}

struct Options {
    epochs: usize,
    batch: usize,
    checkpoint: PathBuf,
}

impl Options {
    fn parse() -> Result<Self> {
        let checkpoint = std::env::temp_dir().join("digits.bpk");
        let mut options = Self { epochs: 8, batch: 64, checkpoint };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().with_context(|| format!("{name}: expected a value"))?;
            match name.as_str() {
                "--epochs" => options.epochs = value.parse().with_context(|| name)?,
                "--batch" => options.batch = value.parse().with_context(|| name)?,
                "--checkpoint" => options.checkpoint = value.into(),
                _ => anyhow::bail!("expected --epochs, --batch or --checkpoint, got {name}"),
            }
        }
        ensure!(options.batch > 1, "--batch: expected at least 2, got {}", options.batch);
        Ok(options)
    }
}

fn part((x, labels): &Batch, first: usize, len: usize) -> Batch {
    (x.clone().narrow(0, first, len), labels.clone().narrow(0, first, len))
}

/// Those to train with, and the last to test with.
fn digits(device: &Device) -> Result<(Batch, Batch)> {
    let mut text = String::new();
    GzDecoder::new(DIGITS).read_to_string(&mut text)?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut values = line.split(',').map(str::parse::<i64>).collect::<Result<Vec<_>, _>>()?;
        labels.push(values.pop().context("a line without a label")?);
        pixels.extend(values.into_iter().map(|value| value as f32 / 16.0));
    }
    let count = labels.len();
    let x = Tensor::from_data(TensorData::new(pixels, [count, 1, SIDE, SIDE]), device);
    let all = (x, Tensor::from_data(TensorData::new(labels, [count]), device));
    Ok((part(&all, 0, count - TEST), part(&all, count - TEST, TEST)))
}
