//! What a process computes beside batch normalization, as a part of all of them.
use super::backend::{Backend, HostBackend, Nonlinearity, Operand};
use anyhow::Result;
use batchnorm::{Collective, Host};
use batchnorm_mpi::Mpi;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The backend of one process, with a loss that is a mean over the images of all of them, and with parameters that
/// follow the sum of their gradients. Those of batch normalization's weight and bias are summed like any other.
#[derive(Clone)]
pub struct Parallel {
    own: HostBackend,
    ranks: Mpi,
    /// Images of the batch on all processes.
    total: Arc<AtomicUsize>,
}

impl Parallel {
    pub fn new(ranks: &Mpi, total: Arc<AtomicUsize>) -> Self {
        Self { own: HostBackend, ranks: ranks.clone(), total }
    }
}

impl Backend for Parallel {
    type Memory = Host;

    fn cross_entropy(
        &self,
        logits: &[f32],
        labels: &[u8],
        scores: &mut [f32],
        mut grad: Option<&mut [f32]>,
    ) -> Result<()> {
        self.own.cross_entropy(logits, labels, scores, grad.as_deref_mut())?;
        if let Some(grad) = grad {
            let share = labels.len() as f32 / self.total.load(Ordering::Relaxed) as f32;
            grad.iter_mut().for_each(|grad| *grad *= share);
        }
        Ok(())
    }
    fn sgd(&self, learning_rate: f32, grad: &[f32], value: &mut [f32]) -> Result<()> {
        let mut all = grad.to_vec();
        self.ranks.all_reduce(&Host, &mut all)?;
        self.own.sgd(learning_rate, &all, value)
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Operand<'_, Host>,
        b: Operand<'_, Host>,
        c: &mut [f32],
    ) -> Result<()> {
        self.own.matmul(size, a, b, c)
    }
    fn add_bias(&self, bias: &[f32], y: &mut [f32]) -> Result<()> {
        self.own.add_bias(bias, y)
    }
    fn sum_rows(&self, grad_y: &[f32], grad_bias: &mut [f32]) -> Result<()> {
        self.own.sum_rows(grad_y, grad_bias)
    }
    fn activate(&self, nonlinearity: Nonlinearity, y: &mut [f32]) -> Result<()> {
        self.own.activate(nonlinearity, y)
    }
    fn activate_backward(
        &self,
        nonlinearity: Nonlinearity,
        y: &[f32],
        grad: &mut [f32],
    ) -> Result<()> {
        self.own.activate_backward(nonlinearity, y, grad)
    }
    fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        self.own.join(a, b)
    }
}
