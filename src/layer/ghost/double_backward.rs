//! The gradients of a backward of what was a forward in groups.
use super::super::{BatchNorm, Param};
use super::backward::{check_places, mask_at};
use super::forward::{consecutive, present, rows_at};
use crate::engine::{DOUBLE_SUMS, GroupRows, Grouping};
use crate::{DoubleBackward, Element, Engine, Memory, Real, Result, Saved};
use std::ops::Range;

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// Each group's gradients go through its own statistics.
    pub(in crate::layer) fn double_backward_groups<E: Element<Acc = P>>(
        &mut self,
        whole: &mut DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let whole_saved = whole.saved;
        let Some((forward, grouping, saved)) = whole_saved.groups() else { return Ok(()) };
        let shape = forward.shape;
        check_places::<M>(forward.mask, whole.mask.as_ref(), &shape)?;
        whole.check_lens(self.engine().memory(), &shape)?;
        match grouping {
            Grouping::Consecutive(size) => {
                let groups = || consecutive(&shape, size).map(|(_, at)| at).zip(saved);
                self.double_backward_consecutive(groups, whole)
            }
            // As groups in turn, by what they would have left.
            Grouping::AtOnce(GroupRows { count, is_strided: true, .. }) => {
                let all = present("x", shape.of_strided_groups(count))?;
                let memory = self.engine().memory().clone();
                match whole_saved.as_channels(&memory, all)? {
                    Some(saved) => self.double_backward_as_channels(&saved, count, whole),
                    None => Ok(()),
                }
            }
            Grouping::AtOnce(GroupRows { size, .. }) => {
                let shapes = consecutive(&shape, size).map(|(shape, _)| shape);
                let saved = whole_saved.apart(&self.engine().memory().clone(), shapes)?;
                let groups = || consecutive(&shape, size).map(|(_, at)| at).zip(&saved);
                self.double_backward_consecutive(groups, whole)
            }
            Grouping::AsChannels(groups) => match saved {
                [saved] => self.double_backward_as_channels(saved, groups, whole),
                _ => Ok(()),
            },
            Grouping::Strided(groups) => {
                let (rows, row) = (shape.batch() / groups, shape.of_rows(1));
                let at = |k: usize| rows_at(&row, k % rows * groups + k / rows);
                self.check_doubles(whole, saved.iter().enumerate().map(|(k, s)| (at(k), s)))?;
                self.double_backward_strided(saved, groups, whole)
            }
        }
    }

    /// A call for each group.
    fn double_backward_consecutive<'s, E, I>(
        &mut self,
        groups: impl Fn() -> I,
        whole: &mut DoubleBackward<'_, M, E>,
    ) -> Result<()>
    where
        E: Element<Acc = P>,
        I: Iterator<Item = (Range<usize>, &'s Saved<M, P>)>,
    {
        self.check_doubles(whole, groups())?;
        for (k, (at, saved)) in groups().enumerate() {
            let shape = saved.made()?.0.shape;
            self.add_double_backward(&shape, part(whole, saved, at)?, k == 0)?;
        }
        Ok(())
    }

    /// The check of everything, before anything is written.
    fn check_doubles<'s, E: Element<Acc = P>>(
        &self,
        whole: &mut DoubleBackward<'_, M, E>,
        calls: impl Iterator<Item = (Range<usize>, &'s Saved<M, P>)>,
    ) -> Result<()> {
        for (at, saved) in calls {
            let shape = saved.made()?.0.shape;
            let mut part = part(whole, saved, at)?;
            part.check_on(self.engine().memory(), &shape)?;
            self.engine().supports(&shape, part.request()?)?;
        }
        Ok(())
    }

    /// One call, of which every group has channels of its own: what is given of a channel is repeated for each, and
    /// gradients of parameters are summed over them.
    fn double_backward_as_channels<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        groups: usize,
        whole: &mut DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let all = saved.forward()?.shape;
        let (engine, channels) = (self.affine.engine.clone(), self.affine.channels);
        let mut args = part(whole, saved, 0..all.len())?;
        let (v_weight, v_bias) = (args.v_weight.take(), args.v_bias.take());
        args.check_on(engine.memory(), &all)?;
        engine.supports(&all, args.request()?)?;
        let wants = |param: Option<&Param<M, P>>| param.is_some_and(|param| param.requires_grad);
        let (wants_weight, wants_bias) = (wants(self.weight()), wants(self.bias()));
        let tiles = self.groups.tiles(engine.memory(), groups, channels)?;
        if wants_weight || wants_bias {
            tiles.begin_sums(&engine)?;
        }
        let ([v_weight, v_bias], [of_weight, of_bias]) =
            tiles.repeat(&engine, [v_weight, v_bias])?;
        (args.v_weight, args.v_bias) = (v_weight, v_bias);
        args.gg_weight = wants_weight.then(|| M::view_mut(of_weight));
        args.gg_bias = wants_bias.then(|| M::view_mut(of_bias));
        engine.double_backward(&all, args)?;
        self.add_tiles(groups)
    }

    /// The sums over the rows of a group, then each of them by those.
    fn double_backward_strided<E: Element<Acc = P>>(
        &mut self,
        saved: &[Saved<M, P>],
        groups: usize,
        whole: &mut DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let engine = self.affine.engine.clone();
        let (rows, len) = (saved.len() / groups, DOUBLE_SUMS * self.affine.channels);
        let Some(shape) = saved.first().and_then(Saved::shape) else { return Ok(()) };
        let at = |group: usize, k: usize| rows_at(&shape, k * groups + group);
        let made = self.groups.double_sums.take().filter(|sums| M::len(&M::view(sums)) == len);
        let mut sums = made.map_or_else(|| engine.memory().zeros(len), Ok)?;
        let per_channel = rows * shape.per_channel();
        for (group, saved) in saved.chunks_exact(rows).enumerate() {
            for (k, saved) in saved.iter().enumerate() {
                let mut args = part(whole, saved, at(group, k))?;
                (args.gg_grad_y, args.gg_x, args.gg_residual) = (None, None, None);
                args.sums = Some(M::view_mut(&mut sums));
                engine.double_backward(&shape, args.accumulate(k > 0))?;
            }
            for (k, saved) in saved.iter().enumerate() {
                let mut args = part(whole, saved, at(group, k))?;
                args.total_sums = Some((M::view(&sums), per_channel));
                if k == 0 {
                    // The parameters' come of the sums alone.
                    self.add_double_backward(&shape, args, group == 0)?;
                } else if args.gg_grad_y.is_some()
                    || args.gg_x.is_some()
                    || args.gg_residual.is_some()
                {
                    engine.double_backward(&shape, args)?;
                }
            }
        }
        self.groups.double_sums = Some(sums);
        Ok(())
    }
}

