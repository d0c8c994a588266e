//! Softmax and cross-entropy, and the derivative of its gradient.
use super::data::CLASSES;

/// The label of a row that is padding: it has no part in a loss.
pub const PADDING: u8 = u8::MAX;

/// The mean loss of the rows that have a label, how many are right, and the loss' gradient of the logits.
pub struct Loss {
    pub mean: f64,
    pub right: usize,
    pub grad: Vec<f32>,
    /// What the classes of every row are given, of 1.
    shares: Vec<f32>,
    rows: usize,
}

pub fn cross_entropy(logits: &[f32], labels: &[u8]) -> Loss {
    let rows = labels.iter().filter(|label| **label != PADDING).count();
    let mut loss =
        Loss { mean: 0.0, right: 0, grad: vec![0.0; logits.len()], shares: vec![], rows };
    loss.shares = vec![0.0; logits.len()];
    let to = loss.grad.chunks_exact_mut(CLASSES).zip(loss.shares.chunks_exact_mut(CLASSES));
    for ((row, &label), (grad, shares)) in logits.chunks_exact(CLASSES).zip(labels).zip(to) {
        if label == PADDING {
            continue;
        }
        // The largest logit is taken off, so that no exponential overflows.
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|logit| (logit - max).exp()).sum();
        let label = usize::from(label);
        loss.mean += f64::from(sum.ln() - (row[label] - max)) / rows as f64;
        // Not of a NaN, which is the largest of none.
        loss.right += usize::from(row.iter().position(|logit| *logit == max) == Some(label));
        for (class, (grad, share)) in grad.iter_mut().zip(shares).enumerate() {
            *share = (row[class] - max).exp() / sum;
            *grad = (*share - if class == label { 1.0 } else { 0.0 }) / rows as f32;
        }
    }
    loss
}

impl Loss {
    /// The gradient of the logits for a loss that is made of `grad`, from its gradient with respect to that, `v`.
    pub fn double_backward(&self, v: &[f32]) -> Vec<f32> {
        let rows = self.shares.chunks_exact(CLASSES).zip(v.chunks_exact(CLASSES));
        rows.flat_map(|(shares, v)| {
            let mean: f32 = shares.iter().zip(v).map(|(share, v)| share * v).sum();
            let of = move |(share, v): (&f32, &f32)| share * (v - mean) / self.rows as f32;
            shares.iter().zip(v).map(of)
        })
        .collect()
    }
}
