//! The arguments of the calls, in a struct that a test can spoil.

use std::{ffi::c_void, ptr, sync::Arc};

use cudarc::{
    cudnn::sys::*,
    driver::{CudaSlice, CudaStream, DevicePtr, DeviceRepr},
};

use super::{
    ADD_RELU, Activation, BN, Format, Handle, Mode, OK, Ops, Status, Tensor,
    numbers::{Number, numbers},
};

/// Names of arguments in device memory, in the order of [`Norm::at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum At {
    X,
    Y,
    Z,
    Dy,
    Dx,
    Dz,
    Scale,
    Bias,
    RunningMean,
    RunningVar,
    SavedMean,
    SavedInverse,
    Dscale,
    Dbias,
    Workspace,
    Reserve,
}

/// All arguments of the calls.
pub struct Norm<T: Number> {
    pub handle: Handle,
    pub stream: Arc<CudaStream>,
    pub mode: Mode,
    pub ops: Ops,
    pub dims: Vec<i32>,
    pub format: Format,
    pub tensor: Tensor,
    pub parameters: Tensor,
    pub activation: Activation,
    pub x_descriptor: cudnnTensorDescriptor_t,
    pub y_descriptor: cudnnTensorDescriptor_t,
    pub parameter_descriptor: cudnnTensorDescriptor_t,
    pub activation_descriptor: cudnnActivationDescriptor_t,
    pub blend: [f64; 2],
    pub parameter_blend: [f64; 2],
    pub factor: f64,
    pub epsilon: f64,
    /// Device addresses, by [`At`].
    pub at: [u64; 16],
    pub workspace_bytes: usize,
    pub reserve_bytes: usize,
    tensors: Vec<CudaSlice<T>>,
    per_group: Vec<CudaSlice<T::Parameter>>,
    spaces: Vec<CudaSlice<u8>>,
}

pub fn strides(dims: &[i32], format: Format) -> Vec<i32> {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    if format == Format::CUDNN_TENSOR_NHWC {
        order.remove(1);
        order.push(1);
    }
    let mut strides = vec![0; dims.len()];
    let mut next = 1;
    for axis in order.into_iter().rev() {
        strides[axis] = next;
        next *= dims[axis];
    }
    strides
}

fn address<T: DeviceRepr>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

impl<T: Number> Norm<T> {
    pub fn new(stream: &Arc<CudaStream>, mode: Mode, ops: Ops, dims: &[i32], nhwc: bool) -> Self {
        let format = if nhwc { Format::CUDNN_TENSOR_NHWC } else { Format::CUDNN_TENSOR_NCHW };
        let (tensor, parameters) = (Tensor::new(), Tensor::new());
        assert_eq!(tensor.set(T::TYPE, dims, &strides(dims, format)), OK);
        // SAFETY: descriptors that live.
        assert_eq!(unsafe { cudnnDeriveBNTensorDescriptor(parameters.0, tensor.0, mode) }, OK);
        let propagate = cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
        let activation = Activation::new(cudnnActivationMode_t::CUDNN_ACTIVATION_RELU, propagate);
        let count = dims.iter().product::<i32>() as usize;
        let groups = parameters.get().1.iter().product::<i32>() as usize;
        let tensors: Vec<_> = (1..7)
            .map(|seed| {
                let values = numbers(seed, count).into_iter().map(|x| T::narrow(2.0 * x + 0.5));
                stream.clone_htod(&values.collect::<Vec<T>>()).unwrap()
            })
            .collect();
        let per_group: Vec<_> = (11..19)
            .map(|seed| {
                let values = numbers(seed, groups).into_iter().map(|x| x + 1.25);
                let values: Vec<_> = values.map(T::Parameter::narrow).collect();
                stream.clone_htod(&values).unwrap()
            })
            .collect();
        let mut this = Self {
            handle: Handle::new(stream),
            stream: stream.clone(),
            mode,
            ops,
            dims: dims.to_vec(),
            format,
            x_descriptor: tensor.0,
            y_descriptor: tensor.0,
            parameter_descriptor: parameters.0,
            activation_descriptor: activation.0,
            tensor,
            parameters,
            activation,
            blend: [1.0, 0.0],
            parameter_blend: [1.0, 0.0],
            factor: 0.25,
            epsilon: 0.05,
            at: [0; 16],
            workspace_bytes: 0,
            reserve_bytes: 0,
            tensors,
            per_group,
            spaces: Vec::new(),
        };
        let addresses = this.tensors.iter().map(address);
        for (at, address) in addresses.chain(this.per_group.iter().map(address)).enumerate() {
            this.at[at] = address;
        }
        this
    }

