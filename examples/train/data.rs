//! Images of digits, and the batches they are trained in.
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use super::idx;
use super::random::Random;

/// 1,797 images; `examples/data/README.md` says whose.
const DIGITS: &[u8] = include_bytes!("../data/digits.csv.gz");
const DIGITS_TEST: usize = 500;
/// Of the split, whatever the run's seed is: accuracies of all runs are on the same images.
const DIGITS_SPLIT: u64 = 1998;

/// As many as there are digits.
pub const CLASSES: usize = 10;

/// Images of one size and what they show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// `inputs` for every image.
    pixels: Vec<u8>,
    labels: Vec<u8>,
    /// Pixels of an image.
    pub inputs: usize,
    /// The largest pixel: what the network gets is 0 to 1.
    white: u8,
}

/// What is trained on, and what accuracies are measured on.
#[derive(Debug, Clone)]
pub struct Data {
    name: &'static str,
    pub train: Images,
    pub test: Images,
}

impl Images {
    /// `pixels` are 0 to `white`, `inputs` for every label.
    pub fn new(pixels: Vec<u8>, labels: Vec<u8>, inputs: usize, white: u8) -> Result<Self> {
        let (expected, got) = (labels.len().checked_mul(inputs), pixels.len());
        let images = labels.len();
        ensure!(expected == Some(got), "expected {images} images of {inputs} pixels, got {got}");
        if let Some((i, label)) =
            labels.iter().enumerate().find(|(_, l)| usize::from(**l) >= CLASSES)
        {
            anyhow::bail!("label of image {i}: expected 0 to {}, got {label}", CLASSES - 1);
        }
        Ok(Self { pixels, labels, inputs, white })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Image `i`, as a network gets it.
    pub fn image(&self, i: usize) -> impl Iterator<Item = f32> {
        let white = f32::from(self.white);
        self.pixels[i * self.inputs..][..self.inputs].iter().map(move |p| f32::from(*p) / white)
    }

    fn select(&self, indices: &[usize]) -> Self {
        let pixels = indices.iter().flat_map(|i| &self.pixels[i * self.inputs..][..self.inputs]);
        let labels = indices.iter().map(|&i| self.labels[i]).collect();
        Self { pixels: pixels.copied().collect(), labels, ..*self }
    }
}

impl Data {
    /// The digits that come with this example.
    pub fn digits() -> Result<Self> {
        let mut csv = String::new();
        GzDecoder::new(DIGITS).read_to_string(&mut csv).context("digits.csv.gz")?;
        let images = digits(&csv).context("digits.csv.gz")?;
        let mut order: Vec<usize> = (0..images.len()).collect();
        Random::new(DIGITS_SPLIT, 0).shuffle(&mut order);
        let (train, test) = order.split_at(order.len() - DIGITS_TEST);
        Ok(Self { name: "digits", train: images.select(train), test: images.select(test) })
    }

    /// MNIST, or another set of digits in the same four files.
    pub fn mnist(dir: &Path) -> Result<Self> {
        let (train, test) = (idx::read(dir, "train")?, idx::read(dir, "t10k")?);
        ensure!(
            train.inputs == test.inputs,
            "{}: the training images have {} pixels, the test images {}",
            dir.display(),
            train.inputs,
            test.inputs,
        );
        Ok(Self { name: "mnist", train, test })
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A checksum, so that a run is not resumed on other images.
    fn checksum(&self) -> u64 {
        // FNV-1a.
        let parts = [&self.train.pixels, &self.train.labels, &self.test.pixels, &self.test.labels];
        let bytes = parts.into_iter().flatten();
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// As a checkpoint remembers it.
    pub fn identity(&self) -> String {
        format!("{self}, checksum {:016x}", self.checksum())
    }
}

/// `digits, 1297 training and 500 test images of 64 pixels`
impl std::fmt::Display for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, train, test } = self;
        let (trained, tested, inputs) = (train.len(), test.len(), train.inputs);
        write!(f, "{name}, {trained} training and {tested} test images of {inputs} pixels")
    }
}

/// 64 integers 0 to 16 and a label, one image per line.
fn digits(csv: &str) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(csv.lines()) {
        let fields: Vec<u8> = line
            .split(',')
            .map(|field| field.parse().with_context(|| format!("line {number}: got {field:?}")))
            .collect::<Result<_>>()?;
        let got = fields.len();
        ensure!(got == 65, "line {number}: expected 64 pixels and a label, got {got} numbers");
        ensure!(fields[..64].iter().all(|p| *p <= 16), "line {number}: expected pixels 0 to 16");
        pixels.extend_from_slice(&fields[..64]);
        labels.push(fields[64]);
    }
    Images::new(pixels, labels, 64, 16)
}

/// Chooses the images of every step: all of them in random order, then again in another one. What
/// is left over at the end of an order waits for another time, so that batches are all alike.
///
/// It has no state but the step: seed and step say everything.
pub struct Sampler {
    seed: u64,
    batch: usize,
    /// Of this epoch.
    order: Vec<usize>,
    epoch: Option<u64>,
}

impl Sampler {
    /// `batch` is 1 to `images`.
    pub fn new(seed: u64, images: usize, batch: usize) -> Self {
        Self { seed, batch, order: (0..images).collect(), epoch: None }
    }

    /// The images of a step, counted from 0.
    pub fn batch(&mut self, step: u64) -> &[usize] {
        let per_epoch = (self.order.len() / self.batch) as u64;
        let epoch = step / per_epoch;
        if self.epoch != Some(epoch) {
            self.order.sort_unstable();
            // 0 is the weights'.
            Random::new(self.seed, epoch + 1).shuffle(&mut self.order);
            self.epoch = Some(epoch);
        }
        &self.order[(step % per_epoch) as usize * self.batch..][..self.batch]
    }
}
