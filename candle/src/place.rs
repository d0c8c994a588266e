//! Where candle's tensors live, as this library's memory: nothing is copied.
use crate::pool::Pool;
use batchnorm::{Cpu, Element, Engine, Host, Memory, Plain, dispatch};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, DType, Error, Layout, Result, Storage, WithDType, bail,
};
use half::{bf16, f16};
use std::sync::Arc;

/// candle's memory, wherever it is.
#[derive(Clone, Copy)]
pub(crate) enum At<C, G> {
    Cpu(C),
    Cuda(G),
}
pub(crate) type Lent<'a> = At<&'a CpuStorage, &'a CudaStorage>;
pub(crate) type LentMut<'a> = At<&'a mut CpuStorage, &'a mut CudaStorage>;

/// One of these places.
pub(crate) trait Place: 'static {
    type Memory: Memory;
    type Engine: Engine<Memory = Self::Memory>;
    type Storage;

    /// The engine of this thread for memory that is there.
    fn engine(at: &Self::Storage) -> Result<Self::Engine>;
    fn lent(lent: Lent<'_>) -> Option<&Self::Storage>;
    fn lent_mut(lent: LentMut<'_>) -> Option<&mut Self::Storage>;
    fn storage(storage: Self::Storage) -> Storage;

    fn of(storage: &Storage) -> Result<&Self::Storage> {
        Self::expect(match storage {
            Storage::Cpu(storage) => Self::lent(At::Cpu(storage)),
            Storage::Cuda(storage) => Self::lent(At::Cuda(storage)),
            Storage::Metal(_) => None,
        })
    }
    /// All of an operation's tensors are where x is.
    fn expect<T>(found: Option<T>) -> Result<T> {
        match found {
            Some(found) => Ok(found),
            None => bail!("batch norm: expected all tensors on the device of x, got one elsewhere"),
        }
    }
}

/// A type at a place. A table of impls: code of either library is for real types alone.
pub(crate) trait Kept<L: Place>: Plain {
    fn view<'a>(
        storage: &'a L::Storage,
        layout: &Layout,
    ) -> Result<<L::Memory as Memory>::View<'a, Self>>;
    fn view_mut<'a>(
        storage: &'a mut L::Storage,
        layout: &Layout,
    ) -> Result<<L::Memory as Memory>::ViewMut<'a, Self>>;
    /// Memory for what writes all of it before anything reads it, on the device of `like`.
    fn alloc(like: &L::Storage, len: usize) -> Result<<L::Memory as Memory>::Buf<Self>>;
    fn wrap(like: &L::Storage, buf: <L::Memory as Memory>::Buf<Self>) -> L::Storage;
}

/// A type of activations there, and of what goes with them.
pub(crate) trait Dtype<L: Place>: Element<Acc: Kept<L> + Pooled<L>> + Kept<L> {}
impl<L: Place, E: Element<Acc: Kept<L> + Pooled<L>> + Kept<L>> Dtype<L> for E {}

/// The type of parameters and statistics for activations of this one.
pub(crate) fn parameters(dtype: DType) -> Result<DType> {
    Ok(dispatch!(activations(dtype)?, E => <<E as Element>::Acc as WithDType>::DTYPE))
}

/// candle's dtype as this library's.
pub(crate) fn activations(dtype: DType) -> Result<batchnorm::DType> {
    Ok(match dtype {
        DType::F16 => batchnorm::DType::F16,
        DType::BF16 => batchnorm::DType::Bf16,
        DType::F32 => batchnorm::DType::F32,
        DType::F64 => batchnorm::DType::F64,
        other => bail!("batch norm: expected f16, bf16, f32 or f64, got {}", other.as_str()),
    })
}

/// First and last of a dense tensor's memory.
fn dense(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("batch norm: expected dense memory, got {layout:?}"),
    }
}

/// Ordinary memory.
pub(crate) struct OnHost;

impl Place for OnHost {
    type Memory = Host;
    type Engine = Cpu;
    type Storage = CpuStorage;

    fn engine(_: &CpuStorage) -> Result<Cpu> {
        Ok(Cpu::default())
    }
    fn lent(lent: Lent<'_>) -> Option<&CpuStorage> {
        match lent {
            At::Cpu(storage) => Some(storage),
            At::Cuda(_) => None,
        }
    }
    fn lent_mut(lent: LentMut<'_>) -> Option<&mut CpuStorage> {
        match lent {
            At::Cpu(storage) => Some(storage),
            At::Cuda(_) => None,
        }
    }
    fn storage(storage: CpuStorage) -> Storage {
        Storage::Cpu(storage)
    }
}

