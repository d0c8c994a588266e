//! What ranks have in common in steps of a layer that are several calls of an engine.
use super::call::{self, Call};
use super::{Collective, Synced};
use crate::engine::check::{check_values_per_channel, record_len};
use crate::{Engine, Error, Memory, OneValue, Real, Result};

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Synced<G, C> {
    /// The last word of every rank, where all make this call and none has refused it; otherwise this rank's own
    /// error, or another's. `own` is in terms of this rank's part.
    pub(super) fn agree<T>(
        &self,
        call: Call,
        word: impl FnOnce(&T) -> usize,
        own: Result<T>,
    ) -> Result<(T, Vec<usize>)> {
        let all = self.collective.exchange(call.words(own.as_ref().ok().map(word)));
        let own = own?;
        Ok((own, call::agreed(self.collective.rank(), &all?)?))
    }

    /// See [`Engine::merge_ranks`].
    pub(super) fn merge_records(
        &self,
        call: Call,
        own: Result<usize>,
        mut record: M::ViewMut<'_, f64>,
        one_value: OneValue,
    ) -> Result<usize> {
        let (memory, mut rooms) = (self.memory(), self.rooms.enter());
        let own = own.and_then(|values| {
            let room = self.room(&mut rooms, call.channels())?;
            memory.copy(M::as_view(&record), M::view_mut(&mut room.record))?;
            Ok((room, values))
        });
        let ((room, _), parts) = self.agree(call, |(_, values)| *values, own)?;
        let values = sum(&parts);
        check_values_per_channel("x", values, one_value)?;
        self.merge::<f64>(room, &parts, None, one_value)?;
        memory.copy(M::view(&room.merged), M::reborrow_mut(&mut record))?;
        Ok(values)
    }

    /// See [`Engine::gather_ranks`].
    pub(super) fn gather_groups(
        &self,
        call: Call,
        own: Result<[usize; 2]>,
        records: &mut M::Buf<f64>,
        all: &mut M::Buf<f64>,
    ) -> Result<Vec<[usize; 2]>> {
        const HALF: u32 = usize::BITS / 2;
        let memory = self.memory();
        let _order = self.rooms.enter();
        let own = own.and_then(|[groups, vars]| match groups >> (HALF - 1) {
            0 => Ok((groups << HALF | vars, groups)),
            _ => Err(Error::invalid("ghost", format!("expected fewer groups, got {groups}"))),
        });
        let ((_, groups), words) = self.agree(call, |(word, _)| *word, own)?;
        let mask = (1 << HALF) - 1;
        let counts: Vec<[usize; 2]> = words.iter().map(|w| [w >> HALF, w & mask]).collect();
        let most = counts.iter().map(|[groups, _]| *groups).max().unwrap_or(0);
        let len = match call.is_masked() {
            true => call.channels().saturating_mul(4),
            false => record_len(call.channels()),
        };
        let (mine, of_all) = (len.saturating_mul(most), len.saturating_mul(most * counts.len()));
        if mine == 0 || !call.moves_running() {
            return Ok(counts);
        }
        if M::len(&M::view(records)) < mine {
            let mut longer = memory.zeros(mine)?;
            {
                let mut longer = M::view_mut(&mut longer);
                let to = M::slice_mut(&mut longer, 0..groups * len);
                if let (Some(from), Some(to)) = (M::part(records, 0..groups * len), to) {
                    memory.copy(from, to)?;
                }
            }
            *records = longer;
        }
        if M::len(&M::view(all)) < of_all {
            *all = memory.zeros(of_all)?;
        }
        let mut all = M::view_mut(all);
        let parts = M::part(records, 0..mine).zip(M::slice_mut(&mut all, 0..of_all));
        let lost = || Error::invalid("records", "expected those of all groups, got fewer");
        let (mine, of_all) = parts.ok_or_else(lost)?;
        self.collective.all_gather(memory, mine, of_all)?;
        Ok(counts)
    }

    /// See [`Engine::reduce_ranks`].
    pub(super) fn reduce_sums<P: Real>(
        &self,
        call: Call,
        own: Result<()>,
        mut sums: M::ViewMut<'_, P>,
    ) -> Result<()> {
        let _order = self.rooms.enter();
        self.agree(call, |()| 0, own)?;
        self.collective.all_reduce(self.memory(), M::reborrow_mut(&mut sums))
    }
}

/// Values per channel of all parts.
pub(super) fn sum(parts: &[usize]) -> usize {
    parts.iter().fold(0, |all, part| all.saturating_add(*part))
}
