//! The operations of an [`Engine`]: one file each, in which alone its arguments are listed.
//!
//! Such a file has the struct, the constructors, the [`Request`] that it is, the same arguments for a
//! shorter time (`reborrow`), the check that every engine makes first, and one walk over its arguments
//! ([`Arguments::walk`]), which says of each what it is ([`Argument`]) and has the view. Whoever looks
//! at all arguments, or exchanges some, is a [`Visitor`] of that walk: the check of lengths and places
//! here, the tests that give each a fault. An exhaustive pattern in the walk has the compiler ask for
//! the line of a new field; only what does not lie in memory is `_` there.
use super::check::{check_momentum, record_len, sums_len};
use super::saved::{Forward, Opened};
use super::{Engine, Saved};
use crate::{Element, Error, Memory, Real, Result, Shape};

mod backward;
mod constrain;
mod double_backward;
mod forward_eval;
mod forward_train;
pub(super) mod groups;
mod layer_norm;
mod mask;
mod merge_stats;
mod optimizer_step;
mod regularize;
mod renormalize;
mod request;
mod rules;
mod running;
mod stats;

pub use backward::Backward;
pub use constrain::Constrain;
pub use double_backward::DoubleBackward;
pub(crate) use double_backward::SUMS as DOUBLE_SUMS;
pub use forward_eval::{ForwardEval, Input, Statistics};
pub use forward_train::ForwardTrain;
pub(super) use layer_norm::check_rows;
pub use layer_norm::{LayerNormBackward, LayerNormForward};
pub use mask::Mask;
pub(crate) use mask::MaskRules;
pub use merge_stats::MergeStats;
pub use optimizer_step::OptimizerStep;
pub use regularize::Regularize;
pub use renormalize::{RenormState, Renormalize, RenormalizeBackward};
pub use request::{Op, Request, RunningRules};
pub(crate) use rules::rule;
pub use rules::{AllMasked, EmptyBatch, NonFinite, OneValue, Variance};
pub use running::Running;
pub use stats::Stats;

/// PyTorch's.
const DEFAULT_EPS: f64 = 1e-5;

/// An argument that lies in memory, as [`Arguments::walk`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Argument {
    /// As it is called in errors: `x`, `running_mean`, ...
    pub name: &'static str,
    /// What it holds.
    pub role: Role,
}

/// What an argument holds, which says how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A value per element of the shape: length N.
    Tensor,
    /// A value per channel: length C.
    Channel,
    /// The sums of a backward: two per channel and the number of values, length 2C + 1.
    Sums,
    /// The statistics of a batch or of a part of one: three per channel and the number of values,
    /// length 3C + 1.
    Record,
    /// Records one after the other: length `k * (3C + 1)`, k from 1 on.
    Records,
    /// So many numbers, whatever the shape.
    Scalars(usize),
    /// A byte per position of the shape without its channels: length N / C.
    Positions,
    /// A byte per position of the shape without its last axis, of this length: length N / L.
    WithoutLast(usize),
}

impl Role {
    /// The length for a tensor of so many elements and channels; of a single record for
    /// [`Role::Records`]. A length that overflows is that of no memory.
    pub const fn len(self, elements: usize, channels: usize) -> usize {
        match self {
            Self::Tensor => elements,
            Self::Channel => channels,
            Self::Sums => sums_len(channels),
            Self::Record | Self::Records => record_len(channels),
            Self::Scalars(len) => len,
            Self::Positions => elements / channels,
            Self::WithoutLast(0) => 0,
            Self::WithoutLast(last) => elements / last,
        }
    }
}

/// Arguments of an operation, to be looked at one by one.
///
/// ```
/// # use batchnorm::{Argument, Arguments, Element, Host, Result, Stats, Visitor};
/// /// What an operation reads, by name and length.
/// #[derive(Default)]
/// struct Reads(Vec<(&'static str, usize)>);
///
/// impl<'a> Visitor<'a, Host> for Reads {
///     fn read<T: Element>(&mut self, argument: Argument, view: &mut &'a [T]) -> Result<()> {
///         self.0.push((argument.name, view.len()));
///         Ok(())
///     }
///     fn write<T: Element>(&mut self, _: Argument, _: &mut &'a mut [T]) -> Result<()> {
///         Ok(())
///     }
///     fn read_bytes(&mut self, argument: Argument, view: &mut &'a [u8]) -> Result<()> {
///         self.0.push((argument.name, view.len()));
///         Ok(())
///     }
/// }
///
/// let (x, mut record) = ([0f32; 12], [0.0; 10]);
/// let mut reads = Reads::default();
/// Stats::<Host, f32>::new(&x, &mut record).walk(&mut reads)?;
/// assert_eq!(reads.0, [("x", 12)]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
///
/// The trait is sealed: the operations are those of [`Engine`].
pub trait Arguments<'a, M: Memory>: sealed::Sealed {
    /// Visits every argument that lies in memory, in an order of its own, until one visit fails. What
    /// a `Saved` holds is not among them.
    ///
    /// # Errors
    /// The visitor's.
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()>;
}

