//! A layer whose output the caller keeps: no engine copies it.
use super::BatchNorm;
use crate::{Element, Engine, Input, Memory, Real, Result, Saved, Shape};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// As [`forward`](Self::forward), for a caller who keeps y as it is and gives it to
    /// [`backward_with_y`](Self::backward_with_y), as a network does whose next layer keeps its input. `Cudnn` then
    /// copies no y behind a ReLU, which saves a read and a write of the tensor, and as much memory; other engines have no
    /// use for it, and compute the same. Ghost batches, renormalization and evaluation by running statistics
    /// make their copy all the same, where they need one.
    ///
    /// ```
    /// # use batchnorm::{Activation, BatchNorm, Config, Cpu, Shape};
    /// let (shape, x) = (Shape::new(&[4, 1], 1)?, [1f32, 2.0, 4.0, 8.0]);
    /// let config = Config::default().activation(Activation::Relu);
    /// let mut bn = BatchNorm::new(&Cpu::default(), 1, config)?;
    /// let (y, saved) = bn.forward_keeping_y(&shape, &x)?;
    /// let grad_x = bn.backward_with_y(&saved, &x, &y, &[1.0; 4])?;
    /// # assert_eq!(grad_x.len(), 4);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_keeping_y<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        let lens = self.check_lens(shape, &[("x", M::len(&x))]);
        let y = lens.and_then(|()| self.unwritten(shape));
        let (mut y, mut saved) = (self.or_decline(y)?, Saved::new());
        self.forward_keeping_y_into(shape, x, None, M::view_mut(&mut y), &mut saved)?;
        Ok((y, saved))
    }

    /// The same into memory that is there, with a residual or without: see
    /// [`forward_into`](Self::forward_into).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_keeping_y_into<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        y: M::ViewMut<'_, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let by_batch = self.training || self.running.is_none();
        let config = &self.affine.config;
        if by_batch && config.ghost.is_none() && config.renorm.is_none() {
            return self.forward_whole(shape, x, residual, None, y, true, saved);
        }
        self.forward_into(shape, x, residual, y, saved)
    }

    /// The gradients after [`forward_keeping_y`](Self::forward_keeping_y): that of x comes back, those of weight
    /// and bias are added to the parameters'. `y` (length N) is that of the forward, unchanged: nothing can tell. After
    /// other forwards it is not read.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with_y<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        y: M::View<'_, E>,
        grad_y: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        let shape = saved.forward()?.shape;
        let lens = [("x", M::len(&x)), ("y", M::len(&y)), ("grad_y", M::len(&grad_y))];
        let lens = self.check_lens(&shape, &lens);
        let grad_x = lens.and_then(|()| self.unwritten(&shape));
        let mut grad_x = self.affine.or_decline(saved, grad_x)?;
        let to_x = Some(M::view_mut(&mut grad_x));
        self.backward_with_y_into(saved, x, y, None, Input::View(grad_y), to_x, None)?;
        Ok(grad_x)
    }

    /// The same into memory that is there: see [`backward_into`](Self::backward_into).
    ///
    /// # Errors
    /// As [`backward_into`](Self::backward_into).
    #[allow(clippy::too_many_arguments)] // an operation's
    pub fn backward_with_y_into<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        y: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        grad_y: Input<M::View<'_, E>>,
        grad_x: Option<M::ViewMut<'_, E>>,
        grad_residual: Option<M::ViewMut<'_, E>>,
    ) -> Result<()> {
        if saved.groups().is_some() || saved.renormalized().is_some() {
            return self.backward_into(saved, x, residual, grad_y, grad_x, grad_residual);
        }
        let y = Some(y);
        self.affine.backward(saved, x, residual, None, y, grad_y, grad_x, grad_residual)
    }
}
