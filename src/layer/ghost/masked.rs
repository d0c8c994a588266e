//! The training forward in groups of which not all values count.
use super::super::affine::Given;
use super::super::{BatchNorm, GhostUpdate, Part, RunningStats};
use super::Scratch;
use super::channels::running_of;
use super::forward::{Updates, consecutive, present, rows_at, slice};
use crate::engine::{Counted, Grouping, MergeMasked, Places};
use crate::{
    AllMasked, Element, Engine, Error, Input, Mask, Memory, OneValue, Op, Real, Request, Result,
    Saved, Shape,
};
use std::ops::Range;

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A training forward in groups, each by those of its values that count.
    pub(in crate::layer) fn forward_masked_groups<E: Element<Acc = P>>(
        &mut self,
        grouping: Grouping,
        mask: Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        self.check_capture()?;
        check_rows(&whole.shape, &mask)?;
        let shape = whole.shape;
        let (grouping, last) = self.masked_grouping(grouping, whole, &mask)?;
        let mask = Mask { last, ..mask };
        self.check_groups(grouping, whole, Some(&mask))?;
        let before = self.running.as_ref().map_or(0, |running| running.num_batches_tracked);
        let average = self.averages().then(|| self.affine.config.momentum.factors(before));
        match grouping {
            Grouping::Consecutive(size) if self.averages() && self.updates_running => {
                self.averaged_consecutive(size, &mask, whole, saved)?;
            }
            Grouping::Consecutive(size) => {
                let each = Updates { average: None, groups: 0, vars: 0 };
                self.forward_consecutive(size, whole, Some(&mask), &each, saved)?;
            }
            Grouping::AsChannels(groups) => {
                self.forward_as_channels(groups, whole, Some(&mask), average, saved)?;
            }
            Grouping::AtOnce(groups) => {
                self.forward_at_once(groups, whole, Some(&mask), average, saved)?;
            }
            Grouping::Strided(groups) => self.masked_strided(groups, &mask, whole, saved)?,
        }
        saved.fill_groups(shape, grouping)
    }

    /// How groups are taken by a mask, and the length of the last axis that it is without, if it is: in one call where
    /// the engine does that, all channels of a position have a place and values are counted exactly; strided ones as
    /// channels of one tensor where those of a place are neighbours, and where no running statistics have to stay where
    /// they are between two groups.
    fn masked_grouping<E: Element<Acc = P>>(
        &self,
        grouping: Grouping,
        whole: &Part<'_, M, E>,
        mask: &Mask<'_, M>,
    ) -> Result<(Grouping, Option<usize>)> {
        let shape = &whole.shape;
        if let Ok(Places::Positions { channels, inner: 1 }) = Places::new(shape, mask.last)
            && mask.count_eps == 0.0
            && let at_once @ Grouping::AtOnce(_) = self.at_once(grouping, whole, true)
        {
            return Ok((at_once, Some(channels)));
        }
        let (Grouping::AsChannels(groups) | Grouping::Strided(groups)) = grouping else {
            return Ok((grouping, mask.last));
        };
        let each = match Places::new(shape, mask.last)? {
            Places::Neighbours(each) => Some(each),
            Places::Positions { channels, inner: 1 } => Some(channels),
            Places::Positions { channels, .. } => (channels == 1).then_some(1),
        };
        let keeps = mask.all_masked == AllMasked::Keep
            || self.affine.config.one_value == OneValue::KeepVariance;
        let moves_all = self.averages() || !self.updates_running || !keeps;
        let request = Request::new(Op::ForwardTrain, E::DTYPE).mask(true);
        let engine = self.engine();
        let all = shape.of_strided_groups(groups).filter(|all| {
            moves_all && (all.dealt().is_none() || engine.takes_groups(all, request))
        });
        Ok(match (all, each) {
            (Some(_), Some(each)) => (Grouping::AsChannels(groups), Some(each)),
            _ => (Grouping::Strided(groups), mask.last),
        })
    }

    fn averages(&self) -> bool {
        self.affine.config.ghost.is_some_and(|ghost| ghost.update == GhostUpdate::Average)
    }

    /// A forward for each group, which moves statistics of its own from where the layer's are, all the way, for an average
    /// of these: those that nothing moves leave their share as it is.
    fn averaged_consecutive<E: Element<Acc = P>>(
        &mut self,
        size: usize,
        mask: &Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let groups: Vec<_> = consecutive(&whole.shape, size).collect();
        let (engine, channels) = (self.affine.engine.clone(), self.affine.channels);
        let Self { affine, running, groups: scratch, .. } = self;
        let Some(running) = running else { return Ok(()) };
        let tiles = scratch.begin_average(&engine, running, groups.len())?;
        let saved = saved.open_groups(groups.len());
        for (k, ((shape, at), saved)) in groups.iter().zip(saved).enumerate() {
            let mask = Some(mask.at(at, channels)?);
            let Part { x, residual, y, .. } = slice(whole, at.clone())?;
            let mut own = tiles.statistics();
            let mut args = affine.train(x, residual, mask, y, None, Some(saved));
            args.running = Some(running_of::<M, P>(&mut own, k, &affine.config, channels)?);
            engine.forward_train(shape, args.alone(true))?;
        }
        tiles.end_average(&engine, running, &affine.config)
    }

    /// Statistics of every row, merged by group, then every row by those of its group.
    fn masked_strided<E: Element<Acc = P>>(
        &mut self,
        groups: usize,
        mask: &Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (moves, averages) = (self.updates_running, self.averages());
        let (engine, channels) = (self.affine.engine.clone(), self.affine.channels);
        let (memory, config, rules) = (engine.memory(), self.affine.config, mask.rules());
        let (rows, row) = (whole.shape.batch() / groups, whole.shape.of_rows(1));
        let (values, len) = (rows * row.per_channel(), 4 * channels);
        let Self { affine, running, groups: scratch, .. } = self;
        let mut running = running.as_mut().filter(|_| moves);
        scratch.parts(memory, rows, channels)?.count(memory, values)?;
        scratch.counted(memory, rows, channels)?;
        let averaged = running.as_deref().filter(|_| averages);
        let averages = averaged.is_some();
        if let Some(running) = averaged {
            scratch.begin_average(&engine, running, groups)?;
        }
        let Scratch { parts: Some(shared), counted: Some(parts), averaged: tiles, .. } = scratch
        else {
            return Ok(());
        };
        let saved = saved.open_groups(groups * rows);
        for (group, saved) in saved.chunks_exact_mut(rows).enumerate() {
            let at = |k: usize| rows_at(&row, k * groups + group);
            parts.fill(&engine, (&row, config.eps), (&whole.x, mask), at)?;
            let mut own = tiles.as_mut().filter(|_| averages).map(|tiles| tiles.statistics());
            let own = own.as_mut();
            let of_group = own.map(|all| running_of::<M, P>(all, group, &config, channels));
            let merged = M::view_mut(&mut parts.merged);
            let mut args = MergeMasked::<M, P>::new(M::view(&parts.rows), rules, merged);
            args.one_value = config.one_value;
            args.record = Some(M::view_mut(&mut shared.merged));
            let of_layer = running.as_deref_mut().filter(|_| !averages);
            args.running = of_group.transpose()?.or(of_layer.map(|running| config.next(running)));
            engine.merge_masked(args)?;
            if !averages {
                running.iter_mut().for_each(|running| RunningStats::count(running));
            }
            for (k, saved) in saved.iter_mut().enumerate() {
                let Part { x, residual, y, .. } = slice(whole, at(k))?;
                let given = Given::Record(&shared.merged);
                affine.by_given(&row, Input::View(x), residual, y, given, Some(&mut *saved))?;
                let mut counts = saved.take_counts(memory, channels)?;
                let from = present("counts", M::part(&parts.merged, 3 * channels..len))?;
                memory.copy(from, M::view_mut(&mut counts))?;
                saved.set_counted(rules, Counted { counts, values });
            }
        }
        match (tiles, running) {
            (Some(tiles), Some(running)) if averages => {
                tiles.end_average(&engine, running, &config)
            }
            _ => Ok(()),
        }
    }
}

