//! The arithmetic on Flex's tensors, whose memory is read and written as it lies.
use crate::order::Order;
use crate::pool::{Lease, Pooled, Pools};
use crate::{Error, Result};
use batchnorm::{
    Activation, Backward, Cpu, Derivative, Engine, ForwardEval, ForwardTrain, Host, Memory,
    OneValue, Real, Running, Shape, Variance,
};
use burn::tensor::{Bytes, DType};
use burn_flex::{FlexTensor, Layout};
use half::{bf16, f16};
use std::borrow::Cow;

/// What of a layer a call needs.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub eps: f64,
    pub activation: Activation,
    /// How the batch's own statistics move the running ones; these normalize where it is none.
    pub batch: Option<Batch>,
    pub pools: Pools,
}

/// How a batch's statistics move the running ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    pub factor: f64,
    pub variance: Variance,
    pub one_value: OneValue,
}

/// The tensors of a call.
pub(crate) struct Inputs {
    pub x: FlexTensor,
    pub residual: Option<FlexTensor>,
    pub gamma: FlexTensor,
    pub beta: FlexTensor,
    /// Mean and variance, length C each.
    pub running: [FlexTensor; 2],
}

/// What a forward returns.
pub(crate) struct Outputs {
    pub y: FlexTensor,
    /// The running statistics, where the batch has moved them.
    pub running: Option<[FlexTensor; 2]>,
    pub kept: Option<Kept>,
}

/// What a forward leaves for its backward.
#[derive(Debug)]
pub(crate) struct Kept {
    leased: Leased,
    order: Order,
    /// Types of the parameters, in which their gradients are asked for.
    gamma: DType,
    beta: DType,
    activation: Activation,
}

/// By the type that a tensor's sums are made in.
#[derive(Debug)]
enum Leased {
    Single(Lease<f32>),
    Double(Lease<f64>),
}

/// Which gradients are asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub x: bool,
    pub residual: bool,
    pub gamma: bool,
    pub beta: bool,
}

/// Those, and no others.
pub(crate) struct Gradients {
    pub x: Option<FlexTensor>,
    pub residual: Option<FlexTensor>,
    pub gamma: Option<FlexTensor>,
    pub beta: Option<FlexTensor>,
}

/// A type of both libraries.
trait Both: Default + batchnorm::Element + burn::tensor::Element + bytemuck::Pod {}
impl<T: Default + batchnorm::Element + burn::tensor::Element + bytemuck::Pod> Both for T {}

/// A type of parameters.
trait Parameter: Both + Pooled {
    fn lease(leased: &Leased) -> Option<&Lease<Self>>;
    fn leased(lease: Lease<Self>) -> Leased;
}
impl Parameter for f32 {
    fn lease(leased: &Leased) -> Option<&Lease<f32>> {
        match leased {
            Leased::Single(lease) => Some(lease),
            Leased::Double(_) => None,
        }
    }
    fn leased(lease: Lease<f32>) -> Leased {
        Leased::Single(lease)
    }
}
impl Parameter for f64 {
    fn lease(leased: &Leased) -> Option<&Lease<f64>> {
        match leased {
            Leased::Double(lease) => Some(lease),
            Leased::Single(_) => None,
        }
    }
    fn leased(lease: Lease<f64>) -> Leased {
        Leased::Double(lease)
    }
}

/// What is served.
pub(crate) const TYPES: &str = "f16, bf16, f32 or f64";

/// Calls with the Rust type of a tensor's type.
macro_rules! by_type {
    ($what:literal, $dtype:expr, $f:ident($($arg:expr),*)) => {
        match $dtype {
            DType::F16 => $f::<f16>($($arg),*),
            DType::BF16 => $f::<bf16>($($arg),*),
            DType::F32 => $f::<f32>($($arg),*),
            DType::F64 => $f::<f64>($($arg),*),
            got => Err(Error::DType { what: $what, expected: TYPES.into(), got }),
        }
    };
}

/// Normalizes; saves for a backward if there will be one.
pub(crate) fn forward(call: &Call, inputs: Inputs, saves: bool) -> Result<Outputs> {
    by_type!("x", inputs.x.dtype(), forward_of(call, inputs, saves))
}

/// Whether the backward reads the residual again.
pub(crate) fn reads_residual(activation: Activation) -> bool {
    activation.derivative_from(true) == Derivative::FromResidual
}

