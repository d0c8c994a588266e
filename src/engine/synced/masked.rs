//! Statistics of the values that count for a mask, of which every rank has a part.
//!
//! A record has one count for all channels, and a mask one for each where it has other axes. So what ranks gather
//! here has four numbers of each channel, and is merged on every rank alike.
use super::call::Call;
use super::common::sum;
use super::room::CountedRoom;
use super::{Collective, Map, Synced};
use crate::engine::check::check_values_per_channel;
use crate::engine::saved_counted::Counted;
use crate::engine::{MaskRules, MergeMasked};
use crate::{
    Element, Engine, ForwardEval, ForwardTrain, Input, Mask, Memory, OneValue, Real, Result,
    Running, Shape, Statistics, Stats,
};

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Synced<G, C> {
    /// A training forward by the values that count in all parts.
    pub(super) fn forward_masked<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, M, E>,
        mask: Mask<'_, M>,
    ) -> Result<()> {
        let mut rooms = self.rooms.enter();
        let (memory, channels, rules) = (self.memory(), shape.channels(), mask.rules());
        let call = Call::of_forward(channels, &args).mask(Some(rules));
        let own = self.begin_masked(&mut rooms, shape, &mut args, mask);
        let ((counted, record), parts) = self.agree(call, |_| shape.per_channel(), own)?;
        let values = sum(&parts);
        check_values_per_channel("x", values, args.one_value)?;
        self.merge_counted(counted, record, rules, args.running.take(), args.one_value)?;
        let statistics = Statistics::Record(M::view(record));
        let (x, y) = (Input::View(M::reborrow(&args.x)), M::reborrow_mut(&mut args.y));
        let mut by = ForwardEval::<M, E>::with_input(x, y, statistics);
        by.residual = args.residual.as_ref().map(M::reborrow);
        by.weight = args.weight.as_ref().map(M::reborrow);
        by.bias = args.bias.as_ref().map(M::reborrow);
        by.saved = args.saved.as_deref_mut();
        self.engine.forward_eval(shape, by.activation(args.activation).eps(args.eps))?;
        if let Some(saved) = args.saved {
            let mut counts = saved.take_counts(memory, channels)?;
            if let Some(from) = M::part(&counted.merged, 3 * channels..4 * channels) {
                memory.copy(from, M::view_mut(&mut counts))?;
            }
            saved.set_synced();
            saved.set_counted(rules, Counted { counts, values });
        }
        Ok(())
    }

    /// See [`Engine::masked_record`]. The arguments are checked.
    pub(super) fn record_masked<E: Element>(
        &self,
        call: Call,
        shape: &Shape,
        mut args: Stats<'_, M, E>,
        (eps, one_value): (f64, OneValue),
    ) -> Result<()> {
        let Some(mask) = args.mask.take() else { return self.engine.stats(shape, args) };
        let (mut rooms, rules) = (self.rooms.enter(), mask.rules());
        let own = self.count_part(&mut rooms, shape, M::reborrow(&args.x), mask, eps);
        let ((counted, record), parts) = self.agree(call, |_| shape.per_channel(), own)?;
        check_values_per_channel("x", sum(&parts), one_value)?;
        self.merge_counted::<E::Acc>(counted, record, rules, None, one_value)?;
        self.memory().copy(M::view(record), args.record)
    }

    /// The check of the forward, and what this rank's part comes to; memory for the record of all parts.
    fn begin_masked<'r, E: Element>(
        &self,
        rooms: &'r mut Map<M>,
        shape: &Shape,
        args: &mut ForwardTrain<'_, M, E>,
        mask: Mask<'_, M>,
    ) -> Result<(&'r mut CountedRoom<M>, &'r mut M::Buf<f64>)> {
        {
            let mut mine = args.reborrow();
            (mine.one_value, mine.mask) = (OneValue::ZeroVariance, Some(mask.reborrow()));
            mine.check(self.memory(), shape)?;
        }
        self.supports(shape, args.request().mask(true))?;
        self.count_part(rooms, shape, M::reborrow(&args.x), mask, args.eps)
    }
    fn count_part<'r, E: Element>(
        &self,
        rooms: &'r mut Map<M>,
        shape: &Shape,
        x: M::View<'_, E>,
        mask: Mask<'_, M>,
        eps: f64,
    ) -> Result<(&'r mut CountedRoom<M>, &'r mut M::Buf<f64>)> {
        let (channels, steps) = (shape.channels(), self.levels.iter().map(|l| l.ranks.size()));
        let room = self.room(rooms, channels)?;
        let (counted, record) = room.counted(self.memory(), channels, steps)?;
        self.engine.masked_stats(shape, x, mask, eps, M::view_mut(&mut counted.mine))?;
        Ok((counted, record))
    }

    /// What all parts come to, in the steps that records take, and the record of that by a mask's rules.
    fn merge_counted<P: Real>(
        &self,
        counted: &mut CountedRoom<M>,
        record: &mut M::Buf<f64>,
        rules: MaskRules,
        running: Option<Running<'_, M, P>>,
        one_value: OneValue,
    ) -> Result<()> {
        let (memory, mut running) = (self.memory(), running);
        let CountedRoom { mine, gathered, merged } = counted;
        for (k, (level, gathered)) in self.levels.iter().zip(gathered).enumerate() {
            let mine = if k == 0 { M::view(mine) } else { M::view(merged) };
            level.ranks.all_gather(memory, mine, M::view_mut(gathered))?;
            let mut args = MergeMasked::<M, P>::new(M::view(gathered), rules, M::view_mut(merged));
            if k + 1 == self.levels.len() {
                args.one_value = one_value;
                args.running = running.as_mut().map(Running::reborrow);
                args.record = Some(M::view_mut(record));
            }
            self.engine.merge_masked(args)?;
        }
        Ok(())
    }
}