/// What one group, or a row of it, takes of a batch.
fn part<'b, M: Memory, E: Element>(
    whole: &'b mut DoubleBackward<'_, M, E>,
    saved: &'b Saved<M, E::Acc>,
    at: Range<usize>,
) -> Result<DoubleBackward<'b, M, E>> {
    let read = |what, view| present(what, M::slice(view, at.clone()));
    let write = |what, view: &'b mut Option<M::ViewMut<'_, E>>| {
        view.as_mut().map(|view| present(what, M::slice_mut(view, at.clone()))).transpose()
    };
    let mask = mask_at(saved, whole.mask.as_ref(), &at)?;
    let mut part = DoubleBackward::new(saved, read("x", &whole.x)?, read("grad_y", &whole.grad_y)?)
        .create_graph(whole.create_graph);
    part.residual = whole.residual.as_ref().map(|view| read("residual", view)).transpose()?;
    part.v_x = whole.v_x.as_ref().map(|view| read("v_x", view)).transpose()?;
    part.v_residual = whole.v_residual.as_ref().map(|view| read("v_residual", view)).transpose()?;
    part.v_weight = whole.v_weight.as_ref().map(M::reborrow);
    part.mask = mask;
    part.v_bias = whole.v_bias.as_ref().map(M::reborrow);
    part.gg_grad_y = write("gg_grad_y", &mut whole.gg_grad_y)?;
    part.gg_x = write("gg_x", &mut whole.gg_x)?;
    part.gg_residual = write("gg_residual", &mut whole.gg_residual)?;
    Ok(part)
}
