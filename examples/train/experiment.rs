//! The two networks, trained side by side.
use anyhow::{Context, Result, ensure};
use batchnorm::{Engine, Memory};

use super::backend::Backend;
use super::data::{CLASSES, Data, Images, Sampler};
use super::network::{Architecture, Network, Score};
use super::options::Settings;
use super::random::Random;

/// As in the paper.
const HIDDEN: [usize; 3] = [100; 3];

/// How both networks did on the test images after so many steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub step: u64,
    pub with: Score,
    pub without: Score,
}

pub struct Experiment<'a, G: Engine, B> {
    pub with: Network<G, B>,
    pub without: Network<G, B>,
    /// Taken so far.
    pub step: u64,
    /// One point per `test_every` steps, from step 0 on.
    pub curve: Vec<Point>,
    settings: Settings,
    data: &'a Data,
    sampler: Sampler,
    batch: Batch<G::Memory>,
    test: Batch<G::Memory>,
    engine: G,
    backend: B,
}

/// Images where the networks are, and where they are put together.
struct Batch<M: Memory> {
    x: M::Buf<f32>,
    labels: M::Buf<u8>,
    host_x: Vec<f32>,
    host_labels: Vec<u8>,
}

impl<M: Memory> Batch<M> {
    fn new(memory: &M, size: usize, inputs: usize) -> Result<Self> {
        let (host_x, host_labels) = (Vec::new(), Vec::new());
        let (x, labels) = (memory.zeros(size * inputs)?, memory.zeros(size)?);
        Ok(Self { x, labels, host_x, host_labels })
    }

    fn load(
        &mut self,
        memory: &M,
        images: &Images,
        indices: impl Iterator<Item = usize> + Clone,
    ) -> Result<()> {
        self.host_x.clear();
        self.host_x.extend(indices.clone().flat_map(|i| images.image(i)));
        self.host_labels.clear();
        self.host_labels.extend(indices.map(|i| images.labels()[i]));
        memory.write(&self.host_x, M::view_mut(&mut self.x))?;
        memory.write(&self.host_labels, M::view_mut(&mut self.labels))?;
        Ok(())
    }
}

impl<'a, M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>> Experiment<'a, G, B> {
    pub fn new(engine: &G, backend: &B, settings: Settings, data: &'a Data) -> Result<Self> {
        let Settings { nonlinearity, batch, seed, .. } = settings;
        let (images, inputs) = (data.train.len(), data.train.inputs);
        ensure!(
            (2..=images).contains(&batch),
            "batch: expected 2 to {images}, the number of training images, got {batch}"
        );
        let units = [&[inputs], &HIDDEN[..], &[CLASSES]].concat();
        let network = |normalize| {
            let architecture = Architecture { units: units.clone(), nonlinearity, normalize };
            let rows = [batch, data.test.len()];
            // Each from the start of the same numbers: the same weights.
            Network::new(engine, backend, &architecture, rows, &mut Random::new(seed, 0))
        };
        let (with, without) = (network(true)?, network(false)?);
        let memory = engine.memory();
        let mut test = Batch::new(memory, data.test.len(), inputs)?;
        test.load(memory, &data.test, 0..data.test.len())?;
        Ok(Self {
            with,
            without,
            step: 0,
            curve: Vec::new(),
            settings,
            data,
            sampler: Sampler::new(seed, images, batch),
            batch: Batch::new(memory, batch, inputs)?,
            test,
            engine: engine.clone(),
            backend: backend.clone(),
        })
    }

    /// The training images of a step, counted from 0, whichever step the networks are at.
    pub fn batch(&mut self, step: u64) -> &[usize] {
        self.sampler.batch(step)
    }

    /// One step of both networks on the same images, at the same time where there are threads.
    pub fn step(&mut self) -> Result<()> {
        let Self { with, without, batch, backend, .. } = self;
        let indices = self.sampler.batch(self.step);
        batch.load(self.engine.memory(), &self.data.train, indices.iter().copied())?;
        let (Batch { x, labels, .. }, rate) = (&*batch, self.settings.learning_rate);
        let (a, b) = (|| with.step(x, labels, rate), || without.step(x, labels, rate));
        let both = backend.join(a, b);
        both.0.context("with batch normalization")?;
        both.1.context("without batch normalization")?;
        self.step += 1;
        Ok(())
    }

    /// Adds a point to the curve, if this step is to have one and has none.
    pub fn record(&mut self) -> Result<()> {
        let due = self.step.is_multiple_of(self.settings.test_every);
        if due && self.curve.last().is_none_or(|point| point.step < self.step) {
            let point = self.evaluate()?;
            self.curve.push(point);
        }
        Ok(())
    }

    /// How the networks do now.
    pub fn evaluate(&mut self) -> Result<Point> {
        let Self { with, without, test: Batch { x, labels, .. }, backend, .. } = self;
        let both = backend.join(|| with.evaluate(x, labels), || without.evaluate(x, labels));
        Ok(Point { step: self.step, with: both.0?, without: both.1? })
    }

    /// Gives the normalized network the statistics of all training images in place of its running ones:
    /// for the end, as a step would go on from others.
    pub fn use_population(&mut self) -> Result<()> {
        let Self { with, data, engine, settings, .. } = self;
        let images = &data.train;
        let rows = settings.batch;
        with.use_population(images.len().div_ceil(rows), |batch| {
            let these = batch * rows..images.len().min((batch + 1) * rows);
            let x: Vec<f32> = these.clone().flat_map(|i| images.image(i)).collect();
            Ok((these.len(), engine.memory().upload(&x)?))
        })
    }

    /// What decides every bit, one per line.
    pub fn identity(&self) -> String {
        let engine = self.engine.name();
        format!("engine: {engine}\n{}\ndata: {}", self.settings.identity(), self.data.identity())
    }
}
