//! The backward of a list: the sums over all parts, then each part by those.
use super::{PartGradients, SavedParts, Shared};
use crate::engine::Call;
use crate::{Activation, BatchNorm, Element, Engine, Memory, Op, Param, Real, Result, Saved};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// The gradient of each input of [`forward_parts`](Self::forward_parts), in new memory, from each input
    /// and the gradient of its output, in that order; the parameters' go to
    /// [`Param::grad`](crate::Param::grad), summed over the list.
    ///
    /// # Errors
    /// As [`backward`](Self::backward), of any of the parts; [`Error::Saved`](crate::Error::Saved) for a
    /// list of another length.
    #[allow(clippy::type_complexity)] // pairs of views
    pub fn backward_parts<E: Element<Acc = P>>(
        &mut self,
        saved: &mut SavedParts<M, P>,
        parts: &[(M::View<'_, E>, M::View<'_, E>)],
    ) -> Result<Vec<M::Buf<E>>> {
        let lens = parts.iter().map(|(x, grad_y)| [("x", M::len(x)), ("grad_y", M::len(grad_y))]);
        let mut grad_xs = self.zeros_of_parts::<E, 2>(saved, lens)?;
        let pairs = parts.iter().zip(&mut grad_xs).map(|((x, grad_y), grad_x)| {
            let args = PartGradients::<M, E>::new(M::reborrow(x), M::reborrow(grad_y));
            args.grad_x(M::view_mut(grad_x))
        });
        self.backward_parts_into(saved, &mut pairs.collect::<Vec<_>>())?;
        Ok(grad_xs)
    }

    /// As [`backward_parts`](Self::backward_parts) after [`forward_parts_add`](Self::forward_parts_add):
    /// the gradients of each input and of each residual, from input, residual and gradient of the output.
    /// Residuals are asked for again as in [`backward_add`](Self::backward_add).
    ///
    /// # Errors
    /// As [`backward_parts`](Self::backward_parts) and [`backward_add`](Self::backward_add).
    #[allow(clippy::type_complexity)] // lists of views
    pub fn backward_parts_add<E: Element<Acc = P>>(
        &mut self,
        saved: &mut SavedParts<M, P>,
        parts: &[(M::View<'_, E>, Option<M::View<'_, E>>, M::View<'_, E>)],
    ) -> Result<Vec<(M::Buf<E>, M::Buf<E>)>> {
        let lens = parts.iter().map(|(x, residual, grad_y)| {
            let added = residual.as_ref().map_or(M::len(x), M::len);
            [("x", M::len(x)), ("residual", added), ("grad_y", M::len(grad_y))]
        });
        let (to_x, to_residual) = (
            self.zeros_of_parts::<E, 3>(saved, lens.clone())?,
            self.zeros_of_parts::<E, 3>(saved, lens)?,
        );
        let mut grads: Vec<_> = to_x.into_iter().zip(to_residual).collect();
        let args =
            parts.iter().zip(&mut grads).map(|((x, residual, grad_y), (to_x, to_residual))| {
                let mut args = PartGradients::<M, E>::new(M::reborrow(x), M::reborrow(grad_y));
                args.residual = residual.as_ref().map(M::reborrow);
                args.grad_x(M::view_mut(to_x)).grad_residual(M::view_mut(to_residual))
            });
        self.backward_parts_into(saved, &mut args.collect::<Vec<_>>())?;
        Ok(grads)
    }

    /// A tensor for each part, of which the caller's lengths are checked first.
    fn zeros_of_parts<E: Element<Acc = P>, const K: usize>(
        &self,
        saved: &SavedParts<M, P>,
        lens: impl ExactSizeIterator<Item = [(&'static str, usize); K]>,
    ) -> Result<Vec<M::Buf<E>>> {
        let made = || {
            saved.check_len(lens.len())?;
            let mut tensors = vec![];
            for (saved, lens) in saved.parts.iter().zip(lens) {
                let shape = saved.made()?.0.shape;
                self.check_lens(&shape, &lens)?;
                tensors.push(self.unwritten(&shape)?);
            }
            Ok(tensors)
        };
        let tensors = made();
        if tensors.is_err() && saved.is_common {
            self.engine().decline(Op::Backward);
        }
        tensors
    }

    /// As [`backward_parts`](Self::backward_parts) and [`backward_parts_add`](Self::backward_parts_add),
    /// the gradients asked for, into memory that is there, in place too. Makes none but that of the
    /// parameters' gradients, the first time.
    ///
    /// # Errors
    /// As [`backward_parts_add`](Self::backward_parts_add).
    pub fn backward_parts_into<E: Element<Acc = P>>(
        &mut self,
        saved: &mut SavedParts<M, P>,
        parts: &mut [PartGradients<'_, M, E>],
    ) -> Result<()> {
        let engine = self.affine.engine.clone();
        let (channels, is_common) = (self.affine.channels, saved.is_common);
        let checked = self.check_part_gradients(saved, parts);
        let checked = checked.and_then(|()| match &mut saved.shared {
            Some(shared) if !saved.is_frozen => self.sum_parts(&saved.parts, parts, shared),
            _ => Ok(()),
        });
        if checked.is_err() && is_common {
            engine.decline(Op::Backward);
        }
        checked?;
        let mut shared = saved.shared.as_mut().filter(|_| !saved.is_frozen);
        if let Some(shared) = shared.as_mut().filter(|_| is_common) {
            let forward = saved.parts.first().map(|saved| saved.forward()).transpose()?;
            let activation = forward.map_or(Activation::Identity, |forward| forward.activation);
            let call = Call::new(Op::Backward, E::DTYPE, channels, activation);
            // Of the gradients that are asked for only those of x flow through what is in common.
            let wants = parts.iter().any(|part| part.grad_x.is_some());
            let residual = forward.is_some_and(|forward| forward.residual);
            let (weight, bias) = (self.weight().is_some(), self.bias().is_some());
            let call = call.flags(&[residual, weight, bias, false, wants]);
            let total = shared.total(engine.memory());
            if total.is_err() {
                engine.decline(Op::Backward);
            }
            engine.reduce_ranks(call, Ok(()), M::view_mut(total?))?;
        }
        let both = [&mut self.affine.weight, &mut self.affine.bias];
        let accumulate = Param::begin_backward(engine.memory(), both)?;
        for (k, (saved, part)) in saved.parts.iter().zip(parts).enumerate() {
            let mut args = part.args(saved).accumulate(accumulate || k > 0);
            args.grad_weight = Param::wanted(&mut self.affine.weight);
            args.grad_bias = Param::wanted(&mut self.affine.bias);
            args.total_sums = shared.as_ref().map(|shared| match &shared.total {
                Some(total) if is_common => M::view(total),
                _ => M::view(&shared.sums),
            });
            engine.backward(&saved.made()?.0.shape, args)?;
        }
        Param::end_backward([&mut self.affine.weight, &mut self.affine.bias]);
        Ok(())
    }

    /// The check of everything, before anything is written: an engine checks one part at a time.
    fn check_part_gradients<E: Element<Acc = P>>(
        &self,
        saved: &SavedParts<M, P>,
        parts: &mut [PartGradients<'_, M, E>],
    ) -> Result<()> {
        saved.check_len(parts.len())?;
        let engine = self.engine();
        for (saved, part) in saved.parts.iter().zip(parts.iter_mut()) {
            let forward = saved.made()?.0;
            self.affine.check(&forward.shape)?;
            forward.check_parameters(self.weight().is_some(), self.bias().is_some())?;
            let mut args = part.args(saved);
            args.check_on(engine.memory(), &forward.shape)?;
            engine.supports(&forward.shape, args.request()?)?;
        }
        Ok(())
    }
    /// The sums over this list.
    fn sum_parts<E: Element<Acc = P>>(
        &self,
        saved: &[Saved<M, P>],
        parts: &[PartGradients<'_, M, E>],
        shared: &mut Shared<M, P>,
    ) -> Result<()> {
        let channels = self.affine.channels;
        for (k, (saved, part)) in saved.iter().zip(parts).enumerate() {
            let mut sums = M::view_mut(&mut shared.sums);
            let mut sums = M::split_at_mut(&mut sums, channels);
            let Some(args) = part.sums(saved) else { continue };
            let mut args = args.accumulate(k > 0);
            if let Some((sum_g, rest)) = &mut sums {
                args.grad_bias = Some(M::reborrow_mut(sum_g));
                args.grad_weight = M::slice_mut(rest, 0..channels);
            }
            self.engine().backward(&saved.made()?.0.shape, args)?;
        }
        Ok(())
    }
}
