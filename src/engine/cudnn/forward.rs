//! Both forwards.
use super::form::Form;
use super::launch::{Inference, Training};
use super::{Cudnn, Space};
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::saved::{ByChannel, Mark};
use crate::engine::{ForwardEval, ForwardTrain, Input, Running, Statistics};
use crate::{Device, Element, Result, Shape};

impl Cudnn {
    pub(super) fn launch_forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Device, E>,
    ) -> Result<()> {
        let form = Form::new(shape, args.request(), self.persistent)?;
        let mut desk = self.desk();
        // Refuses what is unknown before anything is saved.
        let sizes = desk.describe(&form)?.sizes;
        let y_is_kept = args.y_is_kept;

        let opened = args.open_with(self, shape, |_| form.kept(&sizes, y_is_kept))?;
        let (mut buffers, mark) = opened.map(|opened| (opened.buffers, opened.mark)).unzip();
        // Of which cuDNN knows nothing, and our backward something, which may follow a forward of its.
        buffers.iter_mut().try_for_each(|buffers| buffers.zero_rest(&self.memory))?;
        let ForwardTrain { x, residual, weight, bias, eps, running, y, .. } = args;
        let parameters = (weight.is_some(), bias.is_some());
        let [workspace, unsaved] = desk.spaces(&self.memory, &sizes)?;
        let constants = self.constants_for::<E::Acc>(&mut desk, shape, parameters)?;
        let mut pointers = Pointers::new(self.stream());
        let (factor, running) = match running {
            Some(Running { mean, var, factor, .. }) => {
                (factor, [pointers.write(mean), pointers.write(var)])
            }
            None => (0.0, [Ptr::NULL; 2]),
        };
        let saved = buffers.map(|buffers| pointers.write_saved(buffers));
        let (statistics, reserve) = match &saved {
            Some(saved) => {
                let ByChannel { mean, invstd, .. } = saved.by_channel;
                ([mean, invstd], Space { at: saved.reserve, bytes: sizes.reserve })
            }
            None => ([Ptr::NULL; 2], unsaved),
        };
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
            saved: statistics,
            workspace,
            reserve,
        };
        desk.forward_train(&form, &training)?;
        if let Some(saved) = saved {
            if form.activates() && !y_is_kept {
                // Backward asks for y again, which the caller may have dropped by then.
                let to = Ptr::at(saved.reserve.address() + sizes.reserve_end() as u64);
                desk.copy(y, to, shape.len())?;
            }
            // An optimizer may change both before the backward.
            let ByChannel { weight, bias, .. } = saved.by_channel;
            desk.copy(training.scale, weight, shape.channels())?;
            desk.copy(training.bias, bias, shape.channels())?;
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
