//! The statistics of a whole data set, gathered after training.
use super::{BatchNorm, RunningStats};
use crate::memory::filled;
use crate::{Element, Engine, Error, Memory, MergeStats, Real, Result, Running, Shape, Stats};

/// What the statistics of a population are, from those of its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum PopulationRule {
    /// Mean and biased variance of all values, however they were batched: merged by Chan's formula, each
    /// batch weighed by its number of values. fvcore's `update_bn_stats` computes the same number from
    /// means of squares, in f32, where it loses digits to a large mean.
    #[default]
    Exact,
    /// The same with the unbiased variance, over one value less.
    ExactUnbiased,
    /// The mean of the batches' means, and that of their unbiased variances, each batch weighing the
    /// same: `torch.optim.swa_utils.update_bn`. What lies between the batches' means is no part of that
    /// variance.
    UpdateBn,
}

impl PopulationRule {
    /// fvcore's `update_bn_stats`: the same numbers as [`Exact`](Self::Exact).
    pub const FVCORE: Self = Self::Exact;
    /// `exact`, `exact_unbiased`, `update_bn`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::ExactUnbiased => "exact_unbiased",
            Self::UpdateBn => "update_bn",
        }
    }
}

/// Mean and variance of every channel over a whole data set, for inference: what is gathered in a pass
/// over it after training, and what [`apply_to`](Self::apply_to) gives a layer in place of the running
/// statistics.
///
/// On a device a batch is added there: nothing is read back until the end. Parts of a data set that
/// several processes have gone through are [merged](Self::merge).
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Cpu, PopulationRule, PopulationStatistics, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let engine = Cpu::default();
/// let mut bn = BatchNorm::<f32, _>::new(&engine, 1, Config::default())?;
/// let mut population = PopulationStatistics::new(&engine, 1, PopulationRule::Exact)?;
/// population.add(&engine, &Shape::new(&[2, 1], 1)?, &[1f32, 3.0])?;
/// population.add(&engine, &Shape::new(&[1, 1], 1)?, &[8f32])?;
/// population.apply_to(&mut bn)?;
/// let running = bn.running().unwrap();
/// assert_eq!((running.mean[0], running.num_batches_tracked), (4.0, 2));
/// assert!((running.var[0] - (9.0 + 1.0 + 16.0) / 3.0).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
///
/// # Networks
/// What a layer behind another one is given depends on how that one normalizes meanwhile. *In one pass* all
/// layers normalize by the batch, and each adds its input: forwards in training, [`add`](Self::add) before
/// each, [`apply_to`](Self::apply_to) at the end. *In order* a layer's statistics are applied, and the layer
/// set to evaluation, before the next one's are gathered in a pass of its own: as many passes as layers, and
/// exactly what each layer is given in inference. The example `train --statistics population` does so.
pub struct PopulationStatistics<M: Memory> {
    memory: M,
    channels: usize,
    rule: PopulationRule,
    gathered: Gathered<M>,
    /// Values per channel, and batches, of what was added.
    values: u64,
    batches: u64,
}

/// What lies in the engine's memory.
enum Gathered<M: Memory> {
    /// Two records in each, `2 * (3C + 1)` elements: what was gathered so far, and a batch. They are merged
    /// into the other one's first half, so that nothing is copied.
    Records { now: M::Buf<f64>, next: M::Buf<f64> },
    /// The averages so far, a batch's record, and where a merge of that one alone is written (3C + 1
    /// elements each).
    Averages { running: RunningStats<M, f64>, batch: M::Buf<f64>, merged: M::Buf<f64> },
}

/// A population's statistics on the host.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Population {
    /// Length C.
    pub mean: Vec<f64>,
    /// Length C, by the rule.
    pub var: Vec<f64>,
    /// Values per channel.
    pub values: u64,
    /// Batches with values.
    pub batches: u64,
}

/// How far a population has been gathered: for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Batches added so far.
    pub batches: u64,
    /// Values per channel in them.
    pub values: u64,
}

const fn record_len(channels: usize) -> usize {
    channels.saturating_mul(3).saturating_add(1)
}

impl<M: Memory> PopulationStatistics<M> {
    /// Of nothing yet, for so many channels, in this engine's memory.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are no channels; the memory's refusal.
    pub fn new<G: Engine<Memory = M>>(
        engine: &G,
        channels: usize,
        rule: PopulationRule,
    ) -> Result<Self> {
        if channels == 0 {
            return Err(Error::invalid("channels", "expected at least 1, got 0"));
        }
        let memory = engine.memory().clone();
        let record = record_len(channels);
        let gathered = match rule {
            PopulationRule::Exact | PopulationRule::ExactUnbiased => Gathered::Records {
                now: memory.zeros(record.saturating_mul(2))?,
                next: memory.zeros(record.saturating_mul(2))?,
            },
            PopulationRule::UpdateBn => Gathered::Averages {
                running: RunningStats::new(&memory, channels)?,
                batch: memory.zeros(record)?,
                merged: memory.zeros(record)?,
            },
        };
        Ok(Self { memory, channels, rule, gathered, values: 0, batches: 0 })
    }

