//! Statistics that all parts of a batch have in common: any engine on every rank, and a collective.
use super::{Backward, Engine, ForwardTrain, Input, MergeStats, OneValue, Running, Stats};
use crate::{Element, Memory, Real, Result, Shape};
use levels::Level;
use room::{Map, Room, Rooms};

mod call;
mod collective;
mod common;
mod double_backward;
mod engine;
mod levels;
mod masked;
#[cfg(feature = "nccl")]
mod nccl;
mod room;
mod threads;

pub use call::Call;
pub use collective::{Collective, Rank, Words};
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use threads::Threads;

/// Any engine, on each of several ranks with a part of every batch: a training forward normalizes by the
/// statistics of all parts together, PyTorch's `SyncBatchNorm`. The parts may differ in size, and some may be empty
/// or have one value per channel; what they share are channels and dtype. A layer is made on it as on any engine.
///
/// ```
/// # use batchnorm::{BatchNorm, Config, Cpu, Rank, Shape, Synced, Threads};
/// # use std::time::Duration;
/// // Two ranks, threads here, with three rows of a batch and with one.
/// let ranks = Threads::new(2, Duration::from_secs(10));
/// let parts = [&[1f32, 2.0, 3.0][..], &[6.0]];
/// std::thread::scope(|scope| {
///     for (ranks, x) in ranks.into_iter().zip(parts) {
///         scope.spawn(move || -> batchnorm::Result<()> {
///             let engine = Synced::new(&Cpu::default(), &ranks)?;
///             let mut bn = BatchNorm::new(&engine, 1, Config::default())?;
///             let (y, saved) = bn.forward(&Shape::new(&[x.len(), 1], 1)?, x)?;
///             assert!((bn.running().unwrap().mean[0] - 0.1 * 3.0).abs() < 1e-6); // of all four
///             let grad_x = bn.backward(&saved, x, &y)?;
///             # assert_eq!(grad_x.len(), x.len());
///             Ok(())
///         });
///     }
/// });
/// ```
///
/// # What is exchanged
/// A forward: the [record](Stats::record) of every part in f64, the mean in two numbers, so that it has the digits
/// that a forward of the whole batch has. Its backward: the sums of [`Backward::sums`] in the parameters' type, if a
/// gradient of x is asked for. Records are merged in an order that the number of ranks gives: running statistics
/// are equal in every bit on all ranks, and a step has the same results each time. Up to 16 ranks gather all records
/// at once, more ranks in steps of at most 16 neighbours ([`explain`](Self::explain) says which). On a device all of
/// it is queued, and nothing is read back; [`Threads`] and MPI wait for the device then, `Nccl` (feature `nccl`) does
/// not. One rank alone is the engine itself, at its cost: elsewhere a forward
/// reads x twice, and a backward x and the gradient of y twice. Messages and bytes of a step, and what they should
/// take on thousands of GPUs, are on the page [`scaling`](crate::scaling).
///
/// Evaluation communicates nothing, so that one rank may do it for all. That holds for layers without
/// running statistics too, which evaluate by the statistics of the rank's own tensor, as PyTorch's do.
///
/// # Ranks that do not do the same
/// Before a training forward, its backward or its double backward the ranks exchange what they are about to do. If one has refused its
/// arguments, or has another operation, dtype, number of channels, eps, epilogue, rule of a mask, size of ghost
/// batches or rule for the running statistics, or is alone with renormalization, no rank computes anything, and all of them return an error: the first its own, the others
/// [`Error::Collective`]. A rank that does not come, because it has panicked, say, or skips the layer, is the same
/// error at the collective's limit at the latest; one that is lost between that exchange and the end of a step on
/// devices leaves undefined what the step was to write, as [`Error::Device`] does, and `Nccl` says where that shows. Which ranks ask for `grad_x` must be all or none.
///
/// # Gradients of weight and bias
/// They are those of the rank's own part, as PyTorch's: they are reduced with all other gradients of the network.
/// With a loss that is divided by the total number of rows their sum is the gradient of the whole batch; an average
/// of averages is not, where parts differ in size.
///
/// ```
/// # use batchnorm::{BatchNorm, Collective, Engine, Memory, Result, Synced};
/// # fn reduce<M: Memory, G: Engine<Memory = M>, C: Collective<M>>(bn: &mut BatchNorm<f32, Synced<G, C>>) -> Result<()> {
/// # let engine = bn.engine().clone();
/// for (_, param) in bn.named_parameters_mut() {
///     if let Some(grad) = param.grad_mut() {
///         engine.collective().all_reduce(engine.memory(), M::view_mut(grad))?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Masks, ghost batches, renormalization, lists
/// | of a layer | on several ranks | what is exchanged besides |
/// |---|---|---|
/// | [`forward_masked`](crate::BatchNorm::forward_masked) | the values that count in all parts are one batch; a rank may have none | a record of four numbers of each channel instead of three |
/// | [`Config::ghost`](crate::Config::ghost) | groups are of a rank's own rows, running statistics by all of them: see [`Ghost`](crate::Ghost); by a mask too | a record of every group; nothing for the backward |
/// | [`Config::renorm`](crate::Config::renorm) | r and d by the statistics of all parts, which all ranks keep alike; by a mask too | nothing |
/// | [`double_backward`](crate::BatchNorm::double_backward) | through the statistics of all parts, by a mask and with renormalization too; of ghost batches by this rank alone. `v_weight` and `v_bias` are the same on all ranks. The gradients of weight and bias come of the sums of all parts, and the first rank with rows has them, the others zeros: their sum over the ranks is that of one batch, as a backward's is | twelve f64 of each channel |
/// | [`forward_parts`](crate::BatchNorm::forward_parts) | the inputs of all ranks' lists are one batch, however many each has | nothing |
///
/// # What is refused, and what is local
/// [`stats`](Engine::stats) and [`merge_stats`](Engine::merge_stats) are of this rank, so
/// [`PopulationStatistics`](crate::PopulationStatistics) gathers what it is given; at the end its
/// [record](crate::PopulationStatistics::to_record) goes through [`gather`](Self::gather), and each rank merges
/// those of all:
///
/// ```
/// # use batchnorm::{Collective, Engine, Memory, PopulationRule, PopulationStatistics, Result, Synced};
/// # fn merge<M: Memory, G: Engine<Memory = M>, C: Collective<M>>(engine: &Synced<G, C>, own: &PopulationStatistics<M>, channels: usize) -> Result<PopulationStatistics<M>> {
/// let (record, mut all) = (own.to_record()?, PopulationStatistics::new(engine, channels, own.rule())?);
/// for record in engine.gather(&record)?.chunks(record.len()) {
///     all.merge(engine, record)?;
/// }
/// # Ok(all)
/// # }
/// ```
///
/// [`Error::Collective`]: crate::Error::Collective
/// [`Error::Device`]: crate::Error::Device
#[derive(Clone)]
pub struct Synced<G: Engine, C> {
    engine: G,
    collective: C,
    levels: Vec<Level<C>>,
    rooms: Rooms<G::Memory>,
}