    pub fn p(&self, at: At) -> *mut c_void {
        ptr::with_exposed_provenance_mut(self.at[at as usize] as usize)
    }

    /// The elements of a tensor, in NCHW order.
    pub fn tensor(&self, at: At) -> Vec<f64> {
        let stored = self.stream.clone_dtoh(&self.tensors[at as usize]).unwrap();
        self.places().into_iter().map(|place| stored[place].widen()).collect()
    }

    /// Sets the elements of a tensor, in NCHW order.
    pub fn put(&mut self, at: At, values: &[f64]) {
        let mut stored = vec![T::narrow(0.0); values.len()];
        self.places().iter().zip(values).for_each(|(at, value)| stored[*at] = T::narrow(*value));
        self.stream.memcpy_htod(&stored, &mut self.tensors[at as usize]).unwrap();
    }

    fn places(&self) -> Vec<usize> {
        let strides = strides(&self.dims, self.format);
        let mut places = vec![0];
        for (dim, stride) in self.dims.iter().zip(strides) {
            let along = |place: usize| (0..*dim).map(move |i| place + (i * stride) as usize);
            places = places.into_iter().flat_map(along).collect();
        }
        places
    }

    pub fn per_group(&self, at: At) -> Vec<f64> {
        let stored = self.stream.clone_dtoh(&self.per_group[at as usize - At::Scale as usize]);
        stored.unwrap().into_iter().map(T::Parameter::widen).collect()
    }

    /// Overwrites the reserve space.
    pub fn spoil_reserve(&mut self) {
        self.stream.memset_zeros(&mut self.spaces[1]).unwrap();
    }

    /// Asks for the sizes and makes workspace and reserve space: forward's workspace, backward's, reserve.
    pub fn make_spaces(&mut self) -> Result<[usize; 3], Status> {
        let mut sizes = [0; 3];
        let (t, act) = (self.x_descriptor, self.activation_descriptor);
        let z = if self.ops == ADD_RELU { t } else { ptr::null_mut() };
        let y = if self.ops == BN { ptr::null_mut() } else { t };
        let (h, mode, ops, p) = (self.handle.0, self.mode, self.ops, self.parameter_descriptor);
        // SAFETY: descriptors that live, and sizes that can be written.
        let statuses = unsafe {
            [
                cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
                    h,
                    mode,
                    ops,
                    t,
                    z,
                    t,
                    p,
                    act,
                    &mut sizes[0],
                ),
                cudnnGetBatchNormalizationBackwardExWorkspaceSize(
                    h,
                    mode,
                    ops,
                    t,
                    y,
                    t,
                    z,
                    t,
                    p,
                    act,
                    &mut sizes[1],
                ),
                cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
                    h,
                    mode,
                    ops,
                    act,
                    t,
                    &mut sizes[2],
                ),
            ]
        };
        if let Some(status) = statuses.into_iter().find(|status| *status != OK) {
            return Err(status);
        }
        self.workspace_bytes = sizes[0].max(sizes[1]);
        self.reserve_bytes = sizes[2];
        self.spaces.clear();
        for (at, bytes) in
            [(At::Workspace, self.workspace_bytes), (At::Reserve, self.reserve_bytes)]
        {
            // SAFETY: written before it is read; the software device tells.
            let space = unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.unwrap();
            self.at[at as usize] = if bytes == 0 { 0 } else { address(&space) };
            self.spaces.push(space);
        }
        Ok(sizes)
    }
}
