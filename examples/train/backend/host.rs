use anyhow::{Result, ensure};
use batchnorm::Host;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::{Backend, Nonlinearity, Operand, products, rows, same};

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
        let (_, [to_a, to_b]) = products([m, k, n], [a.len(), b.len(), c.len()])?;
        for (i, c) in c.chunks_exact_mut(m * n).enumerate() {
            let (a, b) = (matrix([m, k], i * to_a, &a)?, matrix([k, n], i * to_b, &b)?);
            general_mat_mul(1.0, &a, &b, 0.0, &mut ArrayViewMut2::from_shape((m, n), c)?);
        }
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

    fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        rayon::join(a, b)
    }
}

/// The one that begins at `at`.
fn matrix<'a>(
    [rows, columns]: [usize; 2],
    at: usize,
    operand: &Operand<'a, Host>,
) -> Result<ArrayView2<'a, f32>> {
    let (data, dims, transposed) = match *operand {
        Operand::Plain(data) => (data, (rows, columns), false),
        Operand::Transposed(data) => (data, (columns, rows), true),
    };
    let matrix = ArrayView2::from_shape(dims, &data[at..][..rows * columns])?;
    Ok(if transposed { matrix.reversed_axes() } else { matrix })
}
