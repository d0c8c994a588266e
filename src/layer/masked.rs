//! A layer by a mask: statistics of the values that count.
use super::{BatchNorm, PartGradients};
use crate::{Element, Engine, Input, Mask, Memory, Real, Result, Saved, Shape};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// As [`forward`](Self::forward), by the statistics of the values that count for a [`Mask`]: such as those
    /// of padded sequences that are no padding. All values are normalized by them.
    ///
    /// In evaluation by running statistics there is nothing that a mask would change, as in Keras and Flax: it is
    /// not looked at then. A batch of which no value counts is a batch all the same, for averages that count
    /// batches, whatever [`Mask::all_masked`] has running statistics do.
    ///
    /// With [`Config::renorm`](crate::Config::renorm) r and d are taken by the values that count, for which x is
    /// read once more. With [`Config::ghost`](crate::Config::ghost) each group has the statistics of its values that count,
    /// and one in which none does follows the rule of the mask: an average that leaves it out keeps its share of the
    /// running statistics.
    ///
    /// On several ranks the values that count in all parts are one batch, and groups are of a rank's own rows: see
    /// [`Synced`](crate::Synced). On a device nothing is read back for either.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Cpu, Host, Mask, Shape};
    /// let shape = Shape::from_end(&[2, 3, 1], -1)?; // two sequences of three steps, one channel
    /// let (x, padded) = ([1f32, 3.0, 0.0, 1.0, 3.0, 5.0], [1u8, 1, 0, 1, 1, 1]);
    /// let mut bn = BatchNorm::new(&Cpu::default(), 1, Config::keras())?;
    /// let (y, saved) = bn.forward_masked(&shape, &x, Mask::<Host>::keras(&padded, 1))?;
    /// let grad_x = bn.backward_masked(&saved, &x, &padded, &y)?;
    /// assert_eq!(saved.is_masked(), Some(true));
    /// # assert_eq!(grad_x.len(), 6);
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Length`](crate::Error::Length) and
    /// [`Error::Invalid`](crate::Error::Invalid) of the mask.
    pub fn forward_masked<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        mask: Mask<'_, M>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        let lens = self.check_lens(shape, &[("x", M::len(&x))]);
        let y = lens.and_then(|()| self.unwritten(shape));
        let (mut y, mut saved) = (self.or_decline(y)?, Saved::new());
        self.forward_masked_into(shape, x, None, mask, M::view_mut(&mut y), &mut saved)?;
        Ok((y, saved))
    }

    /// The same into memory that is there, with a residual or without: see
    /// [`forward_into`](Self::forward_into).
    ///
    /// # Errors
    /// As [`forward_masked`](Self::forward_masked).
    pub fn forward_masked_into<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        mask: Mask<'_, M>,
        y: M::ViewMut<'_, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        self.forward_by(shape, x, residual, Some(mask), y, saved)
    }

    /// The gradients after [`forward_masked`](Self::forward_masked): that of x comes back, those of weight and
    /// bias are added to the parameters'. The mask's `places` are asked for again, as x is; after a forward in
    /// evaluation, which has not looked at them, they change nothing.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::Length`](crate::Error::Length) and
    /// [`Error::Invalid`](crate::Error::Invalid) of the mask.
    pub fn backward_masked<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        places: M::View<'_, u8>,
        grad_y: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        let shape = saved.forward()?.shape;
        let lens = self.check_lens(&shape, &[("x", M::len(&x)), ("grad_y", M::len(&grad_y))]);
        let grad_x = lens.and_then(|()| self.unwritten(&shape));
        let mut grad_x = self.affine.or_decline(saved, grad_x)?;
        let to_x = Some(M::view_mut(&mut grad_x));
        self.backward_masked_into(saved, x, None, places, Input::View(grad_y), to_x, None)?;
        Ok(grad_x)
    }

    /// The same into memory that is there: see [`backward_into`](Self::backward_into).
    ///
    /// # Errors
    /// As [`backward_masked`](Self::backward_masked).
    #[allow(clippy::too_many_arguments)] // an operation's
    pub fn backward_masked_into<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        places: M::View<'_, u8>,
        grad_y: Input<M::View<'_, E>>,
        grad_x: Option<M::ViewMut<'_, E>>,
        grad_residual: Option<M::ViewMut<'_, E>>,
    ) -> Result<()> {
        let places = Some(places).filter(|_| saved.is_masked() == Some(true));
        let factors = saved.renormalized();
        if saved.groups().is_some() || factors.is_some() {
            let (mut grad_x, mut grad_residual) = (grad_x, grad_residual);
            let mut whole = PartGradients {
                x: M::reborrow(&x),
                residual: residual.as_ref().map(M::reborrow),
                grad_y: grad_y.as_ref().map(M::reborrow),
                grad_x: grad_x.as_mut().map(M::reborrow_mut),
                grad_residual: grad_residual.as_mut().map(M::reborrow_mut),
            };
            return match factors {
                Some(factors) => self.backward_renormalized(saved, factors, places, &mut whole),
                None => self.backward_groups(saved, places, &mut whole),
            };
        }
        self.affine.backward(saved, x, residual, places, None, grad_y, grad_x, grad_residual)
    }
}
