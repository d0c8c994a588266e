//! What changes a parameter on a CUDA device: kernels that both engines there launch.
//!
//! What makes a launch sound is checked before it: a [`Ptr`] comes from a view of this context, `check`
//! of the arguments has compared every length with that of the parameter, and the kernels stay below the
//! `count` that they are given.
use super::optimizer::{Family, Rule};
use super::penalty::Norms;
use super::pointers::{Pointers, Ptr};
use super::ptx::{capability, function, load};
use super::{Constrain, EmptyBatch, OneValue, OptimizerStep, Regularize, Regularizer};
use super::{RenormState, Renormalize, RenormalizeBackward};
use crate::memory::refused;
use crate::{DType, Device, Error, Real, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Threads of a block.
const BLOCK: u32 = 256;
/// Blocks of an optimizer's step, at most: each takes more values where that is not enough.
const BLOCKS: usize = 1024;

/// The numbers of a step, as `kernels/parameters.cu` has them.
#[repr(C)]
#[derive(Clone, Copy)]
struct StepOptions {
    lr_factor: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    family: u32,
    /// Bits: [`StepOptions::NESTEROV`] and its like.
    switches: u32,
}

impl StepOptions {
    const NESTEROV: u32 = 1;
    const DECAY_APART: u32 = 2;
    const AMSGRAD: u32 = 4;
    const EPS_FIRST: u32 = 8;
}

/// The numbers of a constraint.
#[repr(C)]
#[derive(Clone, Copy)]
struct NormOptions {
    least: f64,
    most: f64,
    rate: f64,
    non_negative: u32,
    reserved: u32,
}

/// The numbers of a renormalization.
#[repr(C)]
#[derive(Clone, Copy)]
struct RenormOptions {
    eps: f64,
    r_min: f64,
    r_max: f64,
    d_max: f64,
    factor: f64,
    stddev_factor: f64,
    renorm_factor: f64,
    /// Bits: [`RenormOptions::UPDATES`] and its like.
    switches: u32,
    reserved: u32,
}

impl RenormOptions {
    const UPDATES: u32 = 1;
    const KEEP_VARIANCE: u32 = 2;
    const EMPTY_IS_NAN: u32 = 4;
}

/// Where the vectors of a renormalization lie.
#[repr(C)]
#[derive(Clone, Copy)]
struct RenormAt<P> {
    record: Ptr<f64>,
    weight: Ptr<P>,
    bias: Ptr<P>,
    mean: Ptr<P>,
    stddev: Ptr<P>,
    var: Ptr<P>,
    renorm_mean: Ptr<P>,
    renorm_stddev: Ptr<P>,
    scale: Ptr<P>,
    shift: Ptr<P>,
    r: Ptr<P>,
    d: Ptr<P>,
}

/// The kernels for parameters of one type.
struct Kernels {
    optimizer_step: CudaFunction,
    regularize: CudaFunction,
    constrain: CudaFunction,
    renormalize: CudaFunction,
    renormalize_backward: CudaFunction,
}

/// Those of a context.
struct Loaded {
    context: Arc<CudaContext>,
    f32: Kernels,
    f64: Kernels,
}

impl Loaded {
    /// Engines on the same context share them, and the last one unloads them.
    fn of(context: &Arc<CudaContext>, engine: &'static str) -> Result<Arc<Self>> {
        static ALL: Mutex<Vec<Weak<Loaded>>> = Mutex::new(Vec::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|loaded| loaded.strong_count() > 0);
        if let Some(loaded) = all.iter().filter_map(Weak::upgrade).find(|l| l.context == *context) {
            return Ok(loaded);
        }
        let module = load(context, engine, "parameters", capability(context)?)?;
        let kernels = |dtype: &str| {
            Ok::<_, Error>(Kernels {
                optimizer_step: function(&module, &format!("optimizer_step_{dtype}"))?,
                regularize: function(&module, &format!("regularize_{dtype}"))?,
                constrain: function(&module, &format!("constrain_{dtype}"))?,
                renormalize: function(&module, &format!("renormalize_{dtype}"))?,
                renormalize_backward: function(&module, &format!("renormalize_backward_{dtype}"))?,
            })
        };
        let (f32, f64) = (kernels("f32")?, kernels("f64")?);
        let loaded = Arc::new(Self { context: context.clone(), f32, f64 });
        all.push(Arc::downgrade(&loaded));
        Ok(loaded)
    }
    fn kernels<P: Real>(&self) -> &Kernels {
        if P::DTYPE == DType::F64 { &self.f64 } else { &self.f32 }
    }
}

/// An engine's handle of them: they are loaded when the first is launched, or by [`load`](Self::load).
pub(super) struct Parameters {
    engine: &'static str,
    loaded: Mutex<Option<Arc<Loaded>>>,
}

/// The addresses of a kernel's arguments, which the driver copies while it launches.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        &mut [$((&raw const $argument).cast_mut().cast::<c_void>()),*]
    };
}

