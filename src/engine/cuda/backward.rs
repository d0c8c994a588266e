//! The backward through statistics of the batch, of all parts of it, or frozen ones.
use super::arguments::{Act, Channels, Gradients, Tensors};
use super::masked::{self, Places, Shares};
use super::module::Variant;
use super::plan::Geometry;
use super::resident::Step;
use super::{Cuda, Layout, Pointers, Ptr};
use crate::engine::pointers::SavedAt;
use crate::engine::saved::ByChannel;
use crate::engine::{Backward, Derivative, Input};
use crate::{Device, Element, Result, Shape};

impl Cuda {
    /// Sums of the tiles and of the channels, then the gradients, as far as they are asked for; or
    /// all of it in one launch. The arguments are checked.
    pub(in crate::engine) fn launch_backward<E: Element>(
        &self,
        shape: &Shape,
        args: Backward<'_, Device, E>,
    ) -> Result<()> {
        let (forward, saved) = args.saved.made()?;
        let wants_sums =
            args.sums.is_some() || args.grad_weight.is_some() || args.grad_bias.is_some();
        let wants_x = args.grad_x.is_some();
        let has_total = args.total_sums.is_some();
        // Whether the gradient of x flows through sums, and whether they come from this tensor.
        let through_sums = wants_x && (forward.batch_statistics || has_total);
        let adds_up = wants_sums || through_sums && !has_total;

        let activation = forward.activation;
        let plan = self.plan::<E>(shape)?;
        // What reads its tensors twice.
        let resident = match through_sums && !has_total {
            true => {
                let variant = Variant::of(activation, forward.mask.is_some());
                self.resident(shape, E::DTYPE, variant, Step::Backward)?
            }
            false => None,
        };
        let layout = Layout::new::<E::Acc>(&plan);
        let layout = if adds_up { layout } else { Layout::of_channels::<E::Acc>(&plan) };
        let layout = layout.or(resident.as_ref().map(|(plan, _)| plan));
        let room = self.shared.workspace.room(&self.memory, layout)?;
        let (launcher, mut pointers) =
            (self.launcher::<E>(activation), Pointers::new(self.stream()));

        let source = activation.derivative_from(forward.residual);
        let residual = args.residual.filter(|_| source == Derivative::FromResidual);
        let SavedAt { by_channel, reserve } = pointers.read_saved(saved);
        let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
        let channels = Channels { mean, mean_rest, invstd, weight, bias };
        // Which values count, and how many of each channel, of this tensor or of all parts of a batch that it is one of.
        let masks = source == Derivative::FromMask;
        let masked = forward.mask.zip(args.mask).filter(|_| through_sums).map(|(rules, places)| {
            let (counts, values) = match args.saved.counted() {
                Some(all) => (pointers.read(all.counts.as_view()), all.values as u64),
                None => (masked::counts(reserve, shape, size_of::<E>(), masks), plan.count),
            };
            let shares = Shares {
                coefs: room.coefs(),
                counts,
                values,
                count_eps: rules.count_eps,
                channels: shape.channels() as u64,
            };
            (rules.last, pointers.read(places), shares)
        });
        let places_of = |geometry: &Geometry, lanes: u32| {
            let of = |(last, bytes, shares)| {
                Places::new(shape, geometry, lanes, last, bytes).map(|places| (places, shares))
            };
            masked.map(of).transpose()
        };
        let in_place = matches!(args.grad_y, Input::InPlace);
        let grad_x = pointers.write_some(args.grad_x);
        let tensors = Tensors {
            x: pointers.read(args.x),
            grad_y: match args.grad_y {
                Input::View(grad_y) => pointers.read(grad_y),
                Input::InPlace => grad_x,
            },
            mask: if source == Derivative::FromMask { reserve } else { Ptr::NULL },
            source,
            residual: pointers.read_some(residual),
            act: Act::new(activation),
            grad_x,
            grad_residual: pointers.write_some(args.grad_residual),
        };
        let partials = if adds_up { room.partials() } else { Ptr::NULL };
        let coefs = if through_sums { room.coefs() } else { Ptr::NULL };
        let gradients = Gradients {
            total_sums: pointers.read_some(args.total_sums),
            grad_weight: pointers.write_some(args.grad_weight),
            grad_bias: pointers.write_some(args.grad_bias),
            sums: pointers.write_some(args.sums),
            coefs,
            nonfinite: self.shared.workspace.nonfinite(),
        };

        if let Some((plan, kernel)) = resident.filter(|_| tensors.are_aligned()) {
            let masked = places_of(&plan.geometry, plan.lanes)?;
            let accumulate = args.accumulate;
            let done = self.in_one_launch(&plan, partials, |group| {
                launcher.backward_resident(
                    &kernel, &plan, group, channels, gradients, tensors, accumulate, masked,
                )
            })?;
            if done {
                return Ok(());
            }
        }
        let none = Tensors { grad_x: Ptr::NULL, grad_residual: Ptr::NULL, ..tensors };
        let is_written = !(tensors.grad_x.is_null() && tensors.grad_residual.is_null());
        if adds_up {
            // Where no gradient flows through the sums, one pass does all.
            let written = if through_sums { none } else { tensors };
            launcher.backward_sums(&plan, channels, written, partials)?;
        }
        if adds_up || through_sums {
            let partials = if shape.is_empty() { Ptr::NULL } else { partials };
            // A pass that wrote the gradient of x may have overwritten that of y.
            let is_gone = !through_sums && in_place;
            let grad_y = if is_gone { Ptr::NULL } else { tensors.grad_y };
            let read = Tensors { grad_y, ..tensors };
            let accumulate = args.accumulate;
            launcher.backward_finalize(&plan, channels, read, gradients, accumulate, partials)?;
        }
        if is_written && (through_sums || !adds_up) {
            match places_of(&plan.geometry, plan.lanes)? {
                None => launcher.backward_apply(&plan, channels, tensors, coefs)?,
                Some((places, shares)) => {
                    launcher.masked_backward_apply(&plan, channels, tensors, places, shares)?
                }
            }
        }
        Ok(())
    }
}
