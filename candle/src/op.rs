//! One operation of candle's graph: x, parameters and a residual in, y out, gradients back.
use crate::place::{At, Dtype, Kept, Lent, LentMut, Place, Pooled, Pools};
use crate::pool::Lease;
use batchnorm::{
    Activation, Backward, Element, Engine, ForwardEval, ForwardTrain, Memory, Running, Shape,
};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Error, InplaceOp1, Layout, Result,
    Storage, Tensor, Var, bail,
};
use std::cell::Cell;

type View<'a, L, T> = <<L as Place>::Memory as Memory>::View<'a, T>;
type ViewMut<'a, L, T> = <<L as Place>::Memory as Memory>::ViewMut<'a, T>;
/// An argument as candle hands it over.
type Given<'a, S> = (&'a S, &'a Layout);

/// By which statistics, of the parameters' type and length C each.
pub(crate) enum By {
    /// The batch's, which move the running ones by this factor.
    Batch { mean: Var, var: Var, factor: f64 },
    /// The running ones.
    Running { mean: Tensor, var: Tensor },
}

/// A call of a layer.
pub(crate) struct Call {
    /// The axis of channels, in x as it is handed over.
    pub axis: usize,
    pub eps: f64,
    pub activation: Activation,
    pub by: By,
    /// Whether the second argument is a residual. Weight and bias follow: two arguments, or one that holds
    /// both, of shape [2, C], as candle's operations have three arguments at most.
    pub residual: bool,
}

/// The operation, with what its forward saves if any argument asks for a gradient.
pub(crate) struct Op<L: Place, E: Dtype<L>> {
    call: Call,
    lease: Option<Lease<L::Memory, E::Acc>>,
}

/// What follows x.
struct Rest<'a, L: Place, E: Element> {
    residual: Option<View<'a, L, E>>,
    weight_and_bias: Option<[View<'a, L, E::Acc>; 2]>,
}

impl<L: Place, E: Dtype<L>> Op<L, E> {
    /// Applies a call to these tensors: x, and what it says of the others.
    pub fn apply(call: Call, pools: &Pools, args: &[&Tensor]) -> Result<Tensor> {
        let tracked = args.iter().any(|t| t.track_op());
        let lease = tracked.then(|| <E::Acc as Pooled<L>>::pool(pools).take());
        let op = Self { call, lease };
        match *args {
            [x] => x.apply_op1(op),
            [x, second] => x.apply_op2(second, op),
            [x, second, third] => x.apply_op3(second, third, op),
            _ => bail!("batch norm: expected one to three arguments, got {}", args.len()),
        }
    }

