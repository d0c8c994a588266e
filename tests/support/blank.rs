//! The arguments of every operation before they have their buffers.
use super::faults::{Fault, RowsOn};
use super::run::{Buf, SavedOn};
use batchnorm::{
    Activation, Algorithm, Backward, Constrain, Constraint, DoubleBackward, Element, Engine,
    ForwardEval, ForwardTrain, Input, LayerNormBackward, LayerNormForward, Mask, Memory,
    MergeStats, OptimizerStep, Regularize, Regularizer, RenormState, Renormalize,
    RenormalizeBackward, Stats,
};

/// What arguments are made of before they have their buffers.
pub struct Blank<E: Element, G: Engine> {
    tensors: [Buf<G, E>; 2],
    channels: [Buf<G, E::Acc>; 2],
    more: [Buf<G, E::Acc>; 5],
    records: [Buf<G, f64>; 2],
    bytes: Buf<G, u8>,
}

impl<E: Element, G: Engine> Blank<E, G> {
    pub fn new(engine: &G) -> Self {
        let on = engine.memory();
        Self {
            tensors: [on.zeros(0).unwrap(), on.zeros(0).unwrap()],
            channels: [on.zeros(0).unwrap(), on.zeros(0).unwrap()],
            more: [(); 5].map(|()| on.zeros(0).unwrap()),
            records: [on.zeros(0).unwrap(), on.zeros(0).unwrap()],
            bytes: on.zeros(0).unwrap(),
        }
    }
    pub fn train(&mut self, fault: Fault) -> ForwardTrain<'_, G::Memory, E> {
        let ([x, y], [mean, var]) = (&mut self.tensors, &mut self.channels);
        let (mean, var) = (G::Memory::view_mut(mean), G::Memory::view_mut(var));
        let mut args =
            ForwardTrain::<G::Memory, E>::new(G::Memory::view(x), G::Memory::view_mut(y));
        args.mask = fault.mask.then(|| Mask::new(G::Memory::view(&self.bytes)));
        args.activation(Activation::Relu).eps(fault.eps).running(mean, var, fault.factor)
    }
    pub fn eval(&mut self, fault: Fault) -> ForwardEval<'_, G::Memory, E> {
        let ([x, y], [mean, var]) = (&mut self.tensors, &self.channels);
        let (x, y) = (G::Memory::view(x), G::Memory::view_mut(y));
        let args = match fault.by_record {
            true => ForwardEval::by_record(x, y, G::Memory::view(&self.records[0])),
            false => ForwardEval::new(x, y, G::Memory::view(mean), G::Memory::view(var)),
        };
        let mut args = args.activation(Activation::Relu).eps(fault.eps);
        if fault.in_place {
            args.x = Input::InPlace;
        }
        args
    }
    pub fn backward<'a>(
        &'a mut self,
        fault: Fault,
        saved: &'a SavedOn<G, E>,
    ) -> Backward<'a, G::Memory, E> {
        let [x, grad_y] = &self.tensors;
        let (x, grad_y) = (G::Memory::view(x), G::Memory::view(grad_y));
        let mut args = Backward::<G::Memory, E>::new(saved, x, grad_y);
        if fault.in_place {
            args.grad_y = Input::InPlace;
        }
        args
    }
    pub fn double_backward<'a>(
        &'a mut self,
        saved: &'a SavedOn<G, E>,
    ) -> DoubleBackward<'a, G::Memory, E> {
        let [x, grad_y] = &self.tensors;
        DoubleBackward::new(saved, G::Memory::view(x), G::Memory::view(grad_y))
    }
    pub fn stats(&mut self, fault: Fault) -> Stats<'_, G::Memory, E> {
        let ([x, _], [record, _]) = (&self.tensors, &mut self.records);
        let mut args = Stats::new(G::Memory::view(x), G::Memory::view_mut(record));
        args.mask = fault.mask.then(|| Mask::new(G::Memory::view(&self.bytes)));
        args
    }
    pub fn layer_norm(&mut self, fault: Fault) -> LayerNormForward<'_, G::Memory, E> {
        let [x, y] = &mut self.tensors;
        let args = LayerNormForward::new(G::Memory::view(x), G::Memory::view_mut(y));
        args.eps(fault.eps)
    }
    pub fn layer_norm_backward<'a>(
        &'a mut self,
        saved: &'a RowsOn<G, E>,
    ) -> LayerNormBackward<'a, G::Memory, E> {
        let [x, grad_y] = &self.tensors;
        LayerNormBackward::new(saved, G::Memory::view(x), G::Memory::view(grad_y))
    }
    pub fn merge(&mut self, fault: Fault) -> MergeStats<'_, G::Memory, E::Acc> {
        let ([records, record], [mean, var]) = (&mut self.records, &mut self.channels);
        let (mean, var) = (G::Memory::view_mut(mean), G::Memory::view_mut(var));
        let args = MergeStats::<G::Memory, E::Acc>::new(
            G::Memory::view(records),
            G::Memory::view_mut(record),
        );
        args.running(mean, var, fault.factor)
    }
    pub fn optimizer_step(&mut self) -> OptimizerStep<'_, G::Memory, E::Acc> {
        let ([value, grad], [lr, steps]) = (&mut self.channels, &mut self.records);
        let (value, grad) = (G::Memory::view_mut(value), G::Memory::view(grad));
        let (lr, steps) = (G::Memory::view(lr), G::Memory::view_mut(steps));
        OptimizerStep::<G::Memory, E::Acc>::new(value, grad, Algorithm::adam(), lr, steps)
    }
    pub fn regularize(&mut self) -> Regularize<'_, G::Memory, E::Acc> {
        let value = G::Memory::view(&self.channels[0]);
        Regularize::<G::Memory, E::Acc>::new(value, Regularizer::new(0.5, 0.25))
    }
    pub fn renormalize(&mut self, fault: Fault) -> Renormalize<'_, G::Memory, E::Acc> {
        let ([mean, stddev], [var, scale, shift, r, d]) = (&mut self.channels, &mut self.more);
        let [mean, stddev, var] = [mean, stddev, var].map(G::Memory::view_mut);
        let state = RenormState::<G::Memory, E::Acc>::new(mean, stddev, var, fault.factor);
        let [scale, shift, r, d] = [scale, shift, r, d].map(G::Memory::view_mut);
        let record = G::Memory::view(&self.records[0]);
        Renormalize::<G::Memory, E::Acc>::new(record, state, [scale, shift], [r, d]).eps(fault.eps)
    }
    pub fn renormalize_backward(&mut self) -> RenormalizeBackward<'_, G::Memory, E::Acc> {
        let ([r, d], [sum_g_xhat, sum_g, ..]) = (&self.channels, &self.more);
        let [r, d] = [r, d].map(G::Memory::view);
        let sums = [sum_g_xhat, sum_g].map(G::Memory::view);
        RenormalizeBackward::<G::Memory, E::Acc>::new([r, d], sums)
    }
    pub fn constrain(&mut self) -> Constrain<'_, G::Memory, E::Acc> {
        let value = G::Memory::view_mut(&mut self.channels[0]);
        Constrain::<G::Memory, E::Acc>::new(value, Constraint::MaxNorm(1.0))
    }
}
