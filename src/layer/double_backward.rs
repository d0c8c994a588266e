//! The gradients of a backward, through a layer.
use super::{BatchNorm, Param};
use crate::{DoubleBackward, Element, Engine, Error, Memory, Real, Result, Saved, Shape};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// The gradients of [`backward`](Self::backward) for a loss that is made of its `grad_x`, as a gradient penalty
    /// is: from `v_x`, the gradient of that loss with respect to `grad_x`, those with respect to `grad_y`
    /// and to x, in new memory. All have length N, the number of elements of the forward's shape. The
    /// parameters' are added to [`Param::grad`], where the backward has left its own.
    ///
    /// A critic's loss `f(x) + (|df/dx| - 1)^2` takes four walks through a network: forward; backward, which
    /// gives `df/dx` in the end; this, from the input on, as the gradient with respect to `grad_y` is the next
    /// layer's `v_x`; and a second backward with what it has left for every x.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Cpu, Shape};
    /// # fn main() -> batchnorm::Result<()> {
    /// let mut bn = BatchNorm::new(&Cpu::default(), 2, Config::default())?;
    /// let (shape, x) = (Shape::new(&[3, 2], 1)?, [1f32, 5., 2., 3., 4., 4.]);
    /// let (y, saved) = bn.forward(&shape, &x)?;
    /// // The critic: the sum of the cubes of y.
    /// let grad_y: Vec<f32> = y.iter().map(|y| 3. * y * y).collect();
    /// let grad_x = bn.backward(&saved, &x, &grad_y)?;
    /// bn.zero_grad(); // of the penalty alone
    /// // The penalty: (|grad_x| - 1)^2, and its gradient with respect to grad_x.
    /// let norm = grad_x.iter().map(|g| g * g).sum::<f32>().sqrt();
    /// let v_x: Vec<f32> = grad_x.iter().map(|g| 2. * (norm - 1.) * g / norm).collect();
    /// let (gg_grad_y, mut gg_x) = bn.double_backward(&saved, &x, &grad_y, &v_x)?;
    /// // grad_y is made of y, whose gradient goes the usual way.
    /// let to_y: Vec<f32> = gg_grad_y.iter().zip(&y).map(|(v, y)| v * 6. * y).collect();
    /// let through_y = bn.backward(&saved, &x, &to_y)?;
    /// gg_x.iter_mut().zip(&through_y).for_each(|(x, y)| *x += y); // the penalty's gradient
    /// let weight = bn.weight().and_then(|weight| weight.grad()); // and the weight's
    /// # assert!(weight.is_some_and(|grad| grad.iter().all(|g| g.is_finite())));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// After renormalization r and d are constants, as in the backward. Of ghost batches each group's gradients go
    /// through its own statistics: calls for each, but for those that are channels of one tensor ([`Ghost`](crate::Ghost));
    /// strided ones of calls for every row take two passes over x. A mask goes with all of them, by
    /// [`double_backward_masked`](Self::double_backward_masked).
    ///
    /// There is no third order: [`DoubleBackward::create_graph`] is refused. Nor is there a form for the lists of
    /// [`forward_parts`](Self::forward_parts).
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::Unsupported`] by the engine, as cuDNN has no such
    /// call.
    #[allow(clippy::type_complexity)] // two tensors
    pub fn double_backward<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        grad_y: M::View<'_, E>,
        v_x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, M::Buf<E>)> {
        self.double_backward_owned(saved, x, None, grad_y, v_x)
    }

    /// The same after [`forward_masked`](Self::forward_masked), whose mask's `places` are asked for again, as x is.
    /// Values that do not count are normalized by the statistics all the same: what flows through those reaches the
    /// values that count.
    ///
    /// # Errors
    /// As [`double_backward`](Self::double_backward); [`Error::Length`] and [`Error::Invalid`] of the mask.
    #[allow(clippy::type_complexity)] // two tensors
    pub fn double_backward_masked<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        places: M::View<'_, u8>,
        grad_y: M::View<'_, E>,
        v_x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, M::Buf<E>)> {
        let places = Some(places).filter(|_| saved.is_masked() == Some(true));
        self.double_backward_owned(saved, x, places, grad_y, v_x)
    }

    #[allow(clippy::type_complexity)] // two tensors
    fn double_backward_owned<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        places: Option<M::View<'_, u8>>,
        grad_y: M::View<'_, E>,
        v_x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, M::Buf<E>)> {
        let shape = saved.forward()?.shape;
        let lens = [("x", M::len(&x)), ("grad_y", M::len(&grad_y)), ("v_x", M::len(&v_x))];
        let made = self.check_lens(&shape, &lens);
        let made = made.and_then(|()| Ok((self.unwritten(&shape)?, self.unwritten(&shape)?)));
        let (mut gg_grad_y, mut gg_x) = self.affine.or_decline(saved, made)?;
        let mut args = DoubleBackward::new(saved, M::reborrow(&x), M::reborrow(&grad_y));
        args.mask = places.as_ref().map(M::reborrow);
        self.double_backward_into(
            args.v_x(M::reborrow(&v_x))
                .gg_grad_y(M::view_mut(&mut gg_grad_y))
                .gg_x(M::view_mut(&mut gg_x)),
        )?;
        Ok((gg_grad_y, gg_x))
    }

    /// As [`double_backward`](Self::double_backward), from all that arguments of the engine's operation have,
    /// into their memory: residuals, and losses that are made of the parameters' gradients too. The
    /// parameters' go to [`Param::grad`] here too. Allocates nothing.
    ///
    /// # Errors
    /// As [`double_backward`](Self::double_backward); [`Error::Invalid`] where a `gg_weight` or `gg_bias` is
    /// given, and where a derivative takes a residual and none came; [`Error::Unsupported`] for a `v_weight`
    /// after renormalization.
    pub fn double_backward_into<E: Element<Acc = P>>(
        &mut self,
        args: DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let mut args = args;
        let saved = args.saved;
        let forward = saved.forward()?;
        let checked = self.check_double_backward(&args);
        self.affine.or_decline(saved, checked)?;
        if let Some(factors) = saved.renormalized() {
            return self.double_backward_renormalized(factors, args.reborrow());
        }
        match saved.groups() {
            None => self.add_double_backward(&forward.shape, args.reborrow(), true),
            Some(_) => self.double_backward_groups(&mut args),
        }
    }

    fn check_double_backward<E: Element<Acc = P>>(
        &self,
        args: &DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let forward = args.saved.forward()?;
        self.affine.check(&forward.shape)?;
        forward.check_parameters(self.weight().is_some(), self.bias().is_some())?;
        let given = [("gg_weight", args.gg_weight.is_some()), ("gg_bias", args.gg_bias.is_some())];
        if let Some((what, _)) = given.into_iter().find(|(_, is_there)| *is_there) {
            let reason = "expected none, as a layer has its parameter's gradient for it, got one";
            return Err(Error::invalid(what, reason));
        }
        if args.saved.renormalized().is_some() && args.v_weight.is_some() {
            let reason = "after renormalization: expected no v_weight, got one".into();
            return Err(Error::Unsupported { engine: self.engine().name(), reason });
        }
        Ok(())
    }

    /// By the engine, whose sums are added to the parameters' gradients; those of a `first` call replace what
    /// [`Param::zero_grad`] has put off.
    pub(super) fn add_double_backward<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        args: DoubleBackward<'_, M, E>,
        first: bool,
    ) -> Result<()> {
        let affine = &mut self.affine;
        let both = [&mut affine.weight, &mut affine.bias];
        let begun = Param::begin_backward(affine.engine.memory(), both);
        let accumulate = affine.or_decline(args.saved, begun)? || !first;
        let mut args = args.accumulate(accumulate);
        let mut args = args.reborrow();
        args.gg_weight = Param::wanted(&mut affine.weight);
        args.gg_bias = Param::wanted(&mut affine.bias);
        affine.engine.double_backward(shape, args)?;
        Param::end_backward([&mut affine.weight, &mut affine.bias]);
        Ok(())
    }
}