    /// The rule.
    pub fn rule(&self) -> PopulationRule {
        self.rule
    }
    /// How much was added so far.
    pub fn progress(&self) -> Progress {
        Progress { batches: self.batches, values: self.values }
    }

    /// Adds a batch: `x` (length N) is what a layer is given. One without elements changes nothing.
    ///
    /// # Errors
    /// [`Error::Length`] where the shape has another number of channels or x is not as long as it says;
    /// [`Error::Invalid`] by [`PopulationRule::UpdateBn`] where a batch has one value per channel, which has
    /// no unbiased variance; [`Error::Unsupported`] by an engine that has no statistics by themselves, such
    /// as `Cudnn`.
    pub fn add<E: Element, G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<()> {
        if shape.channels() != self.channels {
            let (expected, got) = (self.channels, shape.channels());
            return Err(Error::Length { what: "channels", expected, got });
        }
        let (m, record) = (shape.per_channel(), record_len(self.channels));
        match &mut self.gathered {
            Gathered::Records { now, .. } => {
                {
                    let to = if self.values == 0 { 0..record } else { record..2 * record };
                    let mut now = M::view_mut(now);
                    let to = M::slice_mut(&mut now, to).ok_or_else(broken)?;
                    engine.stats(shape, Stats::<M, E>::new(M::reborrow(&x), to))?;
                }
                if self.values > 0 && m > 0 {
                    self.merge_records(engine, m as u64)?;
                }
            }
            Gathered::Averages { running, batch, merged } => {
                if m == 1 {
                    let reason = "update_bn needs more than 1 value per channel, got 1";
                    return Err(Error::invalid("shape", reason));
                }
                engine.stats(shape, Stats::<M, E>::new(M::reborrow(&x), M::view_mut(batch)))?;
                if m > 0 {
                    let factor = 1.0 / (self.batches as f64 + 1.0);
                    let (mean, var) =
                        (M::view_mut(&mut running.mean), M::view_mut(&mut running.var));
                    let mut args =
                        MergeStats::<M, f64>::new(M::view(batch), M::view_mut(merged)).known(m);
                    args.running = Some(Running::new(mean, var, factor));
                    engine.merge_stats(args)?;
                }
            }
        }
        if m > 0 {
            self.values += m as u64;
            self.batches += 1;
        }
        Ok(())
    }

