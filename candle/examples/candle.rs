//! Trains a small convolutional network on handwritten digits twice, by turns: with candle's batch norm, and with this
//! crate's. From the same weights, on the same batches; the clock runs for each. At its end the checkpoint of one is
//! loaded by the other.
//!
//! `cargo run --release -p batchnorm-candle --example candle -- [--epochs 8] [--batch 64] [--checkpoint FILE]`
use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{AdamW, Conv2d, Conv2dConfig, Linear, ModuleT, Optimizer, VarBuilder, VarMap};
use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// 1,797 images of 8 x 8 pixels; `examples/data/README.md` says whose.
const DIGITS: &[u8] = include_bytes!("../../examples/data/digits.csv.gz");
const SIDE: usize = 8;
const TEST: usize = 297;

/// The network, with whichever layer `norm` makes.
struct Network {
    convolutions: [Conv2d; 3],
    norms: [Box<dyn ModuleT>; 3],
    head: Linear,
}

type Make = fn(usize, VarBuilder) -> candle_core::Result<Box<dyn ModuleT>>;

impl Network {
    fn new(norm: Make, vb: &VarBuilder) -> Result<Self> {
        let conv = |k: usize, from, to, stride| {
            let config = Conv2dConfig { padding: 1, stride, ..Default::default() };
            candle_nn::conv2d_no_bias(from, to, 3, config, vb.pp(format!("conv{k}")))
        };
        let norm = |k: usize, channels| norm(channels, vb.pp(format!("bn{k}")));
        Ok(Self {
            convolutions: [conv(1, 1, 32, 1)?, conv(2, 32, 32, 1)?, conv(3, 32, 64, 2)?],
            norms: [norm(1, 32)?, norm(2, 32)?, norm(3, 64)?],
            head: candle_nn::linear(64, 10, vb.pp("head"))?,
        })
    }
    fn logits(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = x.clone();
        for (conv, norm) in self.convolutions.iter().zip(&self.norms) {
            x = norm.forward_t(&conv.forward(&x)?, train)?.relu()?;
        }
        Ok(self.head.forward(&x.mean((2, 3))?)?)
    }
}

/// One of the two, and what its steps have taken.
struct Run {
    name: &'static str,
    vars: VarMap,
    network: Network,
    optimizer: AdamW,
    time: Duration,
    loss: f32,
}

impl Run {
    fn new(name: &'static str, norm: Make, device: &Device) -> Result<Self> {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, device);
        let network = Network::new(norm, &vb)?;
        let optimizer = AdamW::new_lr(vars.all_vars(), 2e-3)?;
        Ok(Self { name, vars, network, optimizer, time: Duration::ZERO, loss: 0.0 })
    }
    fn step(&mut self, (x, labels): &(Tensor, Tensor)) -> Result<()> {
        let start = Instant::now();
        let logits = self.network.logits(x, true)?;
        let loss = candle_nn::loss::cross_entropy(&logits, labels)?;
        self.optimizer.backward_step(&loss)?;
        self.loss = loss.to_scalar()?; // waits for a device
        self.time += start.elapsed();
        Ok(())
    }
    fn accuracy(&self, (x, labels): &(Tensor, Tensor)) -> Result<f32> {
        let said = self.network.logits(x, false)?.argmax(D::Minus1)?;
        Ok(said.eq(labels)?.to_dtype(DType::F32)?.mean_all()?.to_scalar::<f32>()? * 100.0)
    }
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let device = Device::cuda_if_available(0)?;
    let (train, test) = digits(&device)?;
    let mut runs = [
        Run::new("candle_nn", |n, vb| Ok(Box::new(candle_nn::batch_norm(n, 1e-5, vb)?)), &device)?,
        Run::new(
            "batchnorm",
            |n, vb| Ok(Box::new(batchnorm_candle::batch_norm(n, 1e-5, vb)?)),
            &device,
        )?,
    ];
    // From the same weights.
    let start: Vec<_> = runs[0].vars.data().lock().expect("vars").clone().into_iter().collect();
    for (name, var) in start {
        runs[1].vars.set_one(name, var.as_tensor())?;
    }
    let images = train.0.dim(0)?;
    let steps = images / options.batch;
    ensure!(steps > 0, "--batch: expected at most {images}, got {}", options.batch);
    let bar = ProgressBar::new((options.epochs * steps) as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta} left")?);
    let mut apart = 0f32;
    for epoch in 0..options.epochs {
        for step in 0..steps {
            // Every epoch begins elsewhere.
            let first = (step * options.batch + epoch * 17) % (images - options.batch + 1);
            let of = |t: &Tensor| t.narrow(0, first, options.batch);
            let batch = (of(&train.0)?, of(&train.1)?);
            let turn = step % 2;
            for k in [turn, 1 - turn] {
                runs[k].step(&batch)?;
            }
            let [theirs, ours] = [runs[0].loss, runs[1].loss];
            if epoch == 0 {
                apart = apart.max((theirs - ours).abs());
            }
            bar.set_message(format!("loss: candle_nn {theirs:.4}, batchnorm {ours:.4}"));
            bar.inc(1);
        }
    }
    bar.finish();
    println!("losses of the first epoch are apart by at most {apart:.1e}");
    for run in &runs {
        let per_step = run.time.as_secs_f64() * 1e3 / (options.epochs * steps) as f64;
        let accuracy = run.accuracy(&test)?;
        println!("{}: {per_step:6.2} ms a step, {accuracy:.1} % of {TEST} test images", run.name);
    }
    let [theirs, ours] = &mut runs;
    println!(
        "a step takes candle_nn {:.2} times as long",
        theirs.time.as_secs_f64() / ours.time.as_secs_f64()
    );
    let path = options.checkpoint;
    ours.vars.save(&path)?;
    theirs.vars.load(&path)?;
    let accuracy = theirs.accuracy(&test)?;
    println!("{}: loaded with candle's layers it says {accuracy:.1} %", path.display());
    Ok(())
}

struct Options {
    epochs: usize,
    batch: usize,
    checkpoint: PathBuf,
}

impl Options {
    fn parse() -> Result<Self> {
        let checkpoint = std::env::temp_dir().join("digits.safetensors");
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

/// Images and labels, of which the last are for testing.
#[allow(clippy::type_complexity)] // two pairs
fn digits(device: &Device) -> Result<((Tensor, Tensor), (Tensor, Tensor))> {
    let mut text = String::new();
    GzDecoder::new(DIGITS).read_to_string(&mut text)?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut values = line.split(',').map(str::parse::<u32>).collect::<Result<Vec<_>, _>>()?;
        labels.push(values.pop().context("a line without a label")?);
        pixels.extend(values.into_iter().map(|value| value as f32 / 16.0));
    }
    let count = labels.len();
    let x = Tensor::from_vec(pixels, (count, 1, SIDE, SIDE), device)?;
    let labels = Tensor::from_vec(labels, count, device)?;
    let part =
        |first, len| -> Result<_> { Ok((x.narrow(0, first, len)?, labels.narrow(0, first, len)?)) };
    Ok((part(0, count - TEST)?, part(count - TEST, TEST)?))
}
