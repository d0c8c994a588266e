//! What the steps of one stream share: a handle, descriptors, and the memory they work in.
use super::form::Form;
use super::raw::{ActivationDescriptor, Handle, TensorDescriptor};
use crate::engine::pointers::Ptr;
use crate::{Device, Memory, Real, Result};
use cudarc::cudnn::sys::{cudnnActivationMode_t, cudnnNanPropagation_t};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::sync::Arc;

/// Bytes in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub at: Ptr<u8>,
    pub bytes: usize,
}

/// What the extended calls need, in bytes; nothing for the others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    pub forward: usize,
    pub backward: usize,
    pub reserve: usize,
}

impl Sizes {
    /// Where y lies behind the reserve space.
    pub fn reserve_end(&self) -> usize {
        self.reserve.next_multiple_of(256)
    }
    /// A workspace that serves both, with a reserve space behind it that nobody keeps.
    pub fn work(&self) -> usize {
        self.work_end() + self.reserve
    }
    fn work_end(&self) -> usize {
        self.forward.max(self.backward).next_multiple_of(256)
    }
}

/// One step at a time uses it.
#[derive(Debug)]
pub(super) struct Desk {
    pub handle: Handle,
    pub tensor: TensorDescriptor,
    pub parameters: TensorDescriptor,
    pub activation: ActivationDescriptor,
    work: Room,
    /// For parameters of 4 and of 8 bytes.
    constants: [Room; 2],
}

/// What stands for parameters and gradients that the caller does not have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Constants<A> {
    pub ones: Ptr<A>,
    pub zeros: Ptr<A>,
    pub grad_weight: Ptr<A>,
    pub grad_bias: Ptr<A>,
}

/// Memory that grows and never moves: what it has outgrown stays, because a captured graph may work
/// in it.
#[derive(Debug, Default)]
struct Room(Vec<CudaSlice<u8>>);

impl Room {
    fn bytes(&self) -> usize {
        self.0.last().map_or(0, CudaSlice::len)
    }
    fn at<T>(&self, stream: &CudaStream) -> Ptr<T> {
        // Nothing of another stream ever waits for it, so it goes by addresses, without events.
        Ptr::at(self.0.last().map_or(0, |slice| slice.device_ptr(stream).0))
    }
}

impl Desk {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let relu = cudnnActivationMode_t::CUDNN_ACTIVATION_RELU;
        let nan = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
        Ok(Self {
            handle: Handle::new(stream)?,
            tensor: TensorDescriptor::new()?,
            parameters: TensorDescriptor::new()?,
            activation: ActivationDescriptor::new(relu, nan, 0.0)?,
            work: Room::default(),
            constants: Default::default(),
        })
    }

    /// Sets the descriptors; what the call will need.
    pub fn describe(&mut self, form: &Form) -> Result<Sizes> {
        self.tensor.set(form.data_type, &form.dims, &form.strides)?;
        self.parameters.derive(&self.tensor, form.mode)?;
        if form.is_extended { self.sizes(form) } else { Ok(Sizes::default()) }
    }

    /// A workspace and a reserve space; made now if there is none as large.
    pub fn spaces(&mut self, memory: &Device, sizes: &Sizes) -> Result<[Space; 2]> {
        let (least, largest) = (sizes.work(), self.work.bytes());
        if largest < least {
            // By half at least, so that what is outgrown adds up to no more than twice the last.
            self.work.0.push(memory.uninitialized(least.max(largest + largest / 2))?);
        }
        let at: Ptr<u8> = self.work.at(memory.stream());
        let workspace = Space { at, bytes: sizes.work_end() };
        let behind = Ptr::at(at.address() + sizes.work_end() as u64);
        Ok([workspace, Space { at: behind, bytes: sizes.reserve }])
    }

    /// As many of each as there are channels.
    pub fn constants<A: Real>(&mut self, memory: &Device, channels: usize) -> Result<Constants<A>> {
        let room = &mut self.constants[usize::from(size_of::<A>() == 8)];
        let width = size_of::<A>();
        if room.bytes() < 4 * width * channels {
            let mut slice = memory.zeros::<u8>(4 * width * channels)?;
            let ones = match width {
                8 => 1f64.to_ne_bytes().repeat(channels),
                _ => 1f32.to_ne_bytes().repeat(channels),
            };
            memory.write(&ones, slice.slice_mut(..ones.len()))?;
            room.0.push(slice);
        }
        let part = (room.bytes() / 4) as u64;
        let at = |k: u64| Ptr::at(room.at::<u8>(memory.stream()).address() + k * part);
        Ok(Constants { ones: at(0), zeros: at(1), grad_weight: at(2), grad_bias: at(3) })
    }
}
