//! What the regularizers of a layer's parameters add to gradients and loss.
use super::{BatchNorm, affine::Affine};
use crate::{Engine, Error, Memory, Real, Result};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Adds the gradients of the parameters' regularizers to their gradients, and writes what these add to
    /// the loss to `loss` (length 1), where that is given. To be called once for each step, between the
    /// backward and the optimizer. The regularizer of a frozen parameter does not count, as in Keras 3.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Reference, Regularizer};
    /// let mut bn = BatchNorm::<f64, _>::new(&Reference, 2, Config::default())?;
    /// bn.weight_mut().unwrap().regularizer = Regularizer::new(0.0, 0.5);
    /// let mut loss = [0.0];
    /// bn.regularize(Some(&mut loss))?; // the weight is 1
    /// assert_eq!((loss[0], bn.weight().unwrap().grad()), (1.0, Some(&vec![1.0; 2])));
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] where a factor of a regularizer is not a finite number from 0 on;
    /// [`Error::Length`]; the memory's refusal. All of it is checked before anything is written.
    pub fn regularize(&mut self, loss: Option<M::ViewMut<'_, f64>>) -> Result<()> {
        self.check_regularizers()?;
        let Affine { engine, weight, bias, .. } = &mut self.affine;
        let mut loss = loss;
        if let Some(loss) = &loss {
            let got = M::len(&M::as_view(loss));
            if got != 1 {
                return Err(Error::Length { what: "loss", expected: 1, got });
            }
            engine.memory().check_here("loss", &M::as_view(loss))?;
        }
        let mut counted = false;
        for param in [weight, bias].into_iter().flatten() {
            counted |= param.regularize(engine, loss.as_mut().map(M::reborrow_mut), counted)?;
        }
        match loss {
            Some(loss) if !counted => engine.memory().zero(loss),
            _ => Ok(()),
        }
    }
    /// What the parameters' regularizers add to the loss: waits for the device, where there is one.
    ///
    /// # Errors
    /// As [`regularize`](Self::regularize).
    pub fn regularization_loss(&self) -> Result<f64> {
        self.check_regularizers()?;
        let memory = self.engine().memory();
        let mut loss = memory.zeros(1)?;
        for (_, param) in self.named_parameters() {
            param.penalty(self.engine(), M::view_mut(&mut loss))?;
        }
        Ok(memory.download(M::view(&loss))?[0])
    }
    fn check_regularizers(&self) -> Result<()> {
        self.named_parameters().try_for_each(|(name, param)| {
            param.check(name, self.channels())?;
            self.engine().memory().check_here(name, &M::view(&param.value))?;
            param.regularizer.check()
        })
    }
}
