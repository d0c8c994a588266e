//! The steps of the training forward, and what becomes of its statistics.
use super::extremes::{self, Extreme};
use super::forward::Output;
use super::kernels::moments as merging;
use super::masked::Masked;
use super::moments::{self, Merged};
use super::plan::{Plan, Tile};
use super::schedule::{Part, TwoPass, two_pass, workspace_len};
use super::slots::Sums;
use super::table::{self, Parameters, Statistics, Table, TableMut, split_mut};
use super::tiles::Elements;
use super::tiles::by_range::{ByRange, Channels};
use super::{Cpu, counted, masked_stats, stats, update_by};
use crate::engine::saved::{Buffers, ByChannel};
use crate::engine::{OneValue, Running};
use crate::{Element, Host};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The steps of the training forward.
pub(super) struct Train<'a, E: Element> {
    pub output: Output<'a, E>,
    pub x: &'a [E],
    pub parameters: Parameters<'a, E::Acc>,
    pub eps: f64,
    /// Absent where all values count.
    pub mask: Option<&'a Masked<'a>>,
    /// How running statistics move, without their arrays; absent where there are none.
    pub rules: Option<Running<'static, Host, E::Acc>>,
    pub one_value: OneValue,
    /// Those that tasks have found, in any order.
    pub extremes: Mutex<Vec<Extreme>>,
}

/// Arrays of what is saved, parameters last; of the running statistics, with what they have skipped; of means and sums
/// of squares that are kept.
type Results<'a, E> = (
    Option<[Channels<'a, <E as Element>::Acc>; 5]>,
    Option<(
        Channels<'a, <E as Element>::Acc>,
        Channels<'a, <E as Element>::Acc>,
        Option<Channels<'a, f64>>,
    )>,
    Option<[Channels<'a, f64>; 2]>,
);
/// Those of some channels.
type ResultsOf<'o, 'a, E> = <Results<'a, E> as ByRange>::Part<'o>;

impl<E: Element> Train<'_, E> {
    /// Runs them: y, what is saved, running statistics, and moments in `kept` where that is given.
    pub fn run(
        &self,
        cpu: &Cpu,
        running: Option<&mut Running<'_, Host, E::Acc>>,
        y: &mut [E],
        mut saved: Option<&mut Buffers<Host, E::Acc>>,
        kept: Option<&mut [f64]>,
    ) {
        let Self { output, x, .. } = *self;
        let Output { shape, plan, .. } = output;
        cpu.with_workspace(workspace_len(plan, self), |workspace| {
            let (of_saved, reserve) = match &mut saved {
                Some(saved) => {
                    let (saved, reserve) = saved.with_reserve_mut();
                    let ByChannel { mean, mean_rest, invstd, weight, bias } = saved;
                    (Some([mean, mean_rest, invstd, weight, bias].map(Channels::new)), reserve)
                }
                None => (None, None),
            };
            let running = running.map(|Running { mean, var, skipped, .. }| {
                let skipped = skipped.as_mut().map(|skipped| Channels::new(skipped));
                (Channels::new(mean), Channels::new(var), skipped)
            });
            let kept = kept.map(|kept| split_mut(kept, shape.channels()).map(Channels::new));
            let mut results = (of_saved, running, kept);
            let of_mask = output.mask(reserve).map(Elements::mask);
            let mut outputs = (Elements::new(&mut *y), of_mask);
            two_pass(plan, self, &mut outputs, &mut results, workspace);
        });
        let mut extremes = self.extremes.lock().unwrap_or_else(PoisonError::into_inner);
        extremes.sort_by_key(|extreme| extreme.c);
        let x = extremes::elements(&extremes, shape, x);
        let reserve = saved.and_then(|saved| saved.reserve.as_mut());
        output.write_extremes(&extremes, x, y, reserve.map(|reserve| &mut reserve[..]));
    }
    /// Writes what becomes of the statistics of some channels elsewhere.
    fn publish(
        &self,
        channels: Range<usize>,
        merged: &Merged<'_>,
        statistics: Statistics<'_, E::Acc>,
        (saved, running, kept): ResultsOf<'_, '_, E>,
    ) {
        let Self { parameters, mask, one_value, .. } = *self;
        let Output { simd, shape, .. } = self.output;
        if let Some([mean, rest, invstd, weight, bias]) = saved {
            mean.copy_from_slice(statistics.mean);
            rest.copy_from_slice(statistics.rest);
            invstd.copy_from_slice(statistics.invstd);
            parameters.of(channels.clone()).write(weight, bias);
        }
        let extremes = Extreme::among(simd, channels.clone(), parameters, statistics);
        if !extremes.is_empty() {
            self.extremes.lock().unwrap_or_else(PoisonError::into_inner).extend(extremes);
        }
        let running = running.zip(self.rules.as_ref());
        let mut running =
            running.map(|((mean, var, skipped), rules)| rules.of_channels(mean, var, skipped));
        let Merged { base, offset, squares, .. } = *merged;
        if let Some([means, to]) = kept {
            means.iter_mut().enumerate().for_each(|(k, to)| *to = base[k] + offset[k]);
            to.copy_from_slice(squares);
        }
        if let Some(mask) = mask {
            if let Some(running) = &mut running {
                masked_stats::update(running, channels, merged, mask, one_value);
            }
            return;
        }
        if let Some(running) = &mut running {
            let m = shape.per_channel() as f64;
            update_by(simd, running, m, (base, Some(offset)), squares, one_value);
        }
    }
}

