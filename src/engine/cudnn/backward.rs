//! The backward through the batch's own statistics.
use super::form::Form;
use super::launch::Gradients;
use super::{Cudnn, Space};
use crate::engine::pointers::{Pointers, Ptr, SavedAt};
use crate::engine::saved::ByChannel;
use crate::engine::{Backward, Input};
use crate::{Device, Element, Error, Result, Shape};

impl Cudnn {
    pub(super) fn launch_backward<E: Element>(
        &self,
        shape: &Shape,
        args: Backward<'_, Device, E>,
    ) -> Result<()> {
        let (forward, saved) = args.saved.made()?;
        let form = Form::new(shape, args.request()?, self.persistent)?;
        let Input::View(grad_y) = args.grad_y else { return Ok(()) }; // a limit

        let mut desk = self.desk();
        let sizes = desk.describe(&form)?.sizes;
        let [workspace, _] = desk.spaces(&self.memory, &sizes)?;
        let Backward { x, grad_x, grad_residual, grad_weight, grad_bias, .. } = args;
        let parameters = (grad_weight.is_some(), grad_bias.is_some());
        let constants = self.constants_for::<E::Acc>(&mut desk, shape, parameters)?;
        let mut pointers = Pointers::new(self.stream());
        let SavedAt { by_channel, reserve } = pointers.read_saved(saved);
        let ByChannel { mean, invstd, weight, bias, .. } = by_channel;
        let (reserve_len, needed) = (saved.reserve_len(), form.kept(&sizes, forward.y_is_kept));
        if reserve_len < needed {
            let reason =
                format!("expected {needed} bytes that the forward put aside, got {reserve_len}");
            return Err(Error::invalid("saved", reason));
        }
        let y = pointers.read_some(args.y.filter(|_| form.activates() && forward.y_is_kept));
        let gradients = Gradients {
            x: pointers.read(x),
            y: match form.activates() && !forward.y_is_kept {
                true => Ptr::at(reserve.address() + sizes.reserve_end() as u64),
                false => y,
            },
            dy: pointers.read(grad_y),
            dz: pointers.write_some(grad_residual),
            dx: pointers.write_some(grad_x),
            scale: weight,
            bias,
            dscale: grad_weight.map_or(constants.grad_weight, |grad| pointers.write(grad)),
            dbias: grad_bias.map_or(constants.grad_bias, |grad| pointers.write(grad)),
            accumulate: args.accumulate,
            eps: 1e-5,
            saved: [mean, invstd],
            workspace,
            reserve: Space { at: reserve, bytes: sizes.reserve },
        };
        desk.backward(&form, &gradients)
    }
}
