//! The two passes where sums are needed: how tiles are summed, what sums come to, and what is kept in between.
use super::super::gradients;
use super::super::kernels::double_backward::{FIELDS, PLAIN, SUMS};
use super::super::plan::Tile;
use super::super::schedule::{Part, TwoPass};
use super::coefs::{Table, TableMut};
use super::{Outputs, Work};
use crate::Element;

/// The steps where sums are needed. What is cached for a block: the sums of its channels, one after the
/// other, their gradients of weight and bias, and the coefficients.
pub(super) struct SumsAndGradients<'a, E: Element> {
    pub work: Work<'a, E>,
    pub writes: bool,
}

impl<E: Element> SumsAndGradients<'_, E> {
    fn count(&self) -> usize {
        if self.work.read.activation.is_curved() { SUMS } else { PLAIN }
    }
    fn sums_len(&self) -> usize {
        self.count() * self.work.read.plan.block_channels()
    }
    /// Of the `k`th channel of a block.
    pub fn sums_of(&self, cached: &[f64], k: usize) -> [f64; SUMS] {
        let mut sums = [0.0; SUMS];
        let channels = self.work.read.plan.block_channels();
        for (sum, of_channels) in sums.iter_mut().zip(cached[..self.sums_len()].chunks(channels)) {
            *sum = of_channels[k];
        }
        sums
    }
    /// The gradients of weight and bias.
    pub fn results<'c>(&self, cached: &'c [f64]) -> (&'c [f64], &'c [f64]) {
        let channels = self.work.read.plan.block_channels();
        cached[self.sums_len()..][..2 * channels].split_at(channels)
    }
    fn before_table(&self) -> usize {
        self.sums_len() + 2 * self.work.read.plan.block_channels()
    }
    fn table<'c>(&self, block: usize, cached: &'c [f64]) -> Table<'c, E::Acc> {
        Table::new(&cached[self.before_table()..], self.work.read.plan.channels(block))
    }
}

impl<'a, E: Element> TwoPass for SumsAndGradients<'a, E> {
    type Outputs = Outputs<'a, E>;

    fn cached_len(&self) -> usize {
        self.before_table() + FIELDS * self.work.read.plan.block_channels()
    }
    fn sums(&self) -> usize {
        self.count()
    }
    fn prepare(&self, block: usize, cached: &mut [f64]) {
        let channels = self.work.read.plan.channels(block);
        let memory = &mut cached[self.before_table()..];
        let mut table = TableMut::<E::Acc>::new(memory, channels.clone());
        channels.for_each(|c| table.forward(c, &self.work.given.of(c)));
    }
    fn reduce(&self, tile: &Tile, _: &Part<'_, Self>, cached: &[f64], slot: &mut [f64]) {
        let table = self.table(tile.block, cached);
        self.work.sum_tile(tile, &table, slot);
    }
    fn merge(&self, block: usize, _: &Part<'_, Self>, slots: &mut [f64], cached: &mut [f64]) {
        let (work, plan) = (&self.work, self.work.read.plan);
        gradients::merge(work.read.simd, plan, slots, &mut cached[..self.sums_len()]);
        let (channels, of_block) = (plan.channels(block), plan.block_channels());
        for (k, c) in channels.clone().enumerate() {
            let sums = self.sums_of(cached, k);
            let is_extreme = work.extremes.iter().any(|e| e.c == c);
            if is_extreme || sums.iter().any(|sum| !sum.is_finite()) {
                let table = self.table(block, cached);
                let sums = work.wide_sums(c, (!is_extreme).then_some(&table));
                for (of_channels, sum) in cached[..self.sums_len()].chunks_mut(of_block).zip(sums) {
                    of_channels[k] = sum;
                }
            }
        }
        let (sums, rest) = cached.split_at_mut(self.sums_len());
        let (results, memory) = rest.split_at_mut(2 * of_block);
        let (weights, biases) = results.split_at_mut(of_block);
        let mut table = TableMut::<E::Acc>::new(memory, channels.clone());
        for (k, c) in channels.enumerate() {
            let coefs = work.coefs(c, &self.sums_of(sums, k));
            (weights[k], biases[k]) = (coefs.gg_weight, coefs.gg_bias);
            table.gradient(c, &coefs);
        }
    }
    fn write(&self, tile: &Tile, outputs: Part<'_, Self>, cached: &[f64]) {
        self.work.write_tile(tile, outputs, &self.table(tile.block, cached));
    }
    fn writes(&self) -> bool {
        self.writes
    }
}