macro_rules! on_host {
    ($($t:ty: $variant:ident),*) => {$(
        impl Kept<OnHost> for $t {
            fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [$t]> {
                Ok(&storage.as_slice::<$t>()?[dense(layout)?])
            }
            fn view_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [$t]> {
                match storage {
                    CpuStorage::$variant(data) => Ok(&mut data[dense(layout)?]),
                    other => bail!("batch norm: expected {}, got {:?}", stringify!($t), other.dtype()),
                }
            }
            fn alloc(_: &CpuStorage, len: usize) -> Result<Vec<$t>> {
                Host.unwritten(len).map_err(Error::wrap)
            }
            fn wrap(_: &CpuStorage, buf: Vec<$t>) -> CpuStorage {
                <$t as WithDType>::to_cpu_storage_owned(buf)
            }
        }
    )*};
}
on_host!(f32: F32, f64: F64, f16: F16, bf16: BF16);

type Shared<M, P> = Arc<Pool<M, P>>;

/// What a layer keeps to use again, at every place and for every type of parameters.
#[derive(Clone, Default)]
pub(crate) struct Pools {
    host: (Shared<Host, f32>, Shared<Host, f64>),
    #[cfg(feature = "cuda")]
    cuda: (Shared<batchnorm::Device, f32>, Shared<batchnorm::Device, f64>),
}

/// Which of a layer's pools serves a place and a type of parameters.
pub(crate) trait Pooled<L: Place>: batchnorm::Real {
    fn pool(pools: &Pools) -> &Shared<L::Memory, Self>;
}
macro_rules! pooled {
    ($($place:ty, $t:ty, $field:ident . $k:tt);*) => {$(
        impl Pooled<$place> for $t {
            fn pool(pools: &Pools) -> &Shared<<$place as Place>::Memory, Self> {
                &pools.$field.$k
            }
        }
    )*};
}
pooled!(OnHost, f32, host.0; OnHost, f64, host.1);
#[cfg(feature = "cuda")]
pooled!(cuda::OnCuda, f32, cuda.0; cuda::OnCuda, f64, cuda.1);

#[cfg(feature = "cuda")]
pub(crate) mod cuda {
    //! A CUDA device's memory.
    use super::*;
    use batchnorm::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
    use batchnorm::{Device, Gpu};
    use std::cell::RefCell;

    pub(crate) struct OnCuda;

    impl Place for OnCuda {
        type Memory = Device;
        type Engine = Gpu;
        type Storage = CudaStorage;

        /// That of candle's stream. candle's default is a stream per thread, and engines there are a thread's own: so
        /// each thread keeps those that it has made.
        fn engine(at: &CudaStorage) -> Result<Gpu> {
            thread_local!(static ENGINES: RefCell<Vec<Gpu>> = const { RefCell::new(Vec::new()) });
            let stream = at.device.cuda_stream();
            ENGINES.with_borrow_mut(|engines| {
                let is_its = |engine: &&Gpu| {
                    let its = engine.stream();
                    its.cu_stream() == stream.cu_stream() && its.context() == stream.context()
                };
                if let Some(engine) = engines.iter().find(is_its) {
                    return Ok(engine.clone());
                }
                let engine = Gpu::on_stream(stream).map_err(Error::wrap)?;
                engines.push(engine.clone());
                Ok(engine)
            })
        }
        fn lent(lent: Lent<'_>) -> Option<&CudaStorage> {
            match lent {
                At::Cuda(storage) => Some(storage),
                At::Cpu(_) => None,
            }
        }
        fn lent_mut(lent: LentMut<'_>) -> Option<&mut CudaStorage> {
            match lent {
                At::Cuda(storage) => Some(storage),
                At::Cpu(_) => None,
            }
        }
        fn storage(storage: CudaStorage) -> Storage {
            Storage::Cuda(storage)
        }
    }

    macro_rules! on_cuda {
        ($($t:ty),*) => {$(
            impl Kept<OnCuda> for $t {
                fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, $t>> {
                    Ok(storage.as_cuda_slice::<$t>()?.slice(dense(layout)?))
                }
                fn view_mut<'a>(
                    storage: &'a mut CudaStorage,
                    layout: &Layout,
                ) -> Result<CudaViewMut<'a, $t>> {
                    Ok(storage.as_cuda_slice_mut::<$t>()?.slice_mut(dense(layout)?))
                }
                fn alloc(like: &CudaStorage, len: usize) -> Result<CudaSlice<$t>> {
                    let engine = OnCuda::engine(like)?;
                    engine.memory().unwritten(len).map_err(Error::wrap)
                }
                fn wrap(like: &CudaStorage, buf: CudaSlice<$t>) -> CudaStorage {
                    CudaStorage::wrap_cuda_slice(buf, like.device.clone())
                }
            }
        )*};
    }
    on_cuda!(f32, f64, f16, bf16);
}