    fn rest<'a>(&self, rest: &[Given<'a, L::Storage>]) -> Result<Rest<'a, L, E>> {
        let (residual, parameters) = rest.split_at(usize::from(self.call.residual));
        let residual = residual.first().map(|(s, layout)| E::view(s, layout)).transpose()?;
        let view = |(s, layout): (&'a L::Storage, &Layout)| E::Acc::view(s, layout);
        let weight_and_bias = match *parameters {
            [] => None,
            [(both, layout)] => {
                let half = |k| view((both, &layout.narrow(0, k, 1)?));
                Some([half(0)?, half(1)?])
            }
            [weight, bias, ..] => Some([view(weight)?, view(bias)?]),
        };
        Ok(Rest { residual, weight_and_bias })
    }

    /// A forward of memory wherever it is.
    fn run(
        &self,
        (x, layout): (Lent<'_>, &Layout),
        rest: &[(Lent<'_>, &Layout)],
    ) -> Result<Storage> {
        let at = |(lent, layout)| Ok((L::expect(L::lent(lent))?, layout));
        let rest = rest.iter().map(|one| at(*one)).collect::<Result<Vec<_>>>()?;
        Ok(L::storage(self.forward(at((x, layout))?, &rest)?))
    }

    // Views of code that is generic over the memory are invariant: each needs a reborrow.
    fn forward(
        &self,
        (x, layout): Given<'_, L::Storage>,
        rest: &[Given<'_, L::Storage>],
    ) -> Result<L::Storage> {
        let Call { axis, eps, activation, by, .. } = &self.call;
        let shape = Shape::new(layout.dims(), *axis).map_err(Error::wrap)?;
        let engine = L::engine(x)?;
        let Rest { residual, weight_and_bias } = self.rest(rest)?;
        let [weight, bias] = match &weight_and_bias {
            Some([weight, bias]) => [Some(weight), Some(bias)],
            None => [None; 2],
        };
        let mut y = E::alloc(x, shape.len())?;
        let view = E::view(x, layout)?;
        let mut saved = self.lease.as_ref().map(Lease::lock);
        match by {
            By::Batch { mean, var, factor } => lend::<L, E::Acc>(mean, |mut mean| {
                lend::<L, E::Acc>(var, |mut var| {
                    let (x, y) = (L::Memory::reborrow(&view), L::Memory::view_mut(&mut y));
                    let mut args = ForwardTrain::<L::Memory, E>::new(x, y);
                    args.residual = residual.as_ref().map(L::Memory::reborrow);
                    args.weight = weight.map(L::Memory::reborrow);
                    args.bias = bias.map(L::Memory::reborrow);
                    let mean = L::Memory::reborrow_mut(&mut mean);
                    args.running =
                        Some(Running::new(mean, L::Memory::reborrow_mut(&mut var), *factor));
                    args.saved = saved.as_deref_mut();
                    let args = args.activation(*activation).eps(*eps);
                    engine.forward_train(&shape, args).map_err(Error::wrap)
                })
            })?,
            By::Running { mean, var } => {
                let (mean, mean_layout) = mean.storage_and_layout();
                let (var, var_layout) = var.storage_and_layout();
                let mean = E::Acc::view(L::of(&mean)?, mean_layout)?;
                let var = E::Acc::view(L::of(&var)?, var_layout)?;
                let mut args = ForwardEval::<L::Memory, E>::new(
                    L::Memory::reborrow(&view),
                    L::Memory::view_mut(&mut y),
                    L::Memory::reborrow(&mean),
                    L::Memory::reborrow(&var),
                );
                args.residual = residual.as_ref().map(L::Memory::reborrow);
                args.weight = weight.map(L::Memory::reborrow);
                args.bias = bias.map(L::Memory::reborrow);
                args.saved = saved.as_deref_mut();
                let args = args.activation(*activation).eps(*eps);
                engine.forward_eval(&shape, args).map_err(Error::wrap)?;
            }
        }
        Ok(E::wrap(x, y))
    }

    /// The gradients of x and what follows it, of those that are tracked.
    fn backward(
        &self,
        x: &Tensor,
        rest: &[&Tensor],
        grad_y: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let Some(lease) = &self.lease else { return Ok([None, None, None]) };
        let shape = Shape::new(x.dims(), self.call.axis).map_err(Error::wrap)?;
        let channels = shape.channels();
        let grad_y = grad_y.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let at = L::of(&storage)?;
        let engine = L::engine(at)?;
        let guards: Vec<_> = rest.iter().map(|t| t.storage_and_layout()).collect();
        let given: Vec<_> =
            guards.iter().map(|(s, layout)| Ok((L::of(s)?, *layout))).collect::<Result<_>>()?;
        let residual = self.rest(&given)?.residual;
        let (residual_at, parameters) = rest.split_at(usize::from(self.call.residual));

        let mut grad_x = of(x.track_op(), || E::alloc(at, shape.len()))?;
        let wants_residual = residual_at.iter().any(|t| t.track_op());
        let mut grad_residual = of(wants_residual, || E::alloc(at, shape.len()))?;
        let wants = |k: usize| {
            let one = parameters.get(k).or(parameters.first());
            one.is_some_and(|t| t.track_op())
        };
        let mut grad_weight = of(wants(0), || E::Acc::alloc(at, channels))?;
        let mut grad_bias = of(wants(1), || E::Acc::alloc(at, channels))?;

        let saved = lease.lock();
        let (grad_storage, grad_layout) = grad_y.storage_and_layout();
        let (x_view, grad_view) =
            (E::view(at, layout)?, E::view(L::of(&grad_storage)?, grad_layout)?);
        let mut args = Backward::<L::Memory, E>::new(
            &saved,
            L::Memory::reborrow(&x_view),
            L::Memory::reborrow(&grad_view),
        );
        args.residual = residual.as_ref().map(L::Memory::reborrow);
        args.grad_x = grad_x.as_mut().map(L::Memory::view_mut);
        args.grad_residual = grad_residual.as_mut().map(L::Memory::view_mut);
        args.grad_weight = grad_weight.as_mut().map(L::Memory::view_mut);
        args.grad_bias = grad_bias.as_mut().map(L::Memory::view_mut);
        engine.backward(&shape, args).map_err(Error::wrap)?;

        let whole = |buf| tensor(L::storage(E::wrap(at, buf)), x.shape());
        let channel = |buf| tensor(L::storage(E::Acc::wrap(at, buf)), channels);
        let (grad_x, grad_residual) = (grad_x.map(whole), grad_residual.map(whole));
        let (grad_weight, grad_bias) = (grad_weight.map(channel), grad_bias.map(channel));
        Ok(match (self.call.residual, parameters.len()) {
            (false, _) => [grad_x, grad_weight, grad_bias],
            (true, 0) => [grad_x, grad_residual, None],
            (true, _) => {
                let both = grad_weight.zip(grad_bias);
                let both = both.map(|(weight, bias)| Tensor::stack(&[weight, bias], 0));
                [grad_x, grad_residual, both.transpose()?]
            }
        })
    }
}

fn of<T>(wanted: bool, make: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    wanted.then(make).transpose()
}

fn tensor(storage: Storage, shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// Has `f` write into a variable: candle lends its memory to an operation in place alone, and this is one
/// that only lends.
fn lend<L: Place, T: Kept<L>>(
    var: &Var,
    f: impl FnOnce(ViewMut<'_, L, T>) -> Result<()>,
) -> Result<()> {
    let run =
        |lent: LentMut<'_>, layout: &Layout| f(T::view_mut(L::expect(L::lent_mut(lent))?, layout)?);
    var.inplace_op1(&Lend(Cell::new(Some(run))))
}

struct Lend<F>(Cell<Option<F>>);

impl<F: FnOnce(LentMut<'_>, &Layout) -> Result<()>> InplaceOp1 for Lend<F> {
    fn name(&self) -> &'static str {
        "batch-norm-running"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.0.take().map_or(Ok(()), |f| f(At::Cpu(storage), layout))
    }
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.0.take().map_or(Ok(()), |f| f(At::Cuda(storage), layout))
    }
}

/// candle's three traits for operations of one to three arguments.
macro_rules! custom_op {
    ($trait:ident, [$($storage:ident $layout:ident $arg:ident)*], [$($grad:ident)*] -> $gradients:ty: $all:expr) => {
        impl<L: Place, E: Dtype<L>> $trait for Op<L, E> {
            fn name(&self) -> &'static str {
                "batch-norm"
            }
            fn cpu_fwd(
                &self,
                x: &CpuStorage,
                layout: &Layout,
                $($storage: &CpuStorage, $layout: &Layout),*
            ) -> Result<(CpuStorage, candle_core::Shape)> {
                let y = self.run((Lent::Cpu(x), layout), &[$((Lent::Cpu($storage), $layout)),*])?;
                match y {
                    Storage::Cpu(y) => Ok((y, layout.shape().clone())),
                    _ => L::expect(None),
                }
            }
            fn cuda_fwd(
                &self,
                x: &CudaStorage,
                layout: &Layout,
                $($storage: &CudaStorage, $layout: &Layout),*
            ) -> Result<(CudaStorage, candle_core::Shape)> {
                let y = self.run((Lent::Cuda(x), layout), &[$((Lent::Cuda($storage), $layout)),*])?;
                match y {
                    Storage::Cuda(y) => Ok((y, layout.shape().clone())),
                    _ => L::expect(None),
                }
            }
            fn bwd(
                &self,
                x: &Tensor,
                $($arg: &Tensor,)*
                _y: &Tensor,
                grad_y: &Tensor,
            ) -> Result<$gradients> {
                let [$($grad),*] = self.backward(x, &[$($arg),*], grad_y)?;
                Ok($all)
            }
        }
    };
}
custom_op!(CustomOp1, [], [x _second _third] -> Option<Tensor>: x);
custom_op!(CustomOp2, [s2 l2 second], [x residual _third] -> (Option<Tensor>, Option<Tensor>): (x, residual));
custom_op!(
    CustomOp3, [s2 l2 second s3 l3 third],
    [x second third] -> (Option<Tensor>, Option<Tensor>, Option<Tensor>): (x, second, third)
);
