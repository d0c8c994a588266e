//! What the arguments of a call are, and what is wrong with them.

use softlibrary::{Job, Number, Slot, Use};

use crate::{
    handle::{Activation, Handle},
    status::{Refusal, Status},
    tensor::Tensor,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    PerActivation,
    Spatial,
    Persistent,
}

impl Mode {
    pub fn from_number(number: u32) -> Result<Self, Refusal> {
        let modes = [Self::PerActivation, Self::Spatial, Self::Persistent];
        let mode = modes.get(number as usize).copied();
        mode.ok_or_else(|| (Status::BAD_PARAM, format!("there is no mode {number}")))
    }
}

/// What follows the normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ops {
    Nothing,
    Activation,
    AddActivation,
}

/// The operations of a number.
pub fn ops(number: u32) -> Result<Ops, Refusal> {
    let all = [Ops::Nothing, Ops::Activation, Ops::AddActivation];
    let ops = all.get(number as usize).copied();
    ops.ok_or_else(|| (Status::BAD_PARAM, format!("there is no operation {number}")))
}

/// A tensor in device memory.
#[derive(Clone, Debug)]
pub struct Operand {
    pub name: &'static str,
    pub tensor: Tensor,
    pub address: u64,
}

/// Bytes in device memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    pub address: u64,
    pub bytes: usize,
}

impl Space {
    /// Whether it has at least as much as a size query tells.
    pub fn check(self, name: &str, least: usize) -> Result<(), Refusal> {
        if self.address == 0 || self.bytes < least {
            let reason = format!("{name} has {} bytes at {:#x}", self.bytes, self.address);
            return Status::BAD_PARAM.because(format!("{reason}, and needs {least}"));
        }
        Ok(())
    }
}

/// What is normalized, in what way: all that the calls and the size queries have in common.
#[derive(Clone, Debug)]
pub struct Normalization {
    pub mode: Mode,
    pub ops: Ops,
    /// Whether the activation turns NaN into 0.
    pub drops_nan: bool,
    pub x: Tensor,
    pub number: Number,
    pub parameter: Number,
}

impl Normalization {
    /// Checks descriptors: those of tensors like x, that of the parameters, that of the activation.
    pub fn new(
        mode: Mode,
        ops: Ops,
        x: &Tensor,
        others: &[(&str, &Tensor)],
        parameters: &Tensor,
        activation: Option<Activation>,
    ) -> Result<Self, Refusal> {
        let bad = |reason: String| Status::BAD_PARAM.because(reason);
        if !(4..=5).contains(&x.dims.len()) {
            return bad(format!("x has {} dimensions, not 4 or 5", x.dims.len()));
        }
        for (name, other) in others {
            if other.dims != x.dims || other.data_type != x.data_type {
                let (dims, data_type) = (&other.dims, other.data_type);
                return bad(format!(
                    "x has dimensions {:?} and type {}, {name} {dims:?} and {data_type}",
                    x.dims, x.data_type
                ));
            }
        }
        let derived = x.derived(mode == Mode::PerActivation)?;
        if *parameters != derived {
            return bad(format!("the parameters have {parameters:?}, not {derived:?}"));
        }
        let Some(number) = x.number() else {
            let reason = format!("data type {} is not normalized", x.data_type);
            return Status::NOT_SUPPORTED.because(reason);
        };
        for (name, tensor) in others.iter().chain(&[("x", x)]) {
            if !tensor.is_packed() {
                let strides = &tensor.strides;
                let reason = format!("{name} is neither NCHW nor NHWC without gaps: {strides:?}");
                return Status::NOT_SUPPORTED.because(reason);
            }
        }
        let parameter = if number == Number::F64 { Number::F64 } else { Number::F32 };
        let mut this = Self { mode, ops, drops_nan: false, x: x.clone(), number, parameter };
        if ops != Ops::Nothing {
            this.check_activation(others, activation)?;
        }
        Ok(this)
    }

