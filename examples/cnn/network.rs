//! A small residual network for images of 8 x 8, wherever its engine and backend are, in either
//! layout: with the same weights it is the same function in both.
use anyhow::Result;
use batchnorm::{Engine, Memory, StateDict};

use super::backend::{Backend, Operand};
use super::random::Random;
use super::spatial::{Images, Layout, Spatial};
use super::unit::{Buf, Parameter, To, Trace, Unit};

pub const SIDE: usize = 8;
pub const CLASSES: usize = 10;
const CHANNELS: usize = 16;
/// Of the squares that are averaged: behind the first unit, and at the end, where one is all.
const POOLS: [usize; 2] = [2, SIDE / 2];

/// The mean loss and the share of right answers, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    pub loss: f64,
    pub accuracy: f64,
}

/// `stem`, mean of 2 x 2, `second(first(v)) + v` in a block of two units, mean of each channel,
/// linear `head`. Steps allocate no tensor.
pub struct Network<G: Engine, B, S> {
    stem: Unit<G>,
    first: Unit<G>,
    second: Unit<G>,
    weight: Parameter<G::Memory>,
    bias: Parameter<G::Memory>,
    training: Pass<G::Memory>,
    evaluation: Pass<G::Memory>,
    grads: Grads<G::Memory>,
    engine: G,
    backend: B,
    spatial: S,
}

/// Everything between the images and the loss, for so many images.
struct Pass<M: Memory> {
    count: usize,
    stem: Trace<M>,
    pooled: Buf<M>,
    first: Trace<M>,
    second: Trace<M>,
    features: Buf<M>,
    logits: Buf<M>,
    /// Mean loss and number of right answers.
    scores: Buf<M>,
}

struct Grads<M: Memory> {
    logits: Buf<M>,
    features: Buf<M>,
    second: Buf<M>,
    first: Buf<M>,
    /// What the residual adds to, and the first unit.
    pooled: Buf<M>,
    stem: Buf<M>,
}

fn images(count: usize, layout: Layout) -> [Images; 3] {
    let input = Images { count, channels: 1, height: SIDE, width: SIDE, layout };
    let wide = input.of(CHANNELS);
    [input, wide, wide.pooled(POOLS[0])]
}

