//! The training forward in groups.
use super::super::affine::Given;
use super::super::{BatchNorm, GhostUpdate, Momentum, Part, RunningStats};
use crate::engine::{GroupRows, Grouping, check_values_per_channel};
use crate::{
    Element, Engine, Error, Input, Mask, Memory, NonFinite, OneValue, Op, Real, Request, Result,
    Saved, Shape, Stats,
};
use std::ops::Range;

/// Consecutive groups as shapes and the elements they have.
pub(in crate::layer) fn consecutive(
    shape: &Shape,
    size: usize,
) -> impl ExactSizeIterator<Item = (Shape, Range<usize>)> + Clone + use<> {
    let (shape, rows) = (*shape, shape.batch());
    let row_len = shape.row_len().unwrap_or(0);
    (0..rows.div_ceil(size)).map(move |k| {
        let (from, to) = (k * size, rows.min((k + 1) * size));
        (shape.of_rows(to - from), from * row_len..to * row_len)
    })
}

/// Elements of the row of that number, by the shape of one.
pub(super) fn rows_at(row: &Shape, number: usize) -> Range<usize> {
    number * row.len()..(number + 1) * row.len()
}

/// A part that every tensor has whose length was checked.
pub(in crate::layer) fn present<T>(what: &'static str, part: Option<T>) -> Result<T> {
    part.ok_or_else(|| Error::invalid(what, "expected as many elements as the shape has"))
}

/// By which momentum each group moves the running statistics.
pub(super) struct Updates {
    /// The weights of the batch in mean and variance, where the groups are averaged.
    pub average: Option<(f64, f64)>,
    pub groups: usize,
    /// The first so many have a variance.
    pub vars: usize,
}

