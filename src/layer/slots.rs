//! The four vectors of a layer, and the orders and names that other systems have them in.
use super::{BatchNorm, RenormStats};
use crate::{Engine, Error, Initializer, Memory, Real, Result};

/// One of the vectors of a layer, each of length C.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Slot {
    /// What multiplies.
    Weight,
    /// What is added.
    Bias,
    /// The mean for evaluation.
    RunningMean,
    /// The variance for evaluation.
    RunningVar,
    /// Of renormalization, [`RenormStats::moving_stddev`](crate::RenormStats::moving_stddev).
    MovingStddev,
    /// Of renormalization, [`RenormStats::renorm_mean`](crate::RenormStats::renorm_mean).
    RenormMean,
    /// Of renormalization, [`RenormStats::renorm_stddev`](crate::RenormStats::renorm_stddev).
    RenormStddev,
}

/// What a layer with renormalization has behind the four, in whichever order: by Keras' names.
const OF_RENORM: [(Slot, &str); 3] = [
    (Slot::MovingStddev, "moving_stddev"),
    (Slot::RenormMean, "renorm_mean"),
    (Slot::RenormStddev, "renorm_stddev"),
];

/// The order in which a system lists the vectors of a layer, and what it calls them. A layer that lacks
/// one has the others in the same order, as in those systems.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Order, Reference};
/// let mut bn = BatchNorm::<f32, _>::new(&Reference, 2, Config::default())?;
/// // What `layer.get_weights()` gives in Keras.
/// bn.set_values(Order::KERAS, &[&[1.0, 2.0], &[0.5, -0.5], &[0.0, 3.0], &[1.0, 4.0]])?;
/// let of_matlab = bn.values(Order::MATLAB)?;
/// assert_eq!(of_matlab[0], ("Offset", vec![0.5, -0.5]));
/// assert_eq!(of_matlab[1], ("Scale", vec![1.0, 2.0]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// Numbers are taken as they are: [`Order::KERAS1`] names a vector `running_std` that holds variances since
/// version 1.0.7 and deviations before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order([(Slot, &'static str); 4]);

