//! The forward of a list: statistics of each part, merged, then each part by those.
use super::super::affine::Given;
use super::super::ghost::present;
use super::{Part, SavedParts, Shared};
use crate::engine::{Call, check_values_per_channel};
use crate::{
    BatchNorm, Config, Element, Engine, Error, ForwardEval, Input, Memory, MergeStats, OneValue,
    Op, Real, Result, RunningStats, Saved, Shape, Stats,
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
    /// On several ranks (an engine [`Synced`](crate::Synced)) the lists of all of them are one batch; a rank without
    /// inputs gives one without elements.
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
        let ys = parts.iter().map(|(shape, x, residual)| {
            let added = residual.as_ref().map_or(shape.len(), M::len);
            self.check_lens(shape, &[("x", M::len(x)), ("residual", added)])
        });
        let checked = ys.collect::<Result<()>>();
        let ys = checked.and_then(|()| {
            parts
                .iter()
                .map(|(shape, ..)| self.unwritten(shape))
                .collect::<Result<Vec<M::Buf<E>>>>()
        });
        let mut ys = self.or_decline(ys)?;
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
        let is_frozen = self.running.is_some() && !self.training;
        let in_common = self.engine().ranks() > 1 && self.training;
        let checked = self.check_parts(parts, in_common);
        self.or_decline(checked)?;
        let per_channel = parts.iter().map(|part| part.shape.per_channel());
        let per_channel = per_channel.fold(0, usize::saturating_add);
        let made_for = (parts.len(), self.channels());
        let fits = saved.shared.as_ref().is_some_and(|shared| shared.made_for == made_for);
        let mut fresh = None;
        if !fits {
            fresh = Some(self.or_decline(Shared::new(self.engine().memory(), made_for))?);
        }
        let Some(shared) = fresh.as_mut().or(saved.shared.as_mut()) else { return Ok(()) };
        // All of it, before anything is written: an engine checks one part at a time.
        let mut checked = parts.iter_mut().try_for_each(|part| {
            let (shape, mut args) = (part.shape, self.of_part(part, is_frozen, shared, None));
            args.check(self.engine().memory(), &shape)?;
            self.engine().supports(&shape, args.request().saves(true))
        });
        if checked.is_ok() && !is_frozen && !in_common {
            checked = check_values_per_channel("x", per_channel, self.affine.config.one_value);
        }
        if checked.is_ok() && in_common {
            checked = self.merge_parts(parts, shared, OneValue::ZeroVariance);
        }
        self.or_decline(checked)?;
        let mut values = per_channel;
        if in_common {
            let call = self.call_of(parts);
            let (own, merged) = (Ok(per_channel), M::view_mut(&mut shared.merged));
            let one_value = self.affine.config.one_value;
            values = self.engine().merge_ranks(call, own, merged, one_value)?;
        }
        saved.parts.resize_with(parts.len(), Saved::new);
        saved.shared = fresh.take().or(saved.shared.take());
        let SavedParts { parts: kept, shared: Some(shared), .. } = saved else { return Ok(()) };
        shared.count(self.engine().memory(), per_channel)?;
        if !is_frozen && !in_common {
            self.merge_parts(parts, shared, self.affine.config.one_value)?;
        }
        for (part, saved) in parts.iter_mut().zip(kept.iter_mut()) {
            let (shape, args) = (part.shape, self.of_part(part, is_frozen, shared, Some(saved)));
            self.engine().forward_eval(&shape, args)?;
        }
        if !is_frozen {
            self.update_running(shared, values, in_common)?;
        }
        (saved.is_frozen, saved.is_common) = (is_frozen, in_common);
        Ok(())
    }

    /// What of a list is refused before anything of it is looked at.
    fn check_parts<E: Element<Acc = P>>(
        &self,
        parts: &[Part<'_, M, E>],
        in_common: bool,
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
        if in_common {
            self.check_lengths()?; // a merge that all ranks make would find it too late
        }
        self.check_capture()?;
        parts.iter().try_for_each(|part| self.affine.check(&part.shape))
    }
    /// A list as other ranks are shown it: a training forward.
    fn call_of<E: Element<Acc = P>>(&mut self, parts: &[Part<'_, M, E>]) -> Call {
        let Config { activation, eps, one_value, .. } = self.affine.config;
        let has_residual = parts.iter().any(|part| part.residual.is_some());
        let (weight, bias) = (self.weight().is_some(), self.bias().is_some());
        let (config, moves) = (self.affine.config, self.updates_running);
        let running = self.running.as_mut().filter(|_| moves);
        let running = running.map(|running| config.next(running));
        let flags = [has_residual, weight, bias, running.is_some()];
        let call = Call::new(Op::ForwardTrain, E::DTYPE, self.affine.channels, activation);
        call.eps(eps).flags(&flags).moves(running.as_ref(), one_value)
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
        one_value: OneValue,
    ) -> Result<()> {
        let len = 3 * self.channels() + 1;
        for (k, part) in parts.iter().enumerate() {
            let mut records = M::view_mut(&mut shared.records);
            if let Some(record) = M::slice_mut(&mut records, k * len..(k + 1) * len) {
                let args = Stats::<M, E>::new(M::reborrow(&part.x), record);
                self.engine().stats(&part.shape, args)?;
            }
        }
        self.engine().merge_stats(shared.merge(one_value))
    }

    /// The running statistics by all parts, where a training forward moves them: of so many values per channel, of
    /// other ranks' lists too if they are in common.
    fn update_running(
        &mut self,
        shared: &mut Shared<M, P>,
        values: usize,
        in_common: bool,
    ) -> Result<()> {
        let config = self.affine.config;
        let moves = self.training && self.updates_running;
        let Some(running) = self.running.as_mut().filter(|_| moves) else { return Ok(()) };
        if in_common {
            // Of the record of all; what is written is of no use.
            let mut records = M::view_mut(&mut shared.records);
            let spare = M::slice_mut(&mut records, 0..3 * self.affine.channels + 1);
            let merged = M::view(&shared.merged);
            // All ranks have agreed that there are enough values, or that none is no error.
            let rule = match config.one_value {
                OneValue::Refuse => OneValue::ZeroVariance,
                other => other,
            };
            let mut args = MergeStats::<M, P>::new(merged, present("records", spare)?);
            args.running = Some(config.next(running));
            self.affine.engine.merge_stats(args.known(values).one_value(rule))?;
        } else {
            let mut args = shared.merge(config.one_value);
            args.running = Some(config.next(running));
            self.affine.engine.merge_stats(args)?;
        }
        if !(config.momentum.leaves_out_empty() && values == 0) {
            RunningStats::count(running);
        }
        Ok(())
    }
}
