//! The gradients of a backward through statistics that ranks have in common: the sums of every part, those of all, and
//! what these make of the elements.
use super::call::Call;
use super::common::sum;
use super::{Collective, Map, Synced};
use crate::engine::saved::Forward;
use crate::engine::{DOUBLE_SUMS, DoubleBackward, Engine, Op};
use crate::{Element, Memory, Result, Shape};

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Synced<G, C> {
    /// After a forward that was one of all ranks.
    pub(super) fn double_backward_of_ranks<E: Element>(
        &self,
        shape: &Shape,
        mut args: DoubleBackward<'_, M, E>,
        forward: &Forward,
    ) -> Result<()> {
        let mut rooms = self.rooms.enter();
        let (memory, channels) = (self.memory(), forward.shape.channels());
        let flags = [forward.residual, forward.weight, forward.bias];
        let call = Call::new(Op::DoubleBackward, E::DTYPE, channels, forward.activation);
        let call = call.flags(&flags).mask(forward.mask);
        let own = self.begin_double_backward(&mut rooms, shape, &mut args);
        let (sums, parts) = self.agree(call, |_| shape.per_channel(), own)?;
        // From here on the others wait for this rank's sums: what fails here is NaN there.
        let done = {
            let mut part = args.reborrow();
            (part.gg_grad_y, part.gg_x, part.gg_residual) = (None, None, None);
            (part.gg_weight, part.gg_bias) = (None, None);
            part.sums = Some(M::view_mut(sums));
            self.engine.double_backward(shape, part.accumulate(false))
        };
        if done.is_err() {
            memory.write(&vec![f64::NAN; DOUBLE_SUMS * channels], M::view_mut(sums))?;
        }
        let reduced = self.collective.all_reduce(memory, M::view_mut(sums));
        done?;
        reduced?;
        let mut through = args.reborrow();
        if self.collective.rank() != parts.iter().position(|values| *values > 0).unwrap_or(0) {
            // The parameters' come of the sums of all parts, so that one rank has them: the first with values.
            let accumulate = through.accumulate;
            let of_parameters = [through.gg_weight.take(), through.gg_bias.take()];
            for gradient in of_parameters.into_iter().flatten().filter(|_| !accumulate) {
                memory.zero(gradient)?;
            }
        }
        through.total_sums = Some((M::view(sums), sum(&parts)));
        self.engine.double_backward(shape, through)
    }

    /// The check of it, and memory for the sums.
    fn begin_double_backward<'r, E: Element>(
        &self,
        rooms: &'r mut Map<M>,
        shape: &Shape,
        args: &mut DoubleBackward<'_, M, E>,
    ) -> Result<&'r mut M::Buf<f64>> {
        args.saved.made()?.0.check(shape, E::DTYPE, self.engine.name())?;
        args.check_on_ranks(self.memory(), shape)?;
        self.engine.supports(shape, args.request()?)?;
        self.room(rooms, shape.channels())?.double_sums(self.memory(), shape.channels())
    }
}
