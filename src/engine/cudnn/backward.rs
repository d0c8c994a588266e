//! The backward through the batch's own statistics.
use super::form::Form;
use super::launch::Gradients;
use super::{Cudnn, Space};
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::{Backward, Input};
use crate::{Device, Element, Error, Memory, Result, Shape};

impl Cudnn {
    pub(super) fn launch_backward<E: Element>(
        &self,
        shape: &Shape,
        args: Backward<'_, Device, E>,
    ) -> Result<()> {
        let (_, saved) = args.saved.made()?;
        let form = Form::new(shape, args.request()?, self.persistent)?;
        let Input::View(grad_y) = args.grad_y else { return Ok(()) }; // a limit

        let mut desk = self.desk();
        let sizes = desk.describe(&form)?;
        let [workspace, _] = desk.spaces(&self.memory, &sizes)?;
        let Backward { x, grad_x, grad_residual, grad_weight, grad_bias, .. } = args;
        let parameters = (grad_weight.is_some(), grad_bias.is_some());
        let constants = self.constants_for::<E::Acc>(&mut desk, shape, parameters)?;
        let mut pointers = Pointers::new(self.stream());
        let reserve = saved.reserve.as_ref();
        let kept = reserve.map_or(0, |reserve| reserve.len());
        let y_at = sizes.reserve_end();
        let needed = form.kept(&sizes);
        if kept < needed {
            let reason = format!("expected {needed} bytes that the forward put aside, got {kept}");
            return Err(Error::invalid("saved", reason));
        }
        let reserve = pointers.read_some(reserve.map(Device::view));
        let gradients = Gradients {
            x: pointers.read(x),
            y: match form.activates() {
                true => Ptr::at(reserve.address() + y_at as u64),
                false => Ptr::NULL,
            },
            dy: pointers.read(grad_y),
            dz: pointers.write_some(grad_residual),
            dx: pointers.write_some(grad_x),
            scale: pointers.read(Device::view(&saved.weight)),
            bias: pointers.read(Device::view(&saved.bias)),
            dscale: grad_weight.map_or(constants.grad_weight, |grad| pointers.write(grad)),
            dbias: grad_bias.map_or(constants.grad_bias, |grad| pointers.write(grad)),
            accumulate: args.accumulate,
            eps: 1e-5,
            saved: [&saved.mean, &saved.invstd].map(|buf| pointers.read(Device::view(buf))),
            workspace,
            reserve: Space { at: reserve, bytes: sizes.reserve },
        };
        desk.backward(&form, &gradients)
    }
}
