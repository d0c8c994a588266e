//! The compiled kernels, loaded once for each context that has an engine.
use super::figures::Figures;
use super::plan::THREADS;
use super::refusals::Refusals;
use super::resident::{Step, capacity, occupancy};
use crate::engine::Activation;
use crate::engine::ptx::{self, PTX, dotted, function};
use crate::memory::refused;
use crate::{DType, Error, Result};
use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use std::sync::{Arc, Mutex, PoisonError, Weak};

const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::Bf16];

fn index(dtype: DType) -> usize {
    match dtype {
        DType::F64 => 0,
        DType::F32 => 1,
        DType::F16 => 2,
        DType::Bf16 => 3,
    }
}

/// Whether kernels for any activation are taken, or those for none and a ReLU, which need fewer
/// registers.
pub(super) fn is_any(activation: Activation) -> bool {
    !matches!(activation, Activation::Identity | Activation::Relu)
}

/// A kernel that walks over tensors: in vectors of 16 bytes, or of one element.
pub(super) struct Tiled {
    pub vectors: CudaFunction,
    pub scalars: CudaFunction,
}

/// The kernels of one type of elements.
pub(super) struct Kernels {
    pub stats: Tiled,
    pub stats_finalize: CudaFunction,
    pub eval: CudaFunction,
    /// Of f32 and f64 alone.
    merge_stats: Option<CudaFunction>,
    plain: Arc<Activated>,
}

/// Those in which an activation stands.
pub(super) struct Activated {
    pub apply: Tiled,
    pub backward_sums: Tiled,
    pub backward_finalize: CudaFunction,
    pub backward_apply: Tiled,
}

impl Tiled {
    fn load(module: &Arc<CudaModule>, name: &str) -> Result<Self> {
        Ok(Self {
            vectors: function(module, &format!("{name}_v"))?,
            scalars: function(module, &format!("{name}_s"))?,
        })
    }
}

impl Activated {
    /// `any` is `_any` or nothing.
    fn load(module: &Arc<CudaModule>, dtype: DType, any: &str) -> Result<Self> {
        let tiled = |name: &str| Tiled::load(module, &format!("{name}{any}_{dtype}"));
        Ok(Self {
            apply: tiled("apply")?,
            backward_sums: tiled("backward_sums")?,
            backward_finalize: function(module, &format!("backward_finalize{any}_{dtype}"))?,
            backward_apply: tiled("backward_apply")?,
        })
    }
}

impl Kernels {
    fn load(context: &Arc<CudaContext>, capability: i32, dtype: DType) -> Result<Self> {
        let module = load(context, &format!("split_{dtype}"), capability)?;
        let kernel = |name: &str| function(&module, &format!("{name}_{dtype}"));
        let merges = matches!(dtype, DType::F32 | DType::F64);
        Ok(Self {
            stats: Tiled::load(&module, &format!("stats_{dtype}"))?,
            stats_finalize: kernel("stats_finalize")?,
            eval: kernel("eval")?,
            merge_stats: merges.then(|| kernel("merge_stats")).transpose()?,
            plain: Arc::new(Activated::load(&module, dtype, "")?),
        })
    }
}

/// Which of the kernels that take a step in one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// For no activation and a ReLU.
    Plain,
    Any,
    /// For any activation, where a mask says what counts: of a backward alone.
    Masked,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Plain, Self::Any, Self::Masked];

    pub fn of(activation: Activation, masked: bool) -> Self {
        match (masked, is_any(activation)) {
            (true, _) => Self::Masked,
            (false, true) => Self::Any,
            (false, false) => Self::Plain,
        }
    }
}

/// The kernels of one type of elements that take a step in one launch.
pub(super) struct ResidentKernels {
    forward: Option<CudaFunction>,
    backward: CudaFunction,
}

impl ResidentKernels {
    /// That of a step, if there is one.
    pub fn of(&self, step: Step) -> Option<&CudaFunction> {
        match step {
            Step::Forward => self.forward.as_ref(),
            Step::Backward => Some(&self.backward),
        }
    }

