//! The backward of what was a forward in groups.
use super::super::{BatchNorm, Param, PartGradients};
use super::Scratch;
use super::forward::{consecutive, present, rows_at};
use crate::engine::{Grouping, MaskRules};
use crate::{Element, Engine, Error, Input, Memory, Real, Result, Saved, Shape};
use std::ops::Range;

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// The gradients asked for, each group's through its own statistics.
    pub(in crate::layer) fn backward_groups<E: Element<Acc = P>>(
        &mut self,
        whole_saved: &Saved<M, P>,
        places: Option<M::View<'_, u8>>,
        whole: &mut PartGradients<'_, M, E>,
    ) -> Result<()> {
        let Some((forward, grouping, saved)) = whole_saved.groups() else { return Ok(()) };
        let shape = forward.shape;
        self.affine.check(&shape)?;
        forward.check_parameters(self.weight().is_some(), self.bias().is_some())?;
        check_lens(whole, shape.len())?;
        let places = places.as_ref();
        check_places::<M>(forward.mask, places, &shape)?;
        match grouping {
            Grouping::Consecutive(size) => {
                let groups = || consecutive(&shape, size).map(|(_, at)| at).zip(saved);
                self.check_calls(whole, places, groups())?;
                self.backward_consecutive(whole_saved, places, whole)
            }
            Grouping::AtOnce(_) => {
                let Some(saved) = saved.first() else { return Ok(()) };
                {
                    let mut args = whole.args(saved);
                    args.mask = places.map(M::reborrow);
                    args.check_on(self.engine().memory(), &shape)?;
                    self.engine().supports(&shape, args.request()?)?;
                }
                self.backward_consecutive(whole_saved, places, whole)
            }
            Grouping::AsChannels(groups) => match saved {
                [saved] => self.backward_as_channels(saved, groups, places, whole),
                _ => Ok(()),
            },
            Grouping::Strided(groups) => {
                let rows = shape.batch() / groups;
                let row = shape.of_rows(1);
                let at = |k: usize| rows_at(&row, k % rows * groups + k / rows);
                self.check_calls(whole, places, saved.iter().enumerate().map(|(k, s)| (at(k), s)))?;
                self.backward_strided(saved, groups, places, whole)
            }
        }
    }

    /// A backward of each group.
    fn backward_consecutive<E: Element<Acc = P>>(
        &mut self,
        saved: &Saved<M, P>,
        places: Option<&M::View<'_, u8>>,
        whole: &mut PartGradients<'_, M, E>,
    ) -> Result<()> {
        let engine = self.affine.engine.clone();
        let both = [&mut self.affine.weight, &mut self.affine.bias];
        let accumulate = Param::begin_backward(engine.memory(), both)?;
        let mut args = whole.args(saved).accumulate(accumulate);
        args.grad_weight = Param::wanted(&mut self.affine.weight);
        args.grad_bias = Param::wanted(&mut self.affine.bias);
        args.mask = places.map(M::reborrow);
        engine.backward_groups(args)?;
        Param::end_backward([&mut self.affine.weight, &mut self.affine.bias]);
        Ok(())
    }

    /// The check of everything, before anything is written.
    fn check_calls<'s, E: Element<Acc = P>>(
        &self,
        whole: &mut PartGradients<'_, M, E>,
        places: Option<&M::View<'_, u8>>,
        calls: impl Iterator<Item = (Range<usize>, &'s Saved<M, P>)>,
    ) -> Result<()> {
        for (at, saved) in calls {
            let mask = mask_at(saved, places, &at)?;
            let mut part = slice(whole, at)?;
            let shape = saved.made()?.0.shape;
            let mut args = part.args(saved);
            args.mask = mask.as_ref().map(M::reborrow);
            args.check_on(self.engine().memory(), &shape)?;
            self.engine().supports(&shape, args.request()?)?;
        }
        Ok(())
    }

    /// The sums over the rows of a group, then each of them by those.
    fn backward_strided<E: Element<Acc = P>>(
        &mut self,
        saved: &[Saved<M, P>],
        groups: usize,
        places: Option<&M::View<'_, u8>>,
        whole: &mut PartGradients<'_, M, E>,
    ) -> Result<()> {
        let engine = self.affine.engine.clone();
        let (rows, channels) = (saved.len() / groups, self.affine.channels);
        let Some(shape) = saved.first().and_then(Saved::shape) else { return Ok(()) };
        self.groups.tiles(engine.memory(), 1, channels)?.begin_sums(&engine)?;
        self.groups.parts(engine.memory(), rows, channels)?;
        let Scratch { parts: Some(shared), channels: Some(one), .. } = &mut self.groups else {
            return Ok(());
        };
        shared.count(engine.memory(), rows * shape.per_channel())?;
        let both = [&mut self.affine.weight, &mut self.affine.bias];
        let accumulate = Param::begin_backward(engine.memory(), both)?;
        for (group, saved) in saved.chunks_exact(rows).enumerate() {
            let at = |k: usize| k * groups + group;
            for (k, saved) in saved.iter().enumerate() {
                let mask = mask_at(saved, places, &rows_at(&shape, at(k)))?;
                let part = slice(whole, rows_at(&shape, at(k)))?;
                let mut sums = M::view_mut(&mut shared.sums);
                let mut sums = M::split_at_mut(&mut sums, channels);
                let Some(args) = part.sums(saved) else { continue };
                let mut args = args.accumulate(k > 0);
                args.mask = mask.as_ref().map(M::reborrow);
                if let Some((sum_g, rest)) = &mut sums {
                    args.grad_bias = Some(M::reborrow_mut(sum_g));
                    args.grad_weight = M::slice_mut(rest, 0..channels);
                }
                engine.backward(&shape, args)?;
            }
            let sums = [channels..2 * channels, 0..channels]; // of g * xhat, of g
            let both = [&mut self.affine.weight, &mut self.affine.bias];
            for (param, at) in both.into_iter().zip(sums) {
                let Some(to) = Param::wanted(param) else { continue };
                let from = present("sums", M::part(&shared.sums, at))?;
                one.sum(&engine, from, to, accumulate || group > 0)?;
            }
            for (k, saved) in saved.iter().enumerate() {
                let mask = mask_at(saved, places, &rows_at(&shape, at(k)))?;
                let mut part = slice(whole, rows_at(&shape, at(k)))?;
                let mut args = part.args(saved);
                args.mask = mask.as_ref().map(M::reborrow);
                if args.grad_x.is_none() && args.grad_residual.is_none() {
                    continue;
                }
                args.total_sums = Some(M::view(&shared.sums));
                engine.backward(&shape, args)?;
            }
        }
        Param::end_backward([&mut self.affine.weight, &mut self.affine.bias]);
        Ok(())
    }
}

