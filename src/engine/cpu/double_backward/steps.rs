//! The two passes where sums are needed: how tiles are summed, what sums come to, and what is kept in between.
use super::super::extremes::Extreme;
use super::super::gradients;
use super::super::kernels::double_backward::{FIELDS, PLAIN, SUMS};
use super::super::plan::Tile;
use super::super::schedule::{Part, TwoPass};
use super::super::slots::Sums;
use super::super::table::{Parameters, Statistics};
use super::super::tiles::by_range::ByRange;
use super::coefs::{Coefs, Table, TableMut};
use super::{Arrays, Outputs, Work, set};
use crate::Element;
use std::sync::{Mutex, PoisonError};

/// The steps where sums are needed.
pub(super) struct SumsAndGradients<'a, E: Element> {
    pub work: Work<'a, E>,
    pub writes: bool,
    /// Whether gradients of weight and bias are added to what is there.
    pub accumulate: bool,
    /// Extreme channels, and what their sums come to, in any order.
    pub of_extremes: Mutex<Vec<(Extreme, Coefs)>>,
}

impl<'a, E: Element> TwoPass<FIELDS> for SumsAndGradients<'a, E> {
    type Outputs = Outputs<'a, E>;
    type Results = Arrays<'a, E::Acc>;
    type Number = E::Acc;

    fn sums(&self) -> usize {
        if self.work.read.activation.is_curved() { SUMS } else { PLAIN }
    }
    /// The sums, and gradients of weight and bias.
    fn work_len(&self) -> usize {
        self.sums() + 2
    }
    fn prepare(&self, mut table: TableMut<'_, E::Acc>) {
        table.channels.clone().for_each(|c| table.forward(c, &self.work.given.of(c)));
    }
    fn reduce(
        &self,
        tile: &Tile,
        _: &Part<'_, Self, FIELDS>,
        table: &Table<'_, E::Acc>,
        slot: &mut [f64],
    ) {
        self.work.sum_tile(tile, table, slot);
    }
    fn merge(
        &self,
        of_tiles: Sums<'_>,
        _: &Part<'_, Self, FIELDS>,
        mut table: TableMut<'_, E::Acc>,
        memory: &mut [f64],
        results: <Arrays<'a, E::Acc> as ByRange>::Part<'_>,
    ) {
        let (work, plan) = (&self.work, self.work.read.plan);
        let (gradients_to, mut of_part) = results;
        let channels = of_tiles.channels.clone();
        let (sums, rest) = memory.split_at_mut(self.sums() * channels.len());
        let (weights, biases) = rest.split_at_mut(channels.len());
        gradients::merge(work.read.simd, plan, of_tiles, sums);
        let (saved, simd) = (work.given.saved, work.read.simd);
        let by = Statistics::saved(saved, channels.clone());
        let extremes = Extreme::among(simd, channels.clone(), Parameters::saved(saved), by);
        for (k, c) in channels.clone().enumerate() {
            let mut own = [0.0; SUMS];
            let of_sums = own.iter_mut().zip(sums.chunks(channels.len()));
            of_sums.for_each(|(own, of_channels)| *own = of_channels[k]);
            let extreme = extremes.iter().find(|e| e.c == c);
            if extreme.is_some() || own.iter().any(|sum| !sum.is_finite()) {
                own = work.wide_sums(c, extreme.is_none().then_some(&table.read()));
                own[self.sums()..].fill(0.0);
            }
            if let Some(to) = &mut of_part {
                for (to, sum) in to.iter_mut().zip(own) {
                    to[k] = sum + if self.accumulate { to[k] } else { 0.0 };
                }
                continue;
            }
            let coefs = work.coefs(c, &own);
            (weights[k], biases[k]) = (coefs.gg_weight, coefs.gg_bias);
            table.gradient(c, &coefs);
            if let Some(extreme) = extreme {
                let mut found = self.of_extremes.lock().unwrap_or_else(PoisonError::into_inner);
                found.push((*extreme, coefs));
            }
        }
        if of_part.is_none() {
            set(work.read.simd, self.accumulate, [weights, biases], gradients_to);
        }
    }
    fn write(&self, tile: &Tile, outputs: Part<'_, Self, FIELDS>, table: &Table<'_, E::Acc>) {
        self.work.write_tile(tile, outputs, table);
    }
    fn writes(&self) -> bool {
        self.writes
    }
}
