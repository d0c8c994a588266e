//! What the steps of one stream share: a handle, descriptors, and the memory they work in.
use super::form::Form;
use super::raw::{ActivationDescriptor, Handle, TensorDescriptor};
use crate::engine::pointers::Ptr;
use crate::{Device, Memory, Real, Result};
use cudarc::cudnn::sys::{cudnnActivationMode_t, cudnnNanPropagation_t, cudnnTensorDescriptor_t};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use std::collections::HashMap;
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
    /// What has been described: setting descriptors and asking for sizes takes five calls.
    forms: HashMap<Form, Descriptors>,
    pub activation: ActivationDescriptor,
    work: Room,
    /// For parameters of 4 and of 8 bytes.
    constants: [Room; 2],
}

/// Those of a form.
#[derive(Debug)]
struct Descriptors {
    tensor: TensorDescriptor,
    parameters: TensorDescriptor,
    sizes: Sizes,
}

/// A form as calls take it: to be used before the desk describes another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Described {
    pub tensor: cudnnTensorDescriptor_t,
    pub parameters: cudnnTensorDescriptor_t,
    pub sizes: Sizes,
}

/// Forms that are remembered, more than a network has; all are forgotten where there are as many, as with
/// batches that change their size.
const FORMS: usize = 512;

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
struct Room {
    all: Vec<CudaSlice<u8>>,
    /// That of the last. Asked for once: cudarc waits for and records events whenever it tells one, and
    /// nothing of another stream ever uses this.
    address: u64,
}

impl Room {
    fn bytes(&self) -> usize {
        self.all.last().map_or(0, CudaSlice::len)
    }
    fn push(&mut self, slice: CudaSlice<u8>, stream: &CudaStream) {
        self.address = slice.device_ptr(stream).0;
        self.all.push(slice);
    }
}

impl Desk {
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let relu = cudnnActivationMode_t::CUDNN_ACTIVATION_RELU;
        let nan = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
        Ok(Self {
            handle: Handle::new(stream)?,
            forms: HashMap::new(),
            activation: ActivationDescriptor::new(relu, nan, 0.0)?,
            work: Room::default(),
            constants: Default::default(),
        })
    }

    /// A form's descriptors, and what its calls need.
    pub fn describe(&mut self, form: &Form) -> Result<Described> {
        if !self.forms.contains_key(form) {
            let described = self.descriptors(form)?;
            if self.forms.len() == FORMS {
                self.forms.clear();
            }
            self.forms.insert(*form, described);
        }
        let Descriptors { tensor, parameters, sizes } = &self.forms[form];
        Ok(Described { tensor: tensor.raw(), parameters: parameters.raw(), sizes: *sizes })
    }
    fn descriptors(&mut self, form: &Form) -> Result<Descriptors> {
        let (mut tensor, mut parameters) = (TensorDescriptor::new()?, TensorDescriptor::new()?);
        tensor.set(form.data_type, &form.dims, &form.strides)?;
        parameters.derive(&tensor, form.mode)?;
        let sizes = match form.trains {
            true => self.sizes(form, tensor.raw(), parameters.raw())?,
            false => Sizes::default(),
        };
        Ok(Descriptors { tensor, parameters, sizes })
    }

    /// A workspace and a reserve space; made now if there is none as large.
    pub fn spaces(&mut self, memory: &Device, sizes: &Sizes) -> Result<[Space; 2]> {
        let (least, largest) = (sizes.work(), self.work.bytes());
        if largest < least {
            // By half at least, so that what is outgrown adds up to no more than twice the last.
            let slice = memory.uninitialized(least.max(largest + largest / 2))?;
            self.work.push(slice, memory.stream());
        }
        let at = Ptr::at(self.work.address);
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
            room.push(slice, memory.stream());
        }
        let part = (room.bytes() / 4) as u64;
        let at = |k: u64| Ptr::at(room.address + k * part);
        Ok(Constants { ones: at(0), zeros: at(1), grad_weight: at(2), grad_bias: at(3) })
    }
}
