//! The compiled kernels, loaded once for each context that has an engine.
use super::plan::{Figures, THREADS};
use super::resident::occupancy;
use crate::memory::refused;
use crate::{DType, Error, Result};
use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use miniz_oxide::inflate::decompress_to_vec;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Name, lowest target and PTX, as a gzip file, of each text in `kernels/ptx`, a name's highest
/// target first: `build.rs` lists them.
type Packed = &'static [(&'static str, i32, &'static [u8])];
const PTX: Packed = include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// A module's PTX for a device of this capability, if there is one.
fn ptx(module: &str, capability: i32) -> Option<&'static [u8]> {
    let fits = |(name, target, _): &&(&str, i32, _)| *name == module && *target <= capability;
    PTX.iter().find(fits).map(|(_, _, packed)| *packed)
}

/// The text of a gzip file without optional fields in its header, as `gzip -n` writes it: a header
/// of 10 bytes, and 8 bytes of checksum and length at the end.
fn unpacked(gzip: &[u8]) -> Option<String> {
    let body = gzip.strip_prefix(&[0x1f, 0x8b, 8, 0])?.get(6..)?;
    let (deflated, trailer) = body.split_last_chunk::<8>()?;
    let text = String::from_utf8(decompress_to_vec(deflated).ok()?).ok()?;
    (text.len() as u32).to_le_bytes().eq(&trailer[4..]).then_some(text)
}

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
        let module = load(context, &format!("split_{dtype}"), capability)?;
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

/// The kernels of one type of elements that take a step in one launch.
pub(super) struct ResidentKernels {
    pub forward: CudaFunction,
    pub backward: CudaFunction,
}

impl ResidentKernels {
    /// None where the driver's compiler gave them more registers than `kernels/README.md` promises,
    /// so that less blocks fit a multiprocessor than plans count on.
    fn load(modules: &Modules, dtype: DType, figures: &Figures) -> Result<Option<Self>> {
        let module = load(&modules.context, &format!("resident_{dtype}"), modules.capability)?;
        let kernels = Self {
            forward: function(&module, &format!("forward_resident_{dtype}"))?,
            backward: function(&module, &format!("backward_resident_{dtype}"))?,
        };
        let bytes = i32::try_from(figures.shared_block).unwrap_or(i32::MAX);
        let mut fit = true;
        for kernel in [&kernels.forward, &kernels.backward] {
            let set = kernel
                .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes);
            set.map_err(refused("cuFuncSetAttribute"))?;
            let blocks =
                kernel.occupancy_max_active_blocks_per_multiprocessor(THREADS as u32, 0, None);
            let blocks = blocks.map_err(refused("cuOccupancyMaxActiveBlocksPerMultiprocessor"))?;
            fit &= blocks >= occupancy(figures);
        }
        Ok(fit.then_some(kernels))
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

fn load(context: &Arc<CudaContext>, name: &str, capability: i32) -> Result<Arc<CudaModule>> {
    let text = ptx(name, capability).and_then(unpacked).ok_or_else(|| {
        let reason = format!("no module {name} for compute capability {}", dotted(capability));
        Error::Unsupported { engine: super::NAME, reason }
    })?;
    context.load_module(Ptx::from_src(text)).map_err(refused("cuModuleLoadData"))
}

/// `9.0` of 90.
fn dotted(capability: i32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction> {
    module.load_function(name).map_err(refused("cuModuleGetFunction"))
}

/// The kernels of a context, each type's loaded when it is first needed.
pub(super) struct Modules {
    context: Arc<CudaContext>,
    capability: i32,
    loaded: [Mutex<Option<Arc<Kernels>>>; DTYPES.len()],
    resident: [Mutex<Option<Option<Arc<ResidentKernels>>>>; DTYPES.len()],
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
        let (loaded, resident) = Default::default();
        let modules = Arc::new(Self { context, capability, loaded, resident });
        all.push(Arc::downgrade(&modules));
        Ok(modules)
    }

    /// Refuses a device that no kernel is made for.
    pub fn check_capability(&self) -> Result<()> {
        let least = PTX.iter().map(|(_, target, _)| *target).min().unwrap_or(0);
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

    /// Those that take a step in one launch, where the device has room for them.
    pub fn resident(
        &self,
        dtype: DType,
        figures: &Figures,
    ) -> Result<Option<Arc<ResidentKernels>>> {
        let place = &self.resident[index(dtype)];
        let mut loaded = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = &*loaded {
            return Ok(kernels.clone());
        }
        let kernels = ResidentKernels::load(self, dtype, figures)?.map(Arc::new);
        Ok(loaded.insert(kernels).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_ptx_for_every_target() {
        let split = DTYPES.map(|dtype| (format!("split_{dtype}"), format!("apply_{dtype}_v")));
        let resident = DTYPES.into_iter().filter(|dtype| *dtype != DType::F64);
        let resident = resident
            .map(|dtype| (format!("resident_{dtype}"), format!("forward_resident_{dtype}")));
        for (module, entry) in split.into_iter().chain(resident) {
            for target in [75, 80, 90] {
                let text = ptx(&module, target).and_then(unpacked).unwrap();
                let (_, made_for) = text.split_once("\n.target sm_").unwrap();
                let made_for: i32 = made_for.lines().next().unwrap().parse().unwrap();
                assert!(made_for <= target, "{module} {target}");
                assert!(text.contains(&format!(".entry {entry}(")), "{module} {target}");
                assert!(text.contains("\n.version 7.8"), "{module} {target}: drivers from 520 on");
            }
        }
        assert_eq!(ptx("split_f32", 70), None);
    }

    #[test]
    fn every_text_is_packed_once_and_they_are_small() {
        let listed: Vec<_> = PTX.iter().map(|(name, target, _)| (name, target)).collect();
        assert!(listed.is_sorted_by(|a, b| a.0 < b.0 || a.0 == b.0 && a.1 > b.1), "{listed:?}");
        let instructions = |packed| -> Vec<String> {
            let text = unpacked(packed).unwrap();
            text.lines().filter(|line| !line.starts_with(".target ")).map(str::to_owned).collect()
        };
        for pair in PTX.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            assert!(
                instructions(pair[0].2) != instructions(pair[1].2),
                "{} {}",
                pair[0].0,
                pair[0].1
            );
        }
        assert!(PTX.iter().map(|(_, _, packed)| packed.len()).sum::<usize>() < 1 << 20);
    }

    #[test]
    fn a_file_that_is_cut_or_spoilt_has_no_text() {
        let whole = ptx("split_f32", 75).unwrap();
        assert!(unpacked(whole).is_some());
        for cut in [0, 3, 10, 17, whole.len() / 2, whole.len() - 1] {
            assert_eq!(unpacked(&whole[..cut]), None, "{cut}");
        }
        let mut named = whole.to_vec();
        named[3] = 8; // a header with a name in it
        assert_eq!(unpacked(&named), None);
    }
}