fn forward_of<E: Both<Acc: Parameter>>(
    call: &Call,
    inputs: Inputs,
    saves: bool,
) -> Result<Outputs> {
    let Inputs { x, residual, gamma, beta, running } = inputs;
    let order = Order::of(x.layout());
    let mut x = order.apply(x);
    let residual = residual.map(|residual| order.apply(residual));
    let shape = Shape::new(x.layout().shape(), order.place_of(1))?;
    let residual = residual.as_ref().map(|t| dense::<E>("residual", t)).transpose()?;
    let (weight, bias) = (vector::<E::Acc>("gamma", &gamma)?, vector::<E::Acc>("beta", &beta)?);
    let mean = vector::<E::Acc>("running_mean", &running[0])?;
    let var = vector::<E::Acc>("running_var", &running[1])?;
    let engine = Cpu::default();
    let lease = saves.then(|| Lease::<E::Acc>::of(&call.pools));
    let mut saved = lease.as_ref().map(Lease::lock);

    let (y, moved) = if let Some(batch) = call.batch {
        let (mut mean, mut var) = (mean.into_owned(), var.into_owned());
        let mut y = Host.unwritten::<E>(shape.len())?;
        let mut args = ForwardTrain::<Host, E>::new(dense("x", &x)?, &mut y);
        args.residual = residual;
        args.saved = saved.as_deref_mut();
        let moves = Running::new(&mut mean[..], &mut var[..], batch.factor);
        args.running = Some(moves.variance(batch.variance));
        let args = args.weight(&weight).bias(&bias).activation(call.activation).eps(call.eps);
        engine.forward_train(&shape, args.one_value(batch.one_value))?;
        let [of_mean, of_var] = running.each_ref().map(FlexTensor::dtype);
        (tensor(y, &x), Some([narrowed(mean, of_mean)?, narrowed(var, of_var)?]))
    } else {
        let own = if saves { None } else { exclusive::<E>(&mut x) };
        let in_place = own.is_some();
        let mut y = Vec::new();
        let mut args = if let Some(own) = own {
            ForwardEval::<Host, E>::in_place(own, &mean, &var)
        } else {
            y = Host.unwritten(shape.len())?;
            ForwardEval::<Host, E>::new(dense("x", &x)?, &mut y, &mean, &var)
        };
        args.residual = residual;
        args.saved = saved.as_deref_mut();
        let args = args.weight(&weight).bias(&bias).activation(call.activation).eps(call.eps);
        engine.forward_eval(&shape, args)?;
        (if in_place { x } else { tensor(y, &x) }, None)
    };
    drop(saved);
    let y = order.undo(y);
    let kept = lease.map(|lease| Kept {
        leased: E::Acc::leased(lease),
        order,
        gamma: gamma.dtype(),
        beta: beta.dtype(),
        activation: call.activation,
    });
    Ok(Outputs { y, running: moved, kept })
}

/// The gradients asked for, of x as the forward had it. That of x is written over the gradient of y where this
/// is nobody else's.
pub(crate) fn backward(
    kept: &Kept,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    grad_y: FlexTensor,
    wanted: Wanted,
) -> Result<Gradients> {
    by_type!("x", x.dtype(), backward_of(kept, x, residual, grad_y, wanted))
}

