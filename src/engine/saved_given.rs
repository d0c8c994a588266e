//! A [`Saved`] from statistics that somebody else kept.
use super::{Activation, Op, Request};
use crate::{Element, Engine, Error, Memory, Real, Result, Saved, Shape};

/// What a forward would have saved: statistics that a framework kept instead of a [`Saved`]. C is the number of
/// channels.
///
/// For a backward that is given x, the parameters and the statistics, and nothing of the forward else. The mean
/// is what was kept of it, rounded to the parameters' type: where it is large beside the deviation, gradients
/// lose the digits that a [`Saved`] of a forward keeps.
///
/// ```
/// # use batchnorm::{Backward, Cpu, Engine, GivenStatistics, Host, Saved, Shape};
/// let (shape, x, grad_y) = (Shape::new(&[4, 1], 1)?, [1f32, 3.0, 5.0, 7.0], [1f32, 0.0, 0.0, 0.0]);
/// let given = GivenStatistics::<Host, f32>::new(&[4.0], &[0.447_213_6]); // 1 / sqrt(5)
/// let (mut saved, mut grad_x) = (Saved::new(), [0.0; 4]);
/// saved.fill_from::<f32, _>(&Cpu::default(), &shape, given)?;
/// let args = Backward::<Host, f32>::new(&saved, &x, &grad_y).grad_x(&mut grad_x);
/// Cpu::default().backward(&shape, args)?;
/// assert!((grad_x[0] - 0.3 * 0.447_213_6).abs() < 1e-6);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct GivenStatistics<'a, M: Memory, P: Real> {
    /// What the forward subtracted, length C.
    pub mean: M::View<'a, P>,
    /// What it multiplied by, `1 / sqrt(var + eps)` of the biased variance, length C.
    pub invstd: M::View<'a, P>,
    /// Length C; ones if absent, and the backward gives no gradient of it then.
    pub weight: Option<M::View<'a, P>>,
    /// Length C; zeros if absent, and the backward gives no gradient of it then.
    pub bias: Option<M::View<'a, P>>,
    /// What followed.
    pub activation: Activation,
    /// Whether a residual was added before that.
    pub residual: bool,
    /// Whether the statistics were given, as in evaluation, and not the batch's own.
    pub frozen: bool,
}

impl<'a, M: Memory, P: Real> GivenStatistics<'a, M, P> {
    /// Mean and 1 / sqrt(var + eps), length C each, of the batch itself; without weight, bias and activation.
    pub fn new(mean: M::View<'a, P>, invstd: M::View<'a, P>) -> Self {
        let activation = Activation::Identity;
        Self { mean, invstd, weight: None, bias: None, activation, residual: false, frozen: false }
    }
    /// With this weight.
    pub fn weight(self, weight: M::View<'a, P>) -> Self {
        Self { weight: Some(weight), ..self }
    }
    /// With this bias.
    pub fn bias(self, bias: M::View<'a, P>) -> Self {
        Self { bias: Some(bias), ..self }
    }
    /// With this activation behind the normalization.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }
    /// With a residual, added before the activation.
    pub fn residual(self, residual: bool) -> Self {
        Self { residual, ..self }
    }
    /// With statistics that were given, so that no gradient flows through them; or with the batch's own, which
    /// are those of all ranks' batches where the engine is [`Synced`](crate::Synced).
    pub fn frozen(self, frozen: bool) -> Self {
        Self { frozen, ..self }
    }
}

impl<M: Memory, P: Real> Saved<M, P> {
    /// Fills this as a forward of `E` would have that had these statistics; memory is used
    /// again. On a device it is copies on the engine's stream.
    ///
    /// # Errors
    /// [`Error::Length`] of an array that is not of length C, [`Error::Invalid`] of memory elsewhere,
    /// [`Error::Unsupported`] of an engine that serves no such backward, or whose backward needs more than
    /// statistics; the memory's.
    pub fn fill_from<E: Element<Acc = P>, G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        shape: &Shape,
        given: GivenStatistics<'_, M, P>,
    ) -> Result<()> {
        let GivenStatistics { mean, invstd, weight, bias, activation, residual, frozen } = given;
        let op = if frozen { Op::ForwardEval } else { Op::ForwardTrain };
        let request =
            Request::new(op, E::DTYPE).activation(activation).residual(residual).saves(true);
        activation.check()?;
        engine.supports(shape, request)?;
        if engine.reserve_len(shape, request) > 0 {
            let reason = format!(
                "the backward of {}{} takes more than statistics: expected what a forward saved",
                activation.name(),
                if residual { " behind a residual" } else { "" }
            );
            return Err(Error::Unsupported { engine: engine.name(), reason });
        }
        let (memory, channels) = (engine.memory(), shape.channels());
        let named = [("mean", Some(&mean)), ("invstd", Some(&invstd))];
        for (what, view) in
            named.into_iter().chain([("weight", weight.as_ref()), ("bias", bias.as_ref())])
        {
            let Some(view) = view else { continue };
            if M::len(view) != channels {
                return Err(Error::Length { what, expected: channels, got: M::len(view) });
            }
            memory.check_here(what, view)?;
        }
        let ones = match weight {
            Some(_) => None,
            None => Some(memory.upload(&vec![P::from_f64(1.0); channels])?),
        };
        let mut forward = super::ops::forward_of(
            engine,
            shape,
            request,
            (weight.is_some(), bias.is_some()),
            None,
        );
        if engine.ranks() > 1 && !frozen {
            (forward.batch_statistics, forward.synced) = (false, true);
        }
        let opened = self.open(memory, forward, 0)?;
        let buffers = &mut *opened.buffers;
        buffers.set(memory, 0, Some(mean))?;
        buffers.set(memory, 1, None)?;
        buffers.set(memory, 2, Some(invstd))?;
        match &ones {
            Some(ones) => buffers.set(memory, 3, Some(M::view(ones)))?,
            None => buffers.set(memory, 3, weight)?,
        }
        buffers.set(memory, 4, bias)?;
        opened.filled();
        Ok(())
    }
}
