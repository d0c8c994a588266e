//! The compiled kernels, loaded once for each context that has an engine.
use crate::memory::refused;
use crate::{DType, Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The PTX of one type of elements: targets, the newest first.
type Targets = [(i32, &'static str); 3];

macro_rules! ptx {
    ($name:literal) => {
        [ptx!($name, 90), ptx!($name, 80), ptx!($name, 75)]
    };
    ($name:literal, $target:literal) => {
        ($target, include_str!(concat!("../../../kernels/ptx/", $name, ".sm_", $target, ".ptx")))
    };
}

/// By [`index`].
const PTX: [Targets; 4] =
    [ptx!("split_f64"), ptx!("split_f32"), ptx!("split_f16"), ptx!("split_bf16")];
const DTYPES: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::Bf16];

fn index(dtype: DType) -> usize {
    match dtype {
        DType::F64 => 0,
        DType::F32 => 1,
        DType::F16 => 2,
        DType::Bf16 => 3,
    }
}

/// Kernels that walk over tensors, in vectors of 16 bytes or of one element.
pub(super) struct Tiled {
    pub stats: CudaFunction,
    pub apply: CudaFunction,
    pub backward_sums: CudaFunction,
    pub backward_apply: CudaFunction,
}

/// The kernels of one type of elements.
pub(super) struct Kernels {
    pub vectors: Tiled,
    pub scalars: Tiled,
    pub stats_finalize: CudaFunction,
    pub eval: CudaFunction,
    pub backward_finalize: CudaFunction,
    /// Of f32 and f64 alone.
    merge_stats: Option<CudaFunction>,
}

impl Kernels {
    fn load(context: &Arc<CudaContext>, capability: i32, dtype: DType) -> Result<Self> {
        let [newest, middle, oldest] = PTX[index(dtype)];
        let fits = |(target, _): &(i32, &str)| *target <= capability;
        let (_, ptx) = [newest, middle].into_iter().find(fits).unwrap_or(oldest);
        let module =
            context.load_module(Ptx::from_src(ptx)).map_err(refused("cuModuleLoadData"))?;
        let tiled = |way: &str| {
            let kernel = |name: &str| function(&module, &format!("{name}_{dtype}_{way}"));
            Ok(Tiled {
                stats: kernel("stats")?,
                apply: kernel("apply")?,
                backward_sums: kernel("backward_sums")?,
                backward_apply: kernel("backward_apply")?,
            })
        };
        let kernel = |name: &str| function(&module, &format!("{name}_{dtype}"));
        let merges = matches!(dtype, DType::F32 | DType::F64);
        Ok(Self {
            vectors: tiled("v")?,
            scalars: tiled("s")?,
            stats_finalize: kernel("stats_finalize")?,
            eval: kernel("eval")?,
            backward_finalize: kernel("backward_finalize")?,
            merge_stats: merges.then(|| kernel("merge_stats")).transpose()?,
        })
    }
}

impl Kernels {
    /// For records, which hold f32 or f64.
    pub fn merge_stats(&self) -> Result<&CudaFunction> {
        self.merge_stats.as_ref().ok_or_else(|| {
            let reason = "records hold f32 or f64".into();
            Error::Unsupported { engine: super::NAME, reason }
        })
    }
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(refused("cuModuleGetFunction"))
}

/// The kernels of a context, each type's loaded when it is first needed.
pub(super) struct Modules {
    context: Arc<CudaContext>,
    capability: i32,
    loaded: [Mutex<Option<Arc<Kernels>>>; DTYPES.len()],
}

impl Modules {
    /// Those of this context; engines on the same one share them, and the last one unloads them.
    pub fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        static ALL: Mutex<Vec<Weak<Modules>>> = Mutex::new(Vec::new());
        let (major, minor) =
            context.compute_capability().map_err(refused("cuDeviceGetAttribute"))?;
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|modules| modules.strong_count() > 0);
        let mut known = all.iter().filter_map(Weak::upgrade);
        if let Some(modules) = known.find(|modules| modules.context == *context) {
            return Ok(modules);
        }
        let (context, capability) = (context.clone(), 10 * major + minor);
        let modules = Arc::new(Self { context, capability, loaded: Default::default() });
        all.push(Arc::downgrade(&modules));
        Ok(modules)
    }

    /// Refuses a device that no kernel is made for.
    pub fn check_capability(&self) -> Result<()> {
        let least = PTX.iter().flatten().map(|(target, _)| *target).min().unwrap_or(0);
        if self.capability < least {
            let [least, has] = [least, self.capability].map(|c| format!("{}.{}", c / 10, c % 10));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_ptx_for_every_target() {
        for dtype in DTYPES {
            for (target, ptx) in PTX[index(dtype)] {
                assert!(ptx.contains(&format!("\n.target sm_{target}")), "{dtype} {target}");
                assert!(ptx.contains(&format!(".entry apply_{dtype}_v(")), "{dtype} {target}");
                assert!(ptx.contains("\n.version 7.8"), "{dtype} {target}: drivers from 520 on");
            }
        }
    }
}
