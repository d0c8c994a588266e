//! A layer that learns its number of channels from its first input.
use super::{BatchNorm, Config};
use crate::{Element, Engine, Error, Memory, Real, Result, Saved, Shape};

/// A [`BatchNorm`] whose number of channels comes from the first input, or from a state dict: PyTorch's
/// `LazyBatchNorm1d` to `3d`, MATLAB's `NumChannels` "auto", Wolfram's inferred input.
///
/// Until then it has no parameters and no statistics, and what asks for them fails with
/// [`Error::Uninitialized`]; from then on [`get`](Self::get), [`get_mut`](Self::get_mut) and
/// [`into_inner`](Self::into_inner) give the layer.
///
/// ```
/// # use batchnorm::{Config, Error, LazyBatchNorm, Reference, Shape};
/// # fn main() -> batchnorm::Result<()> {
/// let mut lazy = LazyBatchNorm::<f32, _>::new(&Reference, Config::default())?;
/// assert!(matches!(lazy.get(), Err(Error::Uninitialized)));
/// let (_y, _saved) = lazy.forward(&Shape::new(&[2, 3], 1)?, &[1f32; 6])?;
/// let bn = lazy.into_inner()?;
/// assert_eq!(bn.channels(), 3);
/// # Ok(())
/// # }
/// ```
pub struct LazyBatchNorm<P: Real, G: Engine> {
    pub(super) engine: G,
    pub(super) config: Config,
    layer: Option<BatchNorm<P, G>>,
    training: bool,
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> LazyBatchNorm<P, G> {
    /// A layer without channels yet, in training.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the configuration has numbers without a meaning, as in [`BatchNorm::new`].
    pub fn new(engine: &G, config: Config) -> Result<Self> {
        config.check::<P>()?;
        Ok(Self { engine: engine.clone(), config, layer: None, training: true })
    }

    /// How the layer behaves, or will.
    pub fn config(&self) -> &Config {
        self.layer.as_ref().map_or(&self.config, BatchNorm::config)
    }
    /// Whether the number of channels is known.
    pub fn is_initialized(&self) -> bool {
        self.layer.is_some()
    }
    /// The layer.
    ///
    /// # Errors
    /// [`Error::Uninitialized`].
    pub fn get(&self) -> Result<&BatchNorm<P, G>> {
        self.layer.as_ref().ok_or(Error::Uninitialized)
    }
    /// The layer, to change it: its backward, its parameters.
    ///
    /// # Errors
    /// [`Error::Uninitialized`].
    pub fn get_mut(&mut self) -> Result<&mut BatchNorm<P, G>> {
        self.layer.as_mut().ok_or(Error::Uninitialized)
    }
    /// The layer, lazy no longer.
    ///
    /// # Errors
    /// [`Error::Uninitialized`].
    pub fn into_inner(self) -> Result<BatchNorm<P, G>> {
        self.layer.ok_or(Error::Uninitialized)
    }
    /// The layer, made for so many channels if it is not there yet, in the mode that was set. One that is
    /// there keeps its channels, whatever their number.
    ///
    /// # Errors
    /// As [`BatchNorm::new`].
    pub fn initialize(&mut self, channels: usize) -> Result<&mut BatchNorm<P, G>> {
        let layer = match self.layer.take() {
            Some(layer) => layer,
            None => {
                let mut layer = BatchNorm::new(&self.engine, channels, self.config)?;
                layer.train(self.training);
                layer
            }
        };
        Ok(self.layer.insert(layer))
    }

    /// From now on training (true) or evaluation (false), the layer that is to come included.
    pub fn train(&mut self, training: bool) {
        self.training = training;
        self.layer.iter_mut().for_each(|layer| layer.train(training));
    }
    /// From now on evaluation.
    pub fn eval(&mut self) {
        self.train(false);
    }
    /// Whether the layer is in training, or will be.
    pub fn is_training(&self) -> bool {
        self.layer.as_ref().map_or(self.training, BatchNorm::is_training)
    }

    /// As [`BatchNorm::forward`] (`x` of length N, the shape's number of elements); the first one takes the
    /// number of channels from `shape`. One that fails leaves the layer without channels, if it had none.
    ///
    /// # Errors
    /// As [`BatchNorm::forward`].
    #[allow(clippy::type_complexity)] // as there
    pub fn forward<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        self.or_undo(shape.channels(), |layer| layer.forward(shape, x))
    }

    /// Does it on the layer, made for so many channels where there is none: one that is new goes again
    /// where that fails.
    pub(super) fn or_undo<T>(
        &mut self,
        channels: usize,
        act: impl FnOnce(&mut BatchNorm<P, G>) -> Result<T>,
    ) -> Result<T> {
        let is_new = !self.is_initialized();
        let done = self.initialize(channels).and_then(act);
        if is_new && done.is_err() {
            self.layer = None;
        }
        done
    }
}

/// As the layer displays, `?` for the channels until they are known.
impl<P: Real, G: Engine> std::fmt::Display for LazyBatchNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.layer {
            Some(layer) => layer.fmt(f),
            None => write!(f, "LazyBatchNorm(?, {})", self.config),
        }
    }
}

/// As it displays, with the type of the parameters and the engine.
impl<P: Real, G: Engine> std::fmt::Debug for LazyBatchNorm<P, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self} with {} parameters on {}", P::DTYPE, self.engine.name())
    }
}