/// What rows of strided groups come to by a mask: four numbers of every channel, as
/// [`Engine::masked_stats`] has them.
pub(super) struct CountedRows<M: Memory> {
    /// Of every row of a group, one after the other.
    pub rows: M::Buf<f64>,
    /// Of all of them.
    merged: M::Buf<f64>,
    made_for: (usize, usize),
}

impl<M: Memory> CountedRows<M> {
    /// The numbers of every row of a group, whose elements lie there.
    pub fn fill<E: Element, G: Engine<Memory = M>>(
        &mut self,
        engine: &G,
        (row, eps): (&Shape, f64),
        (x, mask): (&M::View<'_, E>, &Mask<'_, M>),
        at: impl Fn(usize) -> Range<usize>,
    ) -> Result<()> {
        let (rows, channels) = self.made_for;
        let len = 4 * channels;
        for k in 0..rows {
            let of_row = present("x", M::slice(x, at(k)))?;
            let places = mask.at(&at(k), channels)?;
            let mut all = M::view_mut(&mut self.rows);
            let to = present("records", M::slice_mut(&mut all, k * len..(k + 1) * len))?;
            engine.masked_stats(row, of_row, places, eps, to)?;
        }
        Ok(())
    }
}

impl<M: Memory, P: Real> Scratch<M, P> {
    /// For groups of so many rows each.
    pub(super) fn counted(
        &mut self,
        memory: &M,
        rows: usize,
        channels: usize,
    ) -> Result<&mut CountedRows<M>> {
        let made_for = (rows, channels);
        let counted = match self.counted.take().filter(|counted| counted.made_for == made_for) {
            Some(counted) => counted,
            None => {
                let len = 4 * channels;
                let (rows, merged) = (memory.zeros(len.saturating_mul(rows))?, memory.zeros(len)?);
                CountedRows { rows, merged, made_for }
            }
        };
        Ok(self.counted.insert(counted))
    }
}

/// Refuses a mask of which a row has no whole places.
pub(super) fn check_rows<M: Memory>(shape: &Shape, mask: &Mask<'_, M>) -> Result<()> {
    let row_len = shape.row_len().unwrap_or(0);
    match mask.last {
        Some(last) if last > 0 && !row_len.is_multiple_of(last) => {
            let reason = format!(
                "with ghost batches: expected a last axis that divides the {row_len} elements of a row, got one of \
                 {last}"
            );
            Err(Error::invalid("mask", reason))
        }
        _ => Ok(()),
    }
}
