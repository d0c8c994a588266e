//! What a network needs besides batch normalization: matrix products, the nonlinearity, the loss,
//! SGD. One trait, implemented for each place where numbers live; the network stays as it is.
use anyhow::{Result, ensure};
use batchnorm::Memory;

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
pub mod cuda;
mod host;

pub use host::HostBackend;

/// What follows a normalized (or plain) linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Nonlinearity {
    /// `1 / (1 + exp(-v))`
    Sigmoid,
    /// `max(v, 0)`
    Relu,
}

impl Nonlinearity {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Nonlinearity::Sigmoid => "sigmoid",
            Nonlinearity::Relu => "relu",
        }
    }
}

/// A row-major matrix in a product: as it lies there, or transposed.
pub enum Operand<'a, M: Memory> {
    Plain(M::View<'a, f32>),
    Transposed(M::View<'a, f32>),
}

impl<M: Memory> Operand<'_, M> {
    fn len(&self) -> usize {
        match self {
            Operand::Plain(view) | Operand::Transposed(view) => M::len(view),
        }
    }
}

/// Arithmetic on one kind of memory. Nothing here allocates a tensor, and nothing needs to wait:
/// what the host wants to know it downloads from `scores`. Results do not depend on the number of
/// threads.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Where its arguments lie: that of the engine beside it.
    type Memory: Memory;

    /// `c = a b`, where a is `m` x `k`, b is `k` x `n` and c is `m` x `n` (after transposing).
    ///
    /// Where `c` holds several matrices, one after the other, each is a product of its own; an `a`
    /// or `b` of a single matrix is part of every one.
    fn matmul(
        &self,
        size: [usize; 3],
        a: Operand<'_, Self::Memory>,
        b: Operand<'_, Self::Memory>,
        c: ViewMut<'_, Self>,
    ) -> Result<()>;
    /// Adds `bias` to every row of `y`.
    fn add_bias(&self, bias: View<'_, Self>, y: ViewMut<'_, Self>) -> Result<()>;
    /// Sums the rows of `grad_y`: the gradient of that bias.
    fn sum_rows(&self, grad_y: View<'_, Self>, grad_bias: ViewMut<'_, Self>) -> Result<()>;
    /// Applies the nonlinearity in place.
    fn activate(&self, nonlinearity: Nonlinearity, y: ViewMut<'_, Self>) -> Result<()>;
    /// Turns the gradient of the nonlinearity's output `y` into that of its input, in place.
    fn activate_backward(
        &self,
        nonlinearity: Nonlinearity,
        y: View<'_, Self>,
        grad: ViewMut<'_, Self>,
    ) -> Result<()>;
    /// Softmax and cross-entropy, averaged over the rows of `logits`, one label per row. Writes
    /// the loss and the number of rows whose largest logit is the label's to `scores`, and the
    /// gradient of the loss to `grad` where there is one.
    fn cross_entropy(
        &self,
        logits: View<'_, Self>,
        labels: <Self::Memory as Memory>::View<'_, u8>,
        scores: ViewMut<'_, Self>,
        grad: Option<ViewMut<'_, Self>>,
    ) -> Result<()>;
    /// `value -= learning_rate * grad`
    fn sgd(&self, learning_rate: f32, grad: View<'_, Self>, value: ViewMut<'_, Self>)
    -> Result<()>;
    /// Does both, at the same time where that is of use.
    fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B);
}

pub type View<'a, B> = <<B as Backend>::Memory as Memory>::View<'a, f32>;
pub type ViewMut<'a, B> = <<B as Backend>::Memory as Memory>::ViewMut<'a, f32>;

fn rows(what: &str, columns: usize, len: usize) -> Result<()> {
    let whole = columns > 0 && len.is_multiple_of(columns);
    ensure!(whole, "{what}: expected a multiple of {columns} elements, got {len}");
    Ok(())
}

fn same(what: &str, expected: usize, got: usize) -> Result<()> {
    ensure!(expected == got, "{what}: expected {expected} elements, got {got}");
    Ok(())
}

/// How many matrices there are in `c`, and from one to the next in `a` and in `b`: nothing where
/// there is but one.
fn products([m, k, n]: [usize; 3], [a, b, c]: [usize; 3]) -> Result<(usize, [usize; 2])> {
    rows("matmul, c", m * n, c)?;
    let count = c / (m * n);
    let distance = |what: &str, size: usize, got: usize| {
        let fits = got == size || got == count * size;
        ensure!(fits, "matmul, {what}: expected 1 or {count} times {size} elements, got {got}");
        Ok(if got == size { 0 } else { size })
    };
    Ok((count, [distance("a", m * k, a)?, distance("b", k * n, b)?]))
}
