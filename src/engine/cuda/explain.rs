//! What an engine would do, in words.
use super::launch::Cut;
use super::module::Variant;
use super::resident::Step;
use super::{Cuda, Family, NAME};
use crate::engine::{Engine, Op, Request};
use crate::{Result, Shape};

impl Cuda {
    /// How it would serve a request: its kernels and how they cut the tensor.
    ///
    /// # Errors
    /// As [`Engine::supports`]; or the driver does not load the kernels.
    pub fn explain(&self, shape: &Shape, request: Request) -> Result<String> {
        self.supports(shape, request)?;
        let (steps, resident) = match request.op {
            Op::ForwardTrain if request.mask => ("masked_stats, masked_finalize, apply", None),
            Op::Backward if request.mask => {
                ("backward_sums, backward_finalize, masked_backward_apply", Some(Step::Backward))
            }
            Op::ForwardTrain => ("stats, stats_finalize, apply", Some(Step::Forward)),
            Op::ForwardEval => ("apply", None),
            Op::Backward => {
                ("backward_sums, backward_finalize, backward_apply", Some(Step::Backward))
            }
            Op::BackwardEval => ("backward_sums, backward_finalize", None),
            Op::DoubleBackward => {
                let curved = if request.activation.is_curved() { "_curved" } else { "" };
                let [sums, apply] =
                    ["sums", "apply"].map(|step| format!("double_backward_{step}{curved}"));
                return Ok(format!(
                    "{NAME}: {sums}, double_backward_finalize, {apply}; {}",
                    Cut::new(shape, request.dtype)
                ));
            }
            Op::Stats if request.mask => ("masked_stats, masked_finalize", None),
            Op::Stats => ("stats, stats_finalize", None),
            Op::MergeStats if request.mask => {
                return Ok(format!("{NAME}: masked_merge, a thread per channel"));
            }
            Op::MergeStats => return Ok(format!("{NAME}: merge_stats, a thread per channel")),
            Op::LayerNorm => return Ok(format!("{NAME}: layer_norm, a warp or a block per row")),
            Op::LayerNormBackward => {
                let steps = "layer_norm_backward, layer_norm_sums, layer_norm_finalize";
                return Ok(format!("{NAME}: {steps}, a warp or a block per row"));
            }
            Op::OptimizerStep => {
                return Ok(format!("{NAME}: optimizer_step, a thread per channel"));
            }
            Op::Regularize => return Ok(format!("{NAME}: regularize, one block")),
            Op::Constrain => return Ok(format!("{NAME}: constrain, one block")),
            Op::Renormalize => return Ok(format!("{NAME}: renormalize, a thread per channel")),
            Op::RenormalizeBackward => {
                return Ok(format!("{NAME}: renormalize_backward, a thread per channel"));
            }
        };
        let (plan, dtype) = (self.cut(shape, request.dtype)?, request.dtype);
        let Some(step) = resident.filter(|_| self.tuning.family != Family::Split) else {
            return Ok(format!("{NAME}: {steps}; {plan}"));
        };
        let modules = &self.shared.modules;
        let variant = Variant::of(request.activation, request.mask);
        let (resident, refused) = (
            self.resident(shape, dtype, variant, step)?,
            format!("{}{}", modules.refusals, modules.unfit(dtype, variant)),
        );
        let Some((resident, _)) = resident else {
            return Ok(format!("{NAME}: {steps}; {plan}{refused}"));
        };
        let name = match step {
            Step::Forward => "forward",
            Step::Backward if variant == Variant::Masked => "masked_backward",
            Step::Backward => "backward",
        };
        let otherwise = "where a tensor does not start at a multiple of 16 bytes";
        Ok(format!("{NAME}: {name}_resident; {resident}; {otherwise}: {steps}; {plan}{refused}"))
    }
}
