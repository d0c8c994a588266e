//! The forward of a list: statistics of each part, merged, then each part by those.
use super::super::affine::Given;
use super::{Part, SavedParts, Shared};
use crate::engine::check_values_per_channel;
use crate::{
    BatchNorm, Element, Engine, Error, ForwardEval, Input, Memory, Real, Result, RunningStats,
    Saved, Shape, Stats,
};

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Normalizes a list of inputs as one batch, each into new memory: in training by the statistics of all
    /// of them together, as exact as those of one tensor that holds them all, without making it. Each input
    /// has a shape of its own; all that they share is the number of channels. So a list may be one of samples,
    /// as Wolfram takes it, of sequences of different lengths, or of the micro-batches of one batch.
    ///
    /// ```
    /// # use batchnorm::{BatchNorm, Config, Cpu, Shape};
    /// # fn main() -> batchnorm::Result<()> {
    /// let mut bn = BatchNorm::new(&Cpu::default(), 2, Config::default())?;
    /// // Two sequences, of 3 and of 1 steps of 2 channels: 4 values per channel.
    /// let (long, short) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [7f32, 8.0]);
    /// let shapes = (Shape::new(&[3, 2], 1)?, Shape::new(&[1, 2], 1)?);
    /// let (ys, mut saved) = bn.forward_parts(&[(shapes.0, &long[..]), (shapes.1, &short[..])])?;
    /// assert!((bn.running().unwrap().mean[0] - 0.1 * 4.0).abs() < 1e-6);
    /// let grads = [(&long[..], &ys[0][..]), (&short[..], &ys[1][..])]; // x, and the gradient of y
    /// let grad_xs = bn.backward_parts(&mut saved, &grads)?;
    /// assert_eq!((grad_xs[0].len(), grad_xs[1].len()), (6, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The running statistics move once, by the whole list. It takes one more pass over the inputs than
    /// [`forward`](Self::forward) does. In evaluation the inputs have nothing in common;
    /// [`infer`](Self::infer) does for each.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), of any of the inputs; [`Error::Invalid`] for an empty list.
    #[allow(clippy::type_complexity)] // outputs, and what is saved
    pub fn forward_parts<E: Element<Acc = P>>(
        &mut self,
        parts: &[(Shape, M::View<'_, E>)],
    ) -> Result<(Vec<M::Buf<E>>, SavedParts<M, P>)> {
        let parts = parts.iter().map(|(shape, x)| (*shape, M::reborrow(x), None));
        self.forward_owned_parts(parts.collect())
    }

    /// As [`forward_parts`](Self::forward_parts), with a residual (length N of its part) added to each
    /// before the activation: parts are shape, x and residual.
    ///
    /// # Errors
    /// As [`forward_parts`](Self::forward_parts).
    #[allow(clippy::type_complexity)] // outputs, and what is saved
    pub fn forward_parts_add<E: Element<Acc = P>>(
        &mut self,
        parts: &[(Shape, M::View<'_, E>, M::View<'_, E>)],
    ) -> Result<(Vec<M::Buf<E>>, SavedParts<M, P>)> {
        let parts = parts
            .iter()
            .map(|(shape, x, added)| (*shape, M::reborrow(x), Some(M::reborrow(added))));
        self.forward_owned_parts(parts.collect())
    }

    #[allow(clippy::type_complexity)] // outputs, and what is saved
    fn forward_owned_parts<'p, E: Element<Acc = P>>(
        &mut self,
        parts: Vec<(Shape, M::View<'p, E>, Option<M::View<'p, E>>)>,
    ) -> Result<(Vec<M::Buf<E>>, SavedParts<M, P>)> {
        for (shape, x, residual) in &parts {
            let added = residual.as_ref().map_or(shape.len(), M::len);
            self.check_lens(shape, &[("x", M::len(x)), ("residual", added)])?;
        }
        let ys = parts.iter().map(|(shape, ..)| self.unwritten(shape));
        let mut ys = ys.collect::<Result<Vec<M::Buf<E>>>>()?;
        let parts = parts.iter().zip(&mut ys).map(|((shape, x, residual), y)| {
            let mut part = Part::<M, E>::new(*shape, M::reborrow(x), M::view_mut(y));
            part.residual = residual.as_ref().map(M::reborrow);
            part
        });
        let (mut parts, mut saved) = (parts.collect::<Vec<_>>(), SavedParts::new());
        self.forward_parts_into(&mut parts, &mut saved)?;
        drop(parts);
        Ok((ys, saved))
    }

    /// As [`forward_parts`](Self::forward_parts) and [`forward_parts_add`](Self::forward_parts_add), into
    /// memory that is there. Makes no memory where `saved` was used with a list of these shapes before.
    ///
    /// # Errors
    /// As [`forward_parts`](Self::forward_parts); [`Error::Invalid`] where some parts have a residual and
    /// some have none.
    pub fn forward_parts_into<E: Element<Acc = P>>(
        &mut self,
        parts: &mut [Part<'_, M, E>],
        saved: &mut SavedParts<M, P>,
    ) -> Result<()> {
        if parts.is_empty() {
            return Err(Error::invalid("parts", "expected at least 1, got none"));
        }
        if let (Some(ghost), true) = (self.config().ghost, self.training) {
            let reason = "expected none for a list of inputs, which is one batch";
            return Err(Error::invalid("ghost", format!("{reason}; got groups of {}", ghost.size)));
        }
        let with = parts.iter().filter(|part| part.residual.is_some()).count();
        if with != 0 && with != parts.len() {
            let all = parts.len();
            let reason = format!("expected one in each of {all} parts or in none, got {with}");
            return Err(Error::invalid("residual", reason));
        }
        if self.config().renorm.is_some() && self.training {
            let reason = "expected a layer without it for a list of inputs, got one with it";
            return Err(Error::invalid("renorm", reason));
        }
        let is_frozen = self.running.is_some() && !self.training;
        if self.engine().ranks() > 1 && self.training {
            let reason = format!(
                "expected one input where ranks have statistics in common, got a list on {} ranks",
                self.engine().ranks()
            );
            return Err(Error::invalid("parts", reason));
        }
        self.check_capture()?;
        let per_channel = parts.iter().map(|part| part.shape.per_channel());
        let per_channel = per_channel.fold(0, usize::saturating_add);
        let (made_for, memory) = ((parts.len(), self.channels()), self.engine().memory());
        let fits = saved.shared.as_ref().is_some_and(|shared| shared.made_for == made_for);
        let mut fresh = if fits { None } else { Some(Shared::new(memory, made_for)?) };
        let Some(shared) = fresh.as_ref().or(saved.shared.as_ref()) else { return Ok(()) };
        // All of it, before anything is written: an engine checks one part at a time.
        for part in parts.iter_mut() {
            let (shape, mut args) = (part.shape, self.of_part(part, is_frozen, shared, None));
            self.affine.check(&shape)?;
            args.check(memory, &shape)?;
            self.engine().supports(&shape, args.request().saves(true))?;
        }
        if !is_frozen {
            check_values_per_channel("x", per_channel, self.affine.config.one_value)?;
        }
        saved.parts.resize_with(parts.len(), Saved::new);
        saved.shared = fresh.take().or(saved.shared.take());
        let SavedParts { parts: kept, shared: Some(shared), .. } = saved else { return Ok(()) };
        shared.count(memory, per_channel)?;
        if !is_frozen {
            self.merge_parts(parts, shared)?;
        }
        for (part, saved) in parts.iter_mut().zip(kept.iter_mut()) {
            let (shape, args) = (part.shape, self.of_part(part, is_frozen, shared, Some(saved)));
            self.engine().forward_eval(&shape, args)?;
        }
        if !is_frozen {
            self.update_running(shared)?;
        }
        saved.is_frozen = is_frozen;
        Ok(())
    }

    fn of_part<'b, E: Element<Acc = P>>(
        &'b self,
        part: &'b mut Part<'_, M, E>,
        is_frozen: bool,
        shared: &'b Shared<M, P>,
        saved: Option<&'b mut Saved<M, P>>,
    ) -> ForwardEval<'b, M, E> {
        let given = match &self.running {
            Some(running) if is_frozen => Given::Running(running),
            _ => Given::Record(&shared.merged),
        };
        let x = Input::View(M::reborrow(&part.x));
        let residual = part.residual.as_ref().map(M::reborrow);
        self.affine.given(x, residual, M::reborrow_mut(&mut part.y), given, saved)
    }

    /// The statistics of each part, and of all.
    fn merge_parts<E: Element<Acc = P>>(
        &self,
        parts: &[Part<'_, M, E>],
        shared: &mut Shared<M, P>,
    ) -> Result<()> {
        let len = 3 * self.channels() + 1;
        for (k, part) in parts.iter().enumerate() {
            let mut records = M::view_mut(&mut shared.records);
            if let Some(record) = M::slice_mut(&mut records, k * len..(k + 1) * len) {
                let args = Stats::<M, E>::new(M::reborrow(&part.x), record);
                self.engine().stats(&part.shape, args)?;
            }
        }
        self.engine().merge_stats(shared.merge(self.affine.config.one_value))
    }

    /// The running statistics by all parts, where a training forward moves them.
    fn update_running(&mut self, shared: &mut Shared<M, P>) -> Result<()> {
        let config = self.affine.config;
        let moves = self.training && self.updates_running;
        let Some(running) = self.running.as_mut().filter(|_| moves) else { return Ok(()) };
        let mut args = shared.merge(config.one_value);
        args.running = Some(config.next(running));
        self.affine.engine.merge_stats(args)?;
        if !(config.momentum.leaves_out_empty() && shared.per_channel == 0) {
            RunningStats::count(running);
        }
        Ok(())
    }
}
