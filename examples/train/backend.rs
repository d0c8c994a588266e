//! What a network needs besides batch normalization: matrix products, the nonlinearity, the loss,
//! SGD. One trait, and its implementation for ordinary memory; another place gets another one,
//! and the network stays as it is.
use anyhow::{Context, Result, ensure};
use batchnorm::{Host, Memory};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

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

/// Arithmetic on one kind of memory. Nothing here allocates a tensor, and nothing needs to wait:
/// what the host wants to know it downloads from `scores`. Results do not depend on the number of
/// threads.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Where its arguments lie: that of the engine beside it.
    type Memory: Memory;

    /// `c = a b`, where a is `m` x `k`, b is `k` x `n` and c is `m` x `n` (after transposing).
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
}

pub type View<'a, B> = <<B as Backend>::Memory as Memory>::View<'a, f32>;
pub type ViewMut<'a, B> = <<B as Backend>::Memory as Memory>::ViewMut<'a, f32>;

/// The backend beside the engines that work on ordinary memory, on the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostBackend;

impl Backend for HostBackend {
    type Memory = Host;

    fn matmul(
        &self,
        [m, k, n]: [usize; 3],
        a: Operand<'_, Host>,
        b: Operand<'_, Host>,
        c: &mut [f32],
    ) -> Result<()> {
        let got = c.len();
        let mut c = ArrayViewMut2::from_shape((m, n), c)
            .with_context(|| format!("matmul, c: expected {m} x {n} elements, got {got}"))?;
        general_mat_mul(1.0, &matrix("a", m, k, a)?, &matrix("b", k, n, b)?, 0.0, &mut c);
        Ok(())
    }

    fn add_bias(&self, bias: &[f32], y: &mut [f32]) -> Result<()> {
        rows("add_bias", bias.len(), y.len())?;
        for row in y.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        Ok(())
    }

    fn sum_rows(&self, grad_y: &[f32], grad_bias: &mut [f32]) -> Result<()> {
        rows("sum_rows", grad_bias.len(), grad_y.len())?;
        grad_bias.fill(0.0);
        for row in grad_y.chunks_exact(grad_bias.len()) {
            grad_bias.iter_mut().zip(row).for_each(|(sum, grad)| *sum += grad);
        }
        Ok(())
    }

    fn activate(&self, nonlinearity: Nonlinearity, y: &mut [f32]) -> Result<()> {
        match nonlinearity {
            Nonlinearity::Sigmoid => y.iter_mut().for_each(|y| *y = 1.0 / (1.0 + (-*y).exp())),
            // Not `max`, which would turn a NaN into 0 and hide it.
            Nonlinearity::Relu => y.iter_mut().filter(|y| **y < 0.0).for_each(|y| *y = 0.0),
        }
        Ok(())
    }

    fn activate_backward(
        &self,
        nonlinearity: Nonlinearity,
        y: &[f32],
        grad: &mut [f32],
    ) -> Result<()> {
        same("activate_backward", y.len(), grad.len())?;
        let pairs = grad.iter_mut().zip(y);
        match nonlinearity {
            Nonlinearity::Sigmoid => pairs.for_each(|(grad, y)| *grad *= y * (1.0 - y)),
            Nonlinearity::Relu => pairs.filter(|(_, y)| **y <= 0.0).for_each(|(g, _)| *g = 0.0),
        }
        Ok(())
    }

    fn cross_entropy(
        &self,
        logits: &[f32],
        labels: &[u8],
        scores: &mut [f32],
        mut grad: Option<&mut [f32]>,
    ) -> Result<()> {
        same("cross_entropy, scores", 2, scores.len())?;
        rows("cross_entropy", labels.len(), logits.len())?;
        if let Some(grad) = &grad {
            same("cross_entropy, grad", logits.len(), grad.len())?;
        }
        let (count, classes) = (labels.len(), logits.len() / labels.len());
        let (mut loss, mut right) = (0f64, 0u32);
        for (row, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
            let label = usize::from(label);
            ensure!(label < classes, "label: expected less than {classes}, got {label}");
            // The largest logit is taken off, so that no exponential overflows.
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|v| (v - max).exp()).sum();
            loss += f64::from(sum.ln() - (logits[label] - max));
            // Of equal logits the first counts, so that a constant network is no good one; a NaN
            // is never right.
            let first = logits.iter().position(|v| *v == max);
            right += u32::from(first == Some(label) && sum.is_finite());
            if let Some(grad) = &mut grad {
                let grad = &mut grad[row * classes..][..classes];
                for (class, (grad, v)) in grad.iter_mut().zip(logits).enumerate() {
                    let target = if class == label { 1.0 } else { 0.0 };
                    *grad = ((v - max).exp() / sum - target) / count as f32;
                }
            }
        }
        scores.copy_from_slice(&[(loss / count as f64) as f32, right as f32]);
        Ok(())
    }

    fn sgd(&self, learning_rate: f32, grad: &[f32], value: &mut [f32]) -> Result<()> {
        same("sgd", value.len(), grad.len())?;
        value.iter_mut().zip(grad).for_each(|(value, grad)| *value -= learning_rate * grad);
        Ok(())
    }
}

fn matrix<'a>(
    what: &str,
    rows: usize,
    columns: usize,
    operand: Operand<'a, Host>,
) -> Result<ArrayView2<'a, f32>> {
    let (data, dims, transposed) = match operand {
        Operand::Plain(data) => (data, (rows, columns), false),
        Operand::Transposed(data) => (data, (columns, rows), true),
    };
    let got = data.len();
    let matrix = ArrayView2::from_shape(dims, data)
        .with_context(|| format!("matmul, {what}: expected {rows} x {columns}, got {got}"))?;
    Ok(if transposed { matrix.reversed_axes() } else { matrix })
}

fn rows(what: &str, columns: usize, len: usize) -> Result<()> {
    let whole = columns > 0 && len.is_multiple_of(columns);
    ensure!(whole, "{what}: expected a multiple of {columns} elements, got {len}");
    Ok(())
}

fn same(what: &str, expected: usize, got: usize) -> Result<()> {
    ensure!(expected == got, "{what}: expected {expected} elements, got {got}");
    Ok(())
}