/// Looks at arguments, or exchanges them: each view is the visitor's to replace.
pub trait Visitor<'a, M: Memory> {
    /// An argument that the operation reads.
    ///
    /// # Errors
    /// The visitor's; they end the walk.
    fn read<T: Element>(&mut self, argument: Argument, view: &mut M::View<'a, T>) -> Result<()>;
    /// An argument that the operation writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write<T: Element>(&mut self, argument: Argument, view: &mut M::ViewMut<'a, T>)
    -> Result<()>;
    /// Bytes that it reads: a mask, where one is given.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_bytes(&mut self, argument: Argument, view: &mut M::View<'a, u8>) -> Result<()>;
    /// One that it reads where it is given: as it stands only what is there is visited.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_some<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut Option<M::View<'a, T>>,
    ) -> Result<()> {
        view.as_mut().map_or(Ok(()), |view| self.read(argument, view))
    }
    /// One that it writes where it is given: as it stands only what is there is visited.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write_some<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut Option<M::ViewMut<'a, T>>,
    ) -> Result<()> {
        view.as_mut().map_or(Ok(()), |view| self.write(argument, view))
    }
}

mod sealed {
    use crate::{Element, Memory, Real};
    pub trait Sealed {}
    impl<M: Memory, E: Element> Sealed for super::ForwardTrain<'_, M, E> {}
    impl<M: Memory, E: Element> Sealed for super::ForwardEval<'_, M, E> {}
    impl<M: Memory, E: Element> Sealed for super::Backward<'_, M, E> {}
    impl<M: Memory, E: Element> Sealed for super::DoubleBackward<'_, M, E> {}
    impl<M: Memory, E: Element> Sealed for super::Stats<'_, M, E> {}
    impl<M: Memory, P: Real> Sealed for super::MergeStats<'_, M, P> {}
    impl<M: Memory, E: Element> Sealed for super::LayerNormForward<'_, M, E> {}
    impl<M: Memory, E: Element> Sealed for super::LayerNormBackward<'_, M, E> {}
    impl<M: Memory, P: Real> Sealed for super::OptimizerStep<'_, M, P> {}
    impl<M: Memory, P: Real> Sealed for super::Regularize<'_, M, P> {}
    impl<M: Memory, P: Real> Sealed for super::Constrain<'_, M, P> {}
    impl<M: Memory, P: Real> Sealed for super::Renormalize<'_, M, P> {}
    impl<M: Memory, P: Real> Sealed for super::RenormalizeBackward<'_, M, P> {}
}

const fn tensor(name: &'static str) -> Argument {
    Argument { name, role: Role::Tensor }
}
const fn channel(name: &'static str) -> Argument {
    Argument { name, role: Role::Channel }
}
const fn sums(name: &'static str) -> Argument {
    Argument { name, role: Role::Sums }
}
const fn record(name: &'static str) -> Argument {
    Argument { name, role: Role::Record }
}
const fn records(name: &'static str) -> Argument {
    Argument { name, role: Role::Records }
}
const fn scalars(name: &'static str, len: usize) -> Argument {
    Argument { name, role: Role::Scalars(len) }
}

/// Refuses arguments of another length than N and C ask for, or of another place, so that none is
/// launched on another device.
struct Check<'m, M: Memory> {
    on: &'m M,
    elements: usize,
    channels: usize,
}

impl<'m, M: Memory> Check<'m, M> {
    fn new(on: &'m M, shape: &Shape) -> Self {
        Self { on, elements: shape.len(), channels: shape.channels() }
    }
    #[inline]
    fn view<T: Element>(&self, argument: Argument, view: &M::View<'_, T>) -> Result<()> {
        let Argument { name: what, role } = argument;
        let (expected, got) = (role.len(self.elements, self.channels), M::len(view));
        if role == Role::Records {
            if got == 0 || got % expected != 0 {
                let reason =
                    format!("expected a multiple of 3C + 1 = {expected} elements, got {got}");
                return Err(Error::invalid(what, reason));
            }
        } else if got != expected {
            return Err(Error::Length { what, expected, got });
        }
        self.on.check_here(what, view)
    }
}

impl<'a, M: Memory> Visitor<'a, M> for Check<'_, M> {
    #[inline]
    fn read<T: Element>(&mut self, argument: Argument, view: &mut M::View<'a, T>) -> Result<()> {
        self.view(argument, view)
    }
    #[inline]
    fn write<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut M::ViewMut<'a, T>,
    ) -> Result<()> {
        self.view(argument, &M::as_view(view))
    }
    fn read_bytes(&mut self, argument: Argument, view: &mut M::View<'a, u8>) -> Result<()> {
        self.bytes(argument, view)
    }
}

/// The forward that a request is, by an engine, with a weight and a bias or without.
pub(super) fn forward_of<G: Engine>(
    engine: &G,
    shape: &Shape,
    request: Request,
    (weight, bias): (bool, bool),
    mask: Option<MaskRules>,
) -> Forward {
    Forward {
        shape: *shape,
        dtype: request.dtype,
        activation: request.activation,
        residual: request.residual,
        y_is_kept: request.y_is_kept,
        weight,
        bias,
        batch_statistics: request.op == Op::ForwardTrain,
        synced: false,
        mask,
        engine: engine.name(),
    }
}

/// Buffers for what a forward saves; `reserve_len` bytes of the engine's own among them.
fn open<'s, M: Memory, P: Real, G: Engine<Memory = M>>(
    engine: &G,
    shape: &Shape,
    request: Request,
    parameters: (bool, bool),
    mask: Option<MaskRules>,
    reserve_len: usize,
    saved: &'s mut Saved<M, P>,
) -> Result<Opened<'s, M, P>> {
    let forward = forward_of(engine, shape, request, parameters, mask);
    saved.open(engine.memory(), forward, reserve_len)
}
