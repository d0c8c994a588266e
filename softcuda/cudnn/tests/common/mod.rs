//! What the tests have in common: the calls of cudarc's bindings, their arguments in a struct that a test can spoil.
#![allow(dead_code)]

pub mod numbers;
pub mod wanted;

use std::{ffi::c_void, ptr, sync::Arc};

use cudarc::{
    cudnn::sys::{self, *},
    driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr},
};
use numbers::{Number, numbers};
use softcuda::Exclusive;
use softcudnn::Control;

pub use sys::{
    cudnnBatchNormMode_t as Mode, cudnnBatchNormOps_t as Ops, cudnnStatus_t as Status,
    cudnnTensorFormat_t as Format,
};

pub const OK: Status = Status::CUDNN_STATUS_SUCCESS;
pub const BAD_PARAM: Status = Status::CUDNN_STATUS_BAD_PARAM;
pub const NOT_SUPPORTED: Status = Status::CUDNN_STATUS_NOT_SUPPORTED;
pub const PER_ACTIVATION: Mode = Mode::CUDNN_BATCHNORM_PER_ACTIVATION;
pub const SPATIAL: Mode = Mode::CUDNN_BATCHNORM_SPATIAL;
pub const PERSISTENT: Mode = Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT;
pub const BN: Ops = Ops::CUDNN_BATCHNORM_OPS_BN;
pub const RELU: Ops = Ops::CUDNN_BATCHNORM_OPS_BN_ACTIVATION;
pub const ADD_RELU: Ops = Ops::CUDNN_BATCHNORM_OPS_BN_ADD_ACTIVATION;

pub fn cudnn() -> &'static Control {
    softcudnn::install().expect("the library")
}

/// A device that no other test has, and a stream of it.
pub fn start() -> (Exclusive, Arc<CudaStream>) {
    let device = softcuda::install().expect("the software device").exclusive(0);
    cudnn();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each test has one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (device, stream)
}

/// A tensor descriptor.
pub struct Tensor(pub cudnnTensorDescriptor_t);

impl Tensor {
    pub fn new() -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written.
        assert_eq!(unsafe { cudnnCreateTensorDescriptor(&mut this) }, OK);
        Self(this)
    }

    pub fn set(&self, data_type: cudnnDataType_t, dims: &[i32], strides: &[i32]) -> Status {
        assert_eq!(dims.len(), strides.len());
        let count = dims.len() as i32;
        // SAFETY: as many numbers as it says.
        unsafe {
            cudnnSetTensorNdDescriptor(self.0, data_type, count, dims.as_ptr(), strides.as_ptr())
        }
    }

    /// Type, dimensions and strides.
    pub fn get(&self) -> (cudnnDataType_t, Vec<i32>, Vec<i32>) {
        let (mut data_type, mut count) = (cudnnDataType_t::CUDNN_DATA_INT8, 0);
        let (mut dims, mut strides) = ([0; 8], [0; 8]);
        // SAFETY: there is room for 8 dimensions.
        let status = unsafe {
            cudnnGetTensorNdDescriptor(
                self.0,
                8,
                &mut data_type,
                &mut count,
                dims.as_mut_ptr(),
                strides.as_mut_ptr(),
            )
        };
        assert_eq!(status, OK);
        (data_type, dims[..count as usize].to_vec(), strides[..count as usize].to_vec())
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroyTensorDescriptor(self.0) }, OK);
    }
}

/// An activation descriptor.
pub struct Activation(pub cudnnActivationDescriptor_t);

impl Activation {
    pub fn new(mode: cudnnActivationMode_t, nan: cudnnNanPropagation_t) -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written, and is a descriptor then.
        unsafe {
            assert_eq!(cudnnCreateActivationDescriptor(&mut this), OK);
            assert_eq!(cudnnSetActivationDescriptor(this, mode, nan, 0.0), OK);
        }
        Self(this)
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroyActivationDescriptor(self.0) }, OK);
    }
}

/// A handle.
pub struct Handle(pub cudnnHandle_t);

impl Handle {
    pub fn new(stream: &CudaStream) -> Self {
        let mut this = ptr::null_mut();
        // SAFETY: `this` can be written, and is a handle then.
        unsafe {
            assert_eq!(cudnnCreate(&mut this), OK);
            assert_eq!(cudnnSetStream(this, stream.cu_stream().cast()), OK);
        }
        Self(this)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and destroyed here only.
        assert_eq!(unsafe { cudnnDestroy(self.0) }, OK);
    }
}

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

    fn scalars(&self, values: [f64; 2]) -> [T::Parameter; 2] {
        values.map(T::Parameter::narrow)
    }

    pub fn forward(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: arguments that live; what a test has spoilt is refused.
        unsafe {
            cudnnBatchNormalizationForwardTraining(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.factor,
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
            )
        }
    }

    pub fn forward_ex(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationForwardTrainingEx(
                self.handle.0,
                self.mode,
                self.ops,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.x_descriptor,
                self.p(At::Z),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.factor,
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
                self.activation_descriptor,
                self.p(At::Workspace),
                self.workspace_bytes,
                self.p(At::Reserve),
                self.reserve_bytes,
            )
        }
    }

    /// With the running statistics.
    pub fn infer(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationForwardInference(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
            )
        }
    }

    pub fn backward(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        let [by_alpha, by_beta] = self.scalars(self.parameter_blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationBackward(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                (&raw const by_alpha).cast(),
                (&raw const by_beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Dy),
                self.x_descriptor,
                self.p(At::Dx),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Dscale),
                self.p(At::Dbias),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
            )
        }
    }

    pub fn backward_ex(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        let [by_alpha, by_beta] = self.scalars(self.parameter_blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationBackwardEx(
                self.handle.0,
                self.mode,
                self.ops,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                (&raw const by_alpha).cast(),
                (&raw const by_beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.y_descriptor,
                self.p(At::Dy),
                self.x_descriptor,
                self.p(At::Dz),
                self.x_descriptor,
                self.p(At::Dx),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.p(At::Dscale),
                self.p(At::Dbias),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
                self.activation_descriptor,
                self.p(At::Workspace),
                self.workspace_bytes,
                self.p(At::Reserve),
                self.reserve_bytes,
            )
        }
    }

    /// What the persistent mode has found, once all work is done.
    pub fn runtime_error(&self, mode: cudnnErrQueryMode_t) -> Status {
        let mut status = OK;
        // SAFETY: a handle that lives, and a status that can be written.
        let asked =
            unsafe { cudnnQueryRuntimeError(self.handle.0, &mut status, mode, ptr::null_mut()) };
        assert_eq!(asked, OK);
        status
    }
}
