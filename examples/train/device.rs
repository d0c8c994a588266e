//! Where a network is trained.
use anyhow::Result;
use batchnorm::Cpu;

use super::backend::HostBackend;
#[cfg(feature = "cuda")]
use super::backend::cuda::CudaBackend;

/// What normalizes on a CUDA device.
#[cfg(feature = "cudnn")]
pub type CudaEngine = batchnorm::Gpu;
#[cfg(all(feature = "cuda", not(feature = "cudnn")))]
pub type CudaEngine = batchnorm::Cuda;

/// As on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// The first CUDA device, or the CPU where there is none.
    Auto,
    /// The first CUDA device.
    Cuda,
    Cpu,
}

/// An engine, the backend beside it, and what they are called.
pub enum Place {
    Cpu {
        engine: Cpu,
        backend: HostBackend,
        name: String,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        engine: CudaEngine,
        backend: CudaBackend,
        name: String,
    },
}

impl Place {
    /// Refuses `cuda` where there is none, with the reason; with every name that a missing library
    /// was looked for by if `verbose`.
    pub fn new(device: Device, verbose: bool) -> Result<Self> {
        let cuda = || Self::cuda().map_err(|error| if verbose { error } else { brief(error) });
        match device {
            Device::Cpu => Ok(Self::cpu("cpu".into())),
            Device::Cuda => cuda(),
            Device::Auto => Ok(cuda().unwrap_or_else(|reason| {
                Self::cpu(format!("cpu, as there is no CUDA device to train on: {reason:#}"))
            })),
        }
    }

    /// `cuda 0, NVIDIA H100`, or `cpu`, or with the reason why it is that.
    pub fn name(&self) -> &str {
        match self {
            Self::Cpu { name, .. } => name,
            #[cfg(feature = "cuda")]
            Self::Cuda { name, .. } => name,
        }
    }

    fn cpu(name: String) -> Self {
        Self::Cpu { engine: Cpu::default(), backend: HostBackend, name }
    }

    #[cfg(feature = "cuda")]
    fn cuda() -> Result<Self> {
        use batchnorm::Engine;
        let engine = CudaEngine::new(0)?;
        let backend = CudaBackend::new(engine.memory())?;
        let name = format!("cuda 0, {}", backend.stream().context().name()?);
        Ok(Self::Cuda { engine, backend, name })
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda() -> Result<Self> {
        anyhow::bail!("this program was built without the feature `cuda`")
    }
}

/// The same error, in one short line where it is about a missing library.
fn brief(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(batchnorm::Error::Library { library, .. }) => {
            anyhow::anyhow!("{library}: not found; --verbose says where it was looked for")
        }
        _ => error,
    }
}
