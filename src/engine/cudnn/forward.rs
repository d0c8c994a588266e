//! Both forwards.
use super::form::Form;
use super::launch::{Inference, Training};
use super::{Cudnn, Space};
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::saved::{Buffers, Mark};
use crate::engine::{ForwardEval, ForwardTrain, Input, Running, Statistics};
use crate::{Device, Element, Memory, Result, Shape};

impl Cudnn {
    pub(super) fn launch_forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Device, E>,
    ) -> Result<()> {
        let form = Form::new(shape, args.request(), self.persistent)?;
        // Refuses what is unknown before anything is saved.
        let kept = form.kept(&self.desk().describe(&form)?);

        let opened = args.open_with(self, shape, |_| kept)?;
        let (buffers, mark) = opened.map(|opened| (opened.buffers, opened.mark)).unzip();
        let ForwardTrain { x, residual, weight, bias, eps, running, y, .. } = args;
        let parameters = (weight.is_some(), bias.is_some());
        let mut desk = self.desk();
        let sizes = desk.describe(&form)?;
        let [workspace, unsaved] = desk.spaces(&self.memory, &sizes)?;
        let constants = self.constants_for::<E::Acc>(&mut desk, shape, parameters)?;
        let mut pointers = Pointers::new(self.stream());
        let (factor, running) = match running {
            Some(Running { mean, var, factor, .. }) => {
                (factor, [pointers.write(mean), pointers.write(var)])
            }
            None => (0.0, [Ptr::NULL; 2]),
        };
        let ([mean, invstd, saved_weight, saved_bias], kept) = match buffers {
            Some(saved) => {
                let Buffers { mean, invstd, weight, bias, reserve, .. } = saved;
                let kept = pointers.write_some(reserve.as_mut().map(Device::view_mut));
                let by_channel = [mean, invstd, weight, bias];
                (by_channel.map(|buf| pointers.write(Device::view_mut(buf))), kept)
            }
            None => ([Ptr::NULL; 4], Ptr::NULL),
        };
        let own = Space { at: kept, bytes: sizes.reserve };
        let reserve = if kept.is_null() { unsaved } else { own };
        let y = pointers.write(y);
        let training = Training {
            x: pointers.read(x),
            z: pointers.read_some(residual),
            y,
            scale: weight.map_or(constants.ones, |weight| pointers.read(weight)),
            bias: bias.map_or(constants.zeros, |bias| pointers.read(bias)),
            factor,
            running,
            eps,
            saved: [mean, invstd],
            workspace,
            reserve,
        };
        desk.forward_train(&form, &training)?;
        if form.activates() && !kept.is_null() {
            // Backward asks for y again, which the caller may have dropped by then.
            let to = Ptr::at(kept.address() + sizes.reserve_end() as u64);
            desk.copy(y, to, shape.len())?;
        }
        if !saved_weight.is_null() {
            // An optimizer may change both before the backward.
            desk.copy(training.scale, saved_weight, shape.channels())?;
            desk.copy(training.bias, saved_bias, shape.channels())?;
        }
        mark.into_iter().for_each(Mark::filled);
        Ok(())
    }

    pub(super) fn launch_forward_eval<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardEval<'_, Device, E>,
    ) -> Result<()> {
        let form = Form::new(shape, args.request(), self.persistent)?;
        let ForwardEval { x, weight, bias, statistics, eps, y, .. } = args;
        let Statistics::Given { mean, var } = statistics else { return Ok(()) }; // a limit
        let mut desk = self.desk();
        desk.describe(&form)?;
        let parameters = (weight.is_some(), bias.is_some());
        let constants = self.constants_for::<E::Acc>(&mut desk, shape, parameters)?;
        let mut pointers = Pointers::new(self.stream());
        let y = pointers.write(y);
        let inference = Inference {
            x: match x {
                Input::View(x) => pointers.read(x),
                Input::InPlace => y,
            },
            y,
            scale: weight.map_or(constants.ones, |weight| pointers.read(weight)),
            bias: bias.map_or(constants.zeros, |bias| pointers.read(bias)),
            mean: pointers.read(mean),
            var: pointers.read(var),
            eps,
        };
        desk.forward_eval(&form, &inference)
    }
}