impl<M, G, B, S> Network<G, B, S>
where
    M: Memory,
    G: Engine<Memory = M>,
    B: Backend<Memory = M>,
    S: Spatial<Memory = M>,
{
    /// Random weights, the same for equal `random`; memory for steps of `batch` images and for the
    /// evaluation of `evaluated` images.
    pub fn new(
        engine: &G,
        (backend, spatial): (&B, &S),
        layout: Layout,
        [batch, evaluated]: [usize; 2],
        random: &mut Random,
    ) -> Result<Self> {
        let memory = engine.memory();
        let stem = Unit::new(engine, [1, CHANNELS], random)?;
        let first = Unit::new(engine, [CHANNELS, CHANNELS], random)?;
        let second = Unit::new(engine, [CHANNELS, CHANNELS], random)?;
        let values = random.normals(CLASSES * CHANNELS, (1.0 / CHANNELS as f64).sqrt());
        let weight = Parameter::new(memory, &[CLASSES, CHANNELS], &values)?;
        let bias = Parameter::new(memory, &[CLASSES], &[0.0; CLASSES])?;
        let pass = |count| -> Result<_> {
            let [input, _, pooled] = images(count, layout);
            Ok(Pass {
                count,
                stem: stem.trace(memory, input)?,
                pooled: memory.zeros(pooled.len())?,
                first: first.trace(memory, pooled)?,
                second: second.trace(memory, pooled)?,
                features: memory.zeros(count * CHANNELS)?,
                logits: memory.zeros(count * CLASSES)?,
                scores: memory.zeros(2)?,
            })
        };
        let [_, wide, pooled] = images(batch, layout);
        let grads = Grads {
            logits: memory.zeros(batch * CLASSES)?,
            features: memory.zeros(batch * CHANNELS)?,
            second: memory.zeros(pooled.len())?,
            first: memory.zeros(pooled.len())?,
            pooled: memory.zeros(pooled.len())?,
            stem: memory.zeros(wide.len())?,
        };
        let (training, evaluation) = (pass(batch)?, pass(evaluated)?);
        let (engine, backend, spatial) = (engine.clone(), backend.clone(), spatial.clone());
        Ok(Self {
            stem,
            first,
            second,
            weight,
            bias,
            training,
            evaluation,
            grads,
            engine,
            backend,
            spatial,
        })
    }

    /// One step of SGD on a batch: `x` holds its images, `labels` their classes.
    pub fn step(&mut self, x: &Buf<M>, labels: &M::Buf<u8>, learning_rate: f32) -> Result<()> {
        self.forward(x, labels)?;
        self.backward()?;
        let backend = &self.backend;
        for unit in [&mut self.stem, &mut self.first, &mut self.second] {
            unit.descend(backend, learning_rate)?;
        }
        self.weight.descend(backend, learning_rate)?;
        self.bias.descend(backend, learning_rate)
    }

    fn forward(&mut self, x: &Buf<M>, labels: &M::Buf<u8>) -> Result<()> {
        let Self { stem, first, second, training: pass, backend, spatial, .. } = self;
        let [_, wide, pooled] = images(pass.count, pass.stem.layout());
        stem.forward(backend, spatial, x, None, &mut pass.stem)?;
        let to = M::view_mut(&mut pass.pooled);
        spatial.mean_pool(wide, POOLS[0], M::view(&pass.stem.y), to)?;
        first.forward(backend, spatial, &pass.pooled, None, &mut pass.first)?;
        let residual = Some(&pass.pooled);
        second.forward(backend, spatial, &pass.first.y, residual, &mut pass.second)?;
        let to = M::view_mut(&mut pass.features);
        spatial.mean_pool(pooled, POOLS[1], M::view(&pass.second.y), to)?;
        let grad = M::view_mut(&mut self.grads.logits);
        classify(&self.backend, [&self.weight, &self.bias], labels, Some(grad), &mut self.training)
    }

    fn backward(&mut self) -> Result<()> {
        let Self { stem, first, second, training: pass, grads, backend, spatial, .. } = self;
        let [_, wide, pooled] = images(pass.count, pass.stem.layout());
        let Grads { logits, features, second: grad_second, first: grad_first, .. } = grads;
        backend.sum_rows(M::view(logits), M::view_mut(&mut self.bias.grad))?;
        backend.matmul(
            [CLASSES, pass.count, CHANNELS],
            Operand::Transposed(M::view(logits)),
            Operand::Plain(M::view(&pass.features)),
            M::view_mut(&mut self.weight.grad),
        )?;
        let (grad, weight) = (M::view(logits), M::view(&self.weight.value));
        let size = [pass.count, CLASSES, CHANNELS];
        let to = M::view_mut(features);
        backend.matmul(size, Operand::Plain(grad), Operand::Plain(weight), to)?;

        let (grad, to) = (M::view(features), M::view_mut(grad_second));
        spatial.mean_pool_backward(pooled, POOLS[1], grad, to)?;
        // The residual's gradient comes first, and that through both units is added to it.
        let residual = Some(&mut grads.pooled);
        let to = Some(To { grad_x: grad_first, accumulate: false });
        second.backward(backend, spatial, grad_second, residual, to, &mut pass.second)?;
        let to = Some(To { grad_x: &mut grads.pooled, accumulate: true });
        first.backward(backend, spatial, grad_first, None, to, &mut pass.first)?;
        let (grad, to) = (M::view(&grads.pooled), M::view_mut(&mut grads.stem));
        spatial.mean_pool_backward(wide, POOLS[0], grad, to)?;
        // Nobody asks for the gradient of the images.
        stem.backward(backend, spatial, &mut grads.stem, None, None, &mut pass.stem)
    }

    /// How the network does on images it was not trained on, by its running statistics.
    pub fn evaluate(&mut self, x: &Buf<M>, labels: &M::Buf<u8>) -> Result<Score> {
        let Self { stem, first, second, evaluation: pass, backend, spatial, .. } = self;
        let [_, wide, pooled] = images(pass.count, pass.stem.layout());
        stem.infer(backend, spatial, x, None, &mut pass.stem)?;
        let to = M::view_mut(&mut pass.pooled);
        spatial.mean_pool(wide, POOLS[0], M::view(&pass.stem.y), to)?;
        first.infer(backend, spatial, &pass.pooled, None, &mut pass.first)?;
        let residual = Some(&pass.pooled);
        second.infer(backend, spatial, &pass.first.y, residual, &mut pass.second)?;
        let to = M::view_mut(&mut pass.features);
        spatial.mean_pool(pooled, POOLS[1], M::view(&pass.second.y), to)?;
        classify(&self.backend, [&self.weight, &self.bias], labels, None, &mut self.evaluation)?;
        score(self.engine.memory(), &self.evaluation)
    }

    /// How it did on the batch of the last step, before that step. Waits for it.
    pub fn trained(&self) -> Result<Score> {
        score(self.engine.memory(), &self.training)
    }

    /// All parameters and running statistics, under names such as `first.conv.weight` and
    /// `first.bn.running_mean`; the same in either layout.
    pub fn state_dict(&self) -> Result<StateDict> {
        let (memory, mut dict) = (self.engine.memory(), StateDict::new());
        let Self { stem, first, second, .. } = self;
        for (name, unit) in [("stem", stem), ("first", first), ("second", second)] {
            unit.save(name, &mut dict)?;
        }
        self.weight.save(memory, "head.weight", &mut dict)?;
        self.bias.save(memory, "head.bias", &mut dict)?;
        Ok(dict)
    }

    /// Takes over what [`state_dict`](Self::state_dict) gave.
    pub fn load_state_dict(&mut self, dict: &StateDict) -> Result<()> {
        let memory = self.engine.memory();
        let Self { stem, first, second, .. } = self;
        for (name, unit) in [("stem", stem), ("first", first), ("second", second)] {
            unit.load(name, dict)?;
        }
        self.weight.load(memory, "head.weight", dict)?;
        self.bias.load(memory, "head.bias", dict)
    }
}

/// From the features to the loss, and to the gradient of the logits where there is a place.
fn classify<M: Memory, B: Backend<Memory = M>>(
    backend: &B,
    [weight, bias]: [&Parameter<M>; 2],
    labels: &M::Buf<u8>,
    grad: Option<M::ViewMut<'_, f32>>,
    pass: &mut Pass<M>,
) -> Result<()> {
    let Pass { count, features, logits, scores, .. } = pass;
    let (x, weight) = (M::view(features), M::view(&weight.value));
    let size = [*count, CHANNELS, CLASSES];
    let to = M::view_mut(logits);
    backend.matmul(size, Operand::Plain(x), Operand::Transposed(weight), to)?;
    backend.add_bias(M::view(&bias.value), M::view_mut(logits))?;
    backend.cross_entropy(M::view(logits), M::view(labels), M::view_mut(scores), grad)
}

fn score<M: Memory>(memory: &M, pass: &Pass<M>) -> Result<Score> {
    let scores = memory.download(M::view(&pass.scores))?;
    let [loss, right] = [f64::from(scores[0]), f64::from(scores[1])];
    Ok(Score { loss, accuracy: right / pass.count as f64 })
}
