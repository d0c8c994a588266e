//! The training forward in groups of which not all values count.
use super::super::affine::Given;
use super::super::{BatchNorm, GhostUpdate, Part, RunningStats};
use super::forward::{consecutive, present, rows_at, slice};
use crate::engine::counted_parts::{CountedParts, OnHost, merged};
use crate::engine::{Counted, GroupRows, Grouping};
use crate::{Element, Engine, Error, Input, Mask, Memory, Real, Result, Running, Saved, Shape};
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
        self.check_groups(grouping, whole, Some(&mask))?;
        let shape = whole.shape;
        let grouping = grouping.in_turn();
        match grouping {
            Grouping::Consecutive(size) => {
                self.masked_consecutive(size, &mask, whole, saved)?;
                saved.fill_groups(shape, grouping)
            }
            // No mask comes to what takes groups at once.
            Grouping::AtOnce(GroupRows { count: groups, .. })
            | Grouping::AsChannels(groups)
            | Grouping::Strided(groups) => {
                self.masked_strided(groups, &mask, whole, saved)?;
                saved.fill_groups(shape, Grouping::Strided(groups))
            }
        }
    }

    fn averages(&self) -> bool {
        self.affine.config.ghost.is_some_and(|ghost| ghost.update == GhostUpdate::Average)
    }

    /// A forward for each group. For an average each moves statistics of its own from where the layer's are, all
    /// the way: those that nothing moves leave their share as it is.
    fn masked_consecutive<E: Element<Acc = P>>(
        &mut self,
        size: usize,
        mask: &Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (averages, moves) = (self.averages(), self.updates_running);
        let groups: Vec<_> = consecutive(&whole.shape, size).collect();
        let (engine, channels) = (self.affine.engine.clone(), self.affine.channels);
        let Self { affine, running, groups: scratch, .. } = self;
        let mut running = running.as_mut().filter(|_| moves);
        let mut tiles = match (&running, averages) {
            (Some(running), true) => {
                let tiles = scratch.tiles(engine.memory(), groups.len(), channels)?;
                let RunningStats { mean, var, .. } = &**running;
                tiles.repeat(&engine, [Some(M::view(mean)), Some(M::view(var))])?;
                Some(tiles)
            }
            _ => None,
        };
        let saved = saved.open_groups(groups.len());
        for (k, ((shape, at), saved)) in groups.iter().zip(saved).enumerate() {
            let mask = mask_at(mask, at, channels)?;
            let mut part = slice(whole, at.clone())?;
            {
                let mut own = tiles.as_mut().map(|tiles| tiles.statistics());
                let of_group = k * channels..(k + 1) * channels;
                let own = own.as_mut().map(|both| {
                    let [mean, var] =
                        both.each_mut().map(|all| M::slice_mut(all, of_group.clone()));
                    Ok((present("running", mean)?, present("running", var)?))
                });
                let (x, y) = (M::reborrow(&part.x), M::reborrow_mut(&mut part.y));
                let residual = part.residual.as_ref().map(M::reborrow);
                let of_layer = running.as_deref_mut().filter(|_| !averages);
                let mask = Some(mask.reborrow());
                let mut args = affine.train(x, residual, mask, y, of_layer, Some(saved));
                if let Some((mean, var)) = own.transpose()? {
                    let own = Running::new(mean, var, 1.0).variance(affine.config.variance);
                    args.running = Some(own);
                }
                engine.forward_train(shape, args.alone(true))?;
            }
            if !averages {
                running.iter_mut().for_each(|running| RunningStats::count(running));
            }
        }
        if let (Some(tiles), Some(running)) = (tiles, running) {
            let factors = affine.config.momentum.factors(running.num_batches_tracked);
            tiles.move_by_average(&engine, running, factors)?;
            running.count();
        }
        Ok(())
    }

    /// Statistics of every row, merged by group, then every row by those of its group. What is merged has a count for
    /// each channel, and goes through the host.
    fn masked_strided<E: Element<Acc = P>>(
        &mut self,
        groups: usize,
        mask: &Mask<'_, M>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let (averages, moves) = (self.averages(), self.updates_running);
        let (engine, channels) = (self.affine.engine.clone(), self.affine.channels);
        let (memory, config, rules) = (engine.memory(), self.affine.config, mask.rules());
        let (rows, row) = (whole.shape.batch() / groups, whole.shape.of_rows(1));
        let values = rows * row.per_channel();
        let Self { affine, running, groups: scratch, .. } = self;
        let mut running = running.as_mut().filter(|_| moves);
        let shared = scratch.parts(memory, rows, channels)?;
        shared.count(memory, values)?;
        let saved = saved.open_groups(groups * rows);
        let mut sums = [vec![0.0; channels], vec![0.0; channels]];
        for (group, saved) in saved.chunks_exact_mut(rows).enumerate() {
            let at = |k: usize| rows_at(&row, k * groups + group);
            let mut parts = Vec::with_capacity(4 * channels * rows);
            for k in 0..rows {
                let x = present("x", M::slice(&whole.x, at(k)))?;
                let part = mask_at(mask, &at(k), channels)?;
                parts.extend(engine.masked_stats(&row, x, part, config.eps)?);
            }
            let all = merged(&parts, channels);
            let all = CountedParts { all: &all, rules };
            memory.write(&all.record(values), M::view_mut(&mut shared.merged))?;
            if let Some(running) = running.as_deref_mut() {
                let mut next = config.next(running);
                let mut on_host = OnHost::new(memory, &next)?;
                all.update(&mut on_host.borrow(), config.one_value);
                if averages {
                    on_host.add_to(&mut sums);
                } else {
                    on_host.write(memory, &mut next)?;
                    drop(next);
                    running.count();
                }
            }
            for (k, saved) in saved.iter_mut().enumerate() {
                let Part { x, residual, y, .. } = slice(whole, at(k))?;
                let given = Given::Record(&shared.merged);
                affine.by_given(&row, Input::View(x), residual, y, given, Some(&mut *saved))?;
                let mut counts = saved.take_counts(memory, channels)?;
                memory.write(all.counts(), M::view_mut(&mut counts))?;
                saved.set_counted(rules, Counted { counts, values });
            }
        }
        if let Some(running) = running.filter(|_| averages) {
            let [mean, var] = sums.map(|sums| {
                sums.into_iter().map(|sum| P::from_f64(sum / groups as f64)).collect::<Vec<_>>()
            });
            memory.write(&mean, M::view_mut(&mut running.mean))?;
            memory.write(&var, M::view_mut(&mut running.var))?;
            running.count();
        }
        Ok(())
    }
}

/// Refuses a mask of which a row has no whole places.
fn check_rows<M: Memory>(shape: &Shape, mask: &Mask<'_, M>) -> Result<()> {
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

/// The mask of these elements.
fn mask_at<'m, M: Memory>(
    mask: &'m Mask<'_, M>,
    at: &Range<usize>,
    channels: usize,
) -> Result<Mask<'m, M>> {
    let places = M::slice(&mask.places, mask.rules().places_of(at, channels));
    let Mask { last, count_eps, all_masked, .. } = *mask;
    Ok(Mask { places: present("mask", places)?, last, count_eps, all_masked })
}
