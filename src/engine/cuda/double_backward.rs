//! The double backward: sums of the parts, what they add up to, and what that makes of the elements.
use super::arguments::Channels;
use super::launch::{Bound, Cut, DoubleLauncher, Follows, Parameters, Reads, Writes};
use super::{Cuda, Layout, NAME, Pointers, Ptr};
use crate::engine::pointers::SavedAt;
use crate::engine::saved::ByChannel;
use crate::engine::{Derivative, DoubleBackward};
use crate::{DType, Device, Element, Error, Real, Result, Shape};

/// How it is cut.
pub(super) fn cut(shape: &Shape, dtype: DType) -> Cut {
    Cut::new(shape, dtype)
}
/// What it works in.
pub(super) fn layout(shape: &Shape, dtype: DType) -> Layout {
    Layout::of_partials(cut(shape, dtype).room())
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
        let of_parts = args.sums.is_some() || args.total_sums.is_some();
        let refused = [
            (forward.mask.is_some(), "after a mask there is no backward of a backward"),
            (
                of_parts || shape.dealt().is_some(),
                "there is no backward of a backward of strided ghost batches whose channels are neither the axis \
                 behind the rows nor one alone",
            ),
        ];
        if let Some((_, reason)) = refused.into_iter().find(|(is_asked, _)| *is_asked) {
            return Err(Error::Unsupported { engine: NAME, reason: reason.into() });
        }
        let kernels = self.shared.modules.double_backward(E::DTYPE)?;
        let room = self.shared.workspace.room(&self.memory, layout(shape, E::DTYPE))?;
        let mut pointers = Pointers::new(self.stream());
        let (activation, batch) = (forward.activation, forward.batch_statistics);
        let curved = activation.is_curved();
        let source = activation.derivative_from(forward.residual);
        let residual = args.residual.filter(|_| source == Derivative::FromResidual);
        let SavedAt { by_channel, reserve } = pointers.read_saved(saved);
        let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
        let from = Reads {
            x: pointers.read(args.x),
            grad_y: pointers.read(args.grad_y),
            residual: pointers.read_some(residual),
            v_x: pointers.read_some(args.v_x),
            v_residual: pointers.read_some(args.v_residual),
            mask: if source == Derivative::FromMask { reserve } else { Ptr::NULL },
        };
        let to = Writes {
            gg_grad_y: pointers.write_some(args.gg_grad_y),
            gg_x: pointers.write_some(args.gg_x),
            gg_residual: pointers.write_some(args.gg_residual),
        };
        let parameters = Parameters {
            v_weight: pointers.read_some(args.v_weight),
            v_bias: pointers.read_some(args.v_bias),
            gg_weight: pointers.write_some(args.gg_weight),
            gg_bias: pointers.write_some(args.gg_bias),
            nonfinite: self.shared.workspace.nonfinite(),
            accumulate: args.accumulate.into(),
            batch: batch.into(),
        };
        let follows = Follows {
            activation: activation.code(),
            source: source.code(),
            slope: Real::from_f64(activation.negative_slope()),
        };
        let launcher = DoubleLauncher {
            kernels: &kernels,
            stream: Bound::new(self.stream()),
            cut: cut(shape, E::DTYPE),
            by: Channels { mean, mean_rest, invstd, weight, bias },
            curved,
            room: room.partials(),
        };
        let of_parameters =
            !parameters.gg_weight.is_null() || curved && !parameters.gg_bias.is_null();
        let has_sums = !shape.is_empty() && (of_parameters || batch && to.any());
        if has_sums {
            launcher.sums(from, follows)?;
        }
        launcher.finalize(parameters, has_sums)?;
        if to.any() {
            launcher.apply(from, follows, parameters.batch, to)?;
        }
        Ok(())
    }
}
