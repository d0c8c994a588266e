//! Layer normalization: a launch over rows; backward another one, and two for the parameters' gradients.
use super::launch::{Bound, LayerNorm, RowLauncher, Rows};
use super::{Cuda, Layout, Pointers, Ptr};
use crate::engine::layer_norm::{Buffers, ByRow, Opened};
use crate::engine::{EpsRule, LayerNormBackward, LayerNormForward};
use crate::{Device, Element, Error, Real, Result, Shape};

/// Refuses features that are more than a grid has blocks for.
pub(super) fn check_features(shape: &Shape) -> Result<()> {
    const MOST: usize = 1 << 28;
    if shape.channels() <= MOST {
        return Ok(());
    }
    let reason = format!("expected at most {MOST} features, got {}", shape.channels());
    Err(Error::Unsupported { engine: super::NAME, reason })
}

fn geometry(shape: &Shape, eps: f64, rule: EpsRule) -> LayerNorm {
    LayerNorm::new(shape.len() / shape.channels(), shape.channels(), eps, rule)
}

impl<P: Real> Rows<P> {
    /// What a forward saves from an address on; and the weight there.
    fn at(start: u64, offsets: ByRow<u64>) -> (Self, Ptr<P>) {
        let at = |offset| Ptr::at(start + offset);
        let ByRow { mean, mean_rest, root, weight } = offsets;
        (Self { mean: at(mean), mean_rest: at(mean_rest), std: at(root) }, at(weight))
    }
}

impl<'a> Pointers<'a> {
    fn read_rows<P: Real>(&mut self, saved: &'a Buffers<Device, P>) -> (Rows<P>, Ptr<P>) {
        Rows::at(self.read(saved.all()).address(), saved.offsets())
    }
    fn write_rows<P: Real>(&mut self, saved: &'a mut Buffers<Device, P>) -> (Rows<P>, Ptr<P>) {
        let offsets = saved.offsets();
        Rows::at(self.write(saved.all_mut()).address(), offsets)
    }
}

/// What a backward for this shape works in.
pub(super) fn layout(shape: &Shape) -> Layout {
    Layout::of_partials(geometry(shape, 1.0, EpsRule::Variance).partials())
}

impl Cuda {
    pub(super) fn rows<E: Element>(
        &self,
        shape: &Shape,
        mut args: LayerNormForward<'_, Device, E>,
    ) -> Result<()> {
        check_features(shape)?;
        let kernels = self.shared.modules.layer_norm(E::DTYPE)?;
        let opened = args.open(self, shape)?;
        let launcher = RowLauncher { kernels: &kernels, stream: Bound::new(self.stream()) };
        // Launches of two threads stay apart.
        let _room = self.shared.workspace.room(&self.memory, Layout::of_partials(0))?;
        let mut pointers = Pointers::new(self.stream());
        let LayerNormForward { x, weight, bias, eps, eps_rule, y, .. } = args;
        let (x, y) = (pointers.read(x), pointers.write(y));
        let (weight, bias) = (pointers.read_some(weight), pointers.read_some(bias));
        let (by, nonfinite) = (geometry(shape, eps, eps_rule), self.shared.workspace.nonfinite());
        let Some(Opened { buffers, mark }) = opened else {
            return launcher.forward(by, x, weight, bias, y, Rows::NONE, Ptr::NULL, nonfinite);
        };
        let (saved, to_weight) = pointers.write_rows(buffers);
        launcher.forward(by, x, weight, bias, y, saved, to_weight, nonfinite)?;
        mark.filled();
        Ok(())
    }

    pub(super) fn row_gradients<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, Device, E>,
    ) -> Result<()> {
        check_features(shape)?;
        let kernels = self.shared.modules.layer_norm(E::DTYPE)?;
        let launcher = RowLauncher { kernels: &kernels, stream: Bound::new(self.stream()) };
        let (forward, buffers) = args.saved.made()?;
        let by = geometry(shape, forward.eps, forward.rule);
        let LayerNormBackward { x, grad_y, grad_x, grad_weight, grad_bias, accumulate, .. } = args;
        let sums = grad_weight.is_some() || grad_bias.is_some();
        let layout = if sums { layout(shape) } else { Layout::of_partials(0) };
        let room = self.shared.workspace.room(&self.memory, layout)?;
        let mut pointers = Pointers::new(self.stream());
        let (saved, weight) = pointers.read_rows(buffers);
        let (x, grad_y) = (pointers.read(x), pointers.read(grad_y));
        if let Some(grad_x) = grad_x.filter(|_| !shape.is_empty()) {
            launcher.backward(by, saved, weight, x, grad_y, pointers.write(grad_x))?;
        }
        if sums {
            let (partials, nonfinite) = (room.partials(), self.shared.workspace.nonfinite());
            let grad_weight = pointers.write_some(grad_weight);
            let grad_bias = pointers.write_some(grad_bias);
            launcher.sums(by, saved, x, grad_y, partials)?;
            launcher.finalize(by, partials, accumulate, grad_weight, grad_bias, nonfinite)?;
        }
        Ok(())
    }
}
