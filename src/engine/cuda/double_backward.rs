//! The double backward: sums of the parts, what they add up to, and what that makes of the elements.
use super::arguments::Channels;
use super::launch::{Bound, Counting, Cut, DoubleLauncher, Follows, Parameters, Reads, Writes};
use super::{Cuda, Layout, Pointers, Ptr, masked};
use crate::engine::places::Places;
use crate::engine::pointers::SavedAt;
use crate::engine::saved::ByChannel;
use crate::engine::{Derivative, DoubleBackward};
use crate::{DType, Device, Element, Real, Result, Shape};

/// What it works in.
pub(super) fn layout(shape: &Shape, dtype: DType) -> Layout {
    Layout::of_partials(Cut::new(shape, dtype).room())
}

impl Cuda {
    /// The arguments are checked.
    pub(in crate::engine) fn launch_double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, Device, E>,
    ) -> Result<()> {
        self.cut(shape, E::DTYPE)?; // refuses what has no grid
        let (forward, saved) = args.saved.made()?;
        let kernels = self.shared.modules.double_backward(E::DTYPE)?;
        let cut = Cut::new(shape, E::DTYPE);
        let room = self.shared.workspace.room(&self.memory, layout(shape, E::DTYPE))?;
        let mut pointers = Pointers::new(self.stream());
        let activation = forward.activation;
        let batch = forward.batch_statistics || args.total_sums.is_some();
        let curved = activation.is_curved();
        let source = activation.derivative_from(forward.residual);
        let masks = source == Derivative::FromMask;
        let residual = args.residual.filter(|_| source == Derivative::FromResidual);
        let SavedAt { by_channel, reserve } = pointers.read_saved(saved);
        let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
        let mut counting = Counting::ALL;
        let (mut counts, mut count_eps) = (Ptr::NULL, 0.0);
        if let Some((rules, places)) = forward.mask.zip(args.mask) {
            let of = Places::new(shape, rules.last)?;
            counting = Counting::new(pointers.read(places), of, &cut);
            count_eps = rules.count_eps;
            counts = match args.saved.counted() {
                Some(all) => pointers.read(all.counts.as_view()),
                None => masked::counts(reserve, shape, size_of::<E>(), masks),
            };
        }
        let from = Reads {
            x: pointers.read(args.x),
            grad_y: pointers.read(args.grad_y),
            residual: pointers.read_some(residual),
            v_x: pointers.read_some(args.v_x),
            v_residual: pointers.read_some(args.v_residual),
            mask: if masks { reserve } else { Ptr::NULL },
            counting,
        };
        let to = Writes {
            gg_grad_y: pointers.write_some(args.gg_grad_y),
            gg_x: pointers.write_some(args.gg_x),
            gg_residual: pointers.write_some(args.gg_residual),
        };
        let (total, values) = match args.total_sums {
            Some((total, values)) => (pointers.read(total), values),
            None => (Ptr::NULL, shape.per_channel()),
        };
        let parameters = Parameters {
            v_weight: pointers.read_some(args.v_weight),
            v_bias: pointers.read_some(args.v_bias),
            gg_weight: pointers.write_some(args.gg_weight),
            gg_bias: pointers.write_some(args.gg_bias),
            nonfinite: self.shared.workspace.nonfinite(),
            accumulate: args.accumulate.into(),
            batch: batch.into(),
            sums: pointers.write_some(args.sums),
            total,
            values: values.max(1) as f64,
            counts,
            count_eps,
        };
        let follows = Follows {
            activation: activation.code(),
            source: source.code(),
            slope: Real::from_f64(activation.negative_slope()),
        };
        let launcher = DoubleLauncher {
            kernels: &kernels,
            stream: Bound::new(self.stream()),
            cut,
            by: Channels { mean, mean_rest, invstd, weight, bias },
            curved,
            room: room.partials(),
        };
        let of_parameters =
            !parameters.gg_weight.is_null() || curved && !parameters.gg_bias.is_null();
        let asks = !parameters.sums.is_null();
        let own = parameters.total.is_null() && (of_parameters || batch && to.any());
        let has_sums = !shape.is_empty() && (asks || own);
        if has_sums {
            launcher.sums(from, follows)?;
        }
        launcher.finalize(parameters, has_sums)?;
        if to.any() && !asks {
            launcher.apply(from, follows, parameters.batch, to)?;
        }
        Ok(())
    }
}