/// In the order weight, bias, mean, variance.
const fn weight_first(names: [&'static str; 4]) -> Order {
    let [weight, bias, mean, var] = names;
    Order([
        (Slot::Weight, weight),
        (Slot::Bias, bias),
        (Slot::RunningMean, mean),
        (Slot::RunningVar, var),
    ])
}

impl Order {
    /// `weight`, `bias`, `running_mean`, `running_var`.
    pub const PYTORCH: Self = weight_first(["weight", "bias", "running_mean", "running_var"]);
    /// `gamma`, `beta`, `moving_mean`, `moving_variance`: Keras 2 and 3, TensorFlow.
    pub const KERAS: Self = weight_first(["gamma", "beta", "moving_mean", "moving_variance"]);
    /// `gamma`, `beta`, `running_mean`, `running_std`: Keras 1.
    pub const KERAS1: Self = weight_first(["gamma", "beta", "running_mean", "running_std"]);
    /// `scale`, `B`, `input_mean`, `input_var`: the inputs of ONNX' operator behind X.
    pub const ONNX: Self = weight_first(["scale", "B", "input_mean", "input_var"]);
    /// `scale`, `bias` of the parameters, `mean`, `var` of the batch statistics.
    pub const FLAX: Self = weight_first(["scale", "bias", "mean", "var"]);
    /// `scale`, `offset`, and the averages of `mean_ema`, `var_ema`.
    pub const HAIKU: Self = weight_first(["scale", "offset", "mean_ema", "var_ema"]);
    /// `gamma`, `beta`, `running_mean`, `running_var`.
    pub const MXNET: Self = weight_first(["gamma", "beta", "running_mean", "running_var"]);
    /// `Scaling`, `Biases`, `MovingMean`, `MovingVariance`.
    pub const WOLFRAM: Self = weight_first(["Scaling", "Biases", "MovingMean", "MovingVariance"]);
    /// `Offset`, `Scale`, `TrainedMean`, `TrainedVariance`: the bias comes first.
    pub const MATLAB: Self = Self([
        (Slot::Bias, "Offset"),
        (Slot::Weight, "Scale"),
        (Slot::RunningMean, "TrainedMean"),
        (Slot::RunningVar, "TrainedVariance"),
    ]);

    /// The vectors and their names, in this order.
    pub const fn entries(&self) -> &[(Slot, &'static str); 4] {
        &self.0
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    fn kept(&self) -> Option<&RenormStats<M, P>> {
        self.running().and_then(|running| running.renorm.as_ref())
    }
    fn kept_mut(&mut self) -> Option<&mut RenormStats<M, P>> {
        self.running_mut().and_then(|running| running.renorm.as_mut())
    }
    /// The memory of a vector, if the layer has it.
    fn slot(&self, slot: Slot) -> Option<&M::Buf<P>> {
        match slot {
            Slot::Weight => self.weight().map(|p| &p.value),
            Slot::Bias => self.bias().map(|p| &p.value),
            Slot::RunningMean => self.running().map(|r| &r.mean),
            Slot::RunningVar => self.running().map(|r| &r.var),
            Slot::MovingStddev => self.kept().map(|r| &r.moving_stddev),
            Slot::RenormMean => self.kept().and_then(|r| r.renorm_mean.as_ref()),
            Slot::RenormStddev => self.kept().and_then(|r| r.renorm_stddev.as_ref()),
        }
    }
    fn write_slot(&mut self, slot: Slot, values: &[P]) -> Result<()> {
        let memory = self.engine().memory().clone();
        let to = match slot {
            Slot::Weight => self.weight_mut().map(|p| &mut p.value),
            Slot::Bias => self.bias_mut().map(|p| &mut p.value),
            Slot::RunningMean => self.running_mut().map(|r| &mut r.mean),
            Slot::RunningVar => self.running_mut().map(|r| &mut r.var),
            Slot::MovingStddev => self.kept_mut().map(|r| &mut r.moving_stddev),
            Slot::RenormMean => self.kept_mut().and_then(|r| r.renorm_mean.as_mut()),
            Slot::RenormStddev => self.kept_mut().and_then(|r| r.renorm_stddev.as_mut()),
        };
        to.map_or(Ok(()), |to| memory.write(values, M::view_mut(to)))
    }

    /// Copies of the layer's vectors on the host, by a system's names and in its order.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn values(&self, order: Order) -> Result<Vec<(&'static str, Vec<P>)>> {
        let all = order.0.into_iter().chain(OF_RENORM);
        let has = all.filter_map(|(slot, name)| Some((name, self.slot(slot)?)));
        let memory = self.engine().memory();
        has.map(|(name, buf)| Ok((name, memory.download(M::view(buf))?))).collect()
    }

    /// Takes over vectors of length C each, in a system's order: as many as the layer has, those of
    /// renormalization behind the others, or as many as it has without renormalization, whose statistics are then
    /// set by mean and variance. The counter of
    /// batches stays.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are not as many, with the names of those that are expected;
    /// [`Error::Length`] by the system's name; the memory's refusal. Everything is checked before the
    /// first write.
    pub fn set_values(&mut self, order: Order, values: &[&[P]]) -> Result<()> {
        self.check_lengths()?;
        let plain = order.0.into_iter();
        let has = |(slot, _): &(Slot, _)| self.slot(*slot).is_some();
        let plain: Vec<_> = plain.filter(has).collect();
        // A plain layer's are taken by one with renormalization, too.
        let is_plain = values.len() == plain.len() && self.kept().is_some();
        let of_renorm = OF_RENORM.into_iter().filter(|_| !is_plain);
        let has: Vec<_> = plain.into_iter().chain(of_renorm.filter(has)).collect();
        if has.len() != values.len() {
            let names: Vec<_> = has.iter().map(|(_, name)| *name).collect();
            let reason = format!(
                "expected the {} of {}, got {}",
                names.len(),
                names.join(", "),
                values.len()
            );
            return Err(Error::invalid("values", reason));
        }
        let expected = self.channels();
        for ((_, what), values) in has.iter().zip(values) {
            if values.len() != expected {
                return Err(Error::Length { what, expected, got: values.len() });
            }
        }
        for ((slot, _), values) in has.iter().zip(values) {
            self.write_slot(*slot, values)?;
        }
        if is_plain {
            let vector = |slot| has.iter().zip(values).find(|((s, _), _)| *s == slot);
            let (mean, var) = (vector(Slot::RunningMean), vector(Slot::RunningVar));
            let (eps, memory) = (self.config().eps, self.engine().memory().clone());
            if let (Some((_, mean)), Some((_, var)), Some(kept)) = (mean, var, self.kept_mut()) {
                kept.take_plain(&memory, eps, mean, var)?;
            }
        }
        Ok(())
    }

    /// Sets a vector to what an initializer gives.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the layer has no such vector, or the initializer's numbers have no
    /// meaning; the memory's refusal.
    pub fn initialize(&mut self, slot: Slot, initializer: &Initializer) -> Result<()> {
        let mut values = initializer.values(self.channels())?;
        self.initialize_with(slot, |_| values.next().unwrap_or_default())
    }

    /// Sets a vector to what a function gives for every channel, from 0 on and in order.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the layer has no such vector; [`Error::Length`] where a buffer was
    /// replaced by one of another length; the memory's refusal.
    pub fn initialize_with(
        &mut self,
        slot: Slot,
        mut value: impl FnMut(usize) -> f64,
    ) -> Result<()> {
        self.check_lengths()?;
        if self.slot(slot).is_none() {
            let reason = format!("expected one that the layer has, got {slot:?}");
            return Err(Error::invalid("slot", reason));
        }
        let values: Vec<P> =
            (0..self.channels()).map(|channel| P::from_f64(value(channel))).collect();
        self.write_slot(slot, &values)
    }
}