impl Parameters {
    pub fn new(engine: &'static str) -> Self {
        Self { engine, loaded: Mutex::default() }
    }

    fn loaded(&self, stream: &CudaStream) -> Result<Arc<Loaded>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded {
            return Ok(loaded.clone());
        }
        Ok(loaded.insert(Loaded::of(stream.context(), self.engine)?).clone())
    }
    /// Loads the kernels now.
    pub fn load(&self, stream: &CudaStream) -> Result<()> {
        self.loaded(stream).map(drop)
    }

    pub fn optimizer_step<P: Real>(
        &self,
        on: &Device,
        mut args: OptimizerStep<'_, Device, P>,
    ) -> Result<()> {
        args.check(on)?;
        let (loaded, mut pointers) = (self.loaded(on.stream())?, Pointers::new(on.stream()));
        let OptimizerStep { value, grad, algorithm, lr, steps, first, second, third, .. } = args;
        let len = value.len();
        let Rule { family, beta1, beta2, eps, nesterov, decay_apart, amsgrad, eps_first } =
            algorithm.rule();
        let family = match family {
            Family::Momentum => 0,
            Family::Adam => 1,
            Family::Velocity => 2,
        };
        let switches = [
            (nesterov, StepOptions::NESTEROV),
            (decay_apart, StepOptions::DECAY_APART),
            (amsgrad, StepOptions::AMSGRAD),
            (eps_first, StepOptions::EPS_FIRST),
        ];
        let switches = switches.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum();
        let (lr_factor, weight_decay) = (args.lr_factor, args.weight_decay);
        let options = StepOptions { lr_factor, weight_decay, beta1, beta2, eps, family, switches };
        let (lr, steps) = (pointers.read(lr), pointers.write(steps));
        let (value, grad) = (pointers.write(value), pointers.read(grad));
        let [first, second, third] = [first, second, third].map(|buf| pointers.write_some(buf));
        // One block at least, which counts the step.
        let blocks = blocks_of(len);
        let count = len as u64;
        let arguments = arguments![count, options, lr, steps, value, grad, first, second, third];
        submit(on.stream(), &loaded.kernels::<P>().optimizer_step, blocks, arguments)
    }

    pub fn regularize<P: Real>(
        &self,
        on: &Device,
        mut args: Regularize<'_, Device, P>,
    ) -> Result<()> {
        args.check(on)?;
        let (loaded, mut pointers) = (self.loaded(on.stream())?, Pointers::new(on.stream()));
        let Regularizer { l1, l2 } = args.regularizer;
        let count = args.value.len() as u64;
        let value: Ptr<P> = pointers.read(args.value);
        let (grad, loss) = (pointers.write_some(args.grad), pointers.write_some(args.loss));
        let [to_grad, to_loss] = [args.accumulate_grad, args.accumulate_loss].map(u32::from);
        let arguments = arguments![count, l1, l2, value, grad, loss, to_grad, to_loss];
        submit(on.stream(), &loaded.kernels::<P>().regularize, 1, arguments)
    }

    pub fn constrain<P: Real>(
        &self,
        on: &Device,
        mut args: Constrain<'_, Device, P>,
    ) -> Result<()> {
        args.check(on)?;
        let (loaded, mut pointers) = (self.loaded(on.stream())?, Pointers::new(on.stream()));
        let norms = args.constraint.norms();
        let non_negative = norms.is_none().into();
        let Norms { min, max, rate } = norms.unwrap_or(Norms { min: 0.0, max: 0.0, rate: 0.0 });
        let options = NormOptions { least: min, most: max, rate, non_negative, reserved: 0 };
        let count = args.value.len() as u64;
        let value: Ptr<P> = pointers.write(args.value);
        let arguments = arguments![count, options, value];
        submit(on.stream(), &loaded.kernels::<P>().constrain, 1, arguments)
    }

    pub fn renormalize<P: Real>(
        &self,
        on: &Device,
        mut args: Renormalize<'_, Device, P>,
    ) -> Result<()> {
        let channels = args.check(on)?;
        let (loaded, mut pointers) = (self.loaded(on.stream())?, Pointers::new(on.stream()));
        let Renormalize { record, weight, bias, eps, clip, one_value, empty_batch, .. } = args;
        let Renormalize { state, updates, scale, shift, r, d, .. } = args;
        let switches = [
            (updates, RenormOptions::UPDATES),
            (one_value == OneValue::KeepVariance, RenormOptions::KEEP_VARIANCE),
            (empty_batch == EmptyBatch::Nan, RenormOptions::EMPTY_IS_NAN),
        ];
        let RenormState { mean, stddev, var, renorm_mean, renorm_stddev, .. } = state;
        let (renorm_mean, renorm_stddev) = renorm_mean.zip(renorm_stddev).unzip();
        let options = RenormOptions {
            eps,
            r_min: clip.r_min.unwrap_or(f64::NEG_INFINITY),
            r_max: clip.r_max.unwrap_or(f64::INFINITY),
            d_max: clip.d_max.unwrap_or(f64::INFINITY),
            factor: state.factor,
            stddev_factor: state.stddev_factor,
            renorm_factor: state.renorm_factor,
            switches: switches.iter().filter(|(on, _)| *on).map(|(_, bit)| bit).sum(),
            reserved: 0,
        };
        let at = RenormAt::<P> {
            record: pointers.read(record),
            weight: pointers.read_some(weight),
            bias: pointers.read_some(bias),
            mean: pointers.write(mean),
            stddev: pointers.write(stddev),
            var: pointers.write(var),
            renorm_mean: pointers.write_some(renorm_mean),
            renorm_stddev: pointers.write_some(renorm_stddev),
            scale: pointers.write(scale),
            shift: pointers.write(shift),
            r: pointers.write(r),
            d: pointers.write(d),
        };
        let count = channels as u64;
        let arguments = arguments![count, options, at];
        submit(on.stream(), &loaded.kernels::<P>().renormalize, blocks_of(channels), arguments)
    }

    pub fn renormalize_backward<P: Real>(
        &self,
        on: &Device,
        mut args: RenormalizeBackward<'_, Device, P>,
    ) -> Result<()> {
        let channels = args.check(on)?;
        let (loaded, mut pointers) = (self.loaded(on.stream())?, Pointers::new(on.stream()));
        let [r, d] = [args.r, args.d].map(|buf| pointers.read(buf));
        let [sum_g_xhat, sum_g] = [args.sum_g_xhat, args.sum_g].map(|buf| pointers.read(buf));
        let [weight, bias] = [args.grad_weight, args.grad_bias].map(|buf| pointers.write_some(buf));
        let (count, add) = (channels as u64, u32::from(args.accumulate));
        let arguments = arguments![count, r, d, sum_g_xhat, sum_g, weight, bias, add];
        let kernel = &loaded.kernels::<P>().renormalize_backward;
        submit(on.stream(), kernel, blocks_of(channels), arguments)
    }
}