fn check_lens<M: Memory, E: Element>(
    whole: &PartGradients<'_, M, E>,
    expected: usize,
) -> Result<()> {
    let PartGradients { x, residual, grad_y, grad_x, grad_residual } = whole;
    let len = |view: &Option<M::ViewMut<'_, E>>| view.as_ref().map(|v| M::len(&M::as_view(v)));
    let grad_y = match grad_y {
        Input::View(grad_y) => Some(M::len(grad_y)),
        Input::InPlace => None,
    };
    let lens = [
        ("x", Some(M::len(x))),
        ("residual", residual.as_ref().map(M::len)),
        ("grad_y", grad_y),
        ("grad_x", len(grad_x)),
        ("grad_residual", len(grad_residual)),
    ];
    match lens.into_iter().find(|(_, got)| got.is_some_and(|got| got != expected)) {
        Some((what, Some(got))) => Err(Error::Length { what, expected, got }),
        _ => Ok(()),
    }
}

/// Refuses a mask where the forward had none, or none where it had one, and one of another length.
pub(super) fn check_places<M: Memory>(
    rules: Option<MaskRules>,
    places: Option<&M::View<'_, u8>>,
    shape: &Shape,
) -> Result<()> {
    match (rules, places) {
        (Some(rules), Some(places)) => {
            let expected = rules.places_of(&(0..shape.len()), shape.channels()).len();
            match M::len(places) {
                got if got == expected => Ok(()),
                got => Err(Error::Length { what: "mask", expected, got }),
            }
        }
        (None, None) => Ok(()),
        (rules, _) => {
            let one = |there: bool| if there { "one" } else { "none" };
            Err(Error::saved("mask", one(rules.is_some()), one(rules.is_none())))
        }
    }
}

/// The places of these elements of a batch, one of whose forwards saved this.
pub(super) fn mask_at<'m, M: Memory, P: Real>(
    saved: &Saved<M, P>,
    places: Option<&'m M::View<'_, u8>>,
    at: &Range<usize>,
) -> Result<Option<M::View<'m, u8>>> {
    let forward = saved.made()?.0;
    let (Some(rules), Some(places)) = (forward.mask, places) else { return Ok(None) };
    let at = rules.places_of(at, forward.shape.channels());
    present("mask", M::slice(places, at)).map(Some)
}

/// These elements of every tensor.
fn slice<'b, M: Memory, E: Element>(
    whole: &'b mut PartGradients<'_, M, E>,
    at: Range<usize>,
) -> Result<PartGradients<'b, M, E>> {
    let PartGradients { x, residual, grad_y, grad_x, grad_residual } = whole;
    let read = |what, view| present(what, M::slice(view, at.clone()));
    let write = |what, view: &'b mut Option<M::ViewMut<'_, E>>| {
        view.as_mut().map(|view| present(what, M::slice_mut(view, at.clone()))).transpose()
    };
    let grad_y = match grad_y {
        Input::View(grad_y) => Input::View(read("grad_y", grad_y)?),
        Input::InPlace => Input::InPlace,
    };
    Ok(PartGradients {
        x: read("x", x)?,
        residual: residual.as_ref().map(|view| read("residual", view)).transpose()?,
        grad_y,
        grad_x: write("grad_x", grad_x)?,
        grad_residual: write("grad_residual", grad_residual)?,
    })
}