fn backward_of<E: Both<Acc: Parameter>>(
    kept: &Kept,
    x: FlexTensor,
    residual: Option<FlexTensor>,
    grad_y: FlexTensor,
    wanted: Wanted,
) -> Result<Gradients> {
    let order = &kept.order;
    let (x, mut grad_y) = (order.apply(x), order.apply(grad_y));
    let residual = residual.map(|residual| order.apply(residual));
    let shape = Shape::new(x.layout().shape(), order.place_of(1))?;
    let Some(lease) = E::Acc::lease(&kept.leased) else {
        let expected = "the forward's type".into();
        return Err(Error::DType { what: "x", expected, got: x.dtype() });
    };
    let saved = lease.lock();

    // Behind a mere sum the residual's gradient is that of y: the same memory.
    let is_same = matches!(kept.activation, Activation::Identity);
    let same = (wanted.residual && is_same).then(|| grad_y.clone());
    let new = |wanted: bool| wanted.then(|| Host.unwritten::<E>(shape.len())).transpose();
    let mut grad_residual = new(wanted.residual && !is_same)?;
    let channels =
        |wanted: bool| wanted.then(|| Host.zeros::<E::Acc>(shape.channels())).transpose();
    let (mut gamma, mut beta) = (channels(wanted.gamma)?, channels(wanted.beta)?);

    let own = if wanted.x { exclusive::<E>(&mut grad_y) } else { None };
    let in_place = own.is_some();
    let mut grad_x = None;
    let mut args = if let Some(own) = own {
        Backward::<Host, E>::in_place(&saved, dense("x", &x)?, own)
    } else {
        grad_x = new(wanted.x)?;
        Backward::<Host, E>::new(&saved, dense("x", &x)?, dense("grad_y", &grad_y)?)
    };
    if !in_place {
        args.grad_x = grad_x.as_deref_mut();
    }
    args.residual = residual.as_ref().map(|t| dense("residual", t)).transpose()?;
    args.grad_residual = grad_residual.as_deref_mut();
    args.grad_weight = gamma.as_deref_mut();
    args.grad_bias = beta.as_deref_mut();
    Cpu::default().backward(&shape, args)?;
    let grad_x = if in_place { Some(grad_y) } else { grad_x.map(|grad| tensor(grad, &x)) };
    let grad_residual = same.or(grad_residual.map(|grad| tensor(grad, &x)));
    let vector =
        |values: Option<Vec<E::Acc>>, dtype| values.map(|v| narrowed(v, dtype)).transpose();
    Ok(Gradients {
        x: grad_x.map(|grad| order.undo(grad)),
        residual: grad_residual.map(|grad| order.undo(grad)),
        gamma: vector(gamma, kept.gamma)?,
        beta: vector(beta, kept.beta)?,
    })
}

/// A dense tensor's memory.
fn dense<'a, E: Both>(what: &'static str, t: &'a FlexTensor) -> Result<&'a [E]> {
    let expected = || format!("{:?}, dense", <E as burn::tensor::Element>::dtype());
    t.as_slice().ok_or_else(|| Error::DType { what, expected: expected(), got: t.dtype() })
}

/// The same to write, if it is nobody else's.
fn exclusive<E: Both>(t: &mut FlexTensor) -> Option<&mut [E]> {
    let (start, end) = t.layout().contiguous_offsets()?;
    t.try_storage_mut::<E>()?.get_mut(start..end)
}

/// A tensor of these values, of the shape of another one, in the order of its axes.
fn tensor<E: Both>(values: Vec<E>, like: &FlexTensor) -> FlexTensor {
    let layout = Layout::contiguous(like.layout().shape().clone());
    FlexTensor::new(Bytes::from_elems(values), layout, <E as burn::tensor::Element>::dtype())
}

/// Values per channel in the type that a call takes them in, copied where they are of another one.
fn vector<'a, P: Both + Real>(what: &'static str, t: &'a FlexTensor) -> Result<Cow<'a, [P]>> {
    fn widened<E: Both>(what: &'static str, t: &FlexTensor) -> Result<Vec<f64>> {
        Ok(dense::<E>(what, t)?.iter().map(|v| v.widen().to_f64()).collect())
    }
    if let Some(values) = t.as_slice() {
        return Ok(Cow::Borrowed(values));
    }
    let t = t.to_contiguous();
    let values = by_type!("gamma, beta or running statistics", t.dtype(), widened(what, &t))?;
    Ok(Cow::Owned(values.into_iter().map(P::from_f64).collect()))
}

/// The way back: values per channel as a tensor of this type.
fn narrowed<P: Both + Real>(values: Vec<P>, dtype: DType) -> Result<FlexTensor> {
    fn vector<E: Both>(values: Vec<E>) -> FlexTensor {
        let layout = Layout::contiguous([values.len()].into());
        FlexTensor::new(Bytes::from_elems(values), layout, <E as burn::tensor::Element>::dtype())
    }
    fn of<E: Both, P: Real>(values: &[P]) -> Result<FlexTensor> {
        let narrow = |v: &P| E::narrow(Real::from_f64(v.to_f64()));
        Ok(vector::<E>(values.iter().map(narrow).collect()))
    }
    if <P as burn::tensor::Element>::dtype() == dtype {
        return Ok(vector(values));
    }
    match dtype {
        DType::F16 => of::<f16, P>(&values),
        DType::BF16 => of::<bf16, P>(&values),
        DType::F32 => of::<f32, P>(&values),
        DType::F64 => of::<f64, P>(&values),
        got => Err(Error::DType { what: "a parameter", expected: TYPES.into(), got }),
    }
}