/// As many records as one gather takes.
const AT_ONCE: usize = 16;

impl<M: Memory, G: Engine<Memory = M>, C: Collective<M>> Synced<G, C> {
    /// This engine on this rank. Every rank makes its own, at the same place in the order of its calls of the
    /// collective.
    ///
    /// # Errors
    /// [`Error::Collective`](crate::Error::Collective) where more than 16 ranks cannot be [split](Rank::split).
    pub fn new(engine: &G, collective: &C) -> Result<Self> {
        Self::in_steps(engine, collective, AT_ONCE)
    }
    /// The same where a gather has at most so many ranks, as far as they have such divisors: those of a node, say,
    /// whose ranks are neighbours. It is the same number on every rank.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn in_steps(engine: &G, collective: &C, ranks_at_once: usize) -> Result<Self> {
        let levels = levels::levels(collective, ranks_at_once)?;
        let (engine, collective) = (engine.clone(), collective.clone());
        Ok(Self { engine, collective, levels, rooms: Rooms::new() })
    }
    /// The engine that computes on this rank.
    pub fn engine(&self) -> &G {
        &self.engine
    }
    /// The ranks.
    pub fn collective(&self) -> &C {
        &self.collective
    }
    /// How the records of a forward come to all ranks.
    ///
    /// ```
    /// # use batchnorm::{Reference, Synced, Threads};
    /// # use std::time::Duration;
    /// let alone = Threads::new(1, Duration::from_secs(10));
    /// let engine = Synced::new(&Reference, &alone[0])?;
    /// assert_eq!(engine.explain(), "1 rank: nothing is exchanged");
    /// # Ok::<(), batchnorm::Error>(())
    /// ```
    pub fn explain(&self) -> String {
        let steps: Vec<String> =
            self.levels.iter().map(|level| level.ranks.size().to_string()).collect();
        match (self.collective.size(), steps.len()) {
            (1, _) => "1 rank: nothing is exchanged".into(),
            (size, 1) => format!("{size} ranks: one gather of all records, one reduction of sums"),
            (size, _) => {
                let steps = steps.join(", then of ");
                format!("{size} ranks: gathers of {steps} records, one reduction of sums")
            }
        }
    }
    /// Everybody's numbers on the host, as many of each rank, in their order: for what a program has in common
    /// besides, such as losses, or the records of a population. Every rank makes the call; on a device it waits.
    ///
    /// # Errors
    /// [`Error::Collective`](crate::Error::Collective); the memory's refusal.
    pub fn gather(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let memory = self.memory();
        let _order = self.rooms.enter();
        let mine = memory.upload(numbers)?;
        let mut all = memory.zeros(numbers.len().saturating_mul(self.collective.size()))?;
        self.collective.all_gather(memory, M::view(&mine), M::view_mut(&mut all))?;
        memory.download(M::view(&all))
    }

    fn is_alone(&self) -> bool {
        self.collective.size() == 1
    }
    /// The check of a training forward, and the record of this rank's part.
    fn begin<'r, E: Element>(
        &self,
        rooms: &'r mut Map<M>,
        shape: &Shape,
        args: &mut ForwardTrain<'_, M, E>,
    ) -> Result<&'r mut Room<M>> {
        // One value here may be one of many.
        {
            let mut mine = args.reborrow();
            mine.one_value = OneValue::ZeroVariance;
            mine.check(self.memory(), shape)?;
        }
        self.supports(shape, args.request())?;
        let room = self.room(rooms, shape.channels())?;
        let (x, record) = (M::reborrow(&args.x), M::view_mut(&mut room.record));
        self.engine.stats(shape, Stats::<M, E>::new(x, record))?;
        Ok(room)
    }
    fn room<'r>(&self, rooms: &'r mut Map<M>, channels: usize) -> Result<&'r mut Room<M>> {
        let steps = self.levels.iter().map(|level| level.ranks.size());
        room::of(rooms, self.memory(), channels, steps)
    }

    /// The record of all parts, of which each has so many values, and the running statistics by it.
    fn merge<P: Real>(
        &self,
        room: &mut Room<M>,
        parts: &[usize],
        mut running: Option<Running<'_, M, P>>,
        one_value: OneValue,
    ) -> Result<()> {
        let memory = self.memory();
        for (k, (level, gathered)) in self.levels.iter().zip(&mut room.gathered).enumerate() {
            let mine = if k == 0 { M::view(&room.record) } else { M::view(&room.merged) };
            level.ranks.all_gather(memory, mine, M::view_mut(gathered))?;
            let values = level.of.iter().flat_map(|ranks| &parts[ranks.clone()]);
            let values = values.fold(0usize, |all, part| all.saturating_add(*part));
            let is_last = k + 1 == self.levels.len();
            // What is known need not be read back: one value alone has been refused, none at all is no error.
            let counts = is_last && values > 0;
            let rule = if counts { one_value } else { OneValue::ZeroVariance };
            let to = M::view_mut(&mut room.merged);
            let mut args = MergeStats::<M, P>::new(M::view(gathered), to).known(values);
            args.running = running.as_mut().filter(|_| is_last).map(Running::reborrow);
            self.engine.merge_stats(args.one_value(rule))?;
        }
        Ok(())
    }

    /// The check of a backward that flows through all ranks' statistics.
    fn check_backward<E: Element>(
        &self,
        shape: &Shape,
        args: &mut Backward<'_, M, E>,
    ) -> Result<()> {
        args.saved.made()?.0.check(shape, E::DTYPE, self.engine.name())?;
        args.check_on(self.memory(), shape)?;
        self.supports(shape, args.request()?)
    }
    /// The gradients that take this rank's sums alone, and these.
    fn sums<E: Element>(
        &self,
        shape: &Shape,
        args: &mut Backward<'_, M, E>,
        sums: &mut M::Buf<E::Acc>,
    ) -> Result<()> {
        // A gradient in place is read where it lies, and stays there until all sums are known.
        let grad_y = match (&args.grad_y, &args.grad_x) {
            (Input::View(grad_y), _) => M::reborrow(grad_y),
            (Input::InPlace, Some(grad_x)) => M::as_view(grad_x),
            (Input::InPlace, None) => return Ok(()), // refused before
        };
        let mut part = Backward::<M, E>::new(args.saved, M::reborrow(&args.x), grad_y);
        part.residual = args.residual.as_ref().map(M::reborrow);
        part.mask = args.mask.as_ref().map(M::reborrow);
        part.y = args.y.as_ref().map(M::reborrow);
        part.grad_weight = args.grad_weight.as_mut().map(M::reborrow_mut);
        part.grad_bias = args.grad_bias.as_mut().map(M::reborrow_mut);
        let part = part.accumulate(args.accumulate).sums(M::view_mut(sums));
        self.engine.backward(shape, part)?;
        match &mut args.sums {
            Some(asked) => self.memory().copy(M::view(sums), M::reborrow_mut(asked)),
            None => Ok(()),
        }
    }
}
