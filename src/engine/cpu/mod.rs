//! The fast engine for ordinary memory: all threads, vector instructions, tasks that keep a
//! channel in cache.
//!
//! `plan` cuts the tensor into tiles, `tiles` runs a task for each, and the tasks take the steps:
//! `stats`, `moments` and `normalize` (in `train`), `grad` (in `backward`). Where a tile holds its
//! channels whole, one task takes all steps on it; otherwise every step is a round over all tiles.
//! `extremes` computes channels again that are too large or too small for the loops.
//! `table` holds the coefficients of channels that they share, `coefs` brings them to the loops.
//! `compiled` leads from the trait to `operations`, where all of this is one type's.
use super::check::{check_values_per_channel, total_count};
use super::ops::blend;
use super::saved::Buffers;
use super::{Activation, Backward, Engine, ForwardEval, ForwardTrain};
use super::{MergeStats, Request, Running, Stats};
use crate::{Element, Host, Real, Result, Shape};
use extremes::Extreme;
use lanes::Scratch;
use moments::Moments;
use normalize::{Normalize, walk};
use plan::{Plan, Tile};
use simd::vectorized;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use table::{Parameters, Table, TableMut};
use tiles::{TileMut, Writer};

mod backward;
mod coefs;
#[allow(unsafe_code)]
mod compiled;
mod extremes;
mod grad;
mod lanes;
mod moments;
mod normalize;
mod operations;
mod plan;
#[allow(unsafe_code)]
mod simd;
mod stats;
#[allow(unsafe_code)]
mod store;
mod table;
#[allow(unsafe_code)]
mod tiles;
mod train;

/// Batch normalization on the host, on the threads of the rayon pool it is called from.
///
/// Results do not depend on the number of threads, nor on the machine's vector instructions: bit
/// for bit. Clones share their workspaces; any number of threads may use one engine at a time.
///
/// After `fork` the child has none of the pool's threads, and waits for them for ever: start rayon's
/// pool in the child alone, or let it run within a pool of its own (`rayon::ThreadPool::install`).
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Those not in use. They grow to the largest step and are kept.
    workspaces: Arc<Mutex<Vec<Vec<f64>>>>,
}

impl Cpu {
    /// Runs `f` with `len` values to work in, of arbitrary content.
    fn with_workspace<R>(&self, len: usize, f: impl FnOnce(&mut [f64]) -> R) -> R {
        let pool = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = pool().pop().unwrap_or_default();
        if workspace.len() < len {
            workspace.resize(len, 0.0);
        }
        let result = f(&mut workspace[..len]);
        pool().push(workspace);
        result
    }
}

impl Engine for Cpu {
    type Memory = Host;

    fn name(&self) -> &'static str {
        "cpu"
    }
    fn memory(&self) -> &Host {
        &Host
    }
    /// One bit per element where a residual hides the ReLU's input; otherwise backward computes
    /// the ReLU again from x.
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        match request.activation {
            Activation::Relu if request.residual => Plan::new(shape, 1, 1).mask_len(),
            _ => 0,
        }
    }

    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardTrain<'_, Host, E>,
    ) -> Result<()> {
        compiled::run::<compiled::ForwardTrain, E>(self, shape, args)
    }
    fn forward_eval<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardEval<'_, Host, E>,
    ) -> Result<()> {
        compiled::run::<compiled::ForwardEval, E>(self, shape, args)
    }
    fn backward<E: Element>(&self, shape: &Shape, args: Backward<'_, Host, E>) -> Result<()> {
        compiled::run::<compiled::Backward, E>(self, shape, args)
    }
    fn stats<E: Element>(&self, shape: &Shape, args: Stats<'_, Host, E>) -> Result<()> {
        compiled::run::<compiled::Stats, E>(self, shape, args)
    }
    fn merge_stats<P: Real>(&self, mut args: MergeStats<'_, Host, P>) -> Result<()> {
        let channels = args.check(&Host)?;
        let parts = || args.records.chunks_exact(3 * channels + 1);
        let total = total_count(parts().map(|part| part[3 * channels]).enumerate())?;
        check_values_per_channel("records", total as usize)?;
        for c in 0..channels {
            let parts = || parts().map(|part| Moments::of_record(part, channels, c));
            let first = parts().find(|part| part.count > 0.0).map_or(0.0, |part| part.base);
            let base = if first.is_finite() { first } else { 0.0 };
            let mut all = Moments { base, ..Moments::default() };
            parts().for_each(|part| all.merge(part.counted_from(base)));
            all.write(args.record, channels, c);
            update(&mut args.running, c..c + 1, |_| all);
        }
        args.record[3 * channels] = total;
        Ok(())
    }
}

/// What both forwards read beside the statistics.
#[derive(Clone, Copy)]
struct Output<'a, E> {
    /// Absent where y holds it.
    x: Option<&'a [E]>,
    residual: Option<&'a [E]>,
    relu: bool,
}

impl<E: Element> Output<'_, E> {
    /// Whether backward cannot compute the ReLU again from x.
    fn masks(&self) -> bool {
        self.relu && self.residual.is_some()
    }
    /// Writes extreme channels again; `x` holds their elements.
    fn write_apart(
        &self,
        shape: &Shape,
        plan: &Plan,
        extremes: &[Extreme],
        x: Vec<Vec<E>>,
        y: &mut [E],
        mask: Option<&mut [u8]>,
    ) {
        let Output { residual, relu, .. } = *self;
        extremes::Forward { shape, plan, x, residual, relu }.write(extremes, y, mask);
    }
    /// Compiled once for both forwards.
    fn write(
        &self,
        plan: &Plan,
        tile: &Tile,
        table: &Table<'_, E::Acc>,
        y: TileMut<'_, E>,
        mask: Option<TileMut<'_, u8>>,
    ) {
        let Output { x, residual, relu } = *self;
        let y = Writer::new(plan, y, 2, x.is_none());
        let mut step = Normalize { plan, x, residual, relu, y, mask, held: Scratch::new() };
        vectorized(
            #[inline(always)]
            |simd| walk(simd, plan, tile, table, &mut step),
        );
    }
}

/// The reserve space as a mask to write, if there is to be one.
fn mask<'s, A: Real>(
    plan: &Plan,
    wanted: bool,
    saved: Option<&'s mut Buffers<Host, A>>,
) -> Option<&'s mut [u8]> {
    let reserve = saved.filter(|_| wanted)?.reserve.as_mut()?;
    Some(&mut reserve[..plan.mask_len()])
}

/// The running variance is the unbiased one. An empty batch changes nothing.
fn update<P: Real>(
    running: &mut Option<Running<'_, Host, P>>,
    channels: Range<usize>,
    batch: impl Fn(usize) -> Moments,
) {
    let Some(Running { mean, var, factor }) = running else { return };
    let running = mean[channels.clone()].iter_mut().zip(&mut var[channels]);
    for (k, (mean, var)) in running.enumerate() {
        let batch = batch(k);
        if batch.count > 0.0 {
            *mean = blend(*mean, batch.mean(), *factor);
            *var = blend(*var, batch.squares / (batch.count - 1.0), *factor);
        }
    }
}