    /// What is missing where less blocks fit a multiprocessor than plans count on: the driver's compiler may have given
    /// them more registers than `kernels/README.md` promises, or the driver keeps shared memory for others.
    fn load(modules: &Modules, dtype: DType, variant: Variant, figures: &Figures) -> Result<Fit> {
        let load = |name: &str| load(&modules.context, name, modules.capability);
        let kernels = if variant == Variant::Masked {
            let module = load(&format!("masked_{dtype}"))?;
            let backward = function(&module, &format!("masked_backward_resident_{dtype}"))?;
            Self { forward: None, backward }
        } else {
            let any = if variant == Variant::Any { "any_" } else { "" };
            let module = load(&format!("resident_{any}{dtype}"))?;
            let of = |step: &str| function(&module, &format!("{step}_resident_{any}{dtype}"));
            Self { forward: Some(of("forward")?), backward: of("backward")? }
        };
        let bytes = i32::try_from(figures.shared_block).unwrap_or(i32::MAX);
        let (most, expected) = (capacity(figures), occupancy(figures));
        for kernel in kernels.forward.iter().chain([&kernels.backward]) {
            let set = kernel
                .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
            set.map_err(refused("cuFuncSetAttribute"))?;
            // All of it, rather than a larger first cache. A driver need not follow, and the next answer counts.
            let carveout = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            let _ = kernel.set_attribute(carveout, 100);
            let blocks = kernel.occupancy_max_active_blocks_per_multiprocessor(
                THREADS as u32,
                most as usize,
                None,
            );
            let blocks = blocks.map_err(refused("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
            if blocks < expected {
                return Ok(Err(format!(
                    "; no steps in one launch: expected {expected} blocks of {most} bytes of shared \
                     memory for a multiprocessor, the driver has {blocks}"
                )));
            }
        }
        Ok(Ok(Arc::new(kernels)))
    }
}

impl Kernels {
    /// For records, which hold f32 or f64.
    pub fn merge_stats(&self) -> Result<&CudaFunction> {
        self.merge_stats.as_ref().ok_or_else(of_records)
    }
}

fn of_records() -> Error {
    let reason = "records hold f32 or f64".into();
    Error::Unsupported { engine: super::NAME, reason }
}

fn load(context: &Arc<CudaContext>, name: &str, capability: i32) -> Result<Arc<CudaModule>> {
    ptx::load(context, super::NAME, name, capability)
}

/// The kernels of one type of elements that take rows.
pub(super) struct LayerNormKernels {
    pub forward: CudaFunction,
    pub backward: CudaFunction,
    pub sums: CudaFunction,
    /// Of the accumulating type.
    pub finalize: CudaFunction,
}

impl LayerNormKernels {
    fn load(module: &Arc<CudaModule>, dtype: DType) -> Result<Self> {
        let acc = if dtype == DType::F64 { dtype } else { DType::F32 };
        let kernel =
            |name: &str, dtype: DType| function(module, &format!("layer_norm{name}_{dtype}"));
        Ok(Self {
            forward: kernel("", dtype)?,
            backward: kernel("_backward", dtype)?,
            sums: kernel("_sums", dtype)?,
            finalize: kernel("_finalize", acc)?,
        })
    }
}

/// The kernels of a double backward.
pub(super) struct DoubleBackwardKernels {
    /// Those without an activation that is curved, and with one.
    pub sums: [CudaFunction; 2],
    pub apply: [CudaFunction; 2],
    /// Of the accumulating type.
    pub finalize: CudaFunction,
}

impl DoubleBackwardKernels {
    fn load(module: &Arc<CudaModule>, dtype: DType) -> Result<Self> {
        let acc = if dtype == DType::F64 { dtype } else { DType::F32 };
        let kernel =
            |name: &str, dtype: DType| function(module, &format!("double_backward_{name}_{dtype}"));
        Ok(Self {
            sums: [kernel("sums", dtype)?, kernel("sums_curved", dtype)?],
            apply: [kernel("apply", dtype)?, kernel("apply_curved", dtype)?],
            finalize: kernel("finalize", acc)?,
        })
    }
}

/// The kernels of one type of elements for what a mask leaves out.
pub(super) struct MaskedKernels {
    pub stats: Tiled,
    pub finalize: CudaFunction,
    pub backward_apply: Tiled,
    /// Of f32 and f64 alone.
    merge: Option<CudaFunction>,
}

impl MaskedKernels {
    fn load(module: &Arc<CudaModule>, dtype: DType) -> Result<Self> {
        let merges = matches!(dtype, DType::F32 | DType::F64);
        let merge = merges.then(|| function(module, &format!("masked_merge_{dtype}")));
        Ok(Self {
            merge: merge.transpose()?,
            stats: Tiled::load(module, &format!("masked_stats_{dtype}"))?,
            finalize: function(module, &format!("masked_finalize_{dtype}"))?,
            backward_apply: Tiled::load(module, &format!("masked_backward_apply_{dtype}"))?,
        })
    }
    /// For numbers of what f32 or f64 come to.
    pub fn merge(&self) -> Result<&CudaFunction> {
        self.merge.as_ref().ok_or_else(of_records)
    }
}

/// The kernels, or why the device has no room for them.
type Fit = std::result::Result<Arc<ResidentKernels>, String>;

/// The kernels of a context, each type's loaded when it is first needed.
pub(super) struct Modules {
    context: Arc<CudaContext>,
    capability: i32,
    loaded: [Mutex<Option<Arc<Kernels>>>; DTYPES.len()],
    any: [Mutex<Option<Arc<Activated>>>; DTYPES.len()],
    /// By [`Variant`].
    resident: [[Mutex<Option<Fit>>; DTYPES.len()]; Variant::ALL.len()],
    /// Of launches of these.
    pub refusals: Refusals,
    layer_norm: [Mutex<Option<Arc<LayerNormKernels>>>; DTYPES.len()],
    double_backward: [Mutex<Option<Arc<DoubleBackwardKernels>>>; DTYPES.len()],
    masked: [Mutex<Option<Arc<MaskedKernels>>>; DTYPES.len()],
}

impl Modules {
    /// Those of this context; engines on the same one share them, and the last one unloads them.
    pub fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        static ALL: Mutex<Vec<Weak<Modules>>> = Mutex::new(Vec::new());
        let capability = ptx::capability(context)?;
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|modules| modules.strong_count() > 0);
        let mut known = all.iter().filter_map(Weak::upgrade);
        if let Some(modules) = known.find(|modules| modules.context == *context) {
            return Ok(modules);
        }
        let context = context.clone();
        let (loaded, any, resident, refusals) = Default::default();
        let (layer_norm, double_backward, masked) = Default::default();
        let modules = Arc::new(Self {
            context,
            capability,
            loaded,
            any,
            resident,
            refusals,
            layer_norm,
            double_backward,
            masked,
        });
        all.push(Arc::downgrade(&modules));
        Ok(modules)
    }

