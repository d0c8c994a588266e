//! What a process computes beside batch normalization, as a part of all of them.
use super::backend::{Backend, HostBackend, Nonlinearity, Operand, View, ViewMut};
use anyhow::Result;
use batchnorm::{Collective, Memory};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend whose numbers can be made smaller where they lie.
pub trait Shrinks: Backend {
    /// `values *= factor`, of 0 to 1.
    fn shrink(&self, on: &Self::Memory, factor: f32, values: ViewMut<'_, Self>) -> Result<()>;
}

impl Shrinks for HostBackend {
    fn shrink(&self, _: &batchnorm::Host, factor: f32, values: &mut [f32]) -> Result<()> {
        values.iter_mut().for_each(|value| *value *= factor);
        Ok(())
    }
}

#[cfg(feature = "cuda")]
impl Shrinks for super::backend::cuda::CudaBackend {
    /// By the step of SGD, which there is a kernel for: `values -= (1 - factor) * values`.
    fn shrink(
        &self,
        on: &batchnorm::Device,
        factor: f32,
        mut values: ViewMut<'_, Self>,
    ) -> Result<()> {
        let mut before = on.zeros(values.len())?;
        on.copy(values.as_view(), before.as_view_mut())?;
        self.sgd(1.0 - factor, before.as_view(), values.slice_mut(..))
    }
}

/// The backend of one process, with a loss that is a mean over the images of all of them, and with parameters that
/// follow the sum of their gradients. Those of batch normalization's weight and bias are summed like any other.
#[derive(Clone)]
pub struct Parallel<B: Backend, C> {
    own: B,
    memory: B::Memory,
    ranks: C,
    /// Images of the batch on all processes.
    total: Arc<AtomicUsize>,
}

impl<B: Shrinks, C: Collective<B::Memory>> Parallel<B, C> {
    pub fn new(own: &B, memory: &B::Memory, ranks: &C, total: Arc<AtomicUsize>) -> Self {
        Self { own: own.clone(), memory: memory.clone(), ranks: ranks.clone(), total }
    }
}

impl<B: Shrinks, C: Collective<B::Memory>> Backend for Parallel<B, C> {
    type Memory = B::Memory;

    fn cross_entropy(
        &self,
        logits: View<'_, Self>,
        labels: <B::Memory as Memory>::View<'_, u8>,
        scores: ViewMut<'_, Self>,
        mut grad: Option<ViewMut<'_, Self>>,
    ) -> Result<()> {
        let images = B::Memory::len(&labels);
        let own_grad = grad.as_mut().map(B::Memory::reborrow_mut);
        self.own.cross_entropy(logits, labels, scores, own_grad)?;
        match grad {
            Some(grad) => {
                let share = images as f32 / self.total.load(Ordering::Relaxed) as f32;
                self.own.shrink(&self.memory, share, grad)
            }
            None => Ok(()),
        }
    }
    fn sgd(
        &self,
        learning_rate: f32,
        grad: View<'_, Self>,
        value: ViewMut<'_, Self>,
    ) -> Result<()> {
        let mut all = self.memory.zeros(B::Memory::len(&grad))?;
        self.memory.copy(grad, B::Memory::view_mut(&mut all))?;
        self.ranks.all_reduce(&self.memory, B::Memory::view_mut(&mut all))?;
        self.own.sgd(learning_rate, B::Memory::view(&all), value)
    }

    fn matmul(
        &self,
        size: [usize; 3],
        a: Operand<'_, B::Memory>,
        b: Operand<'_, B::Memory>,
        c: ViewMut<'_, Self>,
    ) -> Result<()> {
        self.own.matmul(size, a, b, c)
    }
    fn add_bias(&self, bias: View<'_, Self>, y: ViewMut<'_, Self>) -> Result<()> {
        self.own.add_bias(bias, y)
    }
    fn sum_rows(&self, grad_y: View<'_, Self>, grad_bias: ViewMut<'_, Self>) -> Result<()> {
        self.own.sum_rows(grad_y, grad_bias)
    }
    fn activate(&self, nonlinearity: Nonlinearity, y: ViewMut<'_, Self>) -> Result<()> {
        self.own.activate(nonlinearity, y)
    }
    fn activate_backward(
        &self,
        nonlinearity: Nonlinearity,
        y: View<'_, Self>,
        grad: ViewMut<'_, Self>,
    ) -> Result<()> {
        self.own.activate_backward(nonlinearity, y, grad)
    }
    fn join<A: Send, T: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> T + Send,
    ) -> (A, T) {
        self.own.join(a, b)
    }
}
