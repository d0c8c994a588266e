//! Ranks that are threads of one process.
use super::{Collective, Rank, Words};
use crate::{Error, Memory, Real, Result};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ranks that are threads of one process: several devices, or parts of a batch on one processor. What they
/// exchange goes through ordinary memory, for which a device is waited for.
///
/// Each thread has the one of its rank, and whoever drops the last clone of it, by a panic too, leaves: then what
/// others wait for is an error at once, and not only at the limit.
#[derive(Debug, Clone)]
pub struct Threads(Arc<Member>);

#[derive(Debug)]
struct Member {
    meeting: Arc<Meeting>,
    rank: usize,
    /// How often it was split.
    splits: Mutex<u64>,
}

/// Where the threads of a collective meet, for one call after the other.
#[derive(Debug)]
struct Meeting {
    size: usize,
    limit: Duration,
    table: Mutex<Table>,
    is_over: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    /// How many calls all ranks have made.
    calls: u64,
    /// What each has brought to the one that they make now.
    brought: Vec<Option<Brought>>,
    /// What came of the last one.
    outcome: Option<Result<Arc<dyn Any + Send + Sync>>>,
    /// Why there is no other.
    end: Option<Error>,
    has_left: Vec<bool>,
    /// Parts that some ranks of have not taken yet, by the number of the split and the color.
    parts: HashMap<(u64, usize), (Arc<Meeting>, usize)>,
}

#[derive(Debug)]
struct Brought {
    call: &'static str,
    len: usize,
    values: Box<dyn Any + Send>,
}

impl Threads {
    /// So many ranks, one for each thread, in order; each waits so long for the others. None for 0.
    pub fn new(size: usize, limit: Duration) -> Vec<Self> {
        let meeting = Arc::new(Meeting::new(size, limit));
        (0..size).map(|rank| Self::of(meeting.clone(), rank)).collect()
    }
    fn of(meeting: Arc<Meeting>, rank: usize) -> Self {
        Self(Arc::new(Member { meeting, rank, splits: Mutex::new(0) }))
    }

    /// What every rank brings to this call, which has a name and a length, by rank.
    fn meet<T: Clone + Send + Sync + 'static>(
        &self,
        call: &'static str,
        len: usize,
        values: T,
    ) -> Result<Arc<Vec<T>>> {
        let Member { meeting, rank, .. } = &*self.0;
        let mut table = meeting.table();
        if let Some(end) = &table.end {
            return Err(end.clone());
        }
        if let Some(gone) = table.has_left.iter().position(|left| *left) {
            return Err(meeting.end(&mut table, left(gone)));
        }
        table.brought[*rank] = Some(Brought { call, len, values: Box::new(values) });
        let (mine, begin) = (table.calls, Instant::now());
        if table.brought.iter().all(Option::is_some) {
            table.outcome = Some(collect::<T>(&mut table.brought));
            table.calls += 1;
            meeting.is_over.notify_all();
        }
        while table.calls == mine {
            if let Some(end) = &table.end {
                return Err(end.clone());
            }
            let Some(rest) = meeting.limit.checked_sub(begin.elapsed()) else {
                let missing: Vec<usize> =
                    (0..meeting.size).filter(|k| table.brought[*k].is_none()).collect();
                let reason = format!(
                    "expected all {} ranks in {call} within {:?}, got none of {missing:?}",
                    meeting.size, meeting.limit
                );
                let one = if let [one] = missing[..] { Some(one) } else { None };
                return Err(meeting.end(&mut table, Error::collective(one, reason)));
            };
            table = meeting
                .is_over
                .wait_timeout(table, rest)
                .map_or_else(|e| e.into_inner().0, |(t, _)| t);
        }
        let outcome = table.outcome.clone();
        drop(table);
        let lost = || Error::collective(None, "expected what the ranks have brought, got nothing");
        outcome.ok_or_else(lost)??.downcast().map_err(|_| lost())
    }
}