    /// Refuses a device that no kernel is made for.
    pub fn check_capability(&self) -> Result<()> {
        let least = PTX.iter().flat_map(|(_, targets, ..)| *targets).copied().min().unwrap_or(0);
        if self.capability < least {
            let [least, has] = [least, self.capability].map(dotted);
            let reason = format!("expected compute capability {least} or more, got {has}");
            return Err(Error::Unsupported { engine: super::NAME, reason });
        }
        Ok(())
    }

    /// The kernels for elements of this type.
    pub fn kernels(&self, dtype: DType) -> Result<Arc<Kernels>> {
        let mut loaded = self.loaded[index(dtype)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let kernels = Arc::new(Kernels::load(&self.context, self.capability, dtype)?);
        Ok(loaded.insert(kernels).clone())
    }

    /// Those in which this activation stands.
    pub fn activated(&self, dtype: DType, activation: Activation) -> Result<Arc<Activated>> {
        if !is_any(activation) {
            return Ok(self.kernels(dtype)?.plain.clone());
        }
        let mut loaded = self.any[index(dtype)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let module = load(&self.context, &format!("split_any_{dtype}"), self.capability)?;
        let kernels = Arc::new(Activated::load(&module, dtype, "_any")?);
        Ok(loaded.insert(kernels).clone())
    }

    /// Those that take rows.
    pub fn layer_norm(&self, dtype: DType) -> Result<Arc<LayerNormKernels>> {
        let place = &self.layer_norm[index(dtype)];
        let mut loaded = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let module = load(&self.context, "layer_norm", self.capability)?;
        let kernels = Arc::new(LayerNormKernels::load(&module, dtype)?);
        Ok(loaded.insert(kernels).clone())
    }

    /// Those of a double backward.
    pub fn double_backward(&self, dtype: DType) -> Result<Arc<DoubleBackwardKernels>> {
        let place = &self.double_backward[index(dtype)];
        let mut loaded = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let module = load(&self.context, "double_backward", self.capability)?;
        let kernels = Arc::new(DoubleBackwardKernels::load(&module, dtype)?);
        Ok(loaded.insert(kernels).clone())
    }

    /// Those for what a mask leaves out.
    pub fn masked(&self, dtype: DType) -> Result<Arc<MaskedKernels>> {
        let mut loaded = self.masked[index(dtype)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let module = load(&self.context, &format!("masked_{dtype}"), self.capability)?;
        let kernels = Arc::new(MaskedKernels::load(&module, dtype)?);
        Ok(loaded.insert(kernels).clone())
    }

    /// Those that take a step in one launch, where the device has room for them.
    pub fn resident(
        &self,
        dtype: DType,
        variant: Variant,
        figures: &Figures,
    ) -> Result<Option<Arc<ResidentKernels>>> {
        let place = &self.resident[variant as usize][index(dtype)];
        let mut loaded = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fit) = &*loaded {
            return Ok(fit.clone().ok());
        }
        let fit = ResidentKernels::load(self, dtype, variant, figures)?;
        Ok(loaded.insert(fit).clone().ok())
    }

    /// Why there are none of them, as far as that is known; else nothing.
    pub fn unfit(&self, dtype: DType, variant: Variant) -> String {
        let place = &self.resident[variant as usize][index(dtype)];
        let loaded = place.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.as_ref().and_then(|fit| fit.as_ref().err()).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
