//! Forward, evaluation and backward: owned forms, and the ones that write into memory.
use super::affine::Given;
use super::{BatchNorm, Config, Part, PartGradients, RunningStats};
use crate::{Element, Engine, Error, Input, Mask, Memory, Op, Plain, Real, Result, Saved, Shape};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Normalizes `x` (length N, the shape's number of elements) into new memory. What comes with
    /// it is for [`backward`](Self::backward).
    ///
    /// In training it uses the batch's statistics and updates the running ones; in evaluation it
    /// uses the running statistics, or the batch's where there are none: so a layer without running
    /// statistics is Keras 1's in mode 2, and PyTorch's with `track_running_stats=False`. A batch
    /// without elements leaves the statistics alone unless
    /// [`Config::empty_batch`](crate::Config::empty_batch) says otherwise, and counts as a batch unless the
    /// momentum is [`Momentum::Average`](crate::Momentum::Average) or
    /// [`Momentum::Debiased`](crate::Momentum::Debiased).
    ///
    /// # Errors
    /// [`Error::Length`] where the shape has another number of channels or x is not as long as it
    /// says; [`Error::Invalid`] where the batch's statistics come from one value per channel and
    /// [`Config::one_value`](crate::Config::one_value) refuses it, or a graph is captured and the weight of a
    /// batch changes with every one; [`Error::Unsupported`] by the engine.
    pub fn forward<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        self.forward_owned(shape, x, None)
    }

    /// As [`forward`](Self::forward), with `residual` (length N) added before the activation.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_add<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        self.forward_owned(shape, x, Some(residual))
    }

    fn forward_owned<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
    ) -> Result<(M::Buf<E>, Saved<M, P>)> {
        let added = residual.as_ref().map_or(shape.len(), M::len);
        let lens = self.check_lens(shape, &[("x", M::len(&x)), ("residual", added)]);
        let y = lens.and_then(|()| self.unwritten(shape));
        let (mut y, mut saved) = (self.or_decline(y)?, Saved::new());
        self.forward_into(shape, x, residual, M::view_mut(&mut y), &mut saved)?;
        Ok((y, saved))
    }

    /// As [`forward`](Self::forward) and [`forward_add`](Self::forward_add), into memory that is
    /// there: `y` has length N and is not x. Allocates nothing where `saved` was used with this
    /// shape before.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        y: M::ViewMut<'_, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        self.forward_by(shape, x, residual, None, y, saved)
    }

    /// A forward of all values, or of those of a mask.
    pub(super) fn forward_by<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        mask: Option<Mask<'_, M>>,
        y: M::ViewMut<'_, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        match (&self.running, self.training) {
            (_, true) => {}
            (Some(_), false) => {
                return self.evaluate(shape, Input::View(x), residual, y, Some(saved));
            }
            (None, false) => {
                let saved = Some(saved);
                return self.affine.by_batch(shape, x, residual, mask, y, false, None, saved, true);
            }
        }
        let Config { ghost, renorm, .. } = self.affine.config;
        if let Some(ghost) = ghost.filter(|_| self.engine().ranks() > 1) {
            let mut y = y;
            let mut whole = Part::new(*shape, M::reborrow(&x), M::reborrow_mut(&mut y));
            whole.residual = residual.as_ref().map(M::reborrow);
            return self.forward_groups_of_ranks(ghost, mask, &mut whole, saved);
        }
        if let Some(grouping) = self.grouping(shape, E::DTYPE, mask.is_some())? {
            let mut y = y;
            let mut whole = Part::new(*shape, M::reborrow(&x), M::reborrow_mut(&mut y));
            whole.residual = residual.as_ref().map(M::reborrow);
            return match mask {
                Some(mask) => self.forward_masked_groups(grouping, mask, &mut whole, saved),
                None => {
                    let grouping = self.at_once(grouping, &whole, false);
                    self.forward_groups(grouping, &mut whole, saved)
                }
            };
        }
        if let Some(renorm) = renorm {
            let mut y = y;
            let mut whole = Part::new(*shape, M::reborrow(&x), M::reborrow_mut(&mut y));
            whole.residual = residual.as_ref().map(M::reborrow);
            return match mask {
                Some(mask) => self.forward_masked_renormalized(renorm, mask, &mut whole, saved),
                None => self.forward_renormalized(renorm, &mut whole, saved),
            };
        }
        self.forward_whole(shape, x, residual, mask, y, false, saved)
    }
    /// A forward of one batch, by its own statistics.
    #[allow(clippy::too_many_arguments)] // an operation's
    pub(super) fn forward_whole<E: Element<Acc = P>>(
        &mut self,
        shape: &Shape,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        mask: Option<Mask<'_, M>>,
        y: M::ViewMut<'_, E>,
        y_is_kept: bool,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        self.or_decline(self.check_capture())?;
        let (momentum, updates) = (self.affine.config.momentum, self.updates_running);
        let mut running = self.running.as_mut().filter(|_| updates);
        let tracked = running.as_deref_mut();
        let (saved, alone) = (Some(saved), !self.training);
        self.affine.by_batch(shape, x, residual, mask, y, y_is_kept, tracked, saved, alone)?;
        // Only now: a batch that was refused is none.
        let counts = !(momentum.leaves_out_empty() && shape.is_empty());
        running.filter(|_| counts).into_iter().for_each(RunningStats::count);
        Ok(())
    }

    /// Evaluates `x` (length N) into new memory, in whichever mode the layer is: as
    /// [`forward`](Self::forward) after [`eval`](Self::eval), with nothing kept for a backward.
    /// Several threads may do so at once.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn infer<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        self.check_lens(shape, &[("x", M::len(&x))])?;
        let mut y = self.unwritten(shape)?;
        self.infer_into(shape, Input::View(x), None, M::view_mut(&mut y))?;
        Ok(y)
    }

    /// As [`infer`](Self::infer), into memory that is there, `residual` added before the
    /// activation. With [`Input::InPlace`] `y` holds x before. Allocates nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] in place without running statistics.
    pub fn infer_into<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: Input<M::View<'_, E>>,
        residual: Option<M::View<'_, E>>,
        y: M::ViewMut<'_, E>,
    ) -> Result<()> {
        self.evaluate(shape, x, residual, y, None)
    }

    fn evaluate<E: Element<Acc = P>>(
        &self,
        shape: &Shape,
        x: Input<M::View<'_, E>>,
        residual: Option<M::View<'_, E>>,
        y: M::ViewMut<'_, E>,
        saved: Option<&mut Saved<M, P>>,
    ) -> Result<()> {
        match (&self.running, x) {
            (Some(running), x) => {
                let running = Given::Running(running);
                self.affine.by_given(shape, x, residual, y, running, saved)
            }
            (None, Input::View(x)) => {
                self.affine.by_batch(shape, x, residual, None, y, false, None, saved, true)
            }
            (None, Input::InPlace) => {
                let reason = "in place: expected running statistics to evaluate by, got none";
                Err(Error::invalid("x", reason))
            }
        }
    }

    /// The gradient of `x` in new memory, from that of y (both length N); the parameters' go to
    /// [`Param::grad`](crate::Param::grad). The shape is that of the forward, and `x` what it was given.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Saved`] where `saved` is from a forward of another dtype,
    /// engine or kind of layer, [`Error::Invalid`] where it is from none.
    pub fn backward<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        grad_y: M::View<'_, E>,
    ) -> Result<M::Buf<E>> {
        let shape = saved.forward()?.shape;
        let lens = self.check_lens(&shape, &[("x", M::len(&x)), ("grad_y", M::len(&grad_y))]);
        let grad_x = lens.and_then(|()| self.unwritten(&shape));
        let mut grad_x = self.affine.or_decline(saved, grad_x)?;
        let to_x = Some(M::view_mut(&mut grad_x));
        self.backward_into(saved, x, None, Input::View(grad_y), to_x, None)?;
        Ok(grad_x)
    }

    /// As [`backward`](Self::backward) after [`forward_add`](Self::forward_add): the gradients of
    /// `x` and of the residual. The residual itself (length N, as in the forward) is asked for again where
    /// the activation's derivative takes it, [`Derivative::FromResidual`](crate::Derivative); the
    /// others do without, and it need not live so long.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); [`Error::Invalid`] where the derivative takes a residual and none
    /// came.
    pub fn backward_add<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        grad_y: M::View<'_, E>,
    ) -> Result<(M::Buf<E>, M::Buf<E>)> {
        let shape = saved.forward()?.shape;
        let added = residual.as_ref().map_or(shape.len(), M::len);
        let lens = [("x", M::len(&x)), ("residual", added), ("grad_y", M::len(&grad_y))];
        let lens = self.check_lens(&shape, &lens);
        let both = lens.and_then(|()| Ok((self.unwritten(&shape)?, self.unwritten(&shape)?)));
        let (mut grad_x, mut grad_residual) = self.affine.or_decline(saved, both)?;
        let to_x = Some(M::view_mut(&mut grad_x));
        let to_residual = Some(M::view_mut(&mut grad_residual));
        self.backward_into(saved, x, residual, Input::View(grad_y), to_x, to_residual)?;
        Ok((grad_x, grad_residual))
    }

    /// As [`backward_add`](Self::backward_add), the gradients asked for, into memory that is there
    /// (length N each). With [`Input::InPlace`] `grad_x` holds `grad_y` before. Allocates nothing.
    ///
    /// # Errors
    /// As [`backward_add`](Self::backward_add).
    pub fn backward_into<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        x: M::View<'_, E>,
        residual: Option<M::View<'_, E>>,
        grad_y: Input<M::View<'_, E>>,
        grad_x: Option<M::ViewMut<'_, E>>,
        grad_residual: Option<M::ViewMut<'_, E>>,
    ) -> Result<()> {
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
                Some(factors) => self.backward_renormalized(saved, factors, None, &mut whole),
                None => self.backward_groups(saved, None, &mut whole),
            };
        }
        self.affine.backward(saved, x, residual, None, None, grad_y, grad_x, grad_residual)
    }

    /// What a training forward prepares before it calls the engine; other ranks learn of a refusal.
    pub(super) fn or_decline<T>(&self, prepared: Result<T>) -> Result<T> {
        if prepared.is_err() && self.training {
            self.engine().decline(Op::ForwardTrain);
        }
        prepared
    }

    /// Refuses a training forward whose weight in the running statistics changes with every batch, where
    /// a graph would repeat it.
    pub(super) fn check_capture(&self) -> Result<()> {
        let updates = self.training && self.updates_running && self.running.is_some();
        let counts = updates && self.affine.config.momentum.counts();
        if counts && self.affine.engine.memory().is_capturing()? {
            let reason = "expected an exponential momentum while a graph is captured: the weight of \
                          this batch in a cumulative average would be that of every replay";
            return Err(Error::invalid("momentum", reason));
        }
        Ok(())
    }

    /// What an owned form checks before it makes memory as large as the shape says: the channels, and
    /// the lengths of its tensors.
    pub(super) fn check_lens(
        &self,
        shape: &Shape,
        tensors: &[(&'static str, usize)],
    ) -> Result<()> {
        self.affine.check(shape)?;
        let expected = shape.len();
        match tensors.iter().find(|(_, got)| *got != expected) {
            Some(&(what, got)) => Err(Error::Length { what, expected, got }),
            None => Ok(()),
        }
    }

    pub(super) fn unwritten<T: Plain>(&self, shape: &Shape) -> Result<M::Buf<T>> {
        self.affine.engine.memory().unwritten(shape.len())
    }
}