    /// What is documented for activations: one kernel has them, for packed NHWC in half precision.
    fn check_activation(
        &mut self,
        others: &[(&str, &Tensor)],
        activation: Option<Activation>,
    ) -> Result<(), Refusal> {
        const RELU: u32 = 1;
        let Some(activation) = activation else {
            return Status::BAD_PARAM.because("the activation descriptor is null");
        };
        let not = |reason: String| Status::NOT_SUPPORTED.because(reason);
        if activation.mode != RELU {
            return not(format!("activation {} is not the ReLU", activation.mode));
        }
        self.drops_nan = activation.nan_propagation == 0;
        if self.mode != Mode::Persistent {
            return not(format!("an activation needs the persistent mode, got {:?}", self.mode));
        }
        if self.number != Number::F16 {
            return not(format!("an activation needs half precision, got {:?}", self.number));
        }
        for (name, tensor) in others.iter().chain(&[("x", &self.x)]) {
            if !tensor.is_channels_last() {
                return not(format!("an activation needs NHWC, {name} has {:?}", tensor.strides));
            }
        }
        let channels = self.x.dims[1];
        if self.ops == Ops::AddActivation && channels % 4 != 0 {
            return not(format!("adding needs channels to be a multiple of 4, got {channels}"));
        }
        Ok(())
    }

    /// Whether the kernel with workspace and reserve space does it.
    pub fn is_semi_persistent(&self, others: &[&Tensor]) -> bool {
        self.mode == Mode::Persistent
            && self.number == Number::F16
            && others.iter().chain(&[&self.x]).all(|tensor| tensor.is_channels_last())
    }

    /// Whether it is the algorithm that overflows where sums do: the persistent one for NCHW.
    pub fn can_overflow(&self) -> bool {
        self.mode == Mode::Persistent && self.number != Number::F64 && !self.x.is_channels_last()
    }

    /// How many means there are.
    pub fn groups(&self) -> usize {
        match self.mode {
            Mode::PerActivation => self.x.len() / self.x.dims[0] as usize,
            _ => self.x.dims[1] as usize,
        }
    }

    /// The mean of an element, by its place in NCHW order.
    pub fn group(&self, element: usize) -> usize {
        let sample = self.x.len() / self.x.dims[0] as usize;
        let channel = sample / self.x.dims[1] as usize;
        match self.mode {
            Mode::PerActivation => element % sample,
            _ => element % sample / channel,
        }
    }

    /// The size queries' answers.
    pub fn workspace(&self, sums: usize) -> usize {
        (self.groups() * sums * size_of::<f64>() + 127).next_multiple_of(128)
    }
}

/// Refuses an epsilon below `CUDNN_BN_MIN_EPSILON`, which is 0.
pub fn check_epsilon(epsilon: f64) -> Result<(), Refusal> {
    if epsilon.is_nan() || epsilon < 0.0 {
        return Status::BAD_PARAM.because(format!("epsilon is {epsilon}"));
    }
    Ok(())
}

/// Both or none of two arguments.
pub fn pair(names: &str, [a, b]: [u64; 2]) -> Result<Option<[u64; 2]>, Refusal> {
    match (a, b) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) => Status::BAD_PARAM.because(format!("one of {names} is null")),
        _ => Ok(Some([a, b])),
    }
}

/// An argument of a job, of which none may be null or misaligned.
pub fn argument(
    job: &mut Job,
    how: Use,
    name: &str,
    address: u64,
    number: Number,
    count: usize,
) -> Result<Slot, Refusal> {
    if address == 0 {
        return Status::BAD_PARAM.because(format!("{name} is null"));
    }
    if !address.is_multiple_of(number.width() as u64) {
        return Status::BAD_PARAM.because(format!("{name} is misaligned: {address:#x}"));
    }
    Ok(job.argument(how, address, number, count))
}

/// Whether a handle is used as it was made.
pub fn check_handle(handle: &Handle) -> Result<(), Refusal> {
    handle.queue.check(handle.stream).or_else(|reason| Status::BAD_PARAM.because(reason))
}
