//! Statistics of the values that count for a mask, of which every rank has a part.
//!
//! A record has one count for all channels, and a mask one for each where it has other axes. So what ranks gather
//! here has four numbers of each channel, and is merged on the host, on every rank alike. A device is waited for.
use super::call::Call;
use super::common::sum;
use super::{Collective, Synced};
use crate::engine::check::check_values_per_channel;
use crate::engine::counted_parts::{CountedParts, OnHost, merged};
use crate::engine::saved_counted::Counted;
use crate::{
    Element, Engine, Error, ForwardEval, ForwardTrain, Input, Mask, Memory, OneValue, Result,
    Shape, Statistics,
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
        let ((room, mine), parts) = self.agree(call, |_| shape.per_channel(), own)?;
        let values = sum(&parts);
        check_values_per_channel("x", values, args.one_value)?;
        let counted = self.merge_counted(mine, channels)?;

        let all = CountedParts { all: &counted, rules };
        let record = all.record(values);
        let mut running = args.running.as_mut().map(|r| OnHost::new(memory, r)).transpose()?;
        if let Some(running) = &mut running {
            all.update(&mut running.borrow(), args.one_value);
        }
        memory.write(&record, M::view_mut(&mut room.merged))?;
        if let (Some(on_host), Some(running)) = (running, &mut args.running) {
            on_host.write(memory, running)?;
        }
        let statistics = Statistics::Record(M::view(&room.merged));
        let (x, y) = (Input::View(M::reborrow(&args.x)), M::reborrow_mut(&mut args.y));
        let mut by = ForwardEval::<M, E>::with_input(x, y, statistics);
        by.residual = args.residual.as_ref().map(M::reborrow);
        by.weight = args.weight.as_ref().map(M::reborrow);
        by.bias = args.bias.as_ref().map(M::reborrow);
        by.saved = args.saved.as_deref_mut();
        self.engine.forward_eval(shape, by.activation(args.activation).eps(args.eps))?;
        if let Some(saved) = args.saved {
            let mut counts = saved.take_counts(memory, channels)?;
            memory.write(all.counts(), M::view_mut(&mut counts))?;
            saved.set_synced();
            saved.set_counted(rules, Counted { counts, values });
        }
        Ok(())
    }

    /// The check of the forward, and what this rank's part comes to.
    fn begin_masked<'r, E: Element>(
        &self,
        rooms: &'r mut super::Map<M>,
        shape: &Shape,
        args: &mut ForwardTrain<'_, M, E>,
        mask: Mask<'_, M>,
    ) -> Result<(&'r mut super::Room<M>, Vec<f64>)> {
        {
            let mut mine = args.reborrow();
            (mine.one_value, mine.mask) = (OneValue::ZeroVariance, Some(mask.reborrow()));
            mine.check(self.memory(), shape)?;
        }
        if self.memory().is_capturing()? {
            let reason = "of several ranks' parts: expected none while a graph is captured, as what counts is read \
                          back, got one";
            return Err(Error::invalid("mask", reason));
        }
        self.supports(shape, args.request().mask(true))?;
        let room = self.room(rooms, shape.channels())?;
        let x = M::reborrow(&args.x);
        Ok((room, self.engine.masked_stats(shape, x, mask, args.eps)?))
    }

    /// What all parts come to, in the steps that records take.
    fn merge_counted(&self, mine: Vec<f64>, channels: usize) -> Result<Vec<f64>> {
        let (memory, mut mine) = (self.memory(), mine);
        for level in &self.levels {
            let own = memory.upload(&mine)?;
            let mut all = memory.zeros(mine.len().saturating_mul(level.ranks.size()))?;
            level.ranks.all_gather(memory, M::view(&own), M::view_mut(&mut all))?;
            mine = merged(&memory.download(M::view(&all))?, channels);
        }
        Ok(mine)
    }
}