    /// Adds every batch of a data set, and says after each how many there were.
    ///
    /// # Errors
    /// As [`add`](Self::add); the batches before stay added.
    pub fn add_all<E: Element, G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        batches: impl IntoIterator<Item = (Shape, M::Buf<E>)>,
        mut progress: impl FnMut(Progress),
    ) -> Result<()> {
        for (shape, x) in batches {
            self.add::<E, G>(engine, &shape, M::view(&x))?;
            progress(self.progress());
        }
        Ok(())
    }

    /// What was gathered so far and the record behind it become the record of both.
    fn merge_records<G: Engine<Memory = M>>(&mut self, engine: &G, added: u64) -> Result<()> {
        let Gathered::Records { now, next } = &mut self.gathered else { return Err(broken()) };
        let known = usize::try_from(self.values + added).unwrap_or(usize::MAX);
        {
            let mut to = M::view_mut(next);
            let to = M::slice_mut(&mut to, 0..record_len(self.channels)).ok_or_else(broken)?;
            engine.merge_stats(MergeStats::<M, f64>::new(M::view(now), to).known(known))?;
        }
        std::mem::swap(now, next);
        Ok(())
    }

    /// What was gathered, for another process to [`merge`](Self::merge): every channel's mean, what rounding
    /// left of it, every channel's variance, and what these weigh; 3C + 1 numbers. A record of
    /// [`Engine::stats`] by the exact rules, whose weight is the number of values; averages by
    /// [`PopulationRule::UpdateBn`], whose weight is the number of batches. The last but one number is the
    /// batches, the last the values: 3C + 3 in all.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn to_record(&self) -> Result<Vec<f64>> {
        let c = self.channels;
        let mut record = match &self.gathered {
            Gathered::Records { now, .. } => {
                let mut both = self.memory.download(M::view(now))?;
                both.truncate(record_len(c));
                both
            }
            Gathered::Averages { running, .. } => {
                let mean = self.memory.download(M::view(&running.mean))?;
                let var = self.memory.download(M::view(&running.var))?;
                [mean, filled(c, 0.0)?, var, vec![self.batches as f64]].concat()
            }
        };
        record.extend([self.batches as f64, self.values as f64]);
        Ok(record)
    }

    /// Adds what another process has gathered by the same rule, as [`to_record`](Self::to_record) gave it.
    ///
    /// # Errors
    /// [`Error::Length`]; [`Error::Invalid`] where its counts are none; the memory's refusal.
    pub fn merge<G: Engine<Memory = M>>(&mut self, engine: &G, record: &[f64]) -> Result<()> {
        let len = record_len(self.channels);
        if record.len() != len + 2 {
            return Err(Error::Length { what: "record", expected: len + 2, got: record.len() });
        }
        let [weight, batches, values] = [len - 1, len, len + 1].map(|at| record[at]);
        let is_exact = self.rule != PopulationRule::UpdateBn;
        let counted = |n: f64| n >= 0.0 && n.fract() == 0.0 && n <= 2f64.powi(53);
        let expected = if is_exact { values } else { batches };
        if !(counted(batches) && counted(values) && batches <= values && weight == expected) {
            let reason = format!(
                "expected one by the rule {}, with a weight of {expected} and as many batches as values \
                 or fewer, got a weight of {weight}, {batches} batches and {values} values",
                self.rule.name()
            );
            return Err(Error::invalid("record", reason));
        }
        if weight == 0.0 {
            return Ok(());
        }
        let (batches, values) = (batches as u64, values as u64);
        match &mut self.gathered {
            Gathered::Records { now, .. } => {
                {
                    let to = if self.values == 0 { 0..len } else { len..2 * len };
                    let mut now = M::view_mut(now);
                    let to = M::slice_mut(&mut now, to).ok_or_else(broken)?;
                    self.memory.write(&record[..len], to)?;
                }
                if self.values > 0 {
                    self.merge_records(engine, values)?;
                }
            }
            Gathered::Averages { running, .. } => {
                let share = weight / (self.batches as f64 + weight);
                let c = self.channels;
                let pairs = [(&mut running.mean, 0..c), (&mut running.var, 2 * c..3 * c)];
                for (to, of) in pairs {
                    let before = self.memory.download(M::view(to))?;
                    let both = before.iter().zip(&record[of]);
                    let both: Vec<f64> = match self.batches {
                        0 => both.map(|(_, new)| *new).collect(),
                        _ => both.map(|(old, new)| (1.0 - share) * old + share * new).collect(),
                    };
                    self.memory.write(&both, M::view_mut(to))?;
                }
            }
        }
        self.values += values;
        self.batches += batches;
        Ok(())
    }

    /// Mean and variance by the rule: waits for the device, where there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where nothing was added, or one value per channel has no unbiased variance; the
    /// memory's refusal.
    pub fn finish(&self) -> Result<Population> {
        if self.values == 0 {
            return Err(Error::invalid("population", "expected at least 1 batch, got none"));
        }
        let record = self.to_record()?;
        let c = self.channels;
        let (mean, var) = (&record[..c], &record[2 * c..3 * c]);
        let m = self.values as f64;
        let scale = match self.rule {
            PopulationRule::ExactUnbiased if self.values == 1 => {
                let reason = "an unbiased variance needs more than 1 value per channel, got 1";
                return Err(Error::invalid("population", reason));
            }
            PopulationRule::ExactUnbiased => m / (m - 1.0),
            PopulationRule::Exact | PopulationRule::UpdateBn => 1.0,
        };
        Ok(Population {
            mean: mean.to_vec(),
            var: var.iter().map(|var| var * scale).collect(),
            values: self.values,
            batches: self.batches,
        })
    }

    /// Gives a layer these statistics as its running ones, and the number of batches as its counter; the
    /// layer may lie on another engine.
    ///
    /// # Errors
    /// As [`finish`](Self::finish); [`Error::Length`] where the layer has another number of channels;
    /// [`Error::Invalid`] where it keeps no running statistics.
    pub fn apply_to<P: Real, G: Engine>(&self, bn: &mut BatchNorm<P, G>) -> Result<()> {
        let (expected, got) = (self.channels, bn.channels());
        if expected != got {
            return Err(Error::Length { what: "channels", expected, got });
        }
        bn.check_lengths()?;
        let (memory, eps) = (bn.engine().memory().clone(), bn.config().eps);
        let Some(running) = bn.running_mut() else {
            let reason = "expected a layer that keeps some, got one without";
            return Err(Error::invalid("running statistics", reason));
        };
        let Population { mean, var, batches, .. } = self.finish()?;
        let narrow = |values: Vec<f64>| values.into_iter().map(P::from_f64).collect::<Vec<P>>();
        let (mean, var) = (narrow(mean), narrow(var));
        memory.write(&mean, G::Memory::view_mut(&mut running.mean))?;
        memory.write(&var, G::Memory::view_mut(&mut running.var))?;
        if let Some(kept) = &mut running.renorm {
            kept.take_plain(&memory, eps, &mean, &var)?;
        }
        running.num_batches_tracked = batches;
        Ok(())
    }
}

/// What the lengths of its own buffers rule out.
fn broken() -> Error {
    Error::invalid("population", "expected records of 3C + 1 elements, got fewer")
}

impl<M: Memory> std::fmt::Debug for PopulationStatistics<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("PopulationStatistics");
        debug.field("channels", &self.channels).field("rule", &self.rule);
        debug.field("values", &self.values).field("batches", &self.batches).finish_non_exhaustive()
    }
}