impl<'a, E: Element> TwoPass<{ table::FIELDS }> for Train<'a, E> {
    /// y, and the mask.
    type Outputs = (Elements<'a, E>, Option<Elements<'a, u8>>);
    type Results = Results<'a, E>;
    type Number = E::Acc;

    /// Of a mask a number of values beside the two sums.
    fn sums(&self) -> usize {
        if self.mask.is_some() { 3 } else { 2 }
    }
    fn summed(&self, plan: &Plan) -> Plan {
        if self.mask.is_some() { *plan } else { plan.narrow() }
    }
    /// Moments, and what follows from them for a backward.
    fn work_len(&self) -> usize {
        Merged::FIELDS + Statistics::<E::Acc>::FIELDS
    }
    fn prepare(&self, _: TableMut<'_, E::Acc>) {}
    fn reduce(
        &self,
        tile: &Tile,
        _: &Part<'_, Self, { table::FIELDS }>,
        _: &Table<'_, E::Acc>,
        slot: &mut [f64],
    ) {
        let Output { simd, plan, .. } = self.output;
        counted::values(tile.len());
        match self.mask {
            Some(mask) => masked_stats::moments(simd, plan, tile, (self.x, mask), slot),
            None => stats::moments(simd, plan, tile, self.x, slot),
        }
    }
    fn merge(
        &self,
        sums: Sums<'_>,
        _: &Part<'_, Self, { table::FIELDS }>,
        table: TableMut<'_, E::Acc>,
        work: &mut [f64],
        results: ResultsOf<'_, 'a, E>,
    ) {
        let Output { simd, shape, plan, .. } = self.output;
        let channels = sums.channels.clone();
        let n = channels.len();
        let (memory, statistics) = work.split_at_mut(Merged::FIELDS * n);
        match self.mask {
            Some(mask) => {
                let of = (self.x, mask, self.eps);
                masked_stats::merge(simd, (shape, plan), sums, of, memory);
            }
            None => {
                let of = (self.x, self.eps);
                moments::merge(simd, (shape, &plan.narrow()), sums, of, memory);
            }
        }
        let merged = Merged::new(memory, shape);
        let of = (merged.base, merged.offset, merged.invstd);
        merging::round(simd, of, Statistics::<E::Acc>::split_mut(statistics, n));
        let statistics = Statistics::split(statistics, n);
        table.forward(simd, statistics, self.parameters);
        self.publish(channels, &merged, statistics, results);
    }
    fn write(
        &self,
        tile: &Tile,
        outputs: Part<'_, Self, { table::FIELDS }>,
        table: &Table<'_, E::Acc>,
    ) {
        counted::values(2 * tile.len());
        self.output.write(tile, table, outputs);
    }
}
