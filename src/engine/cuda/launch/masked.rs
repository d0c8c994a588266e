//! The kernels of `kernels/masked_entries.cuh`, as [`super`] has those of a step without a mask.
use super::super::arguments::{AnyActivation, Channels, Merge, Outputs, Tensors};
use super::super::masked::{Places, Rules, Shares};
use super::super::plan::Plan;
use super::{BLOCK, Launcher, WARPS, aligned};
use crate::engine::pointers::Ptr;
use crate::{Element, Result};

impl Launcher<'_> {
    /// Sums of the values that count, of every tile.
    pub fn masked_stats<E: Element>(
        &self,
        plan: &Plan,
        places: Places,
        x: Ptr<E>,
        partials: Ptr<f64>,
    ) -> Result<()> {
        let kernels = self.modules.masked(self.dtype)?;
        let geometry = aligned(plan, &[x]);
        self.tiles(&kernels.stats, plan, arguments![geometry, places, x, partials])
    }

    /// What they come to, and how many values count in each channel, where that is kept.
    #[allow(clippy::too_many_arguments)] // the kernel has them
    pub fn masked_finalize<E: Element>(
        &self,
        plan: &Plan,
        outputs: Outputs<E::Acc>,
        places: Places,
        rules: Rules,
        x: Ptr<E>,
        partials: Ptr<f64>,
        counts: Ptr<f64>,
    ) -> Result<()> {
        let kernels = self.modules.masked(self.dtype)?;
        let (merge, grid) = (Merge::from(plan), plan.geometry.channels.div_ceil(WARPS));
        let arguments = arguments![merge, outputs, places, rules, x, partials, counts];
        self.submit(&kernels.finalize, grid, BLOCK, arguments)
    }

    /// What the values that count in all parts come to. This launcher is one of statistics.
    pub fn masked_merge<A>(
        &self,
        channels: u32,
        parts: u32,
        counted: Ptr<f64>,
        rules: Rules,
        outputs: Outputs<A>,
        merged: Ptr<f64>,
    ) -> Result<()> {
        let kernels = self.modules.masked(self.dtype)?;
        let arguments = arguments![channels, parts, counted, rules, outputs, merged];
        self.submit(kernels.merge()?, channels.div_ceil(BLOCK), BLOCK, arguments)
    }

    /// The gradients of x and of the residual.
    pub fn masked_backward_apply<E: Element>(
        &self,
        plan: &Plan,
        channels: Channels<E::Acc>,
        tensors: Tensors<E>,
        places: Places,
        shares: Shares<E::Acc>,
    ) -> Result<()> {
        let kernels = self.modules.masked(self.dtype)?;
        let geometry = aligned(plan, &tensors.all());
        let Tensors { x, grad_y, mask, residual, grad_x, grad_residual, .. } = tensors;
        let (source, act) = (tensors.source.code(), AnyActivation::<E::Acc>::new(self.activation));
        let arguments = arguments![
            geometry,
            channels,
            x,
            grad_y,
            mask,
            source,
            residual,
            act,
            places,
            shares,
            grad_x,
            grad_residual
        ];
        self.tiles(&kernels.backward_apply, plan, arguments)
    }
}
