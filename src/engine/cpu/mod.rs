//! The fast engine for ordinary memory: all threads, vector instructions, tasks that keep a
//! channel in cache.
//!
//! ```text
//! forward_train                                  backward
//!   plan      cut the tensor into tiles            plan
//!   schedule  for every tile: stats                schedule  for every tile: sums of gradients
//!             for every range of channels:                   for every range of channels:
//!               moments, table, saved,                         table, gradients of the
//!               running statistics                             parameters
//!             for every tile: normalize                      for every tile: input gradients
//! ```
//!
//! Three floors. `forward`, `backward` and `stats` are the operations, `schedule` the order of their
//! steps (`ranges` of channels, `slots` of sums, `shares` of threads). `stats`, `gradients` and `elementwise` take a tile apart into blocks of values. `kernels` are
//! the loops over blocks, compiled once for every level of vector instructions, by `simd`.
//! `extremes` computes channels again that are too large or too small for the loops. `table` holds the
//! coefficients of channels, `parameters` changes those of a layer. `groups`, `ghost` and `dealt`
//! take groups of a batch's rows at once. `compiled` leads from the trait to the operations of a type.
use super::check::{check_values_per_channel, total_count};
use super::{Backward, Derivative, Engine, ForwardEval, ForwardTrain, GroupRows};
use super::{
    Constrain, DoubleBackward, MergeStats, OneValue, OptimizerStep, Regularize, Renormalize,
    RenormalizeBackward, Request, Running, Stats,
};
use super::{LayerNormBackward, LayerNormForward};
use crate::{Element, Host, Mask, Real, Result, Saved, Shape};
pub use simd::SimdLevel;

use kernels::moments as merging;
use moments::Moments;
use plan::Plan;
use simd::Simd;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

mod backward;
pub(crate) mod compiled;
mod counted;
mod dealt;
mod double_backward;
mod elementwise;
mod extremes;
mod few_runs;
mod forward;
mod gate;
mod ghost;
mod gradients;
mod groups;
pub(crate) mod kernels;
mod layer_norm;
mod masked;
mod masked_stats;
mod moments;
mod parameters;
mod plan;
mod policy;
mod ranges;
mod schedule;
mod shares;
#[allow(unsafe_code)]
mod simd;
mod slots;
mod staged;
mod stats;
mod table;
#[allow(unsafe_code)]
mod tiles;
mod train;

/// Batch normalization on the host, on the threads of the rayon pool it is called from.
///
/// Results do not depend on the number of threads, nor on the machine's vector instructions: bit
/// for bit (see [`SimdLevel`]). Clones share their workspaces; any number of threads may use one engine at a time.
///
/// After `fork` the child has none of the pool's threads, and works alone: to have others, start rayon's
/// pool in the child alone, or let it run within a pool of its own (`rayon::ThreadPool::install`).
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Those not in use. They grow to the largest step and are kept.
    workspaces: Arc<Mutex<Vec<Vec<f64>>>>,
    /// Absent where the environment chooses.
    simd: Option<Simd>,
}

impl Cpu {
    /// An engine that computes with the instructions of a level, whatever the environment says; for
    /// tests and measurements.
    ///
    /// # Errors
    /// A level that this machine lacks: see [`SimdLevel::available`].
    pub fn with_simd_level(level: SimdLevel) -> Result<Self> {
        Ok(Self { simd: Some(Simd::of_level(level)?), ..Self::default() })
    }
    /// The vector instructions that it computes with: the widest that this machine has, unless the
    /// environment variable `BATCHNORM_SIMD` names others (`baseline`, `avx2` or `avx512`).
    ///
    /// # Errors
    /// `BATCHNORM_SIMD` is none of these, or names instructions that this machine lacks. Every
    /// operation returns the same error then.
    pub fn simd_level(&self) -> Result<SimdLevel> {
        Ok(self.simd()?.level())
    }
    fn simd(&self) -> Result<Simd> {
        self.simd.map_or_else(Simd::of_environment, Ok)
    }
    /// Runs `f` with `len` values to work in, of arbitrary content.
    fn with_workspace<R>(&self, len: usize, f: impl FnOnce(&mut [f64]) -> R) -> R {
        if len == 0 {
            return f(&mut []);
        }
        let pool = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = take_workspace(&mut pool(), len);
        if workspace.len() < len {
            workspace.resize(len, 0.0);
        }
        let result = f(&mut workspace[..len]);
        pool().push(workspace);
        result
    }
}

/// The smallest that is long enough, or the longest, which then grows: the last of those that came back.
fn take_workspace(pool: &mut Vec<Vec<f64>>, len: usize) -> Vec<f64> {
    let all = || pool.iter().map(Vec::len).enumerate().rev();
    let enough = all().filter(|(_, own)| *own >= len).min_by_key(|(_, own)| *own);
    let best = enough.or_else(|| all().max_by_key(|(_, own)| *own));
    best.map(|(i, _)| pool.remove(i)).unwrap_or_default()
}

impl Engine for Cpu {
    type Memory = Host;