/// What all have brought, if it is to the same call.
fn collect<T: Clone + Send + Sync + 'static>(
    brought: &mut [Option<Brought>],
) -> Result<Arc<dyn Any + Send + Sync>> {
    let brought: Vec<Brought> = brought.iter_mut().filter_map(Option::take).collect();
    let Some(first) = brought.first() else { return Ok(Arc::new(Vec::<T>::new())) };
    let call_of = |b: &Brought| format!("{} of {}", b.call, b.len);
    let differs = |b: &Brought| (b.call, b.len) != (first.call, first.len);
    if let Some(rank) = brought.iter().position(differs) {
        let (expected, got) = (call_of(first), call_of(&brought[rank]));
        let reason = format!("expected {expected} elements, as rank 0 has it, got {got}");
        return Err(Error::collective(Some(rank), reason));
    }
    let values = brought.into_iter().map(|b| b.values.downcast::<T>().map(|values| *values));
    let values = values.collect::<std::result::Result<Vec<T>, _>>();
    match values {
        Ok(values) => Ok(Arc::new(values)),
        Err(_) => Err(Error::collective(None, "expected values of one type from all ranks")),
    }
}

fn left(rank: usize) -> Error {
    Error::collective(Some(rank), "it has left, by a panic or at its end")
}

impl Meeting {
    fn new(size: usize, limit: Duration) -> Self {
        let brought = (0..size).map(|_| None).collect();
        let table = Table { brought, has_left: vec![false; size], ..Table::default() };
        Self { size, limit, table: Mutex::new(table), is_over: Condvar::new() }
    }
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// No call comes about from now on, for this reason or an earlier one.
    fn end(&self, table: &mut Table, error: Error) -> Error {
        self.is_over.notify_all();
        table.end.get_or_insert(error).clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut table = self.meeting.table();
        table.has_left[self.rank] = true;
        // Who waits, waits for this rank, which is not there.
        if table.brought.iter().any(Option::is_some) {
            self.meeting.end(&mut table, left(self.rank));
        }
    }
}

impl Rank for Threads {
    fn rank(&self) -> usize {
        self.0.rank
    }
    fn size(&self) -> usize {
        self.0.meeting.size
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        Ok(self.meet("exchange", mine.len(), mine)?.to_vec())
    }
    fn split(&self, color: usize) -> Result<Self> {
        let colors = self.meet("split", 1, color)?;
        let Member { meeting, rank, splits } = &*self.0;
        let number = {
            let mut splits = splits.lock().unwrap_or_else(PoisonError::into_inner);
            *splits += 1;
            *splits
        };
        let of = |ranks: &[usize]| ranks.iter().filter(|other| **other == color).count();
        let (size, place) = (of(&colors), of(&colors[..*rank]));
        let mut table = meeting.table();
        let none = || (Arc::new(Meeting::new(size, meeting.limit)), size);
        let (part, to_come) = table.parts.entry((number, color)).or_insert_with(none);
        let part = part.clone();
        *to_come -= 1;
        if *to_come == 0 {
            table.parts.remove(&(number, color));
        }
        Ok(Self::of(part, place))
    }
}

impl<M: Memory> Collective<M> for Threads {
    fn all_gather(&self, on: &M, part: M::View<'_, f64>, all: M::ViewMut<'_, f64>) -> Result<()> {
        let (expected, got) =
            (M::len(&part).saturating_mul(self.size()), M::len(&M::as_view(&all)));
        let parts = self.meet("all_gather", M::len(&part), on.download(part)?)?;
        if got != expected {
            return Err(Error::Length { what: "all", expected, got });
        }
        on.write(&parts.concat(), all)
    }
    fn all_reduce<P: Real>(&self, on: &M, sums: M::ViewMut<'_, P>) -> Result<()> {
        let mine = on.download(M::as_view(&sums))?;
        let parts = self.meet("all_reduce", mine.len(), mine)?;
        let sum = |k: usize| P::from_f64(parts.iter().map(|part| part[k].to_f64()).sum());
        let total: Vec<P> = (0..M::len(&M::as_view(&sums))).map(sum).collect();
        on.write(&total, sums)
    }
}