/// Blocks that have a thread for each value, at most as many as take more values each.
fn blocks_of(len: usize) -> u32 {
    len.div_ceil(BLOCK as usize).clamp(1, BLOCKS) as u32
}

fn submit(
    stream: &CudaStream,
    kernel: &CudaFunction,
    blocks: u32,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    stream.context().bind_to_thread().map_err(refused("cuCtxSetCurrent"))?;
    let (function, grid, block) = (kernel.cu_function(), (blocks, 1, 1), (BLOCK, 1, 1));
    // SAFETY: the functions above give each kernel the arguments it declares, in its order, and they
    // outlive the call. What they point to is as the head of this file says.
    let launched =
        unsafe { result::launch_kernel(function, grid, block, 0, stream.cu_stream(), arguments) };
    launched.map_err(refused("cuLaunchKernel"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pointers::assert_layout;

    #[test]
    fn arguments_lie_as_the_kernels_declare_them() {
        assert_layout! {
            include_str!("../../kernels/parameters.cu");
            "StepOptions": StepOptions { lr_factor, weight_decay, beta1, beta2, eps, family, switches }
            "NormOptions": NormOptions { least, most, rate, non_negative, reserved }
            "RenormOptions": RenormOptions {
                eps, r_min, r_max, d_max, factor, stddev_factor, renorm_factor, switches, reserved
            }
        }
    }
}