    fn name(&self) -> &'static str {
        "cpu"
    }
    fn memory(&self) -> &Host {
        &Host
    }
    /// One bit per element where a backward takes a mask: see [`Derivative::FromMask`].
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        match request.activation.derivative_from(request.residual) {
            Derivative::FromMask if shape.dealt().is_some() => dealt::mask_len(shape),
            Derivative::FromMask => Plan::new(shape, 1, 1).mask_len(),
            _ => 0,
        }
    }
    fn takes_groups(&self, shape: &Shape, request: Request) -> bool {
        shape.dealt().is_some() && !request.mask
    }

    fn forward_train<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardTrain<'_, Host, E>,
    ) -> Result<()> {
        E::forward_train(self, shape, args)
    }
    fn forward_eval<E: Element>(
        &self,
        shape: &Shape,
        args: ForwardEval<'_, Host, E>,
    ) -> Result<()> {
        E::forward_eval(self, shape, args)
    }
    fn backward<E: Element>(&self, shape: &Shape, args: Backward<'_, Host, E>) -> Result<()> {
        E::backward(self, shape, args)
    }
    fn forward_train_groups<E: Element>(
        &self,
        groups: &[Shape],
        args: ForwardTrain<'_, Host, E>,
        saved: &mut [Saved<Host, E::Acc>],
        factors: &[(f64, f64)],
    ) -> Result<()> {
        E::forward_train_groups(self, groups, args, saved, factors)
    }
    fn backward_groups<E: Element>(&self, args: Backward<'_, Host, E>) -> Result<()> {
        E::backward_groups(self, args)
    }
    fn takes_groups_at_once(&self, shape: &Shape, groups: GroupRows, request: Request) -> bool {
        ghost::takes(shape, groups, request)
    }
    fn forward_train_at_once<E: Element>(
        &self,
        shape: &Shape,
        groups: GroupRows,
        args: ForwardTrain<'_, Host, E>,
        factors: &[(f64, f64)],
    ) -> Result<()> {
        E::forward_train_at_once(self, shape, groups, args, factors)
    }
    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, Host, E>,
    ) -> Result<()> {
        E::double_backward(self, shape, args)
    }
    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: &[E],
        mask: Mask<'_, Host>,
        _: f64,
        to: &mut [f64],
    ) -> Result<()> {
        to.copy_from_slice(&masked_stats::stats(self, shape, x, &mask)?);
        Ok(())
    }
    fn stats<E: Element>(&self, shape: &Shape, args: Stats<'_, Host, E>) -> Result<()> {
        E::stats(self, shape, args)
    }
    fn merge_stats<P: Real>(&self, mut args: MergeStats<'_, Host, P>) -> Result<()> {
        let channels = args.check(&Host)?;
        self.simd()?;
        let parts = || args.records.chunks_exact(3 * channels + 1);
        let total = total_count(parts().map(|part| part[3 * channels]).enumerate())?;
        check_values_per_channel("records", total as usize, args.one_value)?;
        for c in 0..channels {
            let parts = || parts().map(|part| Moments::of_record(part, channels, c));
            let first = parts().find(|part| part.count > 0.0).map_or(0.0, |part| part.base);
            let base = if first.is_finite() { first } else { 0.0 };
            let mut all = Moments { base, ..Moments::default() };
            parts().for_each(|part| all.merge(part.counted_from(base)));
            all.write(&mut table::split_mut(args.record, channels), c);
            update(&mut args.running, c..c + 1, |_| all, args.one_value);
        }
        args.record[3 * channels] = total;
        Ok(())
    }
    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormForward<'_, Host, E>,
    ) -> Result<()> {
        E::layer_norm(self, shape, args)
    }
    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, Host, E>,
    ) -> Result<()> {
        E::layer_norm_backward(self, shape, args)
    }

    fn renormalize<P: Real>(&self, mut args: Renormalize<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        self.simd()?;
        args.on_host();
        Ok(())
    }
    fn renormalize_backward<P: Real>(
        &self,
        mut args: RenormalizeBackward<'_, Host, P>,
    ) -> Result<()> {
        args.check(&Host)?;
        self.simd()?;
        args.on_host();
        Ok(())
    }

    fn optimizer_step<P: Real>(&self, mut args: OptimizerStep<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        self.simd()?;
        parameters::optimizer_step(args);
        Ok(())
    }
    fn regularize<P: Real>(&self, mut args: Regularize<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        self.simd()?;
        parameters::regularize(args);
        Ok(())
    }
    fn constrain<P: Real>(&self, mut args: Constrain<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        self.simd()?;
        parameters::constrain(args);
        Ok(())
    }
}

/// Moves running statistics by a batch of `m` values per channel, its means, each in one number or in two, and its sums
/// of squares.
fn update_by<P: Real>(
    simd: Simd,
    running: &mut Running<'_, Host, P>,
    m: f64,
    (means, rests): (&[f64], Option<&[f64]>),
    squares: &[f64],
    one_value: OneValue,
) {
    let Some(over) = running.moves_plainly(m, one_value) else {
        for (k, squares) in squares.iter().enumerate() {
            let mean = rests.map_or(means[k], |rests| means[k] + rests[k]);
            running.update(k, m, mean, |over| squares / over, one_value);
        }
        return;
    };
    match rests {
        Some(rests) => merging::blend_sums(simd, running.mean, running.factor, (means, rests)),
        None => merging::blend_over(simd, running.mean, running.factor, means, 1.0),
    }
    merging::blend_over(simd, running.var, running.var_factor, squares, over);
}

/// Moves the running statistics, if there are any, by the moments of a batch.
fn update<P: Real>(
    running: &mut Option<Running<'_, Host, P>>,
    channels: Range<usize>,
    batch: impl Fn(usize) -> Moments,
    one_value: OneValue,
) {
    let Some(running) = running else { return };
    for (k, c) in channels.enumerate() {
        let batch = batch(k);
        let var_over = |over: f64| batch.squares / over;
        running.update(c, batch.count, batch.mean(), var_over, one_value);
    }
}
