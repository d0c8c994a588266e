//! The operations of an engine, by the engine of every rank and what they exchange.
use super::call::Call;
use super::common::sum;
use super::{Collective, Synced};
use crate::engine::check::check_values_per_channel;
use crate::engine::{
    Backward, Constrain, DoubleBackward, Engine, ForwardEval, ForwardTrain, Input,
    LayerNormBackward, LayerNormForward, Mask, MergeMasked, MergeStats, OneValue, Op,
    OptimizerStep, Regularize, Renormalize, RenormalizeBackward, Request, Statistics, Stats,
};
use crate::{DType, Element, Error, Memory, Real, Result, Saved, Shape};

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Engine for Synced<G, C> {
    type Memory = M;

    /// The name of the engine that computes, which a [`Saved`] is of.
    fn name(&self) -> &'static str {
        self.engine.name()
    }
    fn memory(&self) -> &M {
        self.engine.memory()
    }
    fn supports(&self, shape: &Shape, request: Request) -> Result<()> {
        if self.is_alone() {
            return self.engine.supports(shape, request);
        }
        calls(request).try_for_each(|request| self.engine.supports(shape, request))
    }
    fn prepare(&self, shape: &Shape, request: Request) -> Result<()> {
        if self.is_alone() {
            return self.engine.prepare(shape, request);
        }
        self.supports(shape, request)?;
        calls(request).try_for_each(|request| self.engine.prepare(shape, request))?;
        if !matches!(request.op, Op::ForwardTrain | Op::Backward | Op::DoubleBackward) {
            return Ok(());
        }
        let mut rooms = self.rooms.enter();
        let (memory, channels) = (self.memory(), shape.channels());
        let room = self.room(&mut rooms, channels)?;
        match request.op {
            Op::DoubleBackward => return room.double_sums(memory, channels).map(drop),
            Op::ForwardTrain if request.mask => {
                let steps = self.levels.iter().map(|level| level.ranks.size());
                room.counted(memory, channels, steps).map(drop)?;
            }
            _ => {}
        }
        match request.dtype {
            DType::F64 => room.sums::<f64>(memory, channels).map(drop),
            _ => room.sums::<f32>(memory, channels).map(drop),
        }
    }
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        if self.is_alone() {
            return self.engine.reserve_len(shape, request);
        }
        calls(request).map(|request| self.engine.reserve_len(shape, request)).max().unwrap_or(0)
    }
    fn ranks(&self) -> usize {
        self.collective.size()
    }
    fn decline(&self, op: Op) {
        if !self.is_alone() {
            let _order = self.rooms.enter();
            let refused = Call::new(op, DType::F64, 0, crate::Activation::Identity).words(None);
            // The caller has an error already.
            let _ = self.collective.exchange(refused);
        }
    }

    fn merge_ranks(
        &self,
        call: Call,
        own: Result<usize>,
        record: M::ViewMut<'_, f64>,
        one_value: OneValue,
    ) -> Result<usize> {
        if self.is_alone() {
            return own;
        }
        self.merge_records(call, own, record, one_value)
    }
    fn masked_record<E: Element>(
        &self,
        call: Call,
        shape: &Shape,
        args: Stats<'_, M, E>,
        rules: (f64, OneValue),
    ) -> Result<()> {
        if self.is_alone() {
            return self.engine.stats(shape, args);
        }
        self.record_masked(call, shape, args, rules)
    }
    fn gather_ranks(
        &self,
        call: Call,
        own: Result<[usize; 2]>,
        records: &mut M::Buf<f64>,
        all: &mut M::Buf<f64>,
    ) -> Result<Vec<[usize; 2]>> {
        self.gather_groups(call, own, records, all)
    }
    fn reduce_ranks<P: Real>(
        &self,
        call: Call,
        own: Result<()>,
        sums: M::ViewMut<'_, P>,
    ) -> Result<()> {
        if self.is_alone() {
            return own;
        }
        self.reduce_sums(call, own, sums)
    }
    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: M::View<'_, E>,
        mask: Mask<'_, M>,
        eps: f64,
        to: M::ViewMut<'_, f64>,
    ) -> Result<()> {
        self.engine.masked_stats(shape, x, mask, eps, to)
    }
    fn merge_masked<P: Real>(&self, args: MergeMasked<'_, M, P>) -> Result<()> {
        self.engine.merge_masked(args)
    }

    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, M, E>,
    ) -> Result<()> {
        if self.is_alone() || args.alone {
            return self.engine.forward_train(shape, args);
        }
        if let Some(mask) = args.mask.take() {
            return self.forward_masked(shape, args, mask);
        }
        let mut rooms = self.rooms.enter();
        let call = Call::of_forward(shape.channels(), &args);
        let own = self.begin(&mut rooms, shape, &mut args);
        let (room, parts) = self.agree(call, |_| shape.per_channel(), own)?;
        check_values_per_channel("x", sum(&parts), args.one_value)?;
        self.merge(room, &parts, args.running, args.one_value)?;
        let statistics = Statistics::Record(M::view(&room.merged));
        let (x, y) = (Input::View(M::reborrow(&args.x)), M::reborrow_mut(&mut args.y));
        let mut by = ForwardEval::<M, E>::with_input(x, y, statistics);
        by.residual = args.residual.as_ref().map(M::reborrow);
        by.weight = args.weight.as_ref().map(M::reborrow);
        by.bias = args.bias.as_ref().map(M::reborrow);
        by.saved = args.saved.as_deref_mut();
        self.engine.forward_eval(shape, by.activation(args.activation).eps(args.eps))?;
        if let Some(saved) = args.saved {
            saved.set_synced();
        }
        Ok(())
    }

    fn forward_eval<E: Element>(&self, shape: &Shape, args: ForwardEval<'_, M, E>) -> Result<()> {
        self.engine.forward_eval(shape, args)
    }

    fn backward<E: Element>(&self, shape: &Shape, mut args: Backward<'_, M, E>) -> Result<()> {
        let forward = args.saved.made().ok().map(|(forward, _)| *forward);
        let Some(forward) = forward.filter(|forward| forward.synced) else {
            return self.engine.backward(shape, args);
        };
        if self.is_alone() || args.total_sums.is_some() {
            return self.engine.backward(shape, args);
        }
        let mut rooms = self.rooms.enter();
        let (memory, channels) = (self.memory(), forward.shape.channels());
        let flags = [forward.residual, forward.weight, forward.bias, false, args.grad_x.is_some()];
        let call = Call::new(Op::Backward, E::DTYPE, channels, forward.activation).flags(&flags);
        let call = call.mask(forward.mask);
        let own = self.check_backward(shape, &mut args);
        let own = own.and_then(|()| self.room(&mut rooms, channels));
        let own = own.and_then(|room| room.sums::<E::Acc>(memory, channels));
        let (sums, _) = self.agree(call, |_| 0, own)?;
        if args.grad_x.is_none() {
            return self.engine.backward(shape, args.reborrow()); // nothing flows through the statistics
        }
        // From here on the others wait for this rank's sums: what fails here is NaN there, in place of a count.
        let done = self.sums(shape, &mut args, sums);
        if done.is_err() {
            let nan = vec![E::Acc::from_f64(f64::NAN); 2 * channels + 1];
            memory.write(&nan, M::view_mut(sums))?;
        }
        let reduced = self.collective.all_reduce(memory, M::view_mut(sums));
        done?;
        reduced?;
        if !M::BY_ADDRESS {
            let sums = M::view(sums);
            let count = M::slice(&sums, 2 * channels..2 * channels + 1);
            let count = count.map(|count| memory.download(count)).transpose()?;
            if count.is_some_and(|count| count.iter().any(|count| count.to_f64().is_nan())) {
                let reason =
                    "expected the sums of every rank, got none of one, whose own error says why";
                return Err(Error::collective(None, reason));
            }
        }
        let mut through = args.reborrow();
        (through.sums, through.grad_weight, through.grad_bias) = (None, None, None);
        through.total_sums = Some(M::view(sums));
        self.engine.backward(shape, through)
    }

    fn forward_train_groups<E: Element>(
        &self,
        groups: &[Shape],
        args: ForwardTrain<'_, M, E>,
        saved: &mut [Saved<M, E::Acc>],
        factors: &[(f64, f64)],
    ) -> Result<()> {
        self.engine.forward_train_groups(groups, args, saved, factors)
    }
    fn backward_groups<E: Element>(&self, args: Backward<'_, M, E>) -> Result<()> {
        self.engine.backward_groups(args)
    }
    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, M, E>,
    ) -> Result<()> {
        let forward = args.saved.made().ok().map(|(forward, _)| *forward);
        let is_part = args.sums.is_some() || args.total_sums.is_some();
        match forward.filter(|forward| forward.synced && !is_part && !self.is_alone()) {
            Some(forward) => self.double_backward_of_ranks(shape, args, &forward),
            None => self.engine.double_backward(shape, args),
        }
    }

    fn stats<E: Element>(&self, shape: &Shape, args: Stats<'_, M, E>) -> Result<()> {
        self.engine.stats(shape, args)
    }
    fn merge_stats<P: Real>(&self, args: MergeStats<'_, M, P>) -> Result<()> {
        self.engine.merge_stats(args)
    }
    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormForward<'_, M, E>,
    ) -> Result<()> {
        self.engine.layer_norm(shape, args)
    }
    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, M, E>,
    ) -> Result<()> {
        self.engine.layer_norm_backward(shape, args)
    }
    fn renormalize<P: Real>(&self, args: Renormalize<'_, M, P>) -> Result<()> {
        self.engine.renormalize(args)
    }
    fn renormalize_backward<P: Real>(&self, args: RenormalizeBackward<'_, M, P>) -> Result<()> {
        self.engine.renormalize_backward(args)
    }
    fn optimizer_step<P: Real>(&self, args: OptimizerStep<'_, M, P>) -> Result<()> {
        self.engine.optimizer_step(args)
    }
    fn regularize<P: Real>(&self, args: Regularize<'_, M, P>) -> Result<()> {
        self.engine.regularize(args)
    }
    fn constrain<P: Real>(&self, args: Constrain<'_, M, P>) -> Result<()> {
        self.engine.constrain(args)
    }
}

impl<G: Engine, C: std::fmt::Debug> std::fmt::Debug for Synced<G, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Synced")
            .field("engine", &self.engine.name())
            .field("collective", &self.collective)
            .finish_non_exhaustive()
    }
}

/// What one request of several ranks asks of the engine of each.
fn calls(request: Request) -> impl Iterator<Item = Request> {
    let of_parameters = if request.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let plain = |op, dtype| Request::new(op, dtype);
    let calls = match request.op {
        Op::ForwardTrain => {
            let merge = plain(Op::MergeStats, of_parameters).mask(request.mask);
            let merge = Request { running: request.running, ..merge };
            let eval = Request { op: Op::ForwardEval, running: None, mask: false, ..request };
            let eval = eval.by_record(true).y_is_kept(false);
            let stats = plain(if request.mask { request.op } else { Op::Stats }, request.dtype);
            [Some(stats.mask(request.mask)), Some(merge), Some(eval)]
        }
        Op::Backward => [Some(request.op(Op::BackwardEval).sums(true)), None, None],
        _ => [Some(request), None, None],
    };
    calls.into_iter().flatten()
}