impl Updates {
    /// That of group k; the layer's own where each is a batch.
    ///
    /// An average is made one group after the other: the last one weighs `factor / groups`, and so does each
    /// before it in the end, as those behind it leave `1 - factor * behind / groups` of it.
    fn momentum(&self, k: usize) -> Option<Momentum> {
        self.momentum_of(k, k)
    }
    /// The same of a group that is the kth, and that of another number among those with a variance.
    pub fn momentum_of(&self, k: usize, with_var: usize) -> Option<Momentum> {
        let weight = |factor: f64, k: usize, of: usize| {
            if k >= of || factor == 0.0 {
                return 0.0;
            }
            factor / (of as f64 - factor * (of - 1 - k) as f64)
        };
        let (mean, var) = self.average?;
        let (mean, var) = (weight(mean, k, self.groups), weight(var, with_var, self.vars));
        Some(Momentum::Separate { mean, var })
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A training forward in groups.
    pub(in crate::layer) fn forward_groups<E: Element<Acc = P>>(
        &mut self,
        grouping: Grouping,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        self.check_capture()?;
        self.check_groups(grouping, whole, None)?;
        let shape = whole.shape;
        let config = self.affine.config;
        let before = self.running.as_ref().map_or(0, |running| running.num_batches_tracked);
        let averages = config.ghost.is_some_and(|ghost| ghost.update == GhostUpdate::Average);
        let average = averages.then(|| config.momentum.factors(before));
        let done = match grouping {
            Grouping::Consecutive(size) => {
                let no_var = |shape: &Shape| {
                    config.one_value == OneValue::KeepVariance && shape.per_channel() == 1
                };
                let groups = consecutive(&shape, size);
                let vars = groups.clone().filter(|(shape, _)| !no_var(shape)).count();
                let updates = Updates { average, groups: groups.len(), vars };
                self.forward_consecutive(size, whole, None, &updates, saved)
            }
            Grouping::AsChannels(groups) => {
                self.forward_as_channels(groups, whole, None, average, saved)
            }
            Grouping::AtOnce(groups) => self.forward_at_once(groups, whole, None, average, saved),
            Grouping::Strided(groups) => {
                let updates = Updates { average, groups, vars: groups };
                self.forward_strided(groups, whole, &updates, saved)
            }
        };
        // That of a group, until here.
        self.affine.config = config;
        done?;
        if let Some(running) = self.running.as_mut().filter(|_| averages && self.updates_running) {
            running.num_batches_tracked = before;
            running.count();
        }
        saved.fill_groups(shape, grouping)
    }

    /// The check of everything, before anything is written: an engine checks one call at a time.
    pub(super) fn check_groups<E: Element<Acc = P>>(
        &mut self,
        grouping: Grouping,
        whole: &mut Part<'_, M, E>,
        mask: Option<&Mask<'_, M>>,
    ) -> Result<()> {
        let (shape, updates) = (whole.shape, self.updates_running);
        self.affine.check(&shape)?;
        let Self { affine, running, .. } = &mut *self;
        let affine = &*affine;
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let running = running.as_mut().filter(|_| updates);
        let masked = mask.is_some();
        let mask = mask.map(Mask::reborrow);
        let mut args = affine.train(x, residual, mask, y, running, None);
        args.check(affine.engine.memory(), &shape)?;
        let has_variance = |shape: &Shape| {
            check_values_per_channel("x", shape.per_channel(), affine.config.one_value)
        };
        let request = args.request().saves(true);
        drop(args);
        match grouping {
            Grouping::Consecutive(size) => {
                consecutive(&shape, size).try_for_each(|(group, _)| {
                    has_variance(&group)?;
                    affine.engine.supports(&group, request)
                })?;
                if masked { self.check_tiles(shape.batch().div_ceil(size)) } else { Ok(()) }
            }
            Grouping::AtOnce(GroupRows { size, count, .. }) => {
                let last = shape.batch() - (count - 1) * size;
                has_variance(&shape.of_rows(size.min(last)))?;
                affine.engine.supports(&shape.of_rows(size), request)
            }
            Grouping::AsChannels(groups) => {
                let all = present("x", shape.of_strided_groups(groups))?;
                has_variance(&all)?;
                affine.engine.supports(&all, request)?;
                self.check_tiles(groups)
            }
            Grouping::Strided(groups) => {
                has_variance(&shape.of_rows(shape.batch() / groups))?;
                let row = shape.of_rows(1);
                let op = if masked { Op::ForwardTrain } else { Op::Stats };
                affine.engine.supports(&row, Request::new(op, E::DTYPE).mask(masked))?;
                let request =
                    Request { op: Op::ForwardEval, running: None, mask: false, ..request };
                affine.engine.supports(&row, request.by_record(true))
            }
        }
    }

    /// A forward for each group.
    pub(super) fn forward_consecutive<E: Element<Acc = P>>(
        &mut self,
        size: usize,
        whole: &mut Part<'_, M, E>,
        mask: Option<&Mask<'_, M>>,
        updates: &Updates,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let groups: Vec<Shape> = consecutive(&whole.shape, size).map(|(shape, _)| shape).collect();
        let (momentum, moves) = (self.affine.config.momentum, self.updates_running);
        let Self { affine, running, .. } = self;
        let mut running = running.as_mut().filter(|_| moves);
        let before = running.as_ref().map_or(0, |running| running.num_batches_tracked);
        let factors = (0..groups.len()).map(|k| match updates.momentum(k) {
            Some(of_average) => of_average.factors(0),
            None => momentum.factors(before.saturating_add(k as u64)),
        });
        let factors: Vec<(f64, f64)> = factors.collect();
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let mask = mask.map(Mask::reborrow);
        let args = affine.train(x, residual, mask, y, running.as_deref_mut(), None);
        let saved = saved.open_groups(groups.len());
        affine.engine.forward_train_groups(&groups, args.alone(true), saved, &factors)?;
        let running = running.into_iter();
        running.for_each(|running| (0..groups.len()).for_each(|_| running.count()));
        Ok(())
    }

    /// How groups are taken: in one call, where the engine does that and nothing is to be done between two of them.
    pub(in crate::layer) fn at_once<E: Element<Acc = P>>(
        &self,
        grouping: Grouping,
        whole: &Part<'_, M, E>,
        masked: bool,
    ) -> Grouping {
        let (shape, config) = (&whole.shape, &self.affine.config);
        let groups = match grouping {
            Grouping::Consecutive(size) => {
                GroupRows { size, count: shape.batch().div_ceil(size), is_strided: false }
            }
            Grouping::AsChannels(count) | Grouping::Strided(count) => {
                GroupRows { size: shape.batch() / count, count, is_strided: true }
            }
            Grouping::AtOnce(groups) => groups,
        };
        let updates = config.ghost.map(|ghost| ghost.update);
        let is_one_update = !groups.is_strided || updates == Some(GhostUpdate::Average);
        let request = Request::new(Op::ForwardTrain, E::DTYPE).activation(config.activation);
        let request = request.residual(whole.residual.is_some()).mask(masked);
        let is_plain = config.non_finite == NonFinite::Propagate && is_one_update;
        match is_plain && self.engine().takes_groups_at_once(shape, groups, request) {
            true => Grouping::AtOnce(groups),
            false => grouping,
        }
    }

    /// A forward of all groups in one call.
    pub(super) fn forward_at_once<E: Element<Acc = P>>(
        &mut self,
        groups: GroupRows,
        whole: &mut Part<'_, M, E>,
        mask: Option<&Mask<'_, M>>,
        average: Option<(f64, f64)>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (momentum, moves) = (self.affine.config.momentum, self.updates_running);
        let Self { affine, running, .. } = self;
        let mut running = running.as_mut().filter(|_| moves);
        let before = running.as_ref().map_or(0, |running| running.num_batches_tracked);
        let each = (0..groups.count as u64).map(|k| momentum.factors(before.saturating_add(k)));
        let factors = average.map_or_else(|| each.collect(), |average| vec![average]);
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let saved = saved.open_groups(1).first_mut();
        let mask = mask.map(Mask::reborrow);
        let args = affine.train(x, residual, mask, y, running.as_deref_mut(), saved);
        affine.engine.forward_train_at_once(&whole.shape, groups, args, &factors)?;
        let running = running.into_iter();
        running.for_each(|running| factors.iter().for_each(|_| running.count()));
        Ok(())
    }

    /// Statistics of every row, merged by group, then every row by those of its group.
    fn forward_strided<E: Element<Acc = P>>(
        &mut self,
        groups: usize,
        whole: &mut Part<'_, M, E>,
        updates: &Updates,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (shape, engine) = (whole.shape, self.affine.engine.clone());
        let (rows, channels) = (shape.batch() / groups, shape.channels());
        let len = 3 * channels + 1;
        let (moves, one_value) = (self.updates_running, self.affine.config.one_value);
        let shared = self.groups.parts(engine.memory(), rows, channels)?;
        shared.count(engine.memory(), shape.of_rows(rows).per_channel())?;
        let saved = saved.open_groups(groups * rows);
        for group in 0..groups {
            let shape = shape.of_rows(1);
            for k in 0..rows {
                let mut records = M::view_mut(&mut shared.records);
                let record = M::slice_mut(&mut records, k * len..(k + 1) * len);
                let x = M::slice(&whole.x, rows_at(&shape, k * groups + group));
                let args = Stats::<M, E>::new(present("x", x)?, present("records", record)?);
                engine.stats(&shape, args)?;
            }
            self.affine.config.momentum =
                updates.momentum(group).unwrap_or(self.affine.config.momentum);
            let mut running = self.running.as_mut().filter(|_| moves);
            let mut args = shared.merge(one_value);
            args.running = running.as_deref_mut().map(|running| self.affine.config.next(running));
            engine.merge_stats(args)?;
            running.into_iter().for_each(RunningStats::count);
            for (k, saved) in saved[group * rows..][..rows].iter_mut().enumerate() {
                let Part { x, residual, y, .. } =
                    slice(whole, rows_at(&shape, k * groups + group))?;
                let given = Given::Record(&shared.merged);
                let x = Input::View(x);
                self.affine.by_given(&shape, x, residual, y, given, Some(saved))?;
            }
        }
        Ok(())
    }
}

/// These elements of every tensor.
pub(super) fn slice<'b, M: Memory, E: Element>(
    whole: &'b mut Part<'_, M, E>,
    at: Range<usize>,
) -> Result<Part<'b, M, E>> {
    let Part { shape, x, residual, y } = whole;
    let x = present("x", M::slice(x, at.clone()))?;
    let residual = residual.as_ref().map(|r| present("residual", M::slice(r, at.clone())));
    let mut part = Part::<M, E>::new(*shape, x, present("y", M::slice_mut(y, at))?);
    part.residual = residual.transpose()?;
    Ok(part)
}
